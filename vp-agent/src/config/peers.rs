//! The peers of the file, whom to trust, and what else it says of certified identity.

use super::convert::{Places, Reader, Result};
use super::credentials::{Member, OWN_CERTIFICATE, read_certificate, read_revocations};
use super::file::{self, Text};
use super::{hub, keys, values};
use crate::carrier::CarrierSettings;
use serde_saphyr::{Location, Spanned};
use std::path::{Path, PathBuf};
use vp::addr::{Identity, Name, Pool};
use vp::identity::{Certificate, List, Refusal, Revocations, Trust};
use vp::node::PeerSettings;

/// A handshake each and a control channel each; more want several gateways.
pub(super) const PEERS_MAX: usize = 1000;

/// All peers; those by certificate among them as if it held, for what speaks of them.
#[derive(Default)]
pub(super) struct Peers {
    pub settings: Vec<PeerSettings>,
    /// As written.
    pub endpoints: Vec<(Name, String)>,
    /// Of hubs that are reached over TLS too.
    pub carriers: Vec<(Name, CarrierSettings)>,
    pub members: Vec<Member>,
}

/// Who a peer is, and where the file says so.
struct Subject<'a> {
    identity: Identity,
    public_key: [u8; 32],
    site_text: &'a Text,
    key_text: &'a Text,
    certificate: Option<(PathBuf, Certificate)>,
}

