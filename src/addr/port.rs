//! Ports as the operator writes them: `tcp/443`, `udp/5000-5010`, `icmp`, and in a mapping `tcp/80=tcp/8080`.

use std::fmt;
use std::str::FromStr;

/// Protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    /// Echo, of either family.
    Icmp,
}

impl Protocol {
    /// The protocol of a flow by its number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            protocol::TCP => Some(Self::Tcp),
            protocol::UDP => Some(Self::Udp),
            protocol::ICMP | protocol::ICMPV6 => Some(Self::Icmp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// `first..=last` of one protocol; for `icmp` always `0..=0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRange {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub const ICMP: Self = Self { protocol: Protocol::Icmp, first: 0, last: 0 };

    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (protocol == Protocol::Icmp || (self.first..=self.last).contains(&port))
    }
}

/// A port of the presence and the port of the service it stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortMap {
    pub local: PortRange,
    /// The service's port for `local.first`; the others follow in order.
    pub remote_first: u16,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected tcp/PORT, udp/PORT, PROTOCOL/FIRST-LAST or icmp, found {0:?}")]
pub struct PortSpecError(String);

impl FromStr for PortRange {
    type Err = PortSpecError;
    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        let error = || PortSpecError(text.chars().take(40).collect());
        if text == "icmp" {
            return Ok(Self::ICMP);
        }
        let (name, ports) = text.split_once('/').ok_or_else(error)?;
        let protocol = match name {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(error()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port > 0 && !digits.starts_with(['+', '0']) => Ok(port),
            Ok(_) | Err(_) => Err(error()),
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last { Err(error()) } else { Ok(Self { protocol, first, last }) }
    }
}

impl FromStr for PortMap {
    type Err = PortSpecError;
    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        let (local, remote) = text.split_once('=').unwrap_or((text, text));
        let (local, remote): (PortRange, PortRange) = (local.parse()?, remote.parse()?);
        let alike = local.protocol == remote.protocol && local.last - local.first == remote.last - remote.first;
        if alike {
            Ok(Self { local, remote_first: remote.first })
        } else {
            Err(PortSpecError(text.chars().take(40).collect()))
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, first, last } = self;
        let text = match protocol {
            Protocol::Icmp => "icmp".to_owned(),
            Protocol::Tcp | Protocol::Udp if first == last => format!("{protocol}/{first}"),
            Protocol::Tcp | Protocol::Udp => format!("{protocol}/{first}-{last}"),
        };
        f.pad(&text)
    }
}

impl PortMap {
    /// Every port as it is at the service.
    #[must_use]
    pub fn same(ports: PortRange) -> Self {
        Self { local: ports, remote_first: ports.first }
    }

    /// The service's port behind `port` of the presence, if this map covers it.
    #[must_use]
    pub fn remote(&self, protocol: Protocol, port: u16) -> Option<u16> {
        let covered = self.local.contains(protocol, port);
        covered.then(|| if protocol == Protocol::Icmp { port } else { self.remote_first + (port - self.local.first) })
    }

    /// The presence's port that stands for `port` of the service: the inverse of [`Self::remote`].
    #[must_use]
    pub fn local(&self, protocol: Protocol, port: u16) -> Option<u16> {
        let covered = self.remote_range().contains(protocol, port);
        covered.then(|| if protocol == Protocol::Icmp { port } else { self.local.first + (port - self.remote_first) })
    }

    /// The service's ports that this map reaches.
    #[must_use]
    pub fn remote_range(&self) -> PortRange {
        let span = self.local.last - self.local.first;
        PortRange { protocol: self.local.protocol, first: self.remote_first, last: self.remote_first + span }
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.remote_first == self.local.first {
            self.local.fmt(f)
        } else {
            f.pad(&format!("{}={}", self.local, self.remote_range()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_and_print_as_the_operator_writes_them() {
        for text in ["tcp/443", "udp/5000-5010", "icmp"] {
            assert_eq!(text.parse::<PortRange>().map(|p| p.to_string()), Ok(text.into()));
            assert_eq!(text.parse::<PortMap>().map(|p| p.to_string()), Ok(text.into()));
        }
        assert_eq!("tcp/80=tcp/8080".parse::<PortMap>().map(|p| p.to_string()), Ok("tcp/80=tcp/8080".into()));
        for bad in ["", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/9-1", "sctp/1", "tcp/+1", "tcp/080", "icmp/1"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        for bad in ["tcp/80=udp/80", "tcp/1-2=tcp/1-3", "tcp/80=", "icmp=tcp/1"] {
            assert!(bad.parse::<PortMap>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_remap_shifts_a_range() {
        let map: PortMap = "tcp/8000-8010=tcp/80-90".parse().expect("valid");
        assert_eq!(map.remote(Protocol::Tcp, 8003), Some(83));
        assert_eq!(map.remote(Protocol::Tcp, 8011), None);
        assert_eq!(map.remote(Protocol::Udp, 8003), None);
        assert_eq!("icmp".parse::<PortMap>().expect("valid").remote(Protocol::Icmp, 777), Some(777));
    }
}
