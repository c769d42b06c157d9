//! The alerts in ops/ are about metrics that there are, lead to a runbook, and do what they say.

use std::collections::BTreeSet;
use std::process::Command;

use crate::no_faults;
use crate::skipped::skipped;
use crate::sources::{file, root};

/// The names in an expression that look like metrics of a node.
pub(crate) fn metrics(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let of_ours = |word: &&str| {
        ["quorate_", "grpc_server_", "process_"].iter().any(|prefix| word.starts_with(prefix))
    };
    words.filter(of_ours).collect()
}

/// Whether there is such a metric, or a histogram of which it is a part.
pub(crate) fn is_documented(name: &str, documents: &str) -> bool {
    let parts = ["", "_bucket", "_sum", "_count"];
    let mut families = parts.iter().filter_map(|part| name.strip_suffix(part));
    families.any(|family| documents.contains(&format!("| `{family}` |")))
}

#[test]
fn alerts_are_about_metrics_that_there_are() {
    let documented = file("docs/metrics.md").text;
    let alerts = file("ops/alerts.yaml");
    let mut faults = Vec::new();
    let mut known = 0;
    for (line, text) in (1..).zip(alerts.text.lines()) {
        for name in metrics(text) {
            match is_documented(name, &documented) {
                true => known += 1,
                false => faults.push(alerts.fault(line, &format!("there is no metric {name}"))),
            }
        }
    }
    assert!(known > 20, "it finds metrics");
    no_faults(&faults);
}

/// GitHub's anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn each_alert_has_a_runbook() {
    let operations = file("docs/operations.md").text;
    let headings = operations.lines().filter_map(|line| line.strip_prefix("## "));
    let anchors: BTreeSet<_> = headings.map(anchor).collect();
    let alerts = file("ops/alerts.yaml");
    let lines = || (1..).zip(alerts.text.lines());
    let mut faults = Vec::new();
    let mut runbooks = 0;
    for (line, text) in lines() {
        let Some((_, runbook)) = text.split_once("runbook: docs/operations.md#") else { continue };
        runbooks += 1;
        if !anchors.contains(runbook) {
            faults.push(alerts.fault(line, &format!("no heading has the anchor {runbook}")));
        }
    }
    let count = lines().filter(|(_, text)| text.contains("- alert: ")).count();
    assert_eq!(runbooks, count, "each alert has one");
    no_faults(&faults);
}

/// The alerts that tests want to fire, and those that they want to be quiet.
fn tested(tests: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let (mut fire, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    let name = |c: char| !c.is_ascii_alphanumeric();
    for rest in tests.split("alertname: ").skip(1) {
        let (alert, rest) = rest.split_once(name).expect("something comes after a name");
        let (_, expected) = rest.split_once("exp_alerts:").expect("it says what is wanted");
        let of = if expected.starts_with(" []") { &mut quiet } else { &mut fire };
        of.insert(alert);
    }
    (fire, quiet)
}

#[test]
fn what_is_tested_of_alerts_is_found() {
    let tests = "- {eval_time: 1m, alertname: A, exp_alerts: []}\n- eval_time: 1m\n  alertname: B\n  \
                 exp_alerts:\n  - exp_labels: {}\n- name: C\n  alertname: C\n  exp_alerts: []\n";
    assert_eq!(tested(tests), (BTreeSet::from(["B"]), BTreeSet::from(["A", "C"])));
}

/// Fires when it should, and is quiet in a healthy cluster: each of them.
#[test]
fn alerts_fire_when_they_should() {
    let alerts = file("ops/alerts.yaml").text;
    let tests = file("ops/alerts_test.yaml").text;
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let (all, (fire, quiet)) = (names.collect::<BTreeSet<_>>(), tested(&tests));
    assert_eq!(all, fire, "each is seen to fire");
    assert_eq!(all, quiet, "each is seen to be quiet");
    let promtool = match installed() {
        Ok(promtool) => promtool,
        Err(reason) => {
            return skipped("promtool on ops/", reason);
        }
    };
    for (what, rules) in [("check", "ops/alerts.yaml"), ("test", "ops/alerts_test.yaml")] {
        passes(Command::new(&promtool).args([what, "rules", rules]).current_dir(root()));
    }
}

fn passes(command: &mut Command) {
    let ran = command.output().unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The configurations in the documents are such, with the lines that stand there as comments, too.
#[test]
fn configurations_of_prometheus_in_documents_are_such() {
    let promtool = match installed() {
        Ok(promtool) => promtool,
        Err(reason) => {
            return skipped("promtool on docs/", reason);
        }
    };
    let dir = tempfile::tempdir().unwrap();
    for document in ["docs/metrics.md", "docs/prometheus.md"] {
        let text = file(document).text;
        let (_, rest) = text.split_once("```yaml\nscrape_configs:").expect("a configuration");
        let config = format!("scrape_configs:{}", rest.split("```").next().unwrap_or_default());
        for config in [config.clone(), config.replace("# ", "")] {
            let path = dir.path().join("prometheus.yml");
            std::fs::write(&path, config).unwrap();
            // What it names need not be on this machine.
            passes(Command::new(&promtool).args(["check", "config", "--syntax-only"]).arg(&path));
        }
    }
}

/// Where promtool is; why it cannot be had, otherwise.
fn installed() -> Result<String, String> {
    let ran = Command::new(root().join(".ci/install-prometheus")).arg("promtool").output();
    let ran = ran.map_err(|error| error.to_string())?;
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
    }
}
