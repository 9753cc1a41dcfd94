//! The thread that owns the audit file. It takes all waiting lines at once and writes them with one call. Whoever hands
//! lines over never waits for the disk: what finds no room is lost, counted and said.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Lines that wait for the disk: some 20,000, or two seconds of 10,000 new flows each.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Between two writes, so that one of them has many lines where many come.
const PAUSE: Duration = Duration::from_millis(10);
/// A buffer that grew beyond this in a flood is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// For the disk to open the file, or to take what waits.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(2);

/// The thread ends when this is dropped and the disk has taken what waits.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    queue: Mutex<Queue>,
    wake: Condvar,
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
    pub(super) async fn start(path: &Path) -> Result<Self, String> {
        let shared = Shared { path: path.to_owned(), queue: Mutex::default(), wake: Condvar::new() };
        let writer = Self { shared: Arc::new(shared) };
        let shared = writer.shared.clone();
        let run = move || shared.run();
        std::thread::Builder::new().name("vp-audit".to_owned()).spawn(run).map_err(|error| error.to_string())?;
        writer.reopen().await?;
        Ok(writer)
    }

    /// Whole lines, each with its end.
    pub(super) fn push(&self, lines: &[u8]) {
        let mut queue = self.shared.queue();
        let room = if queue.stop { 0 } else { QUEUE_BYTES_MAX.saturating_sub(queue.lines.len()) };
        let (taken, rest) = lines.split_at(whole_lines(&lines[..room.min(lines.len())]));
        queue.lines.extend_from_slice(taken);
        if !rest.is_empty() {
            queue.lost += count_lines(rest);
            self.shared.fail(&mut queue, "lines come faster than the disk takes them");
        }
        if queue.is_idle {
            self.shared.wake.notify_one();
        }
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
        &self.shared.path
    }

    pub(super) fn lost(&self) -> u64 {
        self.shared.queue().lost
    }

    /// The first one since the file was opened.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.queue().failure.clone()
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

impl Shared {
    fn run(&self) {
        let mut file = None;
        let mut batch = Vec::new();
        loop {
            let mut queue = self.wait();
            std::mem::swap(&mut batch, &mut queue.lines);
            let (opens, flushes) = (std::mem::take(&mut queue.opens), std::mem::take(&mut queue.flushes));
            let stop = queue.stop;
            drop(queue);
            if !opens.is_empty() {
                file = self.open(opens);
            }
            self.write(file.as_mut(), &batch);
            batch.clear();
            if batch.capacity() > BUFFER_BYTES_KEPT {
                batch = Vec::new();
            }
            for flushed in flushes {
                // Whoever asked may have given up.
                flushed.send(()).ok();
            }
            if stop {
                return;
            }
        }
    }

    /// Until there is something to do. The lock is never held while the disk is waited for.
    fn wait(&self) -> MutexGuard<'_, Queue> {
        let paused = self.wake.wait_timeout_while(self.queue(), PAUSE, |queue| !queue.is_urgent());
        let (mut queue, _) = paused.unwrap_or_else(PoisonError::into_inner);
        queue.is_idle = true;
        let idle = |queue: &mut Queue| !queue.is_urgent() && queue.lines.is_empty();
        let mut queue = self.wake.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        queue.is_idle = false;
        queue
    }

    fn open(&self, asked: Vec<oneshot::Sender<Result<(), String>>>) -> Option<File> {
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
        let opened = options.open(&self.path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => self.message("is a symbolic link, expected the file itself"),
            _ => self.message(error),
        });
        self.queue().failure = opened.as_ref().err().cloned();
        let result = opened.as_ref().map(drop).map_err(Clone::clone);
        for asked in asked {
            asked.send(result.clone()).ok();
        }
        opened.ok()
    }

    fn write(&self, file: Option<&mut File>, batch: &[u8]) {
        let Some(file) = file else {
            self.queue().lost += count_lines(batch);
            return;
        };
        let (written, result) = write_all(file, batch);
        let Err(error) = result else { return };
        let whole = whole_lines(&batch[..written]);
        if written > whole {
            // Half a line would spoil the next one. What is no regular file cannot be cut, and need not be.
            let cut = file
                .metadata()
                .and_then(|metadata| file.set_len(metadata.len().saturating_sub((written - whole) as u64)));
            cut.ok();
        }
        let mut queue = self.queue();
        queue.lost += count_lines(&batch[whole..]);
        self.fail(&mut queue, error);
    }

    fn fail(&self, queue: &mut Queue, failure: impl ToString) {
        if queue.failure.is_none() {
            queue.failure = Some(self.message(failure));
        }
    }

    fn message(&self, text: impl ToString) -> String {
        format!("audit log {}: {}", self.path.display(), text.to_string())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes were written, and why not more.
fn write_all(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// The length of the lines that have their ends.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}
