//! Past lines of the log, read from the file's end.

use super::Filter;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const CHUNK_BYTES: u64 = 4 << 20;
/// How far back from its end a file is looked through for lines of a certain kind: a second or two.
const SEARCHED_BYTES_MAX: u64 = 256 << 20;

/// The last `lines` whole lines of a file that match, oldest first.
pub(super) fn last(path: &Path, lines: usize, filter: &Filter) -> io::Result<Vec<String>> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let searched = if filter.is_empty() { CHUNK_BYTES } else { SEARCHED_BYTES_MAX };
    let (mut end, mut found) = (metadata.len(), Vec::new());
    let oldest = end.saturating_sub(searched);
    // The beginning of a chunk is the end of a line of the one before it.
    let mut rest = Vec::new();
    while end > oldest && found.len() < lines && rest.len() as u64 <= CHUNK_BYTES {
        let start = end.saturating_sub(CHUNK_BYTES).max(oldest);
        let is_last = end == metadata.len();
        let mut bytes = read(&mut file, start, end)?;
        bytes.append(&mut rest);
        if is_last {
            // A line that is being written has no end yet.
            bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        }
        let cut =
            if start > 0 { bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1) } else { 0 };
        let text = String::from_utf8_lossy(&bytes[cut..]);
        for line in text.lines().rev() {
            if found.len() == lines {
                break;
            }
            if filter.is_empty() {
                found.push(line.to_owned());
                continue;
            }
            let Ok(record) = serde_json::from_str(line) else { continue };
            if filter.is_before(&record) {
                found.reverse();
                return Ok(found);
            }
            if filter.matches(&record) {
                found.push(line.to_owned());
            }
        }
        bytes.truncate(cut);
        (rest, end) = (bytes, start);
    }
    found.reverse();
    Ok(found)
}

fn read(file: &mut File, start: u64, end: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(end - start).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_any_part_of_a_large_file_once_and_in_order() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("audit.jsonl");
        let line = |n: u32| {
            let event = if n.is_multiple_of(10_000) { "rare" } else { "often" };
            format!("{{\"time\":\"{n:08}\",\"event\":\"{event}\",\"site\":\"{}\"}}\n", "x".repeat(100))
        };
        let text: String = (0..100_000).map(line).collect();
        assert!(text.len() as u64 > 3 * CHUNK_BYTES);
        std::fs::write(&path, text + "{\"time\":\"torn").expect("written");
        let times = |lines: usize, filter: &Filter| -> Vec<u32> {
            let time = |line: &String| line[9..17].parse().expect("a number");
            last(&path, lines, filter).expect("readable").iter().map(time).collect()
        };
        assert_eq!(times(3, &Filter::default()), [99_997, 99_998, 99_999]);
        let rare = Filter { event: Some("rare".to_owned()), ..Filter::default() };
        assert_eq!(times(100, &rare), (0..10).map(|n| n * 10_000).collect::<Vec<_>>());
        assert_eq!(times(2, &rare), [80_000, 90_000]);
        let late = Filter { since: Some("00099990".to_owned()), ..Filter::default() };
        assert_eq!(times(100, &late), (99_990..100_000).collect::<Vec<_>>());
    }
}
