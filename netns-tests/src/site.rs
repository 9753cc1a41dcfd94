//! A site: its gateway, its LAN with the prefixes that it chose, and the hosts on it.
//!
//! ```text
//!   internet --- [router or NAT] --- wan0 gateway lan0 .1 ---+--- lan ---+--- host .2
//!                                                            |           +--- host .5
//! ```

use crate::internet::{Internet, Uplink};
use crate::nat::{Access, AccessBox};
use crate::{Lab, Namespace};
use anyhow::{Context, Result};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

pub struct Site {
    pub name: String,
    /// Its LAN interface is `lan0`, the other `wan0`.
    pub gateway: Namespace,
    /// The switch.
    lan: Namespace,
    pub prefixes: Vec<IpNet>,
    /// What the internet sees of the gateway, or of the box before it.
    pub uplink: Uplink,
    /// The router or NAT before the gateway.
    pub access: Option<AccessBox>,
    hosts: Mutex<u16>,
}

/// A host on a site's LAN, on interface `eth0`, with the gateway as its router.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub namespace: Namespace,
    pub addresses: Vec<IpAddr>,
}

impl Site {
    pub fn new(lab: &Lab, name: &str, prefixes: &[IpNet], internet: &Internet, access: Access) -> Result<Self> {
        let gateway = lab.namespace(&format!("{name}-gateway"))?;
        let lan = lab.namespace(&format!("{name}-lan"))?;
        lan.ip("link add name br0 type bridge forward_delay 0\nlink set br0 up")?;
        gateway.forward()?;
        let (access, uplink) = if access == Access::Direct {
            (None, internet.connect(&gateway)?)
        } else {
            let access = AccessBox::new(lab, name, internet, &gateway, access)?;
            let uplink = Uplink { v4: access.seen.0, v6: access.seen.1, ..access.uplink.clone() };
            (Some(access), uplink)
        };
        let prefixes = prefixes.to_vec();
        let site = Self { name: name.to_owned(), gateway, lan, prefixes, uplink, access, hosts: Mutex::default() };
        site.plug(&site.gateway, "lan0", 1)?;
        Ok(site)
    }

    /// A host with address `number` in every prefix of the LAN.
    pub fn host(&self, lab: &Lab, name: &str, number: u32) -> Result<Host> {
        let namespace = lab.namespace(&format!("{}-{name}", self.name))?;
        let addresses = self.plug(&namespace, "eth0", number)?;
        for gateway in self.prefixes.iter().map(|prefix| nth(prefix, 1)) {
            namespace.ip(&format!("route add default via {gateway}"))?;
        }
        Ok(Host { name: name.to_owned(), namespace, addresses })
    }

    /// The gateway's address on the LAN.
    pub fn gateway_address(&self, family: Family) -> Result<IpAddr> {
        self.address(family, 1)
    }

    /// The address with this number in the LAN's prefix of the family.
    pub fn address(&self, family: Family, number: u32) -> Result<IpAddr> {
        let prefix = self.prefixes.iter().find(|prefix| Family::of(prefix.addr()) == family);
        Ok(nth(prefix.with_context(|| format!("{} has no prefix of {family:?}", self.name))?, number))
    }

    /// Makes the link to the internet (of the gateway, or of the box before it) carry no more than `mtu`.
    pub fn limit_mtu(&self, internet: &Internet, mtu: u16) -> Result<()> {
        let machine = self.access.as_ref().map_or(&self.gateway, |access| &access.namespace);
        internet.limit_mtu(machine, &self.uplink, mtu)
    }

    /// Makes the site's LAN with these hosts, and its link to the internet, carry `mtu`.
    pub fn set_mtu(&self, internet: &Internet, hosts: &[&Host], mtu: u16) -> Result<()> {
        self.limit_mtu(internet, mtu)?;
        let access = self.access.iter().map(|access| &access.namespace);
        for machine in hosts.iter().map(|host| &host.namespace).chain(access).chain([&self.gateway, &self.lan]) {
            let links = machine.sh("ip -o link show type veth")?;
            // NUMBER: NAME@PEER: and more.
            let names = links.lines().filter_map(|line| line.split([' ', '@']).nth(1));
            let lines: Vec<String> = names.map(|name| format!("link set {name} mtu {mtu}")).collect();
            machine.ip(&lines.join("\n"))?;
        }
        Ok(())
    }

    fn plug(&self, machine: &Namespace, interface: &str, number: u32) -> Result<Vec<IpAddr>> {
        let port = {
            let mut hosts = self.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *hosts += 1;
            format!("port{hosts}")
        };
        let name = machine.name();
        self.lan.ip(&format!(
            "link add name {port} type veth peer name {interface} netns {name}
             link set {port} master br0 up"
        ))?;
        machine.ip(&format!("link set {interface} up"))?;
        let mut addresses = Vec::new();
        for prefix in &self.prefixes {
            let address = nth(prefix, number);
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            machine.ip(&format!("addr add {address}/{} dev {interface} {nodad}", prefix.prefix_len()))?;
            addresses.push(address);
        }
        Ok(addresses)
    }
}

impl Host {
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let of_family = self.addresses.iter().find(|address| Family::of(**address) == family);
        of_family.copied().with_context(|| format!("{} has no address of {family:?}", self.name))
    }
}

/// The address with this number in a prefix.
#[must_use]
pub fn nth(prefix: &IpNet, number: u32) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() + number).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() + u128::from(number)).into(),
    }
}
