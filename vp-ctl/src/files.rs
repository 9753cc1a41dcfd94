//! Files of what is signed: certificates and lists, which are public, and signing keys and tokens, which only their owner may
//! read. And where the agent's program is.

use crate::failure::Failure;
use crate::render::escape;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use vp::identity::text::{self, Label, TEXT_BYTES_MAX};
use vp::identity::{Certificate, Issuer, List};
use zeroize::Zeroizing;

const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

/// The daemon's program.
pub const AGENT: &str = "vp-agent";

/// The agent installed with us, else whichever the path has.
pub fn agent() -> PathBuf {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(AGENT)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| Path::new(AGENT).to_owned())
}

pub fn read_text(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let file = File::open(path).map_err(|error| refused(path, &error))?;
    let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX + 1));
    let read = file.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| refused(path, &error))?;
    Ok(text)
}

pub fn read_certificate(path: &Path) -> Result<Certificate, Failure> {
    let bytes = text::decode(Label::Certificate, &read_text(path)?).map_err(|error| refused(path, &error))?;
    Certificate::read(&bytes).map_err(|refusal| refused(path, &refusal))
}

pub fn read_list(path: &Path) -> Result<List, Failure> {
    let bytes = text::decode(Label::Revocations, &read_text(path)?).map_err(|error| refused(path, &error))?;
    List::read(&bytes).map_err(|refusal| refused(path, &refusal))
}

pub fn read_signing_key(path: &Path) -> Result<Issuer, Failure> {
    let metadata = fs::metadata(path).map_err(|error| refused(path, &error))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(refused(path, &format!("others may use this key (mode {mode:04o}), expected mode 0600")));
    }
    let bytes = text::decode(Label::SigningKey, &read_text(path)?).map_err(|error| refused(path, &error))?;
    Issuer::read(&bytes).map_err(|error| refused(path, &error))
}

/// A token, a bundle, or what it is in: nobody else may read it. Never over another one.
pub fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    create_secret(path, text).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refused(path, &"there is such a file, expected a new name"),
        _ => refused(path, &error),
    })
}

fn create_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(SECRET_MODE).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Never over another one: who loses an authority's key loses the tenant.
pub fn write_signing_key(path: &Path, key: &Issuer) -> Result<(), Failure> {
    let text = text::encode(Label::SigningKey, &key.to_bytes());
    create_secret(path, &text).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refused(path, &"there is such a file, and no key is written over another"),
        _ => refused(path, &error),
    })
}

/// The old or the new one is there at any time, never a part.
pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(PUBLIC_MODE).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error: io::Error| refused(path, &error))
}

pub fn refused(path: &Path, why: &impl ToString) -> Failure {
    Failure::Refused(format!("{}: {}", escape(&path.to_string_lossy()), why.to_string()))
}
