//! One look at the agent, and what changed since the one before.

use crate::client::Client;
use crate::failure::Failure;
use crate::json;
use serde::de::DeserializeOwned;
use std::time::Instant;
use vp_proto::api::{AuditRecord, Flow, PeerStatus, RemoteService, ServiceFigures, Status};

/// Flows that are looked at: more than anybody scrolls through.
const FLOWS: &str = "1000";
const DENIALS: &str = "200";

#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    pub status: Status,
    pub services: Vec<RemoteService>,
    pub figures: Vec<ServiceFigures>,
    pub flows: Vec<Flow>,
    /// The last ones, the oldest first.
    pub denials: Vec<AuditRecord>,
}

/// What is shown: the last look, and rates since the one before.
#[derive(Debug)]
pub(super) struct Now {
    pub look: Look,
    pub peers: Vec<Rates>,
    pub figures: Vec<FigureRates>,
    pub flows: Vec<Rates>,
}

/// Bytes a second, seen from the site; and of a peer's messages the share that was lost.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Rates {
    pub inbound: f64,
    pub outbound: f64,
    pub lost: Option<f64>,
}

#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct FigureRates {
    pub bytes: Rates,
    pub opened: f64,
    pub denied: f64,
}

impl Look {
    pub fn take(client: &Client) -> Result<Self, Failure> {
        let denied = client.get("/v1/audit", &[("lines", DENIALS), ("follow", "false"), ("event", "denied")])?;
        let denials = denied.lines().map(json::decode).collect::<Result<_, _>>()?;
        Ok(Self {
            status: ask(client, "/v1/status", &[])?,
            services: ask(client, "/v1/services", &[])?,
            figures: ask(client, "/v1/figures", &[])?,
            flows: ask(client, "/v1/flows", &[("limit", FLOWS)])?,
            denials,
            at: Instant::now(),
        })
    }
}

fn ask<T: DeserializeOwned>(client: &Client, path: &str, query: &[(&str, &str)]) -> Result<T, Failure> {
    json::decode(&client.get(path, query)?)
}

impl Now {
    pub fn between(before: Option<&Look>, look: Look) -> Self {
        let seconds = before.map_or(0.0, |before| (look.at - before.at).as_secs_f64());
        let old = |of: &PeerStatus| before?.status.peers.iter().find(|old| old.site == of.site);
        let peers = look.status.peers.iter().map(|peer| old(peer).map(|old| of_peer(old, peer, seconds)));
        let old = |of: &ServiceFigures| {
            let is_it = |old: &&ServiceFigures| (&old.service, old.exposed) == (&of.service, of.exposed);
            before?.figures.iter().find(is_it)
        };
        let nothing = ServiceFigures::default();
        let figures = look.figures.iter().map(|of| {
            // What was not there before was nothing.
            before.map(|_| of_service(old(of).unwrap_or(&nothing), of, seconds))
        });
        let old = |of: &Flow| {
            // An id stands for several flows where their beginning was not seen.
            let is_it = |old: &&Flow| (&old.flow, &old.site, &old.protocol) == (&of.flow, &of.site, &of.protocol);
            before?.flows.iter().find(is_it)
        };
        let flows = look.flows.iter().map(|flow| {
            old(flow).map(|old| Rates {
                inbound: rate(old.inbound_bytes, flow.inbound_bytes, seconds),
                outbound: rate(old.outbound_bytes, flow.outbound_bytes, seconds),
                lost: None,
            })
        });
        let peers = peers.map(Option::unwrap_or_default).collect();
        let figures = figures.map(Option::unwrap_or_default).collect();
        let flows = flows.map(Option::unwrap_or_default).collect();
        Self { look, peers, figures, flows }
    }
}

fn of_peer(old: &PeerStatus, peer: &PeerStatus, seconds: f64) -> Rates {
    let expected = peer.expected_packets.saturating_sub(old.expected_packets);
    let arrived = peer.arrived_packets.saturating_sub(old.arrived_packets);
    // Late ones make up for it.
    let lost = (expected > 0).then(|| (1.0 - arrived as f64 / expected as f64).max(0.0));
    let (inbound, outbound) = (rate(old.rx_bytes, peer.rx_bytes, seconds), rate(old.tx_bytes, peer.tx_bytes, seconds));
    Rates { inbound, outbound, lost }
}

fn of_service(old: &ServiceFigures, of: &ServiceFigures, seconds: f64) -> FigureRates {
    let bytes = Rates {
        inbound: rate(old.inbound_bytes, of.inbound_bytes, seconds),
        outbound: rate(old.outbound_bytes, of.outbound_bytes, seconds),
        lost: None,
    };
    let denied = |of: &ServiceFigures| of.denied.values().sum::<u64>();
    let opened = rate(old.opened_total, of.opened_total, seconds);
    FigureRates { bytes, opened, denied: rate(denied(old), denied(of), seconds) }
}

