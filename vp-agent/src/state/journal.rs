//! The lease journal: one line a lease granted or given up, appended before a packet depends on it; compacted at start,
//! and when it has grown.

use super::{StateDir, StateError, in_file, read_own, write_whole};
use crate::dataplane::Journal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vp::addr::{Grant, Holder, LeaseError, Leases};

const NAME: &str = "leases.jsonl";
/// A journal is compacted when it is larger than this, and several times what it was compacted to: 100,000 changes.
const COMPACT_BYTES: u64 = 16 << 20;
const COMPACT_FACTOR: u64 = 4;
const FORMAT: &str = "{\"format\":\"vp-leases\",\"version\":1}";

#[derive(Serialize, Deserialize)]
struct Line {
    op: Operation,
    #[serde(flatten)]
    grant: Grant,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    Grant,
    Release,
}

/// The journal's end. A write that returned survives the death of the process; [`Syncer`] makes it survive the host's.
#[derive(Debug)]
pub struct FileJournal(Arc<Shared>);

/// Brings the journal to the disk and compacts it, off the data thread.
#[derive(Debug)]
pub struct Syncer {
    shared: Arc<Shared>,
    path: PathBuf,
    compact_at: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    /// Opened for appending. Locked for a line, or for the last step of compacting.
    file: Mutex<File>,
    unsynced: AtomicBool,
}

