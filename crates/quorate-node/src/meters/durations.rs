//! A histogram whose counts come from elsewhere: the log store knows nothing of this node's
//! instruments.

use std::fmt;
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// As it was counted last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durations(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    sum: f64,
    count: u64,
    buckets: Vec<(f64, u64)>,
}

impl Durations {
    /// The sum in seconds, and how many were at most so long and longer than the bound before.
    pub(crate) fn set(&self, sum: f64, buckets: impl Iterator<Item = (f64, u64)>) {
        let buckets: Vec<_> = buckets.collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        *self.0.lock().expect("invariant: nothing panics under this lock") =
            Counted { sum, count, buckets };
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let counted = self.0.lock().expect("invariant: nothing panics under this lock");
        let Counted { sum, count, buckets } = &*counted;
        encoder.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
