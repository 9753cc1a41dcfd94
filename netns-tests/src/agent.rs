//! A gateway's agent, started, configured and asked as its operator would: the binaries, a YAML file, `vp-ctl`.

use crate::{Lab, Namespace, Process, wait};
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use x25519_dalek::{PublicKey, StaticSecret};

/// The system bus of an agent's machine, in the agent's directory.
const BUS: &str = "bus";
/// Lines of `NAME=VALUE` there are the environment of the next process.
const ENVIRONMENT: &str = "environment";

/// A site's key pair, as `wg genkey` and `wg pubkey` print it.
#[derive(Clone)]
pub struct Key {
    pub private: StaticSecret,
}

impl Key {
    pub fn new() -> Result<Self> {
        let mut bytes = [0; 32];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self { private: bytes.into() })
    }

    #[must_use]
    pub fn public(&self) -> String {
        BASE64_STANDARD.encode(PublicKey::from(&self.private).as_bytes())
    }

    /// Readable by root alone.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        file.write_all((BASE64_STANDARD.encode(self.private.as_bytes()) + "\n").as_bytes())?;
        Ok(())
    }
}

/// What `agent.yaml` says.
#[derive(Clone, Default)]
pub struct Config {
    pub site: String,
    pub pool: Vec<IpNet>,
    pub listen: Option<SocketAddr>,
    pub peers: Vec<Peer>,
    /// The rest (`expose:`, `map:`, `clients:` and so on) as its YAML text.
    pub rest: String,
}

#[derive(Clone, Default)]
pub struct Peer {
    pub site: String,
    pub public_key: String,
    /// In place of both in the file.
    pub certificate: Option<PathBuf>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive_seconds: Option<u16>,
    /// Further keys of the entry, such as `stock: true`.
    pub rest: String,
}

pub struct Agent {
    pub machine: Namespace,
    pub config: Config,
    pub key: Key,
    directory: PathBuf,
    process: Process,
    machine_before: String,
}

impl Agent {
    /// Starts an agent on `machine` and waits until `vp-ctl status` answers.
    pub fn start(lab: &Lab, machine: &Namespace, config: Config, key: Key) -> Result<Self> {
        let directory = lab.directory().join(machine.label());
        fs::create_dir_all(&directory)?;
        key.write(&directory.join("site.key"))?;
        fs::write(directory.join("agent.yaml"), yaml(&config, &directory))?;
        let machine_before = machine.network_state()?;
        let process = run_agent(lab, machine, &directory)?;
        let mut agent = Self { machine: machine.clone(), config, key, directory, process, machine_before };
        agent.wait_ready()?;
        Ok(agent)
    }

    /// What `vp-ctl join` makes of `machine`, with this token or bundle, and the agent started on it.
    pub fn join(lab: &Lab, machine: &Namespace, site: &str, offer: &str, arguments: &str) -> Result<Self> {
        let mut agent = Self::installed(lab, machine, site, offer, arguments)?;
        agent.process = run_agent(lab, machine, &agent.directory)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// The same without the start.
    pub fn installed(lab: &Lab, machine: &Namespace, site: &str, offer: &str, arguments: &str) -> Result<Self> {
        let directory = lab.directory().join(machine.label());
        fs::create_dir_all(&directory)?;
        let machine_before = machine.network_state()?;
        let mut vp_ctl = join_command(&directory, "-", arguments)?;
        let mut child = vp_ctl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(offer.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "vp-ctl join at {site}: {} {said}", output.status);
        let agent = Self::found(lab, machine, site)?;
        Ok(Self { machine_before, ..agent })
    }

    /// One that somebody else installed there, and did not start.
    pub fn found(lab: &Lab, machine: &Namespace, site: &str) -> Result<Self> {
        let directory = lab.directory().join(machine.label());
        let config = Config { site: site.to_owned(), ..Config::default() };
        // Its own is made by the agent, and stays there.
        let key = Key::new()?;
        let process = Process::start(lab, machine.label(), &mut Command::new("true"))?;
        let machine_before = machine.network_state()?;
        Ok(Self { machine: machine.clone(), config, key, directory, process, machine_before })
    }

    /// A new process with the same files, after [`Self::kill`] or [`Self::stop`].
    pub fn start_again(&mut self, lab: &Lab) -> Result<()> {
        self.process = run_agent(lab, &self.machine, &self.directory)?;
        self.wait_ready()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// SIGTERM; fails unless it ends well.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop()?;
        ensure!(status.success(), "vp-agent of {} ended with {status}", self.config.site);
        Ok(())
    }

    /// The machine's [`Namespace::network_state`] before any agent ran on it.
    #[must_use]
    pub fn machine_before(&self) -> &str {
        &self.machine_before
    }

    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// From the next start on, the agent's process has these variables too.
    pub fn set_environment(&self, variables: &[(&str, &str)]) -> Result<()> {
        let lines: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        Ok(fs::write(self.directory.join(ENVIRONMENT), lines.concat())?)
    }

    /// Where this machine's system bus is, if a story has one.
    #[must_use]
    pub fn bus(&self) -> PathBuf {
        self.directory.join(BUS)
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// Writes the file anew, as an operator's editor would.
    pub fn write_config(&self) -> Result<()> {
        Ok(fs::write(self.directory.join("agent.yaml"), yaml(&self.config, &self.directory))?)
    }

    /// `vp-ctl` with these arguments (split at white space); its standard output. An error if it fails.
    pub fn ctl(&self, arguments: &str) -> Result<String> {
        let output = self.ctl_output(arguments)?;
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "vp-ctl {arguments} at {}: {} {error}{out}", self.config.site, output.status);
        Ok(out.into_owned())
    }

    pub fn ctl_output(&self, arguments: &str) -> Result<Output> {
        let mut command = Command::new(binary("vp-ctl")?);
        command.arg("--socket").arg(self.socket()).args(arguments.split_whitespace());
        Ok(command.output()?)
    }

    /// `vp-ctl -o json` with these arguments.
    pub fn ask(&self, arguments: &str) -> Result<Value> {
        let out = self.ctl(&format!("-o json {arguments}"))?;
        serde_json::from_str(&out).with_context(|| format!("vp-ctl -o json {arguments}: {out}"))
    }

    pub fn status(&self) -> Result<Value> {
        self.ask("status")
    }

    /// Packets dropped for this reason.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        Ok(self.status()?["drops"][reason].as_u64().unwrap_or(0))
    }

