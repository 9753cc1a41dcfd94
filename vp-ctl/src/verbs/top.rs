//! `vp-ctl top`: the gateway, live.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::Screen;
use crate::top::{self, View};
use clap::Args;
use std::io::{IsTerminal, stdin, stdout};
use std::time::Duration;

/// Longer than anybody looks at one picture.
const SECONDS_MAX: u64 = 3600;

/// Watch the sites, services, flows and denials of this gateway, live, with rates
///
/// Keys: 1 to 4 or Tab for another view, s for another column to sort by and r for the other order, arrows and Page Up/Down
/// to scroll, p to pause, q to leave.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl top
  vp-ctl top --view flows --every 5
  vp-ctl top --once --view services")]
pub struct Top {
    /// What to show first
    #[arg(long, value_enum, value_name = "VIEW", default_value_t = View::Sites)]
    view: View,
    /// Seconds between two looks at the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    every: u64,
    /// Print one picture as text, after two looks, and end; needs no terminal
    #[arg(long)]
    once: bool,
}

impl Top {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        if screen.is_json() {
            return Err(Failure::Refused("top has no JSON, expected vp-ctl -o json status, flows or audit".into()));
        }
        let every = Duration::from_secs(self.every);
        if self.once {
            screen.print(&top::once(client, self.view, every)?)?;
        } else if stdin().is_terminal() && stdout().is_terminal() {
            top::watch(client, self.view, every)?;
        } else {
            return Err(Failure::Refused("top needs a terminal, expected one, or --once to print one picture".into()));
        }
        Ok(Outcome::Done)
    }
}
