//! systemd-resolved, where it runs on this host: told by D-Bus that names of the zone, and those of the pool's addresses,
//! are asked of this gateway, and no others. Its settings for a link are gone with the link, or when they are reverted.

use std::net::IpAddr;
use std::time::Duration;
use tokio::time::timeout;
use zbus::names::BusName;
use zbus::{Connection, fdo, proxy};

/// For one call; resolved answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(5);
const SERVICE: &str = "org.freedesktop.resolve1";

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Manager {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, servers: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, link: i32, domains: &[(String, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, link: i32, is_default: bool) -> zbus::Result<()>;
    fn revert_link(&self, link: i32) -> zbus::Result<()>;
}

/// What it is to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Split {
    /// The tunnels' interface, by its number.
    pub link: i32,
    pub servers: Vec<IpAddr>,
    /// Without their final dots.
    pub zones: Vec<String>,
}

#[derive(Default)]
pub struct Resolved {
    connection: Option<Connection>,
    /// And which process was told: a later one knows nothing of it.
    told: Option<(Split, String)>,
}

impl Resolved {
    /// Tells it once. Ok too where there is no bus or nobody of that name.
    pub async fn tell(&mut self, wanted: Option<&Split>) -> Result<(), String> {
        let told = timeout(PATIENCE, self.bring_to(wanted)).await;
        let told = told.map_err(|_| "it does not answer".to_owned()).and_then(|told| told.map_err(|e| e.to_string()));
        if told.is_err() {
            self.connection = None;
        }
        told
    }

    async fn bring_to(&mut self, wanted: Option<&Split>) -> zbus::Result<()> {
        if wanted.is_none() && self.told.is_none() {
            return Ok(());
        }
        let Some(connection) = self.connection().await else { return Ok(()) };
        let bus = fdo::DBusProxy::new(&connection).await?;
        // Asking for its owner does not start it.
        let Ok(owner) = bus.get_name_owner(BusName::try_from(SERVICE)?).await else {
            self.told = None;
            return Ok(());
        };
        let owner = owner.to_string();
        let manager = ManagerProxy::new(&connection).await?;
        match (wanted, &self.told) {
            (Some(wanted), Some((known, by))) if known == wanted && *by == owner => {}
            (Some(wanted), _) => {
                let servers: Vec<_> = wanted.servers.iter().map(|server| octets(*server)).collect();
                let domains: Vec<_> = wanted.zones.iter().map(|zone| (zone.clone(), true)).collect();
                manager.set_link_dns(wanted.link, &servers).await?;
                manager.set_link_domains(wanted.link, &domains).await?;
                manager.set_link_default_route(wanted.link, false).await?;
                tracing::info!("systemd-resolved asks this gateway for names of {}", wanted.zones.join(", "));
                self.told = Some((wanted.clone(), owner));
            }
            (None, Some((known, _))) => {
                manager.revert_link(known.link).await?;
                self.told = None;
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Of the system's bus, if there is one.
    async fn connection(&mut self) -> Option<Connection> {
        if self.connection.is_none() {
            self.connection = Connection::system().await.ok();
        }
        self.connection.clone()
    }
}

/// With the number of its family.
fn octets(address: IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    }
}
