//! Whether servers that see presences answer to the pool: each is called once from the gateway's own presence.

use super::firewall::first_targets;
use super::{Surroundings, finding};
use crate::agent::Agent;
use futures_util::future::join_all;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use vp::addr::Protocol;
use vp::catalogue::Source;
use vp_proto::api::Finding;

/// Servers that are called.
const SERVERS_MAX: usize = 64;
/// On a network of the site, with one more try of TCP's.
const ANSWER: Duration = Duration::from_millis(2500);

pub(super) async fn ways_back(agent: &Agent, around: &Surroundings) -> Vec<Finding> {
    let presences = agent.handle.call(|node, _, _| node.gateway_addresses()).await.unwrap_or_default();
    let seen = around.exposures.iter().filter(|exposure| exposure.source == Source::Presence);
    let servers = seen.flat_map(|exposure| {
        let port = exposure.ports.iter().find(|ports| ports.protocol == Protocol::Tcp).map(|ports| ports.first);
        let targets = first_targets(exposure).into_iter();
        targets.filter_map(move |target| Some((&exposure.name, SocketAddr::new(target, port?))))
    });
    let asked = servers.take(SERVERS_MAX).filter_map(|(service, server)| {
        let presence = presences.iter().copied().find(|own| own.is_ipv4() == server.is_ipv4())?;
        Some(async move {
            let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            // One that does not answer the gateway either is another matter: `vp-ctl ping` has it.
            let (plain, from_pool) = tokio::join!(answers(any, server), answers(presence, server));
            (plain && !from_pool).then(|| {
                let pool = around.pool.iter().find(|prefix| prefix.contains(&presence)).map(ToString::to_string);
                let own = around.towards(server.ip()).and_then(|(_, own)| own);
                let via = own.map_or_else(|| "the gateway".to_owned(), |own| own.to_string());
                let detail = format!(
                    "the server of {service}, {server}, answers the gateway, but not what comes from the pool: it has no \
                     way back to presences"
                );
                let fix = format!(
                    "at {}: ip route add {} via {via}; or let its router have that route; or `source: masquerade`",
                    server.ip(),
                    pool.unwrap_or_default()
                );
                finding("no-way-back", "error", detail, &fix)
            })
        })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// A server that refuses answers too.
async fn answers(from: IpAddr, server: SocketAddr) -> bool {
    let call = async {
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(from, 0))?;
        socket.connect(server).await.map(drop)
    };
    match timeout(ANSWER, call).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}
