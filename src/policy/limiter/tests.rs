//! Limits in simulated time: rates, fairness between callers, what observes, what changes, what is bounded.

use super::{Limiter, Released};
use crate::addr::{Bounds, Direction, Limits, Mode, Rates};
use crate::packet::{Offload, Packet};
use crate::policy::{Counts, Exceeding, Terms};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

const MILLISECOND: Duration = Duration::from_millis(1);
const BOTH: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

fn bits(rate: u64) -> Bounds {
    let rates = Rates { bits_per_second: Some(rate), packets_per_second: None };
    Bounds { inbound: rates, outbound: rates, ..Bounds::default() }
}

fn terms(all: Bounds, per_caller: Bounds, mode: Mode) -> Terms {
    let limits = Limits { all, per_caller, mode };
    Terms { limits, overhead_bytes: 0, burst: Duration::from_millis(100) }
}

fn udp(bytes: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2);
    builder.write(&mut packet, &vec![0; bytes - 28]).expect("packet");
    packet
}

/// A sender: its flow, its caller, the size of its packets and how many come in a millisecond.
#[derive(Clone, Copy)]
struct Sender {
    flow: u32,
    caller: u32,
    subjects: &'static [&'static str],
    bytes: usize,
    per_millisecond: usize,
}

const FLOOD: Sender = Sender { flow: 1, caller: 1, subjects: &["web"], bytes: 1420, per_millisecond: 20 };

struct Bench {
    limiter: Limiter<&'static str>,
    now: Instant,
    shares: BTreeMap<u32, NonZeroU32>,
}

