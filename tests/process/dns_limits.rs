//! Whom a node does not answer by DNS, or not as usual: other networks, too many queries, state
//! that is too old, services that fail, and connections beyond what it takes.

use std::time::{Duration, Instant};

use quorate_proto::v1::{InstanceSpec, RegisterRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::cli::ask;
use crate::cluster::{Cluster, Settings};
use crate::dns::{
    A, Answered, NO_ERROR, REFUSED, SOON, answering_with, asked_on, connection, datagram_from,
    datagram_within, query, read,
};
use crate::ports::free_port;
use crate::raw::spec;
use crate::wait::eventually;

const NAME: &str = "web.default.svc.quorate";
const FAILED: u8 = 2;
const SRV: u16 = 33;

async fn asked_from(from: &str, to: &str) -> Result<Answered, String> {
    let answer = datagram_from(from, to, &query(NAME, A)).await;
    answer.map(|answer| read(&answer)).ok_or_else(|| "no answer".to_owned())
}

/// Waits until there is an answer such as this, asking from an address of this machine.
async fn until(from: &str, to: &str, what: &str, is_it: impl Fn(&Answered) -> bool) {
    eventually(what, SOON, async || match asked_from(from, to).await? {
        answer if is_it(&answer) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_networks_are_refused_by_datagrams_and_connections() {
    let tables = ["allow = [\"127.0.0.1/32\", \"127.7.0.0/16\"]"];
    let (_cluster, dns) = answering_with(&tables, Settings::default()).await;
    let to = &dns[0];
    for allowed in ["127.0.0.1", "127.7.8.9"] {
        until(allowed, to, "it answers", |it| it.code != REFUSED).await;
        let answer = asked_on(&mut connection(allowed, to).await, NAME, A).await.unwrap();
        assert_ne!(answer.code, REFUSED);
    }
    for other in ["127.0.0.2", "127.8.0.1"] {
        until(other, to, "it refuses", |it| it.code == REFUSED && it.answers == 0).await;
        let answer = asked_on(&mut connection(other, to).await, NAME, A).await.unwrap();
        assert_eq!((answer.code, answer.answers), (REFUSED, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_asks_too_much_is_told_to_ask_by_tcp_or_nothing() {
    const ASKED: usize = 60;
    const A_SECOND: usize = 5;
    let tunables = format!("dns_queries_per_second = {A_SECOND}");
    let (_cluster, dns) = answering_with(
        &["allow = [\"127.0.0.0/8\"]"],
        Settings { tunables, ..Settings::default() },
    )
    .await;
    let to = &dns[0];
    until("127.1.0.1", to, "it answers", |it| !it.is_cut).await;

    let socket = UdpSocket::bind("127.2.0.1:0").await.unwrap();
    let begun = Instant::now();
    for _ in 0..ASKED {
        socket.send_to(&query(NAME, A), to).await.unwrap();
    }
    let others = || until("127.3.0.1", to, "others have their answers", |it| !it.is_cut);
    others().await;
    let (mut whole, mut cut, mut bytes) = (0, 0, [0; 512]);
    // Every other one of those beyond the limit.
    while cut < usize::div_ceil(ASKED - whole, 2) {
        let received = timeout(SOON, socket.recv(&mut bytes)).await;
        let length = received.unwrap_or_else(|_| panic!("{whole} and {cut} answers")).unwrap();
        match read(&bytes[..length]) {
            Answered { is_cut: true, answers: 0, code: NO_ERROR, .. } => {
                assert!(length <= query(NAME, A).len(), "{length} bytes are more than were asked");
                cut += 1;
            }
            Answered { is_cut: false, .. } => whole += 1,
            other => panic!("{other:?}"),
        }
    }
    // Two seconds' worth at once, and what comes to that until the node has read all.
    let took = begun.elapsed();
    let most = 2 * A_SECOND + A_SECOND * (took.as_millis() as usize).div_ceil(1_000);
    assert!((2 * A_SECOND..=most).contains(&whole), "{whole} of {ASKED} are answered in {took:?}");
    others().await;
    assert!(socket.try_recv(&mut bytes).is_err(), "more than every other one of the rest");
    // Who is told so does have an answer.
    let answer = asked_on(&mut connection("127.2.0.1", to).await, NAME, A).await;
    assert!(!answer.expect("an answer").is_cut);
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_is_too_old_is_not_told() {
    let tunables = "dns_max_stale_ms = 2000".to_owned();
    let (mut cluster, dns) =
        answering_with(&["", "", ""], Settings { tunables, ..Settings::default() }).await;
    let nodes = cluster.all();
    ask(&nodes, "register web a --endpoint http=http://10.1.2.3:80 --ttl 1h --once")
        .await
        .expect(0);
    let (to, from) = (&dns[0], "127.0.0.1");
    until(from, to, "it answers", |it| it.answers == 1).await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    until(from, to, "it fails", |it| (it.code, it.answers) == (FAILED, 0)).await;
    // Nor what is on its disk, before it has heard of a leader.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    until(from, to, "it still fails", |it| (it.code, it.answers) == (FAILED, 0)).await;
    cluster.nodes[1].start();
    until(from, to, "it answers again", |it| it.answers == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_checks_all_fail_is_empty_or_served_as_the_node_is_told() {
    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let settings = Settings { health_checks, ..Settings::default() };
    let (cluster, dns) = answering_with(&["", "all_failing = \"serve\""], settings).await;
    let line = "register web a --endpoint e=tcp://127.0.0.1:1 --ttl 1h --once --check tcp,every=1s,failures=2";
    ask(&cluster.all(), line).await.expect(0);
    until("127.0.0.1", &dns[0], "its checks fail", |it| (it.code, it.answers) == (NO_ERROR, 0))
        .await;
    until("127.0.0.1", &dns[1], "it is served", |it| it.answers == 1).await;
    ask(&cluster.all(), "register web b --endpoint e=tcp://127.0.0.9:1 --ttl 1h --once")
        .await
        .expect(0);
    for to in &dns {
        until("127.0.0.1", to, "one does not fail", |it| it.end == [127, 0, 0, 9]).await;
    }
}

/// A sample of a node's metrics.
async fn counted(http: &str, name: &str) -> u64 {
    let mut stream = TcpStream::connect(http).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_says_so_and_is_counted() {
    const TRUNCATED: &str = "quorate_dns_truncated_total";
    let queries = |of| format!("quorate_dns_queries_total{{type=\"{of}\",code=\"NOERROR\"}}");
    let [a, srv] = ["A", "SRV"].map(queries);
    let (dns, http) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let head = [(1, format!("dns_listen = {dns:?}\nhttp_listen = {http:?}\n"))].into();
    let cluster = Cluster::start_with(1, Settings { head, ..Settings::default() }).await;
    let instances = (0..100).map(|at| {
        let endpoint = ("http".to_owned(), format!("http://10.0.0.{at}:80"));
        InstanceSpec { endpoints: [endpoint].into(), ..spec("web", &format!("web-{at}")) }
    });
    let instances = instances.collect();
    let request = RegisterRequest { instances, ttl_ms: 3_600_000, ..RegisterRequest::default() };
    cluster.nodes[0].registry().register(request).await.unwrap();
    let from = "127.0.0.1";
    // One question: each answer that is cut counts, also one that comes too late to be waited for.
    let answer = datagram_within(SOON, from, &dns, &query(NAME, A)).await.expect("an answer");
    let cut = read(&answer);
    assert!(cut.is_cut && (1..100).contains(&cut.answers), "{cut:?}");
    assert_eq!(counted(&http, TRUNCATED).await, 1);
    let whole = asked_on(&mut connection(from, &dns).await, NAME, A).await.unwrap();
    assert_eq!((whole.is_cut, whole.answers), (false, 100));
    assert_eq!(counted(&http, TRUNCATED).await, 1, "by TCP it is whole");
    assert_eq!(counted(&http, &a).await, 2, "by either");

    // More than 64 KiB of SRV: 100 instances with 4 endpoints each, at names of 240 letters.
    let label = "x".repeat(59);
    let host = [label.as_str(); 4].join(".");
    let wide = (0..100).map(|at| {
        let endpoint = |port| (format!("e{port}"), format!("http://{host}:{port}{at:02}"));
        InstanceSpec {
            endpoints: (1..5).map(endpoint).collect(),
            ..spec("wide", &format!("w-{at}"))
        }
    });
    let request =
        RegisterRequest { instances: wide.collect(), ttl_ms: 3_600_000, ..<_>::default() };
    cluster.nodes[0].registry().register(request).await.unwrap();
    let name = "wide.default.svc.quorate";
    let part = asked_on(&mut connection(from, &dns).await, name, SRV).await.unwrap();
    assert!(!part.is_cut && (200..400).contains(&part.answers), "{part:?}");
    assert_eq!(counted(&http, TRUNCATED).await, 2, "what is too large for TCP counts, too");
    assert_eq!((counted(&http, &a).await, counted(&http, &srv).await), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_half_of_the_connections() {
    let tunables = "dns_connections_max = 4".to_owned();
    let (_cluster, dns) = answering_with(
        &["allow = [\"127.0.0.0/8\"]"],
        Settings { tunables, ..Settings::default() },
    )
    .await;
    let to = &dns[0];
    until("127.0.0.1", to, "it answers", |_| true).await;
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut stream = connection("127.0.0.1", to).await;
        // Those beyond what it takes end.
        let _ = asked_on(&mut stream, NAME, A).await;
        open.push(stream);
    }
    let mut living = 0;
    for stream in &mut open {
        living += usize::from(asked_on(stream, NAME, A).await.is_ok());
    }
    assert_eq!(living, 2, "half of four");
    let other = timeout(Duration::from_secs(20), async {
        asked_on(&mut connection("127.1.0.1", to).await, NAME, A).await
    });
    other.await.unwrap().expect("another address has its own");
}
