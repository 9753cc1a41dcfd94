//! How lines of the audit log are chained: each has a number and a hash over the hash of the line before and over itself, so
//! that no line can be edited, dropped or moved without a trace. Who has the whole file and can write it may chain it
//! anew; who kept one line's hash elsewhere sees that too.
//!
//! A line is a record, JSON of one object, with `,"sequence":N` at its end, in the first line of a file
//! `,"previous":"HASH"`, and last `,"hash":"HASH"`: SHA-256 of the 32 bytes of the hash before and of the line up to and
//! without `,"hash"`. The hash before the first line of all is 32 bytes of zero.

use ring::digest::{Context, SHA256};
use std::fmt::Write;

pub type Hash = [u8; 32];

const SEQUENCE: &str = ",\"sequence\":";
const PREVIOUS: &str = ",\"previous\":\"";
const HASH: &str = ",\"hash\":\"";
const HASH_DIGITS: usize = 64;

/// The end of a chain: its last line's number and hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub sequence: u64,
    pub hash: Hash,
}

impl Head {
    /// Before the first line of all.
    pub const START: Self = Self { sequence: 0, hash: [0; 32] };

    /// Adds `record`, a JSON object without a line end, to the chain, and the line it becomes to `out`. `begins`: the
    /// line before is in no sight of who reads this file.
    pub fn append(&mut self, record: &str, begins: bool, out: &mut String) {
        let from = out.len();
        out.push_str(record.strip_suffix('}').unwrap_or(record));
        self.sequence += 1;
        // Writing to a string cannot fail.
        let _ = write!(out, "{SEQUENCE}{}", self.sequence);
        if begins {
            let _ = write!(out, "{PREVIOUS}{}\"", hex(&self.hash));
        }
        self.hash = link(&self.hash, &out[from..]);
        let _ = writeln!(out, "{HASH}{}\"}}", hex(&self.hash));
    }

    /// As it is kept in a file: always of the same length.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{:020} {}\n", self.sequence, hex(&self.hash))
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (sequence, hash) = text.trim_end().split_once(' ')?;
        Some(Self { sequence: sequence.parse().ok()?, hash: unhex(hash)? })
    }
}

/// A line of a chain, as it is read; whether it is true is not known yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line<'a> {
    hashed: &'a str,
    pub sequence: u64,
    /// What it says of the line before, where it is the first of a file.
    pub previous: Option<Hash>,
    pub hash: Hash,
}

impl<'a> Line<'a> {
    /// None if it is not of a chain.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        let (hashed, hash) = quoted_end(line.strip_suffix('}')?, HASH)?;
        // Inside of strings JSON escapes quotes, so that no record can say these words itself.
        let (before, previous) = match quoted_end(hashed, PREVIOUS) {
            Some((before, previous)) => (before, Some(previous)),
            None => (hashed, None),
        };
        let (_, sequence) = before.rsplit_once(SEQUENCE)?;
        Some(Self { hashed, sequence: sequence.parse().ok()?, previous, hash })
    }

    #[must_use]
    pub fn head(&self) -> Head {
        Head { sequence: self.sequence, hash: self.hash }
    }

    /// Whether it is as it was written after a line of this hash.
    #[must_use]
    pub fn follows(&self, previous: &Hash) -> bool {
        self.previous.is_none_or(|said| said == *previous) && link(previous, self.hashed) == self.hash
    }
}

fn link(previous: &Hash, hashed: &str) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(previous);
    context.update(hashed.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// A hash in quotes behind this word, at the end of the text; what is before both.
fn quoted_end<'a>(text: &'a str, word: &str) -> Option<(&'a str, Hash)> {
    let text = text.strip_suffix('"')?;
    let (before, digits) = text.split_at_checked(text.len().checked_sub(HASH_DIGITS)?)?;
    Some((before.strip_suffix(word)?, unhex(digits)?))
}

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text
}

fn unhex(digits: &str) -> Option<Hash> {
    let digits = digits.as_bytes();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut hash = [0; 32];
    if digits.len() != HASH_DIGITS {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (String, Head) {
        let (mut head, mut out) = (Head::START, String::new());
        let hostile = r#"{"detail":"x\",\"sequence\":9,\"hash\":\"0\"}"}"#;
        for (n, record) in [r#"{"event":"started"}"#, hostile, r#"{"event":"denied","repeated":7}"#].iter().enumerate()
        {
            head.append(record, n == 0, &mut out);
        }
        (out, head)
    }

    #[test]
    fn each_line_is_json_and_follows_the_one_before_and_no_other() {
        let (text, head) = log();
        let lines: Vec<Line> = text.lines().map(|line| Line::parse(line).expect("a line")).collect();
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
        assert_eq!(lines.iter().map(|line| line.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((lines[0].previous, lines[1].previous), (Some([0; 32]), None));
        assert!(lines[0].follows(&[0; 32]) && lines[1].follows(&lines[0].hash) && lines[2].follows(&lines[1].hash));
        assert!(!lines[2].follows(&lines[0].hash) && !lines[0].follows(&lines[1].hash));
        assert_eq!((lines[2].head(), Head::parse(&head.to_text())), (head, Some(head)));
    }

    #[test]
    fn no_byte_of_a_line_can_be_another() {
        let (text, _) = log();
        let lines: Vec<&str> = text.lines().collect();
        let previous = Line::parse(lines[1]).expect("a line").hash;
        for at in 0..lines[2].len() {
            let mut bytes = lines[2].as_bytes().to_vec();
            bytes[at] ^= 1;
            let edited = String::from_utf8(bytes).expect("ASCII");
            assert!(!Line::parse(&edited).is_some_and(|line| line.follows(&previous)), "{edited}");
        }
    }

    #[test]
    fn what_is_no_line_is_none() {
        for text in ["", "}", "\"}", r#"{"event":"started"}"#, "ü\"}", &format!("é{}\"}}", "0".repeat(63))] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
        for text in ["", "1", "x y", "1 00"] {
            assert_eq!(Head::parse(text), None, "{text}");
        }
    }
}
