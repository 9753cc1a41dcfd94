//! The first packet of a flow: what it calls, whether it may, what its addresses become. Both directions are inserted
//! together. Judging and admitting are apart, so that a flow can be judged again without being opened again.

use super::flow_id::initial_sequence;
use super::{Denial, Event, FlowEnd, Node, Opener, Peer, Reason, Refused};
use crate::addr::{Family, Grant, Holder, LeaseError, Name, PeerId, Protocol, ServiceName, wire};
use crate::catalogue::{CallerSelector, Presence};
use crate::flow::{Direction, Flow, FlowId, NewFlow, Owner};
use crate::packet::{FiveTuple, Kind, Packet};
use crate::policy::{Refusal, decide};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A peer has at most one in this many of all flows, a caller one in the next.
pub(super) const PEER_SHARE: u32 = 2;
pub(super) const CALLER_SHARE: u32 = 4;
/// A peer's callers hold at most one in this many of the pool's addresses.
const POOL_SHARE: usize = 2;
/// A caller's presence, or its wire index, that no flow used for so long may go to another caller when there is no other
/// left. Longer than any flow of a caller that is still there may be silent (RFC 5382 REQ-5: 2 h 4 min).
const RECLAIM_AFTER: Duration = Duration::from_secs(3 * 3600);
/// Looking for one costs a walk over all leases, so a full pool is looked through no more often than this.
const RECLAIM_PAUSE: Duration = Duration::from_secs(1);
/// For spreading flows over backends; the same for every run, so that a flow finds its backend again.
const BACKEND_SEED: u64 = 0x7670_2d62_6163_6b65;

/// A host of this site may call a service of a peer.
pub(super) struct Outward {
    pub peer: PeerId,
    pub presence: u32,
    pub rule: usize,
    pub wire_destination: IpAddr,
    pub wire_port: u16,
    /// Whether the service takes new flows.
    pub takes_new: bool,
}

/// A caller of a peer's site may use a service of this site.
pub(super) struct Inward {
    pub service: u32,
    pub rule: usize,
    pub target: IpAddr,
}

impl Node {
    pub(super) fn admit_outbound(&mut self, packet: &Packet, now: Instant) -> Result<FlowId, Refused> {
        let tuple = packet.head.tuple;
        if packet.head.kind == Kind::EchoReply {
            return Err(Refused::because(Reason::UnrelatedIcmp));
        }
        if let Some(Holder::CallerPresence { .. }) = self.leases.holder(tuple.destination) {
            return self.resume_outbound(packet, now);
        }
        let outward = self.judge_outbound(&tuple)?;
        if !outward.takes_new && is_opening(packet) {
            let service = self.presences.get(outward.presence).map(|presence| presence.service.clone());
            return Err(Refused { service, ..Refused::because(Reason::ServiceDown).of(outward.peer) });
        }
        let caller = Holder::CallerIndex { address: tuple.source };
        let index = self.lease(&caller, now).map_err(|reason| Refused::because(reason).of(outward.peer))?;
        let Some((_, index)) = wire::parse(index) else { return Err(Refused::because(Reason::PoolFull)) };
        let wire_source = wire::caller(Family::of(tuple.source), index);
        let echo = Protocol::from_number(tuple.protocol) == Some(Protocol::Icmp);
        let wire = FiveTuple {
            source: wire_source,
            destination: outward.wire_destination,
            source_port: tuple.source_port,
            destination_port: if echo { tuple.destination_port } else { outward.wire_port },
            protocol: tuple.protocol,
        };
        let owner = self.owner(outward.presence, &caller, outward.rule, now);
        let (peer, version, initial_sequence) = (outward.peer, self.version, initial_sequence(packet));
        let opened_by = Direction::Outbound;
        self.insert(NewFlow { peer, site: tuple, wire, opened_by, owner, version, initial_sequence }, now)
    }

