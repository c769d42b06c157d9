//! docs/operations.md: its runbooks are walked one after the other, with their own commands only.
//! Some need a cluster that is not as in the others, and are walked by themselves.

#[path = "clock.rs"]
mod clock;
#[path = "ended.rs"]
mod ended;
#[path = "full.rs"]
mod full;
#[path = "living.rs"]
mod living;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::blocks::blocks;
use crate::ports::Ports;
use crate::process::{PATIENCE, Running};
use crate::text_of;
use ended::MEET;
use living::{HAUNT, Living};

/// All nodes end with the script, however that ends. Some of its jobs have ended before.
const BEGIN: &str = "set -eu\ntrap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n";

const DAMAGED: &str = "A damaged log";
const DOWN: &str = "All down";
const TRY: &str = "Three nodes to try it with";
const CLOCK: &str = "A wrong clock";
const FULL: &str = "A full disk";
const ENDED: &str = "Certificates that have ended";
const END: &str = "Certificates that end";
const ONE: &str = "One dead node";
pub(crate) const BACKUPS: &str = "Backups";
const ALL_DISKS: &str = "All disks lost";
/// These are walked by `kubernetes.rs`.
pub(crate) const KUBERNETES: &str = "In Kubernetes";
pub(crate) const MAJORITY: &str = "In Kubernetes, a lost majority";
pub(crate) const ALL_VOLUMES: &str = "In Kubernetes, all disks lost";

/// The shell commands of docs/operations.md below the headings that are wanted.
pub(crate) fn commands(wanted: impl Fn(&str) -> bool) -> String {
    blocks_of("sh", wanted)
}

/// All that its blocks of one language have below these headings.
pub(crate) fn blocks_of(language: &str, wanted: impl Fn(&str) -> bool) -> String {
    list_of(language, wanted).concat()
}

/// The same, block by block.
pub(crate) fn list_of(language: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = text_of("docs/operations.md");
    let sections = text
        .split("\n## ")
        .skip(1)
        .filter(|section| wanted(section.lines().next().expect("split gives a line")));
    let found = sections.flat_map(blocks).filter(|block| block.language == language);
    let found: Vec<_> = found.map(|block| block.text).collect();
    assert!(!found.is_empty(), "they are found");
    found
}

/// A script of these commands, with these ports.
pub(crate) fn script(commands: &str, ports: Ports) -> String {
    format!("{BEGIN}{}", ports.substituted(commands))
}

/// A script of these commands, with these ports, under way in a directory.
fn walk(commands: &str, ports: Ports, directory: &Path) -> Running {
    // The function puts the last digit behind these.
    let tens = |port: u16| format!("{}$1", ports.of(port) / 10);
    let commands = commands.replace("700$1", &tens(7_000)).replace("710$1", &tens(7_100));
    std::fs::write(directory.join("commands.sh"), script(&commands, ports)).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg("commands.sh").current_dir(directory);
    bash.env("PATH", path).env("HOME", directory);
    Running::start(bash, directory, "walk")
}

pub(crate) fn says(said: &str, promises: &[&str]) {
    for promised in promises {
        assert!(said.contains(promised), "the walk said no {promised:?}: {said}");
    }
}

/// All stopped in order, one after the other, and started again in an order that is none of the
/// runbook's.
const ANOTHER_ORDER: &str = "\
for id in 5 7 1; do kill ${pids[$id]}; wait ${pids[$id]} || true; done
for id in 5 1 7; do node $id; done
quorate cluster status --wait --timeout 30s
quorate fetch orders
";

/// A timer comes again, though not in the same second.
const AGAIN: &str = "second=$(date +%s)\nwhile [ $(date +%s) = $second ]; do sleep 0.1; done\n";

/// As cron calls the script: by `sh`, with the variables that the page gives it and none of the
/// walk's; what is a month old goes.
fn by_cron() -> String {
    let table = blocks_of("crontab", |heading| heading == BACKUPS);
    assert!(!table.contains('%'), "cron ends a line there: {table}");
    let (variables, line) = table.trim().rsplit_once('\n').expect("variables, and a line");
    let fields: Vec<_> = line.splitn(6, ' ').collect();
    assert_eq!(fields[2..5], ["*"; 3], "each day: {line}");
    let command = fields[5].replace("/usr/local/bin/", "./").replace("/var/", "");
    assert_eq!(command, "./backup-registry backups/quorate");
    let variables = variables.replace('\n', " ");
    format!(
        "mkdir backups/quorate\ntouch -d '40 days ago' backups/quorate/registry-1.backup\n\
         env -i HOME=/ PATH=/usr/bin:/bin {variables} sh -c '{command}'\n\
         [ ! -e backups/quorate/registry-1.backup ]\n"
    )
}

