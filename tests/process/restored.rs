//! A backup, a look into it, and a cluster that is made from it while clients of the old one live.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quorate_client::Consistency;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::cli::{Ran, Running, ask, quorate};
use crate::cluster::{Cluster, LEADER_WITHIN};
use crate::crowd::Crowd;
use crate::small_disk::SmallDisk;
use crate::wait::eventually;

async fn backup(cluster: &Cluster) -> PathBuf {
    let file = cluster.dir().join("registry.backup");
    ask(&cluster.all(), &format!("cluster backup {}", file.display())).await.expect(0);
    file
}

async fn inspect(file: &Path, flags: &str) -> Ran {
    let line = format!("backup inspect {} {flags}", file.display());
    quorate(&line.split_whitespace().collect::<Vec<_>>()).await
}

async fn restore(file: &Path, dir: &Path, id: u64) -> Ran {
    let (file, dir) = (file.display().to_string(), dir.display().to_string());
    quorate(&["restore", &file, "--data-dir", &dir, "--id", &id.to_string(), "-o", "json"]).await
}

/// Every node is lost; what was registered after the backup, and who had left, show whether the
/// new cluster is what its clients make of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_restored_beside_its_clients() {
    let mut cluster = Cluster::start(3).await;
    let mut crowd = Crowd::gather(&cluster).await;
    assert_eq!(crowd.len(), 200);
    let file = backup(&cluster).await;
    crowd.grow().await;
    let gone = crowd.leave(10).await;
    for node in &mut cluster.nodes {
        node.kill();
        fs::remove_dir_all(&node.data_dir).unwrap();
    }
    let restored = restore(&file, &cluster.nodes[0].data_dir, 1).await.expect(0).json();
    assert_eq!(restored["backup"]["instances"], 200);
    assert_ne!(restored["cluster_id"], restored["backup"]["cluster_id"]);
    // With its old flags: the others of its --bootstrap do not exist any more.
    cluster.nodes[0].start();
    cluster.leader().await;
    let there = cluster.nodes[0].instances(Consistency::Local).await.unwrap();
    assert!(gone.iter().all(|key| there.contains_key(key)), "they are there until their TTL ends");
    crowd.is_back_with(&cluster.nodes[0]).await;
    crowd.is_alone_with(&cluster.nodes[0]).await;

    let first = cluster.nodes[0].clients.clone();
    for (at, id) in [(1, 4), (2, 5)] {
        cluster.nodes[at].become_new(id);
        cluster.nodes[at].start();
        let address = cluster.nodes[at].peer_address();
        eventually("it runs, and is taken in", LEADER_WITHIN, async || {
            let added = ask(&first, &format!("cluster add {id} {address}")).await;
            if added.code == 0 { Ok(()) } else { Err(added.err) }
        })
        .await;
    }
    cluster.leader().await;
    let state = cluster.equal_states().await;
    assert_eq!(state.len(), crowd.len());
    crowd.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_what_is_in_it() {
    let cluster = Cluster::start(1).await;
    let line = "register web a --endpoint http=http://h:1 --ttl 1h --once --namespace shop";
    ask(&cluster.all(), line).await.expect(0);
    ask(&cluster.all(), "register api b --endpoint grpc=http://h:2 --ttl 2h --once")
        .await
        .expect(0);
    let file = backup(&cluster).await;
    let told = inspect(&file, "-o json").await.expect(0).json();
    let header = cluster.nodes[0].status().await.unwrap().header.unwrap();
    assert_eq!(told["cluster_id"], format!("{:016x}", header.cluster_id));
    assert_eq!(told["cluster_name"], "quorate");
    assert_eq!((&told["revision"], &told["node_id"]), (&2.into(), &1.into()));
    let counts = ["services", "instances", "leases"].map(|of| told[of].as_u64().unwrap());
    assert_eq!(counts, [2, 2, 2]);
    assert_eq!(told["bytes"], fs::metadata(&file).unwrap().len());
    assert!(told["taken"].as_str().unwrap().starts_with("20"), "{told}");
    assert!(told.get("list").is_none());
    let listed = inspect(&file, "--instances -o json").await.expect(0).json();
    let names: Vec<_> = listed["list"].as_array().unwrap().iter().map(|it| &it["id"]).collect();
    assert_eq!(names, ["b", "a"], "by namespace");
    let shown = inspect(&file, "--instances").await.expect(0).out;
    for part in ["checksums verified", "2 instances", "shop", "http=http://h:1", "3600s"] {
        assert!(shown.contains(part), "no {part:?} in: {shown}");
    }
}

