//! Whom an `allow` entry means.

use super::{Name, NameError};
use std::fmt;
use std::str::FromStr;

/// Who a peer is, as authenticated: by a configured key, or by a certificate that a tenant's authority signed. Without a
/// certificate there is no tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub site: Name,
    pub tenant: Option<Name>,
    pub groups: Vec<Name>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Selector {
    Any,
    Site(Name),
    Client { client: Name, site: Name },
    Group(Name),
    Tenant(Name),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SelectorError {
    #[error("expected site:NAME, client:NAME.SITE, group:NAME, tenant:NAME or any, found {0:?}")]
    Kind(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Selector {
    /// `client` is the name that the peer's site vouches for, if it named the caller.
    #[must_use]
    pub fn matches(&self, peer: &Identity, client: Option<&Name>) -> bool {
        match self {
            Self::Any => true,
            Self::Site(site) => *site == peer.site,
            Self::Client { client: wanted, site } => *site == peer.site && client == Some(wanted),
            Self::Group(group) => peer.groups.contains(group),
            Self::Tenant(tenant) => peer.tenant.as_ref() == Some(tenant),
        }
    }
}

impl Selector {
    /// Whether some caller of the peer's site could match.
    #[must_use]
    pub fn may_match(&self, peer: &Identity) -> bool {
        match self {
            Self::Client { site, .. } => *site == peer.site,
            Self::Any | Self::Site(_) | Self::Group(_) | Self::Tenant(_) => self.matches(peer, None),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let kind_error = || SelectorError::Kind(text.chars().take(80).collect());
        let (kind, name) = text.split_once(':').ok_or_else(kind_error)?;
        match kind {
            "site" => Ok(Self::Site(Name::new(name)?)),
            "group" => Ok(Self::Group(Name::new(name)?)),
            "tenant" => Ok(Self::Tenant(Name::new(name)?)),
            "client" => {
                let (client, site) = name.split_once('.').ok_or_else(kind_error)?;
                Ok(Self::Client { client: Name::new(client)?, site: Name::new(site)? })
            }
            _ => Err(kind_error()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Site(site) => write!(f, "site:{site}"),
            Self::Client { client, site } => write!(f, "client:{client}.{site}"),
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Tenant(tenant) => write!(f, "tenant:{tenant}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    #[test]
    fn selectors_match_authenticated_identity_only() {
        let factory = Identity { site: name("factory"), tenant: None, groups: vec![name("edge")] };
        let plc = name("plc");
        let matches = |text: &str, client| text.parse::<Selector>().expect("valid").matches(&factory, client);
        assert!(matches("any", None) && matches("site:factory", None) && matches("group:edge", None));
        assert!(matches("client:plc.factory", Some(&plc)));
        assert!(!matches("client:plc.factory", None) && !matches("client:plc.cloud", Some(&plc)));
        assert!(!matches("site:cloud", None) && !matches("tenant:acme", None) && !matches("group:core", None));
    }

    #[test]
    fn selectors_read_as_they_print() {
        for text in ["any", "site:a", "client:plc.a", "group:g", "tenant:t"] {
            assert_eq!(text.parse::<Selector>().map(|s| s.to_string()), Ok(text.into()));
        }
        for bad in ["", "site", "site:", "client:plc", "host:a", "site:A", "site:a.b"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
