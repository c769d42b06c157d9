//! A majority that is lost, and a new cluster from what is left, while clients of the old one live.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate_client::{Consistency, InstanceBuilder, Registration};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tokio::net::TcpListener;

use crate::cli::{Ran, ask, quorate};
use crate::cluster::{Cluster, LEADER_WITHIN, Settings};
use crate::crowd::Crowd;
use crate::damage::copy;
use crate::process::THIS_RELEASE;
use crate::skipped::skipped;
use crate::small_disk::SmallDisk;
use crate::wait::eventually;

const TTL: Duration = Duration::from_secs(3_600);
/// Entries that are written in a moment by nobody but the nodes.
const MOMENT: u64 = 20;

async fn recover(dirs: &[&Path], flags: &[&str]) -> Ran {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let named = dirs.iter().flat_map(|dir| ["--data-dir", dir.as_str()]);
    let args: Vec<&str> =
        ["recover"].into_iter().chain(named).chain(flags.iter().copied()).collect();
    quorate(&args).await
}

/// Two of three are lost; the third goes on as a new cluster; then the two come back after all.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_three_goes_on_and_those_that_come_back_are_refused() {
    let mut cluster = Cluster::start(3).await;
    let mut crowd = Crowd::gather(&cluster).await;
    let last = cluster.others(cluster.leader().await)[0];
    let lost = cluster.others(last);
    for at in &lost {
        cluster.nodes[*at].kill();
    }
    let dir = cluster.nodes[last].data_dir.clone();
    recover(&[&dir], &["--accept-data-loss"]).await.expect(1).says(&["is in use"]);
    cluster.nodes[last].kill();
    let missing = dir.join("nosuch");
    recover(&[&missing], &[]).await.expect(1).says(&["cannot list directory", "No such file"]);
    recover(&[&dir.join("log")], &[]).await.expect(1).says(&["there is no log in it"]);

    let told = recover(&[&dir], &[]).await.expect(0).out;
    for part in ["best: node", "may be lost", "nothing was changed", "--accept-data-loss"] {
        assert!(told.contains(part), "no {part:?} in: {told}");
    }
    let done = recover(&[&dir], &["--accept-data-loss", "-o", "json"]).await.expect(0).json();
    assert_eq!(done["directories"][0]["instances"], 200, "{done}");
    assert_ne!(done["founded"]["cluster_id"], done["directories"][0]["cluster_id"]);
    let kept = dir.join(format!("before-{}", done["founded"]["cluster_id"].as_str().unwrap()));
    assert!(kept.join("log/db").exists() && kept.join("snapshots").exists(), "the old state");

    cluster.nodes[last].start();
    assert_eq!(cluster.leader_among(&[last]).await, last);
    crowd.is_back_with(&cluster.nodes[last]).await;

    // Both at once: a majority of the old cluster.
    for at in &lost {
        cluster.nodes[*at].start();
    }
    for at in &lost {
        let node = &mut cluster.nodes[*at];
        assert_eq!(node.exit_code(LEADER_WITHIN).await, 4);
        let log = node.log_text();
        let new = done["founded"]["cluster_id"].as_str().unwrap();
        assert!(log.contains(&format!("has made cluster {new} from that")), "{log}");
        assert!(!log.contains("this node leads term=3"), "{log}");
    }
    crowd.grow().await;
    crowd.is_alone_with(&cluster.nodes[last]).await;
    crowd.end().await;

    // For ever, so from a snapshot, too.
    let at = cluster.nodes[last].clients.clone();
    ask(&at, "cluster snapshot").await.expect(0);
    cluster.nodes[last].kill();
    cluster.nodes[last].start();
    cluster.leader_among(&[last]).await;
    let old = done["directories"][0]["cluster_id"].as_str().unwrap();
    let status = ask(&at, "cluster status").await.expect(0).out;
    assert!(status.contains(&format!("made from cluster {old} by `recover`")), "{status}");
    let status = ask(&at, "cluster status -o json").await.expect(0).json();
    assert_eq!(status["predecessors"][0]["cluster_id"], old, "{status}");
}

