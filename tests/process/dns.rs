//! A cluster that answers by DNS: packets made by hand, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::cli::quorate;
use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::wait::eventually;

pub(crate) const SOON: Duration = Duration::from_secs(20);
/// A datagram that is not answered within this is lost, or was not meant to be answered.
const LOST: Duration = Duration::from_millis(500);

pub(crate) const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
pub(crate) const NO_ERROR: u8 = 0;
const FAILED: u8 = 2;
const NO_NAME: u8 = 3;
pub(crate) const REFUSED: u8 = 5;

const HEAD: usize = 12;

/// One question, without EDNS.
pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet
}

/// A code, how many records answer, and the end of the last of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) code: u8,
    /// There is more, by TCP.
    pub(crate) is_cut: bool,
    pub(crate) answers: u16,
    pub(crate) end: [u8; 4],
}

pub(crate) fn read(packet: &[u8]) -> Answered {
    assert_eq!(packet[..2], [0x12, 0x34], "an answer to another question");
    assert_eq!(packet[2] & 0x80, 0x80, "no answer");
    Answered {
        code: packet[3] & 15,
        is_cut: packet[2] & 2 == 2,
        answers: u16::from_be_bytes([packet[6], packet[7]]),
        end: packet[packet.len() - 4..].try_into().unwrap(),
    }
}

/// The same with another number.
fn numbered(packet: &[u8], number: [u8; 2]) -> Vec<u8> {
    [&number, &packet[2..]].concat()
}

async fn datagram(to: &str, packet: &[u8]) -> Option<Vec<u8>> {
    datagram_from("127.0.0.1", to, packet).await
}

pub(crate) async fn datagram_from(from: &str, to: &str, packet: &[u8]) -> Option<Vec<u8>> {
    datagram_within(LOST, from, to, packet).await
}

pub(crate) async fn datagram_within(
    within: Duration,
    from: &str,
    to: &str,
    packet: &[u8],
) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    socket.send_to(packet, to).await.unwrap();
    let mut answer = vec![0; 65_535];
    let length = timeout(within, socket.recv(&mut answer)).await.ok()?.ok()?;
    answer.truncate(length);
    Some(answer)
}

async fn asked(to: &str, name: &str, kind: u16) -> Option<Answered> {
    datagram(to, &query(name, kind)).await.map(|answer| read(&answer))
}

async fn asked_by_tcp(to: &str, name: &str, kind: u16) -> Answered {
    let mut stream = connection("127.0.0.1", to).await;
    asked_on(&mut stream, name, kind).await.expect("an answer")
}

pub(crate) async fn connection(from: &str, to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect(to.parse().unwrap()).await.unwrap()
}

pub(crate) async fn asked_on(
    stream: &mut TcpStream,
    name: &str,
    kind: u16,
) -> std::io::Result<Answered> {
    exchanged(stream, &query(name, kind)).await.map(|answer| read(&answer))
}

