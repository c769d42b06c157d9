//! For how long reads wait.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn wait(text: &str) -> Option<Duration> {
    let mut query = Query::parse(text).unwrap();
    let wanted = wanted(&mut query).unwrap();
    query.done().unwrap();
    wanted.map(|wanted| wanted.wait)
}

/// Five minutes unless it says, ten at most.
#[test]
fn a_read_waits_as_long_as_it_says_and_up_to_a_sixteenth_longer() {
    assert_eq!(wait("wait=5m"), None, "for nothing");
    assert_eq!(wait("index=0&wait=0s"), Some(Duration::ZERO));
    for (text, least) in [
        ("index=7", 5 * MINUTE),
        ("index=7&wait=90s", MINUTE * 3 / 2),
        ("index=00000000000000ff-7&wait=10m", 10 * MINUTE),
        ("index=7&wait=11m", 10 * MINUTE),
        ("index=7&wait=999999999h", 10 * MINUTE),
    ] {
        let mut found = (0..100).map(|_| wait(text).unwrap()).collect::<Vec<_>>();
        found.sort();
        let (first, last) = (found[0], found[99]);
        assert!(first >= least && last <= least + least / 16, "{text}: {first:?} to {last:?}");
        assert!(last - first > least / 64, "those that begin together: {first:?} to {last:?}");
    }
    for (asked, least, most) in [
        (8 * MINUTE, 8 * MINUTE, Duration::from_secs(510)),
        (60 * MINUTE, 10 * MINUTE, Duration::from_millis(637_500)),
    ] {
        assert_eq!([bounded(asked, 0), bounded(asked, u64::MAX)], [least, most], "{asked:?}");
    }
    for bad in ["index=x", "index=7&wait=x", "index=7&wait=1w", "index=7&index=8"] {
        assert!(wanted(&mut Query::parse(bad).unwrap()).is_err(), "{bad}");
    }
}
