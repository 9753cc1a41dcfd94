//! The lease journal: one line a lease granted or given up, appended before a packet depends on it; compacted at start.

use super::{StateDir, StateError, in_file, read_own, write_whole};
use crate::dataplane::Journal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vp::addr::{Grant, Holder, LeaseError, Leases};

const NAME: &str = "leases.jsonl";
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
pub struct FileJournal {
    file: File,
    unsynced: Arc<AtomicBool>,
}

/// Brings the journal to the disk, off the data thread.
#[derive(Debug)]
pub struct Syncer {
    file: File,
    unsynced: Arc<AtomicBool>,
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
        let mut compact = format!("{FORMAT}\n").into_bytes();
        for grant in &leases {
            compact.extend(line(grant, Operation::Grant).map_err(in_file(&path))?);
        }
        write_whole(&path, &compact)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(in_file(&path))?;
        let unsynced = Arc::new(AtomicBool::new(false));
        let syncer = Syncer { file: file.try_clone().map_err(in_file(&path))?, unsynced: Arc::clone(&unsynced) };
        Ok((Self { file, unsynced }, syncer, leases, torn))
    }
}

impl Journal for FileJournal {
    fn append(&mut self, grant: &Grant, granted: bool) -> io::Result<()> {
        let operation = if granted { Operation::Grant } else { Operation::Release };
        let line = line(grant, operation)?;
        let length = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(&line) {
            // Half a line (the disk is full) would be damage as soon as another line followed it.
            self.file.set_len(length)?;
            return Err(error);
        }
        self.unsynced.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Syncer {
    pub fn sync(&self) -> io::Result<()> {
        if self.unsynced.swap(false, Ordering::Relaxed) { self.file.sync_data() } else { Ok(()) }
    }
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
