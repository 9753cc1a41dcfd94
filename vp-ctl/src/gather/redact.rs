//! Takes out of a text whatever could be a key. A private key cannot be told from a public one, so all become a short
//! fingerprint: equal keys are seen to be equal, and nothing leads back to one.

use ring::digest::{SHA256, digest};
use vp_proto::chain::hex;

/// WireGuard's base64: 43 characters and an equals sign.
const BASE64_CHARACTERS: usize = 43;
const HEX_CHARACTERS: usize = 64;
const FINGERPRINT_BYTES: usize = 4;

pub fn redact(text: &str, hex_too: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_key) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let word = &rest[..rest.find(|c| !is_of_key(c)).unwrap_or(rest.len())];
        rest = &rest[word.len()..];
        let is_ended = rest.starts_with('=');
        if word.len() == BASE64_CHARACTERS || (is_ended && word.len() > BASE64_CHARACTERS) {
            // What stands before it, such as a folder, is of the same characters.
            let (before, key) = word.split_at(word.len() - BASE64_CHARACTERS);
            out.push_str(before);
            out.push_str(&fingerprint(key));
            rest = rest.strip_prefix('=').unwrap_or(rest);
        } else if hex_too && word.len() == HEX_CHARACTERS && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            out.push_str(&fingerprint(word));
        } else {
            out.push_str(word);
        }
    }
    out.push_str(rest);
    without_passwords(&out)
}

/// `http://user:password@host` becomes `http://(redacted)@host`.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split("://");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let authority =
            &part[..part.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'')).unwrap_or(part.len())];
        out.push_str("://");
        match authority.rfind('@') {
            Some(at) => {
                out.push_str("(redacted)");
                out.push_str(&part[at..]);
            }
            None => out.push_str(part),
        }
    }
    out
}

fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/')
}

fn fingerprint(key: &str) -> String {
    format!("(key {})", hex(&digest(&SHA256, key.as_bytes()).as_ref()[..FINGERPRINT_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

    #[test]
    fn keys_become_fingerprints_wherever_they_stand() {
        let fingerprint = fingerprint(KEY.trim_end_matches('='));
        for (text, expected) in [
            (format!("public_key: {KEY}\n"), format!("public_key: {fingerprint}\n")),
            (format!("key={KEY}"), format!("key={fingerprint}")),
            (format!("\"{KEY}\",{KEY}"), format!("\"{fingerprint}\",{fingerprint}")),
            (KEY.trim_end_matches('=').to_owned(), fingerprint.clone()),
            (format!("/etc/{KEY} ü"), format!("/etc{fingerprint} ü").replace("(key", "/(key")),
        ] {
            assert_eq!(redact(&text, true), expected);
        }
        let digits = "0123456789abcdef".repeat(4);
        assert!(!redact(&digits, true).contains("0123456789"));
        assert_eq!(redact(&digits, false), digits);
    }

    #[test]
    fn what_is_no_key_stays_and_passwords_go() {
        let text = "key: /var/lib/vp/site.key\n10.0.0.1/24 fd00::1 a=b ==\n/usr/share/doc/virtual-presence/README.md";
        assert_eq!(redact(text, true), text);
        assert_eq!(
            redact("otlp: http://me:secret@c:1/x@y \"http://c/\"", true),
            "otlp: http://(redacted)@c:1/x@y \"http://c/\""
        );
    }
}
