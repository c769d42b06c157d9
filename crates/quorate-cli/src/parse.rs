//! Texts of the command line to values: durations, pairs, lists. Says what is wrong, and with what.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use quorate_client::{HealthCheck, InstanceStatus};
use quorate_proto::limits;

/// Node addresses from one argument. (Under this name, clap does not take it for an argument that
/// repeats.)
pub(crate) type NodeList = Vec<String>;

/// "500ms", "10s", "5m", "1h", "1d"; larger units may stand before smaller ones: "2m30s".
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("\"{text}\" is no duration; write it like 500ms, 10s, 2m30s, 1h or 1d");
    let too_long = || format!("\"{text}\" is too long");
    let (mut rest, mut ms, mut last) = (text, 0_u64, u64::MAX);
    while !rest.is_empty() || last == u64::MAX {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let ms_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(expected()),
        };
        if number.is_empty() || ms_per_unit >= last {
            return Err(expected());
        }
        let number: u64 = number.parse().map_err(|_| too_long())?;
        let part = number.checked_mul(ms_per_unit).ok_or_else(too_long)?;
        ms = ms.checked_add(part).ok_or_else(too_long)?;
        (rest, last) = (next, ms_per_unit);
    }
    Ok(Duration::from_millis(ms))
}

/// "90d", or a duration.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no lifetime; write it like 90d or 12h");
    match text.strip_suffix('d') {
        // No more than fits into the dates of certificates.
        Some(days) => match days.parse() {
            Ok(days @ 1..=36_500) => Ok(Duration::from_secs(days * 86_400)),
            _ => Err(wrong()),
        },
        None => duration(text).map_err(|_| wrong()),
    }
}

/// A moment as RFC 3339 has it, with its offset from UTC.
pub(crate) fn moment(text: &str) -> Result<String, String> {
    let read: Option<toml::value::Datetime> = text.parse().ok();
    let is_whole =
        |at: &toml::value::Datetime| at.date.is_some() && at.time.is_some() && at.offset.is_some();
    match read.filter(is_whole) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("\"{text}\" is no moment; write it like 2027-01-01T00:00:00Z")),
    }
}

/// A path. One that is empty is taken, too: an empty variable is one that is not set.
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// What the registry takes for a TTL.
const TTL: RangeInclusive<Duration> =
    Duration::from_millis(limits::TTL_MIN_MS)..=Duration::from_millis(limits::TTL_MAX_MS);

/// How long a registration lives without renewals.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if TTL.contains(&ttl) { Ok(ttl) } else { Err(format!("a TTL is 1s to 24h, not {text}")) }
}

/// "name=value", with a name.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("\"{text}\" is no name=value")),
    }
}

/// "name=uri". The rest of its limits is the registry's to say.
pub(crate) fn endpoint(text: &str) -> Result<(String, String), String> {
    let expected = || format!("\"{text}\" is no name=uri; write it like http=http://10.0.0.1:8080");
    let (name, uri) = pair(text).map_err(|_| expected())?;
    let (scheme, rest) = uri.split_once(':').ok_or_else(expected)?;
    let in_scheme = |c: char| c.is_ascii_alphanumeric() || ['+', '-', '.'].contains(&c);
    let is_scheme =
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(in_scheme);
    // Also "localhost:8080": by the letter, a URI with the scheme "localhost".
    if !is_scheme || rest.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!(
            "\"{uri}\" has no scheme; write what callers are to speak, like {name}=http://{uri}"
        ));
    }
    if authority(&uri).is_some_and(|address| address.ends_with(":0")) {
        return Err(format!(
            "\"{uri}\": no client can call port 0; `quorate run` chooses a free one for {{port}}"
        ));
    }
    Ok((name, uri))
}

