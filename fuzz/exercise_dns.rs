//! What the fuzz target for names does with its input. A test replays the corpus through the same function.

use std::sync::LazyLock;
use std::time::Instant;
use vp::addr::{Identity, Name, PeerId, Pool};
use vp::catalogue::{NamedHost, Offer, OfferedService};
use vp::node::{Client, Exposure, Mapping, Node, PeerSettings, Settings, Source, Target};
use vp_agent::dns::query::{Read, Transport, UDP_BYTES_MAX};
use vp_agent::dns::zone::Zone;
use x25519_dalek::{PublicKey, StaticSecret};

static NODE: LazyLock<Node> = LazyLock::new(node);

/// A message of a client: no answer, or one of a size that the client takes, with its id, marked as an answer. The answer
/// is no question, so that nobody answers it again. What was answered.
pub fn dns(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut last = None;
    for (transport, most) in [(Transport::Tcp, u16::MAX), (Transport::Udp, UDP_BYTES_MAX)] {
        last = answer(bytes, transport);
        let Some(answer) = &last else { continue };
        assert!(answer.len() >= 12 && answer.len() <= usize::from(most));
        assert_eq!(answer[..2], bytes[..2], "the id");
        assert!(answer[2] & 0x80 != 0, "no answer");
        assert!(self::answer(answer, transport).is_none(), "answers would answer each other");
    }
    last
}

fn answer(bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let zone = Zone::new("vp", name("factory"), settings().pool).expect("a zone");
    match Read::new(bytes, transport) {
        Read::Nothing => None,
        Read::Said(reply) => reply.to_bytes(),
        Read::Asked(query) => {
            let place = zone.place(query.question.name())?;
            let found = place.look_up(&NODE, Some([10, 0, 0, 2].into()));
            zone.answer(&query, &place, &found, false).to_bytes()
        }
    }
}

fn node() -> Node {
    let now = Instant::now();
    let mut node = Node::new(settings(), Vec::new(), StaticSecret::from([1; 32]), 1, now).expect("settings");
    let service = |text, index, host_bits| OfferedService {
        name: name(text),
        index,
        host_bits,
        ipv4: true,
        ipv6: host_bits == 0,
        ports: vec!["tcp/80".parse().expect("ports"), "udp/5000-5010".parse().expect("ports")],
        labels: Default::default(),
        healthy: true,
    };
    let host = |index, text| NamedHost { index, name: name(text), ipv4: true, ipv6: true };
    let services = vec![service("web", 2, 0), service("rack", 16, 4)];
    let offer = Offer { services, callers: Vec::new(), hosts: vec![host(2, "one"), host(17, "two")] };
    node.set_offer(PeerId(0), offer, now).expect("a peer");
    node
}

fn settings() -> Settings {
    let peer = PeerSettings {
        identity: Identity { site: name("cloud"), tenant: Some(name("acme")), groups: Vec::new() },
        public_key: PublicKey::from(&StaticSecret::from([2; 32])).to_bytes(),
        preshared_key: None,
        endpoint: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
        carrier: None,
    };
    let pool = ["10.0.1.0/24", "fd00:1::/64"].map(|prefix| prefix.parse().expect("prefix"));
    let many = (0..200).map(|n| [10, 0, 0, n].into()).collect();
    Settings {
        site: name("factory"),
        pool: Pool::new(pool.to_vec()).expect("pool"),
        inner_mtu: 1420,
        flows_max: 64,
        second_cipher: true,
        peers: vec![peer],
        clients: vec![Client { name: name("plc"), addresses: vec![[10, 0, 0, 2].into()] }],
        exposures: vec![Exposure {
            name: name("many"),
            target: Target::Backends(many),
            ports: vec!["tcp/80".parse().expect("ports")],
            allow: Vec::new(),
            source: Source::Presence,
            limits: Default::default(),
        }],
        hub: None,
        mappings: vec![Mapping {
            service: "*.cloud".parse().expect("pattern"),
            address: None,
            ports: Vec::new(),
            callers: Vec::new(),
        }],
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}
