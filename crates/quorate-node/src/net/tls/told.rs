//! What the log is told of TLS beside its files: handshakes that were refused, a certificate of
//! this node's own that ends, and revocation lists that are overdue.

use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use rustls::InvalidMessage;
use tokio::time::Instant;

use crate::net::tls::der::Lifetime;
use crate::wall::Seconds;

/// Refused handshakes are logged at most this often; what was left out is counted.
const REFUSED_EVERY: Duration = Duration::from_secs(1);

/// An end that is near is said this often ...
const END_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// ... and once more whenever it has come as near as this, days.
const NEAR: [u64; 3] = [1, 7, 30];

const DAY: Seconds = 24 * 60 * 60;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Told {
    refused: Mutex<Refused>,
    end: Mutex<Option<(Instant, u64)>>,
    overdue: Mutex<Option<(Instant, Vec<String>)>>,
}

#[derive(Debug, Default)]
struct Refused {
    count: u64,
    told: Option<Instant>,
    left_out: u64,
}

impl Told {
    /// Why it was refused; `None`: the other end broke it off.
    pub(super) fn handshake_failed(
        &self,
        from: Option<IpAddr>,
        error: &io::Error,
    ) -> Option<String> {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, UnexpectedEof};
        // Load balancers look whether a port is open.
        if let UnexpectedEof | ConnectionReset | ConnectionAborted = error.kind() {
            tracing::debug!(?from, %error, "a connection ended before its TLS handshake did");
            return None;
        }
        let held = error.get_ref().and_then(|held| held.downcast_ref::<rustls::Error>());
        let why = match held {
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                "it does not speak TLS, and this port takes nothing else".to_owned()
            }
            _ => error.to_string(),
        };
        self.refused(from, &why);
        Some(why)
    }

    pub(super) fn handshakes_refused(&self) -> u64 {
        self.refused.lock().expect("invariant: nothing panics under this lock").count
    }

    pub(super) fn refused(&self, from: Option<IpAddr>, why: &dyn Display) {
        let mut refused = self.refused.lock().expect("invariant: nothing panics under this lock");
        refused.count += 1;
        if refused.told.is_some_and(|told| told.elapsed() < REFUSED_EVERY) {
            refused.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut refused.left_out);
        refused.told = Some(Instant::now());
        let from = from.map(|from| from.to_string());
        tracing::warn!(from, %why, left_out, "a TLS handshake was refused");
    }

    /// Says, if it is time, that this node's certificate ends.
    pub(super) fn end(&self, of: Lifetime, now: Seconds) {
        let Some(near) = near(of, now) else { return };
        let mut end = self.end.lock().expect("invariant: nothing panics under this lock");
        if end.is_some_and(|(told, before)| told.elapsed() < END_EVERY && before == near) {
            return;
        }
        *end = Some((Instant::now(), near));
        drop(end);
        let left = Duration::from_secs(of.not_after.saturating_sub(now));
        let (days, hours) = (left.as_secs() / DAY, left.as_secs() % DAY / 3_600);
        match near {
            0 => tracing::error!(
                "this node's certificate has ended: nobody takes it; put another in its place"
            ),
            _ => tracing::warn!(
                days,
                hours,
                "this node's certificate ends soon: put another in its place"
            ),
        }
    }

    /// Says, if it is time, whose revocation lists are overdue.
    pub(super) fn overdue(&self, of: Vec<String>) {
        let mut overdue = self.overdue.lock().expect("invariant: nothing panics under this lock");
        let told =
            overdue.as_ref().is_some_and(|(at, before)| at.elapsed() < END_EVERY && *before == of);
        if of.is_empty() {
            *overdue = None;
        } else if !told {
            tracing::warn!(
                ?of,
                "revocation lists are overdue, and stay in use: put the newest of these authorities in their place"
            );
            *overdue = Some((Instant::now(), of));
        }
    }
}

/// How near the end is: within this many days, 0 where it has come. A certificate of which most is
/// left is not near its end, however short it is.
fn near(Lifetime { not_before, not_after }: Lifetime, now: Seconds) -> Option<u64> {
    let left = not_after.saturating_sub(now);
    if left == 0 {
        return Some(0);
    }
    let is_short = left > not_after.saturating_sub(not_before) / 3;
    NEAR.into_iter().find(|days| left <= days * DAY).filter(|_| !is_short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_near_in_steps() {
        let year = Lifetime { not_before: 0, not_after: 365 * DAY };
        let hour = Lifetime { not_before: 0, not_after: 3_600 };
        for (of, now, expected) in [
            (year, 0, None),
            (year, 335 * DAY - 1, None),
            (year, 335 * DAY, Some(30)),
            (year, 358 * DAY, Some(7)),
            (year, 364 * DAY, Some(1)),
            (year, 365 * DAY, Some(0)),
            (year, 400 * DAY, Some(0)),
            (hour, 10, None),
            (hour, 3_000, Some(1)),
        ] {
            assert_eq!(near(of, now), expected, "{of:?} at {now}");
        }
    }
}
