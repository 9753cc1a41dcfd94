//! `vp-ctl audit`: the audit log, and what is added to it.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::json;
use crate::render::{Screen, bytes, judged_inline, milliseconds};
use clap::Args;
use vp_proto::api::{AuditRecord, Ends};

/// Show the last records of the audit log: flows opened, closed and denied, and changes of the configuration
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl audit -n 20
  vp-ctl audit -f
  vp-ctl -o json audit -f | jq -c 'select(.event == \"denied\")'")]
pub struct Audit {
    /// Go on with what is added, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// How many of the last records
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 10)]
    lines: u64,
}

impl Audit {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { follow, lines } = self;
        let (lines, follow_word) = (lines.to_string(), if follow { "true" } else { "false" });
        client.lines("/v1/audit", &[("lines", &lines), ("follow", follow_word)], |record| {
            let line = if screen.is_json() { json::line(record)? } else { describe(&json::decode(record)?) };
            screen.print(&(line + "\n"))
        })?;
        if follow { Err(client.ended()) } else { Ok(Outcome::Done) }
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
    words.join("  ")
}

fn arrow(Ends { caller, service }: &Ends) -> String {
    format!("{caller} -> {service}")
}
