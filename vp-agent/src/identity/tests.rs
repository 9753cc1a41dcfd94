//! Which peers there may be, as certificates, lists and time go by.

use super::*;
use vp::identity::{Issuer, Subject, Validity};

const NOW: u64 = 1_800_000_000;
const CLOUD: PublicKey = [1; 32];
const FACTORY: PublicKey = [2; 32];
const DEPOT: PublicKey = [3; 32];

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn authority(tenant: &str, seed: u8) -> Issuer {
    Issuer::authority(name(tenant), &[seed; 32])
}

/// Issued so many seconds after the beginning, for a hundred.
fn issue(by: &Issuer, site: &str, public_key: PublicKey, after: u64) -> Certificate {
    let subject = Subject { site: name(site), groups: vec![name("edge")], public_key };
    let valid = Validity { not_before: NOW + after, not_after: NOW + after + 100 };
    let serial = Serial(((u128::from(after) << 8) + u128::from(public_key[0])).to_be_bytes());
    by.certificate(&subject, serial, valid).expect("issued")
}

fn settings(site: &str, public_key: PublicKey) -> PeerSettings {
    let identity = vp::addr::Identity { site: name(site), tenant: None, groups: Vec::new() };
    let (preshared_key, endpoint, keepalive_seconds) = (None, None, None);
    PeerSettings {
        identity,
        public_key,
        preshared_key,
        endpoint,
        carrier: None,
        keepalive_seconds,
        stock: false,
        hub: false,
    }
}

/// The cloud: factory is a peer by certificate, depot by key.
fn credentials(authorities: &[&Issuer], factory: &Certificate) -> Credentials {
    let mut trust = Trust::default();
    for authority in authorities {
        trust.add(authority.tenant().clone(), authority.public_key()).expect("a key");
    }
    let settings = settings("factory", FACTORY);
    let members = vec![Member { file: None, certificate: factory.clone(), settings }];
    Credentials { trust, own_file: PathBuf::new(), own: None, revocations: None, members }
}

fn cloud(credentials: &Credentials, kept: Kept) -> Identities {
    Identities::new(name("cloud"), CLOUD, credentials, &[settings("depot", DEPOT)], kept)
}

/// Site and tenant of each peer that there may be, after a review.
fn peers(identities: &Identities, now: u64) -> Vec<(String, Option<String>)> {
    identities.review(now);
    let peers = identities.peers(&[settings("depot", DEPOT)], now).into_iter();
    let identity = peers.map(|peer| peer.identity);
    identity.map(|of| (of.site.to_string(), of.tenant.map(|tenant| tenant.to_string()))).collect()
}

fn depot(tenant: Option<&str>) -> (String, Option<String>) {
    ("depot".to_owned(), tenant.map(ToOwned::to_owned))
}

fn factory() -> (String, Option<String>) {
    ("factory".to_owned(), Some("acme".to_owned()))
}

#[test]
fn a_peer_by_certificate_is_there_while_it_holds_whichever_way_the_clock_jumps() {
    let acme = authority("acme", 1);
    let cloud = cloud(&credentials(&[&acme], &issue(&acme, "factory", FACTORY, 0)), Kept::default());
    assert_eq!(peers(&cloud, NOW), [depot(None), factory()]);
    assert!(cloud.review(NOW).is_none(), "nothing is new");
    let ended = cloud.review(NOW + 100).expect("news");
    assert_eq!((ended.ended, ended.news[0].verdict), (vec![FACTORY], Err(Refusal::Expired)));
    assert_eq!(peers(&cloud, NOW + 100), [depot(None)]);
    assert_eq!(peers(&cloud, NOW + 50), [depot(None), factory()]);
    assert_eq!(peers(&cloud, NOW - 1000), [depot(None)]);
    let mut known = vec![settings("depot", DEPOT), settings("factory", FACTORY)];
    cloud.keep_in_force(&mut known, NOW + 100);
    assert_eq!(known, [settings("depot", DEPOT)]);
}

