//! What breaks gateways in practice, looked for by name, each with its way out. Changes nothing; what it sends goes to
//! peers, where they are called, and to servers that this site exposes.

mod firewall;
mod host;
mod paths;
mod ruleset;
mod servers;

use crate::agent::Agent;
use crate::health::TARGETS_MAX;
use crate::netlink::HostNetworks;
use crate::sys::{TunOffload, Udp};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use vp::catalogue::Exposure;
use vp_proto::api::Finding;

/// Interfaces of containers and virtual machines, by how their names begin: not of the site's network.
const GUESTS: [&str; 7] = ["docker", "br-", "veth", "virbr", "cni", "lxc", "podman"];

/// A look at the gateway itself: cheap, for every status.
pub async fn health(agent: &Agent) -> Vec<Finding> {
    let mut findings = Vec::new();
    let peers = agent.handle.call(|node, _, now| node.peers(now)).await.unwrap_or_default();
    for (_, peer) in peers.iter().filter(|(_, peer)| peer.state != "up" && !peer.guest) {
        let detail = format!("{} is {}", peer.site, peer.state);
        let fix = "see that the peer's agent runs, that its endpoint is right and that UDP passes";
        findings.push(finding("peer-away", "warning", detail, fix));
    }
    findings.extend(agent.identities.findings(crate::clock::unix_seconds()));
    findings.extend(agent.issuing.findings(crate::clock::unix_seconds()));
    findings.extend(agent.renewing().and_then(|(renewal, certificate)| renewal.finding(&certificate)));
    findings.extend(agent.seeking.as_ref().map(|seeking| seeking.finding()));
    findings.extend(registry(agent));
    let refused = agent.handle.call(|node, _, _| {
        let refused = node.refused_mappings();
        refused.first().map(|(service, error)| (refused.len(), format!("{service}: {error}")))
    });
    if let Ok(Some((count, first))) = refused.await {
        let detail = format!("{count} mapped services have no address here; {first}");
        findings.push(finding("mapping-without-address", "error", detail, "enlarge `pool`, or map services by name"));
    }
    if agent.wanted.lock().await.checks().len() >= TARGETS_MAX {
        let detail = format!("no more than {TARGETS_MAX} targets are checked; what is behind them is taken for up");
        findings.push(finding("checks-at-their-limit", "warning", detail, "take `health` away where it matters least"));
    }
    for (service, address, why) in agent.health.failures() {
        let detail = format!("{address} of service {service} gets no new flows: {why}");
        let fix = "see that the server runs, and that this gateway reaches it";
        findings.push(finding("target-down", "warning", detail, fix));
    }
    if agent.offload != TunOffload::TcpAndUdp {
        let detail = format!("the TUN has {}, which costs speed", agent.offload.word());
        findings.push(finding("tun-offload-missing", "warning", detail, "run Linux 6.2 or later"));
    }
    let wanted = Udp::wanted_buffer_bytes();
    // The kernel tells twice what it was asked for (socket(7)).
    let (receive, send) = (agent.buffer_bytes.0 / 2, agent.buffer_bytes.1 / 2);
    if receive.min(send) < wanted {
        let detail = format!("the kernel gave socket buffers of {receive} and {send} bytes in place of {wanted}");
        let fix = format!("sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}");
        findings.push(finding("small-socket-buffers", "warning", detail, &fix));
    }
    let counters = agent.handle.counters();
    if counters.journal_errors.load(Ordering::Relaxed) > 0 {
        let detail = "leases could not be written; after a restart they may be others".to_owned();
        findings.push(finding("leases-not-kept", "error", detail, "see the disk under state_dir, then restart"));
    }
    if let Some(failure) = agent.audit.failure() {
        let detail = format!("{failure} ({} lines lost)", agent.audit.lost());
        findings.push(finding("audit-not-written", "error", detail, "free the disk or mend the path, then reload"));
    }
    for (to, lost) in agent.audit.not_forwarded().into_iter().filter(|(_, lost)| *lost > 0) {
        let detail = format!("{lost} audit records did not reach {to}");
        findings.push(finding("audit-not-forwarded", "warning", detail, "see that it runs and keeps up"));
    }
    for (address, why) in agent.dns.failures() {
        let detail = format!("names are not served at {address}: {why}");
        let fix = format!(
            "see who has the port: ss -lntup 'sport = :{}'; let it listen on its own addresses only",
            address.port()
        );
        findings.push(finding("dns-not-listening", "error", detail, &fix));
    }
    if let Some(failure) = agent.dns.resolved_failure() {
        let detail = format!("systemd-resolved does not ask this gateway for names: {failure}");
        let fix = "let the agent's user change it (polkit), or set `resolved: off`";
        findings.push(finding("resolved-not-told", "warning", detail, fix));
    }
    for warning in &agent.wanted.lock().await.warnings {
        findings.push(finding("host", "warning", warning.clone(), "see the agent's log"));
    }
    findings
}

/// A hub's own.
fn registry(agent: &Agent) -> Vec<Finding> {
    let Some(registry) = &agent.registry else { return Vec::new() };
    let away = registry.shared().and_then(Result::err).map(|away| {
        let detail = format!("etcd is away, and nobody can be registered meanwhile: {away}");
        finding("registry-away", "error", detail, "see that most of etcd's members run and are reached")
    });
    let damage = registry.damage().iter().map(|damage| {
        let fix = "look at what was put aside, then restart";
        finding("registry-damaged", "warning", damage.clone(), fix)
    });
    away.into_iter().chain(damage).collect()
}

