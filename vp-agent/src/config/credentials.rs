//! What the file says of certified identity: whom to trust, this site's own certificate, revocations, and the peers that are
//! there only while a certificate says so.

use super::values::Parsed;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vp::identity::text::{Label, TEXT_BYTES_MAX, decode};
use vp::identity::{Certificate, List, Trust};
use vp::node::PeerSettings;

/// Where this site's own certificate is looked for in `state_dir` when the file names no other.
pub const OWN_CERTIFICATE: &str = "site.certificate";

#[derive(Clone, Debug)]
pub struct Credentials {
    pub trust: Trust,
    /// Where this site's own is, or would be.
    pub own_file: PathBuf,
    pub own: Option<Certificate>,
    pub revocations: Option<List>,
    pub members: Vec<Member>,
}

/// A peer by certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// None: a hub introduced it.
    pub file: Option<PathBuf>,
    pub certificate: Certificate,
    /// How to reach it. Its identity is what the certificate says as long as it holds, and in here its site's name alone.
    pub settings: PeerSettings,
}

pub fn read_certificate(file: &Path) -> Parsed<Certificate> {
    let bytes =
        decode(Label::Certificate, &read_text(file)?).map_err(|error| format!("{}: {error}", file.display()))?;
    Certificate::read(&bytes).map_err(|refusal| format!("{}: {refusal}", file.display()))
}

pub fn read_revocations(file: &Path) -> Parsed<List> {
    let bytes =
        decode(Label::Revocations, &read_text(file)?).map_err(|error| format!("{}: {error}", file.display()))?;
    List::read(&bytes).map_err(|refusal| format!("{}: {refusal}", file.display()))
}

/// Without waiting for the writer of a pipe.
fn read_text(file: &Path) -> Parsed<String> {
    let fail =
        |error: std::io::Error| format!("{}: {error}, expected a file that vp-ctl authority wrote", file.display());
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file).map_err(fail)?;
    if !opened.metadata().map_err(fail)?.is_file() {
        return Err(format!("{}: not a file, expected one that vp-ctl authority wrote", file.display()));
    }
    let mut text = String::new();
    opened.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}
