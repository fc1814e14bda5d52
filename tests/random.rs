//! Random views on random streams, cut and stopped and killed anywhere: speed, batch and merged answers against DuckDB, which
//! runs the same view as plain SQL over the events. The oracle shares no code with the platform.

mod view;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use duckdb::Connection;
use duckdb::types::Value as Cell;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};

use self::view::{Aggregate, Micros, View, table};
use crate::support::{Project, Server, kafka};

/// So many views are asked of each stream.
const VIEWS: usize = 10;

const SETTINGS: &str = "
[speed]
snapshot_interval = '10 ms'
checkpoint_interval = '20 ms'
chunk_interval = '30 ms'
[archive]
interval = '10 s'
[batch]
scheduler = false
";

#[derive(Debug, Clone)]
struct Event {
    key: Option<u8>,
    whole: Option<i64>,
    double: Option<f64>,
    text: Option<&'static str>,
    truth: Option<bool>,
    unique: i64,
    /// In units of the stream.
    time: i64,
}

#[derive(Debug, Clone)]
enum Step {
    Post(Vec<Event>),
    /// So many events, which follow from the seed.
    PostMany(u16, u64),
    Batch,
    Stop,
    Kill,
}

#[derive(Debug, Clone)]
struct Case {
    /// A unit of time, in microseconds.
    unit: Micros,
    watermark: i64,
    views: Vec<View>,
    steps: Vec<Step>,
}

const TEXTS: [&str; 8] = ["a", "b", "ab  a", "Äpfel und Öl", "", " b ", "A-B c", "zzz"];

fn event(keys: u8) -> impl Strategy<Value = Event> {
    // Few distinct instants, so that many are the same and many lie on a window's boundary; before 1970 too.
    let time = prop_oneof![3 => -40_i64..40, 1 => -900_i64..900];
    let key = proptest::option::weighted(0.95, 0..keys);
    let numbers = (proptest::option::weighted(0.9, -5_i64..100), proptest::option::weighted(0.9, -80_i64..80));
    let others = (
        proptest::option::weighted(0.9, proptest::sample::select(TEXTS.as_slice())),
        proptest::option::of(any::<bool>()),
    );
    (key, numbers, others, 0_i64..1_000_000, time).prop_map(|(key, (whole, tenths), (text, truth), unique, time)| {
        // Sums of tenths depend on their order where they are rounded on the way.
        Event { key, whole, double: tenths.map(|tenths| tenths as f64 / 10.0), text, truth, unique, time }
    })
}

fn many(count: u16, seed: u64) -> Vec<Event> {
    let mut state = seed | 1;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let event = |_| Event {
        key: Some(next(3) as u8),
        whole: Some(next(2_000) as i64),
        double: Some(next(4_000) as f64 / 4.0),
        text: Some(TEXTS[next(8) as usize]),
        truth: Some(next(2) == 1),
        unique: next(1_000_000) as i64,
        time: next(60) as i64 - 30,
    };
    (0..count).map(event).collect()
}

fn case() -> impl Strategy<Value = Case> {
    let steps = prop_oneof![Just(1_u8), Just(4), Just(40)].prop_flat_map(|keys| {
        let post = proptest::collection::vec(event(keys), 0..60).prop_map(Step::Post);
        let many = (1_u16..3_000, any::<u64>()).prop_map(|(count, seed)| Step::PostMany(count, seed));
        let step = prop_oneof![
            10 => post, 1 => many, 4 => Just(Step::Batch), 2 => Just(Step::Stop), 2 => Just(Step::Kill),
        ];
        proptest::collection::vec(step, 1..8)
    });
    let unit = prop_oneof![Just(500_000), Just(1_000), Just(3_600_000_000_i64)];
    let watermark = prop_oneof![Just(0_i64), Just(4), Just(50)];
    (unit, watermark, proptest::collection::vec(view::view(), VIEWS), steps)
        .prop_map(|(unit, watermark, views, steps)| Case { unit, watermark, views, steps })
}

/// A row: the window's start and end, the keys as JSON.
type Key = (Micros, Micros, String);

/// What DuckDB makes of the events.
struct Oracle {
    duckdb: Connection,
    posted: usize,
}

