//! Other programs' rules: what they drop of what is to pass, and whose addresses they translate.

use super::ruleset::{Deed, Packet, Place, Ruleset};
use super::{Callers, Surroundings, finding};
use crate::nft;
use ipnet::IpNet;
use std::net::IpAddr;
use vp::addr::Protocol;
use vp::catalogue::{Exposure, Source, Target};
use vp_proto::api::Finding;

/// Services that are looked at: rules that drop, drop nearly always more than one.
const SERVICES_MAX: usize = 64;

pub(super) async fn examine(around: &Surroundings) -> Vec<Finding> {
    let listing = match nft::listing().await {
        Ok(listing) => listing,
        Err(error) => {
            let detail = format!("{error:#}: services with source masquerade do not work");
            return vec![finding("nft-missing", "error", detail, "apt-get install nftables")];
        }
    };
    let rules = Ruleset::new(&listing);
    let mut findings = forward_policy(around, &rules);
    findings.extend(masquerade(around, &rules));
    findings.extend(ports(around, &rules));
    findings
}

/// What is dropped between the site and the tunnels (Docker's policy does that).
fn forward_policy(around: &Surroundings, rules: &Ruleset) -> Vec<Finding> {
    let own = nft::table_name(&around.own);
    let mut found: Vec<(Place, String)> = Vec::new();
    let mut add = |packet: &Packet, what: &str| {
        for place in rules.doers(Deed::Drop, "forward", packet, &own) {
            if !found.iter().any(|(known, _)| *known == place) {
                let (input, output) = (packet.input.unwrap_or_default(), packet.output.unwrap_or_default());
                found.push((place, format!("{what} (in by {input}, out by {output})")));
            }
        }
    };
    for interface in around.inside() {
        for packet in calls(around, interface) {
            add(&packet, "what hosts of this site send to presences");
        }
    }
    for exposure in around.exposures.iter().take(SERVICES_MAX) {
        for target in first_targets(exposure) {
            let Some((interface, _)) = around.towards(target).filter(|(interface, _)| *interface != "lo") else {
                continue;
            };
            if let Some(packet) = request(around, exposure, target, interface) {
                add(&packet, &format!("what callers send to {}", exposure.name));
            }
        }
    }
    found
        .into_iter()
        .map(|(Place { table, chain }, what)| {
            let detail = format!("chain {chain} of table {table} drops {what}");
            let (insert, own) = (format!("nft insert rule {table} {chain}"), &around.own);
            let fix = format!("{insert} iifname {own} accept; {insert} oifname {own} accept");
            finding("forward-policy-drop", "error", detail, &fix)
        })
        .collect()
}

/// Who masquerades callers, or presences, hides who they are.
fn masquerade(around: &Surroundings, rules: &Ruleset) -> Vec<Finding> {
    let own = nft::table_name(&around.own);
    let mut found: Vec<(Place, String, String)> = Vec::new();
    let mut add = |packet: &Packet, what: String, except: String| {
        for place in rules.doers(Deed::Masquerade, "postrouting", packet, &own) {
            if !found.iter().any(|(known, _, known_except)| *known == place && *known_except == except) {
                found.push((place, what.clone(), except.clone()));
            }
        }
    };
    for interface in around.inside() {
        for packet in calls(around, interface) {
            let source = packet.source.map(|source| source.to_string()).unwrap_or_default();
            let what =
                format!("hosts of {source} call presences as the gateway itself: `callers` and `client:` miss them");
            add(&packet, what, format!("oifname {}", around.own));
        }
    }
    let seen = around.exposures.iter().filter(|exposure| exposure.source == Source::Presence);
    for exposure in seen.take(SERVICES_MAX) {
        for target in first_targets(exposure) {
            let Some((interface, _)) = around.towards(target).filter(|(interface, _)| *interface != "lo") else {
                continue;
            };
            if let Some(packet) = request(around, exposure, target, interface) {
                let what = format!("the server of {} sees the gateway, not one address a caller", exposure.name);
                add(&packet, what, format!("iifname {}", around.own));
            }
        }
    }
    found
        .into_iter()
        .map(|(Place { table, chain }, what, except)| {
            let detail = format!("chain {chain} of table {table} masquerades: {what}");
            let fix = format!("nft insert rule {table} {chain} {except} accept");
            finding("foreign-masquerade", "warning", detail, &fix)
        })
        .collect()
}

