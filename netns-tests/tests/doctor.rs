//! Faults of a gateway's surroundings, planted one by one: `vp-ctl doctor` names each, and none once it is mended.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::agent::binary;
use netns_tests::world::expose;
use netns_tests::{Agent, Families, Namespace, Plan, Process, Setup, TcpServer, World, story, wait_for, wait_until};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::fs::{self, Permissions, set_permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

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
        ensure!(well.lines().count() == 1 && well.contains("\"well\""), "{well}");
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

/// A fault, planted by lines for a shell of the gateway (or of the server behind it), and what takes it away again.
struct Fault {
    name: &'static str,
    /// What the finding speaks of.
    of: &'static str,
    plant: &'static str,
    /// Whether what the finding says as its way out is to be typed in.
    mends: bool,
    undo: &'static str,
}

const fn fault(name: &'static str, of: &'static str, plant: &'static str, mends: bool, undo: &'static str) -> Fault {
    Fault { name, of, plant, mends, undo }
}

/// As Docker, firewalld and a router's script write their rules.
const FAULTS: [Fault; 10] = [
    fault(
        "forward-policy-drop",
        "chain FORWARD of table ip filter",
        "nft add table ip filter
         nft add chain ip filter FORWARD { type filter hook forward priority filter \\; policy drop \\; }
         nft add chain ip filter DOCKER-USER
         nft add chain ip filter DOCKER-FORWARD
         nft add rule ip filter FORWARD counter jump DOCKER-USER
         nft add rule ip filter FORWARD counter jump DOCKER-FORWARD
         nft add rule ip filter DOCKER-FORWARD oifname docker0 ct state related,established counter accept
         nft add rule ip filter DOCKER-FORWARD iifname docker0 counter accept",
        true,
        "nft delete table ip filter",
    ),
    fault(
        "forward-policy-drop",
        "chain filter_FORWARD of table inet firewalld",
        "nft add table inet firewalld
         nft add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10 \\; }
         nft add chain inet firewalld filter_FWD_public
         nft add rule inet firewalld filter_FORWARD ct state { established, related } accept
         nft add rule inet firewalld filter_FORWARD ct status dnat accept
         nft add rule inet firewalld filter_FORWARD iifname lo accept
         nft add rule inet firewalld filter_FORWARD goto filter_FWD_public
         nft add rule inet firewalld filter_FWD_public reject with icmpx admin-prohibited",
        true,
        "nft delete table inet firewalld",
    ),
    fault(
        "foreign-masquerade",
        "the server of web sees the gateway",
        "nft add table inet router
         nft add chain inet router postrouting { type nat hook postrouting priority srcnat \\; }
         nft add rule inet router postrouting oifname lan0 masquerade",
        true,
        "nft delete table inet router",
    ),
    fault(
        "foreign-masquerade",
        "call presences as the gateway itself",
        "nft add table inet router
         nft add chain inet router postrouting { type nat hook postrouting priority srcnat \\; }
         nft add rule inet router postrouting meta nfproto ipv4 ip saddr 10.0.0.0/8 oifname != lo masquerade",
        true,
        "nft delete table inet router",
    ),
    fault(
        "firewall-on-port",
        "drops udp port 51820, which is for the tunnels, by wan0",
        "nft add table inet filter
         nft add chain inet filter input { type filter hook input priority filter \\; policy drop \\; }
         nft add rule inet filter input ct state established,related accept
         nft add rule inet filter input iifname { lo, lan0 } accept
         nft add rule inet filter input tcp dport 22 accept",
        true,
        "nft delete table inet filter",
    ),
    fault(
        "pool-overlaps-route",
        "inside the pool",
        "ip route add POOL/30 dev lan0",
        false,
        "ip route del POOL/30 dev lan0",
    ),
    fault("offload-missing", "generic-segmentation-offload is off on wan0", "ethtool -K wan0 gso off", true, ""),
    fault(
        "offload-missing",
        "tx-checksumming is off on lan0",
        "ethtool -K lan0 tx off",
        false,
        "ethtool -K lan0 tx on gso on tso on",
    ),
    fault("offload-missing", "tcp-segmentation-offload is off on vp0", "ethtool -K vp0 tso off", true, ""),
    fault(
        "path-mtu",
        "the path to factory1 carries packets of 1400 bytes",
        "ip link set wan0 mtu 1400",
        false,
        "ip link set wan0 mtu 1500",
    ),
];

