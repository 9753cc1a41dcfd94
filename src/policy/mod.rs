//! May this flow exist? A decision uses the peer's authenticated identity, the service, protocol and port; never an
//! address that a peer claims. And how much may it carry?

mod bucket;
mod codel;
mod lane;
mod limit;
mod limiter;
mod pace;
mod slab;
mod turns;

pub use bucket::Bucket;
pub use codel::Codel;
pub use limit::{Counts, Exceeding, Terms};
pub use limiter::{Exceeded, Limiter, News, Released, Standing};

use crate::addr::{Identity, Name, PortRange, Protocol, Selector};

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    NotAllowed,
    /// Some named client of that site is allowed, and this caller has no name.
    UnknownCaller,
    PortNotExposed,
}

/// The place in `allow` of the entry that lets this caller use the service, or why none does.
pub fn decide(
    allow: &[Selector],
    ports: &[PortRange],
    peer: &Identity,
    client: Option<&Name>,
    protocol: Protocol,
    port: u16,
) -> Result<usize, Refusal> {
    let Some(rule) = allow.iter().position(|selector| selector.matches(peer, client)) else {
        let some_client = client.is_none() && allow.iter().any(|selector| selector.may_match(peer));
        return Err(if some_client { Refusal::UnknownCaller } else { Refusal::NotAllowed });
    };
    let exposed = ports.iter().any(|range| range.contains(protocol, port));
    if exposed { Ok(rule) } else { Err(Refusal::PortNotExposed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    #[test]
    fn default_deny_then_by_identity_then_by_port() {
        let factory = Identity { site: name("factory"), tenant: None, groups: vec![] };
        let ports: Vec<PortRange> = vec!["tcp/80".parse().expect("valid"), PortRange::ICMP];
        let allow = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("valid")).collect::<Vec<Selector>>();
        let (plc, hmi) = (name("plc"), name("hmi"));
        let try_it =
            |texts: &[&str], client, protocol, port| decide(&allow(texts), &ports, &factory, client, protocol, port);
        assert_eq!(try_it(&[], None, Protocol::Tcp, 80), Err(Refusal::NotAllowed));
        assert_eq!(try_it(&["site:cloud"], None, Protocol::Tcp, 80), Err(Refusal::NotAllowed));
        assert_eq!(try_it(&["site:cloud", "site:factory"], None, Protocol::Tcp, 80), Ok(1));
        assert_eq!(try_it(&["site:factory"], None, Protocol::Tcp, 81), Err(Refusal::PortNotExposed));
        assert_eq!(try_it(&["site:factory"], None, Protocol::Udp, 80), Err(Refusal::PortNotExposed));
        assert_eq!(try_it(&["site:factory"], None, Protocol::Icmp, 4711), Ok(0));
        assert_eq!(try_it(&["client:plc.factory"], None, Protocol::Tcp, 80), Err(Refusal::UnknownCaller));
        assert_eq!(try_it(&["client:plc.factory"], Some(&hmi), Protocol::Tcp, 80), Err(Refusal::NotAllowed));
        assert_eq!(try_it(&["client:plc.factory"], Some(&plc), Protocol::Tcp, 80), Ok(0));
    }
}
