//! The configuration file: read whole or not at all. Every error is one line that says where, what, and what was
//! expected. Nothing here touches the system but the file itself and the key files that it names.

mod convert;
mod key;
mod raw;
mod units;

pub use convert::{exposure, mapping};
pub use key::{create as create_key, read as read_key};
pub use raw::{RawExposure, RawLimits, RawMapping, Targets, plain};

use ipnet::IpNet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use vp::node::Settings;

/// More than a site of ten thousand services needs.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the file says, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    pub settings: Settings,
    /// The peers' endpoints as written; names are resolved by the shell.
    pub endpoints: Vec<(vp::addr::Name, String)>,
    pub key: PathBuf,
    pub listen: Option<SocketAddr>,
    pub interface: String,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub reach: Reach,
    pub audit: Option<PathBuf>,
    pub metrics: Option<SocketAddr>,
    pub warnings: Vec<String>,
}

/// How the hosts of the site find the pool's addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Their router sends the pool to this gateway, or the gateway is their router.
    Routed,
    /// The gateway answers for them on this interface's LAN.
    ProxyArp(String),
}

/// Addresses and networks of the host itself, which the pool must keep clear of.
#[derive(Clone, Debug, Default)]
pub struct HostNetworks {
    /// Interface and its address with the network's prefix length.
    pub interfaces: Vec<(String, IpNet)>,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    pub file: Option<PathBuf>,
    /// Line and column, from 1.
    pub at: Option<(u64, u64)>,
    pub message: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
        }
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if self.file.is_some() || self.at.is_some() {
            write!(f, " ")?;
        }
        // Text from a file or a peer must not break the line.
        let line: String = self.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        write!(f, "{line}")
    }
}

impl Config {
    pub fn load(file: &Path, host: &HostNetworks) -> Result<Self, ConfigError> {
        let in_file = |mut error: ConfigError| {
            error.file = Some(file.to_owned());
            error
        };
        let plain = |message: String| ConfigError { file: Some(file.to_owned()), at: None, message };
        let size = std::fs::metadata(file).map_err(|error| plain(error.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(plain(format!("has {size} bytes, expected at most {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| plain(error.to_string()))?;
        let raw = raw::parse(&text).map_err(in_file)?;
        convert::config(file, raw, host).map_err(in_file)
    }
}
