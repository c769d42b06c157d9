//! From samples to rows: medians over the repetitions (or the worst of them), ratios, their spread,
//! and whether what is wanted is met.

use serde::Serialize;

use crate::ceiling::Limit;
use crate::sample::{Better, Pool, Sample};
use crate::targets::{self, Bound};
use crate::wire::Peer;

/// Whether what is wanted is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// Some repetitions say this, some that.
    Open,
}

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) variant: String,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// How one figure is made of those of all repetitions.
    pub(crate) pool: Pool,
    pub(crate) ours: Option<f64>,
    pub(crate) theirs: Option<f64>,
    /// How many times better ours is: for times, costs and sizes theirs divided by ours.
    pub(crate) ratio: Option<f64>,
    /// What the ratio should be at least.
    pub(crate) at_least: Option<f64>,
    pub(crate) ours_at_least: Option<f64>,
    pub(crate) ours_at_most: Option<f64>,
    /// None: nothing is wanted, or a figure that it needs is not there.
    pub(crate) verdict: Option<Verdict>,
    /// Which limit of the machine it is to be seen against, and the share of it that is reached.
    pub(crate) limit: Option<&'static str>,
    pub(crate) of_limit: Option<f64>,
    /// One figure a repetition; fewer where one gave none.
    pub(crate) ours_all: Vec<f64>,
    pub(crate) theirs_all: Vec<f64>,
    /// One ratio a repetition; none where one of both gave no figure.
    pub(crate) ratio_all: Vec<f64>,
    pub(crate) repetitions: usize,
}

impl Row {
    /// Something is wanted of it.
    pub(crate) fn has_bound(&self) -> bool {
        self.at_least.or(self.ours_at_least).or(self.ours_at_most).is_some()
    }

    /// How many repetitions gave all that there is in others, where some did not.
    pub(crate) fn incomplete(&self) -> Option<usize> {
        let theirs = Some(self.theirs_all.len()).filter(|count| *count > 0);
        let least = self.ours_all.len().min(theirs.unwrap_or(usize::MAX));
        (least < self.repetitions).then_some(least)
    }
}

/// "12 of 20 are met, 2 open, ...": of all rows of which something is wanted.
pub(crate) fn counted(rows: &[Row]) -> String {
    let wanted = || rows.iter().filter(|row| row.has_bound());
    let of = |verdict: Option<Verdict>| wanted().filter(|row| row.verdict == verdict).count();
    format!(
        "{} of {} are met, {} open, {} missed, {} not judged",
        of(Some(Verdict::Met)),
        wanted().count(),
        of(Some(Verdict::Open)),
        of(Some(Verdict::Missed)),
        of(None)
    )
}

/// Rows in the order in which their figures first came.
pub(crate) fn rows(samples: &[(Peer, Sample)], repetitions: u32, limits: &[Limit]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (peer, sample) in samples {
        let same = |row: &&mut Row| {
            (row.workload, row.variant.as_str(), row.metric)
                == (sample.workload, sample.variant.as_str(), sample.metric)
        };
        let row = match rows.iter_mut().find(same) {
            Some(row) => row,
            None => {
                rows.push(empty(sample, repetitions as usize));
                rows.last_mut().expect("invariant: one was just added")
            }
        };
        match peer {
            Peer::Quorate => row.ours_all.push(sample.value),
            Peer::Etcd | Peer::Plain => row.theirs_all.push(sample.value),
        }
    }
    let is_plain = samples.iter().any(|(peer, _)| *peer == Peer::Plain);
    rows.iter_mut().for_each(|row| conclude(row, is_plain, limits));
    rows
}

fn empty(sample: &Sample, repetitions: usize) -> Row {
    Row {
        workload: sample.workload,
        variant: sample.variant.clone(),
        metric: sample.metric,
        unit: sample.unit,
        better: sample.better,
        pool: sample.pool,
        ours: None,
        theirs: None,
        ratio: None,
        at_least: None,
        ours_at_least: None,
        ours_at_most: None,
        verdict: None,
        limit: None,
        of_limit: None,
        ours_all: Vec::new(),
        theirs_all: Vec::new(),
        ratio_all: Vec::new(),
        repetitions,
    }
}

fn conclude(row: &mut Row, is_plain: bool, limits: &[Limit]) {
    row.ours = pooled(row.pool, &row.ours_all);
    row.theirs = pooled(row.pool, &row.theirs_all);
    let ratio = |ours, theirs| ratio(row.better, ours, theirs);
    row.ratio = row.ours.zip(row.theirs).and_then(|(ours, theirs)| ratio(ours, theirs));
    let pairs = row.ours_all.iter().zip(&row.theirs_all);
    let ratios: Option<Vec<f64>> = pairs.map(|(ours, theirs)| ratio(*ours, *theirs)).collect();
    // Of incomplete ones it is not known which belong together.
    row.ratio_all = ratios.filter(|_| row.incomplete().is_none()).unwrap_or_default();
    let bound = targets::bound(is_plain, row.workload, &row.variant, row.metric);
    match bound {
        Some(Bound::Times(times)) => row.at_least = Some(times),
        Some(Bound::AtLeast(least)) => row.ours_at_least = Some(least),
        Some(Bound::AtMost(most)) => row.ours_at_most = Some(most),
        None => {}
    }
    row.verdict = bound.filter(|_| row.incomplete().is_none()).and_then(|bound| judge(row, bound));
    row.limit = targets::limit(row.workload, &row.variant, row.metric);
    let limit = limits.iter().find(|limit| Some(limit.what.as_str()) == row.limit);
    row.of_limit = limit.and_then(|limit| Some(row.ours? / limit.per_second));
}

