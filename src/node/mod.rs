//! The corridor: the only room that knows the others. A packet enters each of them once, from here.
//!
//! In by `handle_*`, out by [`Output`] and `poll_*`; `now` comes last. Several threads may share a node behind one lock: they
//! hold it while it decides and translates ([`Node::outbound`], [`Node::handle_batch_end`]) and not while they seal and open
//! ([`Output::seal`], [`Output::open`]), which takes the lock of one tunnel. A thread asks for the node's lock first.

mod admit;
mod command;
mod drop;
mod event;
mod explain;
mod flow_id;
mod hub;
mod inbound;
mod kept;
mod limits;
mod names;
mod offers;
mod outbound;
mod output;
mod peers;
mod reject;
mod report;
mod resume;
mod settings;
mod timeout;

pub use crate::addr::Limits;
pub use crate::catalogue::{CallerSelector, Client, Exposure, Mapping, Resting, ServicePattern, Source, Target};
pub use drop::{Drops, Reason};
pub use event::{Denial, Event, FlowEnd, FlowRecord, Opener};
pub use explain::{Allowed, Call};
pub use flow_id::flow_id;
pub use hub::{Introduction, Introductions, RelayRates, Relayed, Sorted, Whose};
pub use names::Meaning;
pub use output::{Outbound, Output};
pub use report::ends;
pub use settings::{Guest, PeerSettings, Settings};

use crate::addr::{Leases, Name, PeerId, Pool, ServiceName};
use crate::catalogue::{Callers, Clients, ExposedServices, PeerOffer, Presences};
use crate::flow::fragments::{Datagram, Fragments, Verdict};
use crate::flow::{Direction, Door, Flow, FlowId, Table, Traffic};
use crate::hub::Hub;
use crate::packet::{Kind, Packet};
use crate::policy::Bucket;
use crate::tunnel::Tunnels;
use hub::{IntroducedSites, RelayBuckets};
use peers::{Peer, Peers};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Flow and denial events kept for the shell; beyond that they are counted as lost.
const EVENTS_MAX: usize = 8192;
/// Resets and ICMP errors of our own, a second (RFC 1812 section 4.3.2.8: errors are rate limited).
const REJECTS_PER_SECOND: u64 = 1000;
/// After a restart, replies of flows that were open may open them again for this long: as long as a TCP peer that
/// was cut off goes on trying at intervals that do not exceed it (RFC 6298 section 2.4: at most 60 s between tries,
/// and doubled once for a lost one).
const RESUME: Duration = Duration::from_secs(300);
/// The largest packet the TUN gives or takes.
const PACKET_BYTES_MAX: usize = 65_535;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    Lease(#[from] crate::addr::LeaseError),
    #[error("peer {0}: {1}")]
    Tunnel(Name, crate::tunnel::TunnelError),
    #[error("service {service}: {error}")]
    Exposure { service: Name, error: crate::addr::LeaseError },
    #[error("{service} at {address}: {error}")]
    Mapping { service: ServiceName, address: IpAddr, error: crate::addr::LeaseError },
}

#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    #[error("the peer is not configured")]
    UnknownPeer,
}

/// One gateway.
pub struct Node {
    settings: Settings,
    public_key: [u8; 32],
    tunnels: Tunnels,
    table: Table,
    leases: Leases,
    exposed: ExposedServices,
    presences: Presences,
    callers: Callers,
    peers: Peers,
    /// By the peer's site.
    offers: BTreeMap<Name, (PeerId, PeerOffer)>,
    clients: Clients,
    /// Of exposed services that have a rate.
    rates: BTreeMap<u32, Rates>,
    /// Of the catalogue and the policy; flows judged under another are judged again.
    version: u32,
    /// Flows are judged again in the background since the version changed.
    swept: Option<Sweep>,
    started: Instant,
    /// There were leases before the start, so there may have been flows.
    resumes: bool,
    rejects: Bucket,
    /// The pool that leases were last held against.
    pool: Option<Pool>,
    /// Sites whose mappings are to be joined with their offers again.
    unmapped: BTreeSet<Name>,
    /// When mappings are to be tried again that got no address.
    map_next: Option<Instant>,
    /// By the site of the caller that wants room, none for this one: before this leases are not looked through again.
    reclaim_next: BTreeMap<Option<Name>, Instant>,
    drops: Drops,
    events: VecDeque<Event>,
    events_lost: u64,
    flows_opened: u64,
    flows_closed: u64,
    told: Told,
    fragments: Fragments,
    hub: Hub,
    introduced: IntroducedSites,
    relay_buckets: RelayBuckets,
    relayed: Relayed,
    idle: Vec<FlowId>,
}

/// The next number to be looked at, and how many are left.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    next: u32,
    left: u32,
}

