//! What bodies are taken for.

use serde_json::{Value, json};

use super::*;
use crate::api::http::body::{Registration, Renewals};

#[test]
fn nothing_is_nothing_however_it_is_written() {
    for nothing in ["", "{}", "{ }", "{}\n", " {\r\n\t}\n"] {
        assert!(is_nothing(nothing.as_bytes()), "{nothing:?}");
    }
    for something in [" ", "[]", "null", "0", "{} {}", "{\"a\":1}", "{", "{}}", "\"\"", "{}\0"] {
        assert!(!is_nothing(something.as_bytes()), "{something:?}");
    }
}

fn refused<T: DeserializeOwned>(body: &str) -> [String; 2] {
    let problem = read::<T>(body.as_bytes()).map(drop).expect_err(body);
    let said: Value = serde_json::to_value(&problem).unwrap();
    ["field", "limit"].map(|name| said[name].as_str().unwrap().to_owned())
}

/// It said `body` of all but unknown fields.
#[test]
fn what_is_wrong_in_a_body_is_told_by_its_field() {
    let with = |more: Value| {
        let mut whole = json!({ "endpoints": { "http": "http://h:1" } });
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        whole.to_string()
    };
    read::<Registration>(with(json!({ "ttl_ms": 60_000 })).as_bytes()).expect("a good one");
    for (more, field, limit) in [
        (json!({ "ttl_ms": "60000" }), "ttl_ms", "expected u64"),
        (json!({ "ttl_ms": -1 }), "ttl_ms", "expected u64"),
        (json!({ "ttl": 5 }), "ttl", "expected a string"),
        (json!({ "incarnation": "-1" }), "incarnation", "decimal digits"),
        (json!({ "lease_id": [] }), "lease_id", "64 bits"),
        (json!({ "tags": ["a", 7] }), "tags[1]", "expected a string"),
        (json!({ "metadata": { "a": 7 } }), "metadata.a", "expected a string"),
        (json!({ "checks": [{}, { "http": 7 }] }), "checks[1].http", "HttpKind"),
        (json!({ "checks": [{ "htp": {} }] }), "checks[0].htp", "is not known: expected one of"),
        (json!({ "tll": "5s" }), "tll", "is not known: expected one of `endpoints`"),
        (json!({ "request_id": { "origin": 1 } }), "request_id.number", "must be there"),
    ] {
        let found = refused::<Registration>(&with(more.clone()));
        assert_eq!(found[0], field, "{more}: {found:?}");
        assert!(found[1].contains(limit), "{more}: {found:?}");
    }
    assert_eq!(refused::<Registration>("{}"), ["endpoints", "must be there"].map(String::from));
    assert_eq!(refused::<Renewals>(r#"{"lease_ids":["1","x"]}"#)[0], "lease_ids[1]");
    for whole in ["", "[]", "7", "null", "{", r#"{"endpoints":"#, "{\"endpoints\":{}} {}"] {
        assert_eq!(refused::<Registration>(whole)[0], "body", "{whole}");
    }
}
