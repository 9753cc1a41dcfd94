//! An issuer's book, and what an issuer and a joining site make of each other, without a tunnel.

use super::book::{Admission, Book, Invited, Issued, OPEN_MAX};
use super::*;
use crate::config::Credentials;
use crate::identity::{Identities, Kept};
use crate::state::StateDir;
use std::path::Path;
use std::sync::Arc;
use vp::addr::Name;
use vp::identity::{Certificate, Issuer, JoinRefusal, Serial, Subject, Token, Trust, Validity, possession};
use x25519_dalek::{PublicKey as X25519, StaticSecret};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn acme() -> Issuer {
    Issuer::authority(name("acme"), &[1; 32])
}

fn delegated(days: u64) -> Issuer {
    let valid = Validity { not_before: NOW, not_after: NOW + days * DAY };
    acme().delegate(&[2; 32], Serial([0xd1; 16]), valid).expect("a key")
}

fn invited(key: u8, uses: u32) -> Invited {
    Invited {
        public_key: [key; 32],
        site: name("factory"),
        groups: vec![name("edge")],
        valid_seconds: DAY,
        made: NOW,
        ends: NOW + 900,
        uses,
        joined: Vec::new(),
        spent: None,
        hubs: Default::default(),
    }
}

fn certificate(key: [u8; 32], from: u64, to: u64) -> Certificate {
    let subject = Subject { site: name("factory"), groups: vec![name("edge")], public_key: key };
    let valid = Validity { not_before: from, not_after: to };
    delegated(30).certificate(&subject, Serial([key[0]; 16]), valid).expect("signed")
}

#[test]
fn an_invitation_is_good_for_as_many_keys_as_it_says_and_for_each_of_them_again() {
    let mut book = Book::default();
    assert!(book.invite(invited(1, 2)));
    for key in [[7; 32], [8; 32]] {
        let admission = book.admission(&[1; 32], &key, NOW + 1).expect("admitted");
        assert!(matches!(admission, Admission::New { .. }));
        let issued = certificate(key, NOW, NOW + DAY);
        book.joined(&[1; 32], Issued::new(issued.clone(), DAY), NOW + 1);
        assert_eq!(book.admission(&[1; 32], &key, NOW + 2), Ok(Admission::Again(Box::new(issued))));
    }
    assert_eq!(book.admission(&[1; 32], &[9; 32], NOW + 2), Err(JoinRefusal::Used));
    assert_eq!(book.admission(&[1; 32], &[7; 32], NOW + 2), Err(JoinRefusal::Used), "another took its place");
    assert_eq!(book.issued.len(), 1, "a site has one certificate");
    assert_eq!(book.admission(&[2; 32], &[9; 32], NOW), Err(JoinRefusal::Expired), "one that nobody knows");
}

#[test]
fn the_clock_and_the_operator_end_invitations_which_stay_known_for_a_day() {
    let mut book = Book::default();
    assert!(book.invite(invited(1, 1)) && book.invite(invited(2, 1)));
    assert_eq!(book.admission(&[1; 32], &[7; 32], NOW + 900), Err(JoinRefusal::Expired), "before anybody looked");
    assert!(book.take_back("020202020202", NOW + 1).is_some() && book.take_back("020202020202", NOW + 1).is_none());
    assert_eq!(book.admission(&[2; 32], &[7; 32], NOW + 2), Err(JoinRefusal::TakenBack));
    assert!(!book.is_due(NOW + 899) && book.is_due(NOW + 900));
    assert_eq!([book.review(NOW + 899).len(), book.review(NOW + 900).len()], [0, 1]);
    assert!(!book.is_due(NOW + 900));
    assert_eq!(book.admission(&[1; 32], &[7; 32], NOW + 901), Err(JoinRefusal::Expired));
    book.review(NOW + 900 + DAY);
    assert!(book.invited.is_empty());
}

#[test]
fn there_is_an_end_to_how_many_are_open_and_how_many_spent_ones_are_known() {
    let mut book = Book::default();
    let open = (0..).take_while(|number| book.invite(invited(*number, 1))).count();
    assert_eq!(open, OPEN_MAX);
    for round in 0..8 {
        book.review(NOW + 900 + round);
        (0..=255).take_while(|number| book.invite(invited(*number, 1))).for_each(drop);
    }
    book.review(NOW + 1000);
    assert!(book.invited.len() <= 256, "{}", book.invited.len());
}

