//! `vp-ctl flows`: what goes through the gateway now.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Screen, Table, bytes, duration, judged, optional, strong, text};
use clap::Args;
use vp_proto::api::{Ends, Flow};

/// List the open flows, with both views of each address: this site's, and the one inside the tunnel
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl flows
  vp-ctl flows --service web.cloud --limit 20
  vp-ctl -o json flows | jq -r '.[] | [.site.caller, .wire.caller] | @tsv'")]
pub struct Flows {
    /// Only those of this service: web.cloud, or web for one of this site
    #[arg(long, short, value_name = "SERVICE")]
    service: Option<String>,
    /// At most this many
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<u64>,
}

impl Flows {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let limit = self.limit.map(|limit| limit.to_string());
        let query = [("service", &self.service), ("limit", &limit)];
        let query: Vec<(&str, &str)> =
            query.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect();
        let answer = client.get("/v1/flows", &query)?;
        screen.show(&answer, |flows: &Vec<Flow>, page| page.table(&table(flows), "no open flows"))?;
        Ok(Outcome::Done)
    }
}

fn table(flows: &[Flow]) -> Table {
    let mut table = Table::new(&[
        "SERVICE",
        "PEER",
        "CLIENT",
        "HERE",
        "PROTOCOL",
        "STATE",
        "SITE VIEW",
        "WIRE VIEW",
        "AGE",
        "IDLE",
        "OUTBOUND",
        "INBOUND",
    ]);
    for flow in flows {
        table.row([
            strong(&flow.service),
            text(&flow.peer),
            optional(flow.client.as_deref()),
            text(&flow.role),
            text(&flow.protocol),
            judged(&flow.state),
            text(arrow(&flow.site)),
            text(arrow(&flow.wire)),
            text(duration(flow.age_seconds)).right(),
            text(duration(flow.idle_seconds)).right(),
            text(bytes(flow.outbound_bytes)).right(),
            text(bytes(flow.inbound_bytes)).right(),
        ]);
    }
    table
}

fn arrow(Ends { caller, service }: &Ends) -> String {
    format!("{caller} -> {service}")
}
