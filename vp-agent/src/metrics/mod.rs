//! The figures, as Prometheus reads them. Everything is counted where it happens; here it only gets its name.

mod kernel;
mod services;
mod text;

use crate::agent::Agent;
use crate::dns::counts::{Kind, Outcome};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use vp::addr::Family as IpFamily;
use vp::identity::JoinRefusal;
use vp::node::{Reason, Relayed, Tables};
use vp_proto::api;

pub use text::Form;

/// What may carry a peer's datagrams, by the words of `vp-ctl status`.
const PATHS: [&str; 3] = ["direct", "relayed", "tls"];

type Labels = Vec<(String, String)>;
type Floats = Family<Labels, Gauge<f64, AtomicU64>>;

/// What a scrape sees: figures of one moment.
struct Figures {
    peers: Vec<api::PeerStatus>,
    of_services: Vec<api::ServiceFigures>,
    tables: Tables,
    services: Vec<api::Service>,
    presences: Vec<api::Presence>,
    flows: api::FlowTable,
    drops: Vec<(&'static str, u64)>,
    pool: Vec<PoolFigures>,
    events_lost: u64,
    relayed: Relayed,
    hub_sites: usize,
    limits: Vec<api::LimitStatus>,
}

struct PoolFigures {
    family: IpFamily,
    held: usize,
    resting: usize,
    size: usize,
}

/// As text in this form.
pub async fn render(agent: &Agent, form: Form) -> Result<String, crate::dataplane::Gone> {
    let figures = agent.handle.call(|node, _, now| {
        let used = node.presence_blocks();
        let pool = |family: IpFamily| {
            let of_family = used.iter().filter(|block| IpFamily::of(block.addr()) == family);
            let resting = node.resting_addresses(family);
            PoolFigures { family, held: of_family.count(), resting, size: node.settings().pool.size(family) }
        };
        Figures {
            peers: node.peers(now).into_iter().map(|(_, peer)| peer).collect(),
            of_services: node.service_figures(),
            tables: node.tables(),
            services: node.services(),
            presences: node.presences(),
            flows: node.flow_table(),
            drops: Reason::ALL.iter().map(|reason| (reason.word(), node.drops().of(*reason))).collect(),
            pool: IpFamily::BOTH.into_iter().map(pool).collect(),
            events_lost: node.events_lost(),
            relayed: node.relayed(),
            hub_sites: node.hub_sites(),
            limits: node.limits(),
        }
    });
    let figures = figures.await?;
    let mut registry = Registry::with_prefix("vp");
    peers(&mut registry, &figures.peers);
    flows(&mut registry, &figures);
    limits(&mut registry, &figures.limits);
    services::register(&mut registry, &figures.of_services);
    identity(&mut registry, agent);
    joining(&mut registry, agent);
    registered(&mut registry, agent);
    shell(&mut registry, agent, &figures);
    queues(&mut registry, agent);
    kernel::register(&mut registry, agent).await;
    let mut text = String::new();
    // Writing to a string cannot fail.
    encode(&mut text, &registry).ok();
    Ok(form.of(text))
}

fn label(name: &str, value: &str) -> Labels {
    vec![(name.to_owned(), value.to_owned())]
}

fn peers(registry: &mut Registry, peers: &[api::PeerStatus]) {
    let (received, sent) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    let (packets_in, packets_out) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    let (expected, arrived) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    let (up, age, rtt) = (Family::<Labels, Gauge>::default(), Floats::default(), Floats::default());
    let (paths, waiting) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    for peer in peers {
        let of_peer = label("peer", &peer.name());
        received.get_or_create(&of_peer).inc_by(peer.rx_bytes);
        sent.get_or_create(&of_peer).inc_by(peer.tx_bytes);
        packets_in.get_or_create(&of_peer).inc_by(peer.rx_packets);
        packets_out.get_or_create(&of_peer).inc_by(peer.tx_packets);
        expected.get_or_create(&of_peer).inc_by(peer.expected_packets);
        arrived.get_or_create(&of_peer).inc_by(peer.arrived_packets);
        up.get_or_create(&of_peer).set(i64::from(peer.state == "up"));
        waiting.get_or_create(&of_peer).set(whole(peer.waiting_packets));
        for path in PATHS {
            let labels = [of_peer.clone(), label("path", path)].concat();
            paths.get_or_create(&labels).set(i64::from(peer.path == path));
        }
        if let Some(seconds) = peer.handshake_age_seconds {
            age.get_or_create(&of_peer).set(seconds as f64);
        }
        if let Some(millis) = peer.rtt_ms {
            rtt.get_or_create(&of_peer).set(millis / 1000.0);
        }
    }
    registry.register("peer_receive_bytes", "Received from the peer, with WireGuard's headers", received);
    registry.register("peer_transmit_bytes", "Sent to the peer, with WireGuard's headers", sent);
    registry.register("peer_receive_packets", "Datagrams received from the peer", packets_in);
    registry.register("peer_transmit_packets", "Datagrams sent to the peer", packets_out);
    registry.register("peer_up", "Whether a session with the peer exists", up);
    registry.register("peer_handshake_age_seconds", "Since the session's keys were made", age);
    registry.register("peer_round_trip_seconds", "Along the path in use, or of the last handshake", rtt);
    registry.register("peer_path", "1 for the path that carries the peer's datagrams", paths);
    registry.register("peer_expected_packets", "Messages that the peer sent, as its numbers show", expected);
    registry.register("peer_arrived_packets", "Those of them that arrived; the others were lost on the way", arrived);
    registry.register("peer_waiting_packets", "Packets that wait for a session with the peer", waiting);
}

fn flows(registry: &mut Registry, figures: &Figures) {
    let of_service = Family::<Labels, Gauge>::default();
    for service in &figures.services {
        of_service.get_or_create(&label("service", &service.name)).set(service.flows as i64);
    }
    let of_presence = Family::<Labels, Gauge>::default();
    for presence in &figures.presences {
        of_presence.get_or_create(&label("service", &presence.service)).inc_by(presence.flows as i64);
    }
    let drops = Family::<Labels, Counter>::default();
    for (reason, packets) in &figures.drops {
        drops.get_or_create(&label("reason", reason)).inc_by(*packets);
    }
    let (used, size) = (Family::<Labels, Gauge>::default(), Floats::default());
    let resting = Family::<Labels, Gauge>::default();
    for pool in figures.pool.iter().filter(|pool| pool.size > 0) {
        let of_family = label("family", &pool.family.to_string());
        used.get_or_create(&of_family).set(pool.held as i64);
        resting.get_or_create(&of_family).set(pool.resting as i64);
        size.get_or_create(&of_family).set(pool.size as f64);
    }
    registry.register("service_flows", "Open flows to a service of this site", of_service);
    registry.register("presence_flows", "Open flows to a service of another site", of_presence);
    registry.register("flows_open", "Entries of the flow table", gauge(figures.flows.open));
    registry.register("flows_max", "Room of the flow table", gauge(figures.flows.max));
    registry.register("flows_opened", "Flows opened since the start", counter(figures.flows.opened_total));
    registry.register("flows_closed", "Flows closed since the start", counter(figures.flows.closed_total));
    registry.register("dropped_packets", "Packets dropped, by reason", drops);
    registry.register(
        "relayed_datagrams",
        "Datagrams passed on between sites, as a hub",
        counter(figures.relayed.datagrams),
    );
    registry.register("relayed_bytes", "Bytes of them", counter(figures.relayed.bytes));
    registry.register("hub_sites", "Sites that attend at this hub", gauge(figures.hub_sites as u64));
    registry.register("pool_leases", "Leases of pool addresses", used);
    registry.register("pool_resting_addresses", "Given up not long ago, and kept for who had them", resting);
    let Tables { fragment_bytes, fragment_bytes_max, callers } = figures.tables;
    registry.register(
        "callers",
        "Hosts that called, or were called by, this site and have an address",
        gauge(callers as u64),
    );
    registry.register("fragments_held_bytes", "Fragments that wait for their first one", gauge(fragment_bytes as u64));
    registry.register("fragments_held_max_bytes", "Room for them", gauge(fragment_bytes_max as u64));
    registry.register("pool_addresses", "Addresses that the pool can give", size);
}

/// What limits that observe would have done is told with that mode.
fn limits(registry: &mut Registry, limits: &[api::LimitStatus]) {
    let refused = Family::<Labels, Counter>::default();
    let (delayed, dropped) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    for api::LimitStatus { limit, mode, flows_refused, new_flows_refused, packets_delayed, packets_dropped, .. } in
        limits
    {
        let of_limit = [label("limit", limit), label("mode", mode)].concat();
        for (reason, flows) in [(Reason::FlowLimit, flows_refused), (Reason::RateLimit, new_flows_refused)] {
            let labels = [of_limit.clone(), label("reason", reason.word())].concat();
            refused.get_or_create(&labels).inc_by(*flows);
        }
        delayed.get_or_create(&of_limit).inc_by(*packets_delayed);
        dropped.get_or_create(&of_limit).inc_by(*packets_dropped);
    }
    registry.register("limit_refused_flows", "New flows that a limit refused, or would have", refused);
    registry.register("limit_delayed_packets", "Packets that a limit delayed, or would have", delayed);
    registry.register("limit_dropped_packets", "Packets of those that waited too long, or found no room", dropped);
}

fn identity(registry: &mut Registry, agent: &Agent) {
    let now = crate::clock::unix_seconds();
    let (remaining, versions) = (Floats::default(), Family::<Labels, Gauge>::default());
    let refused = Family::<Labels, Counter>::default();
    for (refusal, count) in agent.identities.refused() {
        refused.get_or_create(&label("reason", refusal.word())).inc_by(count);
    }
    for (site, seconds) in agent.identities.remaining(now) {
        remaining.get_or_create(&label("site", &site)).set(seconds as f64);
    }
    for (tenant, signer, version) in agent.identities.versions() {
        let labels = [label("tenant", &tenant), label("signer", &signer)].concat();
        versions.get_or_create(&labels).set(i64::try_from(version).unwrap_or(i64::MAX));
    }
    registry.register("certificates_refused", "Certificates and lists of revocations that were refused", refused);
    registry.register("certificate_remaining_seconds", "Until a site's certificate ends, its own included", remaining);
    registry.register("revocations_version", "Of each list of revocations that counts here", versions);
}

fn joining(registry: &mut Registry, agent: &Agent) {
    let counts = agent.issuing.counts();
    let refused = Family::<Labels, Counter>::default();
    for refusal in JoinRefusal::ALL {
        let count = counts.refused.get(&refusal).copied().unwrap_or(0);
        refused.get_or_create(&label("reason", refusal.word())).inc_by(count);
    }
    let [renewed, failed] = agent.renewal.as_ref().map_or([0; 2], |renewal| renewal.counts());
    registry.register("invitations_open", "Invitations that may be used", gauge(agent.issuing.open() as u64));
    registry.register("joins", "Sites that this issuer certified for the first time", counter(counts.joined));
    registry.register("renewals", "Certificates that this issuer signed anew", counter(counts.renewed));
    registry.register("joins_refused", "Sites that this issuer did not certify, first or anew", refused);
    registry.register("certificate_renewals", "Times that this site's certificate was renewed", counter(renewed));
    registry.register("certificate_renewals_failed", "Attempts to renew it that failed", counter(failed));
}

/// A hub's own registry.
fn registered(registry: &mut Registry, agent: &Agent) {
    let Some(kept) = &agent.registry else { return };
    let (records, refused) = (Family::<Labels, Gauge>::default(), Family::<Labels, Counter>::default());
    let (sites, invitations) = agent.identities.registered();
    for (kind, count) in [("site", sites), ("invitation", invitations)] {
        records.get_or_create(&label("kind", kind)).set(count as i64);
    }
    for (refusal, count) in agent.identities.unregistered() {
        refused.get_or_create(&label("reason", refusal.word())).inc_by(count);
    }
    registry.register("registry_records", "Sites and invitations that are registered at this hub", records);
    registry.register("registrations_refused", "Records that were refused", refused);
    if let Some(shared) = kept.shared() {
        registry.register("registry_shared_up", "Whether etcd is followed", gauge(u64::from(shared.is_ok())));
        registry.register("registry_shared_reads", "How often etcd was read whole", counter(kept.reads()));
    }
}

fn shell(registry: &mut Registry, agent: &Agent, figures: &Figures) {
    let counters = agent.handle.counters();
    let counted = |value: &AtomicU64| counter(value.load(Ordering::Relaxed));
    let offload = Family::<Labels, Gauge>::default();
    offload.get_or_create(&label("offload", agent.offload.word())).set(1);
    let lost = counter(figures.events_lost + counters.events_lost.load(Ordering::Relaxed));
    registry.register("events_lost", "Events that found no room on their way to the audit log", lost);
    registry.register("audit_lost", "Audit lines that could not be written", counter(agent.audit.lost()));
    let not_forwarded = Family::<Labels, Counter>::default();
    for (to, lost) in agent.audit.not_forwarded() {
        not_forwarded.get_or_create(&label("to", to)).inc_by(lost);
    }
    registry.register("audit_not_forwarded", "Audit records that another log did not take", not_forwarded);
    let control_lost = counter(agent.control.packets_lost());
    registry.register("control_packets_lost", "Packets between agents that found no room", control_lost);
    registry.register("send_errors", "Sends to the network that failed", counted(&counters.send_errors));
    registry.register("tun_write_errors", "Writes to the TUN that failed", counted(&counters.tun_write_errors));
    registry.register("journal_errors", "Leases that could not be kept", counted(&counters.journal_errors));
    registry.register(
        "congestion_drops",
        "Datagrams of streams faster than this gateway, dropped so that others do not wait",
        counted(&counters.congestion_drops),
    );
    registry.register(
        "send_overloads",
        "Datagrams that found a queue of the kernel full",
        counted(&counters.send_overload),
    );
    registry.register(
        "truncated_messages",
        "Messages from the network that were cut short",
        counted(&counters.truncated_messages),
    );
    registry.register("unsegmented_sends", "Sends without segmentation offload", counted(&counters.unsegmented_sends));
    let queries = Family::<Labels, Counter>::default();
    for (kind, outcome) in Kind::ALL.iter().flat_map(|kind| Outcome::ALL.iter().map(move |outcome| (*kind, *outcome))) {
        let labels = [label("kind", kind.word()), label("outcome", outcome.word())].concat();
        queries.get_or_create(&labels).inc_by(agent.dns.counts().of(kind, outcome));
    }
    registry.register("dns_queries", "Queries for names, by kind and outcome", queries);
    registry.register("tun_offload", "What the kernel does for the TUN; always 1", offload);
    let processor = Family::<Labels, Counter<f64, AtomicU64>>::default();
    for (number, time) in agent.handle.worker_times().iter().enumerate() {
        processor.get_or_create(&label("worker", &number.to_string())).inc_by(time.as_secs_f64());
    }
    registry.register("worker_cpu_seconds", "Processor time of each data thread", processor);
    registry.register("uptime_seconds", "Since the start", gauge(agent.started.elapsed().as_secs()));
    let build = Family::<Labels, Gauge>::default();
    build
        .get_or_create(&[label("version", env!("CARGO_PKG_VERSION")), label("site", agent.site.as_str())].concat())
        .set(1);
    registry.register("build_info", "What runs here; always 1", build);
}

/// What waits on its way from one thread to another, or to the disk.
fn queues(registry: &mut Registry, agent: &Agent) {
    let (waiting, room) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    let add = |queue: &str, (held, max): (usize, usize)| {
        waiting.get_or_create(&label("queue", queue)).set(held as i64);
        room.get_or_create(&label("queue", queue)).set(max as i64);
    };
    add("events", agent.handle.events_waiting());
    agent.audit.records_waiting().into_iter().for_each(|(to, waiting)| add(to, waiting));
    registry.register("queue_entries", "Events, or records for another log, that wait", waiting);
    registry.register("queue_entries_max", "How many may", room);
    if let Some((held, max)) = agent.audit.bytes_waiting() {
        registry.register("audit_queue_bytes", "Audit lines that the disk has not taken yet", gauge(held as u64));
        registry.register("audit_queue_max_bytes", "Room for them", gauge(max as u64));
    }
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(whole(value));
    gauge
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
