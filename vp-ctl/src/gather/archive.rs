//! The archive: a tar file (POSIX.1-1988, ustar) through gzip.

use super::Item;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

const BLOCK_BYTES: usize = 512;

/// A new file that its owner alone may read; the items are in a folder of its own in it.
pub fn write(path: &Path, folder: &str, items: &[Item], now: SystemTime) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut gzip = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(file).spawn()?;
    let written = match gzip.stdin.take() {
        Some(tar) => write_tar(tar, folder, items, now),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let status = gzip.wait()?;
    written?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("gzip: {status}"))) }
}

fn write_tar(mut tar: impl Write, folder: &str, items: &[Item], now: SystemTime) -> io::Result<()> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for Item { name, text, .. } in items {
        tar.write_all(&header(&format!("{folder}/{name}"), text.len(), seconds))?;
        tar.write_all(text.as_bytes())?;
        let padding = text.len().next_multiple_of(BLOCK_BYTES) - text.len();
        tar.write_all(&[0; BLOCK_BYTES][..padding])?;
    }
    // Two empty blocks end it.
    tar.write_all(&[0; 2 * BLOCK_BYTES])
}

fn header(name: &str, bytes: usize, seconds: u64) -> [u8; BLOCK_BYTES] {
    let mut header = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{bytes:011o}"));
    put(136, &format!("{seconds:011o}"));
    // The sum is taken with blanks in its place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
