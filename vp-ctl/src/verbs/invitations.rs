//! `vp-ctl invitations`: whom an issuer invited.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Screen, Table, judged, list, strong, text};
use clap::Args;
use vp_proto::api::{Invitation, TakeBackRequest};

/// Show whom this issuer invited, or take an invitation back
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl invitations
  vp-ctl -o json invitations | jq '.[] | select(.state == \"open\")'
  vp-ctl invitations --revoke 3f0a9c51e2b7")]
pub struct Invitations {
    /// Take back the open invitation of this id: its token is refused from now on. Who has joined by it stays
    #[arg(long, value_name = "ID")]
    revoke: Option<String>,
}

impl Invitations {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        match self.revoke {
            Some(id) => {
                let answer = client.post("/v1/invitations", &TakeBackRequest { id })?;
                screen.show(&answer, |taken: &Invitation, page| {
                    page.line(format!("the invitation {} of {} is taken back", taken.id, taken.site));
                })?;
            }
            None => {
                let answer = client.get("/v1/invitations", &[])?;
                screen.show(&answer, |known: &Vec<Invitation>, page| {
                    page.table(&table(known), "none: vp-ctl invite SITE makes one");
                })?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn table(known: &[Invitation]) -> Table {
    let mut table = Table::new(&["ID", "SITE", "GROUPS", "STATE", "USES LEFT", "EXPIRES"]);
    for Invitation { id, site, groups, state, uses, uses_left, expires, .. } in known {
        table.row([
            strong(id),
            text(site),
            list(groups),
            judged(state),
            text(format!("{uses_left} of {uses}")),
            text(expires),
        ]);
    }
    table
}
