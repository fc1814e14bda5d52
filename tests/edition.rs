//! Tables whose columns change, through the real binary: what speed, batch and both together say of every record is what the
//! definition says under which it was archived.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, kafka, until};

const SETTINGS: &str = "
[archive]
interval = '1 hour'
[batch]
scheduler = false
";

/// A column beside `who` and `ts`: its name, its type, and whether it has to be there.
type Column = (&'static str, &'static str, bool);

const NUMBER: Column = ("value", "BIGINT", false);
const TEXT: Column = ("value", "TEXT", false);

/// What happens to a table: its columns in three lives of the process.
fn changes() -> Vec<(&'static str, [Vec<Column>; 3])> {
    let then = |before: &[Column], after: &[Column]| [before.to_vec(), after.to_vec(), after.to_vec()];
    let country = |required| ("country", "TEXT", required);
    vec![
        ("added", then(&[NUMBER], &[NUMBER, country(false)])),
        ("added_not_null", then(&[NUMBER], &[NUMBER, country(true)])),
        ("made_not_null", then(&[NUMBER], &[("value", "BIGINT", true)])),
        ("dropped", then(&[NUMBER], &[])),
        ("dropped_and_added_again", [vec![NUMBER], vec![], vec![NUMBER]]),
        ("bigint_to_double", then(&[NUMBER], &[("value", "DOUBLE", false)])),
        ("bigint_to_text", then(&[NUMBER], &[TEXT])),
        ("text_to_bigint", then(&[TEXT], &[NUMBER])),
        ("text_to_json", then(&[TEXT], &[("value", "JSON", false)])),
        ("there_and_back", [vec![NUMBER], vec![TEXT], vec![NUMBER]]),
        ("the_partition_columns_name", then(&[NUMBER], &[NUMBER, ("day", "BIGINT", false)])),
        ("another_case", [vec![NUMBER], vec![], vec![("Value", "BIGINT", false)]]),
    ]
}

/// One table, whose records are archived in each life, or not before the last one.
struct Case {
    name: String,
    lives: [Vec<Column>; 3],
    archives: bool,
    /// Each record that the log has, with the life in which it was archived, if it is.
    records: Vec<(Value, Option<usize>)>,
}

/// Whether a column of a type holds a record's value.
fn fits((name, data_type, required): &Column, record: &Value) -> bool {
    match &record[name] {
        Value::Null => !required,
        value => match *data_type {
            "BIGINT" => value.is_i64(),
            "DOUBLE" => value.is_number(),
            "TEXT" => value.is_string(),
            _ => true,
        },
    }
}

fn is_event(columns: &[Column], record: &Value) -> bool {
    columns.iter().all(|column| fits(column, record))
}

impl Case {
    fn sql(&self, life: usize) -> String {
        let (name, columns) = (&self.name, &self.lives[life]);
        let column = |(name, data_type, required): &Column| {
            format!("\"{name}\" {data_type}{}, ", if *required { " NOT NULL" } else { "" })
        };
        let figures = |(name, data_type, _): &Column| {
            let sum = match *data_type {
                "BIGINT" | "DOUBLE" => format!(", sum(\"{name}\") AS sum_{}", name.to_lowercase()),
                _ => String::new(),
            };
            format!(", count(\"{name}\") AS has_{}{sum}", name.to_lowercase())
        };
        let columns_sql: String = columns.iter().map(column).collect();
        let figures: String = columns.iter().map(figures).collect();
        format!(
            "CREATE TABLE {name} (who TEXT, {columns_sql}ts TIMESTAMP NOT NULL) \
             WITH (topic = '{name}', event_time = 'ts', partitions = 2);\n\
             CREATE MATERIALIZED VIEW of_{name} AS SELECT who, count(*) AS n{figures} FROM {name} GROUP BY who;\n"
        )
    }

    fn view(&self) -> String {
        format!("of_{}", self.name)
    }

