//! The gateway as a whole: what the file and vp-ctl want, applied to the node and to the host. Lives on the control
//! thread; the data threads are reached by their handle alone.

mod carriers;
mod desired;
mod identity;
mod joining;
mod names;
mod records;
mod registered;
mod resolve;
mod running;
mod settings;
mod tasks;

pub use desired::Desired;
pub use running::Running;

use crate::audit::{Audit, Entry};
use crate::carrier::{CarrierSettings, Listener};
use crate::clock::unix_seconds;
use crate::config::{self, Config, ConfigError, FieldError, HostNetworks};
use crate::control::Control;
use crate::dataplane::{self, DataPlane, Handle, Queue};
use crate::dns::Dns;
use crate::health::Health;
use crate::identity::{Identities, Kept, PeerName};
use crate::joining::{Issuing, Renewal, Seeking, Told};
use crate::link::AgentLink;
use crate::netlink::{self, Network};
use crate::nft;
use crate::registry::Registry;
use crate::state::{Drained, Endpoints, FileJournal, Port, Runtime, StateDir};
use crate::sys::{Tun, TunOffload, Udp};
use anyhow::{Context, Result};
use carriers::Carriers;
use settings::{effective, keep_fixed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Mutex, Notify};
use vp::addr::Name;
use vp::node::{Node, ServicePattern, Settings, SettingsError};
use vp_proto::api::AuditRecord;
use x25519_dalek::{PublicKey, StaticSecret};

/// Where the chain of audit records stands, in `state_dir`.
const AUDIT_HEAD: &str = "audit.head";

/// Everything that the control thread shares.
pub struct Agent {
    /// This site.
    pub site: Name,
    pub handle: Handle,
    pub control: Control<AgentLink>,
    pub identities: Arc<Identities>,
    /// A hub's.
    pub registry: Option<Arc<Registry>>,
    pub health: Health,
    pub started: Instant,
    pub offload: TunOffload,
    pub listen: SocketAddr,
    /// Of the UDP socket: receive and send.
    pub buffer_bytes: (usize, usize),
    pub public_key: [u8; 32],
    pub wanted: Mutex<Desired>,
    pub audit: Audit,
    carriers: Mutex<Carriers>,
    /// A hub's, over TLS.
    _listener: Option<Listener>,
    pub dns: Dns,
    state: Arc<StateDir>,
    pub issuing: Arc<Issuing>,
    /// While this site has not joined yet.
    pub seeking: Option<Arc<Seeking>>,
    /// Of a site that joined.
    pub renewal: Option<Arc<Renewal>>,
    told: Arc<Told>,
    /// Held while hubs are told.
    registering: Mutex<()>,
    learnt: std::sync::Mutex<Learnt>,
    /// For the loop: peers may have other names than before.
    peers_changed: AtomicBool,
    presences_changed: Notify,
    endpoints_changed: Notify,
    endpoint_learnt: Notify,
    /// Held while it is written.
    endpoints_file: std::sync::Mutex<()>,
    /// The same.
    identity_file: std::sync::Mutex<()>,
    /// Held while peers are taken away that a review found to have ended, and until a reload is taken or refused. Nobody
    /// who holds it waits for `wanted`.
    reviewing: Mutex<()>,
    reviewed: Notify,
}

