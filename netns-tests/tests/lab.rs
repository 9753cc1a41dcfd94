//! The lab itself: what stories rely on.
//!
//! ```text
//!   plc .2 --+                                                        +-- web .5
//!            +-- factory gateway -- NAT or router -- internet -- cloud gateway
//! ```

use anyhow::{Result, ensure};
use netns_tests::hostile::Hostile;
use netns_tests::server::Content;
use netns_tests::{
    Access, Capture, Families, Family, Filtering, Internet, Key, Lab, Mapping, Plan, Process, Shim, Site, TcpServer,
    UdpEcho, Weather, capture, craft, story, wait_for, wait_until,
};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn sites(lab: &Lab, access: Access) -> Result<(Internet, Site, Site)> {
    let plan = Plan::named("same", Families::Both)?;
    let internet = Internet::new(lab)?;
    let cloud = Site::new(lab, "cloud", &plan.cloud_lan, &internet, Access::Direct)?;
    let factory = Site::new(lab, "factory", &plan.factory_lan, &internet, access)?;
    Ok((internet, cloud, factory))
}

#[test]
fn hosts_reach_their_gateway_and_gateways_the_internet() {
    story(|lab| {
        let (_internet, cloud, factory) = sites(lab, Access::HOME_NAT)?;
        let plc = factory.host(lab, "plc", 2)?;
        plc.namespace.sh("ping -c1 -W5 10.0.0.1")?;
        plc.namespace.sh("ping -c1 -W5 fd00:0:0:1::1")?;
        factory.gateway.sh(&format!("ping -c1 -W5 {}", cloud.uplink.v4))?;
        factory.gateway.sh(&format!("ping -c1 -W5 {}", cloud.uplink.v6))?;
        Ok(())
    });
}

#[test]
fn a_router_in_the_middle_can_have_a_small_mtu() {
    story(|lab| {
        let (internet, cloud, factory) = sites(lab, Access::Router)?;
        factory.limit_mtu(&internet, 1280)?;
        let full = format!("ping -M do -s 1472 -c1 -W5 {}", factory.uplink.v4);
        let said = cloud.gateway.sh(&full).err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains("Frag needed"), "{said}");
        cloud.gateway.sh(&format!("ping -M do -s 1252 -c1 -W5 {}", factory.uplink.v4))?;
        Ok(())
    });
}

/// From inside: which public ports two destinations see; from outside: who gets through to it.
fn probe_nat(mapping: Mapping, filtering: Filtering) -> Result<()> {
    let lab = Lab::new()?;
    let (internet, cloud, factory) = sites(&lab, Access::Nat(mapping, filtering))?;
    let bind = |site: &Site, address: SocketAddr| -> Result<UdpSocket> {
        let socket = site.gateway.run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(Duration::from_millis(10)))?;
        Ok(socket)
    };
    for family in [Family::V4, Family::V6] {
        let any: SocketAddr = if family == Family::V4 { "0.0.0.0:4000".parse()? } else { "[::]:4000".parse()? };
        let inside = bind(&factory, any)?;
        let called = bind(&cloud, (cloud.uplink.address(family), 1000).into())?;
        let same_host = bind(&cloud, (cloud.uplink.address(family), 1001).into())?;
        let stranger = internet.namespace.run(|| UdpSocket::bind((any.ip(), 1000)))??;

        let mut buffer = [0; 16];
        inside.send_to(b"hello", called.local_addr()?)?;
        let (_, mapped) = wait_for("the datagram to arrive", || Ok(Some(called.recv_from(&mut buffer)?)))?;
        ensure!(mapped.ip() == factory.uplink.address(family));
        inside.send_to(b"hello", same_host.local_addr()?)?;
        let (_, mapped_again) = wait_for("the second datagram", || Ok(Some(same_host.recv_from(&mut buffer)?)))?;
        ensure!((mapped == mapped_again) == (mapping == Mapping::EndpointIndependent), "{mapped} {mapped_again}");

        // A third port of a called host, and a host that was never called; then the called one as the last.
        let third = bind(&cloud, (cloud.uplink.address(family), 1002).into())?;
        third.send_to(b"third", mapped)?;
        stranger.send_to(b"stranger", mapped)?;
        called.send_to(b"called", mapped)?;
        let mut got = Vec::new();
        wait_for("the answer", || {
            let (bytes, _) = inside.recv_from(&mut buffer)?;
            got.push(String::from_utf8_lossy(&buffer[..bytes]).into_owned());
            Ok(got.contains(&"called".to_owned()).then_some(()))
        })?;
        let expected: &[&str] = match filtering {
            Filtering::EndpointIndependent => &["third", "stranger", "called"],
            Filtering::AddressDependent => &["third", "called"],
            Filtering::AddressAndPortDependent => &["called"],
        };
        ensure!(got == expected, "{family:?}: {got:?} in place of {expected:?}");
    }
    let dropped = factory.access.as_ref().map(|nat| nat.unsolicited()).transpose()?;
    let per_family = match filtering {
        Filtering::EndpointIndependent => 0,
        Filtering::AddressDependent => 1,
        Filtering::AddressAndPortDependent => 2,
    };
    ensure!(dropped == Some(2 * per_family), "{dropped:?} dropped");
    Ok(())
}

