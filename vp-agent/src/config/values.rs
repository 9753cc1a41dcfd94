//! What the texts in the file and in requests mean. Messages say what was expected; who read the text adds the place.

use super::Workers;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

pub type Parsed<T> = Result<T, String>;

/// `IFNAMSIZ` less its terminating zero.
const INTERFACE_BYTES_MAX: usize = 15;
/// A Unix socket's `sun_path` less its terminating zero.
const SOCKET_BYTES_MAX: usize = 107;
/// IANA's for name servers.
const DNS_PORT: u16 = 53;
/// RFC 1035 section 2.3.4.
const HOST_BYTES_MAX: usize = 253;

pub fn address(text: &str) -> Parsed<IpAddr> {
    text.parse().map_err(|_| format!("{text:?} is no address, expected one such as 10.0.0.2 or fd00::2"))
}

/// An address of a host of this site.
pub fn host(text: &str) -> Parsed<IpAddr> {
    let address = address(text)?;
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err(format!("{address} is no host's address"));
    }
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("{address} is an IPv4 address in disguise, expected it as IPv4"));
    }
    if is_wire(&address.into()) {
        return Err(format!("{address} has a meaning inside tunnels only, expected an address of this site"));
    }
    Ok(address)
}

/// A prefix, or an address as the prefix of its own. No host bits.
pub fn prefix(text: &str) -> Parsed<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let prefix: IpNet = text.parse().map_err(|_| format!("{text:?} is no prefix, expected one such as 10.0.1.0/24"))?;
    if prefix == prefix.trunc() {
        Ok(prefix)
    } else {
        Err(format!("{prefix} has host bits set, expected {}", prefix.trunc()))
    }
}

/// Whether it has a part of the addresses that mean something inside tunnels only.
#[must_use]
pub fn is_wire(prefix: &IpNet) -> bool {
    vp::addr::wire::overlapped(prefix).is_some()
}

pub fn socket_address(text: &str) -> Parsed<SocketAddr> {
    text.parse()
        .map_err(|_| format!("{text:?} is no address and port, expected such as 0.0.0.0:51820 or \"[::]:51820\""))
}

/// Where a peer's tunnel ends: a name or an address, and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

impl Endpoint {
    /// When no name has to be resolved.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|address| (address, self.port).into())
    }
}

pub fn endpoint(text: &str) -> Parsed<Endpoint> {
    let error = || format!("{text:?} is no endpoint, expected HOST:PORT such as cloud.example.com:51820");
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(error());
        }
        return Ok(Endpoint { host: address.ip().to_string(), port: address.port() });
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
    let port = port.parse().ok().filter(|port: &u16| *port > 0).ok_or_else(error)?;
    let good_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A name of digits only is a mistyped address.
    let looks_like_address = name.chars().all(|c| c.is_ascii_digit() || c == '.');
    if name.len() > HOST_BYTES_MAX || !name.split('.').all(good_label) || looks_like_address {
        return Err(error());
    }
    Ok(Endpoint { host: host.to_owned(), port })
}

/// `25s`, `5m`, `1h`: a second at least.
pub fn duration(text: &str) -> Parsed<Duration> {
    let error = || format!("{text:?} is no duration, expected such as 25s, 5m or 1h");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (number, unit) = text.split_at(split);
    let unit_seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(error()),
    };
    let number: u64 = number.parse().map_err(|_| error())?;
    let seconds = number.checked_mul(unit_seconds).filter(|seconds| *seconds > 0).ok_or_else(error)?;
    Ok(Duration::from_secs(seconds))
}

/// WireGuard's persistent keepalive has 16 bits.
pub fn keepalive(text: &str) -> Parsed<u16> {
    let seconds = duration(text)?.as_secs();
    u16::try_from(seconds).map_err(|_| format!("{text:?} is too long, expected at most {}s", u16::MAX))
}