/// Of three, the first goes on as a new cluster, which takes in two new nodes and loses the first.
/// The nodes of the old cluster that come back are a majority of it, and none of its members is
/// there to tell them.
async fn those_that_come_back_meet_only_new_nodes(secured: bool, first_is_replaced: bool) {
    let mut cluster = Cluster::start_with(3, Settings { secured, ..Settings::default() }).await;
    let client = cluster.client().build().unwrap();
    client.register(lasting("early")).await.unwrap().registered().await.unwrap();
    cluster.equal_states().await;
    cluster.nodes.iter_mut().for_each(|node| node.kill());
    let dir = cluster.nodes[0].data_dir.clone();
    let done = recover(&[&dir], &["--accept-data-loss", "-o", "json"]).await.expect(0).json();
    let new = done["founded"]["cluster_id"].as_str().unwrap();
    cluster.nodes[0].start();
    cluster.leader_among(&[0]).await;
    for id in [4, 5] {
        let at = cluster.add_new(id).await;
        cluster.nodes[at].start();
        let address = cluster.nodes[at].peer_address();
        eventually("it runs, and is taken in", LEADER_WITHIN, async || {
            client.admin().add_node(id, &address, false).await
        })
        .await;
    }
    let mut rest = vec![3, 4];
    if first_is_replaced {
        let at = cluster.add_new(6).await;
        rest.push(at);
        cluster.nodes[at].start();
        let address = cluster.nodes[at].peer_address();
        eventually("it runs, and takes the first's place", LEADER_WITHIN, async || {
            client.admin().replace_node(1, 6, &address).await
        })
        .await;
    }
    cluster.nodes[0].kill();
    // What they tell they have from a snapshot, and it outlives them.
    for at in &rest {
        cluster.nodes[*at].kill();
        cluster.nodes[*at].start();
    }
    let leader = cluster.leader_among(&rest).await;

    for at in [1, 2] {
        cluster.nodes[at].start();
    }
    for at in [1, 2] {
        let node = &mut cluster.nodes[at];
        assert_eq!(node.exit_code(LEADER_WITHIN).await, 4);
        let log = node.log_text();
        assert!(log.contains(&format!("has made cluster {new} from that")), "{log}");
    }
    let client = cluster.client().build().unwrap();
    client.register(lasting("late")).await.unwrap().registered().await.unwrap();
    let there = cluster.nodes[leader].instances(Consistency::Linearizable).await.unwrap();
    assert_eq!(there.into_keys().collect::<Vec<_>>(), ["kept/early", "kept/late"]);
}

