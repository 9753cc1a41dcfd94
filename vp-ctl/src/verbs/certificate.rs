//! `vp-ctl certificate`: what a certificate says. Needs no agent.

use crate::Outcome;
use crate::failure::Failure;
use crate::files;
use crate::render::{Screen, Table, strong, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::PathBuf;
use vp_proto::time::rfc3339;

/// Show what a certificate says
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vp-ctl certificate show factory.certificate")]
pub struct Certificate {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Show what a certificate says, if its signatures hold. Whether anybody trusts its authority is each agent's own
    #[command(after_help = "\
Example:
  vp-ctl certificate show factory.certificate
  vp-ctl certificate show factory.certificate -o json | jq -r .serial")]
    Show { file: PathBuf },
}

impl Certificate {
    pub fn run(self, screen: &Screen) -> Result<Outcome, Failure> {
        let What::Show { file } = self.what;
        let certificate = files::read_certificate(&file)?;
        screen.show(&described(&certificate).to_string(), |shown: &Value, page| {
            let mut table = Table::new(&["", ""]);
            let field = |name: &str| shown[name].as_str().unwrap_or("-").to_owned();
            table.row([text("site"), strong(field("site"))]);
            table.row([text("tenant"), text(field("tenant"))]);
            let groups = shown["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
            let groups: Vec<&str> = groups.iter().filter_map(Value::as_str).collect();
            table.row([text("groups"), text(if groups.is_empty() { "-".to_owned() } else { groups.join(",") })]);
            table.row([text("public key"), text(field("public_key"))]);
            table.row([text("serial"), text(field("serial"))]);
            table.row([text("valid"), text(format!("{} to {}", field("not_before"), field("not_after")))]);
            table.row([text("authority"), text(field("authority"))]);
            table.row([text("delegation"), text(field("delegation"))]);
            page.list(&table);
        })?;
        Ok(Outcome::Done)
    }
}

/// The stable names of its parts.
pub fn described(certificate: &vp::identity::Certificate) -> Value {
    json!({
        "tenant": certificate.tenant().as_str(),
        "site": certificate.site().as_str(),
        "groups": certificate.groups().iter().map(|group| group.as_str()).collect::<Vec<_>>(),
        "public_key": STANDARD.encode(certificate.public_key()),
        "serial": certificate.serial().to_string(),
        "not_before": rfc3339(certificate.not_before()),
        "not_after": rfc3339(certificate.not_after()),
        "authority": STANDARD.encode(certificate.authority()),
        "delegation": certificate.delegation().map(|serial| serial.to_string()),
    })
}