#[test]
fn nats_map_and_filter_as_their_kind_does() -> Result<()> {
    probe_nat(Mapping::EndpointIndependent, Filtering::EndpointIndependent)?;
    probe_nat(Mapping::EndpointIndependent, Filtering::AddressDependent)?;
    probe_nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)?;
    probe_nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
}

#[test]
fn loss_comes_and_goes() {
    story(|lab| {
        let (internet, cloud, factory) = sites(lab, Access::Router)?;
        internet.lose(&factory.uplink, 1000)?;
        ensure!(cloud.gateway.sh(&format!("ping -c1 -W1 {}", factory.uplink.v4)).is_err());
        internet.calm()?;
        cloud.gateway.sh(&format!("ping -c1 -W5 {}", factory.uplink.v4))?;
        Ok(())
    });
}

#[test]
fn nothing_of_a_dropped_lab_is_left() -> Result<()> {
    let lab = Lab::new()?;
    let directory = lab.directory().to_owned();
    let machine = lab.namespace("machine")?;
    let name = machine.name().to_owned();
    let _sleeper = Process::start_line(&lab, &machine, "sleep 1000")?;
    drop(lab);
    ensure!(!directory.exists() && !Path::new("/run/netns").join(name).exists());
    Ok(())
}

#[test]
fn servers_serve_and_captures_see_every_byte() {
    story(|lab| {
        let (_internet, cloud, _factory) = sites(lab, Access::HOME_NAT)?;
        let (web, other) = (cloud.host(lab, "web", 5)?, cloud.host(lab, "other", 6)?);
        let http = TcpServer::http(&web.namespace, (web.address(Family::V4)?, 80), "a page")?;
        let captures = [Capture::start(lab, &web.namespace, "eth0")?, Capture::start(lab, &other.namespace, "eth0")?];
        let page = other.namespace.http(http.address, "/")?;
        ensure!(page == format!("a page\ncalled by {}\n", other.address(Family::V4)?).as_bytes());
        let many = other.namespace.http(http.address, "/bytes/3000000")?;
        ensure!(many == Content::new("a page").take(3_000_000));
        ensure!(http.callers.count() == 2 && http.callers.addresses() == [other.address(Family::V4)?]);
        for capture in captures {
            let packets = capture.stop()?;
            ensure!(capture::contains(&packets, b"called by") && capture::contains(&packets, &many[2_999_990..]));
        }
        Ok(())
    });
}

#[test]
fn weather_delays_loses_doubles_and_reorders() {
    story(|lab| {
        let (internet, cloud, factory) = sites(lab, Access::HOME_NAT)?;
        let echo = UdpEcho::start(&cloud.gateway, (cloud.uplink.v4, 7))?;
        let at = SocketAddr::new("203.0.113.1".parse()?, 1000);
        let shim = Shim::start(&internet.namespace, at, echo.address, Weather::default())?;
        let caller = factory.gateway.udp(shim.address)?;
        let mut buffer = [0; 4];
        let mut echoes = |count: u32| -> Result<Vec<u32>> {
            (0..count).try_for_each(|n| caller.send(&n.to_be_bytes()).map(drop))?;
            caller.set_read_timeout(Some(Duration::from_millis(500)))?;
            let mut got = Vec::new();
            while caller.recv(&mut buffer).is_ok() {
                got.push(u32::from_be_bytes(buffer));
            }
            Ok(got)
        };
        ensure!(echoes(100)? == (0..100).collect::<Vec<_>>());
        shim.set(Weather { lost: 100, doubled: 100, jitter: Duration::from_millis(50), ..Weather::default() });
        let got = echoes(1000)?;
        ensure!(got.len() > 800 && got.len() < 1200 && !got.is_sorted(), "{} echoes", got.len());
        Ok(())
    });
}

