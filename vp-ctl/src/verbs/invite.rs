//! `vp-ctl invite`: a token, or a bundle, with which one site joins.

use super::authority::seconds;
use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::files;
use crate::join::configuration::{self, Site};
use crate::join::host::UNIT;
use crate::json;
use crate::render::Screen;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use vp::identity::Token;
use vp_proto::api::{self, BundleRequest, InviteRequest, InviteResponse};

/// Invite a site: one token, with which its new gateway joins (at an issuer)
///
/// The token is a secret until it is used: whoever has it may join as that site. It can be used once, within 15 minutes, unless
/// you say otherwise.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl invite factory --group edge
  vp-ctl invite factory --group edge | ssh gateway.factory vp-ctl join - --pool 10.0.1.0/24
  vp-ctl invite depot --expires 7d --bundle depot.bundle --pool 10.0.2.0/24")]
pub struct Invite {
    /// The site's name: a DNS label in lower case
    site: String,
    /// What `group:` in `allow` speaks of; several by commas
    #[arg(long = "group", value_name = "NAME", value_delimiter = ',')]
    groups: Vec<String>,
    /// How long the token is good for, such as 15m or 7d
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = seconds)]
    expires: u64,
    /// How often it can be used: each gateway that joins takes the place of the one before
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    uses: u32,
    /// How long each certificate holds; the issuer renews it when a third of that is left
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = seconds)]
    valid: u64,
    /// Write the token into a new file of mode 0600, and do not print it
    #[arg(long, value_name = "FILE", conflicts_with = "bundle")]
    out: Option<PathBuf>,
    /// Write a new file of mode 0600 that installs without a network: token, configuration, unit
    #[arg(long, value_name = "FILE", requires = "pool")]
    bundle: Option<PathBuf>,
    #[command(flatten, next_help_heading = "What a bundle says of the site")]
    of_site: Site,
}

impl Invite {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        // Before there is an invitation that nobody has the token of.
        if let Some(file) = self.out.iter().chain(&self.bundle).find(|file| file.exists()) {
            return Err(files::refused(file, &"there is such a file, expected a new name"));
        }
        let request = InviteRequest {
            site: self.site.clone(),
            groups: self.groups.clone(),
            expires_seconds: Some(self.expires),
            uses: Some(self.uses),
            certificate_seconds: Some(self.valid),
        };
        let answer: InviteResponse = json::decode(&client.post("/v1/invite", &request)?)?;
        screen.warn(&answer.warnings);
        let (site, expires) = (&answer.invitation.site, &answer.invitation.expires);
        let until = match answer.invitation.uses {
            1 => format!("until {expires}, once"),
            uses => format!("until {expires}, {uses} times"),
        };
        let mut shown = json!({ "invitation": answer.invitation, "token": answer.token, "warnings": answer.warnings });
        let text = if let Some(file) = &self.bundle {
            let bundle = self.bundle(client, &answer)?;
            files::write_secret(file, &remarked(&answer, &bundle))?;
            shown["file"] = json!(file.to_string_lossy());
            let file = file.display();
            format!(
                "{file}: a secret, as long as it is good\n\nOn the gateway of {site}, {until}:\n\n  vp-ctl join {file}\n"
            )
        } else if let Some(file) = &self.out {
            files::write_secret(file, &format!("{}\n", answer.token))?;
            shown["file"] = json!(file.to_string_lossy());
            let file = file.display();
            format!(
                "{file}: a secret, as long as it is good\n\nOn the gateway of {site}, {until}:\n\n  vp-ctl join {file} --pool PREFIX\n"
            )
        } else {
            format!(
                "{}\n\nOn the gateway of {site}, {until}, with the token as the argument or (-) pasted:\n\n  \
                 vp-ctl join - --pool PREFIX\n",
                answer.token
            )
        };
        if shown["file"].is_string() {
            // It is where nobody else can read it, and nowhere else.
            shown["token"] = json!(null);
        }
        screen.print(&if screen.is_json() { format!("{shown:#}\n") } else { text })?;
        Ok(Outcome::Done)
    }

    fn bundle(&self, client: &Client, answer: &InviteResponse) -> Result<String, Failure> {
        let token = Token::parse(&answer.token).map_err(|refusal| Failure::Refused(refusal.to_string()))?;
        let configuration = configuration::text(&token, &self.of_site);
        let request = BundleRequest { token: answer.token.clone(), configuration, unit: UNIT.to_owned() };
        let api::BundleResponse { bundle } = serde_json::from_str(&client.post("/v1/bundle", &request)?)
            .map_err(|error| Failure::Refused(format!("the agent's answer cannot be read: {error}")))?;
        Ok(bundle)
    }
}

/// What it is, for who finds it.
fn remarked(answer: &InviteResponse, bundle: &str) -> String {
    let api::Invitation { id, site, expires, .. } = &answer.invitation;
    format!(
        "Virtual Presence: all that the gateway of site {site} needs to join, beside the programs.\n\
         A secret: whoever has it may join as that site, until {expires}. Invitation {id}.\n\n  vp-ctl join FILE\n\n{bundle}"
    )
}
