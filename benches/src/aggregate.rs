//! What an event costs by aggregate and by window, beside the plainest loop over the standard library's hash map that does the
//! same on the same columns.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anabranch::failure::Failure;
use anabranch_engine::group::Keep;
use anabranch_engine::partial::{Inputs, Partials, inputs};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::{Column, DataFrame, DataType, IntoLazy, TimeUnit};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal, Zipf};

use super::stream::planned;

const BATCH: usize = 65_536;
/// Batches that are made; then they come again, at later times.
const BATCHES: usize = 64;
/// Micro-batches of one event.
const ONE_BY_ONE: i64 = 2_000;
const KEYS: f64 = 100_000.0;
const MINUTE: Micros = 60_000_000;
/// Event time from one event to the next: a million of them a minute.
const STEP: Micros = 60;
const GAP: Micros = 5_000_000;
const TUMBLE: &str = "TUMBLE(events, ts, INTERVAL '1 minute')";

/// Columns of events.
struct Events {
    keys: Vec<Vec<String>>,
    values: Vec<Vec<i64>>,
    /// Prices with cents, most of them from 1 to 1,000.
    prices: Vec<Vec<f64>>,
    /// Measurements of either sign, from a millionth of a millionth to a million millions.
    measured: Vec<Vec<f64>>,
}

impl Events {
    fn new() -> Self {
        let (mut random, zipf) =
            (StdRng::seed_from_u64(7), Zipf::new(KEYS, 1.0).expect("a positive count and exponent"));
        let mut keys = || (0..BATCH).map(|_| format!("#tag{}", zipf.sample(&mut random) as u32)).collect();
        let keys = (0..BATCHES).map(|_| keys()).collect();
        let values = batches(8, |random| random.random_range(0..1_000_000));
        let around = LogNormal::new(3.5, 1.5).expect("a finite spread");
        let prices = batches(9, |random| (around.sample(random) * 100.0_f64).round() / 100.0);
        let measured = batches(10, |random| {
            let size = 10_f64.powf(random.random_range(-12.0..12.0));
            if random.random() { size } else { -size }
        });
        Self { keys, values, prices, measured }
    }

    fn times(batch: usize) -> Vec<Micros> {
        (0..BATCH).map(|i| (batch * BATCH + i) as Micros * STEP).collect()
    }

    fn frame(&self, batch: usize) -> Result<DataFrame, Failure> {
        let timestamp = DataType::Datetime(TimeUnit::Microseconds, None);
        let times = Column::new("ts".into(), Self::times(batch)).cast(&timestamp)?;
        let keys = Column::new("k".into(), self.keys[batch % BATCHES].as_slice());
        let values = Column::new("v".into(), self.values[batch % BATCHES].as_slice());
        let prices = Column::new("d".into(), self.prices[batch % BATCHES].as_slice());
        let measured = Column::new("e".into(), self.measured[batch % BATCHES].as_slice());
        Ok(DataFrame::new(BATCH, vec![keys, values, prices, measured, times])?)
    }

    /// Nanoseconds an event through the engine, and the bytes of a group.
    fn engine(&self, view: &Kept, batches: usize) -> Result<(f64, f64), Failure> {
        let mut partials = Partials::new(view.aggregation(), Keep::Bounded);
        let mut took = Duration::ZERO;
        for batch in 0..batches {
            let frame = self.frame(batch)?;
            let started = Instant::now();
            partials.absorb(inputs(view, frame.lazy(), false).collect()?)?;
            took += started.elapsed();
        }
        Ok((nanos(took, batches), partials.bytes() as f64 / partials.groups().max(1) as f64))
    }

    /// Nanoseconds a micro-batch of one event.
    fn one_by_one(&self, view: &Kept) -> Result<f64, Failure> {
        let (rows, mut partials, mut took) =
            (Inputs::new(view), Partials::new(view.aggregation(), Keep::Bounded), Duration::ZERO);
        let frame = self.frame(0)?;
        for event in 0..ONE_BY_ONE {
            let event = frame.slice(event, 1);
            let started = Instant::now();
            partials.absorb(rows.of(event.lazy(), false).collect()?)?;
            took += started.elapsed();
        }
        Ok(took.as_nanos() as f64 / ONE_BY_ONE as f64)
    }

