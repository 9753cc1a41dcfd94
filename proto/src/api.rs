//! The local interface: JSON over HTTP on the agent's Unix socket. The same field names are what `vp-ctl -o json`
//! prints; they are stable: fields are added, never renamed or removed.
//!
//! | method and path      | request            | answer                 |
//! |----------------------|--------------------|------------------------|
//! | GET /v1/status       |                    | [`Status`]             |
//! | GET /v1/services     |                    | `Vec<`[`RemoteService`]`>` |
//! | GET /v1/flows        | `?service=S&limit=N` | `Vec<`[`Flow`]`>`    |
//! | GET /v1/whois        | `?address=A`       | [`Whois`]              |
//! | POST /v1/map         | [`MapRequest`]     | [`MapResponse`]        |
//! | POST /v1/unmap       | [`UnmapRequest`]   | [`Done`]               |
//! | POST /v1/expose      | [`ExposeRequest`]  | [`Done`]               |
//! | POST /v1/unexpose    | [`UnexposeRequest`]| [`Done`]               |
//! | POST /v1/drain       | [`DrainRequest`]   | [`Done`]               |
//! | POST /v1/ping        | [`PingRequest`]    | `Vec<`[`Step`]`>`      |
//! | POST /v1/explain     | [`ExplainRequest`] | [`Explanation`]        |
//! | GET /v1/doctor       |                    | `Vec<`[`Finding`]`>`   |
//! | GET /v1/audit        | `?lines=N&follow=B`, and what must be so: `service`, `peer`, `client`, `event`, `reason`, `flow`, `since` | JSON lines of [`AuditRecord`] |
//! | POST /v1/add-peer    | [`AddPeerRequest`] | [`AddPeerResponse`]    |
//! | POST /v1/remove-peer | [`RemovePeerRequest`] | [`Done`]            |
//! | POST /v1/reload      |                    | [`Done`]               |
//! | POST /v1/revocations | [`RevocationsRequest`] | [`RevocationsResponse`] |
//! | GET /metrics         |                    | Prometheus text        |
//!
//! Every refusal has a status of 4xx or 5xx and an [`Error`] as its body.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// One line: what, where, what was expected.
    pub error: String,
}

/// A change that was made; `warnings` are things an operator should know, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub site: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub interface: String,
    pub listen: String,
    /// As `wg pubkey` prints it; what other sites put in their `peers`.
    pub public_key: String,
    pub pool: Vec<String>,
    pub peers: Vec<PeerStatus>,
    pub presences: Vec<Presence>,
    pub callers: Vec<CallerPresence>,
    pub services: Vec<Service>,
    /// This site's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    pub flows: FlowTable,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// If names are served.
    #[serde(default)]
    pub dns: Option<Dns>,
    pub health: Vec<Finding>,
}

/// The DNS server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub zone: String,
    /// Where it answers: `address:port`.
    pub listening: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub site: String,
    /// It attends at this hub and no more: a site of another tenant, or one that was invited to join.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest: bool,
    /// `up`, `connecting` or `waiting` (for a peer without an endpoint to call); for a peer by certificate that is not there,
    /// why it does not hold, such as `expired` or `revoked`.
    pub state: String,
    /// `direct`, `relayed`, `tls` (to a hub, or through it) or `none`.
    pub path: String,
    /// Where its datagrams go: the peer's address, a relay's, or what stands for it on this host.
    pub endpoint: Option<String>,
    /// All paths to a peer that a hub introduced, or to a hub that is reached over TLS too.
    #[serde(default)]
    pub paths: Vec<PathStatus>,
    pub handshake_age_seconds: Option<u64>,
    /// With which data leaves while there is a session: chacha20-poly1305, or aes-256-gcm.
    #[serde(default)]
    pub cipher: Option<String>,
    pub rtt_ms: Option<f64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Datagrams, those of handshakes included.
    #[serde(default)]
    pub rx_packets: u64,
    #[serde(default)]
    pub tx_packets: u64,
    /// The control channel: `open`, `closed`, or `none` for a stock peer.
    pub control: String,
    pub offered_services: u32,
    /// As certified; absent for a peer that nobody vouches for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// As configured and as certified.
    #[serde(default)]
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
}

