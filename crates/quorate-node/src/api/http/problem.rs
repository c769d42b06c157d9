//! What an answer says that refuses something (RFC 9457), and the one table from gRPC codes to HTTP
//! statuses.

use std::error::Error as _;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use quorate_proto::trailers;
use quorate_state::Invalid;
use serde::Serialize;
use tonic::{Code, Status};
use utoipa::ToSchema;

use crate::access::Unidentified;
use crate::api::grpc::code_name;
use crate::api::http::json::Json;
use crate::error::CallError;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// What can be tried again, and says not when, may be tried again after this.
const RETRY_AFTER_MS: u64 = 1_000;

/// Why something is refused.
#[derive(Debug, Serialize)]
pub(super) struct Problem(Box<Words>);

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Words {
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// The gRPC code, as `NOT_FOUND`.
    code: String,
    /// What is wrong, for people; the same words as by gRPC.
    detail: String,
    /// Which field, parameter or header of the request is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What it must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
    /// How long to stay away.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The incarnation that holds the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
}

impl Problem {
    /// One that only HTTP knows.
    pub(super) fn new(status: StatusCode, code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Words {
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code: code_name(code),
            detail: detail.into(),
            field: None,
            limit: None,
            retry_after_ms: None,
            incarnation: None,
        }))
    }

    pub(super) fn of(mut self, field: &str, limit: impl Into<String>) -> Self {
        self.0.field = Some(field.to_owned());
        self.0.limit = Some(limit.into());
        self
    }

    /// Of no field: there may be no more of something.
    pub(super) fn at_most(mut self, limit: String) -> Self {
        self.0.limit = Some(format!("at most {limit}"));
        self
    }

    /// It may be tried again after a while.
    pub(super) fn later(mut self) -> Self {
        self.0.retry_after_ms = Some(RETRY_AFTER_MS);
        self
    }

    /// Of a field that has this value.
    pub(super) fn invalid(field: &str, value: &str, limit: &str) -> Self {
        CallError::from(Invalid::text(field, value, limit)).into()
    }

    /// Of something that has no value which could be shown.
    pub(super) fn wrong(field: &str, limit: &str) -> Self {
        let detail = format!("{field}: {limit}");
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, detail).of(field, limit)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, detail)
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Status::from(error).into()
    }
}

impl From<Unidentified> for Problem {
    fn from(error: Unidentified) -> Self {
        Status::from(error).into()
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let mut problem = Self::new(http_status(status.code()), status.code(), status.message());
        let error = status.source().and_then(|source| source.downcast_ref::<CallError>());
        problem = match error {
            Some(CallError::Invalid(invalid)) => problem.of(&invalid.field, &*invalid.limit),
            Some(CallError::TooLarge { what, limit, .. }) => {
                problem.of(what, format!("at most {limit} bytes"))
            }
            Some(CallError::AnswersUnderWay { limit, place, .. }) => {
                problem.at_most(format!("{limit} bytes of answers {place}"))
            }
            Some(CallError::Arriving { limit, place }) => {
                problem.at_most(format!("{limit} bytes of requests {place}"))
            }
            Some(CallError::CallsUnderWay { limit, place }) => {
                problem.at_most(format!("{limit} calls {place}"))
            }
            Some(CallError::NamesWatched { limit }) => {
                problem.at_most(format!("{limit} names from this address"))
            }
            _ => problem,
        };
        let told = |name| status.metadata().get(name)?.to_str().ok().map(str::to_owned);
        problem.0.incarnation = told(trailers::INCARNATION);
        let retry_after = told(trailers::RETRY_AFTER_MS).and_then(|ms| ms.parse().ok());
        let otherwise = (status.code() == Code::Unavailable).then_some(RETRY_AFTER_MS);
        problem.0.retry_after_ms = retry_after.or(otherwise);
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.retry_after_ms;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        if let Some(ms) = retry_after {
            headers.insert(RETRY_AFTER, ms.div_ceil(1_000).into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The table.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_log::NodeId;
    use quorate_state::Rejection;

    use super::*;
    use crate::error::NodeError;

    /// Whatever refuses for want of room: the status, when to come again, and how much there may
    /// be.
    #[test]
    fn what_refuses_for_load_says_when_to_come_again_and_how_much_there_may_be() {
        let (limit, place) = (7, "at this node");
        let node = NodeId::new(1).unwrap();
        for (error, again, limit) in [
            (CallError::AnswersUnderWay { under_way: 9, limit, place }, true, true),
            (CallError::CallsUnderWay { limit, place }, true, true),
            (CallError::Arriving { limit, place }, true, true),
            (CallError::NamesWatched { limit }, true, true),
            (NodeError::Overloaded { waiting: 9 }.into(), true, false),
            // It may take long until there is room, or for ever.
            (
                NodeError::DiskFull { node, free_bytes: 1, reserve_bytes: 2, is_at_floor: false }
                    .into(),
                false,
                false,
            ),
            (NodeError::StateFull { node, bytes: 9, limit: 9 }.into(), false, false),
            (NodeError::Rejected(Rejection::TooManyOrigins { origins: 9 }).into(), false, false),
            (CallError::TooLarge { what: "answer", bytes: 9, limit, instead: "" }, false, true),
        ] {
            let what = error.to_string();
            let problem = Problem::from(error);
            let said = problem.0.limit.as_deref().unwrap_or_default();
            assert_eq!(said.starts_with("at most 7 "), limit, "{what}: {said}");
            let json = serde_json::to_value(&problem).unwrap();
            // As by gRPC.
            let after = again.then_some(250);
            assert_eq!(json["retry_after_ms"].as_u64(), after, "{what}: {json}");
            let response = problem.into_response();
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS, "{what}");
            assert_eq!(response.headers().get(RETRY_AFTER).is_some(), again, "{what}");
        }
    }
}
