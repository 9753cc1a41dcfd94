//! From what is written to what is meant. Each check names the place of the value that it refuses.

use super::raw::{RawClient, RawConfig, RawExposure, RawLimits, RawMapping, RawPeer, RawReach, Text};
use super::{Config, ConfigError, HostNetworks, Reach, key, units};
use ipnet::IpNet;
use serde_saphyr::Spanned;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use vp::addr::{Identity, Limits, Name, Pool, PortMap, PortRange, Selector, ServiceName};
use vp::node::{CallerSelector, Client, Exposure, Mapping, PeerSettings, ServicePattern, Settings, Source, Target};

/// WireGuard's usual: 1500 less IPv6, UDP and WireGuard headers.
const MTU: u16 = 1420;
/// RFC 8200 section 5 for IPv6; below it a tunnel serves nobody.
const MTU_MIN: u16 = 1280;
const FLOWS_MAX: u32 = 262_144;
/// An exposed prefix has a wire index for each address.
const TARGET_HOST_BITS_MAX: u8 = 12;

type Result<T> = std::result::Result<T, ConfigError>;

fn fail<T, V>(at: &Spanned<V>, message: impl Into<String>) -> Result<T> {
    let (line, column) = (at.referenced.line(), at.referenced.column());
    let known = line > 0;
    Err(ConfigError { file: None, at: known.then_some((line, column)), message: message.into() })
}

/// The value as a type that reads itself, or what it says is wrong.
fn read<T: FromStr>(text: &Text, what: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.value.parse().or_else(|error| fail(text, format!("{what} {:?}: {error}", text.value)))
}

fn address(text: &Text, what: &str) -> Result<IpAddr> {
    let expected = || fail(text, format!("{what} {:?}: expected an IPv4 or IPv6 address", text.value));
    text.value.parse().or_else(|_| expected())
}

pub fn config(file: &Path, raw: RawConfig, host: &HostNetworks) -> Result<Config> {
    let site: Name = read(&raw.site, "site")?;
    let state_dir =
        raw.state_dir.as_ref().map_or_else(|| PathBuf::from("/var/lib/vp"), |dir| PathBuf::from(&dir.value));
    let interface = match &raw.interface {
        Some(name) if is_interface_name(&name.value) => name.value.clone(),
        Some(name) => {
            return fail(name, format!("interface {:?}: expected 1 to 15 letters, digits, - _ .", name.value));
        }
        None => "vp0".to_owned(),
    };
    let inner_mtu = match &raw.mtu {
        Some(mtu) if mtu.value < MTU_MIN => return fail(mtu, format!("mtu {}: expected {MTU_MIN} or more", mtu.value)),
        Some(mtu) => mtu.value,
        None => MTU,
    };
    let flows_max = match &raw.flows_max {
        Some(max) if max.value == 0 => return fail(max, "flows_max 0: expected 1 or more"),
        Some(max) => max.value,
        None => FLOWS_MAX,
    };
    let reach = match raw.reach.as_ref().map(|reach| &reach.value) {
        Some(RawReach::ProxyArp(interface)) => Reach::ProxyArp(interface.clone()),
        Some(RawReach::Routed) | None => Reach::Routed,
    };
    let pool = pool(&raw.pool, &reach, &interface, host)?;
    let clients = clients(&raw.clients)?;
    let (peers, endpoints) = peers(&raw.peers, &site)?;
    let mut warnings = Vec::new();
    let exposures = distinct(&raw.expose, |raw| &raw.name, "service", exposure)?;
    for exposed in exposures.iter().filter(|exposed| exposed.allow.is_empty()) {
        warnings.push(format!("service {} allows nobody: `allow` is empty", exposed.name));
    }
    let mappings = mappings(&raw.map, &site, &pool, &clients)?;
    let socket_address = |text: &Option<Text>, what: &str| -> Result<Option<SocketAddr>> {
        let Some(text) = text else { return Ok(None) };
        let expected = || fail(text, format!("{what} {:?}: expected ADDRESS:PORT", text.value));
        text.value.parse().map(Some).or_else(|_| expected())
    };
    if let Some(dns) = &raw.dns {
        read::<Name>(&dns.zone, "dns zone")?;
    }
    let path = |text: &Option<Text>, default: PathBuf| text.as_ref().map_or(default, |text| PathBuf::from(&text.value));
    let key = path(&raw.key, state_dir.join("site.key"));
    if let Some(text) = &raw.key {
        key::read(&key).or_else(|error| fail(text, error))?;
    }
    Ok(Config {
        file: file.to_owned(),
        listen: socket_address(&raw.listen, "listen")?,
        metrics: socket_address(&raw.metrics, "metrics")?,
        audit: raw.audit.as_ref().map(|text| PathBuf::from(&text.value)),
        socket: path(&raw.socket, PathBuf::from("/run/vp/agent.sock")),
        key,
        settings: Settings { site, pool, inner_mtu, flows_max, peers, clients, exposures, mappings },
        endpoints,
        interface,
        state_dir,
        reach,
        warnings,
    })
}

