//! What each verb asks the agent, and what it makes of the answer, for people and for programs.

use crate::fake::Agent;
use serde_json::Value;

/// The text as it stands between the quotes, without the indentation of the source.
fn page(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

const STATUS: &str = r#"{"site":"factory","version":"0.1.0","uptime_seconds":11520,"interface":"vp0",
"listen":"0.0.0.0:51820","public_key":"Zm9v=","pool":["10.0.1.0/24","fd00:1::/64"],
"peers":[
 {"site":"cloud","state":"up","path":"direct","endpoint":"203.0.113.5:51820","handshake_age_seconds":12,"rtt_ms":1.26,
  "rx_bytes":1536,"tx_bytes":5368709120,"control":"open","offered_services":3},
 {"site":"branch","state":"waiting","path":"none","endpoint":null,"handshake_age_seconds":null,"rtt_ms":null,
  "rx_bytes":0,"tx_bytes":0,"control":"closed","offered_services":0}],
"presences":[{"service":"web.cloud","address":"10.0.1.2","ports":["tcp/80","icmp"],"state":"up","flows":4,"origin":"file"}],
"callers":[{"address":"10.0.1.9","site":"cloud","client":null,"wire_address":"198.19.0.2","flows":1}],
"services":[{"name":"metrics","target":"10.0.0.2","ports":["tcp/9100"],"allow":["site:cloud"],"source":"masquerade",
 "wire_addresses":["198.18.0.2"],"flows":1,"origin":"runtime","state":"up"}],
"flows":{"open":5,"max":65536,"opened_total":107,"closed_total":102},
"drops":{"not-allowed":3,"malformed":0,"ttl-expired":1},
"health":[{"name":"forwarding-off","severity":"error","detail":"net.ipv4.ip_forward is 0","fix":"sysctl -w net.ipv4.ip_forward=1"},
 {"name":"routes","severity":"ok","detail":"nothing overlaps the pool","fix":null}]}"#;

#[test]
fn status_shows_the_site_on_one_screen() {
    let agent = Agent::saying(STATUS);
    let said = agent.ctl("status");
    let expected = page(&[
        "site        factory",
        "agent       version 0.1.0, up 3h 12m, interface vp0, listening on 0.0.0.0:51820",
        "public key  Zm9v=",
        "pool        10.0.1.0/24,fd00:1::/64",
        "flows       5 open of at most 65536; 107 opened, 102 closed since the start",
        "dropped     not-allowed 3, ttl-expired 1",
        "",
        "Peers",
        "SITE    STATE    PATH    ENDPOINT           HANDSHAKE     RTT       RX       TX  CONTROL  OFFERS",
        "cloud   up       direct  203.0.113.5:51820        12s  1.3 ms  1.5 KiB  5.0 GiB  open          3",
        "branch  waiting  none    -                          -       -      0 B      0 B  closed        0",
        "",
        "Presences: services of other sites, here",
        "SERVICE    ADDRESS   PORTS        STATE  FLOWS  FROM",
        "web.cloud  10.0.1.2  tcp/80,icmp  up         4  file",
        "",
        "Callers: hosts of other sites, here",
        "ADDRESS   SITE   CLIENT  WIRE ADDRESS  FLOWS",
        "10.0.1.9  cloud  -       198.19.0.2        1",
        "",
        "Services: exposed to other sites",
        "NAME     TARGET    PORTS     ALLOW       SOURCE      WIRE ADDRESS  STATE  FLOWS  FROM",
        "metrics  10.0.0.2  tcp/9100  site:cloud  masquerade  198.18.0.2    up         1  runtime",
        "",
        "Health",
        "error  forwarding-off  net.ipv4.ip_forward is 0",
        "                       to mend: sysctl -w net.ipv4.ip_forward=1",
        "ok     routes          nothing overlaps the pool",
    ]);
    assert_eq!(said.out, expected);
    assert_eq!((said.error.as_str(), said.code), ("", Some(0)));
    assert_eq!(agent.asked(), ["GET /v1/status"]);
}