#[test]
fn what_a_peer_presents_makes_it_more_than_its_key_and_the_last_issued_decides() {
    let (acme, beta) = (authority("acme", 1), authority("beta", 2));
    let credentials = credentials(&[&acme, &beta], &issue(&acme, "factory", FACTORY, 0));
    let cloud = cloud(&credentials, Kept::default());
    let take = |site: &str, key, certificate: &Certificate| {
        cloud.take_certificate(&name(site), &key, &certificate.to_bytes(), NOW + 60)
    };
    let (one, two) = (issue(&acme, "depot", DEPOT, 10), issue(&acme, "depot", DEPOT, 20));
    assert_eq!(take("depot", DEPOT, &two), Ok(true));
    assert_eq!(take("depot", DEPOT, &two), Ok(false), "the same again");
    assert_eq!(take("depot", DEPOT, &one), Err(Refusal::Older));
    assert_eq!(peers(&cloud, NOW + 60), [depot(Some("acme")), factory()]);
    assert_eq!(take("depot", DEPOT, &issue(&acme, "office", DEPOT, 30)), Err(Refusal::WrongSite));
    assert_eq!(take("depot", FACTORY, &issue(&acme, "depot", FACTORY, 30)), Err(Refusal::WrongKey), "of a former key");
    assert_eq!(take("depot", DEPOT, &issue(&acme, "depot", FACTORY, 30)), Err(Refusal::WrongKey));
    assert_eq!(take("factory", FACTORY, &issue(&beta, "factory", FACTORY, 30)), Err(Refusal::WrongTenant));
    let refused: u64 = cloud.refused().iter().map(|(_, count)| count).sum();
    assert_eq!(refused, 5);
    // Its own time over, it is what its key says; a certificate before that one does not come back.
    assert_eq!(peers(&cloud, NOW + 121), [depot(None)]);
    assert_eq!(take("factory", FACTORY, &issue(&acme, "factory", FACTORY, 40)), Ok(true));
    assert_eq!(peers(&cloud, NOW + 121), [depot(None), factory()]);
}

#[test]
fn a_revocation_counts_at_once_and_after_a_restart_and_a_later_certificate_ends_it() {
    let acme = authority("acme", 1);
    let certificate = issue(&acme, "factory", FACTORY, 0);
    let credentials = credentials(&[&acme], &certificate);
    let first = cloud(&credentials, Kept::default());
    let presented = first.presented();
    let list = acme.revoke(None, certificate.serial(), 0, NOW).expect("signed").to_bytes();
    assert!(first.take_revocations(&list, NOW).expect("good").1);
    let review = first.review(NOW).expect("news");
    assert_eq!((review.ended, review.news[0].verdict), (vec![FACTORY], Err(Refusal::Revoked)));
    assert_eq!(presented.borrow().revocations, [list], "for other peers too");

    let folder = tempfile::tempdir().expect("folder");
    let state = crate::state::StateDir::open(folder.path()).expect("state");
    first.keep(&state).expect("kept");
    let kept = Kept::load(&state).expect("read");
    let again = cloud(&credentials, kept);
    assert_eq!(peers(&again, NOW), [depot(None)]);
    let renewed = issue(&acme, "factory", FACTORY, 1);
    assert_eq!(again.take_certificate(&name("factory"), &FACTORY, &renewed.to_bytes(), NOW), Ok(true));
    assert_eq!(peers(&again, NOW), [depot(None), factory()]);
    again.keep(&state).expect("kept");
    let third = cloud(&credentials, Kept::load(&state).expect("read"));
    assert_eq!(peers(&third, NOW), [depot(None), factory()]);

    let file = state.file("identity.json");
    let text = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, text.replacen("\"C", "\"D", 1)).expect("writable");
    assert!(Kept::load(&state).is_err(), "damage is not taken for nothing");
}

