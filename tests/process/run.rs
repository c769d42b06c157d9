//! `quorate run`: a program is registered while it runs, and leaves before it stops.

use std::time::Duration;

use quorate_client::Client;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::cli::Running;
use crate::cluster::Cluster;
use crate::process::text_of;
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(10);

/// `quorate run` with a shell script as its program; signals are written to a file.
fn run(cluster: &Cluster, dir: &TempDir, script: &str) -> Running {
    let script = format!("seen={}/seen; {script}", dir.path().display());
    let nodes = cluster.all();
    let line = "run --service web --id a --endpoint http=http://h/ --ready-within 0s --drain 300ms";
    let mut args: Vec<&str> = line.split(' ').collect();
    args.extend(["--nodes", &nodes, "--", "/bin/sh", "-c", &script]);
    Running::start(&args)
}

async fn registered(client: &Client, expected: bool) {
    let what = format!("registered: {expected}");
    eventually(&what, PATIENCE, async || match client.fetch("web").await {
        Ok(service) if expected && service.instances[0].id == "a" => Ok(()),
        Err(_none) if !expected => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

const LOOP: &str = "while :; do sleep 0.02; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_leaves_the_registry_before_it_gets_the_signal() {
    // S0.11
    let cluster = Cluster::start(3).await;
    let client = cluster.client().connect().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let script =
        format!("trap 'echo hup >>$seen' HUP; trap 'echo term >>$seen; exit 7' TERM; {LOOP}");
    let mut running = run(&cluster, &dir, &script);
    registered(&client, true).await;
    running.process.signal(Signal::HUP);
    eventually("HUP is passed on at once", PATIENCE, async || {
        let text = text_of(&seen);
        if text == "hup\n" { Ok(()) } else { Err(text) }
    })
    .await;
    running.process.signal(Signal::TERM);
    registered(&client, false).await;
    assert_eq!(text_of(&seen), "hup\n", "it serves on for a while");
    assert_eq!(running.process.exit_code(PATIENCE).await, 7, "the program's own exit code");
    assert_eq!(text_of(&seen), "hup\nterm\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_by_itself_is_deregistered() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().connect().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.02; done;", go.display());
    for (end, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)] {
        let mut running = run(&cluster, &dir, &format!("{wait} {end}"));
        registered(&client, true).await;
        std::fs::write(&go, "").unwrap();
        assert_eq!(running.process.exit_code(PATIENCE).await, code, "{}", running.err());
        registered(&client, false).await;
        std::fs::remove_file(&go).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_also_while_the_registry_is_down() {
    // S2.13, S0.17
    let mut cluster = Cluster::start(1).await;
    cluster.nodes[0].kill();
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let script = format!("echo up >>$seen; trap 'exit 0' TERM; {LOOP}");
    let mut running = run(&cluster, &dir, &script);
    eventually("it runs", PATIENCE, async || {
        let text = text_of(&seen);
        if text == "up\n" { Ok(()) } else { Err(text) }
    })
    .await;
    eventually("it says so", PATIENCE, async || {
        let said = running.err();
        if said.contains("going on trying") { Ok(()) } else { Err(said) }
    })
    .await;
    running.process.signal(Signal::TERM);
    assert_eq!(running.process.exit_code(PATIENCE).await, 0);
    assert!(running.err().contains("not deregistered"), "{}", running.err());

    let mut missing = Running::start(&[
        "run",
        "--service",
        "web",
        "--endpoint",
        "http=http://h/",
        "--nodes",
        "127.0.0.1:1",
        "--",
        "/no/such/program",
    ]);
    assert_eq!(missing.process.exit_code(PATIENCE).await, 127);
    assert!(missing.err().contains("/no/such/program"), "{}", missing.err());
}
