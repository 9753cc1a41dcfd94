//! A service to expose, a service to map: checked alike whether the file says it or `vp-ctl`.

use super::error::FieldError;
use super::peers::PEERS_MAX;
use super::values;
use crate::control::offer;
use crate::health::Check;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use vp::addr::{Identity, Limits, Name, Pool, PortMap, PortRange, Selector, overlap};
use vp::catalogue::OFFER_SERVICES_MAX;
use vp::node::{CallerSelector, Client, Exposure, Mapping, PeerSettings, ServicePattern, Settings, Source, Target};
use vp_proto::api::{AddPeerRequest, ExposeRequest, MapRequest};

/// A prefix takes as many wire addresses as it has; 4,096 are a sixteenth of all.
const PREFIX_HOST_BITS_MAX: u8 = 12;
/// Of one service; the flow table's choice of a backend looks at each.
const BACKENDS_MAX: usize = 256;
/// Entries of `ports`, `allow` or `callers`; each is looked at for every new flow.
const ENTRIES_MAX: usize = 256;

/// Of all services and named clients together.
pub(super) const OFFER_TOO_LARGE: &str = "with what else is offered to other sites this is more than one message of 4 MiB \
    holds, expected fewer ports or clients (tcp/5000-5010 counts as one)";

/// What `expose` says, against the rest of the settings.
pub fn exposure(request: &ExposeRequest, limits: Limits, settings: &Settings) -> Result<Exposure, FieldError> {
    let exposure = exposure_alone(request, limits, settings)?;
    let others = settings.exposures.iter().filter(|known| known.name != exposure.name);
    if offer::bytes_max(others.chain([&exposure]), &settings.clients) > offer::MESSAGE_BYTES_MAX {
        return Err(FieldError::new("ports", OFFER_TOO_LARGE));
    }
    Ok(exposure)
}

/// The same but for the size of the offer, which whoever reads many sums up.
pub(super) fn exposure_alone(
    request: &ExposeRequest,
    limits: Limits,
    settings: &Settings,
) -> Result<Exposure, FieldError> {
    let name = field("name", &request.name, Name::new)?;
    let is_known = || settings.exposures.iter().any(|known| known.name == name);
    if settings.exposures.len() >= OFFER_SERVICES_MAX && !is_known() {
        let message = format!("{name} is one too many, expected at most {OFFER_SERVICES_MAX} services");
        return Err(FieldError::new("name", message));
    }
    let target = target(&request.target, &settings.pool)?;
    if request.ports.is_empty() {
        return Err(FieldError::new("ports", "no ports, expected at least one such as tcp/80"));
    }
    let ports = entries("ports", &request.ports, PortRange::from_str)?;
    let allow = entries("allow", &request.allow, Selector::from_str)?;
    let source = match request.source.as_deref() {
        None | Some("masquerade") => Source::Masquerade,
        Some("presence") => Source::Presence,
        Some(other) => {
            let message = format!("{other:?} is no source, expected masquerade or presence");
            return Err(FieldError::new("source", message));
        }
    };
    if let (Some(_), Target::Prefix(_)) = (check(request)?, &target) {
        return Err(FieldError::new(
            "health",
            "a prefix has no targets to check, expected an address or a list of them",
        ));
    }
    Ok(Exposure { name, target, ports, allow, source, limits })
}

/// How the targets of what `expose` says are checked.
pub fn check(request: &ExposeRequest) -> Result<Option<Check>, FieldError> {
    request.health.as_ref().map(|text| field("health", text, Check::from_str)).transpose()
}

fn target(texts: &[String], pool: &Pool) -> Result<Target, FieldError> {
    if texts.len() > BACKENDS_MAX {
        let message = format!("{} addresses, expected at most {BACKENDS_MAX}", texts.len());
        return Err(FieldError::new("target", message));
    }
    match texts {
        [] => Err(FieldError::new("target", "no target, expected an address, a prefix or a list of addresses")),
        [one] if one.contains('/') => {
            let prefix = field("target", one, values::prefix)?;
            if prefix.prefix_len() == prefix.max_prefix_len() {
                return Ok(Target::Backends(vec![backend(0, &prefix.addr().to_string(), pool)?]));
            }
            target_prefix(prefix, pool).map(Target::Prefix).map_err(|message| FieldError::new("target", message))
        }
        many => {
            let backends: Vec<IpAddr> =
                many.iter().enumerate().map(|(i, text)| backend(i, text, pool)).collect::<Result<_, _>>()?;
            if let Some((i, twice)) = first_repeated(&backends) {
                return Err(FieldError::at("target", i, format!("{twice} is there twice")));
            }
            Ok(Target::Backends(backends))
        }
    }
}

