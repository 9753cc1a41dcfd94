//! `agent.yaml` as it is written: keys and types, every value with its place. Nothing here knows what a value means.

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor, value};
use serde::{Deserialize, de};
use serde_saphyr::Spanned;
use std::fmt;

pub type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub site: Text,
    pub key: Option<Text>,
    pub listen: Option<Text>,
    pub interface: Option<Text>,
    pub workers: Option<Text>,
    pub mtu: Option<Spanned<u16>>,
    pub flows_max: Option<Spanned<u32>>,
    pub aes: Option<bool>,
    pub state_dir: Option<Text>,
    pub socket: Option<Text>,
    pub pool: Spanned<Vec<Text>>,
    pub reach: Option<Spanned<Reach>>,
    pub hub: Option<Hub>,
    pub trust: Option<Vec<Spanned<Trust>>>,
    pub certificate: Option<Text>,
    pub revocations: Option<Text>,
    pub peers: Option<Vec<Spanned<Peer>>>,
    pub clients: Option<Vec<Spanned<Client>>>,
    pub expose: Option<Vec<Spanned<Expose>>>,
    pub map: Option<Vec<Spanned<Map>>>,
    pub audit: Option<Spanned<Audit>>,
    pub metrics: Option<Text>,
    pub dns: Option<Dns>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    pub tenant: Text,
    pub authority: Text,
}

/// By `site` and `public_key`, or by `certificate`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub site: Option<Text>,
    pub public_key: Option<Text>,
    pub certificate: Option<Text>,
    pub preshared_key_file: Option<Text>,
    pub endpoint: Option<Text>,
    pub keepalive: Option<Text>,
    pub groups: Option<Spanned<Vec<Text>>>,
    pub stock: Option<bool>,
    pub hub: Option<bool>,
    pub tls: Option<Text>,
    pub proxy: Option<Text>,
}

/// Its presence alone makes the agent a hub.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    pub relay: Option<Relay>,
    pub tls: Option<Tls>,
    pub store: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub listen: Text,
    pub certificate: Option<Text>,
    pub key: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    pub site: Option<Text>,
    pub tenant: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    pub name: Text,
    pub addresses: Spanned<Vec<Text>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expose {
    pub name: Text,
    pub target: Spanned<Target>,
    pub ports: Spanned<Vec<Text>>,
    pub allow: Option<Spanned<Vec<Text>>>,
    pub source: Option<Text>,
    pub limits: Option<Limits>,
    pub health: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub rate: Option<Text>,
    pub flows: Option<Spanned<u32>>,
    pub new_flows: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    pub service: Text,
    pub address: Option<Text>,
    pub ports: Option<Spanned<Vec<Text>>>,
    pub callers: Option<Spanned<Vec<Text>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    pub zone: Text,
    pub listen: Option<Spanned<Vec<Text>>>,
    pub forward: Option<Spanned<Vec<Text>>>,
    pub clients: Option<Spanned<Vec<Text>>>,
    pub resolved: Option<Text>,
}

/// One address or prefix, or a list of addresses.
#[derive(Debug)]
pub enum Target {
    One(String),
    List(Vec<Text>),
}

/// The file alone, or all there is to say.
#[derive(Debug)]
pub enum Audit {
    File(String),
    Settings(Box<AuditSettings>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSettings {
    pub file: Option<Text>,
    pub required: Option<bool>,
    pub journald: Option<Spanned<Journald>>,
    pub otlp: Option<Text>,
}

/// `true` or `false`, or the path of another socket.
#[derive(Debug)]
pub enum Journald {
    Usual(bool),
    Socket(String),
}

/// `routed`, or `{proxy_arp: INTERFACE}`.
#[derive(Debug)]
pub enum Reach {
    Word(String),
    ProxyArp(Text),
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetVisitor)
    }
}

struct TargetVisitor;

impl<'de> Visitor<'de> for TargetVisitor {
    type Value = Target;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address, a prefix or a list of addresses")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
        Ok(Target::One(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Target, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(list)).map(Target::List)
    }
}

impl<'de> Deserialize<'de> for Audit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AuditVisitor)
    }
}

struct AuditVisitor;

impl<'de> Visitor<'de> for AuditVisitor {
    type Value = Audit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, or `{file: PATH, required: true, journald: true, otlp: URL}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Audit, E> {
        Ok(Audit::File(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Audit, A::Error> {
        let settings = AuditSettings::deserialize(value::MapAccessDeserializer::new(map))?;
        Ok(Audit::Settings(Box::new(settings)))
    }
}

impl<'de> Deserialize<'de> for Journald {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JournaldVisitor)
    }
}

struct JournaldVisitor;

impl Visitor<'_> for JournaldVisitor {
    type Value = Journald;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false or the path of a socket")
    }

    fn visit_bool<E: de::Error>(self, usual: bool) -> Result<Journald, E> {
        Ok(Journald::Usual(usual))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Journald, E> {
        Ok(Journald::Socket(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Reach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReachVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProxyArp {
    proxy_arp: Text,
}

struct ReachVisitor;

impl<'de> Visitor<'de> for ReachVisitor {
    type Value = Reach;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`routed` or `{proxy_arp: INTERFACE}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Reach, E> {
        Ok(Reach::Word(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Reach, A::Error> {
        let ProxyArp { proxy_arp } = ProxyArp::deserialize(value::MapAccessDeserializer::new(map))?;
        Ok(Reach::ProxyArp(proxy_arp))
    }
}
