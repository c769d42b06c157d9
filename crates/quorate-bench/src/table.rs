//! Rows as a table for terminals, and the texts of its cells.

use crate::number::number;
use crate::rows::{Row, Verdict};
use crate::sample::Pool;

/// The widths of the figures: ours, theirs, the ratio. With repetitions, each has its spread.
const WIDTHS: [usize; 3] = [9, 9, 7];
const WIDTHS_WITH_SPREAD: [usize; 3] = [24, 24, 20];

/// The lines of the table; `theirs`: who is beside Quorate. With `details`, every figure.
pub(crate) fn table(rows: &[Row], theirs: &str, details: bool) -> Vec<String> {
    let spread = rows.iter().any(|row| row.repetitions > 1);
    let widths = if spread { WIDTHS_WITH_SPREAD } else { WIDTHS };
    let mut lines = vec![line(["", "", "", "quorate", theirs, "ratio", "wanted", ""], widths)];
    for (row, [workload, variant]) in named(rows, details) {
        let cells = [
            workload,
            variant,
            &metric(row),
            &ours(row),
            &self::theirs(row),
            &ratio(row),
            &wanted(row),
            &verdict(row),
        ];
        lines.push(line(cells, widths));
    }
    lines
}

/// The rows that are told, each with its workload and variant where they are not those of the row
/// before.
pub(crate) fn named(rows: &[Row], details: bool) -> Vec<(&Row, [&str; 2])> {
    let mut before = ["", ""];
    let shown = rows.iter().filter(|row| details || shown(row));
    let named = shown.map(|row| {
        let here = [row.workload, row.variant.as_str()];
        let told = if here == before { ["", ""] } else { here };
        before = here;
        (row, told)
    });
    named.collect()
}

/// What is left out without details.
const DETAILS: [&str; 6] = [
    "p99.9",
    "busiest server cpu each",
    "client cpu each",
    "peak memory",
    "backup size",
    "changes seen one by one",
];

fn shown(row: &Row) -> bool {
    row.has_bound() || !DETAILS.contains(&row.metric)
}

fn line(cells: [&str; 8], widths: [usize; 3]) -> String {
    let [workload, variant, metric, ours, theirs, ratio, wanted, verdict] = cells;
    let [first, second, third] = widths;
    let line = format!(
        "{workload:<4} {variant:<24.24} {metric:<32.32} {ours:>first$} {theirs:>second$} {ratio:>third$} {wanted:>9} {verdict}"
    );
    line.trim_end().to_owned()
}

/// What a row is about, with its unit.
pub(crate) fn metric(row: &Row) -> String {
    let worst = if row.pool == Pool::Worst { ", worst" } else { "" };
    format!("{} [{}{worst}]", row.metric, row.unit)
}

pub(crate) fn ours(row: &Row) -> String {
    row.ours.map_or_else(|| "-".to_owned(), |value| with_spread(value, &row.ours_all))
}

pub(crate) fn theirs(row: &Row) -> String {
    row.theirs.map_or_else(|| "-".to_owned(), |value| with_spread(value, &row.theirs_all))
}

pub(crate) fn ratio(row: &Row) -> String {
    row.ratio.map_or_else(String::new, |ratio| with_spread(ratio, &row.ratio_all))
}

/// A figure, and from where to where those of the repetitions reach.
fn with_spread(value: f64, all: &[f64]) -> String {
    let least = all.iter().copied().fold(value, f64::min);
    let most = all.iter().copied().fold(value, f64::max);
    match (number(least), number(value), number(most)) {
        (least, value, most) if least == most => value,
        (least, value, most) => format!("{value} ({least}..{most})"),
    }
}

/// What is wanted of a row, in a few characters.
pub(crate) fn wanted(row: &Row) -> String {
    match (row.at_least, row.ours_at_least, row.ours_at_most) {
        (Some(times), _, _) => format!("{times}x"),
        (_, Some(bound), _) => format!(">={}", number(bound)),
        (_, _, Some(bound)) => format!("<={}", number(bound)),
        _ => String::new(),
    }
}

pub(crate) fn verdict(row: &Row) -> String {
    match (row.verdict, row.incomplete()) {
        (Some(Verdict::Met), _) => "met".to_owned(),
        (Some(Verdict::Missed), _) => "MISSED".to_owned(),
        (Some(Verdict::Open), _) => "open".to_owned(),
        (None, Some(there)) => format!("{there} of {}", row.repetitions),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::rows;
    use crate::sample::{Better, Sample};
    use crate::wire::Peer;

    fn sample(variant: &str, value: f64) -> Sample {
        Sample {
            workload: "W1c",
            variant: variant.to_owned(),
            metric: "instances",
            unit: "% of a core",
            better: Better::Higher,
            pool: Pool::Median,
            value,
        }
    }

    #[test]
    fn tables_fit_their_columns() {
        let long = "v".repeat(60);
        let [ours, theirs] = [123_456.7, 9_876.5].map(|value| sample(&long, value));
        let once = [(Peer::Quorate, ours.clone()), (Peer::Etcd, theirs)];
        let shown = table(&rows(&once, 1, &[]), "etcd", true);
        assert_eq!(shown.len(), 2);
        assert!(shown[1].ends_with(">=100,000 met"), "{}", shown[1]);
        assert!(shown.iter().all(|line| line.chars().count() <= 110), "{shown:#?}");

        let twice = [(Peer::Quorate, ours), (Peer::Quorate, sample(&long, 98_765.4))];
        let shown = table(&rows(&twice, 2, &[]), "-", true);
        assert!(shown[1].contains(" 111,111 (98,765..123,457) "), "{}", shown[1]);
        assert!(shown[1].ends_with(">=100,000 open"), "{}", shown[1]);
        let shown = table(&rows(&twice, 3, &[]), "-", true);
        assert!(shown[1].ends_with(">=100,000 2 of 3"), "{}", shown[1]);
    }
}
