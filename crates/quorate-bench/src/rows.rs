//! From samples to rows: medians over the repetitions, ratios, and whether what is wanted is met.

use serde::Serialize;

use crate::ceiling::Limit;
use crate::sample::{Better, Sample};
use crate::targets::{self, Bound};
use crate::wire::Peer;

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    pub(crate) variant: String,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// The median over the repetitions.
    pub(crate) ours: Option<f64>,
    pub(crate) theirs: Option<f64>,
    /// How many times better ours is: for times, costs and sizes theirs divided by ours.
    pub(crate) ratio: Option<f64>,
    /// What the ratio should be at least.
    pub(crate) at_least: Option<f64>,
    pub(crate) ours_at_least: Option<f64>,
    pub(crate) ours_at_most: Option<f64>,
    /// None: nothing is wanted, or the peer's figure that it needs is not there.
    pub(crate) met: Option<bool>,
    /// Which limit of the machine it is to be seen against, and the share of it that is reached.
    pub(crate) limit: Option<&'static str>,
    pub(crate) of_limit: Option<f64>,
    /// One figure a repetition.
    pub(crate) ours_all: Vec<f64>,
    pub(crate) theirs_all: Vec<f64>,
}

impl Row {
    /// Something is wanted of it.
    pub(crate) fn has_bound(&self) -> bool {
        self.at_least.or(self.ours_at_least).or(self.ours_at_most).is_some()
    }
}

/// Rows in the order in which their figures first came.
pub(crate) fn rows(samples: &[(Peer, Sample)], limits: &[Limit]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (peer, sample) in samples {
        let same = |row: &&mut Row| {
            (row.workload, row.variant.as_str(), row.metric)
                == (sample.workload, sample.variant.as_str(), sample.metric)
        };
        let row = match rows.iter_mut().find(same) {
            Some(row) => row,
            None => {
                rows.push(empty(sample));
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

fn empty(sample: &Sample) -> Row {
    Row {
        workload: sample.workload,
        variant: sample.variant.clone(),
        metric: sample.metric,
        unit: sample.unit,
        better: sample.better,
        ours: None,
        theirs: None,
        ratio: None,
        at_least: None,
        ours_at_least: None,
        ours_at_most: None,
        met: None,
        limit: None,
        of_limit: None,
        ours_all: Vec::new(),
        theirs_all: Vec::new(),
    }
}

fn conclude(row: &mut Row, is_plain: bool, limits: &[Limit]) {
    row.ours = median(&row.ours_all);
    row.theirs = median(&row.theirs_all);
    row.ratio = match (row.ours, row.theirs, row.better) {
        (Some(ours), Some(theirs), Better::Higher) if theirs != 0.0 => Some(ours / theirs),
        (Some(ours), Some(theirs), Better::Lower) if ours != 0.0 => Some(theirs / ours),
        _ => None,
    };
    match targets::bound(is_plain, row.workload, &row.variant, row.metric) {
        Some(Bound::Times(times)) => {
            row.at_least = Some(times);
            row.met = row.ratio.map(|ratio| ratio >= times);
        }
        Some(Bound::AtLeast(bound)) => {
            row.ours_at_least = Some(bound);
            row.met = row.ours.map(|ours| ours >= bound);
        }
        Some(Bound::AtMost(bound)) => {
            row.ours_at_most = Some(bound);
            row.met = row.ours.map(|ours| ours <= bound);
        }
        None => {}
    }
    row.limit = targets::limit(row.workload, &row.variant, row.metric);
    let limit = limits.iter().find(|limit| Some(limit.what.as_str()) == row.limit);
    row.of_limit = limit.and_then(|limit| Some(row.ours? / limit.per_second));
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
        Sample { workload: "W1", variant, metric, unit: "", better, value }
    }

    #[test]
    fn rows_have_medians_and_ratios_that_say_how_much_better_ours_is() {
        let samples = [
            (Peer::Quorate, sample("registrations", Better::Higher, 3500.0)),
            (Peer::Etcd, sample("registrations", Better::Higher, 1000.0)),
            (Peer::Quorate, sample("registrations", Better::Higher, 100.0)),
            (Peer::Quorate, sample("registrations", Better::Higher, 9000.0)),
            (Peer::Quorate, sample("p50", Better::Lower, 0.7)),
            (Peer::Etcd, sample("p50", Better::Lower, 1.4)),
            (Peer::Quorate, sample("p99", Better::Lower, 0.0)),
        ];
        let rows = rows(&samples, &[]);
        let figures: Vec<_> =
            rows.iter().map(|row| (row.metric, row.ours, row.theirs, row.ratio, row.met)).collect();
        assert_eq!(
            figures,
            [
                ("registrations", Some(3500.0), Some(1000.0), Some(3.5), Some(true)),
                ("p50", Some(0.7), Some(1.4), Some(2.0), Some(false)),
                ("p99", Some(0.0), None, None, None),
            ]
        );
    }

    #[test]
    fn a_ratio_that_is_wanted_but_has_no_peer_is_neither_met_nor_missed() {
        let rows = rows(&[(Peer::Quorate, sample("registrations", Better::Higher, 1.0))], &[]);
        assert_eq!((rows[0].at_least, rows[0].met), (Some(3.0), None));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
