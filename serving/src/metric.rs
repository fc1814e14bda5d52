//! Numbers for Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use anabranch_exchange::audit::Audit;
use anabranch_exchange::histogram::{Counts, Histogram};
use anabranch_log::position::{Coverage, TopicPartition};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::Registry;

/// A number, by how it changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// It only rises; its name gets `_total` at its end.
    Counter(f64),
    /// It goes up and down.
    Gauge(f64),
    /// How often something took how long.
    Histogram(Counts),
}

/// One number of one layer at one instant.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Its name, with its unit, such as `anabranch_checkpoint_age_seconds`.
    pub name: String,
    /// What it is, for people.
    pub help: &'static str,
    /// What it is of, such as `("view", "trending_hashtags")`.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: Value,
}

impl Measure {
    /// A number that only rises.
    pub fn counter(name: &str, help: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), help, labels: Vec::new(), value: Value::Counter(value) }
    }

    /// A number that goes up and down.
    pub fn gauge(name: &str, help: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), help, labels: Vec::new(), value: Value::Gauge(value) }
    }

    /// How often something took how long.
    pub fn histogram(name: &str, help: &'static str, counts: Counts) -> Self {
        Self { name: name.to_owned(), help, labels: Vec::new(), value: Value::Histogram(counts) }
    }

    /// The same, of something named.
    pub fn of(mut self, label: &'static str, value: impl fmt::Display) -> Self {
        self.labels.push((label, value.to_string()));
        self
    }

    /// Offsets that retention took although they were wanted, a number for each partition.
    pub fn lost(name: &str, lost: &Coverage<TopicPartition>) -> Vec<Self> {
        let help = "Offsets that retention deleted before they were read";
        let each = lost.iter().map(|(partition, range)| {
            let measure =
                Self::gauge(name, help, (range.end - range.start) as f64).of("partition", partition.partition);
            measure.of("from", range.start).of("to", range.end)
        });
        each.collect()
    }
}

/// What is asked for at each scrape or probe, so it has to be quick.
#[derive(Clone)]
pub struct Asked<T>(Arc<dyn Fn() -> Vec<T> + Send + Sync>);

/// Where the numbers of the other layers come from.
pub type Measures = Asked<Measure>;

/// Why sources of this process have stopped for good, of those that no snapshot tells of.
pub type Stops = Asked<String>;

impl<T> Asked<T> {
    /// What a closure says.
    pub fn new(ask: impl Fn() -> Vec<T> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// What it says now.
    pub fn now(&self) -> Vec<T> {
        (self.0)()
    }
}

impl<T: 'static> Default for Asked<T> {
    fn default() -> Self {
        Self::new(Vec::new)
    }
}

/// How many connections there are, and were turned away.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    pub open: AtomicUsize,
    pub refused: AtomicU64,
}

/// What serving counts itself.
pub(crate) struct Metrics {
    pub connections: Arc<Connections>,
    pub rows_seconds: Histogram,
    ingested: Mutex<BTreeMap<String, (u64, u64)>>,
    /// By view and column.
    audited: Mutex<BTreeMap<(String, String), Audited>>,
}

/// What audits have found of a column.
#[derive(Debug, Default)]
struct Audited {
    bounded: u64,
    held: u64,
    /// The largest error that the last one found, as a share of the truth.
    worst: f64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: Arc::default(),
            rows_seconds: Histogram::new(exponential_buckets(0.000_05, 2.5, 15)),
            ingested: Mutex::default(),
            audited: Mutex::default(),
        }
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

    /// Takes up what an audit found.
    pub fn audited(&self, view: &str, audit: &Audit) {
        let mut audited = self.audited.lock();
        for column in &audit.columns {
            let of_column = audited.entry((view.to_owned(), column.column.clone())).or_default();
            of_column.bounded += column.bounded;
            of_column.held += column.held;
            of_column.worst = column.late.worst_share.into_iter().chain(column.sketch.worst_share).fold(0.0, f64::max);
        }
    }

    /// What audits have found so far.
    pub fn audits(&self) -> Vec<Measure> {
        let audited = self.audited.lock();
        let each = audited.iter().flat_map(|((view, column), &Audited { bounded, held, worst })| {
            let help = "Bounds of answers that were scored once batch knew the truth";
            let bounded = Measure::counter("anabranch_audit_bounds", help, bounded as f64);
            let help = "Bounds of answers that held";
            let held = Measure::counter("anabranch_audit_bounds_held", help, held as f64);
            let help = "The largest error that the last audit found, as a share of the truth";
            let worst = Measure::gauge("anabranch_audit_worst_error_ratio", help, worst);
            [bounded, held, worst].map(|measure| measure.of("view", view).of("column", column))
        });
        each.collect()
    }

    /// All of it, with `measures`, in the text format of OpenMetrics.
    pub fn encode(&self, mut measures: Vec<Measure>) -> Result<String, fmt::Error> {
        let help = "How long answers to requests for rows took";
        measures.push(Measure::histogram("anabranch_rows_seconds", help, self.rows_seconds.read()));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape(measures)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl EncodeMetric for Value {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Self::Counter(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Histogram(counts) => {
                encoder.encode_histogram::<NoLabelSet>(counts.sum, counts.count(), &counts.buckets, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Histogram(_) => MetricType::Histogram,
        }
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
            let mut family = encoder.encode_descriptor(name, first.help, None, first.value.metric_type())?;
            for measure in measures {
                let labels: Vec<(String, String)> =
                    measure.labels.iter().map(|(label, value)| ((*label).to_owned(), value.clone())).collect();
                if labels.is_empty() {
                    measure.value.encode(family)?;
                    break;
                }
                measure.value.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
