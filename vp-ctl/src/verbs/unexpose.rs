//! `vp-ctl unexpose`: takes a service away from other sites.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::Args;
use vp_proto::api::{Done, UnexposeRequest};

/// Take a service of this site away from the others
///
/// Its flows end. A service that the configuration file has is taken out there, followed by `vp-ctl reload`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl unexpose web")]
pub struct Unexpose {
    /// The service's name
    name: String,
}

impl Unexpose {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { name } = self;
        let answer = client.post("/v1/unexpose", &UnexposeRequest { name: name.clone() })?;
        let done: Done = screen.show(&answer, |_, page| page.line(format!("{name} is no longer exposed")))?;
        screen.warn(&done.warnings);
        Ok(Outcome::Done)
    }
}
