//! No command is silent for long: it says once on stderr what it waits for.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::args::ClientArgs;
use crate::output;

/// What takes no longer needs no word.
pub(crate) const SAY_AFTER: Duration = Duration::from_millis(800);
// A command that says nothing for longer is taken for one that hangs.
const _: () = assert!(SAY_AFTER.as_millis() < 1_000);

/// Says `what` if the work takes longer than a moment.
pub(crate) async fn told<T>(what: String, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match timeout(SAY_AFTER, &mut work).await {
        Ok(done) => done,
        Err(_elapsed) => {
            output::note(&what);
            work.await
        }
    }
}

/// What is said of a call that goes on until the deadline.
pub(crate) fn trying(what: &str, args: &ClientArgs) -> String {
    let (nodes, within) = (args.nodes().join(", "), args.timeout);
    format!("{what}: still waiting; trying {nodes} for up to {within:?}")
}
