//! `quorate run`: a program is registered while it runs, and leaves before it stops.

use std::time::{Duration, Instant};

use quorate_client::{Client, Code, Error, FetchOptions, Selection};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cli::Running;
use crate::cluster::{Cluster, Settings};
use crate::process::text_of;
use crate::secrets::entry;
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(30);
/// A program that is signalled serves on for so long.
const DRAIN: Duration = Duration::from_secs(5);
/// A node looks at its access file every 10 s.
const RIGHTS_WITHIN: Duration = Duration::from_secs(25);

/// `quorate run` with a shell script as its program; signals are written to a file.
fn run(cluster: &Cluster, dir: &TempDir, script: &str) -> Running {
    let script = format!("seen={}/seen; {script}", dir.path().display());
    let nodes = cluster.all();
    let line = "run --service web --id a --endpoint http=http://h/ --ready-within 0s --drain 5s";
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
    let client = cluster.client().build().unwrap();
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
    let told = Instant::now();
    running.process.signal(Signal::TERM);
    registered(&client, false).await;
    let text = text_of(&seen);
    // A machine that is later than that sees it stopped rightly.
    if told.elapsed() < DRAIN {
        assert_eq!(text, "hup\n", "it serves on for a while");
    }
    assert_eq!(running.process.exit_code(PATIENCE).await, 7, "the program's own exit code");
    assert!(told.elapsed() >= DRAIN, "it served on for {:?}", told.elapsed());
    assert_eq!(text_of(&seen), "hup\nterm\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_by_itself_is_deregistered() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
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

/// As a supervisor does that signals all processes of a service: the program is gone before the
/// registry has been told that it drains.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_signalled_itself_is_deregistered() {
    // S0.11
    let cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut running = run(&cluster, &dir, "echo $$ >$seen; exec sleep 60");
        registered(&client, true).await;
        let program = eventually("the program runs", PATIENCE, async || {
            let text = text_of(&dir.path().join("seen"));
            text.trim().parse().ok().and_then(Pid::from_raw).ok_or(text)
        })
        .await;
        running.process.signal(Signal::TERM);
        kill_process(program, Signal::TERM).unwrap();
        assert_eq!(running.process.exit_code(PATIENCE).await, 143, "{}", running.err());
        assert!(!running.err().contains("not deregistered"), "{}", running.err());
        assert_eq!(status_of(&client).await, "NONE");
    }
}

/// Whoever is in a hurry does not wait for the drain; the registry hears of it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_deregistered_also_after_a_second_signal() {
    // S0.11
    let cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut running = run(&cluster, &dir, "exec sleep 60");
    registered(&client, true).await;
    running.process.signal(Signal::TERM);
    running.process.signal(Signal::INT);
    let code = running.process.exit_code(PATIENCE).await;
    assert!([130, 143].contains(&code), "{code}: {}", running.err());
    assert_eq!(status_of(&client).await, "NONE");
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

/// The instance as the registry has it now.
async fn status_of(client: &Client) -> String {
    let read = client.fetch_with(&FetchOptions::new(Selection::service("web"))).await.unwrap();
    let services = read.services.unwrap();
    let instance = services.first().and_then(|service| service.instances.first());
    instance.map_or("NONE".to_owned(), |found| {
        format!("{:?} {}", found.status(), found.endpoints["http"])
    })
}

