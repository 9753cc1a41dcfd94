//! The audit log: one JSON line a flow opened or closed, a denial, a change. Denials that come in floods are summed up
//! by the second. A line that cannot be written is counted, and said.

mod time;

pub use time::rfc3339;

use serde_json::to_string;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::sync::broadcast;
use vp_proto::api::AuditRecord;

/// Lines kept for `vp-ctl audit` where no file is configured.
const RECENT_MAX: usize = 1000;
/// How far back from its end a file is looked through.
const TAIL_BYTES: u64 = 4 << 20;
/// Followers that are slower than this lose lines.
const FOLLOW_MAX: usize = 4096;
/// Different denials summed up at a time; beyond it they are counted without their names.
const DENIALS_MAX: usize = 1024;

#[derive(Debug)]
pub struct Audit {
    path: Option<PathBuf>,
    file: Option<File>,
    recent: VecDeque<String>,
    followers: broadcast::Sender<String>,
    /// Denials of this second: how many more than the one that was written.
    denials: BTreeMap<DenialKey, (AuditRecord, u64)>,
    lost: u64,
    failure: Option<String>,
}

/// Who was denied what, and why; source ports left out, as each try has its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct DenialKey {
    peer: Option<String>,
    service: Option<String>,
    reason: Option<String>,
    caller: Option<String>,
}

impl Audit {
    #[must_use]
    pub fn open(path: Option<&Path>) -> Self {
        let (followers, _) = broadcast::channel(FOLLOW_MAX);
        let mut audit = Self {
            path: path.map(Path::to_owned),
            file: None,
            recent: VecDeque::new(),
            followers,
            denials: BTreeMap::new(),
            lost: 0,
            failure: None,
        };
        audit.reopen();
        audit
    }

    /// After logrotate moved the file away.
    pub fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        let opened = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path);
        match opened {
            Ok(file) => (self.file, self.failure) = (Some(file), None),
            Err(error) => {
                self.file = None;
                self.failure = Some(format!("audit log {}: {error}", path.display()));
            }
        }
    }

    /// A denial: written at once, or added to those alike of this second.
    pub fn deny(&mut self, record: AuditRecord) {
        let caller = record.site_view.as_ref().or(record.wire_view.as_ref()).map(|ends| without_port(&ends.caller));
        let (peer, service, reason) = (record.peer.clone(), record.service.clone(), record.reason.clone());
        let key = DenialKey { peer, service, reason, caller };
        if let Some((_, more)) = self.denials.get_mut(&key) {
            *more += 1;
        } else if self.denials.len() < DENIALS_MAX {
            self.write(record.clone());
            self.denials.insert(key, (record, 0));
        } else {
            self.lost += 1;
        }
    }

    /// Once a second: the denials that were summed up.
    pub fn tick(&mut self) {
        for (_, (mut record, more)) in std::mem::take(&mut self.denials) {
            if more > 0 {
                record.repeated = Some(more);
                self.write(record);
            }
        }
    }

    pub fn write(&mut self, mut record: AuditRecord) {
        record.time = rfc3339(SystemTime::now());
        let Ok(line) = to_string(&record) else { return };
        if let Some(file) = &mut self.file {
            if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
                self.lost += 1;
                let path = self.path.as_deref().unwrap_or(Path::new(""));
                self.failure = Some(format!("audit log {}: {error}", path.display()));
            }
        } else if self.path.is_some() {
            self.lost += 1;
        }
        // Nobody may be following.
        self.followers.send(line.clone()).ok();
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// The last lines, oldest first.
    #[must_use]
    pub fn last(&self, lines: usize) -> Vec<String> {
        let tail = self.path.as_deref().and_then(|path| tail(path).ok());
        let known: Vec<String> = match tail {
            Some(text) => text.lines().map(str::to_owned).collect(),
            None => self.recent.iter().cloned().collect(),
        };
        known[known.len().saturating_sub(lines)..].to_vec()
    }

    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<String> {
        self.followers.subscribe()
    }

    /// Lines that could not be written since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

/// Whole lines from the end of a file.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match text.split_once('\n') {
        Some((_, whole)) if start > 0 => whole.to_owned(),
        Some(_) | None => text,
    })
}

fn without_port(end: &str) -> String {
    match end.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => end.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp_proto::api::Ends;

    fn denial(caller: &str) -> AuditRecord {
        let ends = Ends { caller: caller.to_owned(), service: "10.0.1.2:80".to_owned() };
        let reason = Some("not-allowed".to_owned());
        AuditRecord { event: "denied".to_owned(), site_view: Some(ends), reason, ..AuditRecord::default() }
    }

    #[test]
    fn a_flood_of_denials_is_summed_up_and_names_cannot_break_a_line() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("audit.jsonl");
        let mut audit = Audit::open(Some(&path));
        for port in 1..=1000 {
            audit.deny(denial(&format!("10.0.0.2:{port}")));
        }
        audit.deny(AuditRecord { service: Some("a\nb".to_owned()), ..denial("10.0.0.3:1") });
        audit.tick();
        let lines = audit.last(100);
        assert_eq!(lines.len(), 3);
        let repeated: Vec<_> = lines
            .iter()
            .map(|line| serde_json::from_str::<AuditRecord>(line).expect("one record a line").repeated)
            .collect();
        assert_eq!(repeated, [None, None, Some(999)]);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_said() {
        let mut audit = Audit::open(Some(Path::new("/dev/full")));
        audit.write(AuditRecord::default());
        assert_eq!(audit.lost(), 1);
        assert!(audit.failure().is_some_and(|failure| failure.starts_with("audit log /dev/full: ")));
    }
}
