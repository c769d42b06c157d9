//! Large answers by HTTP count among the answers under way as they are sent, end when nobody reads
//! them, and are waited for when their node stops.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::RegisterRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::interval;

use super::calls::{Registry, fetch_of, spec};
use super::harness::{Cluster, eventually, within};
use super::http_api::get;
use super::metrics::metrics;

const MANY: &str = "/api/v1/namespaces/default/services/many";
const MIB: usize = 1024 * 1024;
/// An answer that nobody takes is given up after its deadline and a grace, 5 s each.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(30);

/// Registers this many instances with 15,000 times the letter.
async fn register(registry: &mut Registry, count: usize, letter: &str) {
    let numbers: Vec<usize> = (0..count).collect();
    for some in numbers.chunks(50) {
        let instances = some.iter().map(|number| {
            let mut instance = spec("many", &format!("i{number:04}"));
            instance.metadata = [("text".to_owned(), letter.repeat(15_000))].into();
            instance
        });
        let instances = instances.collect();
        let request = RegisterRequest { instances, ttl_ms: 600_000, ..RegisterRequest::default() };
        registry.register(request).await.unwrap();
    }
}

/// The answers that were refused for what is under way at the node, and on a connection.
async fn refused(cluster: &Cluster) -> [f64; 2] {
    let now = metrics(cluster, 1).await;
    ["answers", "answers_of_connection"]
        .map(|lane| now[&format!("quorate_refused_total{{lane=\"{lane}\"}}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts_is_the_json_that_is_sent() {
    let max = 2 * MIB;
    let tunables =
        Tunables { answers_per_connection_bytes_max: max, deny_after_ms: 0, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    let mut registry = cluster.registry(1);
    let http = cluster.http_address(1);
    // A quotation mark is two bytes of JSON, and one of gRPC: 0.75 MB, and 1.5.
    register(&mut registry, 50, "\"").await;
    let fits = get(http, MANY).await;
    assert_eq!(fits.body["service"]["instances"].as_array().map(Vec::len), Some(50));
    // 1.1 MB, and 2.2.
    register(&mut registry, 75, "\"").await;
    registry.fetch(fetch_of(&["many"])).await.expect("by gRPC, it fits");
    let refused = get(http, MANY).await;
    refused.refuses(429, "RESOURCE_EXHAUSTED", Some("the answer"));
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("2097152") && detail.contains("use `limit`"), "{refused:?}");
    assert_eq!(refused.header("retry-after"), None, "it would never pass: {refused:?}");
    assert_eq!(refused.body["limit"], "at most 2097152 bytes");
    get(http, "/sd/prometheus").await.refuses(429, "RESOURCE_EXHAUSTED", Some("the answer"));
    let [in_all, of_connection] = self::refused(&cluster).await;
    assert!(in_all == 0.0 && of_connection >= 2.0, "{in_all} at this node, {of_connection} on one");
    let page = get(http, &format!("{MANY}?limit=20")).await;
    assert_eq!(page.body["service"]["instances"].as_array().unwrap().len(), 20);
    let length = page.header("content-length").expect("its length is known");
    assert!(length.parse::<usize>().unwrap() > 600_000, "{length}");
}

/// Asks for everything, and reads nothing; what it has not read takes this many bytes here.
async fn unread(http: SocketAddr, buffer: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(buffer).unwrap();
    let mut stream = socket.connect(http).await.unwrap();
    let request = format!("GET {MANY} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.readable().await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_gives_its_memory_back() {
    let max = 20 * MIB;
    let tunables = Tunables {
        answers_bytes_max: max,
        answers_per_connection_bytes_max: max,
        ..Tunables::default()
    };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    // 6 MB: more than the kernel takes for a reader that does not read.
    register(&mut cluster.registry(1), 400, "x").await;
    let http = cluster.http_address(1);
    assert_eq!(get(http, MANY).await.status, 200);
    let _unread = [unread(http, 4_096).await, unread(http, 4_096).await];
    get(http, MANY).await.refuses(429, "RESOURCE_EXHAUSTED", None);
    let [in_all, of_connection] = refused(&cluster).await;
    assert!(in_all >= 1.0 && of_connection == 0.0, "{in_all} at this node, {of_connection} on one");
    let small = get(http, &format!("{MANY}/instances/i0001")).await;
    assert_eq!(small.status, 200, "small ones are given");
    let given = async || (get(http, MANY).await.status == 200).then_some(());
    within(GIVEN_UP_WITHIN, "there is room again", given).await;
}

/// How much is read at a time, and how often: 12 MB take four seconds, and more of them than the
/// kernel has for a connection are still the node's when what is left of it would be cut off.
const TAKEN: u64 = 320 * 1024;
const EVERY: Duration = Duration::from_millis(100);

/// Reads slowly until the other end closes.
async fn read_slowly(mut stream: TcpStream) -> Vec<u8> {
    let (mut answer, mut due) = (Vec::new(), interval(EVERY));
    loop {
        due.tick().await;
        let taken = (&mut stream).take(TAKEN).read_to_end(&mut answer).await;
        if taken.unwrap_or(0) == 0 {
            return answer;
        }
    }
}

/// Only calls by gRPC were waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_sends_an_answer_whole_and_takes_no_new_call() {
    let tunables = Tunables { shutdown_grace_ms: 20_000, ..Tunables::default() };
    let mut cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    register(&mut cluster.registry(1), 800, "x").await;
    let http = cluster.http_address(1);
    let stream = unread(http, 64 * 1024).await;
    let refused = eventually("new calls are refused", async || {
        let answer = get(http, "/api/v1/me").await;
        (answer.status == 503).then_some(answer)
    });
    let (answer, refused, ()) = tokio::join!(read_slowly(stream), refused, cluster.stop(1));
    refused.refuses(503, "UNAVAILABLE", None);
    assert!(refused.body["detail"].as_str().unwrap().contains("stopping"), "{refused:?}");
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert!(body.len() > 12_000_000, "{head}");
    assert_eq!(body.len(), length.parse::<usize>().unwrap(), "it was cut off");
}
