//! A request as it came: its path, query, headers and body, and the call of the contract that is
//! made of it. What browsers are not to do is refused here.

use std::sync::Arc;
use std::time::Duration;

use axum::RequestPartsExt as _;
use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use futures_util::StreamExt as _;
use quorate_proto::trailers;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::api::grpc::{Arrived, door};
use crate::api::http::body::Nothing;
use crate::api::http::cors;
use crate::api::http::problem::Problem;
use crate::api::http::query::Query;
use crate::api::http::routes::Api;
use crate::net::arriving::{ARRIVED_WITHIN, Here};
use crate::net::connections::Line;
use crate::node::Node;

/// A body, bytes.
const BODY_MAX: usize = 1024 * 1024;

/// What of a request goes on to the call.
const PASSED_ON: [HeaderName; 2] = [AUTHORIZATION, HeaderName::from_static(trailers::REQUEST_ID)];

/// All of it but the body, which is read once its caller is let in.
pub(super) struct Asked {
    method: Method,
    path: Vec<(String, String)>,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) line: Arc<Line>,
    /// When the caller gives up, where it says so.
    until: Option<Instant>,
}

impl FromRequestParts<Api> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        if parts.extensions.get::<cors::Allowed>().is_none() {
            check_site(&parts.method, &parts.headers)?;
        }
        check_host(&api.node, &parts.uri, &parts.headers)?;
        let mut query = Query::parse(parts.uri.query().unwrap_or_default())?;
        let until = query.timeout()?.map(|timeout| Instant::now() + timeout);
        let path = parts.extract::<RawPathParams>().await;
        let path = path.map_err(|error| Problem::wrong("path", &error.body_text()))?;
        let path = path.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let line = Line::of(&parts.extensions);
        let (method, headers) = (parts.method.clone(), parts.headers.clone());
        Ok(Self { method, path, query, headers, line, until })
    }
}

impl Asked {
    /// A segment of the path. The contract's limits are looked at where those of all calls are.
    pub(super) fn path(&self, name: &str) -> String {
        let found = self.path.iter().find(|(of, _)| of == name);
        found.map(|(_, text)| text.clone()).unwrap_or_default()
    }

    /// How long the caller still waits, where it says so.
    pub(super) fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// When what is made of its answer has to be there.
    pub(super) fn deadline(&self, node: &Node) -> Instant {
        door::deadline_in(self.left().unwrap_or(node.tunables().request_timeout()))
    }

    /// Refuses a request by what is known of it before its body is read: who makes it, and whether
    /// they may do that to what its path names.
    ///
    /// # Errors
    /// They may not.
    pub(super) fn check_ahead<T: Arrived>(
        &self,
        api: &Api,
        method: door::Method,
        message: T,
    ) -> Result<(), Problem> {
        Ok(door::check_ahead(&api.node, method, &self.call(message))?)
    }

    /// The body.
    ///
    /// # Errors
    /// It is no JSON, or not what is expected.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        api: &Api,
        body: Body,
    ) -> Result<T, Problem> {
        let body = self.whole(api, body).await?;
        read(&body)
    }

    /// As [`Self::json`], where there may be none, or `null`.
    ///
    /// # Errors
    /// It is none that the route takes.
    pub(super) async fn json_if_any<T: DeserializeOwned + Default>(
        &self,
        api: &Api,
        body: Body,
    ) -> Result<T, Problem> {
        match body.is_end_stream() {
            true => self.no_body(api, body).await.map(|()| T::default()),
            false => self.json::<Option<T>>(api, body).await.map(Option::unwrap_or_default),
        }
    }

    /// # Errors
    /// A body came where none is expected.
    pub(super) async fn no_body(&self, api: &Api, body: Body) -> Result<(), Problem> {
        match is_nothing(&self.whole(api, body).await?) {
            true => Ok(()),
            false => Err(Problem::wrong("body", "this route takes none")),
        }
    }

    async fn whole(&self, api: &Api, body: Body) -> Result<Vec<u8>, Problem> {
        if !body.is_end_stream() || self.method == Method::POST {
            check_json(&self.headers)?;
            check_plain(&self.headers)?;
        }
        whole(&self.headers, body, api.arriving.begin(self.line.clone())).await
    }

    /// The call that this makes with a message.
    pub(super) fn call<T>(&self, message: T) -> tonic::Request<T> {
        let mut headers = HeaderMap::new();
        for name in &PASSED_ON {
            for value in self.headers.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        if let Some(left) = self.left() {
            let left = format!("{}m", left.as_millis());
            let left = left.parse().expect("invariant: digits and a letter");
            headers.insert(door::TIMEOUT, left);
        }
        let mut extensions = http::Extensions::new();
        extensions.insert(self.line.clone());
        tonic::Request::from_parts(MetadataMap::from_headers(headers), extensions, message)
    }
}