/// Everything: the gateway and the host around it. A healthy one has one finding, of severity `ok`.
pub async fn examine(agent: &Agent) -> Vec<Finding> {
    let around = Surroundings::read(agent).await;
    let mut findings = host::examine(&around);
    findings.extend(firewall::examine(&around).await);
    findings.extend(paths::overlapping_routes(&around));
    let asked = tokio::join!(paths::mtu(agent, &around), paths::clocks(agent), servers::ways_back(agent, &around));
    findings.extend(asked.0.into_iter().chain(asked.1).chain(asked.2));
    findings.extend(health(agent).await);
    if findings.is_empty() {
        let detail = "nothing was found that keeps packets from passing".to_owned();
        findings.push(Finding { name: "well".to_owned(), severity: "ok".to_owned(), detail, fix: None });
    }
    findings
}

fn finding(name: &str, severity: &str, detail: String, fix: &str) -> Finding {
    Finding { name: name.to_owned(), severity: severity.to_owned(), detail, fix: Some(fix.to_owned()) }
}

/// What the tests are about: the host as it is, and what is wanted of it.
struct Surroundings {
    host: HostNetworks,
    /// The tunnels' interface.
    own: String,
    pool: Vec<IpNet>,
    inner_mtu: u16,
    exposures: Vec<Exposure>,
    key: std::path::PathBuf,
    /// What this host is called on, and whether by anybody or by hosts of the site alone: protocol and port.
    ports: Vec<Port>,
}

struct Port {
    protocol: &'static str,
    port: u16,
    what: &'static str,
    by: Callers,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Callers {
    Peers,
    Site,
}

impl Surroundings {
    async fn read(agent: &Agent) -> Self {
        let settings = agent.handle.call(|node, _, _| node.settings().clone()).await.ok();
        let wanted = agent.wanted.lock().await;
        let config = &wanted.config;
        let mut ports = Vec::new();
        let mut add = |protocol, port, what, by| ports.push(Port { protocol, port, what, by });
        // Who only calls is answered: firewalls let that pass.
        if let Some(listen) = config.listen {
            add("udp", listen.port(), "the tunnels", Callers::Peers);
        }
        if let Some(tls) = &config.hub_tls {
            add("tcp", tls.listen.port(), "tunnels over TLS", Callers::Peers);
        }
        if config.dns.is_some() {
            add("udp", NAMES, "names", Callers::Site);
            add("tcp", NAMES, "names", Callers::Site);
        }
        let (own, key) = (config.interface.clone(), config.key.clone());
        drop(wanted);
        let host = HostNetworks::read().await.unwrap_or_default();
        let (pool, inner_mtu, exposures) = settings.map_or_else(Default::default, |settings| {
            (settings.pool.prefixes().to_vec(), settings.inner_mtu, settings.exposures)
        });
        Self { host, own, pool, inner_mtu, exposures, key, ports }
    }

    /// Those of the host with an address that are neither the tunnels' nor of guests of this host.
    fn interfaces(&self) -> Vec<&str> {
        let is_real = |name: &str| name != "lo" && name != self.own && !GUESTS.iter().any(|of| name.starts_with(of));
        let addresses = self.host.addresses.iter().map(|own| own.interface.as_str());
        let mut interfaces: Vec<&str> = addresses.filter(|name| is_real(name)).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        interfaces
    }

    /// Where the default routes lead, or all where there is none.
    fn uplinks(&self) -> Vec<&str> {
        let defaults = self.host.routes.iter().filter(|route| route.destination.prefix_len() == 0);
        let uplinks: Vec<&str> = defaults.filter_map(|route| route.interface.as_deref()).collect();
        let interfaces = self.interfaces();
        let found: Vec<&str> = interfaces.iter().copied().filter(|name| uplinks.contains(name)).collect();
        if found.is_empty() { interfaces } else { found }
    }

    /// Where hosts of the site are: beside the uplinks, or there where there is nothing else.
    fn inside(&self) -> Vec<&str> {
        let (interfaces, uplinks) = (self.interfaces(), self.uplinks());
        let found: Vec<&str> = interfaces.iter().copied().filter(|name| !uplinks.contains(name)).collect();
        if found.is_empty() { interfaces } else { found }
    }

    /// The networks of an interface.
    fn networks<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = IpNet> + 'a {
        self.host.addresses.iter().filter(move |own| own.interface == interface).map(|own| own.network)
    }

    /// By which interface a host of the site is reached, and from which of the host's own addresses.
    fn towards(&self, target: IpAddr) -> Option<(&str, Option<IpAddr>)> {
        if let Some(own) = self.host.addresses.iter().find(|own| own.network.contains(&target)) {
            return Some((&own.interface, Some(own.address)));
        }
        let routes = self.host.routes.iter().filter(|route| route.destination.contains(&target));
        let route = routes.max_by_key(|route| route.destination.prefix_len())?;
        Some((route.interface.as_deref()?, None))
    }
}

/// Names are asked for here (RFC 1035 section 4.2).
const NAMES: u16 = 53;
