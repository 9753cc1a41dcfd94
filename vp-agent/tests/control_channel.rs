//! Two nodes with their control channels, over a real tunnel, in one process and in fake time (the tunnel's own timers
//! apart, which know only the real one):
//!
//!     factory 192.0.2.1 --(5 ms)-- cloud 192.0.2.2

#![allow(clippy::unwrap_used)] // a test, all of it

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use vp::addr::{Identity, Limits, Name, PeerId, Pool};
use vp::catalogue::Offer;
use vp::hub::Attendance;
use vp::identity::{JoinRefusal, List, Refusal};
use vp::node::{
    Allowed, Event, Exposure, Guest, Introductions, LimitSettings, Mapping, Node, OfferError, Output, PeerSettings,
    Reason, Settings, Source, Target,
};
use vp_agent::control::{Control, FarAllowed, Link, Notice, Target as Port};
use vp_agent::identity::{Offered, Place, Presented};
use vp_agent::joining::{Ask, JoinError};
use vp_agent::registry::Unregistered;
use vp_proto::control::ReplyRoute;
use x25519_dalek::{PublicKey, StaticSecret};

/// Each node has one peer.
const PEER: PeerId = PeerId(0);
const DELAY: Duration = Duration::from_millis(5);

struct Gateway {
    endpoint: SocketAddr,
    running: Mutex<Option<Running>>,
    /// Something was done that may have changed the node's next timeout.
    done: Notify,
    far: Mutex<Option<Arc<Gateway>>>,
    presented: watch::Sender<Arc<Presented>>,
    /// What it asks of its peer in place of all else.
    asks: Mutex<Option<Ask>>,
    /// What was asked of it, and what it was answered.
    asked: Mutex<Vec<Vec<u8>>>,
    answers: Mutex<Vec<Result<Vec<u8>, String>>>,
}

struct Running {
    node: Node,
    output: Output,
    control: Control<NodeLink>,
}

/// The way to the node, as the data thread gives it.
#[derive(Clone)]
struct NodeLink(Arc<Gateway>);

impl Gateway {
    /// What the data thread does around each batch. None while the gateway is down.
    fn call<R>(&self, run: impl FnOnce(&mut Node, &mut Output, Instant) -> R) -> Option<R> {
        let mut events = Vec::new();
        let mut running = self.running.lock().unwrap();
        let Running { node, output, control } = running.as_mut()?;
        let result = run(node, output, now());
        node.handle_batch_end(output, now());
        while let Some(event) = node.poll_event() {
            events.push(event);
        }
        for (batch, bytes) in output.transmits.batches() {
            bytes.chunks(batch.segment_bytes).for_each(|datagram| self.carry(datagram.to_vec()));
        }
        output.clear();
        let control = control.clone();
        drop(running);
        events.iter().for_each(|event| control.handle_event(event));
        self.done.notify_one();
        Some(result)
    }

    fn carry(&self, datagram: Vec<u8>) {
        let far = self.far.lock().unwrap().clone();
        let (Some(far), from) = (far, self.endpoint) else { return };
        tokio::spawn(async move {
            tokio::time::sleep(DELAY).await;
            let stride = datagram.len();
            far.call(|node, output, now| node.handle_datagrams(from, &datagram, stride, output, now));
        });
    }