    /// Posts a round of records, of which the log takes those that are events now.
    fn post(&mut self, server: &Server, life: usize) {
        let records = [
            json!({"who": "a", "value": 1, "country": "de", "day": 1, "Value": 7}),
            json!({"who": "b", "value": "2", "country": "fr"}),
            json!({"who": "c"}),
            json!({"who": "d", "value": 4}),
            json!({"who": "e", "value": null, "country": null, "day": 3}),
            json!({"who": "f", "value": 5.5, "country": "it", "day": 9}),
        ];
        let events: Vec<Value> = records.into_iter().filter(|record| is_event(&self.lives[life], record)).collect();
        let second = self.records.len();
        let line = |(i, event): (usize, &Value)| {
            let mut event = event.clone();
            event["ts"] = format!("2024-01-15T10:{:02}:{:02}Z", (second + i) / 60, (second + i) % 60).into();
            event.to_string()
        };
        let lines: Vec<String> = events.iter().enumerate().map(line).collect();
        let receipt = server.post(&self.name, lines.join("\n"));
        assert_eq!(receipt["accepted"], events.len(), "{}: {receipt}", self.name);
        self.records.extend(events.into_iter().map(|event| (event, None)));
    }

    fn archived(&mut self, life: usize) {
        self.records.iter_mut().for_each(|(_, archived)| *archived = archived.or(Some(life)));
    }

    /// The view's rows in a life, by the records.
    fn rows(&self, life: usize) -> BTreeMap<String, Value> {
        let mut rows = BTreeMap::new();
        for (record, archived) in &self.records {
            let governing = &self.lives[archived.unwrap_or(life)];
            if !is_event(governing, record) {
                continue;
            }
            let who = record["who"].as_str().expect("who").to_owned();
            let row = rows.entry(who.clone()).or_insert_with(|| json!({"who": who, "n": 0}));
            row["n"] = (row["n"].as_i64().expect("a count") + 1).into();
            for (name, data_type, _) in &self.lives[life] {
                let is_read = governing.iter().any(|(had, was, _)| (had, was) == (name, data_type));
                let value = if is_read { &record[name] } else { &Value::Null };
                let (has, sum) = (format!("has_{}", name.to_lowercase()), format!("sum_{}", name.to_lowercase()));
                row[&has] = (row[&has].as_i64().unwrap_or(0) + i64::from(!value.is_null())).into();
                let added = |sum: &Value| match (value, *data_type) {
                    (Value::Null, _) => sum.clone(),
                    (value, "BIGINT") => (sum.as_i64().unwrap_or(0) + value.as_i64().expect("an integer")).into(),
                    (value, _) => (sum.as_f64().unwrap_or(0.0) + value.as_f64().expect("a number")).into(),
                };
                if matches!(*data_type, "BIGINT" | "DOUBLE") {
                    row[&sum] = added(&row[&sum]);
                }
            }
        }
        rows
    }

    /// Checks what a mode says, and gives the version that it is from.
    fn check(&self, server: &Server, life: usize, mode: &str) -> Value {
        let answer = server.get(&format!("/v1/views/{}/rows?mode={mode}&limit=100", self.view()));
        let of = format!("{}, archived {}, life {life}, {mode}: {answer}", self.name, self.archives);
        assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(true), &json!(false)), "{of}");
        let said = answer["rows"].as_array().expect("rows").iter().map(|row| {
            let is_bound = |name: &str| name.ends_with("_lower") || name.ends_with("_upper");
            let row = row.as_object().expect("a row").iter().filter(|(name, _)| !is_bound(name));
            let row: serde_json::Map<String, Value> = row.map(|(name, value)| (name.clone(), value.clone())).collect();
            (row["who"].as_str().expect("who").to_owned(), Value::Object(row))
        });
        assert_eq!(said.collect::<BTreeMap<_, _>>(), self.rows(life), "{of}");
        answer["sources"]["batch"]["version"].clone()
    }
}

/// Computes versions of the cases' views, and checks them.
fn publish(server: &Server, cases: &mut [&mut Case], life: usize) {
    let views: Vec<String> = cases.iter().map(|case| case.view()).collect();
    let versions = server.batch_all(&views.iter().map(String::as_str).collect::<Vec<_>>());
    for case in cases {
        case.archived(life);
        for mode in ["batch", "merged"] {
            assert_eq!(case.check(server, life, mode), versions[case.view()], "{}", case.name);
        }
    }
}