#[test]
fn what_was_refused_for_want_of_trust_or_time_is_taken_when_that_comes() {
    let (old, new) = (authority("acme", 1), authority("acme", 2));
    let certificate = issue(&old, "factory", FACTORY, 0);
    let before = credentials(&[&old], &certificate);
    let cloud = cloud(&before, Kept::default());
    let renewed = issue(&new, "depot", DEPOT, 10).to_bytes();
    assert_eq!(cloud.take_certificate(&name("depot"), &DEPOT, &renewed, NOW + 10), Err(Refusal::UnknownAuthority));
    assert_eq!(peers(&cloud, NOW + 10), [depot(None), factory()]);
    let both = credentials(&[&old, &new], &certificate);
    let kept = cloud.configure(&both, &[settings("depot", DEPOT)]);
    assert_eq!(peers(&cloud, NOW + 10), [depot(Some("acme")), factory()]);
    // What comes between a change and its refusal stays.
    let list = old.revoke(None, certificate.serial(), 0, NOW).expect("signed").to_bytes();
    assert!(cloud.take_revocations(&list, NOW).expect("good").1);
    cloud.put_back(kept);
    assert_eq!(peers(&cloud, NOW + 10), [depot(None)]);
    let certificate = issue(&old, "factory", FACTORY, 5);
    let both = credentials(&[&old, &new], &certificate);
    cloud.configure(&both, &[settings("depot", DEPOT)]);
    assert_eq!(peers(&cloud, NOW + 10), [depot(Some("acme")), factory()]);
    // Without the old one.
    cloud.configure(&credentials(&[&new], &certificate), &[settings("depot", DEPOT)]);
    assert_eq!(peers(&cloud, NOW + 10), [depot(Some("acme"))]);
    let early = issue(&new, "depot", DEPOT, 90).to_bytes();
    assert_eq!(cloud.take_certificate(&name("depot"), &DEPOT, &early, NOW + 10), Err(Refusal::NotYetValid));
    cloud.review(NOW + 90);
    assert_eq!(cloud.remaining(NOW + 90), [(name("factory"), 15), (name("depot"), 100)]);
}

#[test]
fn a_later_certificate_of_an_authority_that_is_trusted_no_more_gives_way_to_the_file() {
    let (old, new) = (authority("acme", 1), authority("acme", 2));
    let certificate = issue(&new, "factory", FACTORY, 0);
    let both = credentials(&[&old, &new], &certificate);
    let cloud = cloud(&both, Kept::default());
    let later = issue(&old, "factory", FACTORY, 5).to_bytes();
    assert_eq!(cloud.take_certificate(&name("factory"), &FACTORY, &later, NOW), Ok(true));
    cloud.configure(&credentials(&[&new], &certificate), &[]);
    assert_eq!(cloud.remaining(NOW), [(name("factory"), 100)]);
    assert_eq!(peers(&cloud, NOW)[1], factory());
    cloud.configure(&both, &[]);
    cloud.review(NOW);
    assert_eq!(cloud.remaining(NOW), [(name("factory"), 105)], "and comes back with the trust");
}

#[test]
fn this_sites_own_is_shown_while_it_holds_also_where_its_authority_is_not_trusted() {
    let (acme, beta) = (authority("acme", 1), authority("beta", 2));
    let mut credentials = credentials(&[&acme], &issue(&acme, "factory", FACTORY, 0));
    let own = issue(&beta, "cloud", CLOUD, 0);
    credentials.own = Some(own.clone());
    let cloud = cloud(&credentials, Kept::default());
    let presented = cloud.presented();
    for (now, shown) in [(NOW - 1000, None), (NOW, Some(own.to_bytes())), (NOW + 100, None)] {
        cloud.review(now);
        assert_eq!(presented.borrow().certificate, shown);
    }
    let foreign = issue(&beta, "depot", DEPOT, 0).to_bytes();
    let taken = cloud.take_certificate(&name("depot"), &DEPOT, &foreign, NOW);
    assert_eq!(taken, Err(Refusal::UnknownAuthority), "nobody else's for that");
}

#[test]
fn certificates_that_end_soon_are_found() {
    let acme = authority("acme", 1);
    let mut credentials = credentials(&[&acme], &issue(&acme, "factory", FACTORY, 0));
    credentials.own = Some(issue(&acme, "cloud", CLOUD, 5));
    let cloud = cloud(&credentials, Kept::default());
    let found = |now| {
        let findings = cloud.findings(now).into_iter();
        findings.map(|finding| (finding.name, finding.severity)).collect::<Vec<_>>()
    };
    let (soon, ended) = ("certificate-ends-soon".to_owned(), "certificate-not-valid".to_owned());
    assert_eq!(found(NOW + 90), []);
    assert_eq!(found(NOW + 91), [(soon.clone(), "warning".to_owned())]);
    assert_eq!(found(NOW + 101), [(ended.clone(), "warning".to_owned()), (soon, "warning".to_owned())]);
    assert_eq!(found(NOW + 105)[1], (ended, "error".to_owned()));
}

