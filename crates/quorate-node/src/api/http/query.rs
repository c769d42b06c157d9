//! The query of a URI: each parameter is taken out by its name, and what is left is refused.

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use quorate_proto::ClusterId;
use quorate_proto::v1::{Consistency, InstanceStatus, RequestId};

use crate::api::grpc::door;
use crate::api::http::problem::Problem;

/// Parameters of one request, at most.
const PARAMETERS_MAX: usize = 2_000;

/// The parameters of a request.
#[derive(Debug, Default)]
pub(super) struct Query {
    /// Those that nobody has taken yet.
    left: Vec<(String, String)>,
    /// Those that this route takes, whether or not they came.
    known: Vec<&'static str>,
}

/// A revision, and the cluster that it is of; 0: not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) cluster_id: u64,
    pub(super) revision: u64,
}

impl Query {
    /// # Errors
    /// It is no UTF-8, or too much.
    pub(super) fn parse(query: &str) -> Result<Self, Problem> {
        let mut parameters = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let decode = |text: &str| {
                let spaced = text.replace('+', " ");
                let decoded = percent_decode_str(&spaced).decode_utf8();
                decoded.map(String::from).map_err(|_| Problem::invalid(name, text, "must be UTF-8"))
            };
            parameters.push((decode(name)?, decode(value)?));
            if parameters.len() > PARAMETERS_MAX {
                let limit = format!("at most {PARAMETERS_MAX} parameters");
                return Err(Problem::wrong("query", &limit));
            }
        }
        Ok(Self { left: parameters, known: Vec::new() })
    }

    /// All values of a parameter that may come more than once.
    pub(super) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        self.left.extract_if(.., |(of, _)| of == name).map(|(_, value)| value).collect()
    }

    /// # Errors
    /// The parameter came more than once.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(Problem::invalid(name, &values[1], "may be given once")),
        }
    }

    /// # Errors
    /// It is no such number.
    pub(super) fn number<N: FromStr + Default>(
        &mut self,
        name: &'static str,
    ) -> Result<N, Problem> {
        let Some(text) = self.text(name)? else { return Ok(N::default()) };
        number(name, &text)
    }

    /// # Errors
    /// There is no such consistency.
    pub(super) fn consistency(&mut self) -> Result<i32, Problem> {
        let name = "consistency";
        let consistency = match self.text(name)?.as_deref() {
            None => Consistency::Unspecified,
            Some("linearizable") => Consistency::Linearizable,
            Some("local") => Consistency::Local,
            Some(other) => {
                return Err(Problem::invalid(name, other, "must be linearizable or local"));
            }
        };
        Ok(consistency.into())
    }

    /// # Errors
    /// One of them is no status.
    pub(super) fn statuses(&mut self) -> Result<Vec<i32>, Problem> {
        self.all("status").iter().map(|text| status("status", text)).collect()
    }

    /// A revision, with or without its cluster.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn position(&mut self, name: &'static str) -> Result<Position, Problem> {
        match self.text(name)? {
            None => Ok(Position::default()),
            Some(text) => position(name, &text),
        }
    }

    /// The caller's name for a write whose route takes no body, where it has one.
    ///
    /// # Errors
    /// A part of it is no number.
    pub(super) fn request_id(&mut self) -> Result<Option<RequestId>, Problem> {
        let id = RequestId {
            origin: self.number("request_origin")?,
            number: self.number("request_number")?,
            done_below: self.number("request_done_below")?,
            age_ms: self.number("request_age_ms")?,
        };
        Ok((id != RequestId::default()).then_some(id))
    }

    /// How long the caller waits for its answer, where it says so; no longer than calls may take.
    ///
    /// # Errors
    /// It is no time.
    pub(super) fn timeout(&mut self) -> Result<Option<Duration>, Problem> {
        let name = "timeout";
        let Some(text) = self.text(name)? else { return Ok(None) };
        match duration(name, &text)? {
            Duration::ZERO => Err(Problem::invalid(name, &text, "must be at least 1ms")),
            timeout => Ok(Some(timeout.min(door::DEADLINE_MAX))),
        }
    }

    /// # Errors
    /// There are parameters that the route does not know.
    pub(super) fn done(&self) -> Result<(), Problem> {
        // Its value is not repeated: it may be a token, which belongs into a header.
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let known = match &*self.known {
            [] => "none".to_owned(),
            known => known.join(", "),
        };
        let limit = format!("is no parameter of this route, which takes {known}");
        Err(Problem::wrong(name, &limit))
    }
}