    async fn run_timers(self: Arc<Self>) {
        loop {
            let next = self.running.lock().unwrap().as_ref().and_then(|running| running.node.poll_timeout());
            let next = next.unwrap_or(now() + Duration::from_secs(60)).max(now() + Duration::from_millis(1));
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {
                    self.call(|node, output, now| node.handle_timeout(output, now));
                }
                () = self.done.notified() => {}
            }
        }
    }

    /// Starts or starts again, with nothing left of what was.
    fn start(self: &Arc<Self>, settings: Settings, key: u8, seed: u64) -> mpsc::Receiver<Notice> {
        let (control, notices) = Control::start(NodeLink(self.clone()), seed);
        let node = Node::new(settings, Vec::new(), secret(key), seed, now()).unwrap();
        let output = Output::new(1 << 20, 1 << 20);
        *self.running.lock().unwrap() = Some(Running { node, output, control });
        self.call(|_, _, _| ());
        notices
    }

    fn control(&self) -> Control<NodeLink> {
        self.running.lock().unwrap().as_ref().unwrap().control.clone()
    }

    /// Waits until the peer offers these services, each in its state. Those it offered once are not looked at.
    async fn knows(&self, services: &[(&str, &str)]) {
        let known = || {
            let services = self.call(|node, _, _| node.remote_services()).unwrap_or_default();
            let services = services.into_iter().map(|service| (service.service, service.state));
            services.filter(|(_, state)| state != "not-offered").collect::<Vec<_>>()
        };
        let wanted: Vec<_> = services.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
        let deadline = now() + Duration::from_secs(600);
        while known() != wanted {
            assert!(now() < deadline, "{:?} instead of {wanted:?}", known());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Link for NodeLink {
    async fn has_agent(&self, peer: PeerId) -> bool {
        let agents = |node: &mut Node| node.peer_settings().any(|(id, settings)| id == peer && !settings.stock);
        self.0.call(|node, _, _| agents(node)).unwrap_or(false)
    }

    async fn send(&self, peer: PeerId, packets: Vec<Vec<u8>>) {
        self.0.call(|node, output, now| {
            packets.iter().for_each(|packet| node.send_control(peer, packet, output, now));
        });
    }

    async fn offer(&self, peer: PeerId) -> Offer {
        self.0.call(|node, _, _| node.offer(peer)).unwrap_or_default()
    }

    async fn set_offer(&self, peer: PeerId, offer: Offer) -> Result<(), OfferError> {
        self.0.call(|node, _, now| node.set_offer(peer, offer, now)).unwrap_or(Err(OfferError::UnknownPeer))
    }

    async fn is_hub(&self, _: PeerId) -> bool {
        false
    }

    async fn attendance(&self, _: PeerId) -> Attendance {
        Attendance::default()
    }

    async fn introduce(&self, _: PeerId, _: Introductions) {}

    async fn attend(&self, peer: PeerId, attendance: Attendance) -> bool {
        self.0.call(|node, _, _| node.attend(peer, attendance)).unwrap_or(false)
    }

    async fn introductions(&self, peer: PeerId) -> Introductions {
        self.0.call(|node, _, _| node.introductions(peer)).unwrap_or_default()
    }

    async fn explain(&self, peer: PeerId, port: Port, caller: Option<u16>) -> Result<Allowed, Reason> {
        let asked = (port.protocol, port.port);
        let explained = self.0.call(|node, _, now| node.explain_inbound(peer, &port.service, caller, asked, now));
        explained.unwrap_or(Err(Reason::NoPath))
    }

    fn credentials(&self) -> watch::Receiver<Arc<Presented>> {
        self.0.presented.subscribe()
    }

    async fn take_certificate(&self, _: PeerId, _: Vec<u8>) -> Result<bool, Refusal> {
        Ok(false)
    }

    async fn present(&self, _: PeerId, _: Vec<u8>) -> Result<Option<Place>, Refusal> {
        Ok(None)
    }

    async fn register(&self, _: PeerId, _: Offered) -> Option<Result<Option<Place>, Unregistered>> {
        None
    }

    async fn take_revocations(&self, _: Vec<u8>) -> Result<(List, bool), Refusal> {
        Err(Refusal::UnknownAuthority)
    }

    async fn is_invited(&self, peer: PeerId) -> bool {
        let guest = move |node: &mut Node| node.peer_settings().any(|(id, known)| id == peer && known.guest.is_some());
        self.0.call(|node, _, _| guest(node)).unwrap_or(false)
    }

    async fn join(&self, _: PeerId, public_key: Vec<u8>, possession: Vec<u8>) -> Result<Vec<u8>, JoinError> {
        self.0.asked.lock().unwrap().push([public_key, possession].concat());
        Ok(b"certified".to_vec())
    }

    async fn renew(&self, _: PeerId, serial: Vec<u8>) -> Result<Vec<u8>, JoinError> {
        self.0.asked.lock().unwrap().push(serial);
        Err(JoinRefusal::TooEarly.into())
    }

    async fn joining(&self, _: PeerId) -> Option<Ask> {
        self.0.asks.lock().unwrap().clone()
    }

    async fn joined(&self, answer: Result<Vec<u8>, String>) {
        self.0.answers.lock().unwrap().push(answer);
    }

    async fn probe_target(&self, peer: PeerId, port: Port) -> Option<IpAddr> {
        self.0.call(|node, _, _| node.probe_target(peer, &port.service, port.protocol, port.port))?
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn secret(key: u8) -> StaticSecret {
    StaticSecret::from([key; 32])
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn settings(site: &str, pool: &str, peer: (&str, u8, &str)) -> Settings {
    let (peer_site, peer_key, endpoint) = peer;
    let peer = PeerSettings {
        identity: Identity { site: name(peer_site), tenant: None, groups: Vec::new() },
        public_key: PublicKey::from(&secret(peer_key)).to_bytes(),
        preshared_key: None,
        endpoint: Some(endpoint.parse().unwrap()),
        carrier: None,
        keepalive_seconds: Some(25),
        stock: false,
        hub: false,
        guest: None,
    };
    let mapping = |service: &str| Mapping {
        service: service.parse().unwrap(),
        address: None,
        ports: Vec::new(),
        callers: Vec::new(),
    };
    Settings {
        site: name(site),
        pool: Pool::new(vec![pool.parse().unwrap()]).unwrap(),
        inner_mtu: 1420,
        flows_max: 1000,
        second_cipher: true,
        peers: vec![peer],
        clients: Vec::new(),
        exposures: Vec::new(),
        mappings: vec![mapping(&format!("*.{peer_site}"))],
        hub: None,
        limits: LimitSettings::default(),
    }
}

fn factory() -> Settings {
    settings("factory", "10.0.1.0/24", ("cloud", 2, "192.0.2.2:51820"))
}

/// With these services, each for the factory.
fn cloud(services: &[&str]) -> Settings {
    let expose = |service: &&str| Exposure {
        name: name(service),
        target: Target::Backends(vec!["10.0.0.5".parse().unwrap()]),
        ports: vec!["tcp/5672".parse().unwrap()],
        allow: vec!["site:factory".parse().unwrap()],
        source: Source::Masquerade,
        limits: Limits::default(),
    };
    let settings = settings("cloud", "10.0.9.0/24", ("factory", 1, "192.0.2.1:51820"));
    Settings { exposures: services.iter().map(expose).collect(), ..settings }
}

/// Both gateways, connected and not started.
fn pair() -> [Arc<Gateway>; 2] {
    let gateways = ["192.0.2.1:51820", "192.0.2.2:51820"].map(|endpoint| {
        Arc::new(Gateway {
            endpoint: endpoint.parse().unwrap(),
            running: Mutex::new(None),
            done: Notify::new(),
            far: Mutex::new(None),
            presented: watch::Sender::default(),
            asks: Mutex::default(),
            asked: Mutex::default(),
            answers: Mutex::default(),
        })
    });
    let [one, other] = &gateways;
    *one.far.lock().unwrap() = Some(other.clone());
    *other.far.lock().unwrap() = Some(one.clone());
    gateways.iter().for_each(|gateway| drop(tokio::spawn(gateway.clone().run_timers())));
    gateways
}

#[tokio::test(start_paused = true)]
async fn what_a_site_exposes_is_known_at_the_other_and_follows_every_change() {
    let [at_factory, at_cloud] = pair();
    let _notices = (at_factory.start(factory(), 1, 11), at_cloud.start(cloud(&["rabbitmq"]), 2, 12));
    at_factory.knows(&[("rabbitmq.cloud", "up")]).await;
    at_cloud.call(|node, _, now| node.configure(cloud(&["db", "rabbitmq"]), now).unwrap());
    at_factory.knows(&[("db.cloud", "up"), ("rabbitmq.cloud", "up")]).await;
    at_cloud.call(|node, _, now| node.configure(cloud(&["db"]), now).unwrap());
    at_factory.knows(&[("db.cloud", "up")]).await;

    let port = Port { service: name("db"), protocol: vp::addr::Protocol::Tcp, port: 5672 };
    let explained = at_factory.control().explain(PEER, &port, None).await;
    let rule = "site:factory".to_owned();
    let reply_route = ReplyRoute::Masquerade;
    assert_eq!(
        explained,
        Ok(Ok(FarAllowed { rule, limit: Some(String::new()), observed: String::new(), reply_route }))
    );
    let other = Port { port: 80, ..port };
    let explained = at_factory.control().explain(PEER, &other, None).await;
    assert_eq!(explained, Ok(Err(Reason::PortNotExposed.word().to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_restarts_is_heard_again_within_seconds() {
    let [at_factory, at_cloud] = pair();
    let mut told = at_factory.start(factory(), 1, 11);
    let mut _kept = at_cloud.start(cloud(&["first"]), 2, 12);
    at_factory.knows(&[("first.cloud", "up")]).await;
    for round in 0..5 {
        let service = format!("round-{round}");
        tokio::time::sleep(Duration::from_secs(40)).await;
        let start = now();
        _kept = at_cloud.start(cloud(&[&service]), 2, 100 + round);
        at_factory.knows(&[(&format!("{service}.cloud"), "up")]).await;
        assert!(now() - start < Duration::from_secs(15), "{:?}", now() - start);
    }
    while let Ok(notice) = told.try_recv() {
        assert!(!matches!(notice, Notice::OfferRefused { .. }), "{notice:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_offer_is_kept_while_the_peer_is_away_and_replaced_when_it_is_back() {
    let [at_factory, at_cloud] = pair();
    let _notices = (at_factory.start(factory(), 1, 11), at_cloud.start(cloud(&["rabbitmq"]), 2, 12));
    at_factory.knows(&[("rabbitmq.cloud", "up")]).await;
    *at_cloud.running.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!at_factory.control().is_open(PEER));
    at_factory.knows(&[("rabbitmq.cloud", "away")]).await;
    let _kept = at_cloud.start(cloud(&["db"]), 2, 13);
    at_factory.knows(&[("db.cloud", "up")]).await;
    assert!(at_factory.control().is_open(PEER));
}

#[tokio::test(start_paused = true)]
async fn a_stock_peer_hears_nothing_of_a_control_channel() {
    let [at_factory, at_cloud] = pair();
    let mut stock = cloud(&["rabbitmq"]);
    stock.peers[0].stock = true;
    let _notices = (at_factory.start(factory(), 1, 11), at_cloud.start(stock, 2, 12));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!at_factory.control().is_open(PEER) && !at_cloud.control().is_open(PEER));
    let away = at_factory.call(|node, _, _| node.remote_services().is_empty());
    assert_eq!(away, Some(true));
    let up = at_cloud.call(|node, _, now| node.peers(now)[0].1.state.clone());
    assert_eq!(up, Some("up".to_owned()));
}

/// As its issuer has it.
fn invited(services: &[&str]) -> Settings {
    let mut settings = cloud(services);
    settings.peers[0].guest = Some(Guest::Invited(name("cloud")));
    settings
}

async fn answers(gateway: &Gateway) -> Vec<Result<Vec<u8>, String>> {
    let deadline = now() + Duration::from_secs(60);
    while gateway.answers.lock().unwrap().is_empty() {
        assert!(now() < deadline, "no answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gateway.answers.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn who_was_invited_may_join_and_hears_nothing_else() {
    let [at_factory, at_cloud] = pair();
    *at_factory.asks.lock().unwrap() = Some(Ask::Join { public_key: [7; 32], possession: vec![8; 32] });
    let mut everybody = invited(&["rabbitmq"]);
    everybody.exposures[0].allow = vec!["any".parse().unwrap()];
    let _notices = (at_factory.start(factory(), 1, 11), at_cloud.start(everybody.clone(), 2, 12));
    assert_eq!(answers(&at_factory).await, [Ok(b"certified".to_vec())]);
    assert_eq!(*at_cloud.asked.lock().unwrap(), [[[7; 32], [8; 32]].concat()]);

    // One that does as if it had joined already.
    *at_factory.asks.lock().unwrap() = None;
    let _again = (at_factory.start(factory(), 1, 13), at_cloud.start(everybody, 2, 14));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!at_factory.control().is_open(PEER));
    at_factory.knows(&[]).await;
    assert_eq!(at_cloud.asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_has_joined_may_renew_and_not_join_again() {
    let [at_factory, at_cloud] = pair();
    let _notices = (at_factory.start(factory(), 1, 11), at_cloud.start(cloud(&["rabbitmq"]), 2, 12));
    at_factory.knows(&[("rabbitmq.cloud", "up")]).await;
    let renewed = at_factory.control().renew(PEER, [5; 16]).await;
    assert_eq!(renewed, Ok(Err("too-early".to_owned())));
    assert_eq!(*at_cloud.asked.lock().unwrap(), [vec![5; 16]]);

    *at_factory.asks.lock().unwrap() = Some(Ask::Join { public_key: [7; 32], possession: Vec::new() });
    let _again = (at_factory.start(factory(), 1, 13), at_cloud.start(cloud(&["rabbitmq"]), 2, 14));
    let refused = answers(&at_factory).await;
    assert!(refused[0].as_ref().is_err_and(|why| why.contains("joined already")), "{refused:?}");
    assert_eq!(at_cloud.asked.lock().unwrap().len(), 1);
}

/// Events that the channel does not want pass it by.
#[tokio::test(start_paused = true)]
async fn other_events_do_nothing() {
    let [at_factory, _] = pair();
    let _notices = at_factory.start(factory(), 1, 11);
    at_factory.control().handle_event(&Event::PresencesChanged);
    at_factory.control().handle_event(&Event::PeerDown(PeerId(9)));
    at_factory.control().handle_event(&Event::OfferChanged(PeerId(9)));
    assert!(!at_factory.control().is_open(PeerId(9)));
}
