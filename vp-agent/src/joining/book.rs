//! Whom an issuer invited and whom it certified, as a function of what happened and of the time. In a file of `state_dir`.

use super::{PublicKey, id};
use crate::state::{StateDir, StateError, read_json, write_json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use vp::addr::Name;
use vp::hub::BINDINGS_MAX;
use vp::identity::{Certificate, JoinRefusal, Serial};

const FILE: &str = "invitations.json";
const VERSION: u32 = 1;
/// Each is a peer as long as it is open.
pub const OPEN_MAX: usize = 64;
/// Those that are spent stay known for so long, so that who comes with one hears why it does not join; the oldest go first
/// where there are more than so many.
const SPENT_SECONDS: u64 = 24 * 3600;
const SPENT_MAX: usize = 256;
/// How many sites may join by one invitation, each taking the place of the one before.
pub const USES_MAX: u32 = 1000;
/// As many as a hub binds to one site.
const ISSUED_MAX: usize = BINDINGS_MAX;
/// What was certified is forgotten so long after its end.
const ENDED_SECONDS: u64 = 24 * 3600;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    version: u32,
    pub invited: Vec<Invited>,
    pub issued: Vec<Issued>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invited {
    /// The public half of the token's key.
    #[serde(with = "base64_key")]
    pub public_key: PublicKey,
    pub site: Name,
    pub groups: Vec<Name>,
    /// How long its certificate will hold.
    pub valid_seconds: u64,
    pub made: u64,
    pub ends: u64,
    pub uses: u32,
    pub joined: Vec<Joined>,
    /// Why it is of no use any more.
    pub spent: Option<Spent>,
    /// Which know of it.
    pub hubs: BTreeSet<Name>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    #[serde(with = "base64_key")]
    pub public_key: PublicKey,
    pub at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    pub why: Why,
    pub at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    Used,
    Expired,
    TakenBack,
}

impl Why {
    pub fn refusal(self) -> JoinRefusal {
        match self {
            Self::Used => JoinRefusal::Used,
            Self::Expired => JoinRefusal::Expired,
            Self::TakenBack => JoinRefusal::TakenBack,
        }
    }
}

/// What this issuer certified, and renews.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    #[serde(with = "base64_certificate")]
    pub certificate: Certificate,
    pub valid_seconds: u64,
    /// Which know of it.
    pub hubs: BTreeSet<Name>,
}

impl Issued {
    pub fn new(certificate: Certificate, valid_seconds: u64) -> Self {
        Self { certificate, valid_seconds, hubs: BTreeSet::new() }
    }

    fn is_over(&self, now: u64) -> bool {
        now >= self.certificate.not_after().saturating_add(ENDED_SECONDS)
    }
}

/// What is to be signed for who joins.
#[derive(PartialEq, Eq, Debug)]
pub enum Admission {
    New {
        site: Name,
        groups: Vec<Name>,
        valid_seconds: u64,
    },
    /// The answer before was lost on its way.
    Again(Box<Certificate>),
}

impl Default for Book {
    fn default() -> Self {
        Self { version: VERSION, invited: Vec::new(), issued: Vec::new() }
    }
}

