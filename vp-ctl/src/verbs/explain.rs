//! `vp-ctl explain`: whether a flow would be allowed, and why.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Screen, judged_inline};
use clap::Args;
use vp_proto::api::{ExplainRequest, Explanation};

/// Say whether a caller may use a service, step by step, and what to change if not
///
/// Ends with 1 if it may not.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl explain --from plc --to web.cloud --port tcp/8080
  vp-ctl explain --from 10.0.0.17 --to web.cloud --port icmp")]
pub struct Explain {
    /// A client's name or an address of this site [default: the gateway itself]
    #[arg(long, short, value_name = "CALLER")]
    from: Option<String>,
    /// Such as web.cloud
    #[arg(long, short, value_name = "SERVICE")]
    to: String,
    /// As the caller calls it: tcp/8080, udp/53 or icmp
    #[arg(long, short, value_name = "PORT")]
    port: String,
}

impl Explain {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { from, to, port } = self;
        let answer = client.post("/v1/explain", &ExplainRequest { from, to, port })?;
        let Explanation { verdict, .. } = screen.show(&answer, |Explanation { verdict, reason, steps }, page| {
            page.steps(steps);
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            page.line(format!("{}{reason}", judged_inline(verdict)));
        })?;
        Ok(if verdict == "allowed" { Outcome::Done } else { Outcome::Failed })
    }
}
