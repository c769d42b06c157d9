//! ops/dashboard.json is a dashboard that Grafana takes as it is, about metrics that there are.
//! What it asks is asked of a real Prometheus by `tests/process/prometheus.rs`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::alerts::{is_documented, metrics};
use crate::no_faults;
use crate::sources::file;

/// Grafana 10.0 wrote this one; later ones take it.
const SCHEMA_MIN: u64 = 38;
/// What every Grafana has, without a plugin.
const KINDS: [&str; 4] = ["stat", "state-timeline", "table", "timeseries"];
/// The variable that stands for the Prometheus of whoever imports it.
const SOURCE: &str = "${datasource}";
const ROWS: [&str; 6] = ["Is it well?", "Calls", "Raft and log", "Registry", "Watches", "Nodes"];

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn faults_of(panel: &Value, documented: &str) -> Vec<String> {
    let title = text(panel, "/title");
    let mut faults = Vec::new();
    let mut fault = |what: &str| faults.push(format!("ops/dashboard.json, {title:?}: {what}"));
    if title.is_empty() {
        fault("a panel without a title");
    }
    for (path, what) in [("/description", "description"), ("/fieldConfig/defaults/unit", "unit")] {
        if text(panel, path).is_empty() {
            fault(&format!("it has no {what}"));
        }
    }
    if !KINDS.contains(&text(panel, "/type")) {
        fault("not every Grafana has this kind of panel");
    }
    let targets = list(panel, "/targets");
    if targets.is_empty() {
        fault("it asks nothing");
    }
    for target in targets {
        let expression = text(target, "/expr");
        if text(target, "/datasource/uid") != SOURCE {
            fault(&format!("the source of its data is not {SOURCE}"));
        }
        if !expression.contains("$job") && !expression.starts_with("count(ALERTS{") {
            fault(&format!("it mixes clusters, for want of the job: {expression}"));
        }
        for name in metrics(expression) {
            if !is_documented(name, documented) {
                fault(&format!("there is no metric {name}"));
            }
        }
    }
    faults
}

#[test]
fn the_dashboard_is_about_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(&file("ops/dashboard.json").text).unwrap();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(SCHEMA_MIN));
    for (path, name) in [("/title", "Quorate"), ("/uid", "quorate")] {
        assert_eq!(text(&dashboard, path), name);
    }
    assert!(dashboard.get("id").is_none(), "Grafana would take it for one that it has");
    let variables = list(&dashboard, "/templating/list").iter();
    let variables: BTreeSet<_> = variables.map(|variable| text(variable, "/name")).collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "instance", "job"]));
    let panels = list(&dashboard, "/panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each has an id of its own");
    let (rows, panels): (Vec<_>, Vec<_>) =
        panels.iter().partition(|panel| text(panel, "/type") == "row");
    let rows: Vec<_> = rows.into_iter().map(|row| text(row, "/title")).collect();
    assert_eq!(rows, ROWS);
    let documented = file("docs/metrics.md").text;
    let faults: Vec<_> = panels.iter().flat_map(|panel| faults_of(panel, &documented)).collect();
    no_faults(&faults);
    let asked = panels.iter().flat_map(|panel| list(panel, "/targets"));
    let named: BTreeSet<_> = asked.flat_map(|target| metrics(text(target, "/expr"))).collect();
    assert!(named.len() > 40, "it finds metrics: {named:?}");
}