/// The host and port of a URI.
pub(crate) fn authority(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit('@').next()?;
    let (_, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().ok().map(|_| authority)
}

/// "http=/healthz,every=5s,failures=2". The limits are the registry's to say.
pub(crate) fn check(text: &str) -> Result<HealthCheck, String> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut check = match kind.split_once('=').unwrap_or((kind, "")) {
        ("http", path) => HealthCheck::http(path),
        ("tcp", "") => HealthCheck::tcp(),
        ("grpc", service) => HealthCheck::grpc(service),
        _ => return Err(format!("\"{kind}\" is no check; write http=/path, tcp or grpc=SERVICE")),
    };
    for part in parts {
        let (name, value) = pair(part)?;
        let times = || value.parse::<u32>().map_err(|_| format!("\"{part}\" names no number"));
        check = match name.as_str() {
            "endpoint" => check.endpoint(value),
            "every" => check.every(duration(&value)?),
            "timeout" => check.timeout(duration(&value)?),
            "failures" => check.failures_before_critical(times()?),
            "successes" => check.successes_before_passing(times()?),
            _ => {
                let known = "endpoint, every, timeout, failures and successes";
                return Err(format!("\"{name}\" is no part of a check; there are {known}"));
            }
        };
    }
    Ok(check)
}

/// As the registry takes it.
pub(crate) fn weight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(limits::WEIGHT))
}

/// "up", "draining" and so on.
pub(crate) fn status(text: &str) -> Result<InstanceStatus, String> {
    match text.to_ascii_lowercase().replace('_', "-").as_str() {
        "starting" => Ok(InstanceStatus::Starting),
        "up" => Ok(InstanceStatus::Up),
        "draining" => Ok(InstanceStatus::Draining),
        "out-of-service" => Ok(InstanceStatus::OutOfService),
        _ => Err(format!(
            "\"{text}\" is no status; there are starting, up, draining and out-of-service"
        )),
    }
}

/// "host:port,host:port"; a bare port has the host before it: "127.0.0.1:7001,7002,7003".
pub(crate) fn nodes(text: &str) -> Result<NodeList, String> {
    quorate_client::parse_nodes(text)
}

/// "a,b": what stands between the commas.
pub(crate) fn listed(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// "127.0.0.1:7001": where a node listens.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("\"{text}\" is no IP:PORT to listen on, like 127.0.0.1:7001 or [::1]:7001; names go into --advertise")
    })
}

/// A node's id.
pub(crate) fn id(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(id @ 1..) => Ok(id),
        _ => Err(format!("\"{text}\" is no id of a node: a number from 1 on")),
    }
}

/// "1=host:port,2=host:port": peer addresses by id.
pub(crate) fn bootstrap(text: &str) -> Result<BTreeMap<u64, String>, String> {
    let expected =
        |item: &str| format!("\"{item}\" is no ID=HOST:PORT; write it like 1=10.0.0.1:7101");
    let pairs = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pairs = pairs.map(|item| pair(item).map_err(|_| expected(item)));
    members(pairs.collect::<Result<Vec<_>, _>>()?)
}