impl Reader<'_> {
    pub(super) fn peers(
        &mut self,
        entries: &[Spanned<file::Peer>],
        site: &Name,
        own_key: Option<[u8; 32]>,
        trust: &Trust,
        pool: &Pool,
    ) -> Result<Peers> {
        if let Some(peer) = entries.get(PEERS_MAX) {
            return Err(self.fail(peer.referenced, format!("peers: more than {PEERS_MAX}")));
        }
        let (mut sites, mut keys, mut peers) = (Places::default(), Places::default(), Peers::default());
        for Spanned { value: peer, referenced, .. } in entries {
            let Subject { identity, public_key, site_text, key_text, certificate } =
                self.subject(peer, *referenced, trust)?;
            let name = identity.site.clone();
            if name == *site {
                return Err(self.fail(site_text.referenced, format!("site: {name} is this site, expected another")));
            }
            sites.add(self, &name, site_text, |line| {
                let twice = format!("peer {name} is there twice, first in line {line}");
                if certificate.is_some() {
                    format!("{twice}: a site's name is one site's, whatever its tenant")
                } else {
                    twice
                }
            })?;
            if own_key == Some(public_key) {
                let message = "public_key: this is the key of this site itself, expected the peer's";
                return Err(self.fail(key_text.referenced, message));
            }
            let twice = |line| format!("public_key: the peer in line {line} has the same one, expected one a peer");
            keys.add(self, &public_key, key_text, twice)?;
            let endpoint = self.optional("endpoint", peer.endpoint.as_ref(), values::endpoint)?;
            let address = endpoint.as_ref().and_then(values::Endpoint::address);
            if let Some(text) = &peer.endpoint {
                if address.is_some_and(|address| pool.contains(address.ip())) {
                    let message = "endpoint: this address is in the pool, and no tunnel leads through itself";
                    return Err(self.fail(text.referenced, message));
                }
                peers.endpoints.push((name.clone(), text.value.clone()));
            }
            let is_hub = self.is_hub(peer, &name)?;
            if let Some(carrier) = self.carrier(peer, is_hub)? {
                peers.carriers.push((name.clone(), carrier));
            }
            let keepalive = self.optional("keepalive", peer.keepalive.as_ref(), values::keepalive)?;
            let settings = PeerSettings {
                identity,
                public_key,
                preshared_key: self.preshared_key(peer.preshared_key_file.as_ref())?,
                endpoint: address,
                carrier: None,
                keepalive_seconds: keepalive.or(is_hub.then_some(hub::KEEPALIVE_SECONDS)),
                stock: peer.stock.unwrap_or(false),
                hub: is_hub,
            };
            if let Some((file, certificate)) = certificate {
                let identity = Identity { site: name, tenant: None, groups: Vec::new() };
                let settings = PeerSettings { identity, ..settings.clone() };
                peers.members.push(Member { file: Some(file), certificate, settings });
            }
            peers.settings.push(settings);
        }
        Ok(peers)
    }

    /// Who the peer is, by the one way or the other.
    fn subject<'a>(&mut self, peer: &'a file::Peer, at: Location, trust: &Trust) -> Result<Subject<'a>> {
        let Some(text) = &peer.certificate else {
            let missing =
                |key: &str| self.fail(at, format!("the key {key:?} is missing, expected it or a `certificate`"));
            let site_text = peer.site.as_ref().ok_or_else(|| missing("site"))?;
            let key_text = peer.public_key.as_ref().ok_or_else(|| missing("public_key"))?;
            let site = self.text("site", site_text, Name::new)?;
            let public_key = self.text("public_key", key_text, values::public_key)?;
            let groups = peer.groups.iter().flat_map(|groups| &groups.value);
            let groups = groups.map(|group| self.text("groups", group, Name::new)).collect::<Result<_>>()?;
            let identity = Identity { site, tenant: None, groups };
            return Ok(Subject { identity, public_key, site_text, key_text, certificate: None });
        };
        let texts = [("site", &peer.site), ("public_key", &peer.public_key)];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?.referenced)));
        if let Some((key, at)) = texts.chain(peer.groups.iter().map(|groups| ("groups", groups.referenced))).next() {
            return Err(self.fail(at, format!("{key}: the `certificate` says it, expected no `{key}` beside that")));
        }
        let file = self.text("certificate", text, values::path)?;
        let certificate = self.certificate(text.referenced, &file, |_| trust.clone())?;
        let public_key = *certificate.public_key();
        if values::is_weak(public_key) {
            return Err(self.fail(text.referenced, "certificate: its key is no public key: a point of low order"));
        }
        let (site, tenant) = (certificate.site().clone(), Some(certificate.tenant().clone()));
        let identity = Identity { site, tenant, groups: certificate.groups().to_vec() };
        let certificate = Some((file, certificate));
        Ok(Subject { identity, public_key, site_text: text, key_text: text, certificate })
    }

    /// Of whoever is trusted. That its time is over is no fault of the file.
    fn certificate(
        &mut self,
        at: Location,
        file: &Path,
        trust: impl FnOnce(&Certificate) -> Trust,
    ) -> Result<Certificate> {
        let certificate = read_certificate(file).map_err(|error| self.fail(at, format!("certificate: {error}")))?;
        match certificate.judge(&trust(&certificate), &Revocations::default(), crate::clock::unix_seconds()) {
            Ok(_) => {}
            Err(refusal @ (Refusal::Expired | Refusal::NotYetValid)) => {
                self.warn(at, format!("certificate: {}: {refusal}", file.display()));
            }
            Err(refusal) => return Err(self.fail(at, format!("certificate: {}: {refusal}", file.display()))),
        }
        Ok(certificate)
    }

    pub(super) fn trust(&self, entries: &[Spanned<file::Trust>]) -> Result<Trust> {
        let mut trust = Trust::default();
        for Spanned { value: entry, .. } in entries {
            let tenant = self.text("tenant", &entry.tenant, Name::new)?;
            let key = self.text("authority", &entry.authority, values::key)?;
            let added = trust.add(tenant, *key);
            added.map_err(|error| self.fail(entry.authority.referenced, format!("authority: {error}")))?;
        }
        Ok(trust)
    }

    /// The default file need not be there.
    pub(super) fn own_certificate(
        &mut self,
        text: Option<&Text>,
        state_dir: &Path,
        site: &Name,
        own_key: Option<[u8; 32]>,
        trust: &Trust,
    ) -> Result<(PathBuf, Option<Certificate>)> {
        let file = self.optional("certificate", text, values::path)?;
        let file = file.unwrap_or_else(|| state_dir.join(OWN_CERTIFICATE));
        let at = text.map_or(Location::UNKNOWN, |text| text.referenced);
        if text.is_none() && !file.exists() {
            return Ok((file, None));
        }
        let certificate = self.certificate(at, &file, |own| trust.with_own(own))?;
        if certificate.site() != site {
            let message = format!("certificate: it is for site {}, expected one for {site}", certificate.site());
            return Err(self.fail(at, message));
        }
        if own_key.is_some_and(|key| key != *certificate.public_key()) {
            let message =
                "certificate: it is for another key than this site's, expected one for `vp-ctl status`'s public key";
            return Err(self.fail(at, message));
        }
        Ok((file, Some(certificate)))
    }

    pub(super) fn revocations(&self, text: Option<&Text>, trust: &Trust) -> Result<Option<List>> {
        let Some(text) = text else { return Ok(None) };
        let file = self.text("revocations", text, values::path)?;
        let list =
            read_revocations(&file).map_err(|error| self.fail(text.referenced, format!("revocations: {error}")))?;
        // Also one whose issuer has lost its right meanwhile: what it took back stays so.
        let mut known = Revocations::default();
        let taken = known.restore(&list.to_bytes());
        let counts = taken.is_ok() && known.in_force(trust).next().is_some();
        let refused = || format!("revocations: {}: {}", file.display(), Refusal::UnknownAuthority);
        if counts { Ok(Some(list)) } else { Err(self.fail(text.referenced, refused())) }
    }

    fn preshared_key(&mut self, text: Option<&Text>) -> Result<Option<[u8; 32]>> {
        let Some(text) = text else { return Ok(None) };
        let path = self.text("preshared_key_file", text, values::path)?;
        match keys::read(&path) {
            Ok(key) => Ok(Some(*key)),
            Err(error) if error.is_permission() && self.host.interfaces.is_empty() => {
                self.warn(text.referenced, format!("preshared_key_file: not checked: {error}"));
                Ok(None)
            }
            Err(error) => Err(self.fail(text.referenced, format!("preshared_key_file: {error}"))),
        }
    }
}
