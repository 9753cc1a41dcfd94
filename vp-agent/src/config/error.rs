//! What is wrong with a file, in one line: where, what, and what was expected.

use serde_saphyr::{Error as YamlError, Location, MessageFormatter, UserMessageFormatter};
use std::fmt;
use std::path::{Path, PathBuf};

/// Longer parts of a message are cut; a hostile file does not fill the log.
const MESSAGE_CHARACTERS_MAX: usize = 300;

/// `FILE:LINE:COLUMN: what, expected what`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigError {
    /// Absent for what no file says.
    pub file: Option<PathBuf>,
    /// Line and column, from 1; absent when the file as a whole is wrong.
    pub at: Option<(u64, u64)>,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some((line, column)) = self.at {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&one_line(&self.message))
    }
}

/// What is wrong with a value, and in which field of a request it is: the file's reader knows the place of each field,
/// the local interface names the field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct FieldError {
    pub field: &'static str,
    /// In a list.
    pub index: Option<usize>,
    pub message: String,
}

impl FieldError {
    pub fn new(field: &'static str, message: impl fmt::Display) -> Self {
        Self { field, index: None, message: message.to_string() }
    }

    pub fn at(field: &'static str, index: usize, message: impl fmt::Display) -> Self {
        Self { field, index: Some(index), message: message.to_string() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, one_line(&self.message))
    }
}

impl ConfigError {
    pub fn whole(file: &Path, message: impl fmt::Display) -> Self {
        Self { file: Some(file.to_owned()), at: None, message: message.to_string() }
    }

    pub fn at(file: &Path, location: Location, message: impl fmt::Display) -> Self {
        let at = (location != Location::UNKNOWN).then(|| (location.line(), location.column()));
        Self { file: Some(file.to_owned()), at, message: message.to_string() }
    }

    #[must_use]
    pub fn yaml(file: &Path, error: &YamlError) -> Self {
        let error = error.without_snippet();
        let location = error.location().unwrap_or(Location::UNKNOWN);
        Self::at(file, location, describe(error))
    }
}

fn describe(error: &YamlError) -> String {
    match error {
        YamlError::AliasError { error, .. } => describe(error),
        YamlError::SerdeUnknownField { field, expected, .. } => {
            format!("unknown key {field:?}, expected {}", one_of(expected))
        }
        YamlError::SerdeMissingField { field, .. } => format!("the key {field:?} is missing"),
        YamlError::SerdeInvalidType { unexpected, expected, .. }
        | YamlError::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("found {unexpected}, expected {expected}")
        }
        YamlError::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key:?} is there twice"),
        YamlError::Eof { .. } => "the file ends too early, expected `site: NAME` and more".to_owned(),
        YamlError::NullIntoString { .. } => "found nothing, expected a text".to_owned(),
        YamlError::Unexpected { expected, .. } => format!("found something else, expected {}", kind(expected)),
        YamlError::InvalidScalar { ty, .. } => format!("expected {}", kind(ty)),
        YamlError::InvalidBooleanStrict { .. } => "expected true or false".to_owned(),
        YamlError::UnknownAnchor { .. } => {
            "an alias of nothing, expected a text (one that begins with * is written in quotes: \"*.cloud\")".to_owned()
        }
        YamlError::Budget { .. }
        | YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. } => {
            format!("the file is too large or too deep: {}", UserMessageFormatter.format_message(error))
        }
        _ => UserMessageFormatter.format_message(error).into_owned(),
    }
}

/// The library's words for what YAML has, as people say it.
fn kind(expected: &'static str) -> &'static str {
    match expected {
        "sequence start" => "a list",
        "mapping start" => "keys with values",
        "string scalar" => "a text",
        "u16" => "a whole number up to 65535",
        "u32" => "a whole number",
        "bool" => "true or false",
        other => other,
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// Text from a file, for a terminal or a log: no control characters, not endless.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((at, _)) = line.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        line.truncate(at);
        line.push('…');
    }
    line
}