fn lasting(id: &str) -> Registration {
    let instance = InstanceBuilder::new("kept", id).endpoint("http", "http://h:1");
    Registration::new(instance).ttl(TTL)
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_come_back_end_also_where_the_recovered_node_is_dead() {
    those_that_come_back_meet_only_new_nodes(false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_come_back_end_also_where_the_recovered_node_was_replaced() {
    those_that_come_back_meet_only_new_nodes(true, true).await;
}

/// Listens where a node was, and counts who comes.
async fn count_calls(address: &str) -> Arc<AtomicU32> {
    let listener = TcpListener::bind(address).await.unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    calls
}

/// Waits until there were so many more.
async fn are_made(calls: &AtomicU32, more: u32) {
    let enough = calls.load(Ordering::Relaxed) + more;
    eventually("calls to nodes of the old cluster", LEADER_WITHIN, async || {
        match calls.load(Ordering::Relaxed) {
            made if made >= enough => Ok(()),
            made => Err(format!("{made} of {enough}")),
        }
    })
    .await;
}

/// A new node at the address of a lost one: no call is made to it that its TLS refuses. At the
/// address of the other lost one somebody counts how often it is called: both are, by each node, in
/// one go.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_at_an_old_address_is_not_called_as_the_old_one() {
    let settings = Settings { secured: true, ..Settings::default() };
    let mut cluster = Cluster::start_with(3, settings).await;
    let client = cluster.client().build().unwrap();
    cluster.nodes.iter_mut().for_each(|node| node.kill());
    let dir = cluster.nodes[0].data_dir.clone();
    recover(&[&dir], &["--accept-data-loss"]).await.expect(0);
    cluster.nodes[0].start();
    cluster.leader_among(&[0]).await;
    let calls = count_calls(&cluster.nodes[2].peer_address()).await;
    are_made(&calls, 3).await;
    let secured = cluster.secured.clone().unwrap();
    secured.certs("node 4").await;
    std::fs::write(cluster.dir().join("node-2.toml"), secured.table(4)).unwrap();
    cluster.nodes[1].become_new(4);
    cluster.nodes[1].start();
    let address = cluster.nodes[1].peer_address();
    eventually("it runs, and is taken in", LEADER_WITHIN, async || {
        client.admin().add_node(4, &address, false).await
    })
    .await;
    cluster.leader().await;
    let refused = |cluster: &Cluster| {
        let logs = cluster.nodes.iter().map(|node| node.log_text());
        logs.map(|log| log.matches("a TLS handshake was refused").count()).sum::<usize>()
    };
    let before = refused(&cluster);
    // Of two nodes, each four times a second. The log names such calls once a second.
    are_made(&calls, 20).await;
    assert_eq!(refused(&cluster), before);
}

/// What is full is the disk of the copies: it is named, and no other directory is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_copy_of_the_log_it_says_which_disk_is_full() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let mut cluster = Cluster::start(1).await;
    cluster.nodes[0].register("kept", "early", TTL).await.unwrap();
    cluster.nodes[0].kill();
    let dir = &cluster.nodes[0].data_dir;
    let look = || {
        let mut command = std::process::Command::new(THIS_RELEASE);
        command.arg("recover").arg("--data-dir").arg(dir).env("TMPDIR", disk.path());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, whole, said) = look();
    assert_eq!(code, Some(0), "{said}");
    assert!(whole.contains("best: node 1"), "{whole}");
    let log = std::fs::read_dir(dir.join("log")).unwrap();
    let bytes: u64 = log.map(|item| item.unwrap().metadata().unwrap().len()).sum();
    // Where it cannot be begun, where it breaks off, and where it is whole and cannot be opened.
    for left in [0, bytes / 2, bytes + 524_288] {
        disk.fill(left);
        let (code, out, said) = look();
        assert_eq!(code, Some(1), "with {left} bytes: {out}");
        let copies = disk.path().display().to_string();
        for part in [&copies, "set TMPDIR", "No space left"] {
            assert!(said.contains(part), "with {left} bytes, no {part:?} in: {said}");
        }
        assert!(!said.contains("another node's directory"), "with {left} bytes: {said}");
        disk.make_room();
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Mounts a directory where it is, as long as the value lives.
fn mount_at(dir: &Path) -> Option<impl Drop> {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            unmount(&self.0, UnmountFlags::empty()).unwrap();
        }
    }
    match mount_bind(dir, dir) {
        Ok(()) => Some(Mounted(dir.to_owned())),
        Err(error) => {
            skipped("a mounted log", format!("a bind mount: {error}"));
            None
        }
    }
}

/// The furthest is found, and what is no directory to recover from is refused.
/// What is mounted cannot be moved.
async fn a_mount_is_refused(dir: &Path) {
    let before = names_in(dir);
    if let Some(_mounted) = mount_at(&dir.join("log")) {
        let refused = recover(&[dir], &["--accept-data-loss"]).await.expect(1);
        refused.says(&["a file system is mounted at", "/log", "without mounts"]);
    }
    assert_eq!(names_in(dir), before, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_of_several_directories_is_taken() {
    let mut cluster = Cluster::start(3).await;
    let dirs: Vec<_> = cluster.nodes.iter().map(|node| node.data_dir.clone()).collect();
    let [behind, further] = [2, 0];
    cluster.nodes[further].register("kept", "early", TTL).await.unwrap();
    cluster.equal_states().await;
    let of_behind = cluster.nodes[behind].its_status().await;
    cluster.nodes[behind].kill();
    cluster.leader_among(&[0, 1]).await;
    cluster.nodes[further].register("kept", "late", TTL).await.unwrap();
    let of_further = cluster.nodes[further].its_status().await;
    cluster.nodes[1].kill();
    cluster.nodes[further].kill();

    let both = [&*dirs[behind], &*dirs[further]];
    let told = recover(&both, &["-o", "json"]).await.expect(0).json();
    assert_eq!(told["best"], dirs[further].display().to_string());
    let table = recover(&both, &[]).await.expect(0).out;
    for (row, (of, status)) in [(behind, of_behind), (further, of_further)].iter().enumerate() {
        // What it said before it was killed, or a moment later.
        let directory = &told["directories"][row];
        let figure = |name: &str| directory[name].as_u64().unwrap();
        let figures = ["node_id", "term", "last_index", "committed_index"].map(figure);
        let [id, term, last, committed] = figures;
        assert_eq!(id, cluster.nodes[*of].id, "{told}");
        assert_eq!(term, status.term, "{told}");
        assert!(last >= status.last_log_index && last <= status.last_log_index + MOMENT, "{told}");
        // It is noted late.
        assert!(committed > 0 && committed <= status.applied_index + MOMENT, "{told}");
        let figures = figures.map(|figure| figure.to_string());
        let is_row = |line: &str| line.split_whitespace().take(4).eq(figures.iter());
        assert!(table.lines().any(is_row), "{table}");
    }
    assert!(told["loss"].to_string().contains("a majority: nothing is lost"), "{told}");
    assert!(told["founded"].is_null());
    let alone = recover(&both[..1], &[]).await.expect(0).out;
    assert!(alone.contains("may be lost: what was acknowledged by nodes 1, 2"), "{alone}");

    let empty = cluster.dir().join("empty");
    std::fs::create_dir(&empty).unwrap();
    recover(&[&empty], &[]).await.expect(1).says(&["is no data directory"]);
    let none = recover(&[&cluster.dir().join("none")], &[]).await.expect(1);
    none.says(&["cannot list directory", "/none", "No such file"]);
    assert!(std::fs::read_dir(&empty).unwrap().next().is_none(), "nothing was written");

    let refused = recover(&both, &["--accept-data-loss"]).await.expect(1);
    refused.says(&["a majority: nothing is lost", "start them again", "nothing was changed"]);
    let twice = cluster.dir().join("twice");
    copy(&dirs[further], &twice);
    for flags in [&[][..], &["--accept-data-loss"]] {
        let copied = recover(&[both[1], &*twice], flags).await.expect(1);
        copied.says(&["are both of node 1", "one of them is a copy"]);
        recover(&[both[1], both[1]], flags).await.expect(1).says(&["is named twice"]);
    }

    a_mount_is_refused(both[1]).await;
    let done = recover(&both[1..], &["--accept-data-loss"]).await.expect(0).out;
    assert!(done.contains("--cluster-name NAME"), "its directory does not say it: {done}");
    let mixed = recover(&both, &[]).await.expect(1);
    mixed.says(&["of cluster", "name directories of one cluster"]);
    cluster.nodes[further].start();
    let node = &cluster.nodes[further];
    let there = eventually("it serves alone", LEADER_WITHIN, async || {
        node.instances(Consistency::Linearizable).await
    })
    .await;
    assert_eq!(there.into_keys().collect::<Vec<_>>(), ["kept/early", "kept/late"]);
}

/// Two people, each with another node's directory: each cluster goes on, and each node of one says
/// that there is the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_are_recovered_of_one_cluster_say_so() {
    let mut cluster = Cluster::start(3).await;
    cluster.equal_states().await;
    cluster.nodes.iter_mut().for_each(|node| node.kill());
    let mut founded = Vec::new();
    for at in [0, 1] {
        let dir = cluster.nodes[at].data_dir.clone();
        let done = recover(&[&dir], &["--accept-data-loss", "-o", "json"]).await.expect(0).json();
        founded.push(done["founded"]["cluster_id"].as_str().unwrap().to_owned());
    }
    for at in [0, 1] {
        cluster.nodes[at].start();
        cluster.leader_among(&[at]).await;
    }
    for (at, other) in [(0, &founded[1]), (1, &founded[0])] {
        eventually("its log says so", LEADER_WITHIN, async || {
            let log = cluster.nodes[at].log_text();
            let said = log.lines().filter(|line| line.contains("two clusters were made from one"));
            let said: Vec<_> = said.map(|line| line.contains(other.as_str())).collect();
            if said == [true] { Ok(()) } else { Err(log) }
        })
        .await;
    }
    let both = [0, 1].map(|at| cluster.nodes[at].clients.clone()).join(",");
    let words = ["of different clusters", founded[0].as_str(), founded[1].as_str()];
    // A node that is slow to answer is not in what they show.
    for (command, code) in [("cluster status --exit-code", 1), ("doctor", 2)] {
        eventually("both clusters are seen", LEADER_WITHIN, async || {
            let shown = ask(&both, command).await;
            let says = words.iter().all(|word| shown.out.contains(word));
            if shown.code == code && says { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    }
    let one = ask(&cluster.nodes[0].clients, "cluster status --exit-code").await.expect(0);
    assert!(one.out.starts_with("OK: node 1 leads"), "{one:?}");
}
