//! Kills at every named failpoint, and between them, while events come in and batch runs go on. After each restart the
//! answers must speak of exactly the events that were acknowledged.

mod due;
mod seeds;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::RngExt;
use serde_json::{Value, json};

use crate::support::{Project, Server, kafka, totals, until};

const PIECE: usize = 20;

/// Every failpoint in the program, by name: a new one has to be added here. Those of compaction and of rebuilds are in
/// `batch-layer/tests/failpoints.rs`, as they come too seldom here; those of outputs are in
/// `tests/output/kills.rs`.
const LAYERS: [&str; 16] = [
    "speed::after_read",
    "speed::after_fold",
    "speed::before_checkpoint",
    "storage::staged",
    "speed::checkpoint_written",
    "speed::after_checkpoint",
    "speed::after_publish",
    "speed::after_drop",
    "archive::after_read",
    "archive::file_written",
    "archive::before_commit",
    "archive::after_commit",
    "batch::panes_written",
    "batch::windows_written",
    "batch::before_publish",
    "batch::after_publish",
];

/// Those of the embedded log.
const EMBEDDED: [&str; 6] = [
    "log::before_commit",
    "log::write",
    "log::written",
    "log::after_commit",
    "log::before_retain",
    "log::after_retain",
];

/// Those of the log on Kafka.
const KAFKA: [&str; 3] = ["kafka::claimed", "kafka::before_commit", "kafka::after_commit"];