/// Whether what is told of flows arrives.
#[derive(Clone, Copy, Default, Debug)]
struct Told {
    /// Flows that cannot be told of may not open.
    required: bool,
    failed: bool,
    crowded: bool,
}

impl Told {
    fn is_sure(self) -> bool {
        !self.required || !(self.failed || self.crowded)
    }
}

/// What an exposed service may take.
#[derive(Debug)]
struct Rates {
    bits: Option<Bucket>,
    new_flows: Option<Bucket>,
}

/// Why a packet that would open a flow was refused, and what is known of it.
#[derive(Debug)]
struct Refused {
    reason: Reason,
    peer: Option<PeerId>,
    service: Option<ServiceName>,
    client: Option<Name>,
}

impl Refused {
    fn because(reason: Reason) -> Self {
        Self { reason, peer: None, service: None, client: None }
    }

    fn of(mut self, peer: PeerId) -> Self {
        self.peer = Some(peer);
        self
    }

    fn to(mut self, service: &ServiceName) -> Self {
        self.service = Some(service.clone());
        self
    }

    fn by(mut self, client: Option<&Name>) -> Self {
        self.client = client.cloned();
        self
    }
}

impl Node {
    /// When [`Self::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweep = self.swept.map(|_| self.started);
        let tables = [self.tunnels.poll_timeout(), self.table.poll_timeout(), self.fragments.poll_timeout()];
        let timeouts = tables.into_iter().chain([sweep, self.map_next]);
        timeouts.flatten().min()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Flow and denial events that found no room.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events_lost
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn peer(&self, peer: PeerId) -> Option<&Peer> {
        self.peers.get(peer)
    }

    fn inner_mtu(&self) -> u16 {
        self.settings.inner_mtu
    }