impl Bench {
    fn new(wanted: &[(&'static str, Terms)]) -> Self {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        limiter.configure(wanted.iter().copied().collect(), now);
        Self { limiter, now, shares: BTreeMap::new() }
    }

    /// Bytes that passed of each sender, by its place, in so much time.
    fn run(&mut self, senders: &[Sender], direction: Direction, time: Duration) -> Vec<u64> {
        let mut passed = vec![0; senders.len()];
        let place = |flow: u32| senders.iter().position(|sender| sender.flow == flow);
        let end = self.now + time;
        while self.now < end {
            self.now += MILLISECOND;
            for (at, sender) in senders.iter().enumerate() {
                passed[at] += self.send(sender, direction);
            }
            while let Some(released) = self.limiter.release(self.now) {
                let place = place(released.flow).filter(|_| released.direction == direction);
                place.into_iter().for_each(|place| passed[place] += released.bytes.len() as u64);
            }
        }
        passed
    }

    fn share(&mut self, sender: &Sender) -> Option<NonZeroU32> {
        let Self { limiter, now, shares } = self;
        let known = shares.get(&sender.flow).copied();
        let share = known.or_else(|| limiter.open(sender.subjects, sender.caller, *now));
        share.map(|share| *shares.entry(sender.flow).or_insert(share))
    }

    /// What passes at once.
    fn send(&mut self, sender: &Sender, direction: Direction) -> u64 {
        let mut passed = 0;
        for _ in 0..sender.per_millisecond {
            let share = self.share(sender);
            let Self { limiter, now, .. } = self;
            let flow = share.map(|share| (sender.flow, share));
            let mut passes = |flow| limiter.passes(flow, direction, sender.bytes as u64, 1, *now);
            match flow {
                Some(flow) if !passes(flow) => {
                    let mut bytes = udp(sender.bytes);
                    let packet = Packet::parse(&mut bytes, Offload::default()).expect("packet");
                    limiter.wait(flow, direction, &packet, *now);
                }
                Some(_) | None => passed += sender.bytes as u64,
            }
        }
        passed
    }

    fn counts(&self, of: &str) -> Counts {
        self.limiter.standings().find(|standing| standing.of == of).expect("a limit").counts
    }
}

#[test]
fn a_rate_holds_within_a_hundredth_in_both_directions_for_any_size_of_packets() {
    for (direction, bytes) in BOTH.into_iter().flat_map(|direction| [60, 576, 1420].map(|bytes| (direction, bytes))) {
        let mut bench = Bench::new(&[("web", terms(bits(10_000_000), Bounds::default(), Mode::Enforce))]);
        let senders = [Sender { bytes, per_millisecond: 30_000 / bytes, ..FLOOD }];
        bench.run(&senders, direction, Duration::from_secs(1));
        let passed = bench.run(&senders, direction, Duration::from_secs(5))[0] * 8 / 5;
        assert!((9_900_000..=10_100_000).contains(&passed), "{direction:?} {bytes}: {passed}");
        let other = if direction == Direction::Inbound { Direction::Outbound } else { Direction::Inbound };
        let beside = bench.run(&[Sender { flow: 2, ..FLOOD }], other, Duration::from_secs(1))[0] * 8;
        assert!((9_900_000..=11_100_000).contains(&beside), "with its burst: {beside}");
    }
}

#[test]
fn packets_a_second_are_held_as_bits_are() {
    let rates = Rates { bits_per_second: None, packets_per_second: Some(500) };
    let bounds = Bounds { inbound: rates, ..Bounds::default() };
    let mut bench = Bench::new(&[("web", terms(bounds, Bounds::default(), Mode::Enforce))]);
    bench.run(&[FLOOD], Direction::Inbound, Duration::from_secs(1));
    let passed = bench.run(&[FLOOD], Direction::Inbound, Duration::from_secs(4))[0] / 1420;
    assert!((1980..=2020).contains(&passed), "{passed}");
    // The other direction has no limit.
    let sent = 20 * 1420 * 1000;
    assert_eq!(bench.run(&[FLOOD], Direction::Outbound, Duration::from_secs(1)), [sent]);
}

#[test]
fn a_caller_that_floods_and_one_of_fifty_flows_leave_each_other_their_part() {
    let mut bench = Bench::new(&[("web", terms(bits(10_000_000), Bounds::default(), Mode::Enforce))]);
    let many = (0..50).map(|n| Sender { flow: 10 + n, caller: 2, per_millisecond: 1, ..FLOOD });
    let senders: Vec<_> = [FLOOD, Sender { flow: 2, caller: 3, bytes: 300, per_millisecond: 4, ..FLOOD }]
        .into_iter()
        .chain(many)
        .collect();
    bench.run(&senders, Direction::Outbound, Duration::from_secs(1));
    let passed = bench.run(&senders, Direction::Outbound, Duration::from_secs(6));
    let parts = [passed[0], passed[1], passed[2..].iter().sum()];
    let part = 10_000_000 / 8 * 6 / 3;
    assert!(parts.iter().all(|bytes| bytes.abs_diff(part) < part / 50), "{parts:?} of {part}");
}

#[test]
fn a_caller_below_its_part_has_all_it_sends_beside_one_that_floods() {
    let mut bench = Bench::new(&[("web", terms(bits(10_000_000), Bounds::default(), Mode::Enforce))]);
    let modest = Sender { flow: 2, caller: 2, bytes: 200, per_millisecond: 1, ..FLOOD };
    let passed = bench.run(&[FLOOD, modest], Direction::Inbound, Duration::from_secs(3));
    assert!(passed[1] >= 200 * 2990, "{passed:?}");
}

#[test]
fn each_caller_has_its_own_rate_and_all_together_theirs() {
    let limited = terms(bits(5_000_000), bits(2_000_000), Mode::Enforce);
    for (callers, each, all) in [(2, 2_000_000, 4_000_000), (4, 1_250_000, 5_000_000)] {
        let mut bench = Bench::new(&[("web", limited)]);
        let senders: Vec<_> = (0..callers).map(|caller| Sender { flow: caller, caller, ..FLOOD }).collect();
        bench.run(&senders, Direction::Inbound, Duration::from_secs(1));
        let passed = bench.run(&senders, Direction::Inbound, Duration::from_secs(4));
        let rates: Vec<u64> = passed.iter().map(|bytes| bytes * 2).collect();
        assert!(rates.iter().all(|rate| rate.abs_diff(each) < each / 50), "{rates:?}");
        assert!(rates.iter().sum::<u64>().abs_diff(all) < all / 100, "{rates:?}");
    }
}

#[test]
fn what_is_in_several_limits_keeps_them_all_and_those_who_share_one_add_up() {
    let mut bench = Bench::new(&[
        ("web", terms(bits(4_000_000), Bounds::default(), Mode::Enforce)),
        ("acme", terms(bits(6_000_000), Bounds::default(), Mode::Enforce)),
    ]);
    let senders = [
        Sender { subjects: &["web", "acme"], ..FLOOD },
        Sender { flow: 2, caller: 2, subjects: &["web", "acme"], ..FLOOD },
        Sender { flow: 3, caller: 3, subjects: &["db", "acme"], ..FLOOD },
    ];
    bench.run(&senders, Direction::Outbound, Duration::from_secs(1));
    let passed = bench.run(&senders, Direction::Outbound, Duration::from_secs(5));
    let rates: Vec<u64> = passed.iter().map(|bytes| bytes * 8 / 5).collect();
    assert!(rates.iter().sum::<u64>().abs_diff(6_000_000) < 60_000, "{rates:?}");
    assert!(rates[0] + rates[1] <= 4_040_000 && rates[0].abs_diff(rates[1]) < 60_000, "{rates:?}");
    assert!(rates[2] >= 1_900_000, "{rates:?}");
}

#[test]
fn a_limit_that_observes_counts_and_neither_delays_nor_drops_nor_refuses() {
    let few = Bounds { flows: Some(1), new_flows_per_second: Some(1), ..bits(1_000_000) };
    let mut bench = Bench::new(&[("web", terms(few, Bounds::default(), Mode::Observe))]);
    let passed = bench.run(&[FLOOD], Direction::Inbound, Duration::from_secs(1));
    assert_eq!(passed, [20 * 1420 * 1000]);
    assert_eq!((bench.limiter.take_dropped(), bench.limiter.poll_timeout()), (0, None));
    let counts = bench.counts("web");
    let over = 20_000 - (1_000_000 + 100_000) / 8 / 1420;
    assert!(counts.packets_delayed.abs_diff(over) < 200 && counts.packets_dropped == 0, "{counts:?}");
    let exceeded: Vec<_> = bench.limiter.exceeded(&["web"], Some(1), bench.now).collect();
    assert_eq!(
        exceeded.iter().map(|one| (one.what, one.mode)).collect::<Vec<_>>(),
        [(Exceeding::Flows, Mode::Observe)]
    );
    exceeded.iter().for_each(|one| bench.limiter.count(one));
    assert_eq!(bench.counts("web").flows_refused, 1);
    let news = bench.limiter.poll_news().expect("told once a minute");
    assert_eq!((news.of, news.mode, bench.limiter.poll_news()), ("web", Mode::Observe, None));
}

#[test]
fn flows_and_new_flows_are_counted_for_all_and_for_each_caller() {
    let all = Bounds { flows: Some(3), ..Bounds::default() };
    let each = Bounds { flows: Some(2), new_flows_per_second: Some(10), ..Bounds::default() };
    let mut bench = Bench::new(&[("web", terms(all, each, Mode::Enforce))]);
    let exceeded = |bench: &Bench, caller| {
        let first = bench.limiter.exceeded(&["web"], Some(caller), bench.now).next();
        first.map(|one| (one.per_caller, one.what))
    };
    let open = |bench: &mut Bench, flow, caller| {
        assert_eq!(exceeded(bench, caller), None, "{flow}");
        bench.share(&Sender { flow, caller, ..FLOOD }).expect("a share")
    };
    let first = open(&mut bench, 1, 1);
    open(&mut bench, 2, 1);
    assert_eq!(exceeded(&bench, 1), Some((true, Exceeding::Flows)));
    open(&mut bench, 3, 2);
    assert_eq!(exceeded(&bench, 3), Some((false, Exceeding::Flows)));
    bench.limiter.set_open(first, false);
    assert_eq!(exceeded(&bench, 3), None);
    assert_eq!(bench.limiter.reopen(first, bench.now), None);
    bench.limiter.set_open(first, true);
    assert_eq!(bench.limiter.reopen(first, bench.now), Some(Exceeding::Flows));
    assert_eq!(exceeded(&bench, 3), Some((false, Exceeding::Flows)));
    bench.limiter.close(1, first, true);
    assert_eq!(exceeded(&bench, 3), None);
    // One flow at a time, but too often.
    for flow in 10..17 {
        let share = open(&mut bench, flow, 1);
        bench.limiter.close(flow, share, true);
    }
    assert_eq!(exceeded(&bench, 1), Some((true, Exceeding::NewFlows)));
}

#[test]
fn a_change_keeps_what_stays_and_counts_flows_that_were_there_before() {
    let web = |flows, rate| {
        let bounds = Bounds { flows: Some(flows), new_flows_per_second: Some(2), ..bits(rate) };
        terms(bounds, Bounds::default(), Mode::Enforce)
    };
    let mut bench = Bench::new(&[("web", web(10, 1_000_000))]);
    bench.run(&[FLOOD, Sender { flow: 2, ..FLOOD }], Direction::Inbound, Duration::from_secs(1));
    let what = |bench: &Bench| bench.limiter.exceeded(&["web"], Some(1), bench.now).next().map(|one| one.what);
    bench.run(&[Sender { flow: 3, ..FLOOD }, Sender { flow: 4, ..FLOOD }], Direction::Inbound, MILLISECOND);
    assert_eq!(what(&bench), Some(Exceeding::NewFlows));
    // New flows a second are not given again; what waits goes on, by the new rate.
    bench.limiter.configure([("web", web(10, 2_000_000))].into(), bench.now);
    assert_eq!(what(&bench), Some(Exceeding::NewFlows));
    let senders = [1, 2, 3, 4].map(|flow| Sender { flow, ..FLOOD });
    bench.run(&senders, Direction::Inbound, Duration::from_secs(1));
    let passed: u64 = bench.run(&senders, Direction::Inbound, Duration::from_secs(4)).iter().sum();
    assert!((passed * 2).abs_diff(2_000_000) < 20_000, "{}", passed * 2);
    bench.limiter.configure([("web", web(4, 2_000_000))].into(), bench.now);
    assert_eq!(what(&bench), Some(Exceeding::Flows));
    // Without limits what waits passes at once, and flows are no longer counted.
    bench.limiter.configure(BTreeMap::new(), bench.now);
    while bench.limiter.release(bench.now).is_some() {}
    assert_eq!(bench.limiter.poll_timeout(), None);
    for (flow, share) in std::mem::take(&mut bench.shares) {
        let none: [&&str; 0] = [];
        assert_eq!(bench.limiter.attach_again((flow, Some(share), true), none, 1, bench.now), None);
    }
    assert!(bench.limiter.is_idle());
    // And a limit that comes finds those that are there, when they are attached.
    bench.limiter.configure([("web", web(2, 2_000_000))].into(), bench.now);
    for flow in 1..=2 {
        assert!(bench.limiter.attach_again((flow, None, true), &["web"], 1, bench.now).is_some());
    }
    assert_eq!(what(&bench), Some(Exceeding::Flows));
}

#[test]
fn what_waits_is_bounded_and_thousands_of_flooding_callers_leave_room_for_one_more() {
    let mut bench = Bench::new(&[("web", terms(bits(1_000_000), Bounds::default(), Mode::Enforce))]);
    let flood = |n| Sender { flow: n, caller: n, per_millisecond: 100, ..FLOOD };
    for n in 0..2000 {
        bench.send(&flood(n), Direction::Inbound);
    }
    assert!(bench.limiter.queued_bytes() <= 32 << 20, "{}", bench.limiter.queued_bytes());
    for n in 0..2000 {
        bench.shares.remove(&n).into_iter().for_each(|share| bench.limiter.close(n, share, true));
    }
    assert_eq!((bench.limiter.queued_bytes(), bench.limiter.release(bench.now).map(|r| r.flow)), (0, None));
    // Fewer, and each has its part.
    for n in 0..60 {
        bench.send(&flood(n), Direction::Inbound);
    }
    let late = Sender { flow: 100, caller: 100, per_millisecond: 10, ..FLOOD };
    bench.send(&late, Direction::Inbound);
    let mut first = (0..1000).filter_map(|_| {
        bench.now += MILLISECOND;
        bench.limiter.release(bench.now)
    });
    assert!(first.any(|released| released.flow == 100));
}

#[test]
fn within_a_flow_nothing_overtakes() {
    let limited = terms(bits(5_000_000), bits(4_000_000), Mode::Enforce);
    let mut bench = Bench::new(&[("web", limited), ("acme", terms(bits(6_000_000), bits(3_000_000), Mode::Enforce))]);
    let subjects: [&[&str]; 2] = [&["web", "acme"], &["acme"]];
    let mut seen = BTreeMap::new();
    for number in 0_u32..4000 {
        let (flow, caller) = (number % 8, number % 3);
        let sender = Sender { flow, caller: flow % 3, subjects: subjects[caller as usize % 2], ..FLOOD };
        let share = bench.share(&sender).expect("a share");
        let mut bytes = udp(40 + (number * 37 % 1300) as usize);
        bytes[28..32].copy_from_slice(&number.to_be_bytes());
        let packet = Packet::parse(&mut bytes, Offload::default()).expect("packet");
        bench.limiter.wait((flow, share), Direction::Inbound, &packet, bench.now);
        bench.now += Duration::from_micros(700);
        while let Some(Released { flow, bytes, .. }) = bench.limiter.release(bench.now) {
            let number = u32::from_be_bytes(bytes[28..32].try_into().expect("four"));
            assert!(seen.insert(flow, number).is_none_or(|before| before < number));
        }
    }
    assert_eq!(seen.len(), 8);
}
