//! The end of a connection at its age, on each listener, and what is under way by HTTP then.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Authority, Issued, PREFACE, SOON, config, start};

const WEB: &str = "/api/v1/namespaces/default/services/web";

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_and_who_follows_is_answered_when_the_connection_is_old() {
    let authority = Authority::new("ours");
    let (_cluster, files, _client) = start(&authority, 1_500).await;
    let ask = async |asks: &str, body: &str| {
        let answer = files[0].answer(&authority, asks, body).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 "), "{asks}: {answer:?}");
        answer
    };
    let spec = r#"{"endpoints": {"http": "http://h:1"}}"#;
    ask(&format!("PUT {WEB}/instances/a"), spec).await;
    let read = ask(&format!("GET {WEB}?index=0"), "").await;
    let index = read.split("\"index\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let (waiting, following) = (
        format!("GET {WEB}?index={index}&wait=10m"),
        "GET /api/v1/namespaces/default/watch?service=web",
    );
    let (waited, followed) = tokio::join!(ask(&waiting, ""), ask(following, ""));
    assert!(waited.contains(index), "nothing has changed: {waited:?}");
    let end = followed.split("event: end\n").nth(1).expect("the stream says that it ends");
    assert!(end.contains("reached its age"), "{end:?}");
}

/// The type of a frame that says that the connection is to end (RFC 9113, section 6.8).
const GO_AWAY: u8 = 7;

/// What the node says of the end of an HTTP/2 connection which does nothing but exist; why it
/// ended, as a code of HTTP/2.
async fn end_of(address: &str, authority: &Authority, shown: &Issued) -> Result<u32, String> {
    let mut config = config(&authority.pem, Some(shown));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listening = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(PREFACE).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await?;
            if head[3] == GO_AWAY {
                break Ok::<_, std::io::Error>(u32::from_be_bytes(
                    payload[4..8].try_into().unwrap(),
                ));
            }
        }
    };
    let ended = timeout(SOON, listening).await.map_err(|_| "it goes on".to_owned())?;
    ended.map_err(|error| error.to_string())
}

/// In good order: whoever has a call under way may finish it. (That calls and streams go on over
/// the next connection is seen in tls_rotation.rs.)
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_clients_and_of_nodes_end_at_their_age() {
    const NO_ERROR: u32 = 0;
    let authority = Authority::new("ours");
    let (cluster, _files, _client) = start(&authority, 1_500).await;
    let node = &cluster.nodes[0];
    for (of, address, shown) in [
        ("clients", node.clients.clone(), authority.client()),
        ("nodes", node.peers(), authority.node(2)),
    ] {
        let ended = end_of(&address, &authority, &shown).await;
        assert_eq!(ended, Ok(NO_ERROR), "at the listener for {of}");
    }
}
