//! A write under way: it has the same name at every node that it is sent to, so it is done once
//! (`RequestId` in the wire contract).

use std::sync::atomic::{AtomicBool, Ordering};

use quorate_proto::requests::{OpenWrite, Origin};
use quorate_proto::v1::RequestId;

use crate::clock::Moment;

/// Over when it is dropped. What is still on its way then may be done yet, for as long as it takes
/// to arrive; not any more once a later write of this client was that was sent when no earlier one
/// was open.
#[derive(Debug)]
pub(crate) struct Write {
    open: OpenWrite,
    begun: Moment,
    sent: AtomicBool,
}

impl Write {
    pub(crate) fn begin(origin: &Origin) -> Self {
        Self { open: origin.begin(), begun: Moment::now(), sent: AtomicBool::new(false) }
    }

    /// For the next attempt.
    pub(crate) fn id(&self) -> Option<RequestId> {
        let again = self.sent.swap(true, Ordering::Relaxed);
        let age_ms = if again { self.begun.elapsed().as_millis().max(1) as u64 } else { 0 };
        let (origin, number) = (self.open.origin(), self.open.number());
        Some(RequestId { origin, number, done_below: self.open.done_below(), age_ms })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_attempt_has_the_same_number_and_its_age() {
        let origin = Origin::new(7);
        let write = Write::begin(&origin);
        let id = |age_ms| Some(RequestId { origin: 7, number: 1, done_below: 1, age_ms });
        assert_eq!(write.id(), id(0));
        assert_eq!(write.id(), id(1), "again at once is again");
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(write.id(), id(250));
        crate::clock::suspend(Duration::from_secs(3_600));
        assert_eq!(write.id(), id(3_600_250), "what the machine slept counts");
        drop(write);
        assert_eq!(Write::begin(&origin).id().map(|id| (id.number, id.done_below)), Some((2, 2)));
    }
}