/// Peer addresses by id, from ids as text.
pub(crate) fn members(
    pairs: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<u64, String>, String> {
    let mut members = BTreeMap::new();
    for (id, address) in pairs {
        let number: u64 = id.parse().map_err(|_| format!("\"{id}\" is no node id"))?;
        if !address.contains(':') {
            return Err(format!("\"{address}\" is no address of node {id}; write host:port"));
        }
        if members.insert(number, address).is_some() {
            return Err(format!("node {number} stands there twice"));
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks() {
        let seconds = Duration::from_secs;
        let all = HealthCheck::http("/healthz?deep")
            .endpoint("admin")
            .every(seconds(5))
            .timeout(seconds(1))
            .failures_before_critical(2)
            .successes_before_passing(4);
        let text = "http=/healthz?deep,endpoint=admin,every=5s,timeout=1s,failures=2,successes=4";
        assert_eq!(check(text), Ok(all));
        assert_eq!(check("tcp"), Ok(HealthCheck::tcp()));
        assert_eq!(check("grpc"), Ok(HealthCheck::grpc("")));
        assert_eq!(check("grpc=a.B"), Ok(HealthCheck::grpc("a.B")));
        for (text, named) in [
            ("", "http=/path"),
            ("udp", "udp"),
            ("tcp=1", "tcp=1"),
            ("tcp,often", "often"),
            ("tcp,rise=2", "rise"),
            ("tcp,every=5", "5"),
            ("tcp,failures=some", "failures=some"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn durations() {
        let ms = |text| duration(text).map(|parsed| parsed.as_millis());
        for (text, expected) in
            [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)]
                .into_iter()
                .chain([
                    ("2m30s", 150_000),
                    ("1h2m3s4ms", 3_723_004),
                    ("1h1ms", 3_600_001),
                    ("1d", 86_400_000),
                ])
        {
            assert_eq!(ms(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "10 s",
            "10S",
            "1w",
            "1h1d",
            "30s2m",
            "1s1s",
            "2m30",
            "m30s",
            "99999999999999999999d",
        ] {
            let error = ms(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!(ms("18446744073709551615h").is_err());
    }

    #[test]
    fn lifetimes_and_moments() {
        let days = |text| lifetime(text).map(|parsed| parsed.as_secs() as f64 / 86_400.0);
        assert_eq!((days("90d"), days("12h")), (Ok(90.0), Ok(0.5)));
        for text in ["", "d", "0d", "-1d", "1.5d", "99999999d", "90"] {
            assert!(lifetime(text).unwrap_err().contains(text), "{text}");
        }
        for good in ["2027-01-01T00:00:00Z", "2027-01-01T00:00:00.5+02:00"] {
            assert_eq!(moment(good).as_deref(), Ok(good));
        }
        for bad in ["", "2027-01-01", "2027-01-01T00:00:00", "2027-13-01T00:00:00Z", "tomorrow"] {
            assert!(moment(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn pairs_and_endpoints() {
        let owned = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(pair("k=v"), owned("k", "v"));
        assert_eq!(pair("k=a=b"), owned("k", "a=b"));
        assert_eq!(pair("k="), owned("k", ""));
        assert!(pair("k").is_err() && pair("=v").is_err());
        assert_eq!(endpoint("http=http://h:1/a=b"), owned("http", "http://h:1/a=b"));
        for text in ["http://h:1", "http=", "http=here", "=http://h:1"] {
            assert!(endpoint(text).unwrap_err().contains(text));
        }
        for text in ["http=10.0.0.1:8080", "http=localhost:8080", "http=[::1]:80"] {
            let error = endpoint(text).unwrap_err();
            assert!(error.contains("no scheme") && error.contains("http=http://"), "{error}");
        }
        assert!(endpoint("http=http://127.0.0.1:0/x").unwrap_err().contains("{port}"));
        assert!(endpoint("http=http://127.0.0.1:{port}").is_ok() && endpoint("u=unix:/x").is_ok());
        assert!(ttl("999ms").unwrap_err().contains("1s to 24h") && ttl("25h").is_err());
        assert_eq!((ttl("1s").is_ok(), ttl("24h").is_ok()), (true, true));
    }

    #[test]
    fn the_host_and_port_of_a_uri() {
        assert_eq!(authority("http://127.0.0.1:8080/x?y"), Some("127.0.0.1:8080"));
        assert_eq!(authority("grpc://user@[::1]:50051"), Some("[::1]:50051"));
        for none in ["http://h", "unix:/tmp/x", "http://h:port", "x"] {
            assert_eq!(authority(none), None, "{none}");
        }
    }

    #[test]
    fn statuses() {
        assert_eq!(status("UP"), Ok(InstanceStatus::Up));
        assert_eq!(status("out_of_service"), Ok(InstanceStatus::OutOfService));
        assert!(status("down").is_err());
    }

    #[test]
    fn node_lists() {
        let three = ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"];
        assert_eq!(nodes("127.0.0.1:7001,7002,7003").unwrap(), three);
        assert_eq!(nodes(&three.join(", ")).unwrap(), three);
        assert_eq!(nodes("[::1]:1,2").unwrap(), ["[::1]:1", "[::1]:2"]);
        assert!(nodes("").is_err() && nodes("7001").is_err() && nodes("host").is_err());
    }

    #[test]
    fn bootstrap_lists() {
        let parsed = bootstrap("1=a:1, 2=b:1").unwrap();
        assert_eq!(parsed, BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]));
        for text in ["1", "x=a:1", "1=a", "1=a:1,1=b:1"] {
            assert!(bootstrap(text).is_err(), "{text}");
        }
        assert!(bootstrap("a:1,b:1").unwrap_err().contains("\"a:1\" is no ID=HOST:PORT"));
    }

    #[test]
    fn what_a_node_is_called_and_where_it_listens() {
        assert_eq!((id("7"), listen("[::1]:1").is_ok()), (Ok(7), true));
        for text in ["0", "-1", "one", ""] {
            assert!(id(text).unwrap_err().contains("a number from 1 on"), "{text}");
        }
        for text in ["localhost:7001", "7001", ":7001"] {
            assert!(listen(text).unwrap_err().contains("IP:PORT"), "{text}");
        }
    }
}
