//! From what is written to what is meant: every value parsed, every clash found, each with its place.

use super::credentials::Credentials;
use super::error::{ConfigError, FieldError};
use super::file::{self, File, Text};
use super::keys::{self, KeyFileError};
use super::peers::Peers;
use super::requests::{self, exposure_warnings, mapping, mapping_warnings};
use super::{Config, Dns, HostNetworks, Reach, Workers, values};
use crate::audit::AuditSettings;
use crate::control::offer;
use crate::health::Check;
use crate::state::kept_leases;
use ipnet::IpNet;
use serde_saphyr::{Location, Spanned};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;
use vp::addr::{Family, Holder, Leases, Limits, Name, Pool, overlap};
use vp::catalogue::ExposedServices;
use vp::node::{Client, Settings, Target};
use vp_proto::api::{ExposeRequest, MapRequest};
use x25519_dalek::{PublicKey, StaticSecret};

const INTERFACE: &str = "vp0";
const STATE_DIR: &str = "/var/lib/vp";
const SOCKET: &str = "/run/vp/agent.sock";
/// Where systemd has it.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// What WireGuard uses over an Ethernet of 1500 and IPv6: 1500 less 40, 8, 16 and 16.
const MTU: u16 = 1420;
/// IPv6 wants 1280 (RFC 8200 section 5); beyond 9000 no Ethernet carries it.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=9000;
/// 100 MB of memory when all are open.
const FLOWS_MAX: u32 = 262_144;
/// Each is compared with each, and looked at for every new flow.
const POOL_PREFIXES_MAX: usize = 64;

/// Each of `dns`' lists: listened at, asked in turn, compared with each client.
const DNS_ENTRIES_MAX: usize = 64;

pub(super) struct Reader<'a> {
    file: &'a Path,
    pub(super) host: &'a HostNetworks,
    warnings: Vec<String>,
    lines: BTreeMap<String, u64>,
    checks: BTreeMap<Name, Check>,
    /// What `state_dir` has, read when it is first asked for.
    leases: OnceCell<Leases>,
}

pub(super) type Result<T> = std::result::Result<T, ConfigError>;

