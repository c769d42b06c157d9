//! Nodes that speak TLS: which certificates get in, on both listeners, and what happens when the
//! files change while clients and nodes go on.

#[path = "tls_ends.rs"]
mod ends;
#[path = "tls_rotation.rs"]
mod rotation;
#[path = "tls_separate.rs"]
mod separate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_client::{
    Client, Consistency, InstanceBuilder, Registration, RegistrationState, Selection, Tls,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::{Cluster, Settings};
use crate::wait::eventually;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A new connection takes a handshake and a round trip.
const SOON: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3);
const HALF_OPEN: usize = 2_000;

/// An authority and what it has issued.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
struct Issued {
    cert: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { cert, key: key.serialize_pem() }
    }

    fn node(&self, id: u64) -> Issued {
        self.issue(&[&format!("spiffe://quorate/node/{id}")], |_| {})
    }

    fn client(&self) -> Issued {
        self.issue(&["spiffe://quorate/client/orders"], |_| {})
    }

    /// The client crate with a certificate of this authority.
    fn tls(&self) -> Tls {
        let Issued { cert, key } = self.client();
        Tls::new().ca_pem(self.pem.clone()).identity_pem(cert, key)
    }
}

/// The files of each node, in a directory of its own.
struct Files(PathBuf);

impl Files {
    fn of(dir: &Path, id: u64) -> Self {
        let dir = dir.join(format!("tls-{id}"));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// Replaces a file whole, as tools that hand certificates out should.
    fn put(&self, name: &str, text: &str) {
        let new = self.0.join(format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.0.join(name)).unwrap();
    }

    fn put_all(&self, issued: &Issued, ca: &str) {
        self.put("ca.crt", ca);
        self.put("node.key", &issued.key);
        self.put("node.crt", &issued.cert);
    }
}

/// Three nodes with certificates of an authority; none runs yet.
async fn prepare(authority: &Authority, age_ms: u64) -> (Cluster, Vec<Files>) {
    let kept = tempfile::Builder::new().prefix("quorate-tls-").tempdir().unwrap().keep();
    let files: Vec<Files> = (1..=3).map(|id| Files::of(&kept, id)).collect();
    let mut settings = Settings::default();
    for (id, files) in (1..).zip(&files) {
        files.put_all(&authority.node(id), &authority.pem);
        let path = |name: &str| files.0.join(name).display().to_string();
        let head = format!(
            "[tls]\ncert = \"{}\"\nkey = \"{}\"\nca = \"{}\"\nclients = \"required\"\n\
             connection_age_ms = {age_ms}\n",
            path("node.crt"),
            path("node.key"),
            path("ca.crt"),
        );
        settings.head.insert(id, head);
    }
    (Cluster::prepare(3, settings).await, files)
}

async fn start(authority: &Authority, age_ms: u64) -> (Cluster, Vec<Files>, Client) {
    let (mut cluster, files) = prepare(authority, age_ms).await;
    cluster.nodes.iter_mut().for_each(|node| node.start());
    let client = cluster.client().tls(authority.tls()).build().unwrap();
    eventually("the cluster answers", SOON, async || {
        client.list_services("", Consistency::Linearizable).await.map_err(|error| error.to_string())
    })
    .await;
    (cluster, files, client)
}

/// Whether a listener speaks HTTP/2 with a caller that trusts this authority and shows this.
async fn is_served(address: &str, ca: &str, shown: Option<&Issued>) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(Issued { cert, key }) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let answer = async {
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(PREFACE).await?;
        // With TLS 1.3 a refusal comes after the caller's handshake is done.
        stream.read_u8().await
    };
    let answer = tokio::time::timeout(SOON, answer).await.map_err(|_| "no answer".to_owned())?;
    answer.map(drop).map_err(|error| error.to_string())
}