const SQL: &str = "
CREATE TABLE events (id BIGINT, user_id TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', watermark = '5 seconds', partitions = 2);
CREATE MATERIALIZED VIEW per_user WITH (allowed_lateness = '1 hour') AS
SELECT window_start, window_end, user_id, count(*) AS n, sum(id) AS ids
FROM TUMBLE(events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
CREATE VIEW pairs AS SELECT a.id AS id FROM events a JOIN events b ON a.id = b.id AND b.ts BETWEEN a.ts AND a.ts + INTERVAL '1 second';
CREATE MATERIALIZED VIEW paired AS SELECT count(*) AS n, sum(id) AS ids FROM pairs;
";

const SETTINGS: &str = "
[speed]
snapshot_interval = '20 ms'
checkpoint_interval = '50 ms'
chunk_interval = '150 ms'
[archive]
interval = '50 ms'
target_rows = 100000
[batch]
scheduler = false
keep_versions = 2
";

fn event_time(id: usize) -> String {
    format!("2024-01-15T10:{:02}:{:02}Z", id / 60 % 60, id % 60)
}

fn piece(number: usize) -> String {
    let event = |id: usize| json!({"id": id, "user_id": format!("u{}", id % 7), "ts": event_time(id)});
    (number * PIECE..(number + 1) * PIECE).map(|id| event(id).to_string()).collect::<Vec<_>>().join("\n")
}

/// Posts a piece under its own key, so that a retry can't store it twice: after a crash, or when the log couldn't take it. Says
/// whether it was acknowledged: it wasn't if the server has gone.
fn post(server: &Server, number: usize) -> bool {
    let try_post = || {
        let request = server.request(reqwest::Method::POST, "/v1/topics/events/events");
        let answer = request.header("Idempotency-Key", format!("piece-{number}")).body(piece(number)).send().ok()?;
        Some((answer.status(), answer.json::<Value>().ok()?))
    };
    let mut is_acknowledged = false;
    until("the log takes a piece", || {
        let Some((status, receipt)) = try_post() else { return true };
        if status == 503 {
            return false;
        }
        assert!(status.is_success(), "{receipt}");
        assert_eq!(receipt["accepted"], PIECE, "{receipt}");
        is_acknowledged = true;
        true
    });
    is_acknowledged
}

/// Asks for a batch run.
fn submit(server: &Server, request: &Value) -> Option<String> {
    let submitted: Value = server.request(reqwest::Method::POST, "/v1/jobs").json(request).send().ok()?.json().ok()?;
    Some(submitted["id"].as_str().unwrap_or_else(|| panic!("{submitted}")).to_owned())
}

/// Asks for a batch run whenever the last one has ended, and counts them; `None` if the server has gone.
fn keep_running(server: &Server, (job, runs): &mut (Option<String>, usize)) -> Option<()> {
    if let Some(id) = job {
        let state: Value = server.try_get(&format!("/v1/jobs/{id}")).ok()?.json().ok()?;
        if matches!(state["state"].as_str(), Some("queued" | "running")) {
            return Some(());
        }
    }
    *job = Some(submit(server, &json!({"kind": "batch"}))?);
    *runs += 1;
    Some(())
}

/// Checks every answer against the pieces acknowledged so far. A piece that was cut off may be there or not.
fn check(server: &Server, acknowledged: usize) -> usize {
    let sums = |pieces: usize| {
        let events = (pieces * PIECE) as i64;
        (events, events * (events - 1) / 2)
    };
    server.settle("ever");
    server.settle("per_user");
    let ever = server.get("/v1/views/ever/rows");
    assert_eq!(ever["incomplete"], false, "{ever}");
    let counted = ever["rows"][0]["n"].as_i64().unwrap_or(0);
    let pieces = if counted == sums(acknowledged).0 { acknowledged } else { acknowledged + 1 };
    let (events, ids) = sums(pieces);
    assert_eq!(counted, events, "{acknowledged} pieces of {PIECE} were acknowledged: {ever}");
    assert_eq!(ever["rows"][0]["ids"].as_i64().unwrap_or(0), ids, "{ever}");
    // Each event is joined with itself alone.
    server.settle("paired");
    let paired = server.get("/v1/views/paired/rows");
    assert_eq!(paired["incomplete"], false, "{paired}");
    assert_eq!((&paired["rows"][0]["n"], &paired["rows"][0]["ids"]), (&json!(events), &json!(ids)), "{paired}");
    let (rows, answer) = server.range("per_user", "2024-01-15T10:00:00Z", "2024-01-15T12:00:00Z", "merged");
    assert_eq!(answer["incomplete"], false, "{answer}");
    let by_user = totals(&rows, |row| row["user_id"].as_str().unwrap_or_default().to_owned(), "n");
    let mut expected = BTreeMap::<String, i64>::new();
    for id in 0..events {
        *expected.entry(format!("u{}", id % 7)).or_default() += 1;
    }
    assert_eq!(by_user, expected);
    pieces
}

/// How many pieces are acknowledged and how many batch runs begin in the life of a process, however long that takes, if it
/// doesn't come to its failpoint.
const LIFE: (usize, usize) = (60, 4);

/// Kills a process so often, each time at the next of the failpoints, or where it is if it hasn't met that in its life.
fn kill(project: &Project, failpoints: &[&'static str], kills: usize) {
    let mut random =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha)).new_rng();
    let mut fired = BTreeMap::<&str, usize>::new();
    let mut acknowledged = 0;
    for kill in 0..kills {
        let failpoint = failpoints[kill % failpoints.len()];
        let crash = format!("{failpoint}:{}", random.random_range(1..most(failpoint)));
        let Ok(mut server) = Server::start_with(project, &[("ANABRANCH_CRASH_AT", &crash)]) else {
            // It met its failpoint before it listened.
            *fired.entry(failpoint).or_default() += 1;
            continue;
        };
        // One that hasn't fired by its last turn is waited for.
        let is_last = kill + failpoints.len() >= kills && !fired.contains_key(failpoint);
        let (pieces, runs) = if is_last { (20 * LIFE.0, 20 * LIFE.1) } else { LIFE };
        let before = acknowledged;
        let mut running = (None, 0);
        let mut alive = true;
        while alive && (acknowledged - before < pieces || running.1 < runs) {
            alive = post(&server, acknowledged);
            acknowledged += usize::from(alive);
            alive = alive && keep_running(&server, &mut running).is_some();
        }
        if alive {
            server.kill();
        } else {
            let status = server.wait();
            assert_eq!(status.signal(), Some(6), "it ended only because it was told to: {status}");
            *fired.entry(failpoint).or_default() += 1;
        }
        if kill % 10 == 9 {
            let server = Server::start(project);
            acknowledged = check(&server, acknowledged);
            server.kill();
        }
    }
    let server = Server::start(project);
    acknowledged = check(&server, acknowledged);
    server.batch("ever");
    server.batch("per_user");
    server.batch("paired");
    check(&server, acknowledged);
    for view in ["ever", "paired"] {
        let batch = server.get(&format!("/v1/views/{view}/rows?mode=batch"));
        assert_eq!(batch["rows"][0]["n"], acknowledged * PIECE, "{batch}");
    }
    eprintln!("{kills} kills, {acknowledged} pieces; failpoints that fired: {fired:?}");
    let silent: Vec<_> = failpoints.iter().filter(|name| !fired.contains_key(**name)).collect();
    assert!(silent.is_empty(), "these failpoints never fired: {silent:?}");
}

/// How often a failpoint may be passed before the process dies there: those of each request or micro-batch more often than those
/// of a batch run.
fn most(failpoint: &str) -> usize {
    let is_rare = failpoint.starts_with("batch::") || failpoint.ends_with("retain") || failpoint == "speed::after_drop";
    let often = ["log::", "kafka::", "speed::after_read", "speed::after_fold"];
    if is_rare {
        2
    } else if often.iter().any(|prefix| failpoint.starts_with(prefix)) {
        40
    } else {
        3
    }
}

#[test]
fn two_hundred_kills_lose_nothing_and_double_nothing() {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", &format!("[log]\nretention_bytes = '20 kB'\n{SETTINGS}"));
    kill(&project, &[&EMBEDDED[..], &LAYERS].concat(), 200);
}

/// A process that dies in the middle of an append leaves a transaction open. The next one's first append with the same key
/// waits until the broker has ended it, which is made to be soon.
const SOON: &str = "
[kafka.options]
'transaction.timeout.ms' = '2000'
'delivery.timeout.ms' = '2000'
";

#[test]
fn on_kafka_forty_kills_lose_nothing_and_double_nothing() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", &format!("[log]\nretention_age = '1 s'\n{SETTINGS}{SOON}"));
    let project = project.on_kafka(&brokers);
    kill(&project, &[&KAFKA[..], &LAYERS].concat(), 40);
}
