//! The checker finds what it is for, and nothing else.

use super::*;

/// Writes and reads of instance 0, at ms, and what watchers are told of it.
struct Rows {
    start: Instant,
    calls: Vec<Call>,
    told: Told,
}

impl Rows {
    /// 1,000 is set at 1, 1,001 at 2 by a call that nobody answered, 1,002 at 3.
    fn new() -> Self {
        let mut rows = Self { start: Instant::now(), calls: Vec::new(), told: Told::default() };
        rows.write(0, 10, 1_000, Answer::Done(Some(1))).told(11, 1, Some(1_000));
        rows.write(5, 20, 1_001, Answer::Unknown).told(21, 2, Some(1_001));
        rows.read(15, 30, 2, Some((1_001, 2)));
        rows.write(40, 50, 1_002, Answer::Done(Some(3))).told(51, 3, Some(1_002));
        rows.read(60, 70, 3, Some((1_002, 3)));
        rows
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn call(&mut self, from: u64, to: u64, seen: Seen) -> &mut Self {
        let (begun, ended) = (self.at(from), self.at(to));
        self.calls.push(Call { begun, ended, seen });
        self
    }

    fn write(&mut self, from: u64, to: u64, weight: u32, answer: Answer) -> &mut Self {
        let write = Write { instance: 0, weight, removes: false, answer };
        self.call(from, to, Seen::Write(write))
    }

    fn removal(&mut self, from: u64, to: u64, name: u32, answer: Answer) -> &mut Self {
        let write = Write { instance: 0, weight: name, removes: true, answer };
        self.call(from, to, Seen::Write(write))
    }

    /// The client crate's, whose last attempt began at `asked` or later.
    fn refused(&mut self, from: u64, to: u64, weight: u32, asked: u64) -> &mut Self {
        let asked = self.at(asked);
        self.write(from, to, weight, Answer::Refused { asked, alone: false })
    }

    /// The stub's.
    fn refused_once(&mut self, from: u64, to: u64, weight: u32) -> &mut Self {
        let asked = self.at(from);
        self.write(from, to, weight, Answer::Refused { asked, alone: true })
    }

    fn read(&mut self, from: u64, to: u64, revision: u64, there: Option<(u32, u64)>) -> &mut Self {
        let state = there.into_iter().map(|there| (0, there)).collect();
        self.call(from, to, Seen::Read { revision, state })
    }

    fn told(&mut self, ms: u64, revision: u64, weight: Option<u32>) -> &mut Self {
        let at = self.at(ms);
        self.told.add(revision, (0, weight), at);
        self
    }
}

type More = fn(&mut Rows);

fn find(more: More) -> Vec<String> {
    let mut rows = Rows::new();
    more(&mut rows);
    check(&rows.calls, &rows.told)
}

/// Each row is found, and by a check that says so.
fn all_are_wrong(rows: &[(&str, &str, More)]) {
    for (what, says, more) in rows {
        let found = find(*more);
        assert!(found.iter().any(|line| line.contains(says)), "{what}: {found:?}");
    }
}

fn all_are_right(rows: &[(&str, More)]) {
    for (what, more) in rows {
        assert_eq!(find(*more), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn the_checker_sees_what_is_done_twice_lost_or_out_of_order() {
    all_are_right(&[
        ("nothing more", |_| {}),
        ("an answer that comes late", |rows| {
            rows.told(75, 4, Some(1_003)).write(72, 90, 1_003, Answer::Done(None));
        }),
    ]);
    all_are_wrong(&[
        ("done twice", "a second time at 4", |rows| {
            rows.told(80, 4, Some(1_001));
        }),
        ("a stale read", "had ended before at 3", |rows| {
            rows.read(80, 90, 2, Some((1_001, 2)));
        }),
        ("a read behind what a watcher was told", "had ended before at 4", |rows| {
            rows.write(71, 99, 1_003, Answer::Unknown).told(75, 4, Some(1_003));
            rows.read(80, 90, 3, Some((1_002, 3)));
        }),
        ("an update that is lost to a read", "at 3 there was", |rows| {
            rows.read(80, 90, 3, Some((1_001, 2)));
        }),
        ("an acknowledged update that nobody sees", "stands nowhere", |rows| {
            rows.write(80, 90, 1_003, Answer::Done(None));
        }),
        ("a write before one that had ended", "had ended before at 3", |rows| {
            rows.write(80, 90, 1_002, Answer::Done(Some(3)));
        }),
        ("another's revision", "2 did (0, Some(1001))", |rows| {
            rows.write(80, 90, 1_003, Answer::Done(Some(2)));
        }),
        ("a state that never was", "3 did (0, Some(1002))", |rows| {
            rows.read(80, 90, 3, Some((1_004, 3)));
        }),
        ("two histories", "as another is told", |rows| {
            rows.told(80, 3, Some(1_001));
        }),
        (
            "a change that nobody was told",
            "nobody was told what these revisions did: [4]",
            |rows| {
                rows.write(80, 90, 1_003, Answer::Done(Some(5)));
            },
        ),
        ("a change that nobody asked for", "which no call asked for", |rows| {
            rows.told(80, 4, Some(1_003));
        }),
    ]);
}

#[test]
fn the_checker_sees_removals_that_nobody_made() {
    all_are_right(&[
        ("removed", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4))).told(75, 4, None);
            rows.read(80, 90, 4, None);
        }),
        ("may be removed", |rows| {
            rows.removal(72, 75, 1_005, Answer::Unknown).told(85, 4, None);
        }),
        ("two that may be", |rows| {
            rows.removal(72, 75, 1_005, Answer::Unknown).told(80, 4, None);
            rows.write(81, 85, 1_006, Answer::Done(Some(5)));
            rows.removal(72, 75, 1_007, Answer::Unknown).told(90, 6, None);
        }),
    ]);
    all_are_wrong(&[
        ("gone", "no call removed it", |rows| {
            rows.told(80, 4, None);
        }),
        ("gone for a reader", "at 3 there was", |rows| {
            rows.read(80, 90, 3, None);
        }),
        ("still there", "at 4 there was {}", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.read(80, 90, 4, Some((1_002, 3)));
        }),
        ("not removed at that revision", "3 did (0, Some(1002))", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(3)));
        }),
        ("two for one removal", "two calls removed it", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.removal(72, 75, 1_006, Answer::Done(Some(4)));
        }),
        ("removed twice by one call", "gone at 6: no call", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.write(76, 80, 1_006, Answer::Done(Some(5))).told(85, 6, None);
        }),
        ("gone twice, and one call may have removed it", "gone at 6: no call", |rows| {
            rows.removal(72, 75, 1_005, Answer::Unknown).told(80, 4, None);
            rows.write(81, 85, 1_006, Answer::Done(Some(5))).told(90, 6, None);
        }),
        ("by a call that began when it was gone", "gone at 4: no call", |rows| {
            rows.told(80, 4, None).removal(81, 90, 1_005, Answer::Unknown);
        }),
        ("by a call that was refused", "gone at 4: no call", |rows| {
            let answer = Answer::Refused { asked: rows.at(72), alone: true };
            rows.removal(72, 75, 1_005, answer).told(80, 4, None);
        }),
        ("by a call of long ago", "gone at 5: no call", |rows| {
            rows.removal(72, 75, 1_005, Answer::Unknown);
            rows.write(60_100, 60_110, 1_006, Answer::Done(Some(4))).told(60_120, 5, None);
        }),
        ("nobody was told of the removal", "what these revisions did: [4]", |rows| {
            rows.removal(72, 75, 1_005, Answer::Unknown);
            rows.write(80, 90, 1_006, Answer::Done(Some(5)));
        }),
    ]);
}