impl Book {
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        Ok(read_json(&state.file(FILE))?.unwrap_or_default())
    }

    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        write_json(&state.file(FILE), self)
    }

    /// False: there are too many already.
    pub fn invite(&mut self, invited: Invited) -> bool {
        let has_room = self.open().count() < OPEN_MAX;
        if has_room {
            self.invited.push(invited);
        }
        has_room
    }

    pub fn open(&self) -> impl Iterator<Item = &Invited> {
        self.invited.iter().filter(|invited| invited.spent.is_none())
    }

    pub fn invited(&self, key: &PublicKey) -> Option<&Invited> {
        self.invited.iter().find(|invited| invited.public_key == *key)
    }

    pub fn issued(&self, site: &Name) -> Option<&Issued> {
        self.issued.iter().find(|issued| issued.certificate.site() == site)
    }

    /// Whether who has this invitation joins with this key.
    pub fn admission(&self, invited: &PublicKey, key: &PublicKey, now: u64) -> Result<Admission, JoinRefusal> {
        let Some(invited) = self.invited(invited) else { return Err(JoinRefusal::Expired) };
        if invited.joined.iter().any(|joined| joined.public_key == *key)
            && let Some(issued) = self.issued(&invited.site).filter(|issued| issued.certificate.public_key() == key)
        {
            return Ok(Admission::Again(Box::new(issued.certificate.clone())));
        }
        if let Some(spent) = invited.spent {
            return Err(spent.why.refusal());
        }
        if now >= invited.ends {
            return Err(JoinRefusal::Expired);
        }
        if self.issued(&invited.site).is_none() && self.issued.len() >= ISSUED_MAX {
            return Err(JoinRefusal::TooMany);
        }
        let Invited { site, groups, valid_seconds, .. } = invited.clone();
        Ok(Admission::New { site, groups, valid_seconds })
    }

    /// By that invitation, which may be used up now.
    pub fn joined(&mut self, key: &PublicKey, issued: Issued, now: u64) {
        let Some(invited) = self.invited.iter_mut().find(|invited| invited.public_key == *key) else { return };
        invited.joined.push(Joined { public_key: *issued.certificate.public_key(), at: now });
        if invited.joined.len() >= invited.uses as usize {
            invited.spent = Some(Spent { why: Why::Used, at: now });
        }
        self.put(issued);
    }

    /// In place of what that site had.
    pub fn put(&mut self, issued: Issued) {
        self.issued.retain(|known| known.certificate.site() != issued.certificate.site());
        self.issued.push(issued);
    }

    /// The one that goes by this name, if it is open.
    pub fn take_back(&mut self, name: &str, now: u64) -> Option<Invited> {
        let is_it = |invited: &&mut Invited| invited.spent.is_none() && id(&invited.public_key) == name;
        let invited = self.invited.iter_mut().find(is_it)?;
        invited.spent = Some(Spent { why: Why::TakenBack, at: now });
        Some(invited.clone())
    }

    /// That hub knows of the invitation, or the certificate, of this key.
    pub fn registered(&mut self, key: &PublicKey, hub: &Name) {
        let invited = self.invited.iter_mut().filter(|invited| invited.public_key == *key).map(|known| &mut known.hubs);
        let issued = self.issued.iter_mut().filter(|known| known.certificate.public_key() == key);
        for hubs in invited.chain(issued.map(|known| &mut known.hubs)) {
            hubs.insert(hub.clone());
        }
    }

    /// Whether the clock has changed anything.
    pub fn is_due(&self, now: u64) -> bool {
        let is_over = |invited: &Invited| match invited.spent {
            None => now >= invited.ends,
            Some(spent) => now >= spent.at.saturating_add(SPENT_SECONDS),
        };
        self.invited.iter().any(is_over) || self.issued.iter().any(|issued| issued.is_over(now))
    }

    /// What the clock has changed: those that have expired now. Forgets what nobody needs any more.
    pub fn review(&mut self, now: u64) -> Vec<Invited> {
        let mut expired = Vec::new();
        for invited in self.invited.iter_mut().filter(|invited| invited.spent.is_none() && now >= invited.ends) {
            invited.spent = Some(Spent { why: Why::Expired, at: now });
            expired.push(invited.clone());
        }
        let is_kept = |spent: Spent| now < spent.at.saturating_add(SPENT_SECONDS);
        self.invited.retain(|invited| invited.spent.is_none_or(is_kept));
        let spent = self.invited.iter().filter(|invited| invited.spent.is_some()).count();
        let mut too_many = spent.saturating_sub(SPENT_MAX);
        // They stand in the order in which they were made.
        self.invited.retain(|invited| {
            let goes = too_many > 0 && invited.spent.is_some();
            too_many -= usize::from(goes);
            !goes
        });
        self.issued.retain(|issued| !issued.is_over(now));
        expired
    }

    /// Whether the last certificate of that site is this one.
    pub fn is_last(&self, site: &Name, serial: Serial) -> bool {
        self.issued(site).is_some_and(|issued| issued.certificate.serial() == serial)
    }
}

mod base64_key {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(key: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(key))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let bytes = BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("expected a key of 32 bytes"))
    }
}

mod base64_certificate {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use vp::identity::Certificate;

    pub fn serialize<S: Serializer>(certificate: &Certificate, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(certificate.to_bytes()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Certificate, D::Error> {
        let bytes = BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        Certificate::read(&bytes).map_err(D::Error::custom)
    }
}