impl Oracle {
    fn new() -> Self {
        let duckdb = Connection::open_in_memory().expect("DuckDB");
        let sql = "SET TimeZone = 'UTC'; SET threads = 1;
            CREATE TABLE events (n BIGINT, k TEXT, v BIGINT, d DOUBLE, s TEXT, b BOOLEAN, u BIGINT, us BIGINT, ts TIMESTAMP);";
        duckdb.execute_batch(sql).expect("a table");
        Self { duckdb, posted: 0 }
    }

    fn add(&mut self, events: &[Event], unit: Micros) {
        let mut appender = self.duckdb.appender("events").expect("an appender");
        for event in events {
            let (key, us) = (event.key.map(|key| format!("k{key}")), event.time * unit);
            let time = Cell::Timestamp(duckdb::types::TimeUnit::Microsecond, us);
            let Event { whole, double, text, truth, unique, .. } = event;
            let row = duckdb::params![self.posted as i64, key, whole, double, text, truth, unique, us, time];
            appender.append_row(row).expect("appended");
            self.posted += 1;
        }
        appender.flush().expect("written");
    }

    /// The aggregates of each row of a view.
    fn rows(&self, view: &View, which: &str, unit: Micros, cut: bool) -> BTreeMap<Key, Vec<Value>> {
        let sql = view.theirs(which, unit, cut);
        let mut statement = self.duckdb.prepare(&sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let mut rows = statement.query([]).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let mut all = BTreeMap::new();
        while let Some(row) = rows.next().unwrap_or_else(|error| panic!("{error}\n{sql}")) {
            let cell = |i: usize| row.get(i).expect("a cell");
            let keys: Vec<Value> = (2..2 + view.keys()).map(|i| as_json(cell(i))).collect();
            let values = (2 + view.keys()..).zip(&view.aggregates).map(|(i, aggregate)| match cell(i) {
                Cell::List(values) => added_up(&values, aggregate.is_mean()).into(),
                cell => as_json(cell),
            });
            let values = values.collect();
            let key = (row.get(0).expect("a start"), row.get(1).expect("an end"), Value::from(keys).to_string());
            all.insert(key, values);
        }
        all
    }
}

fn as_json(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Boolean(truth) => truth.into(),
        Cell::Int(number) => number.into(),
        Cell::BigInt(number) => number.into(),
        Cell::HugeInt(number) => i64::try_from(number).expect("a small number").into(),
        Cell::Double(number) => number.into(),
        Cell::Text(text) => text.into(),
        other => panic!("{other:?}"),
    }
}

/// The sum or the mean of doubles, each a whole number of 2^-60: added up as integers and rounded once. None of none.
fn added_up(values: &[Cell], is_mean: bool) -> Option<f64> {
    let unit = 2_f64.powi(-60);
    let whole = |value: &Cell| {
        let Cell::Double(value) = value else { return None };
        let whole = (value / unit) as i128;
        assert_eq!(whole as f64 * unit, *value, "a value of the stream has digits below 2^-60");
        Some(whole)
    };
    let wholes: Vec<i128> = values.iter().filter_map(whole).collect();
    let sum = wholes.iter().sum::<i128>() as f64 * unit;
    (!wholes.is_empty()).then(|| if is_mean { sum / wholes.len() as f64 } else { sum })
}

/// A row of an answer: each aggregate's value and bounds.
type Answered = BTreeMap<Key, Vec<[Value; 3]>>;

fn answered(view: &View, rows: &[Value]) -> Answered {
    let time = |row: &Value, name: &str| {
        let time = row[name].as_str().map(|time| chrono::DateTime::parse_from_rfc3339(time).expect("a time"));
        time.map_or(0, |time| time.timestamp_micros())
    };
    let mut all = Answered::new();
    for row in rows {
        let keys: Vec<Value> = (0..view.keys()).map(|i| row[format!("k{i}")].clone()).collect();
        let key = (time(row, "window_start"), time(row, "window_end"), Value::from(keys).to_string());
        let values = (0..view.aggregates.len())
            .map(|i| ["", "_lower", "_upper"].map(|bound| row[format!("a{i}{bound}")].clone()))
            .collect();
        assert!(all.insert(key, values).is_none(), "the row is there twice: {row}");
    }
    all
}

