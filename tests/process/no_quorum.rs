//! One node of three is left: writes and linearizable reads end with an error in time, local reads
//! go on, and time stands still for the leases until there is a quorum again.

use std::time::{Duration, Instant};

use quorate_client::Consistency;
use quorate_proto::v1::FetchRequest;
use tonic::{Code, Request, Status};

use crate::cli::{Running, ask};
use crate::cluster::{Cluster, Node};
use crate::feed::{Feed, Seen};
use crate::wait::eventually;

/// The node's own deadline for calls that name none, and some time for a loaded machine.
const OWN_DEADLINE: Duration = Duration::from_millis(5_000 + 500);
/// Of callers that name one.
const CALLERS: Duration = Duration::from_secs(1);
/// Shorter than the time without a quorum.
const TTL: Duration = Duration::from_secs(2);

/// Once the leader is left, once a follower. S1.2, S4.12
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_hangs_and_local_reads_go_on() {
    let mut cluster = Cluster::start(3).await;
    for leader_is_left in [true, false] {
        let leader = cluster.leader().await;
        let alone = if leader_is_left { leader } else { cluster.others(leader)[0] };
        let feed = Feed::start(&cluster.nodes[alone]).await;
        let lease = cluster.nodes[alone].register("short", "s", TTL).await.unwrap().lease_id;
        let line = "register living l --endpoint http=http://h:1 --ttl 3s";
        let living = Running::ask(&cluster.all(), line);
        says(&living, "registered living/l").await;
        for at in cluster.others(alone) {
            cluster.nodes[at].kill();
        }
        let killed = Instant::now();

        let node = &cluster.nodes[alone];
        tokio::join!(
            refused("a write", OWN_DEADLINE, node.register("late", "l", TTL)),
            refused("a write", CALLERS, node.register_within("late", "l", CALLERS)),
            refused("a read", OWN_DEADLINE, fetch(node, Consistency::Linearizable, None)),
            refused("a read", CALLERS, fetch(node, Consistency::Linearizable, Some(CALLERS))),
            refused("a renewal", OWN_DEADLINE, node.renew(lease)),
        );
        let lost = |seen: &Seen| seen.leaders.last() == Some(&0);
        feed.until("word that the leader is lost", Duration::from_secs(5), lost).await;
        local_reads_tell_their_age(node, killed).await;
        commands_fail_with_what_to_do(&cluster, alone).await;
        says(&living, "not renewed, going on trying").await;

        let out_for = killed.elapsed();
        assert!(out_for > TTL * 2, "the outage is to be longer than the lease");
        // One of the two, so that the one that was left is part of the quorum, and what its log
        // says of time counts.
        let back = cluster.others(alone);
        cluster.nodes[back[0]].start();
        cluster.leader().await;
        // After this write stands all that waited in the log, also what let time pass.
        cluster.nodes[alone].register("late", "l", TTL).await.expect("writes are back");
        let state = cluster.nodes[alone].instances(Consistency::Linearizable).await.unwrap();
        assert!(
            state.contains_key("short/s"),
            "expired by {out_for:?} without a quorum: {state:?}"
        );
        says(&living, "registered and renewed again").await;
        feed.assert_gapless();
        cluster.nodes[back[1]].start();
    }
}

/// A command that goes on says how it fares.
async fn says(running: &Running, words: &str) {
    eventually(words, Duration::from_secs(10), async || {
        let said = running.out() + &running.err();
        if said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
}

async fn fetch(
    node: &Node,
    consistency: Consistency,
    within: Option<Duration>,
) -> Result<u64, Status> {
    let request = FetchRequest { consistency: consistency as i32, ..FetchRequest::default() };
    let mut request = Request::new(request);
    if let Some(within) = within {
        request.set_timeout(within);
    }
    let answer = node.registry().fetch(request).await?.into_inner();
    assert!(answer.services.iter().any(|service| service.name == "short"), "{answer:?}");
    Ok(answer.header.unwrap_or_default().age_ms)
}

async fn refused<T>(what: &str, within: Duration, call: impl Future<Output = Result<T, Status>>) {
    let begun = Instant::now();
    let slack = Duration::from_secs(3);
    let answer = tokio::time::timeout(within + slack, call).await;
    let answer = answer.unwrap_or_else(|_| panic!("{what} hangs: nothing after {within:?}"));
    let took = begun.elapsed();
    let Err(status) = answer else { panic!("{what} succeeded without a quorum") };
    eprintln!(
        "measured: no quorum: {what}, deadline {within:?}: {:?} after {took:?}",
        status.code()
    );
    assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
    assert!(took <= within, "{what} was answered after {took:?}, later than {within:?}");
    let said = status.message();
    assert!(said.contains("quorum") || said.contains("majority"), "{what}: {said}");
}

async fn local_reads_tell_their_age(node: &Node, killed: Instant) {
    let begun = Instant::now();
    let age = fetch(node, Consistency::Local, Some(CALLERS)).await.expect("a local read");
    let took = begun.elapsed();
    eprintln!("measured: no quorum: local read, age {age} ms, after {took:?}");
    let out_for = u64::try_from(killed.elapsed().as_millis()).unwrap();
    // The last word of the quorum came a little before the kill.
    assert!(age + 1_000 >= out_for && age <= out_for + 1_000, "age {age} ms, out for {out_for} ms");
}

async fn commands_fail_with_what_to_do(cluster: &Cluster, alone: usize) {
    let all = cluster.all();
    let addresses = cluster.addresses();
    let tried: Vec<&str> = addresses.iter().map(String::as_str).collect();
    for line in ["fetch short", "register a b --endpoint http=http://h:1 --once"] {
        let ran = ask(&all, &format!("{line} --timeout 2s")).await.expect(3);
        ran.says(&tried).says(&["no answer yet; trying", "next:"]);
    }
    let ran = ask(&all, "fetch short --consistency local -o json").await.expect(0).json();
    let age = ran["header"]["age_ms"].as_u64().expect("the age is known");
    assert!(age > 1_000, "{age}");
    let table = ask(&all, "fetch short --consistency local").await.expect(0).out;
    let told = format!("as node {} knew it", cluster.nodes[alone].id);
    assert!(table.contains(&told), "{table}");
    let status = ask(&all, "cluster status").await.expect(0).out;
    assert!(status.starts_with("NO QUORUM: 1 of 3 voters answer"), "{status}");
    ask(&all, "cluster status --exit-code").await.expect(2);
    assert_eq!(status.matches("DOWN").count(), 2, "{status}");
}
