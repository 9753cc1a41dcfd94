//! How often one source is answered. By UDP a source can be made up, and an answer that nobody asked for hits whoever has
//! that address; and each answer takes the node for a moment. A fixed number of buckets, whoever asks; two sources may
//! share one.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use vp::policy::Bucket;

/// More than a site's own resolver asks for all of its hosts; of the largest answers 0.6 MB a second.
const ANSWERS_PER_SECOND: u64 = 500;
/// Of each two queries beyond that, one is sent to TCP, where sources are real, and one is dropped.
const TRUNCATED_EVERY: u64 = 2;
/// More than a site has hosts that ask at a time; 200 KB.
const BUCKETS: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Answer,
    Truncate,
    Drop,
}

pub struct Limiter {
    seed: RandomState,
    state: Mutex<(Vec<Bucket>, u64)>,
}

impl Limiter {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let bucket = Bucket::new(ANSWERS_PER_SECOND, ANSWERS_PER_SECOND, now);
        Self { seed: RandomState::new(), state: Mutex::new((vec![bucket; BUCKETS], 0)) }
    }

    pub fn judge(&self, source: IpAddr, now: Instant) -> Verdict {
        // Whoever has one IPv6 address has its network (RFC 4291 section 2.5.4).
        let source = match source {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        let at = (self.seed.hash_one(source) % BUCKETS as u64) as usize;
        let (buckets, refused) = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets[at].take(1, now) {
            return Verdict::Answer;
        }
        *refused += 1;
        if refused.is_multiple_of(TRUNCATED_EVERY) { Verdict::Truncate } else { Verdict::Drop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_source_gets_so_many_answers_and_another_its_own() {
        let now = Instant::now();
        let limiter = Limiter::new(now);
        let ask = |source: &str, count: usize, now| {
            let source = source.parse().expect("address");
            (0..count).filter(|_| limiter.judge(source, now) == Verdict::Answer).count() as u64
        };
        assert_eq!(ask("10.0.0.2", 2000, now), ANSWERS_PER_SECOND);
        assert_eq!(ask("10.0.0.2", 2000, now + Duration::from_millis(100)), ANSWERS_PER_SECOND / 10);
        let others = (1..=20).map(|n| ask(&format!("10.0.9.{n}"), 1, now));
        assert!(others.sum::<u64>() >= 19);
        // One network of IPv6 is one source.
        assert_eq!(ask("fd00::1", 300, now) + ask("fd00::2", 300, now), ANSWERS_PER_SECOND);
    }

    #[test]
    fn what_is_too_much_is_in_part_sent_to_tcp() {
        let (now, source) = (Instant::now(), "10.0.0.2".parse().expect("address"));
        let limiter = Limiter::new(now);
        let verdicts: Vec<_> = (0..ANSWERS_PER_SECOND + 100).map(|_| limiter.judge(source, now)).collect();
        let count = |verdict| verdicts.iter().filter(|v| **v == verdict).count();
        assert_eq!((count(Verdict::Truncate), count(Verdict::Drop)), (50, 50));
    }
}
