//! The new gateway's host: its files, each readable by whom it concerns alone, its unit, and the start of its agent.

use crate::failure::Failure;
use crate::files::{self, refused};
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vp::identity::Token;

/// As the packages bring it: nobody wrote it for a site.
const PACKAGED: &str = include_str!("../../../packaging/agent.yaml");
/// For bundles: it runs the agent that is beside this program.
pub const UNIT: &str = include_str!("../../../packaging/vp-agent.service");
const UNIT_PROGRAM: &str = "/usr/bin/vp-agent";
const UNIT_NAME: &str = "vp-agent.service";
/// Where systemd looks for units.
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Where the agent looks for it at its start.
const TOKEN: &str = "invitation";
/// The unit's.
const USER: &str = "vp";

/// What becomes of a configuration that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    Refuse,
    Keep,
    /// The old one stays beside it.
    Replace,
}

pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Before anything is written.
pub fn check_configuration(path: &Path, existing: Existing) -> Result<(), Failure> {
    let is_ours = || fs::read_to_string(path).is_ok_and(|text| text == PACKAGED);
    match (path.exists() && !is_ours(), existing) {
        (true, Existing::Refuse) => Err(refused(
            path,
            &"this host has a configuration, expected --keep to join with it, or --replace to write another",
        )),
        (false, Existing::Keep) => Err(refused(path, &"there is no configuration to keep")),
        (_, _) => Ok(()),
    }
}

/// Readable by all: it has no secrets, and the agent is not root.
pub fn write_configuration(path: &Path, text: &str, existing: Existing) -> Result<(), Failure> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| refused(directory, &error))?;
    }
    if existing == Existing::Replace && path.exists() {
        let mut old = path.as_os_str().to_owned();
        old.push(".before-join");
        fs::copy(path, PathBuf::from(old)).map_err(|error| refused(path, &error))?;
    }
    files::write(path, text)?;
    // Whatever umask its writer has.
    fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(|error| refused(path, &error))
}

/// For the agent alone: it forgets it when the site has joined.
pub fn write_token(state_dir: &Path, token: &Token, is_for_unit: bool) -> Result<PathBuf, Failure> {
    let fail = |error: std::io::Error| refused(state_dir, &error);
    if !state_dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(fail)?;
        if let Some((user, group)) = user(USER).filter(|_| is_for_unit) {
            chown(state_dir, Some(user), Some(group)).map_err(fail)?;
        }
    }
    let path = state_dir.join(TOKEN);
    let new = state_dir.join(format!("{TOKEN}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(refused(&new, &error)),
        Ok(()) | Err(_) => {}
    }
    files::write_secret(&new, &token.to_text())?;
    let owner = fs::metadata(state_dir).map_err(fail)?;
    chown(&new, Some(owner.uid()), Some(owner.gid())).map_err(|error| refused(&new, &error))?;
    fs::rename(&new, &path).map_err(|error| refused(&path, &error))?;
    Ok(path)
}

/// Whether the agent has not joined yet, or was refused.
pub fn is_pending(state_dir: &Path) -> bool {
    state_dir.join(TOKEN).exists()
}

/// Where no package brought one. What was written, if anything.
pub fn write_unit(unit: &str, wanted: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let path = match wanted {
        Some(path) => path.to_owned(),
        None if !has_systemd() => return Ok(None),
        None if UNIT_DIRECTORIES.iter().any(|directory| Path::new(directory).join(UNIT_NAME).exists()) => {
            return Ok(None);
        }
        None => Path::new(UNIT_DIRECTORIES[0]).join(UNIT_NAME),
    };
    files::write(&path, &unit.replace(UNIT_PROGRAM, &files::agent().to_string_lossy()))?;
    if wanted.is_none() {
        make_user()?;
        run("systemctl", &["daemon-reload"])?;
    }
    Ok(Some(path))
}

/// At every boot, and now.
pub fn start() -> Result<(), Failure> {
    run("systemctl", &["enable", "--quiet", UNIT_NAME])?;
    run("systemctl", &["restart", UNIT_NAME])
}

/// As the packages do.
fn make_user() -> Result<(), Failure> {
    if user(USER).is_some() {
        return Ok(());
    }
    let home = ["--home-dir", "/var/lib/vp", "--no-create-home", "--shell", "/usr/sbin/nologin"];
    run("useradd", &[&["--system", "--user-group"], &home[..], &[USER]].concat())
}

/// Its numbers.
fn user(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let [_, _, user, group] = fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| {
        let fields: &[&str; 4] = fields.first_chunk()?;
        Some(*fields)
    })?;
    Some((user.parse().ok()?, group.parse().ok()?))
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let line = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::Refused(format!("{}: {error}", line())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Refused(format!("{}: {} {}", line(), output.status, said.trim())))
}
