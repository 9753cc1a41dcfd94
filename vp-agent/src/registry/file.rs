//! The store of this host: a file with a line a record, on the disk before its writer hears of it. Each line is believed for
//! its signatures alone, so lines may be there twice, in any order, or damaged: the others count all the same.

use super::StoreError;
use crate::identity::Record;
use crate::state::write_whole;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vp::identity::CERTIFICATE_BYTES_MAX;

/// The longest record in base64, and its place with two names of 63 characters.
const LINE_BYTES_MAX: usize = 2 * CERTIFICATE_BYTES_MAX;

pub struct RecordFile {
    path: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    bytes: u64,
    lines: usize,
    /// It may end in half a line.
    is_torn: bool,
}

/// What was found, and what is wrong with the rest of it: one line.
#[derive(Debug)]
pub struct Found {
    pub records: Vec<Record>,
    pub damage: Option<String>,
}

impl RecordFile {
    /// Where lines are damaged, the file as it was is put aside.
    pub fn open(path: &Path) -> Result<(Self, Found), StoreError> {
        let failed = |error: io::Error| StoreError(format!("{}: {error}", path.display()));
        let (records, bad, last_bad) = read(path).map_err(failed)?;
        let damage = last_bad.map(|line| {
            let aside = path.with_extension("damaged");
            let kept = match std::fs::copy(path, &aside) {
                Ok(_) => format!("the whole is kept as {}", aside.display()),
                Err(error) => format!("{}: {error}", aside.display()),
            };
            format!(
                "{}: damaged lines: {bad}, the last is {line}; who was registered there has to be again; {kept}",
                path.display()
            )
        });
        // Without what was left half done. A full disk is no reason not to read what is there.
        let written = write_whole(path, lines(&records).as_bytes());
        let is_torn = written.inspect_err(|error| tracing::warn!("{error}")).is_err();
        let open = Open { is_torn, ..Open::new(path, records.len()).map_err(failed)? };
        Ok((Self { path: path.to_owned(), open: Mutex::new(open) }, Found { records, damage }))
    }

    /// On the disk when this returns; when it fails the file is as before.
    pub fn add(&self, record: &Record) -> Result<(), StoreError> {
        let mut open = self.lock();
        open.append(line(record).as_bytes()).map_err(|error| self.failed(error))
    }

    /// These and nothing else.
    pub fn write(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut open = self.lock();
        write_whole(&self.path, lines(records).as_bytes()).map_err(|error| StoreError(error.to_string()))?;
        *open = Open::new(&self.path, records.len()).map_err(|error| self.failed(error))?;
        Ok(())
    }

    #[must_use]
    pub fn lines(&self) -> usize {
        self.lock().lines
    }

    fn failed(&self, error: io::Error) -> StoreError {
        StoreError(format!("{}: {error}", self.path.display()))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn new(path: &Path, lines: usize) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { bytes: file.metadata()?.len(), file, lines, is_torn: false })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let line = if self.is_torn { [b"\n", line].concat() } else { line.to_owned() };
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        match &written {
            Ok(()) => {
                self.bytes += line.len() as u64;
                self.lines += 1;
                self.is_torn = false;
            }
            // Half a line would spoil the next one.
            Err(_) => self.is_torn = self.file.set_len(self.bytes).is_err(),
        }
        written
    }
}

/// The records of good lines, how many others there are, and the last of those. A last line without an end was never
/// acknowledged, and is nothing.
fn read(path: &Path) -> io::Result<(Vec<Record>, usize, Option<usize>)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0, None)),
        Err(error) => return Err(error),
    };
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    let (mut records, mut bad, mut last_bad) = (Vec::new(), 0, None);
    for number in 1.. {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line == b"\n" {
            continue;
        }
        let is_whole = line.ends_with(b"\n");
        match record(&line) {
            Some(record) if is_whole => records.push(record),
            None if is_whole || line.len() == LINE_BYTES_MAX => (bad, last_bad) = (bad + 1, Some(number)),
            Some(_) | None => {}
        }
    }
    Ok((records, bad, last_bad))
}

fn record(line: &[u8]) -> Option<Record> {
    let (place, bytes) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    Record::read(place, &BASE64_STANDARD.decode(bytes).ok()?).ok()
}

fn lines(records: &[Record]) -> String {
    records.iter().map(line).collect()
}

fn line(record: &Record) -> String {
    format!("{} {}\n", record.place(), BASE64_STANDARD.encode(record.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp::addr::Name;
    use vp::identity::{Issuer, Serial, Subject, Validity};

    fn record(site: &str) -> Record {
        let name = |text: &str| Name::new(text).expect("name");
        let issuer = Issuer::authority(name("acme"), &[1; 32]);
        let subject = Subject { site: name(site), groups: Vec::new(), public_key: [7; 32] };
        let valid = Validity { not_before: 1_800_000_000, not_after: 1_900_000_000 };
        Record::Site(issuer.certificate(&subject, Serial([2; 16]), valid).expect("issued"))
    }

    fn places(found: &Found) -> Vec<String> {
        found.records.iter().map(Record::place).collect()
    }

    #[test]
    fn what_was_added_is_there_after_a_crash_in_the_next_write() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("registry.records");
        let (file, found) = RecordFile::open(&path).expect("opened");
        assert!(found.records.is_empty() && found.damage.is_none());
        file.add(&record("cloud")).expect("kept");
        file.add(&record("depot")).expect("kept");
        let whole = std::fs::read(&path).expect("readable");
        let next = line(&record("mill"));
        for cut in 0..next.len() {
            std::fs::write(&path, [&whole, &next.as_bytes()[..cut]].concat()).expect("writable");
            let (file, found) = RecordFile::open(&path).expect("opened");
            assert_eq!((places(&found), found.damage.is_none()), (places_of(&["cloud", "depot"]), true), "{cut}");
            file.add(&record("shop")).expect("kept");
            let (_, found) = RecordFile::open(&path).expect("opened");
            assert_eq!(places(&found), places_of(&["cloud", "depot", "shop"]));
        }
        file.write(&[record("depot")]).expect("written");
        assert_eq!(file.lines(), 1);
        assert_eq!(places(&RecordFile::open(&path).expect("opened").1), places_of(&["depot"]));
    }

    fn places_of(sites: &[&str]) -> Vec<String> {
        sites.iter().map(|site| format!("site/acme/{site}")).collect()
    }

    #[test]
    fn a_byte_that_is_altered_costs_its_own_line_is_told_and_put_aside() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("registry.records");
        let whole: String = ["cloud", "depot", "mill"].map(|site| line(&record(site))).concat();
        for at in 0..whole.len() - 1 {
            let mut altered = whole.clone().into_bytes();
            altered[at] ^= 0x81;
            std::fs::write(&path, &altered).expect("writable");
            let (_, found) = RecordFile::open(&path).expect("opened");
            let damage = found.damage.as_ref().expect("told");
            assert!(damage.contains("damaged lines: ") && damage.contains("registry.damaged"), "{damage}");
            // An end of a line that is gone makes one of two.
            assert!((1..=2).contains(&found.records.len()), "{at}");
            assert_eq!(std::fs::read(folder.path().join("registry.damaged")).expect("kept"), altered);
        }
        std::fs::write(&path, vec![b'x'; 100_000]).expect("writable");
        let (file, found) = RecordFile::open(&path).expect("opened");
        assert!(found.records.is_empty() && found.damage.is_some());
        file.add(&record("cloud")).expect("kept");
        assert!(RecordFile::open(&path).expect("opened").1.damage.is_none());
    }
}
