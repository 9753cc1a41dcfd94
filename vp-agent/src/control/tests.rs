//! Two agents back to back on a wire in memory, with time that passes only while everyone waits.

use super::*;
use crate::identity::{Offered, Place, Presented};
use crate::registry::Unregistered;
use std::net::IpAddr;
use std::str::FromStr;
use vp::addr::{Name, PortRange, Protocol};
use vp::catalogue::{NamedCaller, Offer, OfferedService};
use vp::hub::Attendance;
use vp::identity::{Certificate, Issuer, List, Serial, Subject, Validity};
use vp::node::{Allowed, Introduction, Introductions, OfferError, Reason};

/// Each side has one peer: the other.
const PEER: PeerId = PeerId(7);

/// What the wire does to packets.
#[derive(Clone, Copy)]
struct Weather {
    lost_percent: u64,
    delay_ms: u64,
    jitter_ms: u64,
}

const STORM: Weather = Weather { lost_percent: 10, delay_ms: 20, jitter_ms: 60 };
const FAIR: Weather = Weather { lost_percent: 0, delay_ms: 1, jitter_ms: 0 };

type Far = Arc<dyn Fn(Vec<u8>) + Send + Sync>;

/// A gateway without a node.
struct Site {
    is_stock_peer: bool,
    offer: Mutex<Offer>,
    /// What the peer offers, as last taken.
    taken: watch::Sender<Option<Offer>>,
    is_hub: bool,
    is_hubs_site: bool,
    says: Mutex<Attendance>,
    heard: watch::Sender<Option<Attendance>>,
    tells: Mutex<Introductions>,
    told: watch::Sender<Option<Introductions>>,
    presented: watch::Sender<Arc<Presented>>,
    /// What the peer presents, as last taken.
    shown: watch::Sender<Option<Certificate>>,
    target: Option<IpAddr>,
    verdict: Result<String, Reason>,
    weather: Mutex<Weather>,
    random: Mutex<Peers>,
    sent: AtomicU64,
    /// Takes packets at the other end; none while nobody is there.
    far: Mutex<Option<Far>>,
}

#[derive(Clone)]
struct TestLink(Arc<Site>);

impl Link for TestLink {
    async fn has_agent(&self, _: PeerId) -> bool {
        !self.0.is_stock_peer
    }

    async fn send(&self, peer: PeerId, packets: Vec<Vec<u8>>) {
        assert_eq!(peer, PEER);
        for packet in packets {
            assert!(packet.len() <= 1280, "{} bytes", packet.len());
            self.0.sent.fetch_add(1, Ordering::Relaxed);
            let weather = *self.0.weather.lock().unwrap();
            let random = self.0.random.lock().unwrap().next_seed();
            if random % 100 < weather.lost_percent {
                continue;
            }
            let delay = weather.delay_ms + (random >> 32) % (weather.jitter_ms + 1);
            let site = self.0.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                let far = site.far.lock().unwrap().clone();
                if let Some(far) = far {
                    far(packet);
                }
            });
        }
    }

    async fn offer(&self, _: PeerId) -> Offer {
        self.0.offer.lock().unwrap().clone()
    }

    async fn set_offer(&self, _: PeerId, offer: Offer) -> Result<(), OfferError> {
        self.0.taken.send_replace(Some(offer));
        Ok(())
    }

    async fn is_hub(&self, _: PeerId) -> bool {
        self.0.is_hubs_site
    }

    async fn attendance(&self, _: PeerId) -> Attendance {
        self.0.says.lock().unwrap().clone()
    }

    async fn introduce(&self, _: PeerId, introductions: Introductions) {
        self.0.told.send_replace(Some(introductions));
    }

    async fn attend(&self, _: PeerId, attendance: Attendance) -> bool {
        self.0.heard.send_replace(Some(attendance));
        self.0.is_hub
    }

    async fn introductions(&self, _: PeerId) -> Introductions {
        self.0.tells.lock().unwrap().clone()
    }

    async fn explain(&self, _: PeerId, _: Target, caller: Option<u16>) -> Result<Allowed, Reason> {
        let allowed = |rule| Allowed {
            rule,
            limit: Some(Reason::FlowLimit),
            observed: Some(Reason::RateLimit),
            source: vp::node::Source::Presence,
        };
        self.0.verdict.clone().map(|rule| allowed(format!("{rule} {caller:?}")))
    }

    async fn probe_target(&self, _: PeerId, _: Target) -> Option<IpAddr> {
        self.0.target
    }

    fn credentials(&self) -> watch::Receiver<Arc<Presented>> {
        self.0.presented.subscribe()
    }

    async fn take_certificate(&self, peer: PeerId, bytes: Vec<u8>) -> Result<bool, Refusal> {
        assert_eq!(peer, PEER);
        self.0.shown.send_replace(Some(Certificate::read(&bytes)?));
        Ok(true)
    }

    async fn present(&self, _: PeerId, _: Vec<u8>) -> Result<Option<Place>, Refusal> {
        Ok(None)
    }

    async fn register(&self, _: PeerId, offered: Offered) -> Option<Result<Option<Place>, Unregistered>> {
        self.0.is_hub.then(|| match offered {
            Offered::Site(bytes) if bytes == b"good" => Ok(Some("site/acme/cloud".to_owned())),
            Offered::Site(_) => Err(Refusal::Older.into()),
            Offered::Invitation(_) => Err(crate::registry::StoreError::new("the disk is full").into()),
        })
    }

    async fn take_revocations(&self, bytes: Vec<u8>) -> Result<(List, bool), Refusal> {
        Ok((List::read(&bytes)?, true))
    }
}

