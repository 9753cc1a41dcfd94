//! Names as DNS writes them: which of them are ours, what each may mean, and the records that say what it does.
//!
//! | name | |
//! |---|---|
//! | `web.cloud.vp`, `web.cloud.acme.vp` | a service of another site: its presence here; of this site: where it is |
//! | `metrics.plc.factory.vp` | a service on a host that has a name |
//! | `plc.factory.vp`, `caller-7.factory.vp` | a caller of another site: its presence here; of this site: the host |
//! | `factory.vp`, of this site | the gateway, which is also the name server of the zone |
//! | `_tcp.web.cloud.vp`, `_web._tcp.web.cloud.vp` | SRV: its TCP ports here |
//! | `_8080._tcp.web.cloud.vp` | SRV: the port that is its 8080 here |
//! | `2.1.0.10.in-addr.arpa` | PTR: what stands behind an address of the pool |

use super::counts::Outcome;
use super::query::Query;
use super::reply::Reply;
use super::reverse::{self, Reverse};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use std::net::IpAddr;
use vp::addr::{Name, Pool, PortMap, Protocol};
use vp::node::{Meaning, Node};

/// Of all records, and of what is not there (RFC 2308 section 5): what a cache keeps is over as soon as what it speaks of
/// may have changed, and asking again costs no more than a packet within the site.
const TTL_SECONDS: u32 = 1;
/// As many SRV records as one answer has: the first port of each range.
const PORTS_MAX: usize = 32;
/// A service's, a host's, a site's and a tenant's name.
const LABELS_MAX: usize = 4;
/// Of SOA; nobody transfers the zone.
const SERIAL: u32 = 1;
const REFRESH_SECONDS: i32 = 3600;

/// The zone and what belongs to it of the reverse ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    origin: DnsName,
    /// This site, whose name is also the name server's.
    site: Name,
    pool: Pool,
}

/// Where in the tree a name is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Below the origin, or the origin itself.
    Name(Vec<Name>),
    Ports(Vec<Name>, Ports),
    /// An address of the pool.
    Address(IpAddr),
    /// Between the apex of a reverse zone and its addresses, or the apex itself.
    Reverse {
        is_apex: bool,
    },
    /// Below the origin, where there can be nothing.
    Nowhere,
}

/// Whose SRV records are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    protocol: Protocol,
    /// The service's own port; absent: all of them.
    port: Option<u16>,
}

/// What is there for this client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    Nothing,
    /// Only names below, or nothing that is asked for.
    Branch,
    Meaning(Meaning),
    /// Of SRV: by their order, and where they are.
    Ports(Vec<Name>, Vec<u16>, Vec<IpAddr>),
    Called(Vec<Name>),
}

impl Place {
    /// By the live tables, for a host of this site, or for the gateway itself.
    #[must_use]
    pub fn look_up(&self, node: &Node, from: Option<IpAddr>) -> Found {
        match self {
            Self::Name(labels) => node.meaning(labels, from).map_or(Found::Nothing, Found::Meaning),
            Self::Ports(labels, wanted) => {
                let Some(meaning) = node.meaning(labels, from) else { return Found::Nothing };
                let ports = wanted.of(&meaning);
                if ports.is_empty() { Found::Nothing } else { Found::Ports(labels.clone(), ports, meaning.addresses) }
            }
            Self::Address(address) => node.called(*address, from).map_or(Found::Nothing, Found::Called),
            Self::Reverse { .. } => Found::Branch,
            Self::Nowhere => Found::Nothing,
        }
    }
}

impl Ports {
    /// The ports here. There are none where there is no address.
    fn of(self, meaning: &Meaning) -> Vec<u16> {
        if meaning.addresses.is_empty() {
            return Vec::new();
        }
        let of_protocol = meaning.ports.iter().filter(|map| map.local.protocol == self.protocol);
        let local = |map: &PortMap| match self.port {
            Some(port) => map.local(self.protocol, port),
            None => Some(map.local.first),
        };
        of_protocol.filter_map(local).take(PORTS_MAX).collect()
    }
}

impl Zone {
    /// `zone` as the configuration has it; none if it leaves no room for names.
    #[must_use]
    pub fn new(zone: &str, site: Name, pool: Pool) -> Option<Self> {
        let mut origin = DnsName::from_ascii(zone).ok()?;
        origin.set_fqdn(true);
        Some(Self { origin, site, pool })
    }

    /// Where the name is; none if it is not ours.
    #[must_use]
    pub fn place(&self, name: &DnsName) -> Option<Place> {
        if !self.origin.zone_of(name) {
            return match reverse::read(name)? {
                Reverse::Address(address) => self.pool.contains(address).then_some(Place::Address(address)),
                Reverse::Branch(network) => {
                    let covered = |pool: &&ipnet::IpNet| pool.contains(&network);
                    let pool = self.pool.prefixes().iter().find(covered)?;
                    Some(Place::Reverse { is_apex: reverse::apex_bits(pool) == network.prefix_len() })
                }
            };
        }
        let below = usize::from(name.num_labels() - self.origin.num_labels());
        let labels: Vec<String> = name.iter().take(below).map(lower_case).collect();
        Some(self.place_below(&labels).unwrap_or(Place::Nowhere))
    }