impl Shared {
    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileJournal {
    /// The leases there were, and the journal to go on with. A last line without its end is what a crash leaves behind:
    /// it is told in the third value, and dropped.
    pub fn open(state: &StateDir) -> Result<(Self, Syncer, Vec<Grant>, Option<String>), StateError> {
        let path = state.file(NAME);
        let (leases, torn) = match read_own(&path)? {
            Some(text) => replay(&path, &text)?,
            None => (BTreeMap::new(), None),
        };
        // No address may have two holders.
        let twice = |error: LeaseError| StateError::Unsafe { path: path.clone(), message: error.to_string() };
        restored(&leases).map_err(twice)?;
        let leases: Vec<Grant> = leases.into_iter().map(|(holder, block)| Grant { holder, block }).collect();
        let compact = compacted(&leases).map_err(in_file(&path))?;
        write_whole(&path, &compact)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(in_file(&path))?;
        let shared = Arc::new(Shared { file: Mutex::new(file), unsynced: AtomicBool::new(false) });
        let compact_at = AtomicU64::new(compact_at(compact.len()));
        let syncer = Syncer { shared: Arc::clone(&shared), path, compact_at };
        Ok((Self(shared), syncer, leases, torn))
    }
}

impl Journal for FileJournal {
    fn append(&mut self, grant: &Grant, granted: bool) -> io::Result<()> {
        let operation = if granted { Operation::Grant } else { Operation::Release };
        let line = line(grant, operation)?;
        let mut file = self.0.file();
        let length = file.metadata()?.len();
        if let Err(error) = file.write_all(&line) {
            // Half a line (the disk is full) would be damage as soon as another line followed it.
            file.set_len(length)?;
            return Err(error);
        }
        self.0.unsynced.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Syncer {
    pub fn sync(&self) -> io::Result<()> {
        if !self.shared.unsynced.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let (file, length) = {
            let file = self.shared.file();
            (file.try_clone()?, file.metadata()?.len())
        };
        file.sync_data()?;
        if length > self.compact_at.load(Ordering::Relaxed) { self.compact(length) } else { Ok(()) }
    }

    /// What the first `length` bytes come to, then the lines that came meanwhile, takes the file's place. After a crash
    /// the old or the new is there.
    fn compact(&self, length: u64) -> io::Result<()> {
        let mut text = String::new();
        let mut old = File::open(&self.path)?;
        (&old).take(length).read_to_string(&mut text)?;
        let (leases, _) = replay(&self.path, &text).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        let leases: Vec<Grant> = leases.into_iter().map(|(holder, block)| Grant { holder, block }).collect();
        let compact = compacted(&leases)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut new = tempfile::Builder::new().prefix(".new-").append(true).tempfile_in(folder)?;
        new.write_all(&compact)?;
        new.as_file().sync_all()?;
        {
            let mut file = self.shared.file();
            old.seek(SeekFrom::Start(length))?;
            io::copy(&mut old, &mut new)?;
            *file = new.persist(&self.path).map_err(|error| error.error)?;
        }
        self.compact_at.store(compact_at(compact.len()), Ordering::Relaxed);
        let file = self.shared.file().try_clone()?;
        file.sync_data()?;
        File::open(folder)?.sync_all()
    }
}

fn compact_at(bytes: usize) -> u64 {
    (bytes as u64 * COMPACT_FACTOR).max(COMPACT_BYTES)
}

fn compacted(leases: &[Grant]) -> io::Result<Vec<u8>> {
    let mut compact = format!("{FORMAT}\n").into_bytes();
    for grant in leases {
        compact.extend(line(grant, Operation::Grant)?);
    }
    Ok(compact)
}

fn line(grant: &Grant, op: Operation) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Line { op, grant: grant.clone() })?;
    line.push(b'\n');
    Ok(line)
}

type Replayed = (BTreeMap<Holder, ipnet::IpNet>, Option<String>);

fn replay(path: &Path, text: &str) -> Result<Replayed, StateError> {
    let damaged = |line: usize, message: String| StateError::Damaged { path: path.to_owned(), line, message };
    let mut leases = BTreeMap::new();
    let (whole, torn) = match text.rsplit_once('\n') {
        Some((whole, "")) => (whole, None),
        Some((whole, torn)) => (whole, Some(torn)),
        None => return Err(damaged(1, format!("expected {FORMAT}"))),
    };
    for (number, line) in (1..).zip(whole.split('\n')) {
        if number == 1 {
            if line != FORMAT {
                return Err(damaged(1, format!("expected {FORMAT}")));
            }
            continue;
        }
        let Line { op, grant } = serde_json::from_str(line).map_err(|error| damaged(number, error.to_string()))?;
        match op {
            Operation::Grant => leases.insert(grant.holder, grant.block),
            Operation::Release => leases.remove(&grant.holder),
        };
    }
    let torn = torn.map(|_| format!("{}: the last line was not written to its end and is dropped", path.display()));
    Ok((leases, torn))
}

fn restored(leases: &BTreeMap<Holder, ipnet::IpNet>) -> Result<Leases, LeaseError> {
    let mut restored = Leases::default();
    for (holder, block) in leases {
        restored.restore(Grant { holder: holder.clone(), block: *block })?;
    }
    Ok(restored)
}

/// The leases that are kept in this folder, for who only looks: none where they cannot be read, which the start says.
#[must_use]
pub fn kept_leases(folder: &Path) -> Leases {
    let path = folder.join(NAME);
    let text = read_own(&path).ok().flatten();
    let leases = text.and_then(|text| replay(&path, &text).ok()).map(|(leases, _)| leases);
    leases.and_then(|leases| restored(&leases).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use vp::addr::Family;

    fn grant(index: u16, block: &str) -> Grant {
        let site = vp::addr::Name::new("factory").expect("name");
        let holder = Holder::CallerPresence { site, index, family: Family::V4 };
        Grant { holder, block: block.parse().expect("prefix") }
    }

    fn folder() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().expect("folder");
        let state = StateDir::open(&folder.path().join("state")).expect("state");
        (folder, state)
    }

    #[test]
    fn leases_are_there_again_and_those_given_up_are_not() {
        let (_folder, state) = folder();
        let (mut journal, _, leases, _) = FileJournal::open(&state).expect("journal");
        assert!(leases.is_empty());
        let (one, two) = (grant(2, "10.0.1.2/32"), grant(3, "10.0.1.3/32"));
        journal.append(&one, true).expect("written");
        journal.append(&two, true).expect("written");
        journal.append(&one, false).expect("written");
        for _ in 0..2 {
            assert_eq!(FileJournal::open(&state).expect("journal").2, vec![two.clone()]);
        }
    }

    #[test]
    fn a_journal_that_has_grown_is_compacted_while_it_is_written() {
        let (_folder, state) = folder();
        let (mut journal, syncer, ..) = FileJournal::open(&state).expect("journal");
        syncer.compact_at.store(1, Ordering::Relaxed);
        let (one, two) = (grant(2, "10.0.1.2/32"), grant(3, "10.0.1.3/32"));
        for _ in 0..100 {
            journal.append(&one, true).expect("written");
            journal.append(&one, false).expect("written");
        }
        journal.append(&one, true).expect("written");
        syncer.sync().expect("compacted");
        let lines = || std::fs::read_to_string(state.file(NAME)).expect("readable").lines().count();
        assert_eq!(lines(), 2);
        journal.append(&two, true).expect("written");
        journal.append(&one, false).expect("written");
        syncer.sync().expect("kept");
        assert_eq!(lines(), 4);
        assert_eq!(FileJournal::open(&state).expect("journal").2, [two]);
    }

    #[test]
    fn compacting_loses_no_line_that_comes_meanwhile() {
        let (_folder, state) = folder();
        let (mut journal, syncer, ..) = FileJournal::open(&state).expect("journal");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    syncer.compact_at.store(1, Ordering::Relaxed);
                    syncer.sync().expect("compacted");
                }
            });
            for index in 2..2000 {
                let block = format!("10.0.{}.{}/32", index >> 8, index & 255);
                journal.append(&grant(index, &block), true).expect("written");
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(FileJournal::open(&state).expect("journal").2.len(), 1998);
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_told_any_other_damage_refused_with_its_line() {
        let (_folder, state) = folder();
        FileJournal::open(&state).expect("journal").0.append(&grant(2, "10.0.1.2/32"), true).expect("written");
        let path = state.file(NAME);
        let good = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, format!("{good}{{\"op\":\"gra")).expect("writable");
        let (_, _, leases, torn) = FileJournal::open(&state).expect("journal");
        assert_eq!((leases.len(), torn.is_some()), (1, true));
        std::fs::write(&path, format!("{FORMAT}\nnonsense\n{good}")).expect("writable");
        let error = FileJournal::open(&state).expect_err("damaged").to_string();
        assert!(error.contains("leases.jsonl:2: "), "{error}");
        std::fs::write(&path, "").expect("writable");
        assert!(FileJournal::open(&state).is_err());
    }

    #[test]
    fn what_others_could_have_written_is_refused() {
        let (folder, state) = folder();
        FileJournal::open(&state).expect("journal");
        let path = state.file(NAME);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("mode");
        assert!(matches!(FileJournal::open(&state), Err(StateError::Unsafe { .. })));
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(folder.path().join("elsewhere"), FORMAT).expect("written");
        symlink(folder.path().join("elsewhere"), &path).expect("link");
        assert!(matches!(FileJournal::open(&state), Err(StateError::Unsafe { .. })));
    }

    #[test]
    fn one_agent_has_the_folder() {
        let folder = tempfile::tempdir().expect("folder");
        let _first = StateDir::open(folder.path()).expect("state");
        assert!(matches!(StateDir::open(folder.path()), Err(StateError::InUse(_))));
    }
}