/// # Errors
/// It is no such number.
pub(super) fn number<N: FromStr>(name: &str, text: &str) -> Result<N, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| {
        let bits = 8 * size_of::<N>();
        Problem::invalid(name, text, &format!("must be decimal digits of a number of {bits} bits"))
    })
}

/// `500ms`, `30s`, `5m`, `1h` or `1d`. A number alone could be of seconds, too.
///
/// # Errors
/// It is none.
pub(super) fn duration(field: &str, text: &str) -> Result<Duration, Problem> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            let must = "must be a number and its unit, like 500ms, 30s, 5m, 1h or 1d";
            return Err(Problem::invalid(field, text, must));
        }
    };
    let number: u64 = number(field, digits)?;
    Ok(Duration::from_millis(number.saturating_mul(unit_ms)))
}

/// # Errors
/// It is no status.
pub(super) fn status(field: &str, text: &str) -> Result<i32, Problem> {
    let status = match text.to_ascii_uppercase().replace('-', "_").as_str() {
        "STARTING" => InstanceStatus::Starting,
        "UP" => InstanceStatus::Up,
        "DRAINING" => InstanceStatus::Draining,
        "OUT_OF_SERVICE" => InstanceStatus::OutOfService,
        _ => {
            let must = "must be STARTING, UP, DRAINING or OUT_OF_SERVICE";
            return Err(Problem::invalid(field, text, must));
        }
    };
    Ok(status.into())
}

/// `CLUSTER-REVISION`, as `index` and event ids have it, or a revision alone.
///
/// # Errors
/// It is none.
pub(super) fn position(field: &str, text: &str) -> Result<Position, Problem> {
    let Some((cluster, revision)) = text.split_once('-') else {
        return Ok(Position { cluster_id: 0, revision: number(field, text)? });
    };
    Ok(Position { cluster_id: cluster_id(field, cluster)?, revision: number(field, revision)? })
}

/// # Errors
/// It is none.
pub(super) fn cluster_id(field: &str, text: &str) -> Result<u64, Problem> {
    let digits = text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    id.filter(|id| ClusterId::new(*id).is_some()).ok_or_else(|| {
        Problem::invalid(field, text, "must be a cluster's id, 16 hexadecimal digits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_taken_once_and_what_is_left_is_refused_by_name() {
        let mut query = Query::parse("a=1&tag=x%20y&tag=z+w&b=2").unwrap();
        assert_eq!(query.all("tag"), ["x y", "z w"]);
        assert_eq!(query.number::<u64>("a").unwrap(), 1);
        let refused = format!("{:?}", query.done().unwrap_err());
        assert!(refused.contains("\"b\""), "{refused}");
        assert!(Query::parse("a=%FF").is_err());
        assert!(Query::parse("a=1&a=2").unwrap().text("a").is_err());
        for bad in ["", "-1", "+1", "1e3", "99999999999999999999999"] {
            assert!(number::<u64>("n", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        let times = [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000)];
        let times = times.into_iter().chain([("1d", 86_400_000)]);
        for (text, ms) in times {
            assert_eq!(duration("wait", text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "s", "5", "60", "1w", "-1s", "1.5s", "5 m", "\u{e9}"] {
            assert!(duration("wait", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_position_names_its_cluster_or_not() {
        let of = |cluster_id, revision| Position { cluster_id, revision };
        assert_eq!(position("index", "17").unwrap(), of(0, 17));
        assert_eq!(position("index", "00000000000000ff-17").unwrap(), of(255, 17));
        for bad in ["", "-", "x-1", "ff-", "ff-x", "0-1", "00000000000000000-1"] {
            assert!(position("index", bad).is_err(), "{bad}");
        }
    }
}
