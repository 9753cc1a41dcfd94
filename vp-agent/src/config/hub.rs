//! What the file says of a hub: this gateway's own part as one, and how one is reached over TLS.

use super::convert::{Reader, Result};
use super::{file, values};
use crate::carrier::{CarrierSettings, CertificateFiles, ListenerSettings};
use crate::registry::EtcdSettings;
use vp::addr::Name;
use vp::node::RelayRates;

/// For NATs, and so that a hub knows soon where a site is. The usual one of WireGuard.
pub(super) const KEEPALIVE_SECONDS: u16 = 25;

/// Where records stand in etcd, unless the file says otherwise.
const STORE_PREFIX: &str = "virtual-presence";
const STORE_PREFIX_BYTES_MAX: usize = 128;

impl Reader<'_> {
    /// Whether the peer is a hub.
    pub(super) fn is_hub(&self, peer: &file::Peer, name: &Name) -> Result<bool> {
        if peer.hub == Some(true) && peer.stock == Some(true) {
            let at = peer
                .site
                .as_ref()
                .or(peer.certificate.as_ref())
                .map_or(serde_saphyr::Location::UNKNOWN, |text| text.referenced);
            let message = format!("hub: {name} is a stock peer, which has no agent, expected one of hub and stock");
            return Err(self.fail(at, message));
        }
        Ok(peer.hub.unwrap_or(false))
    }

    /// How it is reached over TLS.
    pub(super) fn carrier(&self, peer: &file::Peer, is_hub: bool) -> Result<Option<CarrierSettings>> {
        let proxy = self.optional("proxy", peer.proxy.as_ref(), values::endpoint)?;
        let Some(tls) = &peer.tls else {
            return match &peer.proxy {
                Some(text) => Err(self.fail(text.referenced, "proxy: it is for tls, expected tls: HOST:443 beside it")),
                None => Ok(None),
            };
        };
        if !is_hub {
            return Err(self.fail(tls.referenced, "tls: only hubs are reached over TLS, expected hub: true beside it"));
        }
        self.text("tls", tls, values::endpoint)?;
        let proxy = proxy.and(peer.proxy.as_ref()).map(|text| text.value.clone());
        Ok(Some(CarrierSettings { hub: tls.value.clone(), proxy }))
    }

    pub(super) fn hub_tls(&self, tls: Option<&file::Tls>) -> Result<Option<ListenerSettings>> {
        let Some(tls) = tls else { return Ok(None) };
        let listen = self.text("hub.tls.listen", &tls.listen, values::socket_address)?;
        let certificate = self.optional("hub.tls.certificate", tls.certificate.as_ref(), values::path)?;
        let key = self.optional("hub.tls.key", tls.key.as_ref(), values::path)?;
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let message = "hub.tls: expected certificate and key, or neither of them";
                return Err(self.fail(tls.listen.referenced, message));
            }
        };
        Ok(Some(ListenerSettings { listen, certificate }))
    }

    /// `etcd://` and its members, with a path if what is kept there is to have another prefix than ours.
    pub(super) fn hub_store(&self, store: Option<&file::Text>) -> Result<Option<EtcdSettings>> {
        self.optional("hub.store", store, |text| {
            let expected = || format!("{text:?} is no store, expected etcd://HOST:2379,HOST:2379,HOST:2379");
            let (members, path) = {
                let rest = text.strip_prefix("etcd://").ok_or_else(expected)?;
                rest.split_once('/').unwrap_or((rest, STORE_PREFIX))
            };
            let members: Vec<String> = members.split(',').map(ToOwned::to_owned).collect();
            members.iter().try_for_each(|member| values::endpoint(member).map(drop))?;
            let is_good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let path = path.trim_matches('/');
            if path.is_empty() || path.len() > STORE_PREFIX_BYTES_MAX || !path.chars().all(is_good) {
                return Err(expected());
            }
            Ok(EtcdSettings { members, prefix: format!("/{path}/") })
        })
    }

    pub(super) fn hub(&self, hub: Option<&file::Hub>) -> Result<Option<RelayRates>> {
        let Some(hub) = hub else { return Ok(None) };
        let Some(relay) = &hub.relay else { return Ok(Some(RelayRates::default())) };
        let site = self.optional("hub.relay.site", relay.site.as_ref(), values::rate)?;
        let tenant = self.optional("hub.relay.tenant", relay.tenant.as_ref(), values::rate)?;
        Ok(Some(RelayRates { site, tenant }))
    }
}
