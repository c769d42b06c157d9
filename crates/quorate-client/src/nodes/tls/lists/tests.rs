//! Which lists come into use, and which stay, at a start and while files change.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{CertificateError, SignatureScheme};

use super::*;
use crate::nodes::tls::{Encryption, Tls};

struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// `of`: who has issued its certificate; itself, if nobody.
    fn new(name: &str, of: Option<&Self>) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = match of {
            Some(of) => params.signed_by(&key, &of.issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn revokes(&self, serial: u64) -> String {
        self.list(serial, SerialNumber::from(1_u64))
    }

    /// A list of this number, which says that the certificate is revoked.
    fn list(&self, serial: u64, number: SerialNumber) -> String {
        self.made(serial, number, 2020, 2020)
    }

    /// It was made in the one year, and the certificate was revoked in the other.
    fn made(&self, serial: u64, number: SerialNumber, year: i32, revoked_in: i32) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(revoked_in, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year + 1, 1, 1),
            crl_number: number,
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// The certificate of a node "a".
    fn node(&self, serial: u64) -> Certificate {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap()
    }
}

/// The lists that nodes have, where those show each other certificates of a CA of their own.
#[test]
fn a_list_of_a_ca_that_only_nodes_know_keeps_no_client_away() {
    let (ours, peers) = (Authority::new("ours", None), Authority::new("peers", None));
    let ca = || Tls::new().ca_pem(ours.certificate.pem());
    for lists in [[&peers, &ours], [&ours, &peers]] {
        let lists: String = lists.iter().map(|of| of.revokes(7)).collect();
        let loaded = ca().crl_pem(lists).load().unwrap().kept.now();
        let now = loaded.config.time_provider.current_time().unwrap();
        let name = ServerName::try_from("a").unwrap();
        let verify = |serial| {
            let node = ours.node(serial);
            loaded.verifier.verify_server_cert(node.der(), &[], &name, &[], now).map(drop)
        };
        let revoked = rustls::Error::InvalidCertificate(CertificateError::Revoked);
        assert_eq!((verify(7), verify(8)), (Err(revoked), Ok(())));
    }
    let fault = ca().crl_pem(peers.revokes(7)).load().map(drop).unwrap_err();
    assert!(fault.contains("no list in it is of a CA that this client trusts"), "{fault}");
}

/// Which it learns when a node shows it.
#[test]
fn a_list_of_a_ca_between_counts_although_the_client_does_not_know_it() {
    let root = Authority::new("root", None);
    let between = Authority::new("between", Some(&root));
    let lists = format!("{}{}", root.revokes(1), between.revokes(7));
    let tls = Tls::new().ca_pem(root.certificate.pem()).crl_pem(lists).load().unwrap();
    assert_eq!([7, 8].map(|serial| is_revoked(&tls, &between, serial)), [true, false]);
}

/// Whether a node of this CA is refused for that.
fn is_revoked(tls: &Encryption, of: &Authority, serial: u64) -> bool {
    let revoked = rustls::Error::InvalidCertificate(CertificateError::Revoked);
    verify(tls, of, serial).is_err_and(|error| error == revoked || panic!("{error}"))
}

/// What is said to a node of this CA.
fn verify(tls: &Encryption, of: &Authority, serial: u64) -> Result<(), rustls::Error> {
    let (loaded, name) = (tls.kept.now(), ServerName::try_from("a").unwrap());
    let now = loaded.config.time_provider.current_time().unwrap();
    let (node, chain) = (of.node(serial), [of.certificate.der().clone()]);
    loaded.verifier.verify_server_cert(node.der(), &chain, &name, &[], now).map(drop)
}

/// A file that was read when its first list was written, or an operator who has forgotten one.
/// What is new in it counts, and what it lacks stays.
#[tokio::test]
async fn a_list_of_a_ca_between_stays_when_it_is_not_there_any_more() {
    let root = Authority::new("root", None);
    let between = Authority::new("between", Some(&root));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lists");
    let both = format!("{}{}", root.revokes(1), between.revokes(7));
    std::fs::write(&file, both).unwrap();
    let tls = Tls::new().ca_pem(root.certificate.pem()).crl_file(&file).load().unwrap();
    assert!(is_revoked(&tls, &between, 7) && !is_revoked(&tls, &root, 2));
    for (what, lists, of_between) in [
        ("its own is gone", root.revokes(2), [true, false]),
        ("and stays so", root.revokes(2) + "\n", [true, false]),
        ("a newer one", format!("{}{}", root.revokes(2), between.revokes(8)), [false, true]),
    ] {
        std::fs::write(&file, lists).unwrap();
        tls.kept.reread().await;
        assert!(is_revoked(&tls, &root, 2), "{what}: what is new");
        let found = [7, 8].map(|serial| is_revoked(&tls, &between, serial));
        assert_eq!(found, of_between, "{what}");
    }
}

/// The lists of ours go on.
#[tokio::test]
async fn a_bad_list_of_a_ca_between_keeps_no_list_of_another_back() {
    let root = Authority::new("root", None);
    let between = Authority::new("between", Some(&root));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lists");
    let nth = |of: &Authority, serial, number: u64| of.list(serial, SerialNumber::from(number));
    let unreadable = |of: &Authority| of.list(9, SerialNumber::from(vec![1; 21]));
    let start = |lists: String| {
        std::fs::write(&file, lists).unwrap();
        Tls::new().ca_pem(root.certificate.pem()).crl_file(&file).load()
    };
    let used = nth(&between, 7, 5);
    let foreign = [
        ("older", nth(&between, 8, 4)),
        ("unreadable", unreadable(&between)),
        // No time is before 1970. So it is with reasons and issuers of entries.
        ("an unreadable entry", between.made(9, SerialNumber::from(6_u64), 2020, 1960)),
        ("older, then a newer one", format!("{}{}", nth(&between, 8, 4), nth(&between, 7, 6))),
    ];
    for (what, bad) in &foreign {
        for is_first in [true, false] {
            let tls = start(format!("{}{used}", nth(&root, 1, 5))).unwrap();
            let new = nth(&root, 2, 6);
            let lists = if is_first { format!("{bad}{new}") } else { format!("{new}{bad}") };
            std::fs::write(&file, lists).unwrap();
            tls.kept.reread().await;
            assert!(is_revoked(&tls, &root, 2), "{what}: the new list of the other one");
            let found = [7, 8, 9].map(|serial| is_revoked(&tls, &between, serial));
            assert_eq!(found, [true, false, false], "{what}: what was in use");
        }
    }
    // One of the same faults in a list of ours holds back all.
    for (what, bad) in [
        ("older", nth(&root, 2, 4)),
        ("unreadable", unreadable(&root)),
        ("twice", format!("{}{}", nth(&root, 2, 6), nth(&root, 3, 7))),
    ] {
        let tls = start(format!("{}{used}", nth(&root, 1, 5))).unwrap();
        std::fs::write(&file, format!("{}{bad}", nth(&between, 8, 6))).unwrap();
        tls.kept.reread().await;
        assert_eq!(tls.kept.changes(), 0, "{what}");
    }
    // Nor does a client start with one that is wrong by itself.
    for (what, bad) in &foreign[1..3] {
        assert!(start(format!("{}{bad}", nth(&root, 1, 5))).is_err(), "{what}");
    }
}

/// It numbers its lists from 1 again. Of one key, they go forward only.
#[tokio::test]
async fn a_list_of_a_ca_that_was_made_anew_under_its_name_counts() {
    let [old, new] = [(); 2].map(|()| Authority::new("ours", None));
    let dir = tempfile::tempdir().unwrap();
    let [ca, lists] = ["ca", "lists"].map(|name| dir.path().join(name));
    let nth = |of: &Authority, serial, number: u64| of.list(serial, SerialNumber::from(number));
    std::fs::write(&ca, old.certificate.pem()).unwrap();
    std::fs::write(&lists, nth(&old, 7, 5)).unwrap();
    let tls = Tls::new().ca_file(&ca).crl_file(&lists).load().unwrap();
    std::fs::write(&lists, nth(&old, 8, 4)).unwrap();
    tls.kept.reread().await;
    assert_eq!(tls.kept.changes(), 0, "of the same key");
    std::fs::write(&ca, new.certificate.pem()).unwrap();
    std::fs::write(&lists, nth(&new, 8, 1)).unwrap();
    tls.kept.reread().await;
    assert_eq!([7, 8].map(|serial| is_revoked(&tls, &new, serial)), [false, true]);
    // So it is where the client does not trust it, as nodes' own.
    let root = Authority::new("root", None);
    let [old, new] = [(); 2].map(|()| Authority::new("between", Some(&root)));
    std::fs::write(&lists, root.revokes(1) + &nth(&old, 7, 5)).unwrap();
    let tls = Tls::new().ca_pem(root.certificate.pem()).crl_file(&lists).load().unwrap();
    let earlier = new.made(7, SerialNumber::from(9_u64), 2019, 2019);
    for (what, list, of, expected) in [
        ("made before", earlier, &old, [true, false]),
        ("made anew", nth(&new, 8, 1), &new, [false, true]),
    ] {
        std::fs::write(&lists, root.revokes(2) + &list).unwrap();
        tls.kept.reread().await;
        assert_eq!([7, 8].map(|serial| is_revoked(&tls, of, serial)), expected, "{what}");
    }
}

/// An operator who appends the new one.
#[tokio::test]
async fn of_two_lists_of_a_ca_between_the_newest_counts() {
    let root = Authority::new("root", None);
    let between = Authority::new("between", Some(&root));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lists");
    let nth = |serial, number: u64| between.list(serial, SerialNumber::from(number));
    for lists in [[nth(7, 5), nth(8, 6)], [nth(8, 6), nth(7, 5)], [nth(7, 6), nth(8, 7)]] {
        std::fs::write(&file, root.revokes(1) + &nth(7, 5)).unwrap();
        let start = || Tls::new().ca_pem(root.certificate.pem()).crl_file(&file).load();
        let tls = start().unwrap();
        std::fs::write(&file, root.revokes(2) + &lists.concat()).unwrap();
        tls.kept.reread().await;
        assert!(is_revoked(&tls, &root, 2));
        let found = [7, 8].map(|serial| is_revoked(&tls, &between, serial));
        assert_eq!(found, [false, true]);
        assert!(start().is_err(), "with both");
    }
}

#[test]
fn a_ca_has_a_name_in_messages() {
    let anchor = Authority::new("between", None);
    let anchor = anchor_from_trusted_cert(anchor.certificate.der()).unwrap().to_owned();
    let subject = anchor.subject.to_vec();
    // Another field before it, of a name of as many bytes.
    let other = [&subject[..8], b"\x0a", &subject[9..]].concat();
    assert_eq!(der::common_name(&subject).as_deref(), Some("between"));
    assert_eq!(der::common_name(&other), None);
    let second = [other, subject.clone()].concat();
    assert_eq!(der::common_name(&second).as_deref(), Some("between"));
    for cut in 0..subject.len() {
        assert_eq!(der::common_name(&subject[..cut]), None, "{cut} bytes of it");
    }
}

/// While a CA is replaced, files come one by one. A list that stays behind keeps none in use.
#[tokio::test]
async fn a_ca_that_is_taken_away_goes_before_its_list() {
    let (old, new) = (Authority::new("old", None), Authority::new("new", None));
    let dir = tempfile::tempdir().unwrap();
    let (ca, lists) = (dir.path().join("ca"), dir.path().join("lists"));
    std::fs::write(&ca, old.certificate.pem()).unwrap();
    std::fs::write(&lists, old.revokes(7)).unwrap();
    let tls = Tls::new().ca_file(&ca).crl_file(&lists).load().unwrap();
    for (changes, file, text) in [(1, &ca, new.certificate.pem()), (2, &lists, new.revokes(7))] {
        std::fs::write(file, text).unwrap();
        tls.kept.reread().await;
        assert_eq!(tls.kept.changes(), changes, "{}", file.display());
    }
}

/// Below it may be the CA whose list cannot be used, and nobody knows whom that has revoked.
#[tokio::test]
async fn a_ca_that_is_added_waits_for_a_list_of_a_ca_between() {
    let [root, coming] = ["root", "coming"].map(|name| Authority::new(name, None));
    let between = Authority::new("between", Some(&coming));
    let dir = tempfile::tempdir().unwrap();
    let (ca, lists) = (dir.path().join("ca"), dir.path().join("lists"));
    let nth = |of: &Authority, serial, number: u64| of.list(serial, SerialNumber::from(number));
    let bad = between.list(8, SerialNumber::from(vec![1; 21]));
    for (what, has_list) in [("it has none in use", false), ("it has", true)] {
        for at_once in [false, true] {
            let of_between = if has_list { nth(&between, 7, 5) } else { String::new() };
            std::fs::write(&ca, root.certificate.pem()).unwrap();
            std::fs::write(&lists, format!("{}{of_between}", nth(&root, 1, 5))).unwrap();
            let tls = Tls::new().ca_file(&ca).crl_file(&lists).load().unwrap();
            std::fs::write(&lists, format!("{}{bad}", nth(&root, 2, 6))).unwrap();
            if !at_once {
                tls.kept.reread().await;
            }
            let both = format!("{}{}", root.certificate.pem(), coming.certificate.pem());
            std::fs::write(&ca, both).unwrap();
            tls.kept.reread().await;
            assert!(is_revoked(&tls, &root, 2), "{what}: the list of the other one counts");
            let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
            assert_eq!(verify(&tls, &between, 8), Err(unknown), "{what}: whom it has revoked");
            std::fs::write(&lists, format!("{}{}", nth(&root, 2, 6), nth(&between, 8, 6))).unwrap();
            tls.kept.reread().await;
            let found = [8, 9].map(|serial| is_revoked(&tls, &between, serial));
            assert_eq!(found, [true, false], "{what}: it comes with the list");
        }
    }
}

/// A certificate of a CA between, which is known by it alone.
#[tokio::test]
async fn a_list_keeps_no_certificate_of_the_clients_own_away() {
    let root = Authority::new("root", None);
    let [between, namesake] = [(); 2].map(|()| Authority::new("between", Some(&root)));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let put = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    let nth = |of: &Authority, serial, number: u64| of.list(serial, SerialNumber::from(number));
    let own = |of: &Authority| {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::default().signed_by(&key, &of.issuer).unwrap();
        (own.pem() + &of.certificate.pem(), key.serialize_pem())
    };
    let of_between = nth(&between, 7, 5);
    for (what, lists, stays) in [
        ("it is gone", String::new(), true),
        ("older", nth(&between, 8, 4), true),
        ("another's", nth(&namesake, 7, 6), false),
        ("unreadable", between.list(8, SerialNumber::from(vec![1; 21])), true),
    ] {
        for in_order in [true, false] {
            let (certificate, key) = own(&root);
            put("certificate", &certificate);
            put("key", &key);
            put("lists", &format!("{}{of_between}", nth(&root, 1, 5)));
            let tls = Tls::new().ca_pem(root.certificate.pem()).crl_file(file("lists"));
            let tls = tls.identity_files(file("certificate"), file("key")).load().unwrap();
            put("lists", &format!("{}{lists}", nth(&root, 2, 6)));
            if in_order {
                tls.kept.reread().await;
            }
            let (certificate, key) = own(&between);
            put("certificate", &certificate);
            put("key", &key);
            tls.kept.reread().await;
            let loaded = tls.kept.now();
            let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
            let shown = loaded.config.client_auth_cert_resolver.resolve(&[], &schemes).unwrap();
            let new = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            assert_eq!(shown.cert[0], new, "{what}: the new certificate is shown");
            assert!(is_revoked(&tls, &root, 2), "{what}: the list of the other one counts");
            if stays {
                assert!(is_revoked(&tls, &between, 7), "{what}: what was in use");
            }
        }
    }
}
