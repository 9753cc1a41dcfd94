//! The kernel's masquerade behind this gateway, and who may send from and to presences: one nftables table of our own,
//! `inet vp_INTERFACE`, replaced whole at start and removed at stop. Flows that are open keep their translation when
//! the table changes or goes; the kernel keeps it with the flow.
//!
//! Never touches another program's tables. What those drop stays dropped; of two that would translate a source
//! address, the first does, and ours asks just before the usual place (`srcnat`).

mod area;
mod ruleset;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use ruleset::Timeouts;
pub use ruleset::name as table_name;
use serde_json::Value;
use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};
use vp::catalogue::Exposure;

/// Where Debian has it, for a service whose PATH has no such directory.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// What the table should do.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    pub pool: Vec<IpNet>,
    /// All exposed services; those with `source: masquerade` get it.
    pub services: Vec<Exposure>,
    /// Ports of this host that no masqueraded flow may take: the tunnels', the metrics', the name server's. Ports
    /// below 1024 are kept anyway.
    pub own_ports: Vec<u16>,
}

/// Our table.
pub struct Firewall {
    interface: String,
    timeouts: Timeouts,
    applied: Option<Wanted>,
}

impl Firewall {
    /// `interface` is the TUN device.
    #[must_use]
    pub fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), timeouts: Timeouts::of_this_host(), applied: None }
    }

    /// Makes the table do what is wanted, in one transaction. The first time it replaces what a killed predecessor
    /// left; later it changes rules and sets in place, so that open flows keep their timers.
    pub async fn apply(&mut self, wanted: Wanted) -> Result<()> {
        if self.applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let rules = ruleset::table(&self.interface, &wanted, &self.timeouts);
        let name = ruleset::name(&self.interface);
        let whole = format!("{}{rules}", ruleset::replace(&name));
        if self.applied.is_none() {
            run(whole).await?;
        } else if run(format!("{}{rules}", ruleset::empty(&name))).await.is_err() {
            // Somebody removed the table, or parts of it.
            run(whole).await?;
        }
        self.applied = Some(wanted);
        Ok(())
    }

    /// Whether the table is there; another program may have flushed all tables.
    pub async fn is_in_place(&self) -> Result<bool> {
        let (name, interface) = (ruleset::name(&self.interface), self.interface.clone());
        let listing =
            nft(vec!["--terse".to_owned(), "list".to_owned(), "table".to_owned(), "inet".to_owned(), name], None);
        let output = listing.await?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(output.status.success() && text.contains("masquerade") && text.contains(&interface))
    }

    /// Puts the table back where somebody removed it; true if that was needed.
    pub async fn restore(&mut self) -> Result<bool> {
        if self.applied.is_none() || self.is_in_place().await? {
            return Ok(false);
        }
        if let Some(wanted) = self.applied.take() {
            self.apply(wanted).await?;
        }
        Ok(true)
    }

    /// The host without our table.
    pub async fn remove(self) -> Result<()> {
        run(ruleset::remove(&ruleset::name(&self.interface))).await
    }
}

/// All tables of this host, as nft tells programs.
pub async fn listing() -> Result<Value> {
    let output = nft(vec!["-j".to_owned(), "list".to_owned(), "ruleset".to_owned()], None).await?;
    serde_json::from_slice(&output.stdout).context("reading what nft lists")
}

/// One transaction: all of it or nothing.
async fn run(rules: String) -> Result<()> {
    let output = nft(vec!["-f".to_owned(), "-".to_owned()], Some(rules)).await?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().map(str::trim).find(|line| line.contains("rror:")).or(text.lines().next());
    bail!("nft refused the table: {}", line.unwrap_or("no reason given"))
}

async fn nft(arguments: Vec<String>, input: Option<String>) -> Result<Output> {
    tokio::task::spawn_blocking(move || run_program(&arguments, input.as_deref())).await.context("running nft")?
}

fn run_program(arguments: &[String], input: Option<&str>) -> Result<Output> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context("cannot run nft"),
        };
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // One that stops reading says why; it reads all before it prints.
            stdin.write_all(input.as_bytes()).ok();
        }
        return child.wait_with_output().context("cannot run nft");
    }
    bail!("the program nft is missing (package nftables)")
}
