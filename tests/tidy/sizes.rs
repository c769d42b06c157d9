//! How files begin, and how long files, functions and lines may be.

use crate::no_faults;
use crate::sources::{Source, rust};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

#[test]
fn each_file_says_what_it_is_for() {
    let silent = rust().into_iter().filter(|file| !file.text.starts_with("//! "));
    let what = "does not open with `//!`; say its duty, and what it must not know";
    no_faults(&silent.map(|file| file.fault(1, what)).collect::<Vec<_>>());
}

#[test]
fn files_are_short() {
    let long = rust().into_iter().filter(|file| file.text.lines().count() > FILE_LINES_MAX);
    let what = format!("more than {FILE_LINES_MAX} lines; split it by interface");
    no_faults(&long.map(|file| file.fault(FILE_LINES_MAX + 1, &what)).collect::<Vec<_>>());
}

/// rustfmt sees to code.
#[test]
fn comments_are_narrow() {
    let mut faults = Vec::new();
    for file in rust() {
        let what = format!("more than {COLUMNS_MAX} columns; break the line");
        faults.extend(wide_comments(&file).into_iter().map(|line| file.fault(line, &what)));
    }
    no_faults(&faults);
}

/// The lines of comments that are too wide, but for what cannot be broken: rows of tables,
/// addresses, examples of code.
fn wide_comments(file: &Source) -> Vec<usize> {
    let mut is_code = false;
    let mut wide = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
        let text = comment.trim_start_matches(['/', '!']).trim_start();
        is_code ^= text.starts_with("```");
        let breaks = !is_code && !text.starts_with('|') && !text.contains("://");
        if breaks && line.chars().count() > COLUMNS_MAX {
            wide.push(number);
        }
    }
    wide
}

#[test]
fn wide_comments_are_found() {
    let (prose, code) = ("a ".repeat(60), "b".repeat(120));
    let text = format!("//! {prose}\n/// ```\n/// {code}\n/// ```\n// | {code}\n    // {prose}\n");
    let file = Source { path: "x.rs".to_owned(), text };
    assert_eq!(wide_comments(&file), [1, 6]);
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    let mut functions = 0;
    for file in rust() {
        for (line, name, length) in lengths(&file) {
            functions += 1;
            if length > FUNCTION_LINES_MAX {
                let what = format!(
                    "fn {name} has {length} lines, {FUNCTION_LINES_MAX} at most; give its steps names"
                );
                faults.push(file.fault(line, &what));
            }
        }
    }
    assert!(functions > 500, "the scan finds the functions: {functions}");
    no_faults(&faults);
}

/// Every function with a body of several lines: where it begins, its name, its length. rustfmt puts
/// the closing brace under the beginning.
fn lengths(file: &Source) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line.trim_start()) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let length = lines[at..].iter().position(|line| {
            // A declaration without a body, or a body on one line.
            *line == end || line.ends_with(';') && line.starts_with(&format!("{indent})"))
        });
        if !(line.ends_with(';') || line.ends_with('}')) {
            found.push((at + 1, name.to_owned(), length.map_or(lines.len() - at, |last| last + 1)));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let item = before.split_whitespace().all(|word| {
        word.starts_with("pub") || ["async", "const", "unsafe", "extern", "\"C\""].contains(&word)
    });
    let name = after.split(['(', '<']).next()?;
    (item && before.len() == before.trim_end().len() + usize::from(!before.is_empty()))
        .then_some(name)
}

#[test]
fn lengths_are_counted() {
    let text = "//! x\nfn a() {\n    b\n}\nimpl T {\n    pub(crate) async fn c(\n        d: E,\n    ) {\n        f;\n    \
                }\n    fn g();\n    fn h() {}\n}\n";
    let file = Source { path: "x.rs".to_owned(), text: text.to_owned() };
    assert_eq!(lengths(&file), [(2, "a".to_owned(), 3), (6, "c".to_owned(), 5)]);
}
