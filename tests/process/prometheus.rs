//! A real Prometheus scrapes three nodes through the end of their leader: what it knows of them,
//! which alerts of ops/ it raises and takes back, and what the dashboard in ops/ has to show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_client::{Client, InstanceBuilder, Registration, Selection, Update};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::built::{installed, root};
use crate::cli::ask;
use crate::cluster::{Cluster, LEADER_WITHIN, Settings};
use crate::ports::free_port;
use crate::process::{Process, text_of};
use crate::skipped::skipped;
use crate::wait::{eventually, time_passes};

/// Prometheus scrapes and looks at its rules once a second.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// An alert of the test's rules fires at the latest after this (`shortened`), and some scrapes.
const FIRES_WITHIN: Duration = Duration::from_secs(60);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
const LOAD_EVERY: Duration = Duration::from_millis(25);
/// How long an alert of the test has to last at least, and by how much less than in ops/.
const LASTS_MIN: u64 = 5;
const SHORTER: u64 = 36;

/// About how fast the machine is.
pub(crate) const OF_THE_MACHINE: [&str; 7] = [
    "QuorateCallsSlow",
    "QuorateCommitSlow",
    "QuorateContactSlow",
    "QuorateDiskSlow",
    "QuorateDiskStalls",
    "QuoratePeerSlow",
    "QuoratePropagationSlow",
];
/// How fast other programs fill its disk.
const OF_OTHERS: [&str; 1] = ["QuorateDiskFills"];
/// What one dead node of three calls for.
const OF_A_DEAD_NODE: [&str; 2] = ["QuorateNodeDown", "QuorateNoFailureToSpare"];
/// What the dashboard has nothing to show for in a healthy cluster without TLS.
const NOTHING_THERE: [&str; 1] = ["quorate_tls_certificate_expiry_seconds"];

/// The same rules, each of which has to hold for less time: for nothing else could a test wait.
fn shortened(rules: &str) -> String {
    let shorten = |line: &str| {
        let Some((before, lasts)) = line.split_once("for: ") else { return line.to_owned() };
        let (number, unit) = lasts.split_at(lasts.len() - 1);
        let seconds: u64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            other => panic!("{line}: a duration in {other}?"),
        };
        let lasts = number.parse::<u64>().unwrap() * seconds / SHORTER;
        format!("{before}for: {}s", lasts.max(LASTS_MIN))
    };
    rules.lines().map(|line| shorten(line) + "\n").collect()
}

/// A sample: its labels and its value.
type Sample = (BTreeMap<String, String>, f64);

pub(crate) struct Prometheus {
    args: Vec<String>,
    program: PathBuf,
    address: String,
    log: PathBuf,
    process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these addresses each second, with the alerts of ops/.
    fn start(program: &Path, targets: &[String]) -> Self {
        let rules = std::fs::read_to_string(root().join("ops/alerts.yaml")).unwrap();
        let targets: Vec<_> = targets.iter().map(|target| format!("{target:?}")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [alerts.yaml]\n\
             scrape_configs:\n  - job_name: quorate\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        Self::start_with(program, &config, &shortened(&rules))
    }

    /// Starts one with a configuration, and `alerts.yaml` beside it.
    pub(crate) fn start_with(program: &Path, config: &str, rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("alerts.yaml"), rules).unwrap();
        std::fs::write(path("prometheus.yml"), config).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let args = [
            format!("--config.file={}", path("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", path("data").display()),
            format!("--web.listen-address={address}"),
        ];
        let log = path("prometheus.log");
        let (process, args) = (Process::start_foreign(program, &args, &log), args.to_vec());
        Self { args, program: program.to_owned(), address, log, process, _dir: dir }
    }

    /// Ends it, and starts it again with what is on its disk.
    pub(crate) async fn restart(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.exit_code(SEEN_WITHIN).await;
        self.process = Process::start_foreign(&self.program, &self.args, &self.log);
    }

    /// What it answers to a request.
    async fn text(&self, request: &str) -> Result<String, String> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(ANSWERED_WITHIN, exchange).await.map_err(|late| late.to_string())?;
        let answer = answer.map_err(|error| format!("{error}: {}", text_of(&self.log)))?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
        Ok(body.to_owned())
    }

    async fn answer(&self, request: &str) -> Result<Value, String> {
        let text = self.text(request).await?;
        serde_json::from_str(&text).map_err(|_| text)
    }

    /// How often it has asked for targets in vain.
    pub(crate) async fn asked_in_vain(&self) -> Result<u64, String> {
        let text = self.text("GET /metrics HTTP/1.0\r\n\r\n").await?;
        let counts =
            text.lines().find_map(|line| line.strip_prefix("prometheus_sd_http_failures_total "));
        counts.and_then(|count| count.parse().ok()).ok_or(text)
    }

