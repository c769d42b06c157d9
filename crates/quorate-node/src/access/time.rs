//! The wall clock, which says when credentials end. Nothing else in this node follows it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Since 1970, UTC.
pub(crate) type Seconds = u64;

pub(crate) fn now() -> Seconds {
    #[expect(
        clippy::disallowed_methods,
        reason = "credentials name their end by the wall clock; no command carries it"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
}
