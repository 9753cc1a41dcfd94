//! An offer as a message and as a value. A message from a peer is a claim: it becomes an offer only if all of it is
//! right, and is refused whole if anything is not.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use vp::addr::{Name, NameError, PortRange, Protocol, wire};
use vp::catalogue::{NamedCaller, NamedHost, OFFER_SERVICES_MAX, Offer, OfferedService};
use vp::node::{Client, Exposure, Target};
use vp_proto::control as proto;

/// The version of the protocol that this agent speaks.
pub const VERSION: u32 = 1;
/// The largest message taken from a peer: a kilobyte for each service that an offer may have.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// More than anyone writes by hand; each is walked when a flow is judged.
const PORTS_MAX: usize = 256;
const LABELS_MAX: usize = 32;
/// As for a DNS label, and as for a DNS name.
const LABEL_KEY_BYTES_MAX: usize = 63;
const LABEL_VALUE_BYTES_MAX: usize = 255;
/// How much of a peer's text is shown in a refusal.
const SHOWN_CHARACTERS_MAX: usize = 40;

/// What is wrong with an offer: one line, safe to print.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("not an offer: {0}")]
    Message(#[from] prost::DecodeError),
    #[error("not an offer: it is cut short")]
    CutShort,
    #[error("larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("version {0} of the control channel was not asked for")]
    Version(u32),
    #[error("more than {OFFER_SERVICES_MAX} services")]
    TooManyServices,
    #[error("service {}: {fault}", Shown(.name))]
    Service { name: String, fault: Fault },
    #[error("caller {}: {fault}", Shown(.name))]
    Caller { name: String, fault: Fault },
    #[error("host {}: {fault}", Shown(.name))]
    Host { name: String, fault: Fault },
}

#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("two of this name")]
    NameTwice,
    #[error("wire index {index} with {host_bits} host bits is outside {}..={} or not aligned", wire::FIRST, wire::LAST)]
    Index { index: u32, host_bits: u32 },
    #[error("wire index {0} belongs to another one already")]
    IndexTwice(u16),
    #[error("neither IPv4 nor IPv6")]
    NoFamily,
    #[error("no ports")]
    NoPorts,
    #[error("more than {PORTS_MAX} port ranges")]
    TooManyPorts,
    #[error("no port range: protocol {protocol}, {first} to {last}")]
    Ports { protocol: i32, first: u32, last: u32 },
    #[error("more than {LABELS_MAX} labels")]
    TooManyLabels,
    #[error("label {} is empty, too long or has characters that do not print", Shown(.0))]
    Label(String),
}

/// Text of a peer for people: escaped and cut.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut: String = self.0.chars().take(SHOWN_CHARACTERS_MAX).collect();
        write!(f, "{cut:?}")
    }
}

/// Reads a peer's message. Each service is decoded and judged by itself: two bytes of a message can stand for a service
/// of a hundred and fifty in memory, so that counting them afterwards would be too late.
pub fn read(mut message: &[u8]) -> Result<Offer, Refusal> {
    let mut reader = Reader::default();
    while !message.is_empty() {
        reader.read_field(&mut message)?;
    }
    if reader.version != VERSION {
        return Err(Refusal::Version(reader.version));
    }
    Ok(reader.offer)
}

/// What goes to the peer.
#[must_use]
pub fn to_message(offer: Offer) -> proto::Offer {
    let callers = offer.callers.into_iter();
    let callers = callers.map(|caller| proto::Caller { index: caller.index.into(), name: caller.name.into() });
    let hosts = offer.hosts.into_iter().map(|NamedHost { index, name, ipv4, ipv6 }| proto::Host {
        index: index.into(),
        name: name.into(),
        ipv4,
        ipv6,
    });
    proto::Offer {
        version: VERSION,
        services: offer.services.into_iter().map(write_service).collect(),
        callers: callers.collect(),
        hosts: hosts.collect(),
    }
}

