//! Numbers for Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Whether a number only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasureKind {
    /// It only rises; its name gets `_total` at its end.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number of one layer at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Its name, with its unit, such as `anabranch_checkpoint_age_seconds`.
    pub name: String,
    /// What it is, for people.
    pub help: &'static str,
    /// Whether it only rises.
    pub kind: MeasureKind,
    /// What it is of, such as `("view", "trending_hashtags")`.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl Measure {
    /// A number that only rises.
    pub fn counter(name: &str, help: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), help, kind: MeasureKind::Counter, labels: Vec::new(), value }
    }

    /// A number that goes up and down.
    pub fn gauge(name: &str, help: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), help, kind: MeasureKind::Gauge, labels: Vec::new(), value }
    }

    /// The same, of something named.
    pub fn of(mut self, label: &'static str, value: impl fmt::Display) -> Self {
        self.labels.push((label, value.to_string()));
        self
    }
}

/// Where the numbers of the other layers come from: asked at each scrape, so it has to be quick.
#[derive(Clone)]
pub struct Measures(Arc<dyn Fn() -> Vec<Measure> + Send + Sync>);

impl Measures {
    /// Numbers from a closure.
    pub fn new(measures: impl Fn() -> Vec<Measure> + Send + Sync + 'static) -> Self {
        Self(Arc::new(measures))
    }

    /// The numbers now.
    pub fn now(&self) -> Vec<Measure> {
        (self.0)()
    }
}

impl Default for Measures {
    fn default() -> Self {
        Self::new(Vec::new)
    }
}

/// What serving counts itself.
pub(crate) struct Metrics {
    pub rows_seconds: Histogram,
    ingested: Mutex<BTreeMap<String, (u64, u64)>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { rows_seconds: Histogram::new(exponential_buckets(0.000_05, 2.5, 15)), ingested: Mutex::default() }
    }
}

impl Metrics {
    /// Counts what became of a request's records.
    pub fn accepted(&self, topic: &str, accepted: u64, rejected: u64) {
        let mut ingested = self.ingested.lock();
        let count = ingested.entry(topic.to_owned()).or_default();
        *count = (count.0 + accepted, count.1 + rejected);
    }

    /// What came in over HTTP so far.
    pub fn ingested(&self) -> Vec<Measure> {
        let ingested = self.ingested.lock();
        let each = ingested.iter().flat_map(|(topic, &(accepted, rejected))| {
            let accepted = Measure::counter(
                "anabranch_events_ingested",
                "Events that HTTP clients sent and the log has",
                accepted as f64,
            );
            let rejected = Measure::counter(
                "anabranch_events_refused",
                "Records that HTTP clients sent and were rejected",
                rejected as f64,
            );
            [accepted.of("topic", topic), rejected.of("topic", topic)]
        });
        each.collect()
    }

    /// All of it, with `measures`, in the text format of OpenMetrics.
    pub fn encode(&self, measures: Vec<Measure>) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        let help = "How long answers to requests for rows took";
        registry.register("anabranch_rows_seconds", help, self.rows_seconds.clone());
        registry.register_collector(Box::new(Scrape(measures)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Scrape(Vec<Measure>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut by_name: BTreeMap<&str, Vec<&Measure>> = BTreeMap::new();
        for measure in &self.0 {
            by_name.entry(&measure.name).or_default().push(measure);
        }
        for (name, measures) in by_name {
            let first = measures[0];
            let counter = ConstCounter::new(0.0_f64);
            let gauge = ConstGauge::new(0.0_f64);
            let metric_type = match first.kind {
                MeasureKind::Counter => counter.metric_type(),
                MeasureKind::Gauge => gauge.metric_type(),
            };
            let mut family = encoder.encode_descriptor(name, first.help, None, metric_type)?;
            for measure in measures {
                let labels: Vec<(String, String)> =
                    measure.labels.iter().map(|(label, value)| ((*label).to_owned(), value.clone())).collect();
                if labels.is_empty() {
                    match first.kind {
                        MeasureKind::Counter => ConstCounter::new(measure.value).encode(family)?,
                        MeasureKind::Gauge => ConstGauge::new(measure.value).encode(family)?,
                    }
                    break;
                }
                let one = family.encode_family(&labels)?;
                match first.kind {
                    MeasureKind::Counter => ConstCounter::new(measure.value).encode(one)?,
                    MeasureKind::Gauge => ConstGauge::new(measure.value).encode(one)?,
                }
            }
        }
        Ok(())
    }
}
