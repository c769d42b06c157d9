//! What it costs a node to be scraped: under 1 % of a core when that happens each second. Of a
//! debug build, unless `QUORATE_SCRAPED` names another binary (docs/metrics.md).

use std::time::{Duration, Instant};

use quorate_client::Client;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::{Cluster, Settings};
use crate::ports::free_port;
use crate::raw::{registration, spec};
use crate::wait::time_passes;

const SCRAPES: u32 = 200;
/// Beside other tests, the same work takes more.
const ROUNDS_MAX: usize = 3;
/// A hundredth of a second.
const CPU_MAX: Duration = Duration::from_millis(10);
/// Twice as many as have their sizes exported.
const SERVICES: usize = 100;
const INSTANCES: usize = 20;
const WATCHES: usize = 50;
const LONG: Duration = Duration::from_secs(600);
const ANSWER: Duration = Duration::from_secs(20);

/// Processor time of a process.
fn cpu(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|it| it.parse::<u64>().unwrap()).sum();
    Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap()
}

/// One scrape, as Prometheus makes it: on a connection that stays; how many bytes it is given.
async fn scrape(connection: &mut BufReader<TcpStream>) -> usize {
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.get_mut().write_all(request).await.unwrap();
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        connection.read_line(&mut line).await.unwrap();
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        length = length.or(line.strip_prefix("content-length: ").map(|it| it.parse().unwrap()));
    }
    let mut body = vec![0; length.expect("it says how long it is")];
    connection.read_exact(&mut body).await.unwrap();
    assert!(String::from_utf8(body).unwrap().contains("\nquorate_instances "));
    length.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_each_second_costs_under_a_hundredth_of_a_core() {
    let https: Vec<_> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let head = (1..).zip(&https).map(|(id, http)| (id, format!("http_listen = {http:?}")));
    let settings = Settings { head: head.collect(), ..Settings::default() };
    let mut cluster = Cluster::prepare(3, settings).await;
    for node in &mut cluster.nodes {
        if let Some(binary) = std::env::var_os("QUORATE_SCRAPED") {
            node.binary = binary.into();
        }
        node.start();
    }
    let leader = cluster.leader().await;
    for service in (0..SERVICES).map(|number| format!("service-{number}")) {
        let mut request = registration(&service, "i0", LONG, 0);
        request.instances = (0..INSTANCES).map(|at| spec(&service, &format!("i{at}"))).collect();
        cluster.nodes[leader].registry().register(request).await.unwrap();
    }
    let client = Client::builder([cluster.nodes[leader].clients.clone()]).build().unwrap();
    let watches = (0..WATCHES).map(|number| client.watch(format!("service-{number}").as_str()));
    let watches: Vec<_> = watches.collect();
    for watch in &watches {
        watch.synced().await.unwrap();
    }
    let pid = cluster.nodes[leader].process().pid();
    let mut connection = BufReader::new(TcpStream::connect(&https[leader]).await.unwrap());
    scrape(&mut connection).await;

    let mut rounds = Vec::new();
    while rounds.len() < ROUNDS_MAX {
        let (before, began) = (cpu(pid), Instant::now());
        let mut bytes = 0;
        for _ in 0..SCRAPES {
            let scraped = timeout(ANSWER, scrape(&mut connection)).await;
            bytes = scraped.expect("it answers");
        }
        let (took, within) = (cpu(pid) - before, began.elapsed());
        // What the node does besides.
        let before = cpu(pid);
        time_passes(within).await;
        let each = took.saturating_sub(cpu(pid) - before) / SCRAPES;
        let share = each.as_secs_f64() * 100.0;
        eprintln!(
            "measured: a scrape of {bytes} bytes takes {each:?} of processor time: {share:.2} % of a core, if there \
             is one each second"
        );
        if each < CPU_MAX {
            return;
        }
        rounds.push(each);
    }
    panic!("each of {SCRAPES} scrapes took {rounds:?}");
}
