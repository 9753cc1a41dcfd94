use super::writer::WAIT_MAX;
use super::*;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead};
use std::process::Command;
use std::time::Instant;
use vp_proto::api::Ends;

/// Far less than the disk makes anybody wait in these tests, far more than a busy machine needs.
const SOON: Duration = Duration::from_secs(1);

pub(super) fn record(detail: &str) -> Entry {
    Entry::Record(AuditRecord { detail: Some(detail.to_owned()), ..AuditRecord::default() })
}

/// A log in this file; the chain's head is beside it.
pub(super) async fn open(file: &Path) -> Result<Audit, String> {
    open_with(AuditSettings { file: Some(file.to_owned()), ..AuditSettings::default() }).await
}

pub(super) async fn open_with(settings: AuditSettings) -> Result<Audit, String> {
    let head = settings.file.as_ref().map(|file| file.with_extension("head")).unwrap_or_default();
    Audit::open(settings, "cloud", &head).await
}

fn denial(caller: &str) -> AuditRecord {
    let ends = Ends { caller: caller.to_owned(), service: "10.0.1.2:80".to_owned() };
    let reason = Some("not-allowed".to_owned());
    AuditRecord { event: "denied".to_owned(), site_view: Some(ends), reason, ..AuditRecord::default() }
}

/// A pipe that nobody reads is a disk that takes 64 KiB and then nothing more.
fn pipe(folder: &Path) -> (PathBuf, File) {
    let path = folder.join("audit.jsonl");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
    let reader = OpenOptions::new().read(true).write(true).open(&path).expect("both ends");
    (path, reader)
}

#[tokio::test]
async fn a_flood_of_denials_is_summed_up_and_names_cannot_break_a_line() {
    let folder = tempfile::tempdir().expect("folder");
    let audit = open(&folder.path().join("audit.jsonl")).await.expect("audit");
    audit.write((1..=1000).map(|port| Entry::Denial(denial(&format!("10.0.0.2:{port}")))));
    let broken = AuditRecord { service: Some("a\nb".to_owned()), ..denial("10.0.0.3:1") };
    audit.write([Entry::Denial(broken)]);
    audit.tick();
    let lines = audit.last(100, &Filter::default()).await;
    let repeated: Vec<_> = lines
        .iter()
        .map(|line| serde_json::from_str::<AuditRecord>(line).expect("one record a line").repeated)
        .collect();
    assert_eq!(repeated, [None, None, Some(999)]);
}

#[tokio::test]
async fn what_a_full_disk_does_not_take_is_counted_and_said() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = AuditSettings { file: Some("/dev/full".into()), ..AuditSettings::default() };
    let audit = Audit::open(settings, "cloud", &folder.path().join("head")).await.expect("audit");
    for number in 0..100 {
        audit.write([record(&number.to_string()), record("again")]);
    }
    assert_eq!(audit.last(1000, &Filter::default()).await.len(), 200, "from memory");
    assert_eq!(audit.lost(), 200);
    assert!(audit.failure().is_some_and(|failure| failure.starts_with("audit log /dev/full: ")));
}

#[tokio::test]
async fn a_disk_that_hangs_costs_lines_and_no_time_and_every_line_is_written_or_counted() {
    const LINES: usize = 100_000;
    let folder = tempfile::tempdir().expect("folder");
    let (path, reader) = pipe(folder.path());
    let audit = open(&path).await.expect("audit");
    let detail = "x".repeat(200);
    let mut longest = Duration::ZERO;
    for _ in 0..LINES / 100 {
        let start = Instant::now();
        audit.write((0..100).map(|_| record(&detail)));
        longest = longest.max(start.elapsed());
    }
    assert!(longest < SOON, "{longest:?}");
    let lost = audit.lost() as usize;
    assert!(lost > 0 && lost < LINES, "{lost}");
    assert!(audit.failure().is_some_and(|failure| failure.ends_with("faster than the disk takes them")));
    let read = std::thread::spawn(move || {
        // And one that tells of those that were lost.
        let lines = io::BufReader::new(reader).lines().take(LINES - lost + 1);
        let records = lines.filter_map(|line| serde_json::from_str::<AuditRecord>(&line.expect("line")).ok());
        records.filter(|record| record.event != "lost" || record.repeated == Some(lost as u64)).count()
    });
    audit.stop().await;
    assert_eq!(read.join().expect("reader"), LINES - lost + 1);
    assert_eq!(audit.lost() as usize, lost);
}

#[tokio::test]
async fn a_stop_writes_everything_and_takes_nothing_more() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("audit.jsonl");
    let audit = open(&path).await.expect("audit");
    audit.write((0..10_000).map(|number| record(&number.to_string())));
    audit.write([Entry::Denial(denial("10.0.0.2:1")), Entry::Denial(denial("10.0.0.2:2"))]);
    let start = Instant::now();
    audit.stop().await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert_eq!(std::fs::read_to_string(&path).expect("file").lines().count(), 10_002);
    audit.write([record("too late")]);
    assert_eq!(audit.lost(), 1);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_disk_that_hangs() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, _reader) = pipe(folder.path());
    let audit = open(&path).await.expect("audit");
    audit.write((0..10_000).map(|number| record(&number.to_string())));
    let start = Instant::now();
    audit.stop().await;
    assert!(start.elapsed() < WAIT_MAX + SOON);
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_made_anew() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, moved) = (folder.path().join("audit.jsonl"), folder.path().join("audit.jsonl.1"));
    let audit = open(&path).await.expect("audit");
    audit.write([record("before")]);
    assert_eq!(audit.last(10, &Filter::default()).await.len(), 1);
    std::fs::rename(&path, &moved).expect("moved");
    audit.reopen().await.expect("opened");
    audit.write([record("after")]);
    let last = audit.last(10, &Filter::default()).await;
    assert!(last.len() == 1 && last[0].contains("after"), "{last:?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_refused_at_start_and_said_later() {
    let folder = tempfile::tempdir().expect("folder");
    let logs = folder.path().join("logs");
    let path = logs.join("audit.jsonl");
    let refused = open(&path).await.map(drop).expect_err("no folder");
    assert_eq!(refused, format!("audit log {}: No such file or directory (os error 2)", path.display()));
    std::fs::create_dir(&logs).expect("folder");
    let audit = open(&path).await.expect("audit");
    std::fs::remove_dir_all(&logs).expect("removed");
    assert_eq!(audit.reopen().await, Err(refused.clone()));
    assert_eq!(audit.failure(), Some(refused));
    audit.write([record("lost")]);
    assert_eq!((audit.last(1, &Filter::default()).await.len(), audit.lost()), (1, 1));
    std::fs::create_dir(&logs).expect("folder");
    audit.reopen().await.expect("opened");
    assert_eq!(audit.failure(), None);
}

#[tokio::test]
async fn a_follower_sees_each_line_once() {
    let folder = tempfile::tempdir().expect("folder");
    let audit = open(&folder.path().join("audit.jsonl")).await.expect("audit");
    audit.write([record("1"), record("2"), record("3")]);
    let all = Filter::default();
    let meanwhile = async {
        tokio::task::yield_now().await;
        audit.write([record("4")]);
    };
    let ((mut seen, mut news), ()) = tokio::join!(audit.follow(2, &all), meanwhile);
    audit.write([record("5")]);
    seen.push(news.recv().await.expect("line"));
    let detail = |line: &String| serde_json::from_str::<AuditRecord>(line).expect("record").detail.expect("detail");
    let seen: Vec<String> = seen.iter().map(detail).collect();
    assert!(seen == ["2", "3", "4", "5"] || seen == ["3", "4", "5"], "{seen:?}");
}
