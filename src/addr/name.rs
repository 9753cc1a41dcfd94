//! Names of sites, services and clients: DNS labels, checked once.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// RFC 1035 section 2.3.4.
const LABEL_BYTES_MAX: usize = 63;

/// One DNS label in lower case: letters, digits and inner hyphens (RFC 1123 section 2.1). Copies share the text: a
/// mapped service's name is in some ten places.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("a name cannot be empty")]
    Empty,
    #[error("a name has at most 63 characters")]
    TooLong,
    #[error("a name has lower-case letters, digits and inner hyphens only, found {0:?}")]
    Character(char),
    #[error("expected SERVICE.SITE, such as web.cloud")]
    NotServiceName,
}

impl Name {
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > LABEL_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        let outer_hyphen = text.starts_with('-') || text.ends_with('-');
        let bad = |c: &char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-');
        match text.chars().find(bad) {
            Some(c) => Err(NameError::Character(c)),
            None if outer_hyphen => Err(NameError::Character('-')),
            None => Ok(Self(text.into())),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Service `web` of site `cloud`: `web.cloud`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName {
    pub service: Name,
    pub site: Name,
}

impl FromStr for ServiceName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (service, site) = text.split_once('.').ok_or(NameError::NotServiceName)?;
        Ok(Self { service: Name::new(service)?, site: Name::new(site)? })
    }
}

impl TryFrom<String> for ServiceName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.service, self.site))
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_lower_case_dns_label() {
        assert_eq!(Name::new("web-1").map(|n| n.to_string()), Ok("web-1".into()));
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new(&"a".repeat(64)), Err(NameError::TooLong));
        for bad in ["Web", "-a", "a-", "a.b", "a b", "a\n", "ä", "*"] {
            assert!(matches!(Name::new(bad), Err(NameError::Character(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_service_name_is_service_dot_site() {
        let name: ServiceName = "web.cloud".parse().expect("valid");
        assert_eq!((name.service.as_str(), name.site.as_str()), ("web", "cloud"));
        assert_eq!("web".parse::<ServiceName>(), Err(NameError::NotServiceName));
        assert!("a.b.c".parse::<ServiceName>().is_err());
    }
}
