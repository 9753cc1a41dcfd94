//! Two agents back to back on a wire in memory, with time that passes only while everyone waits.

use super::*;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use vp::addr::{Name, PortRange};
use vp::catalogue::{NamedCaller, Offer, OfferedService};
use vp::node::OfferError;

/// Each side has one peer: the other.
const PEER: PeerId = PeerId(7);

/// What the wire does to packets.
#[derive(Clone, Copy)]
struct Weather {
    lost_percent: u64,
    delay_ms: u64,
    jitter_ms: u64,
}

const FAIR: Weather = Weather { lost_percent: 0, delay_ms: 1, jitter_ms: 0 };

/// A gateway without a node.
struct Site {
    is_stock_peer: bool,
    offer: Mutex<Offer>,
    /// What the peer offers, as last taken.
    taken: watch::Sender<Option<Offer>>,
    target: Option<IpAddr>,
    verdict: Result<String, Reason>,
    weather: Mutex<Weather>,
    random: Mutex<Peers>,
    sent: AtomicU64,
    /// The agent at the other end; none while it is down.
    far: Mutex<Option<Control<TestLink>>>,
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
                    far.handle_event(&Event::Control { peer: PEER, packet });
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

    async fn explain(&self, _: PeerId, _: Target, caller: Option<u16>) -> Result<String, Reason> {
        self.0.verdict.clone().map(|rule| format!("{rule} {caller:?}"))
    }

    async fn probe_target(&self, _: PeerId, _: Target) -> Option<IpAddr> {
        self.0.target
    }
}

impl Site {
    fn new(seed: u64) -> Self {
        Self {
            is_stock_peer: false,
            offer: Mutex::default(),
            taken: watch::Sender::new(None),
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
}

/// Two agents that are up for each other.
fn pair(a: Site, b: Site) -> (Agent, Agent) {
    let (a, b) = (Agent::new(a, 1), Agent::new(b, 2));
    *a.site.far.lock().unwrap() = Some(b.control.clone());
    *b.site.far.lock().unwrap() = Some(a.control.clone());
    a.control.handle_event(&Event::PeerUp(PEER));
    b.control.handle_event(&Event::PeerUp(PEER));
    (a, b)
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
    Offer { services: services.to_vec(), callers: vec![NamedCaller { index: 2, name: name("plc") }] }
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
async fn an_offer_with_every_wire_index_arrives() {
    let (a, b) = pair(Site::new(1), Site::new(2));
    let all = many(65_000);
    b.offers(all.clone());
    a.has(&all).await;
}
