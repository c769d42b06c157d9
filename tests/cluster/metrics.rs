//! What the HTTP listener answers: health, readiness, metrics, and nothing to those who may not
//! read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use quorate_node::Tunables;
use quorate_proto::v1::{
    BackupRequest, LeaseRenewal, RenewRequest, TransferLeaderRequest, TriggerSnapshotRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::Request;

use super::calls::{fetch_of, in_time, register, register_many, registration, spec};
use super::guarded::{Guarded, ROOT, entry};
use super::harness::{Cluster, SOON, eventually};
use super::stream::{Stream, subscribe_to};

/// An answer: its status, its headers, its body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// In small letters.
    pub(super) headers: String,
    pub(super) body: String,
}

/// Sends bytes and reads until the other end closes.
async fn exchange(to: SocketAddr, request: &[u8]) -> Option<Answer> {
    exchange_within(to, request, SOON).await
}

async fn exchange_within(to: SocketAddr, request: &[u8], within: Duration) -> Option<Answer> {
    let exchanged = async {
        let mut stream = TcpStream::connect(to).await.ok()?;
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    let answer = timeout(within, exchanged).await.expect("it answers or closes")?;
    let (headers, body) = answer.split_once("\r\n\r\n")?;
    let status = headers.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, headers: headers.to_lowercase(), body: body.to_owned() })
}

pub(super) async fn get(to: SocketAddr, path: &str, token: Option<&str>) -> Option<Answer> {
    get_within(to, path, token, SOON).await
}

/// The same, for what is answered late on purpose.
pub(super) async fn get_within(
    to: SocketAddr,
    path: &str,
    token: Option<&str>,
    within: Duration,
) -> Option<Answer> {
    let authorization =
        token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Connection: close\r\n\r\n"
    );
    exchange_within(to, request.as_bytes(), within).await
}

