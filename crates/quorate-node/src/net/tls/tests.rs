//! Files that change while a node runs: what is revoked, and who is trusted, does not wait for what
//! is bad beside it.

mod between;
mod lasting;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert as _;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use x509_parser::asn1_rs::{Any, Class, FromDer as _};

use super::*;
use crate::runtime;

/// 2019-01-01, 2026-01-01 and 2028-01-01.
const IN_2019: u64 = 1_546_300_800;
const IN_2026: u64 = 1_767_225_600;
const IN_2028: u64 = 1_830_297_600;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        Self::below(None, name, 2060)
    }

    /// `above`: who has issued its certificate; itself, if nobody.
    fn below(above: Option<&Self>, name: &str, last_year: i32) -> Self {
        Self::between(above, name, 1975, last_year)
    }

    fn between(above: Option<&Self>, name: &str, first_year: i32, last_year: i32) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(first_year, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let made = match above {
            Some(above) => params.signed_by(&key, &above.issuer),
            None => params.self_signed(&key),
        };
        Self { pem: made.unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()
    }

    /// A certificate and its key.
    fn issue(&self, uri: &str, serial: u64, last_year: i32) -> (String, String) {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn node(&self, last_year: i32) -> (String, String) {
        self.issue("spiffe://prod/node/1", 1, last_year)
    }

    fn client(&self, serial: u64) -> CertificateDer<'static> {
        let (pem, _) = self.issue("spiffe://prod/client/a", serial, 2060);
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn list(&self, number: u64, revoked: &[u64]) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2060, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// Files of a node, in a directory of their own.
struct Files {
    dir: TempDir,
    named: config::Tls,
}

impl Files {
    fn new(authority: &Authority, (cert, key): &(String, String)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut named = config::Tls::new(path("node.crt"), path("node.key"), path("ca.crt"));
        named.crl = Some(path("ca.crl"));
        let files = Self { named, dir };
        files.put("node.crt", cert);
        files.put("node.key", key);
        files.put("ca.crt", &authority.pem);
        files.put("ca.crl", &authority.list(1, &[]));
        files
    }

    /// What nodes show each other, and trust, is this.
    fn of_nodes(&mut self, authority: &Authority, (cert, key): &(String, String)) {
        self.put("peer.crt", cert);
        self.put("peer.key", key);
        self.put("peer-ca.crt", &authority.pem);
        let path = |name: &str| Some(self.path(name));
        let of_nodes = (path("peer-ca.crt"), path("peer.crt"), path("peer.key"));
        (self.named.peer_ca, self.named.peer_cert, self.named.peer_key) = of_nodes;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    async fn open(&self) -> Arc<Tls> {
        Tls::open(self.named.clone(), "prod", NodeId::new(1).unwrap()).await.unwrap()
    }
}

/// Whether a client with this certificate gets in.
fn takes(tls: &Tls, client: &CertificateDer<'_>) -> bool {
    tls.loaded.load().of_clients.verify_client_cert(client, &[], wall_time()).is_ok()
}

#[tokio::test]
async fn what_is_revoked_counts_while_another_file_is_bad() {
    let ours = Authority::new("ours");
    let (other_cert, other_key) = Authority::new("other").node(2060);
    let good = ours.node(2060);
    let files = Files::new(&ours, &good);
    let tls = files.open().await;
    let other = Authority::new("other").pem;
    let half = &good.0[..good.0.len() / 2];
    let bad: [(&str, &str, Option<&str>); 7] = [
        ("half a certificate", "node.crt", Some(half)),
        ("one of another authority", "node.crt", Some(&other_cert)),
        ("no certificate", "node.crt", None),
        ("another key", "node.key", Some(&other_key)),
        ("half an authority", "ca.crt", Some(&ours.pem[..ours.pem.len() / 2])),
        ("another authority", "ca.crt", Some(&other)),
        ("no authority", "ca.crt", None),
    ];
    let mut revoked = Vec::new();
    for (serial, (what, name, text)) in (2..).zip(bad) {
        let client = ours.client(serial);
        assert!(takes(&tls, &client), "{what}");
        match text {
            Some(text) => files.put(name, text),
            None => std::fs::remove_file(files.path(name)).unwrap(),
        }
        tls.reload().await;
        assert!(takes(&tls, &client) && tls.is_refused(), "{what}");
        revoked.push(serial);
        files.put("ca.crl", &ours.list(serial, &revoked));
        tls.reload().await;
        assert!(!takes(&tls, &client) && tls.is_refused(), "{what}: it is revoked");
        assert!(takes(&tls, &ours.client(100)), "{what}: others get in");
        let set = tls.loaded.load().set;
        tls.reload().await;
        assert_eq!(tls.loaded.load().set, set, "{what}: nothing has changed");
        assert!(tls.is_refused(), "{what}");

        files.put("node.crt", &good.0);
        files.put("node.key", &good.1);
        files.put("ca.crt", &ours.pem);
        tls.reload().await;
        assert!(!takes(&tls, &client) && !tls.is_refused(), "{what}: all is good again");
    }
}

/// An authority that was taken out, and one that was added, while the node's certificate is bad.
#[tokio::test]
async fn whom_to_trust_counts_while_a_certificate_is_bad() {
    let (ours, leaving, coming) =
        (Authority::new("ours"), Authority::new("leaving"), Authority::new("coming"));
    let files = Files::new(&ours, &ours.node(2060));
    files.put("ca.crt", &format!("{}{}", ours.pem, leaving.pem));
    let tls = files.open().await;
    assert!(takes(&tls, &leaving.client(2)) && !takes(&tls, &coming.client(2)));
    files.put("node.key", "no key");
    files.put("ca.crt", &format!("{}{}", ours.pem, coming.pem));
    tls.reload().await;
    assert!(!takes(&tls, &leaving.client(2)) && takes(&tls, &coming.client(2)));
    assert!(tls.is_refused());
}

/// The certificate that a node shows.
fn leaf(tls: &Tls) -> Vec<u8> {
    let shown = tls.loaded.load().identity.resolve(&[], &[SignatureScheme::ECDSA_NISTP256_SHA256]);
    shown.unwrap().cert[0].to_vec()
}

#[tokio::test]
async fn who_a_node_is_counts_while_authorities_and_lists_are_bad() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let files = Files::new(&ours, &ours.node(2060));
    let tls = files.open().await;
    for (what, name, text) in [
        ("half an authority", "ca.crt", &ours.pem[..ours.pem.len() / 2]),
        ("another authority", "ca.crt", &other.pem),
        ("half a list", "ca.crl", &ours.list(2, &[])[..100]),
        ("another's list", "ca.crl", &other.list(2, &[])),
    ] {
        let before = leaf(&tls);
        files.put(name, text);
        let (cert, key) = ours.node(2059);
        files.put("node.key", &key);
        tls.reload().await;
        assert!(leaf(&tls) == before && tls.is_refused(), "{what}: half a pair");
        files.put("node.crt", &cert);
        tls.reload().await;
        assert!(leaf(&tls) != before && tls.is_refused(), "{what}");
        files.put("ca.crt", &ours.pem);
        files.put("ca.crl", &ours.list(1, &[]));
        tls.reload().await;
        assert!(!tls.is_refused(), "{what}: all is good again");
    }
}

/// An authority that is taken out is trusted no more, whatever the file with lists says: its own
/// list, or nothing that can be read.
#[tokio::test]
async fn whom_to_trust_counts_while_the_lists_are_bad() {
    let (ours, leaving) = (Authority::new("ours"), Authority::new("leaving"));
    let both = format!("{}{}", ours.pem, leaving.pem);
    let lists = |number| format!("{}{}", ours.list(number, &[2]), leaving.list(number, &[]));
    let files = Files::new(&ours, &ours.node(2060));
    files.put("ca.crt", &both);
    files.put("ca.crl", &lists(1));
    let tls = files.open().await;
    for (what, bad) in [("as before", lists(1)), ("half", lists(2)[..100].to_owned())] {
        assert!(takes(&tls, &leaving.client(3)), "{what}");
        files.put("ca.crl", &bad);
        files.put("ca.crt", &ours.pem);
        tls.reload().await;
        assert!(!takes(&tls, &leaving.client(3)) && takes(&tls, &ours.client(3)), "{what}");
        assert!(!takes(&tls, &ours.client(2)), "{what}: what was revoked stays so");
        let set = tls.loaded.load().set;
        tls.reload().await;
        assert!(tls.loaded.load().set == set && tls.is_refused(), "{what}: that is told");
        files.put("ca.crl", &ours.list(3, &[2]));
        tls.reload().await;
        assert!(!tls.is_refused() && !takes(&tls, &ours.client(2)), "{what}: its own list alone");
        files.put("ca.crt", &both);
        files.put("ca.crl", &lists(3));
        tls.reload().await;
        assert!(!tls.is_refused(), "{what}: both again");
    }
}

static NOW: AtomicU64 = AtomicU64::new(IN_2026);

/// What the node shows to other nodes is theirs to refuse. Its clients are judged all the same.
#[test]
fn a_certificate_of_its_own_that_has_ended_keeps_no_revocation_away() {
    // The clock is of this thread, on which a simulation does everything.
    runtime::seed_this_thread(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    wall::set_wall_clock_of_this_thread(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
    runtime.block_on(async {
        let (ours, of_nodes) = (Authority::new("ours"), Authority::new("nodes"));
        let coming = Authority::new("coming");
        let mut files = Files::new(&ours, &ours.issue("spiffe://prod/host", 1, 2060));
        files.of_nodes(&of_nodes, &of_nodes.node(2027));
        let tls = files.open().await;
        let client = ours.client(2);
        assert!(takes(&tls, &client));

        NOW.store(IN_2028, Ordering::Relaxed);
        files.put("ca.crl", &ours.list(2, &[2]));
        tls.reload().await;
        assert!(!takes(&tls, &client), "it is revoked");
        files.put("ca.crt", &format!("{}{}", ours.pem, coming.pem));
        tls.reload().await;
        assert!(takes(&tls, &coming.client(2)), "its authority was added");
        assert!(tls.ends_in() < Some(0), "which is told");

        // So is another for clients, though that for nodes has ended.
        let (cert, key) = ours.issue("spiffe://prod/host", 3, 2059);
        files.put("node.crt", &cert);
        files.put("node.key", &key);
        tls.reload().await;
        assert!(!tls.is_refused(), "each certificate is judged by itself");

        // Another that has ended is not taken.
        let (cert, key) = of_nodes.node(2027);
        files.put("peer.crt", &cert);
        files.put("peer.key", &key);
        tls.reload().await;
        assert!(tls.is_refused());
        let (cert, key) = of_nodes.node(2060);
        files.put("peer.crt", &cert);
        files.put("peer.key", &key);
        tls.reload().await;
        assert!(!tls.is_refused() && tls.ends_in() > Some(0));
    });
}

/// Lists may be long, and sets many: the thread that answers clients does not wait for them.
#[tokio::test]
async fn files_are_judged_on_another_thread() {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours.node(2060));
    let tls = files.open().await;
    wall::set_wall_clock_of_this_thread(|| {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Duration::from_secs(IN_2026)
    });
    let (before, (cert, key)) = (leaf(&tls), ours.node(2059));
    files.put("node.crt", &cert);
    files.put("node.key", &key);
    tls.reload().await;
    assert!(leaf(&tls) != before, "it was judged");
    assert_eq!(ASKED.load(Ordering::Relaxed), 0, "by the time of this thread");
}

#[tokio::test]
async fn without_lists_no_set_is_tried_twice() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    for (has_lists, expected) in [(true, 8), (false, 4)] {
        let mut files = Files::new(&ours, &ours.node(2060));
        files.named.crl = files.named.crl.filter(|_| has_lists);
        let read = async || {
            let read = files::read(&files.named, &Reads::default(), None).await;
            read.unwrap().0
        };
        let used = read().await;
        let (cert, key) = other.node(2060);
        files.put("node.crt", &cert);
        files.put("node.key", &key);
        files.put("ca.crt", &other.pem);
        assert_eq!(read().await.newest(&used).len(), expected, "with lists: {has_lists}");
    }
}

/// The list that revokes a node's certificate, on that node.
#[tokio::test]
async fn a_node_that_is_revoked_takes_the_list() {
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours.node(2060));
    let tls = files.open().await;
    let client = ours.client(2);
    files.put("ca.crl", &ours.list(2, &[1, 2]));
    tls.reload().await;
    assert!(!takes(&tls, &client));
    let again = Tls::open(files.named.clone(), "prod", NodeId::new(1).unwrap()).await;
    assert!(again.is_err(), "it does not start again");
}

async fn refusal(files: &Files) -> String {
    let opened = Tls::open(files.named.clone(), "prod", NodeId::new(1).unwrap()).await;
    with_causes(&opened.map(drop).unwrap_err())
}

/// Of version 1, which has no extensions. Nobody looks at its signature.
fn of_version_1(certificate: &CertificateDer<'_>) -> String {
    let part = |tag: u8, content: &[u8]| {
        let [.., high, low] = content.len().to_be_bytes();
        let head = match content.len() {
            0..0x80 => vec![tag, low],
            0x80..0x100 => vec![tag, 0x81, low],
            _ => vec![tag, 0x82, high, low],
        };
        [head, content.to_vec()].concat()
    };
    let (_, whole) = Any::from_der(certificate).unwrap();
    let (behind, signed) = Any::from_der(whole.data).unwrap();
    let (mut kept, mut rest) = (Vec::new(), signed.data);
    while let Ok((left, field)) = Any::from_der(rest) {
        // The version, and the extensions.
        if field.class() != Class::ContextSpecific {
            kept.extend(&rest[..rest.len() - left.len()]);
        }
        rest = left;
    }
    let made = part(0x30, &[&part(0x30, &kept), behind].concat());
    pem("CERTIFICATE", &made)
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A certificate in the place of an authority's is believed whatever it issues.
#[tokio::test]
async fn what_is_no_authority_is_not_trusted_as_one() {
    let ours = Authority::new("ours");
    let files = Files::new(&ours, &ours.node(2060));
    let (leaf, _) = ours.issue("spiffe://prod/client/a", 2, 2060);
    for (what, second) in [("a client's", leaf), ("version 1", of_version_1(&ours.certificate()))] {
        files.put("ca.crt", &format!("{}{second}", ours.pem));
        let refused = refusal(&files).await;
        assert!(refused.contains("certificate 2 in it is no authority's"), "{what}: {refused}");
    }
}

/// The reader passes over what it does not know: a list of two would be a list of one.
#[tokio::test]
async fn a_part_with_a_damaged_frame_is_not_passed_over() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let files = Files::new(&ours, &ours.node(2060));
    let damaged = |text: &str| text.replacen("-----BEGIN", "----BEGIN", 1);
    files.put("ca.crt", &format!("{}{}", ours.pem, damaged(&other.pem)));
    let refused = refusal(&files).await;
    assert!(refused.contains("ca.crt: it has 4 lines"), "{refused}");
    files.put("ca.crt", &format!("{}{}", ours.pem, other.pem));
    files.put("ca.crl", &format!("{}{}", ours.list(1, &[]), damaged(&other.list(1, &[2]))));
    let refused = refusal(&files).await;
    assert!(refused.contains("ca.crl: it has 4 lines"), "{refused}");
    files.put("ca.crl", &format!("{}{}", ours.list(1, &[]), other.list(1, &[2])));
    let tls = files.open().await;
    assert!(!takes(&tls, &other.client(2)) && takes(&tls, &ours.client(2)));
}