pub fn convert(path: &Path, file: File, host: &HostNetworks) -> Result<Config> {
    let mut reader = Reader {
        file: path,
        host,
        lines: BTreeMap::new(),
        checks: BTreeMap::new(),
        warnings: Vec::new(),
        leases: OnceCell::new(),
    };
    let r = &mut reader;
    let site = r.text("site", &file.site, Name::new)?;
    let state_dir = r.path("state_dir", file.state_dir.as_ref(), STATE_DIR)?;
    let (key, secret) = r.key(file.key.as_ref(), &state_dir)?;
    let listen = r.optional("listen", file.listen.as_ref(), values::socket_address)?;
    let interface = r.optional("interface", file.interface.as_ref(), values::interface)?;
    let interface = interface.unwrap_or_else(|| INTERFACE.to_owned());
    let workers = r.optional("workers", file.workers.as_ref(), values::workers)?.unwrap_or(Workers::Auto);
    let inner_mtu = r.mtu(file.mtu.as_ref())?;
    let flows_max = r.flows_max(file.flows_max.as_ref())?;
    let socket = r.optional("socket", file.socket.as_ref(), values::socket_path)?;
    let reach = r.reach(file.reach.as_ref(), &interface)?;
    let pool = r.pool(&file.pool, &reach, &interface)?;
    let own_key = secret.as_ref().map(|secret| *PublicKey::from(secret).as_bytes());
    let trust = r.trust(file.trust.as_deref().unwrap_or_default())?;
    let (own_file, own) = r.own_certificate(file.certificate.as_ref(), &state_dir, &site, own_key, &trust)?;
    let revocations = r.revocations(file.revocations.as_ref(), &trust)?;
    let peers = file.peers.as_deref().unwrap_or_default();
    let Peers { settings: peers, endpoints, carriers, members } =
        r.peers(peers, (&site, file.hub.is_some()), own_key, &trust, &pool)?;
    let any_trust = trust.authorities().next().is_some();
    let clients = r.clients(file.clients.as_deref().unwrap_or_default(), &pool)?;
    let metrics = r.optional("metrics", file.metrics.as_ref(), values::socket_address)?;
    let audit = file.audit.as_ref().map(|audit| r.audit(audit)).transpose()?.unwrap_or_default();
    let dns = file.dns.as_ref().map(|dns| r.dns(dns, &pool)).transpose()?;
    if let (Some(address), Some(text)) = (metrics, &file.metrics)
        && !address.ip().is_loopback()
    {
        r.warn(text.referenced, format!("metrics: {address} is not loopback, and whoever reaches it may read them"));
    }
    let (exposures, mappings) = (Vec::new(), Vec::new());
    let hub = r.hub(file.hub.as_ref())?;
    let hub_store = r.hub_store(file.hub.as_ref().and_then(|hub| hub.store.as_ref()))?;
    let hub_tls = r.hub_tls(file.hub.as_ref().and_then(|hub| hub.tls.as_ref()))?;
    let second_cipher = file.aes.unwrap_or(true);
    let mut settings =
        Settings { site, pool, inner_mtu, flows_max, second_cipher, peers, clients, exposures, mappings, hub };
    r.exposures(file.expose.as_deref().unwrap_or_default(), &mut settings, any_trust)?;
    r.wire_addresses(file.expose.as_deref().unwrap_or_default(), &settings, &state_dir)?;
    r.mappings(file.map.as_deref().unwrap_or_default(), &mut settings, &state_dir)?;
    let by_certificate: BTreeSet<[u8; 32]> = members.iter().map(|member| member.settings.public_key).collect();
    settings.peers.retain(|peer| !by_certificate.contains(&peer.public_key));
    Ok(Config {
        file: path.to_owned(),
        settings,
        credentials: Credentials { trust, own_file, own, revocations, members },
        endpoints,
        carriers,
        hub_tls,
        hub_store,
        key,
        listen,
        interface,
        workers,
        state_dir,
        socket: socket.unwrap_or_else(|| SOCKET.into()),
        reach,
        audit,
        metrics,
        dns,
        checks: reader.checks,
        warnings: reader.warnings,
        lines: reader.lines,
    })
}

