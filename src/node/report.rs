//! The node's state, as `proto` says it to people and programs. What only the shell knows (uptime, interface, origin,
//! names in DNS, control channel, health) it fills in itself.

use super::{FlowRecord, Node, Opener, flow_id};
use crate::addr::{Family, Holder, LeaseError, Name, Path, PeerId, Protocol, ServiceName, wire};
use crate::catalogue::{Presence, Source, Target};
use crate::flow::Flow;
use crate::packet::FiveTuple;
use crate::tunnel::PathReport;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;
use vp_proto::api;

impl Node {
    #[must_use]
    pub fn peers(&self, now: Instant) -> Vec<(PeerId, api::PeerStatus)> {
        self.peers.ids().filter_map(|peer| Some((peer, self.peer_status(peer, now)?))).collect()
    }

    pub(super) fn peer_status(&self, peer: PeerId, now: Instant) -> Option<api::PeerStatus> {
        let settings = &self.peer(peer)?.settings;
        let tunnel = self.tunnels.report(peer, now)?;
        let up = self.tunnels.is_up(peer);
        let state = match (up, tunnel.path) {
            (true, _) => "up",
            (false, Some(_)) => "connecting",
            (false, None) => "waiting",
        };
        let offered = self
            .offers
            .get(&settings.identity.site)
            .filter(|(of, _)| *of == peer)
            .map_or(0, |(_, offer)| offer.services().len());
        Some(api::PeerStatus {
            site: settings.identity.site.to_string(),
            guest: settings.guest.is_some(),
            state: state.to_owned(),
            path: tunnel.path.filter(|_| up).map_or("none", kind).to_owned(),
            paths: tunnel.paths.into_iter().map(path_status).collect(),
            endpoint: tunnel.path.map(|path| path.address.to_string()),
            handshake_age_seconds: tunnel.handshake_age.map(|age| age.as_secs()),
            cipher: tunnel.handshake_age.map(|_| tunnel.cipher.name().to_owned()),
            rtt_ms: tunnel.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            rx_bytes: tunnel.rx_bytes,
            tx_bytes: tunnel.tx_bytes,
            rx_packets: tunnel.rx_packets,
            tx_packets: tunnel.tx_packets,
            control: if settings.stock { "none" } else { "closed" }.to_owned(),
            offered_services: u32::try_from(offered).unwrap_or(u32::MAX),
            tenant: settings.identity.tenant.as_ref().map(ToString::to_string),
            groups: settings.identity.groups.iter().map(ToString::to_string).collect(),
            certificate: None,
        })
    }

    /// The peers, with what a shell needs to call them.
    pub fn peer_settings(&self) -> impl Iterator<Item = (PeerId, &super::PeerSettings)> {
        self.peers.iter().map(|(id, peer)| (id, &peer.settings))
    }

    #[must_use]
    pub fn peer_of_key(&self, public_key: &[u8; 32]) -> Option<&super::PeerSettings> {
        Some(&self.peer(self.peers.by_key(public_key)?)?.settings)
    }

    #[must_use]
    pub fn peer_site(&self, peer: PeerId) -> Option<&Name> {
        Some(&self.peer(peer)?.settings.identity.site)
    }

    /// The gateway's own presences, one a family that the pool has.
    #[must_use]
    pub fn gateway_addresses(&self) -> Vec<IpAddr> {
        Family::BOTH.into_iter().filter_map(|family| self.gateway_address(family)).collect()
    }

    /// Every address or prefix of the pool that stands for something: what a neighbour proxy answers for.
    #[must_use]
    pub fn presence_blocks(&self) -> Vec<IpNet> {
        let of_pool = |grant: &crate::addr::Grant| {
            matches!(
                grant.holder,
                Holder::Gateway { .. } | Holder::ServicePresence { .. } | Holder::CallerPresence { .. }
            )
        };
        self.leases.iter().filter(of_pool).map(|grant| grant.block).collect()
    }

    /// Mapped services that got no address, and why.
    #[must_use]
    pub fn refused_mappings(&self) -> &[(ServiceName, LeaseError)] {
        self.presences.refused()
    }

    #[must_use]
    pub fn presences(&self) -> Vec<api::Presence> {
        self.presences.iter().map(|presence| self.presence(presence)).collect()
    }

