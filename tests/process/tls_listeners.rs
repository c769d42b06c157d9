//! What gets in at each of a node's listeners: certificates, plain text, and handshakes that break
//! off or make no sense.

use std::sync::Arc;

use futures_util::StreamExt;
use quorate_client::{InstanceBuilder, Registration, Selection};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcgen::date_time_ymd;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ends::configure;
use super::{
    Authority, Cluster, Files, PREFACE, SOON, channel, config, eventually, is_answered, prepare,
    start_all,
};
use crate::cluster::Node;
use crate::floods::{frame, literal};

/// Of a client and of a node.
const REVOKED: [u64; 2] = [100, 101];
const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The first byte of a TLS record that says what is wrong.
const ALERT: u8 = 0x15;

/// A listener, its address, and what it speaks.
pub(super) struct Door {
    pub(super) of: &'static str,
    pub(super) address: String,
    pub(super) speaks: (&'static [u8], &'static [u8]),
}

pub(super) fn doors(node: &Node, files: &Files) -> [Door; 3] {
    let h2: (&[u8], &[u8]) = (b"h2", PREFACE);
    [
        Door { of: "clients", address: node.clients.clone(), speaks: h2 },
        Door { of: "nodes", address: node.peers(), speaks: h2 },
        Door { of: "tools", address: files.http.clone(), speaks: (b"http/1.1", GET) },
    ]
}

/// Three nodes that follow lists of what is revoked, and write audit logs.
async fn audited(authority: &Authority) -> (Cluster, Vec<Files>) {
    let (cluster, files) = prepare(authority, 3_600_000).await;
    files.iter().for_each(|files| files.put("ca.crl", &authority.list(1, &REVOKED)));
    configure(&cluster, |id, text| {
        let path = |name: &str| files[id as usize - 1].dir.join(name).display().to_string();
        let tables =
            format!("[audit]\nfile = '{}'\n[tls]\ncrl = '{}'", path("audit"), path("ca.crl"));
        text.replace("[tls]", &tables)
    });
    (cluster, files)
}