    /// Whether a host of this site may open this flow, and to where.
    pub(super) fn judge_outbound(&self, tuple: &FiveTuple) -> Result<Outward, Refused> {
        let Some(protocol) = Protocol::from_number(tuple.protocol) else {
            return Err(Refused::because(Reason::UnsupportedProtocol));
        };
        let Some((number, presence)) = self.presences.by_address(tuple.destination) else {
            return Err(Refused::because(Reason::NotMapped));
        };
        let client = self.clients.name(tuple.source);
        let refuse = |reason| Err(Refused::because(reason).to(&presence.service).by(client));
        if !self.may_call(tuple.source) {
            return refuse(Reason::SpoofedSource);
        }
        let Some(rule) = caller_rule(presence, tuple.source, client) else { return refuse(Reason::NotAllowed) };
        let Some(port) = presence.remote_port(protocol, tuple.destination_port) else {
            return refuse(Reason::PortNotExposed);
        };
        let Some((peer, offer)) = self.offers.get(&presence.service.site) else {
            return refuse(if self.peers.by_site(&presence.service.site).is_some() {
                Reason::NoPath
            } else {
                Reason::NotOffered
            });
        };
        let Some(service) = offer.by_name(&presence.service.service) else { return refuse(Reason::NotOffered) };
        if !service.ports.iter().any(|range| range.contains(protocol, port)) {
            return refuse(Reason::PortNotExposed);
        }
        let index = service.index + presence.offset(tuple.destination);
        let wire_destination = wire::service(Family::of(tuple.destination), index);
        Ok(Outward {
            peer: *peer,
            presence: number,
            rule,
            wire_destination,
            wire_port: port,
            takes_new: service.healthy,
        })
    }

    pub(super) fn admit_inbound(&mut self, peer: PeerId, packet: &Packet, now: Instant) -> Result<FlowId, Refused> {
        let tuple = packet.head.tuple;
        match (wire::parse(tuple.source), wire::parse(tuple.destination)) {
            (Some((wire::Role::Service, _)), Some((wire::Role::Caller, _))) => {
                return self.resume_inbound(peer, packet, now);
            }
            (Some((wire::Role::Caller, wire::FIRST..)), Some((wire::Role::Service, wire::FIRST..))) => {}
            (Some((_, wire::FIRST..)), _) => return Err(Refused::because(Reason::NotExposed).of(peer)),
            (_, _) => return Err(Refused::because(Reason::SpoofedSource).of(peer)),
        }
        if packet.head.kind == Kind::EchoReply {
            return Err(Refused::because(Reason::UnrelatedIcmp).of(peer));
        }
        let inward = self.judge_inbound(peer, &tuple)?;
        let target = self.target_now(peer, &inward, packet)?;
        self.check_service_limits(peer, inward.service, now)?;
        let refused = |reason| Refused::because(reason).of(peer);
        let caller = self.caller_presence(peer, tuple.source).ok_or_else(|| refused(Reason::SpoofedSource))?;
        let presence = self.lease(&caller, now).map_err(refused)?;
        let site = FiveTuple {
            source: target,
            destination: presence,
            source_port: tuple.destination_port,
            destination_port: tuple.source_port,
            protocol: tuple.protocol,
        };
        let owner = self.owner(inward.service, &caller, inward.rule, now);
        let (wire, version, initial_sequence) = (tuple.reversed(), self.version, initial_sequence(packet));
        let opened_by = Direction::Inbound;
        self.insert(NewFlow { peer, site, wire, opened_by, owner, version, initial_sequence }, now)
    }

