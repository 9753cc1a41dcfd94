//! Who calls: hosts of this site, and remote callers with a presence here. How many flows each has, and since when
//! it had none, so that a presence in use is never reassigned.

use crate::addr::Holder;
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Debug)]
pub struct Caller {
    pub holder: Holder,
    pub flows: u32,
    pub used: Instant,
}

/// As many as there are leases for callers.
#[derive(Debug, Default)]
pub struct Callers {
    callers: Vec<Option<Caller>>,
    free: Vec<u32>,
    by_holder: BTreeMap<Holder, u32>,
}

impl Callers {
    /// The caller's number; the same as long as its lease is held.
    pub fn number(&mut self, holder: &Holder, now: Instant) -> u32 {
        if let Some(number) = self.by_holder.get(holder) {
            return *number;
        }
        let caller = Some(Caller { holder: holder.clone(), flows: 0, used: now });
        let number = match self.free.pop() {
            Some(number) => {
                self.callers[number as usize] = caller;
                number
            }
            None => {
                self.callers.push(caller);
                u32::try_from(self.callers.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_holder.insert(holder.clone(), number);
        number
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_holder.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_holder.is_empty()
    }

    /// Its number if it has one.
    #[must_use]
    pub fn known(&self, holder: &Holder) -> Option<u32> {
        self.by_holder.get(holder).copied()
    }

    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Caller> {
        self.callers.get(number as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Caller> {
        self.callers.get_mut(number as usize)?.as_mut()
    }

    #[must_use]
    pub fn flows(&self, holder: &Holder) -> u32 {
        self.by_holder.get(holder).and_then(|number| self.get(*number)).map_or(0, |caller| caller.flows)
    }

    /// Since when the holder has had no flow; `since_start` for one that had none at all. None while it has flows.
    #[must_use]
    pub fn unused_since(&self, holder: &Holder, since_start: Instant) -> Option<Instant> {
        match self.by_holder.get(holder).and_then(|number| self.get(*number)) {
            Some(caller) if caller.flows > 0 => None,
            Some(caller) => Some(caller.used),
            None => Some(since_start),
        }
    }

    /// Its lease was given up. Only a caller without flows may go.
    pub fn remove(&mut self, holder: &Holder) {
        if self.flows(holder) > 0 {
            return;
        }
        if let Some(number) = self.by_holder.remove(holder) {
            self.callers[number as usize] = None;
            self.free.push(number);
        }
    }
}
