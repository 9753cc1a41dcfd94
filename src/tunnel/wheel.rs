//! When each peer is to be looked at: a list of peers for each tick, so that a tick finds its own and nobody else's.

use super::TICK;
use std::time::Instant;

/// As many as a word can tell the empty lists of. What is later than that comes up early, and is set again.
const TICKS: u64 = 128;
const NONE: u32 = u32::MAX;
const NOWHERE: Place = Place { tick: u64::MAX, previous: NONE, next: NONE };

#[derive(Clone, Copy)]
struct Place {
    tick: u64,
    previous: u32,
    next: u32,
}

pub(super) struct Wheel {
    epoch: Instant,
    heads: [u32; TICKS as usize],
    /// Lists with somebody in them, by tick modulo [`TICKS`].
    occupied: u128,
    /// Lists of ticks before this one are empty.
    first: u64,
    /// By the peer's number.
    places: Vec<Place>,
}

impl Wheel {
    pub fn new(now: Instant) -> Self {
        Self { epoch: now, heads: [NONE; TICKS as usize], occupied: 0, first: 0, places: Vec::new() }
    }

    /// At the next call, whenever that is.
    pub fn set_now(&mut self, number: u32, now: Instant) {
        self.place(number, self.tick(now));
    }

    /// At the first tick after `now` that is not before `at`.
    pub fn set(&mut self, number: u32, at: Instant, now: Instant) {
        let after = at.checked_duration_since(self.epoch).map_or(0, |time| time.as_millis().div_ceil(TICK.as_millis()));
        self.place(number, u64::try_from(after).unwrap_or(u64::MAX).max(self.tick(now) + 1));
    }

    /// At the next tick, if it is not to be looked at before.
    pub fn hasten(&mut self, number: u32, now: Instant) {
        let tick = self.tick(now) + 1;
        if self.places.get(number as usize).is_some_and(|place| place.tick > tick && place.tick != NOWHERE.tick) {
            self.place(number, tick);
        }
    }

    /// At the next call, for one that is in a list.
    pub fn hasten_now(&mut self, number: u32) {
        if self.places.get(number as usize).is_some_and(|place| place.tick != NOWHERE.tick) {
            self.place(number, self.first);
        }
    }

    pub fn remove(&mut self, number: u32) {
        let Some(place) = self.places.get_mut(number as usize) else { return };
        let Place { tick, previous, next } = std::mem::replace(place, NOWHERE);
        if tick == NOWHERE.tick {
            return;
        }
        let list = (tick % TICKS) as usize;
        match self.places.get_mut(previous as usize) {
            Some(place) => place.next = next,
            None => self.heads[list] = next,
        }
        if let Some(place) = self.places.get_mut(next as usize) {
            place.previous = previous;
        }
        if self.heads[list] == NONE {
            self.occupied &= !(1 << list);
        }
    }

    /// A peer whose time has come. It is in no list after that.
    pub fn due(&mut self, now: Instant) -> Option<u32> {
        let tick = self.tick(now);
        let next = self.next_tick().filter(|next| *next <= tick);
        self.first = self.first.max(next.unwrap_or(tick));
        let number = self.heads[(next? % TICKS) as usize];
        self.remove(number);
        Some(number)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let ticks = u32::try_from(self.next_tick()?).unwrap_or(u32::MAX);
        Some(self.epoch + TICK * ticks)
    }

    fn next_tick(&self) -> Option<u64> {
        let from_first = self.occupied.rotate_right((self.first % TICKS) as u32);
        (from_first != 0).then(|| self.first + u64::from(from_first.trailing_zeros()))
    }

    fn tick(&self, now: Instant) -> u64 {
        let ticks = now.saturating_duration_since(self.epoch).as_millis() / TICK.as_millis();
        u64::try_from(ticks).unwrap_or(u64::MAX - 1)
    }

    fn place(&mut self, number: u32, tick: u64) {
        self.remove(number);
        let tick = tick.clamp(self.first, self.first + TICKS - 1);
        let list = (tick % TICKS) as usize;
        let next = std::mem::replace(&mut self.heads[list], number);
        if let Some(place) = self.places.get_mut(next as usize) {
            place.previous = number;
        }
        self.occupied |= 1 << list;
        if self.places.len() <= number as usize {
            self.places.resize(number as usize + 1, NOWHERE);
        }
        self.places[number as usize] = Place { tick, previous: NONE, next };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Against a map of peers to ticks.
        #[test]
        fn each_comes_up_at_its_tick_and_once(steps in prop::collection::vec((0u32..20, 0u32..100, 0u8..5), 1..300)) {
            let epoch = Instant::now();
            let (mut wheel, mut model, mut now) = (Wheel::new(epoch), BTreeMap::new(), epoch);
            let tick = |at: Instant| ((at - epoch).as_millis() / TICK.as_millis()) as u32;
            for (number, ticks, what) in steps {
                match what {
                    0 => {
                        wheel.remove(number);
                        model.remove(&number);
                    }
                    1 => {
                        wheel.hasten(number, now);
                        model.entry(number).and_modify(|at: &mut u32| *at = (*at).min(tick(now) + 1));
                    }
                    2 => {
                        wheel.set_now(number, now);
                        model.insert(number, tick(now));
                    }
                    3 => {
                        wheel.set(number, now + TICK * ticks, now);
                        model.insert(number, tick(now) + ticks.max(1));
                    }
                    _ => {
                        now += TICK * ticks;
                        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.due(now)).collect();
                        due.sort();
                        let expected: Vec<u32> =
                            model.iter().filter(|(_, at)| **at <= tick(now)).map(|(number, _)| *number).collect();
                        prop_assert_eq!(&due, &expected);
                        model.retain(|_, at| *at > tick(now));
                    }
                }
                prop_assert_eq!(wheel.poll_timeout(), model.values().min().map(|at| epoch + TICK * *at));
            }
        }
    }
}