#[test]
fn a_new_site_sees_what_comes_next() {
    let mut status: Value = serde_json::from_str(STATUS).expect("JSON");
    for list in ["peers", "presences", "callers", "services", "health"] {
        status[list] = Value::Array(Vec::new());
    }
    let said = Agent::saying(&status.to_string()).ctl("status");
    assert!(said.out.contains("none: vp-ctl services shows what can be mapped"), "{}", said.out);
    assert!(said.out.ends_with("Health\nnothing to report\n"), "{}", said.out);
}

#[test]
fn json_is_what_the_agent_said_and_nothing_else() {
    let newer = STATUS.replacen("{\"site\"", "{\"added_later\":18446744073709551615,\"site\"", 1);
    for line in ["-o json status", "status -o json", "--output=json status"] {
        let said = Agent::saying(&newer).ctl(line);
        let [before, after]: [Value; 2] = [&newer, &said.out].map(|text| serde_json::from_str(text).expect("JSON"));
        assert_eq!(before, after);
        assert!(said.out.starts_with("{\n  \"added_later\": 18446744073709551615,\n  \"site\": \"factory\","));
        assert_eq!((said.error.as_str(), said.code), ("", Some(0)));
    }
}

#[test]
fn map_prints_the_address_alone_so_that_a_script_can_use_it() {
    let agent = Agent::saying(
        r#"{"presences":[{"service":"web.cloud","address":"10.0.1.2","ports":["tcp/80=tcp/8080"],"state":"up","flows":0,
        "origin":"runtime"}],"warnings":["the peer is away at present"]}"#,
    );
    let said =
        agent.ctl("map web.cloud --address 10.0.1.2 --port tcp/80=tcp/8080,icmp --caller plc --caller 10.0.0.16/28");
    assert_eq!(said.out, "10.0.1.2\n");
    assert_eq!(said.error, "vp-ctl: warning: the peer is away at present\n");
    assert_eq!(said.code, Some(0));
    let request = r#"{"service":"web.cloud","address":"10.0.1.2","ports":["tcp/80=tcp/8080","icmp"],"callers":["plc","10.0.0.16/28"]}"#;
    assert_eq!(agent.asked(), [format!("POST /v1/map {request}")]);
    assert_eq!(agent.ctl("map web.cloud -o json").error, "");
}

