//! Following by HTTP: streams of events, and reads that wait.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quorate_node::Tunables;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::calls::register;
use super::failover::seldom_by_silence;
use super::guarded::{Guarded, ROOT, entry};
use super::harness::{Cluster, SOON, eventually};
use super::http_api::{get, send, write};
use super::metrics::get_within;
use super::stream::{Stream, subscribe_to};

pub(crate) const WATCH: &str = "/api/v1/namespaces/default/watch?service=web";
const WEB: &str = "/api/v1/namespaces/default/services/web";

/// A stream of events.
pub(crate) struct Events {
    lines: BufReader<TcpStream>,
    /// Of the last event that had one.
    pub(crate) id: String,
}

impl Events {
    pub(crate) async fn open(to: SocketAddr, path: &str, headers: &str) -> Self {
        Self::on(TcpStream::connect(to).await.unwrap(), path, headers).await
    }

    pub(crate) async fn on(stream: TcpStream, path: &str, headers: &str) -> Self {
        let mut events = Self { lines: BufReader::new(stream), id: String::new() };
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n");
        events.lines.get_mut().write_all(request.as_bytes()).await.unwrap();
        let status = events.line().await.unwrap();
        assert!(status.contains(" 200 "), "{status}");
        while events.line().await.is_some_and(|line| !line.is_empty()) {}
        events
    }

