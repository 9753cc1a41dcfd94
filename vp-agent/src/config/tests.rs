//! Every way a file can be wrong, and the one line that says so.

use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use x25519_dalek::StaticSecret;

const KEY: &str = "QEvhVpCUUj1XuGKn8yGQyGzmJdVKnGGv5PWjvnqHmFM=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

/// What every case begins with: two lines.
const HEAD: &str = "site: factory\npool: [10.0.1.0/24, \"fd00:1::/64\"]\n";

fn machine() -> HostNetworks {
    let address = |name: &str, text: &str| (name.to_owned(), text.parse().expect("address"));
    HostNetworks {
        interfaces: vec![
            address("lo", "127.0.0.1/8"),
            address("eth0", "192.0.2.7/24"),
            address("eth1", "10.0.0.1/24"),
            address("eth1", "fd00:0:0:1::1/64"),
            address("eth1", "fe80::1/64"),
            address("vp0", "10.0.1.1/32"),
        ],
    }
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    write_key(&directory.path().join("site.key"), KEY, 0o600);
    directory
}

fn write_key(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("mode");
}

fn parse_on(text: &str, machine: &HostNetworks) -> Result<Config, String> {
    let directory = directory();
    let state = format!("state_dir: {}\n", directory.path().display());
    let text = if text.contains("state_dir") { text.to_owned() } else { text.to_owned() + &state };
    let config = Config::parse(Path::new("agent.yaml"), &text, machine);
    config.map_err(|error| error.to_string().replace(&directory.path().display().to_string(), "DIR"))
}

fn parse(text: &str) -> Result<Config, String> {
    parse_on(text, &machine())
}

/// The error of a whole file.
#[track_caller]
fn whole(text: &str, expected: &str) {
    match parse(text) {
        Ok(_) => panic!("no error for:\n{text}"),
        Err(error) => assert_eq!(error, format!("agent.yaml{expected}"), "\n{text}"),
    }
}

/// The error of some lines that follow the head.
#[track_caller]
fn wrong(lines: &str, expected: &str) {
    whole(&format!("{HEAD}{lines}"), expected);
}

