//! What vp-ctl mapped and exposed, as it asked for it, where peers without a configured endpoint were seen last, and what
//! peers presented of certified identity.

use super::{StateDir, StateError, read_own, write_whole};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use vp_proto::api::{AddPeerRequest, ExposeRequest, MapRequest};

const VERSION: u32 = 1;
const RUNTIME: &str = "runtime.json";
const ENDPOINTS: &str = "endpoints.json";
const PORT: &str = "port.json";
const IDENTITY: &str = "identity.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    version: u32,
    pub map: Vec<MapRequest>,
    pub expose: Vec<ExposeRequest>,
    #[serde(default)]
    pub peers: Vec<AddPeerRequest>,
    #[serde(default)]
    pub drained: Vec<Drained>,
}

/// What the operator wants empty; neither: all of this site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drained {
    pub service: Option<String>,
    pub target: Option<IpAddr>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self { version: VERSION, map: Vec::new(), expose: Vec::new(), peers: Vec::new(), drained: Vec::new() }
    }
}

impl Runtime {
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        let runtime: Option<Self> = read_json(&state.file(RUNTIME))?;
        Ok(runtime.unwrap_or_default())
    }

    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        write_json(&state.file(RUNTIME), self)
    }
}

/// By site. A gateway that was restarted can call a peer behind NAT itself, as long as the NAT still knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Endpoints(pub BTreeMap<String, SocketAddr>);

impl Endpoints {
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        Ok(read_json(&state.file(ENDPOINTS))?.unwrap_or_default())
    }

    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        write_json(&state.file(ENDPOINTS), self)
    }
}

/// The UDP port of a gateway that is told none: NATs know it by that, and let in what is for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(pub Option<u16>);

impl Port {
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        Ok(read_json(&state.file(PORT))?.unwrap_or_default())
    }

    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        write_json(&state.file(PORT), self)
    }
}

/// Certificates and lists of revocations as they travel, in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptIdentity {
    version: u32,
    pub certificates: Vec<String>,
    pub revocations: Vec<String>,
    /// By hub.
    #[serde(default)]
    pub introduced: BTreeMap<String, Vec<String>>,
}

impl Default for KeptIdentity {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new(), BTreeMap::new())
    }
}

impl KeptIdentity {
    #[must_use]
    pub fn new(certificates: Vec<String>, revocations: Vec<String>, introduced: BTreeMap<String, Vec<String>>) -> Self {
        Self { version: VERSION, certificates, revocations, introduced }
    }

    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        Ok(read_json(&state.file(IDENTITY))?.unwrap_or_default())
    }

    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        write_json(&state.file(IDENTITY), self)
    }

    /// One of its entries is not what was written.
    #[must_use]
    pub fn damaged(state: &StateDir, message: String) -> StateError {
        StateError::Damaged { path: state.file(IDENTITY), line: 1, message }
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let Some(text) = read_own(path)? else { return Ok(None) };
    let damaged = |error: serde_json::Error| StateError::Damaged {
        path: path.to_owned(),
        line: error.line(),
        message: error.to_string(),
    };
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let io = |error: serde_json::Error| StateError::Io { path: path.to_owned(), error: error.into() };
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io)?;
    bytes.push(b'\n');
    write_whole(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_mapped_is_there_again_and_damage_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let state = StateDir::open(folder.path()).expect("state");
        let mut runtime = Runtime::load(&state).expect("none yet");
        runtime.map.push(MapRequest { service: "web.cloud".to_owned(), ..MapRequest::default() });
        runtime.save(&state).expect("saved");
        assert_eq!(Runtime::load(&state).expect("saved"), runtime);
        let text = std::fs::read_to_string(state.file(RUNTIME)).expect("readable");
        std::fs::write(state.file(RUNTIME), &text[..text.len() / 2]).expect("writable");
        assert!(matches!(Runtime::load(&state), Err(StateError::Damaged { .. })));
    }
}