#[test]
fn a_book_is_read_as_it_was_written_and_damage_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let state = StateDir::open(folder.path()).expect("state");
    let mut book = Book::load(&state).expect("none yet");
    book.invite(invited(1, 2));
    book.joined(&[1; 32], Issued::new(certificate([7; 32], NOW, NOW + DAY), DAY), NOW);
    book.registered(&[7; 32], &name("hub"));
    book.save(&state).expect("saved");
    assert_eq!(Book::load(&state).expect("saved"), book);
    let file = folder.path().join("invitations.json");
    let text = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, &text[..text.len() / 2]).expect("writable");
    assert!(Book::load(&state).is_err());
}

/// An issuer at site cloud, whose key is of fours.
struct World {
    issuing: Issuing,
    told: Arc<Told>,
    folder: tempfile::TempDir,
}

fn secret(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}

fn public(secret: &StaticSecret) -> [u8; 32] {
    X25519::from(secret).to_bytes()
}

fn world(issuer: Issuer) -> World {
    let folder = tempfile::tempdir().expect("folder");
    let state = Arc::new(StateDir::open(folder.path()).expect("state"));
    let mut trust = Trust::default();
    trust.add(name("acme"), acme().public_key()).expect("a key");
    let own_file = folder.path().join("site.certificate");
    let credentials = Credentials { trust, own_file, own: None, revocations: None, members: Vec::new() };
    let identities = Arc::new(Identities::new(name("cloud"), public(&secret(4)), &credentials, &[], Kept::default()));
    let told = Arc::new(Told::default());
    let issuing = Issuing::new(name("cloud"), secret(4), state, identities, told.clone()).expect("a book");
    let (file, endpoint) = (Path::new("acme.issuer").to_owned(), Some("192.0.2.1:51820".to_owned()));
    issuing.configure(Some(Arc::new(IssuerSettings { file, issuer, endpoint, tls: None })));
    World { issuing, told, folder }
}

fn order(site: &str) -> Order {
    let groups = vec![name("edge")];
    Order { site: name(site), groups, expires_seconds: 900, uses: 1, valid_seconds: DAY }
}

fn way() -> Way {
    Way { is_hub: false, hubs: Vec::new() }
}

impl World {
    fn invite(&self, site: &str) -> Token {
        self.issuing.invite(&order(site), way(), NOW).expect("invited").0
    }

    /// By who has this key and says that it is to be that one.
    fn join(&self, token: &Token, has: &StaticSecret, says: &[u8; 32]) -> Result<Certificate, JoinRefusal> {
        let invited = public(&StaticSecret::from(*token.terms().secret));
        let proof = possession(has, &token.terms().issuer.public_key, &invited, says);
        self.answer(self.issuing.join(&invited, says, &proof, NOW + 1))
    }

    fn answer(&self, answer: Result<Vec<u8>, JoinError>) -> Result<Certificate, JoinRefusal> {
        match answer {
            Ok(bytes) => Ok(Certificate::read(&bytes).expect("a certificate")),
            Err(JoinError::Refused(refusal)) => Err(refusal),
            Err(JoinError::NotKept(error)) => panic!("{error}"),
        }
    }

    fn events(&self) -> Vec<(String, Option<String>)> {
        self.told.take().into_iter().map(|record| (record.event, record.reason)).collect()
    }
}

fn event(event: &str, reason: Option<&str>) -> (String, Option<String>) {
    (event.to_owned(), reason.map(ToOwned::to_owned))
}

#[test]
fn who_has_a_token_is_certified_once_for_a_key_that_it_has() {
    let world = world(delegated(30));
    let (token, site, other) = (world.invite("factory"), secret(5), secret(6));
    assert_eq!(world.join(&token, &other, &public(&site)), Err(JoinRefusal::WrongKey), "another's key");
    assert_eq!(world.join(&token, &site, &[0; 32]), Err(JoinRefusal::WrongKey), "a weak key");
    assert_eq!(world.join(&token, &secret(4), &public(&secret(4))), Err(JoinRefusal::KeyTaken), "the issuer's own");
    let certificate = world.join(&token, &site, &public(&site)).expect("certified");
    assert_eq!((certificate.site(), certificate.groups()), (&name("factory"), &[name("edge")][..]));
    assert_eq!((certificate.public_key(), certificate.not_after()), (&public(&site), NOW + 1 + DAY));
    assert_eq!(world.join(&token, &site, &public(&site)), Ok(certificate), "its answer was lost");
    assert_eq!(world.join(&token, &other, &public(&other)), Err(JoinRefusal::Used));
    assert_eq!(world.join(&token, &other, &public(&other)), Err(JoinRefusal::Used));
    let depot = world.invite("depot");
    assert_eq!(world.join(&depot, &site, &public(&site)), Err(JoinRefusal::KeyTaken), "factory's key");
    let told = [
        event("invited", None),
        event("join-refused", Some("wrong-key")),
        event("join-refused", Some("key-taken")),
        event("joined", None),
        event("join-refused", Some("used")),
        event("invited", None),
        event("join-refused", Some("key-taken")),
    ];
    assert_eq!(world.events(), told, "each reason once in a minute");
    assert_eq!(world.issuing.counts().refused[&JoinRefusal::Used], 2);
}

