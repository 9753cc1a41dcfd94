//! What is limited: services, mappings, peers, tenants, and the uplink. Which limits a flow has a share in, and what a new one
//! would be refused for although policy allows it.

use super::admit::{CALLER_SHARE, PEER_SHARE};
use super::{Node, Opener, Reason, Refused};
use crate::addr::{Bounds, Direction, Family, Holder, Limits, Mode, Name, PeerId, Rates};
use crate::catalogue::ServicePattern;
use crate::flow::{FlowId, Traffic};
use crate::packet::Packet;
use crate::policy::{Exceeded, Exceeding, Standing, Terms};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use vp_proto::api;

/// What a limit lets pass at once after a pause: TCP sends in bursts, and who uses less than it has shall not notice it.
const BURST: Duration = Duration::from_millis(100);
/// The uplink's, which waits in front of it and delays what comes next.
const UPLINK_BURST: Duration = Duration::from_millis(5);
/// Of the uplink's rate so much is used, so that what waits does so here, where it is known whose it is.
const UPLINK_PERCENT: u64 = 97;
/// What a packet has outside its tunnel: WireGuard's 32 bytes, UDP, IPv6, Ethernet.
const UPLINK_OVERHEAD_BYTES: u32 = 32 + 8 + 40 + 14;

/// Limits besides those of exposed services.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LimitSettings {
    /// By the peer's site.
    pub peers: BTreeMap<Name, Limits>,
    pub tenants: BTreeMap<Name, Limits>,
    /// Of all services together that the mapping gives.
    pub mappings: BTreeMap<ServicePattern, Limits>,
    /// What the way to the network carries, in bits a second.
    pub uplink: Option<u64>,
}

/// Who has a limit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Subject {
    Service(u32),
    Mapping(ServicePattern),
    Peer(PeerId),
    Tenant(Name),
    Uplink,
}

/// What a new flow would meet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Outlook {
    pub refused: Option<(Reason, Option<String>)>,
    /// What would refuse it if it were enforced.
    pub observed: Vec<(Reason, String)>,
}

impl Node {
    pub(super) fn apply_limits(&mut self, now: Instant) {
        let LimitSettings { peers, tenants, mappings, uplink } = &self.settings.limits;
        let services = self.exposed.iter().map(|(number, service)| (Subject::Service(number), service.exposure.limits));
        let peers = peers.iter().filter_map(|(site, limits)| Some((Subject::Peer(self.peers.by_site(site)?), *limits)));
        let tenants = tenants.iter().map(|(tenant, limits)| (Subject::Tenant(tenant.clone()), *limits));
        let mappings = mappings.iter().map(|(pattern, limits)| (Subject::Mapping(pattern.clone()), *limits));
        let limited = services.chain(peers).chain(tenants).chain(mappings).filter(|(_, limits)| !limits.is_none());
        let terms = |limits| Terms { limits, overhead_bytes: 0, burst: BURST };
        let mut wanted: BTreeMap<_, _> = limited.map(|(subject, limits)| (subject, terms(limits))).collect();
        wanted.extend(uplink.map(|bits| (Subject::Uplink, uplink_terms(bits))));
        self.limiter.configure(wanted, now);
    }

    /// Whose limits are those of a flow.
    fn subjects(&self, opened_by: Direction, service: u32, peer: PeerId) -> [Option<Subject>; 4] {
        let of = match opened_by {
            Direction::Inbound => Some(Subject::Service(service)),
            Direction::Outbound => {
                self.presences.get(service).map(|presence| Subject::Mapping(presence.mapping.service.clone()))
            }
        };
        let tenant = self.peer(peer).and_then(|peer| peer.settings.identity.tenant.clone());
        [of, Some(Subject::Peer(peer)), tenant.map(Subject::Tenant), Some(Subject::Uplink)]
    }

