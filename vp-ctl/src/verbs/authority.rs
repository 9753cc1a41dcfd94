//! `vp-ctl authority`: what a tenant's authority does, on a machine that needs no agent and no network. Its private key is
//! in a file of its own, is never printed, and is wiped from memory after use.

use crate::Outcome;
use crate::failure::Failure;
use crate::files;
use crate::render::Screen;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rand_core::{OsRng, RngCore};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use vp::addr::Name;
use vp::identity::text::{Label, encode};
use vp::identity::{IssueError, Issuer, Serial, Subject, Validity};
use vp_proto::time::rfc3339;
use zeroize::Zeroizing;

/// Sign who a site is, and take it back: the offline side of certificates
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  vp-ctl authority new acme
  vp-ctl authority issue --authority acme.authority --site factory --group edge \\
      --public-key xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= --out factory.certificate
  vp-ctl authority revoke --authority acme.authority --certificate factory.certificate --list acme.revocations
  vp-ctl revocations add acme.revocations")]
pub struct Authority {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Make a tenant's authority: a key file that stays offline, and the line for `trust` in every agent.yaml
    #[command(after_help = "Example:\n  vp-ctl authority new acme --out /media/stick/acme.authority")]
    New {
        /// The tenant's name: a DNS label in lower case
        tenant: Name,
        /// The key file to write, mode 0600; by default TENANT.authority here
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Sign a site's certificate
    #[command(after_help = "\
Example:
  vp-ctl authority issue --authority acme.authority --site factory --group edge,north \\
      --public-key xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= --valid 90d --out factory.certificate")]
    Issue(Issue),
    /// Make the key of an issuer, which may sign certificates and revocations of the tenant until its time ends
    #[command(after_help = "\
Example:
  vp-ctl authority delegate --authority acme.authority --valid 30d --out acme.issuer")]
    Delegate {
        /// The authority's key file
        #[arg(long, value_name = "FILE")]
        authority: PathBuf,
        /// How long it may sign, such as 12h or 30d
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = seconds)]
        valid: u64,
        /// The issuer's key file to write, mode 0600
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Take back a certificate, or an issuer's right to sign: makes the signed list, or its next version
    #[command(after_help = "\
Example:
  vp-ctl authority revoke --authority acme.authority --certificate factory.certificate --list acme.revocations
  vp-ctl authority revoke --authority acme.authority --serial 5f0c3b1e9a7d42c68f10b2d4e6a8c0f1 --list acme.revocations")]
    Revoke(Revoke),
}

#[derive(Args, Debug)]
struct Issue {
    /// The key file of the authority, or of an issuer
    #[arg(long, value_name = "FILE")]
    authority: PathBuf,
    /// The site's name
    #[arg(long, value_name = "NAME")]
    site: Name,
    /// What `group:` in `allow` speaks of; several by commas
    #[arg(long = "group", value_name = "NAME", value_delimiter = ',')]
    groups: Vec<Name>,
    /// The site's WireGuard key, as vp-ctl status shows it
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    public_key: [u8; 32],
    /// How long it holds, such as 12h or 90d
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = seconds)]
    valid: u64,
    /// Not from now on, but in so long a time
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    starts_in: Option<u64>,
    /// The file to write; by default it is printed
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Revoke {
    /// The key file of the authority, or of an issuer
    #[arg(long, value_name = "FILE")]
    authority: PathBuf,
    /// Of a certificate or a delegation: 32 hexadecimal digits
    #[arg(long, value_name = "HEX", required_unless_present = "certificate", conflicts_with = "certificate")]
    serial: Option<Serial>,
    /// The certificate to take back; the list forgets it when it would have ended
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The list to make, or to go on with
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
}

impl Authority {
    pub fn run(self, screen: &Screen) -> Result<Outcome, Failure> {
        match self.what {
            What::New { tenant, out } => new(tenant, out, screen),
            What::Issue(issue) => issue.run(screen),
            What::Delegate { authority, valid, out } => delegate(&authority, valid, &out, screen),
            What::Revoke(revoke) => revoke.run(screen),
        }?;
        Ok(Outcome::Done)
    }
}

fn new(tenant: Name, out: Option<PathBuf>, screen: &Screen) -> Result<(), Failure> {
    let authority = Issuer::authority(tenant, &random::<32>());
    let (tenant, key) = (authority.tenant(), STANDARD.encode(authority.public_key()));
    let out = out.unwrap_or_else(|| format!("{tenant}.authority").into());
    files::write_signing_key(&out, &authority)?;
    let file = out.to_string_lossy();
    let text = format!(
        "public key  {key}\nprivate key in {file}: keep it offline, and a copy of it elsewhere\n\n\
         in every agent.yaml:\n\ntrust:\n  - {{tenant: {tenant}, authority: {key}}}\n"
    );
    show(screen, &text, &json!({ "tenant": tenant.as_str(), "public_key": key, "file": file }))
}

