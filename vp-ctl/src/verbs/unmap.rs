//! `vp-ctl unmap`: takes a local address of a remote service back.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use clap::Args;
use vp_proto::api::{Done, UnmapRequest};

/// Take back the local address of a remote service
///
/// Flows through it end. A mapping that the configuration file has is taken out there, followed by `vp-ctl reload`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl unmap web.cloud")]
pub struct Unmap {
    /// As it was mapped: web.cloud, or *.cloud
    service: String,
}

impl Unmap {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let Self { service } = self;
        let answer = client.post("/v1/unmap", &UnmapRequest { service: service.clone() })?;
        let done: Done = screen.show(&answer, |_, page| page.line(format!("{service} is no longer mapped")))?;
        screen.warn(&done.warnings);
        Ok(Outcome::Done)
    }
}