#[test]
fn the_checker_sees_refusals_that_are_none() {
    all_are_right(&[
        ("was not there", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.refused_once(76, 80, 1_006).refused(76, 80, 1_007, 76);
        }),
        ("may have been gone meanwhile", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.refused_once(73, 74, 1_006);
        }),
        ("a second attempt that hears what the first one met", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.write(77, 79, 1_006, Answer::Done(Some(5)));
            rows.refused(73, 90, 1_007, 85);
        }),
        ("a first attempt that comes after the second was refused", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.write(77, 79, 1_006, Answer::Done(Some(5)));
            rows.refused(72, 90, 1_007, 76).told(78, 6, Some(1_007));
        }),
    ]);
    all_are_wrong(&[
        ("the stub's only attempt, done", "refused, and stands at 6", |rows| {
            rows.removal(72, 75, 1_005, Answer::Done(Some(4)));
            rows.write(77, 79, 1_006, Answer::Done(Some(5)));
            rows.refused_once(72, 90, 1_007).told(78, 6, Some(1_007));
        }),
        ("done, as a reader saw before the last attempt", "refused, and stands at 4", |rows| {
            rows.refused(71, 99, 1_006, 90).read(80, 89, 4, Some((1_006, 4)));
        }),
        (
            "done, as a watcher was told before the last attempt",
            "refused, and stands at 4",
            |rows| {
                rows.refused(71, 99, 1_006, 90).told(89, 4, Some(1_006));
            },
        ),
        ("there all the time", "refused, and was there from 3", |rows| {
            rows.refused(71, 99, 1_006, 71);
        }),
        ("there until others had begun and ended", "refused, and was there from 3 to 3", |rows| {
            rows.refused_once(71, 75, 1_006);
            rows.write(76, 80, 1_007, Answer::Done(Some(4)));
            rows.write(81, 84, 1_008, Answer::Done(Some(5)));
            rows.removal(85, 90, 1_009, Answer::Done(Some(6)));
        }),
    ]);
}
