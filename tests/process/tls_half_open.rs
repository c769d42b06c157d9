//! Handshakes that are begun and never ended, by the thousand: nobody else notices, and nothing of
//! them stays.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate_client::{InstanceBuilder, Registration, Selection, Watch, WatchEvent};
use quorate_proto::v1::registry_client::RegistryClient;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::listeners::doors;
use super::{
    Authority, Cluster, Files, SOON, TTL, channel, eventually, is_answered, is_served, start,
};
use crate::cluster::Node;
use crate::floods::{BACK_WITHIN, LONG, ROUNDS, SLOWER_MAX, UNNOTICED, p99_of};
use crate::raw::registration;
use crate::unread::resident_mib;

const HALF_OPEN: usize = 2_000;
/// As many at each other listener of a node: fewer than anybody may have there.
const AT_OTHERS: usize = 50;
/// So many are begun right before somebody comes who is to be let in.
const JUST_BEFORE: usize = 8;
/// A node gives a handshake 5 s: whoever had to wait for another one would take longer.
const WAITS_FOR_NONE: Duration = Duration::from_secs(4);
/// How many handshakes of others are timed.
const HANDSHAKES: usize = 11;
/// Others connect within this, or within three times what it takes them alone.
const CONNECTS_WITHIN: Duration = Duration::from_millis(100);
/// What the allocator may keep of two thirds of a thousand connections that are gone.
const KEPT_MIB: u64 = 16;
/// What others may open and close meanwhile.
const OTHER_DESCRIPTORS: usize = 16;

/// The head of a ClientHello, of which the rest never comes.
async fn half_open(addresses: impl Iterator<Item = String>) -> Vec<TcpStream> {
    // At once: one after the other, on a busy machine, the first would be over before the last.
    let begun = addresses.map(async |address| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
        stream
    });
    join_all(begun).await
}

/// At all listeners of all three nodes.
async fn begin(cluster: &Cluster, files: &[Files]) -> Vec<TcpStream> {
    let clients = (0..HALF_OPEN).map(|at| cluster.nodes[at % 3].clients.clone());
    let others = cluster.nodes.iter().zip(files).flat_map(|(node, files)| {
        [node.peers(), files.http.clone()].into_iter().cycle().take(2 * AT_OTHERS)
    });
    half_open(clients.chain(others)).await
}

/// The events of a watch until it is dropped, of which none may be the end of a lease.
async fn see_none_leave(mut watch: Watch) {
    let mut events = 0;
    while let Some(event) = watch.next().await {
        match event {
            WatchEvent::Snapshot(view) if events == 0 => assert_eq!(view.len(), 1),
            WatchEvent::Added(_) | WatchEvent::Modified(_) => {}
            other => panic!("a lease has expired: {other:?}"),
        }
        events += 1;
    }
}

/// Who is let in at them gets in beside half-open ones; how long it takes where that is longest.
async fn all_listeners_answer(node: &Node, files: &Files, authority: &Authority) -> Duration {
    let mut longest = Duration::ZERO;
    for door in doors(node, files) {
        let _half_open = half_open((0..JUST_BEFORE).map(|_| door.address.clone())).await;
        let begun = Instant::now();
        let answered =
            is_answered(&door.address, &authority.pem, Some(&authority.node(2)), door.speaks).await;
        answered.unwrap_or_else(|why| panic!("the listener for {}: {why}", door.of));
        let took = begun.elapsed();
        eprintln!("measured: the listener for {} beside half-open ones: {took:?}", door.of);
        longest = longest.max(took);
    }
    longest
}

/// p99 of renewals and a handshake, alone and beside half-open ones; the slowest listener then.
type Round = ([Duration; 2], [Duration; 2], Duration);

/// Whether the last of these rounds went well, by what the fastest of them took alone.
fn is_unnoticed(rounds: &[Round]) -> bool {
    let Some((_, beside, let_in)) = rounds.last() else { return false };
    let usual = |at: usize| rounds.iter().map(|(alone, ..)| alone[at]).min().unwrap_or_default();
    *let_in < WAITS_FOR_NONE
        && beside[0] <= UNNOTICED.max(usual(0) * SLOWER_MAX)
        && beside[1] <= CONNECTS_WITHIN.max(usual(1) * SLOWER_MAX)
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// GHSA-6vch-q96h-7gc3 (etcd 3.5.33): a handshake had all the time in the world.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn half_open_handshakes_keep_nobody_out_and_leave_nothing() {
    let authority = Authority::new("ours");
    let (mut cluster, files, client) = start(&authority, 3_600_000).await;
    let instance = InstanceBuilder::new("web", "a").endpoint("http", "http://h:1");
    let handle = client.register(Registration::new(instance).ttl(TTL)).await.unwrap();
    let mut watching = JoinSet::new();
    watching.spawn(see_none_leave(client.watch(Selection::service("web"))));
    let pid = cluster.nodes[0].process().pid();
    let (address, shown) = (cluster.nodes[0].clients.clone(), authority.client());
    let mut registry = RegistryClient::new(channel(&address, &authority, &shown));
    let registered = registry.register(registration("kept", "a", LONG, 0)).await.unwrap();
    let lease = registered.into_inner().lease_id;
    // Of some handshakes, the one in the middle.
    let handshake = async || {
        let mut took = Vec::new();
        for _ in 0..HANDSHAKES {
            let begun = Instant::now();
            is_served(&address, &authority.pem, Some(&shown)).await.unwrap();
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        took[HANDSHAKES / 2]
    };
    let (mut rounds, mut before) = (Vec::new(), None);
    let passed = loop {
        let alone: [Duration; 2] = tokio::join!(p99_of(&registry, lease), handshake()).into();
        let (mib, open) = *before.get_or_insert_with(|| (resident_mib(pid), descriptors(pid)));
        let half_open = begin(&cluster, &files).await;
        eventually("they are accepted", SOON, async || match descriptors(pid) {
            now if now >= open + HALF_OPEN / 4 => Ok(()),
            now => Err(format!("{now} descriptors, {open} before")),
        })
        .await;
        let beside = tokio::join!(p99_of(&registry, lease), handshake()).into();
        let with_them = resident_mib(pid);
        let let_in = all_listeners_answer(&cluster.nodes[0], &files[0], &authority).await;
        eprintln!(
            "measured: p99 of renewals and a handshake: {alone:?} alone, {beside:?} beside \
             {HALF_OPEN} half-open ones; {with_them} MiB, {mib} before"
        );
        eventually("half-open handshakes end", SOON, async || match descriptors(pid) {
            now if now <= open + OTHER_DESCRIPTORS => Ok(()),
            now => Err(format!("{now} descriptors, {open} before")),
        })
        .await;
        drop(half_open);
        rounds.push((alone, beside, let_in));
        if is_unnoticed(&rounds) {
            break true;
        }
        if rounds.len() == ROUNDS {
            break false;
        }
    };
    assert!(
        passed,
        "p99 of renewals and a handshake, alone and beside, and the slowest listener: {rounds:?}"
    );
    let kept = tokio::time::timeout(SOON, handle.registered()).await;
    kept.expect("it is renewed").unwrap();
    let ended = watching.try_join_next();
    assert!(ended.is_none(), "{ended:?}");
    let (mib, _) = before.expect("it was measured");
    eventually("the memory is given back", BACK_WITHIN, async || match resident_mib(pid) {
        now if now <= mib + KEPT_MIB => Ok(()),
        now => Err(format!("{now} MiB, {mib} before")),
    })
    .await;
}
