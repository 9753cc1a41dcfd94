//! A path of 9000 bytes with `mtu: 8920` at both ends: segments of that size go through whole.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- router -- internet -- cloud gateway -- web .5      all links 9000
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::Content;
use netns_tests::world::{expose, map};
use netns_tests::{Access, Capture, Family, Lab, Plan, Setup, TcpServer, UdpEcho, World, for_each_plan};

const LINK_MTU: u16 = 9000;
const INNER_MTU: usize = 8920;
const BYTES: usize = 5_000_000;

for_each_plan!(large_segments_pass_whole);

fn large_segments_pass_whole(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let mtu = format!("mtu: {INNER_MTU}\n");
    let cloud = mtu.clone() + &expose("web", "{web}", "tcp/80, udp/7", "any", "presence");
    let setup = Setup { cloud, factory: mtu + &map("web.cloud"), access: Access::Router, ..Setup::new(plan) };
    let world = World::new(lab, &setup)?;
    let factory = &world.factories[0];
    for station in [&world.cloud, factory] {
        station.site.set_mtu(&world.internet, &[&station.host], LINK_MTU)?;
    }
    let (web, address) = (&world.cloud.host.namespace, world.cloud.address(family)?);
    let _http = TcpServer::http(web, (address, 80), "web of cloud")?;
    let _echo = UdpEcho::start(web, (address, 7))?;
    let presence = factory.agent.presence("web.cloud")?;
    let plc = &factory.host.namespace;
    // Datagrams as they are on the wire, not as super-packets.
    world.cloud.site.gateway.sh("ethtool -K wan0 tso off gso off tx-udp-segmentation off")?;
    let wire = Capture::start(lab, &factory.site.gateway, "wan0")?;

    let got = plc.http((presence, 80), &format!("/bytes/{BYTES}"))?;
    ensure!(got == Content::new("web of cloud").take(BYTES), "the download differs");

    let headers = if family == Family::V4 { 28 } else { 48 };
    let socket = plc.udp((presence, 7))?;
    let mut buffer = vec![0; 65_535];
    for size in [1400, 1473, 8000, INNER_MTU - headers] {
        let datagram = Content::new(&format!("{size}")).take(size);
        socket.send(&datagram)?;
        let bytes = socket.recv(&mut buffer).with_context(|| format!("{size} bytes by UDP"))?;
        ensure!(buffer[..bytes] == datagram, "{size} bytes by UDP differ");
    }

    let received: Vec<_> = wire.stop()?.into_iter().filter(|packet| !packet.sent).collect();
    let largest = received.iter().map(|packet| packet.bytes.len()).max().context("no packets")?;
    ensure!((INNER_MTU + 60..=usize::from(LINK_MTU)).contains(&largest), "the largest has {largest} bytes");
    let full = received.iter().filter(|packet| packet.bytes.len() == largest).count();
    ensure!(full >= BYTES / INNER_MTU / 2, "{full} packets of {largest} bytes");
    // More fragments follow, or this is not the first.
    let is_fragment = |bytes: &[u8]| bytes[0] >> 4 == 4 && u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff != 0;
    ensure!(!received.iter().any(|packet| is_fragment(&packet.bytes)), "fragments are on the wire");
    Ok(())
}
