//! A rate as a time: when what comes next may pass. Whoever is let through may be larger than what is left, and who comes next
//! waits the longer; so the rate holds exactly, whatever the size of packets.

/// Times are nanoseconds of one clock.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Pace {
    free_at: u64,
}

impl Pace {
    pub fn free_at(self) -> u64 {
        self.free_at
    }

    /// So much passes now. What was not used for longer than `burst` is lost.
    pub fn charge(&mut self, units: u64, per_second: u64, burst: u64, now: u64) {
        let cost = u128::from(units) * 1_000_000_000 / u128::from(per_second.max(1));
        let from = self.free_at.max(now.saturating_sub(burst));
        self.free_at = from.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_any_size_keep_the_rate_and_what_was_not_used_is_a_burst_at_most() {
        const SECOND: u64 = 1_000_000_000;
        let (mut pace, mut now, mut passed) = (Pace::default(), 10 * SECOND, 0);
        for n in 0..10_000 {
            now = now.max(pace.free_at());
            pace.charge(100 + n * 7919 % 60_000, 1_000_000, SECOND / 10, now);
            passed += 100 + n * 7919 % 60_000;
        }
        let rate = passed as f64 / ((pace.free_at() - 10 * SECOND) as f64 / SECOND as f64);
        assert!((0.99e6..1.01e6).contains(&rate), "{rate}");
        now = pace.free_at() + 100 * SECOND;
        let mut burst = 0;
        while pace.free_at() <= now {
            pace.charge(1000, 1_000_000, SECOND / 10, now);
            burst += 1;
        }
        assert!((100..=101).contains(&burst), "{burst}");
    }
}
