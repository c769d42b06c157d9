//! Snapshots and the log behind them: taken, purged, sent to a node that needs one, read after a
//! restart, streamed as a backup.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use quorate_node::Tunables;
use quorate_proto::v1::{AddNodeRequest, BackupRequest, FetchRequest, TriggerSnapshotRequest};

use super::calls::{
    LONG_TTL_MS, deregister, fetch_all, fetch_of, local, map_of, register, register_many, renewal,
    set_weight,
};
use super::harness::{Cluster, eventually};
use super::metrics::metrics;
use super::stream::{Stream, subscribe_to_prefix};

fn small() -> Tunables {
    Tunables { snapshot_every: 200, keep_entries: 20, ..Tunables::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_purges_the_log_and_a_new_node_gets_it() {
    let mut cluster = Cluster::start_with(3, small()).await;
    let mut registry = cluster.registry(1);
    register_many(&mut registry, "web", 2_000).await;
    for weight in 0..50 {
        set_weight(&mut registry, "web", "i00042", weight).await;
    }
    for node in cluster.ids() {
        let taken = cluster.admin(node).trigger_snapshot(TriggerSnapshotRequest {}).await;
        let taken = taken.expect("a snapshot").into_inner();
        assert_eq!(taken.header.unwrap().node_id, node, "the answering node takes its own");
        assert!(taken.snapshot_index > 50);
        eventually("the log behind it is purged", || async {
            let own = cluster.own_status(node).await?.members[0].clone();
            assert!(own.snapshot_index >= taken.snapshot_index);
            (own.purged_index >= taken.snapshot_index).then_some(())
        })
        .await;
    }
    let after = deregister(&mut registry, "web", "i00001").await;
    cluster.add_waiting(4).await;
    let (id, peer_address) = (4, cluster.peer_address(4).to_owned());
    let request = AddNodeRequest { id, peer_address, learner_only: false };
    cluster.admin(2).add_node(request).await.expect("node 4 is added");
    let own = cluster.own_status(4).await.unwrap().members[0].clone();
    assert!(own.snapshot_index > 50, "the beginning of the log is nowhere any more: {own:?}");
    let mut request = local(fetch_of(&["web"]));
    request.min_revision = after;
    let found = map_of(cluster.registry(4).fetch(request).await.unwrap().into_inner());
    assert_eq!(found, fetch_all(&mut registry).await.1);
    assert_eq!(found.len(), 1_999);
    same_hashes(&cluster).await;
}

/// All nodes come to the same state; makes enough log entries for them to have compared it.
async fn same_hashes(cluster: &Cluster) {
    same_hashes_by(cluster, "web", "i00042").await;
}

/// By changes of an instance that is there.
pub(super) async fn same_hashes_by(cluster: &Cluster, service: &str, id: &str) {
    let mut registry = cluster.registry(cluster.ids()[0]);
    let leader = cluster.leader().await;
    let passed = cluster.own_status(leader).await.unwrap().members[0].applied_index;
    // The hash is kept at every 256th entry.
    for at in 0..260 {
        set_weight(&mut registry, service, id, 1_000 + at).await;
    }
    eventually("the same hash everywhere", || async {
        let mut found = BTreeSet::new();
        for node in cluster.ids() {
            let own = cluster.own_status(node).await?.members[0].clone();
            found.insert((own.state_hash_index, own.state_hash));
        }
        let indexes: BTreeSet<u64> = found.iter().map(|(index, _)| *index).collect();
        if indexes.len() == 1 && indexes.iter().all(|index| *index > passed) {
            assert_eq!(found.len(), 1, "the nodes disagree: {found:?}");
            return Some(());
        }
        None
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_brings_everything_back_from_snapshot_and_log() {
    // S4.12
    let mut cluster = Cluster::start_with(3, small()).await;
    let mut registry = cluster.registry(1);
    let lease = register_many(&mut registry, "web", 500).await.lease_id;
    for weight in 0..250 {
        set_weight(&mut registry, "web", "i00042", weight).await;
    }
    eventually("each node has a snapshot by itself", || async {
        for node in cluster.ids() {
            (cluster.own_status(node).await?.members[0].snapshot_index > 0).then_some(())?;
        }
        Some(())
    })
    .await;
    for weight in 0..30 {
        set_weight(&mut registry, "web", "i00043", weight).await;
    }
    let before = fetch_all(&mut registry).await;
    for _ in 0..2 {
        cluster.stop_all().await;
        for node in 1..=3 {
            cluster.restart(node).await;
        }
        for node in 1..=3 {
            // The first read that is answered is complete.
            let after = eventually("a linearizable read", || async {
                let answer = cluster.registry(node).fetch(fetch_of(&[])).await.ok()?;
                let answer = answer.into_inner();
                Some((answer.header.clone()?.revision, map_of(answer)))
            })
            .await;
            assert_eq!(after, before, "node {node}");
        }
    }
    let renewed = registry.renew(renewal([lease])).await.expect("the lease is alive").into_inner();
    assert!(renewed.unknown_lease_ids.is_empty());
    let (end, _) = (register(&mut registry, "web", "new").await, LONG_TTL_MS);
    assert_eq!(end.header.unwrap().revision, before.0 + 1, "revisions go on densely");
    let mut stream = Stream::open(&cluster.registry(3), subscribe_to_prefix("")).await.unwrap();
    stream.reach(before.0 + 1).await;
    assert_eq!(stream.map.len(), 501);
    same_hashes(&cluster).await;
}

/// Its connection broke while it took entries, and its leader does not know that it has them: so it
/// is sent a snapshot of what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_answers_were_lost_goes_on_behind_the_snapshot_that_it_is_sent() {
    const LONG: Duration = Duration::from_secs(3_600);
    let cluster = Cluster::start_cuttable(3, Tunables { keep_entries: 1, ..small() }).await;
    let leader = cluster.leader().await;
    let behind = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let mut registry = cluster.registry(leader);
    register_many(&mut registry, "web", 10).await;
    cluster.delay(behind, Duration::ZERO, LONG);
    let mut revision = 0;
    for weight in 0..150 {
        revision = set_weight(&mut registry, "web", "i00001", weight).await;
    }
    let has = async |min_revision| {
        let request = FetchRequest { min_revision, ..local(fetch_of(&["web"])) };
        cluster.registry(behind).fetch(request).await.ok().map(drop)
    };
    eventually("it has them all the same", || has(revision)).await;
    let taken = cluster.admin(leader).trigger_snapshot(TriggerSnapshotRequest {}).await;
    let taken = taken.expect("a snapshot").into_inner().snapshot_index;
    eventually("the log behind it is purged", || async {
        let own = cluster.own_status(leader).await?.members[0].clone();
        (own.purged_index + 1 >= taken).then_some(())
    })
    .await;
    cluster.cut_off(behind);
    cluster.delay(behind, Duration::ZERO, Duration::ZERO);
    cluster.reconnect(behind);
    let revision = set_weight(&mut registry, "web", "i00001", 999).await;
    eventually("it goes on", || has(revision)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_many_bytes_is_purged_however_few_its_entries() {
    let tunables =
        Tunables { snapshot_log_bytes: 64 * 1024, keep_entries: 5, ..Tunables::default() };
    let cluster = Cluster::start_with(3, tunables).await;
    let mut registry = cluster.registry(1);
    for turn in 0..2 {
        let before = cluster.own_status(1).await.unwrap().members[0].applied_index;
        for at in 0..20 {
            let mut spec = super::calls::spec("web", &format!("i{at}"));
            spec.metadata.insert("large".to_owned(), "x".repeat(4_000));
            let mut request = super::calls::registration(vec![spec]);
            request.incarnation = turn + 1;
            registry.register(request).await.unwrap();
        }
        eventually("each node has a snapshot by itself, and purged behind it", || async {
            for node in cluster.ids() {
                let own = cluster.own_status(node).await?.members[0].clone();
                (own.snapshot_index > before && own.purged_index > before).then_some(())?;
            }
            Some(())
        })
        .await;
    }
    assert_eq!(fetch_all(&mut registry).await.1.len(), 20);
    // Which node took which snapshot is open: one that falls behind is sent it.
    let (mut compactions, mut bytes) = (0.0, 0.0);
    for node in cluster.ids() {
        eventually("its metrics say so", || measures_its_status(&cluster, node)).await;
        let now = metrics(&cluster, node).await;
        compactions += now["quorate_log_compactions_total{reason=\"long\"}"];
        bytes += now["quorate_log_entry_bytes_total"];
    }
    assert!(compactions >= 2.0 && bytes > 2.0 * 20.0 * 4_000.0, "{compactions} of {bytes} bytes");
}

/// What a node measures is what its status says, and not nothing.
async fn measures_its_status(cluster: &Cluster, node: u64) -> Option<()> {
    let own = cluster.own_status(node).await?.members[0].clone();
    let now = metrics(cluster, node).await;
    let said = [
        ("quorate_raft_last_log_index", own.last_log_index),
        ("quorate_raft_applied_index", own.applied_index),
        ("quorate_snapshot_index", own.snapshot_index),
        ("quorate_log_purged_index", own.purged_index),
        ("quorate_revision", own.revision),
    ];
    said.iter().all(|(name, value)| *value > 0 && now[*name] == *value as f64).then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_a_whole_snapshot_file() {
    let cluster = Cluster::start(3).await;
    let mut registry = cluster.registry(1);
    // Enough for several chunks: ids that do not compress to nothing.
    for at in 0..3_u32 {
        let specs = (0..1_000_u32).map(|id| {
            let mut spec = super::calls::spec("web", &format!("b{at}-{id:04}"));
            let noise: String = (0..40_u32)
                .map(|n| {
                    format!("{:08x}", (n + 41 * (id + 1_001 * at)).wrapping_mul(2_654_435_761))
                })
                .collect();
            spec.metadata.insert("noise".to_owned(), noise);
            spec
        });
        registry.register(super::calls::registration(specs.collect())).await.unwrap();
    }
    let revision = fetch_all(&mut registry).await.0;
    for node in cluster.ids() {
        let mut chunks =
            cluster.admin(node).backup(BackupRequest::default()).await.unwrap().into_inner();
        let first = chunks.message().await.unwrap().expect("a first chunk");
        let header = first.header.clone().expect("the first chunk has a header");
        assert_eq!(header.node_id, node);
        // While it streams, the cluster goes on.
        register(&mut registry, "web", &format!("meanwhile-{node}")).await;
        let (mut bytes, mut count) = (first.data, 1);
        while let Some(chunk) = chunks.message().await.unwrap() {
            bytes.extend_from_slice(&chunk.data);
            count += 1;
        }
        assert_eq!(bytes.len() as u64, first.total_bytes);
        assert!(first.applied_index > 0 && count > 3, "{count} chunks");
        let snapshot = snapshot_in(&bytes);
        let head = &bytes[..bytes.len() - snapshot.len()];
        assert!(head.starts_with(b"QBACKUP\n\x01\0\0\0"), "{head:?}");
        assert!(head.windows(8).any(|window| window == b"\x07quorate"), "the cluster's name");
        let body = checked_body(snapshot);
        assert!(header.revision >= revision && header.age_ms == 0, "{header:?}");
        for id in ["b0-0000", "b1-0500", "b2-0999"] {
            let found = body.windows(id.len()).any(|window| window == id.as_bytes());
            assert!(found, "{id} is in the backup of node {node}");
        }
    }
}

/// The snapshot file in a backup.
pub(crate) fn snapshot_in(backup: &[u8]) -> &[u8] {
    let mark = b"QSNAPSHT";
    let start = backup.windows(mark.len()).position(|window| window == mark);
    &backup[start.expect("a backup has a snapshot")..]
}

/// Checks a snapshot file by its documented format (`snapshot_file.rs`); its body, decompressed.
fn checked_body(file: &[u8]) -> Vec<u8> {
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    assert!(file.starts_with(b"QSNAPSHT") && file.ends_with(b"QEND"));
    assert_eq!(u32_at(8), 1, "the format's version");
    let meta_end = 16 + u32_at(12) as usize;
    assert_eq!(u32_at(meta_end), crc32fast::hash(&file[..meta_end]), "the head's checksum");
    let (body_start, footer) = (meta_end + 4, file.len() - 16);
    assert_eq!(u64_at(footer), (footer - body_start) as u64, "the body's length");
    assert_eq!(u32_at(footer + 8), crc32fast::hash(&file[..footer + 8]), "the whole checksum");
    let mut body = Vec::new();
    let mut decoder = lz4_flex::frame::FrameDecoder::new(&file[body_start..footer]);
    decoder.read_to_end(&mut body).expect("the body's own checksums");
    body
}
