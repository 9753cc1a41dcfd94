//! Hubs that are reached over TLS too: for each something on this host stands for it.

use super::{Agent, Refused};
use crate::carrier::{Carrier, CarrierSettings};
use std::collections::BTreeMap;
use vp::addr::Name;
use vp::node::Settings;

/// By the hub's site.
pub(super) type Carriers = BTreeMap<Name, Carrier>;

impl Agent {
    /// Starts what is wanted and not there, and tells the settings where it is.
    pub(super) async fn start_carriers(
        &self,
        carriers: &mut Carriers,
        wanted: &[(Name, CarrierSettings)],
        settings: &mut Settings,
    ) -> Result<(), Refused> {
        for (site, carrier) in wanted {
            if carriers.get(site).is_none_or(|known| known.settings != *carrier) {
                let started = Carrier::start(carrier.clone(), self.listen, self.handle.clone()).await?;
                carriers.insert(site.clone(), started);
            }
        }
        for peer in &mut settings.peers {
            let is_wanted = wanted.iter().any(|(site, _)| *site == peer.identity.site);
            peer.carrier = carriers.get(&peer.identity.site).filter(|_| is_wanted).map(|carrier| carrier.address);
        }
        Ok(())
    }
}
