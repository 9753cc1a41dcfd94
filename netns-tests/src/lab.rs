//! A lab: the namespaces, processes and files of one story, under a prefix of its own so that any number of them run
//! side by side. All of it goes when the lab is dropped; what a killed run left behind goes when the next lab starts.

use crate::Namespace;
use crate::namespace;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One locked file a living lab; a file that can be locked belongs to a run that is gone.
const LOCKS: &str = "/run/vp-lab";
const NAME_PREFIX: &str = "vp-";
/// Lines shown of each process's log when a story fails.
const LOG_LINES_SHOWN: usize = 60;

pub struct Lab {
    id: String,
    directory: PathBuf,
    lock: File,
    /// Whose ERROR lines fail the story.
    agent_logs: Mutex<Vec<PathBuf>>,
    failed: AtomicBool,
}

/// Runs one story in a lab of its own. Fails if the story does, or if an agent logged an error or panicked.
#[track_caller]
pub fn story(tell: impl FnOnce(&Lab) -> Result<()>) {
    let lab = Lab::new().unwrap_or_else(|error| panic!("no lab: {error:?}"));
    let result = tell(&lab).and_then(|()| lab.check_agent_logs());
    if let Err(error) = result {
        lab.failed.store(true, Ordering::Relaxed);
        drop(lab);
        // Of the backtrace (with RUST_BACKTRACE=1) only where in the stories it was.
        let backtrace = error.backtrace().to_string();
        let places: Vec<&str> = backtrace.lines().map(str::trim).filter(|line| line.contains("tests/")).collect();
        panic!("{error:#}\n{}", places.join("\n"));
    }
}

impl Lab {
    pub fn new() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        Self::with_id(format!("{}.{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)))
    }

    /// A lab under a fixed name, of which there is one at a time.
    pub fn named(name: &str) -> Result<Self> {
        Self::with_id(name.to_owned())
    }

    fn with_id(id: String) -> Result<Self> {
        // SAFETY: geteuid has no arguments and cannot fail.
        ensure!(unsafe { libc::geteuid() } == 0, "a lab of network namespaces needs root");
        fs::create_dir_all(LOCKS)?;
        let sweep = File::create(format!("{LOCKS}/.sweep"))?;
        sweep.lock()?;
        remove_leftovers()?;
        let lock = File::create(lock_path(&id))?;
        if lock.try_lock().is_err() {
            bail!("another `{id}` is running; there can be one at a time");
        }
        let directory = directory(&id);
        fs::create_dir_all(&directory)?;
        Ok(Self { id, directory, lock, agent_logs: Mutex::default(), failed: AtomicBool::new(false) })
    }

    /// A machine, by the part it plays.
    pub fn namespace(&self, label: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}{label}", prefix(&self.id)), label)
    }

    /// A directory of this lab's own for files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn watch_agent_log(&self, path: &Path) {
        let mut logs = self.agent_logs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !logs.iter().any(|log| log == path) {
            logs.push(path.to_owned());
        }
    }

    /// Fails if an agent logged at level ERROR or panicked.
    pub fn check_agent_logs(&self) -> Result<()> {
        for path in self.agent_logs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
            let log = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let bad = |line: &&str| line.contains("ERROR") || line.contains("panicked at");
            if let Some(line) = log.lines().find(bad) {
                bail!("{}: {line}", path.display());
            }
        }
        Ok(())
    }

    fn show_logs(&self) {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let log = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- {}", path.display());
            lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let failed = self.failed.load(Ordering::Relaxed) || std::thread::panicking();
        if failed {
            self.show_logs();
        }
        remove(&self.id, !(failed && std::env::var_os("VP_LAB_KEEP").is_some()));
        let _ = self.lock.unlock();
    }
}

fn prefix(id: &str) -> String {
    format!("{NAME_PREFIX}{id}-")
}

fn directory(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vp-lab-{id}"))
}

fn lock_path(id: &str) -> PathBuf {
    Path::new(LOCKS).join(format!("{id}.lock"))
}

fn remove_leftovers() -> Result<()> {
    for entry in fs::read_dir(LOCKS)? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".lock")) else { continue };
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            remove(id, true);
        }
    }
    Ok(())
}

fn remove(id: &str, files: bool) {
    for name in namespace::names(&prefix(id)) {
        namespace::remove(&name);
    }
    if files {
        let _ = fs::remove_dir_all(directory(id));
    }
    let _ = fs::remove_file(lock_path(id));
}
