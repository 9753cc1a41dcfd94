//! What the file and vp-ctl want together, and what a reload may change.

use crate::config::{self, Config, ConfigError, one_line};
use crate::state::{Endpoints, Runtime};
use vp::addr::Limits;
use vp::node::Settings;

/// The file's settings with those of vp-ctl. Where both speak of one thing the file is right, and what the file leaves
/// no room for any more is left out; both are said.
pub(super) fn effective(config: &Config, runtime: &Runtime, endpoints: &Endpoints) -> (Settings, Vec<String>) {
    let mut settings = config.settings.clone();
    let mut clashes = Vec::new();
    for request in &runtime.expose {
        match config::exposure(request, Limits::default(), &settings) {
            Ok(exposure) if settings.exposures.iter().any(|known| known.name == exposure.name) => {
                clashes.push(format!("service {}: the file's entry stands, not that of vp-ctl expose", exposure.name));
            }
            Ok(exposure) => settings.exposures.push(exposure),
            Err(error) => {
                clashes.push(format!("service {} of vp-ctl expose is left out: {error}", one_line(&request.name)));
            }
        }
    }
    for request in &runtime.map {
        match config::mapping(request, &settings) {
            Ok(mapping) if settings.mappings.iter().any(|known| known.service == mapping.service) => {
                clashes
                    .push(format!("mapping of {}: the file's entry stands, not that of vp-ctl map", mapping.service));
            }
            Ok(mapping) => settings.mappings.push(mapping),
            Err(error) => {
                clashes.push(format!("mapping of {} of vp-ctl map is left out: {error}", one_line(&request.service)));
            }
        }
    }
    for peer in &mut settings.peers {
        let site = peer.identity.site.as_str();
        let configured = config.endpoints.iter().any(|(of, _)| of.as_str() == site);
        if peer.endpoint.is_none() && !configured {
            peer.endpoint = endpoints.0.get(site).copied();
        }
    }
    (settings, clashes)
}

/// What cannot change while the agent runs.
pub(super) fn fixed_changes(old: &Config, new: &Config) -> Result<Vec<String>, ConfigError> {
    let fixed = [
        ("site", old.settings.site != new.settings.site),
        ("key", old.key != new.key),
        ("state_dir", old.state_dir != new.state_dir),
    ];
    if let Some((what, _)) = fixed.iter().find(|(_, changed)| *changed) {
        let message = format!("{what} cannot change while the agent runs, expected what it was, or a restart");
        return Err(ConfigError { file: Some(new.file.clone()), at: None, message });
    }
    let at_restart = [
        ("listen", old.listen != new.listen),
        ("interface", old.interface != new.interface),
        ("socket", old.socket != new.socket),
        ("metrics", old.metrics != new.metrics),
        ("audit", old.audit != new.audit),
    ];
    let changed = at_restart.iter().filter(|(_, changed)| *changed);
    Ok(changed.map(|(what, _)| format!("{what} changes at the next restart")).collect())
}
