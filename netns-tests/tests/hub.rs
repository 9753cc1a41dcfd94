//! Two sites behind NATs that only a hub brings together: it introduces them, they find a direct path where there is one, and it
//! relays what it cannot read where there is none.
//!
//! ```text
//!                               hub
//!                                |
//!   plc .2 -- factory -- NAT -- internet -- NAT -- cloud -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::authority::Authority;
use netns_tests::{
    Access, Capture, Download, Families, Family, Filtering, HubSetup, HubWorld, Internet, Lab, Mapping, Plan, Process,
    TLS_PORT, TcpServer, capture, for_each_plan, path, story, wait_until,
};
use std::net::IpAddr;
use std::time::Duration;

const OPEN: Access = Access::Nat(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
const RESTRICTED: Access = Access::Nat(Mapping::EndpointIndependent, Filtering::AddressDependent);
const HOME: Access = Access::HOME_NAT;
const SYMMETRIC: Access = Access::SYMMETRIC_NAT;
const PUBLIC: Access = Access::Direct;

const PROXY_PORT: u16 = 3128;
/// Datagrams that must have tried a direct path where there is none.
const TRIES: u64 = 5;
/// How long an open download may stand still when a NAT forgets, and when UDP is blocked.
const GAP: Duration = Duration::from_secs(3);
const TLS_WITHIN: Duration = Duration::from_secs(5);
/// More than the buffers of both hosts hold.
const DOWNLOAD_BYTES: usize = 24 << 20;

/// A story for each pair of NATs.
macro_rules! pairs {
    ($($name:ident: $cloud:ident, $factory:ident, $path:literal;)+) => {
        $(#[test]
        fn $name() {
            story(|lab| meet(lab, $cloud, $factory, $path));
        })+
    };
}

// A NAT with a mapping for each destination cannot be called first (RFC 4787 section 4.1), and one that lets in only whom it called
// does not let in the port that such a one calls from (section 5).
pairs! {
    public_meets_public: PUBLIC, PUBLIC, "direct";
    public_meets_open: PUBLIC, OPEN, "direct";
    public_meets_restricted: PUBLIC, RESTRICTED, "direct";
    public_meets_home: PUBLIC, HOME, "direct";
    public_meets_symmetric: PUBLIC, SYMMETRIC, "direct";
    open_meets_open: OPEN, OPEN, "direct";
    open_meets_restricted: OPEN, RESTRICTED, "direct";
    open_meets_home: OPEN, HOME, "direct";
    open_meets_symmetric: OPEN, SYMMETRIC, "direct";
    restricted_meets_restricted: RESTRICTED, RESTRICTED, "direct";
    restricted_meets_home: RESTRICTED, HOME, "direct";
    restricted_meets_symmetric: RESTRICTED, SYMMETRIC, "direct";
    home_meets_home: HOME, HOME, "direct";
    home_meets_symmetric: HOME, SYMMETRIC, "relayed";
    symmetric_meets_symmetric: SYMMETRIC, SYMMETRIC, "relayed";
}

fn meet(lab: &Lab, cloud: Access, factory: Access, path: &str) -> Result<()> {
    let world = HubWorld::new(lab, &Plan::named("same", Families::V4)?, cloud, factory)?;
    let _web = serve(&world)?;
    let plc = &world.factory.host.namespace;
    let presence = world.factory.agent.presence("web.cloud")?;
    let page = plc.curl(presence, "/")?;
    ensure!(page.starts_with("web of cloud\n"), "{page}");
    if path == "relayed" {
        // Both have tried, and their NATs let none of it in.
        for (station, other) in world.ends() {
            let access = station.site.access.as_ref().context("no NAT")?;
            let tried = || Ok(access.unsolicited()? >= TRIES);
            wait_until(&format!("{other} to try {} straight", station.site.name), tried)?;
        }
    }
    world.wait_path(path)?;
    let page = plc.curl(presence, "/")?;
    ensure!(page.starts_with("web of cloud\n"), "{page}");
    Ok(())
}

for_each_plan!(a_hub_sees_neither_payload_nor_inner_addresses, v4);

fn a_hub_sees_neither_payload_nor_inner_addresses(lab: &Lab, plan: &Plan) -> Result<()> {
    let world = HubWorld::new(lab, plan, SYMMETRIC, SYMMETRIC)?;
    let _web = serve(&world)?;
    world.wait_path("relayed")?;
    let presence = world.factory.agent.presence("web.cloud")?;
    let seen = Capture::start(lab, &world.hub_site.gateway, "wan0")?;
    let page = world.factory.host.namespace.curl(presence, "/")?;
    ensure!(page.starts_with("web of cloud\n"), "{page}");
    let relayed = world.hub.figure("vp_relayed_datagrams_total")?;
    let seen = seen.stop()?;
    ensure!(relayed > 10 && seen.len() > 10, "{relayed} datagrams, {} packets", seen.len());
    ensure!(!capture::contains(&seen, b"web of cloud"), "the hub saw the payload");
    for host in [&world.factory.host, &world.cloud.host] {
        for address in &host.addresses {
            let IpAddr::V4(address) = address else { continue };
            ensure!(!capture::contains(&seen, &address.octets()), "the hub saw {address}");
        }
    }
    Ok(())
}

#[test]
fn a_download_goes_on_when_a_nat_forgets_everything_and_when_the_hub_is_gone() {
    story(|lab| {
        let mut world = HubWorld::new(lab, &Plan::named("same", Families::V4)?, HOME, HOME)?;
        let _web = serve(&world)?;
        world.wait_path("direct")?;
        let presence = world.factory.agent.presence("web.cloud")?;
        let mut download = Download::start(&world.factory.host.namespace, presence, "web of cloud", DOWNLOAD_BYTES)?;
        download.read(DOWNLOAD_BYTES / 4)?;
        download.patience(GAP)?;
        for station in [&world.factory, &world.cloud] {
            station.site.access.as_ref().context("no NAT")?.forget()?;
        }
        download.read(DOWNLOAD_BYTES / 4)?;
        world.wait_path("direct")?;
        world.hub.kill()?;
        download.finish()?;
        world.hub.start_again(lab)?;
        world.wait_path("direct")
    });
}

/// The factory's own path to the hub, where UDP does not pass.
#[derive(Clone, Copy)]
enum Tls {
    Straight,
    /// Through a plain TCP forwarder: nginx `stream`.
    Forwarder,
    /// Through a proxy that knows CONNECT: tinyproxy.
    Proxy,
}

#[test]
fn where_udp_does_not_pass_all_goes_over_tls() {
    story(|lab| without_udp(lab, Tls::Straight));
}

#[test]
fn tls_passes_a_tcp_forwarder() {
    story(|lab| without_udp(lab, Tls::Forwarder));
}

#[test]
fn tls_passes_a_connect_proxy() {
    story(|lab| without_udp(lab, Tls::Proxy));
}

fn without_udp(lab: &Lab, tls: Tls) -> Result<()> {
    let internet = Internet::new(lab)?;
    let between = lab.namespace("between")?;
    let at = internet.connect(&between)?.v4;
    let entry = match tls {
        Tls::Straight => format!("tls: \"{{hub}}:{TLS_PORT}\""),
        Tls::Forwarder => format!("tls: \"{at}:{TLS_PORT}\""),
        Tls::Proxy => format!("tls: \"{{hub}}:{TLS_PORT}\"\nproxy: \"{at}:{PROXY_PORT}\""),
    };
    // The hub is the next to be connected to this internet.
    let hub = internet.next_v4();
    let _helper = match tls {
        Tls::Straight => None,
        Tls::Forwarder => {
            let file = lab.directory().join("nginx.conf");
            let directory = lab.directory().display();
            let modules = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";
            std::fs::write(
                &file,
                format!(
                    "{modules}\ndaemon off;\npid {directory}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
                     stream {{ server {{ listen {TLS_PORT}; proxy_pass {hub}:{TLS_PORT}; }} }}\n"
                ),
            )?;
            Some(Process::start_line(lab, &between, &format!("nginx -c {}", file.display()))?)
        }
        Tls::Proxy => {
            let file = lab.directory().join("tinyproxy.conf");
            std::fs::write(&file, format!("Port {PROXY_PORT}\nListen {at}\nTimeout 600\nConnectPort {TLS_PORT}\n"))?;
            Some(Process::start_line(lab, &between, &format!("tinyproxy -d -c {}", file.display()))?)
        }
    };
    let setup = HubSetup { cloud: HOME, factory: HOME, entry, is_blocked: true, authority: None };
    let world = HubWorld::build(lab, &Plan::named("same", Families::V4)?, &internet, &setup)?;
    let _web = serve(&world)?;
    ensure!(path(&world.factory.agent, "hub")? == "tls" && path(&world.factory.agent, "cloud")? == "tls");
    let presence = world.factory.agent.presence("web.cloud")?;
    let page = world.factory.host.namespace.curl(presence, "/")?;
    ensure!(page.starts_with("web of cloud\n"), "{page}");
    Ok(())
}

#[test]
fn a_download_goes_on_over_tls_when_udp_is_blocked_and_back_when_it_opens() {
    story(|lab| {
        let entry = format!("tls: \"{{hub}}:{TLS_PORT}\"");
        let setup = HubSetup { cloud: HOME, factory: HOME, entry, is_blocked: false, authority: None };
        let world = HubWorld::build(lab, &Plan::named("same", Families::V4)?, &Internet::new(lab)?, &setup)?;
        let _web = serve(&world)?;
        world.wait_path("direct")?;
        let nat = world.factory.site.access.as_ref().context("no NAT")?;
        let presence = world.factory.agent.presence("web.cloud")?;
        let mut download = Download::start(&world.factory.host.namespace, presence, "web of cloud", DOWNLOAD_BYTES)?;
        download.read(DOWNLOAD_BYTES / 8)?;
        download.patience(TLS_WITHIN)?;
        nat.block_udp()?;
        download.read(DOWNLOAD_BYTES / 4)?;
        wait_until("the factory to reach the cloud over TLS", || Ok(path(&world.factory.agent, "cloud")? == "tls"))?;
        nat.unblock_udp()?;
        download.finish()?;
        wait_until("the factory to call for the cloud straight", || {
            world.factory.host.namespace.curl(presence, "/")?;
            Ok(path(&world.factory.agent, "cloud")? == "direct" && path(&world.factory.agent, "hub")? == "direct")
        })
    });
}

#[test]
fn sites_that_know_only_a_hub_and_an_authority_find_each_other_until_one_is_revoked() {
    story(|lab| {
        let (entry, authority) = (String::new(), Some(Authority::new(lab, "acme", "acme")?));
        let setup = HubSetup { cloud: HOME, factory: HOME, entry, is_blocked: false, authority };
        let mut world = HubWorld::build(lab, &Plan::named("same", Families::V4)?, &Internet::new(lab)?, &setup)?;
        let _web = serve(&world)?;
        let presence = world.factory.agent.presence("web.cloud")?;
        let page = world.factory.host.namespace.curl(presence, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");
        world.wait_path("direct")?;

        // Away from the hub, and after a restart, all is as it was.
        world.hub.kill()?;
        world.factory.agent.kill()?;
        world.factory.agent.start_again(lab)?;
        ensure!(world.factory.agent.presence("web.cloud")? == presence);
        wait_until("the page without the hub", || {
            Ok(world.factory.host.namespace.curl(presence, "/")?.starts_with("web of cloud\n"))
        })?;
        world.hub.start_again(lab)?;

        let authority = setup.authority.as_ref().context("no authority")?;
        let list = authority.revoke(&lab.directory().join("factory.certificate"))?;
        world.hub.ctl(&format!("revocations add {}", list.display()))?;
        for agent in [&world.hub, &world.cloud.agent] {
            wait_until("the tunnels of the factory to end", || {
                let status = agent.status()?;
                let peers = status["peers"].as_array().context("no peers")?;
                Ok(!peers.iter().any(|peer| peer["site"] == "factory" && peer["state"] == "up"))
            })?;
        }
        Ok(())
    });
}

fn serve(world: &HubWorld) -> Result<TcpServer> {
    TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(Family::V4)?, 80), "web of cloud")
}
