//! Links and paths in the documents lead to something.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::no_faults;
use crate::sources::{Source, file, root, rust};

const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
/// What begins so in code spans is a path of the repository.
const PATHS: [&str; 6] = ["crates/", "proto/", "tests/", "cluster-examples/", ".ci/", "ops/"];
/// Where the repository is for readers of the book.
const REPOSITORY: &str = "https://github.com/quorate/quorate";
/// The one that has links by reference: its headings lead to what each release has changed.
const BY_REFERENCE: &str = "CHANGELOG.md";
/// The chapters of the book, in order.
const SUMMARY: &str = "docs/SUMMARY.md";

/// The files of the book.
fn chapters() -> Vec<Source> {
    let listed = fs::read_dir(root().join("docs")).unwrap();
    let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    names.iter().map(|name| file(&format!("docs/{name}"))).collect()
}

/// The lines that are not in a fenced block, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The targets of a line's links, but for addresses.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// What of a line's links leads into our own repository by its address.
fn own_files(line: &str) -> impl Iterator<Item = &str> {
    let addresses = line.split(REPOSITORY).skip(1);
    let paths = addresses.filter_map(|rest| {
        let path = rest.strip_prefix("/blob/").or_else(|| rest.strip_prefix("/tree/"))?;
        let (_revision, path) = path.split_once('/')?;
        path.split([')', '>', ' ', '#']).next()
    });
    paths.filter(|path| !path.is_empty())
}

/// Whether a line has a link by reference, or says where one leads: these are not followed here.
fn has_reference(line: &str) -> bool {
    let prose: String = line.split('`').step_by(2).collect();
    let is_target = prose.starts_with('[') && prose.contains("]: ");
    is_target || prose.contains("][")
}

/// What leads to a heading, as GitHub and mdbook say it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

/// What leads to the headings of a text. Of two that are equal, the second is told apart.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let headings = prose(text).filter_map(|(_, line)| line.strip_prefix('#'));
    for heading in headings {
        let plain = anchor(heading.trim_start_matches('#'));
        let numbered = (1..).map(|number| format!("{plain}-{number}"));
        let free = std::iter::once(plain.clone()).chain(numbered).find(|name| !all.contains(name));
        all.extend(free);
    }
    all
}

/// Why a link of a file leads nowhere.
fn dead(from: &str, link: &str) -> Option<String> {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let folder = Path::new(from).parent().unwrap();
    let target = if path.is_empty() { Path::new(from).to_owned() } else { folder.join(path) };
    if !root().join(&target).exists() {
        return Some(format!("{path} is not there; correct the link"));
    }
    let is_chapter = from.starts_with("docs/");
    if is_chapter && (path.contains('/') || !(path.is_empty() || path.ends_with(".md"))) {
        let what = format!("{path} is not in the book; name it as code, or link to the repository");
        return Some(what);
    }
    if heading.is_empty() {
        return None;
    }
    let text = fs::read_to_string(root().join(&target)).unwrap();
    let is_there = anchors(&text).contains(heading);
    (!is_there).then(|| format!("{} has no heading #{heading}; correct the link", target.display()))
}

/// Why a path in a code span leads nowhere. A pattern ("src/*.rs") or a place in a file
/// ("file.rs::name") is for people.
fn missing(span: &str) -> Option<String> {
    let path = span.split(['#', ' ']).next().unwrap();
    let exact = path.split("::").next().unwrap().split(['*', '{']).next().unwrap();
    let is_there = root().join(exact.trim_end_matches('/')).exists() || path.contains(['*', '{']);
    (!is_there).then(|| format!("{path} is not there; correct it"))
}

#[test]
fn links_and_paths_lead_somewhere() {
    let mut faults = Vec::new();
    for document in DOCUMENTS.iter().map(|name| file(name)).chain(chapters()) {
        for (line, text) in prose(&document.text) {
            let spans = text.split('`').skip(1).step_by(2);
            let paths = spans.filter(|span| PATHS.iter().any(|begin| span.starts_with(begin)));
            let dead = links(text).filter_map(|link| dead(&document.path, link));
            let reference = has_reference(text) && document.path != BY_REFERENCE;
            let reference = reference.then(|| "a link by reference; say where it leads".to_owned());
            let own = own_files(text).filter_map(missing);
            let found = dead.chain(paths.filter_map(missing)).chain(own).chain(reference);
            faults.extend(found.map(|what| document.fault(line, &what)));
        }
    }
    no_faults(&faults);
}

