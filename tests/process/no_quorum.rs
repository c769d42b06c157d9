//! One node of three is left: writes and linearizable reads end with an error in time, local reads
//! go on, and time stands still for the leases until there is a quorum again.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate_client::Consistency;
use quorate_proto::v1::{FetchRequest, LeaseRenewal, RenewRequest};
use tonic::{Code, Request, Status};

use crate::cli::{Ran, Running, ask};
use crate::cluster::{Cluster, Node};
use crate::feed::{Feed, Seen};
use crate::raw::registration;
use crate::wait::{eventually, time_passes};

/// The node's own deadline for calls that name none, and some time for a loaded machine.
const OWN_DEADLINE: Duration = Duration::from_millis(5_000 + 500);
/// Of callers that name one: it is refused 400 ms before.
const CALLERS: Duration = Duration::from_secs(4);
/// A machine that is held up is late with a refusal; not each time.
const TRIES: usize = 4;
/// Of a command, in seconds, each time that it is tried. The refusal comes a tenth of it before.
const TIMEOUTS: [u64; TRIES] = [2, 5, 5, 5];
const PATIENCE: Duration = Duration::from_secs(30);
/// Shorter than the time without a quorum, and longer than a busy machine takes for an election and
/// two calls.
const TTL: Duration = Duration::from_secs(6);

/// Once the leader is left, once a follower. S1.2, S4.12
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_hangs_and_local_reads_go_on() {
    let mut cluster = Cluster::start(3).await;
    for leader_is_left in [true, false] {
        let leader = cluster.leader().await;
        let alone = if leader_is_left { leader } else { cluster.others(leader)[0] };
        let feed = Feed::start(&cluster.nodes[alone]).await;
        let line = "register living l --endpoint http=http://h:1 --ttl 10s";
        let living = Running::ask(&cluster.all(), line);
        says(&living, "registered living/l").await;
        // What it has then, it has of a quorum.
        let heard = Instant::now();
        let lease = cluster.nodes[alone].register("short", "s", TTL).await.unwrap().lease_id;
        for at in cluster.others(alone) {
            cluster.nodes[at].kill();
        }
        let killed = Instant::now();

        let node = &cluster.nodes[alone];
        tokio::join!(
            refused("a write", OWN_DEADLINE, || write(node)),
            refused("a write", CALLERS, || node.register_within("late", "l", CALLERS)),
            refused("a read", OWN_DEADLINE, || fetch(node, Consistency::Linearizable, None)),
            refused("a read", CALLERS, || fetch(node, Consistency::Linearizable, Some(CALLERS))),
            refused("a renewal", OWN_DEADLINE, || renew(node, lease)),
        );
        let lost = |seen: &Seen| seen.leaders.last() == Some(&0);
        feed.until("word that the leader is lost", PATIENCE, lost).await;
        local_reads_tell_their_age(node, heard, killed).await;
        commands_fail_with_what_to_do(&cluster, alone).await;
        says(&living, "not renewed, going on trying").await;

        time_passes((TTL * 2).saturating_sub(killed.elapsed())).await;
        let back_at = Instant::now();
        let out_for = back_at - killed;
        // One of the two, so that the one that was left is part of the quorum, and what its log
        // says of time counts.
        let back = cluster.others(alone);
        cluster.nodes[back[0]].start();
        cluster.leader().await;
        // After this write stands all that waited in the log, also what let time pass.
        cluster.nodes[alone].register("late", "l", TTL).await.expect("writes are back");
        let state = cluster.nodes[alone].instances(Consistency::Linearizable).await.unwrap();
        // Where there was a quorum for longer than the lease, it is gone rightly.
        if heard.elapsed() - out_for < TTL {
            assert!(
                state.contains_key("short/s"),
                "expired by {out_for:?} without a quorum: {state:?}"
            );
        }
        says(&living, "registered and renewed again").await;
        feed.assert_gapless();
        cluster.nodes[back[1]].start();
    }
}

