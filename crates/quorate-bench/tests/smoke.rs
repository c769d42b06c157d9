//! The tool does a little of each kind of work on a real cluster and prints figures that can be.
//! How large they are is no matter of a test.

#[path = "../../../tests/readme/skipped.rs"]
mod skipped;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs the tool, with its data and result in a directory of its own.
fn bench(dir: &Path, args: &[&str]) -> Output {
    let bench = Path::new(env!("CARGO_BIN_EXE_quorate-bench"));
    let mut command = Command::new(bench);
    // Where all packages are tested, the server was just built beside the tool; else the tool
    // builds it.
    let quorate = bench.with_file_name("quorate");
    if quorate.is_file() {
        command.arg(args[0]).arg("--quorate").arg(quorate).args(&args[1..]);
    } else {
        command.args(args);
    }
    let output =
        command.arg("--data-dir").arg(dir).arg("--json").arg(dir.join("result.json")).output();
    output.expect("the tool starts")
}

/// The rows of the result. Everything was measured.
fn rows(dir: &Path, output: &Output) -> Vec<Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(
        out.lines().all(|line| line.starts_with("note") || line.chars().count() <= 160),
        "{out}"
    );
    let json = std::fs::read_to_string(dir.join("result.json")).expect("the result is written");
    let mut result: Value = serde_json::from_str(&json).expect("is JSON");
    assert_eq!(result["notes"], Value::Array(Vec::new()), "{err}");
    let left = std::fs::read_dir(dir).expect("is there").flatten();
    let left: Vec<_> = left.filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "data is removed: {left:?}");
    result["rows"].as_array_mut().map(std::mem::take).expect("has rows")
}

fn figure(rows: &[Value], workload: &str, metric: &str, whose: &str) -> f64 {
    let row = rows.iter().find(|row| row["workload"] == workload && row["metric"] == metric);
    let row = row.unwrap_or_else(|| panic!("no {metric} of {workload}"));
    row[whose].as_f64().unwrap_or_else(|| panic!("no {whose} in {row}"))
}

/// A directory on the disk that the build is on.
fn directory(name: &str) -> std::path::PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _not_there = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("can be made");
    dir
}

#[test]
fn a_little_of_each_workload_is_measured() {
    let dir = directory("run");
    let html = dir.join("report.html");
    let only = "w1,w1b,w1c,w2,w3,w4,w5";
    let html_arg = html.display().to_string();
    let args = ["run", "--reps", "1", "--scale", "0.01", "--no-ceiling", "--only", only];
    let args = [&args[..], &["--html", &html_arg]].concat();
    let output = bench(&dir, &args);
    let rows = rows(&dir, &output);
    for (workload, metric) in [
        ("W1", "registrations"),
        ("W1", "p50"),
        ("W1b", "registrations"),
        ("W1c", "instances"),
        ("W2", "renewals"),
        ("W3", "fetches"),
        ("W4", "events"),
        ("W4", "p99"),
        ("W5", "first write"),
        ("W5", "first renewal"),
    ] {
        let value = figure(&rows, workload, metric, "ours");
        assert!(value.is_finite() && value > 0.0, "{workload} {metric}: {value}");
    }
    assert!(rows.iter().all(|row| row["theirs"].is_null() && row["ratio"].is_null()));
    let report = std::fs::read_to_string(html).expect("the report is written");
    assert!(report.contains("<svg") && report.contains("<h2>W4</h2>") && !report.contains("src="));
}

#[test]
fn quorate_with_tls_is_measured_beside_quorate_without() {
    let dir = directory("tls");
    let args = ["compare", "--peer", "plain", "--reps", "1", "--scale", "0.01", "--no-ceiling"];
    let args = [&args[..], &["--only", "w2"]].concat();
    let rows = rows(&dir, &bench(&dir, &args));
    let cpu = rows.iter().find(|row| row["metric"] == "server cpu each").expect("it is measured");
    assert!(cpu["ours"].as_f64() > Some(0.0) && cpu["theirs"].as_f64() > Some(0.0), "{cpu}");
    assert_eq!(cpu["at_least"], 0.77, "{cpu}");
    let text = std::fs::read_to_string(dir.join("result.json")).expect("the result is written");
    let result: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(result["tls"], true);
}

