//! Faults of a gateway's surroundings, planted one by one: `vp-ctl doctor` names each, and none once it is mended.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::{Agent, Families, Namespace, Plan, Setup, World, story};
use socket2::{Domain, Protocol, Socket, Type};
use std::fs::{Permissions, set_permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

/// A switch below /proc/sys, its good value and its bad one, and what the finding is called and speaks of.
const SWITCHES: [(&str, &str, &str, &str, &str); 6] = [
    ("net/ipv4/ip_forward", "1", "0", "forwarding-off", "ip_forward"),
    ("net/ipv6/conf/all/forwarding", "1", "0", "forwarding-off", "all/forwarding"),
    ("net/ipv6/conf/lan0/forwarding", "1", "0", "forwarding-off", "by lan0"),
    ("net/ipv6/conf/vp0/forwarding", "1", "0", "forwarding-off", "by vp0"),
    ("net/ipv4/conf/all/rp_filter", "0", "1", "rp-filter", "lan0"),
    ("net/ipv4/conf/lan0/rp_filter", "0", "1", "rp-filter", "lan0"),
];

#[test]
fn the_doctor_names_what_is_wrong_with_the_host() {
    story(|lab| {
        let plan = Plan::named("same", Families::Both)?;
        let world = World::new(lab, &Setup::new(&plan))?;
        let (agent, gateway) = (&world.factories[0].agent, &world.factories[0].site.gateway);
        let well = findings(agent)?;
        ensure!(
            !well.contains("forwarding-off") && !well.contains("rp-filter") && !well.contains("key-file"),
            "{well}"
        );
        for (path, good, bad, name, of) in SWITCHES {
            gateway.sysctl(path, bad)?;
            let found = findings(agent)?;
            let named = found.lines().any(|line| line.contains(name) && line.contains(of));
            ensure!(named, "{path} is {bad}:\n{found}");
            gateway.sysctl(path, good)?;
            ensure!(findings(agent)? == well, "{path} is {good} again");
        }
        // Loose for all wins over strict for one.
        gateway.sysctl("net/ipv4/conf/lan0/rp_filter", "1")?;
        gateway.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
        ensure!(findings(agent)? == well);

        let plants = make_legacy_table(gateway)?;
        ensure!(!plants || findings(agent)?.contains("legacy-iptables"), "{}", findings(agent)?);

        let key = agent.directory().join("site.key");
        set_permissions(&key, Permissions::from_mode(0o644))?;
        let found = findings(agent)?;
        ensure!(found.lines().any(|line| line.contains("key-file") && line.contains("0644")), "{found}");
        Ok(())
    });
}

/// A line each; it ends with 1 where it finds an error.
fn findings(agent: &Agent) -> Result<String> {
    let output = agent.ctl_output("-o json doctor")?;
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(found.as_array().context("findings")?.iter().map(|finding| format!("{finding}\n")).collect())
}

/// As any look by iptables-legacy does. False where the kernel has none.
fn make_legacy_table(machine: &Namespace) -> Result<bool> {
    const IPT_SO_GET_INFO: libc::c_int = 64;
    const INFO_BYTES: usize = 84;
    machine.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let mut info = [0_u8; INFO_BYTES];
        info[..6].copy_from_slice(b"filter");
        let mut bytes = u32::try_from(INFO_BYTES)?;
        let (level, option) = (libc::IPPROTO_IP, IPT_SO_GET_INFO);
        // SAFETY: the kernel reads and writes at most `bytes` of the array, which lives through the call.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, info.as_mut_ptr().cast(), &raw mut bytes) };
        Ok(result == 0)
    })?
}
