//! Answers that may be large: their JSON is made where that holds up no other call, a few at a
//! time, and its bytes count as those of gRPC's answers do until they have been taken
//! (`net/answers.rs`).

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use tokio::time::Instant;

use crate::api::http::asked::Asked;
use crate::api::http::json::written;
use crate::api::http::problem::Problem;
use crate::api::http::routes::Api;
use crate::error::CallError;
use crate::net::answers::{Answers, Reserved, in_pieces};
use crate::net::connections::Line;
use crate::runtime::blocking;

/// Messages of the contract whose JSON is made where calls are handled, bytes at most: about a
/// millisecond's work.
const LARGE: usize = 64 * 1024;
/// JSON has about this many bytes for each of the contract's.
const GROWS: usize = 2;

/// Until when a text has to be made, and until when it has to be taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    pub(super) made: Instant,
    pub(super) taken: Instant,
}

impl Until {
    /// What answers a call has the call's deadline for both.
    pub(super) fn both(deadline: Instant) -> Self {
        Self { made: deadline, taken: deadline }
    }
}

/// What an answer of the contract is in JSON.
///
/// # Errors
/// Too much is under way, or its turn did not come in time.
pub(super) async fn json<A, S>(
    api: &Api,
    asked: &Asked,
    answer: tonic::Response<A>,
    show: impl FnOnce(A) -> S + Send + 'static,
) -> Result<Response, Problem>
where
    A: Message + 'static,
    S: Serialize,
{
    let (_, answer, held) = answer.into_parts();
    let bytes = answer.encoded_len();
    let until = Until::both(asked.deadline(&api.node));
    let make = move || {
        let text = written(&show(answer));
        // What it was made of is gone.
        drop(held);
        Ok(text)
    };
    let (text, reserved) = made(api.node.answers(), &asked.line, until, bytes, make).await?;
    Ok(response(text, reserved))
}

/// JSON that is sent, and counts until it is.
pub(super) fn response(text: Bytes, reserved: Reserved) -> Response {
    let mut response = Response::new(tonic::body::Body::new(Body::from(text)));
    reserved.attach(response.extensions_mut());
    let mut response = in_pieces(response).map(Body::new);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A text that is made of this many bytes, and the place among the answers under way that it has.
///
/// # Errors
/// Too much is under way, its turn did not come in time, or it cannot be made.
pub(super) async fn made(
    answers: &Arc<Answers>,
    line: &Arc<Line>,
    until: Until,
    of_bytes: usize,
    make: impl FnOnce() -> Result<Bytes, CallError> + Send + 'static,
) -> Result<(Bytes, Reserved), CallError> {
    let mut reserved = answers.begin(line, until.taken)?;
    let text = match of_bytes > LARGE {
        false => make()?,
        true => {
            let _turn = answers.turn(until.made).await?;
            reserved.check(GROWS * of_bytes)?;
            blocking(make).await??
        }
    };
    reserved.add(text.len())?;
    Ok((text, reserved))
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::net::answers::Refused;

    async fn made_by(answers: &Arc<Answers>, of_bytes: usize) -> Result<ThreadId, CallError> {
        let (line, by) =
            (Line::of(&http::Extensions::new()), Arc::new(std::sync::Mutex::new(None)));
        let note = by.clone();
        let make = move || {
            *note.lock().unwrap() = Some(thread::current().id());
            Ok(Bytes::from(vec![b'x'; of_bytes * GROWS]))
        };
        let until = Until::both(Instant::now() + Duration::from_secs(5));
        let (text, _reserved) = made(answers, &line, until, of_bytes, make).await?;
        assert_eq!(text.len(), of_bytes * GROWS);
        Ok(by.lock().unwrap().expect("it was made"))
    }

    fn answers(max: usize) -> Arc<Answers> {
        Arc::new(Answers::new(max, max, Refused::default()))
    }

    #[tokio::test]
    async fn large_ones_are_made_on_other_threads() {
        let (answers, own) = (answers(1 << 30), thread::current().id());
        assert_eq!(made_by(&answers, LARGE).await.unwrap(), own);
        assert_ne!(made_by(&answers, LARGE + 1).await.unwrap(), own);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_are_made_at_a_time_and_others_wait_for_their_turn() {
        let answers = answers(1 << 30);
        let far = Instant::now() + Duration::from_secs(60);
        let one = answers.turn(far).await.unwrap();
        let _other = answers.turn(far).await.unwrap();
        made_by(&answers, LARGE).await.expect("a small one needs none");
        let refused = made_by(&answers, LARGE + 1).await.expect_err("no turn came");
        assert!(matches!(refused, CallError::Node(_)), "{refused:?}");
        drop(one);
        let soon = timeout(Duration::from_secs(60), answers.turn(far)).await;
        drop(soon.expect("a turn").unwrap());
    }

    #[tokio::test]
    async fn one_that_would_be_too_much_is_not_begun() {
        let answers = answers(LARGE * GROWS);
        let refused = made_by(&answers, LARGE + 1).await.expect_err("too much");
        assert!(matches!(refused, CallError::AnswersUnderWay { .. }), "{refused:?}");
        made_by(&answers, LARGE).await.expect("as much as may be");
    }
}
