//! What an event costs by aggregate and by window, beside the plainest loop over the standard library's hash map that does the
//! same on the same columns.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use anabranch_shared::clock::Micros;
use anabranch_shared::group::Keep;
use anabranch_shared::partial::{Partials, rows};
use anabranch_shared::view::View;
use polars::prelude::{Column, DataFrame, DataType, IntoLazy, PlSmallStr, TimeUnit};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

use super::stream::planned;
use crate::failure::Failure;

const BATCH: usize = 65_536;
/// Batches that are made; then they come again, at later times.
const BATCHES: usize = 64;
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
}

impl Events {
    fn new() -> Self {
        let (mut random, zipf) =
            (StdRng::seed_from_u64(7), Zipf::new(KEYS, 1.0).expect("a positive count and exponent"));
        let mut keys = || (0..BATCH).map(|_| format!("#tag{}", zipf.sample(&mut random) as u32)).collect();
        let keys = (0..BATCHES).map(|_| keys()).collect();
        let mut random = StdRng::seed_from_u64(8);
        let values = (0..BATCHES).map(|_| (0..BATCH).map(|_| random.random_range(0..1_000_000)).collect()).collect();
        Self { keys, values }
    }

    fn times(batch: usize) -> Vec<Micros> {
        (0..BATCH).map(|i| (batch * BATCH + i) as Micros * STEP).collect()
    }

    fn frame(&self, batch: usize) -> Result<DataFrame, Failure> {
        let timestamp = DataType::Datetime(TimeUnit::Microseconds, None);
        let times = Column::new("ts".into(), Self::times(batch)).cast(&timestamp)?;
        let keys = Column::new("k".into(), self.keys[batch % BATCHES].as_slice());
        let values = Column::new(PlSmallStr::from("v"), self.values[batch % BATCHES].as_slice());
        Ok(DataFrame::new(BATCH, vec![keys, values, times])?)
    }

    /// Nanoseconds an event through the engine, and the bytes of a group.
    fn engine(&self, view: &View, batches: usize) -> Result<(f64, f64), Failure> {
        let mut partials = Partials::new(view, Keep::Bounded);
        let mut took = Duration::ZERO;
        for batch in 0..batches {
            let frame = self.frame(batch)?;
            let started = Instant::now();
            partials.absorb(rows(view, frame.lazy(), false).collect()?)?;
            took += started.elapsed();
        }
        Ok((nanos(took, batches), partials.bytes() as f64 / partials.groups().max(1) as f64))
    }

    /// Up to each so many million events: nanoseconds an event in one state that grows, in a state that begins anew with each
    /// million, and the bytes of a group. The two take turns in what they find in the caches.
    fn growth(&self, view: &View, millions: usize) -> Result<Vec<(f64, f64, f64)>, Failure> {
        let of_million = 1_000_000 / BATCH;
        let (mut grows, mut took, mut all) = (Partials::new(view, Keep::Bounded), [Duration::ZERO; 2], Vec::new());
        for million in 0..millions {
            let mut begins = Partials::new(view, Keep::Bounded);
            for batch in million * of_million..(million + 1) * of_million {
                let frame = self.frame(batch)?;
                for turn in [batch % 2, 1 - batch % 2] {
                    let frame = frame.clone();
                    let partials = if turn == 0 { &mut grows } else { &mut begins };
                    let started = Instant::now();
                    partials.absorb(rows(view, frame.lazy(), false).collect()?)?;
                    took[turn] += started.elapsed();
                }
            }
            let [ours, anew] = took.map(|took| nanos(took, (million + 1) * of_million));
            all.push((ours, anew, grows.bytes() as f64 / grows.groups().max(1) as f64));
        }
        Ok(all)
    }

    /// Nanoseconds an event through the loop.
    fn plain(&self, batches: usize, mut add: impl FnMut(&str, i64, Micros)) -> f64 {
        let mut took = Duration::ZERO;
        for batch in 0..batches {
            let (keys, values, times) =
                (&self.keys[batch % BATCHES], &self.values[batch % BATCHES], Self::times(batch));
            let started = Instant::now();
            for ((key, &value), &time) in keys.iter().zip(values).zip(&times) {
                add(key, value, time);
            }
            took += started.elapsed();
        }
        nanos(took, batches)
    }

    /// The loop with a state for each minute and key.
    fn by_minute<S: Default>(&self, batches: usize, add: impl Fn(&mut S, i64, Micros)) -> f64 {
        let mut minutes: BTreeMap<Micros, HashMap<String, S>> = BTreeMap::new();
        let nanos = self.plain(batches, |key, value, time| {
            add(entry(minutes.entry(time.div_euclid(MINUTE)).or_default(), key), value, time);
        });
        std::hint::black_box(&minutes);
        nanos
    }
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

fn view(from: &str, aggregates: &str) -> Result<View, Failure> {
    let bounds = if from.contains('(') { "window_start, window_end, " } else { "" };
    let sql = format!(
        "CREATE TABLE events (k TEXT, v BIGINT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
         CREATE MATERIALIZED VIEW view AS SELECT {bounds}k, {aggregates} FROM {from} GROUP BY {bounds}k;"
    );
    Ok(View::clone(&planned(&sql)?.views["view"]))
}

/// Prints the tables.
pub fn run() -> Result<(), Failure> {
    let events = Events::new();
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
    aggregate("count(*)", &|e, n| e.by_minute(n, |s: &mut i64, _, _| *s += 1))?;
    aggregate("sum(v)", &|e, n| e.by_minute(n, |s: &mut i64, v, _| *s += v))?;
    aggregate("avg(v)", &|e, n| e.by_minute(n, |s: &mut (i64, i64), v, _| (s.0, s.1) = (s.0 + v, s.1 + 1)))?;
    aggregate("max(v)", &|e, n| e.by_minute(n, |s: &mut Option<i64>, v, _| *s = (*s).max(Some(v))))?;
    aggregate("stddev_samp(v)", &|e, n| {
        e.by_minute(n, |(count, mean, squares): &mut (f64, f64, f64), v, _| {
            *count += 1.0;
            let apart = v as f64 - *mean;
            *mean += apart / *count;
            *squares += apart * (v as f64 - *mean);
        })
    })?;
    aggregate("arg_max(v, ts)", &|e, n| {
        e.by_minute(n, |s: &mut Option<(Micros, i64)>, v, time| *s = (*s).max(Some((time, v))))
    })?;
    aggregate("count(DISTINCT v)", &|e, n| {
        e.by_minute(n, |s: &mut HashSet<i64>, v, _| {
            s.insert(v);
        })
    })?;
    aggregate("approx_percentile(v, 0.95)", &|e, n| e.by_minute(n, |s: &mut Vec<i64>, v, _| s.push(v)))?;

    println!(
        "\n{:<58} {:>9} {:>9} {:>7} {:>11}",
        "count(*) by key, 8 million events", "ns/event", "plain", "times", "bytes/key"
    );
    let mut all = HashMap::new();
    let plain = events.plain(128, |key, _, _| *entry::<i64>(&mut all, key) += 1);
    line("no windows", events.engine(&view("events", "count(*) AS a")?, 128)?, plain);
    let mut sessions: HashMap<String, Vec<(Micros, Micros, i64)>> = HashMap::new();
    let plain = events.plain(128, |key, _, time| {
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
        let plain = events.by_minute(128, |s: &mut i64, _, _| *s += 1);
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
