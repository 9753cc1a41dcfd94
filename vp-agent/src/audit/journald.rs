//! Records to systemd's journal, as entries with fields, by its own socket (systemd.io/JOURNAL_NATIVE_PROTOCOL).

use super::forward::{Forwarded, fields};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// For a journal whose queue is full.
const SEND_WAIT: Duration = Duration::from_secs(1);
/// Of syslog(3): what is normal, and what is significant too.
const INFO: &str = "6";
const NOTICE: &str = "5";

pub(super) async fn run(path: PathBuf, mut records: mpsc::Receiver<Arc<Forwarded>>, lost: Arc<AtomicU64>) {
    let mut socket = None;
    while let Some(record) = records.recv().await {
        let sent = timeout(SEND_WAIT, send(&mut socket, &path, &entry(&record))).await;
        if !matches!(sent, Ok(Ok(()))) {
            // A journal that was restarted has another socket of the same name.
            socket = None;
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Connected, so that the kernel tells when there is room again.
async fn send(socket: &mut Option<UnixDatagram>, path: &Path, entry: &[u8]) -> io::Result<()> {
    let known = match socket.take() {
        Some(known) => known,
        None => {
            let new = UnixDatagram::unbound()?;
            new.connect(path)?;
            new
        }
    };
    known.send(entry).await?;
    *socket = Some(known);
    Ok(())
}

fn entry(forwarded: &Forwarded) -> Vec<u8> {
    let Forwarded { record, line, .. } = forwarded;
    let words = [Some(&record.event), record.service.as_ref(), record.peer.as_ref(), record.reason.as_ref()];
    let words = words.into_iter().flatten().chain(&record.detail).map(String::as_str);
    let message = words.collect::<Vec<_>>().join(" ");
    let priority = if record.event == "denied" { NOTICE } else { INFO };
    let mut entry = Vec::with_capacity(2 * line.len());
    let always = [("MESSAGE", message.as_str()), ("PRIORITY", priority), ("SYSLOG_IDENTIFIER", "vp-audit")];
    always.iter().for_each(|(name, value)| field(&mut entry, name, value));
    fields(record).for_each(|(name, value)| field(&mut entry, &format!("VP_{}", name.to_uppercase()), value));
    field(&mut entry, "VP_RECORD", line);
    entry
}

/// With its length before it, so that no value can begin another field.
fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}
