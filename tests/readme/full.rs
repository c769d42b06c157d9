//! "A full disk", on all nodes at once: a small tmpfs. Mounting needs root; without it the test
//! says so and ends.

use std::process::Command;

use tempfile::TempDir;

use super::ended::{MEET, is_unbroken};
use super::living::{HAUNT, Living};
use super::{FULL, TRY, commands, lives, nodes, says, walk};
use crate::ports::Ports;
use crate::skipped::skipped;

/// The nodes take some 20 MiB of it, and want 64 MiB free (`disk_reserve_bytes`).
const SIZE: &str = "size=144m";
/// Leaves less than that, and more than the quarter of it below which nothing is written.
const BALLAST: &str = "80M";
const LOOK: &str = "quorate cluster status --exit-code || echo \"exit code $?\"";

struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(mounted) if mounted.status.success() => Some(Self(dir)),
            refused => {
                skipped("a full disk", format!("mounting a tmpfs: {refused:?}"));
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _stays_mounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn with_all_disks_full_the_way_back_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    // Who lives through it. Its lease is shorter than all of this takes.
    let living = "quorate register living l-1 --endpoint http=http://h:1 --ttl 10s > living.out &\n\
         quorate watch living > watch.out &\n\
         until grep -q l-1 watch.out; do sleep 0.1; done\nreached living\n";
    let fill = format!("fallocate -l {BALLAST} ballast\n");
    // All of them: each looks at its own disk, and the leader refuses by what it has seen itself.
    let noticed = "until quorate cluster status | grep -q 'the disk of node 1, 2, 3'; do sleep 0.2; done\n\
         quorate register refused r-1 --endpoint http=http://h:1 --once --timeout 3s && exit 9\n\
         sleep 11\necho all are full\n";
    let lived = "quorate register living l-2 --endpoint http=http://h:2 --ttl 1h --once\n\
         until grep -q l-2 watch.out; do sleep 0.1; done\n\
         quorate fetch living --exit-code > lived.out\ngrep -w l-1 lived.out\n\
         quorate fetch orders\ncat watch.out\nreached lived\n";
    let runbook = commands(|heading| heading == FULL);
    assert!(runbook.contains(LOOK), "its first command: {runbook}");
    // A busy machine may have an election just then, and no leader.
    let looks = format!(
        "until {{ {LOOK}; }} > look; grep -q 'exit code 1' look; do sleep 0.2; done\ncat look"
    );
    let runbook = runbook.replacen(LOOK, &looks, 1);
    let set_up = commands(|heading| heading == TRY);
    let script = format!(
        "{MEET}{set_up}{living}{HAUNT}{fill}{noticed}{runbook}{lived}rm /tmp/full-$$.backup\n"
    );
    let ports = Ports::free();
    let mut walking = walk(&script, ports, disk.0.path());
    lives(&mut walking, disk.0.path(), ["living", "lived"], || {
        Living::begin(nodes(ports, [7_001, 7_002, 7_003]), None)
    });
    let said = walking.succeed();
    says(
        &said,
        &["all are full", "the disk of node", "exit code 1", "ballast", "OK: node", "orders-2"],
    );
    is_unbroken(&said);
    ports.are_free_again(&said);
}
