//! Every limit at its boundary: just in is taken, just out is refused with field, value and limit
//! in the text. The limits are those in the head of `proto/quorate/v1/types.proto`.

use std::collections::BTreeSet;

use super::*;
use crate::limits;

/// The error's text; nothing where it was taken.
fn text<T>(result: Result<T, Invalid>) -> String {
    result.err().map(|invalid| invalid.to_string()).unwrap_or_default()
}

/// Builds an instance whose parts were changed.
fn spec_text(change: impl FnOnce(&mut SpecParts)) -> String {
    let mut parts = parts();
    change(&mut parts);
    text(InstanceSpec::new("instances[3]", parts))
}

#[track_caller]
fn check(found: &str, expected: &str) {
    assert_eq!(found, expected);
}

#[test]
fn names() {
    let long = "n".repeat(254);
    let cut = "n".repeat(64);
    let too_long = format!("service = \"{cut}…\": is 254 bytes long, at most 253 allowed");
    for (name, expected) in [
        ("a", ""),
        ("9", ""),
        ("A-b_c.9", ""),
        (&long[..253], ""),
        (&long, too_long.as_str()),
        ("", "service = \"\": must not be empty"),
        ("a/b", "service = \"a/b\": only A-Z a-z 0-9 . _ - are allowed"),
        ("a b", "service = \"a b\": only A-Z a-z 0-9 . _ - are allowed"),
        ("käse", "service = \"käse\": only A-Z a-z 0-9 . _ - are allowed"),
        ("a\n", "service = \"a\\n\": only A-Z a-z 0-9 . _ - are allowed"),
        ("-a", "service = \"-a\": must begin and end with a letter or a digit"),
        ("a.", "service = \"a.\": must begin and end with a letter or a digit"),
        (".", "service = \".\": must begin and end with a letter or a digit"),
    ] {
        check(&text(ServiceName::new("service", name)), expected);
        check(&text(Namespace::new("service", name)), expected);
        check(&text(InstanceId::new("service", name)), expected);
    }
}

#[test]
fn zone_and_version_are_names_that_may_be_empty() {
    check(&spec_text(|p| p.zone = String::new()), "");
    check(&spec_text(|p| p.zone = "z".repeat(253)), "");
    check(
        &spec_text(|p| p.zone = "eu 1".to_owned()),
        "instances[3].zone = \"eu 1\": only A-Z a-z 0-9 . _ - are allowed",
    );
    check(&spec_text(|p| p.version = "1.2.3-rc.1".to_owned()), "");
    check(
        &spec_text(|p| p.version = "v".repeat(254)),
        &format!(
            "instances[3].version = \"{}…\": is 254 bytes long, at most 253 allowed",
            "v".repeat(64)
        ),
    );
}

fn endpoints(count: usize) -> BTreeMap<String, String> {
    (0..count).map(|i| (format!("e{i}"), "tcp://[::1]:1".to_owned())).collect()
}

#[test]
fn endpoints_count() {
    for (count, expected) in [
        (0, "instances[3].endpoints = 0: 1 to 32 endpoints"),
        (1, ""),
        (32, ""),
        (33, "instances[3].endpoints = 33: 1 to 32 endpoints"),
    ] {
        check(&spec_text(|p| p.endpoints = endpoints(count)), expected);
    }
}

#[test]
fn endpoint_names() {
    let named = |name: &str| {
        let endpoints = BTreeMap::from([(name.to_owned(), "tcp:x".to_owned())]);
        spec_text(|p| p.endpoints = endpoints)
    };
    check(&named(&"n".repeat(253)), "");
    check(&named(""), "instances[3].endpoints name = \"\": must not be empty");
    check(
        &named("a b"),
        "instances[3].endpoints name = \"a b\": only A-Z a-z 0-9 . _ - are allowed",
    );
}

#[test]
fn endpoint_uris() {
    let long = format!("http://{}", "h".repeat(2_049 - 7));
    let too_long = format!(
        "instances[3].endpoints[http] = \"{}…\": 2049 bytes long, at most 2048",
        &long[..64]
    );
    check(&uri_text(&long[..2_048]), "");
    check(&uri_text(&long), &too_long);
    for uri in [
        "http://10.0.0.1:8080",
        "https://[2001:db8::1]:443/path?query=1#part",
        "unix:/run/web.sock",
        "unix:///run/web.sock",
        "urn:x",
        "grpc+tls://host:1",
        "a:b",
    ] {
        check(&uri_text(uri), "");
    }
    for uri in ["", "host", "10.0.0.1:8080", "http:", "http://", ":x", "1a:b", "ht tp://x", "a:b c"]
    {
        let limit = "must be an absolute URI like http://10.0.0.1:8080";
        check(&uri_text(uri), &format!("instances[3].endpoints[http] = {uri:?}: {limit}"));
    }
}

