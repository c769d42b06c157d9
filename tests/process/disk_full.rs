//! A node whose disk is full, on a small tmpfs of its own: writes fail with a clear error or go on
//! without it, reads go on, leases stay, and when there is room again the node goes on by itself.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use quorate_client::{Consistency, Error, WatchStatus};
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::{
    ChangeKind, Health, InstanceSpec, RegisterRequest, TriggerSnapshotRequest,
};
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::ask;
use crate::cluster::{Cluster, LEADER_WITHIN, Node, Settings};
use crate::feed::Feed;
use crate::load::{Load, keep};
use crate::small_disk::SmallDisk;
use crate::wait::{eventually, time_passes};

/// The node looks at its disk every second.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// As long as a busy machine may need between two renewals.
const TTL: Duration = Duration::from_secs(8);
const KEPT: usize = 10;
/// Of what is not renewed. It is there until the disks are full.
const DEAD_TTL: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(30);
/// Below a quarter of [`RESERVE`] a node takes no entries.
const FLOOR: usize = RESERVE / 4;
const MIB: usize = 1024 * 1024;
const RESERVE: usize = 16 * MIB;

/// Three nodes, of which the first has the small disk and leads.
async fn cluster_on(disk: &SmallDisk) -> Cluster {
    let data_dirs = [(1, disk.data_dir())].into();
    let tunables = format!("disk_reserve_bytes = {}", 16 * 1024 * 1024);
    let cluster =
        Cluster::start_with(3, Settings { tunables, data_dirs, ..Settings::default() }).await;
    hand_over(&cluster, 1).await;
    cluster
}

/// Has this node lead. A machine that holds it up may have another one elected meanwhile.
async fn hand_over(cluster: &Cluster, id: u64) {
    eventually("it leads", LEADER_WITHIN, async || {
        let leader = cluster.nodes[cluster.leader().await].id;
        if leader == id {
            return Ok(());
        }
        let handed = ask(&cluster.all(), &format!("cluster transfer-leader {id}")).await;
        Err(format!("node {leader} led: {handed:?}"))
    })
    .await;
}

/// What a node says of one of its names.
pub(crate) async fn health(node: &Node, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(node.channel()).check(request).await.unwrap().into_inner().status()
}

/// What a node says of its disk, and of itself: it takes no writes without room.
async fn disk_health(node: &Node) -> ServingStatus {
    for service in ["", "quorate.v1.Registry", "quorate.v1.Admin"] {
        // They are changed one after the other.
        eventually("all say the same", NOTICED_WITHIN, async || {
            let (it, disk) = (health(node, service).await, health(node, "quorate.disk").await);
            if it == disk { Ok(()) } else { Err(format!("{service}: {it:?}, the disk: {disk:?}")) }
        })
        .await;
    }
    health(node, "quorate.disk").await
}