impl Issue {
    fn run(self, screen: &Screen) -> Result<(), Failure> {
        let issuer = files::read_signing_key(&self.authority)?;
        let subject = Subject { site: self.site, groups: self.groups, public_key: self.public_key };
        let valid = validity(self.starts_in.unwrap_or(0), self.valid)?;
        let certificate = issuer.certificate(&subject, serial(), valid).map_err(|error| refused(&error))?;
        let text = encode(Label::Certificate, &certificate.to_bytes());
        let mut answer = super::certificate::described(&certificate);
        answer["certificate"] = Value::from(text.as_str());
        let Some(out) = self.out else { return show(screen, &text, &answer) };
        files::write(&out, &text)?;
        answer["file"] = Value::from(out.to_string_lossy());
        let (serial, end) = (certificate.serial(), rfc3339(certificate.not_after()));
        let said = format!("{}: serial {serial}, until {end}\n", out.display());
        show(screen, &said, &answer)
    }
}

fn delegate(authority: &std::path::Path, valid: u64, out: &std::path::Path, screen: &Screen) -> Result<(), Failure> {
    let authority = files::read_signing_key(authority)?;
    let (seed, serial, valid) = (random::<32>(), serial(), validity(0, valid)?);
    let issuer = authority.delegate(&seed, serial, valid).map_err(|error| refused(&error))?;
    files::write_signing_key(out, &issuer)?;
    let end = rfc3339(valid.not_after);
    let text = format!(
        "{}: may sign for {} until {end}; to take that back: --serial {serial}\n",
        out.display(),
        issuer.tenant()
    );
    let answer = json!({
        "tenant": issuer.tenant().as_str(),
        "public_key": STANDARD.encode(issuer.public_key()),
        "serial": serial.to_string(),
        "not_after": end,
        "file": out.to_string_lossy(),
    });
    show(screen, &text, &answer)
}

impl Revoke {
    fn run(self, screen: &Screen) -> Result<(), Failure> {
        let issuer = files::read_signing_key(&self.authority)?;
        let certificate = self.certificate.as_deref().map(files::read_certificate).transpose()?;
        if let Some(certificate) = certificate.as_ref().filter(|certificate| certificate.tenant() != issuer.tenant()) {
            let message =
                format!("the certificate is of tenant {}, this key of {}", certificate.tenant(), issuer.tenant());
            return Err(Failure::Refused(message));
        }
        let (serial, end) = match (&certificate, self.serial) {
            (Some(certificate), _) => (certificate.serial(), certificate.not_after()),
            (None, Some(serial)) => (serial, 0),
            (None, None) => return Err(Failure::Refused("expected --serial or --certificate".to_owned())),
        };
        let before = self.list.exists().then(|| files::read_list(&self.list)).transpose()?;
        let list = issuer.revoke(before.as_ref(), serial, end, now()).map_err(|error| refused(&error))?;
        files::write(&self.list, &encode(Label::Revocations, &list.to_bytes()))?;
        let (version, count, file) = (list.version(), list.revoked().len(), self.list.display());
        let text =
            format!("{file}: version {version}, {count} revoked; now at an agent: vp-ctl revocations add {file}\n");
        let answer = json!({
            "tenant": list.tenant().as_str(),
            "version": version,
            "revoked": count,
            "serial": serial.to_string(),
            "file": self.list.to_string_lossy(),
        });
        show(screen, &text, &answer)
    }
}

fn show(screen: &Screen, text: &str, answer: &Value) -> Result<(), Failure> {
    if screen.is_json() { screen.print(&format!("{answer:#}\n")) } else { screen.print(text) }
}

fn refused(error: &IssueError) -> Failure {
    Failure::Refused(error.to_string())
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn validity(starts_in: u64, valid: u64) -> Result<Validity, Failure> {
    let end = |not_before: u64| Some(Validity { not_before, not_after: not_before.checked_add(valid)? });
    let valid = now().checked_add(starts_in).and_then(end);
    valid.ok_or_else(|| Failure::Refused("that long a time has no end, expected such as 90d".to_owned()))
}

fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    OsRng.fill_bytes(&mut *bytes);
    bytes
}

fn serial() -> Serial {
    Serial(*random::<16>())
}

/// `45s`, `10m`, `12h`, `90d`.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let error = || format!("{text:?} is no time, expected such as 12h or 90d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(error)?;
    let unit: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(error()),
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|number| digits && *number > 0).ok_or_else(error)?;
    number.checked_mul(unit).ok_or_else(error)
}

fn public_key(text: &str) -> Result<[u8; 32], String> {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    bytes.try_into().map_err(|_| "expected a public key: 44 characters as vp-ctl status shows it".to_owned())
}
