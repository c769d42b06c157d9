//! Whose connection calls in turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::advance;

use super::{Lane, Line};

const WINDOW: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn calls_in_turn_are_told_from_the_first_from_late_ones_and_from_those_side_by_side() {
    let line = Line::new(None, Arc::default());
    let call = async |after: Duration| {
        advance(after).await;
        line.begin_call(Lane::Known);
        line.calls_in_turn(WINDOW)
    };
    assert!(!call(2 * WINDOW).await, "the first call");
    line.end_call(Lane::Known);
    assert!(call(WINDOW / 2).await, "the next, soon after the answer");
    assert!(!call(WINDOW / 2).await, "one beside it");
    line.end_call(Lane::Known);
    line.end_call(Lane::Known);
    assert!(!call(2 * WINDOW).await, "one that comes late");
    line.end_call(Lane::Known);
    assert!(call(Duration::ZERO).await, "the next after that");
}
