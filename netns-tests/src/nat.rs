//! The boxes between a site and the internet: a plain router, or a NAT of one of RFC 4787's kinds by nftables.

use crate::internet::{Internet, Uplink};
use crate::{Lab, Namespace};
use anyhow::Result;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Which public port a flow gets (RFC 4787 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// One public port for all destinations of an inner port (as long as inner ports do not collide).
    EndpointIndependent,
    /// Another public port for each destination ("symmetric").
    AddressAndPortDependent,
}

/// Who may answer to it (RFC 4787 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filtering {
    /// Anyone.
    EndpointIndependent,
    /// Any port of an address that was called.
    AddressDependent,
    /// Only who was called.
    AddressAndPortDependent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The gateway has the public addresses itself.
    Direct,
    /// A router of the provider's, which leaves packets as they are.
    Router,
    /// Only together with [`Mapping::EndpointIndependent`] can filtering be laxer than address and port.
    Nat(Mapping, Filtering),
}

impl Access {
    /// The commonest NAT of all.
    pub const HOME_NAT: Self = Self::Nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
    pub const SYMMETRIC_NAT: Self = Self::Nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent);
}

/// The box: `lan0` towards the gateway, `wan0` towards the internet.
pub struct AccessBox {
    pub namespace: Namespace,
    pub uplink: Uplink,
    /// What the internet sees of the gateway: its own addresses behind a router, the box's behind a NAT.
    pub seen: (Ipv4Addr, Ipv6Addr),
    nat: bool,
}

impl AccessBox {
    /// Puts a box between `gateway` (which gets `wan0`) and the internet.
    pub fn new(lab: &Lab, site: &str, internet: &Internet, gateway: &Namespace, access: Access) -> Result<Self> {
        let nat = matches!(access, Access::Nat(..));
        let namespace = lab.namespace(&format!("{site}-{}", if nat { "nat" } else { "router" }))?;
        let uplink = internet.connect(&namespace)?;
        namespace.forward()?;
        let (far4, far6) = inner(uplink.link, 1);
        let (near4, near6) = inner(uplink.link, 2);
        namespace.ip(&format!(
            "link add name lan0 type veth peer name wan0 netns {}
             addr add {far4}/30 dev lan0
             addr add {far6}/64 dev lan0 nodad
             link set lan0 up",
            gateway.name()
        ))?;
        gateway.ip(&format!(
            "addr add {near4}/30 dev wan0
             addr add {near6}/64 dev wan0 nodad
             link set wan0 up
             route add default via {far4}
             route add default via {far6}"
        ))?;
        let seen = match access {
            Access::Nat(mapping, filtering) => {
                namespace.nft(&rules(mapping, filtering))?;
                (uplink.v4, uplink.v6)
            }
            Access::Direct | Access::Router => {
                internet
                    .namespace
                    .ip(&format!("route add {near4}/32 via {}\nroute add {near6}/128 via {}", uplink.v4, uplink.v6))?;
                (near4, near6)
            }
        };
        Ok(Self { namespace, uplink, seen, nat })
    }

    /// Packets from the internet that nobody behind the NAT had asked for; all of them were dropped.
    pub fn unsolicited(&self) -> Result<u64> {
        if self.nat { self.namespace.counter("inet nat", "unsolicited") } else { Ok(0) }
    }

    /// No UDP passes from here on.
    pub fn block_udp(&self) -> Result<()> {
        self.namespace.nft(
            "add table inet block
             add chain inet block through { type filter hook forward priority -10; }
             add rule inet block through meta l4proto udp drop",
        )
    }

    pub fn unblock_udp(&self) -> Result<()> {
        self.namespace.nft("delete table inet block")
    }

    /// Forgets every mapping, as a NAT does that was restarted.
    pub fn forget(&self) -> Result<()> {
        self.namespace.sh("conntrack -F").map(drop)
    }
}

/// Addresses between the box and the gateway: of the public kind, so that a plain router can be routed to.
fn inner(link: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v4 = Ipv4Addr::new(203, 0, 113, 128 + 4 * link + host);
    (v4, Ipv6Addr::new(0x2001, 0xdb8, 1, link.into(), 0, 0, 0, host.into()))
}

/// Inner ports are kept on the outside (as long as they do not collide), so that a map needs to know addresses alone.
fn rules(mapping: Mapping, filtering: Filtering) -> String {
    let masquerade = match mapping {
        Mapping::EndpointIndependent => "masquerade",
        Mapping::AddressAndPortDependent => "masquerade random,fully-random",
    };
    let let_in = match filtering {
        Filtering::EndpointIndependent => {
            "meta nfproto ipv4 dnat ip to udp dport map @mapped4
             meta nfproto ipv6 dnat ip6 to udp dport map @mapped6"
        }
        Filtering::AddressDependent => {
            "udp dport . ip saddr @called4 dnat ip to udp dport map @mapped4
             udp dport . ip6 saddr @called6 dnat ip6 to udp dport map @mapped6"
        }
        Filtering::AddressAndPortDependent => "",
    };
    let let_in: String = let_in.lines().map(|rule| format!("iifname \"wan0\" {}\n", rule.trim())).collect();
    format!(
        "table inet nat {{
            counter unsolicited {{ }}
            map mapped4 {{ type inet_service : ipv4_addr; flags dynamic,timeout; timeout 5m; }}
            map mapped6 {{ type inet_service : ipv6_addr; flags dynamic,timeout; timeout 5m; }}
            set called4 {{ type inet_service . ipv4_addr; flags dynamic,timeout; timeout 5m; }}
            set called6 {{ type inet_service . ipv6_addr; flags dynamic,timeout; timeout 5m; }}
            chain remember {{
                type filter hook postrouting priority srcnat - 1;
                iifname \"lan0\" oifname \"wan0\" meta nfproto ipv4 update @mapped4 {{ udp sport : ip saddr }}
                iifname \"lan0\" oifname \"wan0\" meta nfproto ipv4 update @called4 {{ udp sport . ip daddr }}
                iifname \"lan0\" oifname \"wan0\" meta nfproto ipv6 update @mapped6 {{ udp sport : ip6 saddr }}
                iifname \"lan0\" oifname \"wan0\" meta nfproto ipv6 update @called6 {{ udp sport . ip6 daddr }}
            }}
            chain outwards {{
                type nat hook postrouting priority srcnat;
                oifname \"wan0\" {masquerade}
            }}
            chain inwards {{
                type nat hook prerouting priority dstnat;
                {let_in}
            }}
            chain here {{
                type filter hook input priority filter;
                iifname \"wan0\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
                iifname \"wan0\" ct state new,invalid counter name unsolicited drop
            }}
            chain through {{
                type filter hook forward priority filter;
                iifname \"wan0\" ct state new ct status ! dnat counter name unsolicited drop
                iifname \"wan0\" ct state invalid counter name unsolicited drop
            }}
        }}"
    )
}