    /// Up to each so many million events: nanoseconds an event in one state that grows, in a state that begins anew with each
    /// million, and the bytes of a group. The two take turns in what they find in the caches.
    fn growth(&self, view: &Kept, millions: usize) -> Result<Vec<(f64, f64, f64)>, Failure> {
        let of_million = 1_000_000 / BATCH;
        let (mut grows, mut took, mut all) =
            (Partials::new(view.aggregation(), Keep::Bounded), [Duration::ZERO; 2], Vec::new());
        for million in 0..millions {
            let mut begins = Partials::new(view.aggregation(), Keep::Bounded);
            for batch in million * of_million..(million + 1) * of_million {
                let frame = self.frame(batch)?;
                for turn in [batch % 2, 1 - batch % 2] {
                    let frame = frame.clone();
                    let partials = if turn == 0 { &mut grows } else { &mut begins };
                    let started = Instant::now();
                    partials.absorb(inputs(view, frame.lazy(), false).collect()?)?;
                    took[turn] += started.elapsed();
                }
            }
            let [ours, anew] = took.map(|took| nanos(took, (million + 1) * of_million));
            all.push((ours, anew, grows.bytes() as f64 / grows.groups().max(1) as f64));
        }
        Ok(all)
    }

    /// Nanoseconds an event through the loop, over the keys and one of the other columns.
    fn plain<V: Copy>(&self, values: &[Vec<V>], batches: usize, mut add: impl FnMut(&str, V, Micros)) -> f64 {
        let mut took = Duration::ZERO;
        for batch in 0..batches {
            let (keys, values, times) = (&self.keys[batch % BATCHES], &values[batch % BATCHES], Self::times(batch));
            let started = Instant::now();
            for ((key, &value), &time) in keys.iter().zip(values).zip(&times) {
                add(key, value, time);
            }
            took += started.elapsed();
        }
        nanos(took, batches)
    }

    /// The loop with a state for each minute and key.
    fn by_minute<V: Copy, S: Default>(
        &self,
        values: &[Vec<V>],
        batches: usize,
        add: impl Fn(&mut S, V, Micros),
    ) -> f64 {
        let mut minutes: BTreeMap<Micros, HashMap<String, S>> = BTreeMap::new();
        let nanos = self.plain(values, batches, |key, value, time| {
            add(entry(minutes.entry(time.div_euclid(MINUTE)).or_default(), key), value, time);
        });
        std::hint::black_box(&minutes);
        nanos
    }
}

/// Batches of values that are drawn one by one.
fn batches<V>(seed: u64, mut draw: impl FnMut(&mut StdRng) -> V) -> Vec<Vec<V>> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..BATCHES).map(|_| (0..BATCH).map(|_| draw(&mut random)).collect()).collect()
}

/// Welford's running mean and the squared distances from it.
fn spread((count, mean, squares): &mut (f64, f64, f64), value: f64) {
    *count += 1.0;
    let apart = value - *mean;
    *mean += apart / *count;
    *squares += apart * (value - *mean);
}

fn entry<'m, S: Default>(map: &'m mut HashMap<String, S>, key: &str) -> &'m mut S {
    if !map.contains_key(key) {
        map.insert(key.to_owned(), S::default());
    }
    map.get_mut(key).expect("it was put there")
}

fn nanos(took: Duration, batches: usize) -> f64 {
    took.as_nanos() as f64 / (batches * BATCH) as f64
}

fn view(from: &str, aggregates: &str) -> Result<Kept, Failure> {
    let bounds = if from.contains('(') { "window_start, window_end, " } else { "" };
    let sql = format!(
        "CREATE TABLE events (k TEXT, v BIGINT, d DOUBLE, e DOUBLE, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
         CREATE MATERIALIZED VIEW view AS SELECT {bounds}k, {aggregates} FROM {from} GROUP BY {bounds}k;"
    );
    planned(&sql)?.kept_view("view").ok_or_else(|| Failure::new("no such view"))
}

