//! Fifteen states of a cluster, and what each face of it says then: the first line of `cluster
//! status` and its exit code, what `doctor` finds, `/readyz`, gRPC health, a metric, and the alerts
//! of ops/alerts.yaml that fire by what all nodes measure. One table for all; real processes are
//! brought into each state.

#[path = "states/firing.rs"]
mod firing;
#[path = "states/refused.rs"]
mod refused;
#[path = "states/table.rs"]
mod table;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Request;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cli::ask;
use crate::cluster::{Cluster, Node, Settings};
use crate::ports::free_port;
use crate::small_disk::SmallDisk;
use crate::wait::{eventually, time_passes};
use firing::Scrape;
use table::{Metrics, STATES, State};

/// Each state shows everywhere within this; a clock has to stand still for 5 s first.
const SOON: Duration = Duration::from_secs(40);
/// A node that answers does so within this.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two scrapes of which each alert is made: what happens meanwhile goes on.
const SCRAPED_APART: Duration = Duration::from_millis(500);
/// More than one a second are refused, which an alert wants.
const REGISTERS_EVERY: Duration = Duration::from_millis(100);
const MIB: u64 = 1024 * 1024;

/// A cluster whose nodes listen for HTTP, too.
struct Watched {
    cluster: Cluster,
    http: Vec<String>,
    /// Of the client commands.
    flags: String,
    /// A node that measures another version than its own: a place, and the version.
    version: Option<(usize, &'static str)>,
}

/// The node that a state is about, and the one whose metric shows it: places, not ids.
struct Where {
    about: usize,
    scraped: usize,
    /// Those that Prometheus knows.
    targets: Vec<usize>,
    /// As `--nodes` has them.
    asked: String,
}

impl Watched {
    async fn prepare(size: u64, settings: Settings) -> Self {
        let http: Vec<String> = (0..size).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let head = (1..).zip(&http).map(|(id, at)| (id, format!("http_listen = \"{at}\"")));
        let settings = Settings { head: head.collect(), ..settings };
        let cluster = Cluster::prepare(size, settings).await;
        Self { cluster, http, flags: String::new(), version: None }
    }

    async fn start(size: u64, settings: Settings) -> Self {
        let mut watched = Self::prepare(size, settings).await;
        watched.cluster.nodes.iter_mut().for_each(|node| node.start());
        watched.cluster.leader().await;
        watched
    }

