//! What commands write: tables that fit 80 columns, lines, JSON. The only file that writes to
//! stdout or stderr. Knows nothing of what is written. Some of it is what other callers sent: no
//! control character of that reaches the terminal.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

/// How output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// A line on stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", shown(text))?;
    stdout.flush()
}

/// What was written, as far as it was read: a reader that has gone (`| head`) takes no more, and
/// what comes of the command is as it would be.
pub(crate) fn as_far_as_read(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A line on stderr. That it cannot be written is no reason to fail.
pub(crate) fn note(text: &str) {
    let _nobody_listens = writeln!(io::stderr().lock(), "{}", shown(text));
}

/// All but the ends of lines, which are ours: see [`one_line`].
fn shown(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { c } else { harmless(c) }).collect()
}

/// What another caller wrote, for the middle of a line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(harmless).collect()
}

fn harmless(c: char) -> char {
    if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }
}

/// A whole answer as JSON.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&escaped(&format!("{value:#}")))
}

/// One of many, as JSON on one line.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    line(&escaped(&value.to_string()))
}

/// JSON may have DEL and the controls above it as they are: they only stand in strings.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_control() && c != '\n' {
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
    }
    text
}

/// The width that tables fit into.
const WIDTH: usize = 80;
/// What stands between two columns.
const GAP: usize = 2;
/// No column is made narrower than this to save room.
const NARROWEST: usize = 8;

/// A table: a heading and rows of cells. A cell may have several lines; one that is too wide is
/// broken, never cut off.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Takes the column with this heading out if it says nothing of any row.
    pub(crate) fn hide_if_empty(&mut self, heading: &str) {
        let Some((first, rows)) = self.rows.split_first() else { return };
        let at = first.iter().position(|cell| cell == heading);
        let Some(at) = at.filter(|at| rows.iter().all(|row| row[*at].is_empty())) else { return };
        for row in &mut self.rows {
            row.remove(at);
        }
    }

    pub(crate) fn print(&self) -> io::Result<()> {
        line(self.render().trim_end_matches('\n'))
    }

    /// As it is printed.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        self.render()
    }

    fn render(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<Vec<String>> =
                row.iter().zip(&widths).map(|(cell, width)| broken(cell, *width)).collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            for at in 0..height {
                let mut line = String::new();
                for (cell, width) in cells.iter().zip(&widths) {
                    let part = cell.get(at).map_or("", String::as_str);
                    let padding = width + GAP - part.chars().count();
                    line.push_str(part);
                    line.extend(std::iter::repeat_n(' ', padding));
                }
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }

    /// As wide as the cells need; if that is too much in all, the widest columns give way.
    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let need = |at: usize| self.rows.iter().map(|row| width(&row[at])).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns).map(need).collect();
        let room = WIDTH.saturating_sub(GAP * columns.saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
        }
        widths
    }
}

fn width(cell: &str) -> usize {
    cell.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// The lines of a cell, none wider than `width`.
fn broken(cell: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for line in cell.lines() {
        let clean: Vec<char> = line.chars().map(harmless).collect();
        if clean.is_empty() {
            lines.push(String::new());
        }
        lines.extend(clean.chunks(width.max(1)).map(|part| part.iter().collect::<String>()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings<const N: usize>(cells: [&str; N]) -> [String; N] {
        cells.map(str::to_owned)
    }

    #[test]
    fn columns_stand_under_each_other() {
        let mut table = Table::new(["ID", "STATUS", "ENDPOINTS"]);
        table.row(strings(["orders-1", "UP", "http=http://h:1\ngrpc=http://h:2"]));
        table.row(strings(["o", "DRAINING", ""]));
        assert_eq!(
            table.render(),
            "ID        STATUS    ENDPOINTS\n\
             orders-1  UP        http=http://h:1\n\
             \x20                   grpc=http://h:2\n\
             o         DRAINING\n"
        );
    }

    #[test]
    fn a_wide_table_fits_80_columns_and_loses_nothing() {
        let mut table = Table::new(["ID", "STATUS", "ENDPOINTS"]);
        let (id, uri) = ("i".repeat(253), format!("http=http://{}", "h".repeat(400)));
        table.row([id.clone(), "UP".to_owned(), uri.clone()]);
        let text = table.render();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let count = |c: char| text.chars().filter(|found| *found == c).count();
        assert_eq!(count('i'), 253);
        assert_eq!(count('h'), uri.chars().filter(|c| *c == 'h').count());
        assert!(text.contains("  UP  "), "narrow columns stay whole: {text}");
    }

    #[test]
    fn a_column_that_says_nothing_is_hidden_if_it_may_be() {
        let mut table = Table::new(["ID", "HEALTH", "ZONE"]);
        table.row(strings(["a", "", ""]));
        table.hide_if_empty("HEALTH");
        assert_eq!(table.render(), "ID  ZONE\na\n");
        let mut table = Table::new(["ID", "HEALTH", "ZONE"]);
        table.row(strings(["a", "PASSING", ""]));
        table.row(strings(["b", "", ""]));
        table.hide_if_empty("HEALTH");
        assert_eq!(table.render(), "ID  HEALTH   ZONE\na   PASSING\nb\n");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let mut table = Table::new(["ID"]);
        table.row(strings(["a\x1b[31mb"]));
        assert!(!table.render().contains('\x1b'));
        assert_eq!(shown("a\n\x1b[2J\r\u{9b}m\tb\u{7f}"), "a\n�[2J��m�b�");
        assert_eq!(one_line("a\nb"), "a�b");
        let value = serde_json::json!({ "reason": "\x1b\u{7f}\u{9b}\n" });
        for text in [escaped(&value.to_string()), escaped(&format!("{value:#}"))] {
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