#[test]
fn every_chapter_is_in_the_book_once() {
    let summary = file(SUMMARY);
    let mut listed: Vec<_> = summary.text.lines().flat_map(links).collect();
    listed.sort_unstable();
    let chapters = chapters();
    let there: Vec<_> = chapters.iter().map(|chapter| &chapter.path["docs/".len()..]).collect();
    let there: Vec<_> =
        there.into_iter().filter(|name| SUMMARY != format!("docs/{name}")).collect();
    assert_eq!(listed, there, "{SUMMARY} against docs/*.md");
}

/// Two entries that begin alike are one, which was changed in one place alone.
#[test]
fn no_change_is_told_twice() {
    let log = file(BY_REFERENCE);
    let begins = log.text.lines().filter(|line| line.starts_with("- "));
    let begins: Vec<String> = begins.map(|line| line.chars().take(62).collect()).collect();
    assert!(begins.len() > 100, "they are found: {}", begins.len());
    for (number, begin) in begins.iter().enumerate() {
        assert!(!begins[..number].contains(begin), "{BY_REFERENCE} has it twice: {begin}");
    }
}

#[test]
fn headings_and_links_are_found() {
    let text = "# A, `b` & c-d\n```sh\n# no heading\n```\n## E_f\n## E_f\n";
    let expected = ["a-b--c-d", "e_f", "e_f-1"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    let found: Vec<_> = links("see [a](b.md#c), [d](#e) and [f](https://g/h)").collect();
    assert_eq!(found, ["b.md#c", "#e"]);
    let line =
        format!("[a]({REPOSITORY}/blob/v1/docs/a.md#b), {REPOSITORY} <{REPOSITORY}/tree/main/ops>");
    assert_eq!(own_files(&line).collect::<Vec<_>>(), ["docs/a.md", "ops"]);
    for (line, expected) in [
        ("see [a][b]", true),
        ("[b]: https://a/b", true),
        ("see `a[0][1]` and [a](b.md)", false),
        ("[1, 2]", false),
    ] {
        assert_eq!(has_reference(line), expected, "{line}");
    }
    assert_eq!(dead("docs/security.md", "#rotation"), None);
    assert_eq!(dead("README.md", "docs/security.md#rotation"), None);
    for (from, link) in [
        ("docs/security.md", "#rotations"),
        ("docs/security.md", "nothing.md"),
        ("docs/security.md", "../README.md"),
        ("README.md", "security.md"),
        ("README.md", "docs/security.md#rotations"),
    ] {
        assert!(dead(from, link).is_some(), "{link} in {from}");
    }
}

/// The invariants of a text of the form of ARCHITECTURE.md: their lines, and the tests that each
/// names: what stands in code spans from a line on that begins with "Held by".
fn invariants(text: &str) -> Vec<(usize, Vec<&str>)> {
    let mut found: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut names_tests = false;
    let section = (1..).zip(text.lines()).skip_while(|(_, line)| *line != "## Invariants").skip(1);
    for (number, line) in section.take_while(|(_, line)| !line.starts_with("## ")) {
        if line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok()) {
            found.push((number, Vec::new()));
            names_tests = false;
        }
        names_tests =
            line.starts_with(' ') && (names_tests || line.trim_start().starts_with("Held by `"));
        let spans = line.split('`').skip(1).step_by(2).filter(|_| names_tests);
        found.last_mut().into_iter().for_each(|(_, tests)| tests.extend(spans.clone()));
    }
    found
}

/// Whether a source has a test of this name.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let function = format!("fn {name}(");
    let Some(at) = lines.iter().position(|line| line.contains(&function)) else { return false };
    let above = lines[..at].iter().rev();
    let mut above = above.take_while(|line| line.starts_with("#[") || line.starts_with("///"));
    above.any(|line| line.contains("test]") || line.contains("test("))
}

