//! The audit log: one JSON line a flow opened or closed, a denial, a change, each chained to the one before. Denials that come
//! in floods are summed up by the second. A line that cannot be written is counted, and said; nobody waits for the disk.

#[cfg(test)]
mod chain_tests;
mod denials;
mod file;
mod filter;
mod forward;
#[cfg(test)]
mod forward_tests;
mod journald;
pub mod otlp;
mod past;
#[cfg(test)]
mod tests;
mod writer;

pub use filter::{Filter, since};

use crate::clock::rfc3339;
use denials::{Added, Denials};
use forward::{Forward, Forwarded};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{broadcast, watch};
use vp_proto::api::AuditRecord;
use writer::{Writer, WriterSettings};

/// Lines kept for `vp-ctl audit` where there is no file to read.
const RECENT_MAX: usize = 1000;
/// For the disk to give past lines; far back is far.
const SEARCH_MAX: Duration = Duration::from_secs(20);
/// Followers that are slower than this lose lines.
const FOLLOW_MAX: usize = 4096;

/// Where records go. With nothing in it: to memory alone.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct AuditSettings {
    pub file: Option<PathBuf>,
    /// No new flow while the file cannot be written.
    pub required: bool,
    /// The journal's socket.
    pub journald: Option<PathBuf>,
    pub otlp: Option<otlp::Endpoint>,
}

#[derive(Debug)]
pub struct Audit {
    log: Mutex<Log>,
    followers: broadcast::Sender<String>,
    writer: Option<Writer>,
    required: bool,
    forwards: Mutex<Vec<Forward>>,
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
    /// The log of a site, whose chain's head is kept in the file `head`. An error when the file cannot be opened, in one
    /// line.
    pub async fn open(settings: AuditSettings, site: &str, head: &Path) -> Result<Self, String> {
        let AuditSettings { file, required, journald, otlp } = settings;
        let writer = match file {
            Some(path) => {
                let settings = WriterSettings { path, head: head.to_owned(), site: site.to_owned(), required };
                Some(Writer::start(settings).await?)
            }
            None => None,
        };
        let forwards = journald.map(Forward::to_journald).into_iter().chain(otlp.map(Forward::to_otlp)).collect();
        let (followers, _) = broadcast::channel(FOLLOW_MAX);
        Ok(Self { log: Mutex::default(), followers, writer, required, forwards: Mutex::new(forwards) })
    }

    /// Where the log is required: whether it cannot be written now.
    #[must_use]
    pub fn failing(&self) -> Option<watch::Receiver<bool>> {
        self.writer.as_ref().filter(|_| self.required).map(Writer::failing)
    }

    /// After logrotate moved the file away.
    pub async fn reopen(&self) -> Result<(), String> {
        match &self.writer {
            Some(writer) => writer.reopen().await,
            None => Ok(()),
        }
    }

    pub fn write(&self, entries: impl IntoIterator<Item = Entry>) {
        let now = SystemTime::now();
        let time = rfc3339(now);
        let forwards = self.forwards.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut log, mut no_room) = (self.log(), 0);
        let add = |log: &mut Log, record: AuditRecord| {
            let record = AuditRecord { time: time.clone(), ..record };
            let Some(line) = self.add(log, &record) else { return };
            if !forwards.is_empty() {
                let forwarded = Arc::new(Forwarded { time: now, record, line });
                forwards.iter().for_each(|forward| forward.push(&forwarded));
            }
        };
        for entry in entries {
            match entry {
                Entry::Record(record) => add(&mut log, record),
                Entry::Denial(record) => match log.denials.add(&record) {
                    Added::First => add(&mut log, record),
                    Added::Alike => {}
                    Added::NoRoom => no_room += 1,
                },
            }
        }
        match &self.writer {
            Some(writer) => writer.push(&log.lines, no_room),
            None => log.lost += no_room,
        }
        log.lines.clear();
    }

    /// Once a second: the denials that were summed up.
    pub fn tick(&self) {
        let sums = self.log().denials.take_sums();
        self.write(sums.into_iter().map(Entry::Record));
    }

    /// The last lines that match, oldest first, with all that were handed over before.
    pub async fn last(&self, lines: usize, filter: &Filter) -> Vec<String> {
        if let Some(writer) = &self.writer {
            writer.flush().await;
            let (path, wanted) = (writer.path().to_owned(), filter.clone());
            let read = tokio::task::spawn_blocking(move || past::last(&path, lines, &wanted));
            if let Ok(Ok(Ok(last))) = tokio::time::timeout(SEARCH_MAX, read).await {
                return last;
            }
        }
        let log = self.log();
        let matching = log.recent.iter().rev().filter(|line| is_wanted(line, filter));
        let mut last: Vec<String> = matching.take(lines).cloned().collect();
        last.reverse();
        last
    }

    /// The last lines that match, and all those that come after them.
    pub async fn follow(&self, lines: usize, filter: &Filter) -> (Vec<String>, broadcast::Receiver<String>) {
        let mut news = self.followers.subscribe();
        let mut last = self.last(lines, filter).await;
        // What came meanwhile may have been read as well.
        let meanwhile = news.len();
        let read = last.len().saturating_sub(meanwhile);
        for line in (0..meanwhile).filter_map(|_| news.try_recv().ok()).filter(|line| is_wanted(line, filter)) {
            if !last[read..].iter().any(|read| read.starts_with(&line[..line.len() - 1])) {
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
        let forwards = std::mem::take(&mut *self.forwards.lock().unwrap_or_else(PoisonError::into_inner));
        futures_util::future::join_all(forwards.into_iter().map(Forward::stop)).await;
        if let Some(writer) = &self.writer {
            writer.stop().await;
        }
    }

    /// Each other log that records go to, and how many did not reach it.
    #[must_use]
    pub fn not_forwarded(&self) -> Vec<(&'static str, u64)> {
        let forwards = self.forwards.lock().unwrap_or_else(PoisonError::into_inner);
        forwards.iter().map(|forward| (forward.to, forward.lost())).collect()
    }

    /// Bytes that wait for the disk, and how many may; none without a file.
    #[must_use]
    pub fn bytes_waiting(&self) -> Option<(usize, usize)> {
        self.writer.as_ref().map(Writer::waiting)
    }

    /// Records that wait for each other log, and how many may.
    #[must_use]
    pub fn records_waiting(&self) -> Vec<(&'static str, (usize, usize))> {
        let forwards = self.forwards.lock().unwrap_or_else(PoisonError::into_inner);
        forwards.iter().map(|forward| (forward.to, forward.waiting())).collect()
    }

    fn add(&self, log: &mut Log, record: &AuditRecord) -> Option<String> {
        let line = serde_json::to_string(record).ok()?;
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
        log.recent.push_back(line.clone());
        Some(line)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a line is one that the filter lets through.
#[must_use]
pub fn is_wanted(line: &str, filter: &Filter) -> bool {
    filter.is_empty() || serde_json::from_str(line).is_ok_and(|record| filter.matches(&record))
}
