//! `agent.yaml`: read, checked whole, and turned into what the node and the shell want. Every error is one line that
//! says where and what was expected. Nothing here changes the machine.

mod convert;
pub mod credentials;
mod error;
mod file;
mod hub;
pub mod keys;
mod peers;
mod requests;
#[cfg(test)]
mod tests;
pub mod values;

pub use credentials::{Credentials, Member};
pub use error::{ConfigError, FieldError, one_line};
pub use keys::{KeyFileError, make as create_key, read as read_key};
pub use requests::{check, exposure, exposure_warnings, mapping, mapping_warnings, stock_peer};

use crate::audit::AuditSettings;
use crate::carrier::{CarrierSettings, ListenerSettings};
use crate::health::Check;
use crate::registry::EtcdSettings;
use ipnet::IpNet;
use serde_saphyr::options::{AliasLimits, DuplicateKeyPolicy, MergeKeyPolicy};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use vp::addr::Name;
use vp::node::{ServicePattern, Settings};

/// A thousand services are 200 KB.
const FILE_BYTES_MAX: u64 = 1 << 20;
const DEPTH_MAX: usize = 16;
const NODES_MAX: usize = 200_000;
/// Aliases are for a list that is used twice; a bomb needs more.
const ALIASES_MAX: usize = 1_000;

/// What the file says, all of it checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    /// What the node is told, without what vp-ctl adds and without peers by certificate. Peers have the addresses of
    /// endpoints that need no resolving.
    pub settings: Settings,
    pub credentials: Credentials,
    /// The peers' endpoints as written.
    pub endpoints: Vec<(Name, String)>,
    /// Of hubs that are reached over TLS too, by their sites.
    pub carriers: Vec<(Name, CarrierSettings)>,
    /// Where this hub is reached over TLS too.
    pub hub_tls: Option<ListenerSettings>,
    /// Where hubs share what is registered.
    pub hub_store: Option<EtcdSettings>,
    /// May be missing only where the agent makes it at its first start: `site.key` of `state_dir`.
    pub key: PathBuf,
    /// Absent: any port.
    pub listen: Option<SocketAddr>,
    pub interface: String,
    pub workers: Workers,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub reach: Reach,
    pub audit: AuditSettings,
    pub metrics: Option<SocketAddr>,
    /// Absent: no names are served.
    pub dns: Option<Dns>,
    /// How targets of the file's services are checked.
    pub checks: BTreeMap<Name, Check>,
    /// What is not wrong but perhaps not meant, one line each.
    pub warnings: Vec<String>,
    /// The lines of the file's services and mappings.
    lines: BTreeMap<String, u64>,
}

/// Names for what is here of other sites.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dns {
    /// Without the final dot.
    pub zone: String,
    /// Beside the gateway's own presences.
    pub listen: Vec<SocketAddr>,
    /// Who is asked for other names; empty: nobody.
    pub forward: Vec<SocketAddr>,
    /// Networks of this site beside those that this host is in.
    pub clients: Vec<IpNet>,
    /// Whether systemd-resolved is told, where it runs.
    pub resolved: bool,
}

/// How many threads carry packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// As many as this machine has use for.
    Auto,
    Count(usize),
}

impl Workers {
    /// Each takes a processor when it is busy, and the kernel takes as much beside it.
    const CORES_EACH: usize = 2;
    /// What [`Workers::Auto`] is at most: all of them go through one node.
    const AUTO_MAX: usize = 8;
    /// More share nothing out any more: the sockets share peers out by a byte.
    pub const MAX: usize = 64;

    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Auto => {
                let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                (cores / Self::CORES_EACH).clamp(1, Self::AUTO_MAX)
            }
            Self::Count(count) => count,
        }
    }
}

/// How hosts of this site find the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// A router sends it here, or the host itself has a route.
    Routed,
    /// The gateway answers for the pool's addresses on this interface.
    ProxyArp(String),
}

/// Addresses of the machine that the file is for, each with the prefix length of its network, by interface. Empty: another
/// machine, or a reader who may not see its keys; then only what the file itself says is checked.
#[derive(Clone, Default, Debug)]
pub struct HostNetworks {
    pub interfaces: Vec<(String, IpNet)>,
}

impl Config {
    pub fn load(file: &Path, host: &HostNetworks) -> Result<Self, ConfigError> {
        let text = read(file)?;
        Self::parse(file, &text, host)
    }

    pub fn parse(file: &Path, text: &str, host: &HostNetworks) -> Result<Self, ConfigError> {
        let parsed = serde_saphyr::from_str_with_options(text, options());
        let parsed = parsed.map_err(|error| ConfigError::yaml(file, &error))?;
        convert::convert(file, parsed, host)
    }

    /// `FILE:LINE` of a service that the file exposes.
    #[must_use]
    pub fn exposed_at(&self, service: &Name) -> Option<String> {
        self.locate(&format!("expose {service}"))
    }

    /// Whether the file speaks of this site.
    #[must_use]
    pub fn has_peer(&self, site: &Name) -> bool {
        let members = self.credentials.members.iter().map(|member| &member.settings);
        self.settings.peers.iter().chain(members).any(|peer| peer.identity.site == *site)
    }

    /// `FILE:LINE` of what the file maps.
    #[must_use]
    pub fn mapped_at(&self, service: &ServicePattern) -> Option<String> {
        self.locate(&format!("map {service}"))
    }

    fn locate(&self, what: &str) -> Option<String> {
        let line = self.lines.get(what)?;
        Some(format!("{}:{line}", self.file.display()))
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let fail = |error: std::io::Error| ConfigError::whole(file, format!("not readable: {error}"));
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file).map_err(fail)?;
    let metadata = opened.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(ConfigError::whole(file, "not a file, expected a YAML file"));
    }
    let too_large = || ConfigError::whole(file, format!("larger than {} KiB, expected less", FILE_BYTES_MAX >> 10));
    if metadata.len() > FILE_BYTES_MAX {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        let column = String::from_utf8_lossy(valid).lines().last().map_or(0, |line| line.chars().count()) as u64 + 1;
        let column = if valid.ends_with(b"\n") { 1 } else { column };
        let message = "not UTF-8, expected UTF-8 text".to_owned();
        ConfigError { file: Some(file.to_owned()), at: Some((line, column)), message }
    })
}

fn options() -> serde_saphyr::Options {
    let mut limits = AliasLimits::default();
    limits.max_total_replayed_events = NODES_MAX;
    limits.max_replay_stack_depth = DEPTH_MAX;
    limits.max_alias_expansions_per_anchor = ALIASES_MAX;
    serde_saphyr::options! {
        strict_booleans: true,
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        with_snippet: false,
        reject_unsupported_tags: true,
        alias_limits: limits,
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_documents: 1,
        },
    }
}
