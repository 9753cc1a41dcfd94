//! What the shell wants: settings, offers, packets of the control channel.

use super::{
    Event, FlowEnd, Node, OfferError, Output, Peer, REJECTS_PER_SECOND, Rates, Settings, SettingsError, Sweep,
};
use crate::addr::{Family, Grant, Holder, Leases, PeerId};
use crate::catalogue::{
    Callers, ExposedServices, Exposure, LeaseChanges, Mapping, NamedCaller, Offer, PeerOffer, Presences,
};
use crate::flow::Table;
use crate::policy::Bucket;
use crate::tunnel::{TunnelSettings, Tunnels};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use x25519_dalek::StaticSecret;

/// How often mappings are tried again that got no address.
const MAP_PAUSE: Duration = Duration::from_secs(60);

impl Node {
    /// `leases` are those kept from before. Fails when they contradict each other.
    pub fn new(
        settings: Settings,
        leases: Vec<Grant>,
        key: StaticSecret,
        seed: u64,
        now: Instant,
    ) -> Result<Self, SettingsError> {
        let mut kept = Leases::default();
        let resumes = !leases.is_empty();
        leases.into_iter().try_for_each(|grant| kept.restore(grant))?;
        let mut node = Self {
            tunnels: Tunnels::new(key, seed, now),
            table: Table::new(settings.flows_max, seed, now),
            leases: kept,
            exposed: ExposedServices::default(),
            presences: Presences::default(),
            callers: Callers::default(),
            peers: Vec::new(),
            offers: BTreeMap::new(),
            clients: BTreeMap::new(),
            rates: BTreeMap::new(),
            version: 0,
            swept: None,
            started: now,
            resumes,
            rejects: Bucket::new(REJECTS_PER_SECOND, REJECTS_PER_SECOND, now),
            map_next: None,
            reclaim_next: BTreeMap::new(),
            drops: super::Drops::default(),
            events: VecDeque::new(),
            events_lost: 0,
            flows_opened: 0,
            flows_closed: 0,
            fragments: crate::flow::fragments::Fragments::default(),
            scratch: vec![0; super::PACKET_BYTES_MAX + 1].into(),
            idle: Vec::new(),
            settings: Settings { peers: Vec::new(), mappings: Vec::new(), ..settings.clone() },
        };
        node.configure(settings, now)?;
        Ok(node)
    }

    /// Replaces what the operator wants. Flows that are still allowed go on. When it fails, nothing changed that
    /// packets can see.
    pub fn configure(&mut self, settings: Settings, now: Instant) -> Result<(), SettingsError> {
        let before = self.all_offers();
        let previous = std::mem::replace(&mut self.settings, settings);
        if let Err(error) = self.apply(&previous.mappings, now) {
            let known = previous.mappings.clone();
            self.settings = previous;
            // What was in force had what it needed, and still has.
            self.apply(&known, now).ok();
            return Err(error);
        }
        self.table.set_capacity(self.settings.flows_max);
        self.tell_changed_offers(&before);
        self.judge_flows_again();
        Ok(())
    }

    /// Peers come last: what cannot be given addresses ends no session. A mapping that was `known` before is not what is
    /// wrong with a change when it has no address, for that may be its peer's doing.
    fn apply(&mut self, known: &[Mapping], now: Instant) -> Result<(), SettingsError> {
        self.apply_leases(now)?;
        self.apply_mappings(now);
        for (service, error) in self.presences.refused() {
            let mappings = self.settings.mappings.iter().filter(|mapping| !known.contains(mapping));
            let fixed = mappings.filter(|mapping| mapping.service.matches(service)).find_map(|mapping| mapping.address);
            if let Some(address) = fixed {
                let (service, error) = (service.clone(), error.clone());
                return Err(SettingsError::Mapping { service, address, error });
            }
        }
        let offers = self.offers.len();
        self.apply_peers(now)?;
        if self.offers.len() < offers {
            self.apply_mappings(now);
        }
        Ok(())
    }

