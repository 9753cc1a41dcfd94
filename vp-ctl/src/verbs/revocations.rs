//! `vp-ctl revocations`: gives a signed list to the agent, which acts on it at once and passes it on to its peers.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::files;
use crate::render::Screen;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use vp_proto::api::{RevocationsRequest, RevocationsResponse};

/// Give a list of revocations to the agent
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vp-ctl revocations add acme.revocations")]
pub struct Revocations {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Act on a signed list at once: what is on it ends here, and at every peer that this site reaches
    ///
    /// Refused, with the reason, if it is older than what the agent knows or nobody that it trusts has signed it. The agent
    /// keeps it.
    #[command(after_help = "Example:\n  vp-ctl revocations add acme.revocations")]
    Add { file: PathBuf },
}

impl Revocations {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let What::Add { file } = self.what;
        let list = files::read_text(&file)?.to_string();
        let answer = client.post("/v1/revocations", &RevocationsRequest { list })?;
        screen.show(&answer, |answer: &RevocationsResponse, page| {
            let RevocationsResponse { tenant, version, revoked, is_new } = answer;
            let known = if *is_new { "" } else { " (known already)" };
            page.line(format!("{tenant}: version {version}, {revoked} revoked{known}"));
        })?;
        Ok(Outcome::Done)
    }
}
