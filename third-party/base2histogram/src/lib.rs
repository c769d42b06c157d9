//! Stands in for the crate of this name, for openraft alone, and keeps nothing.
//!
//! openraft fills histograms with statistics of its own work, which can only be read with its
//! feature `runtime-stats`; Quorate builds without it. The real crate (0.2.3) makes lookup tables
//! for sixteen widths at the first use, 26 MiB in every node, of which openraft uses the third.
//! This has what openraft calls, and nothing behind it. When the real one makes its tables as they
//! are needed, delete this directory and its line under `[patch.crates-io]`.

use std::fmt;
use std::marker::PhantomData;

/// Takes values and forgets them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Forgets the value.
    pub fn record(&mut self, _value: u64) {}

    /// Forgets the value.
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// How many values are kept: none.
    pub fn total(&self) -> u64 {
        0
    }

    /// What nothing amounts to.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

/// Percentiles of the values in a histogram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values.
    pub samples: u64,
    /// The least value that 0.1 % of them do not exceed, and so on.
    pub p0_1: u64,
    /// 1 %
    pub p1: u64,
    /// 5 %
    pub p5: u64,
    /// 10 %
    pub p10: u64,
    /// 50 %
    pub p50: u64,
    /// 90 %
    pub p90: u64,
    /// 99 %
    pub p99: u64,
    /// 99.9 %
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not kept")
    }
}

/// A picture of histograms.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// An empty one.
    pub fn new() -> Self {
        Self
    }

    /// The same: there is nothing to add.
    #[must_use]
    pub fn add(self, _name: impl Into<String>, _histogram: Histogram) -> Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not kept")
    }
}
