//! Presences that lie in a LAN's own subnet: this host answers for them there (ARP and neighbour discovery), one entry
//! an address, so that it never answers for an address that stands for nothing.

use super::{Link, conf, failed, is_code, set_conf};
use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses of one block; a larger one wants a route instead.
const BLOCK_ADDRESSES_MAX: u32 = 1024;

/// The LAN on which this host answers.
pub(super) struct Proxy {
    interface: String,
    /// Settings of the interface that were changed, and their values before.
    changed: Vec<(String, String)>,
}

impl Proxy {
    /// Entries of the pool that a killed predecessor left are removed when presences are applied.
    pub(super) async fn open(link: &Link, interface: &str, pool: &[IpNet]) -> Result<Self> {
        let exists = link.index(interface).await?.is_some();
        anyhow::ensure!(exists, "there is no interface {interface} to answer for presences on (reach: proxy_arp)");
        let has = |is_v6: bool| pool.iter().any(|prefix| matches!(prefix, IpNet::V6(_)) == is_v6);
        let mut wanted = Vec::new();
        // The first packet of a call would else wait for up to 0.8 s, at random (RFC 4861 section 7.2.8).
        if has(false) {
            wanted.push((format!("ipv4/neigh/{interface}/proxy_delay"), "0"));
        }
        if has(true) {
            wanted.push((format!("ipv6/neigh/{interface}/proxy_delay"), "0"));
            wanted.push((format!("ipv6/conf/{interface}/proxy_ndp"), "1"));
        }
        let changed = wanted.into_iter().filter_map(|(path, value)| Some((path.clone(), set_conf(&path, value)?)));
        Ok(Self { interface: interface.to_owned(), changed: changed.collect() })
    }

    pub(super) fn interface(&self) -> &str {
        &self.interface
    }

    /// Answers for `presences` and for nothing else of the pool.
    pub(super) async fn apply(&self, link: &Link, pool: &[IpNet], presences: &[IpNet]) -> Result<Vec<String>> {
        let index = link.index(&self.interface).await?;
        let index = index.with_context(|| format!("interface {} is gone", self.interface))?;
        let (wanted, mut warnings) = addresses(presences);
        let present = entries(link, index, pool).await?;
        for (address, message) in &present {
            if !wanted.contains(address) {
                let removed = link.handle.neighbours().del(message.clone()).execute().await;
                match removed {
                    Err(error) if !is_code(&error, libc::ENOENT) => {
                        return Err(failed(&format!("stop answering for {address} on {}", self.interface), error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        for address in wanted.iter().filter(|address| !present.iter().any(|(have, _)| have == *address)) {
            let entry = link.handle.neighbours().add(index, *address);
            let added = entry.flags(NeighbourFlags::Proxy).state(NeighbourState::None).replace().execute().await;
            added.map_err(|error| failed(&format!("answer for {address} on {}", self.interface), error))?;
        }
        warnings.extend(self.warnings(&wanted));
        Ok(warnings)
    }

    /// What keeps the kernel from answering, and is the operator's to change.
    fn warnings(&self, wanted: &BTreeSet<IpAddr>) -> impl Iterator<Item = String> {
        let off = |path: String| (conf(&path).as_deref() == Some("0")).then_some(path);
        let mut off_paths = Vec::new();
        if wanted.iter().any(IpAddr::is_ipv4) {
            off_paths.extend(off(format!("ipv4/conf/{}/forwarding", self.interface)));
        }
        if wanted.iter().any(IpAddr::is_ipv6) {
            off_paths.extend(off(format!("ipv6/conf/{}/forwarding", self.interface)));
            off_paths.extend(off(format!("ipv6/conf/{}/proxy_ndp", self.interface)));
        }
        off_paths.into_iter().map(|path| {
            let (path, interface) = (path.replace('/', "."), &self.interface);
            format!("presences do not answer on {interface} while net.{path} is 0")
        })
    }

    pub(super) async fn remove(self, link: &Link, pool: &[IpNet]) -> Result<()> {
        if link.index(&self.interface).await?.is_some() {
            self.apply(link, pool, &[]).await?;
        }
        for (path, value) in &self.changed {
            set_conf(path, value);
        }
        Ok(())
    }
}

/// Each address of the presences, and what is too large to answer for.
fn addresses(presences: &[IpNet]) -> (BTreeSet<IpAddr>, Vec<String>) {
    let (mut addresses, mut warnings) = (BTreeSet::new(), Vec::new());
    for presence in presences {
        let host_bits = u32::from(presence.max_prefix_len() - presence.prefix_len());
        if host_bits > BLOCK_ADDRESSES_MAX.ilog2() {
            warnings.push(format!("presence {presence} is too large to answer for on a LAN; route it to this host"));
            continue;
        }
        let first = vp::addr::to_bits(presence.network());
        let family = vp::addr::Family::of(presence.addr());
        addresses.extend((0..1u128 << host_bits).map(|n| vp::addr::from_bits(family, first + n)));
    }
    (addresses, warnings)
}

/// Proxy entries of the interface that lie in the pool.
async fn entries(link: &Link, index: u32, pool: &[IpNet]) -> Result<Vec<(IpAddr, NeighbourMessage)>> {
    let entries = link.handle.neighbours().get().proxies().execute().try_collect::<Vec<_>>().await;
    let entries = entries.map_err(|error| failed("list proxied neighbours", error))?;
    let of_pool = |message: NeighbourMessage| {
        let address = destination(&message)?;
        let ours = message.header.ifindex == index && pool.iter().any(|prefix| prefix.contains(&address));
        ours.then_some((address, message))
    };
    Ok(entries.into_iter().filter_map(of_pool).collect())
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}
