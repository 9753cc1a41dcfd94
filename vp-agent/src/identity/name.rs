//! What a peer is called at this gateway.

use std::fmt;
use vp::addr::Name;
use vp::node::PeerSettings;

/// The name of its site. A guest has that of its tenant beside it: other guests, and a peer that is none, may be of sites
/// that are called the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerName {
    pub site: Name,
    pub tenant: Option<Name>,
}

impl PeerName {
    #[must_use]
    pub fn of(peer: &PeerSettings) -> Self {
        let tenant = peer.identity.tenant.clone().filter(|_| peer.guest.is_some());
        Self { site: peer.identity.site.clone(), tenant }
    }

    pub(super) fn guest(site: Name, tenant: Name) -> Self {
        Self { site, tenant: Some(tenant) }
    }
}

impl From<Name> for PeerName {
    fn from(site: Name) -> Self {
        Self { site, tenant: None }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "{}.{tenant}", self.site),
            None => write!(f, "{}", self.site),
        }
    }
}
