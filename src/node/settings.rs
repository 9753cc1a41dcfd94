//! What the operator wants of this gateway, checked by the shell that read it (with file, line and column).

use super::RelayRates;
use crate::addr::{Identity, Name, Pool};
use crate::catalogue::{Client, Exposure, Mapping};
use std::net::SocketAddr;

/// Desired state, whole. Applying it again with changes leaves alone what did not change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub site: Name,
    pub pool: Pool,
    /// The largest packet inside a tunnel.
    pub inner_mtu: u16,
    pub flows_max: u32,
    pub peers: Vec<PeerSettings>,
    pub clients: Vec<Client>,
    pub exposures: Vec<Exposure>,
    pub mappings: Vec<Mapping>,
    /// Whether data between agents may be sealed with AES-256-GCM, where that is faster.
    pub second_cipher: bool,
    /// This gateway is a hub.
    pub hub: Option<RelayRates>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerSettings {
    pub identity: Identity,
    pub public_key: [u8; 32],
    pub preshared_key: Option<[u8; 32]>,
    /// Absent: the peer is behind NAT and calls us.
    pub endpoint: Option<SocketAddr>,
    /// What stands on this host for a hub that is reached over TLS too.
    pub carrier: Option<SocketAddr>,
    pub keepalive_seconds: Option<u16>,
    /// A WireGuard peer without an agent: it has no control channel and announces nothing.
    pub stock: bool,
    /// It introduces this site to others.
    pub hub: bool,
}
