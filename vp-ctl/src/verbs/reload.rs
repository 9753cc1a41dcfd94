//! `vp-ctl reload`: makes the agent read its configuration again.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::Args;
use vp_proto::api::Done;

/// Make the agent read its configuration again
///
/// Flows that are still allowed go on. If the file is not good the agent keeps what it has, and this ends with 1.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl check /etc/vp/agent.yaml && vp-ctl reload")]
pub struct Reload {}

impl Reload {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let answer = client.post("/v1/reload", &())?;
        let done: Done = screen.show(&answer, |_, page| page.line("reloaded"))?;
        screen.warn(&done.warnings);
        Ok(Outcome::Done)
    }
}