    fn apply_peers(&mut self, now: Instant) -> Result<(), SettingsError> {
        let wanted = self.settings.peers.clone();
        for number in 0..self.peers.len() {
            let Some(peer) = self.peers[number].as_ref() else { continue };
            if !wanted.iter().any(|w| w.public_key == peer.settings.public_key) {
                self.remove_peer(PeerId(number as u32), now);
            }
        }
        for settings in wanted {
            let same_key =
                |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.settings.public_key == settings.public_key);
            // Numbers are not used again: what an earlier peer said on its way out must never count as another's.
            let number = self.peers.iter().position(same_key).unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            });
            let flows = match &self.peers[number] {
                Some(peer) if peer.settings == settings => continue,
                Some(peer) => peer.flows,
                None => 0,
            };
            let peer = PeerId(number as u32);
            let tunnel = TunnelSettings {
                public_key: settings.public_key,
                preshared_key: settings.preshared_key,
                endpoint: settings.endpoint,
                keepalive_seconds: settings.keepalive_seconds,
                // Its control channel brings its offer, and mappings wait for that.
                held: !settings.stock,
            };
            let refused = |error: crate::tunnel::TunnelError| {
                SettingsError::Tunnel(settings.identity.site.clone(), error.to_string())
            };
            self.tunnels.add(peer, tunnel, now).map_err(refused)?;
            self.offers.retain(|site, (of, _)| *of != peer || *site == settings.identity.site);
            self.peers[number] = Some(Peer { settings, flows });
        }
        Ok(())
    }

    fn remove_peer(&mut self, peer: PeerId, now: Instant) {
        let flows: Vec<_> = self.table.iter().filter(|(_, flow)| flow.peer == peer).map(|(id, _)| id).collect();
        flows.into_iter().for_each(|id| self.end_flow(id, FlowEnd::Ended, now));
        self.tunnels.remove(peer);
        self.offers.retain(|_, (of, _)| *of != peer);
        self.peers[peer.0 as usize] = None;
        self.events.push_back(Event::PeerDown(peer));
    }

    /// The gateway's own presences, the services' wire indices, and those of named clients.
    fn apply_leases(&mut self, now: Instant) -> Result<(), SettingsError> {
        self.leases.look_again();
        let pool = &self.settings.pool;
        // The pool may have become another: what lies outside it is given up.
        let outside: Vec<Holder> = self.leases.iter().filter(|g| is_outside(g, pool)).map(|g| g.holder).collect();
        for holder in outside {
            self.end_flows_of(&holder, now);
            if let Some(grant) = self.leases.release(&holder, now) {
                self.events.push_back(Event::Released(grant));
            }
            self.callers.remove(&holder);
        }
        let pool = &self.settings.pool;
        for family in Family::BOTH {
            if pool.prefixes().iter().any(|prefix| Family::of(prefix.addr()) == family) {
                let (grant, is_new) = self.leases.grant(&Holder::Gateway { family }, pool, 0, None, now)?;
                if is_new {
                    self.events.push_back(Event::Granted(grant));
                }
            }
        }
        let granted = self.exposed.set(&self.settings.exposures, &mut self.leases, now)?;
        self.events.extend(granted.into_iter().map(Event::Granted));
        let gone = |grant: Grant| match &grant.holder {
            Holder::ServiceIndex { service } if self.exposed.by_name(service).is_none() => Some(grant.holder),
            _ => None,
        };
        let gone: Vec<Holder> = self.leases.iter().filter_map(gone).collect();
        for holder in gone {
            if let Some(grant) = self.leases.release(&holder, now) {
                self.events.push_back(Event::Released(grant));
            }
        }
        let named = |client: &crate::catalogue::Client| {
            client.addresses.iter().map(|address| (*address, client.name.clone())).collect::<Vec<_>>()
        };
        self.clients = self.settings.clients.iter().flat_map(named).collect();
        for address in self.clients.keys() {
            let holder = Holder::CallerIndex { address: *address };
            let (grant, is_new) = self.leases.grant(&holder, &self.settings.pool, 0, None, now)?;
            if is_new {
                self.events.push_back(Event::Granted(grant));
            }
        }
        self.rates = self.exposed.iter().filter_map(|(n, s)| Some((n, rates(&s.exposure, now)?))).collect();
        Ok(())
    }

    /// Joins mappings with offers. Those that got no address are tried again, for what rests comes back.
    pub(super) fn apply_mappings(&mut self, now: Instant) {
        let Settings { mappings, pool, .. } = &self.settings;
        let LeaseChanges { granted, released } =
            self.presences.set(mappings, &self.offers, pool, &mut self.leases, now);
        let changed = !(granted.is_empty() && released.is_empty());
        self.events.extend(released.into_iter().map(Event::Released));
        self.events.extend(granted.into_iter().map(Event::Granted));
        if changed {
            self.events.push_back(Event::PresencesChanged);
        }
        self.map_next = (!self.presences.refused().is_empty()).then(|| now + MAP_PAUSE);
    }

    /// A packet of the control channel, from 198.18.0.1 or 198.19.0.1, to the peer.
    pub fn send_control(&mut self, peer: PeerId, packet: &[u8], output: &mut Output, now: Instant) {
        let sealed = self.tunnels.seal(peer, packet, self.settings.inner_mtu, &mut output.transmits, now);
        if let Err(error) = sealed {
            self.drops.count(super::reject::of_seal(error));
        }
    }

    /// What the peer offers to this site now; replaces what it offered before, whole.
    pub fn set_offer(&mut self, peer: PeerId, mut offer: Offer, now: Instant) -> Result<(), OfferError> {
        let site = self.peer(peer).ok_or(OfferError::UnknownPeer)?.settings.identity.site.clone();
        offer.services.sort_by(|a, b| a.name.cmp(&b.name));
        offer.callers.sort_by_key(|caller| caller.index);
        let offer = PeerOffer::new(offer);
        if self.offers.get(&site).is_some_and(|(_, known)| *known == offer) {
            return Ok(());
        }
        self.offers.insert(site, (peer, offer));
        self.apply_mappings(now);
        self.events.push_back(Event::PresencesChanged);
        self.judge_flows_again();
        Ok(())
    }

    /// What this site offers to the peer now.
    #[must_use]
    pub fn offer(&self, peer: PeerId) -> Offer {
        let Some(peer) = self.peer(peer) else { return Offer::default() };
        let index = |address: IpAddr| {
            let block = self.leases.block(&Holder::CallerIndex { address })?;
            crate::addr::wire::parse(block.addr()).map(|(_, index)| index)
        };
        let named = self.clients.iter();
        let callers =
            named.filter_map(|(address, name)| Some(NamedCaller { index: index(*address)?, name: name.clone() }));
        self.exposed.offer(&peer.settings.identity, callers.collect())
    }

    /// A new address for a peer's configured endpoint, as its name resolved.
    pub fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr) {
        self.tunnels.set_endpoint(peer, endpoint);
    }

    fn all_offers(&self) -> BTreeMap<PeerId, Offer> {
        self.peer_ids().map(|peer| (peer, self.offer(peer))).collect()
    }

    fn tell_changed_offers(&mut self, before: &BTreeMap<PeerId, Offer>) {
        let changed: Vec<PeerId> = self.peer_ids().filter(|p| before.get(p) != Some(&self.offer(*p))).collect();
        self.events.extend(changed.into_iter().map(Event::OfferChanged));
    }

    pub(super) fn peer_ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        (0..).zip(&self.peers).filter(|(_, peer)| peer.is_some()).map(|(number, _)| PeerId(number))
    }

    fn end_flows_of(&mut self, holder: &Holder, now: Instant) {
        let of_holder =
            |owner: crate::flow::Owner| self.callers.get(owner.caller).is_some_and(|caller| caller.holder == *holder);
        let flows: Vec<_> = self.table.iter().filter(|(_, flow)| of_holder(flow.owner)).map(|(id, _)| id).collect();
        flows.into_iter().for_each(|id| self.end_flow(id, FlowEnd::Ended, now));
    }

    /// Flows that were allowed may not be any more: each is judged again at its opener's next packet, or in the
    /// background, whichever comes first.
    fn judge_flows_again(&mut self) {
        self.version = self.version.wrapping_add(1);
        let next = self.swept.map_or(0, |sweep| sweep.next);
        self.swept = Some(Sweep { next, left: self.table.end() });
    }
}

fn is_outside(grant: &Grant, pool: &crate::addr::Pool) -> bool {
    match grant.holder {
        Holder::Gateway { .. } | Holder::ServicePresence { .. } | Holder::CallerPresence { .. } => {
            !pool.allows(&grant.block)
        }
        Holder::ServiceIndex { .. } | Holder::CallerIndex { .. } => false,
    }
}

/// A burst is a tenth of a second's worth, but a super-packet at least, or nothing of that size would ever pass.
fn rates(exposure: &Exposure, now: Instant) -> Option<Rates> {
    let limits = exposure.limits;
    let bits = limits.bits_per_second.map(|rate| {
        let burst = (rate / 10).max(8 * super::PACKET_BYTES_MAX as u64);
        Bucket::new(rate, burst, now)
    });
    let new_flows = limits.new_flows_per_second.map(|rate| Bucket::new(rate.into(), rate.max(1).into(), now));
    (bits.is_some() || new_flows.is_some()).then_some(Rates { bits, new_flows })
}