async fn has_status(client: &Client, expected: &str) {
    eventually(expected, PATIENCE, async || {
        let status = status_of(client).await;
        if status == expected { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_a_port_and_is_up_when_it_listens_there() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let file = seen.display();
    let script =
        format!("echo $PORT $QUORATE_SERVICE $QUORATE_ID $1 >{file}; trap 'exit 5' TERM; {LOOP}");
    let nodes = cluster.all();
    let line =
        "run --service web --id a --endpoint http=http://127.0.0.1:{port}/ --ready-within 300ms";
    let mut args: Vec<&str> = line.split(' ').collect();
    args.extend(["--if-deregistered", "stop", "--ttl", "2s", "--nodes", &nodes, "--"]);
    args.extend(["/bin/sh", "-c", &script, "sh", "--port={port}"]);
    let mut running = Running::start(&args);
    let told = eventually("the program has run", PATIENCE, async || {
        let text = text_of(&seen);
        if text.ends_with('\n') { Ok(text) } else { Err(text) }
    })
    .await;
    let port: u16 = told.split(' ').next().unwrap().parse().expect("a port");
    assert_eq!(told, format!("{port} web a --port={port}\n"));
    has_status(&client, &format!("Starting http://127.0.0.1:{port}/")).await;
    eventually("it says that no node listens", PATIENCE, async || {
        let said = running.err();
        if said.contains("stays STARTING") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(status_of(&client).await, format!("Starting http://127.0.0.1:{port}/"));
    let _listens = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    has_status(&client, &format!("Up http://127.0.0.1:{port}/")).await;

    client.deregister("web", "a").await.unwrap();
    assert_eq!(running.process.exit_code(PATIENCE).await, 5, "it was stopped: {}", running.err());
    let said = running.err();
    for part in
        ["registered with web as STARTING", "accepts connections: UP", "no longer registered"]
    {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert!(said.contains("deregistered by somebody else"), "{said}");
    has_status(&client, "NONE").await;
}

/// Unless it is told to stop, a program that serves goes on: whoever took it out may put it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_deregistered_goes_on_and_it_is_said() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (seen, go) = (dir.path().join("seen"), dir.path().join("go"));
    let script = format!(
        "trap 'echo term >>$seen; exit 7' TERM; while [ ! -e {} ]; do sleep 0.02; done; echo on >>$seen; {LOOP}",
        go.display()
    );
    let mut running = run(&cluster, &dir, &script);
    registered(&client, true).await;
    client.deregister("web", "a").await.unwrap();
    eventually("it says so", PATIENCE, async || {
        let said = running.err();
        if said.contains("no longer registered") { Ok(()) } else { Err(said) }
    })
    .await;
    // What it does from now on, it does after that.
    std::fs::write(&go, "").unwrap();
    eventually("the program goes on", PATIENCE, async || {
        let text = text_of(&seen);
        if text == "on\n" { Ok(()) } else { Err(text) }
    })
    .await;
    assert!(running.process.ended().is_none(), "{}", running.err());
    assert_eq!(status_of(&client).await, "NONE");
    running.process.signal(Signal::TERM);
    assert_eq!(running.process.exit_code(PATIENCE).await, 7, "{}", running.err());
    assert_eq!(text_of(&seen), "on\nterm\n");
    let said = running.err();
    assert!(said.contains("deregistered by somebody else") && !said.contains("stopping"), "{said}");
}

/// Its right is taken away while it starts, and given back once it listens.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_up_as_soon_as_the_registry_lets_it() {
    let dir = tempfile::tempdir().unwrap();
    let (access, token) = (dir.path().join("access.toml"), dir.path().join("token"));
    std::fs::write(&token, "qrt_run").unwrap();
    let may = |prefix: &str| {
        let right = format!("role = 'register'\nnamespace = 'default'\nprefix = '{prefix}'");
        let admin = entry("reader", "qrt_reader", "role = 'admin'");
        std::fs::write(&access, admin + &entry("run", "qrt_run", &right)).unwrap();
    };
    may("web");
    let head = [(1, format!("access = '{}'", access.display()))].into();
    let mut cluster = Cluster::prepare(1, Settings { head, ..Settings::default() }).await;
    cluster.nodes[0].start();
    let client = cluster.client().token("qrt_reader").build().unwrap();
    let nodes = cluster.all();
    let line = "run --service web --id a --endpoint http=http://127.0.0.1:{port}/ --ttl 30s";
    let mut args: Vec<&str> = line.split(' ').collect();
    let token = token.display().to_string();
    let script = "echo $PORT >$1/port; exec sleep 60";
    let place = dir.path().display().to_string();
    args.extend(["--token-file", &token, "--nodes", &nodes, "--"]);
    args.extend(["/bin/sh", "-c", script, "sh", &place]);
    let mut running = Running::start(&args);
    let port = eventually("the program has run", PATIENCE, async || {
        let text = text_of(&dir.path().join("port"));
        text.trim().parse::<u16>().map_err(|_| text)
    })
    .await;
    eventually("it is registered", PATIENCE, async || {
        let said = running.err();
        if said.contains("registered with web as STARTING") { Ok(()) } else { Err(said) }
    })
    .await;
    let status = |status: &str| format!("{status} http://127.0.0.1:{port}/");
    has_status(&client, &status("Starting")).await;

    may("other");
    let program = cluster.client().token("qrt_run").build().unwrap();
    eventually("it has no right any more", RIGHTS_WITHIN, async || {
        match program.deregister("web", "none").await {
            Err(Error::Rejected { code: Code::PermissionDenied, .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let _listens = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    eventually("it says that it is refused", PATIENCE, async || {
        let said = running.err();
        if said.contains("still STARTING, going on trying") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(status_of(&client).await, status("Starting"));
    may("web");
    eventually("it is UP", RIGHTS_WITHIN, async || {
        let now = status_of(&client).await;
        if now == status("Up") { Ok(()) } else { Err(now) }
    })
    .await;
    eventually("it says so", PATIENCE, async || {
        let said = running.err();
        if said.contains("accepts connections: UP") { Ok(()) } else { Err(said) }
    })
    .await;
    running.process.signal(Signal::TERM);
    assert_eq!(running.process.exit_code(PATIENCE).await, 143, "{}", running.err());
}
