//! Two sites that a hub introduced, behind NATs of every kind of RFC 4787, on a simulated internet: they find the direct way
//! where there is one, use the relay where there is none, and change from one to the other while packets flow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use vp::addr::{Identity, Name, Path, PeerId, Selector};
use vp::hub::{Attendance, Hub};
use vp::tunnel::{Opened, Transmits, TunnelSettings, Tunnels, same_binding, set_binding};
use x25519_dalek::{PublicKey, StaticSecret};

const HUB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 51820);
const PEER: PeerId = PeerId(0);
const SITES: [PeerId; 2] = [PeerId(10), PeerId(11)];
const MTU: u16 = 1420;
const TICK: Duration = Duration::from_millis(10);
/// From one public address to another.
const DELAY: Duration = Duration::from_millis(20);

/// What a mapping (RFC 4787 section 4.1) or a filter (section 5) depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Nothing,
    Address,
    AddressAndPort,
}

const ALL: [By; 3] = [By::Nothing, By::Address, By::AddressAndPort];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kind {
    mapping: By,
    filter: By,
}

/// One socket's NAT.
struct Nat {
    kind: Kind,
    address: Ipv4Addr,
    ports: BTreeMap<Option<SocketAddr>, u16>,
    called: BTreeMap<u16, BTreeSet<SocketAddr>>,
    next: u16,
}

impl Nat {
    fn source(&mut self, to: SocketAddr) -> SocketAddr {
        let key = match self.kind.mapping {
            By::Nothing => None,
            By::Address => Some(SocketAddr::new(to.ip(), 0)),
            By::AddressAndPort => Some(to),
        };
        self.next += usize::from(!self.ports.contains_key(&key)) as u16;
        let port = *self.ports.entry(key).or_insert(self.next);
        self.called.entry(port).or_default().insert(to);
        (self.address, port).into()
    }

    fn admits(&self, from: SocketAddr, port: u16) -> bool {
        let Some(called) = self.called.get(&port) else { return false };
        match self.kind.filter {
            By::Nothing => true,
            By::Address => called.iter().any(|to| to.ip() == from.ip()),
            By::AddressAndPort => called.contains(&from),
        }
    }

    fn flush(&mut self) {
        self.ports.clear();
        self.called.clear();
    }
}

struct Site {
    tunnels: Tunnels,
    transmits: Transmits,
    nat: Nat,
    received: Vec<(Instant, u32)>,
}

struct Flying {
    arrives: Instant,
    from: SocketAddr,
    to: SocketAddr,
    datagram: Vec<u8>,
}

struct World {
    sites: [Site; 2],
    hub: Hub,
    has_hub: bool,
    direct_works: bool,
    flying: VecDeque<Flying>,
    now: Instant,
    sent: usize,
}

fn secret(site: usize) -> StaticSecret {
    StaticSecret::from([site as u8 + 1; 32])
}