/// GHSA-3wh4-j44w-pg92 (etcd): revoked certificates were taken, once there was a second listener.
/// It is of one kind with all cases of a listener that is stricter than another: here all stand in
/// one table. CVE-2022-40716 (Consul, golang/vulndb#1029): two identities in one certificate.
#[tokio::test(flavor = "multi_thread")]
async fn each_listener_takes_whom_it_should() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("ours"));
    let (mut cluster, files) = audited(&authority).await;
    let client = start_all(&mut cluster, &authority).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance)).await.unwrap();
    let watch = client.watch(Selection::service("web"));
    assert_eq!(watch.synced().await.unwrap().len(), 1, "a watch comes through, too");
    // A node is the one that its certificate names, whatever it claims.
    let refused = claims_to_be(&cluster, &authority, 2, 3).await;
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("node 2"), "{refused:?}");
    assert_ne!(claims_to_be(&cluster, &authority, 2, 2).await.code(), tonic::Code::Unauthenticated);

    let expired = authority.issue(&["spiffe://quorate/node/2"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let one = |uri: &str| Some(authority.issue(&[uri], |_| {}));
    let two = ["spiffe://quorate/node/2", "spiffe://quorate/node/3"];
    let [of_client, of_node] = REVOKED;
    let revoked_node = authority
        .issue(&["spiffe://quorate/node/2"], |params| params.serial_number = Some(of_node.into()));
    for (what, shown, to_callers, to_nodes) in [
        ("no certificate", None, false, false),
        ("a client's", Some(authority.client()), true, false),
        ("a node's", Some(authority.node(2)), true, true),
        ("a node's of another authority", Some(stranger.node(2)), false, false),
        ("one that has expired", Some(expired), false, false),
        ("a client's that was revoked", Some(authority.client_with(of_client)), false, false),
        ("a node's that was revoked", Some(revoked_node), false, false),
        ("two identities", Some(authority.issue(&two, |_| {})), false, false),
        ("a node of another cluster", one("spiffe://other/node/2"), true, false),
        ("no node's id", one("spiffe://quorate/node/02"), true, false),
        ("no identity", Some(authority.issue(&[], |_| {})), true, false),
    ] {
        for Door { of, address, speaks } in doors(&cluster.nodes[0], &files[0]) {
            let taken = if of == "nodes" { to_nodes } else { to_callers };
            let answered = is_answered(&address, &authority.pem, shown.as_ref(), speaks).await;
            assert_eq!(answered.is_ok(), taken, "{what} at the listener for {of}: {answered:?}");
        }
    }
    let lines = nothing_is_read_in_the_clear(&cluster, &files[0]).await;
    for (method, principal, code, why) in [
        ("/Status", "node:2", "UNAUTHENTICATED", "is of node 2, not of node 3"),
        (" handshake", "certificate:spiffe://quorate/client/orders", "UNAUTHENTICATED", "no node"),
    ] {
        let is = |line: &&Value| {
            line["method"] == format!("quorate.peer.v1.Peer{method}")
                && line["principal"] == principal
                && line["code"] == code
                && line["from"] == "127.0.0.1"
                && line["reason"].as_str().is_some_and(|reason| reason.contains(why))
        };
        assert!(lines.iter().any(|line| is(&line)), "{principal}: {lines:#?}");
    }
    handle.deregister().await.unwrap();
}

/// seata#6139 and its like in Nacos: what arrived at the port for nodes was decoded, whoever sent
/// it. Returns the lines of the node's audit log, of which none is of what was sent so.
async fn nothing_is_read_in_the_clear(cluster: &Cluster, files: &Files) -> Vec<Value> {
    let mut call = [PREFACE, &[0, 0, 0, 4, 1, 0, 0, 0, 0]].concat();
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, value) in [
        (":path", "/quorate.peer.v1.Peer/Vote"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("quorate-node-id", "2"),
        ("quorate-target-id", "1"),
    ] {
        literal(&mut block, name, value);
    }
    frame(&mut call, 1, 4, 1, &block);
    frame(&mut call, 0, 1, 1, &[0; 5]);
    for Door { of, address, speaks } in doors(&cluster.nodes[0], files) {
        let words = if of == "nodes" { &call } else { speaks.1 };
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(words).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, plain.read_to_end(&mut answer)).await;
        let _reset = read.expect("the node closes it");
        assert!(answer.first().is_none_or(|first| *first == ALERT), "{of}: {answer:?}");
    }
    let audit = || {
        let text = std::fs::read_to_string(files.dir.join("audit")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>()
    };
    let is_of_plain = |line: &Value| {
        line["reason"].as_str().is_some_and(|reason| reason.contains("does not speak TLS"))
    };
    let lines = eventually("the audit log has it", SOON, async || {
        let lines = audit();
        if lines.iter().any(is_of_plain) { Ok(lines) } else { Err(format!("{lines:#?}")) }
    })
    .await;
    assert!(lines.iter().all(|line| line["method"] != "quorate.peer.v1.Peer/Vote"), "{lines:#?}");
    lines
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

/// What a true client begins with.
fn hello(authority: &Authority, (protocol, _): (&[u8], &[u8])) -> Vec<u8> {
    let mut config = config(&authority.pem, Some(&authority.client()));
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same with some mistakes.
fn spoiled(rng: &mut StdRng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..rng.random_range(1..=6) {
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(1..=64)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            2 => bytes.truncate(at.max(1)),
            3 if end - at < bytes.len() => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => drop(bytes.splice(at..at, (0..8).map(|_| rng.random()).collect::<Vec<u8>>())),
        }
    }
    bytes
}

/// Sends these bytes and no more, and waits for the end of the connection.
async fn say(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The node may have had enough before it has all.
    let _closed = stream.write_all(bytes).await;
    let _closed = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
    let _reset = read.expect("the node closes it");
}

/// Breaks a connection off, with a reset, after these bytes.
async fn break_off(address: &str, bytes: &[u8], reads: bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_zero_linger().unwrap();
    stream.write_all(bytes).await.unwrap();
    if reads {
        let first = tokio::time::timeout(SOON, stream.read_u8()).await;
        first.expect("the node answers").expect("its half of the handshake");
    }
}

/// RUSTSEC-2024-0376 (tonic): an error of one connection ended the server. RUSTSEC-2024-0336,
/// RUSTSEC-2024-0399 (rustls): so did what came at a bad moment, or a bad ClientHello.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_break_off_or_make_no_sense_end_alone() {
    const SEED: u64 = 0x7175_6f72;
    const SPOILED: usize = 200;
    const BROKEN_OFF: usize = 10;
    const AT_ONCE: usize = 16;
    let authority = Authority::new("ours");
    let (mut cluster, files) = audited(&authority).await;
    // Alone it has no leader, and takes connections nevertheless.
    cluster.nodes[0].start();
    let doors = doors(&cluster.nodes[0], &files[0]);
    let shown = authority.client();
    let shown = |door: &Door| if door.of == "nodes" { authority.node(2) } else { shown.clone() };
    let all_answer = async |what: &str| {
        for door in &doors {
            eventually(what, SOON, async || {
                is_answered(&door.address, &authority.pem, Some(&shown(door)), door.speaks).await
            })
            .await;
        }
    };
    all_answer("the node listens").await;
    let mut rng = StdRng::seed_from_u64(SEED);
    for Door { address, speaks, .. } in &doors {
        let whole = hello(&authority, *speaks);
        for cut in [0, 1, 5, whole.len() / 2, whole.len()] {
            for _ in 0..BROKEN_OFF {
                break_off(address, &whole[..cut], cut == whole.len()).await;
            }
        }
        let spoiled: Vec<_> = (0..SPOILED).map(|_| spoiled(&mut rng, whole.clone())).collect();
        let said = spoiled.iter().map(|bytes| say(address, bytes));
        futures_util::stream::iter(said).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
    all_answer("it goes on").await;
    assert!(cluster.nodes[0].process().ended().is_none(), "seed {SEED}: it runs");
    let log = cluster.nodes[0].log_text();
    assert!(!log.contains("panicked"), "seed {SEED}: {log}");
    assert!(log.contains("a TLS handshake was refused"), "{log}");
}
