//! An audit log that is required: while its file cannot be written, a node does no writes, answers
//! reads and renewals, and goes on by itself when it can.

use std::path::Path;
use std::time::Duration;

use quorate_client::Consistency;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::cluster::{Cluster, Node, Settings};
use crate::disk_full::health;
use crate::load::Load;
use crate::ports::free_port;
use crate::small_disk::SmallDisk;
use crate::wait::{eventually, time_passes};

/// Tried again twice a second.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Renewed six times within it, where that is the subject.
const TTL: Duration = Duration::from_secs(6);
/// What a line leaves of a page that a file on a full disk still has.
const PAGE: usize = 4_096;

fn table(file: &Path) -> String {
    format!("[audit]\nfile = \"{}\"\nrequired = true\n", file.display())
}

fn audited(files: impl IntoIterator<Item = (u64, String)>) -> Settings {
    Settings { head: files.into_iter().collect(), ..Settings::default() }
}

#[track_caller]
fn assert_refused(answer: Result<impl Sized, Status>, file: &Path, why: &str) -> Status {
    let Err(status) = answer else { panic!("a write is done without a line") };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for words in [&*file.display().to_string(), why] {
        assert!(status.message().contains(words), "no {words:?} in {status:?}");
    }
    status
}

/// The names in the lines of writes that were done. Each line is whole.
fn done(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let done = lines.filter(|line| line["code"] == "OK");
    done.map(|line| line["names"][0].as_str().unwrap().to_owned()).collect()
}