/// As large as the message can be that offers all of this to a peer, whatever wire indices it has.
pub fn bytes_max<'a>(exposures: impl IntoIterator<Item = &'a Exposure>, clients: &[Client]) -> usize {
    const VERSION_BYTES: usize = 2;
    let named = NamedAddresses::of(clients);
    let services: usize = exposures.into_iter().map(|service| service_bytes_max(service, named)).sum();
    VERSION_BYTES + services + clients.iter().map(client_bytes_max).sum::<usize>()
}

/// How many addresses of this site have a name, and how long the longest is.
#[derive(Clone, Copy)]
pub struct NamedAddresses {
    count: usize,
    name_bytes_max: usize,
}

impl NamedAddresses {
    #[must_use]
    pub fn of(clients: &[Client]) -> Self {
        let count = clients.iter().map(|client| client.addresses.len()).sum();
        let name_bytes_max = clients.iter().map(|client| client.name.as_str().len()).max().unwrap_or(0);
        Self { count, name_bytes_max }
    }
}

/// A service's part of that: keys and lengths of the fields included, numbers at their longest; services have no labels,
/// and of its hosts any may have a name.
#[must_use]
pub fn service_bytes_max(service: &Exposure, named: NamedAddresses) -> usize {
    const SERVICE_BYTES: usize = 18;
    const PORTS_BYTES: usize = 12;
    const HOST_BYTES: usize = 10;
    let hosts = match &service.target {
        // One of each family, or one of both, which is shorter.
        Target::Backends(backends) => backends.len().min(2),
        Target::Prefix(prefix) => 1_usize << u32::from(prefix.max_prefix_len() - prefix.prefix_len()).min(u16::BITS),
    };
    let service_bytes = SERVICE_BYTES + service.name.as_str().len() + PORTS_BYTES * service.ports.len();
    service_bytes + hosts.min(named.count) * (HOST_BYTES + named.name_bytes_max)
}

/// A client's.
#[must_use]
pub fn client_bytes_max(client: &Client) -> usize {
    const CALLER_BYTES: usize = 8;
    client.addresses.len() * (CALLER_BYTES + client.name.as_str().len())
}

/// The protocol as the channel says it.
#[must_use]
pub fn write_protocol(protocol: Protocol) -> proto::Protocol {
    match protocol {
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Udp => proto::Protocol::Udp,
        Protocol::Icmp => proto::Protocol::Icmp,
    }
}

#[must_use]
pub fn read_protocol(protocol: i32) -> Option<Protocol> {
    match proto::Protocol::try_from(protocol).ok()? {
        proto::Protocol::Tcp => Some(Protocol::Tcp),
        proto::Protocol::Udp => Some(Protocol::Udp),
        proto::Protocol::Icmp => Some(Protocol::Icmp),
        proto::Protocol::Unspecified => None,
    }
}

/// Whether the text shows as what it is: nothing that moves the cursor, reverses or hides what follows.
#[must_use]
pub fn is_printable(text: &str) -> bool {
    let hidden = |c: char| matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !text.chars().any(|c| c.is_control() || hidden(c))
}

/// An offer as far as it was read. Every caller takes a wire index of its own, which bounds how many there can be.
#[derive(Default)]
struct Reader {
    version: u32,
    offer: Offer,
    names: BTreeSet<Name>,
    /// First index of each service's block -> its last.
    blocks: BTreeMap<u16, u16>,
    callers: BTreeSet<u16>,
    /// Wire index and whether it is of IPv6.
    hosts: BTreeSet<(u16, bool)>,
}

impl Reader {
    /// Fields of `Offer` in control.proto; those it does not know are for later versions.
    fn read_field(&mut self, message: &mut &[u8]) -> Result<(), Refusal> {
        let (field, wire_type) = decode_key(message)?;
        match (field, wire_type) {
            // An uint32 is the low half of what stands there (protobuf encoding).
            #[allow(clippy::cast_possible_truncation)]
            (1, WireType::Varint) => self.version = decode_varint(message)? as u32,
            (2, WireType::LengthDelimited) => self.add_service(proto::Service::decode(take_delimited(message)?)?)?,
            (3, WireType::LengthDelimited) => self.add_caller(proto::Caller::decode(take_delimited(message)?)?)?,
            (4, WireType::LengthDelimited) => self.add_host(proto::Host::decode(take_delimited(message)?)?)?,
            (_, _) => skip_field(wire_type, field, message, DecodeContext::default())?,
        }
        Ok(())
    }

