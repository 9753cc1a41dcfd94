//! Tokens and bundles: what is read, and that nothing altered is.

use super::*;
use crate::addr::Name;
use text::{Label, decode, encode};
use zeroize::Zeroizing;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn valid(from: u64, to: u64) -> Validity {
    Validity { not_before: NOW + from, not_after: NOW + to }
}

/// Of tenant acme, by its authority's leave.
fn issuer() -> Issuer {
    Issuer::authority(name("acme"), &[1; 32]).delegate(&[2; 32], Serial([0xd1; 16]), valid(0, 30 * DAY)).expect("key")
}

fn terms(authorities: Vec<SignerKey>) -> Terms {
    let cloud = Gateway { site: name("cloud"), public_key: [8; 32], endpoint: None, tls: None, hub: false };
    let hub = Gateway {
        site: name("hub"),
        public_key: [9; 32],
        endpoint: Some("hub.example.com:51820".to_owned()),
        tls: Some("[2001:db8::1]:443".to_owned()),
        hub: true,
    };
    let (tenant, site, secret) = (name("acme"), name("factory"), Zeroizing::new([7; 32]));
    Terms { tenant, site, secret, authorities, issuer: cloud, hubs: vec![hub] }
}

fn token() -> Token {
    let issuer = issuer();
    issuer.token(&terms(vec![issuer.authority_key()]), valid(0, 900)).expect("signed")
}

#[test]
fn a_token_says_to_the_site_what_its_issuer_said() {
    let text = token().to_text();
    assert!(Token::is_meant(&text) && !text.contains(char::is_whitespace), "one line");
    let read = Token::parse(&format!("\n  {}\n", *text)).expect("good");
    assert_eq!(read.terms(), &terms(vec![issuer().authority_key()]));
    assert_eq!((read.not_after(), read.judge(NOW)), (NOW + 900, Ok(())));
    assert!(!format!("{read:?}").contains("[7, 7"), "no secret in what is logged");
}

#[test]
fn a_token_of_the_future_and_one_that_has_ended_are_of_no_use() {
    let token = token();
    assert_eq!(token.judge(NOW - CLOCK_TOLERANCE_SECONDS), Ok(()));
    assert_eq!(token.judge(NOW - CLOCK_TOLERANCE_SECONDS - 1), Err(Refusal::NotYetValid));
    assert_eq!([token.judge(NOW + 899), token.judge(NOW + 900)], [Ok(()), Err(Refusal::Expired)]);
    let issuer = issuer();
    let long = issuer.token(&terms(vec![issuer.authority_key()]), valid(0, 40 * DAY)).expect("signed");
    assert_eq!(long.judge(NOW + 30 * DAY), Err(Refusal::Expired), "its issuer's right has ended");
}