fn uri_text(uri: &str) -> String {
    let endpoints = BTreeMap::from([("http".to_owned(), uri.to_owned())]);
    spec_text(|p| p.endpoints = endpoints)
}

/// This many entries, whose keys and values take this many bytes together.
fn metadata(entries: usize, bytes: usize) -> BTreeMap<String, String> {
    let mut metadata: BTreeMap<_, _> =
        (0..entries).map(|i| (format!("{i:04}"), String::new())).collect();
    if let Some(last) = metadata.values_mut().next_back() {
        *last = "m".repeat(bytes - 4 * entries);
    }
    metadata
}

#[test]
fn metadata_size() {
    for (entries, bytes, expected) in [
        (0, 0, ""),
        (64, 1_000, ""),
        (65, 1_000, " = 65: at most 64 entries"),
        (1, 16 * 1_024, ""),
        (64, 16 * 1_024, ""),
        (1, 16 * 1_024 + 1, " = 16385: at most 16384 bytes of keys and values"),
    ] {
        let metadata = metadata(entries, bytes);
        let named = |field: &str| match expected {
            "" => String::new(),
            expected => format!("{field}{expected}"),
        };
        let registered = spec_text(|p| p.metadata = metadata.clone());
        check(&registered, &named("instances[3].metadata"));
        let updated = Update { metadata: Some(metadata), ..update("web/a") }.check();
        check(&text(updated), &named("metadata"));
    }
}

#[test]
fn metadata_keys() {
    let keyed = |key: &str| {
        let metadata = BTreeMap::from([(key.to_owned(), "any ✓ text".to_owned())]);
        spec_text(|p| p.metadata = metadata)
    };
    check(&keyed("any ✓ text"), "");
    check(&keyed(&"k".repeat(253)), "");
    check(&keyed(""), "instances[3].metadata key = \"\": keys are 1 to 253 bytes long");
    let cut = "k".repeat(64);
    let too_long = format!("instances[3].metadata key = \"{cut}…\": keys are 1 to 253 bytes long");
    check(&keyed(&"k".repeat(254)), &too_long);
}

#[test]
fn requires() {
    let required = |count: usize| -> BTreeSet<_> {
        (0..count).map(|i| ServiceName::new("requires", &format!("s{i}")).unwrap()).collect()
    };
    check(&spec_text(|p| p.requires = required(64)), "");
    check(
        &spec_text(|p| p.requires = required(65)),
        "instances[3].requires = 65: at most 64 services",
    );
}

#[test]
fn tags() {
    let many = |count: usize| (0..count).map(|i| format!("t{i}")).collect::<BTreeSet<_>>();
    check(&spec_text(|p| p.tags = many(32)), "");
    check(&spec_text(|p| p.tags = many(33)), "instances[3].tags = 33: at most 32 tags");
    let one = |tag: &str| spec_text(|p| p.tags = [tag.to_owned()].into());
    check(&one(&"t".repeat(64)), "");
    check(&one("eu=1/a:b"), "");
    check(&one(""), "instances[3].tags = \"\": a tag is 1 to 64 bytes long");
    let long = "t".repeat(65);
    let too_long = format!("instances[3].tags = \"{}…\": a tag is 1 to 64 bytes long", &long[..64]);
    check(&one(&long), &too_long);
    for bad in ["a b", "a,b", "a\n", "ü"] {
        let limit = "only printable ASCII without spaces and commas is allowed";
        check(&one(bad), &format!("instances[3].tags = {bad:?}: {limit}"));
    }
}

#[test]
fn weight() {
    for (weight, expected) in [
        (0, ""),
        (1_000_000, ""),
        (1_000_001, "weight = 1000001: at most 1000000"),
        (u32::MAX, "weight = 4294967295: at most 1000000"),
    ] {
        let named = |prefix: &str| match expected {
            "" => String::new(),
            expected => format!("{prefix}{expected}"),
        };
        check(&spec_text(|p| p.weight = Some(weight)), &named("instances[3]."));
        check(&text(Update { weight: Some(weight), ..update("web/a") }.check()), expected);
        let set = Override::new(None, Some(weight), String::new());
        check(&text(set), &named("override."));
    }
}

