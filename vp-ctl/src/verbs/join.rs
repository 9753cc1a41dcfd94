//! `vp-ctl join`: makes this host the gateway of the site that a token names.

use super::authority::{now, seconds};
use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::files;
use crate::join::configuration::{self, Site};
use crate::join::host::{self, Existing};
use crate::join::offer::Offer;
use crate::json;
use crate::render::Screen;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use vp::identity::Terms;
use vp_proto::api;

const SOCKET: &str = "/run/vp/agent.sock";
const STATE_DIR: &str = "/var/lib/vp";
/// How often the agent is asked how it stands.
const ASK_PAUSE: Duration = Duration::from_millis(250);
/// Until the site has joined, unless told otherwise.
const WAIT_SECONDS: u64 = 120;

/// Make this host the gateway of a site, with a token or a bundle of vp-ctl invite
///
/// Writes the configuration, starts the agent, and waits until the site has joined. The agent makes the site's private key on
/// this host; it never leaves it. A configuration that is there is not written over unless you say so.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl join - --pool 10.0.1.0/24          (and paste the token: other users of this host see arguments)
  vp-ctl join vp1.CqYC… --pool 10.0.1.0/24
  vp-ctl join factory.bundle")]
pub struct Join {
    /// The token, a file with it or with a bundle, or - for standard input
    #[arg(value_name = "TOKEN|FILE|-")]
    offer: String,
    #[command(flatten)]
    site: Site,
    /// The configuration to write
    #[arg(long, value_name = "FILE", default_value = "/etc/vp/agent.yaml")]
    config: PathBuf,
    /// Where the agent keeps its key, its certificate and its state
    #[arg(long, value_name = "DIRECTORY", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Join with the configuration that is there; it has to know the site's name, the issuer and whom to trust
    #[arg(long, conflicts_with_all = ["replace", "pool", "proxy_arp", "listen"])]
    keep: bool,
    /// Write over the configuration that is there; the old one stays beside it as FILE.before-join
    #[arg(long)]
    replace: bool,
    /// Write the unit of a bundle here; by default where systemd finds it, if it has none
    #[arg(long, value_name = "FILE")]
    unit: Option<PathBuf>,
    /// Start nothing: print the command that does
    #[arg(long)]
    no_start: bool,
    /// How long to wait until the site has joined, such as 2m, or 0s; by default 2m for a token, and 0s for a bundle or without a
    /// start
    #[arg(long, value_name = "TIME", value_parser = wait)]
    wait: Option<u64>,
}

impl Join {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let offer = Offer::read(&self.offer)?;
        let token = offer.token();
        token.judge(now()).map_err(|refusal| Failure::Refused(format!("the token: {refusal}")))?;
        let Terms { tenant, site, authorities, issuer, .. } = token.terms();
        let existing = match (self.keep, self.replace) {
            (true, _) => Existing::Keep,
            (_, true) => Existing::Replace,
            (_, _) => Existing::Refuse,
        };
        host::check_configuration(&self.config, existing)?;
        let configuration = self.configuration(&offer, client.socket())?;
        let keys: Vec<String> = authorities.iter().map(|key| STANDARD.encode(key)).collect();
        screen.note(&format!("site {site} of tenant {tenant}, whose authority is {}", keys.join(" or ")));