async fn exchanged(stream: &mut TcpStream, packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let exchange = async {
        let length = u16::try_from(packet.len()).unwrap();
        stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    timeout(SOON, exchange).await.expect("an answer or an end in time")
}

/// What follows a name.
fn after_name(mut bytes: &[u8]) -> &[u8] {
    loop {
        match bytes[0] {
            0 => return &bytes[1..],
            0xc0.. => return &bytes[2..],
            length => bytes = &bytes[1 + usize::from(length)..],
        }
    }
}

/// TTL and data of each record that answers a packet's one question.
fn records(packet: &[u8]) -> Vec<(u32, &[u8])> {
    let mut rest = &after_name(&packet[HEAD..])[4..];
    let mut record = || {
        let (head, data) = after_name(rest).split_at(10);
        let (data, after) = data.split_at(u16::from_be_bytes([head[8], head[9]]).into());
        rest = after;
        (u32::from_be_bytes(head[4..8].try_into().unwrap()), data)
    };
    (0..read(packet).answers).map(|_| record()).collect()
}

/// Nodes, and where each answers.
async fn answering(nodes: u64) -> (Cluster, Vec<String>) {
    answering_with(&vec![""; usize::try_from(nodes).unwrap()], Settings::default()).await
}

/// Nodes with these tables `[dns]`, and where each answers.
pub(crate) async fn answering_with(tables: &[&str], settings: Settings) -> (Cluster, Vec<String>) {
    let dns: Vec<_> = tables.iter().map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let head = (1..)
        .zip(&dns)
        .zip(tables)
        .map(|((id, dns), table)| (id, format!("dns_listen = {dns:?}\n[dns]\n{table}\n")));
    let tunables = format!("deny_after_ms = 0\n{}", settings.tunables);
    let settings = Settings { head: head.collect(), tunables, ..settings };
    (Cluster::start_with(tables.len() as u64, settings).await, dns)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_services_are_answered_by_each_node_that_lives() {
    let (mut cluster, dns) = answering(3).await;
    let nodes = cluster.all();
    let run = async |line: &str| {
        let args: Vec<&str> = line.split(' ').chain(["--nodes", &nodes]).collect();
        quorate(&args).await.expect(0);
    };
    run("register web a --endpoint http=http://10.1.2.3:80 --ttl 1h --once").await;
    run("register pay p --endpoint http=http://10.1.2.3:80 --ttl 1h --once").await;
    let has = Answered { code: NO_ERROR, is_cut: false, answers: 1, end: [10, 1, 2, 3] };
    let name = "web.default.svc.quorate";
    for to in &dns {
        eventually("it answers", SOON, async || match asked(to, name, A).await {
            Some(answer) if answer == has => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(asked_by_tcp(to, name, A).await, has);
        // A name that is there has no other records, and is not denied.
        let other = asked_by_tcp(to, name, AAAA).await;
        assert_eq!((other.code, other.answers), (NO_ERROR, 0));
        let nobody = asked_by_tcp(to, "nobody.default.svc.quorate", A).await;
        assert_eq!((nobody.code, nobody.answers), (NO_NAME, 0));
        assert_eq!(asked_by_tcp(to, "example.org", A).await.code, REFUSED);
    }
    cluster.nodes[0].kill();
    assert_eq!(asked_by_tcp(&dns[1], name, A).await, has);
    run("deregister web a").await;
    eventually("it is gone", SOON, async || match asked(&dns[2], name, A).await {
        Some(Answered { answers: 0, .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Alone, it tells what it has, and denies nothing: that may be there by now.
    cluster.nodes[1].kill();
    let nobody = "nobody.default.svc.quorate";
    eventually("it denies nothing", SOON, async || match asked(&dns[2], nobody, A).await {
        Some(Answered { code: FAILED, .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Nor does it say that a service has no instances.
    let has_none = asked_by_tcp(&dns[2], name, A).await;
    assert_eq!((has_none.code, has_none.answers), (FAILED, 0));
    let has_one = asked_by_tcp(&dns[2], "pay.default.svc.quorate", A).await;
    assert_eq!(has_one, has);
    let other = asked_by_tcp(&dns[2], "pay.default.svc.quorate", AAAA).await;
    assert_eq!((other.code, other.answers), (NO_ERROR, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn domain_zone_and_ttl_are_those_of_the_settings() {
    let table = "domain = \"reg.example\"\nzone = \"eu\"";
    let settings = Settings { tunables: "dns_ttl_s = 7".to_owned(), ..Settings::default() };
    let (cluster, dns) = answering_with(&[table], settings).await;
    let nodes = cluster.all();
    for (id, zone, port) in [("a", "us", 8_001), ("b", "eu", 8_002)] {
        let line = format!(
            "register web {id} --endpoint http=http://10.1.2.3:{port} --zone {zone} --ttl 1h --once \
             --nodes {nodes}"
        );
        quorate(&line.split(' ').collect::<Vec<_>>()).await.expect(0);
    }
    let mut stream = connection("127.0.0.1", &dns[0]).await;
    let told = eventually("both are told", SOON, async || {
        let packet = query("web.default.svc.reg.example", SRV);
        let answer = exchanged(&mut stream, &packet).await.unwrap();
        if read(&answer).answers == 2 { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let number = |bytes: &[u8]| u16::from_be_bytes(bytes.try_into().unwrap());
    let told = records(&told).into_iter();
    // TTL, priority and port: first whoever is in the node's own zone.
    let mut told: Vec<_> =
        told.map(|(ttl, data)| (ttl, number(&data[..2]), number(&data[4..6]))).collect();
    told.sort_unstable();
    assert_eq!(told, [(7, 0, 8_002), (7, 1, 8_001)]);
    let name_server = exchanged(&mut stream, &query("ns.reg.example", A)).await.unwrap();
    assert_eq!(records(&name_server), [(7, &[127, 0, 0, 1][..])]);
    let other = asked_on(&mut stream, "web.default.svc.quorate", A).await.unwrap();
    assert_eq!((other.code, other.answers), (REFUSED, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_answers_no_more() {
    let (cluster, dns) = answering(3).await;
    let nodes = cluster.all();
    let run = async |line: &str| {
        let args: Vec<&str> = line.split(' ').chain(["--nodes", &nodes]).collect();
        quorate(&args).await.expect(0);
    };
    run("register web a --endpoint http=http://10.1.2.3:80 --ttl 1h --once").await;
    run("cluster remove 3").await;
    let name = "web.default.svc.quorate";
    eventually("it knows that it is out", SOON, async || match asked(&dns[2], name, A).await {
        Some(Answered { code: FAILED, .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(asked_by_tcp(&dns[0], name, A).await.answers, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_are_no_questions_end_nothing_and_are_not_amplified() {
    let (_cluster, dns) = answering(1).await;
    eventually("it listens", SOON, async || {
        asked(&dns[0], "example.org", A).await.ok_or("silence")
    })
    .await;
    let whole = query("web.default.svc.quorate", A);
    let mut odd: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
    // A name that points to itself, a name without an end, an answer, many questions, lengths that
    // lie.
    odd.push([&whole[..HEAD], &[0xc0, 12, 0, 1, 0, 1]].concat());
    odd.push([&whole[..HEAD], &[63; 300]].concat());
    odd.push([&[0x12, 0x34, 0x81, 0x80], &whole[4..]].concat());
    odd.push([&whole[..4], &[0xff; 8], &whole[HEAD..]].concat());
    odd.push(vec![0xff; 4_096]);
    let good = numbered(&query("example.org", A), [0x43, 0x21]);
    let mut sockets = Vec::new();
    for packet in odd {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&packet, &dns[0]).await.unwrap();
        socket.send_to(&good, &dns[0]).await.unwrap();
        let mut answer = [0; 65_535];
        loop {
            let length = timeout(SOON, socket.recv(&mut answer)).await.expect("an answer").unwrap();
            if answer[..2] == good[..2] {
                break;
            }
            is_not_amplified(&packet, length);
        }
        sockets.push((socket, packet));
    }
    // Another thread may have answered the good one first.
    for (socket, packet) in sockets {
        while let Ok(length) = socket.try_recv(&mut [0; 65_535]) {
            is_not_amplified(&packet, length);
        }
    }
    assert_eq!(asked_by_tcp(&dns[0], "example.org", A).await.code, REFUSED);
    let asked = query("example.org", A);
    let refused = datagram_within(SOON, "127.0.0.1", &dns[0], &asked).await.expect("an answer");
    assert!(refused.len() <= query("example.org", A).len(), "{refused:?}");
}

fn is_not_amplified(packet: &[u8], length: usize) {
    let most = packet.len().max(HEAD);
    assert!(length <= most, "{length} bytes, not {most}, are the answer to {packet:?}");
}
