//! The result as docs/performance.md shows it: what it was measured on, the limits of the machine,
//! and the table of figures. Pasted there as it is.

use std::fmt::Write;

use crate::number::number;
use crate::outcome::Outcome;
use crate::rows::{self, Row, Verdict};
use crate::table;

/// The whole file; `theirs`: who is beside Quorate.
pub(crate) fn markdown(outcome: &Outcome, theirs: &str) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    line(format!("{}.", outcome.machine.line()));
    line(format!(
        "Repetitions: {}; figures are medians of them, or their worst where that is said, from the least to the most.\n\
         Scale {}, {} connections to each node, TLS: {}. {}.\n",
        outcome.repetitions,
        outcome.scale,
        outcome.connections_per_node,
        if outcome.tls { "yes" } else { "no" },
        rows::counted(&outcome.rows)
    ));
    outcome.notes.iter().for_each(|note| line(format!("- {note}")));
    if !outcome.limits.is_empty() {
        line(
            "\n| at most on this machine | 1/s | p50 [ms] | p99 [ms] |\n|---|---|---|---|"
                .to_owned(),
        );
    }
    for limit in &outcome.limits {
        let [rate, p50, p99] = [limit.per_second, limit.p50_ms, limit.p99_ms].map(number);
        line(format!("| {} [{}] | {rate} | {p50} | {p99} |", limit.what, limit.unit));
    }
    line(format!("\n| | variant | metric | Quorate | {theirs} | ratio | wanted | limit reached |"));
    line("|---|---|---|---|---|---|---|---|".to_owned());
    for (row, [workload, variant]) in table::named(&outcome.rows, false) {
        line(format!(
            "| {workload} | {variant} | {} | {} | {} | {} | {} | {} |",
            table::metric(row),
            table::ours(row),
            table::theirs(row),
            table::ratio(row),
            wanted(row),
            limit(row),
        ));
    }
    text
}

fn wanted(row: &Row) -> String {
    let verdict = match row.verdict {
        Some(Verdict::Missed) => "**missed**".to_owned(),
        _ => table::verdict(row),
    };
    match (table::wanted(row), verdict) {
        (wanted, verdict) if wanted.is_empty() || verdict.is_empty() => wanted + &verdict,
        (wanted, verdict) => format!("{wanted}: {verdict}"),
    }
}

fn limit(row: &Row) -> String {
    match (row.limit, row.of_limit) {
        (Some(limit), Some(share)) => format!("{:.0} % of {limit}", share * 100.0),
        _ => String::new(),
    }
}
