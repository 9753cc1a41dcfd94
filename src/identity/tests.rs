//! What is believed and what is not, and that nothing altered ever is.

use super::*;
use crate::addr::Name;
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn authority(tenant: &str, seed: u8) -> Issuer {
    Issuer::authority(name(tenant), &[seed; 32])
}

fn trust(authorities: &[&Issuer]) -> Trust {
    let mut trust = Trust::default();
    for authority in authorities {
        trust.add(authority.tenant().clone(), authority.public_key()).expect("a key");
    }
    trust
}

fn factory() -> Subject {
    Subject { site: name("factory"), groups: vec![name("edge"), name("north")], public_key: [7; 32] }
}

fn days(from: u64, to: u64) -> Validity {
    Validity { not_before: NOW + from * DAY, not_after: NOW + to * DAY }
}

fn serial(number: u8) -> Serial {
    Serial([number; 16])
}

fn certificate(by: &Issuer, number: u8) -> Certificate {
    by.certificate(&factory(), serial(number), days(0, 90)).expect("issued")
}

fn verify(bytes: &[u8], trust: &Trust, revocations: &Revocations, now: u64) -> Result<Certified, Refusal> {
    let certificate = Certificate::verify(bytes, (&name("factory"), &[7; 32]), trust, revocations, now)?;
    certificate.judge(trust, revocations, now)
}

#[test]
fn a_certificate_gives_an_identity_while_it_holds_and_not_a_second_longer() {
    let acme = authority("acme", 1);
    let (trust, none) = (trust(&[&acme]), Revocations::default());
    let bytes = certificate(&acme, 1).to_bytes();
    let certified = verify(&bytes, &trust, &none, NOW).expect("good");
    let identity = certified.identity();
    assert_eq!((identity.site.as_str(), identity.tenant.as_ref()), ("factory", Some(&name("acme"))));
    assert_eq!((identity.groups.as_slice(), certified.serial()), (&factory().groups[..], serial(1)));
    assert_eq!((certified.public_key(), certified.not_after()), (&[7; 32], NOW + 90 * DAY));
    let at = |now| verify(&bytes, &trust, &none, now).map(|_| ());
    assert_eq!(at(NOW - CLOCK_TOLERANCE_SECONDS), Ok(()));
    assert_eq!(at(NOW - CLOCK_TOLERANCE_SECONDS - 1), Err(Refusal::NotYetValid));
    assert_eq!(at(NOW + 90 * DAY - 1), Ok(()));
    assert_eq!(at(NOW + 90 * DAY), Err(Refusal::Expired));
    assert_eq!([at(0), at(u64::MAX)], [Err(Refusal::NotYetValid), Err(Refusal::Expired)]);
}

#[test]
fn a_certificate_is_good_for_the_site_and_the_key_that_it_names() {
    let acme = authority("acme", 1);
    let (bytes, trust, none) = (certificate(&acme, 1).to_bytes(), trust(&[&acme]), Revocations::default());
    let of = |site: &str, key| Certificate::verify(&bytes, (&name(site), &[key; 32]), &trust, &none, NOW).map(|_| ());
    assert_eq!([of("factory", 7), of("depot", 7)], [Ok(()), Err(Refusal::WrongSite)]);
    assert_eq!(of("factory", 8), Err(Refusal::WrongKey));
}

#[test]
fn authorities_are_trusted_for_their_own_tenant_several_at_a_time() {
    let (old, new, beta) = (authority("acme", 1), authority("acme", 2), authority("beta", 3));
    let (impostor, none) = (authority("acme", 3), Revocations::default());
    let both = trust(&[&old, &new, &beta]);
    let at = |by: &Issuer, trust: &Trust| verify(&certificate(by, 1).to_bytes(), trust, &none, NOW).map(|_| ());
    assert_eq!([at(&old, &both), at(&new, &both), at(&beta, &both)], [Ok(()); 3]);
    assert_eq!(at(&old, &trust(&[&new])), Err(Refusal::UnknownAuthority));
    assert_eq!(at(&impostor, &both), Err(Refusal::WrongTenant), "beta's key signs for acme");
    let mut again = both.clone();
    assert_eq!(again.add(name("acme"), beta.public_key()), Err(TrustError::Twice(name("beta"))));
    let mut identity_point = [0; 32];
    identity_point[0] = 1;
    assert_eq!(again.add(name("acme"), identity_point), Err(TrustError::Key));
}