#[test]
fn what_was_invited_and_certified_is_known_after_a_restart_and_no_secret_is_kept() {
    let world = world(delegated(30));
    let (token, site) = (world.invite("factory"), secret(5));
    let text = std::fs::read_to_string(world.folder.path().join("invitations.json")).expect("kept");
    use base64::Engine;
    let secret = base64::prelude::BASE64_STANDARD.encode(*token.terms().secret);
    assert!(!text.contains(&secret) && !text.contains(&*token.to_text()));
    let guests = world.issuing.guests();
    assert!(guests.len() == 1 && guests[0].guest.is_some() && guests[0].endpoint.is_none());
    world.join(&token, &site, &public(&site)).expect("certified");
    let book = world.folder.path().join("invitations.json");
    let text = std::fs::read_to_string(book).expect("kept");
    assert!(text.contains("\"used\""), "{text}");
    assert_eq!(world.issuing.guests().len(), 1, "who comes with it hears why");
}

#[test]
fn a_certificate_is_renewed_for_its_own_key_in_its_time_and_as_long_as_the_issuer_may_sign() {
    let world = world(delegated(2));
    let (token, site) = (world.invite("factory"), secret(5));
    let first = world.join(&token, &site, &public(&site)).expect("certified");
    let (key, serial) = (public(&site), first.serial().0);
    let renew =
        |key: &[u8; 32], serial: &[u8], now| world.answer(world.issuing.renew(&name("factory"), key, serial, now));
    assert_eq!(renew(&key, &serial, NOW + 2), Err(JoinRefusal::TooEarly));
    assert_eq!(renew(&public(&secret(6)), &serial, NOW + DAY / 2), Err(JoinRefusal::NotIssuedHere));
    assert_eq!(renew(&key, &serial[1..], NOW + DAY / 2), Err(JoinRefusal::Malformed));
    let next = renew(&key, &serial, NOW + DAY / 2).expect("renewed");
    assert!(next.is_newer_than(&first) && next.groups() == first.groups() && next.public_key() == &key);
    assert_eq!(renew(&key, &serial, NOW + DAY / 2 + 1), Ok(next.clone()), "its answer was lost");
    let last = renew(&key, &next.serial().0, NOW + DAY).expect("renewed");
    assert_eq!(last.not_after(), NOW + 2 * DAY, "as long as the issuer may");
    let late = renew(&key, &last.serial().0, NOW + 2 * DAY - 60);
    assert_eq!(late, Err(JoinRefusal::NotLonger));
    assert_eq!(renew(&key, &last.serial().0, NOW + 2 * DAY), Err(JoinRefusal::Expired));
    world.issuing.configure(None);
    assert_eq!(renew(&key, &serial, NOW + DAY), Err(JoinRefusal::NotIssuer));
    assert!(world.issuing.guests().is_empty());
}

#[test]
fn an_invitation_that_cannot_be_used_is_not_made() {
    let world = world(delegated(30));
    let refused = |order: Order, way| world.issuing.invite(&order, way, NOW).map(|_| ()).expect_err("refused");
    assert!(refused(order("cloud"), way()).contains("already"));
    assert!(refused(Order { uses: 0, ..order("factory") }, way()).contains("1 to 1000 uses"));
    assert!(refused(Order { expires_seconds: 0, ..order("factory") }, way()).contains("366 days"));
    let late = world.issuing.invite(&order("factory"), way(), NOW + 31 * DAY).map(|_| ());
    assert!(late.expect_err("refused").contains("delegation"));
    let settings = IssuerSettings { file: "x".into(), issuer: delegated(30), endpoint: None, tls: None };
    world.issuing.configure(Some(Arc::new(settings)));
    assert!(refused(order("factory"), way()).contains("issuer.endpoint"));
    assert!(world.issuing.invitations().is_empty() && world.events().is_empty());
}