impl Site {
    fn new(seed: u64) -> Self {
        Self {
            is_stock_peer: false,
            offer: Mutex::default(),
            taken: watch::Sender::new(None),
            is_hub: false,
            is_hubs_site: false,
            says: Mutex::default(),
            heard: watch::Sender::new(None),
            tells: Mutex::default(),
            told: watch::Sender::new(None),
            presented: watch::Sender::default(),
            shown: watch::Sender::default(),
            target: None,
            verdict: Err(Reason::NotExposed),
            weather: Mutex::new(FAIR),
            random: Mutex::new(Peers { channels: BTreeMap::new(), random: seed }),
            sent: AtomicU64::new(0),
            far: Mutex::new(None),
        }
    }
}

/// One agent and what it tells.
struct Agent {
    site: Arc<Site>,
    control: Control<TestLink>,
    notices: mpsc::Receiver<Notice>,
}

impl Agent {
    fn new(site: Site, seed: u64) -> Self {
        let site = Arc::new(site);
        let (control, notices) = Control::start(TestLink(site.clone()), seed);
        Self { site, control, notices }
    }

    fn far(&self) -> Far {
        let control = self.control.clone();
        Arc::new(move |packet| control.handle_event(&Event::Control { peer: PEER, packet }))
    }

    fn offers(&self, offer: Offer) {
        *self.site.offer.lock().unwrap() = offer;
        self.control.handle_event(&Event::OfferChanged(PEER));
    }

    /// Waits until the peer's offer here is this one.
    async fn has(&self, offer: &Offer) {
        let mut taken = self.site.taken.subscribe();
        let taken = taken.wait_for(|taken| taken.as_ref() == Some(offer));
        let outcome = timeout(Duration::from_secs(120), taken).await;
        assert!(outcome.is_ok(), "the offer did not come");
    }

    async fn hears(&mut self, wanted: impl Fn(&Notice) -> bool) -> Notice {
        let heard = async {
            loop {
                let notice = self.notices.recv().await.expect("the agent runs");
                if wanted(&notice) {
                    return notice;
                }
            }
        };
        timeout(Duration::from_secs(120), heard).await.expect("was not told")
    }

