//! Random joins, look-ups, `LAG` and current rows on random streams, compared with DuckDB, which runs plain SQL over the events.

use std::collections::BTreeMap;

use duckdb::Connection;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::post;
use crate::random::cases;
use crate::support::{Project, Server, kafka};

const SETTINGS: &str = "
[speed]
snapshot_interval = '10 ms'
checkpoint_interval = '20 ms'
chunk_interval = '30 ms'
[batch]
scheduler = false
";

/// A unit of time, in microseconds.
const UNIT: i64 = 500_000;

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A join of the two streams.
    Inner,
    /// The same with the left rows that stay alone.
    Left,
    /// The left stream with itself.
    Own,
    /// Rows with the ones before them.
    Lag,
    /// The left stream with the versions of the changelog that held then.
    AsOf,
    /// The same with the left rows that find none.
    LeftAsOf,
    /// The changelog's current rows.
    Current,
}

#[derive(Debug, Clone)]
struct View {
    kind: Kind,
    /// By how much the right row is later, from and to, in units.
    within: (i64, i64),
    is_less: bool,
    /// In units; none means all of time.
    window: Option<i64>,
    lateness: i64,
    /// Whether `LAG` leaves rows without a key out, which lie in every partition.
    has_keys: bool,
}

#[derive(Debug, Clone)]
struct Event {
    key: Option<u8>,
    value: Option<i64>,
    time: i64,
}

/// Which table an event is of: the left stream, the right one, or the changelog. There an event without a value deletes its key.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Table {
    Left,
    Right,
    Changelog,
}

/// How the platform runs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Processes {
    /// All in one. Streams are dealt to the partitions.
    One,
    /// The roles each in their own, two of them the speed layer. Streams are partitioned by what they are joined by.
    Roles,
}

/// The processes.
struct Running {
    /// Who answers.
    door: Server,
    /// Who folds, if that is somebody else.
    speed: Vec<Server>,
    _others: Vec<Server>,
}

impl Running {
    fn start(processes: Processes, project: &Project) -> Self {
        let role = |name| Server::start_role(name, project, &[]).unwrap_or_else(|said| panic!("{name}: {said}"));
        match processes {
            Processes::One => Self { door: Server::start(project), speed: Vec::new(), _others: Vec::new() },
            Processes::Roles => Self {
                door: role("serve"),
                speed: vec![role("speed"), role("speed")],
                _others: vec![role("archive"), role("batch")],
            },
        }
    }

    /// Ends the process that folds, or one of them, and starts another.
    fn again(mut self, project: &Project, end: impl Fn(Server)) -> Self {
        if self.speed.is_empty() {
            end(self.door);
            return Self { door: Server::start(project), ..self };
        }
        end(self.speed.remove(0));
        self.speed.push(Server::start_role("speed", project, &[]).unwrap_or_else(|said| panic!("{said}")));
        self
    }
}

#[derive(Debug, Clone)]
enum Step {
    Post(Table, Vec<Event>),
    Batch,
    Stop,
    Kill,
}