fn is_interface_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=15).contains(&name.len()) && name.chars().all(ok) && name != "." && name != ".."
}

/// Each item converted; two of one name are refused at the second.
fn distinct<'a, R, T>(
    items: &'a [R],
    name: impl Fn(&R) -> &Text,
    what: &str,
    convert: impl Fn(&'a R) -> Result<T>,
) -> Result<Vec<T>> {
    let mut seen = BTreeSet::new();
    for item in items {
        let name = name(item);
        if !seen.insert(&name.value) {
            return fail(name, format!("{what} {} is there twice, expected each name once", name.value));
        }
    }
    items.iter().map(convert).collect()
}

fn pool(prefixes: &[Text], reach: &Reach, own: &str, host: &HostNetworks) -> Result<Pool> {
    let mut checked = Vec::new();
    for text in prefixes {
        let expected = || fail(text, format!("pool {:?}: expected a prefix such as 10.0.1.0/24", text.value));
        let prefix: IpNet = text.value.parse().or_else(|_| expected())?;
        checked.push(prefix);
        if let Err(error) = Pool::new(checked.clone()) {
            return fail(text, error.to_string());
        }
        for (interface, network) in host.interfaces.iter().filter(|(interface, _)| interface != own) {
            let is_proxied = *reach == Reach::ProxyArp(interface.clone());
            let holds_own = prefix.contains(&network.addr());
            let overlaps = prefix.contains(&network.trunc()) || network.contains(&prefix);
            if holds_own || (overlaps && !is_proxied) {
                let message = format!(
                    "pool {prefix} overlaps {network} of interface {interface}, expected addresses that this host's \
                     networks do not use (or `reach: {{proxy_arp: {interface}}}` and a part of that LAN that is free)"
                );
                return fail(text, message);
            }
        }
    }
    // Checked one by one above; here once more as a whole.
    Pool::new(checked).map_err(|error| ConfigError { file: None, at: None, message: error.to_string() })
}

fn clients(raw: &[RawClient]) -> Result<Vec<Client>> {
    let mut seen = BTreeSet::new();
    distinct(raw, |raw| &raw.name, "client", Ok)?
        .into_iter()
        .map(|raw| {
            let name = read(&raw.name, "client")?;
            let mut addresses = Vec::new();
            for text in &raw.addresses {
                let address = address(text, "client address")?;
                if !seen.insert(address) {
                    return fail(text, format!("address {address} is a client's already, expected each once"));
                }
                addresses.push(address);
            }
            Ok(Client { name, addresses })
        })
        .collect()
}

type Peers = (Vec<PeerSettings>, Vec<(Name, String)>);