    async fn refuses(&mut self) -> String {
        match self.hears(|notice| matches!(notice, Notice::OfferRefused { .. })).await {
            Notice::OfferRefused { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn weather(&self, weather: Weather) {
        *self.site.weather.lock().unwrap() = weather;
    }

    fn is_told(&self) -> Option<Introductions> {
        self.site.told.borrow().clone()
    }

    fn sent(&self) -> u64 {
        self.site.sent.load(Ordering::Relaxed)
    }
}

/// The agent stops without a word and starts again, knowing nothing.
fn restart(agent: &mut Agent, other: &Agent, seed: u64) {
    agent.control.handle_event(&Event::PeerDown(PEER));
    (agent.control, agent.notices) = Control::start(TestLink(agent.site.clone()), seed);
    *other.site.far.lock().unwrap() = Some(agent.far());
    agent.control.handle_event(&Event::PeerUp(PEER));
}

/// Two agents that are up for each other.
fn pair(a: Site, b: Site) -> (Agent, Agent) {
    let (a, b) = (Agent::new(a, 1), Agent::new(b, 2));
    *a.site.far.lock().unwrap() = Some(b.far());
    *b.site.far.lock().unwrap() = Some(a.far());
    a.control.handle_event(&Event::PeerUp(PEER));
    b.control.handle_event(&Event::PeerUp(PEER));
    (a, b)
}

/// A peer's TCP without an agent on top.
fn bare_peer(of: &Agent) -> (Arc<Wire>, JoinHandle<()>) {
    let wire = Arc::new(Wire::new(9));
    let site = Site::new(9);
    *site.far.lock().unwrap() = Some(of.far());
    let (packets, taken) = mpsc::channel(PACKETS_MAX);
    *of.site.far.lock().unwrap() = Some(Arc::new(move |packet| drop(packets.try_send(packet))));
    let (link, runner) = (TestLink(Arc::new(site)), wire.clone());
    let (accepted, _) = mpsc::channel(1);
    let task = tokio::spawn(async move { runner.run(PEER, &link, taken, accepted, &Notify::new()).await });
    (wire, task)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn service(text: &str, index: u16) -> OfferedService {
    OfferedService {
        name: name(text),
        index,
        host_bits: 0,
        ipv4: true,
        ipv6: false,
        ports: vec![PortRange::from_str("tcp/80").unwrap(), PortRange::ICMP],
        labels: BTreeMap::from([("version".to_owned(), "1.2".to_owned())]),
        healthy: true,
    }
}

fn offer(services: &[OfferedService]) -> Offer {
    Offer { services: services.to_vec(), callers: vec![NamedCaller { index: 2, name: name("plc") }], hosts: Vec::new() }
}

fn many(count: u16) -> Offer {
    offer(&(0..count).map(|n| service(&format!("service-{n}"), n + 2)).collect::<Vec<_>>())
}

#[tokio::test(start_paused = true)]
async fn offers_arrive_both_ways_change_and_are_withdrawn() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    a.has(&Offer::default()).await;
    let (web, db) = (offer(&[service("web", 2)]), offer(&[service("db", 9), service("web", 2)]));
    a.offers(db.clone());
    b.offers(web.clone());
    a.has(&web).await;
    b.has(&db).await;
    b.offers(db.clone());
    a.has(&db).await;
    b.offers(Offer::default());
    a.has(&Offer::default()).await;
    assert!(a.control.is_open(PEER) && b.control.is_open(PEER));
    assert_eq!(a.hears(|_| true).await, Notice::Opened(PEER));
}

#[tokio::test(start_paused = true)]
async fn credentials_arrive_both_ways_as_they_change_and_a_bad_one_is_said_once() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    let acme = Issuer::authority(name("acme"), &[1; 32]);
    let certificate = |number: u8| {
        let subject = Subject { site: name("factory"), groups: Vec::new(), public_key: [number; 32] };
        let valid = Validity { not_before: 1, not_after: 2 };
        acme.certificate(&subject, Serial([number; 16]), valid).unwrap()
    };
    let list = acme.revoke(None, Serial([9; 16]), 0, 1).unwrap();
    let presents = |agent: &Agent, certificate: Vec<u8>| {
        let presented = Presented { certificate: Some(certificate), revocations: vec![list.to_bytes()] };
        agent.site.presented.send_replace(Arc::new(presented));
    };
    let is_shown = async |agent: &Agent, certificate: &Certificate| {
        let mut shown = agent.site.shown.subscribe();
        let seen = shown.wait_for(|shown| shown.as_ref() == Some(certificate));
        drop(timeout(Duration::from_secs(60), seen).await.expect("in time").expect("a sender"));
    };
    presents(&a, certificate(1).to_bytes());
    presents(&b, certificate(2).to_bytes());
    is_shown(&b, &certificate(1)).await;
    is_shown(&a, &certificate(2)).await;
    let taken = a.hears(|notice| matches!(notice, Notice::RevocationsTaken { .. })).await;
    assert_eq!(taken, Notice::RevocationsTaken { peer: PEER, tenant: name("acme"), version: 1 });

    let mut altered = certificate(3).to_bytes();
    altered[20] ^= 1;
    presents(&b, altered);
    let refused = a.hears(|notice| matches!(notice, Notice::CredentialRefused { .. })).await;
    let Notice::CredentialRefused { peer: PEER, what: What::Certificate, .. } = refused else { panic!("{refused:?}") };
    presents(&b, certificate(4).to_bytes());
    is_shown(&a, &certificate(4)).await;
    assert!(a.control.is_open(PEER), "the channel outlives it");
}

#[tokio::test(start_paused = true)]
async fn the_largest_offer_arrives_and_a_larger_one_is_refused() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    b.offers(many(4096));
    a.has(&many(4096)).await;
    for count in [4097, 65_000] {
        b.offers(many(count));
        assert_eq!(a.refuses().await, "more than 4096 services");
        assert_eq!(*a.site.taken.borrow(), Some(many(4096)));
        b.offers(many(4096));
        a.hears(|notice| matches!(notice, Notice::OfferTaken { .. })).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_offer_larger_than_a_message_may_be_is_refused_and_the_old_one_stays() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    let small = many(3);
    b.offers(small.clone());
    a.has(&small).await;
    let mut large = many(65_000);
    let text = "x".repeat(200);
    large.services.iter_mut().for_each(|service| drop(service.labels.insert("text".to_owned(), text.clone())));
    b.offers(large);
    assert!(a.refuses().await.contains("larger than"));
    assert_eq!(*a.site.taken.borrow(), Some(small.clone()));
    b.offers(many(4));
    a.has(&many(4)).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_offer_is_refused_whole_and_the_old_one_stays() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    let good = many(3);
    b.offers(good.clone());
    a.has(&good).await;
    b.offers(offer(&[service("new", 40), service("web", 1)]));
    assert_eq!(a.refuses().await, "service \"web\": wire index 1 with 0 host bits is outside 2..=65534 or not aligned");
    assert_eq!(*a.site.taken.borrow(), Some(good.clone()));
    assert!(a.control.is_open(PEER), "the channel outlives a bad offer");
    b.offers(many(2));
    a.has(&many(2)).await;
}

#[tokio::test(start_paused = true)]
async fn offers_pass_through_loss_delay_and_reordering() {
    let (a, b) = pair(Site::new(1), Site::new(2));
    a.weather(STORM);
    b.weather(STORM);
    for count in [1, 700, 20, 3000, 0] {
        a.offers(many(count));
        b.offers(many(count));
        a.has(&many(count)).await;
        b.has(&many(count)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_faster_than_they_are_taken_become_one() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    a.has(&Offer::default()).await;
    for count in 1..=500 {
        b.offers(many(count));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    a.has(&many(500)).await;
    let mut taken = 0;
    while let Ok(notice) = a.notices.try_recv() {
        taken += u32::from(matches!(notice, Notice::OfferTaken { .. }));
    }
    assert!(taken < 20, "{taken} offers in half a second");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_restarts_in_silence_is_noticed_within_seconds() {
    let (mut a, mut b) = pair(Site::new(1), Site::new(2));
    a.offers(many(2));
    b.has(&many(2)).await;
    for seed in 3..20 {
        let start = Instant::now();
        restart(&mut b, &a, seed);
        let count = u16::try_from(seed).unwrap();
        b.offers(many(count));
        a.offers(many(count));
        a.has(&many(count)).await;
        b.has(&many(count)).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        a.hears(|notice| *notice == Notice::Opened(PEER)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_closes_the_channel_and_its_offer_stays() {
    let (mut a, mut b) = pair(Site::new(1), Site::new(2));
    b.offers(many(2));
    a.has(&many(2)).await;
    *a.site.far.lock().unwrap() = None;
    *b.site.far.lock().unwrap() = None;
    let start = Instant::now();
    a.hears(|notice| *notice == Notice::Closed(PEER)).await;
    assert!(start.elapsed() <= Duration::from_secs(11), "{:?}", start.elapsed());
    assert!(!a.control.is_open(PEER));
    assert_eq!(*a.site.taken.borrow(), Some(many(2)));
    // A minute later the way is there again, and nobody says so.
    tokio::time::sleep(Duration::from_secs(60)).await;
    *a.site.far.lock().unwrap() = Some(b.far());
    *b.site.far.lock().unwrap() = Some(a.far());
    b.offers(many(5));
    a.has(&many(5)).await;
    b.hears(|notice| *notice == Notice::Closed(PEER)).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_comes_up_again_is_called_at_once() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    b.offers(many(2));
    a.has(&many(2)).await;
    // What is still on the wire is lost with the tunnel.
    *a.site.far.lock().unwrap() = None;
    *b.site.far.lock().unwrap() = None;
    a.control.handle_event(&Event::PeerDown(PEER));
    b.control.handle_event(&Event::PeerDown(PEER));
    a.hears(|notice| *notice == Notice::Closed(PEER)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let sent = a.sent();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(a.sent(), sent, "nothing is sent to a peer that is away");
    b.offers(many(3));
    let start = Instant::now();
    *a.site.far.lock().unwrap() = Some(b.far());
    *b.site.far.lock().unwrap() = Some(a.far());
    b.control.handle_event(&Event::PeerUp(PEER));
    a.control.handle_event(&Event::PeerUp(PEER));
    a.has(&many(3)).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_channel_stays_open_and_says_little() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    b.offers(many(2));
    a.has(&many(2)).await;
    let sent = a.sent() + b.sent();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    while let Ok(notice) = a.notices.try_recv() {
        assert_ne!(notice, Notice::Closed(PEER));
    }
    let packets = a.sent() + b.sent() - sent;
    assert!(packets < 3600 * 3, "{packets} in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_stock_peer_is_never_called_nor_answered() {
    let (a, _b) = pair(Site { is_stock_peer: true, ..Site::new(1) }, Site::new(2));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(a.sent(), 0);
    assert!(!a.control.is_open(PEER));
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_coming_up_was_not_noticed_is_served() {
    let (a, b) = (Agent::new(Site::new(1), 1), Agent::new(Site::new(2), 2));
    *a.site.far.lock().unwrap() = Some(b.far());
    *b.site.far.lock().unwrap() = Some(a.far());
    b.offers(many(2));
    a.offers(many(3));
    a.control.handle_event(&Event::PeerUp(PEER));
    a.has(&many(2)).await;
    b.has(&many(3)).await;
}

#[tokio::test]
async fn a_probe_finds_what_answers_refuses_and_may_not_be_asked() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let local = Some("127.0.0.1".parse().unwrap());
    let (mut a, _b) = pair(Site::new(1), Site { target: local, ..Site::new(2) });
    a.hears(|notice| *notice == Notice::Opened(PEER)).await;
    let target = |protocol, port| Target { service: name("web"), protocol, port };
    let probe = a.control.probe(PEER, &target(Protocol::Tcp, port)).await.unwrap();
    assert_eq!(probe.outcome, ProbeOutcome::Answered);
    assert!(probe.gateway_round_trip >= Duration::from_millis(2), "{probe:?}");
    let probe = a.control.probe(PEER, &target(Protocol::Udp, port)).await.unwrap();
    assert_eq!(probe.outcome, ProbeOutcome::Unspecified);
    drop(listener);
    let probe = a.control.probe(PEER, &target(Protocol::Tcp, port)).await.unwrap();
    assert_eq!(probe.outcome, ProbeOutcome::Refused);
    // The other way round the service does not exist.
    let probe = _b.control.probe(PEER, &target(Protocol::Tcp, port)).await;
    assert!(matches!(probe, Ok(Probe { outcome: ProbeOutcome::NotAllowed, .. })), "{probe:?}");
    let refused = a.control.probe(PEER, &target(Protocol::Tcp, 0)).await;
    assert!(matches!(refused, Err(AskError::Refused(_))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn an_explanation_is_the_far_gateways_own() {
    let allowed = Site { verdict: Ok("site:factory".to_owned()), ..Site::new(1) };
    let denied = Site { verdict: Err(Reason::UnknownCaller), ..Site::new(2) };
    let (mut a, mut b) = pair(allowed, denied);
    a.hears(|notice| *notice == Notice::Opened(PEER)).await;
    b.hears(|notice| *notice == Notice::Opened(PEER)).await;
    let target = Target { service: name("web"), protocol: Protocol::Icmp, port: 0 };
    assert_eq!(a.control.explain(PEER, &target, None).await, Ok(Err("unknown-caller".to_owned())));
    let (rule, limit) = ("site:factory Some(9)".to_owned(), Some("flow-limit".to_owned()));
    let allowed = FarAllowed { rule, limit, observed: "rate-limit".to_owned(), reply_route: ReplyRoute::Presence };
    assert_eq!(b.control.explain(PEER, &target, Some(9)).await, Ok(Ok(allowed)));
    assert_eq!(b.control.explain(PeerId(8), &target, None).await, Err(AskError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_without_end_is_answered_at_its_rate() {
    let (mut a, b) = pair(Site::new(1), Site::new(2));
    a.hears(|notice| *notice == Notice::Opened(PEER)).await;
    let target = Target { service: name("web"), protocol: Protocol::Tcp, port: 80 };
    let start = Instant::now();
    let mut answered = 0;
    for _ in 0..500 {
        answered += u64::from(a.control.explain(PEER, &target, None).await.is_ok());
    }
    let seconds = start.elapsed().as_secs() + 1;
    assert!((10..=30 + 10 * seconds).contains(&answered), "{answered} in {seconds} s");
    b.offers(many(2));
    a.has(&many(2)).await;
}

/// A peer that speaks TCP but not gRPC, on all the connections it can have, does not keep its own next agent out.
#[tokio::test(start_paused = true)]
async fn garbage_on_every_connection_does_no_harm() {
    let mut a = Agent::new(Site::new(1), 1);
    a.offers(many(2));
    let b = Agent::new(Site::new(2), 2);
    let (hostile, task) = bare_peer(&a);
    for _ in 0..50 {
        let mut held = Vec::new();
        for _ in 0..8 {
            if let Ok(Ok(mut connection)) = timeout(Duration::from_secs(1), hostile.connect()).await {
                let garbage: Vec<u8> = (0..3000_u16).map(|n| n.wrapping_mul(31).to_be_bytes()[1]).collect();
                let _ = tokio::io::AsyncWriteExt::write_all(&mut connection, &garbage).await;
                held.push(connection);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    task.abort();
    *a.site.far.lock().unwrap() = Some(b.far());
    *b.site.far.lock().unwrap() = Some(a.far());
    b.control.handle_event(&Event::PeerUp(PEER));
    b.has(&many(2)).await;
    a.has(&Offer::default()).await;
    assert!(a.notices.try_recv().is_ok(), "and is called by the other");
}

fn attendance(wants: &str) -> Attendance {
    Attendance { wants: [name(wants)].into(), ..Attendance::default() }
}

fn introductions(site: &str) -> Introductions {
    let binding = vp::addr::Binding::new(7).unwrap();
    let site =
        Introduction { site: name(site), public_key: [7; 32], binding, addresses: Vec::new(), certificate: Vec::new() };
    Introductions { seen: Some("192.0.2.1:1".parse().unwrap()), sites: vec![site] }
}

#[tokio::test(start_paused = true)]
async fn a_site_says_whom_it_wants_and_hears_of_them_and_both_follow_changes() {
    let hub = Site { is_hub: true, tells: Mutex::new(introductions("cloud")), ..Site::new(1) };
    let site = Site { is_hubs_site: true, says: Mutex::new(attendance("cloud")), ..Site::new(2) };
    let (hub, mut site) = pair(hub, site);
    site.hears(|notice| matches!(notice, Notice::Introduced { sites: 1, .. })).await;
    assert_eq!(site.is_told(), Some(introductions("cloud")));
    assert_eq!(*hub.site.heard.borrow(), Some(attendance("cloud")));

    *site.site.says.lock().unwrap() = attendance("depot");
    site.control.attendance_changed();
    let mut heard = hub.site.heard.subscribe();
    let heard = heard.wait_for(|heard| *heard == Some(attendance("depot")));
    assert!(timeout(Duration::from_secs(5), heard).await.is_ok());

    *hub.site.tells.lock().unwrap() = introductions("depot");
    hub.control.handle_event(&Event::IntroductionsChanged(PEER));
    let mut told = site.site.told.subscribe();
    let told = told.wait_for(|told| *told == Some(introductions("depot")));
    assert!(timeout(Duration::from_secs(5), told).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_no_hub_says_so_once_and_its_offers_go_on() {
    let (other, mut site) = pair(Site::new(1), Site { is_hubs_site: true, ..Site::new(2) });
    let refused = site.hears(|notice| matches!(notice, Notice::IntroductionsRefused { .. })).await;
    assert_eq!(refused, Notice::IntroductionsRefused { hub: PEER, reason: "this agent is no hub".to_owned() });
    let offer = Offer { services: vec![service("web", 2)], ..Offer::default() };
    other.offers(offer.clone());
    site.has(&offer).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    while let Ok(notice) = site.notices.try_recv() {
        assert!(!matches!(notice, Notice::IntroductionsRefused { .. } | Notice::Closed(_)), "{notice:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_is_answered_told_and_taken_at_its_rate() {
    let (mut hub, mut site) = pair(Site { is_hub: true, ..Site::new(1) }, Site::new(2));
    site.hears(|notice| *notice == Notice::Opened(PEER)).await;
    hub.hears(|notice| *notice == Notice::Opened(PEER)).await;
    let register = async |offered| site.control.register(PEER, offered).await;
    assert_eq!(register(Offered::Site(b"good".to_vec())).await, Ok(()));
    let place = "site/acme/cloud".to_owned();
    assert_eq!(
        hub.hears(|notice| matches!(notice, Notice::Registered { .. })).await,
        Notice::Registered { peer: PEER, place }
    );
    let refused = register(Offered::Site(b"bad".to_vec())).await;
    assert_eq!(refused, Err(RegisterError::Refused("older".to_owned())));
    let told = hub.hears(|notice| matches!(notice, Notice::RegistrationRefused { .. })).await;
    assert_eq!(told, Notice::RegistrationRefused { peer: PEER, refusal: Refusal::Older });
    let later = register(Offered::Invitation(Vec::new())).await.expect_err("not now").to_string();
    assert_eq!(later, "the far gateway answered: this hub cannot keep it now");
    assert_eq!(hub.control.register(PEER, Offered::Site(b"good".to_vec())).await, Err(RegisterError::NoHub));
    let start = Instant::now();
    let mut taken = 0;
    for _ in 0..200 {
        taken += u64::from(register(Offered::Site(b"good".to_vec())).await.is_ok());
    }
    let most = register::REGISTRATIONS_AT_ONCE + register::REGISTRATIONS_A_SECOND * (start.elapsed().as_secs() + 1);
    assert!((10..=most).contains(&taken), "{taken}");
}