/// What takes a quorum, at the last of three: what changes the members, the lead, the level, or
/// what is registered, what reads it, and a copy of all. Each ends within its `--timeout`, in
/// words, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn commands_without_a_quorum_say_so_in_time_and_what_to_type_next() {
    let mut cluster = Cluster::start(3).await;
    let (founders, all) = ([0, 1, 2], cluster.all());
    let new = cluster.add_new(4).await;
    cluster.nodes[new].start();
    let newcomer = cluster.nodes[new].peer_address();
    for leader_is_left in [true, false] {
        let leader = cluster.leader_among(&founders).await;
        let alone = if leader_is_left { leader } else { (leader + 1) % 3 };
        let lost: Vec<usize> = founders.into_iter().filter(|at| *at != alone).collect();
        let [gone, also_gone] = [lost[0], lost[1]].map(|at| cluster.nodes[at].id);
        for at in &lost {
            cluster.nodes[*at].kill();
        }
        let backup = cluster.dir().join("registry.backup");
        let lines = [
            format!("cluster add 4 {newcomer}"),
            format!("cluster replace {gone} 4 {newcomer}"),
            format!("cluster backup {}", backup.display()),
            "cluster overrides".to_owned(),
            "cluster override web a --weight 0".to_owned(),
            "cluster override web a --clear".to_owned(),
            "cluster upgrade finalize".to_owned(),
            "cluster upgrade hold".to_owned(),
            "cluster transfer-leader".to_owned(),
            format!("cluster transfer-leader {gone}"),
            format!("cluster remove {gone}"),
            format!("cluster remove {also_gone}"),
            "register web a --endpoint http=http://h:1 --once".to_owned(),
            "update web a --weight 5".to_owned(),
            "deregister web a".to_owned(),
            "services".to_owned(),
        ];
        // A few at a time: each takes a core for a moment.
        for some in lines.chunks(4) {
            join_all(some.iter().map(|line| ends_in_time(&all, line))).await;
        }
        assert!(!backup.exists());
        for at in lost {
            cluster.nodes[at].start();
        }
        cluster.leader_among(&founders).await;
        let status = ask(&all, "cluster status -o json").await.expect(0).json();
        let members = status["members"].as_array().expect("members");
        let ids: Vec<_> = members.iter().map(|of| of["member"]["id"].as_u64()).collect();
        assert_eq!(ids, [Some(1), Some(2), Some(3)], "{status}");
    }
}

/// At its timeout, or before, and in words; not each time where the machine is held up: there it is
/// late, or has given up before it hears why.
async fn ends_in_time(nodes: &str, line: &str) {
    let mut held_up = Vec::new();
    for seconds in TIMEOUTS {
        let begun = Instant::now();
        let ran = ask(nodes, &format!("{line} --timeout {seconds}s")).await;
        let took = begun.elapsed();
        eprintln!("measured: no quorum: {line}: exit code {} after {took:?}", ran.code);
        let Ran { code, err, .. } = &ran;
        // A leader that is left refuses at once what takes the others, and says who is missing.
        let is_refused = *code == 1 && err.contains("was refused");
        let says = match line.split(' ').nth(1) {
            Some("upgrade") if is_refused => ["start it", "does not say which levels"],
            Some("transfer-leader") if is_refused => ["cannot lead now", "not heard of"],
            Some("remove") if is_refused => ["`quorate cluster status` names them", "reach"],
            // What adds a node may still wait there when its caller has gone.
            Some("upgrade" | "transfer-leader" | "remove")
                if err.contains("another membership") =>
            {
                ["going on", "`quorate cluster status` says how"]
            }
            Some("backup") => ["no quorum", "without a quorum, `quorate cluster backup --local`"],
            _ => ["no quorum", "`quorate cluster status` says how"],
        };
        let says_why = says.iter().all(|words| err.contains(words));
        assert!(says_why || err.contains("no answer"), "{line}: {err}");
        assert!(!err.contains("dependents"), "{line} is told, and not what it asks first: {err}");
        assert_eq!(*code, if is_refused { 1 } else { 3 }, "{line}: {ran:?}");
        if says_why && took <= Duration::from_millis(seconds * 1_000 + 500) {
            return;
        }
        held_up.push(format!("after {took:?}, of {seconds} s: {err}"));
    }
    panic!("{line} ended late, or does not say why: {held_up:#?}");
}

