//! The console: a page of files that are part of the program, for everybody who reaches the
//! listener. It holds no secret: what it shows comes from the API, with the rights of its caller.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

/// Where it is.
const PLACE: &str = "/console/";

/// Files and calls of this node alone, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Windows of other origins have no hold of this one.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

macro_rules! files {
    ($($path:literal)*) => {
        &[$(($path, include_str!(concat!("../../../console/", $path)))),*]
    };
}

/// Each file by its path below `PLACE`.
const FILES: &[(&str, &str)] = files![
    "index.html" "style.css" "icon.svg" "app.js" "actions.js" "api.js" "copy.js" "dom.js"
    "format.js" "history.js" "layout.js" "list.js" "live.js" "ring.js" "shapes.js" "shell.js"
    "verdict.js"
    "views/graph.js" "views/instance.js" "views/log.js" "views/me.js" "views/members.js"
    "views/overrides.js" "views/overview.js" "views/parts.js" "views/service.js"
    "views/services.js"
];

pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|| async { Redirect::temporary(PLACE) }))
        .route("/console", get(|| async { Redirect::temporary(PLACE) }))
        .route(PLACE, get(|headers: HeaderMap| async move { file("index.html", &headers) }))
        .route(
            "/console/{*path}",
            get(
                |Path(path): Path<String>, headers: HeaderMap| async move { file(&path, &headers) },
            ),
        )
}

fn file(path: &str, headers: &HeaderMap) -> Response {
    let Some((path, text)) = FILES.iter().find(|(name, _)| *name == path) else {
        return (StatusCode::NOT_FOUND, "no such file of the console\n").into_response();
    };
    let tag = tag(text);
    // The files change with the program only; a browser asks each time, and mostly has them.
    let common = [
        (CACHE_CONTROL, "no-cache"),
        (ETAG, tag.as_str()),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
    ];
    let known = headers.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|known| known.trim() == tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(CONTENT_TYPE, content_type(path))], *text).into_response()
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, kind)| kind) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

/// Another text has another one.
pub(super) fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn listed(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => listed(&entry.path(), &format!("{name}/"), found),
                false => drop(found.insert(name)),
            }
        }
    }

    #[test]
    fn all_files_are_served_and_have_a_type() {
        let mut there = BTreeSet::new();
        listed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("console"), "", &mut there);
        let served: BTreeSet<String> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(served, there);
        for path in served {
            assert_ne!(content_type(&path), "text/plain; charset=utf-8", "{path}");
        }
    }

    /// What others registered must have no way to become markup or script.
    #[test]
    fn foreign_text_has_no_way_into_the_page() {
        let ways = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "srcdoc",
            "DOMParser",
            "document.cookie",
            "createContextualFragment",
            "import(",
        ];
        for (path, text) in FILES {
            let way = ways.iter().find(|way| text.contains(**way));
            assert_eq!(way, None, "in {path}");
            let text = text.replace("http://www.w3.org/2000/svg", "");
            let text = text.replace("https://html.spec.whatwg.org/", "");
            assert!(!text.contains("://"), "{path} names another origin");
        }
    }

    #[test]
    fn a_file_is_sent_once() {
        let first = file("app.js", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[CONTENT_SECURITY_POLICY], POLICY);
        let tag = first.headers()[ETAG].clone();
        let again = HeaderMap::from_iter([(IF_NONE_MATCH, tag)]);
        assert_eq!(file("app.js", &again).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(file("style.css", &again).status(), StatusCode::OK);
        for path in ["", "app.js/", "../Cargo.toml", "views", "App.js"] {
            assert_eq!(file(path, &HeaderMap::new()).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
