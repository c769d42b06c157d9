//! The wall clock, which this crate reads here and nowhere else, and the calendar. It says when
//! credentials and certificates end, how high an incarnation may be, and when something was, for
//! people. No command carries it, and registry time does not follow it (`clock.rs`).

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since 1970, UTC.
pub(crate) type Seconds = u64;

thread_local! {
    static SIMULATED: Cell<Option<fn() -> Duration>> = const { Cell::new(None) };
}

/// From now on, this is the wall clock of all nodes on this thread: the time since 1970. For
/// simulations.
pub fn set_wall_clock_of_this_thread(since_1970: fn() -> Duration) {
    SIMULATED.set(Some(since_1970));
}

pub(crate) fn now() -> Seconds {
    since_1970().as_secs()
}

/// The time as in RFC 3339, in UTC.
pub(crate) fn stamp() -> String {
    format(since_1970())
}

pub(crate) fn since_1970() -> Duration {
    if let Some(since_1970) = SIMULATED.get() {
        return since_1970();
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "what is outside this cluster follows it: credentials, people, clients' incarnations"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A time as in RFC 3339, in UTC.
pub(crate) fn format(since_1970: Duration) -> String {
    let (seconds, ms) = (since_1970.as_secs(), since_1970.subsec_millis());
    let (day, of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
    // At most a few years too early.
    let mut year = 1970 + day / 366;
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    let month = (1..=12).rfind(|month| days(year, *month, 1) <= day).unwrap_or(1);
    let date = day - days(year, month, 1) + 1;
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A time as in RFC 3339, with its offset.
pub(crate) fn parse(text: &str) -> Option<Seconds> {
    let toml::value::Datetime { date, time, offset } = text.parse().ok()?;
    let (date, time) = (date?, time?);
    let offset_minutes = match offset? {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let of_day = i64::from(time.hour) * 3_600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0));
    let days = days(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    u64::try_from(days * 86_400 + of_day - offset_minutes * 60).ok()
}

/// From 1970-01-01 to a day of the Gregorian calendar, whose years are taken to begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_offset() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2027-01-01T00:00:00Z", Some(1_798_761_600)),
            ("2024-02-29T12:30:15Z", Some(1_709_209_815)),
            ("2024-03-01T00:00:00+01:00", Some(1_709_247_600)),
            ("2027-01-01T00:00:00", None),
            ("2027-01-01", None),
            ("2027-02-30T00:00:00Z", None),
            ("1969-12-31T00:00:00Z", None),
            ("tomorrow", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_simulation_sets_it_for_its_thread() {
        let simulated = std::thread::spawn(|| {
            set_wall_clock_of_this_thread(|| Duration::from_millis(1_709_209_815_007));
            (now(), stamp())
        });
        let expected = (1_709_209_815, "2024-02-29T12:30:15.007Z".to_owned());
        assert_eq!(simulated.join().unwrap(), expected);
        assert!(now() > 1_767_225_600, "another thread has the real one");
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        assert_eq!(format(Duration::from_millis(1_709_209_815_007)), "2024-02-29T12:30:15.007Z");
        for day in 0..200_000 {
            let seconds = day * 86_400 + 86_399;
            assert_eq!(parse(&format(Duration::from_secs(seconds))), Some(seconds), "{day}");
        }
    }
}