fn packet(number: u32) -> Vec<u8> {
    let mut packet = vec![0; 100];
    (packet[0], packet[3]) = (0x45, 100);
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

impl World {
    fn new(kinds: [Kind; 2]) -> Self {
        let now = Instant::now();
        let site = |number: usize| Site {
            tunnels: Tunnels::new(secret(number), number as u64 + 1, now),
            transmits: Transmits::new(1 << 20),
            nat: Nat {
                kind: kinds[number],
                address: Ipv4Addr::new(198, 51, 100, number as u8 + 1),
                ports: BTreeMap::new(),
                called: BTreeMap::new(),
                next: 1000,
            },
            received: Vec::new(),
        };
        let mut world = Self {
            sites: [site(0), site(1)],
            hub: Hub::new(1),
            has_hub: true,
            direct_works: true,
            flying: VecDeque::new(),
            now,
            sent: 0,
        };
        world.introduce();
        world
    }

    /// As a hub does: each is told where the other was seen, and the binding.
    fn introduce(&mut self) {
        let seen = [0, 1].map(|site: usize| self.sites[site].nat.source(HUB));
        for (site, peer) in SITES.into_iter().enumerate() {
            let name = |site: usize| Name::new(["cloud", "factory"][site]).expect("name");
            let identity = Identity { site: name(site), tenant: None, groups: Vec::new() };
            let wants = BTreeSet::from([name(1 - site)]);
            let attendance = Attendance { wants, admits: [Selector::Any].into(), addresses: Vec::new() };
            self.hub.attend(peer, identity, attendance, Some(seen[site]));
        }
        for (site, peer) in SITES.into_iter().enumerate() {
            let (_, known) = self.hub.acquaintances(peer);
            let tunnels = &mut self.sites[site].tunnels;
            let settings = TunnelSettings {
                public_key: PublicKey::from(&secret(1 - site)).to_bytes(),
                preshared_key: None,
                endpoint: None,
                carrier: None,
                keepalive_seconds: None,
                held: true,
                second_cipher: true,
            };
            tunnels.add(PEER, settings, self.now).expect("settings");
            let relayed = Path { address: HUB, binding: Some(known[0].binding) };
            tunnels.set_paths(PEER, &[relayed, known[0].addresses[0].into()], self.now);
        }
    }

    fn path(&self, site: usize) -> Path {
        self.sites[site].tunnels.path(PEER).expect("a path")
    }

    fn are_direct(&self) -> bool {
        [0, 1].into_iter().all(|site| !self.path(site).is_relayed())
    }

    fn send(&mut self, site: usize, number: u32) {
        let Site { tunnels, transmits, .. } = &mut self.sites[site];
        tunnels.seal(PEER, &packet(number), MTU, transmits, self.now).expect("a path");
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            for site in 0..2 {
                let Site { tunnels, transmits, .. } = &mut self.sites[site];
                tunnels.handle_timeout(transmits, self.now);
                self.take_sent(site);
            }
            while self.flying.front().is_some_and(|flying| flying.arrives <= self.now) {
                let Some(flying) = self.flying.pop_front() else { break };
                self.arrive(flying);
            }
        }
    }

    /// With a packet each way every 20 ms.
    fn talk(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            (0..2).for_each(|site| self.send(site, 0));
            self.pass(2 * TICK);
        }
    }

    fn take_sent(&mut self, site: usize) {
        let Site { transmits, nat, .. } = &mut self.sites[site];
        for (batch, bytes) in transmits.batches() {
            for datagram in bytes.chunks(batch.segment_bytes) {
                let (from, arrives) = (nat.source(batch.to), self.now + DELAY);
                self.flying.push_back(Flying { arrives, from, to: batch.to, datagram: datagram.to_vec() });
                self.sent += 1;
            }
        }
        transmits.clear();
    }

    fn arrive(&mut self, Flying { from, to, mut datagram, .. }: Flying) {
        let (binding, _) = same_binding(&datagram, datagram.len());
        if to == HUB {
            let onward = binding.filter(|_| self.has_hub).and_then(|binding| self.hub.onward(from, binding));
            if let Some(Ok(onward)) = onward {
                set_binding(&mut datagram, Some(onward.binding));
                self.flying.push_back(Flying { arrives: self.now + DELAY, from: HUB, to: onward.to, datagram });
            }
            return;
        }
        let Some(site) = self.sites.iter().position(|site| IpAddr::from(site.nat.address) == to.ip()) else { return };
        let works = self.direct_works || from == HUB;
        if !works || !self.sites[site].nat.admits(from, to.port()) {
            return;
        }
        set_binding(&mut datagram, None);
        let Site { tunnels, transmits, received, .. } = &mut self.sites[site];
        let mut into = vec![0; 2048];
        let opened = tunnels.open(Path { address: from, binding }, &datagram, &mut into, transmits, self.now);
        if let Opened::Packet { .. } = opened {
            received.push((self.now, u32::from_be_bytes(into[20..24].try_into().expect("number"))));
        }
        self.take_sent(site);
    }

    /// The longest time without a packet at a site since `from`.
    fn longest_gap(&self, site: usize, from: Instant) -> Duration {
        let times = self.sites[site].received.iter().map(|(at, _)| *at).filter(|at| *at >= from);
        let times: Vec<Instant> = std::iter::once(from).chain(times).chain([self.now]).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

const HOME: Kind = Kind { mapping: By::Nothing, filter: By::AddressAndPort };
const SYMMETRIC: Kind = Kind { mapping: By::AddressAndPort, filter: By::AddressAndPort };
const OPEN: Kind = Kind { mapping: By::Nothing, filter: By::Nothing };

/// By thought alone: who can reach whom, knowing only where the hub saw the other.
fn direct_is_possible([a, b]: [Kind; 2]) -> bool {
    let learns = |filter: By| filter != By::AddressAndPort;
    match (a.mapping == By::Nothing, b.mapping == By::Nothing) {
        (true, true) => true,
        // The one whose port is known is called from a port that it never called.
        (true, false) => learns(a.filter),
        (false, true) => learns(b.filter),
        // One must take anybody's call at the port that the hub saw, and then call back to one that lets it in.
        (false, false) => a.filter == By::Nothing && learns(b.filter) || b.filter == By::Nothing && learns(a.filter),
    }
}

#[test]
fn each_pair_of_nats_gets_a_direct_way_exactly_where_there_is_one() {
    let kinds = ALL.into_iter().flat_map(|mapping| ALL.map(|filter| Kind { mapping, filter }));
    let kinds: Vec<Kind> = kinds.collect();
    for pair in kinds.iter().flat_map(|a| kinds.iter().map(|b| [*a, *b])) {
        let mut world = World::new(pair);
        world.talk(Duration::from_secs(6));
        assert_eq!(world.are_direct(), direct_is_possible(pair), "{pair:?}: {}, {}", world.path(0), world.path(1));
        let since = world.now;
        world.talk(Duration::from_secs(4));
        let gap = (0..2).map(|site| world.longest_gap(site, since)).max();
        assert!(gap < Some(Duration::from_millis(200)), "{pair:?}: {gap:?}");
    }
}

#[test]
fn a_nat_that_forgets_everything_costs_less_than_three_seconds() {
    for pair in [[HOME, HOME], [HOME, OPEN], [OPEN, HOME], [HOME, SYMMETRIC], [SYMMETRIC, SYMMETRIC]] {
        for forgetful in 0..2 {
            let mut world = World::new(pair);
            world.talk(Duration::from_secs(10));
            let since = world.now;
            world.sites[forgetful].nat.flush();
            // The hub's own tunnel tells it where the site is now, as soon as anything is sent through it.
            world.introduce();
            world.talk(Duration::from_secs(20));
            let gap = (0..2).map(|site| world.longest_gap(site, since)).max();
            assert!(gap < Some(Duration::from_secs(3)), "{pair:?}, {forgetful}: {gap:?}");
            assert_eq!(world.are_direct(), direct_is_possible(pair), "{pair:?}, {forgetful}");
        }
    }
}

#[test]
fn a_direct_way_that_closes_is_left_for_the_relay_and_taken_again_when_it_opens() {
    let mut world = World::new([HOME, HOME]);
    world.talk(Duration::from_secs(10));
    assert!(world.are_direct());
    let closed = world.now;
    world.direct_works = false;
    world.talk(Duration::from_secs(10));
    assert!((0..2).all(|site| world.path(site).is_relayed()));
    world.direct_works = true;
    let opened = world.now;
    world.talk(Duration::from_secs(20));
    assert!(world.are_direct());
    for site in 0..2 {
        assert!(world.longest_gap(site, closed) < Duration::from_secs(3), "{:?}", world.longest_gap(site, closed));
        assert!(world.longest_gap(site, opened) < Duration::from_millis(200));
    }
}

#[test]
fn without_its_hub_a_direct_way_is_kept_open_even_when_idle() {
    let mut world = World::new([HOME, HOME]);
    world.talk(Duration::from_secs(10));
    world.has_hub = false;
    world.pass(Duration::from_secs(60));
    let sent = world.sent;
    world.pass(Duration::from_secs(600));
    let (idle, since) = (world.sent - sent, world.now);
    world.talk(Duration::from_secs(1));
    assert!(world.are_direct());
    assert!((0..2).all(|site| world.longest_gap(site, since) < Duration::from_millis(200)));
    // A question of each end every 20 s, its answer, and a handshake along both ways every two minutes.
    assert!(idle <= 4 * 30 + 8 * 5, "{idle}");
}

#[test]
fn an_idle_relayed_tunnel_costs_nothing_but_its_sessions() {
    let mut world = World::new([SYMMETRIC, SYMMETRIC]);
    world.talk(Duration::from_secs(10));
    world.pass(Duration::from_secs(300));
    let sent = world.sent;
    world.pass(Duration::from_secs(3600));
    // A session of three minutes after the other, asked for by both ends along both ways.
    assert!(world.sent - sent <= 8 * 20, "{}", world.sent - sent);
    let since = world.now;
    world.talk(Duration::from_secs(2));
    assert!((0..2).all(|site| world.longest_gap(site, since) < Duration::from_millis(500)));
}

#[test]
fn a_datagram_that_a_stranger_replays_moves_nobody() {
    let mut world = World::new([OPEN, OPEN]);
    world.talk(Duration::from_secs(6));
    let path = world.path(1);
    world.send(0, 7);
    world.take_sent(0);
    let seen: Vec<Vec<u8>> = world.flying.iter().map(|flying| flying.datagram.clone()).collect();
    world.pass(Duration::from_millis(500));
    let to = path_to(&world, 1);
    let stranger = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 66), 66));
    for datagram in seen {
        world.arrive(Flying { arrives: world.now, from: stranger, to, datagram });
    }
    assert_eq!(world.path(1), path);
}

#[test]
fn a_peer_that_forges_where_it_is_has_others_asked_no_more_often_than_it_sends() {
    let mut world = World::new([OPEN, OPEN]);
    world.talk(Duration::from_secs(6));
    world.pass(Duration::from_secs(30));
    let to = path_to(&world, 1);
    let mut asked = 0;
    for victim in 0..100_u8 {
        world.send(0, 1);
        let Site { transmits, .. } = &mut world.sites[0];
        let forged: Vec<u8> = transmits.batches().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        transmits.clear();
        let from = SocketAddr::from((Ipv4Addr::new(192, 0, 2, victim), 7));
        world.arrive(Flying { arrives: world.now, from, to, datagram: forged });
        for _ in 0..200 {
            world.pass(TICK);
            asked +=
                world.flying.iter().filter(|flying| flying.arrives == world.now + DELAY && flying.to == from).count();
        }
    }
    assert!(asked <= 100, "{asked}");
}

/// Where the other end sends what is for this site.
fn path_to(world: &World, site: usize) -> SocketAddr {
    world.path(1 - site).address
}
