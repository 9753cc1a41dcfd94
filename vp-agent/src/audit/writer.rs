//! The thread that owns the audit file. It takes all waiting lines at once, chains them and writes them with one call. Whoever
//! hands lines over never waits for the disk: what finds no room is lost, counted and said, in the log too.

use super::file::{Batch, ChainedFile};
use crate::clock::rfc3339;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use vp_proto::api::AuditRecord;

/// Lines that wait for the disk: some 20,000, or two seconds of 10,000 new flows each.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Between two writes, so that one of them has many lines where many come.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two attempts to write what the disk did not take.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A buffer that grew beyond this in a flood is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// For the disk to open the file, or to take what waits.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(2);

/// The thread ends when this is dropped and the disk has taken what waits.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
}

/// What the log is.
#[derive(Clone, Debug)]
pub(super) struct WriterSettings {
    pub path: PathBuf,
    /// Where the chain's head is kept.
    pub head: PathBuf,
    pub site: String,
    /// Lines that the disk does not take are kept and tried again, as long as there is room for them.
    pub required: bool,
}

#[derive(Debug)]
struct Shared {
    settings: WriterSettings,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Whether the last lines could not be written.
    failing: watch::Sender<bool>,
}

#[derive(Default, Debug)]
struct Queue {
    lines: Vec<u8>,
    opens: Vec<oneshot::Sender<Result<(), String>>>,
    flushes: Vec<oneshot::Sender<()>>,
    stop: bool,
    /// Whether the thread has to be told of new lines.
    is_idle: bool,
    lost: u64,
    failure: Option<String>,
}

impl Writer {
    /// An error when the file cannot be opened, in one line.
    pub(super) async fn start(settings: WriterSettings) -> Result<Self, String> {
        let (queue, failing) = (Mutex::default(), watch::Sender::new(false));
        let shared = Shared { settings, queue, wake: Condvar::new(), failing };
        let writer = Self { shared: Arc::new(shared) };
        let shared = writer.shared.clone();
        let run = move || shared.run();
        std::thread::Builder::new().name("vp-audit".to_owned()).spawn(run).map_err(|error| error.to_string())?;
        writer.reopen().await?;
        Ok(writer)
    }

    /// Whole lines, each with its end, and how many more there were that found no room before.
    pub(super) fn push(&self, lines: &[u8], lost: u64) {
        let mut queue = self.shared.queue();
        let room = if queue.stop { 0 } else { QUEUE_BYTES_MAX.saturating_sub(queue.lines.len()) };
        let (taken, rest) = lines.split_at(whole_lines(&lines[..room.min(lines.len())]));
        queue.lines.extend_from_slice(taken);
        queue.lost += lost + count_lines(rest);
        if !rest.is_empty() {
            self.shared.fail(&mut queue, "lines come faster than the disk takes them");
            self.shared.set_failing(true);
        }
        if queue.is_idle {
            self.shared.wake.notify_one();
        }
    }

    /// Bytes of lines that the disk has not taken yet, and how many may be.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.shared.queue().lines.len(), QUEUE_BYTES_MAX)
    }

    /// After logrotate moved the file away.
    pub(super) async fn reopen(&self) -> Result<(), String> {
        let (opened, answer) = oneshot::channel();
        self.order(|queue| queue.opens.push(opened));
        match timeout(WAIT_MAX, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.shared.message("its thread has ended")),
            Err(_) => {
                let message = format!("not opened within {} s", WAIT_MAX.as_secs());
                self.shared.fail(&mut self.shared.queue(), &message);
                Err(self.shared.message(message))
            }
        }
    }

    /// False when the disk does not take in time what was handed over before.
    pub(super) async fn flush(&self) -> bool {
        self.finish(false).await
    }

    /// Takes no more lines, and waits a little for the disk to take those that there are.
    pub(super) async fn stop(&self) {
        if !self.finish(true).await {
            tracing::warn!("{}", self.shared.message("its last lines were not written in time"));
        }
    }

    async fn finish(&self, stop: bool) -> bool {
        let (flushed, answer) = oneshot::channel();
        self.order(|queue| {
            queue.flushes.push(flushed);
            queue.stop |= stop;
        });
        matches!(timeout(WAIT_MAX, answer).await, Ok(Ok(())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.shared.settings.path
    }

    pub(super) fn lost(&self) -> u64 {
        self.shared.queue().lost
    }

    /// The first one since the file was opened.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.queue().failure.clone()
    }

    /// Whether lines cannot be written now.
    pub(super) fn failing(&self) -> watch::Receiver<bool> {
        self.shared.failing.subscribe()
    }

    fn order(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.shared.queue());
        self.shared.wake.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.order(|queue| queue.stop = true);
    }
}

impl Queue {
    fn is_urgent(&self) -> bool {
        self.stop || !self.opens.is_empty() || !self.flushes.is_empty()
    }
}

