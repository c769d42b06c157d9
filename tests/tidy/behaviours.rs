//! Every row of docs/behaviours.md has a test that names it, and every test names rows that are
//! there.

use crate::no_faults;
use crate::sources::{Source, file, rust};

/// How many rows each of the systems has.
const ROWS: [usize; 5] = [17, 17, 16, 8, 13];

/// A row of the table: its line, its id, the files that show it.
fn rows(table: &Source) -> Vec<(usize, &str, Vec<&str>)> {
    let lines = (1..).zip(table.text.lines()).filter(|(_, line)| line.starts_with("| S"));
    let rows = lines.map(|(number, line)| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{}", table.fault(number, "a row has three cells"));
        (number, cells[0], cells[2].split('`').skip(1).step_by(2).collect())
    });
    rows.collect()
}

/// The rows that a line's comment names. The same pattern for something else ("S3.1" in a text)
/// would be taken for a row, too: so there may be none.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let comment = line.split_once("//").map_or("", |(_, comment)| comment);
    let words = comment.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
    words.map(|word| word.trim_end_matches('.')).filter(|word| {
        let numbers = word.strip_prefix('S').and_then(|rest| rest.split_once('.'));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        numbers.is_some_and(|(system, row)| is_number(system) && is_number(row))
    })
}

/// Whether a file has tests: all of it, or its end.
fn is_tested(file: &Source) -> bool {
    file.path.contains("tests") || file.text.contains("#[cfg(test)]")
}

#[test]
fn every_row_is_there() {
    let table = file("docs/behaviours.md");
    let found: Vec<_> = rows(&table).into_iter().map(|(_, id, _)| id.to_owned()).collect();
    let systems = ROWS.iter().enumerate();
    let all =
        systems.flat_map(|(system, rows)| (1..=*rows).map(move |row| format!("S{system}.{row}")));
    assert_eq!(found, all.collect::<Vec<_>>(), "in order, and none left out");
}

#[test]
fn every_row_is_shown_by_a_test_that_names_it() {
    let table = file("docs/behaviours.md");
    let mut faults = Vec::new();
    for (line, id, paths) in rows(&table) {
        if paths.is_empty() {
            faults.push(table.fault(line, "no test shows it; write one"));
        }
        for path in paths {
            let test = file(path);
            let names_it = test.text.lines().any(|line| named(line).any(|name| name == id));
            if !(names_it && is_tested(&test)) {
                let what = format!("no test in {path} names {id}; write one, or correct the path");
                faults.push(table.fault(line, &what));
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn no_test_names_what_is_no_row() {
    let table = file("docs/behaviours.md");
    let rows = rows(&table);
    let mut faults = Vec::new();
    for source in rust() {
        for (number, line) in (1..).zip(source.text.lines()) {
            for name in named(line).filter(|name| rows.iter().all(|(_, id, _)| id != name)) {
                faults
                    .push(source.fault(number, &format!("{name} is no row of docs/behaviours.md")));
            }
        }
    }
    no_faults(&faults);
}

#[test]
fn names_are_found_in_comments_only() {
    let found = |line| named(line).collect::<Vec<_>>();
    assert_eq!(found("    // S0.9, S2.12: both."), ["S0.9", "S2.12"]);
    assert_eq!(found("/// Ten thousand. // S2.7"), ["S2.7"]);
    assert_eq!(found("    let s = \"S2.7\";"), [""; 0]);
    assert_eq!(found("// RFC 1035 section S.1, S1., 2.3.4, SS1.2"), [""; 0]);
}
