//! What a new flow would be refused for although policy allows it. Looked at, not taken.

use super::admit::{CALLER_SHARE, PEER_SHARE};
use super::{Node, Reason};
use crate::addr::{Family, Holder, PeerId};
use std::time::Instant;

impl Node {
    /// `service` is the number of an exposed one; none for a call that leaves this site.
    pub(super) fn used_up(&self, peer: PeerId, caller: &Holder, service: Option<u32>, now: Instant) -> Option<Reason> {
        if !self.told.is_sure() {
            return Some(Reason::AuditFailed);
        }
        let of_peer = self.peer(peer).map_or(0, |peer| peer.flows);
        let share = |part: u32| (self.table.capacity() / part).max(1);
        let is_full = self.table.is_full() && self.table.newest_half_open().is_none();
        let exposed = service.and_then(|number| self.exposed.get(number));
        let flows_max = exposed.and_then(|exposed| exposed.exposure.limits.flows);
        let of_service = exposed.map_or(0, |exposed| exposed.flows);
        if is_full
            || of_peer >= share(PEER_SHARE)
            || self.callers.flows(caller) >= share(CALLER_SHARE)
            || flows_max.is_some_and(|flows| of_service >= flows)
        {
            return Some(Reason::FlowLimit);
        }
        let bucket = service.and_then(|number| self.rates.get(&number)).and_then(|rates| rates.new_flows.clone());
        if bucket.is_some_and(|mut bucket| !bucket.take(1, now)) {
            return Some(Reason::RateLimit);
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
}

fn addresses(block: &ipnet::IpNet) -> usize {
    1 << (block.max_prefix_len() - block.prefix_len()).min(16)
}