/// # Errors
/// It is no JSON, or not what is expected: which field of it.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.into_inner());
        of_field(&path, &error)
    })?;
    // Nothing more may follow.
    json.end().map_err(|error| Problem::wrong("body", &error.to_string()))?;
    Ok(read)
}

/// What is wrong at this place of a body, which is `.` for the whole of it.
fn of_field(path: &str, error: &serde_json::Error) -> Problem {
    let why = error.to_string();
    if let Some(rest) = why.strip_prefix("missing field `") {
        let name = rest.split('`').next().unwrap_or_default();
        let field = if path == "." { name.to_owned() } else { format!("{path}.{name}") };
        return Problem::wrong(&field, "must be there");
    }
    let known = why.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, "));
    match (known, error.is_data() && path != ".") {
        (Some((_, known)), true) => Problem::wrong(path, &format!("is not known: {known}")),
        (_, true) => Problem::wrong(path, &why),
        (_, false) => Problem::wrong("body", &why),
    }
}

/// No body, or an object with nothing in it, however it is written. (A list of nothing would be
/// taken for one, too.)
fn is_nothing(body: &[u8]) -> bool {
    let is_object = body.trim_ascii_start().starts_with(b"{");
    body.is_empty() || is_object && serde_json::from_slice::<Nothing>(body).is_ok()
}

async fn whole(headers: &HeaderMap, body: Body, mut here: Here) -> Result<Vec<u8>, Problem> {
    let limit = || format!("at most {BODY_MAX} bytes");
    let too_large = || {
        let detail = format!("the body has more than {BODY_MAX} bytes");
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Problem::new(status, Code::ResourceExhausted, detail).of("body", limit())
    };
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length > BODY_MAX)
    {
        return Err(too_large());
    }
    let read = async {
        let mut whole = Vec::new();
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let broken = |_| Problem::wrong("body", "did not arrive whole");
            whole.extend_from_slice(&piece.map_err(broken)?);
            if whole.len() > BODY_MAX {
                return Err(too_large());
            }
            here.count(whole.len())?;
        }
        Ok(whole)
    };
    timeout(ARRIVED_WITHIN, read).await.unwrap_or_else(|_elapsed| {
        let detail = format!("the body did not arrive within {} s", ARRIVED_WITHIN.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, detail))
    })
}

/// A page may send other types to other machines without asking first.
fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let found = headers.get(CONTENT_TYPE).and_then(|found| found.to_str().ok()).unwrap_or_default();
    let essence = found.split(';').next().unwrap_or_default().trim();
    match essence.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => {
            let must = "must be application/json";
            let detail = format!("content-type {must}, and is {found:?}");
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(Problem::new(status, Code::InvalidArgument, detail).of("content-type", must))
        }
    }
}

/// Nothing is unpacked here: what is small on the way could be large.
fn check_plain(headers: &HeaderMap) -> Result<(), Problem> {
    let is_plain = |found: &HeaderValue| found.as_bytes().eq_ignore_ascii_case(b"identity");
    let Some(found) = headers.get_all(CONTENT_ENCODING).iter().find(|found| !is_plain(found))
    else {
        return Ok(());
    };
    let must = "must be identity, or left out";
    let detail = format!("content-encoding {must}, and is {found:?}");
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(Problem::new(status, Code::InvalidArgument, detail).of("content-encoding", must))
}

/// Refuses what a page of another origin has a browser change, unless an operator allows that one.
fn check_site(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let reads = [Method::GET, Method::HEAD].contains(method);
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if reads || matches!(site, None | Some(b"same-origin" | b"none")) {
        return Ok(());
    }
    let must = "must be same-origin or none for what changes something";
    Err(no_page("sec-fetch-site", must, format!("sec-fetch-site {must}")))
}

/// Where nobody needs a credential, refuses anything under a name that only looks like this node's:
/// a page whose own name was pointed here could read it.
pub(super) fn check_host(node: &Node, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    if node.access().is_checked() {
        return Ok(());
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(|authority| authority.as_str()).or(host).unwrap_or_default();
    if is_own_name(node, host) {
        return Ok(());
    }
    let must = "must be an address, localhost, or a host of this node, a member or a founder";
    let detail = format!("the header host {must}, as no credentials are asked for here");
    Err(no_page("host", must, detail))
}

fn no_page(field: &str, limit: &str, detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, Code::PermissionDenied, detail).of(field, limit)
}

/// Whoever may point a name to this machine may not point an address to it. A node that is in no
/// cluster yet knows its own names and those of its founders' list, and is to be scraped, too.
fn is_own_name(node: &Node, host: &str) -> bool {
    let name = without_port(host);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is = |other: &str| name.eq_ignore_ascii_case(without_port(other));
    let me = node.me();
    address.parse::<std::net::IpAddr>().is_ok()
        || ["localhost", &me.client_address, &me.peer_address].into_iter().any(is)
        || node.members().iter().any(|member| is(&member.member.client_address))
        || node.peers().book.listed().iter().any(|listed| is(listed))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests;