/// GHSA-3wh4-j44w-pg92 (etcd) and its like are of one kind: one listener is stricter than the
/// other. Here both stand in one table.
#[tokio::test(flavor = "multi_thread")]
async fn each_listener_takes_whom_it_should() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("ours"));
    let (cluster, _files, client) = start(&authority, 3_600_000).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance)).await.unwrap();
    let watch = client.watch(Selection::service("web"));
    assert_eq!(watch.synced().await.unwrap().len(), 1, "a watch comes through, too");

    let client_of_ours = authority.client();
    let expired = authority.issue(&["spiffe://quorate/node/2"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let two = ["spiffe://quorate/node/2", "spiffe://quorate/node/3"];
    for (what, shown, to_clients, to_peers) in [
        ("no certificate", None, false, false),
        ("a client's", Some(client_of_ours), true, false),
        ("a node's", Some(authority.node(2)), true, true),
        ("a node's of another authority", Some(stranger.node(2)), false, false),
        ("one that has expired", Some(expired), false, false),
        ("two identities", Some(authority.issue(&two, |_| {})), false, false),
        (
            "a node of another cluster",
            Some(authority.issue(&["spiffe://other/node/2"], |_| {})),
            true,
            false,
        ),
        ("no node's id", Some(authority.issue(&["spiffe://quorate/node/02"], |_| {})), true, false),
        ("no identity", Some(authority.issue(&[], |_| {})), true, false),
    ] {
        let node = &cluster.nodes[0];
        for (listener, address, taken) in
            [("clients", node.clients.clone(), to_clients), ("peers", node.peers(), to_peers)]
        {
            let served = is_served(&address, &authority.pem, shown.as_ref()).await;
            assert_eq!(served.is_ok(), taken, "{what} at the listener for {listener}: {served:?}");
        }
    }
    // A node is the one that its certificate names, whatever it claims.
    let refused = claims_to_be(&cluster, &authority, 2, 3).await;
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("node 2"), "{refused:?}");
    assert_ne!(claims_to_be(&cluster, &authority, 2, 2).await.code(), tonic::Code::Unauthenticated);
    // Without TLS nothing is said at all.
    let mut plain = TcpStream::connect(&cluster.nodes[0].clients).await.unwrap();
    plain.write_all(PREFACE).await.unwrap();
    let mut answer = Vec::new();
    let _reset = plain.read_to_end(&mut answer).await;
    assert!(!answer.windows(9).any(|frame| frame == b"\0\0\0\x04\x01\0\0\0\0"), "{answer:?}");
    handle.deregister().await.unwrap();
}

/// What node 1 answers a holder of one node's certificate that says it is another node.
async fn claims_to_be(
    cluster: &Cluster,
    authority: &Authority,
    holds: u64,
    says: u64,
) -> tonic::Status {
    use quorate_proto::peer::v1::peer_client::PeerClient;
    let channel = channel(&cluster.nodes[0].peers(), authority, &authority.node(holds));
    let mut request = tonic::Request::new(quorate_proto::peer::v1::StatusRequest {});
    for (name, value) in [("quorate-node-id", says), ("quorate-target-id", 1)] {
        request.metadata_mut().insert(name, value.to_string().parse().unwrap());
    }
    match PeerClient::new(channel).status(request).await {
        Ok(_) => panic!("a stranger to the cluster's id is answered"),
        Err(status) => status,
    }
}

/// What a holder of a certificate calls a listener over.
fn channel(address: &str, authority: &Authority, shown: &Issued) -> tonic::transport::Channel {
    let Issued { cert, key } = shown;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, address) = (Arc::new(config), address.to_owned());
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (config, address) = (config.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    }))
}