#[test]
fn an_issuer_signs_for_its_tenant_until_its_delegation_ends_or_is_revoked() {
    let (acme, beta) = (authority("acme", 1), authority("beta", 2));
    let trust = trust(&[&acme, &beta]);
    let issuer = acme.delegate(&[9; 32], serial(100), days(0, 30)).expect("delegated");
    let issued = certificate(&issuer, 1);
    let (bytes, none) = (issued.to_bytes(), Revocations::default());
    let certified = verify(&bytes, &trust, &none, NOW).expect("good");
    assert_eq!(certified.not_after(), NOW + 30 * DAY, "no longer than the delegation");
    assert_eq!(verify(&bytes, &trust, &none, NOW + 30 * DAY).map(|_| ()), Err(Refusal::Expired));
    assert_eq!(issuer.delegate(&[8; 32], serial(1), days(0, 1)).map(|_| ()), Err(IssueError::NotAuthority));
    let late = issuer.certificate(&factory(), serial(2), days(31, 40)).map(|_| ());
    assert_eq!(late, Err(IssueError::DelegationEnded));

    let mut revocations = Revocations::default();
    let list = acme.revoke(None, serial(100), 0, NOW).expect("revoked");
    revocations.add(&list.to_bytes(), &trust, NOW).expect("taken");
    assert_eq!(issued.judge(&trust, &revocations, NOW), Err(Refusal::Revoked));
    let by_revoked = issuer.revoke(None, serial(3), 0, NOW).expect("signed");
    assert_eq!(revocations.add(&by_revoked.to_bytes(), &trust, NOW).map(|_| ()), Err(Refusal::Revoked));
}

#[test]
fn a_list_replaces_its_signers_older_ones_and_nobody_elses() {
    let (acme, next) = (authority("acme", 1), authority("acme", 2));
    let trust = trust(&[&acme, &next]);
    let issuer = acme.delegate(&[9; 32], serial(100), days(0, 30)).expect("delegated");
    let one = acme.revoke(None, serial(1), NOW + 90 * DAY, NOW).expect("signed");
    let two = acme.revoke(Some(&one), serial(2), 0, NOW).expect("signed");
    let mut known = Revocations::default();
    let add = |known: &mut Revocations, list: &List| known.add(&list.to_bytes(), &trust, NOW).map(|(_, new)| new);
    assert_eq!(add(&mut known, &two), Ok(true));
    assert_eq!(add(&mut known, &two), Ok(false), "known already");
    assert_eq!(add(&mut known, &one), Err(Refusal::Older));
    let other = acme.revoke(Some(&one), serial(3), 0, NOW).expect("signed");
    assert_eq!(add(&mut known, &other), Err(Refusal::Older), "another of the same version");
    // An issuer that goes wrong cannot outrun its authority.
    let theirs = issuer.revoke(None, serial(4), 0, NOW).expect("signed");
    assert_eq!(add(&mut known, &theirs), Ok(true));
    let held = |known: &Revocations, number| certificate(&next, number).judge(&trust, known, NOW).is_ok();
    assert_eq!([1, 2, 3, 4, 5].map(|number| held(&known, number)), [false, false, true, false, true]);
    let three = acme.revoke(Some(&two), serial(100), 0, NOW).expect("signed");
    assert_eq!(add(&mut known, &three), Ok(true));
    assert_eq!([2, 4].map(|number| held(&known, number)), [false, true], "its list goes with it");
    assert_eq!(known.in_force(&trust).map(List::version).collect::<Vec<_>>(), [3]);
    assert_eq!(acme.revoke(Some(&theirs), serial(5), 0, NOW), Err(IssueError::OtherList));
    assert_eq!(acme.revoke(Some(&two), serial(2), 0, NOW), Err(IssueError::Already(serial(2))));
}

#[test]
fn a_list_from_the_future_or_of_strangers_is_refused_and_one_that_was_known_outlives_a_restart() {
    let (acme, stranger) = (authority("acme", 1), authority("acme", 5));
    let trusted = trust(&[&acme]);
    let mut known = Revocations::default();
    let mut add = |list: List| known.add(&list.to_bytes(), &trusted, NOW).map(|_| ());
    let future = acme.revoke(None, serial(1), 0, NOW + CLOCK_TOLERANCE_SECONDS + 1).expect("signed");
    assert_eq!(add(future), Err(Refusal::NotYetValid));
    assert_eq!(add(stranger.revoke(None, serial(1), 0, NOW).expect("signed")), Err(Refusal::UnknownAuthority));
    let issuer = acme.delegate(&[9; 32], serial(100), days(0, 30)).expect("delegated");
    let list = issuer.revoke(None, serial(1), 0, NOW).expect("signed");
    assert_eq!(add(list.clone()), Ok(()));
    // Trust may have ended meanwhile, or come again.
    let mut restored = Revocations::default();
    known.all().for_each(|list| restored.restore(&list.to_bytes()).expect("good"));
    assert_eq!(restored, known);
    assert_eq!(certificate(&acme, 1).judge(&trusted, &restored, NOW), Err(Refusal::Revoked));
    let late = Revocations::default().add(&list.to_bytes(), &trusted, NOW + 31 * DAY).map(|_| ());
    assert_eq!(late, Err(Refusal::Expired), "who learns it late asks for a newer one");
}

