//! What an issuer's operator is given, and what `vp-ctl join` puts on a host, which has no agent yet.

use crate::fake::{Agent, Said, command, run};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use vp::addr::Name;
use vp::identity::text::{Label, encode};
use vp::identity::{Gateway, Issuer, Serial, Terms, Token, Validity};
use zeroize::Zeroizing;

const PACKAGED: &str = include_str!("../../../packaging/agent.yaml");

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

fn issuer() -> Issuer {
    Issuer::authority(name("acme"), &[1; 32])
        .delegate(&[2; 32], Serial([3; 16]), Validity { not_before: now() - 3600, not_after: now() + 7200 })
        .expect("a key")
}

/// Good from then on, for so many seconds.
fn token(from: u64, seconds: u64) -> Token {
    let issuer = issuer();
    let gateway = |site: &str, key, endpoint: Option<&str>, hub| Gateway {
        site: name(site),
        public_key: [key; 32],
        endpoint: endpoint.map(ToOwned::to_owned),
        tls: None,
        hub,
    };
    let terms = Terms {
        tenant: name("acme"),
        site: name("factory"),
        secret: Zeroizing::new([7; 32]),
        authorities: vec![issuer.authority_key()],
        issuer: gateway("cloud", 8, None, false),
        hubs: vec![gateway("hub", 9, Some("hub.example.com:51820"), true)],
    };
    issuer.token(&terms, Validity { not_before: from, not_after: from + seconds }).expect("signed")
}