/// Nothing is made of what is not a whole backup, and nothing is written over.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_backup_is_refused_in_words() {
    let cluster = Cluster::start(1).await;
    let line = "register web a --endpoint http=http://h:1 --ttl 1h --once";
    ask(&cluster.all(), line).await.expect(0);
    let whole = fs::read(backup(&cluster).await).unwrap();
    let dir = cluster.dir();
    let (file, fresh) = (dir.join("bad.backup"), dir.join("fresh"));
    let snapshot = whole.windows(8).position(|window| window == b"QSNAPSHT").unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 8;
        bytes
    };
    let newer = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] = 9;
        bytes
    };
    for (what, bytes, says) in [
        ("empty", Vec::new(), "is no backup"),
        ("foreign", b"# Changelog\n\nSomething else".to_vec(), "is no backup"),
        ("a node's own snapshot", whole[snapshot..].to_vec(), "is no backup"),
        ("damaged in its head", flipped(20), "is damaged"),
        ("damaged in its content", flipped(whole.len() - 40), "is damaged or cut off"),
        ("cut in its head", whole[..20].to_vec(), "is damaged"),
        ("cut behind its head", whole[..snapshot].to_vec(), "is damaged or cut off"),
        ("cut in the middle", whole[..snapshot + 60].to_vec(), "is damaged or cut off"),
        ("cut at its end", whole[..whole.len() - 1].to_vec(), "is damaged or cut off"),
        ("with something behind it", [&whole[..], b"x"].concat(), "is damaged or cut off"),
        ("of a newer format", newer(8), "by another release; use that release's quorate"),
        (
            "with a newer snapshot",
            newer(snapshot + 8),
            "by another release; use that release's quorate",
        ),
    ] {
        fs::write(&file, bytes).unwrap();
        for ran in [inspect(&file, "").await, restore(&file, &fresh, 1).await] {
            assert_eq!(ran.code, 1, "{what}: {}", ran.err);
            // It is sound: whoever looks for another one has none.
            assert_eq!(
                ran.err.contains("damaged"),
                says.contains("damaged"),
                "{what}: {}",
                ran.err
            );
            ran.says(&[says, &file.display().to_string()]);
        }
        assert!(!fresh.exists(), "{what}: something was made of it");
    }
    inspect(&dir.join("missing"), "").await.expect(1).says(&["missing", "No such file"]);

    fs::write(&file, &whole).unwrap();
    let own = &cluster.nodes[0].data_dir;
    restore(&file, own, 1).await.expect(1).says(&["is not empty", "nothing is overwritten"]);
    let other = dir.join("other");
    fs::create_dir_all(other.join("lost+found")).unwrap();
    restore(&file, &other, 7).await.expect(0);
    restore(&file, &other, 7).await.expect(1).says(&["is not empty"]);
    let instances = cluster.nodes[0].instances(Consistency::Local).await;
    assert_eq!(instances.unwrap().len(), 1, "the cluster goes on");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// All that is registered stands in them: nobody but their owner reads a backup and a data