#[test]
fn a_scan_finds_every_open_port_and_no_other() {
    story(|lab| {
        let (_internet, cloud, _factory) = sites(lab, Access::HOME_NAT)?;
        let (web, other) = (cloud.host(lab, "web", 5)?, cloud.host(lab, "other", 6)?);
        for family in [Family::V4, Family::V6] {
            let address = web.address(family)?;
            let ports = [1_u16, 80, 8080, 65535];
            let servers = ports.map(|port| TcpServer::echo(&web.namespace, (address, port)));
            let servers: Vec<TcpServer> = servers.into_iter().collect::<Result<_>>()?;
            ensure!(other.namespace.scan(address, 1..=65535)? == ports);
            drop(servers);
            ensure!(other.namespace.scan(address, ports)?.is_empty());
        }
        Ok(())
    });
}

#[test]
fn a_hostile_peer_speaks_wireguard_and_sends_what_it_likes() {
    story(|lab| {
        let (internet, cloud, _factory) = sites(lab, Access::HOME_NAT)?;
        let (agent, peer) = (Key::new()?, Key::new()?);
        let interface = format!("wg{}", std::process::id());
        let _wireguard = Process::start_line(lab, &cloud.gateway, &format!("wireguard-go -f {interface}"))?;
        let file = lab.directory().join("key");
        agent.write(&file)?;
        let set = format!(
            "wg set {interface} listen-port 51820 private-key {} peer {} allowed-ips 198.19.0.0/16",
            file.display(),
            peer.public()
        );
        wait_for("wireguard-go", || cloud.gateway.sh(&set).map(Some))?;
        cloud.gateway.ip(&format!("addr add 198.18.0.2/15 dev {interface}\nlink set {interface} up"))?;

        let machine = lab.namespace("mallory")?;
        internet.connect(&machine)?;
        let endpoint = SocketAddr::from((cloud.uplink.v4, 51820));
        let mut mallory = Hostile::connect(&machine, &peer, &agent.public(), endpoint)?;
        let (caller, service) = ([198, 19, 0, 7].into(), [198, 18, 0, 2].into());
        mallory.send(&craft::icmp(caller, service, (8, 0), 0x0001_0001, b"hello"))?;
        let answer = mallory.receive("the answer", |packet| packet[20] == 0)?;
        ensure!(answer.ends_with(b"hello"));
        // To a port where nothing listens: both right enough to be answered.
        mallory.send(&craft::udp((caller, 9), (service, 9), b"hello"))?;
        mallory.receive("port unreachable", |packet| packet[20..22] == [3, 3])?;
        mallory.send(&craft::tcp((caller, 9), (service, 9), craft::SYN, b""))?;
        mallory.receive("a reset", |packet| packet[9] == craft::TCP && packet[33] & 4 != 0)?;
        Ok(())
    });
}

#[test]
fn what_a_killed_run_left_behind_goes_when_the_next_lab_starts() -> Result<()> {
    // As after kill -9: a lock file that nobody holds, a namespace with a process in it, files.
    let id = format!("killed{}", std::process::id());
    let name = format!("vp-{id}-machine");
    let (lock, files) = (format!("/run/vp-lab/{id}.lock"), std::env::temp_dir().join(format!("vp-lab-{id}")));
    let _lab = Lab::new()?;
    fs::create_dir_all(&files)?;
    let made = Command::new("ip").args(["netns", "add", &name]).status()?;
    let mut sleeper = Command::new("ip").args(["netns", "exec", &name, "sleep", "1000"]).spawn()?;
    // A sweep ends what is in the namespace; what is only on its way there would live on.
    wait_until("the process to be in the namespace", || {
        Ok(!Command::new("ip").args(["netns", "pids", &name]).output()?.stdout.is_empty())
    })?;
    fs::write(&lock, "")?;
    let _next = Lab::new()?;
    ensure!(made.success() && !sleeper.wait()?.success());
    ensure!(!Path::new("/run/netns").join(name).exists() && !files.exists() && !Path::new(&lock).exists());
    Ok(())
}
