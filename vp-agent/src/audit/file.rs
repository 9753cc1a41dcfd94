//! The audit log's file and the chain of its lines, which goes on through rotations and restarts: its head, the last line's
//! number and hash, is kept in `state_dir` beside it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use vp_proto::chain::{Head, Line};

/// No line is longer by far; so much of a file's end is looked at for its last one.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// How each begins: with its time.
const RECORD: &[u8] = b"{\"time\":";

#[derive(Debug)]
pub(super) struct ChainedFile {
    path: PathBuf,
    head_path: PathBuf,
    /// Of the last line that was written.
    head: Option<Head>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    head_file: Option<File>,
    /// The next line does not follow what is before it in this file, and says what it does follow.
    begins: bool,
}

/// The lines of one call to the disk.
#[derive(Default, Debug)]
pub(super) struct Batch {
    text: String,
    /// Where each line ends, and the chain's head there.
    lines: Vec<(usize, Head)>,
}

impl ChainedFile {
    pub(super) fn new(path: &Path, head_path: &Path) -> Self {
        Self { path: path.to_owned(), head_path: head_path.to_owned(), head: None, open: None }
    }

    /// Anew where it is open. How many lines a crash had torn.
    pub(super) fn open(&mut self) -> io::Result<u64> {
        self.open = None;
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&self.path)?;
        let mut torn = 0;
        let mut last = None;
        if file.metadata()?.is_file() {
            let tail = tail(&self.path)?;
            last = tail.last;
            match tail.torn {
                Torn::Nothing => {}
                Torn::Ours(bytes) => {
                    file.set_len(file.metadata()?.len().saturating_sub(bytes))?;
                    torn = 1;
                }
                Torn::Other => file.write_all(b"\n")?,
            }
        }
        let head = self.head.unwrap_or_else(|| self.head_of_before(last));
        self.head = Some(head);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let head_file = options.open(&self.head_path).ok();
        self.open = Some(Open { file, head_file, begins: last != Some(head) });
        Ok(torn)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Where the run before ended: in this file, in the one that was rotated away since (as logrotate names it), or in neither.
    fn head_of_before(&self, last: Option<Head>) -> Head {
        let kept = std::fs::read_to_string(&self.head_path).ok().and_then(|text| Head::parse(&text));
        let mut rotated = OsString::from(&self.path);
        rotated.push(".1");
        let rotated = tail(Path::new(&rotated)).ok().and_then(|tail| tail.last);
        let heads = [last, kept, rotated].into_iter().flatten();
        heads.max_by_key(|head| head.sequence).unwrap_or(Head::START)
    }

    /// Writes records, a line each, as far as the disk takes them: how many, and why not more. Half a line never stays.
    pub(super) fn write<'a>(
        &mut self,
        records: impl Iterator<Item = &'a str>,
        batch: &mut Batch,
    ) -> (usize, io::Result<()>) {
        let (Some(open), Some(head)) = (&mut self.open, &mut self.head) else {
            return (0, Err(ErrorKind::NotConnected.into()));
        };
        batch.clear();
        let mut next = *head;
        for record in records {
            next.append(record, open.begins && batch.lines.is_empty(), &mut batch.text);
            batch.lines.push((batch.text.len(), next));
        }
        let (written, result) = write_all(&mut open.file, batch.text.as_bytes());
        let whole = batch.lines.partition_point(|(end, _)| *end <= written);
        let Some((end, last)) = whole.checked_sub(1).map(|last| batch.lines[last]).or(Some((0, *head))) else {
            return (0, result);
        };
        if written > end {
            // What is no regular file cannot be cut, and need not be.
            let metadata = open.file.metadata();
            let cut = metadata.and_then(|metadata| open.file.set_len(metadata.len() - (written - end) as u64));
            cut.ok();
        }
        if whole > 0 {
            (*head, open.begins) = (last, false);
            if let Some(file) = &open.head_file {
                // One that is lost is found in the log again, as long as that is there.
                file.write_all_at(last.to_text().as_bytes(), 0).ok();
            }
        }
        (whole, result)
    }
}

impl Batch {
    fn clear(&mut self) {
        self.text.clear();
        self.lines.clear();
    }

    /// Gives back what a flood made it take.
    pub(super) fn shrink(&mut self, bytes_kept: usize) {
        if self.text.capacity() > bytes_kept {
            *self = Self::default();
        }
    }
}

/// How a file ends.
struct Tail {
    last: Option<Head>,
    torn: Torn,
}

/// What is behind the last whole line.
enum Torn {
    Nothing,
    /// So many bytes of a record.
    Ours(u64),
    /// Something that is no half line of a log, and is not cut.
    Other,
}

fn tail(path: &Path) -> io::Result<Tail> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LINE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LINE_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let rest = &bytes[whole..];
    let torn = if rest.is_empty() {
        Torn::Nothing
    } else if rest.starts_with(RECORD) || RECORD.starts_with(rest) {
        Torn::Ours(rest.len() as u64)
    } else {
        Torn::Other
    };
    let text = String::from_utf8_lossy(&bytes[..whole]);
    let last = text.lines().next_back().and_then(Line::parse).map(|line| line.head());
    Ok(Tail { last, torn })
}

/// How many bytes were written, and why not more.
fn write_all(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
