//! Answers to messages of every kind, for a node of some services.

use super::counts::{Kind, Outcome};
use super::query::{Query, Read, Transport, UDP_BYTES_MAX};
use super::zone::{Place, Zone};
use hickory_proto::op::{Message, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{Name as DnsName, RData, RecordType};
use proptest::prelude::*;
use std::net::IpAddr;
use std::time::Instant;
use vp::addr::{Family, Identity, Name, PeerId, Pool, PortRange};
use vp::catalogue::{NamedCaller, NamedHost, Offer, OfferedService};
use vp::node::{CallerSelector, Client, Exposure, Mapping, Node, PeerSettings, Settings, Source, Target};
use x25519_dalek::{PublicKey, StaticSecret};

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn mapping(service: &str, ports: &[&str], callers: Vec<CallerSelector>) -> Mapping {
    let ports = ports.iter().map(|text| text.parse().expect("ports")).collect();
    Mapping { service: service.parse().expect("service"), address: None, ports, callers }
}

fn exposure(service: &str, target: Target) -> Exposure {
    Exposure {
        name: name(service),
        target,
        ports: vec!["tcp/9100".parse().expect("ports")],
        allow: Vec::new(),
        source: Source::Presence,
        limits: vp::addr::Limits::default(),
    }
}

fn settings() -> Settings {
    let peer = |site: &str, tenant: Option<&str>, key: u8| PeerSettings {
        identity: Identity { site: name(site), tenant: tenant.map(name), groups: Vec::new() },
        public_key: PublicKey::from(&StaticSecret::from([key; 32])).to_bytes(),
        preshared_key: None,
        endpoint: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
        carrier: None,
    };
    let pool = ["10.0.1.0/24", "fd00:1::/64"].map(|prefix| prefix.parse().expect("prefix"));
    let plc = vec![address("10.0.0.2"), address("fd00::2")];
    Settings {
        site: name("factory"),
        pool: Pool::new(pool.to_vec()).expect("pool"),
        inner_mtu: 1420,
        flows_max: 64,
        second_cipher: true,
        peers: vec![peer("cloud", Some("acme"), 2), peer("depot", None, 3)],
        clients: vec![Client { name: name("plc"), addresses: plc }],
        exposures: vec![
            exposure("metrics", Target::Backends(vec![address("10.0.0.2"), address("10.0.0.3")])),
            exposure("local", Target::Backends(vec![address("127.0.0.1")])),
        ],
        hub: None,
        mappings: vec![
            mapping("web.cloud", &["tcp/80=tcp/8080", "udp/53"], Vec::new()),
            mapping("secret.cloud", &[], vec![CallerSelector::Client(name("plc"))]),
            mapping("rack.cloud", &[], Vec::new()),
            mapping("hidden.depot", &[], vec![CallerSelector::Prefix("10.0.0.2/32".parse().expect("prefix"))]),
        ],
    }
}

fn offer() -> Offer {
    let service = |service: &str, index, host_bits, ipv6| OfferedService {
        name: name(service),
        index,
        host_bits,
        ipv4: true,
        ipv6,
        ports: ["tcp/8080", "udp/53", "icmp"].map(|text| text.parse::<PortRange>().expect("ports")).to_vec(),
        labels: Default::default(),
        healthy: true,
    };
    let services = vec![service("web", 2, 0, true), service("secret", 3, 0, false), service("rack", 16, 2, false)];
    let host = |index, text, ipv6| NamedHost { index, name: name(text), ipv4: true, ipv6 };
    let hosts = vec![host(2, "one", false), host(17, "two", false), host(3, "three", false), host(99, "four", false)];
    Offer { services, callers: vec![NamedCaller { index: 9, name: name("robot") }], hosts }
}

fn node() -> Node {
    let now = Instant::now();
    let mut node = Node::new(settings(), Vec::new(), StaticSecret::from([1; 32]), 1, now).expect("settings");
    node.set_offer(PeerId(0), offer(), now).expect("a peer");
    let services = vec![OfferedService { name: name("hidden"), index: 2, ..offer().services[0].clone() }];
    node.set_offer(PeerId(1), Offer { services, ..Offer::default() }, now).expect("a peer");
    node
}

fn zone() -> Zone {
    Zone::new("vp", name("factory"), settings().pool).expect("zone")
}

/// From the plc, or another host of the site; None is the gateway itself.
const PLC: Option<&str> = Some("10.0.0.2");
const OTHER: Option<&str> = Some("10.0.0.7");

fn ask(from: Option<&str>, question: &str, kind: RecordType) -> Message {
    let name = DnsName::from_ascii(question).expect("a name");
    let mut message = Message::query();
    message.add_query(Question::query(name, kind));
    let bytes = message.to_vec().expect("a query");
    let Read::Asked(query) = Read::new(&bytes, Transport::Udp) else { panic!("{question}: not asked") };
    Message::from_vec(&answer(&query, from).expect("an answer")).expect("a message")
}

fn answer(query: &Query, from: Option<&str>) -> Option<Vec<u8>> {
    let zone = zone();
    let place = zone.place(query.question.name()).expect("ours");
    let found = place.look_up(&node(), from.map(address));
    zone.answer(query, &place, &found, false).to_bytes()
}

/// The records, or the word for there being none.
fn says(from: Option<&str>, question: &str, kind: RecordType) -> String {
    let answer = ask(from, question, kind);
    let texts: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    match (answer.response_code, texts.is_empty()) {
        (ResponseCode::NoError, false) => texts.join(", "),
        (ResponseCode::NoError, true) => "nodata".to_owned(),
        (ResponseCode::NXDomain, true) => "nxdomain".to_owned(),
        (code, _) => format!("{code:?}"),
    }
}

/// Of a presence that is a prefix.
fn second_of(block: &str) -> String {
    let block: ipnet::IpNet = block.parse().expect("prefix");
    block.hosts().next().expect("an address").to_string()
}

#[test]
fn services_hosts_and_callers_have_names() {
    use RecordType::{A, AAAA};
    let [web, secret, rack] = ["web.cloud", "secret.cloud", "rack.cloud"].map(|service| {
        let presences = node().presences();
        presences.into_iter().find(|presence| presence.service == service).expect("a presence").address
    });
    for (question, kind, expected) in [
        ("web.cloud.vp.", A, web.as_str()),
        ("web.cloud.acme.vp.", A, &web),
        ("WEB.one.Cloud.Acme.vp.", A, &web),
        ("web.one.cloud.vp.", A, &web),
        ("web.one.cloud.vp.", AAAA, "nodata"),
        ("web.two.cloud.vp.", A, "nxdomain"),
        ("one.cloud.vp.", A, "nodata"),
        ("four.cloud.vp.", A, "nxdomain"),
        ("secret.cloud.vp.", A, &secret),
        ("rack.cloud.vp.", A, "nodata"),
        ("rack.two.cloud.vp.", A, &second_of(&rack)),
        ("cloud.vp.", A, "nodata"),
        ("acme.vp.", A, "nodata"),
        ("cloud.acme.vp.", A, "nodata"),
        ("vp.", A, "nodata"),
        ("depot.acme.vp.", A, "nxdomain"),
        ("web.cloud.other.vp.", A, "nxdomain"),
        ("a.b.c.d.e.f.vp.", A, "nxdomain"),
        ("caller-9.cloud.vp.", A, "nxdomain"),
        ("factory.vp.", A, "10.0.1.1"),
        ("metrics.factory.vp.", A, "10.0.0.2, 10.0.0.3"),
        ("metrics.plc.factory.vp.", A, "10.0.0.2"),
        ("plc.factory.vp.", AAAA, "fd00::2"),
        ("local.factory.vp.", A, "nodata"),
    ] {
        assert_eq!(says(PLC, question, kind), expected, "{question} {kind}");
    }
    assert_eq!(says(None, "local.factory.vp.", A), "127.0.0.1");
}

#[test]
fn what_a_client_may_not_use_is_not_there() {
    use RecordType::{A, AAAA, ANY, PTR, SRV};
    let presences = node().presences();
    for (service, host) in [("secret.cloud", "three.cloud.vp."), ("hidden.depot", "depot.vp.")] {
        let presence = presences.iter().find(|presence| presence.service == service).expect("a presence");
        let reverse = DnsName::from(address(&presence.address)).to_string();
        let service = format!("{service}.vp.");
        for from in [OTHER, None] {
            for kind in [A, AAAA, ANY, PTR, SRV] {
                let names = [service.as_str(), host, &reverse, &format!("_tcp.{service}")];
                assert!(names.iter().all(|name| says(from, name, kind) == "nxdomain"), "{service} {kind}");
            }
        }
        assert_eq!(says(PLC, &service, A), presence.address);
        assert_eq!(says(PLC, &reverse, PTR), service);
        assert_ne!(says(PLC, host, A), "nxdomain");
    }
    // Who has a name may ask in the other family.
    assert_ne!(says(Some("fd00::2"), "secret.cloud.vp.", A), "nxdomain");
    assert_eq!(says(Some("fd00::3"), "secret.cloud.vp.", A), "nxdomain");
    // The answers differ in nothing.
    let same = |question: &str, kind| {
        let mut message = ask(OTHER, question, kind);
        (message.metadata.id, message.queries) = (0, Vec::new());
        message
    };
    assert_eq!(same("secret.cloud.vp.", A), same("sacred.cloud.vp.", A));
    assert_eq!(same("depot.vp.", ANY), same("nowhere.vp.", ANY));
}

#[test]
fn ports_are_told_as_they_are_here() {
    use RecordType::{A, SRV};
    for (question, expected) in [
        ("_tcp.web.cloud.vp.", "0 0 80 web.cloud.vp."),
        ("_web._tcp.web.cloud.vp.", "0 0 80 web.cloud.vp."),
        ("_8080._tcp.web.one.cloud.vp.", "0 0 80 web.one.cloud.vp."),
        ("_web._udp.web.cloud.vp.", "0 0 53 web.cloud.vp."),
        ("_8080._tcp.secret.cloud.vp.", "0 0 8080 secret.cloud.vp."),
        ("_9100._tcp.metrics.factory.vp.", "0 0 9100 metrics.factory.vp."),
        ("_80._tcp.web.cloud.vp.", "nxdomain"),
        ("_08080._tcp.web.cloud.vp.", "nxdomain"),
        ("_icmp.web.cloud.vp.", "nxdomain"),
        ("_x._web._tcp.web.cloud.vp.", "nxdomain"),
        ("_tcp.rack.cloud.vp.", "nxdomain"),
        ("_tcp.vp.", "nxdomain"),
        ("web.cloud.vp.", "nodata"),
    ] {
        assert_eq!(says(PLC, question, SRV), expected, "{question}");
    }
    assert_eq!(says(PLC, "_tcp.web.cloud.vp.", A), "nodata");
    let answer = ask(PLC, "_tcp.web.cloud.vp.", SRV);
    assert_eq!(answer.additionals.len(), 2, "an address of each family");
}

#[test]
fn addresses_of_the_pool_are_named_and_others_are_not_ours() {
    use RecordType::{NS, PTR, SOA};
    let rack = node().presences().into_iter().find(|p| p.service == "rack.cloud").expect("a presence").address;
    let second = second_of(&rack);
    let reverse = |text: &str| DnsName::from(address(text)).to_string();
    assert_eq!(says(PLC, &reverse("10.0.1.1"), PTR), "factory.vp.");
    assert_eq!(says(PLC, &reverse(&second), PTR), "rack.two.cloud.vp.");
    assert_eq!(says(PLC, &reverse(rack.trim_end_matches("/30")), PTR), "rack.cloud.vp.");
    assert_eq!(says(PLC, &reverse("10.0.1.200"), PTR), "nxdomain");
    assert_eq!(says(PLC, "1.0.10.in-addr.arpa.", NS), "factory.vp.");
    assert!(says(PLC, "1.0.10.in-addr.arpa.", SOA).starts_with("factory.vp. hostmaster.vp."));
    let apex = |question: &str| ask(PLC, question, PTR).authorities[0].name.to_string();
    assert_eq!(apex(&reverse("10.0.1.200")), "1.0.10.in-addr.arpa.");
    let six = "0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.";
    let pool = six.strip_prefix("0.0.0.0.").expect("below the apex");
    assert_eq!((says(PLC, six, PTR).as_str(), apex(six).as_str()), ("nodata", pool));
    for foreign in [reverse("10.0.0.2"), "10.in-addr.arpa.".into(), "in-addr.arpa.".into(), "com.".into(), ".".into()] {
        assert_eq!(zone().place(&DnsName::from_ascii(&foreign).expect("a name")), None, "{foreign}");
    }
}

#[test]
fn an_unexposed_service_has_no_name_and_one_of_a_site_that_is_away_keeps_it() {
    let now = Instant::now();
    let node = |offer: Option<Offer>| {
        let mut node = Node::new(settings(), Vec::new(), StaticSecret::from([1; 32]), 1, now).expect("settings");
        offer.into_iter().for_each(|offer| node.set_offer(PeerId(0), offer, now).expect("a peer"));
        let names = ["web", "cloud"].map(name);
        node.meaning(&names, Some(address("10.0.0.7"))).map(|meaning| meaning.addresses.len())
    };
    assert_eq!(node(Some(offer())), Some(2));
    assert_eq!(node(Some(Offer::default())), None);
    assert!(node(None).is_some(), "since the start");
}

#[test]
fn a_peer_that_calls_everything_by_one_name_makes_no_query_long() {
    let now = Instant::now();
    let mut settings = settings();
    settings.mappings = vec![mapping("*.cloud", &[], Vec::new())];
    settings.pool = Pool::new(vec!["10.64.0.0/10".parse().expect("prefix")]).expect("pool");
    let mut node = Node::new(settings, Vec::new(), StaticSecret::from([1; 32]), 1, now).expect("settings");
    let rack = OfferedService { index: 1 << 12, host_bits: 12, ..offer().services[2].clone() };
    let host = |index| NamedHost { index, name: name("one"), ipv4: true, ipv6: true };
    let caller = |index| NamedCaller { index, name: name("one") };
    let (hosts, callers) = ((1 << 12..1 << 13).map(host).collect(), (2..60_000).map(caller).collect());
    node.set_offer(PeerId(0), Offer { services: vec![rack], callers, hosts }, now).expect("a peer");
    let ask = |labels: &[&str]| node.meaning(&labels.iter().map(|label| name(label)).collect::<Vec<_>>(), None);
    assert_eq!(ask(&["rack", "one", "cloud"]).map(|meaning| meaning.addresses.len()), Some(256));
    let started = Instant::now();
    assert_eq!(ask(&["one", "cloud"]).map(|meaning| meaning.addresses.len()), Some(0));
    assert!(started.elapsed() < std::time::Duration::from_millis(100), "{:?}", started.elapsed());
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_whole_by_tcp() {
    let mut settings = settings();
    let many = (0..100).map(|n| address(&format!("10.0.2.{n}"))).collect();
    settings.exposures.push(exposure("many", Target::Backends(many)));
    let node = Node::new(settings, Vec::new(), StaticSecret::from([1; 32]), 1, Instant::now()).expect("settings");
    let mut message = Message::query();
    message.add_query(Question::query(DnsName::from_ascii("many.factory.vp.").expect("a name"), RecordType::A));
    for (payload, transport, most, is_whole) in [
        (None, Transport::Udp, 512, false),
        (Some(100), Transport::Udp, 512, false),
        (Some(4096), Transport::Udp, UDP_BYTES_MAX, false),
        (None, Transport::Tcp, u16::MAX, true),
    ] {
        let mut message = message.clone();
        if let Some(payload) = payload {
            let mut edns = hickory_proto::op::Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let Read::Asked(query) = Read::new(&message.to_vec().expect("bytes"), transport) else { panic!("not asked") };
        let place = zone().place(query.question.name()).expect("ours");
        let reply = zone().answer(&query, &place, &place.look_up(&node, None), false);
        let bytes = reply.to_bytes().expect("an answer");
        let answer = Message::from_vec(&bytes).expect("a message");
        assert!(bytes.len() <= usize::from(most));
        assert_eq!((answer.truncation, answer.answers.len()), (!is_whole, if is_whole { 100 } else { 0 }));
        assert_eq!(answer.edns.is_some(), payload.is_some());
    }
}

#[test]
fn other_operations_are_refused_and_answers_are_not_answered() {
    let said = |message: &Message| match Read::new(&message.to_vec().expect("bytes"), Transport::Udp) {
        Read::Said(reply) => Some((reply.outcome, Message::from_vec(&reply.to_bytes()?).ok()?.response_code)),
        Read::Nothing | Read::Asked(_) => None,
    };
    let mut asked = Message::query();
    assert_eq!(said(&asked), Some((Outcome::Malformed, ResponseCode::FormErr)), "no question");
    asked.add_query(Question::query(DnsName::from_ascii("web.cloud.vp.").expect("a name"), RecordType::AXFR));
    assert_eq!(said(&asked), Some((Outcome::Refused, ResponseCode::Refused)));
    asked.metadata.op_code = OpCode::Update;
    assert_eq!(said(&asked), Some((Outcome::Unsupported, ResponseCode::NotImp)));
    let answer = Message::response(1, OpCode::Query).to_vec().expect("bytes");
    assert!(matches!(Read::new(&answer, Transport::Udp), Read::Nothing));
    assert!(matches!(Read::new(&[0; 11], Transport::Udp), Read::Nothing));
    let reply = Read::new(&[&[1, 2, 0, 0, 0, 1][..], &[0; 6], &[0xff; 30]].concat(), Transport::Udp);
    assert!(matches!(reply, Read::Said(reply) if reply.kind == Kind::Other && reply.outcome == Outcome::Malformed));
}

/// Every name that means something, asked for with the answer looked at.
#[test]
fn what_is_answered_for_a_name_is_answered_for_its_address() {
    for (service, family) in [("web", Family::V4), ("web", Family::V6), ("secret", Family::V4)] {
        let kind = if family == Family::V4 { RecordType::A } else { RecordType::AAAA };
        let question = format!("{service}.cloud.vp.");
        let answer = ask(PLC, &question, kind);
        let found = match &answer.answers[0].data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(a) => IpAddr::V6(a.0),
            other => panic!("{other}"),
        };
        assert_eq!(says(PLC, &DnsName::from(found).to_string(), RecordType::PTR), question);
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_small_answer_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = answered(&bytes);
    }

    #[test]
    fn any_change_of_a_question_gets_a_small_answer_or_none(at in 0_usize..40, value: u8, cut in 0_usize..60) {
        let mut message = Message::query();
        let name = DnsName::from_ascii("_8080._tcp.web.one.cloud.acme.vp.").expect("a name");
        message.add_query(Question::query(name, RecordType::SRV));
        let mut bytes = message.to_vec().expect("bytes");
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(bytes.len().max(cut) - cut / 2);
        let _ = answered(&bytes);
    }

    #[test]
    fn any_labels_have_a_place(labels in proptest::collection::vec("[a-z_0-9-]{1,12}", 0..8), kind: u16) {
        let name = DnsName::from_ascii(format!("{}vp.", labels.iter().map(|l| format!("{l}.")).collect::<String>()));
        if let Ok(name) = name {
            let place = zone().place(&name).expect("ours");
            prop_assert!(labels.is_empty() == (place == Place::Name(Vec::new())));
            let kind = RecordType::from(kind);
            let is_transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
            let _ = (!is_transfer).then(|| ask(PLC, &name.to_string(), kind));
        }
    }
}

fn answered(bytes: &[u8]) -> Option<()> {
    let answer = match Read::new(bytes, Transport::Udp) {
        Read::Nothing => return None,
        Read::Said(reply) => reply.to_bytes()?,
        Read::Asked(query) => {
            zone().place(query.question.name())?;
            answer(&query, OTHER)?
        }
    };
    assert!(answer.len() <= usize::from(UDP_BYTES_MAX));
    Message::from_vec(&answer).expect("a message");
    Some(())
}
