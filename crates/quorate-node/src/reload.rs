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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// On paused time, which goes on only while nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_is_read_at_once_and_the_rest_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.toml");
        let put = |name: &str| {
            let entry = format!("[[certificate]]\ncommon_name = '{name}'\nrole = 'admin'\n");
            std::fs::write(&file, entry).unwrap();
        };
        put("first");
        let access = Arc::new(Access::open("prod", Some(file.clone())).await.unwrap());
        let (mut changes, requested) = (access.changes(), Arc::new(Notify::new()));
        let reload = Reload { requested: requested.clone(), access, tls: None };
        let running = tokio::spawn(reload.run());
        for (name, is_asked_for) in [("second", true), ("third", false), ("fourth", true)] {
            put(name);
            let begun = Instant::now();
            if is_asked_for {
                requested.notify_one();
            }
            changes.changed().await.unwrap();
            let took = begun.elapsed();
            assert_eq!(took < LOOK_EVERY / 10, is_asked_for, "{name}: {took:?}");
            assert!(took < 2 * LOOK_EVERY, "{name}: {took:?}");
        }
        running.abort();
    }
}