#[test]
fn every_invariant_names_its_tests() {
    let text =
        "## Invariants\n1. A (`b`).\n   Held by `c`,\n   `d`.\n2. E.\n\nOf `f`:\n## G\n3. H\n";
    assert_eq!(invariants(text), [(2, vec!["c", "d"]), (5, vec![])]);
    let text = "fn a() {}\n#[tokio::test]\n/// B.\nasync fn b() {}\n";
    assert_eq!(["a", "b", "c"].map(|name| has_test(text, name)), [false, true, false]);
    let sources = rust();
    let is_test = |name: &str| sources.iter().any(|source| has_test(&source.text, name));
    let document = file("ARCHITECTURE.md");
    let all = invariants(&document.text);
    assert!(all.len() > 10, "{} are found", all.len());
    let mut faults = Vec::new();
    for (line, tests) in all {
        if tests.is_empty() {
            faults.push(document.fault(line, "no test holds it; name one, `Held by ...`"));
        }
        let missing = tests.iter().filter(|name| !is_test(name));
        faults.extend(missing.map(|name| document.fault(line, &format!("no test is {name}"))));
    }
    no_faults(&faults);
}

/// A reader is to get through it in one sitting; what tunes a thing stands in its file.
#[test]
fn how_a_call_travels_is_short() {
    const LINES_MAX: usize = 60;
    let document = file("ARCHITECTURE.md");
    let mut lines = document.text.lines().skip_while(|line| *line != "## How a call travels");
    let section = lines.by_ref().skip(1).take_while(|line| !line.starts_with("## "));
    let length = section.filter(|line| !line.is_empty()).count();
    assert!((1..LINES_MAX).contains(&length), "ARCHITECTURE.md: {length} lines, under {LINES_MAX}");
}

/// What a newcomer reads first, before they know whether they want more.
#[test]
fn the_readme_is_one_page_about_this_version() {
    const LINES_MAX: usize = 180;
    let length = file("README.md").text.lines().count();
    assert!(
        length <= LINES_MAX,
        "README.md has {length} lines, {LINES_MAX} at most: docs/ has room"
    );
    let cargo = file("Cargo.toml").text;
    let version = cargo.lines().find_map(|line| line.strip_prefix("version = \"")).unwrap();
    let (version, _) = version.split_once('"').unwrap();
    let (minor, _patch) = version.rsplit_once('.').unwrap();
    let heading = format!("## [{version}]");
    let told = file("CHANGELOG.md").text.lines().any(|line| line.starts_with(&heading));
    assert!(told, "CHANGELOG.md has no {heading:?}, the version of Cargo.toml");
    for (name, said) in [
        ("README.md", format!("This is version {minor}:")),
        ("README.md", format!("| Quorate {minor} |")),
        ("docs/introduction.md", format!("This is version {minor}:")),
    ] {
        let says = file(name).text.contains(&said);
        assert!(says, "{name} does not say {said:?}, as Cargo.toml does");
    }
}

/// Numbers as they stand in a text: "4,223", "0.227".
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_digit() || ".,".contains(c);
    let found = text.split(move |c: char| !is_part(c));
    let found = found.map(|number| number.trim_matches(['.', ',']));
    found.filter(|number| number.starts_with(|first: char| first.is_ascii_digit()))
}

/// What is measured stands in docs/performance.md; here it is told again.
#[test]
fn figures_of_sizes_are_the_measured_ones() {
    let performance = file("docs/performance.md").text;
    let measured: BTreeSet<&str> = numbers(&performance).collect();
    let sizing = file("docs/sizing.md");
    let mut faults = Vec::new();
    let mut looked_at = 0;
    for (line, text) in prose(&sizing.text) {
        let cells = text.strip_prefix("| ").and_then(|row| row.split_once(" | "));
        let told: String = match cells {
            // What is done is no figure, nor what stands in brackets: by how many at once.
            Some((_, cells)) => {
                let parts = cells.split('(');
                parts.map(|part| part.split_once(')').map_or(part, |(_, rest)| rest)).collect()
            }
            None if text.contains(" were done on ") => text.to_owned(),
            None => continue,
        };
        let is_head = told.contains("instances |");
        for figure in numbers(&told).filter(|_| !is_head) {
            looked_at += 1;
            if !measured.contains(figure) {
                let what = format!("{figure} is not in docs/performance.md; say what was measured");
                faults.push(sizing.fault(line, &what));
            }
        }
    }
    assert!(looked_at > 32, "{looked_at} figures are found");
    no_faults(&faults);
}