    /// The targets that it scrapes now: as it found them, and what it makes of them.
    pub(crate) async fn targets(&self) -> Result<Vec<Value>, String> {
        let body = self.answer("GET /api/v1/targets?state=active HTTP/1.0\r\n\r\n").await?;
        let active = body["data"]["activeTargets"].as_array().cloned();
        active.ok_or_else(|| body.to_string())
    }

    /// What its API answers to an expression.
    async fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let body: String = expression.bytes().fold("query=".to_owned(), |body, byte| {
            body + &if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        });
        let request = format!(
            "POST /api/v1/query HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let body = self.answer(&request).await?;
        if body["status"] != "success" {
            return Err(format!("{expression}: {body}"));
        }
        let samples = body["data"]["result"].as_array().ok_or("no result")?;
        let sample = |sample: &Value| -> Option<Sample> {
            let labels = serde_json::from_value(sample["metric"].clone()).ok()?;
            Some((labels, sample["value"][1].as_str()?.parse().ok()?))
        };
        let read = samples.iter().map(sample).collect::<Option<_>>();
        read.ok_or_else(|| format!("{expression}: {body}"))
    }

    async fn value(&self, expression: &str) -> Result<f64, String> {
        match &self.query(expression).await?[..] {
            [(_, value)] => Ok(*value),
            other => Err(format!("{expression}: {other:?}")),
        }
    }

    /// Waits until an expression has this value.
    async fn until(&self, expression: &str, wanted: f64, within: Duration) {
        eventually(&format!("{expression} is {wanted}"), within, async || {
            match self.value(expression).await? {
                value if value == wanted => Ok(()),
                value => Err(value.to_string()),
            }
        })
        .await;
    }

    /// The values of a label of what an expression gives.
    async fn labels(&self, expression: &str, label: &str) -> Result<BTreeSet<String>, String> {
        let samples = self.query(expression).await?.into_iter();
        Ok(samples.filter_map(|(mut labels, _)| labels.remove(label)).collect())
    }

    /// Waits until these are the nodes of which an expression says something.
    async fn until_of(&self, expression: &str, wanted: &[&str], within: Duration) {
        let wanted: BTreeSet<_> = wanted.iter().map(ToString::to_string).collect();
        eventually(&format!("{expression} is of {wanted:?}"), within, async || {
            match self.labels(expression, "instance").await? {
                of if of == wanted => Ok(()),
                of => Err(format!("{of:?}")),
            }
        })
        .await;
    }

    /// Waits until an expression says something of one node, and it is not this one.
    async fn until_of_others(&self, expression: &str, but: &str, within: Duration) {
        eventually(&format!("{expression} is not of {but}"), within, async || {
            match self.labels(expression, "instance").await? {
                of if of.len() == 1 && !of.contains(but) => Ok(()),
                of => Err(format!("{of:?}")),
            }
        })
        .await;
    }

    /// The alerts that have fired until now.
    async fn fired(&self) -> BTreeSet<String> {
        let all = "max_over_time(ALERTS{alertstate=\"firing\"}[1h])";
        self.labels(all, "alertname").await.unwrap()
    }
}

/// Something of everything that is measured, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
}

impl Load {
    async fn start(client: &Client) -> Self {
        let instance = InstanceBuilder::new("orders", "o-1").endpoint("http", "http://h:1");
        let kept = Registration::new(instance).ttl(Duration::from_secs(5));
        let kept = client.register(kept).await.unwrap();
        let (watch, view) =
            (client.watch(Selection::service("orders")), client.discover("orders").unwrap());
        watch.synced().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (client, stopped) = (client.clone(), stop.clone());
        tokio::spawn(async move {
            let _kept = (kept, watch, view);
            let mut weight = 0;
            while !stopped.load(Ordering::Relaxed) {
                weight = weight % 1_000 + 1;
                // What fails while there is no leader is what the test is about.
                let _ = client.update("orders", "o-1", &Update::new().weight(weight)).await;
                let _ = client.fetch("orders").await;
                time_passes(LOAD_EVERY).await;
            }
        });
        Self { stop }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the panels of the dashboard ask, with their titles.
fn asked_by_the_dashboard() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("ops/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut asked = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$job", "quorate").replace("$instance", ".*");
            let expression = expression.replace("$__rate_interval", "10s");
            assert!(!expression.contains('$'), "{title}: {expression}");
            asked.push((title.to_owned(), expression));
        }
    }
    assert!(asked.len() > 50, "they are found");
    asked
}

