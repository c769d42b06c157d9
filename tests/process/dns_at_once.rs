//! Many ask at once, by datagrams and connections: each gets the answer to its own question.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use quorate_client::{InstanceBuilder, Registration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::Settings;
use crate::dns::{A, NO_ERROR, SOON, answering_with, datagram_from, query};
use crate::wait::eventually;

const SERVICES: u16 = 1_000;
const ASKING: u16 = 64;

fn name(service: u16) -> String {
    format!("s{service}.default.svc.quorate")
}

fn address(service: u16) -> [u8; 4] {
    let [high, low] = service.to_be_bytes();
    [10, 1, high, low]
}

/// How one of them asks.
enum Line {
    Datagrams(UdpSocket),
    Connection(TcpStream),
}

impl Line {
    async fn open(asking: u16, to: &str) -> Self {
        if asking.is_multiple_of(2) {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(to).await.unwrap();
            return Self::Datagrams(socket);
        }
        Self::Connection(TcpStream::connect(to).await.unwrap())
    }

    async fn ask(&mut self, packet: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Datagrams(socket) => {
                let mut answer = vec![0; 512];
                socket.send(packet).await?;
                let length = socket.recv(&mut answer).await?;
                answer.truncate(length);
                Ok(answer)
            }
            Self::Connection(stream) => {
                let length = u16::try_from(packet.len()).unwrap();
                stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
                let mut answer = vec![0; stream.read_u16().await?.into()];
                stream.read_exact(&mut answer).await?;
                Ok(answer)
            }
        }
    }
}

async fn asks(asking: u16, to: String) {
    let mut line = Line::open(asking, &to).await;
    // Each begins with another name.
    for at in 0..SERVICES {
        let service = (at + asking) % SERVICES;
        let mut packet = query(&name(service), A);
        packet[..2].copy_from_slice(&(asking << 10 | service).to_be_bytes());
        let answer = timeout(SOON, line.ask(&packet)).await.expect("an answer").unwrap();
        assert_eq!(answer[..2], packet[..2], "the number of {service}");
        assert_eq!(answer[3] & 15, NO_ERROR);
        assert_eq!(answer[12..packet.len()], packet[12..], "the question of {service}");
        assert_eq!(answer[6..8], [0, 1], "one record of {service}");
        assert_eq!(answer[answer.len() - 4..], address(service), "the record of {service}");
    }
}

/// Complaint 5 of those in crates/quorate-dns/src/tests/complaints.rs, by sockets (consul#21580).
#[tokio::test(flavor = "multi_thread")]
async fn complaint_5_no_answer_is_of_another_query() {
    let tunables = "dns_queries_per_second = 1000000\ndns_connections_max = 256".to_owned();
    let (cluster, dns) = answering_with(&[""], Settings { tunables, ..Settings::default() }).await;
    let client = cluster.client().build().unwrap();
    let registered = stream::iter(0..SERVICES).map(|service| {
        let [a, b, c, d] = address(service);
        let uri = format!("http://{a}.{b}.{c}.{d}:80");
        let instance = InstanceBuilder::new(format!("s{service}"), "one").endpoint("http", uri);
        client.register(Registration::new(instance).ttl(Duration::from_secs(600)))
    });
    let _kept: Vec<_> = registered.buffer_unordered(64).try_collect().await.unwrap();
    eventually("it answers", SOON, async || {
        let answer = datagram_from("127.0.0.1", &dns[0], &query(&name(0), A)).await;
        answer.filter(|it| it[6..8] == [0, 1]).ok_or("nothing yet")
    })
    .await;
    let mut asking: JoinSet<()> = (0..ASKING).map(|one| asks(one, dns[0].clone())).collect();
    while let Some(ended) = asking.join_next().await {
        ended.unwrap();
    }
}