#[test]
fn the_name_in_dns_stands_beside_the_address() {
    let presence = |service: &str, address: &str| {
        format!(
            r#"{{"service":"{service}","name":"{service}.vp","address":"{address}","ports":[],"state":"up","flows":0,"origin":"file"}}"#
        )
    };
    let [four, six] = [presence("web.cloud", "10.0.1.2"), presence("web.cloud", "fd00:1::2")];
    let both = format!(r#"{{"presences":[{four},{six}]}}"#);
    let said = Agent::saying(&both).ctl("map web.cloud");
    assert_eq!(
        (said.out.as_str(), said.error.as_str()),
        ("10.0.1.2\nfd00:1::2\n", "vp-ctl: note: its name is web.cloud.vp\n")
    );
    let said = Agent::saying(&both).ctl("map *.cloud");
    assert_eq!((said.out.as_str(), said.error.as_str()), ("10.0.1.2   web.cloud.vp\nfd00:1::2  web.cloud.vp\n", ""));
}

#[test]
fn mapping_all_of_a_site_prints_which_address_is_which() {
    let presence = |service: &str, address: &str| {
        format!(
            r#"{{"service":"{service}","address":"{address}","ports":[],"state":"up","flows":0,"origin":"runtime"}}"#
        )
    };
    let [web, mail] = [presence("web.cloud", "10.0.1.2"), presence("mail.cloud", "10.0.1.13")];
    let said = Agent::saying(&format!(r#"{{"presences":[{web},{mail}]}}"#)).ctl("map *.cloud");
    assert_eq!(said.out, "10.0.1.2   web.cloud\n10.0.1.13  mail.cloud\n");
}

#[test]
fn a_mapping_without_an_address_yet_is_done_and_says_so() {
    let said = Agent::saying(r#"{"presences":[]}"#).ctl("map web.cloud");
    assert_eq!((said.out.as_str(), said.code), ("", Some(0)));
    assert!(said.error.contains("warning: mapped, but no address yet"), "{}", said.error);
}

#[test]
fn a_stock_peer_gets_a_configuration_whose_private_key_the_agent_never_sees() {
    let agent = Agent::saying(
        r#"{"public_key":"GATEWAY=","endpoint":"192.0.2.1:51820","mtu":1420,"services":[],"warnings":["nothing yet"]}"#,
    );
    let said = agent.ctl("peer add laptop --stock --group staff");
    assert_eq!(said.code, Some(0), "{}", said.error);
    let private = said.out.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).expect("a key");
    assert!(private.len() == 44 && said.out.contains("PublicKey = GATEWAY=\n") && !said.out.contains('█'));
    assert!(said.error.contains("warning: nothing yet"), "{}", said.error);
    let asked = agent.asked().join("\n");
    assert!(asked.starts_with(r#"POST /v1/add-peer {"site":"laptop","public_key":""#), "{asked}");
    assert!(!asked.contains(private), "the agent was told the private key");
    assert!(agent.ctl("peer add laptop --stock --qr").out.contains('█'));
    let own = agent.ctl("peer add laptop --stock --public-key KEY=");
    assert!(own.out.contains("\n# PrivateKey = the peer's own\n"), "{}", own.out);
    assert_eq!(agent.ctl("peer add laptop").code, Some(2), "sites with agents are not added so");
}

#[test]
fn changes_say_what_was_done() {
    let agent = Agent::saying(r#"{"warnings":["two flows were ended"]}"#);
    for (line, done, request) in [
        ("unmap web.cloud", "web.cloud is no longer mapped\n", r#"POST /v1/unmap {"service":"web.cloud"}"#),
        ("unexpose web", "web is no longer exposed\n", r#"POST /v1/unexpose {"name":"web"}"#),
        ("reload", "reloaded\n", "POST /v1/reload null"),
        (
            "expose web --target 10.0.0.5 --target 10.0.0.6 --port tcp/8080,icmp --allow site:factory --source presence",
            "web exposed: tcp/8080, icmp of 10.0.0.5, 10.0.0.6, to site:factory\n",
            r#"POST /v1/expose {"name":"web","target":["10.0.0.5","10.0.0.6"],"ports":["tcp/8080","icmp"],"allow":["site:factory"],"source":"presence","limits":[]}"#,
        ),
    ] {
        let said = agent.ctl(line);
        assert_eq!((said.out.as_str(), said.code), (done, Some(0)), "{line}");
        assert_eq!(said.error, "vp-ctl: warning: two flows were ended\n", "{line}");
        assert_eq!(agent.asked(), [request]);
    }
}

#[test]
fn services_shows_what_can_be_mapped_and_what_is() {
    let agent = Agent::saying(
        r#"[{"service":"web.cloud","name":"web.cloud.vp","ports":["tcp/80"],"mapped":true,"addresses":["10.0.1.2"],"state":"up"},
        {"service":"rabbitmq.cloud","ports":["tcp/5672"],"mapped":false,"addresses":[],"state":"down"}]"#,
    );
    let expected = page(&[
        "SERVICE         PORTS     STATE  LOCAL ADDRESS  NAME",
        "web.cloud       tcp/80    up     10.0.1.2       web.cloud.vp",
        "rabbitmq.cloud  tcp/5672  down   -              -",
    ]);
    assert_eq!(agent.ctl("services").out, expected);
    assert_eq!(Agent::saying("[]").ctl("services").out, "no other site offers this one a service\n");
}

const FLOW: &str = r#"{"protocol":"tcp","service":"web.cloud","peer":"cloud","client":"plc","role":"caller",
"site":{"caller":"10.0.0.2:4711","service":"10.0.1.2:80"},"wire":{"caller":"198.19.0.7:4711","service":"198.18.0.12:8080"},
"state":"established","age_seconds":190,"idle_seconds":1,"outbound_packets":9,"outbound_bytes":700,
"inbound_packets":100,"inbound_bytes":140000}"#;

#[test]
fn flows_shows_both_views_of_each_address() {
    let agent = Agent::saying(&format!("[{FLOW}]"));
    let said = agent.ctl("flows --service web.cloud -n 5");
    let expected = page(&[
        "SERVICE    PEER   CLIENT  HERE    PROTOCOL  STATE        SITE VIEW                     WIRE VIEW                            \
         AGE  IDLE  OUTBOUND    INBOUND",
        "web.cloud  cloud  plc     caller  tcp       established  10.0.0.2:4711 -> 10.0.1.2:80  198.19.0.7:4711 -> 198.18.0.12:8080  \
         \u{20}3m    1s     700 B  136.7 KiB",
    ]);
    assert_eq!(said.out, expected);
    assert_eq!(agent.asked(), ["GET /v1/flows?service=web.cloud&limit=5"]);
    assert_eq!(Agent::saying("[]").ctl("flows").out, "no open flows\n");
}

#[test]
fn whois_names_who_stands_behind_an_address() {
    let agent = Agent::saying(
        r#"{"address":"10.0.9.2","kind":"caller","site":"factory","service":null,"client":"plc","wire_address":"198.19.0.7",
        "flows":3}"#,
    );
    let said = agent.ctl("whois 10.0.9.2");
    let expected = page(&[
        "address     10.0.9.2",
        "stands for  a caller from another site",
        "site        factory",
        "client      plc",
        "wire        198.19.0.7",
        "flows       3",
    ]);
    assert_eq!((said.out, said.code), (expected, Some(0)));
    assert_eq!(agent.asked(), ["GET /v1/whois?address=10.0.9.2"]);
    let nobody = r#"{"address":"10.0.9.9","kind":"nobody","site":null,"service":null,"client":null,"wire_address":null,"flows":0}"#;
    let said = Agent::saying(nobody).ctl("whois 10.0.9.9");
    assert_eq!((said.out.as_str(), said.code), ("address     10.0.9.9\nstands for  nobody\n", Some(1)));
}

#[test]
fn ping_has_one_line_a_layer_and_fails_with_its_layer() {
    let layer = |name: &str, outcome: &str, detail: &str, change: &str| {
        format!(r#"{{"step":"{name}","outcome":"{outcome}","detail":"{detail}","change":{change}}}"#)
    };
    let tunnel = layer("tunnel", "ok", "up, 1.3 ms", "null");
    let refused = layer("target port", "failed", "tcp/80 refuses", "\"start the server at cloud\"");
    let agent = Agent::saying(&format!("[{tunnel},{refused}]"));
    let said = agent.ctl("ping web.cloud --port tcp/80");
    let expected = page(&[
        "ok      tunnel       up, 1.3 ms",
        "failed  target port  tcp/80 refuses",
        "                     to change: start the server at cloud",
    ]);
    assert_eq!((said.out, said.code), (expected, Some(1)));
    assert_eq!(agent.asked(), [r#"POST /v1/ping {"service":"web.cloud","port":"tcp/80"}"#]);
    assert_eq!(agent.ctl("-o json ping web.cloud").code, Some(1));
    assert_eq!(Agent::saying(&format!("[{tunnel}]")).ctl("ping web.cloud").code, Some(0));
}

#[test]
fn explain_ends_in_a_verdict_which_is_its_exit_code() {
    let agent = Agent::saying(
        r#"{"verdict":"denied","reason":"not-allowed","steps":[
        {"step":"caller","outcome":"ok","detail":"plc","change":null},
        {"step":"policy","outcome":"failed","detail":"no entry covers plc","change":"cloud: add client:plc.factory to allow"},
        {"step":"tunnel","outcome":"skipped","detail":"","change":null}]}"#,
    );
    let said = agent.ctl("explain --from plc --to web.cloud --port tcp/8080");
    let expected = page(&[
        "ok       caller  plc",
        "failed   policy  no entry covers plc",
        "                 to change: cloud: add client:plc.factory to allow",
        "skipped  tunnel",
        "denied: not-allowed",
    ]);
    assert_eq!((said.out, said.code), (expected, Some(1)));
    assert_eq!(agent.asked(), [r#"POST /v1/explain {"from":"plc","to":"web.cloud","port":"tcp/8080"}"#]);
    let allowed = Agent::saying(r#"{"verdict":"allowed","reason":null,"steps":[]}"#);
    let said = allowed.ctl("explain --to web.cloud --port tcp/8080");
    assert_eq!((said.out.as_str(), said.code), ("allowed\n", Some(0)));
    assert_eq!(agent.ctl("-o json explain --to web.cloud --port icmp").code, Some(1));
}

#[test]
fn doctor_fails_with_an_error_and_not_with_a_warning() {
    let finding =
        |severity: &str| format!(r#"[{{"name":"offload","severity":"{severity}","detail":"none","fix":null}}]"#);
    for (severity, out, code) in [
        ("ok", "ok  offload  none\n", 0),
        ("warning", "warning  offload  none\n", 0),
        ("error", "error  offload  none\n", 1),
    ] {
        let said = Agent::saying(&finding(severity)).ctl("doctor");
        assert_eq!((said.out.as_str(), said.code), (out, Some(code)));
    }
}

const RECORDS: &str = concat!(
    r#"{"time":"2026-02-01T10:00:00Z","event":"flow-closed","site":"cloud","peer":"factory","client":"plc","service":"web","#,
    r#""protocol":"tcp","site_view":{"caller":"10.0.9.2:1","service":"10.0.0.5:80"},"reason":"closed","outbound_bytes":2048,"#,
    r#""inbound_bytes":10,"duration_ms":1500}"#,
    "\n",
    r#"{"time":"2026-02-01T10:00:01Z","event":"configuration","site":"cloud","detail":"reload: web exposed"}"#,
    "\n",
);

#[test]
fn audit_shows_one_record_a_line() {
    let agent = Agent::saying(RECORDS);
    let said = agent.ctl("audit -n 2");
    let expected = page(&[
        "2026-02-01T10:00:00Z  flow-closed  web  tcp  client plc, peer factory  10.0.9.2:1 -> 10.0.0.5:80  \
         2.0 KiB outbound, 10 B inbound  in 1.5 s  because closed",
        "2026-02-01T10:00:01Z  configuration  reload: web exposed",
    ]);
    assert_eq!((said.out, said.code), (expected, Some(0)));
    assert_eq!(agent.asked(), ["GET /v1/audit?lines=2&follow=false"]);
    assert_eq!(agent.ctl("-o json audit").out, RECORDS);
}

#[test]
fn audit_follows_until_the_agent_stops() {
    let rest = "time\":\"now\",\"event\":\"peer-up\",\"site\":\"a\",\"peer\":\"b\"}\n";
    let chunks = format!("2\r\n{{\"\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len());
    let agent = Agent::sending(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"));
    let said = agent.ctl("audit --follow");
    assert_eq!(said.out, "now  peer-up  peer b\n");
    assert!(said.code == Some(3) && said.error.contains("it has stopped"), "{}", said.error);
    assert_eq!(agent.asked(), ["GET /v1/audit?lines=10&follow=true"]);
}
