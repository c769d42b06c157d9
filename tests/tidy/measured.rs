//! Each metric of docs/metrics.md stands in a test: in the code of `tests/cluster`, of
//! `tests/process`, or of the meters themselves. That a number is right, only that test can say;
//! this sees that none is forgotten. None is excepted: one that no test can see has its name and
//! the reason here.

use crate::no_faults;
use crate::sources::{Source, file, rust};

const TESTS: [&str; 3] =
    ["tests/cluster/", "tests/process/", "crates/quorate-node/src/meters/tests"];
/// What a histogram is scraped as.
const PARTS: [&str; 4] = ["", "_bucket", "_sum", "_count"];

/// The names of the table, with their lines.
fn documented(page: &Source) -> Vec<(usize, &str)> {
    const KINDS: [&str; 3] = ["| counter |", "| gauge |", "| histogram |"];
    let lines = (1..).zip(page.text.lines());
    let rows = lines.filter(|(_, line)| KINDS.iter().any(|kind| line.contains(kind)));
    let rows = rows.filter_map(|(number, line)| Some((number, line.strip_prefix("| `")?)));
    rows.filter_map(|(number, row)| Some((number, row.split_once("` | ")?.0))).collect()
}

/// Whether a line has the name, and not as a part of another one.
fn names(line: &str, metric: &str) -> bool {
    let mut words = line.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    words.any(|word| word.strip_prefix(metric).is_some_and(|end| PARTS.contains(&end)))
}

#[test]
fn every_metric_stands_in_a_test() {
    let page = file("docs/metrics.md");
    let metrics = documented(&page);
    assert!(metrics.len() > 60, "the table is found: {metrics:?}");
    let mut tests = rust();
    tests.retain(|source| TESTS.iter().any(|of| source.path.starts_with(of)));
    let has = |test: &Source, metric| test.code().any(|(_, line)| names(line, metric));
    let missing = metrics.into_iter().filter(|(_, metric)| !tests.iter().any(|it| has(it, metric)));
    let what = "stands in no test; scrape it where a test makes it happen, and compare";
    let faults = missing.map(|(line, metric)| page.fault(line, &format!("{metric} {what}")));
    no_faults(&faults.collect::<Vec<_>>());
}

#[test]
fn names_of_metrics_are_whole() {
    assert!(names("let it = now[\"quorate_leases\"];", "quorate_leases"));
    assert!(names("\"quorate_commit_seconds_count{a=\\\"b\\\"}\"", "quorate_commit_seconds"));
    assert!(!names("quorate_state_bytes_max", "quorate_state_bytes"));
    assert!(!names("other_quorate_leases", "quorate_leases"));
}