#[test]
fn a_token_that_was_altered_or_cut_anywhere_is_refused() {
    let text = token().to_text();
    let mut altered = 0;
    for at in 0..text.len() {
        for to in *b"A_~ \0" {
            let mut bytes = text.as_bytes().to_vec();
            if bytes[at] != to {
                bytes[at] = to;
                let other = String::from_utf8(bytes).expect("ASCII");
                // At its end white space is none of it.
                assert!(Token::parse(&other).is_err(), "byte {at} became {to}");
                altered += 1;
            }
        }
        assert!(Token::parse(&text[..at]).is_err(), "cut at {at}");
    }
    assert!(altered > 2000);
    let mut bytes = token().to_bytes().to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(Token::read(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn each_way_of_being_wrong_has_its_reason() {
    let of = |text: &str| Token::parse(text).map(|_| ());
    assert_eq!(of(""), Err(Refusal::Malformed));
    assert_eq!(of("vp2.AAAA"), Err(Refusal::Malformed));
    assert_eq!(of("vp1.not base64"), Err(Refusal::Malformed));
    assert_eq!(of(&format!("vp1.{}", "A".repeat(6000))), Err(Refusal::TooLarge));
    let (ours, beta) = (issuer(), Issuer::authority(name("beta"), &[3; 32]));
    let signed = |by: &Issuer, authorities| by.token(&terms(authorities), valid(0, 900)).map(|_| ());
    assert_eq!(signed(&ours, vec![beta.authority_key()]), Err(IssueError::Key(Refusal::UnknownAuthority)));
    assert_eq!(signed(&ours, Vec::new()), Err(IssueError::Key(Refusal::UnknownAuthority)));
    assert_eq!(signed(&ours, vec![[0; 32]]), Err(IssueError::Key(Refusal::Malformed)));
    let many = (0..9).map(|seed| Issuer::authority(name("acme"), &[seed; 32]).public_key()).collect();
    assert_eq!(signed(&ours, many), Err(IssueError::Key(Refusal::Malformed)));
    let late = ours.token(&terms(vec![ours.authority_key()]), valid(31 * DAY, 32 * DAY)).map(|_| ());
    assert_eq!(late, Err(IssueError::DelegationEnded));
    let mut odd = terms(vec![ours.authority_key()]);
    odd.hubs[0].endpoint = Some("hub\"\nhub: {}".to_owned());
    let odd = ours.token(&odd, valid(0, 900)).map(|_| ());
    assert_eq!(odd, Err(IssueError::Key(Refusal::Malformed)), "nothing that could end a quoted text");
}

#[test]
fn a_token_of_another_tenants_issuer_is_refused_whatever_it_names() {
    let beta = Issuer::authority(name("beta"), &[3; 32]);
    let issuer = beta.delegate(&[4; 32], Serial([1; 16]), valid(0, DAY)).expect("key");
    // It can sign for its own tenant alone, whatever the terms say.
    let token = issuer.token(&terms(vec![beta.authority_key()]), valid(0, 900)).expect("signed");
    assert_eq!(token.terms().tenant, name("beta"));
    let mut file = vp_proto::identity::SigningKey { tenant: "acme".to_owned(), seed: vec![4; 32], delegation: None };
    let forged = Issuer::read(&prost::Message::encode_to_vec(&file)).expect("a key");
    let forged = forged.token(&terms(vec![ours()]), valid(0, 900)).map(|_| ());
    assert_eq!(forged, Err(IssueError::Key(Refusal::UnknownAuthority)));
    let own: vp_proto::identity::SigningKey = prost::Message::decode(issuer.to_bytes().as_slice()).expect("its file");
    file.delegation = own.delegation;
    let refused = Issuer::read(&prost::Message::encode_to_vec(&file)).map(|_| ());
    assert_eq!(refused, Err(IssueError::Key(Refusal::Malformed)));
}

fn ours() -> SignerKey {
    issuer().authority_key()
}

#[test]
fn a_bundle_is_read_whole_or_not_at_all() {
    let (issuer, token) = (issuer(), token());
    let bundle = issuer.bundle(&token, "site: factory\n".to_owned(), "[Unit]\n".to_owned(), NOW).expect("signed");
    let text = encode(Label::Bundle, &bundle.to_bytes());
    let read = |text: &str| decode(Label::Bundle, text).ok().and_then(|bytes| Bundle::read(&bytes).ok());
    let remarked = format!("Site factory of tenant acme.\n\n{}", *text);
    let found = read(&remarked).expect("good");
    assert_eq!(
        (&found.token, found.configuration.as_str(), found.unit.as_str()),
        (&token, "site: factory\n", "[Unit]\n")
    );
    let mut bytes = bundle.to_bytes().to_vec();
    for at in 0..bytes.len() {
        bytes[at] ^= 1;
        assert!(Bundle::read(&bytes).is_err(), "byte {at}");
        bytes[at] ^= 1;
        assert!(Bundle::read(&bytes[..at]).is_err(), "cut at {at}");
    }
    let other = Issuer::authority(name("acme"), &[1; 32]).delegate(&[5; 32], Serial([2; 16]), valid(0, DAY));
    let by_other = other.expect("key").bundle(&token, String::new(), String::new(), NOW).map(|_| ());
    assert_eq!(by_other, Err(IssueError::Key(Refusal::WrongKey)), "of another issuer of the same tenant");
    let huge = issuer.bundle(&token, "x".repeat(BUNDLE_BYTES_MAX), String::new(), NOW).map(|_| ());
    assert_eq!(huge, Err(IssueError::Key(Refusal::TooLarge)));
}

/// The bytes of `proto/golden`: an implementation of the schema makes and reads them so.
#[test]
fn golden_vectors_of_joining_are_made_and_read_byte_for_byte() {
    let token = token();
    let bundle = issuer().bundle(&token, "site: factory\n".to_owned(), "[Unit]\n".to_owned(), NOW).expect("signed");
    let golden = [
        (include_str!("../../proto/golden/token.hex"), token.to_bytes()),
        (include_str!("../../proto/golden/bundle.hex"), bundle.to_bytes()),
    ];
    for (file, made) in golden {
        let bytes: String =
            file.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        assert_eq!(bytes, made.chunks(32).map(line).collect::<String>());
    }
}