    /// Whether a caller of the peer's site may open this flow, and which target serves it.
    pub(super) fn judge_inbound(&self, peer: PeerId, tuple: &FiveTuple) -> Result<Inward, Refused> {
        let refused = |reason| Refused::because(reason).of(peer);
        let Some(protocol) = Protocol::from_number(tuple.protocol) else {
            return Err(refused(Reason::UnsupportedProtocol));
        };
        let identity = self.peer(peer).and_then(Peer::identity).ok_or_else(|| refused(Reason::NotAllowed))?;
        let Some((_, index)) = wire::parse(tuple.destination) else { return Err(refused(Reason::NotExposed)) };
        let Some((number, service)) = self.exposed.by_index(index) else { return Err(refused(Reason::NotExposed)) };
        let exposure = &service.exposure;
        let client = self.caller_name(peer, tuple.source);
        let name = ServiceName { service: exposure.name.clone(), site: self.settings.site.clone() };
        let refuse = |reason| refused(reason).to(&name).by(client);
        let decision = decide(&exposure.allow, &exposure.ports, identity, client, protocol, tuple.destination_port);
        let rule = decision.map_err(|refusal| refuse(of_refusal(refusal)))?;
        let targets = service.targets(Family::of(tuple.destination), index);
        let target = targets.max_by_key(|target| weight(*target, tuple));
        let target = target.ok_or_else(|| refuse(Reason::NotExposed))?;
        Ok(Inward { service: number, rule, target })
    }

    /// Targets that rest get no new flows. What is in mid-stream was open before, most likely to one that does not rest either.
    fn target_now(&self, peer: PeerId, inward: &Inward, packet: &Packet) -> Result<IpAddr, Refused> {
        let tuple = &packet.head.tuple;
        let (Some(service), Some((_, index))) = (self.exposed.get(inward.service), wire::parse(tuple.destination))
        else {
            return Ok(inward.target);
        };
        let targets = service.targets(Family::of(tuple.destination), index);
        let awake = targets.filter(|target| !service.resting.targets.contains(target));
        let awake = awake.max_by_key(|target| weight(*target, tuple));
        match awake {
            _ if !is_opening(packet) => Ok(awake.unwrap_or(inward.target)),
            Some(target) if !service.resting.whole => Ok(target),
            _ => {
                let name = ServiceName { service: service.exposure.name.clone(), site: self.settings.site.clone() };
                Err(Refused::because(Reason::ServiceDown).of(peer).to(&name))
            }
        }
    }

    fn check_service_limits(&mut self, peer: PeerId, service: u32, now: Instant) -> Result<(), Refused> {
        let Some(exposed) = self.exposed.get(service) else { return Ok(()) };
        let name = ServiceName { service: exposed.exposure.name.clone(), site: self.settings.site.clone() };
        if exposed.exposure.limits.flows.is_some_and(|flows| exposed.flows >= flows) {
            return Err(Refused::because(Reason::FlowLimit).of(peer).to(&name));
        }
        let bucket = self.rates.get_mut(&service).and_then(|rates| rates.new_flows.as_mut());
        let within = bucket.is_none_or(|bucket| bucket.take(1, now));
        if within { Ok(()) } else { Err(Refused::because(Reason::RateLimit).of(peer).to(&name)) }
    }

    /// The rule by which an allowed flow would be allowed, and go the same way, if it were opened now.
    fn rule_now(&self, flow: &Flow) -> Option<usize> {
        match flow.opened_by {
            Direction::Outbound => {
                let outward = self.judge_outbound(&flow.site).ok()?;
                let same_service = outward.presence == flow.owner.service && outward.peer == flow.peer;
                let way = (outward.wire_destination, outward.wire_port);
                let same_way = way == (flow.wire.destination, flow.wire.destination_port);
                (same_service && same_way).then_some(outward.rule)
            }
            Direction::Inbound => {
                let inward = self.judge_inbound(flow.peer, &flow.wire.reversed()).ok()?;
                let exposed = self.exposed.get(inward.service);
                let served = exposed.is_some_and(|service| service.index_of(flow.site.source).is_some());
                (inward.service == flow.owner.service && served).then_some(inward.rule)
            }
        }
    }

    /// The flow of this id, if its decision is of today or is confirmed now; judged in the direction of its opener.
    pub(super) fn fresh(&mut self, id: FlowId, direction: Direction, now: Instant) -> Option<FlowId> {
        let flow = self.table.get(id)?;
        if flow.version == self.version || flow.opened_by != direction {
            return Some(id);
        }
        self.judge_again(id, now).then_some(id)
    }

