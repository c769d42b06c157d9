//! What one run of one workload on one peer came to: named figures, with their units.

use serde::Serialize;

use crate::load::{Latencies, Measured};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
    /// Told for context only.
    Neither,
}

/// What is told of several repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pool {
    Median,
    /// The largest: of what is a maximum or a number of faults itself, a median would hide most.
    Worst,
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) workload: &'static str,
    pub(crate) variant: String,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) pool: Pool,
    pub(crate) value: f64,
}

/// The figures of one run, as they come.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) all: Vec<Sample>,
}

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// Where figures of one variant of one workload go.
pub(crate) struct Variant<'a> {
    samples: &'a mut Samples,
    workload: &'static str,
    name: String,
}

impl Samples {
    pub(crate) fn of(&mut self, workload: &'static str, name: impl Into<String>) -> Variant<'_> {
        Variant { samples: self, workload, name: name.into() }
    }
}

impl Variant<'_> {
    pub(crate) fn add(
        &mut self,
        metric: &'static str,
        unit: &'static str,
        better: Better,
        value: f64,
    ) {
        self.push(metric, unit, better, Pool::Median, value);
    }

    /// Of all repetitions, the largest is told.
    pub(crate) fn worst(
        &mut self,
        metric: &'static str,
        unit: &'static str,
        better: Better,
        value: f64,
    ) {
        self.push(metric, unit, better, Pool::Worst, value);
    }

    fn push(
        &mut self,
        metric: &'static str,
        unit: &'static str,
        better: Better,
        pool: Pool,
        value: f64,
    ) {
        let (workload, variant) = (self.workload, self.name.clone());
        self.samples.all.push(Sample { workload, variant, metric, unit, better, pool, value });
    }

    /// Rate, latencies and processor times of a phase. `rate` names what was done, per second.
    pub(crate) fn phase(&mut self, rate: &'static str, measured: &Measured) {
        self.add(rate, "1/s", Better::Higher, measured.per_second());
        self.latencies(&measured.latencies);
        self.cpu(measured);
    }

    pub(crate) fn latencies(&mut self, latencies: &Latencies) {
        for (metric, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let value = latencies.value_at_quantile(quantile) as f64 / 1000.0;
            self.add(metric, "ms", Better::Lower, value);
        }
    }

    fn cpu(&mut self, measured: &Measured) {
        let each = |time: f64| time * 1e6 / measured.operations as f64;
        let servers = measured.cpu.servers.iter().map(|time| time.as_secs_f64());
        self.add("server cpu each", "us", Better::Lower, each(servers.clone().sum()));
        self.add("busiest server cpu each", "us", Better::Lower, each(servers.fold(0.0, f64::max)));
        let client = measured.cpu.client.as_secs_f64();
        self.add("client cpu each", "us", Better::Neither, each(client));
        let share = client / measured.elapsed.as_secs_f64() * 100.0;
        self.add("client cpu", "% of a core", Better::Neither, share);
    }
}
