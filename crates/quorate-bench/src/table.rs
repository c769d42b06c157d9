//! Rows as a table for terminals, within a hundred columns.

use crate::rows::Row;

/// The lines of the table; `theirs`: who is beside Quorate. With `details`, every figure.
pub(crate) fn table(rows: &[Row], theirs: &str, details: bool) -> Vec<String> {
    let mut lines = vec![line(["", "", "", "quorate", theirs, "ratio", "wanted", ""])];
    let mut before = ("", String::new());
    for row in rows.iter().filter(|row| details || shown(row)) {
        let here = (row.workload, row.variant.clone());
        let (workload, variant) =
            if here == before { ("", "") } else { (row.workload, row.variant.as_str()) };
        let metric = format!("{} [{}]", row.metric, row.unit);
        lines.push(line([
            workload,
            variant,
            &metric,
            &row.ours.map_or_else(|| "-".to_owned(), number),
            &row.theirs.map_or_else(|| "-".to_owned(), number),
            &row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            &wanted(row),
            verdict(row),
        ]));
        before = here;
    }
    lines
}

/// What is left out without details.
const DETAILS: [&str; 8] = [
    "p99.9",
    "busiest server cpu each",
    "client cpu each",
    "peak memory",
    "backup size",
    "changes seen one by one",
    "first write, worst",
    "first renewal, worst",
];

fn shown(row: &Row) -> bool {
    row.has_bound() || !DETAILS.contains(&row.metric)
}

fn line(cells: [&str; 8]) -> String {
    let [workload, variant, metric, ours, theirs, ratio, wanted, verdict] = cells;
    let line = format!(
        "{workload:<4} {variant:<24.24} {metric:<26.26} {ours:>9} {theirs:>9} {ratio:>7} {wanted:>8} {verdict}"
    );
    line.trim_end().to_owned()
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

pub(crate) fn verdict(row: &Row) -> &'static str {
    match row.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    }
}

/// Three or more digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 1.0 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::rows;
    use crate::sample::Better;
    use crate::sample::Sample;
    use crate::wire::Peer;

    #[test]
    fn tables_fit_a_hundred_columns() {
        let sample = |value| Sample {
            workload: "W1c",
            variant: "v".repeat(60),
            metric: "instances",
            unit: "% of a core",
            better: Better::Higher,
            value,
        };
        let rows = rows(&[(Peer::Quorate, sample(123_456.7)), (Peer::Etcd, sample(9_876.5))], &[]);
        let table = table(&rows, "etcd", true);
        assert_eq!(table.len(), 2);
        assert!(table[1].ends_with(">=100000 met"), "{}", table[1]);
        assert!(table.iter().all(|line| line.chars().count() <= 100), "{table:#?}");
    }
}
