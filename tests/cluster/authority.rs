//! What calls say of where they go, byte by byte. A client with several addresses
//! (`ipv4:a:1,b:2` in Python) sends all of them as the authority of its calls; and a path that is
//! not exactly a method's is no method.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::guarded::{Guarded, ROOT};
use super::harness::{Cluster, SOON};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, stream];
    frame.extend(payload);
    frame
}

/// A header as gRPC's own library writes one: name and value as they are, to be remembered.
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0x40, name.len() as u8];
    bytes.extend(name.as_bytes());
    bytes.push(value.len() as u8);
    bytes.extend(value.as_bytes());
    bytes
}

const LIST_MEMBERS: &str = "/quorate.v1.Registry/ListMembers";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes of a whole call without a message on this stream of a new connection.
fn call(path: &str, authority: &str, token: Option<&str>, stream: u8) -> Vec<u8> {
    // ":method: POST" and ":scheme: http", from the static table.
    let mut block = vec![0x83, 0x86];
    block.extend(header(":path", path));
    block.extend(header(":authority", authority));
    if let Some(token) = token {
        block.extend(header("authorization", &format!("Bearer {token}")));
    }
    block.extend(header("content-type", "application/grpc"));
    block.extend(header("te", "trailers"));
    let mut bytes = frame(HEADERS, END_HEADERS, stream, &block);
    bytes.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_whatever_authority_they_name() {
    let cluster = Cluster::start(1).await;
    let mut connection = TcpStream::connect(cluster.client_address(1)).await.unwrap();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let authorities = ["127.0.0.1:7001,127.0.0.1:7002", "127.0.0.1:1%2C127.0.0.1:2", "one.example"];
    for (at, authority) in (0..).zip(authorities) {
        bytes.extend(call(LIST_MEMBERS, authority, None, 2 * at + 1));
    }
    connection.write_all(&bytes).await.unwrap();
    let mut answered = Vec::new();
    while answered.len() < authorities.len() {
        let mut head = [0; 9];
        timeout(SOON, connection.read_exact(&mut head)).await.expect("a frame").unwrap();
        let [high, middle, low, kind, _, _, _, _, stream] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        timeout(SOON, connection.read_exact(&mut payload)).await.expect("its payload").unwrap();
        assert_ne!(kind, RST_STREAM, "stream {stream} is reset");
        if kind == DATA {
            // The message: a length, and the members.
            assert!(payload.len() > 5, "stream {stream}: {payload:?}");
            answered.push(stream);
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3, 5]);
}

/// Whether a call on a connection of its own is answered with a message.
async fn is_answered(cluster: &Cluster, path: &str, token: Option<&str>) -> bool {
    let mut connection = TcpStream::connect(cluster.client_address(1)).await.unwrap();
    let settings = frame(SETTINGS, 0, 0, &[]);
    let bytes = [PREFACE.to_vec(), settings, call(path, "one.example", token, 1)].concat();
    connection.write_all(&bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        // The node may end a connection on which something is sent that cannot be.
        if timeout(SOON, connection.read_exact(&mut head)).await.expect("an answer").is_err() {
            return false;
        }
        let [high, middle, low, kind, flags, _, _, _, stream] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        timeout(SOON, connection.read_exact(&mut payload)).await.expect("its payload").unwrap();
        match kind {
            DATA if payload.len() > 5 => return true,
            RST_STREAM | GOAWAY => return false,
            HEADERS if flags & END_STREAM != 0 && stream == 1 => return false,
            _ => {}
        }
    }
}

/// CVE-2026-33186 (grpc-go): a path without its slash went past the filter to the handler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_but_the_methods_own_reaches_its_handler() {
    let guarded = Guarded::start(1, "").await;
    assert!(is_answered(&guarded.cluster, LIST_MEMBERS, Some(ROOT)).await, "it is looked for");
    for path in [
        LIST_MEMBERS,
        "quorate.v1.Registry/ListMembers",
        "//quorate.v1.Registry/ListMembers",
        "/quorate.v1.Registry//ListMembers",
        "/quorate.v1.Registry/ListMembers/",
        "/quorate.v1.Registry%2FListMembers",
        "/quorate.v1.Registry/List%4Dembers",
        "/Quorate.V1.Registry/ListMembers",
        "/quorate.v1.registry/listmembers",
        "/x/../quorate.v1.Registry/ListMembers",
        "/x;/../quorate.v1.Registry/ListMembers",
        "/quorate.v1.Registry/ListMembers?a=b",
        "http://one.example/quorate.v1.Registry/ListMembers",
        "*",
    ] {
        assert!(!is_answered(&guarded.cluster, path, None).await, "{path}");
    }
}
