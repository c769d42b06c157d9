//! Answers as JSON.

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

/// Ends with a newline: what is printed on a terminal is a line.
pub(super) fn written(shown: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(shown).expect("invariant: texts and numbers can be written");
    text.push(b'\n');
    text.into()
}

/// A small answer.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        ([(CONTENT_TYPE, json)], written(&self.0)).into_response()
    }
}