/// What the thread alone knows.
struct Work {
    file: ChainedFile,
    /// Records under way to the disk, a line each.
    pending: Vec<u8>,
    batch: Batch,
    /// Lost lines that the log has told of.
    told: u64,
}

impl Shared {
    fn run(&self) {
        let file = ChainedFile::new(&self.settings.path, &self.settings.head);
        let mut work = Work { file, pending: Vec::new(), batch: Batch::default(), told: 0 };
        loop {
            let mut queue = self.wait(!work.pending.is_empty());
            if work.pending.is_empty() {
                std::mem::swap(&mut work.pending, &mut queue.lines);
            }
            let (opens, flushes) = (std::mem::take(&mut queue.opens), std::mem::take(&mut queue.flushes));
            let (stop, lost) = (queue.stop, queue.lost);
            drop(queue);
            if !opens.is_empty() {
                self.open(&mut work.file, opens);
            }
            self.write(&mut work, lost, stop);
            if work.pending.is_empty() && work.pending.capacity() > BUFFER_BYTES_KEPT {
                work.pending = Vec::new();
            }
            work.batch.shrink(BUFFER_BYTES_KEPT);
            for flushed in flushes {
                // Whoever asked may have given up.
                flushed.send(()).ok();
            }
            if stop && self.queue().lines.is_empty() {
                return;
            }
        }
    }

    /// Until there is something to do. The lock is never held while the disk is waited for.
    fn wait(&self, retries: bool) -> MutexGuard<'_, Queue> {
        let pause = if retries { RETRY_PAUSE } else { PAUSE };
        let paused = self.wake.wait_timeout_while(self.queue(), pause, |queue| !queue.is_urgent());
        let (mut queue, _) = paused.unwrap_or_else(PoisonError::into_inner);
        if retries {
            return queue;
        }
        queue.is_idle = true;
        let idle = |queue: &mut Queue| !queue.is_urgent() && queue.lines.is_empty();
        let mut queue = self.wake.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        queue.is_idle = false;
        queue
    }

    fn open(&self, file: &mut ChainedFile, asked: Vec<oneshot::Sender<Result<(), String>>>) {
        let opened = file.open().map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => self.message("is a symbolic link, expected the file itself"),
            _ => self.message(error),
        });
        let mut queue = self.queue();
        queue.lost += opened.as_ref().map_or(0, |torn| *torn);
        queue.failure = opened.as_ref().err().cloned();
        drop(queue);
        for asked in asked {
            asked.send(opened.clone().map(drop)).ok();
        }
    }

    /// What waits, and before it how many lines were lost, if some were that the log has not told of.
    fn write(&self, work: &mut Work, lost: u64, stop: bool) {
        if work.pending.is_empty() && lost == work.told {
            return;
        }
        if self.settings.required && !work.file.is_open() {
            // What stood in the way may be gone.
            self.open(&mut work.file, Vec::new());
        }
        let untold = (lost > work.told).then(|| self.lost_record(lost - work.told));
        // Made of JSON, which is text.
        let records = std::str::from_utf8(&work.pending).unwrap_or_default().lines();
        let (mut written, result) = work.file.write(untold.as_deref().into_iter().chain(records), &mut work.batch);
        if untold.is_some() && written > 0 {
            (work.told, written) = (lost, written - 1);
        }
        drop_lines(&mut work.pending, written);
        let mut queue = self.queue();
        if let Err(error) = result {
            if work.file.is_open() {
                self.fail(&mut queue, error);
            }
            // Where the log is required nothing new is carried now, so that little waits for the disk to have room again.
            if !self.settings.required || stop {
                queue.lost += count_lines(&work.pending);
                work.pending.clear();
            }
            self.set_failing(true);
        } else if work.pending.is_empty() {
            self.set_failing(false);
            // Nothing was lost by it.
            if self.settings.required && queue.lost == lost {
                queue.failure = None;
            }
        }
    }

    fn set_failing(&self, now: bool) {
        self.failing.send_if_modified(|failing| std::mem::replace(failing, now) != now);
    }

    fn lost_record(&self, lines: u64) -> String {
        let record = AuditRecord {
            time: rfc3339(SystemTime::now()),
            event: "lost".to_owned(),
            site: self.settings.site.clone(),
            repeated: Some(lines),
            detail: Some("so many lines could not be written, about this time".to_owned()),
            ..AuditRecord::default()
        };
        // Texts and numbers alone are always JSON.
        serde_json::to_string(&record).unwrap_or_default()
    }

    fn fail(&self, queue: &mut Queue, failure: impl ToString) {
        if queue.failure.is_none() {
            queue.failure = Some(self.message(failure));
        }
    }

    fn message(&self, text: impl ToString) -> String {
        format!("audit log {}: {}", self.settings.path.display(), text.to_string())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_lines(text: &mut Vec<u8>, lines: usize) {
    let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let bytes = lines.checked_sub(1).and_then(|last| ends.clone().nth(last)).unwrap_or(0);
    text.drain(..bytes);
}

/// The length of the lines that have their ends.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}
