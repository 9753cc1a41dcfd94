//! The corpora, for the tests that replay them.

use std::fs;
use std::path::{Path, PathBuf};

/// Name and content of every file of a folder, by name.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |path: PathBuf| {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        (name, fs::read(&path).expect("readable"))
    };
    let paths = entries.map(|entry| entry.expect("entry").path()).filter(|path| path.is_file());
    let mut files: Vec<_> = paths.map(read).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}