    /// Whether the limits allow one more flow of the caller. Those that only observe tell of it.
    pub(super) fn check_limits(
        &mut self,
        (opened_by, service, peer): (Direction, u32, PeerId),
        caller: &Holder,
        packet: &Packet,
        now: Instant,
    ) -> Result<(), Refused> {
        if self.limiter.is_idle() {
            return Ok(());
        }
        let exceeded = self.exceeded((opened_by, service, peer), caller, now);
        let refused = |node: &Self, exceeded: &Exceeded<Subject>| {
            let name = node.limit_name(&exceeded.of, exceeded.per_caller);
            let service = node.service_name(opened_by, service);
            Refused { service, limit: Some(name), ..Refused::because(of_exceeding(exceeded.what)).of(peer) }
        };
        if let Some(first) = exceeded.iter().find(|exceeded| exceeded.mode == Mode::Enforce) {
            self.limiter.count(first);
            return Err(refused(self, first));
        }
        for observed in exceeded {
            self.limiter.count(&observed);
            let opener = match opened_by {
                Direction::Outbound => Opener::Site,
                Direction::Inbound => Opener::Peer,
            };
            let refused = refused(self, &observed);
            self.observe(opener, packet, refused);
        }
        Ok(())
    }

    fn exceeded(
        &self,
        (opened_by, service, peer): (Direction, u32, PeerId),
        caller: &Holder,
        now: Instant,
    ) -> Vec<Exceeded<Subject>> {
        let subjects = self.subjects(opened_by, service, peer);
        self.limiter.exceeded(subjects.iter().flatten(), self.callers.known(caller), now).collect()
    }

    /// The flow's share in what is limited, when it is new.
    pub(super) fn open_share(&mut self, id: FlowId, now: Instant) {
        if self.limiter.is_idle() {
            return;
        }
        let Some((opened_by, owner, peer)) = self.table.get(id).map(|flow| (flow.opened_by, flow.owner, flow.peer))
        else {
            return;
        };
        let subjects = self.subjects(opened_by, owner.service, peer);
        let share = self.limiter.open(subjects.iter().flatten(), owner.caller, now);
        self.set_share(id, share);
    }

    /// And after a change of what is limited.
    pub(super) fn share_again(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.table.get(id).filter(|flow| !self.limiter.is_idle() || flow.share.is_some()) else {
            return;
        };
        let (owner, known) = (flow.owner, (id.0, flow.share, flow.state.is_open()));
        let subjects = self.subjects(flow.opened_by, owner.service, flow.peer);
        let share = self.limiter.attach_again(known, subjects.iter().flatten(), owner.caller, now);
        self.set_share(id, share);
    }

    /// Whether a flow that has ended may begin anew, if that is what this packet does.
    pub(super) fn check_reopened(&mut self, id: FlowId, traffic: &Traffic, now: Instant) -> Result<(), Reason> {
        if self.limiter.is_idle() && !self.exposed.any_rests() || !self.table.would_reopen(id, traffic) {
            return Ok(());
        }
        let Some(flow) = self.table.get(id) else { return Ok(()) };
        let service = self.exposed.get(flow.owner.service).filter(|_| flow.opened_by == Direction::Inbound);
        if service.is_some_and(|service| !service.takes_new(flow.site.source)) {
            return Err(Reason::ServiceDown);
        }
        let share = flow.share;
        let refused = share.and_then(|share| self.limiter.reopen(share, now));
        refused.map_or(Ok(()), |what| Err(of_exceeding(what)))
    }

    /// After the flow has ended, or has not after all: only open ones count.
    pub(super) fn set_share_open(&mut self, id: FlowId, is_open: bool) {
        let share = self.table.get(id).and_then(|flow| flow.share);
        share.into_iter().for_each(|share| self.limiter.set_open(share, is_open));
    }

    fn set_share(&mut self, id: FlowId, share: Option<NonZeroU32>) {
        self.table.get_mut(id).into_iter().for_each(|flow| flow.share = share);
    }

