//! `vp-ctl services`: what other sites let this one use.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Screen, Table, judged, list, optional, strong};
use clap::Args;
use vp_proto::api::RemoteService;

/// List the services of other sites that this site may use, mapped or not
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl services
  vp-ctl -o json services | jq -r '.[] | select(.mapped | not) | .service'")]
pub struct Services {}

impl Services {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let answer = client.get("/v1/services", &[])?;
        screen.show(&answer, |services: &Vec<RemoteService>, page| {
            let mut table = Table::new(&["SERVICE", "PORTS", "STATE", "LOCAL ADDRESS", "NAME"]);
            for RemoteService { service, name, ports, addresses, state, .. } in services {
                let name = optional(name.as_deref());
                table.row([strong(service), list(ports), judged(state), list(addresses), name]);
            }
            page.table(&table, "no other site offers this one a service");
        })?;
        Ok(Outcome::Done)
    }
}
