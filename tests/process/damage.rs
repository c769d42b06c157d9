//! Damage to the files of a stopped node. It may refuse to start, naming a file and what to do, or
//! start with everything that was acknowledged; it never starts with less. One node alone, so that
//! no other can make up for it.
//!
//! `QUORATE_DAMAGE_SEED=n cargo test -p quorate-cli --test process damage` tries other places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::Consistency;

use crate::cluster::{Cluster, LEADER_WITHIN, Settings};
use crate::raw::registration;
use crate::wait::eventually;

const SEED: u64 = 20_261_121;
/// Of each kind of data directory.
const CASES: usize = 14;
const INSTANCES: usize = 400;
const TTL: Duration = Duration::from_secs(3_600);

/// splitmix64: enough for choosing places.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_recovered_or_refused() {
    damaged_in_many_places("the log alone", "").await;
}

/// The beginning of the log is purged, so the snapshot is all that has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_or_snapshot_is_recovered_or_refused() {
    damaged_in_many_places("log and snapshot", "snapshot_every = 150\nkeep_entries = 20").await;
}

async fn damaged_in_many_places(what: &str, tunables: &str) {
    let seed = std::env::var("QUORATE_DAMAGE_SEED").ok().map(|text| text.parse().unwrap());
    let mut random = Random(seed.unwrap_or(SEED));
    let settings = Settings { tunables: tunables.to_owned(), ..Settings::default() };
    let mut cluster = Cluster::start_with(1, settings).await;
    let acknowledged = fill(&cluster).await;
    cluster.nodes[0].kill();
    let data_dir = cluster.nodes[0].data_dir.clone();
    let whole = cluster.dir().join("whole");
    copy(&data_dir, &whole);

    let (mut recovered, mut refused) = (0, 0);
    for case in 0..CASES {
        fs::remove_dir_all(&data_dir).unwrap();
        copy(&whole, &data_dir);
        let done = damage(&data_dir, case, &mut random);
        let before = cluster.nodes[0].log_text().len();
        cluster.nodes[0].start();
        match outcome(&mut cluster).await {
            Ok(state) => {
                recovered += 1;
                eprintln!("{what}, case {case}: {done}: recovered");
                assert!(state.is_superset(&acknowledged), "{done}: acknowledged writes are lost");
                cluster.nodes[0].kill();
            }
            Err(code) => {
                refused += 1;
                let log = cluster.nodes[0].log_text()[before..].to_owned();
                let error = log.rsplit("error: ").next().unwrap_or_default();
                eprintln!("{what}, case {case}: {done}: refused: {}", error.trim());
                assert_eq!(code, 4, "{done}");
                let names_file = error.contains(&data_dir.display().to_string());
                assert!(names_file, "{done}: the message names no file: {log}");
                let helps = ["remove the node", "--join", "new id", "restore"];
                let helps = helps.iter().any(|help| error.contains(help));
                assert!(helps, "{done}: the message does not say what to do: {log}");
                assert!(!log.contains("panicked at"), "{done}: a panic: {log}");
            }
        }
    }
    eprintln!("measured: damage to {what}: {recovered} recovered, {refused} refused");
    assert!(refused > 0, "no case hit anything");
}

/// Acknowledged registrations, by "service/id".
async fn fill(cluster: &Cluster) -> BTreeSet<String> {
    let node = &cluster.nodes[0];
    let mut registry = node.registry();
    for at in 0..INSTANCES {
        let request = registration("kept", &format!("i{at}"), TTL, 0);
        registry.register(request).await.unwrap();
    }
    let state = node.instances(Consistency::Linearizable).await.unwrap();
    assert_eq!(state.len(), INSTANCES);
    state.into_keys().collect()
}

/// What a node comes to: its instances, or its exit code.
async fn outcome(cluster: &mut Cluster) -> Result<BTreeSet<String>, i32> {
    let node = &mut cluster.nodes[0];
    let state = eventually("the node starts or refuses to", LEADER_WITHIN, async || {
        if let Some(ended) = node.process().ended() {
            return Ok(Err(ended.code().unwrap_or(-1)));
        }
        node.instances(Consistency::Linearizable).await.map(Ok)
    })
    .await;
    match state {
        Ok(state) => Ok(state.into_keys().collect()),
        Err(code) => {
            node.exit_code(Duration::from_secs(1)).await;
            Err(code)
        }
    }
}

/// Damages one file; what was done.
fn damage(data_dir: &Path, case: usize, random: &mut Random) -> String {
    let mut files = files_in(data_dir);
    files.retain(|path| fs::read(path).unwrap().iter().any(|byte| *byte != 0));
    // Most of the data is in the journal and in sled's file, so most of the damage goes there too.
    let log = data_dir.join("log");
    let path = match case % 4 {
        0 => log.join("journal-0"),
        2 => log.join("db"),
        _ => files.swap_remove(random.below(files.len())),
    };
    let mut bytes = fs::read(&path).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let at = used[random.below(used.len())];
    let done = match case / 2 % 5 {
        0 | 1 => {
            bytes[at] ^= 1 << random.below(8);
            format!("a bit flipped at {at}")
        }
        2 => {
            let end = (at + 512).min(bytes.len());
            bytes[at..end].fill(0);
            format!("zeros from {at} to {end}")
        }
        3 => {
            let last = used.last().copied().unwrap_or(0);
            let cut = last.saturating_sub(random.below(64));
            bytes.truncate(cut);
            format!("cut off in its last used bytes, at {cut}")
        }
        _ => {
            bytes.truncate(at);
            format!("cut off at {at}")
        }
    };
    let of = used.last().map_or(0, |last| last + 1);
    fs::write(&path, bytes).unwrap();
    let name = path.strip_prefix(data_dir).unwrap().display();
    format!("{name}: {done} of {of}")
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_in(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// A follower that refuses to start because of damage can be replaced by an empty one; one that
/// starts catches up.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_follower_does_not_harm_its_cluster() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let victim = cluster.others(leader)[0];
    for at in 0..50 {
        cluster.nodes[leader].register("kept", &format!("i{at}"), TTL).await.unwrap();
    }
    cluster.equal_states().await;
    cluster.nodes[victim].kill();
    // The last bytes in use: what a power cut may leave half written.
    let journal = cluster.nodes[victim].data_dir.join("log").join("journal-0");
    let bytes = fs::read(&journal).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    fs::write(&journal, &bytes[..used - 20]).unwrap();
    cluster.nodes[victim].start();
    let node = &mut cluster.nodes[victim];
    let started = eventually("the node starts or refuses to", LEADER_WITHIN, async || {
        if node.process().ended().is_some() {
            return Ok(false);
        }
        node.instances(Consistency::Linearizable).await.map(|_| true)
    })
    .await;
    eprintln!("a follower that lost the end of its log: started: {started}");
    if !started {
        node.exit_code(Duration::from_secs(1)).await;
    }
    cluster.leader().await;
    let state = cluster.equal_states().await;
    assert_eq!(state.len(), 50);
}