/// Prints the tables.
pub fn run() -> Result<(), Failure> {
    let events = Events::new();
    println!(
        "\n{:<58} {:>9} {:>9} {:>7}",
        "count(*) by minute and key, an event a micro-batch", "ns/batch", "plain", "times"
    );
    let plain = events.one_by_one(&view(TUMBLE, "count(*) AS a")?)?;
    let texts: Vec<String> = (0..3_000).map(|i| format!("'#tag{i}'")).collect();
    for (what, condition) in [
        ("WHERE k IN (3,000 texts)", format!("k IN ({})", texts.join(", "))),
        ("WHERE k LIKE", "k LIKE '#tag%1%'".to_owned()),
        ("WHERE regexp_matches", r"regexp_matches(k, '^#\w+1\d*$')".to_owned()),
        ("WHERE regexp_replace", r"regexp_replace(k, '\w+', 'x') = '#x'".to_owned()),
    ] {
        let ours = events.one_by_one(&view(&format!("{TUMBLE} WHERE {condition}"), "count(*) AS a")?)?;
        println!("{what:<58} {ours:>9.0} {plain:>9.0} {:>7.2}", ours / plain);
    }
    println!(
        "\n{:<58} {:>9} {:>9} {:>7} {:>11}",
        "by minute and key, 8 million events", "ns/event", "plain", "times", "bytes/key"
    );
    let line = |what: &str, (ours, bytes): (f64, f64), plain: f64| {
        println!("{what:<58} {ours:>9.1} {plain:>9.1} {:>7.2} {bytes:>11.0}", ours / plain);
    };
    let aggregate = |call: &str, plain: &dyn Fn(&Events, usize) -> f64| {
        let view = view(TUMBLE, &format!("{call} AS a"))?;
        line(call, events.engine(&view, 128)?, plain(&events, 128));
        Ok::<_, Failure>(())
    };
    aggregate("count(*)", &|e, n| e.by_minute(&e.values, n, |s: &mut i64, _, _| *s += 1))?;
    aggregate("sum(v)", &|e, n| e.by_minute(&e.values, n, |s: &mut i64, v, _| *s += v))?;
    aggregate("avg(v)", &|e, n| e.by_minute(&e.values, n, |s: &mut (i64, i64), v, _| (s.0, s.1) = (s.0 + v, s.1 + 1)))?;
    aggregate("max(v)", &|e, n| e.by_minute(&e.values, n, |s: &mut Option<i64>, v, _| *s = (*s).max(Some(v))))?;
    aggregate("stddev_samp(v)", &|e, n| e.by_minute(&e.values, n, |s, v, _| spread(s, v as f64)))?;
    aggregate("arg_max(v, ts)", &|e, n| {
        e.by_minute(&e.values, n, |s: &mut Option<(Micros, i64)>, v, time| *s = (*s).max(Some((time, v))))
    })?;
    aggregate("count(DISTINCT v)", &|e, n| {
        e.by_minute(&e.values, n, |s: &mut HashSet<i64>, v, _| {
            s.insert(v);
        })
    })?;
    aggregate("approx_percentile(v, 0.95)", &|e, n| e.by_minute(&e.values, n, |s: &mut Vec<i64>, v, _| s.push(v)))?;
    // Our sums of doubles are exact; those of the loop are rounded at each step.
    for (column, values) in [("d", &events.prices), ("e", &events.measured)] {
        aggregate(&format!("sum({column})"), &|e, n| e.by_minute(values, n, |s: &mut f64, v, _| *s += v))?;
        aggregate(&format!("avg({column})"), &|e, n| {
            e.by_minute(values, n, |s: &mut (f64, i64), v, _| (s.0, s.1) = (s.0 + v, s.1 + 1))
        })?;
        aggregate(&format!("stddev_samp({column})"), &|e, n| e.by_minute(values, n, |s, v, _| spread(s, v)))?;
    }

    println!(
        "\n{:<58} {:>9} {:>9} {:>7} {:>11}",
        "count(*) by key, 8 million events", "ns/event", "plain", "times", "bytes/key"
    );
    let mut all = HashMap::new();
    let plain = events.plain(&events.values, 128, |key, _, _| *entry::<i64>(&mut all, key) += 1);
    line("no windows", events.engine(&view("events", "count(*) AS a")?, 128)?, plain);
    let mut sessions: HashMap<String, Vec<(Micros, Micros, i64)>> = HashMap::new();
    let plain = events.plain(&events.values, 128, |key, _, time| {
        let sessions = entry(&mut sessions, key);
        match sessions.last_mut() {
            Some((_, last, count)) if time - *last < GAP => (*last, *count) = (time, *count + 1),
            _ => sessions.push((time, time, 1)),
        }
    });
    let session = view("SESSION(events, ts, INTERVAL '5 seconds')", "count(*) AS a")?;
    line("sessions of 5 seconds", events.engine(&session, 128)?, plain);
    for panes in [1, 5, 60] {
        let from = format!("HOP(events, ts, INTERVAL '1 minute', INTERVAL '{panes} minutes')");
        let plain = events.by_minute(&events.values, 128, |s: &mut i64, _, _| *s += 1);
        line(&format!("windows of {panes} panes"), events.engine(&view(&from, "count(*) AS a")?, 128)?, plain);
    }
    println!(
        "\n{:<58} {:>9} {:>9} {:>7} {:>11}",
        "count(*) by minute and key, 100 million events", "ns/event", "anew", "times", "bytes/key"
    );
    let grown = events.growth(&view(TUMBLE, "count(*) AS a")?, 100)?;
    for (million, (ours, anew, bytes)) in (1..).zip(grown).filter(|(million, _)| [1, 10, 50, 100].contains(million)) {
        line(&format!("up to {million} million, beside each million anew"), (ours, bytes), anew);
    }
    Ok(())
}