/// Sends a body of JSON.
pub(super) async fn put(
    to: SocketAddr,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> Option<Answer> {
    let authorization =
        token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let length = body.len();
    let request = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    exchange(to, request.as_bytes()).await
}

/// All samples without their comments, by name and labels.
pub(super) async fn metrics(cluster: &Cluster, id: u64) -> BTreeMap<String, f64> {
    let answer = get(cluster.http_address(id), "/metrics", None).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect()
}

/// All that a label may be: nobody's id, and no caller's address. Of services, there are 50.
const LABELS: [&str; 17] = [
    "certificate",
    "cluster",
    "code",
    "grpc_code",
    "grpc_method",
    "grpc_service",
    "grpc_type",
    "lane",
    "le",
    "method",
    "namespace",
    "peer",
    "reason",
    "route",
    "service",
    "type",
    "version",
];

/// The names of the labels of a series.
fn labels(series: &str) -> Vec<&str> {
    let labels = series.split_once('{').map_or("", |(_, labels)| labels);
    labels.split('"').step_by(2).map(|it| it.trim_matches([',', '=', '}'])).collect()
}

/// No label may have any number of values, and this id is nowhere.
fn are_of_nobody(samples: &BTreeMap<String, f64>, id: &str) {
    let known = |label: &&str| label.is_empty() || LABELS.contains(label);
    let others = |series: &&String| !labels(series).iter().all(known) || series.contains(id);
    let others: Vec<_> = samples.keys().filter(others).collect();
    assert!(others.is_empty(), "labels of which there may be any number: {others:?}");
}

#[test]
fn labels_are_found() {
    assert_eq!(labels("a{b=\"c\",le=\"+Inf\"}"), ["b", "le", ""]);
    assert_eq!(labels("a"), [""]);
}

/// The calls of a method of the registry, of this kind.
fn calls(
    now: &BTreeMap<String, f64>,
    metric: &str,
    (kind, method): (&str, &str),
    more: &str,
) -> f64 {
    let labels = format!("grpc_service=\"quorate.v1.Registry\",grpc_method=\"{method}\"{more}");
    let name = format!("{metric}{{grpc_type=\"{kind}\",{labels}}}");
    *now.get(&name).unwrap_or_else(|| panic!("{name} in {now:#?}"))
}

/// What a node says as leader, when it hears all three. On a busy machine, silence may have elected
/// another one.
async fn metrics_of_leader(cluster: &Cluster, leader: u64) -> BTreeMap<String, f64> {
    eventually("it leads, and hears the others", || async {
        let now = metrics(cluster, leader).await;
        if now.get("quorate_raft_is_leader") == Some(&0.0) {
            let request = in_time(TransferLeaderRequest { to_id: leader });
            cluster.admin(leader).transfer_leader(request).await.ok()?;
        }
        (now.get("quorate_raft_voters_reachable") == Some(&3.0)).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_happened() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut watch =
        Stream::open(&cluster.registry(leader), subscribe_to(&["orders"])).await.unwrap();
    register_many(&mut cluster.registry(leader), "orders", 7).await;
    register(&mut cluster.registry(leader), "billing", "b").await;
    let unknown = cluster.registry(leader).fetch(fetch_of(&["a b"])).await;
    assert!(unknown.is_err(), "no such name can be");
    watch.until("all are there", |watch| watch.map.len() == 7).await;

    let now = metrics_of_leader(&cluster, leader).await;
    are_of_nobody(&now, "i0000");
    let is = |name: &str| *now.get(name).unwrap_or_else(|| panic!("{name} in {now:#?}"));
    for (name, value) in [
        ("quorate_instances", 8.0),
        ("quorate_leases", 2.0),
        ("quorate_services", 2.0),
        ("quorate_service_instances{namespace=\"default\",service=\"orders\"}", 7.0),
        ("quorate_changes_total", 8.0),
        ("quorate_watches", 1.0),
        ("quorate_raft_has_leader", 1.0),
        ("quorate_raft_is_leader", 1.0),
        ("quorate_raft_is_voter", 1.0),
        ("quorate_raft_voters", 3.0),
        ("quorate_raft_voters_reachable", 3.0),
        ("quorate_disk_low", 0.0),
    ] {
        assert_eq!(is(name), value, "{name}");
    }
    let handled = |method: &str, code: &str| {
        let code = format!(",grpc_code=\"{code}\"");
        calls(&now, "grpc_server_handled_total", ("unary", method), &code)
    };
    assert_eq!(handled("Register", "OK"), 2.0);
    assert_eq!(handled("Fetch", "InvalidArgument"), 1.0);
    for (of, count) in
        [(("unary", "Register"), 2.0), (("unary", "Fetch"), 1.0), (("bidi_stream", "Watch"), 1.0)]
    {
        assert_eq!(calls(&now, "grpc_server_started_total", of, ""), count, "{of:?}");
    }
    assert!(is("quorate_commit_seconds_count") >= 2.0);
    assert!(is("quorate_log_flush_seconds_count") >= 1.0 && is("quorate_log_entries_total") >= 2.0);
    assert!(is("quorate_watch_propagation_seconds_count") >= 1.0);
    assert!(is("quorate_log_journal_bytes_total") > 0.0 && is("quorate_log_size_bytes") > 1e6);
    assert_eq!(
        (is("quorate_snapshot_timestamp_seconds"), is("quorate_backup_timestamp_seconds")),
        (0.0, 0.0)
    );
    assert!(is("process_open_fds") > 10.0 && is("process_max_fds") > is("process_open_fds"));
    assert!(is("process_resident_memory_bytes") > 1e6 && is("process_cpu_seconds_total") > 0.0);
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for other in others.clone() {
        eventually("heartbeats are timed", || async {
            let count = format!("quorate_peer_rtt_seconds_count{{peer=\"{other}\"}}");
            (metrics(&cluster, leader).await[&count] >= 1.0).then_some(())
        })
        .await;
        let theirs = metrics(&cluster, other).await;
        assert_eq!(theirs["quorate_raft_is_leader"], 0.0);
        assert!(theirs["quorate_raft_last_contact_seconds"] >= 0.0);
    }

    cluster.stop(others[0]).await;
    eventually("the leader misses it", || async {
        let now = metrics(&cluster, leader).await;
        (now["quorate_raft_voters_reachable"] == 2.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_taken_out_is_measured_no_more() {
    let cluster = Cluster::start(3).await;
    let (leader, gone) = (cluster.leader().await, cluster.follower().await);
    let count = format!("quorate_peer_rtt_seconds_count{{peer=\"{gone}\"}}");
    let is_measured = async || metrics(&cluster, leader).await.contains_key(&count);
    eventually("heartbeats are timed", || async { is_measured().await.then_some(()) }).await;
    cluster.client().await.admin().remove_node(gone).await.expect("a removal");
    eventually("it is measured no more", || async { (!is_measured().await).then_some(()) }).await;
}

/// Renewals go in few entries, and snapshots and backups have their times.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_together_and_what_was_saved_is_measured() {
    let begun = Instant::now();
    let cluster = Cluster::start(1).await;
    register_many(&mut cluster.registry(1), "orders", 300).await;
    let fetched = cluster.registry(1).fetch(fetch_of(&["orders"])).await.unwrap().into_inner();
    let lease_id = fetched.services[0].instances[0].lease_id;
    let renewals = vec![LeaseRenewal { lease_id }; 3];
    let request = RenewRequest { renewals, ..RenewRequest::default() };
    cluster.registry(1).renew(request).await.unwrap();
    let now = metrics(&cluster, 1).await;
    assert_eq!(now["quorate_renewals_per_batch_count"], 1.0);
    let leases = now["quorate_renewals_per_batch_sum"];
    assert!((1.0..=3.0).contains(&leases), "{leases}");
    assert_eq!(now["quorate_renewals_per_batch_bucket{le=\"+Inf\"}"], 1.0);

    let uptime = now["quorate_uptime_seconds"];
    assert!(uptime > 0.0 && uptime < begun.elapsed().as_secs_f64(), "{uptime}");
    let since = "quorate_log_since_snapshot_bytes";
    let written = eventually("all of the log is since the start", || async {
        let now = metrics(&cluster, 1).await;
        (now[since] == now["quorate_log_entry_bytes_total"]).then_some(now[since])
    })
    .await;
    assert!(written > 1e3, "300 instances: {written}");

    let before = UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - 1.0;
    let taken = cluster.admin(1).trigger_snapshot(TriggerSnapshotRequest {}).await.unwrap();
    let now = metrics(&cluster, 1).await;
    assert!(
        now["quorate_snapshot_timestamp_seconds"] >= before && now["quorate_snapshot_bytes"] > 1e3
    );
    assert_eq!(now["quorate_snapshot_index"], taken.into_inner().snapshot_index as f64);
    assert!(now["quorate_uptime_seconds"] > uptime, "time passes");
    eventually("little was written since", || async {
        (metrics(&cluster, 1).await[since] < written).then_some(())
    })
    .await;
    assert_eq!(now["quorate_backup_timestamp_seconds"], 0.0);
    let mut backup = cluster.admin(1).backup(BackupRequest::default()).await.unwrap().into_inner();
    let first = backup.message().await.unwrap();
    assert!(first.is_some(), "it begins");
    while let Some(_chunk) = backup.message().await.unwrap() {}
    let now = metrics(&cluster, 1).await;
    assert!(now["quorate_backup_timestamp_seconds"] >= before, "all of it was taken");
}

/// All of one listener, and those that gave way on any.
const OF_CONNECTIONS: [&str; 3] = ["connections", "connections_of_address", "silent_connections"];

/// Callers keep their places: of five, the last one is refused, which counts in this lane, until
/// one of the others has left.
async fn a_fifth_caller_is_refused(tunables: Tunables, lane: &str) {
    let cluster = Cluster::start_with(1, tunables).await;
    let connections = async || metrics(&cluster, 1).await["quorate_connections"];
    eventually("those of the founding have ended", || async {
        (connections().await == 0.0).then_some(())
    })
    .await;
    let refused = async || {
        let now = metrics(&cluster, 1).await;
        OF_CONNECTIONS.map(|lane| now[&format!("quorate_refused_total{{lane=\"{lane}\"}}")])
    };
    let call = async || {
        let registry = cluster.registry(1);
        let mut watch = Stream::open(&registry, subscribe_to(&["orders"])).await.ok()?;
        watch.snapshot().await;
        Some((registry, watch))
    };
    let before = refused().await;
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(call().await.expect("a place"));
    }
    assert_eq!(refused().await, before);
    assert!(call().await.is_none(), "all places are taken by callers");
    let after = refused().await;
    for (at, other) in OF_CONNECTIONS.into_iter().enumerate() {
        let more = after[at] - before[at];
        assert!(if other == lane { more >= 1.0 } else { more == 0.0 }, "{lane}: {other} {more}");
    }
    assert_eq!(connections().await, 4.0);
    drop(callers.pop());
    callers.push(eventually("another one has the place", call).await);
    assert_eq!(connections().await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_all_places_are_refused_and_counted() {
    let in_all = Tunables { connections_max: 4, ..Tunables::default() };
    a_fifth_caller_is_refused(in_all, "connections").await;
    let of_address =
        Tunables { connections_max: 64, connections_per_address_max: 4, ..Tunables::default() };
    a_fifth_caller_is_refused(of_address, "connections_of_address").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_their_limit_and_silent_connections_that_give_way_are_counted() {
    let tunables =
        Tunables { calls_max: 64, connections_per_address_max: 30, ..Tunables::default() };
    let cluster = Cluster::start_with(1, tunables).await;
    let refused = async |lane: &str| {
        metrics(&cluster, 1).await[&format!("quorate_refused_total{{lane=\"{lane}\"}}")]
    };
    let registry = cluster.registry(1);
    let mut watches = Vec::new();
    for _ in 0..64 {
        watches.push(Stream::open(&registry, subscribe_to(&["orders"])).await.expect("a place"));
    }
    for lane in ["calls", "calls_of_address", "connections_of_address", "reads"] {
        assert_eq!(refused(lane).await, 0.0, "{lane}");
    }
    for _ in 0..3 {
        assert!(Stream::open(&registry, subscribe_to(&["orders"])).await.is_err(), "too many");
    }
    assert_eq!((refused("calls").await, refused("calls_of_address").await), (3.0, 0.0));
    let mut connections = Vec::new();
    for _ in 0..50 {
        connections.push(TcpStream::connect(cluster.client_address(1)).await.unwrap());
    }
    eventually("those that are too many end", || async {
        (refused("silent_connections").await >= 20.0).then_some(())
    })
    .await;
    for lane in ["connections", "connections_of_address"] {
        assert_eq!(refused(lane).await, 0.0, "{lane}: one that is silent gives way");
    }
    assert_eq!(metrics(&cluster, 1).await["quorate_connections"], 30.0);
}

/// Nobody hears of a write that nobody waits for any more, but for this.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_were_given_up_count_as_failed() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let failed = async |cluster: &Cluster, reason: &str| {
        metrics(cluster, leader).await
            [&format!("quorate_proposals_failed_total{{reason=\"{reason}\"}}")]
    };
    register(&mut cluster.registry(leader), "orders", "a").await;
    assert_eq!(failed(&cluster, "given_up").await, 0.0);
    for other in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.stop(other).await;
    }
    eventually("a write is given up", || async {
        let mut request = Request::new(registration(vec![spec("orders", "b")]));
        request.set_timeout(Duration::from_millis(200));
        let written = cluster.registry(leader).register(request).await;
        assert!(written.is_err(), "without a quorum: {written:?}");
        (failed(&cluster, "given_up").await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_while_it_can_serve() {
    let mut cluster = Cluster::prepare_founders(3).await;
    cluster.restart(1).await;
    let http = cluster.http_address(1);
    let ready = || get(http, "/readyz", None);
    let alone = ready().await.expect("an answer");
    assert_eq!((alone.status, alone.body.contains("waits to be founded")), (503, true));
    assert_eq!(get(http, "/healthz", None).await.unwrap().status, 200, "but it lives");
    cluster.restart(2).await;
    cluster.restart(3).await;
    eventually("it is ready", || async { (ready().await?.status == 200).then_some(()) }).await;
    cluster.stop(2).await;
    cluster.stop(3).await;
    eventually("it has no quorum", || async {
        let answer = ready().await?;
        (answer.status == 503 && answer.body.contains("no leader in sight")).then_some(())
    })
    .await;
    let refused = get(http, "/metrics", None).await.unwrap();
    assert_eq!(refused.status, 200, "that is when metrics are needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_for_those_who_may_read_everything() {
    let part = "role = 'read'\nnamespace = 'default'\nprefix = 'orders'";
    let all = "role = 'read'\nnamespace = '*'\nprefix = ''";
    let access = entry("qrt_part", part) + &entry("qrt_all", all);
    let guarded = Guarded::start(1, &access).await;
    let http = guarded.cluster.http_address(1);
    for (token, status) in [
        (None, 401),
        (Some("qrt_wrong"), 401),
        (Some("qrt_part"), 403),
        (Some("qrt_all"), 200),
        (Some(ROOT), 200),
    ] {
        let answer = get(http, "/metrics", token).await.unwrap();
        assert_eq!(answer.status, status, "{token:?}: {}", answer.body);
        assert_eq!(answer.headers.contains("www-authenticate: bearer"), status == 401);
        assert_eq!(answer.body.contains("quorate_instances"), status == 200);
    }
    // Probes have no credentials.
    for path in ["/healthz", "/readyz"] {
        let answer = get(http, path, None).await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_for_it_gets_an_answer_that_says_so() {
    let cluster = Cluster::start(1).await;
    let http = cluster.http_address(1);
    let other = get(http, "/nothing", None).await.unwrap();
    assert_eq!((other.status, other.body.contains("/metrics")), (404, true), "{}", other.body);
    let post =
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let post = exchange(http, post).await.unwrap();
    assert_eq!((post.status, post.headers.contains("allow: get,head")), (405, true));
    let long =
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(64 << 10));
    let long = exchange(http, long.as_bytes()).await;
    assert!(long.is_none_or(|answer| answer.status == 431), "too long");
    let nonsense = exchange(http, b"\x16\x03\x01\x02\x00 this is no HTTP at all\r\n\r\n").await;
    assert!(nonsense.is_none_or(|answer| answer.status == 400));
    let after = get(http, "/healthz", None).await.unwrap();
    assert_eq!(after.status, 200, "it goes on");
}