/// It says so, and what it has can be saved: a backup takes no room.
#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_disk_is_told_and_can_be_backed_up() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let tunables = format!("disk_reserve_bytes = {}", 16 * 1024 * 1024);
    let data_dirs = [(1, disk.data_dir())].into();
    let settings = Settings { tunables, data_dirs, ..Settings::default() };
    let cluster = Cluster::start_with(1, settings).await;
    let node = &cluster.nodes[0];
    node.register("kept", "a", Duration::from_secs(600)).await.unwrap();
    assert_eq!(disk_health(node).await, ServingStatus::Serving);
    disk.fill(8 * 1024 * 1024);
    eventually("health says it", NOTICED_WITHIN, async || match disk_health(node).await {
        ServingStatus::NotServing => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(node.status().await.unwrap().members[0].disk_low);
    let shown = ask(&cluster.all(), "cluster status").await.expect(0);
    assert!(shown.out.contains("the disk of node 1 has"), "{}", shown.out);

    let file = cluster.dir().join("full.backup");
    let before = disk.free();
    let line = format!("cluster backup {}", file.display());
    ask(&cluster.all(), &line).await.expect(0);
    assert!(disk.free() + 1024 * 1024 > before, "nothing of its size was written there");
    let backup = fs::read(&file).unwrap();
    assert!(backup.starts_with(b"QBACKUP") && backup.ends_with(b"QEND"), "a whole backup");
    disk.make_room();
    eventually("health says it", NOTICED_WITHIN, async || match disk_health(node).await {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(!node.status().await.unwrap().members[0].disk_low);
}

/// Registers so many MiB of instances, which cannot be compressed.
async fn register_mib(node: &Node, mib: usize) {
    let mut random = 1_u64;
    let mut hex = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        format!("{:08x}", random >> 32)
    };
    for at in 0..mib {
        let mut spec = |id: usize| InstanceSpec {
            service: "large".to_owned(),
            id: format!("{at}-{id}"),
            endpoints: [("http".to_owned(), "http://h:1".to_owned())].into(),
            metadata: [("m".to_owned(), (0..MIB / 128 / 8).map(|_| hex()).collect())].into(),
            ..InstanceSpec::default()
        };
        let instances = (0..128).map(&mut spec).collect();
        let request =
            RegisterRequest { instances, ttl_ms: 3_600_000, ..RegisterRequest::default() };
        node.registry().register(request).await.unwrap();
    }
}

/// The disk has less free than the reserve and that many snapshots.
async fn leaves_room_for(disk: &SmallDisk, node: &Node, bytes: usize) {
    eventually("the node notices", NOTICED_WITHIN, async || {
        disk.fill_up((RESERVE + bytes) as u64);
        let free = node.own_status().await.map_err(|status| status.to_string())?.disk_free_bytes;
        if free <= (RESERVE + bytes) as u64 { Ok(()) } else { Err(format!("{free} bytes free")) }
    })
    .await;
}

/// Above the reserve, but with less room beside it than a snapshot may take: none is begun, whoever
/// asks for one learns why at once, and a backup needs none. Where it fits after all, it is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_for_a_snapshot_says_so_and_can_be_backed_up() {
    const SNAPSHOT: usize = 12 * MIB;
    let Some(disk) = SmallDisk::mount(160) else { return };
    let data_dirs = [(1, disk.data_dir())].into();
    let tunables = format!("disk_reserve_bytes = {RESERVE}");
    let settings = Settings { tunables, data_dirs, ..Settings::default() };
    let cluster = Cluster::start_with(1, settings).await;
    let node = &cluster.nodes[0];
    register_mib(node, SNAPSHOT / MIB).await;
    ask(&cluster.all(), "cluster snapshot").await.expect(0);

    node.register("kept", "a", Duration::from_secs(600)).await.unwrap();
    leaves_room_for(&disk, node, SNAPSHOT / 2).await;
    let asked = Instant::now();
    let refused =
        AdminClient::new(node.channel()).trigger_snapshot(TriggerSnapshotRequest {}).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("bytes free, and for a snapshot"), "{refused}");
    assert!(asked.elapsed() < NOTICED_WITHIN, "it took {:?}", asked.elapsed());
    let log = node.log_text();
    assert!(log.contains("a snapshot is put off"), "{log}");
    let (file, before) = (cluster.dir().join("short.backup"), disk.free());
    ask(&cluster.all(), &format!("cluster backup {}", file.display())).await.expect(0);
    assert!(disk.free() + MIB as u64 > before, "nothing of its size was written there");
    let backup = fs::read(&file).unwrap();
    assert!(backup.starts_with(b"QBACKUP") && backup.ends_with(b"QEND"), "a whole backup");

    disk.make_room();
    leaves_room_for(&disk, node, SNAPSHOT * 3 / 2).await;
    ask(&cluster.all(), "cluster snapshot").await.expect(0);
}

fn is_full(path: &Path, log: &str) -> bool {
    log.contains("the disk is nearly full") && log.contains(&path.display().to_string())
}

/// Below its reserve: nothing of the node ever sees a full disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_nearly_full_takes_no_writes_and_recovers() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let mut cluster = cluster_on(&disk).await;
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", KEPT, TTL).await;
    let feed = Feed::start(&cluster.nodes[1]).await;
    let load = Load::registering(&client, "before", 2);
    load.until_more(50).await;
    let before = load.finish().await;
    before.assert_no_failure();

    disk.fill(8 * 1024 * 1024);
    let filled = Instant::now();
    eventually("the node notices", NOTICED_WITHIN, || async {
        let log = cluster.nodes[0].log_text();
        if is_full(&disk.data_dir(), &log) { Ok(()) } else { Err("nothing in its log") }
    })
    .await;
    // Either it has given up the lead, and writes go on without it, or it says what is wrong,
    // wherever the write arrives.
    for at in 0..3 {
        let id = format!("d{at}");
        let written = cluster.nodes[at].register("during", &id, Duration::from_secs(60)).await;
        match written {
            Ok(_) => eprintln!("disk full: a write on node {} went on elsewhere", at + 1),
            Err(status) => {
                eprintln!("disk full: a write on node {}: {status}", at + 1);
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let said = status.message();
                assert!(said.contains("disk of node 1") && said.contains("room"), "{said}");
            }
        }
        let state = cluster.nodes[at].instances(Consistency::Linearizable).await;
        before.assert_all_in(&state.expect("reads go on"), "a read while the disk is full");
    }
    // Longer than the leases live: that they could not be renewed is not their owners' fault.
    time_passes((TTL * 3 / 2).saturating_sub(filled.elapsed())).await;

    disk.make_room();
    let room = Instant::now();
    eventually("writes are back", NOTICED_WITHIN, || async {
        cluster.nodes[2].register("after", "a", Duration::from_secs(60)).await
    })
    .await;
    eprintln!("measured: disk full: writes back {:?} after there was room", room.elapsed());
    assert!(cluster.nodes[0].process().ended().is_none(), "the node survives");
    time_passes(TTL * 3 / 2).await;
    let state = cluster.equal_states().await;
    before.assert_all_in(&state, "all nodes");
    let kept = state.keys().filter(|key| key.starts_with("kept/")).count();
    assert_eq!(kept, KEPT, "live instances expired because of the full disk");
    feed.look(|seen| assert_eq!(seen.of(ChangeKind::Removed, ""), []));
    feed.assert_gapless();
}

