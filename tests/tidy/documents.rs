//! Links and paths in the documents lead to something.

use crate::no_faults;
use crate::sources::{file, root};

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/behaviours.md",
    "docs/metrics.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/security.md",
];
/// What begins so in code spans is a path of the repository.
const PATHS: [&str; 6] = ["crates/", "proto/", "tests/", "cluster-examples/", ".ci/", "ops/"];

#[test]
fn links_and_paths_lead_somewhere() {
    let mut faults = Vec::new();
    for name in DOCUMENTS {
        let document = file(name);
        for (line, text) in (1..).zip(document.text.lines()) {
            let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            let links = links.filter(|link| !link.starts_with("http") && !link.starts_with('#'));
            let spans = text.split('`').skip(1).step_by(2);
            let paths = spans.filter(|span| PATHS.iter().any(|begin| span.starts_with(begin)));
            for path in links.chain(paths) {
                let path = path.split(['#', ' ']).next().unwrap();
                // A pattern ("src/*.rs") or a place in a file ("file.rs::name") is for people.
                let exact = path.split("::").next().unwrap().split(['*', '{']).next().unwrap();
                if !root().join(exact.trim_end_matches('/')).exists() && !path.contains(['*', '{'])
                {
                    let what = format!("{path} is not there; correct the link");
                    faults.push(document.fault(line, &what));
                }
            }
        }
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