fn claim(certificate: &Certificate) -> Claim {
    let (site, public_key) = (certificate.site().clone(), *certificate.public_key());
    Claim { site, public_key, certificate: certificate.to_bytes() }
}

/// Those that are refused.
fn introduce(to: &Identities, claims: &[Claim], now: u64) -> Vec<Refusal> {
    let hub = name("hub");
    let mut refused = Vec::new();
    let check = |claim: &Claim| to.check(&hub, claim, now).map_err(|refusal| refused.push(refusal)).ok();
    let claimed: Vec<_> = claims.iter().map(check).collect();
    let claimed = claims.iter().zip(claimed).map(|(claim, checked)| (claim.site.clone(), checked)).collect();
    to.introduce(&hub, claimed, now);
    refused
}

fn shop() -> (String, Option<String>) {
    ("shop".to_owned(), Some("acme".to_owned()))
}

const SHOP: PublicKey = [9; 32];

#[test]
fn whom_a_hub_introduces_is_a_peer_by_certificate_as_long_as_it_does() {
    let (acme, evil) = (authority("acme", 1), authority("acme", 7));
    let cloud = cloud(&credentials(&[&acme], &issue(&acme, "factory", FACTORY, 0)), Kept::default());
    let shown = claim(&issue(&acme, "shop", SHOP, 0));
    assert_eq!(introduce(&cloud, std::slice::from_ref(&shown), NOW), []);
    assert_eq!(peers(&cloud, NOW), [depot(None), factory(), shop()]);
    let ended = cloud.review(NOW + 100).expect("news").ended;
    assert!(ended.contains(&SHOP), "its certificate has ended: {ended:?}");

    let forged = Claim { public_key: [8; 32], ..shown.clone() };
    let foreign = claim(&issue(&evil, "shop", SHOP, 0));
    assert_eq!(introduce(&cloud, &[forged], NOW), [Refusal::WrongKey]);
    assert_eq!(introduce(&cloud, &[foreign], NOW), [Refusal::UnknownAuthority]);
    assert_eq!(peers(&cloud, NOW), [depot(None), factory()]);
}

#[test]
fn a_hub_that_was_restarted_and_knows_nobody_yet_ends_nothing() {
    let acme = authority("acme", 1);
    let cloud = cloud(&credentials(&[&acme], &issue(&acme, "factory", FACTORY, 0)), Kept::default());
    let subject = Subject { site: name("shop"), groups: Vec::new(), public_key: SHOP };
    let valid = Validity { not_before: NOW, not_after: NOW + 10_000 };
    let shown = claim(&acme.certificate(&subject, Serial([5; 16]), valid).expect("issued"));
    introduce(&cloud, std::slice::from_ref(&shown), NOW);
    introduce(&cloud, &[], NOW + 10);
    assert!(peers(&cloud, NOW + 50).contains(&shop()));
    introduce(&cloud, &[shown], NOW + 60);
    assert!(peers(&cloud, NOW + 5000).contains(&shop()));
    introduce(&cloud, &[], NOW + 5000);
    assert!(peers(&cloud, NOW + 5599).contains(&shop()));
    assert!(!peers(&cloud, NOW + 5601).contains(&shop()));
}

#[test]
fn a_hub_changes_nothing_of_peers_that_the_file_names() {
    let acme = authority("acme", 1);
    let cloud = cloud(&credentials(&[&acme], &issue(&acme, "factory", FACTORY, 0)), Kept::default());
    let others = [("depot", [8; 32]), ("factory", [8; 32]), ("thief", DEPOT), ("cloud", [8; 32]), ("mirror", CLOUD)];
    let claims: Vec<Claim> = others.iter().map(|(site, key)| claim(&issue(&acme, site, *key, 0))).collect();
    assert_eq!(introduce(&cloud, &claims, NOW), []);
    assert_eq!(peers(&cloud, NOW), [depot(None), factory()]);
}
