//! Clients that are not ours, against a cluster with the certificates of `quorate certs`: openssl,
//! curl, and gRPC of Python and Node.js. The right ones get in, the wrong ones stay out.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::ca_name::ca_name;
use crate::cluster::{Cluster, Settings};
use crate::connections::{PREFACE, SETTINGS};
use crate::secured::Secured;
use crate::skipped::skipped;

const TTL: Duration = Duration::from_secs(600);
/// A tool ends by itself before, or has begun to speak.
const TOOL_WITHIN: Duration = Duration::from_secs(60);
/// What has to be fetched first.
const INSTALLED_WITHIN: Duration = Duration::from_secs(240);
/// An empty message of gRPC: not compressed, no bytes.
const EMPTY: [u8; 5] = [0; 5];
/// What tools say that waited in vain; the first of these is said for them.
const WAITED: [&str; 4] = [HANGS, "DEADLINE_EXCEEDED", "timed out", "Timeout"];
const HANGS: &str = "it hangs";
/// What an answer has in it.
const SERVICE: &str = "what-foreigners-find";
const PATH: &str = "/quorate.v1.Registry/ListServices";

/// What a client trusts and shows.
struct Shown {
    what: &'static str,
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
    /// What it takes the node to be called, where that is not its address.
    name: Option<&'static str>,
    is_taken: bool,
}

impl Shown {
    /// Without the key's file, "-" where there is nothing.
    fn words(&self) -> [String; 4] {
        let word =
            |path: Option<&PathBuf>| path.map_or("-".to_owned(), |p| p.display().to_string());
        let (cert, key) = self.identity.as_ref().map(|(cert, key)| (cert, key)).unzip();
        [word(Some(&self.ca)), word(cert), word(key), self.name.unwrap_or("-").to_owned()]
    }
}

/// A program that calls.
#[derive(Debug)]
enum Tool {
    Openssl(&'static [&'static str]),
    Curl,
    /// With where grpcio is.
    Python(String),
    /// With where grpc-js is.
    Node(String),
}

impl Tool {
    /// What it received, or why it did not.
    async fn call(&self, dir: &Path, address: &str, shown: &Shown) -> Result<Vec<u8>, String> {
        let script = |file: &str| {
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/process/foreign").join(file)
        };
        match self {
            Self::Openssl(more) => openssl(more, address, shown).await,
            Self::Curl => curl(dir, address, shown).await,
            Self::Python(home) => {
                let mut python = Command::new("python3");
                python.arg(script("call.py")).arg(address).args(shown.words());
                in_hexadecimal(ran(python.env("PYTHONPATH", home)).await?)
            }
            Self::Node(home) => {
                let mut node = Command::new("node");
                node.arg(script("call.js")).arg(address).args(shown.words());
                in_hexadecimal(ran(node.env("NODE_PATH", format!("{home}/node_modules"))).await?)
            }
        }
    }
}

pub(crate) async fn ran(command: &mut Command) -> Result<Output, String> {
    ran_within(TOOL_WITHIN, command).await
}

pub(crate) async fn ran_within(limit: Duration, command: &mut Command) -> Result<Output, String> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = tokio::time::timeout(limit, running).await.map_err(|_| HANGS)?;
    ended.map_err(|error| error.to_string())
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The answer that one of our scripts printed. Anything but an answer and a refusal by gRPC is a
/// fault of the script.
fn in_hexadecimal(output: Output) -> Result<Vec<u8>, String> {
    match output.status.code() {
        Some(0) => {
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
            Ok((0..text.len()).step_by(2).map(byte).collect())
        }
        Some(3) => Err(said(&output)),
        code => panic!("the script ended with {code:?}: {}", said(&output)),
    }
}

/// A TLS connection by hand that says the preface of HTTP/2 and waits for what the node says.
async fn openssl(more: &[&str], address: &str, shown: &Shown) -> Result<Vec<u8>, String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-alpn", "h2", "-verify_return_error"]).args(more);
    command.args(["-connect", address]).arg("-CAfile").arg(&shown.ca);
    match shown.name {
        Some(name) => command.args(["-verify_hostname", name]),
        None => command.args(["-verify_ip", "127.0.0.1"]),
    };
    if let Some((cert, key)) = &shown.identity {
        command.arg("-cert").arg(cert).arg("-key").arg(key);
    }
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = piped.kill_on_drop(true).spawn().map_err(|error| error.to_string())?;
    let speaking = async {
        let mut stdin = running.stdin.take().expect("it is piped");
        // It may have ended already.
        let _refused = stdin.write_all(&[PREFACE, SETTINGS].concat()).await;
        let _refused = stdin.flush().await;
        let mut head = [0; 9];
        let heard = running.stdout.as_mut().expect("it is piped").read_exact(&mut head).await;
        drop(stdin);
        heard.map(|_| head)
    };
    let heard = tokio::time::timeout(TOOL_WITHIN, speaking).await.map_err(|_| HANGS)?;
    match heard {
        // A SETTINGS frame.
        Ok([0, _, _, 4, _, 0, 0, 0, 0]) => Ok(SERVICE.into()),
        Ok(other) => Err(format!("no HTTP/2: {other:?}")),
        Err(error) => {
            let output = running.wait_with_output().await;
            Err(format!("{error}: {}", output.map(|it| said(&it)).unwrap_or_default()))
        }
    }
}

