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

/// What a text is made of, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) bytes: usize,
    /// How many of them count among the answers under way until the text is there.
    pub(super) counted: usize,
}

impl Source {
    /// Of what does not count.
    pub(super) fn uncounted(bytes: usize) -> Self {
        Self { bytes, counted: 0 }
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
    let counted = held.get::<Arc<Reserved>>().map_or(0, |reserved| reserved.counted());
    let source = Source { bytes: answer.encoded_len(), counted };
    let until = Until::both(asked.deadline(&api.node));
    let make = move || {
        let text = written(&show(answer));
        // What it was made of is gone.
        drop(held);
        Ok(text)
    };
    let (text, reserved) = made(api.node.answers(), &asked.line, until, source, make).await?;
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
    source: Source,
    make: impl FnOnce() -> Result<Bytes, CallError> + Send + 'static,
) -> Result<(Bytes, Reserved), CallError> {
    let mut reserved = answers.begin(line, until.taken)?;
    let text = match source.bytes > LARGE {
        false => make()?,
        true => {
            let _turn = answers.turn(until.made).await?;
            let estimate = GROWS * source.bytes;
            // What it is made of goes when it is there.
            let checked = reserved.check(estimate.saturating_sub(source.counted));
            checked.map_err(|refused| or_too_large(answers, refused, estimate))?;
            blocking(make).await??
        }
    };
    let added = reserved.add(text.len());
    added.map_err(|refused| or_too_large(answers, refused, text.len()))?;
    Ok((text, reserved))
}

/// Why so many bytes were refused: they would be whatever else is under way, or come again later.
fn or_too_large(answers: &Answers, refused: CallError, bytes: usize) -> CallError {
    let limit = answers.max_of_one();
    let (what, instead) = ("the answer", "use `limit` and read pages, or a prefix");
    match bytes > limit {
        true => CallError::TooLarge { what, bytes, limit, instead },
        false => refused,
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::net::answers::Refused;

    async fn made_by(answers: &Arc<Answers>, of_bytes: usize) -> Result<ThreadId, CallError> {
        made_on(answers, &line(), Source::uncounted(of_bytes)).await
    }

    fn line() -> Arc<Line> {
        Line::of(&http::Extensions::new())
    }

    async fn made_on(
        answers: &Arc<Answers>,
        line: &Arc<Line>,
        source: Source,
    ) -> Result<ThreadId, CallError> {
        let (of_bytes, by) = (source.bytes, Arc::new(std::sync::Mutex::new(None)));
        let note = by.clone();
        let make = move || {
            *note.lock().unwrap() = Some(thread::current().id());
            Ok(Bytes::from(vec![b'x'; of_bytes * GROWS]))
        };
        let until = Until::both(Instant::now() + Duration::from_secs(5));
        let (text, _reserved) = made(answers, line, until, source, make).await?;
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
    async fn events_leave_half_of_the_room_to_calls() {
        let answers = answers(4 * LARGE * GROWS);
        let mut unread = answers.begin(&line(), Instant::now()).unwrap();
        unread.add(2 * LARGE * GROWS).unwrap();
        answers.check_event().expect("they may have half");
        let _one_more = {
            let mut more = answers.begin(&line(), Instant::now()).unwrap();
            more.add(LARGE).unwrap();
            more
        };
        let refused = answers.check_event().expect_err("no more");
        assert!(matches!(refused, CallError::AnswersUnderWay { .. }), "{refused:?}");
        made_by(&answers, LARGE).await.expect("calls go on");
    }

    #[tokio::test]
    async fn one_that_would_be_too_much_is_not_begun() {
        let answers = answers(LARGE * GROWS);
        let refused = made_by(&answers, LARGE + 1).await.expect_err("too much");
        assert!(matches!(refused, CallError::TooLarge { .. }), "for ever: {refused:?}");
        made_by(&answers, LARGE).await.expect("as much as may be");
        // As JSON, it is more than was thought.
        let until = Until::both(Instant::now() + Duration::from_secs(5));
        let make = || Ok(Bytes::from(vec![b'x'; LARGE * GROWS + 1]));
        let more = made(&answers, &line(), until, Source::uncounted(LARGE), make).await;
        let refused = more.map(drop).expect_err("too much");
        assert!(matches!(refused, CallError::TooLarge { .. }), "for ever: {refused:?}");
    }

    /// What it is made of counted beside it: a third of what a connection may have was too much.
    #[tokio::test]
    async fn what_it_is_made_of_makes_room_for_it() {
        let (bytes, answers, line) = (4 * LARGE, answers(4 * LARGE * GROWS), line());
        let far = Instant::now() + Duration::from_secs(60);
        let mut source = answers.begin(&line, far).unwrap();
        source.add(bytes).unwrap();
        let own = Source { bytes, counted: bytes };
        // The text has room when its source has gone.
        let until = Until::both(far);
        let make = move || {
            drop(source);
            Ok(Bytes::from(vec![b'x'; bytes * GROWS]))
        };
        drop(made(&answers, &line, until, own, make).await.expect("it fits"));
        let mut other = answers.begin(&line, far).unwrap();
        other.add(bytes).unwrap();
        let refused = made_on(&answers, &line, Source::uncounted(bytes)).await;
        let refused = refused.expect_err("too much beside another one");
        assert!(matches!(refused, CallError::AnswersUnderWay { .. }), "for now: {refused:?}");
    }
}
