//! What an authority does offline: keys, certificates and lists in files, without any agent.

use crate::fake::{Agent, Said, command, run};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A folder in which `vp-ctl` runs, where no agent is.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ctl(&self, arguments: &str) -> Said {
        let mut command = command(&self.path().join("no-agent.sock"), arguments);
        command.current_dir(self.path());
        run(command, "")
    }

    fn done(&self, arguments: &str) -> String {
        let said = self.ctl(arguments);
        assert_eq!((said.error.as_str(), said.code), ("", Some(0)), "{arguments}");
        said.out
    }

    fn answer(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.done(&format!("-o json {arguments}"))).expect("JSON")
    }

    fn refused(&self, arguments: &str) -> String {
        let said = self.ctl(arguments);
        assert_eq!((said.out.as_str(), said.code), ("", Some(1)), "{arguments}");
        said.error
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).expect("readable")
    }
}

fn issue(more: &str) -> String {
    format!("authority issue --authority acme.authority --site factory --public-key {KEY} {more}")
}

#[test]
fn an_authoritys_key_is_in_a_file_for_its_owner_alone_and_is_never_shown_or_replaced() {
    let desk = Desk::new();
    let out = desk.done("authority new acme");
    let line = out.lines().last().expect("a line").trim().to_owned();
    let key = out.lines().next().and_then(|line| line.strip_prefix("public key  ")).expect("the key").to_owned();
    assert_eq!(line, format!("- {{tenant: acme, authority: {key}}}"));
    let text = desk.read("acme.authority");
    let secret = text.lines().nth(1).expect("base64");
    assert!(text.starts_with("-----BEGIN VP SIGNING KEY-----\n") && !out.contains(secret));
    let mode = fs::metadata(desk.path().join("acme.authority")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(desk.refused("authority new acme").contains("acme.authority: there is such a file"));
    assert_eq!(desk.read("acme.authority"), text);
    fs::set_permissions(desk.path().join("acme.authority"), fs::Permissions::from_mode(0o640)).expect("mode");
    let refused = desk.refused(&issue(""));
    assert!(refused.contains("others may use this key (mode 0640), expected mode 0600"), "{refused}");
    assert_eq!(desk.ctl("authority new Acme").code, Some(2));
}

#[test]
fn a_certificate_shows_what_was_signed_and_who_signed_it() {
    let desk = Desk::new();
    let authority = desk.answer("authority new acme")["public_key"].clone();
    desk.done(&issue("--group edge,north --valid 12h --out factory.certificate"));
    let shown = desk.answer("certificate show factory.certificate");
    assert_eq!(shown["groups"], serde_json::json!(["edge", "north"]));
    assert_eq!((&shown["tenant"], &shown["site"]), (&Value::from("acme"), &Value::from("factory")));
    assert_eq!((&shown["public_key"], &shown["authority"]), (&Value::from(KEY), &authority));
    assert!(shown["delegation"].is_null());
    let page = desk.done("certificate show factory.certificate");
    assert!(page.starts_with("site        factory\ntenant      acme\ngroups      edge,north\n"), "{page}");
    // Without a file it is printed.
    let printed = desk.done(&issue(""));
    fs::write(desk.path().join("printed"), &printed).expect("written");
    assert!(printed.starts_with("-----BEGIN VP CERTIFICATE-----\n"));
    assert_ne!(desk.answer("certificate show printed")["serial"], shown["serial"]);

    let altered = desk.read("factory.certificate").replacen('A', "B", 1);
    fs::write(desk.path().join("factory.certificate"), altered).expect("written");
    let refused = desk.refused("certificate show factory.certificate");
    assert!(refused.starts_with("vp-ctl: error: factory.certificate: "), "{refused}");
    fs::write(desk.path().join("none"), "hello").expect("written");
    assert!(desk.refused("certificate show none").contains("no line \"-----BEGIN VP CERTIFICATE-----\""));
    for wrong in ["--valid 0d", "--valid 90", "--public-key short", "--group Edge"] {
        let wrong = issue(wrong).replace(&format!("--public-key {KEY} --public-key"), "--public-key");
        assert_eq!(desk.ctl(&wrong).code, Some(2), "{wrong}");
    }
}

#[test]
fn an_issuer_signs_on_behalf_of_its_authority_and_delegates_to_nobody() {
    let desk = Desk::new();
    let authority = desk.answer("authority new acme")["public_key"].clone();
    let issuer = desk.answer("authority delegate --authority acme.authority --valid 30d --out acme.issuer");
    desk.done(&issue("--out f.certificate").replace("acme.authority", "acme.issuer"));
    let shown = desk.answer("certificate show f.certificate");
    assert_eq!((&shown["authority"], &shown["delegation"]), (&authority, &issuer["serial"]));
    assert_eq!(shown["not_after"], issuer["not_after"], "no longer than it may");
    let refused = desk.refused("authority delegate --authority acme.issuer --out other.issuer");
    assert!(refused.contains("an issuer may not delegate"), "{refused}");
    let said = desk.done(&format!(
        "authority revoke --authority acme.authority --serial {} --list acme.revocations",
        issuer["serial"].as_str().expect("a serial")
    ));
    assert!(said.starts_with("acme.revocations: version 1, 1 revoked"), "{said}");
}

#[test]
fn a_list_goes_on_from_version_to_version_and_is_its_signers_own() {
    let desk = Desk::new();
    desk.done("authority new acme");
    desk.done("authority new beta");
    for number in [1, 2] {
        desk.done(&issue(&format!("--out {number}.certificate")));
    }
    let revoke = |number: u8, by: &str| {
        format!(
            "authority revoke --authority {by}.authority --certificate {number}.certificate --list acme.revocations"
        )
    };
    let first = desk.answer(&revoke(1, "acme"));
    let second = desk.answer(&revoke(2, "acme"));
    assert_eq!([&first["version"], &second["version"], &second["revoked"]], [1, 2, 2].map(Value::from).each_ref());
    assert!(desk.refused(&revoke(2, "acme")).contains("is revoked already"));
    assert!(desk.refused(&revoke(1, "beta")).contains("the certificate is of tenant acme, this key of beta"));
    let serial = "authority revoke --authority beta.authority --serial 00000000000000000000000000000007 --list";
    assert!(desk.refused(&format!("{serial} acme.revocations")).contains("of another tenant or signer"));
    assert_eq!(desk.ctl(&serial.replace("--serial 0", "--serial x")).code, Some(2));

    let agent = Agent::saying(r#"{"tenant":"acme","version":2,"revoked":2,"is_new":true}"#);
    let file = desk.path().join("acme.revocations");
    let said = agent.ctl(&format!("revocations add {}", file.display()));
    assert_eq!((said.out.as_str(), said.code), ("acme: version 2, 2 revoked\n", Some(0)));
    let asked = agent.asked();
    assert!(asked[0].starts_with(r#"POST /v1/revocations {"list":"-----BEGIN VP REVOCATIONS-----\n"#), "{asked:?}");
}

#[test]
fn status_shows_certificates_where_there_are_some() {
    let certificate = |state: &str| {
        format!(
            r#""certificate":{{"tenant":"acme","groups":["edge"],"serial":"00ff","not_after":"2027-01-15T08:00:00Z",
            "seconds_left":7200,"state":"{state}"}}"#
        )
    };
    let status = format!(
        r#"{{"site":"cloud","version":"0.1.0","uptime_seconds":1,"interface":"vp0","listen":"0.0.0.0:1","public_key":"Zm9v=",
        "pool":[],"presences":[],"callers":[],"services":[],"flows":{{"open":0,"max":1,"opened_total":0,"closed_total":0}},
        "drops":{{}},"health":[],{},"peers":[{{"site":"factory","state":"revoked","path":"none","endpoint":null,
        "handshake_age_seconds":null,"rtt_ms":null,"rx_bytes":0,"tx_bytes":0,"control":"none","offered_services":0,{}}}]}}"#,
        certificate("valid"),
        certificate("revoked")
    );
    let said = Agent::saying(&status).ctl("status");
    let expected = "Certificates\n\
         SITE     TENANT  GROUPS  SERIAL  STATE    ENDS                     IN\n\
         cloud    acme    edge    00ff    valid    2027-01-15T08:00:00Z  2h 0m\n\
         factory  acme    edge    00ff    revoked  2027-01-15T08:00:00Z  2h 0m\n";
    assert!(said.out.contains(expected), "{}", said.out);
}
