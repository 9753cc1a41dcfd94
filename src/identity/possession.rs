//! Proof of having a WireGuard private key, without showing it (RFC 6955): what only the two ends of a Diffie-Hellman exchange
//! can compute. Without it, who holds a token could have another's key certified under the token's name.

use ring::hmac;
use x25519_dalek::{PublicKey, StaticSecret};

const PREFIX: &[u8] = b"virtual-presence join v1\n";

/// Of who has `own`, for who has the private key to `other`. `invited` is the token's public key, `joining` the one that is to be
/// certified.
#[must_use]
pub fn possession(own: &StaticSecret, other: &[u8; 32], invited: &[u8; 32], joining: &[u8; 32]) -> Vec<u8> {
    hmac::sign(&key(own, other), &message(invited, joining)).as_ref().to_vec()
}

/// Whether the one at the other end has shown that it has its private key.
#[must_use]
pub fn is_possession(
    proof: &[u8],
    own: &StaticSecret,
    other: &[u8; 32],
    invited: &[u8; 32],
    joining: &[u8; 32],
) -> bool {
    hmac::verify(&key(own, other), &message(invited, joining), proof).is_ok()
}

fn key(own: &StaticSecret, other: &[u8; 32]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, own.diffie_hellman(&PublicKey::from(*other)).as_bytes())
}

fn message(invited: &[u8; 32], joining: &[u8; 32]) -> Vec<u8> {
    [PREFIX, invited, joining].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_find_the_same_proof_and_nobody_else() {
        let [site, issuer, other] = [1, 2, 3].map(|seed| StaticSecret::from([seed; 32]));
        let public = |secret: &StaticSecret| PublicKey::from(secret).to_bytes();
        let invited = [9; 32];
        let proof = possession(&site, &public(&issuer), &invited, &public(&site));
        let holds = |proof: &[u8], invited: [u8; 32], key: &StaticSecret| {
            is_possession(proof, &issuer, &public(key), &invited, &public(&site))
        };
        assert!(holds(&proof, invited, &site));
        assert!(!holds(&proof, [8; 32], &site) && !holds(&proof, invited, &other));
        assert!(!holds(&proof[1..], invited, &site) && !holds(&[], invited, &site));
        let of_other = possession(&other, &public(&issuer), &invited, &public(&site));
        assert!(!holds(&of_other, invited, &site));
    }
}