/// The walk, in which somebody lives through the runbook for one dead node, and somebody through
/// those for a damaged log and for all nodes down: between them, another cluster is made.
fn lived_through() -> String {
    let all = commands(|heading| ![CLOCK, FULL, ENDED, END, KUBERNETES].contains(&heading));
    let [one, damaged, down] = [ONE, DAMAGED, DOWN].map(|runbook| commands(|it| it == runbook));
    let (before, rest) = all.split_once(&one).expect("it is among them");
    let backup = commands(|it| it == BACKUPS);
    let before = before.replace(&backup, &format!("{backup}{AGAIN}{}", by_cron()));
    let binary = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap();
    let before = before.replace("/usr/local/bin", &binary.display().to_string());
    let (recover, rest) = rest.split_once(&damaged).expect("it comes after");
    let (between, after) = rest.split_once(&down).expect("it comes after");
    format!(
        "{MEET}{before}reached whole\n{HAUNT}{one}reached replaced\n\
         {recover}reached living\n{damaged}{between}{HAUNT}{down}{ANOTHER_ORDER}reached lived\n{after}"
    )
}

/// Waits until the script stops there: it goes on when the file of this name is there.
fn until_reached(walking: &mut Running, directory: &Path, place: &str) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !directory.join(format!("{place}.reached")).exists() {
        assert!(Instant::now() < deadline, "it does not get there: {}", walking.output());
        walking.is_running();
    }
}

/// Lets it go on.
fn goes_on(directory: &Path, place: &str) {
    std::fs::write(directory.join(place), "").unwrap();
}

/// Somebody comes where the script stops first, and has lived through it where it stops then.
fn lives(
    walking: &mut Running,
    directory: &Path,
    [comes, lived]: [&str; 2],
    begin: impl FnOnce() -> Living,
) {
    until_reached(walking, directory, comes);
    let living = begin();
    goes_on(directory, comes);
    until_reached(walking, directory, lived);
    living.has_lived();
    goes_on(directory, lived);
}

/// Where clients reach these nodes of the texts.
fn nodes(ports: Ports, of: [u16; 3]) -> [String; 3] {
    of.map(|port| format!("127.0.0.1:{}", ports.of(port)))
}

#[test]
fn whatever_is_lost_there_is_a_way_back() {
    let (ports, directory) = (Ports::free(), tempfile::tempdir().unwrap());
    let mut walking = walk(&lived_through(), ports, directory.path());
    for (places, of) in [
        (["whole", "replaced"], [7_001, 7_002, 7_003]),
        (["living", "lived"], [7_001, 7_005, 7_006]),
    ] {
        let begin = || Living::begin(nodes(ports, of), None);
        lives(&mut walking, directory.path(), places, begin);
    }
    let said = walking.succeed();
    says(
        &said,
        &[
            "the cluster stays at level 1",
            "the cluster is at level 1, and is held there",
            "the cluster is at level 1, the highest that every member works at",
            "OK: node",
            "DEGRADED: 2 of 3 voters answer: all goes on, and so it does with 0 more down",
            "exit code 1",
            "WARNING (quorum): node 3 does not answer; 0 more may fail before writes stop",
            "doctor: exit code 1",
            "node 4 is in, node 3 is out",
            "NO QUORUM: 1 of 3 voters answer, 2 are needed",
            "exit code 2",
            "may be lost: what was acknowledged by nodes 2, 4",
            "nothing was changed",
            "node-1 is a new cluster",
            "node 6 does not start",
            "node 7 is in, node 6 is out",
            "node-8 is a new cluster",
            "problem.tar: 5 files",
            "logs/2-node-9.log",
        ],
    );
    assert_eq!(said.matches("\nregistry-20").count(), 2, "two from the timer: {said}");
    assert_eq!(said.matches("checksums verified").count(), 2, "the old backup, and the new one");
    let fetched = said.matches("orders-1").count();
    assert_eq!(fetched, 5, "registered, and there after each of four losses: {said}");
    ports.are_free_again(&said);
}

/// Of a unit: its text, and the files in which it says that variables stand.
const SYSTEMCTL: &str = "\
systemctl() {
  case \"$*\" in
    cat*) cat unit;;
    'show -p EnvironmentFiles --value quorate@'*)
      sed -n 's/^EnvironmentFile=-*\\(.*\\)/\\1 (ignore_errors=no)/p' unit;;
    *) echo systemctl $@;;
  esac
}";