/// `10Mbit`, in bits a second; decimal units.
pub fn rate(text: &str) -> Parsed<u64> {
    let error = || format!("{text:?} is no rate, expected such as 500kbit, 10Mbit or 1Gbit");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit {
        "bit" => 1,
        "kbit" => 1_000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        _ => return Err(error()),
    };
    let number: u64 = number.parse().map_err(|_| error())?;
    number.checked_mul(unit).filter(|rate| *rate > 0).ok_or_else(error)
}

/// `50/s`.
pub fn per_second(text: &str) -> Parsed<u32> {
    let error = || format!("{text:?} is no rate, expected such as 50/s");
    let number = text.strip_suffix("/s").ok_or_else(error)?;
    let digits = number.chars().all(|c| c.is_ascii_digit());
    number.parse().ok().filter(|rate| digits && *rate > 0).ok_or_else(error)
}

/// A number of things, at least one.
pub fn count(text: &str) -> Parsed<u32> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| format!("{text}, expected 1 or more"))
}

pub fn workers(text: &str) -> Parsed<Workers> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    let count = text.parse().ok().filter(|count| (1..=Workers::MAX).contains(count));
    count.map(Workers::Count).ok_or_else(|| format!("{text:?}, expected auto or a number from 1 to {}", Workers::MAX))
}

pub fn interface(text: &str) -> Parsed<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_good = (1..=INTERFACE_BYTES_MAX).contains(&text.len()) && text.chars().all(good);
    if is_good && text != "." && text != ".." && text != "lo" {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no interface name, expected 1 to 15 letters, digits, `-`, `_` or `.`"))
}

pub fn path(text: &str) -> Parsed<PathBuf> {
    let is_good = text.starts_with('/') && !text.contains('\0');
    if is_good {
        Ok(text.into())
    } else {
        Err(format!("{text:?} is no absolute path, expected one that begins with /"))
    }
}

pub fn socket_path(text: &str) -> Parsed<PathBuf> {
    if text.len() > SOCKET_BYTES_MAX {
        return Err(format!("the path has {} bytes, expected at most {SOCKET_BYTES_MAX}", text.len()));
    }
    path(text)
}

/// 32 bytes as `wg genkey` and `wg pubkey` print them.
pub fn key(text: &str) -> Parsed<Zeroizing<[u8; 32]>> {
    let expected = "expected 44 characters as `wg genkey` and `wg pubkey` print them";
    let bytes = BASE64_STANDARD.decode(text).map(Zeroizing::new).map_err(|_| format!("no base64, {expected}"))?;
    let key = bytes.as_slice().try_into().map_err(|_| format!("{} bytes of base64, {expected}", bytes.len()))?;
    Ok(Zeroizing::new(key))
}

/// A key of a peer; all zero (and other points of low order) would give every session the same secret.
pub fn public_key(text: &str) -> Parsed<[u8; 32]> {
    let key = *key(text)?;
    if is_weak(key) { Err("this is no public key: a point of low order".to_owned()) } else { Ok(key) }
}

#[must_use]
pub fn is_weak(public_key: [u8; 32]) -> bool {
    !x25519_dalek::StaticSecret::from([0x42; 32]).diffie_hellman(&public_key.into()).was_contributory()
}

/// `10.0.0.53`, or with a port of its own `10.0.0.53:5353`.
pub fn name_server(text: &str) -> Parsed<SocketAddr> {
    let address = text.parse().or_else(|_| text.parse().map(|address: IpAddr| SocketAddr::from((address, DNS_PORT))));
    let good = |address: &SocketAddr| address.port() > 0 && !address.ip().is_multicast();
    let expected = || format!("{text:?} is no address, expected such as 10.0.0.53 or \"[fd00::53]:5353\"");
    address.ok().filter(good).ok_or_else(expected)
}

/// Whether something is done where it can be.
pub fn auto(text: &str) -> Parsed<bool> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?}, expected auto or off")),
    }
}

/// A DNS zone under which presences get names.
pub fn zone(text: &str) -> Parsed<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let labels = name.split('.').all(|label| vp::addr::Name::new(label).is_ok());
    if labels && name.len() <= HOST_BYTES_MAX {
        return Ok(name.to_owned());
    }
    Err(format!("{text:?} is no zone, expected a DNS name such as vp"))
}
