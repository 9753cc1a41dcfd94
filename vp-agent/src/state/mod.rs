//! What the agent keeps between runs, in its `state_dir`: leases, what vp-ctl changed, where peers were seen last, what is
//! certified and revoked.
//! Written whole and renamed, or appended; never silently lost: what is damaged is refused with file and line.

mod journal;
mod runtime;

pub use journal::{FileJournal, Syncer, kept_leases};
pub use runtime::{Drained, Endpoints, KeptIdentity, Port, Runtime};

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A journal of every lease that a pool and the wire can have is far below this.
const FILE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}:{line}: {message}; restore the file from a backup, or move it away to start without what it held", path.display())]
    Damaged { path: PathBuf, line: usize, message: String },
    #[error("{}: {message}", path.display())]
    Unsafe { path: PathBuf, message: String },
    #[error("{} is in use by another vp-agent", .0.display())]
    InUse(PathBuf),
}

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    pub fn open(path: &Path) -> Result<Self, StateError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(in_file(path))?;
        let lock = path.join("lock");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&lock).map_err(in_file(&lock))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(StateError::InUse(path.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(in_file(&lock)(error)),
        }
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn in_file(path: &Path) -> impl Fn(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::Io { path: path.clone(), error }
}

/// A file of ours: none if it is not there, refused if somebody else could have written it.
fn read_own(path: &Path) -> Result<Option<String>, StateError> {
    let unsafe_file = |message: &str| StateError::Unsafe { path: path.to_owned(), message: message.to_owned() };
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(unsafe_file("is a symbolic link, expected the file itself"));
        }
        Err(error) => return Err(in_file(path)(error)),
    };
    let metadata = file.metadata().map_err(in_file(path))?;
    if !metadata.is_file() {
        return Err(unsafe_file("is not a regular file"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(unsafe_file("others may write to it, expected mode 0600; check what it holds, then chmod 600"));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(unsafe_file("is larger than any state can be"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(in_file(path))?;
    Ok(Some(text))
}

/// The whole file at once: after a crash the old or the new is there, never a part.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(in_file(path))
}