/// A command that goes on says how it fares.
async fn says(running: &Running, words: &str) {
    eventually(words, PATIENCE, async || {
        let said = running.out() + &running.err();
        if said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Without a deadline of its own.
async fn write(node: &Node) -> Result<(), Status> {
    node.registry().register(registration("late", "l", TTL, 0)).await.map(drop)
}

/// Without a deadline of its own.
async fn renew(node: &Node, lease_id: u64) -> Result<(), Status> {
    let request = RenewRequest { renewals: vec![LeaseRenewal { lease_id }], ..<_>::default() };
    node.registry().renew(request).await.map(drop)
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

/// Each time it is called, and in time.
async fn refused<T>(what: &str, within: Duration, call: impl AsyncFn() -> Result<T, Status>) {
    for tries in 1.. {
        let begun = Instant::now();
        let answer = tokio::time::timeout(within + PATIENCE, call()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{what} hangs: nothing after {within:?}"));
        let took = begun.elapsed();
        let Err(status) = answer else { panic!("{what} succeeded without a quorum") };
        eprintln!(
            "measured: no quorum: {what}, deadline {within:?}: {:?} after {took:?}",
            status.code()
        );
        // The caller has given up before it heard of it.
        let is_given_up = status.code() == Code::Cancelled;
        if !is_given_up {
            assert_eq!(status.code(), Code::Unavailable, "{what}: {status}");
            let said = status.message();
            assert!(said.contains("quorum") || said.contains("majority"), "{what}: {said}");
        }
        if !is_given_up && took <= within {
            return;
        }
        assert!(
            tries < TRIES,
            "{what} was answered after {took:?}, not within {within:?}: {status}"
        );
    }
}

/// The last word of the quorum came between these, or as much sooner or later as this node was held
/// up.
async fn local_reads_tell_their_age(node: &Node, heard: Instant, killed: Instant) {
    let before = killed.elapsed().as_millis() as u64;
    let age = fetch(node, Consistency::Local, Some(PATIENCE)).await.expect("a local read");
    let after = heard.elapsed().as_millis() as u64;
    eprintln!("measured: no quorum: local read, age {age} ms, out for {before} ms");
    let is_told = age + 3_000 >= before && age <= after + 3_000;
    assert!(is_told, "age {age} ms, out for {before} to {after} ms");
}

/// Each time with the exit code; where the machine is held up, the time may be over before every
/// node was tried.
async fn fails_and_says(nodes: &str, line: &str, words: &[&str]) {
    let mut held_up = Vec::new();
    for seconds in TIMEOUTS {
        let ran = ask(nodes, &format!("{line} --timeout {seconds}s")).await.expect(3);
        if words.iter().all(|word| ran.err.contains(word)) {
            return;
        }
        held_up.push(format!("of {seconds} s: {}", ran.err));
    }
    panic!("{line} does not say all of {words:?}: {held_up:#?}");
}

async fn commands_fail_with_what_to_do(cluster: &Cluster, alone: usize) {
    let all = cluster.all();
    let addresses = cluster.addresses();
    let tried: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let words = [&tried[..], &["still waiting; trying", "next:"]].concat();
    for line in ["fetch short", "register a b --endpoint http=http://h:1 --once"] {
        fails_and_says(&all, line, &words).await;
    }
    let ran = ask(&all, "fetch short --consistency local -o json").await.expect(0).json();
    let age = ran["header"]["age_ms"].as_u64().expect("the age is known");
    assert!(age > 1_000, "{age}");
    let table = ask(&all, "fetch short --consistency local").await.expect(0).out;
    let told = format!("as node {} knew it", cluster.nodes[alone].id);
    assert!(table.contains(&told), "{table}");
    // One that is held up does not answer in time.
    eventually("the status says it", PATIENCE, async || {
        let status = ask(&all, "cluster status --exit-code").await;
        let is_said = status.out.starts_with("NO QUORUM: 1 of 3 voters answer")
            && status.out.matches("DOWN").count() == 2;
        if is_said && status.code == 2 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    ask(&all, "cluster status").await.expect(0);
}
