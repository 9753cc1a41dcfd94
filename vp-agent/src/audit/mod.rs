//! The audit log: one JSON line a flow opened or closed, a denial, a change. Denials that come in floods are summed up
//! by the second. A line that cannot be written is counted, and said; nobody waits for the disk.

mod denials;
#[cfg(test)]
mod tests;
mod writer;

use denials::{Added, Denials};
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;
use vp_proto::api::AuditRecord;
use vp_proto::time::rfc3339_millis;
use writer::{WAIT_MAX, Writer};

/// Lines kept for `vp-ctl audit` where there is no file to read.
const RECENT_MAX: usize = 1000;
/// How far back from its end a file is looked through.
const TAIL_BYTES: u64 = 4 << 20;
/// Followers that are slower than this lose lines.
const FOLLOW_MAX: usize = 4096;

#[derive(Debug)]
pub struct Audit {
    log: Mutex<Log>,
    followers: broadcast::Sender<String>,
    writer: Option<Writer>,
}

#[derive(Default, Debug)]
struct Log {
    recent: VecDeque<String>,
    denials: Denials,
    /// Denials that found no room in the sums.
    lost: u64,
    /// On their way to the writer.
    lines: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    Record(AuditRecord),
    /// Written at once, or added to those alike of this second.
    Denial(AuditRecord),
}

impl Audit {
    /// In memory alone without a path. An error when the file cannot be opened, in one line.
    pub async fn open(path: Option<&Path>) -> Result<Self, String> {
        let writer = match path {
            Some(path) => Some(Writer::start(path).await?),
            None => None,
        };
        let (followers, _) = broadcast::channel(FOLLOW_MAX);
        Ok(Self { log: Mutex::default(), followers, writer })
    }

    /// After logrotate moved the file away.
    pub async fn reopen(&self) -> Result<(), String> {
        match &self.writer {
            Some(writer) => writer.reopen().await,
            None => Ok(()),
        }
    }

    pub fn write(&self, entries: impl IntoIterator<Item = Entry>) {
        let time = rfc3339_millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        let mut log = self.log();
        for entry in entries {
            match entry {
                Entry::Record(record) => self.add(&mut log, record, &time),
                Entry::Denial(record) => match log.denials.add(&record) {
                    Added::First => self.add(&mut log, record, &time),
                    Added::Alike => {}
                    Added::NoRoom => log.lost += 1,
                },
            }
        }
        if let Some(writer) = &self.writer {
            writer.push(&log.lines);
        }
        log.lines.clear();
    }

    /// Once a second: the denials that were summed up.
    pub fn tick(&self) {
        let sums = self.log().denials.take_sums();
        self.write(sums.into_iter().map(Entry::Record));
    }

    /// The last lines, oldest first, with all that were handed over before.
    pub async fn last(&self, lines: usize) -> Vec<String> {
        if let Some(writer) = &self.writer {
            writer.flush().await;
            let path = writer.path().to_owned();
            let read = tokio::task::spawn_blocking(move || tail(&path, lines));
            if let Ok(Ok(Ok(last))) = tokio::time::timeout(WAIT_MAX, read).await {
                return last;
            }
        }
        let log = self.log();
        log.recent.range(log.recent.len().saturating_sub(lines)..).cloned().collect()
    }

    /// The last lines, and those that come after them.
    pub async fn follow(&self, lines: usize) -> (Vec<String>, broadcast::Receiver<String>) {
        let mut news = self.followers.subscribe();
        let mut last = self.last(lines).await;
        // What came meanwhile may have been read as well.
        let meanwhile = news.len();
        let read = last.len().saturating_sub(meanwhile);
        for line in (0..meanwhile).filter_map(|_| news.try_recv().ok()) {
            if !last[read..].contains(&line) {
                last.push(line);
            }
        }
        (last, news)
    }

    /// Lines that could not be written since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.log().lost + self.writer.as_ref().map_or(0, Writer::lost)
    }

    /// What keeps lines from being written, or kept them since the file was opened.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.writer.as_ref().and_then(Writer::failure)
    }

    /// Waits a little for the disk to take what was handed over.
    pub async fn stop(&self) {
        self.tick();
        if let Some(writer) = &self.writer {
            writer.stop().await;
        }
    }

    fn add(&self, log: &mut Log, mut record: AuditRecord, time: &str) {
        time.clone_into(&mut record.time);
        let Ok(line) = serde_json::to_string(&record) else { return };
        if self.writer.is_some() {
            log.lines.extend_from_slice(line.as_bytes());
            log.lines.push(b'\n');
        }
        if self.followers.receiver_count() > 0 {
            self.followers.send(line.clone()).ok();
        }
        if log.recent.len() == RECENT_MAX {
            log.recent.pop_front();
        }
        log.recent.push_back(line);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last whole lines of a file.
fn tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let start = metadata.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A line that is being written has no end yet, and one that was cut has no beginning.
    let text = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let text = if start > 0 { text.split_once('\n').map_or("", |(_, whole)| whole) } else { text };
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect())
}
