//! Where the status page is served, and the token that whoever asks for what is on it has to show.

use super::keys::{KeyFileError, read_secret};
use super::values;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Fewer could be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    pub listen: SocketAddr,
    pub token_file: PathBuf,
}

/// The page says all about the site: it is for this host, and for who comes through it (`ssh -L`).
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let listen = values::socket_address(text)?;
    if listen.ip().is_loopback() {
        return Ok(listen);
    }
    Err(format!("{listen} is not loopback, expected an address such as 127.0.0.1:9108"))
}

/// A file of the operator's own making, that only its owner may read.
pub fn read_token(path: &Path) -> Result<Zeroizing<String>, String> {
    let advice =
        || format!("expected one of {TOKEN_CHARACTERS_MIN} characters or more, as `openssl rand -hex 32` prints it");
    let token = read_secret(path).map_err(|error| match error {
        KeyFileError::Missing(path) => format!("there is no token in {}, {}", path.display(), advice()),
        other => other.to_string(),
    })?;
    if token.len() < TOKEN_CHARACTERS_MIN || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("no good token in {}, {}", path.display(), advice()));
    }
    Ok(token)
}
