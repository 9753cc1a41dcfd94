//! A link that loses nothing: nothing is lost or reordered on the way through two gateways, and of a stream that is faster
//! than they are no more than what is counted as dropped.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- router -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::Content;
use netns_tests::world::{expose, map};
use netns_tests::{Access, Families, Lab, Namespace, Plan, Process, Setup, UdpEcho, World, story, wait_for};
use serde_json::Value;
use std::net::IpAddr;

const DATAGRAMS: u32 = 60_000;
/// Sent before the first has come back: what is under way at a time.
const WINDOW: u32 = 64;
/// The largest that passes the tunnel whole: 1420 less 20 and 8.
const PAYLOAD_BYTES_MAX: u32 = 1392;
const SECONDS: u32 = 4;
/// The kernel counts what it drops by super-packets, of up to 64 KB.
const SEGMENTS_MAX: u64 = 48;

fn world(lab: &Lab) -> Result<(World, IpAddr)> {
    let plan = Plan::named("same", Families::V4)?;
    let cloud = expose("work", "{web}", "tcp/5201, udp/7", "any", "presence");
    let setup = Setup { cloud, factory: map("work.cloud"), access: Access::Router, ..Setup::new(&plan) };
    let world = World::new(lab, &setup)?;
    let presence = world.factories[0].agent.presence("work.cloud")?;
    Ok((world, presence))
}

#[test]
fn datagrams_of_a_flow_come_and_return_in_their_order_and_all_of_them() {
    story(|lab| {
        let (world, presence) = world(lab)?;
        let web = &world.cloud.host;
        let _echo = UdpEcho::start(&web.namespace, (web.addresses[0], 7))?;
        let socket = world.factories[0].host.namespace.udp((presence, 7))?;
        let filler = Content::new("order").take(PAYLOAD_BYTES_MAX as usize);
        let (mut sent, mut buffer) = (0, vec![0; 2048]);
        // An answer that does not come ends the wait with an error.
        for expected in 0_u32..DATAGRAMS {
            while sent < DATAGRAMS && sent < expected + WINDOW {
                let bytes = 4 + sent.wrapping_mul(2_654_435_761) % (PAYLOAD_BYTES_MAX - 3);
                let mut datagram = filler[..bytes as usize].to_vec();
                datagram[..4].copy_from_slice(&sent.to_be_bytes());
                socket.send(&datagram)?;
                sent += 1;
            }
            let bytes = socket.recv(&mut buffer).with_context(|| format!("number {expected} was lost"))?;
            let got = u32::from_be_bytes(*buffer[..bytes].first_chunk().context("a number")?);
            ensure!(got == expected, "number {got} came in place of {expected}");
        }
        for agent in [&world.cloud.agent, &world.factories[0].agent] {
            let status = agent.status()?;
            let dropped = status["drops"].as_object().context("drops")?.iter().filter(|(_, count)| **count != 0);
            let dropped: Vec<_> = dropped.collect();
            ensure!(dropped.is_empty(), "{}: {dropped:?}", agent.config.site);
            for way in ["receive", "transmit"] {
                // A few more of them are the agents' own.
                let (packets, sent) = (agent.figure(&format!("vp_peer_{way}_packets_total"))?, u64::from(DATAGRAMS));
                ensure!((sent..sent + 500).contains(&packets), "{packets} packets: {way}");
            }
            ensure!(agent.figure("vp_congestion_drops_total")? == 0, "{}: a queue stood", agent.config.site);
        }
        Ok(())
    });
}

#[test]
fn of_a_stream_below_the_gateways_rate_nothing_is_lost() {
    story(|lab| {
        let (world, presence) = world(lab)?;
        let _server = Process::start_line(lab, &world.cloud.host.namespace, "iperf3 -s")?;
        for is_download in [false, true] {
            let before = dropped(&world)?;
            let (bytes, lost) = stream(&world, presence, "-b 50M", is_download)?;
            let dropped = dropped(&world)? - before;
            ensure!(bytes > 10_000_000, "{bytes} bytes");
            ensure!(lost == 0, "{lost} segments were sent again, {dropped} were dropped");
        }
        Ok(())
    });
}