#[test]
fn a_changed_column_is_answered_alike_by_speed_by_batch_and_by_both_together() {
    let case = |archives| {
        move |(name, lives): (&str, [Vec<Column>; 3])| {
            let name = format!("{name}_{}", if archives { "archived" } else { "kept" });
            Case { name, lives, archives, records: Vec::new() }
        }
    };
    let mut cases: Vec<Case> =
        changes().into_iter().map(case(true)).chain(changes().into_iter().map(case(false))).collect();
    let project = Project::with_sql("");
    project.write("anabranch.toml", SETTINGS);
    for life in 0..3 {
        project.write("views/views.sql", &cases.iter().map(|case| case.sql(life)).collect::<String>());
        let server = Server::start(&project);
        for case in &mut cases {
            case.post(&server, life);
        }
        for case in &cases {
            server.settle(&case.view());
            case.check(&server, life, "merged");
            if !case.archives {
                // There is no version yet: the speed layer has everything.
                case.check(&server, life, "speed");
            }
        }
        publish(&server, &mut cases.iter_mut().filter(|case| case.archives || life == 2).collect::<Vec<_>>(), life);
        for case in &mut cases {
            case.post(&server, life);
        }
        for case in &cases {
            server.settle(&case.view());
            let version = case.check(&server, life, "merged");
            assert_eq!(
                version.is_null(),
                !case.archives && life < 2,
                "{}: a version, and what came after it",
                case.name
            );
        }
        if life == 2 {
            publish(&server, &mut cases.iter_mut().collect::<Vec<_>>(), life);
        }
        server.stop();
    }
}

const TWO: &str = "
CREATE TABLE moved (who TEXT, ts TIMESTAMP NOT NULL, at TIMESTAMP NOT NULL) WITH (topic = 'moved', event_time = '{time}');
CREATE MATERIALIZED VIEW of_moved AS SELECT count(*) AS n FROM moved;
CREATE TABLE others (ts TIMESTAMP NOT NULL) WITH (topic = 'others', event_time = 'ts');
CREATE MATERIALIZED VIEW of_others AS SELECT count(*) AS n FROM others;
";

