//! Proof of having a WireGuard private key, without showing it (RFC 6955): what only the two ends of a Diffie-Hellman exchange
//! can compute. Without it, who holds a token could have another's key certified under the token's name.

use ring::hmac;
use x25519_dalek::{PublicKey, StaticSecret};

const PREFIX: &[u8] = b"virtual-presence join v1\n";

/// Of who has `own`, to whom `other` is; or the other way round. `invited` is the token's public key, `joining` the one that is to
/// be certified.
#[must_use]
pub fn possession(own: &StaticSecret, other: &[u8; 32], invited: &[u8; 32], joining: &[u8; 32]) -> [u8; 32] {
    let shared = own.diffie_hellman(&PublicKey::from(*other));
    let key = hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes());
    let tag = hmac::sign(&key, &[PREFIX, invited, joining].concat());
    let mut proof = [0; 32];
    proof.copy_from_slice(tag.as_ref());
    proof
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_find_the_same_proof_and_nobody_else() {
        let [site, issuer, other] = [1, 2, 3].map(|seed| StaticSecret::from([seed; 32]));
        let public = |secret: &StaticSecret| PublicKey::from(secret).to_bytes();
        let invited = [9; 32];
        let shown = possession(&site, &public(&issuer), &invited, &public(&site));
        assert_eq!(shown, possession(&issuer, &public(&site), &invited, &public(&site)));
        assert_ne!(shown, possession(&other, &public(&issuer), &invited, &public(&site)));
        assert_ne!(shown, possession(&issuer, &public(&site), &[8; 32], &public(&site)));
        assert_ne!(shown, possession(&issuer, &public(&site), &invited, &public(&other)));
    }
}
