//! The file as it is written: every value with its place, nothing judged yet.

use super::ConfigError;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Location, Options, Spanned};
use std::fmt;

pub type Text = Spanned<String>;

/// A value that did not come from a file.
#[must_use]
pub fn plain<T>(value: T) -> Spanned<T> {
    Spanned::new(value, Location::UNKNOWN, Location::UNKNOWN)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub site: Text,
    pub key: Option<Text>,
    pub listen: Option<Text>,
    pub interface: Option<Text>,
    pub mtu: Option<Spanned<u16>>,
    pub flows_max: Option<Spanned<u32>>,
    pub state_dir: Option<Text>,
    pub socket: Option<Text>,
    pub pool: Vec<Text>,
    pub reach: Option<Spanned<RawReach>>,
    #[serde(default)]
    pub peers: Vec<RawPeer>,
    #[serde(default)]
    pub clients: Vec<RawClient>,
    #[serde(default)]
    pub expose: Vec<RawExposure>,
    #[serde(default)]
    pub map: Vec<RawMapping>,
    pub audit: Option<Text>,
    pub metrics: Option<Text>,
    pub dns: Option<RawDns>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawReach {
    Routed,
    ProxyArp(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPeer {
    pub site: Text,
    pub public_key: Text,
    pub preshared_key_file: Option<Text>,
    pub endpoint: Option<Text>,
    pub keepalive: Option<Text>,
    #[serde(default)]
    pub groups: Vec<Text>,
    #[serde(default)]
    pub stock: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawClient {
    pub name: Text,
    pub addresses: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawExposure {
    pub name: Text,
    pub target: Spanned<Targets>,
    pub ports: Spanned<Vec<Text>>,
    #[serde(default)]
    pub allow: Vec<Text>,
    pub source: Option<Text>,
    #[serde(default)]
    pub limits: RawLimits,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    pub rate: Option<Text>,
    pub flows: Option<Spanned<u32>>,
    pub new_flows: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMapping {
    pub service: Text,
    pub address: Option<Text>,
    #[serde(default)]
    pub ports: Vec<Text>,
    #[serde(default)]
    pub callers: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDns {
    pub zone: Text,
}

/// An address, a prefix, or a list of addresses.
pub struct Targets(pub Vec<String>);

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Targets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, a prefix or a list of addresses")
            }

            fn visit_str<E>(self, text: &str) -> Result<Targets, E> {
                Ok(Targets(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Targets, A::Error> {
                let mut targets = Vec::new();
                while let Some(target) = list.next_element()? {
                    targets.push(target);
                }
                Ok(Targets(targets))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

/// Limits against files made to cost: the defaults of the library bound events, depth and what aliases repeat.
pub fn parse(text: &str) -> Result<RawConfig, ConfigError> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let options: Options = options;
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map(|at| (at.line(), at.column()));
        ConfigError { file: None, at, message: first_line(&error.without_snippet().to_string()) }
    })
}

/// What the library says without its own mention of the place, which leads the line already.
fn first_line(message: &str) -> String {
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or(message).trim();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let place = line.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    let line = place.map_or(line, |(_, message)| message);
    let end = line.rfind(" at line ").filter(|at| line[*at..].contains("column"));
    line[..end.unwrap_or(line.len())].to_owned()
}