/// None after a restart, when all is counted from the start again.
fn rate(old: u64, new: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { new.saturating_sub(old) as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// A gateway with two peers, two services and a flow, `times` as much counted.
    pub fn look(times: u64, at: Instant) -> Look {
        let peer = |site: &str, state: &str, path: &str, rtt: Option<f64>| {
            json!({"site": site, "state": state, "path": path, "endpoint": null, "handshake_age_seconds": 65, "rtt_ms": rtt,
                "rx_bytes": 1_048_576 * times, "tx_bytes": 1024 * times, "control": "open", "offered_services": 2,
                "expected_packets": 100 * times, "arrived_packets": 90 * times})
        };
        let status = json!({"site": "factory", "version": "0.1.0", "uptime_seconds": 3700, "interface": "vp0", "listen": "[::]:1",
            "public_key": "", "pool": ["10.0.1.0/24"], "callers": [], "drops": {},
            "peers": [peer("cloud", "up", "direct", Some(1.25)), peer("depot", "connecting", "none", None)],
            "presences": [{"service": "web.cloud", "address": "10.0.1.2", "ports": ["tcp/80"], "state": "up", "flows": 1, "origin": "file"}],
            "services": [{"name": "metrics", "target": "10.0.0.2", "ports": ["tcp/9100"], "allow": ["site:cloud"],
                "source": "masquerade", "wire_addresses": [], "flows": 0, "origin": "file"}],
            "flows": {"open": 1, "max": 262_144, "opened_total": 7, "closed_total": 6},
            "health": [{"name": "peer-away", "severity": "warning", "detail": "depot is connecting", "fix": null}]});
        let figures = json!([{"service": "web.cloud", "exposed": false, "flows": 1, "opened_total": 7 * times,
            "denied": {"not-allowed": 3 * times}, "outbound_bytes": 2048 * times, "inbound_bytes": 1_048_576 * times,
            "connects": {"count": 0, "sum_seconds": 0.0, "within": []}}]);
        let flow = json!([{"flow": "0123456789abcdef-01234567", "protocol": "tcp", "service": "web.cloud", "peer": "cloud", "client": "plc",
            "role": "caller", "site": {"caller": "10.0.0.2:4711", "service": "10.0.1.2:80"},
            "wire": {"caller": "198.19.0.7:4711", "service": "198.18.0.12:80"}, "state": "open", "age_seconds": 9,
            "idle_seconds": 0, "outbound_packets": 9, "outbound_bytes": 700 * times, "inbound_packets": 100, "inbound_bytes": 2_097_152 * times}]);
        let services = json!([{"service": "web.cloud", "ports": ["tcp/80"], "mapped": true, "addresses": ["10.0.1.2"], "state": "up"},
            {"service": "mail.cloud", "ports": ["tcp/25"], "mapped": false, "addresses": [], "state": "down"}]);
        let denied = json!([{"time": "2026-02-01T10:00:00.123Z", "event": "denied", "site": "factory", "service": "web.cloud", "protocol": "tcp",
            "port": 80, "site_view": {"caller": "10.0.0.6:5", "service": "10.0.1.2:80"}, "reason": "not-allowed", "repeated": 12}]);
        Look {
            at,
            status: serde_json::from_value(status).expect("a status"),
            services: serde_json::from_value(services).expect("services"),
            figures: serde_json::from_value(figures).expect("figures"),
            flows: serde_json::from_value(flow).expect("flows"),
            denials: serde_json::from_value(denied).expect("denials"),
        }
    }

    pub fn now() -> Now {
        let start = Instant::now();
        Now::between(Some(&look(1, start)), look(3, start + Duration::from_secs(2)))
    }

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let now = now();
        assert_eq!(
            now.peers[0],
            Rates { inbound: 1_048_576.0, outbound: 1024.0, lost: Some(0.1) }.rounded(&now.peers[0])
        );
        assert_eq!((now.figures[0].opened, now.figures[0].denied), (7.0, 3.0));
        assert_eq!(now.flows[0].inbound, 2_097_152.0);
        let start = Instant::now();
        let restarted = Now::between(Some(&look(3, start)), look(1, start + Duration::from_secs(1)));
        assert_eq!(restarted.peers[0].inbound, 0.0, "counted from the start again");
        assert_eq!(Now::between(None, look(1, start)).flows[0], Rates::default());
    }

    impl Rates {
        /// With a loss that differs by no more than floating point does.
        fn rounded(self, like: &Self) -> Self {
            let lost = self.lost.zip(like.lost).map(|(own, like)| if (own - like).abs() < 1e-9 { like } else { own });
            Self { lost, ..self }
        }
    }
}