/// A host that is to be a gateway.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn join(&self, offer: &str, arguments: &str, input: &str) -> Said {
        let (config, state) = (self.path("agent.yaml"), self.path("state"));
        let files = format!("--config {} --state-dir {} --no-start", config.display(), state.display());
        run(command(&self.path("agent.sock"), &format!("join {offer} {files} {arguments}")), input)
    }

    fn refused(&self, offer: &str, arguments: &str, input: &str) -> String {
        let said = self.join(offer, arguments, input);
        assert_eq!((said.out.as_str(), said.code), ("", Some(1)), "{}", said.error);
        assert!(!self.path("state").exists(), "nothing is written");
        said.error
    }

    fn config(&self) -> String {
        fs::read_to_string(self.path("agent.yaml")).expect("readable")
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

#[test]
fn join_writes_what_the_agent_needs_and_the_secret_for_it_alone() {
    let (host, token) = (Host::new(), token(now(), 900));
    let pasted = format!("\n  {}\n\nOn the gateway of factory: vp-ctl join -\n", *token.to_text());
    let said = host.join("-", "--pool 10.0.1.0/24,fd00:1::/64 --proxy-arp eth1 --listen 0.0.0.0:51820", &pasted);
    assert_eq!(said.code, Some(0), "{}", said.error);
    assert!(said.out.starts_with("factory joins acme as soon as its agent reaches cloud"), "{}", said.out);
    assert!(said.error.contains("now start the agent: ") && said.error.contains("--config"), "{}", said.error);
    assert!(!format!("{said:?}").contains("vp1."), "the token is not said again");
    let config = host.config();
    let lines = [
        "site: factory\n",
        "pool: [\"10.0.1.0/24\", \"fd00:1::/64\"]\n",
        "listen: \"0.0.0.0:51820\"\n",
        "reach: {proxy_arp: \"eth1\"}\n",
        "  - {tenant: acme, authority: ",
        "  - site: cloud\n    public_key: CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=\n    keepalive: 25s\n",
        "    endpoint: \"hub.example.com:51820\"\n    keepalive: 25s\n    hub: true\n",
        "state_dir: ",
        "socket: ",
    ];
    lines.iter().for_each(|line| assert!(config.contains(line), "no {line:?} in {config}"));
    assert!(!config.contains("vp1."));
    let pending = host.path("state/invitation");
    assert_eq!(fs::read_to_string(&pending).expect("there"), *token.to_text());
    assert_eq!((mode(&pending), mode(&host.path("state")), mode(&host.path("agent.yaml"))), (0o600, 0o700, 0o644));
}

#[test]
fn a_configuration_that_somebody_wrote_is_not_written_over_unasked() {
    let (host, text) = (Host::new(), token(now(), 900).to_text());
    let file = host.path("agent.yaml");
    fs::write(&file, "site: factory\n# mine\n").expect("written");
    let refused = host.refused(&text, "--pool 10.0.1.0/24", "");
    assert!(refused.contains("--keep") && refused.contains("--replace"), "{refused}");
    assert_eq!(host.join(&text, "--keep", "").code, Some(0));
    assert!(host.config().contains("# mine") && host.path("state/invitation").exists());
    assert_eq!(host.join(&text, "--replace --pool 10.0.1.0/24", "").code, Some(0));
    assert!(!host.config().contains("# mine"));
    let old = fs::read_to_string(host.path("agent.yaml.before-join")).expect("kept");
    assert!(old.contains("# mine"));

    let fresh = Host::new();
    assert!(fresh.refused(&text, "--keep", "").contains("no configuration to keep"));
    fs::write(fresh.path("agent.yaml"), PACKAGED).expect("written");
    assert_eq!(fresh.join(&text, "--pool 10.0.1.0/24", "").code, Some(0), "that of the package is nobody's");
}

#[test]
fn what_is_no_good_token_is_refused_with_its_reason_and_leaves_the_host_as_it_was() {
    let (host, pool) = (Host::new(), "--pool 10.0.1.0/24");
    let text = token(now(), 900).to_text();
    assert!(host.refused(&text, "", "").contains("expected --pool"));
    let expired = token(now() - 100, 50).to_text();
    assert!(host.refused(&expired, pool, "").contains("the token: expired: "));
    let future = token(now() + 3000, 50).to_text();
    assert!(host.refused(&future, pool, "").contains("the token: not-yet-valid: "));
    let cut = &text[..text.len() - 8];
    assert!(host.refused(cut, pool, "").contains("altered or cut on its way"));
    assert!(host.refused("-", pool, "hello\n").contains("there is no token"));
    assert!(host.refused(&format!("vp1.{}", "A".repeat(9000)), pool, "").contains("too-large: "));
    let missing = host.path("none");
    assert!(host.refused(&missing.to_string_lossy(), pool, "").contains("No such file"));
}

#[test]
fn a_bundle_is_installed_whole_and_refused_when_anything_of_it_was_changed() {
    let (host, token) = (Host::new(), token(now(), 900));
    let (configuration, unit) =
        ("site: factory\npool: [\"10.0.7.0/24\"]\n", "[Service]\nExecStart=/usr/bin/vp-agent\n");
    let bundle = issuer().bundle(&token, configuration.to_owned(), unit.to_owned(), now()).expect("signed");
    let text = format!("A remark.\n\n{}", *encode(Label::Bundle, &bundle.to_bytes()));
    let file = host.path("factory.bundle");
    // Not the end of a line.
    let from = text.find("-----\n").expect("a line") + 200;
    let body = (from..).find(|at| text.as_bytes()[*at].is_ascii_alphanumeric()).expect("base64");
    let changed = if text.as_bytes()[body] == b'A' { "B" } else { "A" };
    fs::write(&file, format!("{}{changed}{}", &text[..body], &text[body + 1..])).expect("written");
    let refused = host.refused(&file.to_string_lossy(), "", "");
    assert!(refused.contains("altered or cut on its way"), "{refused}");

    fs::write(&file, &text).expect("written");
    let unit_file = host.path("vp-agent.service");
    let said = host.join(&file.to_string_lossy(), &format!("--unit {}", unit_file.display()), "");
    assert_eq!(said.code, Some(0), "{}", said.error);
    assert!(host.config().contains("10.0.7.0/24") && host.config().contains("state_dir: "));
    let unit = fs::read_to_string(unit_file).expect("written");
    assert!(unit.contains("ExecStart=") && unit.contains("vp-agent\n"), "{unit}");
    assert_eq!(fs::read_to_string(host.path("state/invitation")).expect("there"), *token.to_text());
}

#[test]
fn invite_prints_the_token_and_the_next_command_or_puts_it_into_a_file_for_its_owner() {
    let text = token(now(), 900).to_text();
    let invitation = r#"{"id":"3f0a9c51e2b7","site":"factory","groups":["edge"],"made":"2026-01-01T00:00:00Z",
        "expires":"2026-01-01T00:15:00Z","uses":1,"uses_left":1,"certificate_seconds":2592000,"state":"open","joined":[]}"#;
    let answer = format!("{{\"invitation\":{invitation},\"token\":\"{}\",\"warnings\":[]}}", *text);
    let agent = Agent::saying(&answer);
    let said = agent.ctl("invite factory --group edge,north --expires 1h");
    assert!(
        said.out.starts_with(&format!("{}\n", *text)) && said.out.contains("\n  vp-ctl join - --pool "),
        "{}",
        said.out
    );
    let asked = agent.asked();
    assert!(asked[0].starts_with("POST /v1/invite ") && asked[0].contains(r#""groups":["edge","north"]"#), "{asked:?}");
    assert!(asked[0].contains(r#""expires_seconds":3600"#) && asked[0].contains(r#""uses":1"#), "{asked:?}");

    let host = Host::new();
    let file = host.path("token");
    let said = agent.ctl(&format!("-o json invite factory --out {}", file.display()));
    assert_eq!((said.code, said.out.contains("vp1.")), (Some(0), false), "{}", said.error);
    assert_eq!((fs::read_to_string(&file).expect("there"), mode(&file)), (format!("{}\n", *text), 0o600));
    let again = agent.ctl(&format!("invite factory --out {}", file.display()));
    assert!(again.code == Some(1) && again.error.contains("there is such a file"), "{}", again.error);

    let agent = Agent::saying(&format!("[{invitation}]"));
    let expected = "ID            SITE     GROUPS  STATE  USES LEFT  EXPIRES\n\
                    3f0a9c51e2b7  factory  edge    open   1 of 1     2026-01-01T00:15:00Z\n";
    assert_eq!(agent.ctl("invitations").out, expected);
    let agent = Agent::saying(invitation);
    assert!(agent.ctl("invitations --revoke 3f0a9c51e2b7").out.contains("is taken back"));
    assert_eq!(agent.asked(), [r#"POST /v1/invitations {"id":"3f0a9c51e2b7"}"#]);
}