/// How many times better ours is.
fn ratio(better: Better, ours: f64, theirs: f64) -> Option<f64> {
    match better {
        Better::Higher if theirs != 0.0 => Some(ours / theirs),
        Better::Lower if ours != 0.0 => Some(theirs / ours),
        _ => None,
    }
}

fn judge(row: &Row, bound: Bound) -> Option<Verdict> {
    let (pooled, all) = match bound {
        Bound::Times(_) => (row.ratio?, &row.ratio_all),
        Bound::AtLeast(_) | Bound::AtMost(_) => (row.ours?, &row.ours_all),
    };
    let fits = |value: f64| match bound {
        Bound::Times(bound) | Bound::AtLeast(bound) => value >= bound,
        Bound::AtMost(bound) => value <= bound,
    };
    // Where the worst is told, the worst decides.
    let agreed = row.pool == Pool::Worst || all.iter().all(|value| fits(*value) == fits(pooled));
    Some(match fits(pooled) {
        _ if !agreed => Verdict::Open,
        true => Verdict::Met,
        false => Verdict::Missed,
    })
}

fn pooled(pool: Pool, values: &[f64]) -> Option<f64> {
    match pool {
        Pool::Median => median(values),
        Pool::Worst => values.iter().copied().max_by(f64::total_cmp),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even % 2 == 0 => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(metric: &'static str, better: Better, value: f64) -> Sample {
        let variant = "1 in flight".to_owned();
        Sample { workload: "W1", variant, metric, unit: "", better, pool: Pool::Median, value }
    }

    /// The row of a figure, with these values of ours and of theirs.
    fn row(sample: &Sample, ours: &[f64], theirs: &[f64], repetitions: u32) -> Row {
        let with = |peer, value: &f64| (peer, Sample { value: *value, ..sample.clone() });
        let ours = ours.iter().map(|value| with(Peer::Quorate, value));
        let theirs = theirs.iter().map(|value| with(Peer::Etcd, value));
        let samples: Vec<_> = ours.chain(theirs).collect();
        rows(&samples, repetitions, &[]).remove(0)
    }

    #[test]
    fn rows_have_medians_and_ratios_that_say_how_much_better_ours_is() {
        let rate = sample("registrations", Better::Higher, 0.0);
        let found = row(&rate, &[3500.0, 100.0, 9000.0], &[1000.0, 10.0, 1000.0], 3);
        assert_eq!((found.ours, found.theirs), (Some(3500.0), Some(1000.0)));
        assert_eq!((found.ratio, found.verdict), (Some(3.5), Some(Verdict::Met)));
        assert_eq!(found.ratio_all, [3.5, 10.0, 9.0]);
        let time = sample("p50", Better::Lower, 0.0);
        let found = row(&time, &[0.7], &[1.4], 1);
        assert_eq!((found.ratio, found.verdict), (Some(2.0), Some(Verdict::Missed)));
        let found = row(&sample("p99", Better::Lower, 0.0), &[0.0], &[], 1);
        assert_eq!((found.ours, found.ratio, found.verdict), (Some(0.0), None, None));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn what_only_some_repetitions_say_is_open() {
        let rate = sample("registrations", Better::Higher, 0.0);
        for (ours, verdict) in [
            ([29.0, 31.0, 32.0], Verdict::Open),
            ([28.0, 29.0, 31.0], Verdict::Open),
            ([30.0, 31.0, 32.0], Verdict::Met),
            ([10.0, 20.0, 29.0], Verdict::Missed),
        ] {
            let found = row(&rate, &ours, &[10.0; 3], 3);
            assert_eq!(found.verdict, Some(verdict), "{ours:?}");
        }
    }

    #[test]
    fn of_maxima_and_faults_the_worst_repetition_is_told() {
        let worst = |metric| Sample {
            workload: "W2b",
            pool: Pool::Worst,
            ..sample(metric, Better::Neither, 0.0)
        };
        let found = row(&worst("false expiries"), &[0.0, 0.0, 5000.0], &[], 3);
        assert_eq!((found.ours, found.verdict), (Some(5000.0), Some(Verdict::Missed)));
    }

    #[test]
    fn what_is_not_there_in_every_repetition_is_not_judged() {
        let rate = sample("registrations", Better::Higher, 0.0);
        for (ours, theirs) in [(&[50.0, 51.0][..], &[1.0; 3][..]), (&[50.0; 3], &[1.0; 2])] {
            let found = row(&rate, ours, theirs, 3);
            assert_eq!((found.incomplete(), found.verdict), (Some(2), None));
        }
        let alone = row(&rate, &[1.0], &[], 1);
        assert_eq!((alone.at_least, alone.incomplete(), alone.verdict), (Some(3.0), None, None));
        assert_eq!(counted(&[alone]), "0 of 1 are met, 0 open, 0 missed, 1 not judged");
    }
}
