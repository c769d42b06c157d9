//! What can be given, and what is refused with its reason.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, DnType, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair,
    NameConstraints, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::{CertificateError, SignatureScheme};

use super::*;

fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A CA's certificate, and its key.
fn authority() -> (String, String) {
    let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn what_cannot_be_used_is_refused_and_named() {
    let (certificate, key) = pair();
    let (other, other_key) = authority();
    let ca = || Tls::new().ca_pem(other.as_str());
    let broken = certificate.replacen("-----BEGIN", "----BEGIN", 1);
    let half = &certificate[..certificate.len() / 2];
    // The frame is whole, and what is in it is not a certificate.
    let (begin, end) = certificate.split_at(certificate.len() / 2);
    let wrong = format!("{begin}{}", end.replacen(['A', 'B', 'C', 'D'], "", 4));
    for (tls, words) in [
        (Tls::new(), "no CA was given"),
        (Tls::new().ca_pem(""), "no certificate in it"),
        (Tls::new().ca_pem(half), "no whole PEM file"),
        (ca().ca_pem(format!("{certificate}{half}")), "no whole PEM file"),
        (
            ca().ca_pem(format!("{broken}{certificate}")),
            "4 lines that begin or end a certificate, and 1 whole",
        ),
        (ca().ca_pem(format!("{certificate}{wrong}")), "certificate"),
        (
            ca().ca_pem(format!("{other}{certificate}")),
            "certificate 2 is no authority's: it does not say CA:TRUE",
        ),
        (ca().ca_file("/no/such/ca"), "/no/such/ca: "),
        (ca().identity_pem(certificate.as_str(), other_key.as_str()), "it is not the key of"),
        (ca().identity_pem(certificate.as_str(), ""), "no private key in it"),
        (ca().identity_pem("", key.as_str()), "no certificate in it"),
        (ca().server_name("a b"), "\"a b\" is no DNS name"),
    ] {
        let fault = tls.load().map(drop).unwrap_err();
        assert!(fault.contains(words), "not \"{words}\": {fault}");
    }
    let both = format!("# ours\n{}\n# theirs\n{other}\n", authority().0);
    let all = Tls::new().ca_pem(both).identity_pem(certificate, key).server_name("10.0.0.1");
    assert!(all.load().is_ok());
}

/// A CA that makes revocation lists.
struct Revoking {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Revoking {
    fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn list(&self, number: u64, year: i32) -> String {
        self.list_with(number, year, &[])
    }

    fn list_with(&self, number: u64, year: i32, revoked: &[u64]) -> String {
        self.made(number, year, revoked, None)
    }

    /// `place`: of which certificates it is, by where they say that their list is.
    fn made(
        &self,
        number: u64,
        year: i32,
        revoked: &[u64],
        place: Option<CrlDistributionPoint>,
    ) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year + 1, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: place.map(|distribution_point| {
                CrlIssuingDistributionPoint { distribution_point, scope: None }
            }),
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// The certificate of a node "a".
    fn node(&self, serial: u64) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

#[test]
fn a_list_that_cannot_be_used_is_refused_and_named() {
    let (ours, namesake, other) =
        (Revoking::new("ours"), Revoking::new("ours"), Revoking::new("other"));
    let list = ours.list(1, 2020);
    let garbage = "-----BEGIN X509 CRL-----\nbm90IG9uZQ==\n-----END X509 CRL-----\n";
    let broken = format!("{list}{}", other.list(1, 2020).replacen("-----BEGIN", "----BEGIN", 1));
    let both = || Tls::new().ca_pem(ours.pem.as_str()).ca_pem(other.pem.as_str());
    for (lists, words) in [
        (String::new(), "no revocation list in it"),
        (list[..list.len() / 2].to_owned(), "no whole PEM file"),
        (broken, "4 lines that begin or end a revocation list, and 1 whole"),
        (format!("{list}{garbage}"), "list 2 in it cannot be read"),
        (
            Revoking::new("stranger").list(1, 2020),
            "no list in it is of a CA that this client trusts",
        ),
        (namesake.list(1, 2020), "list 1 in it is not signed by the CA"),
        (format!("{list}{}", ours.list(2, 2020)), "list 2 in it is of the same CA"),
    ] {
        let fault = both().crl_pem(lists).load().map(drop).unwrap_err();
        assert!(fault.contains(words), "not \"{words}\": {fault}");
    }
    let fault = both().crl_file("/no/such/list").load().map(drop).unwrap_err();
    assert!(fault.contains("/no/such/list: "), "{fault}");
    // Long overdue, and all there is.
    let lists = format!("# ours\n{list}\n# theirs\n{}", other.list(1, 2020));
    both().crl_pem(lists).load().map(drop).unwrap();
    both().crl_pem(list).crl_pem(other.list(1, 2020)).load().map(drop).unwrap();
}

#[tokio::test]
async fn a_list_goes_forward_only() {
    let (ours, other) = (Revoking::new("ours"), Revoking::new("other"));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let put = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    put("ca", &format!("{}{}", ours.pem, other.pem));
    put("lists", &ours.list(255, 2040));
    let tls = Tls::new().ca_file(file("ca")).crl_file(file("lists")).load().unwrap();
    let mut changes = 0;
    for (what, list, is_taken) in [
        ("a lower number", ours.list(254, 2041), false),
        // The last year that two digits are for, and one after it.
        ("an earlier time", ours.list(256, 2039), false),
        ("a higher number, of more bytes", ours.list(256, 2040), true),
        ("a later time", ours.list(256, 2050), true),
        ("an earlier time, written in another way", ours.list(257, 2049), false),
        ("none", other.list(1, 2050), false),
        ("both", format!("{}{}", other.list(1, 2050), ours.list(257, 2050)), true),
    ] {
        put("lists", &list);
        tls.kept.reread().await;
        changes += u64::from(is_taken);
        assert_eq!(tls.kept.changes(), changes, "{what}");
    }
    // With its CA, a list may go, too.
    put("ca", &ours.pem);
    put("lists", &ours.list(257, 2050));
    tls.kept.reread().await;
    assert_eq!(tls.kept.changes(), changes + 1);
}

/// Files of a client that change, and what is made of them.
struct Changing {
    dir: tempfile::TempDir,
    tls: Encryption,
}

impl Changing {
    fn begin(texts: [(&str, &str); 4]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        texts.into_iter().for_each(|(name, text)| std::fs::write(file(name), text).unwrap());
        let tls = Tls::new().ca_file(file("ca")).crl_file(file("lists"));
        let tls = tls.identity_files(file("certificate"), file("key")).load().unwrap();
        Self { dir, tls }
    }

    async fn put<const N: usize>(&self, texts: [(&str, &str); N]) {
        for (name, text) in texts {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }
        self.tls.kept.reread().await;
    }

    fn trusts(&self, node: &CertificateDer<'_>) -> bool {
        let (loaded, name) = (self.tls.kept.now(), ServerName::try_from("a").unwrap());
        let now = loaded.config.time_provider.current_time().unwrap();
        loaded.verifier.verify_server_cert(node, &[], &name, &[], now).is_ok()
    }

    /// Whether the client shows this certificate.
    fn shows(&self, pem: &str) -> bool {
        let loaded = self.tls.kept.now();
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let shown = loaded.config.client_auth_cert_resolver.resolve(&[], &schemes).unwrap();
        shown.cert[0] == CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }
}

#[tokio::test]
async fn a_bad_file_holds_back_no_other() {
    let (ours, leaving, coming) =
        (Revoking::new("ours"), Revoking::new("leaving"), Revoking::new("coming"));
    let ((first, first_key), (second, second_key), (third, third_key)) = (pair(), pair(), pair());
    let both = format!("{}{}", ours.pem, leaving.pem);
    let lists = |of_ours: &str| format!("{of_ours}{}", leaving.list(1, 2020));
    let files = Changing::begin([
        ("ca", &both),
        ("lists", &lists(&ours.list(1, 2020))),
        ("certificate", &first),
        ("key", &first_key),
    ]);
    let [stolen, other, good] = [7, 8, 9].map(|serial| ours.node(serial));
    let (of_leaving, of_coming) = (leaving.node(7), coming.node(7));
    assert!(files.trusts(&stolen) && files.trusts(&of_leaving) && files.shows(&first));

    let revoked = lists(&ours.list_with(2, 2020, &[7]));
    files.put([("ca", &both[..100]), ("lists", &revoked)]).await;
    assert!(!files.trusts(&stolen), "half a CA: what is revoked counts");
    assert!(files.trusts(&other) && files.trusts(&of_leaving), "half a CA: those before stay");
    files.put([("certificate", &second), ("key", &second_key)]).await;
    assert!(files.shows(&second), "half a CA: who the client is counts");

    let new = format!("{}{}", ours.pem, coming.pem);
    files.put([("ca", &new)]).await;
    assert!(!files.trusts(&of_leaving), "a list whose CA goes keeps the CA for nobody");
    assert!(files.trusts(&of_coming) && !files.trusts(&stolen));
    files.put([("ca", &both)]).await;
    assert!(files.trusts(&of_leaving) && !files.trusts(&of_coming));
    files.put([("lists", &revoked[..100]), ("ca", &ours.pem)]).await;
    assert!(!files.trusts(&of_leaving) && files.trusts(&other), "half a list: a CA that goes");
    assert!(!files.trusts(&stolen), "half a list: what was revoked stays so");
    files.put([("ca", &new)]).await;
    assert!(!files.trusts(&of_coming), "half a list: whom a new CA has revoked is not known");
    std::fs::remove_file(files.dir.path().join("lists")).unwrap();
    files.put([]).await;
    assert!(!files.trusts(&of_coming), "no list: nor here");
    files.put([("lists", &revoked)]).await;
    assert!(files.trusts(&of_coming) && !files.trusts(&stolen), "a new CA does not wait for ever");

    // Lists that are new and fit those before count at once, and so does the CA that goes.
    files.put([("ca", &both), ("lists", &lists(&ours.list_with(2, 2020, &[7])))]).await;
    assert!(files.trusts(&of_leaving) && !files.trusts(&stolen));
    files.put([("ca", &new), ("lists", &lists(&ours.list_with(3, 2020, &[7])))]).await;
    assert!(!files.trusts(&of_leaving) && files.trusts(&of_coming) && !files.trusts(&stolen));

    let more = ours.list_with(4, 2020, &[7, 8]);
    files.put([("key", &third_key), ("lists", &more)]).await;
    assert!(!files.trusts(&other) && files.trusts(&good), "another key: what is revoked counts");
    assert!(files.shows(&second), "a certificate waits for its key");
    files.put([("ca", &ours.pem)]).await;
    assert!(!files.trusts(&of_coming), "another key: whom to trust counts");
    files.put([("certificate", &third)]).await;
    assert!(files.shows(&third));

    // A CA comes, and the list goes that it has had here: what is revoked goes before whom to
    // trust, which waits for that list.
    let of_both = |ours: &str| format!("{ours}{}", coming.list(1, 2020));
    files.put([("lists", &of_both(&ours.list_with(5, 2020, &[7, 8])))]).await;
    let last = ours.list_with(6, 2020, &[7, 8, 9]);
    files.put([("ca", &new), ("lists", &last)]).await;
    assert!(!files.trusts(&good), "what is revoked counts");
    assert!(!files.trusts(&of_coming), "a CA waits for its list");
    files.put([("lists", &of_both(&last))]).await;
    assert!(files.trusts(&of_coming) && !files.trusts(&good));
}

/// One CA goes and another comes in one edit, while lists are bad: the first waits for nothing.
#[tokio::test]
async fn a_ca_that_is_replaced_goes_at_once() {
    let [ours, leaving, coming] = ["ours", "leaving", "coming"].map(Revoking::new);
    let of = |cas: &[&Revoking]| cas.iter().map(|ca| ca.pem.as_str()).collect::<String>();
    let (before, after) = (of(&[&ours, &leaving]), of(&[&ours, &coming]));
    let (certificate, key) = pair();
    let (first, next) = (ours.list(1, 2020), ours.list(2, 2020) + &coming.list_with(1, 2020, &[8]));
    let files = Changing::begin([
        ("ca", &before),
        ("lists", &first),
        ("certificate", &certificate),
        ("key", &key),
    ]);
    let trusted = || [&ours, &leaving, &coming].map(|ca| files.trusts(&ca.node(7)));
    for (what, lists) in [("the lists of before", &first), ("good ones", &next)] {
        files.put([("ca", &before), ("lists", &first)]).await;
        assert_eq!(trusted(), [true, true, false], "{what}");
        files.put([("lists", &next[..100])]).await;
        files.put([("ca", &after)]).await;
        assert_eq!(trusted(), [true, false, false], "{what}, to come: half a list");
        files.put([("ca", &before)]).await;
        assert_eq!(trusted(), [true, false, false], "{what}, to come: it does not come again");
        files.put([("ca", &coming.pem)]).await;
        assert_eq!(trusted(), [true, false, false], "{what}, to come: nobody would be left");
        files.put([("ca", &after)]).await;
        files.put([("lists", lists)]).await;
        assert_eq!(trusted(), [true, false, true], "{what}");
    }
    assert!(!files.trusts(&coming.node(8)), "with its list");
}

/// RUSTSEC-2026-0049 (webpki): of the places where a certificate says that its list is, only the
/// first was looked at. With a list of another of them, what was revoked was trusted.
#[test]
fn a_list_counts_whichever_place_of_it_the_certificate_names() {
    let place = |name: &str| CrlDistributionPoint { uris: vec![format!("http://ca.test/{name}")] };
    let ours = Revoking::new("ours");
    let node = |places: &[&str]| {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(7_u64));
        params.crl_distribution_points = places.iter().map(|name| place(name)).collect();
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &ours.issuer).unwrap().der().clone()
    };
    let list = ours.made(1, 2020, &[7], Some(place("b")));
    let (ca, name) = (Tls::new().ca_pem(ours.pem.as_str()), ServerName::try_from("a").unwrap());
    let loaded = ca.crl_pem(list).load().unwrap().kept.now();
    let now = loaded.config.time_provider.current_time().unwrap();
    for (places, is_revoked) in
        [(&["b"][..], true), (&["a", "b"], true), (&["b", "a"], true), (&["a"], false)]
    {
        let verified = loaded.verifier.verify_server_cert(&node(places), &[], &name, &[], now);
        let revoked = Err(rustls::Error::InvalidCertificate(CertificateError::Revoked));
        assert_eq!(verified.map(drop) == revoked, is_revoked, "{places:?}");
    }
}

/// RUSTSEC-2026-0099 (webpki): a CA that may issue for one host alone could issue for all beside
/// it, by a name with a `*`.
#[test]
fn a_limited_ca_issues_for_no_more_by_a_wildcard() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let permitted_subtrees = vec![GeneralSubtree::DnsName("a.b.test".to_owned())];
    params.name_constraints =
        Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let loaded = Tls::new().ca_pem(pem).load().unwrap().kept.now();
    let now = loaded.config.time_provider.current_time().unwrap();
    for (of, host, is_trusted) in [
        ("a.b.test", "a.b.test", true),
        ("*.a.b.test", "n.a.b.test", true),
        // One with a `*` for a name of one part is taken from no CA.
        ("*.b.test", "a.b.test", false),
        ("*.b.test", "c.b.test", false),
    ] {
        let params = CertificateParams::new(vec![of.to_owned()]).unwrap();
        let node = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let name = ServerName::try_from(host).unwrap();
        let verified = loaded.verifier.verify_server_cert(node.der(), &[], &name, &[], now);
        assert_eq!(verified.is_ok(), is_trusted, "{of} for {host}: {verified:?}");
    }
}