    /// An event that may be lost when nobody takes them.
    fn tell(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.events_lost += 1;
        }
    }

    /// Counts what passed and tells what it changed. Refused when the service's rate does not allow it.
    fn record(&mut self, id: FlowId, direction: Direction, traffic: &Traffic, now: Instant) -> Result<(), Reason> {
        use crate::flow::Stirred;
        if !self.rates.is_empty() && !self.is_within_rate(id, traffic, now) {
            return Err(Reason::RateLimit);
        }
        if !self.told.is_sure() && self.table.would_reopen(id, traffic) {
            return Err(Reason::AuditFailed);
        }
        match self.table.record(id, direction, traffic, now) {
            Stirred::Nothing | Stirred::Opened => {}
            Stirred::Ended => {
                let end = match self.table.get(id).map(|flow| flow.state) {
                    Some(crate::flow::State::Reset) => FlowEnd::Reset,
                    _ => FlowEnd::Closed,
                };
                if let Some(flow) = self.table.get(id).map(|flow| Box::new(self.flow_record(flow, now))) {
                    self.tell(Event::FlowClosed { flow, end });
                }
            }
            Stirred::Reopened => {
                if let Some(flow) = self.table.get(id).map(|flow| Box::new(self.flow_record(flow, now))) {
                    self.tell(Event::FlowOpened(flow));
                }
            }
        }
        Ok(())
    }

    fn counted(&mut self, taken: Result<(), Reason>, packets: u32) -> bool {
        taken.map_err(|reason| self.drops.add(reason, u64::from(packets))).is_ok()
    }

    /// Counts a first fragment that was allowed; whether it was carried. If not, the `held` that came before it go with it,
    /// as those will that come after it.
    fn first_counted(&mut self, of: &Datagram, carried: Result<(), Reason>, held: usize, now: Instant) -> bool {
        let Err(reason) = carried else { return true };
        self.drops.add(reason, 1 + held as u64);
        match reason {
            Reason::RateLimit => self.fragments.over_rate(of, now),
            _ => self.fragments.refuse(*of, now),
        }
        false
    }

    /// A fragment without a layer-4 header counts as its flow's, and passes only while that is there.
    fn record_tail(
        &mut self,
        verdict: &Verdict,
        direction: Direction,
        packet: &Packet,
        now: Instant,
    ) -> Result<(), Reason> {
        let flow = self.table.get(verdict.flow).filter(|flow| flow.peer == verdict.peer);
        let to = flow.map(|flow| match direction {
            Direction::Outbound => flow.wire,
            Direction::Inbound => flow.site.reversed(),
        });
        if to != Some(verdict.to) {
            return Err(Reason::Fragment);
        }
        self.record(verdict.flow, direction, &traffic(packet, 1), now)
    }

    fn is_within_rate(&mut self, id: FlowId, traffic: &Traffic, now: Instant) -> bool {
        let Some(flow) = self.table.get(id) else { return true };
        let exposed = flow.opened_by == Direction::Inbound;
        let rates = exposed.then(|| self.rates.get_mut(&flow.owner.service)).flatten();
        let bits = rates.and_then(|rates| rates.bits.as_mut());
        bits.is_none_or(|bits| bits.take(traffic.bytes * 8, now))
    }

    /// Takes a flow out of the table and says why, unless its end was told already.
    fn end_flow(&mut self, id: FlowId, end: FlowEnd, now: Instant) {
        use crate::flow::State;
        let Some(flow) = self.table.remove(id) else { return };
        self.flows_closed += 1;
        if let Some(peer) = self.peers.get_mut(flow.peer) {
            peer.flows = peer.flows.saturating_sub(1);
        }
        if let Some(caller) = self.callers.get_mut(flow.owner.caller) {
            caller.flows = caller.flows.saturating_sub(1);
            caller.used = now;
        }
        match flow.opened_by {
            Direction::Outbound => {
                if let Some(presence) = self.presences.get_mut(flow.owner.service) {
                    presence.flows = presence.flows.saturating_sub(1);
                }
            }
            Direction::Inbound => {
                if let Some(service) = self.exposed.get_mut(flow.owner.service) {
                    service.flows = service.flows.saturating_sub(1);
                }
            }
        }
        match flow.state {
            State::HalfOpen | State::Open => {
                let flow = Box::new(self.flow_record(&flow, now));
                self.tell(Event::FlowClosed { flow, end });
            }
            State::Reset | State::Closed => {}
        }
    }

    fn flow_record(&self, flow: &Flow, now: Instant) -> FlowRecord {
        let (opener, site, wire) = match flow.opened_by {
            Direction::Outbound => (Opener::Site, flow.site, flow.wire),
            Direction::Inbound => (Opener::Peer, flow.site.reversed(), flow.wire.reversed()),
        };
        FlowRecord {
            opener,
            peer: flow.peer,
            service: self.service_of(flow),
            client: self.client_of(flow),
            site,
            wire,
            initial_sequence: flow.initial_sequence,
            rule: self.rule_of(flow),
            outbound_packets: flow.outbound.packets,
            outbound_bytes: flow.outbound.bytes,
            inbound_packets: flow.inbound.packets,
            inbound_bytes: flow.inbound.bytes,
            age: self.table.age(flow, now),
        }
    }

    fn service_of(&self, flow: &Flow) -> Option<ServiceName> {
        match flow.opened_by {
            Direction::Outbound => self.presences.get(flow.owner.service).map(|p| p.service.clone()),
            Direction::Inbound => self.exposed.get(flow.owner.service).map(|service| ServiceName {
                service: service.exposure.name.clone(),
                site: self.settings.site.clone(),
            }),
        }
    }

    fn client_of(&self, flow: &Flow) -> Option<Name> {
        match flow.opened_by {
            Direction::Outbound => self.clients.name(flow.site.source).cloned(),
            Direction::Inbound => self.caller_name(flow.peer, flow.wire.destination).cloned(),
        }
    }

    fn rule_of(&self, flow: &Flow) -> String {
        let rule = usize::from(flow.owner.rule);
        match flow.opened_by {
            Direction::Outbound => {
                let callers = self.presences.get(flow.owner.service).map(|p| p.mapping.callers.as_slice());
                callers.and_then(|c| c.get(rule)).map_or_else(|| "every host".to_owned(), ToString::to_string)
            }
            Direction::Inbound => {
                let allow = self.exposed.get(flow.owner.service).and_then(|s| s.exposure.allow.get(rule));
                allow.map(ToString::to_string).unwrap_or_default()
            }
        }
    }

    /// The name that the peer's site gave to its caller of this wire address.
    fn caller_name(&self, peer: PeerId, wire: IpAddr) -> Option<&Name> {
        let (_, index) = crate::addr::wire::parse(wire)?;
        let site = &self.peer(peer)?.identity()?.site;
        self.offers.get(site).and_then(|(_, offer)| offer.caller(index))
    }
}

/// The datagram that a fragment is of.
fn datagram(door: Door, packet: &Packet) -> Option<Datagram> {
    let tuple = packet.head.tuple;
    let fragment = packet.head.fragment?;
    Some(Datagram {
        door,
        source: tuple.source,
        destination: tuple.destination,
        protocol: tuple.protocol,
        id: fragment.id,
    })
}

/// What the flow table wants to know of a packet, or of the segments that were joined.
fn traffic(packet: &Packet, packets: u32) -> Traffic {
    let head = &packet.head;
    let tcp = match head.kind {
        Kind::Tcp(tcp) => Some(tcp),
        Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => None,
    };
    let headers = u32::from(head.ip_bytes) + u32::from(head.l4_bytes);
    let payload_bytes = head.total_bytes.saturating_sub(headers);
    Traffic { packets, bytes: u64::from(head.total_bytes), tcp, payload_bytes }
}
