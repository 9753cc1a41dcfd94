//! Follows the chain of the audit log through its files, without the agent.

use crate::failure::Failure;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use vp_proto::api::AuditRecord;
use vp_proto::chain::{Head, Line};

/// A record is a few hundred bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What all the files hold, in whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Good {
    pub first: u64,
    pub first_time: String,
    pub last: Head,
    pub last_time: String,
}

/// The first line that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bad {
    pub file: PathBuf,
    pub line: u64,
    pub what: String,
}

struct Log {
    path: PathBuf,
    lines: Box<dyn BufRead>,
    /// Of a compressed one.
    unzip: Option<Child>,
    line: u64,
}

/// The files are those of one log, in any order. `end`: where it ends, as far as the agent knows.
pub fn verify(files: &[PathBuf], end: Option<Head>) -> Result<Result<Good, Bad>, Failure> {
    let mut begins = Vec::new();
    for path in files {
        let mut log = Log::open(path)?;
        let first = log.next()?;
        log.end()?;
        // One without a line of the chain is looked at first, for it is bad.
        match first {
            Some(first) => begins.push((Line::parse(first.trim_end()).map_or(0, |line| line.sequence), path)),
            None if files.len() == 1 => return Err(Failure::Refused(format!("{}: is empty", path.display()))),
            None => {}
        }
    }
    begins.sort();
    let mut chain = Chain::default();
    for (at, (_, path)) in begins.iter().enumerate() {
        let mut log = Log::open(path)?;
        while let Some(text) = log.next()? {
            if let Err(problem) = chain.follow(&text, log.line == 1) {
                let what = match problem {
                    Problem::Gap { expected, found } => {
                        let mut later = log.has(expected)?;
                        for (_, path) in &begins[at + 1..] {
                            later = later || Log::open(path)?.has(expected)?;
                        }
                        gap(expected, found, later)
                    }
                    Problem::Other(what) => what,
                };
                return Ok(Err(Bad { file: log.path.clone(), line: log.line, what }));
            }
        }
        if let Some(bad) = begins.get(at + 1).is_none().then(|| chain.cut(end, &log)).flatten() {
            return Ok(Err(bad));
        }
        log.end()?;
    }
    chain.good.map(Ok).ok_or_else(|| Failure::Refused("the files are empty".to_owned()))
}

fn gap(expected: u64, found: u64, later: bool) -> String {
    match (later, found - expected) {
        (true, _) => format!("reordered: this is line {found}, and line {expected} comes later"),
        (false, 1) => format!("dropped: line {expected} of the log is missing before this one"),
        (false, _) => format!("dropped: lines {expected} to {} of the log are missing before this one", found - 1),
    }
}

#[derive(Default)]
struct Chain {
    good: Option<Good>,
}

enum Problem {
    Gap { expected: u64, found: u64 },
    Other(String),
}

impl Chain {
    fn follow(&mut self, text: &str, begins_file: bool) -> Result<(), Problem> {
        let wrong = |what: &str| Err(Problem::Other(what.to_owned()));
        let Some(whole) = text.strip_suffix('\n') else { return wrong("half a line: cut, or being written") };
        let record: Option<AuditRecord> = serde_json::from_str(whole).ok();
        let (Some(line), Some(record)) = (Line::parse(whole), record) else {
            return wrong("edited: this is no line of the log");
        };
        let known = self.good.as_ref().map(|good| good.last);
        if begins_file && line.previous.is_none() {
            return wrong("dropped: the lines before it in this file are missing");
        }
        // Of what was before the files that were given only the first line knows.
        let before = known.or(line.previous.map(|hash| Head { sequence: line.sequence.saturating_sub(1), hash }));
        let Some(before) = before else { return wrong("dropped: the lines before it are missing") };
        if line.sequence > before.sequence + 1 {
            return Err(Problem::Gap { expected: before.sequence + 1, found: line.sequence });
        }
        if line.sequence <= before.sequence {
            let what = format!("reordered: line {} comes after line {}", line.sequence, before.sequence);
            return Err(Problem::Other(what));
        }
        let is_first = line.sequence == 1;
        if !line.follows(&before.hash) || (is_first && before != Head::START) {
            return wrong("edited: its hash is not that of its text and of the line before");
        }
        match &mut self.good {
            Some(good) => (good.last, good.last_time) = (line.head(), record.time),
            None => {
                let (first, last) = (line.sequence, line.head());
                self.good = Some(Good { first, first_time: record.time.clone(), last, last_time: record.time });
            }
        }
        Ok(())
    }

    /// What is missing at the end, as far as that is known.
    fn cut(&self, end: Option<Head>, log: &Log) -> Option<Bad> {
        let (end, last) = (end?, self.good.as_ref()?.last);
        let what = if end.sequence > last.sequence {
            format!("cut: the log goes on to line {}, this is line {}", end.sequence, last.sequence)
        } else if end.sequence == last.sequence && end.hash != last.hash {
            "edited: this is not how the last line was written".to_owned()
        } else {
            // What was written while this was read.
            return None;
        };
        Some(Bad { file: log.path.clone(), line: log.line, what })
    }
}

impl Log {
    fn open(path: &Path) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| Failure::Refused(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(fail)?;
        let is_zipped = path.extension() == Some(OsStr::new("gz"));
        if !is_zipped {
            let lines = Box::new(BufReader::new(file));
            return Ok(Self { path: path.to_owned(), lines, unzip: None, line: 0 });
        }
        let mut command = Command::new("gzip");
        let mut child = command.arg("-dc").stdin(file).stdout(Stdio::piped()).spawn().map_err(fail)?;
        let text = child.stdout.take().ok_or_else(|| Failure::Refused("gzip has no output".to_owned()))?;
        Ok(Self { path: path.to_owned(), lines: Box::new(BufReader::new(text)), unzip: Some(child), line: 0 })
    }

    /// With its end, if it has one. What is no text is no line either.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        let mut bytes = Vec::new();
        let read = self.lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
        read.map_err(|error| Failure::Refused(format!("{}: {error}", self.path.display())))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whether a line of this number is still to come.
    fn has(&mut self, sequence: u64) -> Result<bool, Failure> {
        let at = self.line;
        while let Some(text) = self.next()? {
            if Line::parse(text.trim_end()).is_some_and(|line| line.sequence == sequence) {
                self.line = at;
                return Ok(true);
            }
        }
        self.line = at;
        Ok(false)
    }

    /// A compressed file that was read to its end must have been whole.
    fn end(mut self) -> Result<(), Failure> {
        let at_end = self.lines.fill_buf().is_ok_and(<[u8]>::is_empty);
        let Some(mut unzip) = self.unzip.take() else { return Ok(()) };
        self.lines = Box::new(std::io::empty());
        let ended = unzip.wait();
        if at_end && !ended.is_ok_and(|status| status.success()) {
            return Err(Failure::Refused(format!("{}: gzip cannot read it to its end", self.path.display())));
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(mut unzip) = self.unzip.take() {
            // It may have more to say than anybody wants to hear.
            unzip.kill().ok();
            unzip.wait().ok();
        }
    }
}