    fn presence(&self, presence: &Presence) -> api::Presence {
        let offered = self.offers.get(&presence.service.site).and_then(|(_, o)| o.by_name(&presence.service.service));
        api::Presence {
            service: presence.service.to_string(),
            name: None,
            address: block_text(&presence.block),
            ports: presence.ports(offered).iter().map(ToString::to_string).collect(),
            state: self.service_state(&presence.service).to_owned(),
            flows: presence.flows.into(),
            origin: String::new(),
        }
    }

    fn service_state(&self, service: &ServiceName) -> &'static str {
        match self.offers.get(&service.site) {
            None => "away",
            Some((peer, _)) if !self.tunnels.is_up(*peer) => "away",
            Some((_, offer)) => match offer.by_name(&service.service) {
                None => "not-offered",
                Some(offered) if !offered.healthy => "down",
                Some(_) => "up",
            },
        }
    }

    #[must_use]
    pub fn caller_presences(&self) -> Vec<api::CallerPresence> {
        let caller = |grant: crate::addr::Grant| {
            let Holder::CallerPresence { site, index, family } = &grant.holder else { return None };
            let client = self.offers.get(site).and_then(|(_, offer)| offer.caller(*index));
            Some(api::CallerPresence {
                address: block_text(&grant.block),
                site: site.to_string(),
                client: client.map(ToString::to_string),
                wire_address: wire::caller(*family, *index).to_string(),
                flows: self.callers.flows(&grant.holder).into(),
            })
        };
        self.leases.iter().filter_map(caller).collect()
    }

    #[must_use]
    pub fn services(&self) -> Vec<api::Service> {
        let service = |(_, service): (u32, &crate::catalogue::Exposed)| api::Service {
            name: service.exposure.name.to_string(),
            target: target_text(&service.exposure.target),
            ports: service.exposure.ports.iter().map(ToString::to_string).collect(),
            allow: service.exposure.allow.iter().map(ToString::to_string).collect(),
            source: match service.exposure.source {
                Source::Masquerade => "masquerade",
                Source::Presence => "presence",
            }
            .to_owned(),
            wire_addresses: service.wire_blocks().map(|block| block_text(&block)).collect(),
            flows: service.flows.into(),
            origin: String::new(),
            state: String::new(),
            resting: Vec::new(),
        };
        self.exposed.iter().map(service).collect()
    }

    #[must_use]
    pub fn remote_services(&self) -> Vec<api::RemoteService> {
        let mut services: BTreeMap<ServiceName, api::RemoteService> = BTreeMap::new();
        for (site, (_, offer)) in &self.offers {
            for offered in offer.services() {
                let name = ServiceName { service: offered.name.clone(), site: site.clone() };
                let ports = offered.ports.iter().map(ToString::to_string).collect();
                services.insert(name.clone(), self.remote_service(&name, ports));
            }
        }
        for presence in self.presences.iter() {
            let unknown = || {
                let ports = presence.ports(None).iter().map(ToString::to_string).collect();
                self.remote_service(&presence.service, ports)
            };
            let service = services.entry(presence.service.clone()).or_insert_with(unknown);
            service.mapped = true;
            service.addresses.push(block_text(&presence.block));
        }
        services.into_values().collect()
    }

    fn remote_service(&self, name: &ServiceName, ports: Vec<String>) -> api::RemoteService {
        let state = self.service_state(name).to_owned();
        api::RemoteService { service: name.to_string(), name: None, ports, mapped: false, addresses: Vec::new(), state }
    }

    /// At most `limit`, those of `service` (of any site) if given.
    #[must_use]
    pub fn flows(&self, service: Option<&ServiceName>, limit: usize, now: Instant) -> Vec<api::Flow> {
        let wanted = |(_, flow): &(_, &Flow)| service.is_none() || self.service_of(flow).as_ref() == service;
        self.table.iter().filter(wanted).take(limit).map(|(_, flow)| self.flow(flow, now)).collect()
    }

    fn flow(&self, flow: &Flow, now: Instant) -> api::Flow {
        let record = self.flow_record(flow, now);
        api::Flow {
            flow: self.flow_id(&record),
            protocol: Protocol::from_number(flow.site.protocol).map(|p| p.to_string()).unwrap_or_default(),
            service: record.service.map(|s| s.to_string()).unwrap_or_default(),
            peer: self.peer_site(flow.peer).map(ToString::to_string).unwrap_or_default(),
            client: record.client.map(|c| c.to_string()),
            role: match record.opener {
                Opener::Site => "caller",
                Opener::Peer => "service",
            }
            .to_owned(),
            site: ends(&record.site),
            wire: ends(&record.wire),
            state: flow.state.word().to_owned(),
            age_seconds: record.age.as_secs(),
            idle_seconds: self.table.silence(flow, now).as_secs(),
            outbound_packets: record.outbound_packets,
            outbound_bytes: record.outbound_bytes,
            inbound_packets: record.inbound_packets,
            inbound_bytes: record.inbound_bytes,
        }
    }

    fn flow_id(&self, record: &FlowRecord) -> String {
        let far = self.peer(record.peer).map_or([0; 32], |peer| peer.settings.public_key);
        let (callers, services) = match record.opener {
            Opener::Site => (&self.public_key, &far),
            Opener::Peer => (&far, &self.public_key),
        };
        flow_id(callers, services, &record.wire, record.initial_sequence)
    }

    #[must_use]
    pub fn flow_table(&self) -> api::FlowTable {
        api::FlowTable {
            open: self.table.len().into(),
            max: self.table.capacity().into(),
            opened_total: self.flows_opened,
            closed_total: self.flows_closed,
        }
    }

    #[must_use]
    pub fn whois(&self, address: IpAddr) -> api::Whois {
        let mut whois = api::Whois {
            address: address.to_string(),
            kind: "nobody".to_owned(),
            site: None,
            service: None,
            client: None,
            wire_address: None,
            flows: 0,
        };
        if let Some((_, presence)) = self.presences.by_address(address) {
            whois.kind = "service".to_owned();
            whois.site = Some(presence.service.site.to_string());
            whois.service = Some(presence.service.to_string());
            whois.flows = presence.flows.into();
            return whois;
        }
        match self.leases.holder(address) {
            Some(Holder::Gateway { .. }) => whois.kind = "gateway".to_owned(),
            Some(holder @ Holder::CallerPresence { site, index, family }) => {
                whois.kind = "caller".to_owned();
                whois.site = Some(site.to_string());
                let client = self.offers.get(site).and_then(|(_, offer)| offer.caller(*index));
                whois.client = client.map(ToString::to_string);
                whois.wire_address = Some(wire::caller(*family, *index).to_string());
                whois.flows = self.callers.flows(holder).into();
            }
            Some(_) | None => {
                let holder = Holder::CallerIndex { address };
                if let Some(index) = self.caller_index(address) {
                    whois.kind = "host".to_owned();
                    whois.client = self.clients.name(address).map(ToString::to_string);
                    whois.wire_address = Some(wire::caller(Family::of(address), index).to_string());
                    whois.flows = self.callers.flows(&holder).into();
                }
            }
        }
        whois
    }
}

