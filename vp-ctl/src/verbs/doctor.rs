//! `vp-ctl doctor`: what is wrong with the gateway or its surroundings.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::Args;
use vp_proto::api::Finding;

/// Look for what is wrong with the gateway or its surroundings, and say how to mend it
///
/// Ends with 1 if there is an error; a warning alone does not count.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl doctor")]
pub struct Doctor {}

impl Doctor {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let answer = client.get("/v1/doctor", &[])?;
        let findings: Vec<Finding> = screen.show(&answer, |findings: &Vec<Finding>, page| {
            page.findings(findings);
            if findings.is_empty() {
                page.line("nothing to mend");
            }
        })?;
        let errors = findings.iter().any(|finding| finding.severity == "error");
        Ok(if errors { Outcome::Failed } else { Outcome::Done })
    }
}
