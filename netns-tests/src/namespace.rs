//! One network namespace: what a machine of the lab is made of. Commands, threads and sockets are put into it; nothing
//! here ever touches the network of the machine itself.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

/// Where `ip netns` keeps named namespaces.
const DIRECTORY: &str = "/run/netns";

/// A handle; the namespace itself goes with its [`crate::Lab`].
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    /// The machine it plays, such as `factory-plc`.
    label: Arc<str>,
}

impl Namespace {
    pub(crate) fn create(name: &str, label: &str) -> Result<Self> {
        tool("ip", &["netns", "add", name], "")?;
        let namespace = Self { name: name.into(), label: label.into() };
        namespace.ip("link set lo up")?;
        // Duplicate address detection would make every IPv6 address wait for a second.
        namespace.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        for interfaces in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{interfaces}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv6/conf/{interfaces}/accept_ra"), "0")?;
            namespace.sysctl(&format!("net/ipv4/conf/{interfaces}/rp_filter"), "0")?;
        }
        Ok(namespace)
    }

    /// As `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A command that runs on this machine, as `ip netns exec` would run it for a user.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    /// Runs a command line (split at white space) to its end; its standard output. An error if it fails.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        let output = self.command(program).args(words).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        bail!("on {}: `{line}`: {}\n{text}{}", self.label, output.status, String::from_utf8_lossy(&output.stderr))
    }

    /// Lines as `ip -batch` takes them.
    pub fn ip(&self, lines: &str) -> Result<()> {
        tool("ip", &["-n", &self.name, "-batch", "-"], lines).with_context(|| format!("on {}", self.label))
    }

    /// Rules as `nft -f` takes them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let arguments = ["netns", "exec", &self.name, "nft", "-f", "-"];
        tool("ip", &arguments, rules).with_context(|| format!("on {}", self.label))
    }

    /// Packets counted by a named counter of [`Self::nft`] rules.
    pub fn counter(&self, table: &str, counter: &str) -> Result<u64> {
        let output = self.sh(&format!("nft -j list counter {table} {counter}"))?;
        let json: serde_json::Value = serde_json::from_str(&output)?;
        let objects = json["nftables"].as_array().context("no list of objects")?;
        let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
        packets.with_context(|| format!("no counter {counter} in table {table}"))
    }

    /// `key` with slashes, as below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| fs::write(&path, value))?.with_context(|| format!("{path} on {}", self.label))
    }

    /// Interfaces, addresses, routes, rules, proxied neighbours and nftables, as text to compare.
    pub fn network_state(&self) -> Result<String> {
        let mut state = String::new();
        for line in [
            "ip -o link",
            "ip -o address",
            "ip route show table all",
            "ip -6 route show table all",
            "ip rule",
            "ip -6 rule",
            "ip neigh show proxy",
            "nft list ruleset",
        ] {
            state += &format!("# {line}\n{}", self.sh(line)?);
        }
        Ok(state)
    }

    /// Forwards packets, as a router does.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Runs `work` on a thread in this namespace and waits for it. Sockets made by it stay in this namespace wherever
    /// they are used afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&file).map(|()| work()));
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(format!("{DIRECTORY}/{}", self.name)).with_context(|| format!("namespace {} is gone", self.name))
    }
}

/// Moves the calling thread into the namespace; for threads of their own only.
pub(crate) fn enter(namespace: &File) -> Result<()> {
    // SAFETY: setns takes a descriptor, which lives as long as `namespace`, and changes this thread alone.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    ensure!(result == 0, "setns: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Names of the namespaces that exist and start with `prefix`.
pub(crate) fn names(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(prefix)).collect()
}

/// Ends every process in it and takes it away.
pub(crate) fn remove(name: &str) {
    for pid in pids(name) {
        // SAFETY: kill has no memory to get wrong; the process lives in a namespace that only a lab could have made.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

fn pids(name: &str) -> Vec<i32> {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).stderr(Stdio::null()).output() else {
        return Vec::new();
    };
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A thread of this process in the namespace does not make this process one of its own.
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != own).collect()
}

/// Runs a tool with `input`; an error with what it said if it fails.
pub(crate) fn tool(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{program} is not installed"))?;
    let mut stdin = child.stdin.take().context("piped")?;
    // A tool that fails early closes its input; what it said follows.
    let _ = stdin.write_all(input.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {said}\n{input}", arguments.join(" "));
    Ok(())
}