/// CVE of etcd 3.5.33 (GHSA-6vch-q96h-7gc3): half-open handshakes keep no client out, and end.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_keep_nobody_out() {
    let authority = Authority::new("ours");
    let (mut cluster, _files, client) = start(&authority, 3_600_000).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance).ttl(TTL)).await.unwrap();
    let mut half_open = Vec::new();
    for at in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(&cluster.nodes[at % 3].clients).await.unwrap();
        // The head of a ClientHello, of which the rest never comes.
        stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
        half_open.push(stream);
    }
    let descriptors = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let pid = cluster.nodes[0].process().pid();
    let with_them = eventually("they are accepted", SOON, async || match descriptors(pid) {
        now if now >= HALF_OPEN / 3 => Ok(now),
        now => Err(format!("{now} descriptors")),
    })
    .await;
    let (begun, shown) = (Instant::now(), authority.client());
    is_served(&cluster.nodes[0].clients, &authority.pem, Some(&shown)).await.unwrap();
    eprintln!("measured: a handshake beside {HALF_OPEN} half-open ones took {:?}", begun.elapsed());
    eventually("half-open handshakes end", SOON, async || match descriptors(pid) {
        now if now < with_them - HALF_OPEN / 4 => Ok(()),
        now => Err(format!("{now} descriptors")),
    })
    .await;
    assert!(matches!(handle.state(), RegistrationState::Registered(_)), "{:?}", handle.state());
}

/// A set that cannot be used is refused as a whole, said so once, and what was there stays.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_change_nothing() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let (mut cluster, files, _client) = start(&authority, 3_600_000).await;
    let (good, node) = (authority.node(1), 0);
    let expired = authority.issue(&["spiffe://quorate/node/1"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let half = &good.cert[..good.cert.len() / 2];
    let bundle = format!(
        "{}-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n",
        authority.pem
    );
    for (what, name, text, words) in [
        ("half a certificate", "node.crt", half, "cannot be read"),
        ("another key", "node.key", authority.node(1).key.as_str(), "not the certificate's"),
        ("one that has expired", "node.crt", expired.cert.as_str(), "expired"),
        ("another node's", "node.crt", authority.node(2).cert.as_str(), "not the certificate's"),
        ("another authority's", "ca.crt", other.pem.as_str(), "UnknownIssuer"),
        ("a part that is none", "ca.crt", bundle.as_str(), "certificate 2 in it"),
    ] {
        if what == "one that has expired" {
            files[0].put("node.key", &expired.key);
        }
        files[0].put(name, text);
        let before = cluster.nodes[node].log_text().matches("cannot be used").count();
        cluster.nodes[node].process().signal(Signal::HUP);
        eventually(what, SOON, async || {
            let log = cluster.nodes[node].log_text();
            let said: Vec<&str> =
                log.lines().filter(|line| line.contains("cannot be used")).collect();
            match said.len() > before && said.last().is_some_and(|line| line.contains(words)) {
                true => Ok(()),
                false => Err(format!("{said:?}")),
            }
        })
        .await;
        let address = cluster.nodes[node].clients.clone();
        is_served(&address, &authority.pem, Some(&authority.client())).await.expect(what);
        files[0].put_all(&good, &authority.pem);
        cluster.nodes[node].process().signal(Signal::HUP);
        eventually("good files again", SOON, async || {
            let log = cluster.nodes[node].log_text();
            match log.lines().rfind(|line| line.contains("TLS:")) {
                Some(line) if line.contains("in use") => Ok(()),
                last => Err(format!("{last:?}")),
            }
        })
        .await;
    }
}

/// A node that others could reach without TLS says both ways out, and does not start.
#[tokio::test]
async fn a_node_without_tls_stays_on_loopback_unless_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    for (listener, setting) in
        [("--listen", "listen"), ("--peer-listen", "peer_listen"), ("--http-listen", "http_listen")]
    {
        let at = |flag: &str| if flag == listener { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let rest = ["--data-dir", &data, "--advertise", "h:1", "--peer-advertise", "h:2"];
        let listens = ["--listen", "--peer-listen", "--http-listen"].map(|flag| [flag, at(flag)]);
        let args = [&["serve", "--id", "1"][..], &rest, listens.as_flattened()].concat();
        let refused = crate::cli::quorate(&args).await.expect(2);
        refused.says(&[
            &format!("{setting} = 0.0.0.0:0"),
            "--tls-cert",
            "quorate certs",
            "--insecure",
        ]);
    }
}
