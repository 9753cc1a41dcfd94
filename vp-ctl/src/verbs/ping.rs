//! `vp-ctl ping`: how far the way to a service is open, layer by layer.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::Args;
use vp_proto::api::{PingRequest, Step};

/// Try the way to a service, one line a layer: tunnel, far gateway, target port
///
/// Ends with 1 if a layer fails.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl ping web.cloud
  vp-ctl ping web.cloud --port tcp/8080")]
pub struct Ping {
    /// Such as web.cloud
    service: String,
    /// The service's port to try [default: its first TCP port]
    #[arg(long, short, value_name = "PORT")]
    port: Option<String>,
}

impl Ping {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { service, port } = self;
        let answer = client.post("/v1/ping", &PingRequest { service, port })?;
        let steps: Vec<Step> = screen.show(&answer, |steps: &Vec<Step>, page| page.steps(steps))?;
        let failed = steps.iter().any(|step| step.outcome == "failed");
        Ok(if failed { Outcome::Failed } else { Outcome::Done })
    }
}