#[test]
fn what_is_not_set_has_the_documented_default() {
    let mut t = Transcript::default();
    t.at(0, register("web/a", 7), "registered L1 15000ms @7 | #1 added web/a@7");
    assert_eq!((t.instance("web/a").weight(), t.instance("web/a").status()), (100, Status::Up));
}

// S2.15
#[test]
fn ttl_bounds() {
    for (ms, expected) in [
        (0, "ttl_ms = 0: must be 1000 to 86400000 ms"),
        (999, "ttl_ms = 999: must be 1000 to 86400000 ms"),
        (1_000, ""),
        (86_400_000, ""),
        (86_400_001, "ttl_ms = 86400001: must be 1000 to 86400000 ms"),
    ] {
        check(&text(Ttl::from_ms(ms)), expected);
    }
}

#[test]
fn override_reason() {
    let because = |bytes: usize| text(Override::new(None, Some(1), "r".repeat(bytes)));
    check(&because(1_024), "");
    check(&because(1_025), "override.reason = 1025: at most 1024 bytes");
    let nothing = text(Override::new(None, None, "because".to_owned()));
    check(&nothing, "override = \"\": must set a status or a weight");
}

/// The edge checks these; the numbers are those of the proto.
#[test]
fn one_call() {
    assert_eq!(limits::INSTANCES_PER_CALL, 1_000);
    assert_eq!(limits::LEASES_PER_CALL, 10_000);
}

/// "10,000".
fn grouped(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1_000), number % 1_000),
    }
}

/// What callers read of the limits, in their contract, are the limits that are checked.
#[test]
fn the_contract_names_these_limits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/quorate/v1/types.proto");
    let text = std::fs::read_to_string(path).unwrap();
    let words: Vec<&str> = text.split_whitespace().filter(|word| *word != "//").collect();
    let text = words.join(" ");
    let count = |number: usize| grouped(number as u64);
    let (ttl_min, ttl_max) = (grouped(limits::TTL_MIN_MS), grouped(limits::TTL_MAX_MS));
    let every = [
        limits::CHECK_INTERVAL_MIN_MS,
        limits::CHECK_INTERVAL_MAX_MS,
        limits::CHECK_INTERVAL_DEFAULT_MS,
    ];
    let [every_min, every_max, every_default] = every.map(|ms| grouped(ms.into()));
    let timeout = [limits::CHECK_TIMEOUT_MIN_MS, limits::CHECK_TIMEOUT_DEFAULT_MS];
    let [timeout_min, timeout_default] = timeout.map(|ms| grouped(ms.into()));
    let times = |default: u32| format!("1 to {}; 0: {default}.", limits::CHECK_THRESHOLD);
    for said in [
        format!("version: 1 to {} bytes of [A-Za-z0-9._-]", count(limits::NAME_BYTES)),
        format!("endpoints 1 to {} an instance", count(limits::ENDPOINTS)),
        format!("something after it), 1 to {} bytes", count(limits::URI_BYTES)),
        format!("metadata up to {} entries", count(limits::METADATA_ENTRIES)),
        format!("{} KiB of keys and values together", limits::METADATA_BYTES / 1_024),
        format!("requires up to {} service names", count(limits::REQUIRES)),
        format!("tags up to {} an instance", count(limits::TAGS)),
        format!("each 1 to {} bytes of printable ASCII", count(limits::TAG_BYTES)),
        format!("weight 0 to {}", grouped(limits::WEIGHT.into())),
        format!("load 0 to {}", grouped(limits::LOAD.into())),
        format!("checks up to {} an instance", count(limits::CHECKS)),
        format!("TTL {ttl_min} ms to {ttl_max} ms"),
        format!("one call up to {} instances", count(limits::INSTANCES_PER_CALL)),
        format!("instances, {} leases", count(limits::LEASES_PER_CALL)),
        format!("not set means {}.", limits::WEIGHT_DEFAULT),
        format!("ms: {every_min} to {every_max}; 0: {every_default}."),
        format!("ms: {timeout_min} to interval_ms; 0: {timeout_default}, or"),
        times(limits::CHECK_FAILURES_DEFAULT),
        times(limits::CHECK_SUCCESSES_DEFAULT),
        format!("at most {} bytes, longer ones are cut", limits::HEALTH_REASON_BYTES),
    ] {
        assert!(text.contains(&said), "types.proto does not say {said:?}");
    }
}