impl Aggregate {
    /// Whether an answer is the oracle's, bit for bit; of deviations, which the oracle rounds on the way, as near as that is.
    fn is_same(&self, one: &Value, other: &Value) -> bool {
        match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) if self.is_spread() => {
                (one - other).abs() <= 1e-9 * one.abs().max(other.abs()).max(1.0)
            }
            (Some(a), Some(b)) if one.is_f64() || other.is_f64() => a == b,
            _ => one == other,
        }
    }

    fn is_at_most(&self, one: &Value, other: &Value) -> bool {
        match (one, other) {
            _ if self.is_same(one, other) => true,
            (Value::String(one), Value::String(other)) => one <= other,
            (Value::Bool(one), Value::Bool(other)) => one <= other,
            _ => one.as_f64() <= other.as_f64(),
        }
    }
}

/// How many bounds of sketches held, and how many there were.
static HELD: AtomicU64 = AtomicU64::new(0);
static SKETCHED: AtomicU64 = AtomicU64::new(0);

struct Check<'a> {
    what: String,
    view: &'a View,
    answer: Value,
    rows: Answered,
}

impl Check<'_> {
    fn is_exactly(&self, expected: &BTreeMap<Key, Vec<Value>>) {
        let Self { what, answer, rows, .. } = self;
        assert_eq!(rows.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}\n{answer}");
        for (key, values) in rows {
            for (i, ([value, lower, upper], truth)) in values.iter().zip(&expected[key]).enumerate() {
                let aggregate = &self.view.aggregates[i];
                assert!(aggregate.is_same(value, truth), "{what}: a{i} of {key:?} is {value}, truly {truth}");
                assert!(lower == value && upper == value, "{what}: a{i} of {key:?} is exact: {values:?}");
            }
        }
    }

    /// Each row is one of the truth, which is within its bounds.
    fn is_within(&self, truth: &BTreeMap<Key, Vec<Value>>) {
        let Self { what, view, answer, rows } = self;
        let is_sketched = answer["confidence"] != 1.0;
        for (key, values) in rows {
            let expected = if view.is_session() {
                let inside = |of: &&Key| of.0 <= key.0 && key.1 <= of.1 && of.2 == key.2;
                truth.keys().find(inside).map(|of| &truth[of])
            } else {
                truth.get(key)
            };
            let expected = expected.unwrap_or_else(|| panic!("{what}: there is no such row: {key:?}"));
            for (i, ([_, lower, upper], truth)) in values.iter().zip(expected).enumerate() {
                let aggregate = &view.aggregates[i];
                let is_null = truth.is_null() || lower.is_null() || upper.is_null();
                let holds = is_null || (aggregate.is_at_most(lower, truth) && aggregate.is_at_most(truth, upper));
                if is_sketched && aggregate.is_sketch {
                    SKETCHED.fetch_add(1, Ordering::Relaxed);
                    HELD.fetch_add(holds.into(), Ordering::Relaxed);
                } else {
                    assert!(holds, "{what}: a{i} of {key:?} is truly {truth}: {values:?}\n{answer}");
                }
            }
        }
    }

    /// The rows are those that belong into the answer.
    fn has_rows_of(&self, expected: &BTreeMap<Key, Vec<Value>>) {
        let Self { what, answer, rows, .. } = self;
        let (found, expected): (Vec<_>, Vec<_>) = (rows.keys().collect(), expected.keys().collect());
        assert_eq!(found, expected, "{what} is said to be certain\n{answer}");
    }
}

struct Run {
    case: Case,
    oracle: Oracle,
    /// How many events batch covers.
    covered: usize,
}

