//! What the `certificate` target does with its input: the bytes are a certificate, a list of revocations, a signing key, a
//! bundle and the text of each, and of a token. The tests replay the corpus through the same function.

use vp::addr::Name;
use vp::identity::text::{self, Label};
use vp::identity::{Bundle, Certificate, Issuer, List, Refusal, Revocations, Token, Trust};

/// In the middle of what the corpus' certificates say.
const NOW: u64 = 1_800_000_000;
/// Of the authority that signed the corpus.
const SEED: [u8; 32] = [1; 32];

/// Whatever is believed holds by the authority's own signature: a fuzzer has no key, so it is what the corpus has, however it
/// is wrapped. What is passed on is read as the same again. Whether anything was believed.
pub fn certificate(bytes: &[u8]) -> bool {
    let is_certificate = as_certificate(bytes);
    let is_list = as_list(bytes);
    if let Ok(issuer) = Issuer::read(bytes) {
        let again = Issuer::read(&issuer.to_bytes()).expect("our own");
        assert_eq!(again.public_key(), issuer.public_key());
    }
    let text = String::from_utf8_lossy(bytes);
    for label in [Label::Certificate, Label::Revocations, Label::SigningKey, Label::Bundle] {
        if let Ok(bytes) = text::decode(label, &text) {
            let again = text::encode(label, &bytes);
            assert_eq!(text::decode(label, &again).as_deref(), Ok(&*bytes));
        }
    }
    if let Ok(token) = Token::parse(&text) {
        assert_eq!(Token::parse(&token.to_text()).as_ref(), Ok(&token));
    }
    if let Ok(bundle) = Bundle::read(bytes) {
        assert_eq!(Bundle::read(&bundle.to_bytes()).as_ref(), Ok(&bundle));
    }
    is_certificate || is_list
}

fn as_certificate(bytes: &[u8]) -> bool {
    let (trust, none) = (trust(), Revocations::default());
    let Ok(certificate) = Certificate::read(bytes) else { return false };
    assert_eq!(Certificate::read(&certificate.to_bytes()).as_ref(), Ok(&certificate));
    assert_eq!(certificate.judge(&Trust::default(), &none, NOW).map(|_| ()), Err(Refusal::UnknownAuthority));
    let of = (certificate.site(), certificate.public_key());
    let judged = certificate.judge(&trust, &none, NOW).map(|_| ());
    assert_eq!(Certificate::verify(bytes, of, &trust, &none, NOW).map(|_| ()), judged);
    if let Ok(certified) = certificate.judge(&trust, &none, NOW) {
        assert_eq!(certified.identity().tenant.as_ref(), Some(certificate.tenant()));
        assert!(certified.not_after() > NOW);
    }
    judged.is_ok()
}

fn as_list(bytes: &[u8]) -> bool {
    let (trust, mut known) = (trust(), Revocations::default());
    let Ok((list, is_new)) = known.add(bytes, &trust, NOW) else { return false };
    assert!(is_new && List::read(&list.to_bytes()).as_ref() == Ok(&list));
    assert_eq!(known.add(&list.to_bytes(), &trust, NOW).map(|(_, is_new)| is_new), Ok(false));
    assert_eq!(known.in_force(&trust).count(), 1);
    assert_eq!(known.in_force(&Trust::default()).count(), 0);
    true
}

fn trust() -> Trust {
    let tenant = Name::new("acme").expect("name");
    let mut trust = Trust::default();
    let key = Issuer::authority(tenant.clone(), &SEED).public_key();
    trust.add(tenant, key).expect("a key");
    trust
}
