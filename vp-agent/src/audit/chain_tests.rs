//! The chain of the file's lines, whatever happens to the file.

use super::tests::{open, open_with, record};
use super::*;
use std::fs;
use std::io::Write;
use vp_proto::chain::{Head, Line};

/// Follows the chain through these texts, from its first line; what each line tells of.
fn follow(texts: &[String]) -> Vec<String> {
    let mut head = Head::START;
    let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    lines.iter().for_each(|text| {
        let line = Line::parse(text).unwrap_or_else(|| panic!("no line: {text}"));
        assert!(line.sequence == head.sequence + 1 && line.follows(&head.hash), "after {head:?}: {text}");
        head = line.head();
    });
    let record = |text: &&str| serde_json::from_str::<AuditRecord>(text).expect("record");
    lines.iter().map(record).map(|record| record.detail.unwrap_or(record.event)).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

#[tokio::test]
async fn the_chain_goes_on_through_rotations_restarts_and_torn_lines() {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    let path = at("audit.jsonl");
    let audit = open(&path).await.expect("audit");
    audit.write([record("1"), record("2")]);
    audit.last(1, &Filter::default()).await;
    fs::rename(&path, at("first")).expect("moved");
    audit.reopen().await.expect("opened");
    audit.write([record("3")]);
    audit.stop().await;

    // Another process, and again with the file rotated away in between.
    let audit = open(&path).await.expect("audit");
    audit.write([record("4")]);
    audit.stop().await;
    fs::rename(&path, at("second")).expect("moved");
    let audit = open(&path).await.expect("audit");
    audit.write([record("5")]);
    audit.stop().await;

    // Killed with half a line written, and before the head was kept.
    fs::remove_file(path.with_extension("head")).expect("removed");
    let whole = read(&path);
    fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"{\"time\":")).expect("torn");
    let audit = open(&path).await.expect("audit");
    audit.write([record("6")]);
    audit.stop().await;
    assert!(read(&path).starts_with(&whole));

    // And with the file rotated away as well.
    fs::remove_file(path.with_extension("head")).expect("removed");
    fs::rename(&path, at("audit.jsonl.1")).expect("moved");
    let audit = open(&path).await.expect("audit");
    audit.write([record("7")]);
    audit.stop().await;
    let texts = [at("first"), at("second"), at("audit.jsonl.1"), path].map(|path| read(&path));
    let torn = "so many lines could not be written, about this time";
    assert_eq!(follow(&texts), ["1", "2", "3", "4", "5", torn, "6", "7"]);
}

#[tokio::test]
async fn what_is_no_half_line_of_a_log_is_not_cut() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("notes.txt");
    fs::write(&path, "not a log").expect("written");
    let audit = open(&path).await.expect("audit");
    audit.write([record("1")]);
    audit.stop().await;
    let text = read(&path);
    let (before, log) = text.split_once('\n').expect("lines");
    assert_eq!((before, follow(&[log.to_owned()])), ("not a log", vec!["1".to_owned()]));
}

#[tokio::test]
async fn lines_that_were_lost_are_told_by_the_next_one_that_was_not() {
    let folder = tempfile::tempdir().expect("folder");
    let (logs, away) = (folder.path().join("logs"), folder.path().join("away"));
    fs::create_dir(&logs).expect("folder");
    let path = logs.join("audit.jsonl");
    let settings = AuditSettings { file: Some(path.clone()), ..AuditSettings::default() };
    let audit = Audit::open(settings, "cloud", &folder.path().join("head")).await.expect("audit");
    audit.write([record("1")]);
    audit.last(1, &Filter::default()).await;
    fs::rename(&logs, &away).expect("moved");
    audit.reopen().await.expect_err("no folder");
    audit.write([record("2"), record("3")]);
    audit.last(1, &Filter::default()).await;
    fs::rename(&away, &logs).expect("moved");
    audit.reopen().await.expect("opened");
    audit.write([record("4")]);
    audit.stop().await;
    assert_eq!((audit.lost(), follow(&[read(&path)]).len()), (2, 3));
    assert!(
        read(&path)
            .lines()
            .nth(1)
            .is_some_and(|line| line.contains(r#""event":"lost","#) && line.contains(r#""repeated":2,"#))
    );
}

#[tokio::test]
async fn a_log_that_is_required_says_when_it_fails_and_writes_all_of_it_when_it_can() {
    let folder = tempfile::tempdir().expect("folder");
    let (logs, away) = (folder.path().join("logs"), folder.path().join("away"));
    fs::create_dir(&logs).expect("folder");
    let path = logs.join("audit.jsonl");
    let settings = AuditSettings { file: Some(path.clone()), required: true, ..AuditSettings::default() };
    let audit = Audit::open(settings, "cloud", &folder.path().join("head")).await.expect("audit");
    let mut failing = audit.failing().expect("it is required");
    assert!(!*failing.borrow_and_update());
    fs::rename(&logs, &away).expect("moved");
    audit.reopen().await.expect_err("no folder");
    audit.write((0..100).map(|n| record(&n.to_string())));
    failing.changed().await.expect("a change");
    assert!(*failing.borrow_and_update() && audit.failure().is_some());
    fs::rename(&away, &logs).expect("moved");
    failing.changed().await.expect("a change");
    assert_eq!((*failing.borrow_and_update(), audit.failure(), audit.lost()), (false, None, 0));
    audit.stop().await;
    assert_eq!(follow(&[read(&path)]), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_that_is_not_required_has_nothing_to_say_to_the_node() {
    let folder = tempfile::tempdir().expect("folder");
    assert!(open(&folder.path().join("audit.jsonl")).await.expect("audit").failing().is_none());
    assert!(open_with(AuditSettings::default()).await.expect("audit").failing().is_none());
}
