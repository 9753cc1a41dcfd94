//! `vp-ctl gather`: an archive for support.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::gather::{collect, write};
use crate::render::{Screen, escape};
use clap::Args;
use std::path::PathBuf;
use std::time::SystemTime;

/// Gather what support needs into one archive: versions, status, configuration, routes, rules, figures, the last records
///
/// There is no key in it, private or public: each became a short fingerprint. Addresses and names of this site are in it.
/// What could not be had left its error there. Run it as root, also when the agent does not run.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl gather
  vp-ctl gather /tmp/factory.tar.gz")]
pub struct Gather {
    /// The archive to make [default: vp-gather-SECONDS.tar.gz, here]
    file: Option<PathBuf>,
    /// The agent's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/vp/agent.yaml")]
    config: PathBuf,
}

impl Gather {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let folder = format!("vp-gather-{seconds}");
        let file = self.file.unwrap_or_else(|| format!("{folder}.tar.gz").into());
        let items = collect(client, &self.config);
        let shown = escape(&file.to_string_lossy());
        write(&file, &folder, &items, now).map_err(|error| Failure::Refused(format!("{shown}: {error}")))?;
        if screen.is_json() {
            let items: Vec<_> = items
                .iter()
                .map(|item| serde_json::json!({"name": item.name, "error": item.error.as_deref().map(escape)}))
                .collect();
            screen.print(&format!("{:#}\n", serde_json::json!({"file": shown, "items": items})))?;
            return Ok(Outcome::Done);
        }
        let failed = items.iter().filter_map(|item| Some((item.name, item.error.as_deref()?)));
        let warnings: Vec<String> = failed.map(|(name, error)| format!("{name}: {}", escape(error))).collect();
        screen.warn(&warnings);
        screen.print(&format!("{shown}\n"))?;
        Ok(Outcome::Done)
    }
}