    fn add_service(&mut self, message: proto::Service) -> Result<(), Refusal> {
        let name = message.name.clone();
        let refused = |fault| Refusal::Service { name, fault };
        let service = match read_service(message) {
            Ok(service) => service,
            Err(fault) => return Err(refused(fault)),
        };
        if !self.names.insert(service.name.clone()) {
            return Err(refused(Fault::NameTwice));
        }
        let last = service.index + ((1 << service.host_bits) - 1);
        let before = self.blocks.range(..=last).next_back();
        if before.is_some_and(|(_, last_before)| *last_before >= service.index) {
            return Err(refused(Fault::IndexTwice(service.index)));
        }
        if self.offer.services.len() >= OFFER_SERVICES_MAX {
            return Err(Refusal::TooManyServices);
        }
        self.blocks.insert(service.index, last);
        self.offer.services.push(service);
        Ok(())
    }

    fn add_caller(&mut self, message: proto::Caller) -> Result<(), Refusal> {
        let proto::Caller { index, name } = message;
        let read = read_block(index, 0).and_then(|(index, _)| {
            // Several hosts may share a name; an index stands for one host.
            let caller = NamedCaller { index, name: Name::new(&name)? };
            if self.callers.insert(index) { Ok(caller) } else { Err(Fault::IndexTwice(index)) }
        });
        self.offer.callers.push(read.map_err(|fault| Refusal::Caller { name, fault })?);
        Ok(())
    }

    /// An index of no service names nobody, and does no harm.
    fn add_host(&mut self, message: proto::Host) -> Result<(), Refusal> {
        let proto::Host { index, name, ipv4, ipv6 } = message;
        let read = read_block(index, 0).and_then(|(index, _)| {
            if !ipv4 && !ipv6 {
                return Err(Fault::NoFamily);
            }
            let is_taken = (ipv4 && !self.hosts.insert((index, false))) | (ipv6 && !self.hosts.insert((index, true)));
            let host = NamedHost { index, name: Name::new(&name)?, ipv4, ipv6 };
            if is_taken { Err(Fault::IndexTwice(index)) } else { Ok(host) }
        });
        self.offer.hosts.push(read.map_err(|fault| Refusal::Host { name, fault })?);
        Ok(())
    }
}

/// What a length announces, cut from the front.
fn take_delimited<'a>(message: &mut &'a [u8]) -> Result<&'a [u8], Refusal> {
    let bytes = decode_varint(message)?;
    let cut = usize::try_from(bytes).ok().and_then(|bytes| message.split_at_checked(bytes));
    let (field, rest) = cut.ok_or(Refusal::CutShort)?;
    *message = rest;
    Ok(field)
}

fn read_service(message: proto::Service) -> Result<OfferedService, Fault> {
    let proto::Service { name, index, host_bits, ipv4, ipv6, ports, labels, health } = message;
    let (index, host_bits) = read_block(index, host_bits)?;
    if !ipv4 && !ipv6 {
        return Err(Fault::NoFamily);
    }
    let healthy = match proto::Health::try_from(health) {
        Ok(proto::Health::Down) => false,
        // A health that this version does not know says nothing.
        Ok(proto::Health::Up | proto::Health::Unspecified) | Err(_) => true,
    };
    Ok(OfferedService {
        name: Name::new(&name)?,
        index,
        host_bits,
        ipv4,
        ipv6,
        ports: read_ports(ports)?,
        labels: read_labels(labels)?,
        healthy,
    })
}

