//! Two kinds of plots: bars of one figure for each variant, ours and theirs, and ratios on a
//! logarithmic scale.

use std::fmt::Write;

use super::escaped;
use crate::number::number;
use crate::rows::{Row, Verdict};

const WIDTH: f64 = 940.0;
/// Names stand left of this.
const LEFT: f64 = 330.0;
/// Figures stand right of the bars.
const RIGHT: f64 = 90.0;
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;
const TOP: f64 = 24.0;
const OURS: &str = "#1a6fb5";
const THEIRS: &str = "#c9a227";
const BAD: &str = "#b3261e";
const GOOD: &str = "#127a3a";
const OPEN: &str = "#777";

/// A pair of bars for each row; dots are the repetitions.
pub(super) fn bars(metric: &str, rows: &[&Row]) -> String {
    let values = rows.iter().flat_map(|row| row.ours_all.iter().chain(&row.theirs_all));
    let largest = values.copied().fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / largest;
    let both = rows.iter().any(|row| row.theirs.is_some());
    let height = if both { 2.0 * BAR } else { BAR };
    let mut plot = Plot::new(TOP + rows.len() as f64 * (height + GAP));
    let unit = rows.first().map_or("", |row| row.unit);
    plot.text(0.0, 14.0, "start", &format!("{metric}, {unit}"));
    if both {
        plot.text(LEFT, 14.0, "start", "blue: quorate, yellow: peer; dots: repetitions");
    }
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + at as f64 * (height + GAP);
        plot.text(LEFT - 8.0, y + height / 2.0 + 4.0, "end", &row.variant);
        plot.bar(y, row.ours, &row.ours_all, scale, OURS);
        if both {
            plot.bar(y + BAR, row.theirs, &row.theirs_all, scale, THEIRS);
        }
    }
    plot.end()
}

/// One line for each row: the ratio as a bar from 1, what is wanted as a tick.
pub(super) fn ratios(rows: &[&Row]) -> String {
    let of = |row: &&Row| [row.ratio.unwrap_or(1.0), row.at_least.unwrap_or(1.0)];
    let all: Vec<f64> = rows.iter().flat_map(of).filter(|ratio| *ratio > 0.0).collect();
    let low = all.iter().copied().fold(0.5, f64::min).ln();
    let high = all.iter().copied().fold(10.0, f64::max).ln();
    let x = |ratio: f64| LEFT + (ratio.ln() - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let mut plot = Plot::new(TOP + rows.len() as f64 * (BAR + GAP));
    plot.text(x(1.0), 14.0, "middle", "1x");
    plot.line(x(1.0), TOP - 6.0, plot.height, "#999");
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + at as f64 * (BAR + GAP);
        let name = format!("{} {}, {}", row.workload, row.variant, row.metric);
        plot.text(LEFT - 8.0, y + BAR - 2.0, "end", &name);
        if let Some(ratio) = row.ratio.filter(|ratio| *ratio > 0.0) {
            let colour = match row.verdict {
                Some(Verdict::Met) => GOOD,
                Some(Verdict::Missed) => BAD,
                Some(Verdict::Open) | None => OPEN,
            };
            let (from, to) = (x(ratio).min(x(1.0)), x(ratio).max(x(1.0)));
            plot.rect(from, y, to - from, BAR, colour);
            plot.text(WIDTH - RIGHT + 8.0, y + BAR - 2.0, "start", &format!("{ratio:.2}x"));
        }
        if let Some(wanted) = row.at_least {
            plot.line(x(wanted), y - 3.0, y + BAR + 3.0, "#222");
        }
    }
    plot.end()
}

struct Plot {
    text: String,
    height: f64,
}

// Writing into a String does not fail.
impl Plot {
    fn new(height: f64) -> Self {
        let head = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n"
        );
        Self { text: head, height }
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        let _ = writeln!(
            self.text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        );
    }

    fn line(&mut self, x: f64, from: f64, to: f64, colour: &str) {
        let _ = writeln!(
            self.text,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from:.1}\" y2=\"{to:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
    }

    fn bar(&mut self, y: f64, value: Option<f64>, all: &[f64], scale: f64, colour: &str) {
        let Some(value) = value else { return };
        self.rect(LEFT, y, value * scale, BAR - 2.0, colour);
        for each in all.iter().filter(|_| all.len() > 1) {
            let (x, y) = (LEFT + each * scale, y + BAR / 2.0 - 1.0);
            let _ = writeln!(
                self.text,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"#fff\" stroke=\"#222\"/>"
            );
        }
        let end = all.iter().copied().fold(value, f64::max);
        self.text(LEFT + end * scale + 6.0, y + BAR - 2.5, "start", &number(value));
    }

    fn end(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}