#[test]
fn the_same_work_is_done_on_etcd_where_there_is_one() {
    let dir = directory("compare");
    let markdown = dir.join("tables.md");
    let args = ["compare", "--scale", "0.01", "--no-ceiling", "--only", "w1,w2,w3", "--markdown"];
    let path = markdown.display().to_string();
    let args = [&args[..], &[&path]].concat();
    let output = bench(&dir, &args);
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("etcd").is_file()) {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains("apt-get install etcd-server"),
            "{error}"
        );
        return skipped::skipped("the comparison", "there is no etcd on this machine");
    }
    let rows = rows(&dir, &output);
    for (workload, metric) in [("W1", "registrations"), ("W2", "renewals"), ("W3", "fetches")] {
        let [ours, theirs, ratio] =
            ["ours", "theirs", "ratio"].map(|whose| figure(&rows, workload, metric, whose));
        assert!(ours > 0.0 && theirs > 0.0 && (ratio - ours / theirs).abs() < 1e-9);
    }
    let bound = rows.iter().find(|row| !row["at_least"].is_null()).expect("something is wanted");
    assert!(bound["verdict"].is_string(), "{bound}");
    for all in ["ours_all", "theirs_all", "ratio_all"] {
        assert_eq!(bound[all].as_array().map(Vec::len), Some(2), "of both repetitions: {bound}");
    }
    let tables = std::fs::read_to_string(markdown).expect("the tables are written");
    assert!(tables.contains("\n| W1 | 1 in flight | registrations [1/s] | "), "{tables}");

    let dir = directory("compare-tls");
    let args = ["compare", "--tls", "--reps=1", "--scale=0.01", "--no-ceiling", "--only", "w1"];
    let output = bench(&dir, &args);
    let rows = self::rows(&dir, &output);
    for whose in ["ours", "theirs"] {
        assert!(figure(&rows, "W1", "registrations", whose) > 0.0, "with TLS, {whose}");
    }
}

#[test]
fn what_it_costs_to_be_scraped_is_told_of_each_kind_of_work() {
    let dir = directory("scraping");
    let bench = Path::new(env!("CARGO_BIN_EXE_quorate-bench"));
    let mut command = Command::new(bench);
    command.args(["scraping", "--pairs", "1", "--scale", "0.01", "--data-dir"]).arg(&dir);
    let quorate = bench.with_file_name("quorate");
    if quorate.is_file() {
        command.arg("--quorate").arg(quorate);
    }
    let output = command.output().expect("the tool starts");
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{out}\n{err}");
    for workload in ["W1", "W2", "W3", "W4"] {
        let lines: Vec<&str> = out.lines().filter(|line| line.starts_with(workload)).collect();
        assert_eq!(lines.len(), 2, "its rate, and what it takes: {out}");
        for line in lines {
            let (_, ratio) = line.split_once("; ").expect(line);
            let middle: f64 = ratio.split(' ').next().and_then(|it| it.parse().ok()).expect(line);
            assert!(middle.is_finite() && middle > 0.0, "{line}");
        }
    }
}

#[test]
fn where_there_is_no_etcd_that_is_said_before_anything_is_built() {
    let dir = directory("no-etcd");
    let bench = Path::new(env!("CARGO_BIN_EXE_quorate-bench"));
    let output = Command::new(bench)
        .args(["compare", "--etcd", "/nowhere/etcd", "--quorate", "/nowhere/quorate", "--data-dir"])
        .arg(&dir)
        .output()
        .expect("the tool starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("there is no etcd"), "{error}");
}

#[test]
fn a_workload_without_a_figure_is_an_error() {
    let dir = directory("fault");
    // No server that speaks anything.
    let output = Command::new(env!("CARGO_BIN_EXE_quorate-bench"))
        .args(["run", "--quorate", "/bin/false", "--no-ceiling", "--only", "w1", "--data-dir"])
        .arg(&dir)
        .output()
        .expect("the tool starts");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}\n{err}");
    assert!(out.contains("not measured: /bin/false ended by itself"), "{out}\n{err}");
    assert!(err.contains("2 times, a workload gave no figure"), "{out}\n{err}");
}
