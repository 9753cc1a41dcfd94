//! What breaks gateways in practice, looked for by name, each with its way out.

use crate::agent::Agent;
use crate::sys::{TunOffload, Udp};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use vp::addr::Family;
use vp_proto::api::Finding;

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
    if let Some(registry) = &agent.registry {
        if let Some(Err(away)) = registry.shared() {
            let detail = format!("etcd is away, and nobody can be registered meanwhile: {away}");
            findings.push(finding(
                "registry-away",
                "error",
                detail,
                "see that most of etcd's members run and are reached",
            ));
        }
        for damage in registry.damage() {
            let fix = "look at what was put aside, then restart";
            findings.push(finding("registry-damaged", "warning", damage.clone(), fix));
        }
    }
    let refused = agent.handle.call(|node, _, _| {
        let refused = node.refused_mappings();
        refused.first().map(|(service, error)| (refused.len(), format!("{service}: {error}")))
    });
    if let Ok(Some((count, first))) = refused.await {
        let detail = format!("{count} mapped services have no address here; {first}");
        findings.push(finding("mapping-without-address", "error", detail, "enlarge `pool`, or map services by name"));
    }
    for (service, address, why) in agent.health.failures() {
        let detail = format!("{address} of service {service} gets no new flows: {why}");
        findings.push(finding(
            "target-down",
            "warning",
            detail,
            "see that the server runs, and that this gateway reaches it",
        ));
    }
    if agent.offload != TunOffload::TcpAndUdp {
        let detail = format!("the TUN has {}, which costs speed", agent.offload.word());
        findings.push(finding("tun-offload-missing", "warning", detail, "run Linux 6.2 or later"));
    }
    let wanted = Udp::wanted_buffer_bytes();
    let (receive, send) = agent.buffer_bytes;
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

/// Everything: the gateway and the host around it. A healthy one has findings too, of severity `ok`.
pub async fn examine(agent: &Agent) -> Vec<Finding> {
    let interfaces = crate::netlink::HostNetworks::read().await.map(|host| host.interfaces).unwrap_or_default();
    let interfaces: Vec<String> = interfaces.into_iter().filter(|interface| interface != "lo").collect();
    let mut findings = forwarding(agent, &interfaces).await;
    findings.extend(reverse_path(&interfaces));
    findings.extend(key_file(agent).await);
    findings.extend(legacy_tables());
    findings.extend(forward_policy(agent).await);
    findings.extend(overlapping_routes(agent).await);
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

/// Whether the host passes packets between its networks and the tunnel's interface.
async fn forwarding(agent: &Agent, interfaces: &[String]) -> Vec<Finding> {
    let (pool, own) = {
        let wanted = agent.wanted.lock().await;
        (wanted.config.settings.pool.clone(), wanted.config.interface.clone())
    };
    let has = |family: Family| pool.prefixes().iter().any(|prefix| Family::of(prefix.addr()) == family);
    let is_off = |path: &str| switch(path).as_deref() == Some("0");
    let mut findings = Vec::new();
    for (family, path) in [(Family::V4, "net/ipv4/ip_forward"), (Family::V6, "net/ipv6/conf/all/forwarding")] {
        if has(family) && is_off(path) {
            let detail = format!("this host does not forward {family}: hosts of the site do not reach presences");
            findings.push(finding("forwarding-off", "error", detail, &format!("sysctl -w {path}=1")));
        } else if has(family) && family == Family::V6 {
            // Each has a switch of its own for what comes in by it; one towards a provider may have reason to be off.
            for interface in interfaces {
                let path = format!("net/ipv6/conf/{interface}/forwarding");
                if is_off(&path) {
                    let severity = if *interface == own { "error" } else { "warning" };
                    let detail = format!("IPv6 packets that come in by {interface} are not forwarded");
                    findings.push(finding("forwarding-off", severity, detail, &format!("sysctl -w {path}=1")));
                }
            }
        }
    }
    findings
}

/// Strict reverse-path checks on an interface drop what comes back another way. The larger one of its own switch and that
/// of all interfaces holds (ip-sysctl.rst), and 2 is loose.
fn reverse_path(interfaces: &[String]) -> Vec<Finding> {
    let level = |interface: &str| switch(&format!("net/ipv4/conf/{interface}/rp_filter"));
    let all = level("all");
    let strict = interfaces.iter().filter(|interface| level(interface).max(all.clone()).as_deref() == Some("1"));
    let strict: Vec<&str> = strict.map(String::as_str).collect();
    if strict.is_empty() {
        return Vec::new();
    }
    let detail =
        format!("reverse-path checks are strict on {}: callers reached another way are dropped", strict.join(", "));
    vec![finding("rp-filter", "warning", detail, "sysctl -w net/ipv4/conf/all/rp_filter=2")]
}

/// Who may read the site's key is the site.
async fn key_file(agent: &Agent) -> Vec<Finding> {
    let key = agent.wanted.lock().await.config.key.clone();
    let Err(error) = crate::config::read_key(&key) else { return Vec::new() };
    let fix = format!("chmod 0600 {}; if others may have read it, make a new one", key.display());
    vec![finding("key-file", "error", error.to_string(), &fix)]
}

/// Rules of the older iptables, which nft does not show and this cannot read.
fn legacy_tables() -> Vec<Finding> {
    let tables = ["ip", "ip6"].map(|family| (family, format!("/proc/net/{family}_tables_names")));
    let filters = tables.into_iter().filter(|(_, path)| {
        std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "filter"))
    });
    filters
        .map(|(family, _)| {
            let tool = format!("{family}tables-legacy");
            let detail = format!("{tool} has rules on this host, and may drop what is forwarded");
            finding("legacy-iptables", "warning", detail, &format!("see {tool} -S FORWARD; move its rules to nftables"))
        })
        .collect()
}