fn backend(index: usize, text: &str, pool: &Pool) -> Result<IpAddr, FieldError> {
    let error = |message: String| FieldError::at("target", index, message);
    let address = values::host(text).map_err(error)?;
    if pool.contains(address) {
        return Err(error(format!("{address} is in the pool, expected the address of a host of this site")));
    }
    Ok(address)
}

fn target_prefix(prefix: IpNet, pool: &Pool) -> Result<IpNet, String> {
    let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
    if host_bits > PREFIX_HOST_BITS_MAX {
        let longest = prefix.max_prefix_len() - PREFIX_HOST_BITS_MAX;
        return Err(format!("{prefix} has too many addresses, expected /{longest} or longer"));
    }
    values::host(&prefix.network().to_string()).map_err(|_| format!("{prefix} is no network of hosts"))?;
    if values::is_wire(&prefix) {
        return Err(format!("{prefix} has a meaning inside tunnels only"));
    }
    match pool.prefixes().iter().find(|pool| overlap(pool, &prefix)) {
        Some(pool) => Err(format!("{prefix} overlaps the pool {pool}, expected hosts of this site")),
        None => Ok(prefix),
    }
}

/// What `map` says, against the rest of the settings.
pub fn mapping(request: &MapRequest, settings: &Settings) -> Result<Mapping, FieldError> {
    let service = field("service", &request.service, ServicePattern::from_str)?;
    let site = match &service {
        ServicePattern::One(service) => &service.site,
        ServicePattern::AllOf(site) => site,
    };
    if *site == settings.site {
        let message = format!("{service} is a service of this site, expected one of another site");
        return Err(FieldError::new("service", message));
    }
    let address = match &request.address {
        None => None,
        Some(_) if matches!(service, ServicePattern::AllOf(_)) => {
            let message = format!("{service} may be many services, one address cannot stand for all of them");
            return Err(FieldError::new("address", message));
        }
        Some(text) => {
            Some(presence_address(text, &settings.pool).map_err(|message| FieldError::new("address", message))?)
        }
    };
    if let Some(address) = address
        && let Some(other) = settings.mappings.iter().find(|m| m.address == Some(address) && m.service != service)
    {
        let message = format!("{address} is given to {}, expected an address of its own", other.service);
        return Err(FieldError::new("address", message));
    }
    let ports: Vec<PortMap> = entries("ports", &request.ports, PortMap::from_str)?;
    for (i, one) in ports.iter().enumerate() {
        let shares = |a: PortRange, b: PortRange| a.protocol == b.protocol && a.first <= b.last && b.first <= a.last;
        let overlaps =
            |other: &&PortMap| shares(other.local, one.local) || shares(other.remote_range(), one.remote_range());
        if let Some(other) = ports[..i].iter().find(overlaps) {
            let message = format!("{one} has a port in common with {other}, expected each port once");
            return Err(FieldError::at("ports", i, message));
        }
    }
    let callers = entries("callers", &request.callers, |text| caller(text, &settings.clients))?;
    Ok(Mapping { service, address, ports, callers })
}

fn presence_address(text: &str, pool: &Pool) -> Result<IpAddr, String> {
    let address = values::address(text)?;
    if pool.allows(&address.into()) {
        return Ok(address);
    }
    let pools: Vec<String> = pool.prefixes().iter().map(ToString::to_string).collect();
    let what = if pool.contains(address) { "is the pool's network or broadcast address" } else { "is not in the pool" };
    Err(format!("{address} {what}, expected a host address of {}", pools.join(", ")))
}

