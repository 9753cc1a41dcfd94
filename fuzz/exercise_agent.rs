//! What the fuzz targets for the agent do with their input. A test replays the corpus through the same functions.

#![allow(dead_code)] // each target uses its own part

use prost::Message;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use vp::addr::{Identity, Name, PeerId, Pool, wire};
use vp::catalogue::{OFFER_SERVICES_MAX, Offer};
use vp::node::{Mapping, Node, PeerSettings, Settings};
use vp_agent::config::{Config, HostNetworks};
use vp_agent::control::offer;
use x25519_dalek::{PublicKey, StaticSecret};

/// Far more than a text of a fuzzer's size takes, also without optimisation and beside other tests.
const TIME_MAX: Duration = Duration::from_secs(5);
/// What a message may have, and the place before it.
const LINE_CHARACTERS_MAX: usize = 350;

/// A message of a peer: refused in one line, or an offer that keeps its limits, is the same there and back, and can be
/// given to a node that maps all of it.
pub fn offer(bytes: &[u8]) {
    let offer = match offer::read(bytes) {
        Ok(offer) => offer,
        Err(refusal) => return is_one_line(&refusal.to_string()),
    };
    keeps_limits(&offer);
    let again = offer::to_message(offer.clone()).encode_to_vec();
    assert_eq!(offer::read(&again).as_ref(), Ok(&offer));
    let now = Instant::now();
    let mut node = Node::new(settings(), Vec::new(), key(1), 1, now).expect("settings");
    for offer in [offer.clone(), Offer::default(), offer] {
        node.set_offer(PeerId(0), offer, now).expect("a peer");
    }
}

fn keeps_limits(offer: &Offer) {
    assert!(offer.services.len() <= OFFER_SERVICES_MAX);
    let names: BTreeSet<_> = offer.services.iter().map(|service| &service.name).collect();
    assert_eq!(names.len(), offer.services.len(), "two services of one name");
    let mut taken = BTreeSet::new();
    for service in &offer.services {
        let first = u32::from(service.index);
        let end = first + (1 << service.host_bits);
        assert!(first >= u32::from(wire::FIRST) && end <= u32::from(wire::LAST) + 1);
        assert!((first..end).all(|index| taken.insert(index)), "an index of two services");
        assert!(service.ipv4 || service.ipv6);
        assert!(!service.ports.is_empty() && service.ports.iter().all(|range| range.first <= range.last));
        let texts = service.labels.iter().flat_map(|(key, value)| [key, value]);
        assert!(texts.clone().all(|text| text.len() <= 255 && offer::is_printable(text)));
    }
    let callers: BTreeSet<_> = offer.callers.iter().map(|caller| caller.index).collect();
    assert_eq!(callers.len(), offer.callers.len(), "an index of two callers");
    assert!(callers.iter().all(|index| (wire::FIRST..=wire::LAST).contains(index)));
}

/// A file's text: refused in one line that says where, or good for a node; in bounded time either way.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let started = Instant::now();
    match Config::parse(Path::new("agent.yaml"), text, &HostNetworks::default()) {
        Ok(config) => {
            config.warnings.iter().for_each(|warning| is_one_line(warning));
            if let Err(error) = Node::new(config.settings, Vec::new(), key(1), 1, started) {
                is_one_line(&error.to_string());
            }
        }
        Err(error) => {
            is_one_line(&error.to_string());
            // A key's file that the text does not name has no place in it.
            let has_place = error.at.is_some_and(|(line, column)| line > 0 && column > 0);
            assert!(has_place || error.message.starts_with("key: "), "{error}");
        }
    }
    let took = started.elapsed();
    assert!(took < TIME_MAX, "{took:?}");
}

fn is_one_line(text: &str) {
    let is_short = text.chars().count() <= LINE_CHARACTERS_MAX;
    assert!(is_short && !text.chars().any(char::is_control), "{text:?}");
}

/// A site that maps whatever its peer offers.
fn settings() -> Settings {
    let factory = Name::new("factory").expect("name");
    let peer = PeerSettings {
        identity: Identity { site: factory, tenant: None, groups: Vec::new() },
        public_key: PublicKey::from(&key(2)).to_bytes(),
        preshared_key: None,
        endpoint: None,
        carrier: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
    };
    let service = "*.factory".parse().expect("pattern");
    let pool = ["10.0.9.0/24", "fd00:9::/64"].map(|prefix| prefix.parse().expect("prefix"));
    Settings {
        site: Name::new("cloud").expect("name"),
        pool: Pool::new(pool.to_vec()).expect("pool"),
        inner_mtu: 1420,
        flows_max: 64,
        second_cipher: true,
        peers: vec![peer],
        clients: Vec::new(),
        exposures: Vec::new(),
        mappings: vec![Mapping { service, address: None, ports: Vec::new(), callers: Vec::new() }],
        hub: None,
    }
}

fn key(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}
