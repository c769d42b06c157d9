//! [`WatchStatus`]: how the stream behind a watch or a view stands.

use std::time::Instant;

use crate::error::Error;

/// How a watch stands. Whatever it says, the view stays what was known last.
///
/// An example is at [`Watch`](crate::Watch).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum WatchStatus {
    /// No node has been reached yet.
    Connecting,
    /// Changes arrive.
    Following {
        /// The node that sends them.
        address: String,
        /// False: the node has lost its leader, so nothing new can come.
        has_leader: bool,
    },
    /// The stream broke off; the task goes on trying, for ever. With [`Error::Stopped`], its
    /// runtime was shut down, and it has ended.
    Interrupted {
        /// Since when.
        since: Instant,
        /// What the last attempt came to.
        last_error: Error,
    },
    /// The registry refused the subscription, for instance because of a name that cannot be, or a
    /// right that is not there. (One that is lost later, or a token that has run out, is an
    /// interruption.) A
    /// [`Watch`](crate::Watch) has stopped; a [`Discovery`](crate::Discovery) asks again when the
    /// client follows other services, and every 10 s.
    Refused {
        /// The reason.
        error: Error,
    },
}