impl PeerStatus {
    /// What tells it from all others: a guest's site may be called as another's is.
    #[must_use]
    pub fn name(&self) -> String {
        match self.tenant.as_ref().filter(|_| self.guest) {
            Some(tenant) => format!("{}.{tenant}", self.site),
            None => self.site.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// `direct`, `relayed` or `tls`.
    pub path: String,
    pub endpoint: String,
    /// Whether it did when it was last asked, not long ago.
    pub answers: bool,
    pub rtt_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub tenant: String,
    pub groups: Vec<String>,
    /// 32 hexadecimal digits.
    pub serial: String,
    /// RFC 3339, UTC.
    pub not_after: String,
    pub seconds_left: u64,
    /// `valid`, or why it is not: a reason such as `expired` or `revoked`.
    pub state: String,
}

/// A service presence: a local address that stands for a remote service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    pub service: String,
    /// In DNS, if names are served: `web.cloud.vp`.
    #[serde(default)]
    pub name: Option<String>,
    /// Address, or prefix for a service that is a prefix.
    pub address: String,
    pub ports: Vec<String>,
    /// `up`; `away` (the peer is, or the tunnel), `not-offered` or `down` (its target).
    pub state: String,
    pub flows: u64,
    /// `file` or `runtime` (added with vp-ctl).
    pub origin: String,
}

/// A caller presence: a local address that stands for a remote caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerPresence {
    pub address: String,
    pub site: String,
    /// The name that its site gave it, if any.
    pub client: Option<String>,
    pub wire_address: String,
    pub flows: u64,
}

/// A service that this site exposes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub target: String,
    pub ports: Vec<String>,
    pub allow: Vec<String>,
    /// `masquerade` or `presence`.
    pub source: String,
    /// What a stock WireGuard peer calls.
    pub wire_addresses: Vec<String>,
    pub flows: u64,
    pub origin: String,
    /// `up`, `down` or `drained`: whether new flows are taken.
    #[serde(default)]
    pub state: String,
    /// Those of its targets that take none.
    #[serde(default)]
    pub resting: Vec<RestingTarget>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestingTarget {
    pub address: String,
    /// `down` or `drained`.
    pub state: String,
    /// What its last check said.
    #[serde(default)]
    pub detail: Option<String>,
}

