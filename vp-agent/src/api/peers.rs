//! Stock WireGuard peers that vp-ctl adds and takes away, and what one needs to know to call.

use super::Problem;
use crate::agent::{Agent, Refused};
use crate::config::{stock_peer, values};
use crate::link::own_address_towards;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use vp::addr::{Identity, Name};
use vp_proto::api::{AddPeerRequest, AddPeerResponse, Done, PeerService, RemovePeerRequest, Service};

type Request<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<Json<T>, Problem>;

/// An address of documentation (RFC 5737): nothing is sent there, but the host's routes say which of its own addresses would be used.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

pub async fn add(State(agent): State<Arc<Agent>>, request: Request<AddPeerRequest>) -> Answer<AddPeerResponse> {
    let Json(request) = request?;
    let (endpoint, guessed) = endpoint(&agent, request.endpoint.as_deref())?;
    let what = format!("vp-ctl peer add {}", request.site);
    let mut identity = None;
    let change = agent.change(what, |runtime, config, settings| {
        let peer = stock_peer(&request, settings)?;
        if config.has_peer(&peer.identity.site) || runtime.peers.iter().any(|known| known.site == request.site) {
            let message =
                format!("{} is a peer already, expected another name, or its entry taken away first", request.site);
            return Err(Refused::Request(message));
        }
        identity = Some(peer.identity);
        runtime.peers.push(request.clone());
        Ok(())
    });
    let mut warnings = change.await?;
    warnings.extend(guessed);
    let services = services(&agent, identity.as_ref()).await?;
    if services.is_empty() {
        warnings
            .push(format!("no service allows {} yet: `vp-ctl expose … --allow site:{}`", request.site, request.site));
    }
    let public_key = BASE64_STANDARD.encode(agent.public_key);
    let mtu = agent.handle.call(|node, _, _| node.settings().inner_mtu).await?;
    Ok(Json(AddPeerResponse { public_key, endpoint, mtu, services, warnings }))
}

pub async fn remove(State(agent): State<Arc<Agent>>, request: Request<RemovePeerRequest>) -> Answer<Done> {
    let Json(RemovePeerRequest { site }) = request?;
    let change = agent.change(format!("vp-ctl peer remove {site}"), |runtime, config, _| {
        if Name::new(&site).is_ok_and(|name| config.has_peer(&name)) {
            return Err(Refused::Request(format!(
                "{site} is a peer of the file, expected a change there and a reload"
            )));
        }
        let before = runtime.peers.len();
        runtime.peers.retain(|known| known.site != site);
        match runtime.peers.len() < before {
            true => Ok(()),
            false => Err(Refused::Request(format!("{site} is no peer that vp-ctl added"))),
        }
    });
    Ok(Json(Done { warnings: change.await? }))
}

/// Where the peer is to call; and what to say of it if nobody said so.
fn endpoint(agent: &Agent, said: Option<&str>) -> Result<(String, Option<String>), Refused> {
    if let Some(said) = said {
        values::endpoint(said).map_err(|error| Refused::Request(format!("endpoint: {error}")))?;
        return Ok((said.to_owned(), None));
    }
    if !agent.listen.ip().is_unspecified() {
        return Ok((agent.listen.to_string(), None));
    }
    let own = own_address_towards(ELSEWHERE).ok_or_else(|| {
        Refused::Request("no address of this host is known to others, expected --endpoint HOST:PORT".to_owned())
    })?;
    let endpoint = SocketAddr::new(own, agent.listen.port()).to_string();
    let warning = format!(
        "{endpoint} is what this host calls itself; where others reach it elsewhere, say so: --endpoint HOST:PORT"
    );
    Ok((endpoint, Some(warning)))
}

/// What the peer may use, by its addresses in the tunnel: no agent gives it others.
async fn services(agent: &Agent, identity: Option<&Identity>) -> Result<Vec<PeerService>, Refused> {
    let Some(identity) = identity.cloned() else { return Ok(Vec::new()) };
    let services = agent.handle.call(move |node, _, _| {
        let allowed = node.settings().exposures.iter();
        let allowed = allowed.filter(|exposure| exposure.allow.iter().any(|selector| selector.may_match(&identity)));
        let allowed: Vec<String> = allowed.map(|exposure| exposure.name.to_string()).collect();
        let services = node.services().into_iter().filter(|service| allowed.contains(&service.name));
        let service = |service: Service| {
            let Service { name, ports, wire_addresses: addresses, .. } = service;
            PeerService { name, addresses, ports }
        };
        services.map(service).collect()
    });
    Ok(services.await?)
}
