//! What the table of metrics promises.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

fn meters() -> Meters {
    let methods = [("a.v1.S/Get", (false, false)), ("a.v1.S/Follow", (false, true))];
    Meters::new(methods.into_iter())
}

#[test]
fn a_call_is_counted_by_its_code_under_the_names_of_etcd() {
    let meters = meters();
    meters.handled(0, Code::Ok, Duration::from_millis(2));
    meters.handled(0, Code::NotFound, Duration::from_millis(2));
    meters.handled(1, Code::Unauthenticated, Duration::from_secs(20));
    meters.started(0);
    let text = meters.text(|_| {});
    let unary = r#"grpc_type="unary",grpc_service="a.v1.S",grpc_method="Get""#;
    for line in [
        format!("grpc_server_started_total{{{unary}}} 1"),
        format!("grpc_server_handled_total{{{unary},grpc_code=\"OK\"}} 1"),
        format!("grpc_server_handled_total{{{unary},grpc_code=\"NotFound\"}} 1"),
        format!("grpc_server_handled_total{{{unary},grpc_code=\"Internal\"}} 0"),
        format!("grpc_server_handling_seconds_bucket{{{unary},le=\"0.001\"}} 0"),
        format!("grpc_server_handling_seconds_bucket{{{unary},le=\"0.0025\"}} 2"),
        format!("grpc_server_handling_seconds_count{{{unary}}} 2"),
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
    }
    let other = r#"grpc_type="server_stream",grpc_service="a.v1.S",grpc_method="Follow""#;
    assert!(text.contains(&format!("{other},grpc_code=\"Unauthenticated\"}} 1")), "{text}");
    assert!(text.contains(&format!("grpc_server_started_total{{{other}}} 0")), "{text}");
}

/// By the rules of Prometheus: a scraper would take what breaks them for another metric.
#[test]
fn names_have_units_and_no_two_are_the_same() {
    let text = meters().text(|_| {});
    let mut names: Vec<_> = text.lines().filter_map(|it| it.strip_prefix("# TYPE ")).collect();
    assert!(names.len() > 40, "{names:?}");
    for line in &names {
        let (name, kind) = line.split_once(' ').unwrap();
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        let known = ["grpc_server_", "quorate_", "process_"];
        assert!(known.iter().any(|prefix| name.starts_with(prefix)), "{line}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
        if kind == "histogram" {
            assert!(name.ends_with("_seconds") || name.ends_with("_per_batch"), "{line}");
        }
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// What is refused for the first time must be an increase, and what the table says must be so.
#[test]
fn each_reason_and_each_limit_is_there_from_the_start() {
    let text = meters().text(|_| {});
    let help = |name: &str| DESCRIBED.iter().find(|(it, ..)| *it == name).unwrap().2;
    for (name, end, label, values) in [
        ("quorate_refused", "_total", "lane", &LANES[..]),
        ("quorate_proposals_failed", "_total", "reason", &FAILED_FOR),
        ("quorate_writes_refused", "", "reason", &REFUSED_FOR),
        ("quorate_log_compactions", "_total", "reason", &COMPACTED_FOR),
    ] {
        let words: Vec<_> = help(name).split(|c: char| c != '_' && !c.is_alphanumeric()).collect();
        for value in values {
            let line = format!("{name}{end}{{{label}=\"{value}\"}} 0");
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
            assert!(words.contains(value), "{value} in the meaning of {name}");
        }
    }
}

#[test]
fn what_others_counted_is_a_histogram_like_any() {
    let meters = meters();
    let text = meters.text(|meters| {
        meters.log_flush.set(0.5, [(0.001, 3), (0.1, 2), (f64::MAX, 1)].into_iter());
    });
    for line in [
        "quorate_log_flush_seconds_bucket{le=\"0.001\"} 3",
        "quorate_log_flush_seconds_bucket{le=\"0.1\"} 5",
        "quorate_log_flush_seconds_bucket{le=\"+Inf\"} 6",
        "quorate_log_flush_seconds_count 6",
        "quorate_log_flush_seconds_sum 0.5",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
    }
}

#[test]
fn the_documented_metrics_are_those_that_there_are() {
    let row = |(name, kind, help): &(&str, MetricType, &str)| {
        let (kind, end) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Histogram => ("histogram", ""),
            _ => ("gauge", ""),
        };
        (format!("{name}{end}"), format!("| {kind} | {help} |\n"))
    };
    let rows: BTreeMap<_, _> = DESCRIBED.iter().map(row).collect();
    let table: String = rows.iter().map(|(name, rest)| format!("| `{name}` {rest}")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let documented = std::fs::read_to_string(path).unwrap();
    if !documented.ends_with(&table) {
        let wanted = std::env::temp_dir().join("quorate-metrics-table.md");
        std::fs::write(&wanted, table).unwrap();
        panic!("the table of docs/metrics.md must be what is in {}", wanted.display());
    }
}