    /// The addresses of these nodes, in this order.
    fn nodes(&self, places: &[usize]) -> String {
        let addresses = places.iter().map(|at| self.cluster.nodes[*at].clients.clone());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// One GET: the status and the body; `None`: no answer.
    async fn get(&self, at: usize, path: &str) -> Option<(u16, String)> {
        let address = &self.http[at];
        let got = async {
            match &self.cluster.secured {
                Some(secured) => exchange(secured.http(address).await?, path).await,
                None => exchange(TcpStream::connect(address).await.ok()?, path).await,
            }
        };
        let (code, text) = timeout(ANSWER, got).await.ok().flatten()?;
        match self.version {
            Some((place, version)) if place == at => {
                let own = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
                Some((code, text.replace(&own, &format!("version=\"{version}\""))))
            }
            _ => Some((code, text)),
        }
    }

    /// What these nodes measure.
    async fn scrape(&self, targets: &[usize]) -> Scrape {
        let texts = targets.iter().map(|at| async move {
            let text = self.get(*at, "/metrics").await.map(|(_, text)| text);
            (format!("place-{at}"), text)
        });
        Scrape::of(join_all(texts).await)
    }

    async fn health(&self, at: usize) -> Option<ServingStatus> {
        let mut health = HealthClient::new(self.cluster.nodes[at].channel());
        let asked = health.check(Request::new(HealthCheckRequest::default()));
        let answer = timeout(ANSWER, asked).await.ok()?.ok()?;
        Some(answer.into_inner().status())
    }

    /// Every face shows the state, at once or soon.
    async fn shows(&self, name: &str, at: Where) {
        let state = STATES.iter().find(|state| state.name == name).expect("it is in the table");
        eventually(name, SOON, async || {
            self.status_says(state, &at.asked).await?;
            self.doctor_finds(state, &at.asked).await?;
            let (code, answer) = self.get(at.about, "/readyz").await.unwrap_or_default();
            if code != state.ready.0 || !answer.contains(state.ready.1) {
                return Err(format!("/readyz: {code} {answer}"));
            }
            let health = self.health(at.about).await;
            if health != state.health {
                return Err(format!("health: {health:?}"));
            }
            let (_, text) = self.get(at.scraped, "/metrics").await.ok_or("no metrics")?;
            if !(state.shows)(&Metrics::read(&text)) {
                return Err("its metric does not show it".to_owned());
            }
            let before = self.scrape(&at.targets).await;
            time_passes(SCRAPED_APART).await;
            firing::are(state.alerts, &before, &self.scrape(&at.targets).await).await
        })
        .await;
        eprintln!("shown: {name}");
    }

    async fn status_says(&self, state: &State, asked: &str) -> Result<(), String> {
        let shown = ask(asked, &format!("cluster status --exit-code {}", self.flags)).await;
        let first = shown.out.lines().next().unwrap_or_default();
        let mut rest = first;
        for words in state.first {
            let found = rest.split_once(words);
            rest = found.ok_or_else(|| format!("status: {first} {}", shown.err))?.1;
        }
        match shown.code == state.code && shown.out.contains(state.also) {
            true => Ok(()),
            false => Err(format!("status exits with {}: {}", shown.code, shown.out)),
        }
    }

    async fn doctor_finds(&self, state: &State, asked: &str) -> Result<(), String> {
        let shown = ask(asked, &format!("doctor -o json {}", self.flags)).await;
        let found: Value =
            serde_json::from_str(&shown.out).map_err(|error| format!("{error}: {shown:?}"))?;
        let (check, words) = state.doctor;
        let is_it = |finding: &Value| {
            let says = finding["meaning"].as_str().is_some_and(|meaning| meaning.contains(words));
            finding["check"] == check
                && says
                && finding["next"].as_str().is_some_and(|it| !it.is_empty())
        };
        let all = found["findings"].as_array().expect("a list");
        if shown.code != state.doctor_code || !check.is_empty() && !all.iter().any(is_it) {
            return Err(format!("doctor exits with {} and finds {all:#?}", shown.code));
        }
        let left_out = found["not_looked_at"].as_array().expect("a list");
        match left_out.iter().all(|left| left["check"] == "endpoints") {
            true => Ok(()),
            false => Err(format!("doctor leaves out {left_out:?}")),
        }
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // Without a goodbye of TLS, too.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A row that no test shows would say nothing.
#[test]
fn each_of_fifteen_states_is_shown() {
    let names: BTreeSet<_> = STATES.iter().map(|state| state.name).collect();
    assert_eq!(names.len(), 15);
    // However rustfmt breaks the lines.
    let closed_up = |text: &str| text.split_whitespace().collect::<String>();
    let source =
        closed_up(include_str!("states.rs")) + &closed_up(include_str!("states/refused.rs"));
    let is_shown = |name: &&str| source.contains(&closed_up(&format!(".shows(\"{name}\",")));
    let not_shown: Vec<_> = names.into_iter().filter(|name| !is_shown(name)).collect();
    assert!(not_shown.is_empty(), "no test brings a cluster into these: {not_shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_come_and_go_show_everywhere() {
    let settings = Settings { cuttable: true, ..Settings::default() };
    let mut watched = Watched::start(4, settings).await;
    let rest = watched.nodes(&[0, 1, 2]);
    if watched.cluster.leader().await == 3 {
        ask(&rest, "cluster transfer-leader 1").await.expect(0);
    }
    ask(&rest, "cluster remove 4").await.expect(0);
    let asked = watched.nodes(&[3, 0, 1, 2]);
    watched
        .shows(
            "removed",
            Where { about: 3, scraped: 3, targets: vec![0, 1, 2, 3], asked: asked.clone() },
        )
        .await;

    // A new node at its place asks to be taken in, and the others do not reach it.
    watched.cluster.nodes[3].kill();
    watched.cluster.nodes[3].cut_off();
    watched.cluster.nodes[3].become_new(5);
    let config = watched.cluster.dir().join("node-4.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let first = watched.nodes(&[0]);
    std::fs::write(&config, format!("join = [\"{first}\"]\n{text}")).unwrap();
    watched.cluster.nodes[3].start();
    watched
        .shows("joining", Where { about: 3, scraped: 3, targets: vec![0, 1, 2, 3], asked })
        .await;
    watched.cluster.nodes[3].kill();

    let leader = watched.cluster.leader_among(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let at = |scraped| Where {
        about: leader,
        scraped,
        targets: vec![0, 1, 2],
        asked: watched.nodes(&[leader, others[0], others[1]]),
    };
    watched.shows("healthy", at(leader)).await;

    let (frozen, leads) = (at(others[0]), at(others[1]));
    watched.cluster.nodes[leader].pause();
    let next = watched.cluster.leader_among(&others).await;
    let frozen = if next == others[0] { frozen } else { leads };
    watched.shows("leader frozen", frozen).await;
    watched.cluster.nodes[leader].go_on();

    let leader = watched.cluster.leader_among(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let asked = watched.nodes(&[others[0], leader, others[1]]);
    watched.cluster.nodes[others[0]].kill();
    let at = || {
        let (targets, asked) = (vec![0, 1, 2], asked.clone());
        Where { about: leader, scraped: leader, targets, asked }
    };
    watched.shows("one down", at()).await;
    watched.cluster.nodes[others[1]].kill();
    watched.shows("no quorum", at()).await;
}

/// What others hear of node 2, and what it hears of them, is changed on its way: its version, and
/// then what there is of the log. Entries do not get to it, or to no follower, and heartbeats do.
#[tokio::test(flavor = "multi_thread")]
async fn two_versions_and_entries_that_are_on_their_way_show_everywhere() {
    let settings = Settings { relayed: true, ..Settings::default() };
    let mut watched = Watched::start(3, settings).await;
    // Node 2 says of itself what it is.
    let asked = watched.nodes(&[0, 2]);
    let leader = match watched.cluster.leader().await {
        1 => {
            ask(&asked, "cluster transfer-leader 1").await.expect(0);
            0
        }
        leader => leader,
    };
    let at = |about, scraped| {
        let (targets, asked) = (vec![0, 1, 2], asked.clone());
        Where { about, scraped, targets, asked }
    };
    watched.cluster.nodes[1].relay().set_version("9.0.0");
    watched.version = Some((1, "9.0.0"));
    watched.shows("mixed versions", at(0, 1)).await;
    watched.cluster.nodes[1].relay().set_version("");
    watched.version = None;

    watched.cluster.nodes[1].relay().hold_entries(true);
    fill_the_log(&watched.cluster.nodes[leader]).await;
    watched.shows("lagging", at(1, leader)).await;
    watched.cluster.nodes[1].relay().hold_entries(false);

    eventually("it has caught up", SOON, async || {
        let (code, answer) = watched.get(1, "/readyz").await.unwrap_or_default();
        if code == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    let leader = watched.cluster.leader().await;
    let others = watched.cluster.others(leader);
    // Without a lease, time need not go on.
    watched.cluster.nodes[leader].register("kept", "a", Duration::from_secs(600)).await.unwrap();
    others.iter().for_each(|at| watched.cluster.nodes[*at].relay().hold_entries(true));
    watched.shows("clock stalled", at(leader, leader)).await;
    others.iter().for_each(|at| watched.cluster.nodes[*at].relay().hold_entries(false));
}

/// By more than a node may lag.
async fn fill_the_log(leader: &Node) {
    let client = leader.registry();
    for _ in 0..60 {
        let calls = (0..100).map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                // Changes nothing, and goes through the log.
                let instance = quorate_proto::v1::InstanceRef {
                    service: "nobody".to_owned(),
                    id: "none".to_owned(),
                    ..<_>::default()
                };
                let instances = vec![instance];
                let request = quorate_proto::v1::DeregisterRequest { instances, ..<_>::default() };
                client.deregister(request).await
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let _not_found = call.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_without_room_shows_everywhere() {
    let Some(disk) = SmallDisk::mount(96) else { return };
    let tunables = format!("disk_reserve_bytes = {}", 16 * MIB);
    let data_dirs = [(1, disk.data_dir())].into();
    let watched = Watched::start(3, Settings { tunables, data_dirs, ..Settings::default() }).await;
    let asked = watched.nodes(&[0, 1, 2]);
    disk.fill(8 * MIB);
    let at = Where { about: 0, scraped: 0, targets: vec![0, 1, 2], asked };
    watched.shows("disk low", at).await;
    disk.make_room();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_disk_with_room_shows_everywhere() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let tunables = format!("disk_reserve_bytes = {}", 32 * MIB);
    let settings = Settings { tunables, data_dirs: disk.data_dirs(), ..Settings::default() };
    let watched = Watched::start(3, settings).await;
    let asked = watched.nodes(&[0, 1, 2]);
    watched.cluster.nodes[0].register("kept", "a", Duration::from_secs(600)).await.unwrap();
    disk.fill(20 * MIB);
    eventually("registrations are refused", SOON, async || {
        let refused = watched.cluster.nodes[0].register("new", "a", Duration::from_secs(60)).await;
        refused
            .err()
            .filter(|status| status.code() == tonic::Code::ResourceExhausted)
            .ok_or("taken")
    })
    .await;
    let leader = watched.cluster.leader().await;
    let at = Where { about: leader, scraped: leader, targets: vec![0, 1, 2], asked };
    // Somebody goes on trying.
    let trying = async {
        loop {
            let node = &watched.cluster.nodes[leader];
            let _refused = node.register("new", "a", Duration::from_secs(60)).await;
            time_passes(REGISTERS_EVERY).await;
        }
    };
    tokio::select! {
        () = watched.shows("disk full", at) => {}
        _ = trying => {}
    }
    disk.make_room();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_near_its_end_shows_everywhere() {
    let settings = Settings { secured: true, ..Settings::default() };
    let mut watched = Watched::prepare(3, settings).await;
    let secured = watched.cluster.secured.clone().expect("it is");
    secured.certs("node 2 --valid-for 5d --force").await;
    let path = |name: &str| secured.path(name).display().to_string();
    watched.flags = format!(
        "--ca {} --cert {} --key {}",
        path("ca.crt"),
        path("client-tests.crt"),
        path("client-tests.key")
    );
    watched.cluster.nodes.iter_mut().for_each(|node| node.start());
    watched.cluster.leader().await;
    let asked = watched.nodes(&[0, 1, 2]);
    let at = Where { about: 1, scraped: 1, targets: vec![0, 1, 2], asked };
    watched.shows("certificate near its end", at).await;
}

/// Without `--exit-code`, too: nobody has answered for the cluster that was asked about.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_alone_answers_for_no_cluster() {
    let mut cluster = Cluster::start(2).await;
    if cluster.leader().await == 1 {
        ask(&cluster.all(), "cluster transfer-leader 1").await.expect(0);
    }
    let removed = cluster.nodes[1].clients.clone();
    let member = cluster.nodes[0].clients.clone();
    eventually("it knows where clients reach the other", SOON, async || {
        let shown = ask(&removed, "cluster status").await.out;
        if shown.contains(&member) { Ok(()) } else { Err(shown) }
    })
    .await;
    ask(&cluster.all(), "cluster remove 2").await.expect(0);
    eventually("it knows, and a member is asked in its place", SOON, async || {
        let shown = ask(&removed, "cluster status").await;
        // Before it knows, too: the other refuses it, and that is no lost quorum.
        assert!(!shown.out.contains("quorate recover"), "{shown:?}");
        let said = shown.out.contains("OK: node 1 leads")
            && shown.out.contains("node 2 is no member: it was removed from its cluster: stop it");
        if shown.code == 0 && said { Ok(()) } else { Err(format!("{shown:?}")) }
    })
    .await;
    cluster.nodes[0].kill();
    for (line, code) in
        [("cluster status", 1), ("cluster status -o json", 1), ("cluster status --exit-code", 2)]
    {
        let shown = ask(&removed, line).await.expect(code);
        let words = "no member of the cluster answers: node 2 is none: it was removed";
        assert!(shown.out.contains(words), "{line}: {shown:?}");
    }
}