/// A block of `2^host_bits` indices lies within the range for services and starts where a prefix can.
fn read_block(index: u32, host_bits: u32) -> Result<(u16, u8), Fault> {
    let fault = || Fault::Index { index, host_bits };
    let size = if host_bits < 16 { 1_u32 << host_bits } else { return Err(fault()) };
    let first = u16::try_from(index).map_err(|_| fault())?;
    let in_range = first >= wire::FIRST && index + (size - 1) <= u32::from(wire::LAST);
    if !in_range || !index.is_multiple_of(size) {
        return Err(fault());
    }
    Ok((first, u8::try_from(host_bits).map_err(|_| fault())?))
}

fn read_ports(messages: Vec<proto::Ports>) -> Result<Vec<PortRange>, Fault> {
    if messages.is_empty() {
        return Err(Fault::NoPorts);
    }
    if messages.len() > PORTS_MAX {
        return Err(Fault::TooManyPorts);
    }
    messages.into_iter().map(read_port_range).collect()
}

fn read_port_range(message: proto::Ports) -> Result<PortRange, Fault> {
    let proto::Ports { protocol: number, first, last } = message;
    let fault = || Fault::Ports { protocol: number, first, last };
    let protocol = read_protocol(number).ok_or_else(fault)?;
    let range = match (u16::try_from(first), u16::try_from(last)) {
        (Ok(first), Ok(last)) => PortRange { protocol, first, last },
        (Err(_), _) | (_, Err(_)) => return Err(fault()),
    };
    let valid = match protocol {
        Protocol::Tcp | Protocol::Udp => range.first > 0 && range.first <= range.last,
        Protocol::Icmp => range == PortRange::ICMP,
    };
    if valid { Ok(range) } else { Err(fault()) }
}

fn read_labels(messages: HashMap<String, String>) -> Result<BTreeMap<String, String>, Fault> {
    if messages.len() > LABELS_MAX {
        return Err(Fault::TooManyLabels);
    }
    let mut labels = BTreeMap::new();
    for (key, value) in messages {
        let key_fits = (1..=LABEL_KEY_BYTES_MAX).contains(&key.len()) && is_printable(&key);
        if !key_fits || value.len() > LABEL_VALUE_BYTES_MAX || !is_printable(&value) {
            return Err(Fault::Label(key));
        }
        labels.insert(key, value);
    }
    Ok(labels)
}

