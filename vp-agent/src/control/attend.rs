//! What a site and its hub say to each other, as messages and as values. A message is a claim: it is taken whole if all of it
//! is right, and refused whole if anything is not.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use vp::addr::{Binding, Name, Selector};
use vp::hub::{Attendance, BINDINGS_MAX};
use vp::node::{Introduction, Introductions};
use vp_proto::control as proto;

/// Selectors of one site; more than anyone writes by hand.
const ADMITS_MAX: usize = 4096;
/// Addresses of one gateway: of both families, on several uplinks.
const ADDRESSES_MAX: usize = 8;
/// The largest message of a site, with names of 63 characters.
pub const ATTENDANCE_BYTES_MAX: usize = 1 << 20;
/// The largest message of a hub: of each site some hundred bytes, and a certificate of a few hundred, rarely of 4 KB.
pub const INTRODUCTIONS_BYTES_MAX: usize = 8 << 20;

/// What is wrong with a message: one line, safe to print.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

fn refusal(what: &str, error: impl Display) -> Refusal {
    Refusal(format!("{what}: {error}"))
}

pub fn write_attendance(attendance: Attendance, version: u32) -> proto::Attendance {
    let Attendance { wants, admits, addresses } = attendance;
    proto::Attendance {
        versions: vec![version],
        wants: wants.iter().take(BINDINGS_MAX).map(Name::to_string).collect(),
        admits: admits.iter().take(ADMITS_MAX).map(Selector::to_string).collect(),
        addresses: addresses.iter().take(ADDRESSES_MAX).map(SocketAddr::to_string).collect(),
    }
}

pub fn read_attendance(message: &proto::Attendance) -> Result<Attendance, Refusal> {
    at_most("wants", &message.wants, BINDINGS_MAX)?;
    at_most("admits", &message.admits, ADMITS_MAX)?;
    let wants = message.wants.iter().map(|site| Name::new(site).map_err(|error| refusal("wants", error)));
    let admits = message.admits.iter().map(|selector| selector.parse().map_err(|error| refusal("admits", error)));
    Ok(Attendance {
        wants: wants.collect::<Result<_, _>>()?,
        admits: admits.collect::<Result<BTreeSet<Selector>, _>>()?,
        addresses: read_addresses(&message.addresses)?,
    })
}

pub fn write_introductions(introductions: Introductions, version: u32) -> proto::Introductions {
    let Introductions { seen, sites } = introductions;
    let introduction = |site: Introduction| proto::Introduction {
        site: site.site.to_string(),
        public_key: site.public_key.to_vec(),
        binding: site.binding.number(),
        addresses: site.addresses.iter().map(SocketAddr::to_string).collect(),
        certificate: site.certificate,
    };
    proto::Introductions {
        version,
        seen: seen.map(|seen| seen.to_string()).unwrap_or_default(),
        sites: sites.into_iter().map(introduction).collect(),
    }
}

pub fn read_introductions(message: &proto::Introductions) -> Result<Introductions, Refusal> {
    at_most("sites", &message.sites, BINDINGS_MAX)?;
    let seen = match message.seen.as_str() {
        "" => None,
        seen => Some(read_address(seen)?),
    };
    let sites = message.sites.iter().map(read_introduction).collect::<Result<_, _>>()?;
    Ok(Introductions { seen, sites })
}

fn read_introduction(message: &proto::Introduction) -> Result<Introduction, Refusal> {
    let site = Name::new(&message.site).map_err(|error| refusal("site", error))?;
    let of_site = |what: &str| Refusal(format!("site {site}: {what}"));
    let public_key = message.public_key.as_slice().try_into().map_err(|_| of_site("expected a key of 32 bytes"))?;
    let binding = Binding::new(message.binding).ok_or_else(|| of_site("expected a binding of 1 to 16777215"))?;
    let addresses = read_addresses(&message.addresses)?;
    Ok(Introduction { site, public_key, binding, addresses, certificate: message.certificate.clone() })
}

fn read_addresses(texts: &[String]) -> Result<Vec<SocketAddr>, Refusal> {
    at_most("addresses", texts, ADDRESSES_MAX)?;
    texts.iter().map(|text| read_address(text)).collect()
}

/// One that a gateway can have: whoever gets it will send there.
fn read_address(text: &str) -> Result<SocketAddr, Refusal> {
    let address: SocketAddr = text.parse().map_err(|_| Refusal("expected an address with its port".to_owned()))?;
    let is_unicast = match address.ip() {
        IpAddr::V4(ip) => !(ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0),
        IpAddr::V6(ip) => !ip.is_multicast(),
    };
    let ip = address.ip();
    if address.port() == 0 || ip.is_loopback() || ip.is_unspecified() || !is_unicast {
        return Err(Refusal(format!("{address} is no gateway's address")));
    }
    Ok(address)
}

fn at_most<T>(what: &str, of: &[T], max: usize) -> Result<(), Refusal> {
    match of.len() > max {
        true => Err(Refusal(format!("{what}: more than {max}"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introductions() -> Introductions {
        let site = Introduction {
            site: Name::new("cloud").expect("name"),
            public_key: [7; 32],
            binding: Binding::new(0x123456).expect("binding"),
            addresses: vec!["192.0.2.1:51820".parse().expect("address"), "[2001:db8::1]:1".parse().expect("address")],
            certificate: vec![1, 2, 3],
        };
        Introductions { seen: Some("192.0.2.9:9".parse().expect("address")), sites: vec![site] }
    }

    #[test]
    fn what_is_said_is_heard() {
        let attendance = Attendance {
            wants: [Name::new("cloud").expect("name")].into(),
            admits: ["any", "group:edge", "client:plc.factory"].map(|text| text.parse().expect("selector")).into(),
            addresses: vec!["10.0.0.1:51820".parse().expect("address")],
        };
        assert_eq!(read_attendance(&write_attendance(attendance.clone(), 1)), Ok(attendance));
        assert_eq!(read_introductions(&write_introductions(introductions(), 1)), Ok(introductions()));
    }

    #[test]
    fn what_is_wrong_is_refused_whole_with_a_reason() {
        let good = write_introductions(introductions(), 1);
        let wrong = |change: &dyn Fn(&mut proto::Introductions)| {
            let mut message = good.clone();
            change(&mut message);
            read_introductions(&message).expect_err("refused").to_string()
        };
        assert_eq!(wrong(&|m| m.sites[0].binding = 0), "site cloud: expected a binding of 1 to 16777215");
        assert_eq!(wrong(&|m| m.sites[0].binding = 1 << 24), "site cloud: expected a binding of 1 to 16777215");
        assert_eq!(wrong(&|m| m.sites[0].public_key.truncate(31)), "site cloud: expected a key of 32 bytes");
        assert!(wrong(&|m| m.sites[0].site = "a\nb".to_owned()).starts_with("site: "));
        assert_eq!(wrong(&|m| m.seen = "here".to_owned()), "expected an address with its port");
        for address in ["127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "192.0.2.1:0", "[ff02::1]:1"] {
            let refused = wrong(&|m| m.sites[0].addresses = vec![address.to_owned()]);
            assert_eq!(refused, format!("{address} is no gateway's address"));
        }
        let many = |m: &mut proto::Introductions| m.sites = vec![m.sites[0].clone(); BINDINGS_MAX + 1];
        assert_eq!(wrong(&many), format!("sites: more than {BINDINGS_MAX}"));
        let selector = proto::Attendance { admits: vec!["factory".to_owned()], ..Default::default() };
        assert!(read_attendance(&selector).is_err());
    }
}
