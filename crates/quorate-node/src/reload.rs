//! What a node reads again while it runs: every [`LOOK_EVERY`], since a mounted file changes
//! without a word, and at once on SIGHUP. Each thing sees by the content whether it has changed,
//! and keeps what it has if the new one cannot be used.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::access::Access;
use crate::error::RunError;
use crate::net::tls::Tls;

/// A change is seen after this time at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The loop that reads again.
pub(crate) struct Reload {
    pub(crate) requested: Arc<Notify>,
    pub(crate) access: Arc<Access>,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Reload {
    async fn reload_tls(&self) {
        if let Some(tls) = &self.tls {
            tls.reload().await;
            tls.tell_end();
        }
    }

    /// Never returns.
    pub(crate) async fn run(self) -> Result<(), RunError> {
        if let Some(tls) = &self.tls {
            tls.tell_end();
        }
        loop {
            // Either way it is time.
            let _ = timeout(LOOK_EVERY, self.requested.notified()).await;
            // One that takes long, of a server that is gone, does not hold up the other.
            tokio::join!(self.reload_tls(), self.access.reload());
        }
    }
}
