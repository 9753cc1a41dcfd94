//! The gateway as a whole: what the file and vp-ctl want, applied to the node and to the host. Lives on the control
//! thread; the data thread is reached by its handle alone.

mod desired;
mod records;
mod running;
mod settings;

pub use desired::Desired;
pub use running::Running;

use crate::audit::Audit;
use crate::config::{self, Config, ConfigError, FieldError, HostNetworks};
use crate::control::Control;
use crate::dataplane::{self, DataPlane, Handle};
use crate::netlink::{self, Network};
use crate::nft;
use crate::state::{Endpoints, FileJournal, Runtime, StateDir};
use crate::sys::{Tun, TunOffload, Udp};
use anyhow::{Context, Result};
use records::{denial_record, flow_record};
use settings::{effective, fixed_changes};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Mutex;
use vp::addr::{Name, PeerId};
use vp::node::{Event, Node, Settings, SettingsError};
use vp_proto::api::AuditRecord;
use x25519_dalek::{PublicKey, StaticSecret};

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

/// The host's own networks, for the configuration's checks.
pub async fn host_networks() -> Result<HostNetworks> {
    let host = netlink::HostNetworks::read().await?;
    let networks = host.addresses.into_iter().filter_map(|own| {
        let prefix = own.network.prefix_len();
        Some((own.interface, ipnet::IpNet::new(own.address, prefix).ok()?))
    });
    Ok(HostNetworks { interfaces: networks.collect() })
}
