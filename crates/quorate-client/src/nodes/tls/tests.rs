//! What can be given, and what is refused with its reason.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, SerialNumber, date_time_ymd,
};

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
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year + 1, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
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
    // With its CA, a list goes, too.
    put("ca", &ours.pem);
    put("lists", &ours.list(257, 2050));
    tls.kept.reread().await;
    assert_eq!(tls.kept.changes(), changes + 1);
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