    /// `None`: it is over.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(SOON, self.lines.read_line(&mut line)).await.expect("a line in time");
        (read.unwrap_or(0) > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event, its name and its data.
    async fn next(&mut self) -> Option<(String, Value)> {
        let (mut name, mut data) = (String::new(), None);
        loop {
            let line = self.line().await?;
            match line.split_once(": ") {
                Some(("id", id)) => self.id = id.to_owned(),
                Some(("event", event)) => name = event.to_owned(),
                Some(("data", text)) => data = Some(serde_json::from_str(text).unwrap()),
                _ => match data.take() {
                    Some(data) => return Some((name, data)),
                    None => name.clear(), // a comment, or an id alone
                },
            }
        }
    }

    /// Takes events until one names this leader; 0: none.
    async fn leader(&mut self, id: u64) -> Value {
        let told = async {
            loop {
                let (name, data) = self.next().await.expect("it goes on");
                if name == "leader" && data["leader_id"] == json!(id.to_string()) {
                    return data;
                }
            }
        };
        timeout(SOON, told).await.unwrap_or_else(|_| panic!("leader {id} is not told"))
    }

    /// The next one that is of the service.
    pub(crate) async fn of_service(&mut self) -> (String, Value) {
        loop {
            match self.next().await.expect("an event") {
                (name, _) if name == "leader" => {}
                event => return event,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_at_another_node_where_it_was() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    register(&mut cluster.registry(1), "web", "a").await;
    let mut events = Events::open(cluster.http_address(1), WATCH, "").await;
    let (name, data) = events.of_service().await;
    assert_eq!((&*name, &data["last"]), ("snapshot", &json!(true)), "{data}");
    assert_eq!(data["services"][0]["instances"][0]["id"], "a", "{data}");
    register(&mut cluster.registry(2), "web", "b").await;
    let (name, data) = events.of_service().await;
    assert_eq!((&*name, &data["changes"][0]["kind"]), ("change", &json!("added")), "{data}");
    let id = events.id.clone();
    assert_eq!(id.split_once('-').map(|(_, at)| at), data["revision"].as_str(), "{data}");

    cluster.stop(1).await;
    cluster.leader_of(&[2, 3]).await;
    register(&mut cluster.registry(2), "web", "c").await;
    let resume = format!("Last-Event-ID: {id}\r\n");
    let mut resumed = Events::open(cluster.http_address(3), WATCH, &resume).await;
    let (name, next) = resumed.of_service().await;
    assert_eq!((&*name, &next["previous_revision"]), ("change", &data["revision"]), "{next}");
    assert_eq!(next["changes"][0]["instance"]["id"], "c", "{next}");

    let foreign = "Last-Event-ID: 00000000000000ff-3\r\n";
    let mut anew = Events::open(cluster.http_address(3), WATCH, foreign).await;
    assert_eq!(anew.of_service().await.0, "reset", "of another cluster");
    let bad = get(cluster.http_address(3), &format!("{WATCH}&from=x")).await;
    bad.refuses(400, "INVALID_ARGUMENT", Some("from"));
}

/// Nothing new comes to it, so that it would take what it has for what the registry has.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_goes_on_is_told_first_whether_there_is_a_leader() {
    let mut cluster = Cluster::start_with(3, seldom_by_silence()).await;
    let leader = cluster.leader().await;
    register(&mut cluster.registry(1), "web", "a").await;
    let mut events = Events::open(cluster.http_address(1), WATCH, "").await;
    assert_eq!(events.of_service().await.0, "snapshot");
    let resume = format!("Last-Event-ID: {}\r\n", events.id);
    let mut resumed = Events::open(cluster.http_address(1), WATCH, &resume).await;
    let (name, data) = resumed.next().await.unwrap();
    assert_eq!((&*name, &data["leader_id"]), ("leader", &json!(leader.to_string())), "{data}");
    // Its place comes with it or behind it.
    while resumed.id.is_empty() {
        let line = resumed.line().await.expect("it goes on");
        if let Some(("id", id)) = line.split_once(": ") {
            resumed.id = id.to_owned();
        }
    }
    assert_eq!(resumed.id, events.id);

    cluster.stop(2).await;
    cluster.stop(3).await;
    let is_lost = async || {
        let status = get(cluster.http_address(1), "/api/v1/status").await;
        (status.body["header"]["leader_id"] == "0").then_some(())
    };
    eventually("node 1 has no leader", is_lost).await;
    let mut alone = Events::open(cluster.http_address(1), WATCH, &resume).await;
    let (name, data) = alone.next().await.unwrap();
    assert_eq!((&*name, &data["leader_id"]), ("leader", &json!("0")), "{data}");
    assert_eq!(data["header"]["node_id"], "1", "{data}");
}

/// A bookmark is no news: it was sent as `leader`, which is to say that there is one again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_news_has_positions_and_ages_and_no_events() {
    let tunables = Tunables { bookmark_ms: 50, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    register(&mut cluster.registry(1), "web", "a").await;
    let http = cluster.http_address(1);
    let mut events = Events::open(http, WATCH, "").await;
    assert_eq!(events.next().await.unwrap().0, "snapshot");
    quiet(&mut events).await;
    // One that goes on is told who leads, once.
    let resume = format!("Last-Event-ID: {}\r\n", events.id);
    let mut resumed = Events::open(http, WATCH, &resume).await;
    assert_eq!(resumed.next().await.unwrap().0, "leader");
    quiet(&mut resumed).await;
    let before = events.id.clone();
    register(&mut cluster.registry(1), "other", "x").await;
    while events.id == before {
        quiet(&mut events).await;
    }
    register(&mut cluster.registry(1), "web", "b").await;
    let (_, data) = events.next().await.unwrap();
    assert_eq!(data["changes"][0]["instance"]["id"], "b", "{data}");
}

/// Browsers wait for as long as they are told.
#[tokio::test(flavor = "multi_thread")]
async fn streams_say_first_when_to_come_again_each_at_a_time_of_its_own() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut times = BTreeSet::new();
    for _ in 0..4 {
        let mut events = Events::open(cluster.http_address(1), WATCH, "").await;
        let first = events.line().await.unwrap();
        let time: u64 = first.strip_prefix("retry: ").expect("a time").parse().unwrap();
        assert!((1_000..=5_000).contains(&time), "{first}");
        times.insert(time);
        assert_eq!(events.line().await.as_deref(), Some(": bookmark_ms 5000"));
    }
    assert!(times.len() > 1, "{times:?}");
}

/// Takes five bookmarks, and nothing else.
async fn quiet(events: &mut Events) {
    let (mut ids, mut ages) = (0, 0);
    while ids < 5 {
        let line = events.line().await.expect("it goes on");
        match line.split_once(' ') {
            Some(("id:", id)) => {
                events.id = id.to_owned();
                ids += 1;
            }
            Some((":", text)) => {
                let age = text.strip_prefix("age_ms ").and_then(|age| age.parse::<u64>().ok());
                assert!(age.is_some_and(|age| age < 5_000), "{line}");
                ages += 1;
            }
            _ => assert_eq!(line, ""),
        }
    }
    assert!(ages >= ids, "{ages}");
    assert_eq!(events.line().await.as_deref(), Some(""));
}

/// What came before anybody watched.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_the_oldest_change_that_its_node_has() {
    let tunables = Tunables { watch_ring: 5, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let oldest = format!("{WATCH}&from=oldest");
    let mut registry = cluster.registry(1);
    let of = |data: &Value| {
        let changes = data["changes"].as_array().unwrap().iter();
        changes
            .map(|change| change["instance"]["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    register(&mut registry, "web", "a").await;
    register(&mut registry, "other", "x").await;
    register(&mut registry, "web", "b").await;
    let mut events = Events::open(http, &oldest, "").await;
    let (name, data) = events.next().await.unwrap();
    assert_eq!((&*name, of(&data)), ("change", vec!["a".to_owned(), "b".to_owned()]), "{data}");
    assert_eq!(data["previous_revision"], "0", "all that there was: {data}");
    register(&mut registry, "web", "c").await;
    assert_eq!(of(&events.next().await.unwrap().1), ["c"], "and it goes on");
    // A browser that comes again goes on behind what it had.
    let resume = format!("Last-Event-ID: {}\r\n", events.id);
    let mut resumed = Events::open(http, &oldest, &resume).await;
    assert_eq!(resumed.next().await.unwrap().0, "leader");
    for id in ["d", "e", "f"] {
        register(&mut registry, "web", id).await;
    }
    let mut late = Events::open(http, &oldest, "").await;
    let (_, data) = late.next().await.unwrap();
    assert_eq!(of(&data), ["b", "c", "d", "e", "f"], "five are kept: {data}");
    assert_ne!(data["previous_revision"], "0", "not all: {data}");
}

/// As by gRPC, at the same node.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_when_its_node_has_no_leader_and_who_leads_then() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    register(&mut cluster.registry(1), "web", "a").await;
    let mut events = Events::open(cluster.http_address(3), WATCH, "").await;
    let mut stream = Stream::open(&cluster.registry(3), subscribe_to(&["web"])).await.unwrap();
    assert_eq!(events.of_service().await.0, "snapshot");
    cluster.stop(1).await;
    cluster.stop(2).await;
    stream.until("no leader", |stream| stream.leader == Some(0)).await;
    let lost = events.leader(0).await;
    assert!(lost["header"]["revision"].is_string(), "{lost}");
    cluster.restart(1).await;
    let leader = cluster.leader_of(&[1, 3]).await;
    stream.until("a leader", |stream| stream.leader == Some(leader)).await;
    events.leader(leader).await;
    register(&mut cluster.registry(1), "web", "b").await;
    let (name, data) = events.of_service().await;
    assert_eq!((&*name, &data["changes"][0]["kind"]), ("change", &json!("added")), "{data}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_right_and_with_its_node() {
    let access = entry("qrt_reads", "role = 'read'\nnamespace = 'default'\nprefix = 'web'");
    let mut guarded = Guarded::start(1, &access).await;
    let http = guarded.cluster.http_address(1);
    let by = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let mut reads = Events::open(http, WATCH, &by("qrt_reads")).await;
    let mut root = Events::open(http, WATCH, &by(ROOT)).await;
    assert_eq!(reads.of_service().await.0, "snapshot");
    assert_eq!(root.of_service().await.0, "snapshot");
    guarded.rewrite("");
    let (name, data) = reads.of_service().await;
    assert_eq!((&*name, &data["status"]), ("end", &json!(401)), "{data}");
    assert_eq!(reads.next().await, None);
    guarded.cluster.stop(1).await;
    let (name, data) = root.of_service().await;
    assert_eq!((&*name, &data["code"]), ("end", &json!("UNAVAILABLE")), "{data}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_until_its_service_changes_and_no_other() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    register(&mut cluster.registry(1), "web", "a").await;
    let index =
        |answer: &super::http_api::Answer| answer.body["index"].as_str().unwrap().to_owned();
    let at_once = get(http, &format!("{WEB}?index=0&wait=10m")).await;
    let first = index(&at_once);
    let waits = format!("{WEB}?index={first}&wait=10m");
    let waiting = tokio::spawn(async move { get(http, &waits).await });
    register(&mut cluster.registry(1), "other", "x").await;
    let asked = Instant::now();
    let over = get(http, &format!("{WEB}?index={first}&wait=200ms")).await;
    assert_eq!(index(&over), first, "another service's change is none");
    assert!(asked.elapsed() >= Duration::from_millis(200), "it waited: {:?}", asked.elapsed());
    let (_, alone) = first.split_once('-').unwrap();
    let asked = Instant::now();
    let over = get(http, &format!("{WEB}?index={alone}&wait=200ms")).await;
    assert_eq!(index(&over), first, "{over:?}");
    assert!(asked.elapsed() >= Duration::from_millis(200), "no cluster: {:?}", asked.elapsed());
    assert!(!waiting.is_finished());
    let spec = json!({ "endpoints": { "http": "http://h:1" } });
    assert_eq!(write(http, &format!("PUT {WEB}/instances/b"), &spec).await.status, 200);
    let changed = waiting.await.unwrap();
    assert_ne!(index(&changed), first);
    assert_eq!(changed.body["service"]["instances"].as_array().unwrap().len(), 2, "{changed:?}");
    let foreign = get(http, &format!("{WEB}?index=00000000000000ff-99&wait=10m")).await;
    assert_eq!(index(&foreign), index(&changed), "answered at once");
    // What its service was before is no answer to who has seen more.
    let (_, revision) =
        index(&changed).split_once('-').map(|(id, at)| (id.to_owned(), at.to_owned())).unwrap();
    let next = revision.parse::<u64>().unwrap() + 1;
    let unseen = format!("{WEB}?consistency=local&min_revision={next}&index={first}&timeout=500ms");
    get(http, &unseen).await.refuses(503, "UNAVAILABLE", None);
    // Ahead of everything: no list was ever there.
    let (cluster_id, _) = first.split_once('-').unwrap();
    let ahead = format!("{cluster_id}-{}", u64::MAX);
    let later = get(http, &format!("{WEB}?index={ahead}&wait=1ms")).await;
    assert_eq!((later.status, &later.body["code"]), (400, &json!("OUT_OF_RANGE")), "{later:?}");
}

/// Such a page had nothing of a service that is there. It was taken for one that is not known, and
/// who waited for a change of it kept the whole listener busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_behind_the_last_instance_is_still_of_its_service() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    register(&mut cluster.registry(1), "web", "a").await;
    let whole = get(http, WEB).await;
    let behind = get(http, &format!("{WEB}?after=web/zzzz")).await;
    assert_eq!(behind.body["index"], whole.body["index"], "{behind:?}");
    assert_ne!(behind.header("etag"), whole.header("etag"), "another part: {behind:?}");
    let (service, none) = (&behind.body["service"], json!([]));
    assert_eq!((&service["known"], &service["instances"]), (&json!(true), &none), "{behind:?}");
    let index = whole.body["index"].as_str().unwrap();
    for after in ["web/zzzz", "zzzz/a"] {
        let asked = Instant::now();
        let path = format!("{WEB}?index={index}&wait=200ms&consistency=local&after={after}");
        let waited = get(http, &path).await;
        assert_eq!((waited.status, &waited.body["index"]), (200, &whole.body["index"]));
        assert!(asked.elapsed() >= Duration::from_millis(200), "{:?}", asked.elapsed());
        assert_eq!(waited.body["service"]["known"], true, "{waited:?}");
    }
    let path = format!("{WEB}?index={index}&wait=10m&consistency=local&after=web/zzzz");
    let waiting = tokio::spawn(async move { get(http, &path).await });
    register(&mut cluster.registry(1), "other", "b").await;
    // Who waits keeps nobody busy.
    assert_eq!(get(http, "/api/v1/members").await.status, 200);
    register(&mut cluster.registry(1), "web", "zzzzz").await;
    let changed = waiting.await.unwrap();
    assert_eq!(changed.body["service"]["instances"][0]["id"], "zzzzz", "{changed:?}");
}

/// The first revision there is was once the place of a service that nobody knew.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_service_that_is_not_there_sees_its_first_instance() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let http = cluster.http_address(1);
    let nobody = get(http, WEB).await;
    assert_eq!(nobody.body["service"]["known"], false, "{nobody:?}");
    let (index, etag) = (nobody.body["index"].as_str().unwrap(), nobody.header("etag").unwrap());
    let line = format!("GET {WEB}?index={index}&wait=10m HTTP/1.0");
    let known = format!("If-None-Match: {etag}");
    let waiting =
        tokio::spawn(async move { send(http, &[&line, "Host: localhost", &known], b"").await });
    register(&mut cluster.registry(1), "web", "a").await;
    let seen = waiting.await.unwrap();
    assert_eq!(seen.status, 200, "{seen:?}");
    assert_eq!(seen.body["service"]["instances"].as_array().unwrap().len(), 1, "{seen:?}");
    let again = format!("If-None-Match: {}", nobody.header("etag").unwrap());
    let now = send(http, &[&format!("GET {WEB} HTTP/1.0"), "Host: localhost", &again], b"").await;
    assert_eq!(now.status, 200, "{now:?}");
}

/// As a stream is, it is sent to another node.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_does_not_wait_on_where_nothing_new_comes() {
    let cluster = Cluster::start(3).await;
    let gone = cluster.follower().await;
    register(&mut cluster.registry(gone), "web", "a").await;
    let http = cluster.http_address(gone);
    let now = get(http, WEB).await;
    let waits = format!("{WEB}?index={}&wait=5m", now.body["index"].as_str().unwrap());
    let waiting = tokio::spawn(async move { get_within(http, &waits, None, 3 * SOON).await });
    // Nobody sees that a node waits: it has had the time to begin when it has answered another one.
    assert_eq!(get(http, WEB).await.status, 200);
    cluster.client().await.admin().remove_node(gone).await.expect("a removal");
    let answer = waiting.await.unwrap().expect("it answers");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("is not a member"), "{}", answer.body);
}