#[test]
fn lists_have_room_for_each_authority_and_forget_what_has_ended() {
    let acme = authority("acme", 1);
    let mut list = acme.revoke(None, Serial(0_u128.to_be_bytes()), NOW + DAY, NOW).expect("signed");
    for number in 1..REVOKED_MAX as u128 {
        list = acme.revoke(Some(&list), Serial(number.to_be_bytes()), NOW + DAY, NOW).expect("room");
    }
    assert!(list.to_bytes().len() <= REVOCATIONS_BYTES_MAX, "{}", list.to_bytes().len());
    assert_eq!(acme.revoke(Some(&list), serial(255), 0, NOW), Err(IssueError::Full));
    let later = acme.revoke(Some(&list), serial(255), 0, NOW + 3 * DAY).expect("room again");
    assert_eq!(later.revoked().len(), 1);
    assert_eq!(later.version(), list.version() + 1);
}

#[test]
fn the_largest_certificate_is_within_the_limit_and_larger_ones_are_not_looked_at() {
    let long = "a".repeat(63);
    let acme = Issuer::authority(name(&long), &[1; 32]);
    let issuer = acme.delegate(&[2; 32], serial(1), days(0, 30)).expect("delegated");
    let group = |number: usize| name(&format!("{number:063}"));
    let groups: Vec<Name> = (0..GROUPS_MAX).map(group).collect();
    let subject = Subject { site: name(&long), groups, public_key: [7; 32] };
    let bytes = issuer.certificate(&subject, serial(1), days(0, 90)).expect("issued").to_bytes();
    assert!(bytes.len() <= CERTIFICATE_BYTES_MAX / 2, "{}", bytes.len());
    let larger = vec![0; CERTIFICATE_BYTES_MAX + 1];
    assert_eq!(Certificate::read(&larger).map(|_| ()), Err(Refusal::TooLarge));
    assert_eq!(List::read(&vec![0; REVOCATIONS_BYTES_MAX + 1]).map(|_| ()), Err(Refusal::TooLarge));
    let many = Subject { groups: (0..=GROUPS_MAX).map(group).collect(), ..subject };
    assert_eq!(issuer.certificate(&many, serial(1), days(0, 1)).map(|_| ()), Err(IssueError::TooManyGroups));
    assert_eq!(issuer.certificate(&factory(), serial(1), days(1, 1)).map(|_| ()), Err(IssueError::Validity));
}

#[test]
fn nothing_signed_as_one_kind_passes_as_another() {
    let acme = authority("acme", 1);
    let (one, list) = (certificate(&acme, 1), acme.revoke(None, serial(1), 0, NOW).expect("signed"));
    assert!(List::read(&one.to_bytes()).is_err());
    assert!(Certificate::read(&list.to_bytes()).is_err());
}

