//! How many of the frames that no client needs often are read of one connection, and how fast.

use std::time::Duration;

use tokio::time::Instant;

/// Of frames that no client needs often, this many are read in [`INTERVAL`]. Some gRPC libraries
/// measure the line with a ping for each round trip, thousands a second.
const WASTED_MAX: u32 = 1_000;
const INTERVAL: Duration = Duration::from_millis(100);

/// A client has two WINDOW_UPDATE at most for each frame of DATA, of the stream and of the
/// connection, and the shortest that has a part of a message has 14 bytes: one for this many bytes.
const UPDATE_FOR: u32 = 7;
/// What a client that reads slowly may have to say all at once, after much was sent.
const UPDATES_MAX: u32 = 65_536;

/// The frames of one connection that no client needs often, in the present interval.
#[derive(Debug, Default)]
pub(super) struct Wasted {
    count: u32,
    since: Option<Instant>,
    /// WINDOW_UPDATE that answer what was sent.
    updates_left: u32,
}

impl Wasted {
    pub(super) fn sent(&mut self, bytes: usize) {
        let more = u32::try_from(bytes).unwrap_or(u32::MAX).div_ceil(UPDATE_FOR);
        self.updates_left = self.updates_left.saturating_add(more).min(UPDATES_MAX);
    }

    /// Those of them that answer nothing.
    pub(super) fn unasked(&mut self, updates: u32) -> u32 {
        let asked = updates.min(self.updates_left);
        self.updates_left -= asked;
        updates - asked
    }

    /// When more may be read, if not at once.
    pub(super) fn add(&mut self, frames: u32) -> Option<Instant> {
        if frames == 0 {
            return None;
        }
        let now = Instant::now();
        let since = match self.since.filter(|since| now - *since < INTERVAL) {
            Some(since) => since,
            None => {
                self.count = 0;
                *self.since.insert(now)
            }
        };
        self.count = self.count.saturating_add(frames);
        (self.count > WASTED_MAX).then_some(since + INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_read_as_fast_as_clients_need_them() {
        let mut wasted = Wasted::default();
        for _ in 0..3 {
            assert_eq!(wasted.add(WASTED_MAX), None);
            let more_from = wasted.add(1).expect("too many");
            assert_eq!(more_from - Instant::now(), INTERVAL);
            tokio::time::advance(INTERVAL).await;
        }
    }

    #[test]
    fn updates_of_windows_are_asked_for_by_what_was_sent() {
        let mut wasted = Wasted::default();
        assert_eq!(wasted.unasked(3), 3, "nothing was sent");
        // The least that a message in a frame of DATA takes.
        wasted.sent(14);
        assert_eq!((wasted.unasked(2), wasted.unasked(2)), (0, 2));
        wasted.sent(1 << 30);
        assert_eq!(wasted.unasked(UPDATES_MAX + 5), 5, "not for ever");
    }
}