#[test]
fn another_event_time_stops_its_table_alone_until_the_archive_is_rebuilt() {
    let project = Project::with_sql(&TWO.replace("{time}", "ts"));
    let post = |server: &Server| {
        let (ts, at) = ("2024-01-15T10:00:00Z", "2024-01-16T10:00:00Z");
        server.post("moved", json!({"who": "a", "ts": ts, "at": at}).to_string());
        server.post("others", json!({"ts": ts}).to_string());
    };
    let server = Server::start(&project);
    post(&server);
    server.batch_all(&["of_moved", "of_others"]);
    server.stop();

    project.write("views/views.sql", &TWO.replace("{time}", "at"));
    let why = "its event time is `at` now, but its archive is by `ts`; `anabranch archive rebuild moved` archives anew";
    let checked = anabranch().args(["views", "check"]).arg(project.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.code() == Some(2) && said.contains(why), "{said}");
    let server = Server::start(&project);
    let told =
        ["view `of_moved`: its source has stopped: its event", "table `moved`: archiving has stopped: its event"];
    // The other table's view may be on its way yet.
    until("these reasons and no other", || {
        let readiness = server.until_stopped(why);
        let reasons = readiness["reasons"].as_array().expect("reasons").iter().filter_map(Value::as_str);
        let is_told = |reason: &str| told.iter().position(|begin| reason.starts_with(begin));
        reasons.map(is_told).collect::<BTreeSet<_>>() == BTreeSet::from([Some(0), Some(1)])
    });
    post(&server);
    let answer = server.get("/v1/views/of_moved/rows");
    assert_eq!((&answer["exact"], &answer["missing"]), (&json!(false), &json!({"moved": {"0": [0, 2]}})), "{answer}");
    assert!(answer["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{answer}");
    server.batch("of_others");
    server.settle("of_others");
    let answer = server.get("/v1/views/of_others/rows");
    assert_eq!((&answer["exact"], &answer["rows"][0]["n"]), (&json!(true), &json!(2)), "{answer}");
    server.stop();

    let rebuild = ["archive", "rebuild", "moved", "--project"];
    let rebuilt = anabranch().args(rebuild).arg(project.path()).output().expect("it runs");
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let server = Server::start(&project);
    server.settle("of_moved");
    let answer = server.get("/v1/views/of_moved/rows");
    assert_eq!((&answer["exact"], &answer["rows"][0]["n"]), (&json!(true), &json!(2)), "{answer}");
    server.until_ready();
    server.stop();
}

#[test]
fn processes_at_work_notice_a_rebuild_and_no_answer_is_made_of_both() {
    let Some(brokers) = kafka() else { return };
    let sql = |data_type: &str| {
        format!(
            "CREATE TABLE events (value {data_type}, ts TIMESTAMP NOT NULL) \
             WITH (topic = 'events', event_time = 'ts', partitions = 2);\n\
             CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, count(value) AS valued FROM events;\n"
        )
    };
    let project = Project::with_sql(&sql("BIGINT"));
    project.write("anabranch.toml", SETTINGS);
    let project = project.on_kafka(&brokers);
    let role = |name: &str| {
        Server::start_role(name, &project, &[]).unwrap_or_else(|said| panic!("{name} did not start:\n{said}"))
    };
    let post = |ingest: &Server, events: usize| {
        let event = json!({"value": 1, "ts": "2024-01-15T10:00:00Z"}).to_string();
        assert_eq!(ingest.post("events", vec![event; events].join("\n"))["accepted"], events);
    };
    // What a transaction has committed is readable a moment after it is acknowledged, and a run archives what is readable.
    let counted = |serve: &Server, events: usize| {
        until("all are counted", || serve.get("/v1/views/ever/rows")["rows"][0]["n"] == events);
    };
    let (ingest, archive, batch) = (role("ingest"), role("archive"), role("batch"));
    let (speed, serve) = (role("speed"), role("serve"));
    post(&ingest, 10);
    counted(&serve, 10);
    serve.batch("ever");
    for role in [ingest, archive, batch, speed, serve] {
        role.stop();
    }

    // The definition is another for what comes now.
    project.write("views/views.sql", &sql("DOUBLE"));
    let (ingest, archive, batch) = (role("ingest"), role("archive"), role("batch"));
    let (speed, serve) = (role("speed"), role("serve"));
    post(&ingest, 10);
    counted(&serve, 20);
    serve.batch("ever");
    post(&ingest, 4);
    serve.settle("ever");
    let exact = || {
        let answer = serve.get("/v1/views/ever/rows");
        (answer["exact"] == true).then(|| (answer["rows"][0]["n"].clone(), answer["rows"][0]["valued"].clone()))
    };
    let (before, after) = (Some((json!(24), json!(14))), Some((json!(24), json!(24))));
    until("an exact answer", || exact() == before);
    let rebuild = ["archive", "rebuild", "events", "--project"];
    let rebuild = anabranch().args(rebuild).arg(project.path()).stderr(Stdio::piped()).spawn().expect("it runs");
    until("the rebuild is noticed", || {
        let exact = exact();
        // The first ten have no value under the definition before, and all have one since. The newest may still be on their way.
        let of_one =
            |(n, valued): &(Value, Value)| n == valued || n.as_i64() == valued.as_i64().map(|valued| valued + 10);
        assert!(exact.as_ref().is_none_or(of_one), "{exact:?}");
        exact == after && serve.get("/v1/views/ever")["coverage"]["batch"]["version"] == 3
    });
    let rebuilt = rebuild.wait_with_output().expect("it ends");
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    // What comes later is read and archived as ever.
    post(&ingest, 2);
    counted(&serve, 26);
    serve.batch("ever");
    until("an exact answer", || exact() == Some((json!(26), json!(26))));
    for role in [&archive, &batch, &speed, &serve] {
        role.until_ready();
    }
}
