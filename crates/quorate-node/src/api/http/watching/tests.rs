//! For how long reads wait, and streams for their readers.

use quorate_proto::v1::{Service, WatchSnapshot};

use super::*;
use crate::server::Bound;

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

/// As `min_revision` and `from` are taken.
#[test]
fn a_position_that_names_no_cluster_is_of_this_one() {
    let of = |text| of_cluster(query::position("index", text).unwrap(), 255);
    let here = query::Position { cluster_id: 255, revision: 17 };
    assert_eq!([of("17"), of("00000000000000ff-17")], [Some(here); 2]);
    let before_all = query::Position { revision: 0, ..here };
    assert_eq!(of("00000000000000ff-0"), Some(before_all));
    assert_eq!([of("0"), of("00000000000000fe-17")], [None; 2], "answered at once");
}

/// Else all streams of a node that stopped come to the next one at once.
#[test]
fn streams_end_for_browsers_at_times_of_their_own() {
    for (random, first) in [
        (0, "retry: 1000\n: bookmark_ms 5000\n\n"),
        (u64::MAX / 2, "retry: 3000\n: bookmark_ms 5000\n\n"),
        (u64::MAX, "retry: 5000\n: bookmark_ms 5000\n\n"),
    ] {
        assert_eq!(begun(random, Duration::from_secs(5)), first);
    }
}

/// It had the deadline of a call: a reader of 200 kbit/s was cut off within its snapshot, and began
/// with it again, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_event_has_a_minute_to_be_taken() {
    let dir = tempfile::tempdir().unwrap();
    let bound = Bound::waiting(dir.path()).await;
    let (api, line) = (Api::of(bound.node().clone()), Line::of(&http::Extensions::new()));
    let long = api.long().unwrap();
    let answers = stream::empty::<Result<EncodedWatchResponse, Status>>();
    let (cluster_id, leader) = (7, None);
    let mut following =
        Following { api, line: line.clone(), answers, cluster_id, leader, _long: long };
    let services = vec![Service { name: "x".repeat(4 * SMALL), ..Service::default() }];
    let snapshot = WatchSnapshot { reset: false, last: true, services };
    let kind = Some(Kind::Snapshot(snapshot));
    let answer = EncodedWatchResponse { revision: 7, kind, ..EncodedWatchResponse::default() };
    let begun = Instant::now();
    let event = following.event(answer).await.unwrap();
    let is_overdue = |at| line.answers().is_overdue(at);
    assert!(!is_overdue(begun + MINUTE), "it may be under way for so long");
    assert!(is_overdue(Instant::now() + 2 * MINUTE), "and no longer");
    drop(event);
    assert!(!is_overdue(Instant::now() + 2 * MINUTE), "it was taken");
}