#[test]
fn no_key_is_shown() {
    let (certificate, key) = authority();
    let tls = Tls::new().ca_pem(certificate.as_str()).identity_pem(certificate, key.as_str());
    let shown = format!("{tls:?}");
    let inside = key.lines().nth(1).unwrap();
    assert!(!shown.contains("PRIVATE") && !shown.contains(inside), "{shown}");
    let loaded = format!("{:?}", tls.load().unwrap());
    assert!(!loaded.contains("PRIVATE") && !loaded.contains(inside), "{loaded}");
    let files = Tls::new().ca_file(Path::new("ca.crt")).identity_files("a.crt", "a.key");
    assert!(format!("{files:?}").contains("a.key"));
}

/// A listener that is full answers nobody, as an address behind a firewall.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_address_that_hangs_leaves_time_for_the_next() {
    use std::net::SocketAddr;

    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::timeout;

    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let hung = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    let short = Duration::from_secs(1);
    while let Ok(connected) = timeout(short, TcpStream::connect(hung)).await {
        waiting.push(connected.unwrap());
    }
    let good = SocketAddr::new("127.0.0.2".parse().unwrap(), hung.port());
    let _listener = TcpListener::bind(good).await.unwrap();
    let resolver =
        tower::service_fn(move |_name| async move { Ok::<_, io::Error>([hung, good].into_iter()) });
    let uri = Uri::try_from(format!("http://node.test:{}", good.port())).unwrap();
    let connecting = tcp(resolver, 4 * short).oneshot(uri);
    let connected = timeout(Duration::from_secs(10), connecting).await.unwrap().unwrap();
    assert_eq!(connected.inner().peer_addr().unwrap(), good);
}
