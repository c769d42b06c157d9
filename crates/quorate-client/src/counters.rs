//! What a client counts for the application. Knows nothing of what is counted: each part counts
//! its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::ClusterId;

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn one_more(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the parts of a client note for each other and for the application.
        #[derive(Debug, Default)]
        pub(crate) struct Counts {
            /// The cluster in which this client registered something last, and the latest revision
            /// at which that stands.
            written: Mutex<Option<(ClusterId, u64)>>,
            $(pub(crate) $name: Count,)*
        }

        /// What a client has done since it was made; from
        /// [`Client::counters`](crate::Client::counters). All but the age only grow. To be exported
        /// as the application exports its own metrics:
        ///
        /// ```no_run
        /// # fn example(client: &quorate_client::Client) -> String {
        /// use std::fmt::Write;
        ///
        /// let mut text = String::new(); // of the application's /metrics, in Prometheus' format
        /// for (name, count) in client.counters().all() {
        ///     let _ = writeln!(text, "# TYPE quorate_client_{name}_total counter");
        ///     let _ = writeln!(text, "quorate_client_{name}_total {count}");
        /// }
        /// # text
        /// # }
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
            /// Not a counter: the age of the oldest live view, as by
            /// [`Discovery::age`](crate::Discovery::age).
            /// `None`: there is no view, or one that no node has answered for yet.
            pub view_age: Option<Duration>,
        }

        impl Counters {
            /// Each counter by its name, in a fixed order; a later release may add some.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl Counts {
            /// For the application.
            pub(crate) fn shown(&self, view_age: Option<Duration>) -> Counters {
                Counters { $($name: self.$name.get(),)* view_age }
            }
        }
    };
}

counters! {
    /// Calls over the nodes: reads, writes, the operators' calls, and what the client asks for
    /// itself (the members, the audit). Renewals and streams are not among them, nor is what brings
    /// a registration back.
    calls,
    /// Of them: those that failed, by their deadline or because they were refused.
    calls_failed,
    /// Attempts that failed so that another node was, or could be, asked: the node could not be
    /// reached, or had no leader.
    retries_unavailable,
    /// As before: it did not answer in the time that it was given.
    retries_late,
    /// As before: for another token than the one that was not taken.
    retries_token,
    /// As before, for any other reason.
    retries_other,
    /// How often the client left the node that served it, since that failed, for another one.
    rotations,
    /// How often another cluster answered than before: it was founded again or restored.
    cluster_changes,
    /// Registrations that were acknowledged: the first ones, those again, and updates.
    registrations,
    /// Of them: those again, since a lease was gone.
    reregistrations,
    /// Leases that the registry did not know any more when they were to be renewed.
    leases_lost,
    /// Leases that were renewed.
    renewals,
    /// Renewals that no node answered in time, or that were refused. Each is tried again.
    renewals_failed,
    /// Streams of watches and live views that nodes took.
    streams,
    /// Of them: those that went on from where one before had ended, without a snapshot.
    streams_resumed,
    /// Streams that broke off, and attempts to open one that failed; another is opened each time.
    streams_interrupted,
    /// Snapshots that replaced what a watch or a live view had, since the changes in between could
    /// not be had any more, or another cluster answered.
    resets,
    /// Live views that the audit found to differ from the registry, and repaired: a bug of ours.
    divergences,
    /// Cache files that were passed over: damaged, of another version or of another service.
    bad_cache_files,
}

impl Counts {
    /// A registration of this client stands at this revision.
    pub(crate) fn wrote(&self, cluster_id: ClusterId, revision: u64) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = match *written {
            Some((cluster, latest)) if cluster == cluster_id => latest.max(revision),
            _ => revision,
        };
        *written = Some((cluster_id, latest));
    }

    /// The latest revision at which a registration of this client stands in this cluster; 0: none
    /// is known.
    pub(crate) fn written(&self, cluster_id: Option<ClusterId>) -> u64 {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let here = written.filter(|(cluster, _)| Some(*cluster) == cluster_id);
        here.map_or(0, |(_, revision)| revision)
    }
}