#[test]
fn no_certificate_with_a_bit_of_it_turned_is_believed() {
    let acme = authority("acme", 1);
    let issuer = acme.delegate(&[9; 32], serial(100), days(0, 30)).expect("delegated");
    let (trust, none) = (trust(&[&acme]), Revocations::default());
    for by in [&acme, &issuer] {
        let good = certificate(by, 1).to_bytes();
        for at in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(verify(&bytes, &trust, &none, NOW).is_err(), "bit {at} of {}", good.len() * 8);
        }
        for length in 0..good.len() {
            assert!(verify(&good[..length], &trust, &none, NOW).is_err(), "{length} of {}", good.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn altered_bytes_are_refused_and_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4)) {
        let acme = authority("acme", 1);
        let (trust, mut known) = (trust(&[&acme]), Revocations::default());
        let alter = |good: Vec<u8>| {
            let mut bytes = good.clone();
            changes.iter().for_each(|(at, by)| bytes[at.index(good.len())] ^= by);
            (bytes != good).then_some(bytes)
        };
        if let Some(bytes) = alter(certificate(&acme, 1).to_bytes()) {
            prop_assert!(verify(&bytes, &trust, &known, NOW).is_err());
        }
        if let Some(bytes) = alter(acme.revoke(None, serial(1), 0, NOW).expect("signed").to_bytes()) {
            prop_assert!(known.add(&bytes, &trust, NOW).is_err());
        }
    }

    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (Certificate::read(&bytes), List::read(&bytes), Issuer::read(&bytes));
        let _ = text::decode(text::Label::Certificate, &String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn text_is_read_as_it_was_written(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for label in [text::Label::Certificate, text::Label::Revocations, text::Label::SigningKey] {
            let text = format!("a remark\n{}", *text::encode(label, &bytes));
            let read = text::decode(label, &text);
            prop_assert_eq!(read.as_deref(), Ok(&bytes));
        }
    }
}

/// The bytes of `proto/golden`: an implementation of the schema makes and reads them so.
#[test]
fn golden_vectors_are_made_and_read_byte_for_byte() {
    let acme = authority("acme", 1);
    let issuer = acme.delegate(&[2; 32], serial(0xd1), days(0, 30)).expect("delegated");
    let later = |by: &Issuer| {
        let list = by.revoke(None, serial(0xc1), NOW + 90 * DAY, NOW).expect("signed");
        by.revoke(Some(&list), serial(0xc2), 0, NOW + 60).expect("signed").to_bytes()
    };
    let golden = [
        (include_str!("../../proto/golden/certificate.hex"), certificate(&acme, 0xc1).to_bytes()),
        (include_str!("../../proto/golden/certificate-by-issuer.hex"), certificate(&issuer, 0xc2).to_bytes()),
        (include_str!("../../proto/golden/revocations.hex"), later(&acme)),
        (include_str!("../../proto/golden/revocations-by-issuer.hex"), later(&issuer)),
        (include_str!("../../proto/golden/signing-key.hex"), acme.to_bytes().to_vec()),
        (include_str!("../../proto/golden/signing-key-of-issuer.hex"), issuer.to_bytes().to_vec()),
        (include_str!("../../proto/golden/invitation-by-issuer.hex"), invitation(&issuer, 0xe1).to_bytes()),
    ];
    let made: Vec<String> = golden.iter().map(|(_, made)| hex_lines(made)).collect();
    for ((file, _), made) in golden.iter().zip(&made) {
        let bytes: String =
            file.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        assert_eq!(&bytes, made);
    }
    let trust = trust(&[&acme]);
    let mut known = Revocations::default();
    for list in [&golden[2].1, &golden[3].1] {
        known.add(list, &trust, NOW + 60).expect("good");
    }
    for certificate in [&golden[0].1, &golden[1].1] {
        assert!(verify(certificate, &trust, &Revocations::default(), NOW).is_ok());
        assert_eq!(verify(certificate, &trust, &known, NOW), Err(Refusal::Revoked));
    }
    let keys = [&golden[4].1, &golden[5].1].map(|bytes| Issuer::read(bytes).expect("a key").public_key());
    assert_eq!(keys, [acme.public_key(), issuer.public_key()]);
}

fn invitation(by: &Issuer, number: u8) -> Invitation {
    by.invitation(&name("cloud"), [8; 32], serial(number), days(0, 1)).expect("issued")
}

#[test]
fn an_invitation_is_one_to_its_site_of_its_tenant_for_its_time_and_no_certificate() {
    let (acme, none) = (authority("acme", 1), Revocations::default());
    let issuer = acme.delegate(&[2; 32], serial(0xd1), days(0, 30)).expect("delegated");
    let (bytes, trust) = (invitation(&issuer, 1).to_bytes(), trust(&[&acme]));
    let at = |tenant: &str, site: &str, known: &Revocations, now| {
        Invitation::verify(&bytes, (&name(tenant), &name(site)), &trust, known, now).map(|_| ())
    };
    assert_eq!(at("acme", "cloud", &none, NOW), Ok(()));
    assert_eq!(at("beta", "cloud", &none, NOW), Err(Refusal::WrongTenant));
    assert_eq!(at("acme", "depot", &none, NOW), Err(Refusal::WrongSite));
    assert_eq!(at("acme", "cloud", &none, NOW + DAY), Err(Refusal::Expired));
    assert_eq!(at("acme", "cloud", &none, NOW - DAY), Err(Refusal::NotYetValid));
    for revoked in [serial(1), serial(0xd1)] {
        let list = acme.revoke(None, revoked, 0, NOW).expect("signed");
        let mut known = Revocations::default();
        known.add(&list.to_bytes(), &trust, NOW).expect("good");
        assert_eq!(at("acme", "cloud", &known, NOW), Err(Refusal::Revoked));
    }
    assert!(Certificate::read(&bytes).is_err() && Invitation::read(&certificate(&acme, 1).to_bytes()).is_err());
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        let same = Invitation::read(&altered).is_ok_and(|read| read.to_bytes() == altered);
        assert!(!same, "altered at {at}");
    }
}

fn hex_lines(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}
