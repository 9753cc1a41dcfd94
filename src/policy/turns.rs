//! Who is next at a limit that is used up: callers take turns, and for each caller its flows do, by bytes (start-time fair
//! queueing). Whoever had nothing waiting goes before those that had, so a request does not wait behind a stream.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Callers without waiting flows that are remembered beside those that have some, so that who sends again at once is not new.
const REMEMBERED: usize = 16;

#[derive(Default, Debug)]
pub(super) struct Turns {
    /// Those that had their turn and were kept waiting by another limit.
    first: VecDeque<u32>,
    order: BTreeSet<(u64, u32)>,
    callers: BTreeMap<u32, OfCaller>,
    /// How far those have come that are served.
    now: u64,
}

#[derive(Debug)]
struct OfCaller {
    tag: u64,
    flows: BTreeSet<(u64, u32)>,
    now: u64,
}

impl Turns {
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.order.is_empty()
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// `tag` is how far the flow has come here, 0 if it is new. What it is now.
    pub fn wait(&mut self, caller: u32, flow: u32, tag: u64) -> u64 {
        if self.callers.len() > 2 * self.order.len() + REMEMBERED {
            let now = self.now;
            self.callers.retain(|_, of| !of.flows.is_empty() || of.tag > now);
        }
        let of = self.callers.entry(caller).or_insert(OfCaller { tag: 0, flows: BTreeSet::new(), now: 0 });
        if of.flows.is_empty() {
            of.tag = of.tag.max(self.now);
            self.order.insert((of.tag, caller));
        }
        let tag = tag.max(of.now);
        of.flows.insert((tag, flow));
        tag
    }

    /// A flow that had its turn already.
    pub fn wait_first(&mut self, flow: u32) {
        self.first.push_back(flow);
    }

    pub fn next(&mut self) -> Option<u32> {
        if let Some(flow) = self.first.pop_front() {
            return Some(flow);
        }
        let (tag, caller) = *self.order.first()?;
        self.now = tag;
        let of = self.callers.get_mut(&caller)?;
        let (tag, flow) = of.flows.pop_first()?;
        of.now = tag;
        if of.flows.is_empty() {
            self.order.pop_first();
        }
        Some(flow)
    }

    /// The caller used so much.
    pub fn charge(&mut self, caller: u32, bytes: u64) {
        let Some(of) = self.callers.get_mut(&caller) else { return };
        let before = of.tag;
        of.tag += bytes;
        if self.order.remove(&(before, caller)) {
            self.order.insert((of.tag, caller));
        }
    }

    pub fn forget(&mut self, caller: u32, flow: u32, tag: u64) {
        self.first.retain(|waiting| *waiting != flow);
        let Some(of) = self.callers.get_mut(&caller) else { return };
        if of.flows.remove(&(tag, flow)) && of.flows.is_empty() {
            self.order.remove(&(of.tag, caller));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of each flow in `rounds` turns, if each always has one more packet.
    fn shares(flows: &[(u32, u32, u64)], rounds: usize) -> Vec<u64> {
        let mut turns = Turns::default();
        let mut tags: Vec<u64> = flows.iter().map(|(caller, flow, _)| turns.wait(*caller, *flow, 0)).collect();
        let mut shares = vec![0; flows.len()];
        for _ in 0..rounds {
            let flow = turns.next().expect("all wait") as usize;
            let (caller, number, bytes) = flows[flow];
            shares[flow] += bytes;
            turns.charge(caller, bytes);
            tags[flow] = turns.wait(caller, number, tags[flow] + bytes);
        }
        shares
    }

    #[test]
    fn callers_have_equal_shares_however_many_flows_each_has_and_however_large_its_packets_are() {
        let many = (0..50).map(|flow| (7, flow, 1420)).chain([(8, 50, 100)]).collect::<Vec<_>>();
        let shares = shares(&many, 100_000);
        let (one, other) = (shares[..50].iter().sum::<u64>(), shares[50]);
        assert!(one.abs_diff(other) < 3000, "{one} {other}");
        let (least, most) = (shares[..50].iter().min(), shares[..50].iter().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 2 * 1420), "{shares:?}");
    }

    #[test]
    fn who_is_new_goes_before_a_stream_and_who_is_kept_waiting_elsewhere_before_all() {
        let mut turns = Turns::default();
        let mut tag = turns.wait(1, 10, 0);
        for _ in 0..5 {
            assert_eq!(turns.next(), Some(10));
            turns.charge(1, 1420);
            tag = turns.wait(1, 10, tag + 1420);
        }
        turns.wait(1, 11, 0);
        turns.wait(2, 20, 0);
        turns.wait_first(30);
        assert_eq!(turns.next(), Some(30));
        let next = [turns.next(), turns.next()];
        assert!(next.contains(&Some(11)) && next.contains(&Some(20)), "{next:?}");
        assert_eq!((turns.next(), turns.next(), turns.is_empty()), (Some(10), None, true));
        let tag = turns.wait(1, 10, tag);
        turns.forget(1, 10, tag);
        assert!(turns.is_empty());
    }
}