/// Everything that it asks can be asked, and nearly all of it has an answer.
async fn the_dashboard_has_something_to_show(prometheus: &Prometheus) {
    for (title, expression) in asked_by_the_dashboard() {
        if NOTHING_THERE.iter().any(|name| expression.contains(name)) {
            assert_eq!(prometheus.query(&expression).await, Ok(Vec::new()), "{title}");
            continue;
        }
        eventually(&format!("{title}: {expression}"), SEEN_WITHIN, async || {
            match prometheus.query(&expression).await? {
                samples if samples.iter().any(|(_, value)| !value.is_nan()) => Ok(()),
                samples => Err(format!("{samples:?}")),
            }
        })
        .await;
    }
}

/// Three nodes, and where each is scraped.
pub(crate) async fn observed() -> (Cluster, Vec<String>) {
    let https: Vec<_> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let head = (1..).zip(&https).map(|(id, http)| (id, format!("http_listen = {http:?}")));
    let head = head.collect();
    let tunables = "deny_after_ms = 0".to_owned();
    (Cluster::start_with(3, Settings { head, tunables, ..Settings::default() }).await, https)
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_sees_the_end_of_a_leader_and_its_return() {
    let program = match installed(".ci/install-prometheus", &["prometheus"]) {
        Ok(program) => program,
        Err(reason) => return skipped("a Prometheus that scrapes", reason),
    };
    let (mut cluster, https) = observed().await;
    let client = cluster.client().build().unwrap();
    let load = Load::start(&client).await;
    let file = cluster.dir().join("registry.backup");
    ask(&cluster.all(), &format!("cluster backup {}", file.display())).await.expect(0);
    let prometheus = Prometheus::start(program.as_ref(), &https);
    prometheus.until("sum(up{job=\"quorate\"})", 3.0, SEEN_WITHIN).await;
    // Rules are looked at before anything was scraped; on a busy machine for longer than an alert
    // takes which also says that there is nothing to see.
    let early = prometheus.fired().await;
    assert!(early.is_subset(&BTreeSet::from(["QuorateNoLeader".to_owned()])), "{early:?}");
    let leads = "quorate_raft_is_leader == 1";
    let old = cluster.leader().await;
    prometheus.until_of(leads, &[&https[old]], SEEN_WITHIN).await;
    prometheus.until("min(quorate_raft_has_leader)", 1.0, SEEN_WITHIN).await;
    the_dashboard_has_something_to_show(&prometheus).await;
    let fired = prometheus.fired().await;
    let of_state = |fired: BTreeSet<String>| {
        let elsewhere = OF_THE_MACHINE.iter().chain(&OF_OTHERS);
        let known = |name: &String| elsewhere.clone().any(|it| it == name) || early.contains(name);
        fired.into_iter().filter(|name| !known(name)).collect::<BTreeSet<_>>()
    };
    assert_eq!(of_state(fired), BTreeSet::new(), "all is well");

    cluster.nodes[old].kill();
    let pending = "ALERTS{alertname=\"QuorateNodeDown\", alertstate=\"pending\"}";
    prometheus.until_of(pending, &[&https[old]], SEEN_WITHIN).await;
    prometheus.until_of_others(leads, &https[old], LEADER_WITHIN + SEEN_WITHIN).await;
    prometheus.until("max(quorate_raft_voters_reachable)", 2.0, SEEN_WITHIN).await;
    let [down, no_spare] = OF_A_DEAD_NODE
        .map(|alert| format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}"));
    prometheus.until_of(&down, &[&https[old]], FIRES_WITHIN).await;
    prometheus.until_of_others(&no_spare, &https[old], FIRES_WITHIN).await;

    cluster.nodes[old].start();
    prometheus.until("sum(up{job=\"quorate\"})", 3.0, SEEN_WITHIN).await;
    prometheus.until("max(quorate_raft_voters_reachable)", 3.0, SEEN_WITHIN).await;
    for alert in OF_A_DEAD_NODE {
        let active = format!("ALERTS{{alertname=\"{alert}\"}}");
        prometheus.until_of(&active, &[], SEEN_WITHIN).await;
    }
    let fired = of_state(prometheus.fired().await);
    let expected: BTreeSet<_> = OF_A_DEAD_NODE.iter().map(ToString::to_string).collect();
    assert_eq!(fired, expected, "and no other alert");
    drop(load);
}

#[test]
fn rules_are_shortened_in_their_time_alone() {
    let rules = "- alert: A\n  expr: a[5m] > 1\n  for: 30m\n- alert: B\n  for: 30s\n";
    let shorter = "- alert: A\n  expr: a[5m] > 1\n  for: 50s\n- alert: B\n  for: 5s\n";
    assert_eq!(shortened(rules), shorter);
}