/// directory. What has a name like a backup's is not touched.
#[tokio::test(flavor = "multi_thread")]
async fn backups_and_data_are_their_owners_and_other_files_stay() {
    let cluster = Cluster::start(1).await;
    let foreign = cluster.dir().join("registry.backup.partial");
    fs::write(&foreign, "mine").unwrap();
    let file = backup(&cluster).await;
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "mine");
    assert_eq!(mode(&file), 0o600);
    let there = fs::read(&file).unwrap();
    ask(&cluster.all(), &format!("cluster backup {}", file.display())).await.expect(1);
    assert_eq!(fs::read(&file).unwrap(), there, "it exists: it stays");
    let (data, nowhere) = (&cluster.nodes[0].data_dir, cluster.dir().join("nowhere.backup"));
    ask("127.0.0.1:1", &format!("cluster backup {} --timeout 1s", nowhere.display()))
        .await
        .expect(3);
    let left = fs::read_dir(cluster.dir()).unwrap();
    let left =
        left.filter(|item| item.as_ref().unwrap().file_name().to_string_lossy().contains("backup"));
    assert_eq!(left.count(), 2, "the backup and the foreign file");

    ask(&cluster.all(), "cluster snapshot").await.expect(0);
    for dir in [data.clone(), data.join("log"), data.join("snapshots")] {
        assert_eq!(mode(&dir), 0o700, "{}", dir.display());
    }
    let snapshots = fs::read_dir(data.join("snapshots")).unwrap().map(|item| item.unwrap().path());
    let files = ["journal-0", "journal-1", "acknowledged"].map(|name| data.join("log").join(name));
    for file in files.into_iter().chain(snapshots) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

/// A way to a node on which the checksum at the end of a backup is changed, as a bad disk or memory
/// would: what arrives has the length that was promised.
async fn rotting(target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            let node = TcpStream::connect(&target).await.unwrap();
            let ((mut from_caller, mut to_caller), (mut from_node, mut to_node)) =
                (caller.into_split(), node.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_caller, &mut to_node).await });
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 20];
                while let Ok(read @ 1..) = from_node.read(&mut bytes).await {
                    let end = bytes[..read].windows(4).position(|it| it == b"QEND");
                    if let Some(end) = end {
                        bytes[end - 1] ^= 8;
                    }
                    if to_caller.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// On the day when it is taken, and not when it is needed.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_comes_damaged_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start(1).await;
    let line = "register web a --endpoint http=http://h:1 --ttl 1h --once";
    ask(&cluster.all(), line).await.expect(0);
    let by_way = rotting(cluster.nodes[0].clients.clone()).await;
    let file = cluster.dir().join("registry.backup");
    let line = format!("cluster backup {}", file.display());
    ask(&by_way, &line).await.expect(1).says(&[
        "that node 1 sent came damaged",
        "the checksum does not match",
        "next: take it from another node",
    ]);
    assert_eq!(backups_in(cluster.dir()), [""; 0]);
    ask(&cluster.all(), &line).await.expect(0);
    inspect(&file, "").await.expect(0);
}

/// The names of what is a backup or a part of one.
fn backups_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.contains("backup")).collect()
}

/// By a process that was killed: the next one cannot go on with it, and it is as large as a backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_takes_away_what_a_killed_one_left_a_day_ago() {
    let cluster = Cluster::start(1).await;
    let file = backup(&cluster).await;
    let half = fs::read(&file).unwrap()[..100].to_vec();
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    let made = |name: &str, bytes: &[u8], ago: Duration| {
        let path = cluster.dir().join(name);
        fs::write(&path, bytes).unwrap();
        let at = fs::metadata(&path).unwrap().modified().unwrap() - ago;
        fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    };
    made(".left.backup-a1B2c3.partial", &half, hours(25));
    made(".new.backup-a1B2c3.partial", &half, hours(23));
    made(".other.backup-a1B2c3.partial", b"something else", hours(25));
    made("visible.backup-a1B2c3.partial", &half, hours(25));
    made("old.backup", &half, hours(25));
    let next = cluster.dir().join("next.backup");
    let ran = ask(&cluster.all(), &format!("cluster backup {}", next.display())).await.expect(0);
    ran.says(&["removed", ".left.backup-a1B2c3.partial"]);
    let mut there = backups_in(cluster.dir());
    there.sort();
    let stay = [
        ".new.backup-a1B2c3.partial",
        ".other.backup-a1B2c3.partial",
        "next.backup",
        "old.backup",
        "registry.backup",
        "visible.backup-a1B2c3.partial",
    ];
    assert_eq!(there, stay);
}

