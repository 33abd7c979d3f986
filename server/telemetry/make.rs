//! Makes metrics of one name space and puts them into a registry.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Makes metrics and puts them into the registry. Names and labels are constants: a mistake in one
/// shows at the first start, in every test.
pub(super) struct Make(pub(super) Registry);

impl Make {
    pub(super) fn keep<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("metric names and labels are constants");
        self.0.register(Box::new(metric.clone())).expect("each metric is made once");
        metric
    }

    pub(super) fn name(name: &str) -> String {
        format!("sandglass_{name}")
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(Self::name(name), help))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(Self::name(name), help))
    }

    /// A gauge that need not be whole.
    pub(super) fn measure(&self, name: &str, help: &str) -> Gauge {
        self.keep(Gauge::new(Self::name(name), help))
    }

    pub(super) fn counters<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl AsRef<[&'a str]>,
    ) -> IntCounterVec {
        let metric = self.keep(IntCounterVec::new(Opts::new(Self::name(name), help), &[label]));
        values.as_ref().iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }

    pub(super) fn seconds(&self, name: &str, help: &str, label: &str, values: &[&str]) -> CounterVec {
        let metric = self.keep(CounterVec::new(Opts::new(Self::name(name), help), &[label]));
        values.iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }

    pub(super) fn gauges(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntGaugeVec {
        let metric = self.keep(IntGaugeVec::new(Opts::new(Self::name(name), help), &[label]));
        values.iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.keep(Histogram::with_opts(HistogramOpts::new(Self::name(name), help).buckets(buckets.to_vec())))
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let options = HistogramOpts::new(Self::name(name), help).buckets(buckets.to_vec());
        let metric = self.keep(HistogramVec::new(options, &[label]));
        values.iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }
}