/// Not a byte left, under load, before the node has noticed: whatever it does, the cluster loses
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_fills_up_at_once_loses_nothing() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let mut cluster = cluster_on(&disk).await;
    let client = cluster.client().build().unwrap();
    let _kept = keep(&client, "kept", KEPT, TTL).await;
    let feed = Feed::start(&cluster.nodes[1]).await;
    let load = Load::registering(&client, "stream", 4);
    load.until_more(50).await;
    disk.fill(0);
    let filled = Instant::now();
    time_passes(TTL * 3 / 2).await;
    let alive = cluster.nodes[0].process().ended().is_none();
    for at in [1, 2] {
        let state = cluster.nodes[at].instances(Consistency::Linearizable).await;
        assert!(state.is_ok(), "reads on node {}: {state:?}", at + 1);
    }
    disk.make_room();
    eventually("writes are back", NOTICED_WITHIN, || async {
        cluster.nodes[1].register("after", "a", Duration::from_secs(60)).await
    })
    .await;
    let outcome = load.finish().await;
    eprintln!("measured: disk full at once: writes paused {:?}", outcome.outage(filled));
    eprintln!("  {} failed, the first: {:?}", outcome.failures.len(), outcome.failures.first());
    for failure in &outcome.failures {
        assert!(failure.contains("disk") || failure.contains("no answer"), "{failure}");
    }
    assert!(alive, "the node's process ended: {}", cluster.nodes[0].log_text());
    let state = cluster.equal_states().await;
    outcome.assert_all_in(&state, "all nodes");
    assert_eq!(state.keys().filter(|key| key.starts_with("kept/")).count(), KEPT);
    feed.look(|seen| assert_eq!(seen.of(ChangeKind::Removed, ""), []));
    feed.assert_gapless();
}

/// A follower whose disk takes no entries hears of its leader all the same, and has one in sight.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_leaves_a_follower_whose_disk_is_full() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let cluster = cluster_on(&disk).await;
    let follower = &cluster.nodes[0];
    hand_over(&cluster, 2).await;
    cluster.nodes[1].register("s", "before", Duration::from_secs(600)).await.unwrap();
    let feed = Feed::start(follower).await;
    // The first node that is named has the time to answer, or the view would begin at another.
    let client = cluster.client().in_order(true).attempt_timeout(NOTICED_WITHIN).build().unwrap();
    let view = client.discover("s").unwrap();
    let told = || format!("{:?}, {:?}", view.age(), view.status());
    let shows = |id: &str| view.current().get(id).map(drop).ok_or_else(told);
    eventually("it has what there is", NOTICED_WITHIN, async || shows("before")).await;
    let here = follower.clients.clone();
    let is_here =
        |status| matches!(status, WatchStatus::Following { address, .. } if address == here);
    assert!(is_here(view.status()), "{}", told());

    let filled = Instant::now();
    let stays_full = async || {
        disk.fill_up((FLOOR / 2) as u64);
        let free = follower.own_status().await.map_err(|status| status.to_string())?;
        let free = free.disk_free_bytes;
        if free < FLOOR as u64 { Ok(()) } else { Err(format!("it has seen {free} bytes free")) }
    };
    eventually("the node notices", NOTICED_WITHIN, async || stays_full().await).await;
    // As it does if it was elected meanwhile, until it has handed the lead over.
    eventually("another node leads", LEADER_WITHIN, async || match cluster.leader().await {
        0 => Err("it leads"),
        _ => Ok(()),
    })
    .await;
    cluster.nodes[2].register("s", "after", Duration::from_secs(600)).await.unwrap();
    // A node that the client knows by then is the leader.
    eventually("the view shows it", SOON, async || {
        stays_full().await?;
        shows("after")
    })
    .await;
    eprintln!("measured: a full follower: the view shows a change after {:?}", filled.elapsed());
    assert!(!is_here(view.status()), "{}", told());
    // Who has one node only is sent away.
    eventually("its watch ends", 2 * SOON, async || {
        stays_full().await?;
        let why = feed.look(|seen| seen.faults.concat());
        if why.contains("has got nothing new for") { Ok(()) } else { Err(why) }
    })
    .await;
    eprintln!("measured: a full follower: its watch ends after {:?}", filled.elapsed());
    let has = |id| feed.look(|seen| seen.view.contains_key(id));
    assert!(has("s/before") && !has("s/after"), "nothing came");
    eventually("it is up to date", SOON, async || match view.age() {
        Some(age) if age < Duration::from_secs(7) => Ok(()),
        _ => Err(told()),
    })
    .await;
    disk.make_room();
    eventually("the node has it", SOON, async || {
        let there = follower.instances(Consistency::Local).await;
        let there = there.map_err(|status| status.to_string())?;
        there.get("s/after").map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
}

/// Registers `checked/a`, whose check passes while what this returns listens.
async fn checked_instance(nodes: &str) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let line = format!(
        "register checked a --endpoint e=tcp://{address} --ttl 1h --once --check tcp,every=1s,failures=2"
    );
    ask(nodes, &line).await.expect(0);
    listener
}

