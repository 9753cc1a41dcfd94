//! The gateway as a whole: what the file and vp-ctl want, applied to the node and to the host. Lives on the control
//! thread; the data thread is reached by its handle alone.

use crate::audit::Audit;
use crate::config::{self, Config, ConfigError, FieldError, HostNetworks, Reach, one_line};
use crate::control::{Control, Notice};
use crate::dataplane::{self, DataPlane, Handle};
use crate::netlink::{self, Network};
use crate::nft;
use crate::state::{Endpoints, FileJournal, Runtime, StateDir, Syncer};
use crate::sys::{Tun, TunOffload, Udp};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use vp::addr::{Limits, Name, PeerId};
use vp::node::{Denial, Event, FlowEnd, FlowRecord, Mapping, Node, Settings, SettingsError, ends};
use vp_proto::api::AuditRecord;
use x25519_dalek::{PublicKey, StaticSecret};

/// How often names of peers that are away are resolved again.
const RESOLVE_PAUSE: Duration = Duration::from_secs(30);
/// How often the lease journal goes to the disk, and what was learnt of peers' endpoints.
const SYNC_PAUSE: Duration = Duration::from_secs(1);

/// Everything that the control thread shares.
pub struct Agent {
    pub handle: Handle,
    pub control: Control<Handle>,
    pub started: Instant,
    pub offload: TunOffload,
    pub listen: SocketAddr,
    /// Of the UDP socket: receive and send.
    pub buffer_bytes: (usize, usize),
    pub public_key: [u8; 32],
    pub wanted: Mutex<Desired>,
    pub audit: Mutex<Audit>,
    /// Names of peers, so that not every flow's record asks the data thread; forgotten when peers may change.
    sites: Mutex<BTreeMap<PeerId, Name>>,
}

/// What is wanted, and where it is kept.
pub struct Desired {
    pub config: Config,
    pub runtime: Runtime,
    state: StateDir,
    endpoints: Endpoints,
    endpoints_unsaved: bool,
    network: Option<Network>,
    nft: Option<nft::Firewall>,
    listen_port: u16,
    /// What is not as it should be with the host, from when it was last brought in line.
    pub warnings: Vec<String>,
}

