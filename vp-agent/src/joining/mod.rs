//! How sites join: the issuer's side ([`Issuing`]: whom it invited, whom it certified), the joining site's ([`Seeking`]), and what
//! keeps a certificate from ending ([`Renewal`]).
//!
//! An invitation is a key of WireGuard that is good for one thing: whoever has it is a guest of the issuer's, with a tunnel and a
//! control channel on which nothing but `Join` is answered.

mod book;
mod issuing;
mod renewal;
mod seeking;
#[cfg(test)]
mod tests;
mod told;

pub use issuing::{IssuerSettings, Issuing, JoinError, Order, Way};
pub use renewal::Renewal;
pub use seeking::{Ask, Seeking, SeekingError};
pub use told::Told;

type PublicKey = [u8; 32];

/// The first digits of a key in hexadecimal: an invitation's name for people.
const ID_BYTES: usize = 6;

/// What an invitation is called.
fn id(invited: &PublicKey) -> String {
    invited[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}
