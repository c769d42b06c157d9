//! Who may ask what the HTTP listener answers beside the routes that are described
//! (`rights_http.rs`). One that stands in the code and has no row here fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::guarded::Guarded;
use super::metrics::get;
use super::rights::{NOBODY, SOMEBODY, access, lease};

/// Whom a route is for: all, known or not; or who may read everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    Readers,
}

/// A route as it stands in the code, a path that it answers, and whom it is for.
const ROWS: [(&str, &str, For); 8] = [
    (r#""/healthz""#, "/healthz", For::All),
    (r#""/readyz""#, "/readyz", For::All),
    (r#""/metrics""#, "/metrics", For::Readers),
    ("described::PLACE", "/openapi.json", For::All),
    (r#""/""#, "/", For::All),
    (r#""/console""#, "/console", For::All),
    ("PLACE", "/console/", For::All),
    (r#""/console/{*path}""#, "/console/app.js", For::All),
];

/// What is put together of other routers: those that are described, and the console. (`at` is where
/// their descriptions are put together.)
const PUT_TOGETHER: [(&str, &[&str]); 5] = [
    (".nest(", &["at", "described::API", "described::SD"]),
    (".merge(", &["console::router()"]),
    (".route_service(", &[]),
    (".nest_service(", &[]),
    (".fallback_service(", &[]),
];

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| sources(&entry.unwrap().path(), found));
    } else if path.extension().is_some_and(|end| end == "rs") {
        found.push(path.to_owned());
    }
}

/// What the code of the listener gives first to a function that adds a route.
fn added(by: &str) -> BTreeSet<String> {
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("../quorate-node/src/api");
    let mut files = vec![api.join("http.rs")];
    sources(&api.join("http"), &mut files);
    assert!(files.len() > 15, "{files:?}");
    let mut all = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let shipped = text.split("#[cfg(test)]").next().unwrap();
        let calls = shipped.split(by).skip(1).map(|rest| rest.split([',', '\n']).map(str::trim));
        let first = calls.map(|mut words| words.find(|word| !word.is_empty()).unwrap());
        all.extend(first.map(|word| word.trim_end_matches(')').replace("router(", "router()")));
    }
    all
}

#[test]
fn each_route_of_the_code_has_a_row() {
    let rows: BTreeSet<String> = ROWS.iter().map(|(route, ..)| (*route).to_owned()).collect();
    assert_eq!(added(".route("), rows);
    for (by, expected) in PUT_TOGETHER {
        let expected: BTreeSet<String> = expected.iter().map(|of| (*of).to_owned()).collect();
        assert_eq!(added(by), expected, "{by}");
    }
}

/// CVE-2026-33413 (etcd), of what is no call: probes, the console, metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_routes_are_for_all_and_tell_nothing_or_for_readers_alone() {
    let readers = super::guarded::entry("qrt_all", "role = 'read'\nnamespace = '*'");
    let guarded = Guarded::start(1, &(access() + &readers)).await;
    let to = guarded.cluster.http_address(1);
    lease(&guarded, "orders", "canary-a").await;
    let known = SOMEBODY.into_iter().chain(["qrt_all"]).map(Some);
    let mut wrong = Vec::new();
    for token in NOBODY.into_iter().chain(known) {
        for (_, path, whom) in ROWS {
            let answer = get(to, path, token).await.expect("an answer");
            let reads = matches!(token, Some("qrt_root" | "qrt_all"));
            let is_right = match whom {
                For::All => matches!(answer.status, 200 | 307),
                For::Readers if NOBODY.contains(&token) => answer.status == 401,
                For::Readers => answer.status == if reads { 200 } else { 403 },
            };
            let tells = answer.body.contains("canary-a");
            if !is_right || tells && whom == For::All {
                wrong.push(format!("{path} for {token:?}: {}, {}", answer.status, answer.body));
            }
        }
        let nothing = get(to, "/debug/pprof", token).await.expect("an answer");
        assert_eq!(nothing.status, 404, "{}", nothing.body);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
