//! `vp-ctl drain` and `undrain`: no new flows, and new flows again.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::Args;
use vp_proto::api::{Done, DrainRequest};

/// Give a service, one of its targets, or all of this site no new flows; open ones go on
///
/// Other sites hear of it at once and refuse new flows as service-down. It is kept when the agent restarts; `vp-ctl flows`
/// shows what is left.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl drain web --target 10.0.0.5
  vp-ctl drain")]
pub struct Drain {
    /// A service of this site; absent: all of them
    service: Option<String>,
    /// One of its targets; absent: all of them
    #[arg(long, short, value_name = "ADDRESS", requires = "service")]
    target: Option<String>,
}

/// Let what was drained have new flows again
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  vp-ctl undrain web --target 10.0.0.5\n  vp-ctl undrain")]
pub struct Undrain {
    /// As it was drained
    service: Option<String>,
    /// As it was drained
    #[arg(long, short, value_name = "ADDRESS", requires = "service")]
    target: Option<String>,
}

impl Drain {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { service, target } = self;
        change(DrainRequest { service, target, drained: true }, "gets no new flows", client, screen)
    }
}

impl Undrain {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { service, target } = self;
        change(DrainRequest { service, target, drained: false }, "gets new flows again", client, screen)
    }
}

fn change(request: DrainRequest, done: &str, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
    let what = match (&request.service, &request.target) {
        (Some(service), Some(target)) => format!("{target} of {service}"),
        (Some(service), None) => service.clone(),
        (None, _) => "this site".to_owned(),
    };
    let answer = client.post("/v1/drain", &request)?;
    let answer: Done = screen.show(&answer, |_, page| page.line(format!("{what} {done}")))?;
    screen.warn(&answer.warnings);
    Ok(Outcome::Done)
}