/// What it had written of it was left, in a hidden file.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_interrupted_leaves_nothing() {
    let cluster = Cluster::start(1).await;
    let file = cluster.dir().join("registry.backup");
    for _ in 0..100 {
        let running = Running::ask(&cluster.all(), &format!("cluster backup {}", file.display()));
        let begun = Instant::now();
        while backups_in(cluster.dir()).is_empty() {
            assert!(begun.elapsed() < LEADER_WITHIN, "{}", running.err());
            std::thread::sleep(Duration::from_millis(1));
        }
        let ran = running.interrupt().await;
        if ran.code == 0 {
            // It was faster.
            fs::remove_file(&file).unwrap();
            continue;
        }
        ran.expect(1).says(&["interrupted"]);
        assert_eq!(backups_in(cluster.dir()), [""; 0]);
        return;
    }
    panic!("each was done before it could be interrupted");
}

/// The last part of a backup, here the only one, was written by another thread, and its error lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_finds_no_room_fails_and_leaves_nothing() {
    let Some(disk) = SmallDisk::mount(1) else { return };
    let cluster = Cluster::start(1).await;
    disk.fill(0);
    let file = disk.path().join("registry.backup");
    let ran = ask(&cluster.all(), &format!("cluster backup {}", file.display())).await;
    ran.expect(1).says(&["No space left", "registry.backup"]);
    assert_eq!(backups_in(disk.path()), [""; 0]);
}

/// What the last node has is kept, with words on how old it may be.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_there_are_local_backups_only() {
    let mut cluster = Cluster::start(3).await;
    let line = "register web a --endpoint http=http://h:1 --ttl 1h --once";
    ask(&cluster.all(), line).await.expect(0);
    let fresh = cluster.dir().join("fresh.backup");
    let ran = ask(&cluster.all(), &format!("cluster backup {}", fresh.display())).await.expect(0);
    assert!(!ran.err.contains("warning"), "{}", ran.err);
    cluster.equal_states().await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();

    let file = cluster.dir().join("old.backup");
    let line = format!("cluster backup {} -o json", file.display());
    ask(&cluster.all(), &line)
        .await
        .expect(3)
        .says(&["without a quorum", "`quorate cluster backup --local`"]);
    assert!(!file.exists());
    let ran = ask(&cluster.all(), &format!("{line} --local")).await.expect(0);
    assert!(ran.err.contains("warning: what was acknowledged within the last"), "{}", ran.err);
    assert!(ran.json()["age_ms"].as_u64().is_some_and(|age| age > 0), "{}", ran.out);
    assert_eq!(inspect(&file, "-o json").await.expect(0).json()["instances"], 1);

    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    let unknown = cluster.dir().join("unknown.backup");
    let line = format!("cluster backup {} --local", unknown.display());
    let ran = eventually("it answers", LEADER_WITHIN, async || {
        let ran = ask(&cluster.all(), &line).await;
        if ran.code == 0 { Ok(ran) } else { Err(ran.err) }
    })
    .await;
    assert!(ran.err.contains("warning: nobody knows how old that is"), "{}", ran.err);
    let told = inspect(&unknown, "-o json").await.expect(0).json();
    assert!(told["taken"].is_null() && told["instances"] == 1, "{told}");
    let told = inspect(&unknown, "").await.expect(0).out;
    assert!(told.contains("nobody knows when"), "{told}");
}
