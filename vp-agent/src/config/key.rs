//! Private keys in files, as `wg genkey` prints them. They appear nowhere else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand_core::OsRng;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// A key and a newline, and no more.
const FILE_BYTES_MAX: u64 = 64;

/// 32 bytes in base64, in a regular file that only its owner can read.
pub fn read(file: &Path) -> Result<Zeroizing<[u8; 32]>, String> {
    let at = file.display();
    let mut opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file).map_err(
            |error| match error.raw_os_error() {
                Some(libc::ELOOP) => format!("key file {at} is a symbolic link, expected the file itself"),
                _ => format!("key file {at}: {error}"),
            },
        )?;
    let metadata = opened.metadata().map_err(|error| format!("key file {at}: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("key file {at} is not a regular file"));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(format!("key file {at} has mode {mode:04o}, expected 0600: chmod 600 {at}"));
    }
    let mut text = Zeroizing::new(String::new());
    let read = Read::by_ref(&mut opened).take(FILE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| format!("key file {at}: {error}"))?;
    decode(&text)
        .ok_or_else(|| format!("key file {at} does not hold a key, expected 44 characters as `wg genkey` prints them"))
}

/// Base64 of 32 bytes.
pub fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    let key: [u8; 32] = bytes.as_slice().try_into().ok()?;
    Some(Zeroizing::new(key))
}

/// A new key, in a file that was not there.
pub fn create(file: &Path) -> io::Result<()> {
    let key = StaticSecret::random_from_rng(OsRng);
    let text = Zeroizing::new(format!("{}\n", STANDARD.encode(key.as_bytes())));
    let mut created: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    created.write_all(text.as_bytes())?;
    created.sync_all()
}
