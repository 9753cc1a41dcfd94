//! etcd, as Debian ships it: a cluster of three, each member in a namespace of its own.

use crate::{Internet, Lab, Namespace, Process, Uplink, wait_until};
use anyhow::{Result, ensure};
use std::fmt::Write;
use std::path::PathBuf;

const MEMBERS: usize = 3;
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

pub struct Etcd {
    members: Vec<Member>,
}

struct Member {
    name: String,
    namespace: Namespace,
    uplink: Uplink,
    process: Process,
}

impl Etcd {
    pub fn new(lab: &Lab, internet: &Internet) -> Result<Self> {
        let mut places = Vec::new();
        for number in 0..MEMBERS {
            let namespace = lab.namespace(&format!("etcd{number}"))?;
            let uplink = internet.connect(&namespace)?;
            places.push((format!("etcd{number}"), namespace, uplink));
        }
        let cluster: Vec<String> =
            places.iter().map(|(name, _, uplink)| format!("{name}=http://{}:{PEER_PORT}", uplink.v4)).collect();
        let start = |(name, namespace, uplink): (String, Namespace, Uplink)| {
            let process = run(lab, &name, &namespace, &uplink, &cluster.join(","))?;
            anyhow::Ok(Member { name, namespace, uplink, process })
        };
        let members = places.into_iter().map(start).collect::<Result<_>>()?;
        let etcd = Self { members };
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    /// As a hub's file names it.
    #[must_use]
    pub fn store(&self) -> String {
        let members: Vec<String> = self.members.iter().map(|of| format!("{}:{CLIENT_PORT}", of.uplink.v4)).collect();
        format!("etcd://{}", members.join(","))
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.members[member].process.kill().map(drop)
    }

    pub fn kill_all(&mut self) -> Result<()> {
        (0..MEMBERS).try_for_each(|member| self.kill(member))
    }

    /// Nothing reaches any of them, until [`Internet::calm`].
    pub fn cut(&self, internet: &Internet) -> Result<()> {
        self.members.iter().try_for_each(|member| internet.lose(&member.uplink, 1000))
    }

    /// Those that were killed, with what they had.
    pub fn start_again(&mut self, lab: &Lab) -> Result<()> {
        let cluster: Vec<String> =
            self.members.iter().map(|of| format!("{}=http://{}:{PEER_PORT}", of.name, of.uplink.v4)).collect();
        for member in &mut self.members {
            if member.process.status()?.is_some() {
                member.process = run(lab, &member.name, &member.namespace, &member.uplink, &cluster.join(","))?;
            }
        }
        self.wait_healthy()
    }

    /// `etcdctl`, of any member that answers.
    pub fn ctl(&self, arguments: &str) -> Result<String> {
        let store = self.store();
        let endpoints = store.trim_start_matches("etcd://");
        self.members[0].namespace.sh(&format!("env ETCDCTL_API=3 etcdctl --endpoints {endpoints} {arguments}"))
    }

    /// Forgets what stood there before, so that no watch can go on from then.
    pub fn compact(&self) -> Result<()> {
        let status = self.ctl("get /none -w json")?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let revision = status["header"]["revision"].as_i64();
        ensure!(revision.is_some(), "{status}");
        self.ctl(&format!("compact {}", revision.unwrap_or_default())).map(drop)
    }

    pub fn wait_healthy(&self) -> Result<()> {
        wait_until("etcd to have a leader", || Ok(self.ctl("endpoint health").is_ok()))
    }
}

fn run(lab: &Lab, name: &str, namespace: &Namespace, uplink: &Uplink, cluster: &str) -> Result<Process> {
    let directory: PathBuf = lab.directory().join(name);
    let (client, peer) = (format!("http://{}:{CLIENT_PORT}", uplink.v4), format!("http://{}:{PEER_PORT}", uplink.v4));
    let mut line = format!("etcd --name {name} --data-dir {} --logger zap --log-level error ", directory.display());
    for (key, value) in [
        ("listen-client-urls", client.as_str()),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", cluster),
    ] {
        // Writing to a String cannot fail.
        write!(line, "--{key} {value} ").ok();
    }
    Process::start_line(lab, namespace, &line)
}
