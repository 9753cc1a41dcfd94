//! `vp-ctl whois`: who stands behind a local address.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Screen, Table, optional, strong, text};
use clap::Args;
use vp_proto::api;

/// Say who stands behind a presence
///
/// Ends with 1 if the address stands for nobody.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl whois 10.0.9.2")]
pub struct Whois {
    /// A local address, as a server's log shows it
    address: String,
}

impl Whois {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let answer = client.get("/v1/whois", &[("address", &self.address)])?;
        let whois: api::Whois = screen.show(&answer, |whois: &api::Whois, page| {
            let api::Whois { address, kind, site, service, client, wire_address, flows } = whois;
            let mut table = Table::new(&["", ""]);
            table.row([text("address"), strong(address)]);
            table.row([text("stands for"), text(meaning(kind))]);
            for (name, value) in [("site", site), ("service", service), ("client", client), ("wire", wire_address)] {
                if value.is_some() {
                    table.row([text(name), optional(value.as_deref())]);
                }
            }
            if ["service", "caller"].contains(&kind.as_str()) {
                table.row([text("flows"), text(flows.to_string())]);
            }
            page.list(&table);
        })?;
        Ok(if whois.kind == "nobody" { Outcome::Failed } else { Outcome::Done })
    }
}

fn meaning(kind: &str) -> String {
    match kind {
        "service" => "a service of another site",
        "caller" => "a caller from another site",
        "gateway" => "this gateway itself",
        "host" => "a host of this site",
        "nobody" => "nobody",
        newer => newer,
    }
    .to_owned()
}