/// Where peers were seen last.
struct Learnt {
    endpoints: Endpoints,
    unsaved: bool,
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
        let state = Arc::new(StateDir::open(&config.state_dir)?);
        if !config.key.exists() {
            config::create_key(&config.key).with_context(|| format!("key file {}", config.key.display()))?;
            tracing::info!("made a new key: {}", config.key.display());
        }
        let own_key = StaticSecret::from(*config::read_key(&config.key).map_err(anyhow::Error::msg)?);
        let (journal, syncer, leases, torn) = FileJournal::open(&state)?;
        torn.iter().for_each(|warning| tracing::warn!("{warning}"));
        let told = Arc::new(Told::default());
        let endpoints = Endpoints::load(&state)?;
        let site = config.settings.site.clone();
        let audit = Audit::open(config.audit.clone(), site.as_str(), &state.file(AUDIT_HEAD)).await;
        let audit = audit.map_err(anyhow::Error::msg)?;
        let seeking = match Seeking::load(&config, &own_key, &state, &told) {
            Ok(seeking) => seeking.map(Arc::new),
            Err(error) => {
                audit.write([Entry::Record(AuditRecord {
                    event: "join-refused".to_owned(),
                    site: site.to_string(),
                    reason: error.reason().map(ToOwned::to_owned),
                    detail: Some(error.to_string()),
                    ..AuditRecord::default()
                })]);
                audit.stop().await;
                return Err(error.into());
            }
        };
        let (config, runtime, key) = match &seeking {
            Some(seeking) => (seeking.instead(config), Runtime::default(), seeking.key()),
            None => (config, Runtime::load(&state)?, own_key),
        };
        let public_key = PublicKey::from(&key).to_bytes();
        let by_key = &config.settings.peers;
        let kept = Kept::load(&state)?;
        let identities = Arc::new(Identities::new(site.clone(), public_key, &config.credentials, by_key, kept));
        let registry = match config.settings.hub {
            Some(_) => Some(Arc::new(Registry::open(&state, config.hub_store.as_ref(), identities.clone()).await?)),
            None => None,
        };
        registry.iter().flat_map(|registry| registry.damage()).for_each(|damage| tracing::warn!("{damage}"));
        let issuing = Issuing::new(site.clone(), key.clone(), state.clone(), identities.clone(), told.clone())?;
        let issuing = Arc::new(issuing);
        issuing.configure(config.issuer.clone());
        let renewal = if seeking.is_some() { None } else { Renewal::load(site.clone(), &state, told.clone())? };
        let mut peers = identities.peers(by_key, unix_seconds());
        peers.extend(issuing.guests());
        let (settings, clashes) = effective(&config, &runtime, &endpoints, peers);
        clashes.iter().for_each(|clash| tracing::warn!("{clash}"));
        let seed = rand_core::RngCore::next_u64(&mut rand_core::OsRng);
        let node = Node::new(settings, leases, key, seed, Instant::now());
        let node = node.map_err(|error| placed(error.into(), &config))?;
        let interface = &config.interface;
        let workers = config.workers.count();
        let tuns = Tun::open_queues(interface, workers)?;
        let offload = tuns[0].offload();
        if offload != TunOffload::TcpAndUdp {
            tracing::warn!("interface {interface}: offload {}, which costs speed", offload.word());
        }
        let udps = bind(config.listen, workers, &state)?;
        let udp = &udps[0];
        udp.refusals().iter().for_each(|refusal| tracing::warn!("{refusal}"));
        let (listen, buffer_bytes) = (udp.local_address()?, udp.buffer_bytes()?);
        let queues = tuns.into_iter().zip(udps).map(|(tun, udp)| Queue { tun, udp }).collect();
        let network = Network::open(interface).await?;
        let (handle, events, data) = dataplane::start(DataPlane { node, queues, journal: Box::new(journal) })?;
        let link = AgentLink {
            handle: handle.clone(),
            identities: identities.clone(),
            issuing: issuing.clone(),
            seeking: seeking.clone(),
            issuer: renewal.as_ref().map(|renewal| renewal.issuer.clone()),
            registry: registry.clone(),
        };
        let (control, notices) = Control::start(link, seed.rotate_left(32));
        let nft = Some(nft::Firewall::new(interface));
        let listener = match &config.hub_tls {
            Some(settings) => Some(Listener::start(settings, listen).await?),
            None => None,
        };
        let carriers = config.carriers.clone();
        let wanted =
            Desired { config, runtime, network: Some(network), nft, listen_port: listen.port(), warnings: clashes };
        let agent = Arc::new(Self {
            site,
            dns: Dns::new(handle.clone()),
            handle,
            control,
            identities,
            registry,
            health: Health::default(),
            started: Instant::now(),
            offload,
            listen,
            buffer_bytes,
            public_key,
            wanted: Mutex::new(wanted),
            audit,
            carriers: Mutex::default(),
            _listener: listener,
            state,
            issuing,
            seeking,
            renewal: renewal.map(Arc::new),
            told,
            registering: Mutex::new(()),
            learnt: std::sync::Mutex::new(Learnt { endpoints, unsaved: false }),
            peers_changed: AtomicBool::new(false),
            presences_changed: Notify::new(),
            endpoints_changed: Notify::new(),
            endpoint_learnt: Notify::new(),
            endpoints_file: std::sync::Mutex::new(()),
            identity_file: std::sync::Mutex::new(()),
            reviewing: Mutex::new(()),
            reviewed: Notify::new(),
        });
        let running = Running::new(agent, events, notices, syncer, data);
        let drained = running.agent.wanted.lock().await.runtime.drained.clone();
        if !carriers.is_empty() {
            let settings = running.agent.handle.call(|node, _, _| node.settings().clone()).await?;
            running.agent.configure(settings, &carriers, &drained).await?;
        }
        running.agent.rest().await;
        let applied = running.agent.wanted.lock().await.apply_to_host(&running.agent.handle).await;
        if let Err(error) = applied {
            running.stop().await;
            return Err(error.into());
        }
        running.agent.tell("started", format!("version {}", env!("CARGO_PKG_VERSION")));
        Ok(running)
    }

    /// Reads the file again. On any error everything stays as it was.
    pub async fn reload(&self) -> Result<Vec<String>, Refused> {
        self.check_joined()?;
        let mut wanted = self.wanted.lock().await;
        let mut host = host_networks().await?;
        // The file may name another one already.
        host.interfaces.retain(|(interface, _)| *interface != wanted.config.interface);
        let file = wanted.config.file.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&file, &host)).await;
        let mut config = loaded.context("reading the configuration")??;
        let mut warnings = std::mem::take(&mut config.warnings);
        warnings.extend(keep_fixed(&wanted.config, &mut config)?);
        let (before, _) = self.effective(&wanted.config, &wanted.runtime);
        let reviewing = self.reviewing.lock().await;
        let identities_before = self.identities.configure(&config.credentials, &config.settings.peers);
        let (settings, clashes) = self.effective(&config, &wanted.runtime);
        warnings.extend(clashes);
        if let Err(error) = self.configure(settings, &config.carriers, &wanted.runtime.drained).await {
            self.identities.put_back(identities_before);
            return Err(placed(error, &config));
        }
        drop(reviewing);
        warnings.extend(self.still_registered(&wanted.config, &config));
        let old = std::mem::replace(&mut wanted.config, config);
        if let Err(error) = wanted.apply_to_host(&self.handle).await {
            wanted.config = old;
            self.identities.put_back(identities_before);
            self.put_back(&mut wanted, before).await;
            return Err(error);
        }
        let socket = wanted.config.socket.clone();
        self.issuing.configure(wanted.config.issuer.clone());
        drop(wanted);
        self.registry.iter().for_each(|registry| registry.read_again());
        self.endpoints_changed.notify_one();
        self.dns.changed.notify_one();
        warnings.extend(crate::api::give_to_group(&socket).err().map(|error| format!("{error:#}")));
        warnings.extend(self.audit.reopen().await.err());
        self.tell("configuration", "the file was read again".to_owned());
        Ok(warnings)
    }

    /// Makes what vp-ctl asked for true, and keeps it only then. It is judged by the settings that are in force.
    pub async fn change(
        &self,
        what: String,
        change: impl FnOnce(&mut Runtime, &Config, &Settings) -> Result<(), Refused>,
    ) -> Result<Vec<String>, Refused> {
        self.check_joined()?;
        let mut wanted = self.wanted.lock().await;
        let mut runtime = wanted.runtime.clone();
        let (before, _) = self.effective(&wanted.config, &wanted.runtime);
        change(&mut runtime, &wanted.config, &before)?;
        let (settings, clashes) = self.effective(&wanted.config, &runtime);
        self.configure(settings, &wanted.config.carriers, &runtime.drained).await?;
        if let Err(error) = runtime.save(&self.state) {
            self.configure(before, &wanted.config.carriers, &wanted.runtime.drained).await?;
            return Err(error.into());
        }
        let old = std::mem::replace(&mut wanted.runtime, runtime);
        if let Err(error) = wanted.apply_to_host(&self.handle).await {
            wanted.runtime = old;
            self.put_back(&mut wanted, before).await;
            wanted.runtime.save(&self.state)?;
            return Err(error);
        }
        drop(wanted);
        self.tell("configuration", what);
        Ok(clashes)
    }

    /// Tells the node what takes no new flows now.
    pub async fn rest(&self) {
        let wanted = self.wanted.lock().await;
        let drained = wanted.runtime.drained.clone();
        let Ok(exposures) = self.handle.call(|node, _, _| node.settings().exposures.clone()).await else { return };
        let resting = self.health.resting(&drained, &exposures);
        // A data thread that is gone takes the whole agent with it.
        self.handle.call(move |node, _, _| node.rest(resting)).await.ok();
    }

    /// What was in force before a change that the host did not take.
    async fn put_back(&self, wanted: &mut Desired, before: Settings) {
        if let Err(error) = self.configure(before, &wanted.config.carriers, &wanted.runtime.drained).await {
            tracing::error!("what was in force before cannot be put back: {error}");
        }
        if let Err(error) = wanted.apply_to_host(&self.handle).await {
            tracing::warn!("the host is not as it should be: {error}");
        }
    }

    fn effective(&self, config: &Config, runtime: &Runtime) -> (Settings, Vec<String>) {
        let mut peers = self.identities.peers(&config.settings.peers, unix_seconds());
        peers.extend(self.issuing.guests());
        effective(config, runtime, &self.learnt().endpoints, peers)
    }

    /// With what takes no new flows at once: nothing that is drained is open in between.
    async fn configure(
        &self,
        mut settings: Settings,
        wanted: &[(Name, CarrierSettings)],
        drained: &[Drained],
    ) -> Result<(), Refused> {
        let mut carriers = self.carriers.lock().await;
        self.start_carriers(&mut carriers, wanted, &mut settings).await?;
        // Something may have ended since these were put together.
        self.identities.keep_in_force(&mut settings.peers, unix_seconds());
        let resting = self.health.resting(drained, &settings.exposures);
        let configured = self.handle.call(move |node, _, now| {
            node.configure(settings, now)?;
            node.rest(resting);
            Ok::<_, SettingsError>(())
        });
        let configured = configured.await?;
        self.peers_changed.store(true, Ordering::Relaxed);
        self.control.attendance_changed();
        configured?;
        carriers.retain(|site, _| wanted.iter().any(|(known, _)| known == site));
        Ok(())
    }

    /// A record of what happened to the gateway itself.
    fn tell(&self, event: &str, detail: String) {
        let site = self.site.to_string();
        let record = AuditRecord { event: event.to_owned(), site, detail: Some(detail), ..AuditRecord::default() };
        self.audit.write([Entry::Record(record)]);
    }

    fn learn_endpoint(&self, peer: &PeerName, to: SocketAddr) {
        let mut learnt = self.learnt();
        learnt.endpoints.0.insert(peer.to_string(), to);
        learnt.unsaved = true;
        self.endpoint_learnt.notify_one();
    }

    fn learnt(&self) -> MutexGuard<'_, Learnt> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the file says; if it does not, where the last run was, for what other gateways and NATs know of this one, or anywhere.
