//! `vp-ctl key`: WireGuard keys, as `wg genkey` and `wg pubkey` print them. Private keys are never arguments, where other
//! users of the machine could read them, and are wiped from memory after use.

use crate::Outcome;
use crate::failure::Failure;
use crate::render::Screen;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rand_core::{OsRng, RngCore};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// 44 characters and a line end; more is no key.
const KEY_TEXT_BYTES_MAX: u64 = 256;

/// Make a private key, or find the public key to one
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  umask 077
  vp-ctl key new > /var/lib/vp/site.key
  vp-ctl key public < /var/lib/vp/site.key")]
pub struct Key {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Print a new private key, as `wg genkey` does
    #[command(after_help = "Example:\n  (umask 077; vp-ctl key new > /var/lib/vp/site.key)")]
    New,
    /// Read a private key on standard input and print its public key, as `wg pubkey` does
    #[command(after_help = "Example:\n  vp-ctl key public < /var/lib/vp/site.key")]
    Public,
}

impl Key {
    pub fn run(self, screen: &Screen) -> Result<Outcome, Failure> {
        match self.what {
            What::New => {
                warn_if_others_can_read(screen);
                print(screen, "private_key", &new_private())?;
            }
            What::Public => {
                let public = PublicKey::from(&StaticSecret::from(*read_private()?));
                print(screen, "public_key", public.as_bytes())?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn print(screen: &Screen, name: &str, key: &[u8; 32]) -> Result<(), Failure> {
    let text = Zeroizing::new(STANDARD.encode(key));
    let json = |text: &str| format!("{{\n  \"{name}\": \"{text}\"\n}}\n");
    screen.print(&Zeroizing::new(if screen.is_json() { json(&text) } else { format!("{}\n", *text) }))
}

/// Random, with the bits that X25519 ignores cleared as `wg genkey` does (RFC 7748 section 5).
pub(super) fn new_private() -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(&mut *key);
    key[0] &= 0b1111_1000;
    key[31] = key[31] & 0b0111_1111 | 0b0100_0000;
    key
}

fn read_private() -> Result<Zeroizing<[u8; 32]>, Failure> {
    let refused = |why: &str| Failure::Refused(format!("standard input: {why}"));
    let mut text = Zeroizing::new(Vec::with_capacity(KEY_TEXT_BYTES_MAX as usize));
    let read = io::stdin().take(KEY_TEXT_BYTES_MAX).read_to_end(&mut text);
    read.map_err(|error| refused(&error.to_string()))?;
    let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).unwrap_or_default());
    let key = <[u8; 32]>::try_from(bytes.as_slice());
    key.map(Zeroizing::new).map_err(|_| refused("expected a private key: 32 bytes in base64, as vp-ctl key new prints"))
}

pub(super) fn warn_if_others_can_read(screen: &Screen) {
    let metadata = io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    if metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o077 != 0) {
        screen.warn(&["others can read this file: chmod 600 it, and use umask 077 next time".to_owned()]);
    }
}