/// What ends with the process.
pub struct Running {
    pub agent: Arc<Agent>,
    events: mpsc::Receiver<Event>,
    notices: mpsc::Receiver<Notice>,
    syncer: Syncer,
    data: JoinHandle<()>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Field(#[from] FieldError),
    #[error("{0}")]
    Settings(#[from] SettingsError),
    #[error("{0}")]
    State(#[from] crate::state::StateError),
    #[error("{0}")]
    Gone(#[from] dataplane::Gone),
    #[error("{0:#}")]
    Host(#[from] anyhow::Error),
    #[error("{0}")]
    Request(String),
}

impl Agent {
    pub async fn start(file: &Path) -> Result<Running> {
        let host = host_networks().await?;
        let config = Config::load(file, &host)?;
        config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let state = StateDir::open(&config.state_dir)?;
        if !config.key.exists() {
            config::create_key(&config.key).with_context(|| format!("key file {}", config.key.display()))?;
            tracing::info!("made a new key: {}", config.key.display());
        }
        let key = StaticSecret::from(*config::read_key(&config.key).map_err(anyhow::Error::msg)?);
        let (journal, syncer, leases, torn) = FileJournal::open(&state)?;
        torn.iter().for_each(|warning| tracing::warn!("{warning}"));
        let runtime = Runtime::load(&state)?;
        let endpoints = Endpoints::load(&state)?;
        let (settings, clashes) = effective(&config, &runtime, &endpoints);
        clashes.iter().for_each(|clash| tracing::warn!("{clash}"));
        let seed = rand_core::RngCore::next_u64(&mut rand_core::OsRng);
        let public_key = PublicKey::from(&key).to_bytes();
        let node = Node::new(settings, leases, key, seed, Instant::now())?;
        let interface = &config.interface;
        let tun = Tun::open(interface)?;
        let offload = tun.offload();
        if offload != TunOffload::TcpAndUdp {
            tracing::warn!("interface {interface}: offload {}, which costs speed", offload.word());
        }
        let udp = Udp::bind(config.listen).with_context(|| match config.listen {
            Some(listen) => format!("cannot listen on {listen}"),
            None => "cannot open a UDP socket".to_owned(),
        })?;
        udp.refusals().iter().for_each(|refusal| tracing::warn!("{refusal}"));
        let (listen, buffer_bytes) = (udp.local_address()?, udp.buffer_bytes()?);
        let network = Network::open(interface).await?;
        let (handle, events, data) = dataplane::start(DataPlane { node, tun, udp, journal: Box::new(journal) })?;
        let (control, notices) = Control::start(handle.clone(), seed.rotate_left(32));
        let nft = Some(nft::Firewall::new(interface));
        let audit = Audit::open(config.audit.as_deref());
        let wanted = Desired {
            config,
            runtime,
            state,
            endpoints,
            endpoints_unsaved: false,
            network: Some(network),
            nft,
            listen_port: listen.port(),
            warnings: clashes,
        };
        let agent = Arc::new(Self {
            handle,
            control,
            started: Instant::now(),
            offload,
            listen,
            buffer_bytes,
            public_key,
            wanted: Mutex::new(wanted),
            audit: Mutex::new(audit),
            sites: Mutex::default(),
        });
        let running = Running { agent, events, notices, syncer, data };
        let applied = running.agent.wanted.lock().await.apply_to_host(&running.agent.handle).await;
        if let Err(error) = applied {
            running.stop().await;
            return Err(error.into());
        }
        running.agent.tell("started", format!("version {}", env!("CARGO_PKG_VERSION"))).await;
        Ok(running)
    }

    /// Reads the file again. On any error everything stays as it was.
    pub async fn reload(&self) -> Result<Vec<String>, Refused> {
        let mut wanted = self.wanted.lock().await;
        let mut config = Config::load(&wanted.config.file, &host_networks().await?)?;
        let mut warnings = std::mem::take(&mut config.warnings);
        warnings.extend(fixed_changes(&wanted.config, &config)?);
        let (settings, clashes) = effective(&config, &wanted.runtime, &wanted.endpoints);
        warnings.extend(clashes);
        self.configure(settings).await?;
        wanted.config = config;
        wanted.apply_to_host(&self.handle).await?;
        drop(wanted);
        self.audit.lock().await.reopen();
        self.tell("configuration", "the file was read again".to_owned()).await;
        Ok(warnings)
    }

    /// Makes what vp-ctl asked for true, and keeps it only then. It is judged by the settings that are in force.
    pub async fn change(
        &self,
        what: String,
        change: impl FnOnce(&mut Runtime, &Config, &Settings) -> Result<(), Refused>,
    ) -> Result<Vec<String>, Refused> {
        let mut wanted = self.wanted.lock().await;
        let mut runtime = wanted.runtime.clone();
        let (before, _) = effective(&wanted.config, &wanted.runtime, &wanted.endpoints);
        change(&mut runtime, &wanted.config, &before)?;
        let (settings, clashes) = effective(&wanted.config, &runtime, &wanted.endpoints);
        self.configure(settings).await?;
        if let Err(error) = runtime.save(&wanted.state) {
            self.configure(before).await?;
            return Err(error.into());
        }
        wanted.runtime = runtime;
        wanted.apply_to_host(&self.handle).await?;
        drop(wanted);
        self.tell("configuration", what).await;
        Ok(clashes)
    }

    async fn configure(&self, settings: Settings) -> Result<(), Refused> {
        self.sites.lock().await.clear();
        Ok(self.handle.call(move |node, _, now| node.configure(settings, now)).await??)
    }

    /// Peers whose endpoint is a name, and that are away: what the name says now.
    async fn resolve(&self) {
        let endpoints = self.wanted.lock().await.config.endpoints.clone();
        for (site, endpoint) in endpoints {
            let of = site.clone();
            let away = self.handle.call(move |node, _, now| {
                let peer = node.peer_by_site(&of)?;
                let up = node.peers(now).iter().any(|(id, status)| *id == peer && status.state == "up");
                (!up).then_some(peer)
            });
            let Ok(Some(peer)) = away.await else { continue };
            match tokio::net::lookup_host(&endpoint).await.map(|mut addresses| addresses.next()) {
                Ok(Some(address)) => {
                    self.handle.call(move |node, _, _| node.set_endpoint(peer, address)).await.ok();
                }
                Ok(None) => tracing::warn!("peer {site}: endpoint {endpoint} has no address"),
                Err(error) => tracing::warn!("peer {site}: endpoint {endpoint}: {error}"),
            }
        }
    }

    /// What another program took away: `nft flush ruleset` is what restarting many a firewall begins with.
    async fn restore(&self) {
        let mut wanted = self.wanted.lock().await;
        let Some(nft) = &mut wanted.nft else { return };
        match nft.restore().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("another program had removed the gateway's nftables table; it is there again"),
            Err(error) => tracing::warn!("nftables: {error:#}"),
        }
    }

    /// A record of what happened to the gateway itself.
    async fn tell(&self, event: &str, detail: String) {
        let site = self.site().await.to_string();
        let record = AuditRecord { event: event.to_owned(), site, detail: Some(detail), ..AuditRecord::default() };
        self.audit.lock().await.write(record);
    }

    async fn tell_peer(&self, event: &str, peer: &Name) {
        let (site, peer) = (self.site().await.to_string(), Some(peer.to_string()));
        let record = AuditRecord { event: event.to_owned(), site, peer, ..AuditRecord::default() };
        self.audit.lock().await.write(record);
    }

    /// A record of a flow or a denial, with the names that the numbers stand for.
    async fn tell_flow(&self, event: Event) {
        let site = self.site().await.to_string();
        let peer = match &event {
            Event::FlowOpened(flow) | Event::FlowClosed { flow, .. } => Some(flow.peer),
            Event::Denied(denial) => denial.peer,
            _ => return,
        };
        let peer = match peer {
            Some(peer) => self.site_of(peer).await.map(|site| site.to_string()),
            None => None,
        };
        let mut audit = self.audit.lock().await;
        match event {
            Event::FlowOpened(flow) => audit.write(flow_record("flow-opened", site, peer, &flow, None)),
            Event::FlowClosed { flow, end } => audit.write(flow_record("flow-closed", site, peer, &flow, Some(end))),
            Event::Denied(denial) => audit.deny(denial_record(site, peer, &denial)),
            _ => {}
        }
    }

    /// This site's name.
    pub async fn site(&self) -> Name {
        self.wanted.lock().await.config.settings.site.clone()
    }

    async fn site_of(&self, peer: PeerId) -> Option<Name> {
        let mut sites = self.sites.lock().await;
        if let Some(site) = sites.get(&peer) {
            return Some(site.clone());
        }
        let site = self.handle.call(move |node, _, _| node.peer_site(peer).cloned()).await.ok().flatten()?;
        sites.insert(peer, site.clone());
        Some(site)
    }
}

impl Desired {
    /// Brings routes, neighbour entries and masquerading to what the node has now.
    async fn apply_to_host(&mut self, handle: &Handle) -> Result<(), Refused> {
        let (gateway, presences, settings) = handle
            .call(|node, _, _| (node.gateway_addresses(), node.presence_blocks(), node.settings().clone()))
            .await?;
        let proxy = match &self.config.reach {
            Reach::Routed => None,
            Reach::ProxyArp(interface) => Some(interface.clone()),
        };
        let pool = settings.pool.prefixes().to_vec();
        let network = netlink::Wanted { mtu: settings.inner_mtu, pool, gateway, proxy, presences };
        self.warnings.clear();
        if let Some(own) = &mut self.network {
            self.warnings.extend(own.apply(&network).await?);
        }
        if let Some(nft) = &mut self.nft {
            let own_ports = self.config.metrics.iter().map(SocketAddr::port).chain([self.listen_port]).collect();
            nft.apply(nft::Wanted { pool: network.pool, services: settings.exposures, own_ports }).await?;
        }
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(())
    }

    async fn presences_changed(&mut self, handle: &Handle) -> Result<(), Refused> {
        let presences = handle.call(|node, _, _| node.presence_blocks()).await?;
        if let Some(network) = &mut self.network {
            self.warnings.extend(network.set_presences(&presences).await?);
        }
        Ok(())
    }

    /// Whether the file says so, or vp-ctl did.
    #[must_use]
    pub fn origin_of_exposure(&self, name: &str) -> &'static str {
        let in_file = self.config.settings.exposures.iter().any(|exposure| exposure.name.as_str() == name);
        if in_file { "file" } else { "runtime" }
    }

    #[must_use]
    pub fn origin_of_presence(&self, service: &str) -> &'static str {
        let matches = |mapping: &Mapping| service.parse().is_ok_and(|name| mapping.service.matches(&name));
        if self.config.settings.mappings.iter().any(matches) { "file" } else { "runtime" }
    }
}

impl Running {
    /// Carries events until told to stop. An error when there is nothing to carry any more.
    pub async fn run(&mut self, mut stop: impl Future<Output = ()> + Unpin) -> Result<(), dataplane::Gone> {
        let mut resolve = tokio::time::interval(RESOLVE_PAUSE);
        let mut sync = tokio::time::interval(SYNC_PAUSE);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                event = self.events.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => return Err(dataplane::Gone),
                },
                Some(notice) = self.notices.recv() => self.notice(notice).await,
                _ = resolve.tick() => {
                    self.agent.resolve().await;
                    self.agent.restore().await;
                }
                _ = sync.tick() => self.sync().await,
            }
        }
    }

    async fn take(&mut self, event: Event) {
        self.agent.control.handle_event(&event);
        match event {
            Event::Granted(_) | Event::Released(_) | Event::PresencesChanged => {
                let changed = self.agent.wanted.lock().await.presences_changed(&self.agent.handle).await;
                changed.unwrap_or_else(|error| tracing::warn!("presences: {error}"));
            }
            Event::PeerUp(peer) => {
                if let Some(site) = self.agent.site_of(peer).await {
                    tracing::info!("peer {site} is up");
                    self.agent.tell_peer("peer-up", &site).await;
                }
            }
            Event::PeerDown(peer) => {
                if let Some(site) = self.agent.site_of(peer).await {
                    tracing::info!("peer {site} is down");
                    self.agent.tell_peer("peer-down", &site).await;
                }
            }
            Event::PeerMoved { peer, to } => {
                if let Some(site) = self.agent.site_of(peer).await {
                    tracing::info!("peer {site} is at {to}");
                    let mut wanted = self.agent.wanted.lock().await;
                    wanted.endpoints.0.insert(site.to_string(), to);
                    wanted.endpoints_unsaved = true;
                }
            }
            Event::Control { .. } | Event::OfferChanged(_) => {}
            event @ (Event::FlowOpened(_) | Event::FlowClosed { .. } | Event::Denied(_)) => {
                self.agent.tell_flow(event).await;
            }
        }
    }

    async fn notice(&mut self, notice: Notice) {
        if let Notice::OfferRefused { peer, reason } = &notice {
            let site = self.agent.site_of(*peer).await.map(|site| site.to_string()).unwrap_or_default();
            tracing::warn!("peer {site}: its offer was refused: {reason}");
            self.agent.tell("offer-refused", format!("{site}: {reason}")).await;
        }
    }

    async fn sync(&self) {
        self.agent.audit.lock().await.tick();
        if let Err(error) = self.syncer.sync() {
            tracing::warn!("the lease journal does not reach the disk: {error}");
        }
        let mut wanted = self.agent.wanted.lock().await;
        if wanted.endpoints_unsaved {
            match wanted.endpoints.save(&wanted.state) {
                Ok(()) => wanted.endpoints_unsaved = false,
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    /// The host as it was before.
    pub async fn stop(self) {
        let mut wanted = self.agent.wanted.lock().await;
        if let Some(network) = wanted.network.take() {
            network.remove().await.unwrap_or_else(|error| tracing::warn!("routes: {error:#}"));
        }
        if let Some(nft) = wanted.nft.take() {
            nft.remove().await.unwrap_or_else(|error| tracing::warn!("nftables: {error:#}"));
        }
        self.agent.handle.stop();
        self.data.join().ok();
        self.syncer.sync().ok();
    }
}

/// The host's own networks, for the configuration's checks.
pub async fn host_networks() -> Result<HostNetworks> {
    let host = netlink::HostNetworks::read().await?;
    let networks = host.addresses.into_iter().filter_map(|own| {
        let prefix = own.network.prefix_len();
        Some((own.interface, ipnet::IpNet::new(own.address, prefix).ok()?))
    });
    Ok(HostNetworks { interfaces: networks.collect() })
}

/// The file's settings with those of vp-ctl. Where both speak of one thing the file is right, and what the file leaves
/// no room for any more is left out; both are said.
fn effective(config: &Config, runtime: &Runtime, endpoints: &Endpoints) -> (Settings, Vec<String>) {
    let mut settings = config.settings.clone();
    let mut clashes = Vec::new();
    for request in &runtime.expose {
        match config::exposure(request, Limits::default(), &settings) {
            Ok(exposure) if settings.exposures.iter().any(|known| known.name == exposure.name) => {
                clashes.push(format!("service {}: the file's entry stands, not that of vp-ctl expose", exposure.name));
            }
            Ok(exposure) => settings.exposures.push(exposure),
            Err(error) => {
                clashes.push(format!("service {} of vp-ctl expose is left out: {error}", one_line(&request.name)));
            }
        }
    }
    for request in &runtime.map {
        match config::mapping(request, &settings) {
            Ok(mapping) if settings.mappings.iter().any(|known| known.service == mapping.service) => {
                clashes
                    .push(format!("mapping of {}: the file's entry stands, not that of vp-ctl map", mapping.service));
            }
            Ok(mapping) => settings.mappings.push(mapping),
            Err(error) => {
                clashes.push(format!("mapping of {} of vp-ctl map is left out: {error}", one_line(&request.service)));
            }
        }
    }
    for peer in &mut settings.peers {
        let site = peer.identity.site.as_str();
        let configured = config.endpoints.iter().any(|(of, _)| of.as_str() == site);
        if peer.endpoint.is_none() && !configured {
            peer.endpoint = endpoints.0.get(site).copied();
        }
    }
    (settings, clashes)
}

/// What cannot change while the agent runs.
fn fixed_changes(old: &Config, new: &Config) -> Result<Vec<String>, ConfigError> {
    let fixed = [
        ("site", old.settings.site != new.settings.site),
        ("key", old.key != new.key),
        ("state_dir", old.state_dir != new.state_dir),
    ];
    if let Some((what, _)) = fixed.iter().find(|(_, changed)| *changed) {
        let message = format!("{what} cannot change while the agent runs, expected what it was, or a restart");
        return Err(ConfigError { file: Some(new.file.clone()), at: None, message });
    }
    let at_restart = [
        ("listen", old.listen != new.listen),
        ("interface", old.interface != new.interface),
        ("socket", old.socket != new.socket),
        ("metrics", old.metrics != new.metrics),
        ("audit", old.audit != new.audit),
    ];
    let changed = at_restart.iter().filter(|(_, changed)| *changed);
    Ok(changed.map(|(what, _)| format!("{what} changes at the next restart")).collect())
}

fn flow_record(
    event: &str,
    site: String,
    peer: Option<String>,
    flow: &FlowRecord,
    end: Option<FlowEnd>,
) -> AuditRecord {
    let counted = |count: u64| end.map(|_| count);
    AuditRecord {
        event: event.to_owned(),
        site,
        peer,
        client: flow.client.as_ref().map(ToString::to_string),
        service: flow.service.as_ref().map(ToString::to_string),
        protocol: vp::addr::Protocol::from_number(flow.site.protocol).map(|protocol| protocol.to_string()),
        site_view: Some(ends(&flow.site)),
        wire_view: Some(ends(&flow.wire)),
        reason: end.map(|end| end.word().to_owned()),
        rule: Some(flow.rule.clone()),
        outbound_bytes: counted(flow.outbound_bytes),
        inbound_bytes: counted(flow.inbound_bytes),
        outbound_packets: counted(flow.outbound_packets),
        inbound_packets: counted(flow.inbound_packets),
        duration_ms: end.map(|_| u64::try_from(flow.age.as_millis()).unwrap_or(u64::MAX)),
        ..AuditRecord::default()
    }
}

/// A denied packet has one view only: that of the door it came in by.
fn denial_record(site: String, peer: Option<String>, denial: &Denial) -> AuditRecord {
    let view = Some(ends(&denial.tuple));
    let (site_view, wire_view) = match denial.opener {
        vp::node::Opener::Site => (view, None),
        vp::node::Opener::Peer => (None, view),
    };
    AuditRecord {
        event: "denied".to_owned(),
        site,
        peer,
        client: denial.client.as_ref().map(ToString::to_string),
        service: denial.service.as_ref().map(ToString::to_string),
        protocol: vp::addr::Protocol::from_number(denial.tuple.protocol).map(|protocol| protocol.to_string()),
        site_view,
        wire_view,
        reason: Some(denial.reason.word().to_owned()),
        ..AuditRecord::default()
    }
}
