//! What somebody is given to join with: a token or a bundle, as an argument, in a file or on standard input.

use crate::failure::Failure;
use crate::files;
use std::io::{self, Read};
use std::path::Path;
use vp::identity::text::{Label, TEXT_BYTES_MAX, decode};
use vp::identity::{Bundle, Refusal, Token};
use zeroize::Zeroizing;

#[derive(Debug)]
pub enum Offer {
    Token(Box<Token>),
    Bundle(Box<Bundle>),
}

impl Offer {
    /// `-` is standard input.
    pub fn read(what: &str) -> Result<Self, Failure> {
        if Token::is_meant(what) {
            return Self::parse("the token", what);
        }
        match what {
            "-" => {
                let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX));
                let read = io::stdin().take(TEXT_BYTES_MAX as u64).read_to_string(&mut text);
                read.map_err(|error| Failure::Refused(format!("standard input: {error}")))?;
                Self::parse("standard input", &text)
            }
            file => Self::parse(file, &files::read_text(Path::new(file))?),
        }
    }

    /// What stands around a token, or before a bundle, is for people.
    fn parse(place: &str, text: &str) -> Result<Self, Failure> {
        let refused = |why: &dyn std::fmt::Display| Failure::Refused(format!("{place}: {why}"));
        if text.contains("-----BEGIN VP BUNDLE-----") {
            let bytes = decode(Label::Bundle, text).map_err(|error| refused(&error))?;
            return Bundle::read(&bytes).map(Box::new).map(Self::Bundle).map_err(|refusal| altered(&refused, refusal));
        }
        let token = text.split_whitespace().find(|word| Token::is_meant(word));
        let token = token.ok_or_else(|| refused(&"there is no token, expected what vp-ctl invite printed"))?;
        Token::parse(token).map(Box::new).map(Self::Token).map_err(|refusal| altered(&refused, refusal))
    }

    pub fn token(&self) -> &Token {
        match self {
            Self::Token(token) => token,
            Self::Bundle(bundle) => &bundle.token,
        }
    }
}

/// All of these come of a change on the way.
fn altered(refused: &dyn Fn(&dyn std::fmt::Display) -> Failure, refusal: Refusal) -> Failure {
    refused(&format!("{refusal}; it was altered or cut on its way, expected it as vp-ctl invite wrote it"))
}