fn peers(raw: &[RawPeer], site: &Name) -> Result<Peers> {
    let peers = distinct(raw, |raw| &raw.site, "peer", peer)?;
    let mut endpoints = Vec::new();
    let mut keys = BTreeSet::new();
    for (raw, peer) in raw.iter().zip(&peers) {
        if peer.identity.site == *site {
            return fail(&raw.site, format!("peer {site} has this site's own name, expected another site's"));
        }
        if !keys.insert(peer.public_key) {
            return fail(&raw.public_key, "public_key is another peer's already, expected each once");
        }
        if let Some(endpoint) = &raw.endpoint {
            if !is_endpoint(&endpoint.value) {
                return fail(endpoint, format!("endpoint {:?}: expected HOST:PORT", endpoint.value));
            }
            endpoints.push((peer.identity.site.clone(), endpoint.value.clone()));
        }
    }
    Ok((peers, endpoints))
}

fn is_endpoint(text: &str) -> bool {
    let host_port =
        text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    text.parse::<SocketAddr>().is_ok()
        || host_port.is_some_and(|(host, _)| host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
}

fn peer(raw: &RawPeer) -> Result<PeerSettings> {
    let public_key = key::decode(&raw.public_key.value);
    let Some(public_key) = public_key else {
        return fail(&raw.public_key, "public_key: expected 44 characters as `wg pubkey` prints them");
    };
    let preshared_key = match &raw.preshared_key_file {
        Some(file) => Some(*key::read(Path::new(&file.value)).or_else(|error| fail(file, error))?),
        None => None,
    };
    let keepalive_seconds = match &raw.keepalive {
        Some(text) => match units::duration(&text.value).map(|d| d.as_secs()) {
            Some(seconds @ 1..=65_535) => Some(seconds as u16),
            Some(_) | None => {
                return fail(text, format!("keepalive {:?}: expected 1s or more, such as 25s", text.value));
            }
        },
        None => None,
    };
    let groups = raw.groups.iter().map(|group| read(group, "group")).collect::<Result<_>>()?;
    let identity = Identity { site: read(&raw.site, "peer")?, tenant: None, groups };
    Ok(PeerSettings {
        identity,
        public_key: *public_key,
        preshared_key,
        endpoint: raw.endpoint.as_ref().and_then(|endpoint| endpoint.value.parse().ok()),
        keepalive_seconds,
        stock: raw.stock,
    })
}

/// A service as the file or `vp-ctl expose` has it.
pub fn exposure(raw: &RawExposure) -> Result<Exposure> {
    let name = read(&raw.name, "service")?;
    if raw.ports.value.is_empty() {
        return fail(&raw.ports, format!("ports of service {name} is empty, expected at least one such as tcp/443"));
    }
    let ports = raw.ports.value.iter().map(|text| read::<PortRange>(text, "port")).collect::<Result<Vec<_>>>()?;
    let allow = raw.allow.iter().map(|text| read::<Selector>(text, "allow")).collect::<Result<Vec<_>>>()?;
    let source = match raw.source.as_ref().map(|text| (text, text.value.as_str())) {
        Some((_, "masquerade")) | None => Source::Masquerade,
        Some((_, "presence")) => Source::Presence,
        Some((text, other)) => return fail(text, format!("source {other:?}: expected masquerade or presence")),
    };
    Ok(Exposure { name, target: target(raw)?, ports, allow, source, limits: limits(&raw.limits)? })
}

fn target(raw: &RawExposure) -> Result<Target> {
    let texts = &raw.target.value.0;
    let expected = |text: &str| {
        fail(&raw.target, format!("target {text:?}: expected an address, a prefix or a list of addresses"))
    };
    let backends: Vec<IpAddr> = match texts.as_slice() {
        [] => return expected(""),
        [one] if one.contains('/') => {
            let Ok(prefix) = one.parse::<IpNet>() else { return expected(one) };
            let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
            if prefix.trunc() != prefix {
                return fail(&raw.target, format!("target {prefix} has host bits set, expected {}", prefix.trunc()));
            }
            if host_bits > TARGET_HOST_BITS_MAX {
                let least = prefix.max_prefix_len() - TARGET_HOST_BITS_MAX;
                return fail(&raw.target, format!("target {prefix} is too large, expected /{least} or longer"));
            }
            return Ok(Target::Prefix(prefix));
        }
        many => {
            let mut backends = Vec::new();
            for text in many {
                let Ok(address) = text.parse() else { return expected(text) };
                backends.push(address);
            }
            backends
        }
    };
    let mut seen = BTreeSet::new();
    for address in &backends {
        if address.is_multicast() || address.is_unspecified() {
            return fail(&raw.target, format!("target {address}: expected the address of one host"));
        }
        if *address == IpAddr::from(std::net::Ipv6Addr::LOCALHOST) {
            return fail(&raw.target, "target ::1: the kernel takes nothing for it from outside, expected 127.0.0.1");
        }
        if !seen.insert(*address) {
            return fail(&raw.target, format!("target {address} is there twice, expected each once"));
        }
    }
    Ok(Target::Backends(backends))
}

fn limits(raw: &RawLimits) -> Result<Limits> {
    let mut limits = Limits { flows: raw.flows.as_ref().map(|flows| flows.value), ..Limits::default() };
    if let Some(text) = &raw.rate {
        limits.bits_per_second = units::bits_per_second(&text.value);
        if limits.bits_per_second.is_none() {
            return fail(text, format!("rate {:?}: expected such as 800kbit, 10Mbit or 1Gbit", text.value));
        }
    }
    if let Some(text) = &raw.new_flows {
        limits.new_flows_per_second = units::per_second(&text.value);
        if limits.new_flows_per_second.is_none() {
            return fail(text, format!("new_flows {:?}: expected such as 50/s", text.value));
        }
    }
    Ok(limits)
}

fn mappings(raw: &[RawMapping], site: &Name, pool: &Pool, clients: &[Client]) -> Result<Vec<Mapping>> {
    let mut addresses = BTreeSet::new();
    let mappings = distinct(raw, |raw| &raw.service, "mapping of", |raw| mapping(raw, site, pool, clients))?;
    for (raw, mapping) in raw.iter().zip(&mappings) {
        if let (Some(text), Some(address)) = (&raw.address, mapping.address)
            && !addresses.insert(address)
        {
            return fail(text, format!("address {address} is another mapping's already, expected each once"));
        }
    }
    Ok(mappings)
}

/// A mapping as the file or `vp-ctl map` has it.
pub fn mapping(raw: &RawMapping, site: &Name, pool: &Pool, clients: &[Client]) -> Result<Mapping> {
    let expected = || {
        fail(
            &raw.service,
            format!("service {:?}: expected SERVICE.SITE such as web.cloud, or *.SITE", raw.service.value),
        )
    };
    let service: ServicePattern = raw.service.value.parse().or_else(|_| expected())?;
    let of = match &service {
        ServicePattern::One(ServiceName { site, .. }) | ServicePattern::AllOf(site) => site,
    };
    if of == site {
        let message =
            format!("service {service} is this site's own: its hosts call it directly, expected another site's");
        return fail(&raw.service, message);
    }
    let fixed = match &raw.address {
        Some(text) => {
            let address = address(text, "address")?;
            if matches!(service, ServicePattern::AllOf(_)) {
                return fail(text, format!("address of {service}: expected none, as it stands for several services"));
            }
            if !pool.contains(address) {
                return fail(text, format!("address {address} is not in the pool, expected one that is"));
            }
            Some(address)
        }
        None => None,
    };
    let ports = raw.ports.iter().map(|text| read::<PortMap>(text, "port")).collect::<Result<Vec<_>>>()?;
    let callers = raw.callers.iter().map(|text| caller(text, clients)).collect::<Result<Vec<_>>>()?;
    Ok(Mapping { service, address: fixed, ports, callers })
}

fn caller(text: &Text, clients: &[Client]) -> Result<CallerSelector> {
    let value = &text.value;
    if let Ok(prefix) = value.parse::<IpNet>() {
        return Ok(CallerSelector::Prefix(prefix));
    }
    if let Ok(address) = value.parse::<IpAddr>() {
        return Ok(CallerSelector::Prefix(address.into()));
    }
    match clients.iter().find(|client| client.name.as_str() == value) {
        Some(client) => Ok(CallerSelector::Client(client.name.clone())),
        None => fail(text, format!("caller {value:?}: expected a name of `clients`, an address or a prefix")),
    }
}