impl Run {
    fn check(&self, server: &Server) {
        let Case { unit, views, .. } = &self.case;
        for (i, view) in views.iter().enumerate() {
            let name = format!("view{i}");
            // A day is longer than most streams.
            let reach =
                if let view::Window::Days = view.window { 1_200 * unit + 200_000_000_000 } else { 1_200 * unit };
            let (from, to) = (format(-reach), format(reach));
            server.settle(&name);
            let covered = format!("n < {}", self.covered);
            let above = format!("n >= {}", self.covered);
            for (mode, which) in [("merged", "true"), ("batch", &*covered), ("speed", &*above)] {
                let (rows, mut answer) = match view.window {
                    view::Window::None => {
                        let answer = server.get(&format!("/v1/views/{name}/rows?mode={mode}&limit=100000"));
                        (answer["rows"].as_array().expect("rows").clone(), answer)
                    }
                    _ => server.range(&name, &from, &to, mode),
                };
                if let Some(answer) = answer.as_object_mut() {
                    answer.remove("rows");
                }
                let what = format!("{mode} at {}:\n{}\n", self.covered, view.ours(&name, *unit));
                let check = Check { rows: answered(view, &rows), what, view, answer };
                let expected = self.oracle.rows(view, which, *unit, true);
                if check.answer["exact"] == true {
                    check.is_exactly(&expected);
                } else {
                    assert!(mode != "batch" || self.covered == 0, "a version is exact: {}", check.what);
                    check.is_within(&self.oracle.rows(view, which, *unit, false));
                    if check.answer["certain"] == true {
                        check.has_rows_of(&expected);
                    }
                }
            }
        }
    }
}

fn format(time: Micros) -> String {
    let time = chrono::DateTime::from_timestamp_micros(time).expect("a time");
    time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn run(case: Case, on: impl Fn(Project) -> Project) {
    let Case { unit, watermark, .. } = case;
    let views: Vec<String> = case.views.iter().enumerate().map(|(i, v)| v.ours(&format!("view{i}"), unit)).collect();
    let project = Project::with_sql(&(table(watermark * unit) + &views.join("\n")));
    project.write("anabranch.toml", SETTINGS);
    let project = on(project);
    let names: Vec<String> = (0..views.len()).map(|i| format!("view{i}")).collect();
    let mut server = Server::start(&project);
    let mut run = Run { case, oracle: Oracle::new(), covered: 0 };
    for step in run.case.steps.clone() {
        let posted = match step {
            Step::Post(events) => events,
            Step::PostMany(count, seed) => many(count, seed),
            Step::Batch => {
                server.batch_all(&names.iter().map(String::as_str).collect::<Vec<_>>());
                run.covered = run.oracle.posted;
                run.check(&server);
                continue;
            }
            Step::Stop => {
                server.stop();
                server = Server::start(&project);
                continue;
            }
            Step::Kill => {
                server.kill();
                server = Server::start(&project);
                continue;
            }
        };
        let line = |e: &Event| {
            let key = e.key.map(|key| format!("k{key}"));
            let time = e.time * unit / 1_000;
            json!({"k": key, "v": e.whole, "d": e.double, "s": e.text, "b": e.truth, "u": e.unique, "ts": time})
                .to_string()
        };
        let receipt = server.post("events", posted.iter().map(line).collect::<Vec<_>>().join("\n"));
        assert_eq!(receipt["accepted"], posted.len(), "{receipt}");
        run.oracle.add(&posted, unit);
    }
    run.check(&server);
}

/// The same cases in every run, unless the environment has another seed, or wants so many times as many.
pub fn cases(cases: u32) -> ProptestConfig {
    let number = |name: &str| std::env::var(name).map_or(1, |number| number.parse().expect("a number"));
    let (seed, times) = (number("ANABRANCH_TEST_SEED"), number("ANABRANCH_TEST_TIMES"));
    eprintln!("seed {seed}; ANABRANCH_TEST_SEED gives another");
    let (cases, rng_seed) = (cases * u32::try_from(times).expect("a small number"), RngSeed::Fixed(seed));
    ProptestConfig { cases, rng_seed, max_shrink_iters: 60, failure_persistence: None, ..Default::default() }
}

/// Puts so many cases to the test.
fn run_all(count: u32, on: impl Fn(Project) -> Project) {
    let mut runner = TestRunner::new(cases(count));
    let outcome = runner.run(&case(), |case| {
        run(case, &on);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn two_thousand_random_views_answer_as_duckdb_does() {
    run_all(200, |project| project);
    let (held, all) = (HELD.load(Ordering::Relaxed), SKETCHED.load(Ordering::Relaxed));
    eprintln!("{held} of {all} bounds of sketches held");
    assert!(all > 0 && held * 100 >= all * 99, "bounds of sketches hold as often as answers say");
}

#[test]
fn on_kafka_random_views_answer_as_duckdb_does() {
    if let Some(brokers) = kafka() {
        run_all(10, |project| project.on_kafka(&brokers));
    }
}
