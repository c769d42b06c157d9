//! The result as one HTML file that needs nothing else: tables, and plots as inline SVG. And as
//! Markdown.

mod markdown;
mod svg;

use std::fmt::Write;

pub(crate) use self::markdown::markdown;
use crate::number::number;
use crate::outcome::Outcome;
use crate::rows::{self, Row, Verdict};
use crate::sample::Better;
use crate::table;

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}\
    table{border-collapse:collapse;margin:.6rem 0 1.4rem}td,th{padding:.15rem .6rem;border-bottom:1px solid #ddd}\
    th{text-align:left;font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
    .met{color:#127a3a}.missed{color:#b3261e;font-weight:600}.dim{color:#777}svg{display:block;margin:.4rem 0 1rem}\
    svg text{font:12px system-ui,sans-serif;fill:#222}h2{margin-top:2.2rem}";

/// The whole file.
pub(crate) fn html(outcome: &Outcome) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>quorate-bench</title>\
         <style>{STYLE}</style>\n<h1>quorate-bench</h1>\n"
    );
    let mut line = |text: String| page.push_str(&text);
    line(format!("<p>{}</p>\n", escaped(&outcome.machine.line())));
    line(format!(
        "<p>{} repetition(s): medians, or the worst where that is said, and from the least to the most; scale {}; {} connections \
         to each node. Three server processes on loopback, each write synced to disk before it is acknowledged. A ratio says how \
         many times better Quorate is. {}.</p>\n",
        outcome.repetitions,
        outcome.scale,
        outcome.connections_per_node,
        rows::counted(&outcome.rows)
    ));
    if !outcome.notes.is_empty() {
        line("<h2>Not measured</h2><ul>".to_owned());
        outcome.notes.iter().for_each(|note| line(format!("<li>{}</li>", escaped(note))));
        line("</ul>\n".to_owned());
    }
    let wanted: Vec<&Row> = outcome.rows.iter().filter(|row| row.at_least.is_some()).collect();
    if !wanted.is_empty() {
        line("<h2>How many times better, and how many are wanted</h2>\n".to_owned());
        line(svg::ratios(&wanted));
    }
    for workload in workloads(&outcome.rows) {
        line(section(workload, &outcome.rows));
    }
    line(limits(outcome));
    page.push_str("</html>\n");
    page
}

fn workloads(rows: &[Row]) -> Vec<&'static str> {
    let mut names: Vec<&str> = rows.iter().map(|row| row.workload).collect();
    names.dedup();
    names
}

fn section(workload: &str, rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.workload == workload).collect();
    let mut text = format!("<h2>{workload}</h2>\n");
    let mut metrics: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.better != Better::Neither) {
        if !metrics.contains(&row.metric) {
            metrics.push(row.metric);
        }
    }
    for metric in metrics {
        let of: Vec<&Row> = rows.iter().filter(|row| row.metric == metric).copied().collect();
        // One bar says no more than the table.
        if of.len() > 1 || of.iter().any(|row| row.theirs.is_some()) {
            text.push_str(&svg::bars(metric, &of));
        }
    }
    text.push_str(
        "<table><tr><th>variant<th>figure<th class=n>quorate<th class=n>peer<th class=n>ratio\
         <th class=n>wanted<th><th class=n>of the limit</tr>\n",
    );
    let mut before = "";
    for row in rows {
        let class = match row.verdict {
            Some(Verdict::Met) => "met",
            Some(Verdict::Missed) => "missed",
            Some(Verdict::Open) | None => "dim",
        };
        let variant = if row.variant == before { "" } else { &row.variant };
        let share = row.of_limit.map_or(String::new(), |share| format!("{:.0} %", share * 100.0));
        // Writing into a String does not fail.
        let _ = writeln!(
            text,
            "<tr><td>{}<td>{}<td class=n title=\"{:?}\">{}<td class=n title=\"{:?}\">{}<td class=n title=\"{:?}\">{}\
             <td class=n>{}<td class={class}>{}<td class=n>{share}</tr>",
            escaped(variant),
            escaped(&table::metric(row)),
            row.ours_all,
            table::ours(row),
            row.theirs_all,
            table::theirs(row),
            row.ratio_all,
            table::ratio(row),
            escaped(&table::wanted(row)),
            table::verdict(row),
        );
        before = &row.variant;
    }
    text.push_str("</table>\n");
    text
}

fn limits(outcome: &Outcome) -> String {
    if outcome.limits.is_empty() {
        return String::new();
    }
    let mut text = "<h2>At most on this machine</h2>\n<table><tr><th>what<th class=n>per second\
         <th class=n>p50 ms<th class=n>p99 ms</tr>\n"
        .to_owned();
    for limit in &outcome.limits {
        let figures = [limit.per_second, limit.p50_ms, limit.p99_ms].map(number);
        let _ = writeln!(
            text,
            "<tr><td>{}<td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            escaped(&limit.what),
            figures[0],
            figures[1],
            figures[2]
        );
    }
    text.push_str("</table>\n");
    text
}

/// Text as HTML shows it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