    /// A figure of `/metrics`: the sum over its labels.
    pub fn figure(&self, name: &str) -> Result<u64> {
        let socket = self.socket();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "-m", "20", "http://vp/metrics", "--unix-socket"]).arg(socket);
        let output = curl.output()?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let of_name = |line: &&str| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']);
        let values: Vec<f64> =
            text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        ensure!(!values.is_empty(), "{name} is not among the figures:\n{text}");
        Ok(values.iter().sum::<f64>() as u64)
    }

    /// The address that stands for this service here, as soon as it is usable.
    pub fn presence(&self, service: &str) -> Result<std::net::IpAddr> {
        wait::wait_for(&format!("the presence of {service} at {}", self.config.site), || {
            let status = self.status()?;
            let presences = status["presences"].as_array().context("no presences")?;
            let found = presences.iter().find(|presence| presence["service"] == service && presence["state"] == "up");
            let Some(presence) = found else { bail!("presences: {}", status["presences"]) };
            Ok(Some(presence["address"].as_str().context("no address")?.parse()?))
        })
    }

    /// Until there is a session with this peer, and the control channel is open where it has one.
    pub fn wait_peer(&self, site: &str) -> Result<()> {
        wait::wait_for(&format!("{site} to be up at {}", self.config.site), || {
            let status = self.status()?;
            let peers = status["peers"].as_array().context("no peers")?;
            let peer = peers.iter().find(|peer| peer["site"] == site).context("no such peer")?;
            let up = peer["state"] == "up" && peer["control"] != "closed";
            if up { Ok(Some(())) } else { bail!("{peer}") }
        })
    }

    fn wait_ready(&mut self) -> Result<()> {
        let site = self.config.site.clone();
        wait::wait_for(&format!("vp-agent of {site} to answer"), || {
            if let Some(status) = self.process.status()? {
                // No use in waiting on.
                return Ok(Some(Err(anyhow::anyhow!(
                    "vp-agent of {site} ended with {status}: {}",
                    self.process.log()
                ))));
            }
            self.status().map(|_| Some(Ok(())))
        })?
    }
}

/// `vp-ctl join` for an agent with its files in this directory, which it does not start.
pub fn join_command(directory: &Path, offer: &str, arguments: &str) -> Result<Command> {
    let mut command = Command::new(binary("vp-ctl")?);
    command.arg("--socket").arg(directory.join("agent.sock")).args(["join", offer, "--no-start"]);
    command.arg("--config").arg(directory.join("agent.yaml")).arg("--state-dir").arg(directory.join("state"));
    command.args(arguments.split_whitespace());
    Ok(command)
}

fn run_agent(lab: &Lab, machine: &Namespace, directory: &Path) -> Result<Process> {
    let mut command = machine.command(&binary("vp-agent")?.to_string_lossy());
    command.arg("--config").arg(directory.join("agent.yaml"));
    // Never the bus of the machine itself: its systemd-resolved knows other interfaces.
    command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", directory.join(BUS).display()));
    let variables = fs::read_to_string(directory.join(ENVIRONMENT)).unwrap_or_default();
    command.envs(variables.lines().filter_map(|line| line.split_once('=')));
    let process = Process::start(lab, machine.label(), &mut command)?;
    lab.watch_agent_log(process.log_path());
    Ok(process)
}

/// The binaries under test: in `VP_BIN_DIR`, or beside this program's own (`target/debug` for its `deps`).
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("VP_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = std::env::current_exe()?;
            let beside = own.parent().context("no directory")?;
            if beside.ends_with("deps") {
                beside.parent().context("no directory")?.to_owned()
            } else {
                beside.to_owned()
            }
        }
    };
    let path = directory.join(name);
    ensure!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    Ok(path)
}

fn yaml(config: &Config, directory: &Path) -> String {
    let directory = directory.display();
    let mut text = format!(
        "site: {}\nkey: {directory}/site.key\nstate_dir: {directory}/state\nsocket: {directory}/agent.sock\n\
         audit: {directory}/audit.jsonl\n",
        config.site
    );
    // Writing to a String cannot fail.
    if let Some(listen) = config.listen {
        let _ = writeln!(text, "listen: \"{listen}\"");
    }
    let pool: Vec<String> = config.pool.iter().map(|prefix| format!("\"{prefix}\"")).collect();
    let _ = writeln!(text, "pool: [{}]", pool.join(", "));
    if !config.peers.is_empty() {
        text += "peers:\n";
    }
    for peer in &config.peers {
        let _ = match &peer.certificate {
            Some(file) => writeln!(text, "  - certificate: {}", file.display()),
            None => writeln!(text, "  - site: {}\n    public_key: {}", peer.site, peer.public_key),
        };
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "    endpoint: \"{endpoint}\"");
        }
        if let Some(seconds) = peer.keepalive_seconds {
            let _ = writeln!(text, "    keepalive: {seconds}s");
        }
        for line in peer.rest.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    text + &config.rest
}