fn kind(path: Path) -> &'static str {
    match path {
        path if path.is_carried() => "tls",
        path if path.is_relayed() => "relayed",
        _ => "direct",
    }
}

fn path_status(report: PathReport) -> api::PathStatus {
    let PathReport { path, answers, round_trip } = report;
    let rtt_ms = round_trip.map(|rtt| rtt.as_secs_f64() * 1000.0);
    api::PathStatus { path: kind(path).to_owned(), endpoint: path.address.to_string(), answers, rtt_ms }
}

/// An address, or a prefix when there is more than one address.
fn block_text(block: &IpNet) -> String {
    if block.prefix_len() == block.max_prefix_len() { block.addr().to_string() } else { block.to_string() }
}

fn target_text(target: &Target) -> String {
    match target {
        Target::Backends(backends) => backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Target::Prefix(prefix) => prefix.to_string(),
    }
}

/// From whoever opened the flow to whom it called. ICMP has no ports to show.
#[must_use]
pub fn ends(tuple: &FiveTuple) -> api::Ends {
    let end = |address: IpAddr, port: u16| match Protocol::from_number(tuple.protocol) {
        Some(Protocol::Tcp | Protocol::Udp) => SocketAddr::new(address, port).to_string(),
        Some(Protocol::Icmp) | None => address.to_string(),
    };
    api::Ends { caller: end(tuple.source, tuple.source_port), service: end(tuple.destination, tuple.destination_port) }
}
