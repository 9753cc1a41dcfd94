//! `vp-ctl status`: the whole site on one screen.

use crate::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{Page, Screen, Table, bytes, duration, judged, list, milliseconds, number, optional, strong, text};
use clap::Args;
use vp_proto::api;

/// Show the site: peers, presences, callers, services and health
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  vp-ctl status
  watch vp-ctl status
  vp-ctl -o json status | jq '.peers[] | {site, path, rtt_ms}'")]
pub struct Status {}

impl Status {
    pub fn run(self, client: &Client, screen: &Screen) -> Result<Outcome, Failure> {
        let answer = client.get("/v1/status", &[])?;
        screen.show(&answer, |status: &api::Status, page| {
            site(status, page);
            page.heading("Peers");
            page.table(&peers(&status.peers), "none: no other site is configured");
            let certificates = certificates(status);
            if !certificates.is_empty() {
                page.heading("Certificates");
                page.table(&certificates, "none");
            }
            page.heading("Presences: services of other sites, here");
            page.table(&presences(&status.presences), "none: vp-ctl services shows what can be mapped");
            page.heading("Callers: hosts of other sites, here");
            page.table(&callers(&status.callers), "none");
            page.heading("Services: exposed to other sites");
            page.table(&services(&status.services), "none: vp-ctl expose adds one");
            page.heading("Health");
            page.findings(&status.health);
            if status.health.is_empty() {
                page.line("nothing to report");
            }
        })?;
        Ok(Outcome::Done)
    }
}

fn site(status: &api::Status, page: &mut Page) {
    let api::Status { site, version, uptime_seconds, interface, listen, public_key, pool, flows, drops, dns, .. } =
        status;
    let mut table = Table::new(&["", ""]);
    let up = duration(*uptime_seconds);
    table.row([text("site"), strong(site)]);
    table.row([
        text("agent"),
        text(format!("version {version}, up {up}, interface {interface}, listening on {listen}")),
    ]);
    table.row([text("public key"), text(public_key)]);
    table.row([text("pool"), list(pool)]);
    let api::FlowTable { open, max, opened_total, closed_total } = flows;
    table.row([
        text("flows"),
        text(format!("{open} open of at most {max}; {opened_total} opened, {closed_total} closed since the start")),
    ]);
    let drops: Vec<String> =
        drops.iter().filter(|(_, count)| **count > 0).map(|(reason, count)| format!("{reason} {count}")).collect();
    table.row([text("dropped"), text(if drops.is_empty() { "nothing".to_owned() } else { drops.join(", ") })]);
    if let Some(api::Dns { zone, listening }) = dns {
        let at = if listening.is_empty() { "nowhere".to_owned() } else { listening.join(", ") };
        table.row([text("names"), text(format!("zone {zone}, served at {at}"))]);
    }
    page.list(&table);
}

fn peers(peers: &[api::PeerStatus]) -> Table {
    let mut table =
        Table::new(&["SITE", "STATE", "PATH", "ENDPOINT", "HANDSHAKE", "RTT", "RX", "TX", "CONTROL", "OFFERS"]);
    for peer in peers {
        table.row([
            strong(peer.name()),
            judged(&peer.state),
            judged(&peer.path),
            optional(peer.endpoint.as_deref()),
            optional(peer.handshake_age_seconds.map(duration)).right(),
            optional(peer.rtt_ms.map(milliseconds)).right(),
            text(bytes(peer.rx_bytes)).right(),
            text(bytes(peer.tx_bytes)).right(),
            judged(&peer.control),
            number(peer.offered_services),
        ]);
    }
    table
}

/// Of this site and its peers, and of which groups peers are; nothing where nobody has any of it.
fn certificates(status: &api::Status) -> Table {
    let mut table = Table::new(&["SITE", "TENANT", "GROUPS", "SERIAL", "STATE", "ENDS", "IN"]);
    let peers = status.peers.iter().map(|peer| (peer.name(), &peer.certificate));
    for (site, certificate) in std::iter::once((status.site.clone(), &status.certificate)).chain(peers) {
        let Some(api::Certificate { tenant, groups, serial, not_after, seconds_left, state }) = certificate else {
            continue;
        };
        table.row([
            strong(site),
            text(tenant),
            list(groups),
            text(serial),
            judged(state),
            text(not_after),
            text(duration(*seconds_left)).right(),
        ]);
    }
    table
}

fn presences(presences: &[api::Presence]) -> Table {
    let mut table = Table::new(&["SERVICE", "ADDRESS", "PORTS", "STATE", "FLOWS", "FROM"]);
    for api::Presence { service, address, ports, state, flows, origin, .. } in presences {
        table.row([strong(service), text(address), list(ports), judged(state), number(flows), text(origin)]);
    }
    table
}

fn callers(callers: &[api::CallerPresence]) -> Table {
    let mut table = Table::new(&["ADDRESS", "SITE", "CLIENT", "WIRE ADDRESS", "FLOWS"]);
    for api::CallerPresence { address, site, client, wire_address, flows } in callers {
        table.row([strong(address), text(site), optional(client.as_deref()), text(wire_address), number(flows)]);
    }
    table
}

fn services(services: &[api::Service]) -> Table {
    let mut table =
        Table::new(&["NAME", "TARGET", "PORTS", "ALLOW", "SOURCE", "WIRE ADDRESS", "STATE", "FLOWS", "FROM"]);
    for api::Service { name, target, ports, allow, source, wire_addresses, flows, origin, state, resting } in services {
        table.row([
            strong(name),
            text(target),
            list(ports),
            list(allow),
            text(source),
            list(wire_addresses),
            judged(state),
            number(flows),
            text(origin),
        ]);
        for api::RestingTarget { address, state, detail } in resting {
            let detail = detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
            table.note(Some(format!("{address} is {state}{detail}")));
        }
    }
    table
}