/// Another program's table that drops what is forwarded (Docker's does).
async fn forward_policy(agent: &Agent) -> Vec<Finding> {
    let interface = agent.wanted.lock().await.config.interface.clone();
    let list = || {
        let mut nft = std::process::Command::new("nft");
        nft.args(["-j", "list", "ruleset"]).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        nft.stdin(std::process::Stdio::null()).output()
    };
    let Ok(Ok(output)) = tokio::task::spawn_blocking(list).await else {
        let detail = "the program nft is not there: services with source masquerade do not work".to_owned();
        return vec![finding("nft-missing", "error", detail, "apt-get install nftables")];
    };
    let Ok(listing) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else { return Vec::new() };
    dropping_chains(&listing, &interface)
        .into_iter()
        .map(|(table, chain)| {
            let detail = format!("chain {chain} of table {table} drops what it does not know, forwarded packets too");
            let insert = format!("nft insert rule {table} {chain}");
            let fix = format!("{insert} iifname {interface} accept; {insert} oifname {interface} accept");
            finding("forward-policy-drop", "error", detail, &fix)
        })
        .collect()
}

/// Of nft's listing: the chains at the forward hook whose policy is to drop, and that have no rules for our interface.
fn dropping_chains(listing: &serde_json::Value, interface: &str) -> Vec<(String, String)> {
    let entries = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let accepts = |chain: &serde_json::Value, key: &str| {
        let rules = entries.iter().map(|entry| &entry["rule"]);
        let mut rules = rules.filter(|rule| {
            rule["family"] == chain["family"] && rule["table"] == chain["table"] && rule["chain"] == chain["name"]
        });
        rules.any(|rule| {
            let parts = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ours = |part: &serde_json::Value| {
                part["match"]["left"]["meta"]["key"] == key && part["match"]["right"] == interface
            };
            parts.iter().any(ours) && parts.iter().any(|part| part.get("accept").is_some())
        })
    };
    let chains = entries.iter().map(|entry| &entry["chain"]);
    let drops = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let drops = drops.filter(|chain| !["iifname", "oifname"].iter().all(|key| accepts(chain, key)));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    drops.map(|chain| (format!("{} {}", text(&chain["family"]), text(&chain["table"])), text(&chain["name"]))).collect()
}

/// Routes of the host into the pool.
async fn overlapping_routes(agent: &Agent) -> Vec<Finding> {
    let Ok(host) = crate::netlink::HostNetworks::read().await else { return Vec::new() };
    let (pool, interface) = {
        let wanted = agent.wanted.lock().await;
        (wanted.config.settings.pool.clone(), wanted.config.interface.clone())
    };
    let into_pool = host.routes.iter().filter(|route| {
        let own = route.interface.as_deref() == Some(interface.as_str());
        let inside = |address: IpAddr| pool.contains(address);
        !own && route.destination.prefix_len() > 0 && inside(route.destination.network())
    });
    into_pool
        .map(|route| {
            let via = route.interface.as_deref().unwrap_or("several ways");
            let detail = format!("the host has a route to {} by {via}, inside the pool", route.destination);
            finding("pool-overlaps-route", "warning", detail, "choose a pool that no network of the site uses")
        })
        .collect()
}

/// `path` as below /proc/sys, and as sysctl takes it too: names of interfaces may have dots.
fn switch(path: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{path}")).ok().map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_chain_that_drops_is_found_until_it_has_rules_for_the_interface() {
        let mut listing = serde_json::json!({"nftables": [
            {"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "vp_vp0", "name": "forward", "hook": "forward", "policy": "accept"}},
        ]});
        let found = [("ip filter".to_owned(), "FORWARD".to_owned())];
        assert_eq!(dropping_chains(&listing, "vp7"), found);
        assert_eq!(dropping_chains(&serde_json::Value::Null, "vp7"), []);
        for (key, found) in [("iifname", &found[..]), ("oifname", &[])] {
            let part = serde_json::json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": "vp7"}});
            let parts = [part, serde_json::json!({"counter": {"packets": 0}}), serde_json::json!({"accept": null})];
            let rule = serde_json::json!({"family": "ip", "table": "filter", "chain": "FORWARD", "expr": parts});
            let entries = listing["nftables"].as_array_mut().expect("entries");
            entries.push(serde_json::json!({"rule": rule}));
            assert_eq!(dropping_chains(&listing, "vp7"), found);
        }
    }
}