/// Fills what is left of the page that the log ends in, by registrations: their ids.
async fn until_refused(node: &Node) -> (Vec<String>, Status) {
    let mut ids = Vec::new();
    for at in 0..PAGE {
        let id = format!("filling-{at}");
        match node.register("web", &id, Duration::from_secs(600)).await {
            Ok(_) => ids.push(id),
            Err(status) => return (ids, status),
        }
    }
    panic!("writes go on without a line");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_a_required_audit_log_stops_writes_and_nothing_else() {
    let Some(disk) = SmallDisk::mount(1) else { return };
    let file = disk.path().join("audit");
    let cluster = Cluster::start_with(1, audited([(1, table(&file))])).await;
    let node = &cluster.nodes[0];
    let kept = node.register("kept", "a", TTL).await.unwrap();
    disk.fill(0);
    let (mut ids, status) = until_refused(node).await;
    // The one that met the full disk was done, and its caller was not told so.
    assert_refused(Err::<(), _>(status), &file, "may have been done");
    ids.push(format!("filling-{}", ids.len()));

    let refused = node.register("web", "refused", TTL).await;
    assert_refused(refused, &file, "No space left on device");
    let refused = node.deregister("kept", "a", 0).await;
    assert_refused(refused, &file, "nothing was done");
    for _ in 0..10 {
        node.renew(kept.lease_id).await.expect("renewals are no writes of the log's");
        time_passes(TTL / 6).await;
    }
    let there = node.instances(Consistency::Linearizable).await.expect("reads go on");
    assert!(there.contains_key("kept/a"), "longer than its TTL: {there:?}");
    assert!(!there.contains_key("web/refused"), "{there:?}");
    assert_eq!(there.len(), ids.len() + 1);

    disk.make_room();
    eventually("writes are done again", BACK_WITHIN, async || {
        node.register("web", "after", TTL).await.map(drop)
    })
    .await;
    let mut expected = vec!["kept/a".to_owned()];
    expected.extend(ids.iter().map(|id| format!("web/{id}")));
    expected.push("web/after".to_owned());
    assert_eq!(done(&file), expected, "a line for each write, in order, and no half one");
}

/// A load balancer that asks sends writes elsewhere, or here again.
async fn says(node: &Node, expected: ServingStatus) {
    eventually("its health says so", BACK_WITHIN, async || match health(node, "").await {
        health if health == expected => Ok(()),
        health => Err(format!("{health:?}")),
    })
    .await;
}

/// And one that asks by HTTP, with the reason.
async fn is_ready(http: &str, code: &str, words: &[&str]) {
    eventually("/readyz says so", BACK_WITHIN, async || {
        let mut answer = String::new();
        let mut stream = TcpStream::connect(http).await.map_err(|error| error.to_string())?;
        let asked = b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n";
        stream.write_all(asked).await.map_err(|error| error.to_string())?;
        stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
        let is_code = answer.starts_with(&format!("HTTP/1.0 {code} "));
        let says = words.iter().all(|word| answer.contains(word));
        if is_code && says { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// A file that takes nothing from the start, on one of three nodes: the client crate goes to
/// another one. And a file whose directory goes and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_audit_log_fails_leaves_writes_to_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let full = Path::new("/dev/full").to_owned();
    let files = [full.clone(), inside.join("audit"), dir.path().join("audit")];
    let https = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    let heads = files.iter().zip(&https);
    let heads = heads.map(|(file, http)| format!("http_listen = {http:?}\n{}", table(file)));
    let cluster = Cluster::start_with(3, audited((1..).zip(heads))).await;
    let [first, second, _] = &cluster.nodes[..] else { unreachable!("three were started") };
    assert_refused(first.register("web", "a", TTL).await, &full, "No space left on device");
    assert_refused(first.register("web", "b", TTL).await, &full, "nothing was done");
    says(first, ServingStatus::NotServing).await;
    is_ready(&https[0], "503", &["/dev/full", "No space left on device"]).await;
    is_ready(&https[2], "200", &["ready"]).await;
    assert_eq!(health(first, "quorate.disk").await, ServingStatus::Serving, "that has room");
    let client = cluster.client().build().unwrap();
    let load = Load::registering(&client, "web", 2);
    load.until_more(50).await;
    second.register("gone", "before", TTL).await.unwrap();
    std::fs::remove_dir_all(&inside).unwrap();
    let refused = second.register("gone", "meanwhile", TTL).await;
    let refused = assert_refused(refused, &files[1], "No such file");
    is_ready(&https[1], "503", &[&*files[1].display().to_string(), "No such file"]).await;
    load.until_more(50).await;
    let outcome = load.finish().await;
    outcome.assert_no_failure();
    std::fs::create_dir(&inside).unwrap();
    eventually("it goes on", BACK_WITHIN, async || {
        second.register("gone", "after", TTL).await.map(drop)
    })
    .await;
    says(second, ServingStatus::Serving).await;
    is_ready(&https[1], "200", &["ready"]).await;
    let lines = done(&files[1]);
    // Beside those of the client, which may come to any node.
    let own: Vec<_> = lines.iter().filter(|line| line.starts_with("gone/")).collect();
    // Where a write of the client has met the missing file first, this one was not begun.
    match refused.message().contains("nothing was done") {
        true => assert_eq!(own, ["gone/after"]),
        false => assert_eq!(own, ["gone/meanwhile", "gone/after"]),
    }
    let state = second.instances(Consistency::Linearizable).await.unwrap();
    outcome.assert_all_in(&state, "the cluster");
}

/// A caller that goes away does not keep what it asked for out of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_caller_went_away_has_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit");
    let mut cluster = Cluster::start_with(3, audited([(1, table(&file))])).await;
    // Without the others, it waits.
    cluster.nodes[1..].iter_mut().for_each(Node::pause);
    let given_up = cluster.nodes[0].register("web", "given-up", TTL);
    let given_up = tokio::time::timeout(Duration::from_millis(500), given_up).await;
    assert!(given_up.is_err(), "it waits: {given_up:?}");
    eventually("it has a line", BACK_WITHIN, async || {
        let text = std::fs::read_to_string(&file).unwrap();
        let is_told = |line: &&str| line.contains("web/given-up") && line.contains("CANCELLED");
        if text.lines().any(|line| is_told(&line)) { Ok(()) } else { Err(text) }
    })
    .await;
    cluster.nodes[1..].iter_mut().for_each(Node::go_on);
}