#[test]
fn the_design_s_example_is_read_as_it_is_meant() {
    let text = format!(
        "{HEAD}listen: 0.0.0.0:51820
interface: vp0
socket: /run/vp/agent.sock
reach: {{proxy_arp: eth1}}
peers:
  - site: cloud
    public_key: {OTHER}
    endpoint: cloud.example.com:51820
    keepalive: 25s
    groups: [edge]
clients:
  - {{name: plc, addresses: [10.0.0.2]}}
expose:
  - name: metrics
    target: 10.0.0.2
    ports: [tcp/9100, udp/8125, icmp]
    allow: [\"site:cloud\", \"group:edge\"]
    source: presence
    limits: {{rate: 10Mbit, flows: 1000, new_flows: 50/s}}
  - {{name: rack, target: 10.0.0.16/28, ports: [tcp/22], allow: [any]}}
  - {{name: pair, target: [10.0.0.3, \"fd00::3\"], ports: [tcp/22], allow: [any]}}
map:
  - service: rabbitmq.cloud
    address: 10.0.1.2
    ports: [tcp/5672, tcp/80=tcp/8080]
    callers: [plc, 10.0.0.16/28]
  - service: \"*.cloud\"
audit: /var/log/vp/audit.jsonl
metrics: 127.0.0.1:9107
dns: {{zone: names.vp., listen: [10.0.0.1, \"[fd00::1]:5353\"], forward: [10.0.0.53], clients: [10.0.0.0/8], resolved: off}}
"
    );
    let config = parse(&text).expect("good");
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.reach, Reach::ProxyArp("eth1".to_owned()));
    let settings = &config.settings;
    assert_eq!((settings.inner_mtu, config.interface.as_str()), (1420, "vp0"));
    let endpoint = config.endpoints.iter().map(|(site, endpoint)| (site.as_str(), endpoint.as_str()));
    assert_eq!(endpoint.collect::<Vec<_>>(), [("cloud", "cloud.example.com:51820")]);
    assert_eq!((settings.peers[0].endpoint, settings.peers[0].keepalive_seconds), (None, Some(25)));
    let metrics = &settings.exposures[0];
    assert_eq!(metrics.limits.all.inbound.bits_per_second, Some(10_000_000));
    assert_eq!((metrics.limits.all.flows, metrics.limits.all.new_flows_per_second), (Some(1000), Some(50)));
    assert_eq!(metrics.source, vp::node::Source::Presence);
    assert_eq!(settings.exposures[1].target, vp::node::Target::Prefix("10.0.0.16/28".parse().expect("prefix")));
    assert_eq!(config.exposed_at(&settings.exposures[1].name), Some("agent.yaml:22".to_owned()));
    assert_eq!(config.mapped_at(&settings.mappings[1].service), Some("agent.yaml:29".to_owned()));
    assert_eq!(config.mapped_at(&"other.cloud".parse().expect("name")), None);
    assert_eq!(settings.mappings[0].ports[1].to_string(), "tcp/80=tcp/8080");
    let dns = config.dns.expect("dns");
    assert_eq!((dns.zone.as_str(), dns.resolved), ("names.vp", false));
    assert_eq!(dns.listen, ["10.0.0.1:53", "[fd00::1]:5353"].map(|text| text.parse().expect("address")));
    assert_eq!(dns.forward, ["10.0.0.53:53".parse().expect("address")]);
    assert_eq!(dns.clients, ["10.0.0.0/8".parse().expect("prefix")]);
}

#[test]
fn audit_is_a_path_or_says_where_records_go_and_whether_flows_wait_for_it() {
    let audit = |text: &str| parse(&format!("{HEAD}audit: {text}\n")).map(|config| config.audit);
    let file = Some("/a.jsonl".into());
    assert_eq!(audit("/a.jsonl").expect("good"), AuditSettings { file: file.clone(), ..AuditSettings::default() });
    let all = audit("{file: /a.jsonl, required: true, journald: true, otlp: \"http://c:4318\"}").expect("good");
    let otlp = Some("http://c:4318/v1/logs".parse().expect("an endpoint"));
    assert_eq!(all, AuditSettings { file, required: true, journald: Some("/run/systemd/journal/socket".into()), otlp });
    assert_eq!(audit("{journald: /j}").expect("good").journald, Some("/j".into()));
    assert_eq!(audit("{journald: false}").expect("good"), AuditSettings::default());
    for (bad, message) in [
        ("{required: true}", "audit: required, but without a file, expected `file` too"),
        ("{file: a}", "audit.file: \"a\" is no absolute path, expected one that begins with /"),
        ("{journald: j}", "audit.journald: \"j\" is no absolute path, expected one that begins with /"),
        ("{otlp: \"https://c:4318\"}", "audit.otlp: \"https://c:4318\" is no such address, expected http://HOST:PORT"),
        ("[/a.jsonl]", "expected a path, or `{file: PATH"),
        ("{files: /a}", "unknown key"),
    ] {
        let error = audit(bad).expect_err(bad).to_string();
        assert!(error.contains(message), "{bad}: {error}");
    }
}

#[test]
fn only_site_and_pool_are_needed() {
    let config = parse(HEAD).expect("good");
    assert!(config.settings.peers.is_empty() && config.listen.is_none() && config.audit == AuditSettings::default());
    assert_eq!(config.interface, "vp0");
    assert_eq!(config.socket, Path::new("/run/vp/agent.sock"));
    // Sections whose entries are all commented out.
    assert!(parse(&format!("{HEAD}peers:\nexpose:\nmap:\nclients:\n")).is_ok());
}

#[test]
fn workers_are_a_number_or_as_the_machine_has_use_for() {
    let workers = |lines: &str| parse(&format!("{HEAD}{lines}")).expect("good").workers;
    assert_eq!([workers(""), workers("workers: auto\n")], [Workers::Auto; 2]);
    assert_eq!([workers("workers: 1\n"), workers("workers: \"64\"\n")], [1, 64].map(Workers::Count));
    assert!((1..=8).contains(&Workers::Auto.count()));
    assert_eq!(Workers::Count(3).count(), 3);
}

#[test]
fn what_is_not_the_yaml_we_expect_is_refused() {
    let keys = "site, key, listen, interface, workers, mtu, flows_max, aes, state_dir, socket, pool, reach, uplink, hub, \
                issuer, trust, certificate, revocations, peers, tenants, clients, expose, map, audit, \
                metrics, page or dns";
    let parse_bare = |text: &str| match Config::parse(Path::new("agent.yaml"), text, &machine()) {
        Ok(_) => panic!("no error for:\n{text}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(parse_bare(""), "agent.yaml:1:1: the file ends too early, expected `site: NAME` and more");
    assert_eq!(parse_bare("foo\n"), "agent.yaml:1:1: found something else, expected keys with values");
    assert_eq!(parse_bare("site: [a\npool: {\n"), "agent.yaml:1:7: found something else, expected a text");
    whole("site: factory\n", ":2:1: the key \"pool\" is missing");
    wrong("colour: blue\n", &format!(":3:1: unknown key \"colour\", expected {keys}"));
    wrong(
        "clients:\n  - name: a\n    adresses: [10.0.0.2]\n",
        ":5:5: unknown key \"adresses\", expected name or addresses",
    );
    wrong("site: again\n", ":3:1: the key \"site\" is there twice");
    wrong("expose: true\n", ":3:9: found something else, expected a list");
    wrong("expose: [web]\n", ":3:10: found something else, expected keys with values");
    wrong("expose:\n  - name: web\n", ":4:5: the key \"target\" is missing");
    wrong("mtu: large\n", ":3:6: expected a whole number up to 65535");
    wrong("mtu: 70000\n", ":3:6: expected a whole number up to 65535");
    wrong("<<: {mtu: 1400}\n", ":3:1: merge key not allowed here");
    wrong("dns: !zone {zone: vp}\n", ":3:12: unsupported tag `!zone`");
    wrong("interface: \"\u{7}\"\n", ":3:13: unexpected character: `\\u{7}'");
    let stock = format!("peers:\n  - {{site: b, public_key: {OTHER}, stock: yes}}\n");
    wrong(&stock, ":4:80: expected true or false");
    wrong(
        "map:\n  - service: *.cloud\n",
        ":4:14: an alias of nothing, expected a text (one that begins with * is written in quotes: \"*.cloud\")",
    );
}

#[test]
fn values_are_refused_where_they_stand() {
    whole(
        "site: My Site\npool: [10.9.0.0/24]\n",
        ":1:7: site: a name has lower-case letters, digits and inner hyphens only, found 'M'",
    );
    wrong(
        "listen: 51820\n",
        ":3:9: listen: \"51820\" is no address and port, expected such as 0.0.0.0:51820 or \"[::]:51820\"",
    );
    wrong(
        "interface: a/b\n",
        ":3:12: interface: \"a/b\" is no interface name, expected 1 to 15 letters, digits, `-`, `_` or `.`",
    );
    for bad in ["0", "65", "-1", "1.5", "many", "\"\"", "AUTO"] {
        let text = bad.trim_matches('"');
        wrong(
            &format!("workers: {bad}\n"),
            &format!(":3:10: workers: \"{text}\", expected auto or a number from 1 to 64"),
        );
    }
    wrong("workers: [2]\n", ":3:10: found something else, expected a text");
    wrong("flows_max: 0\n", ":3:12: flows_max: 0, expected 1 or more");
    wrong("mtu: 576\n", ":3:6: mtu: 576, expected 1280 to 9000");
    wrong("key: site.key\n", ":3:6: key: \"site.key\" is no absolute path, expected one that begins with /");
    wrong("audit: audit.jsonl\n", ":3:8: audit: \"audit.jsonl\" is no absolute path, expected one that begins with /");
    let long = "/x".repeat(60);
    wrong(&format!("socket: {long}\n"), ":3:9: socket: the path has 120 bytes, expected at most 107");
    wrong(
        "page: {listen: 0.0.0.0:9108, token_file: /etc/vp/page.token}\n",
        ":3:16: page.listen: 0.0.0.0:9108 is not loopback, expected an address such as 127.0.0.1:9108",
    );
    wrong(
        "metrics: localhost\n",
        ":3:10: metrics: \"localhost\" is no address and port, expected such as 0.0.0.0:51820 or \"[::]:51820\"",
    );
    wrong("dns: {zone: VP}\n", ":3:13: dns.zone: \"VP\" is no zone, expected a DNS name such as vp");
    wrong(
        "dns: {zone: vp, forward: [10.0.1.9]}\n",
        ":3:27: dns.forward: 10.0.1.9 is in the pool, expected a name server of this site",
    );
    wrong(
        "dns: {zone: vp, forward: [dns.example]}\n",
        ":3:27: dns.forward: \"dns.example\" is no address, expected such as 10.0.0.53 or \"[fd00::53]:5353\"",
    );
    wrong("dns: {zone: vp, listen: [0.0.0.0]}\n", ":3:26: dns.listen: 0.0.0.0 is every address, expected single ones");
    wrong(
        "dns: {zone: vp, clients: [10.0.0.1/24]}\n",
        ":3:27: dns.clients: 10.0.0.1/24 has host bits set, expected 10.0.0.0/24",
    );
    wrong("dns: {zone: vp, resolved: yes}\n", ":3:27: dns.resolved: \"yes\", expected auto or off");
    wrong("reach: bridged\n", ":3:8: reach: \"bridged\", expected routed or {proxy_arp: INTERFACE}");
    wrong("reach: {proxy_arp: eth9}\n", ":3:20: proxy_arp: there is no interface eth9 with an address");
    wrong("reach: {proxy_arp: vp0}\n", ":3:20: proxy_arp: vp0 is the tunnels' own interface, expected the LAN's");
}

/// Each is compared with each: two thousand of them once took two minutes.
#[test]
fn a_pool_has_at_most_64_prefixes() {
    let pool = |count: u32| {
        let prefixes: Vec<String> = (0..count).map(|n| format!("10.9.{n}.0/24")).collect();
        format!("site: a\npool: [{}]\n", prefixes.join(","))
    };
    assert!(parse(&pool(64)).is_ok());
    let error = parse(&pool(65)).expect_err("too many");
    assert_eq!(error, "agent.yaml:2:830: pool: more than 64 prefixes");
    assert!(parse(&pool(200)).is_err());
}

#[test]
fn a_pool_is_of_addresses_that_nobody_uses() {
    let pool = |pool: &str, expected: &str| whole(&format!("site: a\npool: [{pool}]\n"), expected);
    pool("", ":2:7: pool: no prefixes, expected at least one such as 10.0.1.0/24");
    pool("10.9.0/24", ":2:8: pool: \"10.9.0/24\" is no prefix, expected one such as 10.0.1.0/24");
    pool("10.9.0.1/24", ":2:8: pool: 10.9.0.1/24 has host bits set, expected 10.9.0.0/24");
    pool("10.9.0.0/24, 10.9.0.0/25", ":2:21: pool 10.9.0.0/25 overlaps pool 10.9.0.0/24");
    pool("198.18.0.0/24", ":2:8: pool 198.18.0.0/24 overlaps 198.18.0.0/15, which is used inside tunnels");
    pool(
        "\"fd76:7000:0:1::/120\"",
        ":2:8: pool fd76:7000:0:1::/120 overlaps fd76:7000::/46, which is used inside tunnels",
    );
    pool("127.0.0.0/24", ":2:8: pool 127.0.0.0/24 is not unicast address space");
    pool(
        "10.9.0.0/24, 10.0.0.0/16",
        ":2:21: pool 10.0.0.0/16 has 10.0.0.1 of this machine's eth1 in it, expected addresses that nobody uses",
    );
    pool(
        "10.0.0.128/25",
        ":2:8: pool 10.0.0.128/25 overlaps 10.0.0.0/24, the network of this machine's eth1, expected addresses that \
         nobody uses or `reach: {proxy_arp: eth1}`",
    );
    whole(
        "site: a\npool: [10.0.0.128/25]\nreach: {proxy_arp: eth0}\n",
        ":2:8: pool 10.0.0.128/25 overlaps 10.0.0.0/24, the network of this machine's eth1, expected addresses that \
         nobody uses or `reach: {proxy_arp: eth1}`",
    );
    // Where the gateway answers for them, the LAN's own addresses may be pool, but not the gateway's.
    assert!(parse("site: a\npool: [10.0.0.128/25]\nreach: {proxy_arp: eth1}\n").is_ok());
    assert!(parse("site: a\npool: [10.0.0.0/25]\nreach: {proxy_arp: eth1}\n").is_err());
    // Another machine's networks are not known.
    assert!(parse_on("site: a\npool: [10.0.0.128/25]\nreach: {proxy_arp: eth9}\n", &HostNetworks::default()).is_ok());
}

#[test]
fn peers_are_other_sites_each_with_a_key_and_an_endpoint_of_its_own() {
    let peer = |more: &str| format!("peers:\n  - site: b\n    public_key: {OTHER}\n{more}");
    let again = format!("  - site: b\n    public_key: {PUBLIC}\n");
    wrong(&peer(&again), ":6:11: peer b is there twice, first in line 4");
    let again = format!("  - site: c\n    public_key: {OTHER}\n");
    wrong(&peer(&again), ":7:17: public_key: the peer in line 5 has the same one, expected one a peer");
    let own = format!("peers:\n  - {{site: factory, public_key: {OTHER}}}\n");
    wrong(&own, ":4:12: site: factory is this site, expected another");
    let expected = "expected 44 characters as `wg genkey` and `wg pubkey` print them";
    wrong("peers:\n  - {site: b, public_key: x}\n", &format!(":4:27: public_key: no base64, {expected}"));
    wrong(
        "peers:\n  - {site: b, public_key: aGFsbG8=}\n",
        &format!(":4:27: public_key: 5 bytes of base64, {expected}"),
    );
    let zero = format!("peers:\n  - {{site: b, public_key: {}=}}\n", "A".repeat(43));
    wrong(&zero, ":4:27: public_key: this is no public key: a point of low order");
    for bad in ["cloud", "cloud:0", "cloud:65536", "10.0.0:51820", "0.0.0.0:51820", "a b:1", "-a:1", ":1"] {
        let expected =
            format!(":6:15: endpoint: {bad:?} is no endpoint, expected HOST:PORT such as cloud.example.com:51820");
        wrong(&peer(&format!("    endpoint: \"{bad}\"\n")), &expected);
    }
    for bad in ["25", "1d", "0s", "-1s", "s"] {
        let expected = format!(":6:16: keepalive: {bad:?} is no duration, expected such as 25s, 5m or 1h");
        wrong(&peer(&format!("    keepalive: \"{bad}\"\n")), &expected);
    }
    wrong(&peer("    keepalive: 24h\n"), ":6:16: keepalive: \"24h\" is too long, expected at most 65535s");
    wrong(
        &peer("    groups: [Edge]\n"),
        ":6:14: groups: a name has lower-case letters, digits and inner hyphens only, found 'E'",
    );
    wrong(
        &peer("    endpoint: 10.0.1.9:51820\n"),
        ":6:15: endpoint: this address is in the pool, and no tunnel leads through itself",
    );
    let config =
        parse(&format!("{HEAD}{}", peer("    endpoint: \"[2001:db8::1]:51820\"\n    stock: true\n"))).expect("good");
    assert_eq!(config.settings.peers[0].endpoint, Some("[2001:db8::1]:51820".parse().expect("address")));
    assert!(config.settings.peers[0].stock);
}

#[test]
fn a_peer_with_the_site_s_own_key_is_refused() {
    let secret = StaticSecret::from(*values::key(KEY).expect("key"));
    let own = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, x25519_dalek::PublicKey::from(&secret));
    let text = format!("peers:\n  - {{site: b, public_key: {own}}}\n");
    wrong(&text, ":4:27: public_key: this is the key of this site itself, expected the peer's");
}

#[test]
fn clients_are_named_hosts_of_this_site() {
    wrong("clients:\n  - {name: plc}\n", ":4:6: the key \"addresses\" is missing");
    wrong("clients:\n  - {name: plc, addresses: []}\n", ":4:28: addresses: client plc has none, expected at least one");
    wrong(
        "clients:\n  - {name: plc, addresses: [plc.lan]}\n",
        ":4:29: addresses: \"plc.lan\" is no address, expected one such as 10.0.0.2 or fd00::2",
    );
    wrong(
        "clients:\n  - {name: plc, addresses: [10.0.1.2]}\n",
        ":4:29: addresses: 10.0.1.2 is in the pool, expected a host of this site",
    );
    wrong(
        "clients:\n  - {name: plc, addresses: [198.19.0.7]}\n",
        ":4:29: addresses: 198.19.0.7 has a meaning inside tunnels only, expected an address of this site",
    );
    wrong(
        "clients:\n  - {name: plc, addresses: [10.0.0.2]}\n  - {name: plc, addresses: [10.0.0.3]}\n",
        ":5:12: client plc is there twice, first in line 4",
    );
    wrong(
        "clients:\n  - {name: plc, addresses: [10.0.0.2]}\n  - {name: hmi, addresses: [10.0.0.2]}\n",
        ":5:29: addresses: 10.0.0.2 has a name already, in line 4",
    );
}

#[test]
fn a_service_is_refused_for_each_part_that_is_wrong() {
    let web = |rest: &str, expected: &str| wrong(&format!("expose:\n  - {{name: web, {rest}}}\n"), expected);
    let ports = "ports: [tcp/80]";
    web("ports: [tcp/80]", ":4:17: the key \"target\" is missing");
    web("target: 10.0.0.5", ":4:17: the key \"ports\" is missing");
    web("target: 10.0.0.5, ports: []", ":4:42: ports: no ports, expected at least one such as tcp/80");
    web(
        "target: 10.0.0.5, ports: [80]",
        ":4:43: ports: expected tcp/PORT, udp/PORT, PROTOCOL/FIRST-LAST or icmp, found \"80\"",
    );
    web(
        &format!("target: web.lan, {ports}"),
        ":4:25: target: \"web.lan\" is no address, expected one such as 10.0.0.2 or fd00::2",
    );
    web(
        &format!("target: 10.0.1.7, {ports}"),
        ":4:25: target: 10.0.1.7 is in the pool, expected the address of a host of this site",
    );
    web(&format!("target: [10.0.0.5, 10.0.0.5], {ports}"), ":4:36: target: 10.0.0.5 is there twice");
    web(
        &format!("target: [], {ports}"),
        ":4:25: target: no target, expected an address, a prefix or a list of addresses",
    );
    web(&format!("target: 10.0.0.1/28, {ports}"), ":4:25: target: 10.0.0.1/28 has host bits set, expected 10.0.0.0/28");
    web(
        &format!("target: 10.0.0.0/16, {ports}"),
        ":4:25: target: 10.0.0.0/16 has too many addresses, expected /20 or longer",
    );
    web(
        &format!("target: 10.0.0.0/23, {ports}"),
        ":4:25: target: 10.0.0.0/23 overlaps the pool 10.0.1.0/24, expected hosts of this site",
    );
    web(
        &format!("target: [10.0.0.0/28, 10.0.0.5], {ports}"),
        ":4:26: target: \"10.0.0.0/28\" is no address, expected one such as 10.0.0.2 or fd00::2",
    );
    web(
        &format!("target: 10.0.0.5, {ports}, allow: [factory]"),
        ":4:60: allow: expected site:NAME, client:NAME.SITE, group:NAME, tenant:NAME or any, found \"factory\"",
    );
    web(
        &format!("target: 10.0.0.5, {ports}, source: nat"),
        ":4:60: source: \"nat\" is no source, expected masquerade or presence",
    );
    for (bad, column, expected) in [
        ("rate: 10", 67, "rate: \"10\" is no rate, expected such as 500kbit, 10Mbit or 1Gbit"),
        ("rate: 10mbit", 67, "rate: \"10mbit\" is no rate, expected such as 500kbit, 10Mbit or 1Gbit"),
        ("rate: 0bit", 67, "rate: \"0bit\" is no rate, expected such as 500kbit, 10Mbit or 1Gbit"),
        ("flows: 0", 68, "flows: 0, expected 1 or more"),
        ("flows: -1", 68, "expected a whole number"),
        ("new_flows: 50", 72, "new_flows: \"50\" is no rate, expected such as 50/s"),
        ("new_flows: +5/s", 72, "new_flows: \"+5/s\" is no rate, expected such as 50/s"),
    ] {
        web(&format!("target: 10.0.0.5, {ports}, limits: {{{bad}}}"), &format!(":4:{column}: {expected}"));
    }
    wrong(
        "expose:\n  - {name: web, target: 10.0.0.5, ports: [tcp/80]}\n  - {name: web, target: 10.0.0.6, ports: [tcp/80]}\n",
        ":5:12: service web is there twice, first in line 4",
    );
}

#[test]
fn what_nobody_may_use_is_allowed_and_said() {
    let config = parse(&format!("{HEAD}expose:\n  - {{name: web, target: 10.0.0.5, ports: [tcp/80], allow: []}}\n"))
        .expect("good");
    assert_eq!(config.warnings, ["agent.yaml:4:59: service web: `allow` is empty, so nobody may use it"]);
    let config =
        parse(&format!("{HEAD}expose:\n  - {{name: web, target: 127.0.0.1, ports: [tcp/80], allow: [\"site:b\"]}}\nmap: [{{service: x.c}}]\n"))
            .expect("good");
    assert_eq!(
        config.warnings,
        [
            "agent.yaml:4:60: service web: site:b matches no configured peer",
            "agent.yaml:5:17: mapping x.c: there is no peer c, so it gives nothing"
        ]
    );
}

#[test]
fn a_mapping_is_refused_for_each_part_that_is_wrong() {
    let map = |entry: &str, expected: &str| wrong(&format!("map:\n  - {{{entry}}}\n"), expected);
    map("service: web", ":4:15: service: expected SERVICE.SITE, such as web.cloud");
    map("service: web.factory", ":4:15: service: web.factory is a service of this site, expected one of another site");
    map("service: \"*.factory\"", ":4:15: service: *.factory is a service of this site, expected one of another site");
    map(
        "service: web.cloud, address: 10.0.0.5",
        ":4:35: address: 10.0.0.5 is not in the pool, expected a host address of 10.0.1.0/24, fd00:1::/64",
    );
    map(
        "service: web.cloud, address: 10.0.1.255",
        ":4:35: address: 10.0.1.255 is the pool's network or broadcast address, expected a host address of 10.0.1.0/24, fd00:1::/64",
    );
    map(
        "service: \"*.cloud\", address: 10.0.1.5",
        ":4:35: address: *.cloud may be many services, one address cannot stand for all of them",
    );
    map(
        "service: web.cloud, ports: []",
        ":4:33: ports: an empty list, expected at least one entry or no `ports` at all",
    );
    map(
        "service: web.cloud, callers: []",
        ":4:35: callers: an empty list, expected at least one entry or no `callers` at all",
    );
    map(
        "service: web.cloud, ports: [tcp/80=udp/80]",
        ":4:34: ports: expected tcp/PORT, udp/PORT, PROTOCOL/FIRST-LAST or icmp, found \"tcp/80=udp/80\"",
    );
    map(
        "service: web.cloud, ports: [tcp/80-90, tcp/85=tcp/1]",
        ":4:45: ports: tcp/85=tcp/1 has a port in common with tcp/80-90, expected each port once",
    );
    map(
        "service: web.cloud, callers: [10.0.0.2, plc]",
        ":4:46: callers: there is no client plc in `clients`, expected an address, a prefix or a client (there are none)",
    );
    map(
        "service: web.cloud, callers: [10.0.0.17/28]",
        ":4:36: callers: 10.0.0.17/28 has host bits set, expected 10.0.0.16/28",
    );
    wrong(
        "map:\n  - service: web.cloud\n  - service: web.cloud\n",
        ":5:14: web.cloud is mapped twice, first in line 4",
    );
    wrong(
        "map:\n  - {service: a.cloud, address: 10.0.1.5}\n  - {service: b.cloud, address: 10.0.1.5}\n",
        ":5:33: address: 10.0.1.5 is given to a.cloud, expected an address of its own",
    );
    map(
        "service: web.cloud, address: 10.0.1.1",
        ":4:35: address: 10.0.1.1 is the gateway's own presence, expected another address",
    );
    map(
        "service: web.cloud, address: \"fd00:1::1\"",
        ":4:35: address: fd00:1::1 is the gateway's own presence, expected another address",
    );
}

#[test]
fn the_gateway_s_own_presence_is_where_its_lease_says() {
    let directory = directory();
    let journal = "{\"format\":\"vp-leases\",\"version\":1}\n\
                   {\"op\":\"grant\",\"holder\":{\"gateway\":{\"family\":\"v4\"}},\"block\":\"10.0.1.7/32\"}\n";
    write_key(&directory.path().join("leases.jsonl"), journal, 0o600);
    let with = |address: &str| {
        let state = directory.path().display();
        parse(&format!("{HEAD}state_dir: {state}\nmap:\n  - {{service: web.cloud, address: {address}}}\n"))
    };
    assert!(with("10.0.1.1").is_ok());
    let refused = with("10.0.1.7").expect_err("refused");
    assert!(refused.starts_with("agent.yaml:5:35: address: 10.0.1.7 is the gateway's own"), "{refused}");
}

#[test]
fn more_services_than_an_offer_has_are_refused() {
    let services = |count: usize| {
        let service = |n| format!("  - {{name: s{n}, target: 10.0.0.5, ports: [tcp/80], allow: [any]}}\n");
        format!("expose:\n{}", (0..count).map(service).collect::<String>())
    };
    assert!(parse(&format!("{HEAD}{}", services(4096))).is_ok());
    wrong(&services(4097), ":4100:12: name: s4096 is one too many, expected at most 4096 services");
}

#[test]
fn prefixes_that_have_no_room_inside_tunnels_are_refused_where_they_stand() {
    let prefix = |n: usize| format!("  - {{name: p{n}, target: 10.{}.0.0/20, ports: [icmp], allow: [any]}}\n", n + 1);
    let prefixes = |count: usize| format!("expose:\n{}", (0..count).map(prefix).collect::<String>());
    assert!(parse(&format!("{HEAD}{}", prefixes(14))).is_ok());
    wrong(
        &prefixes(15),
        ":18:25: target: service p14: no addresses inside tunnels are left for it, expected smaller prefixes or fewer",
    );
}

#[test]
fn what_does_not_fit_one_offer_is_refused_where_it_stands() {
    let name = "n".repeat(50);
    let addresses: Vec<String> = (0..250).map(|n| format!("fd99::{n:x}")).collect();
    let client = |n: usize| {
        format!("  - {{name: {name}{n}, addresses: [{}]}}\n", addresses.join(",").replace("::", &format!(":{n}::")))
    };
    let clients = |count: usize| format!("clients:\n{}", (0..count).map(client).collect::<String>());
    parse(&format!("{HEAD}{}", clients(200))).expect("a good file");
    let refused = parse(&format!("{HEAD}{}", clients(300))).expect_err("refused");
    assert!(refused.contains(": clients: with what else is offered to other sites"), "{refused}");

    // The file itself ends before so many ports; what vp-ctl exposes in addition counts too.
    let mut settings = parse("site: factory\npool: [10.0.1.0/24]\n").expect("settings").settings;
    let request = |n: usize| vp_proto::api::ExposeRequest {
        name: format!("s{n}"),
        target: vec!["10.0.0.2".to_owned()],
        ports: (1..=256).map(|port| format!("tcp/{port}")).collect(),
        ..Default::default()
    };
    let refused = (0..4096).find_map(|n| match exposure(&request(n), &settings) {
        Ok(exposure) => {
            settings.exposures.push(exposure);
            None
        }
        Err(error) => Some((n, error.to_string())),
    });
    let (count, error) = refused.expect("a refusal");
    assert!((1300..1400).contains(&count), "{count}");
    assert!(error.starts_with("ports: with what else is offered to other sites"), "{error}");
    // Another time for one that is there changes nothing.
    assert!(exposure(&request(count - 1), &settings).is_ok());
}

#[test]
fn a_key_file_is_refused_unless_it_is_the_site_s_secret() {
    let directory = tempfile::tempdir().expect("directory");
    let at = |name: &str| directory.path().join(name);
    let refused = |path: &Path, expected: &str| {
        let text = format!("{HEAD}state_dir: /nonexistent/vp\nkey: {}\n", path.display());
        let error = Config::parse(Path::new("agent.yaml"), &text, &machine()).err().map(|error| error.to_string());
        let expected = expected.replace("FILE", &path.display().to_string());
        assert_eq!(error.as_deref(), Some(format!("agent.yaml:4:6: key: {expected}").as_str()));
    };
    refused(&at("none"), "there is no key file FILE, expected one as `wg genkey` prints it");
    refused(directory.path(), "key file FILE is a symbolic link or not a file, expected a file of its own");
    for mode in [0o644, 0o640, 0o602] {
        write_key(&at("open"), KEY, mode);
        refused(&at("open"), &format!("key file FILE may be used by others (mode {mode:04o}), expected mode 0600"));
    }
    write_key(&at("good"), &format!("{KEY}\n"), 0o600);
    symlink(at("good"), at("link")).expect("link");
    refused(&at("link"), "key file FILE is a symbolic link or not a file, expected a file of its own");
    let expected = "expected 44 characters as `wg genkey` and `wg pubkey` print them";
    for (text, what) in [("", "0 bytes of base64"), ("not a key", "no base64"), ("aGFsbG8=", "5 bytes of base64")] {
        write_key(&at("bad"), text, 0o600);
        refused(&at("bad"), &format!("key file FILE: {what}, {expected}"));
    }
    fs::write(at("bad"), [0xff; 300]).expect("written");
    refused(&at("bad"), "key file FILE: no text");
    assert_eq!(*keys::read(&at("good")).expect("good"), *values::key(KEY).expect("key"));

    let peer =
        format!("{HEAD}peers:\n  - {{site: b, public_key: {OTHER}, preshared_key_file: {}}}\n", at("open").display());
    let error = parse(&peer).expect_err("open");
    assert!(error.starts_with("agent.yaml:4:93: preshared_key_file: key file") && error.contains("0602"), "{error}");
}

#[test]
fn a_key_of_the_agent_s_own_is_made_once() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("site.key");
    let text = format!("{HEAD}state_dir: {}\n", directory.path().display());
    let config = Config::parse(Path::new("agent.yaml"), &text, &machine()).expect("good");
    assert!(config.key == path && !path.exists());
    let made = keys::make(&path).expect("made");
    assert_eq!(*keys::read(&path).expect("good"), made.to_bytes());
    assert!(keys::make(&path).is_err());
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_would_grow_is_refused_fast() {
    let start = std::time::Instant::now();
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, before) in ('b'..='z').zip('a'..) {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(", "));
    }
    // Where the keys are known, too: nested in a list that is read.
    let nested = format!("{HEAD}clients:\n  - {{name: x, addresses: &a [{}]}}\n", "10.0.0.2,".repeat(100))
        + &"  - {name: y, addresses: *a}\n".repeat(2000);
    for text in [bomb, nested, "[".repeat(900_000), "{a: ".repeat(200_000), "- ".repeat(400_000), "&a ".repeat(300_000)]
    {
        let error = Config::parse(Path::new("agent.yaml"), &text, &machine()).expect_err("refused").to_string();
        assert!(error.starts_with("agent.yaml:") && error.len() < 400 && error.lines().count() == 1, "{error}");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(5));

    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("large.yaml");
    fs::write(&path, "#".repeat(2 << 20)).expect("written");
    let error = Config::load(&path, &HostNetworks::default()).expect_err("refused").to_string();
    assert_eq!(error, format!("{}: larger than 1024 KiB, expected less", path.display()));
    fs::write(&path, b"site: a\npool: \xff\n").expect("written");
    let error = Config::load(&path, &HostNetworks::default()).expect_err("refused").to_string();
    assert_eq!(error, format!("{}:2:7: not UTF-8, expected UTF-8 text", path.display()));
    let error = Config::load(directory.path(), &HostNetworks::default()).expect_err("refused").to_string();
    assert!(error.contains("not a file"), "{error}");
    let error =
        Config::load(&directory.path().join("none"), &HostNetworks::default()).expect_err("refused").to_string();
    assert!(error.contains("not readable: No such file"), "{error}");
}

#[test]
fn what_a_hostile_file_says_reaches_nobody_s_terminal_raw() {
    let error = parse(&format!("{HEAD}\"\\e[31m{}\": 1\n", "x".repeat(5000))).expect_err("unknown key");
    assert!(!error.contains('\u{1b}') && error.len() < 400, "{error}");
}

/// A site's certificate in a file of the folder, by the authority of this seed.
fn certificate(folder: &tempfile::TempDir, (tenant, seed): (&str, u8), site: &str, key: &str) -> String {
    use vp::identity::{Issuer, Serial, Subject, Validity, text};
    let name = |text: &str| Name::new(text).expect("name");
    let subject =
        Subject { site: name(site), groups: vec![name("edge")], public_key: values::public_key(key).expect("key") };
    let valid = Validity { not_before: 1, not_after: u64::MAX };
    let issuer = Issuer::authority(name(tenant), &[seed; 32]);
    let certificate = issuer.certificate(&subject, Serial([seed; 16]), valid).expect("issued");
    let file = folder.path().join(format!("{site}-{tenant}.certificate"));
    fs::write(&file, text::encode(text::Label::Certificate, &certificate.to_bytes()).as_bytes()).expect("written");
    file.display().to_string()
}

fn trust(entries: &[(&str, u8)]) -> String {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    let entry = |(tenant, seed): &(&str, u8)| {
        let name = Name::new(tenant).expect("name");
        let key = vp::identity::Issuer::authority(name, &[*seed; 32]).public_key();
        format!("  - {{tenant: {tenant}, authority: {}}}\n", BASE64_STANDARD.encode(key))
    };
    format!("trust:\n{}", entries.iter().map(entry).collect::<String>())
}

#[test]
fn peers_by_certificate_are_apart_from_those_by_key() {
    let folder = tempfile::tempdir().expect("folder");
    let cloud = certificate(&folder, ("acme", 1), "cloud", OTHER);
    let own_key = x25519_dalek::PublicKey::from(&StaticSecret::from(*values::key(KEY).expect("key")));
    let own_key = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, own_key.as_bytes());
    let own = certificate(&folder, ("acme", 1), "factory", &own_key);
    let trust = trust(&[("acme", 1), ("acme", 2)]);
    let services = "expose:\n  - {name: a, target: 10.0.0.2, ports: [icmp], allow: [\"group:new\", \"tenant:acme\"]}\n\
                    map:\n  - service: web.cloud\n";
    let peers = format!("peers:\n  - {{certificate: {cloud}, endpoint: \"cloud:1\"}}\n");
    assert!(parse(&format!("{HEAD}certificate: {own}\n")).is_ok(), "trust is others' matter");
    let config = parse(&format!("{HEAD}{trust}certificate: {own}\n{peers}{services}")).expect("good");
    assert_eq!(config.warnings, Vec::<String>::new());
    assert!(config.settings.peers.is_empty(), "there only while it holds");
    let member = &config.credentials.members[0];
    assert_eq!((member.settings.identity.site.as_str(), &member.settings.identity.tenant), ("cloud", &None));
    assert_eq!((config.endpoints[0].0.as_str(), config.credentials.own.is_some()), ("cloud", true));
    assert_eq!(config.credentials.trust.authorities().count(), 2);
}

#[test]
fn certificates_are_refused_with_the_place_and_the_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let at = folder.path().display().to_string();
    let cloud = certificate(&folder, ("acme", 1), "cloud", OTHER);
    let peer = |file: &str| format!("peers:\n  - certificate: {file}\n");
    let says = |trusted: &[(&str, u8)], lines: &str| {
        let lines = if trusted.is_empty() { lines.to_owned() } else { trust(trusted) + lines };
        parse(&format!("{HEAD}{lines}")).map(|_| ()).expect_err("refused").replace(&at, "AT")
    };
    let unknown = "unknown-authority: the authority behind it is not in `trust`";
    let file = "AT/cloud-acme.certificate";
    assert_eq!(says(&[], &peer(&cloud)), format!("agent.yaml:4:18: certificate: {file}: {unknown}"));
    assert_eq!(says(&[("acme", 2)], &peer(&cloud)), format!("agent.yaml:6:18: certificate: {file}: {unknown}"));
    let other = says(&[("beta", 1)], &peer(&cloud));
    assert_eq!(
        other,
        format!(
            "agent.yaml:6:18: certificate: {file}: wrong-tenant: it is another tenant's, or its authority is trusted for another tenant"
        )
    );
    let none = says(&[("acme", 1)], &peer("/nowhere/c"));
    assert!(none.starts_with("agent.yaml:6:18: certificate: /nowhere/c: No such file"), "{none}");
    let both = format!("peers:\n  - {{certificate: {cloud}, site: cloud}}\n");
    assert!(says(&[("acme", 1)], &both).contains("site: the `certificate` says it, expected no `site` beside that"));
    let neither = says(&[], "peers:\n  - site: cloud\n");
    assert_eq!(neither, "agent.yaml:4:5: the key \"public_key\" is missing, expected it or a `certificate`");
    let own = says(&[("acme", 1)], &format!("certificate: {cloud}\n"));
    assert_eq!(own, "agent.yaml:5:14: certificate: it is for site cloud, expected one for factory");
    let key = certificate(&folder, ("acme", 1), "factory", OTHER);
    assert!(says(&[("acme", 1)], &format!("certificate: {key}\n")).contains("it is for another key than this site's"));
    // One name is one site's here, whatever its tenant.
    let of_beta = certificate(&folder, ("beta", 2), "cloud", PUBLIC);
    let two = format!("peers:\n  - certificate: {cloud}\n  - certificate: {of_beta}\n");
    let two = says(&[("acme", 1), ("beta", 2)], &two);
    let twice =
        "peer cloud is there twice, first in line 7: a site's name is one site's, whatever its tenant, but at a hub";
    assert!(two.ends_with(twice), "{two}");
    let key = OTHER;
    let bad = says(&[], &format!("trust:\n  - {{tenant: Acme, authority: {key}}}\n"));
    assert!(bad.starts_with("agent.yaml:4:14: tenant: "), "{bad}");
    let again = says(&[("acme", 1), ("beta", 1)], "");
    assert_eq!(again, "agent.yaml:5:31: authority: this authority is trusted already, for tenant acme");
    let list = says(&[("acme", 1)], &format!("revocations: {cloud}\n"));
    assert!(list.contains("there is no line \"-----BEGIN VP REVOCATIONS-----\""), "{list}");
}

#[test]
fn a_hub_has_sites_of_one_name_and_of_several_tenants_the_first_as_a_peer_and_the_others_as_guests() {
    let folder = tempfile::tempdir().expect("folder");
    let keys = [PUBLIC, OTHER];
    let [of_acme, of_beta] = [("acme", 1), ("beta", 2)]
        .map(|(tenant, seed)| certificate(&folder, (tenant, seed), "cloud", keys[usize::from(seed) - 1]));
    let trust = trust(&[("acme", 1), ("beta", 2)]);
    let text = |peers: &str| format!("site: hub\npool: [10.0.1.0/24]\nhub: {{}}\n{trust}peers:\n{peers}");
    let both = text(&format!("  - certificate: {of_acme}\n  - certificate: {of_beta}\n"));
    let config = Config::parse(Path::new("agent.yaml"), &both, &HostNetworks::default()).expect("a good file");
    let guests: Vec<_> = config.credentials.members.iter().map(|member| member.settings.guest.clone()).collect();
    assert_eq!(guests, [None, Some(vp::node::Guest::Site)]);
    let says = |peers: &str| {
        let parsed = Config::parse(Path::new("agent.yaml"), &text(peers), &HostNetworks::default());
        parsed.expect_err("refused").to_string()
    };
    let again = says(&format!("  - certificate: {of_beta}\n  - certificate: {of_beta}\n"));
    assert!(again.ends_with("peer cloud is there twice, first in line 8"), "{again}");
    let named = says(&format!("  - certificate: {of_acme}\n  - certificate: {of_beta}\n    endpoint: a.example:1\n"));
    assert!(named.ends_with("endpoint: another peer is cloud already, expected an address for this one"), "{named}");
}

#[test]
fn a_store_that_hubs_share_is_named_with_its_members_and_perhaps_a_prefix() {
    let store = |text: &str| {
        let text = format!("site: hub\npool: [10.0.1.0/24]\nhub: {{store: \"{text}\"}}\n");
        Config::parse(Path::new("agent.yaml"), &text, &HostNetworks::default()).map(|config| config.hub_store)
    };
    let three = store("etcd://10.0.0.7:2379,b.example:2379,[fd00::1]:2379").expect("good").expect("a store");
    assert_eq!(three.members, ["10.0.0.7:2379", "b.example:2379", "[fd00::1]:2379"]);
    assert_eq!(three.prefix, "/virtual-presence/");
    assert_eq!(store("etcd://a:1/one/two/").expect("good").expect("a store").prefix, "/one/two/");
    for bad in ["redis://a:1", "etcd://", "etcd://a", "etcd://a:1,,b:1", "etcd://a:1//", "etcd://a:1/ü"] {
        let refused = store(bad).expect_err("refused").to_string();
        assert!(refused.starts_with("agent.yaml:3:14: hub.store: "), "{refused}");
    }
}