/// A service of another site that this site may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteService {
    pub service: String,
    /// In DNS, if it is mapped and names are served: `web.cloud.vp`.
    #[serde(default)]
    pub name: Option<String>,
    pub ports: Vec<String>,
    pub mapped: bool,
    /// Its presences, if mapped.
    pub addresses: Vec<String>,
    pub state: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    pub open: u64,
    pub max: u64,
    pub opened_total: u64,
    pub closed_total: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The same at both gateways; see [`AuditRecord::flow`].
    #[serde(default)]
    pub flow: String,
    pub protocol: String,
    pub service: String,
    pub peer: String,
    /// The caller's name, if its site gave it one.
    pub client: Option<String>,
    /// `caller` when this site's host opened it, `service` when the peer's did.
    pub role: String,
    /// Who calls whom, in this site's own addresses.
    pub site: Ends,
    /// The same inside the tunnel.
    pub wire: Ends,
    pub state: String,
    pub age_seconds: u64,
    pub idle_seconds: u64,
    pub outbound_packets: u64,
    pub outbound_bytes: u64,
    pub inbound_packets: u64,
    pub inbound_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// `address:port` of the caller (for ICMP without a port).
    pub caller: String,
    /// `address:port` of the service.
    pub service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whois {
    pub address: String,
    /// `service`, `caller`, `gateway`, `host` or `nobody`.
    pub kind: String,
    pub site: Option<String>,
    pub service: Option<String>,
    pub client: Option<String>,
    pub wire_address: Option<String>,
    pub flows: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRequest {
    /// `web.cloud` or `*.cloud`.
    pub service: String,
    pub address: Option<String>,
    #[serde(default)]
    pub ports: Vec<String>,
    /// Client names or prefixes; empty: every host of the site.
    #[serde(default)]
    pub callers: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapResponse {
    /// What the mapping gave, now; a `*.site` mapping may give several and more later.
    pub presences: Vec<Presence>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmapRequest {
    pub service: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposeRequest {
    pub name: String,
    /// Addresses, or one prefix.
    pub target: Vec<String>,
    pub ports: Vec<String>,
    pub allow: Vec<String>,
    /// `masquerade` (default) or `presence`.
    pub source: Option<String>,
    /// How its targets are checked: `tcp/8080`, or `http/8080/healthz`; absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
}

/// Of a service of this site, or of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequest {
    pub service: Option<String>,
    /// One of its targets; absent: all.
    pub target: Option<String>,
    /// False: takes new flows again.
    pub drained: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnexposeRequest {
    pub name: String,
}

/// A stock WireGuard peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPeerRequest {
    pub site: String,
    /// As `wg pubkey` prints it.
    pub public_key: String,
    #[serde(default)]
    pub groups: Vec<String>,
    /// Where it calls this gateway, `HOST:PORT`; absent: the agent says what it takes for that.
    #[serde(default)]
    pub endpoint: Option<String>,
}

/// What the peer has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddPeerResponse {
    /// This gateway's.
    pub public_key: String,
    pub endpoint: String,
    pub mtu: u16,
    /// Those that it may use.
    pub services: Vec<PeerService>,
    pub warnings: Vec<String>,
}

/// A service as a stock peer calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerService {
    pub name: String,
    /// Inside the tunnel.
    pub addresses: Vec<String>,
    pub ports: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovePeerRequest {
    pub site: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationsRequest {
    /// The file's text: base64 between two lines.
    pub list: String,
}

/// A list that counts from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationsResponse {
    pub tenant: String,
    pub version: u64,
    /// How many certificates and delegations are on it.
    pub revoked: u64,
    /// False if it was known already.
    pub is_new: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRequest {
    pub service: String,
    /// Such as `tcp/80`; absent: the first TCP port of the service.
    pub port: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// A client's name or an address of this site; absent: the gateway itself.
    pub from: Option<String>,
    pub to: String,
    pub port: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `allowed`, `denied`, or `unanswered`: allowed, but the target does not answer.
    pub verdict: String,
    /// Of the closed list; absent when allowed.
    pub reason: Option<String>,
    pub steps: Vec<Step>,
}

/// One layer of a ping, one step of an explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub step: String,
    /// `ok`, `failed` or `skipped`.
    pub outcome: String,
    pub detail: String,
    /// On a failure: who must change what.
    pub change: Option<String>,
}

/// Something wrong with the gateway or its surroundings, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word, such as `forwarding-off`.
    pub name: String,
    /// `ok`, `warning` or `error`.
    pub severity: String,
    pub detail: String,
    pub fix: Option<String>,
}

/// One line of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// RFC 3339, UTC.
    pub time: String,
    /// `flow-opened`, `flow-closed`, `denied`, `configuration`, `peer-up`, `peer-down`, `offer-refused`, `started`,
    /// `certificate-accepted`, `certificate-refused`, `certificate-expired`, `certificate-revoked`, `revocations-accepted`,
    /// `revocations-refused` or `lost`.
    pub event: String,
    pub site: String,
    /// The peer's, if its identity has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port that was called: of a flow the service's own, of a denial as it came to its door. ICMP has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The flow's id, the same at both gateways: 16 hexadecimal digits of who calls whom, and for a TCP connection whose
    /// beginning was seen a hyphen and 8 of which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_view: Option<Ends>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_view: Option<Ends>,
    /// `allowed` or `denied`, of flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Why denied, refused, or closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `allow` (or `callers`) entry that let it pass; of a denial the list that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_packets: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_packets: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// How many alike this line stands for, when more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<u64>,
    /// What changed, for `configuration`; which certificate or list, for what is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Its place in the file's chain, and that chain's hashes: see [`crate::chain`]. A line that is followed as it comes has
    /// none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}
