//! The internet of a lab: one router, a link with public addresses to each site.
//!
//! ```text
//!   site a --203.0.113.0/30---+----------+---203.0.113.4/30-- site b
//!          2001:db8:0:0::/64  | internet |   2001:db8:0:1::/64
//!                             +----------+
//! ```

use crate::site::Family;
use crate::{Lab, Namespace};
use anyhow::{Result, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

/// A /30 a link out of 203.0.113.0/25; the other half is for what lies behind routers.
const LINKS_MAX: u8 = 31;

pub struct Internet {
    pub namespace: Namespace,
    links: AtomicU8,
}

/// A machine's end of its link to the internet.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// The machine's own interface.
    pub interface: String,
    /// The internet's interface at the other end.
    pub far_interface: String,
    /// Its number.
    pub link: u8,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Uplink {
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

impl Internet {
    pub fn new(lab: &Lab) -> Result<Self> {
        let namespace = lab.namespace("internet")?;
        namespace.forward()?;
        namespace.nft("add table inet lab\nadd chain inet lab weather { type filter hook forward priority 0; }")?;
        Ok(Self { namespace, links: AtomicU8::new(0) })
    }

    /// The public IPv4 address of whoever is connected next.
    #[must_use]
    pub fn next_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, 4 * self.links.load(Ordering::Relaxed) + 2)
    }

    /// Connects `machine` by an interface `wan0` with a public address of each family and a default route.
    pub fn connect(&self, machine: &Namespace) -> Result<Uplink> {
        let n = self.links.fetch_add(1, Ordering::Relaxed);
        ensure!(n < LINKS_MAX, "no public addresses are left");
        let (far4, v4) = (Ipv4Addr::new(203, 0, 113, 4 * n + 1), Ipv4Addr::new(203, 0, 113, 4 * n + 2));
        let net6 = |host| Ipv6Addr::new(0x2001, 0xdb8, 0, n.into(), 0, 0, 0, host);
        let (far6, v6) = (net6(1), net6(2));
        let far_interface = format!("link{n}");
        self.namespace.ip(&format!(
            "link add name {far_interface} type veth peer name wan0 netns {}
             addr add {far4}/30 dev {far_interface}
             addr add {far6}/64 dev {far_interface} nodad
             link set {far_interface} up",
            machine.name()
        ))?;
        machine.ip(&format!(
            "addr add {v4}/30 dev wan0
             addr add {v6}/64 dev wan0 nodad
             link set wan0 up
             route add default via {far4}
             route add default via {far6}"
        ))?;
        Ok(Uplink { interface: "wan0".to_owned(), far_interface, link: n, v4, v6 })
    }

    /// Drops `permille` of a thousand packets on their way to the machine at the end of `uplink`; 1000 cuts the link.
    pub fn lose(&self, uplink: &Uplink, permille: u16) -> Result<()> {
        let which = if permille < 1000 { format!("numgen random mod 1000 < {permille}") } else { String::new() };
        self.namespace.nft(&format!("add rule inet lab weather oifname {} {which} drop", uplink.far_interface))
    }

    /// Ends all that [`Self::lose`] began.
    pub fn calm(&self) -> Result<()> {
        self.namespace.nft("flush chain inet lab weather")
    }

    /// Both ends of the link. Behind a router or NAT this is a small MTU in the middle of the path.
    pub fn limit_mtu(&self, machine: &Namespace, uplink: &Uplink, mtu: u16) -> Result<()> {
        self.namespace.ip(&format!("link set {} mtu {mtu}", uplink.far_interface))?;
        machine.ip(&format!("link set {} mtu {mtu}", uplink.interface))
    }
}
