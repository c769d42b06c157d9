//! From probes to a health: one check by its thresholds, one instance by its checks.

use quorate_state::{Health, HealthCheck};

/// What one check has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Undecided,
    Passing,
    Failing,
    /// It may not be made: its target is in none of the allowed networks (any more).
    Barred,
}

/// One check's verdict, and how many of its last probes in a row were good or bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streak {
    pub(super) verdict: Verdict,
    good: u32,
    bad: u32,
}

impl Streak {
    /// Where a prober begins that only knows what the `checks` checks of the instance said
    /// together.
    pub(super) fn from_health(health: Health, checks: usize) -> Self {
        let verdict = match health {
            Health::Passing => Verdict::Passing,
            Health::Critical if checks == 1 => Verdict::Failing,
            Health::Critical | Health::Unknown => Verdict::Undecided,
        };
        Self { verdict, good: 0, bad: 0 }
    }

    /// A probe was not allowed: what those before it found together says nothing of now.
    pub(super) fn bar(&mut self) {
        self.verdict = Verdict::Barred;
    }

    /// One more probe.
    pub(super) fn note(&mut self, passed: bool, check: &HealthCheck) {
        match passed {
            true => (self.good, self.bad) = (self.good.saturating_add(1), 0),
            false => (self.good, self.bad) = (0, self.bad.saturating_add(1)),
        }
        if self.good >= check.successes_before_passing {
            self.verdict = Verdict::Passing;
        } else if self.bad >= check.failures_before_critical {
            self.verdict = Verdict::Failing;
        }
    }
}

/// What the checks of an instance say together; `known` where they say nothing yet. With one that
/// may not be made, and none that fails, nothing is known: what was may have been of that one.
pub(super) fn health(checks: impl Iterator<Item = Verdict>, known: Health) -> Health {
    let (mut undecided, mut barred) = (false, false);
    for verdict in checks {
        match verdict {
            Verdict::Failing => return Health::Critical,
            Verdict::Undecided => undecided = true,
            Verdict::Barred => barred = true,
            Verdict::Passing => {}
        }
    }
    match (undecided, barred) {
        (true, _) => known,
        (false, true) => Health::Unknown,
        (false, false) => Health::Passing,
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::CheckKind;

    use super::*;

    /// One letter a probe (`+` good, `-` bad), and what is known after it: `u`, `p` or `c`.
    #[track_caller]
    fn check(known: Health, (failures, successes): (u32, u32), probes: &str, expected: &str) {
        let check = HealthCheck {
            kind: CheckKind::Tcp,
            endpoint: "e".into(),
            interval_ms: 1_000,
            timeout_ms: 1_000,
            failures_before_critical: failures,
            successes_before_passing: successes,
        };
        let mut streak = Streak::from_health(known, 1);
        let found = probes.chars().scan(known, |known, probe| {
            streak.note(probe == '+', &check);
            *known = health([streak.verdict].into_iter(), *known);
            Some(match known {
                Health::Unknown => 'u',
                Health::Passing => 'p',
                Health::Critical => 'c',
            })
        });
        assert_eq!(found.collect::<String>(), expected, "after {probes}");
    }

    // S4.4, S4.5
    #[test]
    fn thresholds_count_probes_in_a_row() {
        check(Health::Passing, (3, 1), "--+--+---", "ppppppppc");
        check(Health::Critical, (3, 2), "+-++-", "cccpp");
        check(Health::Critical, (3, 1), "+", "p");
        check(Health::Passing, (1, 1), "-+", "cp");
        check(Health::Unknown, (3, 1), "--+", "uup");
        check(Health::Unknown, (3, 2), "+-++", "uuup");
        check(Health::Unknown, (2, 1), "--", "uc");
    }

    #[test]
    fn one_failing_check_is_enough_and_all_must_pass() {
        use Verdict::{Barred, Failing, Passing, Undecided};
        for (checks, known, expected) in [
            ([Passing, Failing], Health::Passing, Health::Critical),
            ([Undecided, Failing], Health::Unknown, Health::Critical),
            ([Passing, Undecided], Health::Unknown, Health::Unknown),
            ([Passing, Undecided], Health::Critical, Health::Critical),
            ([Passing, Passing], Health::Critical, Health::Passing),
            ([Barred, Passing], Health::Critical, Health::Unknown),
            ([Barred, Failing], Health::Unknown, Health::Critical),
            ([Barred, Undecided], Health::Critical, Health::Critical),
        ] {
            assert_eq!(health(checks.into_iter(), known), expected, "{checks:?}, {known:?}");
        }
    }

    #[test]
    fn of_several_checks_nobody_knows_which_one_failed() {
        assert_eq!(Streak::from_health(Health::Critical, 2).verdict, Verdict::Undecided);
        assert_eq!(Streak::from_health(Health::Critical, 1).verdict, Verdict::Failing);
    }
}
