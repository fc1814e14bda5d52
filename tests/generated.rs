//! Generated streams, cuts and restarts: speed, batch and merged answers against a plain fold.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Project, Server, kafka};

const SQL: &str = "
CREATE TABLE events (k TEXT, v BIGINT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', watermark = '2 seconds', partitions = 2, partition_by = 'k');
CREATE MATERIALIZED VIEW tumbling WITH (allowed_lateness = '3 seconds') AS
SELECT window_start, window_end, k, count(*) AS n, sum(v) AS total, min(v) AS least, max(v) AS most
FROM TUMBLE(events, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end, k;
CREATE MATERIALIZED VIEW sliding AS
SELECT window_start, window_end, k, count(*) FILTER (WHERE v > 0) AS n, sum(v) AS total, min(v) AS least, max(v) AS most
FROM HOP(events, ts, INTERVAL '4 seconds', INTERVAL '10 seconds') GROUP BY window_start, window_end, k
ORDER BY n DESC LIMIT 3;
CREATE MATERIALIZED VIEW ever AS
SELECT k, count(*) AS n, sum(v) AS total, min(v) AS least, max(v) AS most FROM events GROUP BY k;
";

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
    key: u8,
    value: Option<i64>,
    /// Milliseconds since the epoch; before 1970 too.
    time: i64,
}

#[derive(Debug, Clone)]
enum Step {
    Post(Vec<Event>),
    Batch,
    Stop,
    Kill,
}

fn event(keys: u8) -> impl Strategy<Value = Event> {
    // Few distinct instants, so that many are the same and many lie on a window's boundary.
    let time = prop_oneof![3 => -40_i64..40, 1 => -4_000_i64..4_000].prop_map(|half_seconds| half_seconds * 500);
    (0..keys, proptest::option::weighted(0.9, -5_i64..100), time).prop_map(|(key, value, time)| Event {
        key,
        value,
        time,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![Just(1_u8), Just(4), Just(40)].prop_flat_map(|keys| {
        let post = proptest::collection::vec(event(keys), 0..60).prop_map(Step::Post);
        let step = prop_oneof![5 => post, 2 => Just(Step::Batch), 1 => Just(Step::Stop), 1 => Just(Step::Kill)];
        proptest::collection::vec(step, 1..9)
    })
}

/// What a window's row must say.
#[derive(Debug, Default, Clone, PartialEq)]
struct Fold {
    rows: i64,
    positive: i64,
    total: Option<i64>,
    least: Option<i64>,
    most: Option<i64>,
}

impl Fold {
    fn add(&mut self, event: &Event) {
        self.rows += 1;
        if let Some(value) = event.value {
            self.positive += i64::from(value > 0);
            self.total = Some(self.total.unwrap_or(0) + value);
            self.least = Some(self.least.map_or(value, |least| least.min(value)));
            self.most = Some(self.most.map_or(value, |most| most.max(value)));
        }
    }
}

/// Windows that end at a multiple of `slide`, in milliseconds, by end and key.
fn fold(events: &[Event], size: i64, slide: i64) -> BTreeMap<(i64, String), Fold> {
    let mut folds: BTreeMap<(i64, String), Fold> = BTreeMap::new();
    for event in events {
        let mut start = event.time.div_euclid(slide) * slide;
        while start + size > event.time {
            folds.entry((start + size, format!("k{}", event.key))).or_default().add(event);
            start -= slide;
        }
    }
    folds
}

fn rows_by_window(rows: &[Value]) -> BTreeMap<(i64, String), Value> {
    let time = |row: &Value| match row["window_end"].as_str() {
        Some(end) => chrono::DateTime::parse_from_rfc3339(end).expect("a time").timestamp_millis(),
        None => 0,
    };
    rows.iter().map(|row| ((time(row), row["k"].as_str().unwrap_or_default().to_owned()), row.clone())).collect()
}

fn check_exact(what: &str, answer: &[Value], expected: &BTreeMap<(i64, String), Fold>, count: fn(&Fold) -> i64) {
    let rows = rows_by_window(answer);
    assert_eq!(rows.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (key, fold) in expected {
        let row = &rows[key];
        assert_eq!(row["n"], count(fold), "{what}: {row}");
        for (column, value) in [("total", fold.total), ("least", fold.least), ("most", fold.most)] {
            assert_eq!(row[column], json!(value), "{what}: {column} of {row}");
            assert_eq!(row[format!("{column}_lower")], row[column], "{what}: {row}");
            assert_eq!(row[format!("{column}_upper")], row[column], "{what}: {row}");
        }
    }
}

fn check_bounds(what: &str, answer: &[Value], expected: &BTreeMap<(i64, String), Fold>, count: fn(&Fold) -> i64) {
    for (key, row) in rows_by_window(answer) {
        let fold = expected.get(&key).unwrap_or_else(|| panic!("{what}: there is no such row: {row}"));
        let truths = [("n", Some(count(fold))), ("total", fold.total), ("least", fold.least), ("most", fold.most)];
        for (column, truth) in truths {
            let Some(truth) = truth else { continue };
            let lower = row[format!("{column}_lower")].as_i64().expect("a lower bound");
            let upper = row[format!("{column}_upper")].as_i64().expect("an upper bound");
            assert!((lower..=upper).contains(&truth), "{what}: {column} is truly {truth}: {row}");
        }
    }
}

fn check(server: &Server, posted: &[Event], covered: &[Event]) {
    for view in ["tumbling", "sliding", "ever"] {
        server.settle(view);
    }
    let range = ("1969-12-31T23:00:00Z", "1970-01-01T01:00:00Z");
    for (mode, events) in [("merged", posted), ("batch", covered)] {
        let rows = server.get(&format!("/v1/views/ever/rows?mode={mode}&limit=1000"));
        let expected = fold(events, i64::MAX / 4, i64::MAX / 4);
        let mut by_key: BTreeMap<(i64, String), Fold> = BTreeMap::new();
        for event in events {
            by_key.entry((0, format!("k{}", event.key))).or_default().add(event);
        }
        assert!(expected.len() >= by_key.len());
        check_exact(&format!("{mode} ever"), rows["rows"].as_array().expect("rows"), &by_key, |fold| fold.rows);

        let (rows, answer) = server.range("tumbling", range.0, range.1, mode);
        let expected = fold(events, 10_000, 10_000);
        let check = if answer["exact"] == true { check_exact } else { check_bounds };
        check(&format!("{mode} tumbling"), &rows, &expected, |fold| fold.rows);

        let (rows, answer) = server.range("sliding", range.0, range.1, mode);
        let all = fold(events, 10_000, 4_000);
        if answer["exact"] == true {
            let mut best: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
            for ((end, key), fold) in &all {
                best.entry(*end).or_default().push((-fold.positive, key.clone()));
            }
            let mut expected = BTreeMap::new();
            for (end, mut ranked) in best {
                ranked.sort();
                for (_, key) in ranked.into_iter().take(3) {
                    expected.insert((end, key.clone()), all[&(end, key)].clone());
                }
            }
            check_exact(&format!("{mode} sliding"), &rows, &expected, |fold| fold.positive);
        } else {
            check_bounds(&format!("{mode} sliding"), &rows, &all, |fold| fold.positive);
        }
    }
}

fn project() -> Project {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    project
}

fn run(project: &Project, steps: Vec<Step>) {
    let mut server = Server::start(project);
    let (mut posted, mut covered) = (Vec::new(), 0);
    for step in steps {
        match step {
            Step::Post(events) => {
                let line = |e: &Event| json!({"k": format!("k{}", e.key), "v": e.value, "ts": e.time}).to_string();
                let body = events.iter().map(line).collect::<Vec<_>>().join("\n");
                let receipt = server.post("events", body);
                assert_eq!(receipt["accepted"], events.len(), "{receipt}");
                posted.extend(events);
            }
            Step::Batch => {
                for view in ["tumbling", "sliding", "ever"] {
                    server.batch(view);
                }
                covered = posted.len();
                check(&server, &posted, &posted[..covered]);
            }
            Step::Stop => {
                server.stop();
                server = Server::start(project);
            }
            Step::Kill => {
                server.kill();
                server = Server::start(project);
            }
        }
    }
    check(&server, &posted, &posted[..covered]);
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 200, failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn speed_batch_and_merged_answers_are_those_of_a_plain_fold(steps in steps()) {
        run(&project(), steps);
    }
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn on_kafka_answers_are_those_of_a_plain_fold_too(steps in steps()) {
        if let Some(brokers) = kafka() {
            run(&project().on_kafka(&brokers), steps);
        }
    }
}
