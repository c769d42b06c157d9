//! How long a node takes to answer a heartbeat.

use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

/// One heartbeat under way. The library gives it up after the interval of heartbeats: then it
/// counts for as long as it was waited for, or those of a slow node would be the ones that do not
/// count.
pub(super) struct RoundTrip {
    since: Instant,
    /// `None`: it has ended, or is no heartbeat.
    counted: Option<Histogram>,
}

impl RoundTrip {
    /// Begins now; `None`: what is sent is no heartbeat.
    pub(super) fn new(counted: Option<Histogram>) -> Self {
        Self { since: Instant::now(), counted }
    }

    pub(super) fn answered(&mut self) {
        if let Some(counted) = self.counted.take() {
            counted.observe(self.since.elapsed().as_secs_f64());
        }
    }

    /// Nobody was reached, which is no time that it took.
    pub(super) fn failed(&mut self) {
        self.counted = None;
    }
}

impl Drop for RoundTrip {
    fn drop(&mut self) {
        self.answered();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meters::{Meters, OfPeer};

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_counts_and_what_fails_does_not() {
        let meters = Meters::new(std::iter::empty());
        let of = meters.peer_rtt.get_or_create_owned(&OfPeer { peer: 2 });
        let counts = || {
            let text = meters.text(|_| {});
            ["_bucket{peer=\"2\",le=\"0.05\"} ", "_count{peer=\"2\"} "].map(|end| {
                let name = format!("quorate_peer_rtt_seconds{end}");
                text.lines().find_map(|it| it.strip_prefix(&name)).unwrap().to_owned()
            })
        };
        let mut quick = RoundTrip::new(Some(of.clone()));
        quick.answered();
        drop(quick);
        assert_eq!(counts(), ["1", "1"], "once");
        let slow = RoundTrip::new(Some(of.clone()));
        tokio::time::advance(Duration::from_millis(80)).await;
        drop(slow);
        assert_eq!(counts(), ["1", "2"]);
        RoundTrip::new(Some(of)).failed();
        drop(RoundTrip::new(None));
        assert_eq!(counts(), ["1", "2"]);
    }
}
