//! The table as text for `nft -f`.

use super::Wanted;
use super::area::{Area, disjoint, free_ports};
use ipnet::IpNet;
use std::fmt::Write;
use std::net::IpAddr;
use vp::addr::{Family, Protocol, from_bits, to_bits};
use vp::catalogue::{Exposure, Source, Target};

/// Seconds below which no state of a TCP connection may be forgotten (RFC 5382 REQ-5: 2 h 4 min once established,
/// 4 min before and after), by the kernel's names, and what the kernel has without being told.
const TCP_FLOORS: [(&str, u32, u32); 7] = [
    ("syn_sent", 240, 120),
    ("syn_recv", 240, 60),
    ("established", 7440, 432_000),
    ("fin_wait", 240, 120),
    ("close_wait", 240, 60),
    ("last_ack", 240, 30),
    ("time_wait", 240, 120),
];
/// The same for UDP (RFC 4787 REQ-5 recommends 5 min), with the ends of the kernel's names.
const UDP_FLOORS: [(&str, &str, u32, u32); 2] = [("unreplied", "", 300, 30), ("replied", "_stream", 300, 120)];

/// The kernel's timers for flows through the gateway: this host's, raised to the floors, never lowered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Timeouts {
    tcp: Vec<(&'static str, u32)>,
    udp: Vec<(&'static str, u32)>,
}

impl Timeouts {
    pub(super) fn of_this_host() -> Self {
        let now = |name: &str, default: u32| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
        };
        let tcp = |(name, floor, default): (&'static str, u32, u32)| {
            (name, floor.max(now(&format!("tcp_timeout_{name}"), default)))
        };
        let udp = |(name, end, floor, default): (&'static str, &str, u32, u32)| {
            (name, floor.max(now(&format!("udp_timeout{end}"), default)))
        };
        Self { tcp: TCP_FLOORS.map(tcp).to_vec(), udp: UDP_FLOORS.map(udp).to_vec() }
    }
}

/// Of our table for this interface.
#[must_use]
pub fn name(interface: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("vp_{}", interface.chars().map(plain).collect::<String>())
}

/// Before [`table`]: what was there goes.
pub(super) fn replace(name: &str) -> String {
    format!("table inet {name}\ndelete table inet {name}\n")
}

/// Before [`table`]: rules and elements go; what flows hold on to (timeouts) stays.
pub(super) fn empty(name: &str) -> String {
    let mut text = format!("flush table inet {name}\n");
    for set in FAMILIES.iter().flat_map(|(_, n)| [format!("pool{n}"), format!("ports{n}"), format!("echo{n}")]) {
        writeln!(text, "flush set inet {name} {set}").ok();
    }
    text
}

pub(super) fn remove(name: &str) -> String {
    replace(name)
}

const FAMILIES: [(Family, u8); 2] = [(Family::V4, 4), (Family::V6, 6)];

/// The whole table.
///
/// `guard` is about packets that come from anywhere but the TUN and this host itself. None may bear a presence as
/// its source: presences are on the other side of the TUN. And one to a presence must have come in where its source
/// is routed to: a neighbour on another network can neither probe the flows of this site's hosts nor inject into
/// them by sending from their addresses (CVE-2019-14899). Hosts of the LAN may call presences, the gateway's own too,
/// in whichever way they are routed here; whom of them a service is for, `callers` says.
///
/// `sources` gives flows from the TUN the gateway's address towards targets that do not know the way back to the
/// pool. Source ports are kept (RFC 4787 REQ-1) but for those that are the gateway's own: a flow that took the
/// tunnels' port would receive what is the tunnels' (CVE-2021-3773). A target on the gateway itself is not forwarded
/// to and sees the caller presence, to which this host has a way back.
///
/// Without a service that wants it there is no `sources`, and no `timers`, so that packets are not tracked for nothing:
/// the kernel's tracking costs more than all that is done here.
pub(super) fn table(interface: &str, wanted: &Wanted, timeouts: &Timeouts) -> String {
    let mut text = String::new();
    write_table(&mut text, interface, wanted, timeouts).ok(); // writing to a string does not fail
    text
}

fn write_table(text: &mut String, interface: &str, wanted: &Wanted, timeouts: &Timeouts) -> std::fmt::Result {
    writeln!(text, "table inet {} {{", name(interface))?;
    writeln!(text, "counter spoofed {{ }}\ncounter elsewhere {{ }}")?;
    for (family, n) in FAMILIES {
        write_sets(text, family, n, wanted)?;
    }
    writeln!(text, "chain guard {{\ntype filter hook prerouting priority raw; policy accept;")?;
    writeln!(text, "iifname {{ \"{interface}\", \"lo\" }} accept")?;
    for (ip, n) in [("ip", 4), ("ip6", 6)] {
        writeln!(text, "{ip} saddr @pool{n} counter name spoofed drop")?;
        writeln!(text, "{ip} daddr @pool{n} fib saddr . iif oif missing counter name elsewhere drop")?;
    }
    if wanted.services.iter().any(|service| service.source == Source::Masquerade) {
        writeln!(text, "}}")?;
        write_masquerade(text, interface, wanted, timeouts)?;
    }
    writeln!(text, "}}\n}}")
}

