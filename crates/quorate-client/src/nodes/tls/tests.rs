//! What can be given, and what is refused with its reason.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

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