    fn place_below(&self, labels: &[String]) -> Option<Place> {
        let named = labels.iter().position(|label| !label.starts_with('_')).unwrap_or(labels.len());
        let (special, labels) = labels.split_at(named);
        let names: Vec<Name> = labels.iter().map(|label| Name::new(label).ok()).collect::<Option<_>>()?;
        if names.len() > LABELS_MAX {
            return None;
        }
        let special: Vec<&str> = special.iter().map(|label| &label[1..]).collect();
        let (service, protocol) = match special[..] {
            [] => return Some(Place::Name(names)),
            [protocol] => (None, protocol),
            [service, protocol] => (Some(service), protocol),
            _ => return None,
        };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let port = match service {
            None => None,
            Some(service) if service == names.first()?.as_str() => None,
            Some(port) => Some(port.parse().ok().filter(|number: &u16| number.to_string() == port)?),
        };
        Some(Place::Ports(names, Ports { protocol, port }))
    }

    /// The answer, if the names fit into one.
    #[must_use]
    pub fn answer(&self, query: &Query, place: &Place, found: &Found, forwards: bool) -> Reply {
        let mut message = query.reply();
        message.metadata.authoritative = true;
        message.metadata.recursion_available = forwards;
        let outcome = self.fill(&mut message, query, place, found).unwrap_or(Outcome::Failed);
        if outcome == Outcome::Failed {
            return query.said(ResponseCode::ServFail, outcome);
        }
        query.answered(message, outcome)
    }

    /// None: a name is longer than DNS can have them.
    fn fill(&self, message: &mut Message, query: &Query, place: &Place, found: &Found) -> Option<Outcome> {
        let (owner, wanted) = (query.question.name(), query.question.query_type());
        let records = self.records(wanted, place, found, owner)?;
        if *found == Found::Nothing {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        if !records.is_empty() {
            let record = |data| Record::from_rdata(owner.clone(), TTL_SECONDS, data);
            message.add_answers(records.into_iter().map(record));
            if let Found::Ports(labels, _, addresses) = found {
                let at = self.name(labels)?;
                let address = |address: &IpAddr| Record::from_rdata(at.clone(), TTL_SECONDS, address_data(*address));
                message.add_additionals(addresses.iter().map(address));
            }
            return Some(Outcome::Answered);
        }
        message.add_authority(Record::from_rdata(self.apex_of(place, owner), TTL_SECONDS, self.soa()?));
        Some(if *found == Found::Nothing { Outcome::NoName } else { Outcome::NoData })
    }

    fn records(&self, wanted: RecordType, place: &Place, found: &Found, owner: &DnsName) -> Option<Vec<RData>> {
        if *found == Found::Nothing {
            return Some(Vec::new());
        }
        let is_apex = *owner == self.origin || *place == (Place::Reverse { is_apex: true });
        let records = match (wanted, found) {
            // RFC 8482 section 4.2.
            (RecordType::ANY, _) => vec![RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))],
            (RecordType::SOA, _) if is_apex => vec![self.soa()?],
            (RecordType::NS, _) if is_apex => vec![RData::NS(NS(self.name(std::slice::from_ref(&self.site))?))],
            (RecordType::A, Found::Meaning(meaning)) => of_family(&meaning.addresses, IpAddr::is_ipv4),
            (RecordType::AAAA, Found::Meaning(meaning)) => of_family(&meaning.addresses, IpAddr::is_ipv6),
            (RecordType::PTR, Found::Called(labels)) => vec![RData::PTR(PTR(self.name(labels)?))],
            (RecordType::SRV, Found::Ports(labels, ports, _)) => {
                let target = self.name(labels)?;
                let record = |(place, port)| RData::SRV(SRV::new(place, 0, port, target.clone()));
                (0..).zip(ports.iter().copied()).map(record).collect()
            }
            _ => Vec::new(),
        };
        Some(records)
    }

    /// Whose SOA says that something is not there.
    fn apex_of(&self, place: &Place, owner: &DnsName) -> DnsName {
        let address = match place {
            Place::Address(address) => *address,
            Place::Reverse { .. } => match reverse::read(owner) {
                Some(Reverse::Branch(network)) => network.addr(),
                Some(Reverse::Address(address)) => address,
                None => return self.origin.clone(),
            },
            Place::Name(_) | Place::Ports(..) | Place::Nowhere => return self.origin.clone(),
        };
        let pool = self.pool.prefixes().iter().find(|pool| pool.contains(&address));
        pool.map_or_else(|| self.origin.clone(), |pool| reverse::apex(owner, pool))
    }

    fn soa(&self) -> Option<RData> {
        let server = self.name(std::slice::from_ref(&self.site))?;
        let person = self.origin.prepend_label("hostmaster").ok()?;
        let minimum = TTL_SECONDS;
        Some(RData::SOA(SOA::new(server, person, SERIAL, REFRESH_SECONDS, REFRESH_SECONDS, REFRESH_SECONDS, minimum)))
    }

    fn name(&self, labels: &[Name]) -> Option<DnsName> {
        let name = DnsName::from_labels(labels.iter().map(|label| label.as_str().as_bytes())).ok()?;
        name.append_domain(&self.origin).ok()
    }

    /// The reverse zones that are the pool's, as far as they are whole ones: for systemd-resolved.
    pub fn reverse_zones(&self) -> impl Iterator<Item = String> + '_ {
        self.pool.prefixes().iter().flat_map(reverse::zones)
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn of_family(addresses: &[IpAddr], is_one: impl Fn(&IpAddr) -> bool) -> Vec<RData> {
    addresses.iter().filter(|address| is_one(address)).map(|address| address_data(*address)).collect()
}

/// What is no text is no name of ours either.
fn lower_case(label: &[u8]) -> String {
    String::from_utf8_lossy(label).to_ascii_lowercase()
}