impl Reader<'_> {
    pub(super) fn fail(&self, at: Location, message: impl Display) -> ConfigError {
        ConfigError::at(self.file, at, message)
    }

    pub(super) fn warn(&mut self, at: Location, message: impl Display) {
        self.warnings.push(self.fail(at, message).to_string());
    }

    pub(super) fn text<T, E: Display>(
        &self,
        key: &str,
        text: &Text,
        parse: impl FnOnce(&str) -> std::result::Result<T, E>,
    ) -> Result<T> {
        parse(&text.value).map_err(|error| self.fail(text.referenced, format!("{key}: {error}")))
    }

    pub(super) fn optional<T, E: Display>(
        &self,
        key: &str,
        text: Option<&Text>,
        parse: impl FnOnce(&str) -> std::result::Result<T, E>,
    ) -> Result<Option<T>> {
        text.map(|text| self.text(key, text, parse)).transpose()
    }

    fn path(&self, key: &str, text: Option<&Text>, default: &str) -> Result<PathBuf> {
        Ok(self.optional(key, text, values::path)?.unwrap_or_else(|| default.into()))
    }

    /// The file may be missing when it is the one that the agent makes at its first start.
    fn key(&mut self, text: Option<&Text>, state_dir: &Path) -> Result<(PathBuf, Option<StaticSecret>)> {
        let own = state_dir.join("site.key");
        let path = self.optional("key", text, values::path)?.unwrap_or_else(|| own.clone());
        let at = text.map_or(Location::UNKNOWN, |text| text.referenced);
        match keys::read(&path) {
            Ok(secret) => Ok((path, Some(StaticSecret::from(*secret)))),
            Err(KeyFileError::Missing(_)) if path == own => Ok((path, None)),
            Err(error) if error.is_permission() && self.host.interfaces.is_empty() => {
                self.warn(at, format!("key: not checked: {error}"));
                Ok((path, None))
            }
            Err(error) => Err(self.fail(at, format!("key: {error}"))),
        }
    }

    fn mtu(&self, mtu: Option<&Spanned<u16>>) -> Result<u16> {
        match mtu {
            None => Ok(MTU),
            Some(mtu) if MTU_RANGE.contains(&mtu.value) => Ok(mtu.value),
            Some(mtu) => {
                let (low, high) = (MTU_RANGE.start(), MTU_RANGE.end());
                Err(self.fail(mtu.referenced, format!("mtu: {}, expected {low} to {high}", mtu.value)))
            }
        }
    }

    fn flows_max(&self, flows: Option<&Spanned<u32>>) -> Result<u32> {
        match flows {
            None => Ok(FLOWS_MAX),
            Some(flows) if flows.value > 0 => Ok(flows.value),
            Some(flows) => Err(self.fail(flows.referenced, "flows_max: 0, expected 1 or more")),
        }
    }

    fn audit(&self, audit: &Spanned<file::Audit>) -> Result<AuditSettings> {
        let at =
            |text: &str| values::path(text).map_err(|error| self.fail(audit.referenced, format!("audit: {error}")));
        let written = match &audit.value {
            file::Audit::File(path) => return Ok(AuditSettings { file: Some(at(path)?), ..AuditSettings::default() }),
            file::Audit::Settings(written) => written,
        };
        let journald = written.journald.as_ref().map(|journald| match &journald.value {
            file::Journald::Usual(usual) => Ok(usual.then(|| JOURNALD.into())),
            file::Journald::Socket(path) => values::path(path)
                .map(Some)
                .map_err(|error| self.fail(journald.referenced, format!("audit.journald: {error}"))),
        });
        let settings = AuditSettings {
            file: self.optional("audit.file", written.file.as_ref(), values::path)?,
            required: written.required.unwrap_or(false),
            journald: journald.transpose()?.flatten(),
            otlp: self.optional("audit.otlp", written.otlp.as_ref(), str::parse)?,
        };
        if settings.required && settings.file.is_none() {
            return Err(self.fail(audit.referenced, "audit: required, but without a file, expected `file` too"));
        }
        Ok(settings)
    }

    fn reach(&self, reach: Option<&Spanned<file::Reach>>, own: &str) -> Result<Reach> {
        let Some(reach) = reach else { return Ok(Reach::Routed) };
        match &reach.value {
            file::Reach::Word(word) if word == "routed" => Ok(Reach::Routed),
            file::Reach::Word(word) => {
                let message = format!("reach: {word:?}, expected routed or {{proxy_arp: INTERFACE}}");
                Err(self.fail(reach.referenced, message))
            }
            file::Reach::ProxyArp(text) => {
                let interface = self.text("proxy_arp", text, values::interface)?;
                if interface == own {
                    let message = format!("proxy_arp: {interface} is the tunnels' own interface, expected the LAN's");
                    return Err(self.fail(text.referenced, message));
                }
                let interfaces = &self.host.interfaces;
                if !interfaces.is_empty() && !interfaces.iter().any(|(name, _)| *name == interface) {
                    let message = format!("proxy_arp: there is no interface {interface} with an address");
                    return Err(self.fail(text.referenced, message));
                }
                Ok(Reach::ProxyArp(interface))
            }
        }
    }

    fn pool(&self, texts: &Spanned<Vec<Text>>, reach: &Reach, own: &str) -> Result<Pool> {
        if let Some(text) = texts.value.get(POOL_PREFIXES_MAX) {
            return Err(self.fail(text.referenced, format!("pool: more than {POOL_PREFIXES_MAX} prefixes")));
        }
        let mut prefixes: Vec<IpNet> = Vec::new();
        for text in &texts.value {
            let prefix = self.text("pool", text, values::prefix)?;
            prefixes.push(prefix);
            Pool::new(prefixes.clone()).map_err(|error| self.fail(text.referenced, error))?;
            if let Some(clash) = self.pool_clash(prefix, reach, own) {
                return Err(self.fail(text.referenced, clash));
            }
        }
        if prefixes.is_empty() {
            return Err(self.fail(texts.referenced, "pool: no prefixes, expected at least one such as 10.0.1.0/24"));
        }
        Pool::new(prefixes).map_err(|error| self.fail(texts.referenced, error))
    }

    /// What of this machine the prefix would take over.
    fn pool_clash(&self, prefix: IpNet, reach: &Reach, own: &str) -> Option<String> {
        self.host.interfaces.iter().filter(|(interface, _)| interface != own).find_map(|(interface, network)| {
            if prefix.contains(&network.addr()) {
                return Some(format!(
                    "pool {prefix} has {} of this machine's {interface} in it, expected addresses that nobody uses",
                    network.addr()
                ));
            }
            let answers_there = *reach == Reach::ProxyArp(interface.clone());
            let overlaps = !answers_there && overlap(&prefix, &network.trunc());
            overlaps.then(|| {
                format!(
                    "pool {prefix} overlaps {}, the network of this machine's {interface}, expected addresses that \
                     nobody uses or `reach: {{proxy_arp: {interface}}}`",
                    network.trunc()
                )
            })
        })
    }

    fn dns(&self, dns: &file::Dns, pool: &Pool) -> Result<Dns> {
        let forward = self.dns_entries("dns.forward", dns.forward.as_ref(), values::name_server)?;
        if let Some((text, address)) = forward.iter().find(|(_, address)| pool.contains(address.ip())) {
            let message = format!("dns.forward: {} is in the pool, expected a name server of this site", address.ip());
            return Err(self.fail(text.referenced, message));
        }
        let listen = self.dns_entries("dns.listen", dns.listen.as_ref(), values::name_server)?;
        if let Some((text, address)) = listen.iter().find(|(_, address)| address.ip().is_unspecified()) {
            let message = format!("dns.listen: {} is every address, expected single ones", address.ip());
            return Err(self.fail(text.referenced, message));
        }
        let clients = self.dns_entries("dns.clients", dns.clients.as_ref(), values::prefix)?;
        Ok(Dns {
            zone: self.text("dns.zone", &dns.zone, values::zone)?,
            listen: listen.into_iter().map(|(_, address)| address).collect(),
            forward: forward.into_iter().map(|(_, address)| address).collect(),
            clients: clients.into_iter().map(|(_, prefix)| prefix).collect(),
            resolved: self.optional("dns.resolved", dns.resolved.as_ref(), values::auto)?.unwrap_or(true),
        })
    }

    fn dns_entries<'t, T>(
        &self,
        key: &str,
        list: Option<&'t Spanned<Vec<Text>>>,
        parse: impl Fn(&str) -> std::result::Result<T, String>,
    ) -> Result<Vec<(&'t Text, T)>> {
        let Some(list) = list else { return Ok(Vec::new()) };
        if let Some(text) = list.value.get(DNS_ENTRIES_MAX) {
            return Err(self.fail(text.referenced, format!("{key}: more than {DNS_ENTRIES_MAX}")));
        }
        list.value.iter().map(|text| Ok((text, self.text(key, text, &parse)?))).collect()
    }

    fn clients(&self, clients: &[Spanned<file::Client>], pool: &Pool) -> Result<Vec<Client>> {
        let mut names = Places::default();
        let mut hosts = Places::default();
        let (mut read, mut bytes) = (Vec::new(), offer::bytes_max([], &[]));
        for Spanned { value: client, .. } in clients {
            let name = self.text("name", &client.name, Name::new)?;
            names
                .add(self, &name, &client.name, |line| format!("client {name} is there twice, first in line {line}"))?;
            if client.addresses.value.is_empty() {
                let message = format!("addresses: client {name} has none, expected at least one");
                return Err(self.fail(client.addresses.referenced, message));
            }
            let mut addresses: Vec<IpAddr> = Vec::new();
            for text in &client.addresses.value {
                let address = self.text("addresses", text, values::host)?;
                if pool.contains(address) {
                    let message = format!("addresses: {address} is in the pool, expected a host of this site");
                    return Err(self.fail(text.referenced, message));
                }
                let twice = |line| format!("addresses: {address} has a name already, in line {line}");
                hosts.add(self, &address, text, twice)?;
                addresses.push(address);
            }
            let known = Client { name, addresses };
            bytes += offer::client_bytes_max(&known);
            read.push(known);
            if bytes > offer::MESSAGE_BYTES_MAX {
                return Err(self.fail(client.name.referenced, format!("clients: {}", requests::OFFER_TOO_LARGE)));
            }
        }
        Ok(read)
    }

    fn exposures(&mut self, entries: &[Spanned<file::Expose>], settings: &mut Settings, any_trust: bool) -> Result<()> {
        let mut names = Places::default();
        let mut bytes = offer::bytes_max([], &settings.clients);
        let named = offer::NamedAddresses::of(&settings.clients);
        for Spanned { value: entry, referenced, .. } in entries {
            let limits = self.limits(entry.limits.as_ref())?;
            let request = ExposeRequest {
                name: entry.name.value.clone(),
                target: match &entry.target.value {
                    file::Target::One(one) => vec![one.clone()],
                    file::Target::List(list) => list.iter().map(|text| text.value.clone()).collect(),
                },
                ports: strings(&entry.ports.value),
                allow: entry.allow.as_ref().map(|allow| strings(&allow.value)).unwrap_or_default(),
                source: entry.source.as_ref().map(|source| source.value.clone()),
                health: entry.health.as_ref().map(|health| health.value.clone()),
            };
            let exposure = requests::exposure_alone(&request, limits, settings).and_then(|exposure| {
                bytes += offer::service_bytes_max(&exposure, named);
                let too_large = || FieldError::new("ports", requests::OFFER_TOO_LARGE);
                if bytes > offer::MESSAGE_BYTES_MAX { Err(too_large()) } else { Ok(exposure) }
            });
            let exposure = exposure.map_err(|error| {
                let at = expose_place(entry, &error).unwrap_or(*referenced);
                self.fail(at, error)
            })?;
            let name = &exposure.name;
            if let Some(check) = requests::check(&request).map_err(|error| self.fail(*referenced, error))? {
                self.checks.insert(name.clone(), check);
            }
            names
                .add(self, name, &entry.name, |line| format!("service {name} is there twice, first in line {line}"))?;
            for warning in exposure_warnings(&exposure, settings, any_trust) {
                self.warn(entry.allow.as_ref().map_or(*referenced, |allow| allow.referenced), warning);
            }
            self.lines.insert(format!("expose {name}"), entry.name.referenced.line());
            settings.exposures.push(exposure);
        }
        Ok(())
    }

    fn leases(&self, state_dir: &Path) -> Leases {
        self.leases.get_or_init(|| kept_leases(state_dir)).clone()
    }

    /// Whether the services have room inside tunnels, beside those that have it already. One address each always fits.
    fn wire_addresses(&self, entries: &[Spanned<file::Expose>], settings: &Settings, state_dir: &Path) -> Result<()> {
        if !settings.exposures.iter().any(|exposure| matches!(exposure.target, Target::Prefix(_))) {
            return Ok(());
        }
        let set = ExposedServices::default().set(&settings.exposures, &mut self.leases(state_dir), Instant::now());
        let Err((service, error)) = set else { return Ok(()) };
        let entry = entries.iter().find(|entry| entry.value.name.value == service.as_str());
        let at = entry.map_or(Location::UNKNOWN, |entry| entry.value.target.referenced);
        Err(self.fail(at, format!("target: service {service}: {error}, expected smaller prefixes or fewer")))
    }

    fn limits(&self, limits: Option<&file::Limits>) -> Result<Limits> {
        let Some(limits) = limits else { return Ok(Limits::default()) };
        if let Some(flows) = limits.flows.as_ref().filter(|flows| flows.value == 0) {
            return Err(self.fail(flows.referenced, "flows: 0, expected 1 or more"));
        }
        Ok(Limits {
            bits_per_second: self.optional("rate", limits.rate.as_ref(), values::rate)?,
            flows: limits.flows.as_ref().map(|flows| flows.value),
            new_flows_per_second: self.optional("new_flows", limits.new_flows.as_ref(), values::per_second)?,
        })
    }

    fn mappings(&mut self, entries: &[Spanned<file::Map>], settings: &mut Settings, state_dir: &Path) -> Result<()> {
        let mut services = Places::default();
        let any_fixed = entries.iter().any(|entry| entry.value.address.is_some());
        let gateway = if any_fixed { gateway(&settings.pool, self.leases(state_dir)) } else { Vec::new() };
        for Spanned { value: entry, referenced, .. } in entries {
            for (key, list) in [("ports", &entry.ports), ("callers", &entry.callers)] {
                if let Some(list) = list.as_ref().filter(|list| list.value.is_empty()) {
                    let message = format!("{key}: an empty list, expected at least one entry or no `{key}` at all");
                    return Err(self.fail(list.referenced, message));
                }
            }
            let request = MapRequest {
                service: entry.service.value.clone(),
                address: entry.address.as_ref().map(|address| address.value.clone()),
                ports: entry.ports.as_ref().map(|ports| strings(&ports.value)).unwrap_or_default(),
                callers: entry.callers.as_ref().map(|callers| strings(&callers.value)).unwrap_or_default(),
            };
            let mapping = mapping(&request, settings).map_err(|error| {
                let at = map_place(entry, &error).unwrap_or(*referenced);
                self.fail(at, error)
            })?;
            if let (Some(text), Some(address)) = (&entry.address, mapping.address)
                && gateway.contains(&address)
            {
                let message = format!("address: {address} is the gateway's own presence, expected another address");
                return Err(self.fail(text.referenced, message));
            }
            let service = &mapping.service;
            let twice = |line| format!("{service} is mapped twice, first in line {line}");
            services.add(self, service, &entry.service, twice)?;
            for warning in mapping_warnings(&mapping, settings) {
                self.warn(entry.service.referenced, warning);
            }
            self.lines.insert(format!("map {service}"), entry.service.referenced.line());
            settings.mappings.push(mapping);
        }
        Ok(())
    }
}

