//! `vp-ctl audit verify`: every way to tamper with a log, found and named.

use crate::fake::{Said, command, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use vp_proto::chain::Head;

/// A log of two files of five lines each, and where it ends.
struct Log {
    directory: TempDir,
    old: Vec<String>,
    new: Vec<String>,
}

impl Log {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut head, mut files) = (Head::START, Vec::new());
        for file in 0..2 {
            let mut text = String::new();
            for line in 0..5 {
                let time = format!("2026-11-21T08:0{file}:0{line}.000Z");
                let record = format!(r#"{{"time":"{time}","event":"denied","site":"cloud"}}"#);
                head.append(&record, line == 0, &mut text);
            }
            files.push(text.lines().map(str::to_owned).collect());
        }
        fs::write(directory.path().join("head"), head.to_text()).expect("written");
        let (Some(new), Some(old)) = (files.pop(), files.pop()) else { unreachable!("two files") };
        let log = Self { directory, old, new };
        log.write("old", &log.old);
        log.write("new", &log.new);
        log
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, lines: &[String]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path(name), text).expect("written");
    }

    fn verify(&self, arguments: &str) -> Said {
        let mut command = command(Path::new("/nonexistent"), &format!("audit verify {arguments}"));
        command.current_dir(self.directory.path());
        run(command, "")
    }

    /// What is said of the newer file, were it these lines.
    fn verify_as(&self, lines: &[String]) -> String {
        self.write("tampered", lines);
        let said = self.verify("tampered old");
        assert_eq!((said.out.as_str(), said.code), ("", Some(1)), "{}", said.error);
        said.error.trim_end().trim_start_matches("vp-ctl: error: tampered:").to_owned()
    }
}

#[test]
fn a_log_that_nobody_touched_is_good_in_any_order_and_compressed() {
    let log = Log::new();
    let good = log.verify("new old --head head");
    assert_eq!((good.error.as_str(), good.code), ("", Some(0)));
    let first = good.out.lines().next().expect("a line");
    assert_eq!(first, "good  lines 1 to 10, 2026-11-21T08:00:00.000Z to 2026-11-21T08:01:04.000Z");
    let said = log.verify("-o json new");
    assert!(said.code == Some(0) && said.out.contains("\"sequence\": 6"), "{}", said.out);
    assert!(Command::new("gzip").arg(log.path("old")).status().expect("gzip").success());
    assert_eq!(log.verify("old.gz new").code, Some(0));
    let whole = fs::read(log.path("old.gz")).expect("readable");
    fs::write(log.path("old.gz"), &whole[..whole.len() - 9]).expect("written");
    let said = log.verify("old.gz new");
    assert!(said.code == Some(1) && said.error.contains("old.gz"), "{}", said.error);
}

#[test]
fn an_edited_dropped_or_moved_line_is_found_and_named() {
    let log = Log::new();
    let tampered = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = log.new.clone();
        change(&mut lines);
        log.verify_as(&lines)
    };
    let edited = "edited: its hash is not that of its text and of the line before";
    assert_eq!(tampered(&|lines| lines[2] = lines[2].replace("denied", "closed")), format!("3: {edited}"));
    assert_eq!(tampered(&|lines| lines[0] = lines[0].replace("cloud", "clown")), format!("1: {edited}"));
    assert_eq!(tampered(&|lines| lines[4].clear()), "5: edited: this is no line of the log");
    assert_eq!(tampered(&|lines| drop(lines.remove(1))), "2: dropped: line 7 of the log is missing before this one");
    assert_eq!(
        tampered(&|lines| drop(lines.drain(1..3))),
        "2: dropped: lines 7 to 8 of the log are missing before this one"
    );
    assert_eq!(tampered(&|lines| drop(lines.remove(0))), "1: dropped: the lines before it in this file are missing");
    assert_eq!(tampered(&|lines| lines.swap(2, 3)), "3: reordered: this is line 9, and line 8 comes later");
    assert_eq!(tampered(&|lines| lines.insert(4, lines[1].clone())), "5: reordered: line 7 comes after line 9");
    // Chained anew by who knows how: then the next line does not follow.
    assert_eq!(
        tampered(&|lines| {
            let mut forged = String::new();
            let mut head = Head { sequence: 6, hash: [7; 32] };
            head.append(r#"{"time":"2026","event":"denied","site":"cloud"}"#, false, &mut forged);
            lines[1] = forged.trim_end().to_owned();
        }),
        format!("2: {edited}")
    );
}

#[test]
fn what_was_cut_off_the_end_shows_against_the_head() {
    let log = Log::new();
    log.write("cut", &log.new[..3]);
    assert_eq!(log.verify("cut old").code, Some(0));
    let said = log.verify("cut old --head head");
    assert!(said.error.contains("cut:3: cut: the log goes on to line 10, this is line 8"), "{}", said.error);
    fs::write(log.path("half"), format!("{}\n{}", log.new[0], &log.new[1][..40])).expect("written");
    assert!(log.verify("half old").error.contains("half:2: half a line"));
    let said = log.verify("-o json half old");
    assert!(said.code == Some(1) && said.out.contains("\"line\": 2"), "{}", said.out);
    for (arguments, what) in [("none", "No such file"), ("new --head old", "no end of a chain")] {
        let said = log.verify(arguments);
        assert!(said.code == Some(1) && said.error.contains(what), "{}", said.error);
    }
}
