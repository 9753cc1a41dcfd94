//! Switches of this host, the key's file, offloads.

use super::{Surroundings, finding};
use crate::sys::{Feature, driver, has_feature};
use vp::addr::Family;
use vp_proto::api::Finding;

/// Drivers of links that carry whole segments anyway, and have no use for putting them together again.
const WHOLE_SEGMENTS: [&str; 3] = ["veth", "bridge", "tun"];

pub(super) fn examine(around: &Surroundings) -> Vec<Finding> {
    let interfaces: Vec<&str> =
        around.host.interfaces.iter().map(String::as_str).filter(|name| *name != "lo").collect();
    let mut findings = forwarding(around, &interfaces);
    findings.extend(reverse_path(&interfaces));
    findings.extend(offloads(around));
    findings.extend(key_file(around));
    findings.extend(legacy_tables());
    findings
}

/// Whether the host passes packets between its networks and the tunnel's interface.
fn forwarding(around: &Surroundings, interfaces: &[&str]) -> Vec<Finding> {
    let has = |family: Family| around.pool.iter().any(|prefix| Family::of(prefix.addr()) == family);
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
                    let severity = if *interface == around.own { "error" } else { "warning" };
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
fn reverse_path(interfaces: &[&str]) -> Vec<Finding> {
    let level = |interface: &str| switch(&format!("net/ipv4/conf/{interface}/rp_filter"));
    let all = level("all");
    let strict = interfaces.iter().filter(|interface| level(interface).max(all.clone()).as_deref() == Some("1"));
    let strict: Vec<&str> = strict.copied().collect();
    if strict.is_empty() {
        return Vec::new();
    }
    let detail =
        format!("reverse-path checks are strict on {}: callers reached another way are dropped", strict.join(", "));
    vec![finding("rp-filter", "warning", detail, "sysctl -w net/ipv4/conf/all/rp_filter=2")]
}

/// What makes many packets one system call: without it a stream costs several times as much.
fn offloads(around: &Surroundings) -> Vec<Finding> {
    let mut wanted = vec![(around.own.as_str(), Feature::TcpSegmentation)];
    for interface in around.interfaces() {
        wanted.extend([(interface, Feature::TransmitChecksum), (interface, Feature::Segmentation)]);
        if driver(interface).is_ok_and(|driver| !WHOLE_SEGMENTS.contains(&driver.as_str())) {
            wanted.push((interface, Feature::Receive));
        }
    }
    let missing =
        wanted.into_iter().filter(|(interface, feature)| has_feature(interface, *feature).is_ok_and(|on| !on));
    missing
        .map(|(interface, feature)| {
            let detail = format!("{} is off on {interface}, which costs speed", feature.name());
            let fix = format!("ethtool -K {interface} {} on", feature.word());
            finding("offload-missing", "warning", detail, &fix)
        })
        .collect()
}

/// Who may read the site's key is the site.
fn key_file(around: &Surroundings) -> Vec<Finding> {
    let Err(error) = crate::config::read_key(&around.key) else { return Vec::new() };
    let fix = format!("chmod 0600 {}; if others may have read it, make a new one", around.key.display());
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

/// `path` as below /proc/sys, and as sysctl takes it too: names of interfaces may have dots.
fn switch(path: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{path}")).ok().map(|value| value.trim().to_owned())
}