        let starts = host::has_systemd() && !self.no_start;
        if existing != Existing::Keep {
            host::write_configuration(&self.config, &configuration, existing)?;
        }
        let unit = match &offer {
            Offer::Bundle(bundle) => host::write_unit(&bundle.unit, self.unit.as_deref())?,
            Offer::Token(_) => None,
        };
        host::write_token(&self.state_dir, token, starts)?;
        let command = format!("{} --config {}", files::agent().display(), self.config.display());
        if starts {
            host::start()?;
        } else {
            screen.note(&format!("now start the agent: {command}"));
        }
        let default = if starts && matches!(offer, Offer::Token(_)) { WAIT_SECONDS } else { 0 };
        let certificate = match self.wait.unwrap_or(default) {
            0 => None,
            seconds => Some(self.wait_joined(client, screen, Duration::from_secs(seconds))?),
        };
        let text = match &certificate {
            Some(end) => {
                format!("{site} has joined {tenant}; its certificate holds until {end}, and is renewed before\n")
            }
            None => format!("{site} joins {tenant} as soon as its agent reaches {}; see vp-ctl status\n", issuer.site),
        };
        let shown = json!({
            "site": site.as_str(),
            "tenant": tenant.as_str(),
            "authorities": keys,
            "issuer": issuer.site.as_str(),
            "config": self.config.to_string_lossy(),
            "unit": unit.map(|unit| unit.to_string_lossy().into_owned()),
            "started": starts,
            "command": command,
            "joined": certificate.is_some(),
            "not_after": certificate,
        });
        screen.print(&if screen.is_json() { format!("{shown:#}\n") } else { text })?;
        Ok(Outcome::Done)
    }

    fn configuration(&self, offer: &Offer, socket: &Path) -> Result<String, Failure> {
        let Site { pool, proxy_arp, listen } = &self.site;
        let text = match offer {
            _ if self.keep => String::new(),
            Offer::Bundle(bundle) if pool.is_empty() && proxy_arp.is_none() && listen.is_none() => {
                bundle.configuration.clone()
            }
            Offer::Token(_) | Offer::Bundle(_) if pool.is_empty() => {
                let expected = "expected --pool PREFIX: addresses of this site that nothing uses, such as 10.91.0.0/24";
                return Err(Failure::Refused(expected.to_owned()));
            }
            Offer::Token(_) | Offer::Bundle(_) => configuration::text(offer.token(), &self.site),
        };
        let own = |path: &'_ Path, usual: &str| (path != Path::new(usual)).then(|| path.to_owned());
        let (state_dir, socket) = (own(&self.state_dir, STATE_DIR), own(socket, SOCKET));
        Ok(configuration::on_host(&text, state_dir.as_deref(), socket.as_deref()))
    }

    /// The end of its certificate. Says what it waits for, once each.
    fn wait_joined(&self, client: &Client, screen: &Screen, within: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + within;
        let mut said = String::new();
        loop {
            let stage = match self.stage(client)? {
                Stage::Joined(end) => return Ok(end),
                Stage::Waits(stage) => stage,
            };
            if stage != said {
                screen.note(&stage);
                said = stage;
            }
            if Instant::now() >= deadline {
                let again = "it goes on trying: vp-ctl status, vp-ctl doctor, journalctl -u vp-agent";
                return Err(Failure::Refused(format!("not joined within {} s: {said}\n  {again}", within.as_secs())));
            }
            sleep(ASK_PAUSE);
        }
    }

    fn stage(&self, client: &Client) -> Result<Stage, Failure> {
        let status: api::Status = match client.get("/v1/status", &[]) {
            Ok(answer) => json::decode(&answer)?,
            Err(_) => return Ok(Stage::Waits("waiting for the agent to start".to_owned())),
        };
        if let Some(api::Joining { issuer, refused, .. }) = &status.joining {
            if let Some(reason) = refused {
                return Err(Failure::Refused(format!("{issuer} refused: {reason}; ask for another token")));
            }
            let is_up = |peer: &&api::PeerStatus| peer.site == *issuer && peer.state == "up";
            let stage = match status.peers.iter().any(|peer| is_up(&peer)) {
                true => format!("asking {issuer} to certify this site"),
                false => format!("calling {issuer}"),
            };
            return Ok(Stage::Waits(stage));
        }
        let valid = status.certificate.filter(|certificate| certificate.state == "valid");
        Ok(match valid.filter(|_| !host::is_pending(&self.state_dir)) {
            Some(certificate) => Stage::Joined(certificate.not_after),
            None => Stage::Waits("waiting for the agent to start".to_owned()),
        })
    }
}

enum Stage {
    Joined(String),
    Waits(String),
}

fn wait(text: &str) -> Result<u64, String> {
    if text == "0s" { Ok(0) } else { seconds(text) }
}