fn bind(listen: Option<SocketAddr>, workers: usize, state: &StateDir) -> Result<Vec<Udp>> {
    let group = |listen| Udp::bind_group(listen, workers, vp::tunnel::PEER_BYTE);
    if let Some(listen) = listen {
        return group(Some(listen)).with_context(|| format!("cannot listen on {listen}"));
    }
    let last = Port::load(state)?;
    let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let again = last.0.into_iter().flat_map(|port| any.map(|any| SocketAddr::new(any, port)));
    let bound = again.map(|listen| group(Some(listen))).find_map(std::io::Result::ok);
    let udps = bound.map_or_else(|| group(None), Ok).context("cannot open a UDP socket")?;
    let port = Port(Some(udps[0].local_address()?.port()));
    if port != last {
        port.save(state)?;
    }
    Ok(udps)
}

/// With the place of what the node found wrong, where the file says it.
fn placed(error: Refused, config: &Config) -> Refused {
    let place = match &error {
        Refused::Settings(SettingsError::Exposure { service, .. }) => config.exposed_at(service),
        Refused::Settings(SettingsError::Mapping { service, .. }) => {
            config.mapped_at(&ServicePattern::One(service.clone()))
        }
        _ => None,
    };
    match place {
        Some(place) => Refused::Request(format!("{place}: {error}")),
        None => error,
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