async fn its_check_fails(node: &Node) {
    eventually("its check fails", SOON, async || {
        let state = node.instances(Consistency::Local).await;
        let state = state.map_err(|status| status.to_string())?;
        match &state["checked/a"] {
            it if it.health() == Health::Critical => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// All nodes are below their reserve: what is read is true, time passes, the registry can be
/// emptied, and an instance can be taken out by hand or by its check; also after an election, whose
/// leader has to commit an entry first.
#[tokio::test(flavor = "multi_thread")]
async fn with_all_disks_nearly_full_reads_expiry_and_deregistrations_go_on() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let tunables = format!("disk_reserve_bytes = {}", 32 * 1024 * 1024);
    let health_checks = "allow = [\"127.0.0.0/8\"]".to_owned();
    let data_dirs = disk.data_dirs();
    let settings = Settings { tunables, data_dirs, health_checks, ..Settings::default() };
    let mut cluster = Cluster::start_with(3, settings).await;
    let nodes = cluster.all();
    let client = cluster.client().build().unwrap();
    let kept = keep(&client, "kept", KEPT, TTL).await;
    let checked = checked_instance(&nodes).await;
    cluster.nodes[0].register("dead", "a", DEAD_TTL).await.unwrap();
    for id in ["a", "b"] {
        cluster.nodes[0].register("old", id, Duration::from_secs(600)).await.unwrap();
    }

    disk.fill(20 * 1024 * 1024);
    for at in 0..3 {
        eventually("all nodes notice", NOTICED_WITHIN, async || {
            let log = cluster.nodes[at].log_text();
            if log.contains("the disk is nearly full") { Ok(()) } else { Err("not yet") }
        })
        .await;
    }
    let refused = cluster.nodes[0].register("new", "a", TTL).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // What a service says of itself is refused, and costs it nothing.
    for handle in &kept {
        let refused = handle.set_load(7).await;
        let expected = Code::ResourceExhausted;
        assert!(
            matches!(refused, Err(Error::Rejected { code, .. }) if code == expected),
            "{refused:?}"
        );
    }
    cluster.nodes[0].deregister("old", "a", 0).await.expect("it makes room");
    let line = "cluster override old b --status out-of-service --reason disk";
    ask(&nodes, line).await.expect(0);
    drop(checked);
    its_check_fails(&cluster.nodes[0]).await;

    let leader = cluster.leader().await;
    cluster.nodes[leader].kill();
    let next = cluster.leader().await;
    let state = eventually("reads go on", SOON, async || {
        cluster.nodes[next].instances(Consistency::Linearizable).await
    })
    .await;
    assert!(!state.contains_key("old/a") && state.contains_key("old/b"), "{state:?}");
    cluster.nodes[next].deregister("old", "b", 0).await.expect("it makes room");
    eventually("the dead are gone", DEAD_TTL + SOON, async || {
        let state = cluster.nodes[next].instances(Consistency::Linearizable).await;
        match state.map_err(|status| status.to_string())? {
            state if state.contains_key("dead/a") => Err("is there".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let state = cluster.nodes[next].instances(Consistency::Linearizable).await.unwrap();
    let left = state.keys().filter(|key| key.starts_with("kept/")).count();
    assert_eq!(left, KEPT, "live instances expired because of the full disk");
    disk.make_room();
    eventually("writes are back", NOTICED_WITHIN, async || {
        cluster.nodes[next].register("after", "a", Duration::from_secs(60)).await
    })
    .await;
}
