//! An offer as a message and as a value. A message from a peer is a claim: it becomes an offer only if all of it is
//! right, and is refused whole if anything is not.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use vp::addr::{Name, NameError, PortRange, Protocol, wire};
use vp::catalogue::{NamedCaller, Offer, OfferedService};
use vp_proto::control as proto;

/// The version of the protocol that this agent speaks.
pub const VERSION: u32 = 1;
/// The largest message taken from a peer: an offer that uses every wire index has half of it.
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
    #[error("service {}: {fault}", Shown(.name))]
    Service { name: String, fault: Fault },
    #[error("caller {}: {fault}", Shown(.name))]
    Caller { name: String, fault: Fault },
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
    proto::Offer {
        version: VERSION,
        services: offer.services.into_iter().map(write_service).collect(),
        callers: callers.collect(),
    }
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

/// An offer as far as it was read. Every entry takes wire indices of its own, which bounds how many there can be.
#[derive(Default)]
struct Reader {
    version: u32,
    offer: Offer,
    names: BTreeSet<Name>,
    /// First index of each service's block -> its last.
    blocks: BTreeMap<u16, u16>,
    callers: BTreeSet<u16>,
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