/// The gateway's own presences: as it has them, or as it will at its first start.
fn gateway(pool: &Pool, mut leases: Leases) -> Vec<IpAddr> {
    let mut grant = |family| leases.grant(&Holder::Gateway { family }, pool, 0, None, Instant::now());
    Family::BOTH.into_iter().filter_map(|family| grant(family).ok()).map(|(grant, _)| grant.block.addr()).collect()
}

/// Where something was first, to find a second.
pub(super) struct Places<T>(BTreeMap<T, u64>);

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord + Clone> Places<T> {
    pub(super) fn has(&self, item: &T) -> bool {
        self.0.contains_key(item)
    }

    pub(super) fn add(
        &mut self,
        reader: &Reader,
        item: &T,
        text: &Text,
        twice: impl FnOnce(u64) -> String,
    ) -> Result<()> {
        match self.0.insert(item.clone(), text.referenced.line()) {
            None => Ok(()),
            Some(line) => Err(reader.fail(text.referenced, twice(line))),
        }
    }
}

fn strings(texts: &[Text]) -> Vec<String> {
    texts.iter().map(|text| text.value.clone()).collect()
}

/// The place of an entry of a list, or of the list.
fn list_place(list: &Spanned<Vec<Text>>, error: &FieldError) -> Location {
    let entry = error.index.and_then(|index| list.value.get(index));
    entry.map_or(list.referenced, |text| text.referenced)
}

fn expose_place(entry: &file::Expose, error: &FieldError) -> Option<Location> {
    match error.field {
        "name" => Some(entry.name.referenced),
        "target" => {
            let in_list = match (&entry.target.value, error.index) {
                (file::Target::List(list), Some(index)) => list.get(index).map(|text| text.referenced),
                (file::Target::List(_) | file::Target::One(_), _) => None,
            };
            in_list.or(Some(entry.target.referenced))
        }
        "ports" => Some(list_place(&entry.ports, error)),
        "allow" => entry.allow.as_ref().map(|allow| list_place(allow, error)),
        "source" => entry.source.as_ref().map(|source| source.referenced),
        "health" => entry.health.as_ref().map(|health| health.referenced),
        _ => None,
    }
}

fn map_place(entry: &file::Map, error: &FieldError) -> Option<Location> {
    match error.field {
        "service" => Some(entry.service.referenced),
        "address" => entry.address.as_ref().map(|address| address.referenced),
        "ports" => entry.ports.as_ref().map(|ports| list_place(ports, error)),
        "callers" => entry.callers.as_ref().map(|callers| list_place(callers, error)),
        _ => None,
    }
}
