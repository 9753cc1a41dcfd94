//! What the README and the example files tell an operator to do, done as they tell it.
//!
//! ```text
//!   plc .2 -- factory gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, bail, ensure};
use netns_tests::{Access, Internet, Lab, Namespace, Process, Site, TcpServer, agent, story, wait_for, wait_until};
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NOBODY: u32 = 65534;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_configuration_that_comes_with_it_is_good() {
    story(|lab| {
        let machine = lab.namespace("gateway")?;
        machine.ip("link add name eth1 type bridge\naddr add 10.0.0.1/24 dev eth1\nlink set eth1 up")?;
        let examples = fs::read_dir(repository().join("examples"))?;
        let mut files = examples.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        // Those in folders are for other programs.
        files.retain(|file| file.is_file());
        ensure!(files.len() >= 3, "{files:?}");
        files.push(repository().join("packaging/agent.yaml"));
        for file in files {
            let output =
                machine.command(&agent::binary("vp-ctl")?.to_string_lossy()).arg("check").arg(&file).output()?;
            ensure!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    });
}

#[test]
fn the_first_two_sites_of_the_readme_work_step_by_step() {
    story(|lab| {
        let readme = fs::read_to_string(repository().join("README.md"))?;
        let section = readme.split("## Your first two real sites").nth(1).and_then(|rest| rest.split("\n## ").next());
        let section = section.context("the section")?;
        let blocks: Vec<&str> =
            section.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        let [cloud_first, factory_first, cloud_more, factory_more] = blocks[..] else {
            bail!("{} blocks of YAML, expected two files and two additions", blocks.len());
        };

        let internet = Internet::new(lab)?;
        let lan = ["10.0.0.0/24".parse()?];
        let cloud_site = Site::new(lab, "cloud", &lan, &internet, Access::Direct)?;
        let web = cloud_site.host(lab, "web", 5)?;
        let factory_site = Site::new(lab, "factory", &lan, &internet, Access::HOME_NAT)?;
        let plc = factory_site.host(lab, "plc", 2)?.namespace;
        let _server = TcpServer::http(&web.namespace, (IpAddr::from([10, 0, 0, 5]), 80), "web of cloud")?;

        // Step 3.
        let cloud = Gateway::start(lab, &cloud_site.gateway, cloud_first)?;
        let factory = Gateway::start(lab, &factory_site.gateway, factory_first)?;
        // Step 4.
        let endpoint = format!("{}:51820", cloud_site.uplink.v4);
        cloud.add(&cloud_more.replace("the factory's", &factory.public_key()?))?;
        factory.add(
            &factory_more.replace("the cloud's", &cloud.public_key()?).replace("cloud.example.com:51820", &endpoint),
        )?;
        wait_until("web.cloud to be offered", || Ok(factory.ctl("services")?.contains("web.cloud")))?;
        ensure!(factory.ask("status")?["peers"][0]["state"] == "up");
        // Step 5.
        let printed = factory.ctl("map web.cloud")?;
        let presence: IpAddr = printed.trim().parse().with_context(|| format!("not the address alone: {printed:?}"))?;
        ensure!(section.contains(&format!("\n    {presence}\n")), "the README promises another than {presence}");
        factory.ctl("ping web.cloud")?;
        ensure!(plc.curl(presence, "/")?.starts_with("web of cloud"));
        // Step 6.
        let said = factory.ctl("explain --from plc --to web.cloud --port tcp/80")?;
        ensure!(said.ends_with("allowed\n"), "{said}");
        factory.ctl("doctor")?;
        Ok(())
    });
}

/// An agent with a file as an operator writes it, and with no more rights than the unit gives it; paths are the lab's own.
struct Gateway {
    directory: PathBuf,
    _process: Process,
}

impl Gateway {
    fn start(lab: &Lab, machine: &Namespace, text: &str) -> Result<Self> {
        let directory = lab.directory().join(machine.label());
        fs::create_dir_all(&directory)?;
        let at = directory.display();
        let file = directory.join("agent.yaml");
        fs::write(&file, format!("{text}state_dir: {at}/state\nsocket: {at}/agent.sock\n"))?;
        // Where that user can reach it.
        let program = directory.join("vp-agent");
        fs::copy(agent::binary("vp-agent")?, &program)?;
        let group = group()?;
        chown(&directory, Some(NOBODY), Some(group))?;
        // In a mount namespace of its own, with the device as udev makes it: for everybody.
        let device = "mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec setpriv \"$@\"";
        let mut command = machine.command("sh");
        command.args(["-c", device, "sh"]);
        command.args([format!("--reuid={NOBODY}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
        let capabilities = capabilities()?;
        command.args(["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all{capabilities}")));
        command.arg("--no-new-privs").arg(program).arg("--config").arg(&file);
        let process = Process::start(lab, machine.label(), &mut command)?;
        let gateway = Self { directory, _process: process };
        wait_for("the agent to answer", || gateway.ask("status").map(Some))?;
        Ok(gateway)
    }

    fn public_key(&self) -> Result<String> {
        Ok(self.ask("status")?["public_key"].as_str().context("no key")?.to_owned())
    }

    fn add(&self, text: &str) -> Result<()> {
        let file = self.directory.join("agent.yaml");
        fs::write(&file, fs::read_to_string(&file)? + text)?;
        self.ctl("reload").map(drop)
    }

    fn ctl(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new(agent::binary("vp-ctl")?);
        command.arg("--socket").arg(self.directory.join("agent.sock")).args(arguments.split_whitespace());
        let Output { status, stdout, stderr } = command.output()?;
        let [out, error] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(status.success(), "vp-ctl {arguments}: {status} {error}{out}");
        Ok(out)
    }

    fn ask(&self, arguments: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ctl(&format!("-o json {arguments}"))?)?)
    }
}

/// That of the unit, if this machine has it: the socket becomes its.
fn group() -> Result<u32> {
    let groups = fs::read_to_string("/etc/group")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("vp:"));
    Ok(own.and_then(|rest| rest.split(':').nth(1)?.parse().ok()).unwrap_or(NOBODY))
}

/// What the unit leaves the agent, as setpriv takes it: `,+net_admin` and so on.
fn capabilities() -> Result<String> {
    let unit = fs::read_to_string(repository().join("packaging/vp-agent.service"))?;
    let of = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).map(str::to_lowercase);
    let (ambient, bounding) = (of("AmbientCapabilities="), of("CapabilityBoundingSet="));
    ensure!(ambient.is_some() && ambient == bounding, "{unit}");
    Ok(ambient.unwrap_or_default().split_whitespace().map(|name| name.replace("cap_", ",+")).collect())
}
