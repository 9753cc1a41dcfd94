//! What is on the wire, and what is not: TLS pins the service's own certificate, TCP arrives as it was sent, and
//! between the sites no address of either and no byte of the payload shows.
//!
//! ```text
//!   plc .2 --[capture]-- factory1 gateway --[capture]-- NAT -- internet -- cloud gateway --[capture]-- web .5 (nginx)
//! ```

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use etherparse::{NetSlice, TcpSlice, TransportSlice};
use netns_tests::world::{expose, map};
use netns_tests::{
    Agent, Capture, Captured, Download, Families, Family, Lab, Plan, Process, Setup, TcpServer, World, capture,
    for_each_plan, story, wait_for, wait_until,
};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

/// Sent in the clear inside the sites.
const MARKER: &[u8] = b"a-marker-that-nobody-else-sends";
/// More than the buffers of both hosts hold.
const DOWNLOAD_BYTES: usize = 32 << 20;

for_each_plan!(tls_pins_the_services_own_certificate);
for_each_plan!(tcp_arrives_as_it_was_sent_and_nothing_of_it_is_on_the_wire);

fn tls_pins_the_services_own_certificate(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let cloud = expose("web", "{web}", "tcp/443", "any", "presence");
    let world = World::new(lab, &Setup { cloud, ..Setup::new(plan) })?;
    let (_nginx, certificate, pin) = nginx(lab, &world, world.cloud.address(family)?)?;
    let presence = world.factories[0].agent.presence("web.cloud")?;
    let plc = &world.factories[0].host.namespace;
    let at = match presence {
        IpAddr::V4(address) => format!("{address}"),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let call = |pin: &str| {
        let pinned = format!("--cacert {} --pinnedpubkey sha256//{pin}", certificate.display());
        plc.sh(&format!("curl -sS --fail -m 20 {pinned} --resolve web.cloud.test:443:{at} https://web.cloud.test/"))
    };
    wait_for("nginx", || Ok(call(&pin).ok()))?;
    ensure!(call(&pin)? == "a page of nginx");
    let other = BASE64_STANDARD.encode([7; 32]);
    let error = call(&other).err().context("another key was accepted")?.to_string();
    ensure!(error.contains("(90)"), "{error}");
    Ok(())
}

/// A web server of Debian's with a certificate of its own; the certificate's file and its public key's pin.
fn nginx(lab: &Lab, world: &World, address: IpAddr) -> Result<(Process, std::path::PathBuf, String)> {
    let directory = lab.directory().join("nginx");
    fs::create_dir_all(&directory)?;
    let at = directory.display();
    let machine = &world.cloud.host.namespace;
    machine.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=web.cloud.test \
         -addext subjectAltName=DNS:web.cloud.test -keyout {at}/key.pem -out {at}/certificate.pem"
    ))?;
    let hash = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "openssl x509 -in {at}/certificate.pem -pubkey -noout | openssl pkey -pubin -outform der | \
             openssl dgst -sha256 -binary | openssl base64"
        ))
        .output()?;
    let pin = String::from_utf8(hash.stdout)?.trim().to_owned();
    let listen = SocketAddr::from((address, 443));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off; user root; pid {at}/pid; error_log {at}/error.txt;\nevents {{ }}\nhttp {{ access_log off;\n{temporary}\
         server {{ listen {listen} ssl; ssl_certificate {at}/certificate.pem; ssl_certificate_key {at}/key.pem;\n\
         location / {{ return 200 \"a page of nginx\"; }} }} }}\n"
    );
    fs::write(directory.join("nginx.conf"), config)?;
    let line = format!("nginx -e {at}/error.txt -c {at}/nginx.conf");
    Ok((Process::start_line(lab, machine, &line)?, directory.join("certificate.pem"), pin))
}

fn tcp_arrives_as_it_was_sent_and_nothing_of_it_is_on_the_wire(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let cloud = expose("web", "{web}", "tcp/80", "any", "presence");
    let world = World::new(lab, &Setup { cloud, factory: map("web.cloud"), ..Setup::new(plan) })?;
    let (web, plc) = (&world.cloud.host, &world.factories[0].host);
    let page = String::from_utf8(MARKER.to_vec())?;
    let http = TcpServer::http(&web.namespace, (web.address(family)?, 80), &page)?;
    let presence = world.factories[0].agent.presence("web.cloud")?;
    // Packets as they are, not as super-packets: so each can be compared.
    for (machine, interface) in [
        (&web.namespace, "eth0"),
        (&plc.namespace, "eth0"),
        (&world.cloud.site.gateway, "lan0"),
        (&world.factories[0].site.gateway, "lan0"),
    ] {
        machine.sh(&format!("ethtool -K {interface} tso off gso off gro off tx off"))?;
    }
    let at_plc = Capture::start(lab, &plc.namespace, "eth0")?;
    let wire = Capture::start(lab, &world.factories[0].site.gateway, "wan0")?;
    let at_web = Capture::start(lab, &web.namespace, "eth0")?;
    plc.namespace.curl(presence, "/")?;
    plc.namespace.http((presence, 80), "/bytes/200000")?;
    wait_for("both connections to close", || {
        let left = plc.namespace.sh("ss -Htn state established")?;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    let (at_plc, wire, at_web) = (at_plc.stop()?, wire.stop()?, at_web.stop()?);

    ensure!(capture::contains(&at_plc, MARKER) && capture::contains(&at_web, MARKER));
    ensure!(!wire.is_empty() && !capture::contains(&wire, MARKER), "the payload is on the wire");
    let caller = http.callers.addresses()[0];
    for address in [plc.address(family)?, web.address(family)?, presence, caller] {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        // An IPv4 address is four bytes, which ciphertext holds by chance; so only where addresses stand.
        let in_clear = |packet: &Captured| {
            packet.bytes.get(..64).unwrap_or(&packet.bytes).windows(bytes.len()).any(|w| w == bytes)
        };
        ensure!(!wire.iter().any(in_clear), "{address} is on the wire");
    }

    let (sent, arrived) = (segments(&at_plc)?, segments(&at_web)?);
    // Of 64 KB at most each: the hosts leave segmentation to their devices.
    ensure!(sent.len() > 20, "{} segments", sent.len());
    for (key, segment) in &sent {
        // Retransmissions come under the same key; a segment that was lost on the way would be missing.
        let there = arrived.get(key).with_context(|| format!("{key:?} did not arrive"))?;
        ensure!(segment == there, "{key:?}: {segment:?} became {there:?}");
    }
    Ok(())
}

#[test]
fn agents_seal_with_aes_where_both_may_and_with_wireguards_own_cipher_where_one_may_not() {
    story(|lab| {
        let cloud = expose("web", "{web}", "tcp/80", "any", "masquerade");
        let mut world = World::new(lab, &Setup { cloud, ..Setup::new(&Plan::named("same", Families::V4)?) })?;
        let _web =
            TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(Family::V4)?, 80), "web of cloud")?;
        let has_instructions = fs::read_to_string("/proc/cpuinfo")?.contains(" aes ");
        let expected = if has_instructions { "aes-256-gcm" } else { "chacha20-poly1305" };
        let both = [&world.cloud.agent, &world.factories[0].agent];
        wait_until("the cipher of both", || Ok(ciphers(both)? == [expected; 2]))?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let mut download =
            Download::start(&world.factories[0].host.namespace, presence, "web of cloud", DOWNLOAD_BYTES)?;
        download.read(DOWNLOAD_BYTES / 3)?;

        // What the other seals goes on to be opened; a new session has one cipher.
        world.cloud.agent.config.rest += "aes: false\n";
        world.cloud.agent.write_config()?;
        world.cloud.agent.ctl("reload")?;
        download.read(DOWNLOAD_BYTES / 3)?;
        ensure!(ciphers([&world.cloud.agent, &world.factories[0].agent])? == ["chacha20-poly1305", expected]);
        world.factories[0].agent.kill()?;
        world.factories[0].agent.start_again(lab)?;
        download.finish()?;
        ensure!(ciphers([&world.cloud.agent, &world.factories[0].agent])? == ["chacha20-poly1305"; 2]);
        Ok(())
    });
}

/// With which each of the two seals for its first peer.
fn ciphers(agents: [&Agent; 2]) -> Result<[String; 2]> {
    let cipher = |agent: &Agent| Ok(agent.status()?["peers"][0]["cipher"].as_str().unwrap_or("none").to_owned());
    let [one, other]: [Result<String>; 2] = agents.map(cipher);
    Ok([one?, other?])
}

/// Ports, sequence number, payload length and flags, as both ends see them.
type Key = (u16, u16, u32, usize, u8);

/// What must be the same at both ends: acknowledgement, window, urgent pointer, options (but for the MSS's value,
/// which a gateway lowers) and payload.
#[derive(PartialEq, Debug)]
struct Segment {
    acknowledgement: u32,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

fn segments(packets: &[Captured]) -> Result<BTreeMap<(Key, u32), Segment>> {
    let mut segments = BTreeMap::new();
    for packet in packets {
        let parsed = capture::parse(&packet.bytes)?;
        ensure!(matches!(parsed.net, Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_))));
        let Some(TransportSlice::Tcp(tcp)) = &parsed.transport else { continue };
        let flags = tcp.slice()[13];
        let key = (tcp.source_port(), tcp.destination_port(), tcp.sequence_number(), tcp.payload().len(), flags);
        let segment = Segment {
            acknowledgement: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            urgent: tcp.urgent_pointer(),
            options: options_without_mss(tcp),
            payload: tcp.payload().to_vec(),
        };
        segments.insert((key, tcp.acknowledgment_number()), segment);
    }
    Ok(segments)
}

fn options_without_mss(tcp: &TcpSlice) -> Vec<u8> {
    let mut options = tcp.options().to_vec();
    if tcp.syn() && options.starts_with(&[2, 4]) {
        options[2..4].fill(0);
    }
    options
}
