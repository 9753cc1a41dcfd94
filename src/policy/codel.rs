//! Controlled delay (RFC 8289) of what waits in a queue: a burst passes, a queue that stands loses a packet now and then, which
//! is how TCP learns, ever more often until it is short.

use std::time::Duration;

/// How soon dropping goes on where it left off (section 5.5: 16 intervals).
const MEMORY: u32 = 16;

/// Its times are of any clock, but always the same one.
#[derive(Clone, Debug)]
pub struct Codel {
    /// A queue that is never shorter than this stands; one that is, at times, is a burst.
    target: Duration,
    /// So long a queue may stand before it is acted upon.
    interval: Duration,
    /// When the queue will have stood too long, if it does not get shorter before.
    late: Option<Duration>,
    /// The next drop, while it stands too long.
    next: Option<Duration>,
    last: Duration,
    count: u32,
    count_before: u32,
}

impl Codel {
    #[must_use]
    pub fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval, late: None, next: None, last: Duration::ZERO, count: 0, count_before: 0 }
    }

    /// Whether something of what has waited so long is to be dropped; if it may not be, then of the next that may. The time
    /// costs a call, so it is asked for only then.
    pub fn drops(&mut self, waited: Duration, may_drop: bool, now: impl FnOnce() -> Duration) -> bool {
        if waited < self.target {
            self.emptied();
            return false;
        }
        let now = now();
        let late = *self.late.get_or_insert(now + self.interval);
        match self.next {
            Some(next) if now < next || !may_drop => false,
            Some(next) => {
                self.count = self.count.saturating_add(1);
                self.drop_after(next)
            }
            None if now < late || !may_drop => false,
            None => {
                let more = self.count.saturating_sub(self.count_before);
                let is_recent = now.saturating_sub(self.last) < self.interval * MEMORY;
                self.count = if is_recent && more > 1 { more } else { 1 };
                self.count_before = self.count;
                self.drop_after(now)
            }
        }
    }

    /// Nothing waited for a moment: what comes next is another queue.
    pub fn emptied(&mut self) {
        (self.late, self.next) = (None, None);
    }

    /// Drops come closer as the square root of their count, for TCP's rate falls as that of its loss.
    fn drop_after(&mut self, at: Duration) -> bool {
        let next = at + self.interval.div_f64(f64::from(self.count).sqrt());
        (self.next, self.last) = (Some(next), next);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_micros(250);
    const INTERVAL: Duration = Duration::from_millis(5);
    const MILLISECOND: Duration = Duration::from_millis(1);

    /// How many of as many milliseconds a drop falls into, with a queue of that delay.
    fn drops(codel: &mut Codel, now: &mut Duration, waited: Duration, milliseconds: u32) -> u32 {
        let mut count = 0;
        for _ in 0..milliseconds {
            *now += MILLISECOND;
            count += u32::from(codel.drops(waited, true, || *now));
        }
        count
    }

    #[test]
    fn a_burst_passes_and_a_standing_queue_is_dropped_from_ever_more_often() {
        let mut now = Duration::from_secs(1);
        let mut codel = Codel::new(TARGET, INTERVAL);
        for _ in 0..100 {
            assert_eq!(drops(&mut codel, &mut now, TARGET * 20, 4), 0);
            assert_eq!(drops(&mut codel, &mut now, TARGET / 2, 1), 0);
        }
        let first = drops(&mut codel, &mut now, TARGET * 20, 50);
        let second = drops(&mut codel, &mut now, TARGET * 20, 50);
        assert!(first >= 3 && second > first, "{first} {second}");
        assert_eq!(drops(&mut codel, &mut now, TARGET / 2, 1), 0);
        assert_eq!(drops(&mut codel, &mut now, TARGET * 20, 4), 0);
    }

    #[test]
    fn a_drop_that_is_due_falls_on_the_next_that_may_be_dropped() {
        let mut now = Duration::from_secs(1);
        let mut codel = Codel::new(TARGET, INTERVAL);
        drops(&mut codel, &mut now, TARGET * 2, 4);
        now += INTERVAL;
        assert!((0..10).all(|_| !codel.drops(TARGET * 2, false, || now)));
        assert!(codel.drops(TARGET * 2, true, || now));
    }

    #[test]
    fn bursts_with_nothing_between_them_pass() {
        let mut now = Duration::from_secs(1);
        let mut codel = Codel::new(TARGET, INTERVAL);
        for _ in 0..100 {
            assert_eq!(drops(&mut codel, &mut now, TARGET * 20, 3), 0);
            codel.emptied();
            now += INTERVAL * 2;
        }
    }

    #[test]
    fn after_a_short_calm_dropping_goes_on_where_it_was() {
        let mut now = Duration::from_secs(1);
        let mut codel = Codel::new(TARGET, INTERVAL);
        drops(&mut codel, &mut now, TARGET * 2, 200);
        drops(&mut codel, &mut now, Duration::ZERO, 5);
        let soon = drops(&mut codel, &mut now, TARGET * 2, 30);
        drops(&mut codel, &mut now, Duration::ZERO, 1000);
        let later = drops(&mut codel, &mut now, TARGET * 2, 30);
        assert!(soon > later, "{soon} {later}");
    }
}
