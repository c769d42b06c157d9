//! A client with several addresses (`ipv4:a:1,b:2` in Python) sends all of them as the authority of
//! its calls.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::harness::{Cluster, SOON};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
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

/// The bytes of a whole call of ListMembers on this stream of a new connection.
fn call(authority: &str, stream: u8) -> Vec<u8> {
    // ":method: POST" and ":scheme: http", from the static table.
    let mut block = vec![0x83, 0x86];
    block.extend(header(":path", "/quorate.v1.Registry/ListMembers"));
    block.extend(header(":authority", authority));
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
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let authorities = ["127.0.0.1:7001,127.0.0.1:7002", "127.0.0.1:1%2C127.0.0.1:2", "one.example"];
    for (at, authority) in (0..).zip(authorities) {
        bytes.extend(call(authority, 2 * at + 1));
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
