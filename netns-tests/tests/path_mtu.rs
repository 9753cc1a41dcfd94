//! A path that carries less than it looks like: no black hole for TCP or UDP, whatever lies between the gateways.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT --1280-- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::Content;
use netns_tests::world::{expose, map};
use netns_tests::{Access, Family, Lab, Plan, Setup, TcpServer, UdpEcho, World, for_each_plan, wait_for};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

const BYTES: usize = 2_000_000;

for_each_plan!(tcp_and_udp_pass_a_path_of_1280_bytes_behind_a_nat);
for_each_plan!(tcp_and_udp_pass_a_path_of_1280_bytes_over_ipv6);

fn tcp_and_udp_pass_a_path_of_1280_bytes_behind_a_nat(lab: &Lab, plan: &Plan) -> Result<()> {
    pass(lab, plan, Access::HOME_NAT, Family::V4)
}

fn tcp_and_udp_pass_a_path_of_1280_bytes_over_ipv6(lab: &Lab, plan: &Plan) -> Result<()> {
    pass(lab, plan, Access::Router, Family::V6)
}

fn pass(lab: &Lab, plan: &Plan, access: Access, underlay: Family) -> Result<()> {
    let family = plan.family();
    let cloud = expose("web", "{web}", "tcp/80, tcp/7, udp/7", "any", "presence");
    let setup = Setup { cloud, factory: map("web.cloud"), access, underlay, ..Setup::new(plan) };
    let world = World::new(lab, &setup)?;
    let factory = &world.factories[0];
    factory.site.limit_mtu(&world.internet, 1280)?;
    let (web, address) = (&world.cloud.host.namespace, world.cloud.address(family)?);
    let _http = TcpServer::http(web, (address, 80), "web of cloud")?;
    let _echo = TcpServer::echo(web, (address, 7))?;
    let _udp = UdpEcho::start(web, (address, 7))?;
    let presence = factory.agent.presence("web.cloud")?;
    let plc = &factory.host.namespace;

    let got = plc.http((presence, 80), &format!("/bytes/{BYTES}")).context("download")?;
    ensure!(got == Content::new("web of cloud").take(BYTES), "the download differs");

    // Both ways at once: what is sent comes back.
    let sent = Content::new("echo").take(BYTES);
    let mut stream = plc.tcp((presence, 7))?;
    let mut writer = stream.try_clone()?;
    let mut back = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
        stream.read_to_end(&mut back).context("echo")?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(())
    })?;
    ensure!(back == sent, "the echo differs");

    let socket = plc.udp((presence, 7))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut buffer = vec![0; 65_535];
    for size in [1, 1000, 1200, 1252, 1300, 1400, 1472, 3000] {
        let datagram = Content::new(&format!("{size}")).take(size);
        wait_for(&format!("{size} bytes by UDP"), || {
            socket
                .send(&datagram)
                .or_else(|error| if error.raw_os_error() == Some(libc::EMSGSIZE) { Ok(0) } else { Err(error) })?;
            let bytes = socket.recv(&mut buffer)?;
            Ok((buffer[..bytes] == datagram).then_some(()))
        })?;
    }
    Ok(())
}
