//! How `vp-ctl` ends: exit codes, refusals, an agent that is not there or not in its right mind, hostile text, colours,
//! readers that go away, keys, checks, and what is made for the packages.

use crate::fake::{Agent, command, read_request, run};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn what_the_agent_refuses_is_said_in_its_words() {
    let agent = Agent::answering("409 Conflict", r#"{"error":"web.cloud is mapped already, at 10.0.1.2"}"#);
    for line in ["map web.cloud", "-o json map web.cloud", "status", "audit -f"] {
        let said = agent.ctl(line);
        assert_eq!(said.error, "vp-ctl: error: web.cloud is mapped already, at 10.0.1.2\n", "{line}");
        assert_eq!((said.out.as_str(), said.code), ("", Some(1)), "{line}");
    }
}

#[test]
fn an_agent_that_is_not_there_has_an_exit_code_and_a_hint() {
    let directory = tempfile::tempdir().expect("a directory");
    let none = directory.path().join("none.sock");
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).expect("a socket"));
    for socket in [&none, &stale] {
        let said = run(command(socket, "status"), "");
        assert_eq!((said.out.as_str(), said.code), ("", Some(3)));
        assert!(
            said.error.starts_with(&format!("vp-ctl: error: no agent at {}: ", socket.display())),
            "{}",
            said.error
        );
        assert!(said.error.contains("systemctl status vp-agent") && said.error.contains("VP_SOCKET"), "{}", said.error);
    }
    let mut by_environment = Command::new(env!("CARGO_BIN_EXE_vp-ctl"));
    by_environment.arg("status").env("VP_SOCKET", &none);
    assert!(run(by_environment, "").error.contains("none.sock"));
}

#[test]
fn an_answer_that_breaks_off_is_no_answer() {
    for response in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"site\":", "SSH-2.0-x\r\n"] {
        let said = Agent::sending(response).ctl("status");
        assert_eq!((said.out.as_str(), said.code), ("", Some(3)), "{response:?}");
        assert!(said.error.contains("journalctl -u vp-agent"), "{}", said.error);
    }
}

#[test]
fn an_answer_of_another_shape_is_refused() {
    for body in ["", "<html>", "[]", r#"{"site":5}"#] {
        let said = Agent::saying(body).ctl("status");
        assert_eq!((said.out.as_str(), said.code), ("", Some(1)), "{body}");
        assert!(said.error.contains("cannot be read"), "{}", said.error);
    }
    let said = Agent::answering("502 Bad Gateway", "<html>\u{1b}[2J").ctl("status");
    assert_eq!(said.error, "vp-ctl: error: the agent answers 502 Bad Gateway: <html>\\u{1b}[2J\n");
}

#[test]
fn wrong_usage_ends_with_2() {
    let directory = tempfile::tempdir().expect("a directory");
    for line in ["", "stauts", "map", "explain --to web.cloud", "expose web --target 10.0.0.5 --port tcp/1", "key"] {
        let said = run(command(&directory.path().join("none"), line), "");
        assert_eq!((said.out.as_str(), said.code), ("", Some(2)), "{line}");
    }
}

