//! The `agent.yaml` of a site that joins. It has no secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use ipnet::IpNet;
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use vp::identity::{Gateway, Terms, Token};

/// For hubs and an issuer behind NAT alike; WireGuard's usual one.
const KEEPALIVE: &str = "25s";
/// IFNAMSIZ less its end.
const INTERFACE_BYTES_MAX: usize = 15;

/// What a site alone can know.
#[derive(Args, Clone, Debug)]
pub struct Site {
    /// Addresses of the site that nothing there uses, for services and callers of other sites; several by commas
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub pool: Vec<IpNet>,
    /// The interface of the site's LAN, where the gateway is to answer for the pool; without it the pool is routed
    #[arg(long, value_name = "INTERFACE", value_parser = interface)]
    pub proxy_arp: Option<String>,
    /// Where other gateways reach this one; without it, it calls them
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
}

/// As the token and the site say it.
pub fn text(token: &Token, site: &Site) -> String {
    let Terms { tenant, site: name, authorities, issuer, hubs, .. } = token.terms();
    let pool: Vec<String> = site.pool.iter().map(|prefix| format!("\"{prefix}\"")).collect();
    let mut text = format!("site: {name}\npool: [{}]\n", pool.join(", "));
    if let Some(listen) = site.listen {
        text += &format!("listen: \"{listen}\"\n");
    }
    if let Some(interface) = &site.proxy_arp {
        text += &format!("reach: {{proxy_arp: \"{interface}\"}}\n");
    }
    text += "\n# Whose certificates count here. This site's own is in state_dir.\ntrust:\n";
    for authority in authorities {
        text += &format!("  - {{tenant: {tenant}, authority: {}}}\n", STANDARD.encode(authority));
    }
    text += "\npeers:\n";
    std::iter::once(issuer).chain(hubs).for_each(|gateway| text += &peer(gateway));
    text + "\n# expose: and map: as in /usr/share/doc/virtual-presence/README.md; vp-ctl expose and vp-ctl map do the same.\n"
}

fn peer(of: &Gateway) -> String {
    let mut text = format!("  - site: {}\n    public_key: {}\n", of.site, STANDARD.encode(of.public_key));
    if let Some(endpoint) = &of.endpoint {
        text += &format!("    endpoint: \"{endpoint}\"\n");
    }
    text += &format!("    keepalive: {KEEPALIVE}\n");
    if of.hub {
        text += "    hub: true\n";
    }
    if let Some(tls) = &of.tls {
        text += &format!("    tls: \"{tls}\"\n");
    }
    text
}

/// With what is this host's own.
pub fn on_host(text: &str, state_dir: Option<&Path>, socket: Option<&Path>) -> String {
    let mut whole = "# Written by vp-ctl join; yours to change, then vp-ctl reload.\n".to_owned();
    for (key, path) in [("state_dir", state_dir), ("socket", socket)] {
        if let Some(path) = path {
            // A text in JSON is one in YAML.
            whole += &format!("{key}: {}\n", json!(path.to_string_lossy()));
        }
    }
    whole + text
}

fn interface(text: &str) -> Result<String, String> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if !text.is_empty() && text.len() <= INTERFACE_BYTES_MAX && text.bytes().all(is_fit) {
        return Ok(text.to_owned());
    }
    Err(format!("expected the name of an interface, at most {INTERFACE_BYTES_MAX} letters and digits"))
}
