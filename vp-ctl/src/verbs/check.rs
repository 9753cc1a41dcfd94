//! `vp-ctl check`: whether a configuration file is good, in the words of the agent that would read it.

use crate::Outcome;
use crate::failure::Failure;
use crate::render::{Screen, escape};
use clap::Args;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const AGENT: &str = "vp-agent";

/// Check a configuration file without touching the running agent
///
/// Runs `vp-agent --check FILE`. Ends with 1 if the file is not good; the agent says where and what it expected.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl check /etc/vp/agent.yaml && vp-ctl reload")]
pub struct Check {
    /// Such as /etc/vp/agent.yaml
    file: PathBuf,
}

impl Check {
    pub fn run(self, screen: &Screen) -> Result<Outcome, Failure> {
        let output = Command::new(agent()).arg("--check").arg(&self.file).output().map_err(|error| not_run(&error))?;
        let good = output.status.success();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let lines: Vec<String> = said.lines().map(escape).collect();
        if screen.is_json() {
            let answer = serde_json::json!({ "file": self.file.to_string_lossy(), "good": good, "messages": lines });
            screen.print(&format!("{answer:#}\n"))?;
        } else if good {
            let text = if lines.is_empty() {
                format!("{}: good", escape(&self.file.to_string_lossy()))
            } else {
                lines.join("\n")
            };
            screen.print(&format!("{text}\n"))?;
        } else {
            let text = if lines.is_empty() { format!("{AGENT} failed: {}", output.status) } else { lines.join("\n") };
            return Err(Failure::Refused(text));
        }
        Ok(if good { Outcome::Done } else { Outcome::Failed })
    }
}

/// The agent installed with us, else whichever the path has.
fn agent() -> PathBuf {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(AGENT)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| Path::new(AGENT).to_owned())
}

fn not_run(error: &io::Error) -> Failure {
    Failure::Refused(format!("{AGENT} is needed beside vp-ctl or in PATH, to check as it would at its start: {error}"))
}