#[test]
fn no_text_from_outside_reaches_the_controls_of_a_terminal() {
    let evil = r#"\u001b[2J\u009b31m\r\n\u202e\u0007"#;
    let finding = format!(r#"[{{"name":"a{evil}","severity":"{evil}","detail":"x{evil}y","fix":"{evil}"}}]"#);
    let record = format!(r#"{{"time":"{evil}","event":"{evil}","site":"a","detail":"{evil}"}}"#) + "\n";
    let refusal = format!(r#"{{"error":"{evil}"}}"#);
    let (doctor, audit) = (Agent::saying(&finding), Agent::saying(&record));
    let refused = Agent::answering("400 Bad Request", &refusal);
    let pages = [
        doctor.ctl("doctor"),
        doctor.ctl("-o json doctor"),
        audit.ctl("audit"),
        audit.ctl("-o json audit"),
        refused.ctl("status"),
    ];
    for said in pages {
        for text in [&said.out, &said.error] {
            assert!(text.chars().all(|c| c == '\n' || (c.is_ascii() && !c.is_control())), "{text:?}");
        }
    }
    assert_eq!(audit.ctl("audit").out.lines().count(), 1);
    // Raw bytes that JSON itself allows.
    let raw = Agent::saying("[{\"name\":\"\u{9b}31m\",\"severity\":\"ok\",\"detail\":\"\u{202e}\",\"fix\":null}]");
    assert!(raw.ctl("doctor").out.is_ascii() && raw.ctl("-o json doctor").out.is_ascii());
}

#[test]
fn colour_is_for_terminals_and_for_who_asks() {
    let agent = Agent::saying(r#"[{"name":"a","severity":"error","detail":"b","fix":null}]"#);
    let colours = |name: &str| {
        let mut command = command(&agent.socket(), "doctor");
        command.env(name, "1").env("TERM", "xterm");
        run(command, "").out.contains('\u{1b}')
    };
    assert!(colours("CLICOLOR_FORCE"));
    assert!(!colours("NO_COLOR"));
    assert!(!agent.ctl("doctor").out.contains('\u{1b}'));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let finding = r#"{"name":"a","severity":"ok","detail":"b","fix":null}"#;
    let agent = Agent::saying(&format!("[{}]", vec![finding; 20_000].join(",")));
    for line in ["doctor", "-o json doctor", "completions bash"] {
        let mut command = command(&agent.socket(), line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vp-ctl runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{line}");
    }
}

#[test]
fn keys_are_made_and_their_public_halves_found() {
    let nowhere = Path::new("/nonexistent");
    let [one, two] = [0; 2].map(|_| run(command(nowhere, "key new"), "").out);
    assert!(one.len() == 45 && one.ends_with("=\n") && one != two, "{one}");
    let public = |input: &str| run(command(nowhere, "key public"), input);
    // RFC 7748 section 6.1: the keys of Alice.
    let said = public("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n");
    assert_eq!((said.out.as_str(), said.code), ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n", Some(0)));
    assert!(run(command(nowhere, "-o json key public"), &one).out.starts_with("{\n  \"public_key\": \""));
    for bad in ["", "not a key\n", "c2hvcnQ=\n", &one.repeat(1000)] {
        let said = public(bad);
        assert_eq!((said.out.as_str(), said.code), ("", Some(1)));
        assert!(said.error.contains("expected a private key"), "{}", said.error);
    }
    assert_eq!(run(command(nowhere, "key public dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="), "").code, Some(2));
}

#[test]
fn a_new_key_in_a_file_that_others_can_read_is_remarked() {
    let directory = tempfile::tempdir().expect("a directory");
    for (mode, remarked) in [(0o644, true), (0o600, false)] {
        let path = directory.path().join(format!("{mode:o}"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path).expect("a file");
        let output = command(&path, "key new").stdout(file).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"), remarked);
        assert_eq!(fs::read_to_string(&path).expect("a key").len(), 45);
    }
}

#[test]
fn check_asks_the_agent_that_would_read_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = "#!/bin/sh\n[ \"$1\" = --check ] || exit 9\ncase $2 in\n\
                  *good*) echo 'vp-agent: warning: allows nobody' >&2; exit 0 ;;\n\
                  *) printf 'vp-agent: %s:3:7: unknown key \\033[2J\\n' \"$2\" >&2; exit 1 ;;\nesac\n";
    let ctl = beside(directory.path(), script);
    let check = |line: &str| {
        let mut command = Command::new(&ctl);
        command.args(line.split_whitespace());
        run(command, "")
    };
    let said = check("check good.yaml");
    assert_eq!((said.out.as_str(), said.code), ("good.yaml: good\n", Some(0)));
    assert_eq!(said.error, "vp-ctl: warning: allows nobody\n");
    let said = check("check bad.yaml");
    assert_eq!(said.error, "vp-ctl: error: bad.yaml:3:7: unknown key \\u{1b}[2J\n");
    assert_eq!((said.out.as_str(), said.code), ("", Some(1)));
    let said = check("-o json check bad.yaml");
    assert!(said.out.contains("\"good\": false") && said.out.contains("bad.yaml:3:7"), "{}", said.out);
    assert_eq!(said.code, Some(1));
    fs::remove_file(directory.path().join("vp-agent")).expect("removed");
    let mut alone = Command::new(&ctl);
    alone.args(["check", "good.yaml"]).env("PATH", "/nonexistent");
    let said = run(alone, "");
    assert!(said.code == Some(1) && said.error.contains("vp-agent is needed"), "{}", said.error);
}

/// A `vp-agent` of our own in this directory, beside a `vp-ctl` that will find it there.
fn beside(directory: &Path, agent: &str) -> PathBuf {
    let [ctl, script] = ["vp-ctl", "vp-agent"].map(|name| directory.join(name));
    fs::copy(env!("CARGO_BIN_EXE_vp-ctl"), &ctl).expect("copied");
    fs::write(&script, agent).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
    ctl
}

#[test]
fn every_verb_has_help_with_an_example_and_a_man_page() {
    let directory = tempfile::tempdir().expect("a directory");
    let said = run(command(Path::new("/nonexistent"), &format!("man {}", directory.path().display())), "");
    assert_eq!((said.error.as_str(), said.code), ("", Some(0)));
    let readme = include_str!("../../../README.md");
    let whole = run(command(Path::new("/nonexistent"), "--help"), "").out;
    let verbs: Vec<&str> =
        "map unmap expose unexpose drain undrain peer services status flows whois ping explain audit doctor gather key check reload \
                            completions"
            .split_whitespace()
            .collect();
    for verb in verbs {
        assert!(whole.contains(&format!("\n  {verb} ")), "{verb} is not listed");
        assert!(readme.contains(&format!("| `vp-ctl {verb}")), "{verb} is not in the README");
        let help = run(command(Path::new("/nonexistent"), &format!("{verb} --help")), "").out;
        assert!(help.contains("Example") && help.contains(&format!(" vp-ctl {verb}")), "{help}");
        let page = fs::read_to_string(directory.path().join(format!("vp-ctl-{verb}.1"))).expect("a page");
        assert!(page.contains(".SH EXAMPLES") && page.contains(".SH \"EXIT STATUS\""), "{verb}");
    }
    assert!(directory.path().join("vp-ctl.1").is_file() && !whole.contains("\n  man"));
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let said = run(command(Path::new("/nonexistent"), &format!("completions {shell}")), "");
        assert!(said.code == Some(0) && said.out.contains("unexpose") && said.out.contains("explain"), "{shell}");
    }
}

#[test]
fn following_shows_each_record_when_it_comes() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let mut child = command(&socket, "-o json audit -f").stdout(Stdio::piped()).spawn().expect("vp-ctl runs");
    let (mut stream, _) = listener.accept().expect("a caller");
    assert_eq!(read_request(&stream), "GET /v1/audit?lines=10&follow=true");
    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").expect("sent");
    let mut out = child.stdout.take().expect("a pipe");
    for record in ["{\"a\":1}\n", "{\"b\":2}\n"] {
        write!(stream, "{:x}\r\n{record}\r\n", record.len()).expect("sent");
        let mut got = vec![0; record.len()];
        out.read_exact(&mut got).expect("the record, while the answer goes on");
        assert_eq!(got, record.as_bytes());
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
}
