//! The node's state, as `proto` says it to people and programs. `proto` types are filled here as far as the core
//! knows; what only the shell knows (uptime, interface, origin, health) it fills in itself.

use super::Node;
use crate::addr::{PeerId, ServiceName};
use std::net::IpAddr;
use std::time::Instant;
use vp_proto::api;

impl Node {
    #[must_use]
    pub fn peers(&self, now: Instant) -> Vec<(PeerId, api::PeerStatus)> {
        let _ = now;
        Vec::new()
    }

    #[must_use]
    pub fn presences(&self) -> Vec<api::Presence> {
        Vec::new()
    }

    #[must_use]
    pub fn caller_presences(&self) -> Vec<api::CallerPresence> {
        Vec::new()
    }

    #[must_use]
    pub fn services(&self) -> Vec<api::Service> {
        Vec::new()
    }

    #[must_use]
    pub fn remote_services(&self) -> Vec<api::RemoteService> {
        Vec::new()
    }

    /// At most `limit`, those of `service` (of any site) if given.
    #[must_use]
    pub fn flows(&self, service: Option<&ServiceName>, limit: usize, now: Instant) -> Vec<api::Flow> {
        let _ = (service, limit, now);
        Vec::new()
    }

    #[must_use]
    pub fn flow_table(&self) -> api::FlowTable {
        api::FlowTable::default()
    }

    #[must_use]
    pub fn whois(&self, address: IpAddr) -> api::Whois {
        let kind = "nobody".to_owned();
        api::Whois {
            address: address.to_string(),
            kind,
            site: None,
            service: None,
            client: None,
            wire_address: None,
            flows: 0,
        }
    }
}
