//! What the shell wants: settings, offers, packets of the control channel.

use super::figures::Figures;
use super::hub::{IntroducedSites, RelayBuckets, Relayed};
use super::{Event, FlowEnd, Node, OfferError, Output, Peer, Peers, REJECTS_PER_SECOND, Resting};
use super::{Settings, SettingsError, Sweep};
use crate::addr::{Family, Grant, Holder, Leases, Name, PeerId, Pool};
use crate::catalogue::{Callers, Clients, ExposedServices, LeaseChanges, Mapping, Offer, PeerOffer, Presences};
use crate::flow::{Flow, Table};
use crate::hub::Hub;
use crate::policy::{Bucket, Limiter};
use crate::tunnel::{TunnelSettings, Tunnels};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use x25519_dalek::{PublicKey, StaticSecret};

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
            public_key: PublicKey::from(&key).to_bytes(),
            tunnels: Tunnels::new(key, seed, now),
            table: Table::new(settings.flows_max, seed, now),
            leases: kept,
            exposed: ExposedServices::default(),
            presences: Presences::default(),
            callers: Callers::default(),
            peers: Peers::default(),
            offers: BTreeMap::new(),
            clients: Clients::default(),
            limiter: Limiter::new(now),
            version: 0,
            swept: None,
            started: now,
            resumes,
            rejects: Bucket::new(REJECTS_PER_SECOND, REJECTS_PER_SECOND, now),
            pool: None,
            unmapped: BTreeSet::new(),
            map_next: None,
            reclaim_next: BTreeMap::new(),
            drops: super::Drops::default(),
            events: VecDeque::new(),
            events_lost: 0,
            flows_opened: 0,
            flows_closed: 0,
            figures: Figures::default(),
            told: super::Told::default(),
            fragments: crate::flow::fragments::Fragments::default(),
            hub: Hub::new(seed),
            introduced: IntroducedSites::default(),
            relay_buckets: RelayBuckets::default(),
            relayed: Relayed::default(),
            idle: Vec::new(),
            gathered: Vec::new(),
            settings: Settings { peers: Vec::new(), mappings: Vec::new(), ..settings.clone() },
        };
        node.configure(settings, now)?;
        Ok(node)
    }

    /// Replaces what the operator wants. Flows that are still allowed go on. When it fails, nothing changed.
    pub fn configure(&mut self, settings: Settings, now: Instant) -> Result<(), SettingsError> {
        for peer in settings.peers.iter().filter(|peer| self.peers.by_key(&peer.public_key).is_none()) {
            let refused = |error| SettingsError::Tunnel(peer.identity.site.clone(), error);
            self.tunnels.check(&peer.public_key).map_err(refused)?;
        }
        let before = self.offered();
        let kept = self.keep_for(&settings);
        let previous = std::mem::replace(&mut self.settings, settings);
        let outside = match self.apply_addresses(&previous.mappings, now) {
            Ok(outside) => outside,
            Err(error) => {
                self.settings = previous;
                self.put_back(kept, now);
                return Err(error);
            }
        };
        // From here on nothing fails: what goes may end.
        self.forget_callers(&outside, now);
        if previous.hub != self.settings.hub {
            self.relay_buckets = RelayBuckets::default();
        }
        self.apply_peers(previous.second_cipher, now);
        self.apply_limits(now);
        self.apply_introductions(now);
        // Offers may have gone with their peers.
        self.apply_mappings(now);
        self.table.set_capacity(self.settings.flows_max);
        let changed = self.offered().changed_since(&before);
        self.events.extend(changed.into_iter().map(Event::OfferChanged));
        self.judge_flows_again();
        Ok(())
    }

    /// Gives everything that is wanted its address. A mapping that was `known` before is not what is wrong with a change
    /// when it has none, for that may be its peer's doing. Who held what is no longer in the pool.
    pub(super) fn apply_addresses(&mut self, known: &[Mapping], now: Instant) -> Result<Vec<Holder>, SettingsError> {
        let outside = self.apply_leases(now)?;
        let mut sites = self.presences.configure(&self.settings.mappings);
        if self.pool.as_ref() != Some(&self.settings.pool) {
            sites.extend(self.presences.sites());
            sites.extend(self.leases.service_sites().cloned());
            self.pool = Some(self.settings.pool.clone());
        }
        sites.extend(self.presences.sites_refused());
        self.unmapped.append(&mut sites);
        self.apply_mappings(now);
        if let Some((service, address, error)) = self.presences.fixed_refused(known) {
            let (service, error) = (service.clone(), error.clone());
            return Err(SettingsError::Mapping { service, address, error });
        }
        Ok(outside)
    }

    /// The flows of callers whose presence is no longer in the pool end.
    fn forget_callers(&mut self, outside: &[Holder], now: Instant) {
        let numbers: BTreeSet<u32> = outside.iter().filter_map(|holder| self.callers.known(holder)).collect();
        let flows = outside.iter().map(|holder| self.callers.flows(holder) as usize).sum();
        self.end_flows(flows, |flow| numbers.contains(&flow.owner.caller), FlowEnd::Ended, now);
        outside.iter().for_each(|holder| self.callers.remove(holder));
    }

    fn apply_peers(&mut self, known_second_cipher: bool, now: Instant) {
        let second_cipher = self.settings.second_cipher;
        let wanted = std::mem::take(&mut self.settings.peers);
        let keys: BTreeSet<&[u8; 32]> = wanted.iter().map(|peer| &peer.public_key).collect();
        let gone = self.peers.iter().filter(|(_, peer)| !keys.contains(&peer.settings.public_key));
        let gone: BTreeSet<PeerId> = gone.map(|(id, _)| id).collect();
        let flows = gone.iter().filter_map(|peer| self.peer(*peer)).map(|peer| peer.flows as usize).sum();
        self.end_flows(flows, |flow| gone.contains(&flow.peer), FlowEnd::Ended, now);
        gone.into_iter().for_each(|peer| self.remove_peer(peer));
        for settings in &wanted {
            let peer = self.peers.by_key(&settings.public_key).unwrap_or_else(|| self.peers.next());
            let known = self.peer(peer);
            if known.is_some_and(|known| known.settings == *settings) && second_cipher == known_second_cipher {
                continue;
            }
            let (flows, site) = known.map_or((0, None), |known| (known.flows, known.identity().map(|of| &of.site)));
            let moved = site.filter(|site| **site != settings.identity.site || settings.guest.is_some()).cloned();
            let tunnel = TunnelSettings {
                public_key: settings.public_key,
                preshared_key: settings.preshared_key,
                endpoint: settings.endpoint,
                carrier: settings.carrier,
                keepalive_seconds: settings.keepalive_seconds,
                // Its control channel brings its offer, and mappings wait for that.
                held: !settings.stock,
                second_cipher: second_cipher && !settings.stock,
            };
            // Its key was checked before anything was changed.
            let Ok(()) = self.tunnels.add(peer, tunnel, now) else { continue };
            moved.into_iter().for_each(|site| self.forget_offer(peer, site));
            self.peers.put(peer, Peer { settings: settings.clone(), flows });
            self.find_paths(&settings.public_key, now);
        }
        self.settings.peers = wanted;
    }

    /// Takes the peer away at once that has this key, and its permission with it: what vouched for it holds no more.
    pub fn revoke(&mut self, public_key: &[u8; 32], now: Instant) {
        let Some(peer) = self.peers.by_key(public_key) else { return };
        let flows = self.peer(peer).map_or(0, |peer| peer.flows as usize);
        self.end_flows(flows, |flow| flow.peer == peer, FlowEnd::Revoked, now);
        self.remove_peer(peer);
        self.settings.peers.retain(|settings| settings.public_key != *public_key);
        self.apply_mappings(now);
        self.judge_flows_again();
    }

    /// Its flows have ended.
    fn remove_peer(&mut self, peer: PeerId) {
        self.tunnels.remove(peer);
        self.forget_attending(peer);
        if let Some(gone) = self.peers.remove(peer).filter(|gone| gone.settings.guest.is_none()) {
            self.forget_offer(peer, gone.settings.identity.site);
        }
        self.events.push_back(Event::PeerDown(peer));
    }

    fn forget_offer(&mut self, peer: PeerId, site: Name) {
        if self.peers.by_site(&site).is_none_or(|of| of == peer) {
            self.reclaim_next.remove(&Some(site.clone()));
        }
        if self.offers.get(&site).is_some_and(|(of, _)| *of == peer) {
            self.offers.remove(&site);
            self.unmapped.insert(site);
        }
    }

    /// The gateway's own presences, the services' wire indices, and those of named clients. Who held what is no longer
    /// in the pool.
    fn apply_leases(&mut self, now: Instant) -> Result<Vec<Holder>, SettingsError> {
        self.leases.look_again();
        let pool = &self.settings.pool;
        // The pool may have become another: what lies outside it is given up.
        let outside = self.leases.blocks().filter(|(holder, block)| is_outside(holder, block, pool));
        let outside: Vec<Holder> = outside.map(|(holder, _)| holder.clone()).collect();
        for holder in &outside {
            if let Some(grant) = self.leases.release(holder, now) {
                self.events.push_back(Event::Released(grant));
            }
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
        let granted = self.exposed.set(&self.settings.exposures, &mut self.leases, now);
        let granted = granted.map_err(|(service, error)| SettingsError::Exposure { service, error })?;
        self.events.extend(granted.into_iter().map(Event::Granted));
        let gone = |holder: &&Holder| match holder {
            Holder::ServiceIndex { service } => self.exposed.by_name(service).is_none(),
            _ => false,
        };
        let gone: Vec<Holder> = self.leases.blocks().map(|(holder, _)| holder).filter(gone).cloned().collect();
        for holder in gone {
            if let Some(grant) = self.leases.release(&holder, now) {
                self.events.push_back(Event::Released(grant));
            }
        }
        self.clients = Clients::new(&self.settings.clients);
        for (address, _) in self.clients.iter() {
            let holder = Holder::CallerIndex { address };
            let (grant, is_new) = self.leases.grant(&holder, &self.settings.pool, 0, None, now)?;
            if is_new {
                self.events.push_back(Event::Granted(grant));
            }
        }
        Ok(outside)
    }

    /// Joins mappings with offers, of the sites where something changed. Those that got no address are tried again, for
    /// what rests comes back.
    pub(super) fn apply_mappings(&mut self, now: Instant) {
        let sites = std::mem::take(&mut self.unmapped);
        let LeaseChanges { granted, released } =
            self.presences.set(&sites, &self.offers, &self.settings.pool, &mut self.leases, now);
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
        self.use_uplink(packet.len(), 1, now);
        let sealed = self.tunnels.seal(peer, packet, self.settings.inner_mtu, &mut output.transmits, now);
        if let Err(error) = sealed {
            self.drops.count(super::reject::of_seal(error));
        }
    }

    /// What the peer offers to this site now; replaces what it offered before, whole.
    pub fn set_offer(&mut self, peer: PeerId, mut offer: Offer, now: Instant) -> Result<(), OfferError> {
        let Some(identity) = self.peer(peer).ok_or(OfferError::UnknownPeer)?.identity() else { return Ok(()) };
        let site = identity.site.clone();
        offer.services.sort_by(|a, b| a.name.cmp(&b.name));
        offer.callers.sort_by_key(|caller| caller.index);
        offer.hosts.sort_by_key(|host| host.index);
        let offer = PeerOffer::new(offer);
        if self.offers.get(&site).is_some_and(|(_, known)| *known == offer) {
            return Ok(());
        }
        self.offers.insert(site.clone(), (peer, offer));
        self.unmapped.insert(site);
        self.apply_mappings(now);
        self.events.push_back(Event::PresencesChanged);
        self.judge_flows_again();
        Ok(())
    }

    /// A new address for a peer's configured endpoint, as its name resolved.
    pub fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr, now: Instant) {
        self.tunnels.set_endpoint(peer, endpoint);
        if let Some(key) = self.peer(peer).map(|peer| peer.settings.public_key) {
            self.find_paths(&key, now);
        }
    }

    /// What takes no new flows from now on, by service, in place of what took none before.
    pub fn rest(&mut self, resting: BTreeMap<Name, Resting>) {
        if !self.exposed.rests_otherwise(&resting) {
            return;
        }
        let before = self.offered();
        self.exposed.rest(resting);
        let changed = self.offered().changed_since(&before);
        self.events.extend(changed.into_iter().map(Event::OfferChanged));
    }

    /// From now on flows must be told of. While the log they are told to cannot be written, those that are open go on and no
    /// other opens.
    pub fn require_audit(&mut self, failed: bool) {
        self.told = super::Told { required: true, failed, ..self.told };
    }

    /// Whether events about flows may soon find no room on their way.
    pub fn set_events_crowded(&mut self, crowded: bool) {
        self.told.crowded = crowded;
    }

    /// Ends `count` flows, all of which `is_one` knows.
    fn end_flows(&mut self, count: usize, is_one: impl Fn(&Flow) -> bool, end: FlowEnd, now: Instant) {
        let flows: Vec<_> = self.table.iter().filter(|(_, flow)| is_one(flow)).map(|(id, _)| id).take(count).collect();
        flows.into_iter().for_each(|id| self.end_flow(id, end, now));
    }

    /// Before the gateway stops: tells what its flows carried, of `count` at a time. How many those were.
    pub fn stop_flows(&mut self, count: usize, now: Instant) -> usize {
        let flows: Vec<_> = self.table.iter().map(|(id, _)| id).take(count).collect();
        flows.iter().for_each(|id| self.end_flow(*id, FlowEnd::Stopped, now));
        flows.len()
    }

    /// Flows that were allowed may not be any more: each is judged again at its opener's next packet, or in the
    /// background, whichever comes first.
    fn judge_flows_again(&mut self) {
        self.version = self.version.wrapping_add(1);
        let next = self.swept.map_or(0, |sweep| sweep.next);
        self.swept = Some(Sweep { next, left: self.table.end() });
    }
}

fn is_outside(holder: &Holder, block: &IpNet, pool: &Pool) -> bool {
    match holder {
        Holder::Gateway { .. } | Holder::ServicePresence { .. } | Holder::CallerPresence { .. } => !pool.allows(block),
        Holder::ServiceIndex { .. } | Holder::CallerIndex { .. } => false,
    }
}