/// What this host is called on, and a firewall drops.
fn ports(around: &Surroundings, rules: &Ruleset) -> Vec<Finding> {
    let own = nft::table_name(&around.own);
    let mut findings = Vec::new();
    for port in &around.ports {
        let interfaces = match port.by {
            Callers::Peers => around.uplinks(),
            Callers::Site => around.inside(),
        };
        // One that lets it pass may be the one it comes by.
        let dropped: Vec<(&str, Vec<Place>)> = interfaces
            .into_iter()
            .map(|interface| {
                let packet = Packet {
                    input: Some(interface),
                    output: None,
                    source: None,
                    destination: None,
                    protocol: port.protocol,
                    port: Some(port.port),
                };
                (interface, rules.doers(Deed::Drop, "input", &packet, &own))
            })
            .collect();
        if dropped.iter().any(|(_, places)| places.is_empty()) {
            continue;
        }
        let Some((interface, place)) = dropped.first().and_then(|(name, places)| Some((name, places.first()?))) else {
            continue;
        };
        let (Place { table, chain }, protocol, number) = (place, port.protocol, port.port);
        let detail = format!(
            "chain {chain} of table {table} drops {protocol} port {number}, which is for {}, by {interface}",
            port.what
        );
        let fix = match (table.as_str(), chain.as_str()) {
            ("inet firewalld", _) => {
                format!("firewall-cmd --permanent --add-port={number}/{protocol}; firewall-cmd --reload")
            }
            (_, _) => format!("nft insert rule {table} {chain} {protocol} dport {number} accept"),
        };
        findings.push(finding("firewall-on-port", "error", detail, &fix));
    }
    findings
}

/// From each network of the interface to the pool, as far as both are of one family.
fn calls<'a>(around: &'a Surroundings, interface: &'a str) -> impl Iterator<Item = Packet<'a>> {
    around.networks(interface).filter_map(move |network| {
        let prefix = around.pool.iter().find(|prefix| is_v4(prefix) == is_v4(&network))?;
        Some(Packet {
            input: Some(interface),
            output: Some(&around.own),
            source: Some(network),
            destination: Some(*prefix),
            protocol: "tcp",
            port: None,
        })
    })
}

fn request<'a>(
    around: &'a Surroundings,
    exposure: &Exposure,
    target: IpAddr,
    interface: &'a str,
) -> Option<Packet<'a>> {
    let source = around.pool.iter().find(|prefix| is_v4(prefix) == target.is_ipv4())?;
    let ports = exposure.ports.iter().find(|ports| ports.protocol != Protocol::Icmp)?;
    Some(Packet {
        input: Some(&around.own),
        output: Some(interface),
        source: Some(*source),
        destination: Some(target.into()),
        protocol: if ports.protocol == Protocol::Tcp { "tcp" } else { "udp" },
        port: Some(ports.first),
    })
}

fn is_v4(prefix: &IpNet) -> bool {
    prefix.addr().is_ipv4()
}

/// One of each family.
pub(super) fn first_targets(exposure: &Exposure) -> Vec<IpAddr> {
    match &exposure.target {
        Target::Prefix(prefix) => prefix.hosts().take(1).collect(),
        Target::Backends(backends) => {
            let of = |v4: bool| backends.iter().copied().find(|address| address.is_ipv4() == v4);
            [of(true), of(false)].into_iter().flatten().filter(|address| !address.is_loopback()).collect()
        }
    }
}
