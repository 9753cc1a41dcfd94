//! `vp-ctl audit`: the audit log, and what is added to it.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::json;
use crate::render::{Screen, bytes, escape, judged_inline, milliseconds};
use crate::verify::{Bad, Good, verify};
use clap::{Args, Subcommand};
use std::fs;
use std::path::PathBuf;
use vp_proto::api::{AuditRecord, Ends};
use vp_proto::chain::{Head, hex};

/// Unless told otherwise: a screenful, or all since then.
const LINES: u64 = 10;
const LINES_SINCE: u64 = 20_000;

/// Show the last records of the audit log: flows opened, closed and denied, and changes of the configuration
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  vp-ctl audit -n 20
  vp-ctl audit -f --service web.cloud --event denied
  vp-ctl audit --since 10m --client plc
  vp-ctl audit --flow 0123456789abcdef-01234567
  vp-ctl audit verify /var/log/vp/audit.jsonl*"
)]
pub struct Audit {
    #[command(subcommand)]
    what: Option<What>,
    /// Go on with what is added, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// How many of the last records [default: 10, or all with --since]
    #[arg(long, short = 'n', value_name = "COUNT")]
    lines: Option<u64>,
    /// Only of this service: web.cloud, or web for one of this site
    #[arg(long, short, value_name = "SERVICE")]
    service: Option<String>,
    /// Only of this peer's site
    #[arg(long, value_name = "SITE")]
    peer: Option<String>,
    /// Only of the caller of this name
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// Only this kind: flow-opened, flow-closed, denied, configuration and so on
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Only with this reason: not-allowed, idle and so on
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Only since then: 10m, 2h, 7d, or a date or time such as 2026-11-21T08:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only this flow, here or at the other gateway; the first half of an id is all connections between the same ends
    #[arg(long, value_name = "ID")]
    flow: Option<String>,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Say whether the log's files are as they were written: no line edited, dropped or moved
    ///
    /// Needs no agent. Ends with 1 at the first line that is not, and says what is wrong with it. That lines were cut off the
    /// end shows only against --head, or against a hash that was kept elsewhere.
    #[command(after_help = "\
Examples:
  vp-ctl audit verify /var/log/vp/audit.jsonl*
  vp-ctl audit verify --head /var/lib/vp/audit.head /var/log/vp/audit.jsonl")]
    Verify(Verify),
}

#[derive(Args, Debug)]
struct Verify {
    /// The files of one log, also rotated and compressed ones (.gz), in any order
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the agent keeps how far the log goes: audit.head in its state_dir
    #[arg(long, value_name = "FILE")]
    head: Option<PathBuf>,
}

impl Audit {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        if let Some(What::Verify(verify)) = self.what {
            return verify.run(screen);
        }
        let lines = self.lines.unwrap_or(if self.since.is_some() { LINES_SINCE } else { LINES }).to_string();
        let follow = self.follow;
        let mut query = vec![("lines", lines.as_str()), ("follow", if follow { "true" } else { "false" })];
        let filters = [
            ("service", &self.service),
            ("peer", &self.peer),
            ("client", &self.client),
            ("event", &self.event),
            ("reason", &self.reason),
            ("since", &self.since),
            ("flow", &self.flow),
        ];
        query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
        client.lines("/v1/audit", &query, |record| {
            let line = if screen.is_json() { json::line(record)? } else { describe(&json::decode(record)?) };
            screen.print(&(line + "\n"))
        })?;
        if follow { Err(client.ended()) } else { Ok(Outcome::Done) }
    }
}

impl Verify {
    fn run(self, screen: &Screen) -> Result<Outcome, Failure> {
        let head = self.head.map(|path| {
            let no_head = |what: String| Failure::Refused(format!("{}: {what}", path.display()));
            let text = fs::read_to_string(&path).map_err(|error| no_head(error.to_string()))?;
            Head::parse(&text).ok_or_else(|| no_head("no end of a chain".to_owned()))
        });
        let verdict = verify(&self.files, head.transpose()?)?;
        if screen.is_json() {
            screen.print(&format!("{:#}\n", as_json(&verdict)))?;
        }
        match verdict {
            Ok(_) if screen.is_json() => Ok(Outcome::Done),
            Ok(Good { first, first_time, last, last_time }) => {
                let (first_time, last_time) = (escape(&first_time), escape(&last_time));
                let lines = format!("{}  lines {first} to {}", judged_inline("good"), last.sequence);
                let hash = hex(&last.hash);
                screen.print(&format!("{lines}, {first_time} to {last_time}\n      ends with hash {hash}\n"))?;
                Ok(Outcome::Done)
            }
            Err(_) if screen.is_json() => Ok(Outcome::Failed),
            Err(Bad { file, line, what }) => {
                Err(Failure::Refused(format!("{}:{line}: {what}", escape(&file.to_string_lossy()))))
            }
        }
    }
}

fn as_json(verdict: &Result<Good, Bad>) -> serde_json::Value {
    match verdict {
        Ok(Good { first, first_time, last, last_time }) => serde_json::json!({
            "good": true,
            "first": {"sequence": first, "time": first_time},
            "last": {"sequence": last.sequence, "time": last_time, "hash": hex(&last.hash)},
        }),
        Err(Bad { file, line, what }) => {
            serde_json::json!({"good": false, "file": file.to_string_lossy(), "line": line, "problem": what})
        }
    }
}

/// One record one line: when, what, whom it concerns, both views, how much, why.
fn describe(record: &AuditRecord) -> String {
    let AuditRecord { time, event, peer, client, service, protocol, site_view, wire_view, .. } = record;
    let mut words = vec![time.clone(), judged_inline(event)];
    words.extend([service, protocol].into_iter().flatten().cloned());
    match (client, peer) {
        (Some(client), Some(peer)) => words.push(format!("client {client}, peer {peer}")),
        (Some(client), None) => words.push(format!("client {client}")),
        (None, Some(peer)) => words.push(format!("peer {peer}")),
        (None, None) => {}
    }
    words.extend(site_view.as_ref().map(arrow));
    words.extend(wire_view.as_ref().map(|ends| format!("({} inside the tunnel)", arrow(ends))));
    if let (Some(outbound), Some(inbound)) = (record.outbound_bytes, record.inbound_bytes) {
        words.push(format!("{} outbound, {} inbound", bytes(outbound), bytes(inbound)));
    }
    words.extend(record.duration_ms.map(|duration| format!("in {}", milliseconds(duration as f64))));
    words.extend(record.reason.as_ref().map(|reason| format!("because {reason}")));
    words.extend(record.rule.as_ref().map(|rule| format!("by {rule}")));
    words.extend(record.detail.clone());
    words.extend(record.repeated.map(|count| format!("({count} alike)")));
    words.extend(record.flow.as_ref().map(|flow| format!("flow {flow}")));
    words.join("  ")
}

fn arrow(Ends { caller, service }: &Ends) -> String {
    format!("{caller} -> {service}")
}