#[test]
fn the_doctor_names_what_is_wrong_around_a_gateway_and_its_way_out_mends_it() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let cloud = expose("web", "{web}", "tcp/80", "any", "presence");
        let world = World::new(lab, &Setup { cloud, ..Setup::new(&plan) })?;
        let (agent, gateway) = (&world.cloud.agent, &world.cloud.site.gateway);
        let web = world.cloud.address(netns_tests::Family::V4)?;
        let _server = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
        let is_well = |agent: &Agent| {
            wait_until(&format!("{} to be well", agent.config.site), || {
                let found = findings(agent)?;
                ensure!(found.lines().count() == 1 && found.contains("\"well\""), "{found}");
                Ok(true)
            })
        };
        is_well(&world.factories[0].agent)?;
        is_well(agent)?;
        let pool = plan.cloud_pool[0].network().to_string();
        for fault in &FAULTS {
            shell(gateway, &fault.plant.replace("POOL", &pool))?;
            named(agent, fault.name, fault.of)?;
            if fault.mends {
                for found in all(&agent.socket())?.iter().filter(|found| found["name"] == fault.name) {
                    let fix = found["fix"].as_str().context("no way out")?;
                    fix.split("; ").try_for_each(|line| gateway.sh(line).map(drop))?;
                }
                is_well(agent).with_context(|| format!("what mends {} was done", fault.name))?;
            }
            shell(gateway, &fault.undo.replace("POOL", &pool))?;
            is_well(agent)?;
        }

        // In the middle of the path a router says so.
        world.factories[0].site.limit_mtu(&world.internet, 1300)?;
        named(&world.factories[0].agent, "path-mtu", "the path to cloud carries packets of 1300 bytes")?;

        let host = &world.cloud.host.namespace;
        let router = world.cloud.site.gateway_address(netns_tests::Family::V4)?;
        shell(host, "ip route del default")?;
        let found = named(agent, "no-way-back", "the server of web")?;
        let fix = found["fix"].as_str().context("no way out")?;
        ensure!(fix.contains(&format!("ip route add {} via {router}", plan.cloud_pool[0])), "{fix}");
        shell(host, &format!("ip route add {} via {router}", plan.cloud_pool[0]))?;
        wait_until("the server to have a way back", || Ok(!findings(agent)?.contains("no-way-back")))
    });
}

#[test]
fn a_gateway_whose_clock_is_wrong_is_named() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = World::new(lab, &Setup::new(&plan))?;
        let library = shell(&world.internet.namespace, "find /usr/lib -name libfaketime.so.1")?;
        let cloud = &mut world.cloud.agent;
        cloud.set_environment(&[("LD_PRELOAD", library.trim()), ("FAKETIME", "+90s"), ("DONT_FAKE_MONOTONIC", "1")])?;
        cloud.stop()?;
        cloud.start_again(lab)?;
        world.cloud.agent.wait_peer("factory1")?;
        world.factories[0].agent.wait_peer("cloud")?;
        let of = |site: &str| format!("the clock of {site} is");
        let ahead = named(&world.factories[0].agent, "clock-skew", &of("cloud"))?;
        ensure!(ahead["detail"].as_str().is_some_and(|detail| detail.contains("s ahead of")), "{ahead}");
        let behind = named(&world.cloud.agent, "clock-skew", &of("factory1"))?;
        ensure!(behind["detail"].as_str().is_some_and(|detail| detail.contains("s behind")), "{behind}");
        Ok(())
    });
}

#[test]
fn socket_buffers_that_the_kernel_did_not_give_are_named() {
    story(|lab| {
        // In a user namespace of its own nobody may have more than this machine's limit.
        let limit: usize = fs::read_to_string("/proc/sys/net/core/rmem_max")?.trim().parse()?;
        if limit >= 8 << 20 {
            eprintln!("net.core.rmem_max is {limit}: nothing to see here");
            return Ok(());
        }
        let directory = lab.directory();
        let (socket, file) = (directory.join("agent.sock"), directory.join("agent.yaml"));
        let paths = format!("state_dir: {}\nsocket: {}\n", directory.join("state").display(), socket.display());
        fs::write(&file, format!("site: factory\npool: [10.0.1.0/24]\n{paths}"))?;
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).arg(binary("vp-agent")?).arg("--config").arg(&file);
        let _process = Process::start(lab, "small-buffers", &mut command)?;
        let found = wait_for("the finding", || find(&all(&socket)?, "small-socket-buffers", "in place of"))?;
        ensure!(found["fix"].as_str().is_some_and(|fix| fix.contains("sysctl -w net.core.rmem_max=")), "{found}");
        Ok(())
    });
}

/// Each line as one command.
fn shell(machine: &Namespace, lines: &str) -> Result<String> {
    lines.lines().map(|line| machine.command("sh").args(["-c", line]).output()).try_fold(
        String::new(),
        |said, output| {
            let output = output?;
            ensure!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(said + &String::from_utf8_lossy(&output.stdout))
        },
    )
}

/// The finding of this name that speaks of this, as soon as it is there.
fn named(agent: &Agent, name: &str, of: &str) -> Result<Value> {
    wait_for(&format!("{name}: {of}"), || find(&all(&agent.socket())?, name, of))
}

fn find(found: &[Value], name: &str, of: &str) -> Result<Option<Value>> {
    let is_it =
        |found: &&Value| found["name"] == name && found["detail"].as_str().is_some_and(|detail| detail.contains(of));
    let known = found.iter().find(is_it).cloned();
    ensure!(known.is_some(), "{found:?}");
    Ok(known)
}

/// It ends with 1 where it finds an error.
fn all(socket: &Path) -> Result<Vec<Value>> {
    let output = Command::new(binary("vp-ctl")?).arg("--socket").arg(socket).args(["-o", "json", "doctor"]).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A line each.
fn findings(agent: &Agent) -> Result<String> {
    Ok(all(&agent.socket())?.iter().map(|finding| format!("{finding}\n")).collect())
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
