//! What the file and vp-ctl want together, and what a reload may change.

use crate::config::{self, Config, ConfigError, one_line};
use crate::identity::PeerName;
use crate::state::{Endpoints, Runtime};
use vp::node::{PeerSettings, Settings};

/// The file's settings with those of vp-ctl, and with the peers that there may be now. Where file and vp-ctl speak of one
/// thing the file is right, and what the file leaves no room for any more is left out; both are said.
pub(super) fn effective(
    config: &Config,
    runtime: &Runtime,
    endpoints: &Endpoints,
    peers: Vec<PeerSettings>,
) -> (Settings, Vec<String>) {
    let mut settings = Settings { peers, ..config.settings.clone() };
    let mut clashes = Vec::new();
    for request in &runtime.peers {
        // An introduced site gives way: the operator spoke of this one himself.
        let before = settings.peers.clone();
        let is_of_file = |peer: &PeerSettings| config.has_peer(&peer.identity.site);
        let is_other =
            |peer: &PeerSettings| peer.stock || peer.guest.is_some() || peer.identity.site.as_str() != request.site;
        settings.peers.retain(|peer| is_of_file(peer) || is_other(peer));
        match config::stock_peer(request, &settings) {
            Ok(peer) if config.has_peer(&peer.identity.site) => {
                clashes.push(format!("peer {}: the file's entry stands, not that of vp-ctl peer add", request.site));
            }
            Ok(peer) => settings.peers.push(peer),
            Err(error) => {
                settings.peers = before;
                clashes.push(format!("peer {} of vp-ctl peer add is left out: {error}", one_line(&request.site)));
            }
        }
    }
    for request in &runtime.expose {
        match config::exposure(request, &settings) {
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
        let name = PeerName::of(peer).to_string();
        let configured = config.endpoints.iter().any(|(of, _)| of.as_str() == name);
        if peer.endpoint.is_none() && !configured {
            peer.endpoint = endpoints.0.get(&name).copied();
        }
    }
    (settings, clashes)
}

/// What cannot change while the agent runs is refused. What changes at the next restart stays as it is until then, and is
/// said.
pub(super) fn keep_fixed(running: &Config, new: &mut Config) -> Result<Vec<String>, ConfigError> {
    let fixed = [
        ("site", running.settings.site != new.settings.site),
        ("key", running.key != new.key),
        ("state_dir", running.state_dir != new.state_dir),
    ];
    if let Some((what, _)) = fixed.iter().find(|(_, changed)| *changed) {
        let message = format!("{what} cannot change while the agent runs, expected what it was, or a restart");
        return Err(ConfigError { file: Some(new.file.clone()), at: None, message });
    }
    let at_restart = [
        ("listen", keep(&running.listen, &mut new.listen)),
        ("interface", keep(&running.interface, &mut new.interface)),
        ("workers", keep(&running.workers, &mut new.workers)),
        ("socket", keep(&running.socket, &mut new.socket)),
        ("metrics", keep(&running.metrics, &mut new.metrics)),
        ("page", keep(&running.page, &mut new.page)),
        ("audit", keep(&running.audit, &mut new.audit)),
        ("hub.store", keep(&running.hub_store, &mut new.hub_store)),
        ("hub.tls", keep(&running.hub_tls, &mut new.hub_tls)),
    ];
    let changed = at_restart.iter().filter(|(_, changed)| *changed);
    Ok(changed.map(|(what, _)| format!("{what} changes at the next restart")).collect())
}

/// Whether the new value was another one.
fn keep<T: PartialEq + Clone>(running: &T, new: &mut T) -> bool {
    let changed = running != new;
    new.clone_from(running);
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostNetworks;
    use std::path::Path;

    fn config(more: &str) -> Config {
        let text = format!("site: factory\npool: [10.0.1.0/24]\n{more}");
        Config::parse(Path::new("agent.yaml"), &text, &HostNetworks::default()).expect("a good file")
    }

    #[test]
    fn what_changes_at_a_restart_is_said_and_stays_until_then() {
        let running = config("socket: /run/vp/agent.sock\nmetrics: 127.0.0.1:9100\n");
        let changes =
            "listen: 0.0.0.0:1\ninterface: vp9\nworkers: 2\nsocket: /run/vp/other.sock\naudit: /var/log/vp/a.jsonl\n";
        for _ in 0..2 {
            let mut new = config(&format!("{changes}mtu: 1400\n"));
            let warnings = keep_fixed(&running, &mut new).expect("no refusal");
            let said = ["listen", "interface", "workers", "socket", "metrics", "audit"];
            assert_eq!(warnings, said.map(|what| format!("{what} changes at the next restart")));
            assert_eq!((new.listen, &new.interface, &new.socket), (None, &running.interface, &running.socket));
            assert_eq!((new.metrics, &new.audit, new.settings.inner_mtu), (running.metrics, &running.audit, 1400));
        }
        assert_eq!(keep_fixed(&running, &mut running.clone()).expect("nothing changed"), Vec::<String>::new());
    }

    #[test]
    fn another_state_dir_is_refused_while_the_agent_runs() {
        let mut new = config("");
        new.state_dir = "/srv/vp".into();
        let refused = keep_fixed(&config(""), &mut new).expect_err("refused").to_string();
        assert!(refused.contains("state_dir cannot change"), "{refused}");
    }
}
