//! `vp-ctl map`: gives a remote service a local address.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Screen, Table, text};
use clap::Args;
use vp_proto::api::{MapRequest, MapResponse};

/// Give a service of another site a local address, and print that address
///
/// The mapping is kept when the agent restarts, and shown by `vp-ctl status` as added at run time. Its name, where names are
/// served, and warnings go to standard error, so that standard output is the address alone.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl map web.cloud
  curl http://$(vp-ctl map web.cloud)/
  vp-ctl map web.cloud --address 10.0.1.80 --port tcp/80=tcp/8080 --caller plc
  vp-ctl map '*.cloud'")]
pub struct Map {
    /// Such as web.cloud, or *.cloud for all that the site offers
    service: String,
    /// The local address, from the site's pool [default: the next free one]
    #[arg(long, short, value_name = "ADDRESS")]
    address: Option<String>,
    /// A port of the service, or LOCAL=REMOTE to have it at another one [default: all of the service's]
    #[arg(long = "port", short, value_name = "PORT", value_delimiter = ',')]
    ports: Vec<String>,
    /// Who may use it: a client's name, an address or a prefix of this site [default: every host]
    #[arg(long = "caller", short, value_name = "CALLER", value_delimiter = ',')]
    callers: Vec<String>,
}

impl Map {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { service, address, ports, callers } = self;
        let several = service.starts_with("*.");
        let answer = client.post("/v1/map", &MapRequest { service, address, ports, callers })?;
        let response = screen.show(&answer, |MapResponse { presences, .. }, page| {
            let mut table = Table::new(&["", ""]);
            for presence in presences {
                let name = presence.name.as_ref().unwrap_or(&presence.service);
                table.row([text(&presence.address), text(if several { name } else { "" })]);
            }
            page.list(&table);
        })?;
        let mut names: Vec<&str> = response.presences.iter().filter_map(|presence| presence.name.as_deref()).collect();
        names.dedup();
        names.iter().filter(|_| !several).for_each(|name| screen.note(&format!("its name is {name}")));
        screen.warn(&response.warnings);
        if response.presences.is_empty() && response.warnings.is_empty() {
            screen.warn(&["mapped, but no address yet: the site does not offer such a service at present".to_owned()]);
        }
        Ok(Outcome::Done)
    }
}
