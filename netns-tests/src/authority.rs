//! The offline machine of a tenant, as an operator uses it.

use crate::Lab;
use crate::agent::{Agent, Key, binary};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The offline machine of a tenant.
pub struct Authority {
    directory: PathBuf,
    pub file: PathBuf,
    tenant: String,
    pub public_key: String,
}

impl Authority {
    pub fn new(lab: &Lab, tenant: &str, name: &str) -> Result<Self> {
        let directory = lab.directory().to_owned();
        let file = directory.join(format!("{name}.authority"));
        let made = ctl(&format!("-o json authority new {tenant} --out {}", file.display()))?;
        let made: Value = serde_json::from_str(&made)?;
        let public_key = made["public_key"].as_str().context("no key")?.to_owned();
        Ok(Self { directory, file, tenant: tenant.to_owned(), public_key })
    }

    /// A certificate of the agent's site, in a file of this name.
    pub fn issue(&self, name: &str, agent: &Agent, more: &str) -> Result<PathBuf> {
        self.issue_for(name, &agent.config.site, &agent.key, more)
    }

    /// The same before there is an agent.
    pub fn issue_for(&self, name: &str, site: &str, key: &Key, more: &str) -> Result<PathBuf> {
        let out = self.directory.join(format!("{name}.certificate"));
        let (authority, key) = (self.file.display(), key.public());
        let file = out.display();
        ctl(&format!("authority issue --authority {authority} --site {site} --public-key {key} --out {file} {more}"))?;
        Ok(out)
    }

    /// The key of an issuer.
    pub fn delegate(&self, more: &str) -> Result<PathBuf> {
        let out = self.directory.join(format!("{}.issuer", self.tenant));
        ctl(&format!("authority delegate --authority {} --out {} {more}", self.file.display(), out.display()))?;
        Ok(out)
    }

    /// The list with this certificate on it too.
    pub fn revoke(&self, certificate: &Path) -> Result<PathBuf> {
        let list = self.directory.join(format!("{}.revocations", self.tenant));
        let (authority, certificate, file) = (self.file.display(), certificate.display(), list.display());
        ctl(&format!("authority revoke --authority {authority} --certificate {certificate} --list {file}"))?;
        Ok(list)
    }

    #[must_use]
    pub fn trusted(&self) -> String {
        format!("  - {{tenant: {}, authority: {}}}\n", self.tenant, self.public_key)
    }
}

/// `vp-ctl` on a machine without an agent.
pub fn ctl(arguments: &str) -> Result<String> {
    let Output { status, stdout, stderr } =
        Command::new(binary("vp-ctl")?).args(arguments.split_whitespace()).output()?;
    let [out, error] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(status.success(), "vp-ctl {arguments}: {status} {error}{out}");
    Ok(out)
}

/// Trust and this site's own certificate, as `agent.yaml` says them.
#[must_use]
pub fn identity(trusted: &[&Authority], own: &Path) -> String {
    let trusted: String = trusted.iter().map(|authority| authority.trusted()).collect();
    format!("trust:\n{trusted}certificate: {}\n", own.display())
}