    pub(super) fn judge_again(&mut self, id: FlowId, now: Instant) -> bool {
        let rule = self.table.get(id).and_then(|flow| self.rule_now(flow));
        match (self.table.get_mut(id), rule) {
            (Some(flow), Some(rule)) => {
                flow.version = self.version;
                flow.owner.rule = rule_number(rule);
            }
            (Some(_) | None, _) => self.end_flow(id, FlowEnd::Revoked, now),
        }
        rule.is_some()
    }

    /// Inserts a flow, makes room for it if need be, counts and tells it.
    pub(super) fn insert(&mut self, new: NewFlow, now: Instant) -> Result<FlowId, Refused> {
        if !self.told.is_sure() {
            return Err(Refused::because(Reason::AuditFailed).of(new.peer));
        }
        let shares = (self.table.capacity() / PEER_SHARE, self.table.capacity() / CALLER_SHARE);
        let of_peer = self.peer(new.peer).map_or(0, |peer| peer.flows);
        let of_caller = self.callers.get(new.owner.caller).map_or(0, |caller| caller.flows);
        if of_peer >= shares.0.max(1) || of_caller >= shares.1.max(1) {
            return Err(Refused::because(Reason::FlowLimit).of(new.peer));
        }
        if self.table.is_full() {
            let Some(newest) = self.table.newest_half_open() else {
                return Err(Refused::because(Reason::FlowLimit).of(new.peer));
            };
            self.end_flow(newest, FlowEnd::Evicted, now);
        }
        let Some(id) = self.table.insert(new, now) else {
            return Err(Refused::because(Reason::FlowLimit).of(new.peer));
        };
        self.flows_opened += 1;
        if let Some(peer) = self.peers.get_mut(new.peer) {
            peer.flows += 1;
        }
        if let Some(caller) = self.callers.get_mut(new.owner.caller) {
            caller.flows += 1;
            caller.used = now;
        }
        match new.opened_by {
            Direction::Outbound => {
                if let Some(presence) = self.presences.get_mut(new.owner.service) {
                    presence.flows += 1;
                }
            }
            Direction::Inbound => {
                if let Some(service) = self.exposed.get_mut(new.owner.service) {
                    service.flows += 1;
                }
            }
        }
        if let Some(record) = self.table.get(id).map(|flow| Box::new(self.flow_record(flow, now))) {
            self.tell(Event::FlowOpened(record));
        }
        Ok(id)
    }

    pub(super) fn owner(&mut self, service: u32, caller: &Holder, rule: usize, now: Instant) -> Owner {
        let caller = self.callers.number(caller, now);
        Owner { service, caller, rule: rule_number(rule) }
    }

    /// The caller's address: its wire index (as an address), or its presence.
    fn lease(&mut self, holder: &Holder, now: Instant) -> Result<IpAddr, Reason> {
        if self.leases.block(holder).is_none() && self.is_share_used_up(holder) && !self.reclaim(holder, now) {
            return Err(Reason::PoolFull);
        }
        let first = self.leases.grant(holder, &self.settings.pool, 0, None, now);
        let granted = match first {
            Err(LeaseError::PoolFull | LeaseError::WireUsedUp) if self.reclaim(holder, now) => {
                self.leases.grant(holder, &self.settings.pool, 0, None, now)
            }
            first => first,
        };
        match granted {
            Ok((grant, is_new)) => {
                let address = grant.block.addr();
                if is_new {
                    self.events.push_back(Event::Granted(grant));
                }
                Ok(address)
            }
            Err(_) => Err(Reason::PoolFull),
        }
    }

    /// Callers of one peer must not take the whole pool from the others.
    pub(super) fn is_share_used_up(&self, holder: &Holder) -> bool {
        let Holder::CallerPresence { site, family, .. } = holder else { return false };
        let held = self.leases.callers_of(site, *family);
        held >= (self.settings.pool.size(*family) / POOL_SHARE).max(1)
    }

