//! JSON as the agent sent it, made fit to print: indented, with nothing renamed, reordered, rounded or left out, so that
//! what a newer agent adds arrives too. For people the same text is read into values whose strings are harmless.

use crate::failure::Failure;
use crate::render::{escape, is_harmful};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

/// The same JSON over several lines, two spaces a level.
pub fn pretty(text: &str) -> Result<String, Failure> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| unreadable(&error))?;
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0;
    // Line ends and tabs stand between values only: inside of strings JSON has them escaped.
    let mut characters = text.chars().filter(|c| !matches!(c, '\n' | '\r' | '\t')).peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' => string(&mut out, &mut characters),
            '{' | '[' => {
                skip_spaces(&mut characters);
                out.push(c);
                if let Some(close) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            ' ' => {}
            other => out.push(other),
        }
    }
    out.push('\n');
    Ok(out)
}

/// The same JSON in its one line, harmless to a terminal.
pub fn line(text: &str) -> Result<String, Failure> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| unreadable(&error))?;
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        push(&mut out, c);
    }
    Ok(out)
}

/// The values in it, every string of them harmless to a terminal.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let mut value: Value = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    make_harmless(&mut value);
    T::deserialize(value).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::Refused(format!("the agent's answer cannot be read (is it of another version?): {error}"))
}

fn skip_spaces(characters: &mut std::iter::Peekable<impl Iterator<Item = char>>) {
    while characters.next_if_eq(&' ').is_some() {}
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// The rest of a string whose opening quote has been read.
fn string(out: &mut String, characters: &mut impl Iterator<Item = char>) {
    out.push('"');
    let mut escaped = false;
    for c in characters {
        push(out, c);
        if c == '"' && !escaped {
            return;
        }
        escaped = c == '\\' && !escaped;
    }
}

/// JSON itself allows DEL, the C1 controls and characters that turn the direction of a line: `\u` keeps the value.
fn push(out: &mut String, c: char) {
    if is_harmful(c) && !c.is_ascii_whitespace() {
        let mut units = [0; 2];
        for unit in c.encode_utf16(&mut units) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    } else {
        out.push(c);
    }
}

fn make_harmless(value: &mut Value) {
    match value {
        Value::String(text) => {
            if text.contains(is_harmful) {
                *text = escape(text);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(make_harmless),
        Value::Object(map) => {
            if map.keys().any(|key| key.contains(is_harmful)) {
                *map = std::mem::take(map).into_iter().map(|(key, value)| (escape(&key), value)).collect();
            }
            map.values_mut().for_each(make_harmless);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pretty_keeps_order_numbers_and_unknown_fields() {
        let text = r#"{"z":18446744073709551615,"a":[1.50,{"b":"x , : { \" \\"}],"e":[],"o":{ },"n":null}"#;
        let expected = "{\n  \"z\": 18446744073709551615,\n  \"a\": [\n    1.50,\n    {\n      \"b\": \"x , : { \\\" \\\\\"\n    \
                        }\n  ],\n  \"e\": [],\n  \"o\": {},\n  \"n\": null\n}\n";
        assert_eq!(pretty(text).ok().as_deref(), Some(expected));
        assert_eq!(pretty(expected).ok().as_deref(), Some(expected));
    }

    #[test]
    fn json_is_the_same_value_without_characters_that_harm_a_terminal() {
        let text = "{\"a\":\"x\u{9b}2J\u{202e}y\u{7f}\u{e0041}\"}";
        let printed = pretty(text).expect("valid");
        assert!(printed.is_ascii(), "{printed:?}");
        let [before, after]: [Value; 2] = [text, &printed].map(|t| serde_json::from_str(t).expect("valid"));
        assert_eq!(before, after);
        assert!(line(text).expect("valid").is_ascii());
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for bad in ["", "{", "<html>", "{} {}", "[1,]"] {
            assert!(pretty(bad).is_err() && line(bad).is_err() && decode::<Value>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_for_people_have_harmless_strings_and_keys() {
        let value: Value = decode("{\"k\\u001b\": [\"a\\n\\u001b[2Jb\"]}").expect("valid");
        assert_eq!(value.to_string(), r#"{"k\\u{1b}":["a\\n\\u{1b}[2Jb"]}"#);
    }
}