#[test]
fn of_a_stream_faster_than_the_gateway_no_more_is_lost_than_was_dropped() {
    story(|lab| {
        let (world, presence) = world(lab)?;
        let _server = Process::start_line(lab, &world.cloud.host.namespace, "iperf3 -s")?;
        for is_download in [false, true] {
            let before = dropped(&world)?;
            let (bytes, lost) = stream(&world, presence, "", is_download)?;
            let dropped = dropped(&world)? - before;
            ensure!(bytes > 10_000_000, "{bytes} bytes");
            ensure!(lost <= dropped, "{lost} segments were sent again, {dropped} were dropped");
        }
        Ok(())
    });
}

/// Bytes that arrived, and the segments that the sender's kernel sent again. Not those that the receiver reported as
/// duplicates (RFC 2883): TCP probes with its last segment when an acknowledgement is late (RFC 8985 section 7).
fn stream(world: &World, presence: IpAddr, options: &str, is_download: bool) -> Result<(u64, u64)> {
    let (web, plc) = (&world.cloud.host.namespace, &world.factories[0].host.namespace);
    let (sender, reverse) = if is_download { (web, "-R") } else { (plc, "") };
    let line = format!("iperf3 -J -C cubic -c {presence} -t {SECONDS} {options} {reverse}");
    // The server may not listen yet.
    let (result, duplicates) = wait_for("a stream", || {
        let before = counter(sender, "TcpExtTCPDSACKRecvSegs")?;
        let result: Value = serde_json::from_str(&plc.sh(&line)?)?;
        Ok(Some((result, counter(sender, "TcpExtTCPDSACKRecvSegs")? - before)))
    })?;
    let end = &result["end"];
    let bytes = end["sum_received"]["bytes"].as_u64().context("bytes")?;
    let again = end["sum_sent"]["retransmits"].as_u64().context("retransmits")?;
    Ok((bytes, again.saturating_sub(duplicates)))
}

/// As many segments as may have been dropped on the way, by the gateways' own count and the kernel's.
fn dropped(world: &World) -> Result<u64> {
    let factory = &world.factories[0];
    let mut sum = SEGMENTS_MAX * backlog_drops()?;
    for agent in [&world.cloud.agent, &factory.agent] {
        sum += agent.figure("vp_congestion_drops_total")? + agent.figure("vp_dropped_packets_total")?;
    }
    let gateways = [&world.cloud.site.gateway, &factory.site.gateway];
    let hosts = [&world.cloud.host.namespace, &factory.host.namespace];
    let access = factory.site.access.iter().map(|access| &access.namespace);
    for machine in gateways.into_iter().chain(hosts).chain(access).chain([&world.internet.namespace]) {
        sum += SEGMENTS_MAX * interface_drops(machine)?;
        // Of sockets: the gateways', and the stream's own.
        for name in ["UdpRcvbufErrors", "TcpExtTCPBacklogDrop", "TcpExtTCPRcvQDrop"] {
            sum += SEGMENTS_MAX * counter(machine, name)?;
        }
    }
    Ok(sum)
}

/// Most of them are of the queue of the sending gateway's TUN, which is full when the gateway is the slowest of all.
fn interface_drops(machine: &Namespace) -> Result<u64> {
    let links: Value = serde_json::from_str(&machine.sh("ip -s -j link")?)?;
    let links = links.as_array().context("interfaces")?.iter();
    let counts = links.flat_map(|link| ["rx", "tx"].map(|way| link["stats64"][way]["dropped"].as_u64()));
    Ok(counts.flatten().sum())
}

/// Of the processors' queues between interfaces, which all machines of the lab share.
fn backlog_drops() -> Result<u64> {
    let processors = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let counts = processors.lines().filter_map(|line| line.split_whitespace().nth(1));
    counts.map(|count| Ok(u64::from_str_radix(count, 16)?)).sum()
}

fn counter(machine: &Namespace, name: &str) -> Result<u64> {
    let counters = machine.sh(&format!("nstat -asz {name}"))?;
    let line = counters.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().nth(1).context("a count")?.parse()?)
}
