//! Files that a node reads again, of TLS and of rights, in each way in which they cannot be used:
//! what it read before stays, and the log and the metrics say so. They change as Kubernetes changes
//! mounted ones, by a link.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::date_time_ymd;
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ends::configure;
use super::{Authority, Cluster, Files, Issued, SOON, config, eventually, is_served, prepare};
use crate::cluster::Node;

const ACCESS: &str = "access.toml";
const KEYS: &str = "jwks.json";
const ALL: [&str; 6] = ["node.crt", "node.key", "ca.crt", "ca.crl", ACCESS, KEYS];
/// What the mounted links lead over.
const DATA: &str = "..data";
const REVOKED: u64 = 100;

/// What stands where a file should be.
#[derive(Clone)]
enum Spoilt {
    Gone,
    Directory,
    Text(String),
}

/// What is done to which files, and words of what is said of it.
type Row = (Vec<(&'static str, Spoilt)>, &'static str);

/// Node 1 of three, which runs alone: its files are links over [`DATA`] to a set.
struct Mounted {
    cluster: Cluster,
    files: Vec<Files>,
    authority: Authority,
    /// The node's first certificate.
    good: Issued,
}

impl Mounted {
    async fn start() -> Self {
        let authority = Authority::new("ours");
        let (cluster, files) = prepare(&authority, 3_600_000).await;
        let dir = |id: u64| files[id as usize - 1].dir.clone();
        configure(&cluster, |id, text| {
            let path = |name: &str| dir(id).join(name).display().to_string();
            let text = text.replace("[tls]", &format!("[tls]\ncrl = '{}'", path("ca.crl")));
            format!("access = '{}'\n{text}", path(ACCESS))
        });
        let good = authority.node(1);
        let mut mounted = Self { cluster, files, authority, good };
        mounted.add("..1", &mounted.good.clone());
        mounted.lead_to("..1");
        for name in ALL {
            mounted.mend(name);
        }
        mounted.cluster.nodes[0].start();
        eventually("the node answers", SOON, async || mounted.refused(ALL[0]).await).await;
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files[0].dir.join(name)
    }

    fn access(&self) -> String {
        format!(
            "[[certificate]]\nspiffe = 'spiffe://quorate/client/orders'\nrole = 'admin'\n\
             [[jwt]]\nissuer = 'https://issuer.example'\njwks = '{}'\nclaims = {{ a = 'b' }}\n\
             role = 'read'\nnamespace = 'default'\n",
            self.path(KEYS).display()
        )
    }

    /// Another set of all files, with this certificate.
    fn add(&self, set: &str, issued: &Issued) {
        let set = self.path(set);
        fs::create_dir(&set).unwrap();
        let key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"; // RFC 8037, appendix A.2
        let keys = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{key}"}}]}}"#);
        for (name, text) in [
            ("node.crt", issued.cert.clone()),
            ("node.key", issued.key.clone()),
            ("ca.crt", self.authority.pem.clone()),
            ("ca.crl", self.authority.list(1, &[REVOKED])),
            (ACCESS, self.access()),
            (KEYS, keys),
        ] {
            fs::write(set.join(name), text).unwrap();
        }
    }

    /// As the kubelet does it.
    fn lead_to(&self, set: &str) {
        let new = self.path("..data_tmp");
        symlink(set, &new).unwrap();
        fs::rename(new, self.path(DATA)).unwrap();
    }

    fn clear(&self, name: &str) {
        let path = self.path(name);
        let _none_there = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }

    fn mend(&self, name: &str) {
        self.clear(name);
        symlink(format!("{DATA}/{name}"), self.path(name)).unwrap();
    }

    fn spoil(&self, name: &str, spoilt: &Spoilt) {
        self.clear(name);
        match spoilt {
            Spoilt::Gone => {}
            Spoilt::Directory => fs::create_dir(self.path(name)).unwrap(),
            Spoilt::Text(text) => fs::write(self.path(name), text).unwrap(),
        }
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    fn reload(&mut self) {
        self.cluster.nodes[0].process().signal(Signal::HUP);
    }

    /// What the metric for a file says.
    async fn refused(&self, name: &str) -> Result<String, String> {
        let metric = match name {
            ACCESS | KEYS => "quorate_access_file_refused",
            _ => "quorate_tls_files_refused",
        };
        self.files[0].metric(&self.authority, metric).await
    }

    async fn eventually_refuses(&mut self, what: &str, name: &str, is_refused: bool) {
        self.reload();
        let expected = if is_refused { "1" } else { "0" };
        eventually(what, SOON, async || match self.refused(name).await? {
            told if told == expected => Ok(()),
            told => Err(format!("the metric for {name} is {told}")),
        })
        .await;
    }

    /// The last that was said of files that cannot be used.
    fn told(&self) -> String {
        let log = self.node().log_text();
        let line = log.lines().rfind(|line| line.contains("cannot be used"));
        line.unwrap_or_default().to_owned()
    }

    /// The certificate that a caller sees.
    async fn shown(&self) -> std::io::Result<Vec<u8>> {
        let mut config = config(&self.authority.pem, Some(&self.authority.client()));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(&self.node().clients).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
    }

    /// Callers come in as before, with the rights of before, and see this certificate.
    async fn serves(&self, what: &str, shown: &Issued) {
        let seen = self.shown().await.expect(what);
        assert!(seen == pem(&shown.cert), "{what}: another certificate is shown");
        let revoked = Some(self.authority.client_with(REVOKED));
        let revoked = is_served(&self.node().clients, &self.authority.pem, revoked.as_ref()).await;
        assert!(revoked.is_err(), "{what}: who is revoked stays so");
    }
}

fn pem(text: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(text.as_bytes()).unwrap().to_vec()
}

/// Each file in each way, and what is wrong with more than one.
fn rows(mounted: &Mounted) -> Vec<Row> {
    let (ours, other) = (&mounted.authority, Authority::new("other"));
    let other_role = mounted.access().replace("admin", "king");
    let (no_certificate, half_read) = ("no certificate in it", "cannot be read");
    let (no_keys, half_json) = ("has no key with a kid", "EOF while parsing");
    let mut rows: Vec<Row> = Vec::new();
    for (name, empty, half, wrong, words) in [
        ("node.crt", no_certificate, half_read, ours.node(1).cert, "not the certificate's"),
        ("node.key", "no private key", "no private key", ours.node(1).key, "not the certificate's"),
        ("ca.crt", no_certificate, half_read, other.pem.clone(), "no authority of this node's"),
        ("ca.crl", "no revocation list", half_read, other.list(2, &[]), "no authority of this"),
        (ACCESS, "there is no entry in it", "line ", other_role, "line "),
        (KEYS, half_json, half_json, "{\"keys\":[]}".to_owned(), no_keys),
    ] {
        let whole = fs::read_to_string(mounted.path(name)).unwrap();
        let text = |text: &str| Spoilt::Text(text.to_owned());
        for (spoilt, words) in [
            (Spoilt::Gone, "No such file"),
            (Spoilt::Directory, "no regular file"),
            (text(""), empty),
            (text(&whole[..whole.len() / 2]), half),
            (text(&wrong), words),
        ] {
            rows.push((vec![(name, spoilt)], words));
        }
    }
    let text = |text: &str| Spoilt::Text(text.to_owned());
    let expired = ours.issue(&["spiffe://quorate/node/1"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let of_two = ours.node(2);
    let garbage = |of: &str| format!("-----BEGIN {of}-----\nbm90IG9uZQ==\n-----END {of}-----\n");
    let bundle = ours.pem.clone() + &garbage("CERTIFICATE");
    let leaf = ours.pem.clone() + &ours.client().cert;
    let frame = ours.pem.clone() + &other.pem.replacen("-----BEGIN", "----BEGIN", 1);
    let pair = |of: &Issued| vec![("node.crt", text(&of.cert)), ("node.key", text(&of.key))];
    let others = vec![("ca.crt", text(&other.pem)), ("ca.crl", text(&other.list(2, &[])))];
    rows.extend([
        (pair(&expired), "expired"),
        (pair(&of_two), "must name spiffe://quorate/node/1"),
        (others, "UnknownIssuer"),
        (vec![("ca.crt", text(&bundle))], "certificate 2 in it"),
        (vec![("ca.crt", text(&leaf))], "2 in it is no authority's"),
        (vec![("ca.crt", text(&frame))], "begin or end a certificate, and 1 whole"),
        (vec![("ca.crl", text(&garbage("X509 CRL")))], "list 1 in it"),
    ]);
    rows
}

/// RUSTSEC-2026-0104 (webpki) and what is of its kind: a list that makes no sense. And a
/// certificate and its key that are written one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_change_nothing() {
    let mut mounted = Mounted::start().await;
    for (spoilt, words) in rows(&mounted) {
        let names: Vec<&str> = spoilt.iter().map(|(name, _)| *name).collect();
        let what = format!("{names:?}: {words}");
        for (name, spoilt) in &spoilt {
            mounted.spoil(name, spoilt);
        }
        mounted.eventually_refuses(&what, names[0], true).await;
        let told = mounted.told();
        assert!(told.contains("WARN") && told.contains(words), "{what}: {told}");
        mounted.serves(&what, &mounted.good).await;
        names.iter().for_each(|name| mounted.mend(name));
        mounted.eventually_refuses(&what, names[0], false).await;
    }

    // Sets of mounted files are replaced at once.
    let second = mounted.authority.node(1);
    mounted.add("..2", &second);
    mounted.lead_to("..2");
    mounted.reload();
    let is_used = async || {
        let used = mounted.node().log_text().contains("new certificates are in use");
        if used { Ok(()) } else { Err("they are not in use") }
    };
    eventually("the second set", SOON, is_used).await;
    mounted.serves("the second set", &second).await;
    let mismatched = Issued { key: mounted.good.key.clone(), ..mounted.authority.node(1) };
    mounted.add("..3", &mismatched);
    for (set, words) in [("..3", "not the certificate's"), ("..4", "No such file")] {
        mounted.lead_to(set);
        mounted.eventually_refuses(set, ALL[0], true).await;
        assert!(mounted.told().contains(words), "{set}: {}", mounted.told());
        mounted.serves(set, &second).await;
    }
    mounted.lead_to("..2");
    mounted.eventually_refuses("the second set again", ALL[0], false).await;
    an_overdue_list_stays_in_use(&mut mounted, &second).await;
}

/// What it names stays revoked, all others come in, and the log says so.
async fn an_overdue_list_stays_in_use(mounted: &mut Mounted, shown: &Issued) {
    const MORE: u64 = 101;
    let overdue = mounted.authority.list_until(2021, 2, &[REVOKED, MORE]);
    mounted.spoil("ca.crl", &Spoilt::Text(overdue));
    mounted.reload();
    eventually("it is told", SOON, async || {
        let log = mounted.node().log_text();
        let line = log.lines().rfind(|line| line.contains("lists are overdue"));
        let told = line.is_some_and(|line| line.contains("WARN") && line.contains("ours"));
        if told { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await;
    mounted.serves("an overdue list", shown).await;
    let more = mounted.authority.client_with(MORE);
    let served = is_served(&mounted.node().clients, &mounted.authority.pem, Some(&more)).await;
    assert!(served.is_err(), "it is in use");
}

/// How long three sets of files take, one after the other, until each is in use.
async fn three_swaps(mounted: &mut Mounted, round: usize) -> Duration {
    let begun = Instant::now();
    for at in 1..=3 {
        let (set, issued) = (format!("..{round}-{at}"), mounted.authority.node(1));
        mounted.add(&set, &issued);
        mounted.lead_to(&set);
        mounted.reload();
        eventually(&set, SOON, async || match mounted.shown().await {
            Ok(seen) if seen == pem(&issued.cert) => Ok(()),
            other => Err(format!("another certificate is shown: {:?}", other.err())),
        })
        .await;
    }
    begun.elapsed()
}

/// By itself a node looks so seldom that it would see one of the three at most.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_at_once_on_a_signal() {
    const LOOKS_EVERY: Duration = Duration::from_secs(10);
    const ROUNDS: usize = 3;
    let mut mounted = Mounted::start().await;
    let mut took = Vec::new();
    // A machine that is busy with other tests may hold a round up.
    while took.len() < ROUNDS && took.last().is_none_or(|last| *last >= LOOKS_EVERY) {
        let round = took.len();
        took.push(three_swaps(&mut mounted, round).await);
    }
    assert!(took.last().is_some_and(|last| *last < LOOKS_EVERY), "{took:?}");
}

/// At the start there is nothing before it that could stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_start_with_a_list_that_makes_no_sense() {
    let authority = Authority::new("ours");
    let (mut cluster, files) = prepare(&authority, 3_600_000).await;
    files[0].put("ca.crl", "-----BEGIN X509 CRL-----\nbm90IG9uZQ==\n-----END X509 CRL-----\n");
    configure(&cluster, |_, text| {
        let list = files[0].dir.join("ca.crl");
        text.replace("[tls]", &format!("[tls]\ncrl = '{}'", list.display()))
    });
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].exit_code(SOON).await, 1);
    let log = cluster.nodes[0].log_text();
    assert!(log.contains("ca.crl") && log.contains("list 1 in it"), "{log}");
}
