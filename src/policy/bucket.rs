//! A token bucket: a rate, and how much of it may come at once.

use std::time::Instant;

/// Tokens refill with time; what does not fit is refused, never queued.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    /// In billionths of a token, so that slow rates lose nothing to rounding.
    nanotokens: u128,
    filled: Instant,
}

const NANO: u128 = 1_000_000_000;

impl Bucket {
    /// Starts full.
    #[must_use]
    pub fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        Self { per_second, burst, nanotokens: u128::from(burst) * NANO, filled: now }
    }

    /// This one, if that is its size, else a full one: who changes nothing gives nothing away.
    #[must_use]
    pub fn resized(self, per_second: u64, burst: u64, now: Instant) -> Self {
        if (self.per_second, self.burst) == (per_second, burst) { self } else { Self::new(per_second, burst, now) }
    }

    /// Takes `tokens` if they are there.
    pub fn take(&mut self, tokens: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let full = u128::from(self.burst) * NANO;
        self.nanotokens = (self.nanotokens + passed * u128::from(self.per_second)).min(full);
        self.filled = self.filled.max(now);
        let cost = u128::from(tokens) * NANO;
        let affordable = cost <= self.nanotokens;
        if affordable {
            self.nanotokens -= cost;
        }
        affordable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 5, start);
        assert_eq!((0..20).filter(|_| bucket.take(1, start)).count(), 5);
        let taken = (1..=1000).filter(|ms| bucket.take(1, start + Duration::from_millis(*ms))).count();
        assert_eq!(taken, 10);
        assert!(!bucket.take(6, start + Duration::from_secs(100)));
    }
}