/// A node whose disk is lost, with these texts as its file and its unit, before a backup is
/// restored: what the runbook's first steps say, and its file after them.
fn not_to_found(id: u64, text: &str, unit: &str) -> (String, String) {
    let steps = blocks_of("console", |heading| heading == ALL_DISKS).replace("$ ", "");
    let directory = tempfile::tempdir().unwrap();
    let place = |path: &str| directory.path().join(path);
    std::fs::create_dir_all(place(&format!("var/node-{id}/log"))).unwrap();
    std::fs::create_dir_all(place("etc")).unwrap();
    std::fs::write(place(&format!("etc/node-{id}.toml")), text).unwrap();
    std::fs::write(place("unit"), unit).unwrap();
    std::fs::write(place("settings"), "QUORATE_BOOTSTRAP=1=h:1\n").unwrap();
    let own = steps
        .replace("/etc/quorate", "etc")
        .replace("/var/lib/quorate", "var")
        .replace("quorate@1", &format!("quorate@{id}"))
        .replace("node-1", &format!("node-{id}"))
        .replace("lost-1", &format!("lost-{id}"));
    let mut bash = Command::new("bash");
    bash.args(["-euc", &format!("{SYSTEMCTL}\n{own}")]).current_dir(directory.path());
    let said = Running::start(bash, directory.path(), "steps").succeed();
    let first = format!("systemctl disable --now quorate@{id}\n");
    let said = said.strip_prefix(&first).unwrap_or_else(|| panic!("{said}")).to_owned();
    assert!(!place(&format!("var/node-{id}")).exists());
    assert!(place(&format!("var/lost-{id}/log")).exists());
    let files = std::fs::read_dir(place("etc")).unwrap().map(|file| file.unwrap().path());
    let (left, copy): (Vec<_>, Vec<_>) =
        files.partition(|file| file.extension().is_some_and(|it| it == "toml"));
    let [left, copy] = [left, copy].map(|files| std::fs::read_to_string(&files[0]).unwrap());
    assert_eq!(copy, text, "what was there before is kept");
    (said, left)
}

/// Nodes whose disks are lost, and whose files still have their founders, found an empty cluster.
/// What is done before that leaves the rest of each file as it was.
#[test]
fn no_node_whose_disk_is_lost_founds_a_cluster_while_a_backup_is_restored() {
    let unit = text_of("cluster-examples/three-nodes/quorate@.service");
    let shipped = |id| text_of(&format!("cluster-examples/three-nodes/node-{id}.toml"));
    let dense =
        "id = 1\n[bootstrap]\n1 = \"h:1\"\n2 = \"i:1\"\n[tls]\ncert = \"c\"\n\n[tunables]\n";
    let loose = "[health_checks]\n\n[bootstrap] # three\n\n  \"1\" = \"h:1\"\n \n 2 = \"i:1\"\n";
    let tabs = "[tls]\ncert = \"c\"\n\t[ bootstrap ]\n\t# all\n\t1 = \"h:1\"\n\t'2' = 'i:1'\n\t[tunables]\n\tdns_ttl_s = 4\n";
    for (id, text) in [
        (1, shipped(1)),
        (2, shipped(2)),
        (3, shipped(3)),
        (1, shipped(1).replace('\n', "\r\n")),
        (1, dense.to_owned()),
        (1, loose.to_owned()),
        (1, tabs.to_owned()),
    ] {
        let (said, left) = not_to_found(id, &text, &unit);
        assert_eq!(said, "", "{text}");
        let read = |text: &str| text.parse::<toml::Table>().unwrap();
        let mut wanted = read(&text);
        assert!(wanted.remove("bootstrap").is_some(), "it has founded the cluster");
        assert_eq!(read(&left), wanted);
    }

    // What these steps do not take out, they tell of.
    let inline = "bootstrap = { 1 = \"h:1\", 2 = \"i:1\" }\n";
    let (said, left) = not_to_found(1, inline, &unit);
    says(&said, &["etc/node-1.toml:bootstrap = {", "STILL THERE"]);
    assert_eq!(left, inline);
    for more in ["Environment=QUORATE_BOOTSTRAP=1=h:1\n", "ExecStart=quorate --bootstrap 1=h:1\n"] {
        let (said, _) = not_to_found(1, dense, &format!("{unit}{more}"));
        says(&said, &[more, "STILL THERE"]);
    }
    let (said, _) = not_to_found(1, dense, &format!("{unit}EnvironmentFile=-settings\n"));
    says(&said, &["settings:QUORATE_BOOTSTRAP=1=h:1", "STILL THERE"]);
}