    /// What a new flow would be refused for now. Looked at, not taken. `service` is the number of an exposed one, or of a
    /// presence.
    pub(super) fn outlook(
        &self,
        (opened_by, service, peer): (Direction, u32, PeerId),
        caller: &Holder,
        now: Instant,
    ) -> Outlook {
        let mut outlook = Outlook::default();
        for exceeded in self.exceeded((opened_by, service, peer), caller, now) {
            let name = self.limit_name(&exceeded.of, exceeded.per_caller);
            let reason = of_exceeding(exceeded.what);
            match exceeded.mode {
                Mode::Enforce => outlook.refused = outlook.refused.or(Some((reason, Some(name)))),
                Mode::Observe => outlook.observed.push((reason, name)),
            }
        }
        let without_limit = self.used_up(peer, caller).map(|reason| (reason, None));
        outlook.refused = without_limit.or(outlook.refused);
        outlook
    }

    fn used_up(&self, peer: PeerId, caller: &Holder) -> Option<Reason> {
        if !self.told.is_sure() {
            return Some(Reason::AuditFailed);
        }
        let of_peer = self.peer(peer).map_or(0, |peer| peer.flows);
        let share = |part: u32| (self.table.capacity() / part).max(1);
        let is_full = self.table.is_full() && self.table.newest_half_open().is_none();
        if is_full || of_peer >= share(PEER_SHARE) || self.callers.flows(caller) >= share(CALLER_SHARE) {
            return Some(Reason::FlowLimit);
        }
        let is_new = self.leases.block(caller).is_none();
        (is_new && self.has_no_address_for(caller)).then_some(Reason::PoolFull)
    }

    /// Where none could be taken from a caller that has been silent for long.
    fn has_no_address_for(&self, caller: &Holder) -> bool {
        let Holder::CallerPresence { family, .. } = caller else { return false };
        let of_family = |block: &ipnet::IpNet| Family::of(block.addr()) == *family;
        let taken: usize = self.presence_blocks().iter().filter(|block| of_family(block)).map(addresses).sum();
        self.is_share_used_up(caller) || taken >= self.settings.pool.size(*family)
    }

    /// Such as `service:web`.
    pub(super) fn limit_name(&self, of: &Subject, per_caller: bool) -> String {
        let name = match of {
            Subject::Service(number) => {
                let name = self.exposed.get(*number).map(|service| service.exposure.name.to_string());
                format!("service:{}", name.unwrap_or_default())
            }
            Subject::Mapping(pattern) => format!("mapping:{pattern}"),
            Subject::Peer(peer) => {
                format!("peer:{}", self.peer_site(*peer).map(ToString::to_string).unwrap_or_default())
            }
            Subject::Tenant(tenant) => format!("tenant:{tenant}"),
            Subject::Uplink => "uplink".to_owned(),
        };
        if per_caller { name + " per caller" } else { name }
    }

    /// Every limit, and what it did.
    #[must_use]
    pub fn limits(&self) -> Vec<api::LimitStatus> {
        let status = |standing: Standing<Subject>| api::LimitStatus {
            limit: self.limit_name(&standing.of, standing.per_caller),
            mode: standing.mode.word().to_owned(),
            flows: standing.flows.into(),
            flows_refused: standing.counts.flows_refused,
            new_flows_refused: standing.counts.new_flows_refused,
            packets_delayed: standing.counts.packets_delayed,
            packets_dropped: standing.counts.packets_dropped,
        };
        self.limiter.standings().map(status).collect()
    }
}

fn uplink_terms(bits: u64) -> Terms {
    let bits = (bits / 100 * UPLINK_PERCENT).max(1);
    let outbound = Rates { bits_per_second: Some(bits), packets_per_second: None };
    let limits = Limits { all: Bounds { outbound, ..Bounds::default() }, ..Limits::default() };
    Terms { limits, overhead_bytes: UPLINK_OVERHEAD_BYTES, burst: UPLINK_BURST }
}

fn of_exceeding(what: Exceeding) -> Reason {
    match what {
        Exceeding::Flows => Reason::FlowLimit,
        Exceeding::NewFlows => Reason::RateLimit,
    }
}

fn addresses(block: &ipnet::IpNet) -> usize {
    1 << (block.max_prefix_len() - block.prefix_len()).min(16)
}