    /// Frees the caller presence, or the wire index of a host without a name, that was not used for longest, if that is
    /// long enough ago. A site that has its share gives up one of its own.
    fn reclaim(&mut self, wanted: &Holder, now: Instant) -> bool {
        let of_site = match wanted {
            Holder::CallerPresence { site, .. } => Some(site.clone()),
            Holder::Gateway { .. }
            | Holder::ServicePresence { .. }
            | Holder::ServiceIndex { .. }
            | Holder::CallerIndex { .. } => None,
        };
        let next = self.reclaim_next.entry(of_site).or_insert(now);
        if now < *next {
            return false;
        }
        *next = now + RECLAIM_PAUSE;
        let has_its_share = self.is_share_used_up(wanted);
        let unused = |grant: Grant| {
            let may_go = match (&grant.holder, wanted) {
                (
                    Holder::CallerPresence { site, family, .. },
                    Holder::CallerPresence { site: of_site, family: of, .. },
                ) => family == of && (!has_its_share || site == of_site),
                (Holder::CallerIndex { address }, Holder::CallerIndex { .. }) => self.clients.name(*address).is_none(),
                (_, _) => false,
            };
            let since = self.callers.unused_since(&grant.holder, self.started).filter(|_| may_go)?;
            Some((since, grant.holder))
        };
        let oldest = self.leases.iter().filter_map(unused).min();
        let Some((since, holder)) = oldest else { return false };
        if now.saturating_duration_since(since) < RECLAIM_AFTER {
            return false;
        }
        self.callers.remove(&holder);
        if let Some(grant) = self.leases.reclaim(&holder) {
            self.events.push_back(Event::Released(grant));
        }
        true
    }

    pub(super) fn caller_presence(&self, peer: PeerId, wire: IpAddr) -> Option<Holder> {
        let (_, index) = wire::parse(wire)?;
        let site = self.peer(peer)?.settings.identity.site.clone();
        Some(Holder::CallerPresence { site, index, family: Family::of(wire) })
    }

    /// A host of this site's own networks, or the gateway itself by its presence.
    pub(super) fn may_call(&self, source: IpAddr) -> bool {
        let gateway = || matches!(self.leases.holder(source), Some(Holder::Gateway { .. }));
        let foreign = self.settings.pool.contains(source) && !gateway();
        !foreign && wire::parse(source).is_none() && !source.is_loopback() && !source.is_unspecified()
    }

    pub(super) fn deny(&mut self, opener: Opener, packet: &Packet, refused: Refused) {
        self.drops.count(refused.reason);
        let Refused { reason, peer, service, client } = refused;
        let (tuple, initial_sequence) = (packet.head.tuple, initial_sequence(packet));
        let denial = Denial { opener, peer, service, client, tuple, initial_sequence, reason };
        self.tell(Event::Denied(Box::new(denial)));
    }
}

/// The place of the `callers` entry that lets the host use the mapping; 0 when every host may.
pub(super) fn caller_rule(presence: &Presence, source: IpAddr, client: Option<&Name>) -> Option<usize> {
    let callers = &presence.mapping.callers;
    if callers.is_empty() {
        return Some(0);
    }
    callers.iter().position(|caller| match caller {
        CallerSelector::Client(name) => client == Some(name),
        CallerSelector::Prefix(prefix) => prefix.contains(&source),
    })
}

/// Whether it begins something, as far as can be told.
fn is_opening(packet: &Packet) -> bool {
    !matches!(packet.head.kind, Kind::Tcp(_)) || initial_sequence(packet).is_some()
}

/// There are at most a few hundred.
fn rule_number(rule: usize) -> u16 {
    u16::try_from(rule).unwrap_or(u16::MAX)
}

fn of_refusal(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NotAllowed => Reason::NotAllowed,
        Refusal::UnknownCaller => Reason::UnknownCaller,
        Refusal::PortNotExposed => Reason::PortNotExposed,
    }
}

/// Rendezvous hashing: of all backends the one with the highest weight for this flow. A backend that comes or goes
/// moves no flow between the others.
fn weight(target: IpAddr, tuple: &FiveTuple) -> u64 {
    FixedState::with_seed(BACKEND_SEED).hash_one((target, tuple))
}
