//! `vp-ctl check`: whether a configuration file is good, in the words of the agent that would read it.

use crate::Outcome;
use crate::failure::Failure;
use crate::files::{AGENT, agent};
use crate::render::{Screen, escape};
use clap::Args;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What its lines begin with.
const OWN_NAME: &str = "vp-agent: ";

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
        let mut command = Command::new(agent());
        command.arg("--check").arg(&self.file).stdin(Stdio::null());
        let output = command.output().map_err(|error| not_run(&error))?;
        let (file, good) = (self.file.to_string_lossy(), output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        let mut lines: Vec<String> =
            said.lines().map(|line| escape(line.strip_prefix(OWN_NAME).unwrap_or(line))).collect();
        if !good && lines.is_empty() {
            lines.push(format!("{AGENT} ends with {}", output.status));
        }
        if screen.is_json() {
            let answer = serde_json::json!({ "file": file, "good": good, "messages": lines });
            screen.print(&format!("{answer:#}\n"))?;
            return Ok(if good { Outcome::Done } else { Outcome::Failed });
        }
        if !good {
            return Err(Failure::Refused(lines.join("\n")));
        }
        let warnings: Vec<String> =
            lines.iter().map(|line| line.strip_prefix("warning: ").unwrap_or(line).to_owned()).collect();
        screen.warn(&warnings);
        screen.print(&format!("{}: good\n", escape(&file)))?;
        Ok(Outcome::Done)
    }
}

fn not_run(error: &io::Error) -> Failure {
    Failure::Refused(format!("{AGENT} is needed beside vp-ctl or in PATH, to check as it would at its start: {error}"))
}