fn write_masquerade(text: &mut String, interface: &str, wanted: &Wanted, timeouts: &Timeouts) -> std::fmt::Result {
    write_timeouts(text, "tcp", &timeouts.tcp)?;
    write_timeouts(text, "udp", &timeouts.udp)?;
    writeln!(text, "chain timers {{\ntype filter hook prerouting priority mangle; policy accept;")?;
    for protocol in ["tcp", "udp"] {
        writeln!(
            text,
            "iifname \"{interface}\" ct state new meta l4proto {protocol} ct timeout set \"{protocol}_floor\""
        )?;
    }
    writeln!(text, "}}\nchain source_ports {{")?;
    let ranges = free_ports(&wanted.own_ports);
    for (first, last) in &ranges {
        let masquerade = format!("masquerade to :{first}-{last}");
        writeln!(text, "meta l4proto {{ tcp, udp }} th sport {first}-{last} {masquerade}")?;
    }
    if let Some((first, last)) = ranges.first() {
        writeln!(text, "meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}")?;
    }
    writeln!(text, "}}\nchain sources {{\ntype nat hook postrouting priority srcnat - 5; policy accept;")?;
    writeln!(text, "oifname \"{interface}\" accept")?;
    for (ip, n, echo) in [("ip", 4, "icmp type echo-request"), ("ip6", 6, "icmpv6 type echo-request")] {
        writeln!(text, "{ip} saddr @pool{n} {ip} daddr . meta l4proto . th dport @ports{n} goto source_ports")?;
        writeln!(text, "{ip} saddr @pool{n} {ip} daddr @echo{n} {echo} masquerade")?;
    }
    Ok(())
}

fn write_timeouts(text: &mut String, protocol: &str, timeouts: &[(&str, u32)]) -> std::fmt::Result {
    let policy: Vec<String> = timeouts.iter().map(|(state, seconds)| format!("{state} : {seconds}")).collect();
    writeln!(text, "ct timeout {protocol}_floor {{\nprotocol {protocol};\npolicy = {{ {} }};\n}}", policy.join(", "))
}

fn write_sets(text: &mut String, family: Family, n: u8, wanted: &Wanted) -> std::fmt::Result {
    let address = |(first, last): (u128, u128)| {
        let (first, last) = (from_bits(family, first), from_bits(family, last));
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    let kind = format!("ipv{n}_addr");
    let of_family = |prefix: &&IpNet| Family::of(prefix.addr()) == family;
    let pool = wanted.pool.iter().filter(of_family).map(ToString::to_string);
    write_set(text, &format!("pool{n}"), &kind, pool.collect())?;
    let areas = |protocol| {
        let of = |source| areas(&wanted.services, source, protocol, family);
        disjoint(&of(Source::Masquerade), &of(Source::Presence))
    };
    let mut elements = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for Area { addresses, ports: (first, last) } in areas(protocol) {
            let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
            elements.push(format!("{} . {protocol} . {ports}", address(addresses)));
        }
    }
    write_set(text, &format!("ports{n}"), &format!("{kind} . inet_proto . inet_service"), elements)?;
    let echo = areas(Protocol::Icmp).into_iter().map(|area| address(area.addresses));
    write_set(text, &format!("echo{n}"), &kind, echo.collect())
}

fn write_set(text: &mut String, name: &str, kind: &str, elements: Vec<String>) -> std::fmt::Result {
    let elements =
        if elements.is_empty() { String::new() } else { format!("elements = {{ {} }}", elements.join(", ")) };
    writeln!(text, "set {name} {{\ntype {kind}\nflags interval\n{elements}\n}}")
}

/// Where the services of this kind are.
fn areas(services: &[Exposure], source: Source, protocol: Protocol, family: Family) -> Vec<Area> {
    let of_service = |service: &Exposure| {
        let ports: Vec<_> =
            service.ports.iter().filter(|p| p.protocol == protocol).map(|p| (p.first, p.last)).collect();
        let addresses: Vec<(u128, u128)> = match &service.target {
            Target::Backends(backends) => {
                let of_family = backends.iter().filter(|address: &&IpAddr| Family::of(**address) == family);
                of_family.map(|address| (to_bits(*address), to_bits(*address))).collect()
            }
            Target::Prefix(prefix) if Family::of(prefix.addr()) == family => {
                vec![(to_bits(prefix.network()), to_bits(prefix.broadcast()))]
            }
            Target::Prefix(_) => Vec::new(),
        };
        let with_ports = |addresses| ports.iter().map(move |ports| Area { addresses, ports: *ports });
        addresses.into_iter().flat_map(with_ports).collect::<Vec<_>>()
    };
    services.iter().filter(|service| service.source == source).flat_map(of_service).collect()
}