fn write_service(service: OfferedService) -> proto::Service {
    let ports = service.ports.iter().map(|range| proto::Ports {
        protocol: write_protocol(range.protocol).into(),
        first: range.first.into(),
        last: range.last.into(),
    });
    let health = if service.healthy { proto::Health::Up } else { proto::Health::Down };
    proto::Service {
        name: service.name.to_string(),
        index: service.index.into(),
        host_bits: service.host_bits.into(),
        ipv4: service.ipv4,
        ipv6: service.ipv6,
        ports: ports.collect(),
        labels: service.labels.into_iter().collect(),
        health: health.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    fn service(name: &str, index: u32, host_bits: u32) -> proto::Service {
        let tcp = proto::Protocol::Tcp.into();
        proto::Service {
            name: name.to_owned(),
            index,
            host_bits,
            ipv4: true,
            ports: vec![proto::Ports { protocol: tcp, first: 80, last: 80 }],
            ..proto::Service::default()
        }
    }

    fn read_all(services: Vec<proto::Service>) -> Result<Offer, Refusal> {
        read(&proto::Offer { version: VERSION, services, ..proto::Offer::default() }.encode_to_vec())
    }

    /// What is said of an offer of one good service and this one.
    fn refusal(bad: proto::Service) -> String {
        read_all(vec![service("good", 2, 0), bad]).unwrap_err().to_string()
    }

    #[test]
    fn no_offer_is_larger_than_it_can_be_and_the_largest_is_nearly_so() {
        let ports = vec![PortRange::from_str("udp/50000-60000").unwrap(); 256];
        let web = Exposure {
            name: Name::new(&"w".repeat(63)).unwrap(),
            target: Target::Backends(vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]),
            ports: ports.clone(),
            allow: Vec::new(),
            source: vp::node::Source::Presence,
            limits: vp::node::Limits::default(),
        };
        let plc = Client { name: Name::new("plc").unwrap(), addresses: vec!["10.0.0.2".parse().unwrap(); 100] };
        let offered = |index| OfferedService {
            name: web.name.clone(),
            index,
            host_bits: 15,
            ipv4: true,
            ipv6: true,
            ports: ports.clone(),
            labels: BTreeMap::new(),
            healthy: false,
        };
        let callers = vec![NamedCaller { index: 40_000, name: plc.name.clone() }; 100];
        let host = |index, ipv6: bool| NamedHost { index, name: plc.name.clone(), ipv4: !ipv6, ipv6 };
        let hosts = (40_000..40_010).flat_map(|index| [host(index, false), host(index, true)]).collect();
        let offer = Offer { services: (40_000..40_010).map(offered).collect(), callers, hosts };
        let (bytes, most) = (to_message(offer).encoded_len(), bytes_max(vec![&web; 10], &[plc]));
        assert!(bytes <= most && most <= bytes + 10, "{bytes} of {most}");
    }

    #[test]
    fn an_offer_is_the_same_there_and_back() {
        let ports = ["tcp/80", "udp/5000-5010", "icmp"].map(|text| PortRange::from_str(text).unwrap()).to_vec();
        let labels = BTreeMap::from([("owner".to_owned(), "Käthe".to_owned())]);
        let name = Name::new("web").unwrap();
        let web =
            OfferedService { name, index: 16, host_bits: 4, ipv4: true, ipv6: true, ports, labels, healthy: false };
        let caller = |index, name| NamedCaller { index, name: Name::new(name).unwrap() };
        // Two hosts of one name.
        let host = |index, ipv4, ipv6| NamedHost { index, name: Name::new("plc").unwrap(), ipv4, ipv6 };
        let hosts = vec![host(16, true, false), host(16, false, true), host(31, true, true)];
        let offer = Offer { services: vec![web], callers: vec![caller(2, "plc"), caller(9, "plc")], hosts };
        assert_eq!(read(&to_message(offer.clone()).encode_to_vec()), Ok(offer));
        assert_eq!(read(&to_message(Offer::default()).encode_to_vec()), Ok(Offer::default()));
    }

    #[test]
    fn fields_of_a_later_version_are_ignored() {
        let mut message = to_message(Offer::default()).encode_to_vec();
        // Field 99: bytes, fixed64 and a group.
        message.extend([0x9a, 0x06, 2, 0xff, 0xff, 0x99, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0x9b, 0x06, 0x9c, 0x06]);
        assert_eq!(read(&message), Ok(Offer::default()));
        let mut later = service("web", 2, 0);
        later.health = 77;
        assert!(read_all(vec![later]).unwrap().services[0].healthy);
    }

    #[test]
    fn a_version_that_was_not_asked_for_is_refused() {
        assert_eq!(read(&[]), Err(Refusal::Version(0)));
        assert_eq!(read(&[0x08, 2]), Err(Refusal::Version(2)));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        for bytes in
            [&[0x12, 200][..], &[0x12, 2, 0x0a], &[0x12], &[0x0f], &[0xff; 40], &[0x12, 0xff, 0xff, 0xff, 0xff, 15]]
        {
            let refusal = read(bytes).unwrap_err().to_string();
            assert!(refusal.starts_with("not an offer: "), "{refusal}");
        }
    }

    #[test]
    fn a_name_is_one_dns_label_and_shown_so_that_it_cannot_lie() {
        assert!(refusal(service("web.cloud", 3, 0)).starts_with("service \"web.cloud\": a name has"));
        assert!(refusal(service("", 3, 0)).contains("empty"));
        let shown = refusal(service("web\n2026 all is well\u{1b}[2J", 3, 0));
        assert!(is_printable(&shown), "{shown}");
        assert!(refusal(service(&"x".repeat(100_000), 3, 0)).len() < 200);
        assert_eq!(refusal(service("good", 3, 0)), "service \"good\": two of this name");
    }

    #[test]
    fn wire_indices_are_in_range_aligned_and_taken_once() {
        for (index, host_bits) in [
            (0, 0),
            (1, 0),
            (0xffff, 0),
            (0x1_0002, 0),
            (u32::MAX, 0),
            (24, 4),
            (0, 4),
            (0x8000, 15),
            (2, 16),
            (0, 32),
            (4, u32::MAX),
        ] {
            assert!(refusal(service("bad", index, host_bits)).contains("outside"), "{index} {host_bits}");
        }
        assert_eq!(refusal(service("bad", 2, 0)), "service \"bad\": wire index 2 belongs to another one already");
        let with_16 = |others: &[(u32, u32)]| {
            let others = others.iter().enumerate();
            let others = others.map(|(n, (index, bits))| service(&format!("other-{n}"), *index, *bits));
            read_all(std::iter::once(service("block", 16, 4)).chain(others).collect())
        };
        for (index, host_bits) in [(16, 0), (31, 0), (16, 4), (24, 3), (16, 3)] {
            assert!(with_16(&[(index, host_bits)]).is_err(), "{index} {host_bits}");
        }
        // A block over one that came before.
        assert!(read_all(vec![service("a", 20, 0), service("b", 16, 4)]).is_err());
        assert!(with_16(&[(15, 0), (32, 5), (8, 1), (0x4000, 14), (0xfffe, 0)]).is_ok());
    }

    #[test]
    fn ports_are_ranges_of_a_known_protocol_and_never_none() {
        let bad = |ports: Vec<(i32, u32, u32)>| {
            let ports = ports.into_iter().map(|(protocol, first, last)| proto::Ports { protocol, first, last });
            refusal(proto::Service { ports: ports.collect(), ..service("bad", 3, 0) })
        };
        assert!(bad(vec![]).ends_with("no ports"));
        for range in [
            (1, 0, 0),
            (1, 0, 9),
            (1, 9, 8),
            (1, 80, 65_536),
            (2, 65_616, 65_616),
            (3, 0, 1),
            (3, 8, 8),
            (0, 80, 80),
            (9, 80, 80),
            (-1, 1, 1),
        ] {
            assert!(bad(vec![range]).contains("no port range"), "{range:?}");
        }
        assert!(bad(vec![(1, 1, 1); PORTS_MAX + 1]).contains("more than"));
    }

    #[test]
    fn labels_are_few_short_and_print() {
        let bad = |labels: Vec<(String, String)>| {
            refusal(proto::Service { labels: labels.into_iter().collect(), ..service("bad", 3, 0) })
        };
        let text = str::to_owned;
        assert!(bad((0..=LABELS_MAX).map(|n| (n.to_string(), String::new())).collect()).contains("more than"));
        for (key, value) in [
            (String::new(), text("v")),
            ("k".repeat(64), text("v")),
            (text("k"), "v".repeat(256)),
            (text("k"), text("a\u{202e}b")),
            (text("k\r"), text("v")),
            (text("k"), text("\u{9b}2J")),
        ] {
            assert!(bad(vec![(key.clone(), value.clone())]).contains("label"), "{key:?} {value:?}");
        }
    }

    #[test]
    fn a_service_without_a_family_is_refused() {
        assert!(refusal(proto::Service { ipv4: false, ..service("bad", 3, 0) }).contains("neither"));
    }

    #[test]
    fn callers_have_an_index_of_their_own_and_a_name() {
        let bad = |callers: &[(u32, &str)]| {
            let callers = callers.iter().map(|(index, name)| proto::Caller { index: *index, name: (*name).to_owned() });
            let offer = proto::Offer { version: VERSION, callers: callers.collect(), ..proto::Offer::default() };
            read(&offer.encode_to_vec()).unwrap_err().to_string()
        };
        assert!(bad(&[(2, "plc"), (2, "robot")]).starts_with("caller \"robot\": wire index 2 belongs"));
        assert!(bad(&[(1, "plc")]).contains("outside"));
        assert!(bad(&[(2, "P L C")]).contains("lower-case"));
    }

    #[test]
    fn a_wire_index_is_one_hosts_in_each_family() {
        let read = |hosts: &[(u32, &str, bool, bool)]| {
            let host = |(index, name, ipv4, ipv6): &(u32, &str, _, _)| proto::Host {
                index: *index,
                name: (*name).to_owned(),
                ipv4: *ipv4,
                ipv6: *ipv6,
            };
            let hosts = hosts.iter().map(host).collect();
            read(&proto::Offer { version: VERSION, hosts, ..proto::Offer::default() }.encode_to_vec())
        };
        let bad = |hosts: &[_]| read(hosts).unwrap_err().to_string();
        assert_eq!(read(&[(2, "plc", true, false), (2, "robot", false, true)]).unwrap().hosts.len(), 2);
        assert!(bad(&[(2, "plc", true, false), (2, "robot", true, true)]).starts_with("host \"robot\": wire index 2"));
        assert!(bad(&[(2, "plc", false, false)]).contains("neither"));
        assert!(bad(&[(1, "plc", true, true)]).contains("outside"));
        assert!(bad(&[(2, "P.L.C", true, true)]).contains("lower-case"));
    }

    #[test]
    fn more_services_than_an_offer_may_have_are_refused() {
        let many = |count: u32| (0..count).map(|n| service(&format!("s-{n}"), n + 2, 0)).collect();
        assert_eq!(read_all(many(4096)).unwrap().services.len(), OFFER_SERVICES_MAX);
        assert_eq!(read_all(many(4097)), Err(Refusal::TooManyServices));
        assert_eq!(read_all(many(65_000)), Err(Refusal::TooManyServices));
    }

    /// The most entries a message can name: what is kept stays within what there are indices for.
    #[test]
    fn a_message_full_of_empty_entries_is_refused_at_the_first() {
        let mut message = Vec::new();
        (0..MESSAGE_BYTES_MAX / 2).for_each(|_| message.extend([0x12, 0]));
        assert!(matches!(read(&message), Err(Refusal::Service { .. })));
    }

    /// Any bytes: no panic, and what is taken is an offer that this agent could have sent itself.
    #[test]
    fn whatever_is_read_is_a_whole_offer() {
        let block = |n: u32| proto::Service {
            labels: [("k".to_owned(), n.to_string())].into(),
            ..service(&format!("s-{n}"), 16 * n, 4)
        };
        let callers = (2..5).map(|n| proto::Caller { index: n, name: "plc".to_owned() }).collect();
        let hosts =
            (16..20).map(|index| proto::Host { index, name: "plc".to_owned(), ipv4: true, ipv6: false }).collect();
        let services = (1..4).map(block).collect();
        let good = proto::Offer { version: VERSION, services, callers, hosts }.encode_to_vec();
        let (mut random, mut taken) = (9_u64, 0);
        // splitmix64
        let mut below = |limit: usize| {
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            usize::try_from(mixed >> 33).unwrap() % limit
        };
        for _ in 0..200_000 {
            let mut bytes = good.clone();
            for _ in 0..=below(3) {
                let at = below(bytes.len());
                match below(4) {
                    0 => bytes[at] = u8::try_from(below(256)).unwrap(),
                    1 => bytes.truncate(at + 1),
                    2 => bytes[at] ^= 1 << below(8),
                    _ => bytes.insert(at, u8::try_from(below(256)).unwrap()),
                }
            }
            if let Ok(offer) = read(&bytes) {
                taken += 1;
                assert_eq!(read(&to_message(offer.clone()).encode_to_vec()), Ok(offer));
            }
        }
        assert!(taken > 1000, "{taken}");
    }
}