fn caller(text: &str, clients: &[Client]) -> Result<CallerSelector, String> {
    if text.contains(['/', ':']) || text.parse::<IpAddr>().is_ok() {
        return values::prefix(text).map(CallerSelector::Prefix);
    }
    let name = Name::new(text).map_err(|error| {
        format!("{text:?} is neither a client nor a prefix ({error}), expected such as plc or 10.0.0.16/28")
    })?;
    if clients.iter().any(|client| client.name == name) {
        return Ok(CallerSelector::Client(name));
    }
    let known: Vec<&str> = clients.iter().map(|client| client.name.as_str()).collect();
    let known = if known.is_empty() { "there are none".to_owned() } else { format!("one of {}", known.join(", ")) };
    Err(format!("there is no client {name} in `clients`, expected an address, a prefix or a client ({known})"))
}

/// What `peer add` says, against the rest of the settings.
pub fn stock_peer(request: &AddPeerRequest, settings: &Settings) -> Result<PeerSettings, FieldError> {
    let site = field("site", &request.site, Name::new)?;
    if site == settings.site {
        return Err(FieldError::new("site", format!("{site} is this site, expected another name")));
    }
    if settings.peers.len() >= PEERS_MAX {
        return Err(FieldError::new("site", format!("{site} is one too many, expected at most {PEERS_MAX} peers")));
    }
    let public_key = field("public_key", &request.public_key, values::public_key)?;
    let holder = settings.peers.iter().find(|peer| peer.public_key == public_key);
    if let Some(holder) = holder.filter(|holder| holder.identity.site != site) {
        let message = format!("{} has the same one, expected one a peer", holder.identity.site);
        return Err(FieldError::new("public_key", message));
    }
    let groups = entries("groups", &request.groups, Name::new)?;
    Ok(PeerSettings {
        identity: Identity { site, tenant: None, groups },
        public_key,
        preshared_key: None,
        endpoint: None,
        carrier: None,
        keepalive_seconds: None,
        stock: true,
        hub: false,
        guest: None,
    })
}

/// What an operator should know of an exposure that is not wrong. Where an authority is trusted, peers may prove at any
/// time that they are of a group or tenant.
#[must_use]
pub fn exposure_warnings(exposure: &Exposure, settings: &Settings, any_trust: bool) -> Vec<String> {
    let name = &exposure.name;
    if exposure.allow.is_empty() {
        return vec![format!("service {name}: `allow` is empty, so nobody may use it")];
    }
    let may_come = |selector: &Selector| any_trust && matches!(selector, Selector::Group(_) | Selector::Tenant(_));
    let matches = |selector: &Selector| settings.peers.iter().any(|peer| selector.may_match(&peer.identity));
    let unmatched = |selector: &&Selector| !may_come(selector) && !matches(selector);
    let unmatched = exposure.allow.iter().filter(unmatched);
    unmatched.map(|selector| format!("service {name}: {selector} matches no configured peer")).collect()
}

#[must_use]
pub fn mapping_warnings(mapping: &Mapping, settings: &Settings) -> Vec<String> {
    let site = match &mapping.service {
        ServicePattern::One(service) => &service.site,
        ServicePattern::AllOf(site) => site,
    };
    // A hub may introduce it.
    if settings.peers.iter().any(|peer| peer.identity.site == *site || peer.hub) {
        return Vec::new();
    }
    vec![format!("mapping {}: there is no peer {site}, so it gives nothing", mapping.service)]
}

fn field<T, E: Display>(
    name: &'static str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, FieldError> {
    parse(text).map_err(|error| FieldError::new(name, error))
}

fn entries<T, E: Display>(
    name: &'static str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, FieldError> {
    if texts.len() > ENTRIES_MAX {
        return Err(FieldError::new(name, format!("{} entries, expected at most {ENTRIES_MAX}", texts.len())));
    }
    let parsed = texts.iter().enumerate().map(|(i, text)| parse(text).map_err(|error| FieldError::at(name, i, error)));
    parsed.collect()
}

/// The second of the first two that are equal.
pub(super) fn first_repeated<T: Ord>(items: &[T]) -> Option<(usize, &T)> {
    let mut seen = BTreeSet::new();
    items.iter().enumerate().find(|(_, item)| !seen.insert(*item))
}
