//! `vp-ctl completions`: what a shell needs to complete our words.

use crate::Outcome;
use crate::failure::Failure;
use crate::render::Screen;
use clap::{Args, Command};
use clap_complete::Shell;

/// Print the completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  source <(vp-ctl completions bash)
  vp-ctl completions fish > ~/.config/fish/completions/vp-ctl.fish")]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self, screen: &Screen, mut whole: Command) -> Result<Outcome, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut whole, "vp-ctl", &mut script);
        screen.print(&String::from_utf8_lossy(&script))?;
        Ok(Outcome::Done)
    }
}
