//! What support needs of a gateway, in one archive: collected item by item, each bounded in time and size, every key taken
//! out. What cannot be had leaves its error there.

mod archive;
mod redact;

pub use archive::write;

use crate::client::Client;
use crate::failure::Failure;
use redact::redact;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// An item is cut behind this: 100,000 lines or so.
const ITEM_BYTES_MAX: usize = 8 << 20;
/// For one program.
const PROGRAM_MAX: Duration = Duration::from_secs(10);
const AUDIT_LINES: &str = "1000";
const FLOWS: &str = "1000";

/// A file of the archive, and what the agent is asked for it.
type Question = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const QUESTIONS: [Question; 6] = [
    ("agent/status.json", "/v1/status", &[]),
    ("agent/services.json", "/v1/services", &[]),
    ("agent/flows.json", "/v1/flows", &[("limit", FLOWS)]),
    ("agent/doctor.json", "/v1/doctor", &[]),
    ("agent/metrics.txt", "/metrics", &[]),
    (AUDIT, "/v1/audit", &[("lines", AUDIT_LINES)]),
];
const AUDIT: &str = "agent/audit.jsonl";

/// What programs of the host say.
const PROGRAMS: [(&str, &str); 10] = [
    ("host/kernel.txt", "uname -a"),
    ("host/links.txt", "ip -s -d link"),
    ("host/addresses.txt", "ip addr"),
    ("host/rules.txt", "ip rule"),
    ("host/routes-ipv4.txt", "ip -4 route show table all"),
    ("host/routes-ipv6.txt", "ip -6 route show table all"),
    ("host/neighbours.txt", "ip neigh show proxy"),
    ("host/nft.txt", "nft list ruleset"),
    ("host/sockets.txt", "ss -ulnp"),
    ("host/journal.txt", "journalctl -u vp-agent -n 2000 --no-pager"),
];

/// Below /proc/sys: what decides whether packets pass.
const SWITCHES: [&str; 12] = [
    "kernel/osrelease",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/conf/all/proxy_arp",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
];

/// One file of the archive.
pub struct Item {
    pub name: &'static str,
    pub text: String,
    /// Why it could not be had, or not all of it.
    pub error: Option<String>,
}

pub fn collect(client: &Client, configuration: &Path) -> Vec<Item> {
    let mut items = vec![
        item("versions.txt", Ok(versions())),
        item("configuration.yaml", fs::read_to_string(configuration).map_err(|error| error.to_string())),
        item("host/sysctl.txt", Ok(switches())),
    ];
    let mut is_away = None;
    for (name, path, query) in QUESTIONS {
        // Who does not answer one question is not waited for with the next.
        let answer = match &is_away {
            Some(why) => Err(String::clone(why)),
            None => client.get(path, query).map_err(|failure| {
                let why = failure.to_string();
                if matches!(failure, Failure::Unreachable { .. }) {
                    is_away = Some(why.clone());
                }
                why
            }),
        };
        items.push(item(name, answer));
    }
    items.extend(PROGRAMS.iter().map(|(name, line)| item(name, run(line, PROGRAM_MAX))));
    items
}

fn item(name: &'static str, got: Result<String, String>) -> Item {
    let (mut text, mut error) = match got {
        Ok(text) => (text, None),
        Err(why) => (format!("error: {why}\n"), Some(why)),
    };
    if text.len() > ITEM_BYTES_MAX {
        text.truncate(text.floor_char_boundary(ITEM_BYTES_MAX));
        text.push_str("\n(cut here)\n");
        error = Some(format!("longer than {} MiB, and cut", ITEM_BYTES_MAX >> 20));
    }
    // Hashes of the audit log's lines look like keys in hexadecimal, and are none.
    Item { name, text: redact(&text, name != AUDIT), error }
}

fn versions() -> String {
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    format!("vp-ctl {}\nThe agent's version is in agent/status.json.\n\n{system}", env!("CARGO_PKG_VERSION"))
}

fn switches() -> String {
    let read = |path: &str| match fs::read_to_string(format!("/proc/sys/{path}")) {
        Ok(value) => format!("{path} = {}\n", value.trim()),
        Err(error) => format!("{path}: {error}\n"),
    };
    SWITCHES.iter().map(|path| read(path)).collect()
}

/// Both outputs of a program, in the order they came.
fn run(line: &str, patience: Duration) -> Result<String, String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let failed = |error: io::Error| format!("{line}: {error}");
    let (output, input) = io::pipe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stderr(input.try_clone().map_err(failed)?).stdout(input);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    let mut child = command.spawn().map_err(failed)?;
    // With it go this process's own ends of the pipe.
    drop(command);
    let (read, text) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let ended = output.take(ITEM_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        // Nobody may be waiting any more.
        read.send(ended.map(|_| bytes)).ok();
    });
    let text = text.recv_timeout(patience);
    if !matches!(text, Ok(Ok(_))) {
        child.kill().ok();
    }
    let text = text.map_err(|_| format!("{line}: not done within {} s", patience.as_secs()))?.map_err(failed)?;
    let cut = text.len() > ITEM_BYTES_MAX;
    if cut {
        child.kill().ok();
    }
    let status = child.wait().map_err(failed)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if status.success() || cut { Ok(text) } else { Err(format!("{line}: {status}: {}", text.trim())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_is_missing_or_does_not_end_leaves_its_error() {
        assert_eq!(run("echo well", PROGRAM_MAX), Ok("well\n".to_owned()));
        let said = |line: &str, patience| run(line, patience).expect_err("an error");
        assert!(said("ls /nonexistent", PROGRAM_MAX).contains("No such file"));
        assert!(said("no-such-program", PROGRAM_MAX).starts_with("no-such-program: "));
        assert!(said("sleep 100", Duration::from_millis(50)).contains("not done within"));
        let endless = item("x", run("yes", PROGRAM_MAX));
        assert!(endless.text.len() < ITEM_BYTES_MAX + 100 && endless.error.is_some_and(|error| error.contains("cut")));
    }
}