fn view() -> impl Strategy<Value = View> {
    let kinds = [Kind::Inner, Kind::Left, Kind::Own, Kind::Lag, Kind::AsOf, Kind::LeftAsOf, Kind::Current];
    let kind = proptest::sample::select(kinds.to_vec());
    let window = proptest::option::weighted(0.8, proptest::sample::select(vec![1_i64, 3, 10, 60]));
    let within = (-12_i64..12, 0_i64..15).prop_map(|(from, length)| (from, from + length));
    (kind, within, any::<bool>(), window, prop_oneof![Just(0_i64), Just(20)]).prop_map(
        |(kind, within, is_less, window, lateness)| {
            // Without windows it would never be sure that a row stays alone.
            let window = match kind {
                Kind::Left => window.or(Some(7)),
                Kind::Current => None,
                _ => window,
            };
            View { kind, within, is_less, window, lateness, has_keys: false }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = proptest::option::weighted(0.9, 0_u8..3);
    let event = (key, proptest::option::weighted(0.9, -5_i64..9), -40_i64..40).prop_map(|(key, value, time)| Event {
        key,
        value,
        time,
    });
    let table = proptest::sample::select(vec![Table::Left, Table::Right, Table::Changelog]);
    let post = (table, proptest::collection::vec(event, 1..25)).prop_map(|(table, all)| Step::Post(table, all));
    let step = prop_oneof![10 => post, 3 => Just(Step::Batch), 1 => Just(Step::Stop), 1 => Just(Step::Kill)];
    proptest::collection::vec(step, 1..10)
}

impl View {
    fn ours(&self, i: usize) -> String {
        let interval = |units: i64| format!("INTERVAL '{} milliseconds'", units * UNIT / 1_000);
        let shifted =
            |time: &str, units: i64| format!("{time} {} {}", if units < 0 { "-" } else { "+" }, interval(units.abs()));
        let between = |time: &str, base: &str| {
            format!("{time} BETWEEN {} AND {}", shifted(base, self.within.0), shifted(base, self.within.1))
        };
        let less = |a: &str, b: &str| if self.is_less { format!(" AND {a} < {b}") } else { String::new() };
        let rows = match self.kind {
            Kind::Inner | Kind::Left => format!(
                "SELECT l.k AS k, x AS x, y AS y, l.ts AS t FROM l {} JOIN r ON l.k = r.k AND {}{}",
                if matches!(self.kind, Kind::Left) { "LEFT" } else { "" },
                between("r.ts", "l.ts"),
                less("x", "y")
            ),
            Kind::Own => format!(
                "SELECT a.k AS k, a.x AS x, b.x AS y, b.ts AS t FROM l a JOIN l b ON a.k = b.k AND {}{}",
                between("b.ts", "a.ts"),
                less("a.x", "b.x")
            ),
            Kind::AsOf | Kind::LeftAsOf => format!(
                "SELECT l.k AS k, x AS x, y AS y, l.ts AS t FROM l {} JOIN u FOR SYSTEM_TIME AS OF l.ts AS u ON u.k = l.k{}",
                if matches!(self.kind, Kind::LeftAsOf) { "LEFT" } else { "" },
                less("x", "y")
            ),
            Kind::Current => format!(
                "SELECT CAST(y AS TEXT) AS k, y AS x, y AS y FROM u{}",
                if self.is_less { " WHERE y > 1" } else { "" }
            ),
            Kind::Lag => format!(
                "SELECT k, x, y, t FROM (SELECT k, x, LAG(x) OVER (PARTITION BY k ORDER BY ts) AS y, ts AS t FROM l{}) s{}",
                if self.has_keys { " WHERE k IS NOT NULL" } else { "" },
                if self.is_less { " WHERE x < y" } else { "" }
            ),
        };
        let lateness = format!("WITH (allowed_lateness = '{} ms')", self.lateness * UNIT / 1_000);
        let values = "count(*) AS n, sum(x) AS sx, sum(y) AS sy, max(y) AS my";
        match self.window {
            None => format!(
                "CREATE VIEW j{i} AS {rows};
                 CREATE MATERIALIZED VIEW view{i} {lateness} AS SELECT k, {values} FROM j{i} GROUP BY k;\n"
            ),
            Some(size) => format!(
                "CREATE VIEW j{i} AS {rows};
                 CREATE MATERIALIZED VIEW view{i} {lateness} AS SELECT window_start, window_end, k, {values}
                 FROM TUMBLE(j{i}, t, {}) GROUP BY window_start, window_end, k;\n",
                interval(size)
            ),
        }
    }

    /// Of the events of each table up to a number.
    fn theirs(&self, upto: [usize; 3]) -> String {
        let (from, to) = (self.within.0 * UNIT, self.within.1 * UNIT);
        let less = |a: &str, b: &str| if self.is_less { format!(" AND {a} < {b}") } else { String::new() };
        let tables = format!(
            "WITH l AS (SELECT * FROM ll WHERE n < {}), r AS (SELECT * FROM rr WHERE n < {}), u AS (SELECT * FROM uu WHERE n < {})",
            upto[0], upto[1], upto[2]
        );
        let rows = match self.kind {
            Kind::Inner | Kind::Left => format!(
                "SELECT l.k, l.v AS x, r.v AS y, l.us AS t FROM l {} JOIN r ON l.k = r.k AND r.us BETWEEN l.us + {from} AND l.us + {to}{}",
                if matches!(self.kind, Kind::Left) { "LEFT" } else { "" },
                less("l.v", "r.v")
            ),
            Kind::Own => format!(
                "SELECT a.k, a.v AS x, b.v AS y, b.us AS t FROM l a JOIN l b ON a.k = b.k AND b.us BETWEEN a.us + {from} AND a.us + {to}{}",
                less("a.v", "b.v")
            ),
            Kind::AsOf | Kind::LeftAsOf => format!(
                "SELECT {} FROM (SELECT l.k, l.v AS x, u.v AS y, l.us AS t,
                 row_number() OVER (PARTITION BY l.n ORDER BY u.us DESC NULLS LAST, u.n DESC) AS i
                 FROM l LEFT JOIN u ON u.k = l.k AND u.us <= l.us) WHERE i = 1{}",
                match (self.kind, self.is_less) {
                    (Kind::LeftAsOf, true) => "k, x, CASE WHEN x < y THEN y END AS y, t",
                    _ => "k, x, y, t",
                },
                match (self.kind, self.is_less) {
                    (Kind::LeftAsOf, _) => "",
                    (_, true) => " AND x < y",
                    (_, false) => " AND y IS NOT NULL",
                }
            ),
            Kind::Current => format!(
                "SELECT v::TEXT AS k, v AS x, v AS y, 0 AS t FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY n DESC) AS i FROM u)
                 WHERE i = 1 AND v IS NOT NULL{}",
                if self.is_less { " AND v > 1" } else { "" }
            ),
            Kind::Lag => format!(
                "SELECT * FROM (SELECT k, v AS x, lag(v) OVER (PARTITION BY k ORDER BY us, n) AS y, us AS t FROM l{}){}",
                if self.has_keys { " WHERE k IS NOT NULL" } else { "" },
                if self.is_less { " WHERE x < y" } else { "" }
            ),
        };
        let start = match self.window {
            None => "0::BIGINT".to_owned(),
            Some(size) => format!("t - ((t % {0}) + {0}) % {0}", size * UNIT),
        };
        format!(
            "{tables} SELECT ({start})::BIGINT AS start, k, count(*), sum(x)::BIGINT, sum(y)::BIGINT, max(y) FROM ({rows}) GROUP BY start, k"
        )
    }
}

/// A window's start, and the key.
type Key = (i64, Option<String>);

struct Run {
    views: Vec<View>,
    duckdb: Connection,
    /// How many events each table has, and how many of them batch covers.
    posted: [usize; 3],
    covered: [usize; 3],
}

impl Run {
    fn add(&mut self, table: Table, events: &[Event]) {
        let side = table as usize;
        let mut appender = self.duckdb.appender(["ll", "rr", "uu"][side]).expect("an appender");
        for event in events {
            let key = event.key.map(|key| format!("k{key}"));
            let row = duckdb::params![self.posted[side] as i64, key, event.value, event.time * UNIT];
            appender.append_row(row).expect("appended");
            self.posted[side] += 1;
        }
        appender.flush().expect("written");
    }

    fn truth(&self, view: &View, upto: [usize; 3]) -> BTreeMap<Key, [Option<i64>; 4]> {
        let sql = view.theirs(upto);
        let mut statement = self.duckdb.prepare(&sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let mut rows = statement.query([]).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let mut all = BTreeMap::new();
        while let Some(row) = rows.next().expect("a row") {
            let key = (row.get(0).expect("a start"), row.get(1).expect("a key"));
            all.insert(key, [2, 3, 4, 5].map(|i| row.get(i).expect("a value")));
        }
        all
    }

    /// Compares answers with the truth about the same events. `is_over` says that nothing waits any more, but for the last events.
    fn check(&self, server: &Server, is_over: bool) {
        let micros = |text: &Value| {
            let time = chrono::DateTime::parse_from_rfc3339(text.as_str()?).expect("a time");
            Some(time.timestamp_micros())
        };
        for (i, view) in self.views.iter().enumerate() {
            let name = format!("view{i}");
            server.settle(&name);
            for (mode, upto) in [("merged", self.posted), ("batch", self.covered)] {
                let (rows, answer) = match view.window {
                    None => {
                        let answer = server.get(&format!("/v1/views/{name}/rows?mode={mode}&limit=100000"));
                        (answer["rows"].as_array().expect("rows").clone(), answer)
                    }
                    Some(_) => server.range(&name, "1969-12-31T23:50:00Z", "1970-01-01T00:10:00Z", mode),
                };
                let what = format!("{mode} at {:?} of {:?}:\n{}", self.covered, self.posted, view.ours(i));
                let mut truth = self.truth(view, upto);
                // Rows that stay alone are only there once that is sure.
                let closed = micros(&answer["watermark"]).unwrap_or(i64::MIN);
                let is_settled = |start: i64| {
                    let length = view.window.unwrap_or(0) + view.lateness;
                    !matches!(view.kind, Kind::Left) || is_over || start + length * UNIT <= closed
                };
                truth
                    .retain(|(start, _), _| is_settled(*start) && (view.window.is_none() || start.abs() < 600_000_000));
                let mut found = BTreeMap::new();
                for row in &rows {
                    let key = (micros(&row["window_start"]).unwrap_or(0), row["k"].as_str().map(str::to_owned));
                    let cell = |name: &str| ["", "_lower", "_upper"].map(|b| row[format!("{name}{b}")].as_i64());
                    if is_settled(key.0) {
                        assert!(found.insert(key, ["n", "sx", "sy", "my"].map(cell)).is_none(), "{what}: twice: {row}");
                    }
                }
                if answer["exact"] == true {
                    let values: BTreeMap<Key, [Option<i64>; 4]> =
                        found.iter().map(|(key, cells)| (key.clone(), cells.map(|cell| cell[0]))).collect();
                    assert_eq!(values, truth, "{what}\nis said to be exact\n{answer}");
                    continue;
                }
                let covers = |table: Table| self.covered[table as usize] > 0;
                let has_version = match view.kind {
                    Kind::Inner | Kind::Left => covers(Table::Left) || covers(Table::Right),
                    Kind::Own | Kind::Lag => covers(Table::Left),
                    Kind::AsOf | Kind::LeftAsOf => covers(Table::Left) || covers(Table::Changelog),
                    Kind::Current => covers(Table::Changelog),
                };
                assert!(mode != "batch" || !has_version, "a version is exact: {what}\n{answer}");
                if answer["incomplete"] == true {
                    continue;
                }
                for (key, cells) in &found {
                    let Some(truth) = truth.get(key) else { continue };
                    for ([_, lower, upper], truth) in cells.iter().zip(truth) {
                        let (Some(lower), Some(upper), Some(truth)) = (lower, upper, truth) else { continue };
                        assert!(
                            lower <= truth && truth <= upper,
                            "{what}: {key:?} is {truth}, not {cells:?}\n{answer}"
                        );
                    }
                }
            }
        }
    }
}

fn run(mut views: Vec<View>, watermark: i64, steps: &[Step], processes: Processes, on: impl Fn(Project) -> Project) {
    let delay = watermark * UNIT / 1_000;
    let table = |name: &str, key: &str, value: &str, partitions: u32| {
        let by = if processes == Processes::Roles && key.is_empty() { ", partition_by = 'k'" } else { "" };
        format!(
            "CREATE TABLE {name} (k TEXT {key}, {value} BIGINT, ts TIMESTAMP NOT NULL)
             WITH (topic = '{name}', event_time = 'ts', watermark = '{delay} ms', partitions = {partitions}{by});\n"
        )
    };
    views.iter_mut().for_each(|view| view.has_keys = processes == Processes::Roles);
    let partitions = if processes == Processes::Roles { [2, 2, 3] } else { [1, 2, 1] };
    let sql: Vec<String> = views.iter().enumerate().map(|(i, view)| view.ours(i)).collect();
    let project = Project::with_sql(
        &(table("l", "", "x", partitions[0])
            + &table("r", "", "y", partitions[1])
            + &table("u", "PRIMARY KEY", "y", partitions[2])
            + &sql.join("")),
    );
    project.write("anabranch.toml", SETTINGS);
    let project = on(project);
    let duckdb = Connection::open_in_memory().expect("DuckDB");
    let tables = "SET threads = 1; CREATE TABLE ll (n BIGINT, k TEXT, v BIGINT, us BIGINT);
                  CREATE TABLE rr (n BIGINT, k TEXT, v BIGINT, us BIGINT); CREATE TABLE uu (n BIGINT, k TEXT, v BIGINT, us BIGINT);";
    duckdb.execute_batch(tables).expect("tables");
    let names: Vec<String> = (0..views.len()).map(|i| format!("view{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut run = Run { views, duckdb, posted: [0; 3], covered: [0; 3] };
    let mut running = Running::start(processes, &project);
    let send = |server: &Server, run: &mut Run, table: Table, events: &[Event]| {
        let (topic, value) = [("l", "x"), ("r", "y"), ("u", "y")][table as usize];
        let mut events = events.to_vec();
        let line = |event: &mut Event| {
            let ts = event.time * UNIT / 1_000;
            if table == Table::Changelog {
                // A key is never null.
                event.key = event.key.or(Some(0));
            }
            let key = event.key.map(|key| format!("k{key}"));
            match event.value {
                None if table == Table::Changelog => json!({"k": key, "__deleted": true, "ts": ts}),
                given => json!({"k": key, value: given, "ts": ts}),
            }
        };
        let lines: Vec<Value> = events.iter_mut().map(line).collect();
        post(server, topic, &lines);
        run.add(table, &events);
    };
    for step in steps {
        match step {
            Step::Post(table, events) => {
                send(&running.door, &mut run, *table, events);
                run.check(&running.door, false);
            }
            Step::Batch => {
                running.door.batch_all(&names);
                run.covered = run.posted;
                run.check(&running.door, false);
            }
            Step::Stop => running = running.again(&project, Server::stop),
            Step::Kill => running = running.again(&project, Server::kill),
        }
    }
    // Time goes far on in each partition, by keys that meet nothing.
    for (table, key) in [(Table::Left, 100), (Table::Right, 120), (Table::Changelog, 140)] {
        let last = |i| Event { key: Some(key + i), value: None, time: 10_000 };
        send(&running.door, &mut run, table, &(0..12_u8).map(last).collect::<Vec<_>>());
    }
    run.check(&running.door, false);
    running.door.batch_all(&names);
    run.covered = run.posted;
    run.check(&running.door, true);
}

/// Puts so many streams to the test, with eight views of each.
fn run_all(count: u32, processes: Processes, on: impl Fn(Project) -> Project) {
    let mut runner = proptest::test_runner::TestRunner::new(cases(count));
    let case = (proptest::collection::vec(view(), 8), prop_oneof![Just(0_i64), Just(4), Just(80)], steps());
    let outcome = runner.run(&case, |(views, watermark, steps)| {
        run(views, watermark, &steps, processes, &on);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn random_joins_and_lags_answer_as_duckdb_does() {
    run_all(25, Processes::One, |project| project);
}

#[test]
fn on_kafka_random_joins_and_lags_answer_as_duckdb_does() {
    if let Some(brokers) = kafka() {
        run_all(4, Processes::One, |project| project.on_kafka(&brokers));
    }
}

#[test]
fn shared_out_among_processes_random_joins_and_lags_answer_as_duckdb_does() {
    if let Some(brokers) = kafka() {
        run_all(4, Processes::Roles, |project| project.on_kafka(&brokers));
    }
}
