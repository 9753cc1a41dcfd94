//! Files that hold a key: read only when nobody else can read them, made so that nobody else can.

use super::values;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rand_core::{OsRng, RngCore};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// More than a key and its end of line.
const FILE_BYTES_MAX: u64 = 256;
/// What group and others may do with a key file: nothing.
const OTHERS: u32 = 0o077;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("there is no key file {0}, expected one as `wg genkey` prints it")]
    Missing(PathBuf),
    #[error("key file {0} is not readable: {1}")]
    Unreadable(PathBuf, io::Error),
    #[error("key file {0} is a symbolic link or not a file, expected a file of its own")]
    NotFile(PathBuf),
    #[error("key file {file} may be used by others (mode {mode:04o}), expected mode 0600")]
    Open { file: PathBuf, mode: u32 },
    #[error("key file {file} belongs to user {owner}, expected root or the agent's own user")]
    Owner { file: PathBuf, owner: u32 },
    #[error("key file {0}: {1}")]
    Malformed(PathBuf, String),
}

impl KeyFileError {
    /// Whether the reader lacks a right, and the file may be as it should be.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Unreadable(_, error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

pub fn read(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    values::key(&read_secret(path)?).map_err(|error| KeyFileError::Malformed(path.to_owned(), error))
}

/// What the file has, without the end of its line.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let mut text = read_text(path, FILE_BYTES_MAX)?;
    let length = text.trim_end().len();
    text.truncate(length);
    Ok(text)
}

/// The first so many bytes of a file that nobody else may use.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, KeyFileError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|error| KeyFileError::Unreadable(path.to_owned(), error))?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotFile(path.to_owned()));
    }
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Open { file: path.to_owned(), mode });
    }
    if owner != 0 && owner != crate::sys::effective_user() {
        return Err(KeyFileError::Owner { file: path.to_owned(), owner });
    }
    let mut text = Zeroizing::new(String::with_capacity(bytes_max as usize + 1));
    match file.take(bytes_max).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(KeyFileError::Malformed(path.to_owned(), "no text".to_owned()))
        }
        Err(error) => Err(KeyFileError::Unreadable(path.to_owned(), error)),
    }
}

/// Without following a link at its end and without waiting for the writer of a pipe.
fn open(path: &Path) -> Result<File, KeyFileError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => KeyFileError::Missing(path.to_owned()),
        Some(libc::ELOOP) => KeyFileError::NotFile(path.to_owned()),
        _ => KeyFileError::Unreadable(path.to_owned(), error),
    })
}

/// A new private key in a new file, as `wg genkey` writes it. Never replaces a file.
pub fn make(path: &Path) -> io::Result<StaticSecret> {
    let mut bytes = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(&mut *bytes);
    let secret = StaticSecret::from(*bytes);
    let text = Zeroizing::new(BASE64_STANDARD.encode(secret.as_bytes()) + "\n");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(secret)
}
