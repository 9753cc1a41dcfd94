//! Deadlines by the second, without a scan and without a timer a flow: each second has a list of the flows that may
//! be over by then. A packet moves nothing; when a list comes up, flows that were heard of since go to a later one.

use super::life::IDLE_MAX;

/// One more than the longest silence, so that a deadline never comes round to its own second.
const SECONDS: usize = 8192;
const _: () = assert!(IDLE_MAX.as_secs() < SECONDS as u64);

pub(super) const NONE: u32 = u32::MAX;

/// A flow's place in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub previous: u32,
    pub next: u32,
}

impl Link {
    pub const NOWHERE: Self = Self { previous: NONE, next: NONE };
}

#[derive(Debug)]
pub(super) struct Wheel {
    heads: Box<[u32; SECONDS]>,
    /// Everything before this second was handled.
    pub second: u32,
}

impl Wheel {
    pub fn new() -> Self {
        Self { heads: Box::new([NONE; SECONDS]), second: 0 }
    }

    pub fn slot(&self, second: u32) -> usize {
        second.max(self.second) as usize % SECONDS
    }

    /// After a long sleep each list is looked at once, not once a turn.
    pub fn skip_full_turns(&mut self, second: u32) {
        self.second = self.second.max(second.saturating_sub(SECONDS as u32 - 1));
    }

    pub fn head_mut(&mut self, slot: usize) -> &mut u32 {
        &mut self.heads[slot]
    }
}