/// A call of gRPC without a library: HTTP/2, a body of five bytes, trailers.
async fn curl(dir: &Path, address: &str, shown: &Shown) -> Result<Vec<u8>, String> {
    let body = dir.join("empty-message");
    std::fs::write(&body, EMPTY).unwrap();
    let (_, port) = address.rsplit_once(':').expect("an address has a port");
    let host = shown.name.unwrap_or("127.0.0.1");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--http2", "--max-time", "20"]);
    command.args(["--header", "content-type: application/grpc", "--header", "te: trailers"]);
    command.arg("--data-binary").arg(format!("@{}", body.display()));
    command.arg("--connect-to").arg(format!("{host}:{port}:{address}"));
    command.arg("--cacert").arg(&shown.ca);
    if let Some((cert, key)) = &shown.identity {
        command.arg("--cert").arg(cert).arg("--key").arg(key);
    }
    let output = ran(command.arg(format!("https://{host}:{port}{PATH}"))).await?;
    let text = said(&output);
    match output.status.success() {
        true if text.contains("grpc-status: 0") => Ok(output.stdout),
        _ => Err(text),
    }
}

/// Where a client's library was installed; why it cannot be, otherwise.
pub(crate) async fn installed(language: &str) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/install-foreign");
    let mut command = Command::new(script);
    let running = command.arg(language).stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = tokio::time::timeout(INSTALLED_WITHIN, running).await;
    let output = ended.map_err(|_| "it takes too long")?.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(said(&output)),
    }
}

/// The tools of this machine; what is missing is said.
async fn tools() -> Vec<Tool> {
    let mut tools = Vec::new();
    let mut add = |name: &str, tool: Result<Tool, String>| match tool {
        Ok(tool) => tools.push(tool),
        Err(reason) => skipped(format!("{name} as a client"), reason),
    };
    let there = async |program: &str| ran(Command::new(program).arg("version")).await.map(drop);
    let openssl = there("openssl").await;
    add("openssl", openssl.clone().map(|()| Tool::Openssl(&["-tls1_3"])));
    add("openssl", openssl.map(|()| Tool::Openssl(&["-tls1_2"])));
    add("curl", there("curl").await.map(|()| Tool::Curl));
    add("grpcio", installed("python").await.map(Tool::Python));
    add("grpc-js", installed("node").await.map(Tool::Node));
    tools
}

/// A client's certificate of the CA in a directory that ran out long ago, which `quorate certs`
/// does not make.
fn expired(certs: &Secured) -> (PathBuf, PathBuf) {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::OrganizationName, "quorate");
    let name = ca_name(&std::fs::read_to_string(certs.path("ca.crt")).unwrap());
    ca.distinguished_name.push(DnType::CommonName, name);
    let ca_key = std::fs::read_to_string(certs.path("ca.key")).unwrap();
    let issuer = Issuer::new(ca, KeyPair::from_pem(&ca_key).unwrap());
    let mut params = CertificateParams::default();
    let uri = "spiffe://quorate/client/tests".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let key = KeyPair::generate().unwrap();
    let [cert_file, key_file] = ["expired.crt", "expired.key"].map(|name| certs.path(name));
    std::fs::write(&cert_file, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    (cert_file, key_file)
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_clients_get_in_with_what_is_right_and_with_nothing_else() {
    let tools = tools().await;
    let settings = Settings { secured: true, ..Settings::default() };
    let cluster = Cluster::start_with(3, settings).await;
    cluster.nodes[0].register(SERVICE, "a", TTL).await.unwrap();
    let ours = cluster.secured.clone().expect("it is secured");
    let other = Secured::make(cluster.dir().join("other"), 0).await;
    let client =
        |of: &Secured| Some(["crt", "key"].map(|end| of.path(&format!("client-tests.{end}"))));
    let client = |of| client(of).map(|[cert, key]| (cert, key));
    let shown = |what, trusts: &Secured, identity, name, is_taken| Shown {
        what,
        ca: trusts.path("ca.crt"),
        identity,
        name,
        is_taken,
    };
    let all = [
        shown("what is right", &ours, client(&ours), None, true),
        shown("the node by another name of its", &ours, client(&ours), Some("localhost"), true),
        shown("no certificate", &ours, None, None, false),
        shown("another CA's certificate", &ours, client(&other), None, false),
        shown("a certificate that has expired", &ours, Some(expired(&ours)), None, false),
        shown("another CA is trusted", &other, client(&ours), None, false),
        shown("the node by a wrong name", &ours, client(&ours), Some("other.example"), false),
    ];
    for tool in &tools {
        for shown in &all {
            // One node stands for all where nothing gets as far as the cluster.
            let nodes = if shown.is_taken { &cluster.nodes[..] } else { &cluster.nodes[..1] };
            for node in nodes {
                let answer = tool.call(cluster.dir(), &node.clients, shown).await;
                let has =
                    |bytes: &[u8]| bytes.windows(SERVICE.len()).any(|at| at == SERVICE.as_bytes());
                let what = format!("{tool:?} with {}, node {}", shown.what, node.id);
                match (&answer, shown.is_taken) {
                    (Ok(bytes), true) => assert!(has(bytes), "{what}: {bytes:?}"),
                    // Who is refused is told so, and not left to wait.
                    (Err(told), false) => {
                        let waited = WAITED.iter().find(|words| told.contains(**words));
                        assert_eq!(waited, None, "{what}: {told}");
                    }
                    _ => panic!("{what}: {answer:?}"),
                }
            }
        }
    }
    let old = Tool::Openssl(&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    if tools.iter().any(|tool| matches!(tool, Tool::Openssl(_))) {
        let refused = old.call(cluster.dir(), &cluster.nodes[0].clients, &all[0]).await;
        let refused = refused.expect_err("TLS 1.1 is too old");
        assert!(refused.contains("alert"), "{refused}");
    }
}
