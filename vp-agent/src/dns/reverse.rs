//! Addresses as names: `2.1.0.10.in-addr.arpa` and the nibbles of `ip6.arpa` (RFC 1035 section 3.5, RFC 3596 section
//! 2.5), and the zones that a pool makes of them.

use hickory_proto::rr::Name as DnsName;
use ipnet::IpNet;
use std::net::IpAddr;
use vp::addr::{Family, from_bits};

/// More than this many zones of one pool prefix are not told to systemd-resolved.
const ZONES_MAX: u128 = 16;
/// `in-addr` or `ip6`, and `arpa`.
const SUFFIX_LABELS: usize = 2;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reverse {
    Address(IpAddr),
    /// Above addresses.
    Branch(IpNet),
}

/// Bits that a label stands for.
fn label_bits(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 4,
    }
}

/// None: no such name.
#[must_use]
pub fn read(name: &DnsName) -> Option<Reverse> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let (digits, suffix) = labels.split_at(labels.len().checked_sub(SUFFIX_LABELS)?);
    let is = |label: &[u8], word: &str| label.eq_ignore_ascii_case(word.as_bytes());
    let family = match suffix {
        [kind, arpa] if is(arpa, "arpa") && is(kind, "in-addr") => Family::V4,
        [kind, arpa] if is(arpa, "arpa") && is(kind, "ip6") => Family::V6,
        _ => return None,
    };
    let label_bits = label_bits(family);
    let bits = label_bits.checked_mul(u8::try_from(digits.len()).ok()?)?;
    let rest = family.bits().checked_sub(bits)?;
    let digit = |label: &&[u8]| digit(label, family);
    let number = digits.iter().rev().map(digit).try_fold(0_u128, |all, one| Some(all << label_bits | one?))?;
    let address = from_bits(family, number.checked_shl(rest.into()).unwrap_or(0));
    if rest == 0 {
        return Some(Reverse::Address(address));
    }
    IpNet::new(address, bits).ok().map(Reverse::Branch)
}

fn digit(label: &[u8], family: Family) -> Option<u128> {
    let text = std::str::from_utf8(label).ok()?;
    match family {
        Family::V4 => text.parse::<u8>().ok().filter(|number| number.to_string() == text).map(u128::from),
        Family::V6 => {
            let only = text.chars().next().filter(|_| text.len() == 1)?;
            only.to_digit(16).map(u128::from)
        }
    }
}

/// How many bits the zones of a pool prefix have: the first length at or below the prefix's where names are cut, so that
/// each is the pool's as a whole; for a prefix of less than the last label's addresses, the zone that it is a part of.
#[must_use]
pub fn apex_bits(pool: &IpNet) -> u8 {
    let family = Family::of(pool.addr());
    let label = label_bits(family);
    (pool.prefix_len().div_ceil(label) * label).min(family.bits() - label)
}

/// The zone of a name below it.
#[must_use]
pub fn apex(name: &DnsName, pool: &IpNet) -> DnsName {
    let labels = usize::from(apex_bits(pool) / label_bits(Family::of(pool.addr())));
    name.trim_to(labels + SUFFIX_LABELS)
}

/// The zones that are the pool's as a whole.
pub fn zones(pool: &IpNet) -> Vec<String> {
    let bits = apex_bits(pool);
    let Some(more) = bits.checked_sub(pool.prefix_len()) else { return Vec::new() };
    if 1_u128.checked_shl(more.into()).is_none_or(|zones| zones > ZONES_MAX) {
        return Vec::new();
    }
    pool.subnets(bits).into_iter().flatten().map(|network| zone(&network)).collect()
}

fn zone(network: &IpNet) -> String {
    let (labels, suffix): (Vec<String>, _) = match network.addr() {
        IpAddr::V4(address) => (address.octets().iter().map(ToString::to_string).collect(), "in-addr.arpa"),
        IpAddr::V6(address) => (format!("{:032x}", address.to_bits()).chars().map(String::from).collect(), "ip6.arpa"),
    };
    let count = usize::from(network.prefix_len() / label_bits(Family::of(network.addr())));
    let labels = labels.into_iter().take(count).rev().chain([suffix.to_owned()]);
    labels.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<Reverse> {
        read(&DnsName::from_ascii(name).expect("a name"))
    }

    #[test]
    fn addresses_and_networks_are_read_from_their_names() {
        let net = |text: &str| Reverse::Branch(text.parse().expect("network"));
        let address = |text: &str| Reverse::Address(text.parse().expect("address"));
        assert_eq!(of("2.1.0.10.in-addr.arpa."), Some(address("10.0.1.2")));
        assert_eq!(of("2.1.0.10.IN-ADDR.Arpa."), Some(address("10.0.1.2")));
        assert_eq!(of("1.0.10.in-addr.arpa."), Some(net("10.0.1.0/24")));
        assert_eq!(of("in-addr.arpa."), Some(net("0.0.0.0/0")));
        assert_eq!(of("d.f.ip6.arpa."), Some(net("fd00::/8")));
        let nibbles = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.d.F.ip6.arpa.";
        assert_eq!(of(nibbles), Some(address("fd00:0:0:1::2")));
        let bad = ["arpa.", "vp.", ".", "02.1.0.10.in-addr.arpa.", "256.in-addr.arpa.", "1.2.3.4.5.in-addr.arpa."];
        for bad in bad.into_iter().chain(["10.ip6.arpa.", "g.ip6.arpa.", "x.in-addr.arpa."]) {
            assert_eq!(of(bad), None, "{bad}");
        }
        let too_long = format!("{}ip6.arpa.", "0.".repeat(33));
        assert_eq!(of(&too_long), None);
    }

    #[test]
    fn a_pools_zones_are_its_own_as_a_whole() {
        let zones = |pool: &str| zones(&pool.parse().expect("prefix"));
        assert_eq!(zones("10.0.1.0/24"), ["1.0.10.in-addr.arpa"]);
        assert_eq!(zones("10.0.8.0/23"), ["8.0.10.in-addr.arpa", "9.0.10.in-addr.arpa"]);
        assert_eq!(zones("10.0.1.64/26"), Vec::<String>::new());
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
        assert_eq!(zones("fd00::/124").len(), 1);
        assert_eq!(zones("fd00:0:0:2::/64"), ["2.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones("10.0.0.0/9").len(), 0);
    }
}
