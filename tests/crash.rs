//! Kills at every named failpoint, and between them, while events come in and batch runs go on. After each restart the
//! answers must speak of exactly the events that were acknowledged.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::RngExt;
use serde_json::{Value, json};

use crate::support::{Project, Server, totals};

const KILLS: usize = 200;
const PIECE: usize = 20;
/// A process that hasn't met its failpoint by then is killed where it is.
const LIFE: Duration = Duration::from_secs(3);

/// Every failpoint in the program, by name: a new one has to be added here. Compaction's are in
/// `batch-layer/tests/failpoints.rs`, as an archive becomes due for it too seldom here.
const FAILPOINTS: [&str; 22] = [
    "log::before_commit",
    "log::write",
    "log::written",
    "log::after_commit",
    "log::before_retain",
    "log::after_retain",
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

const SQL: &str = "
CREATE TABLE events (id BIGINT, user_id TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', watermark = '5 seconds', partitions = 2);
CREATE MATERIALIZED VIEW per_user WITH (allowed_lateness = '1 hour') AS
SELECT window_start, window_end, user_id, count(*) AS n, sum(id) AS ids
FROM TUMBLE(events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
";

const SETTINGS: &str = "
[log]
retention_bytes = '20 kB'
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

fn piece(number: usize) -> String {
    let event = |id: usize| {
        let (minute, second) = (id / 60 % 60, id % 60);
        json!({"id": id, "user_id": format!("u{}", id % 7), "ts": format!("2024-01-15T10:{minute:02}:{second:02}Z")})
    };
    (number * PIECE..(number + 1) * PIECE).map(|id| event(id).to_string()).collect::<Vec<_>>().join("\n")
}

/// Posts a piece under its own key, so that a retry after a crash can't store it twice.
fn post(server: &Server, number: usize) -> bool {
    let request = server.request(reqwest::Method::POST, "/v1/topics/events/events");
    let answer = request.header("Idempotency-Key", format!("piece-{number}")).body(piece(number)).send();
    let Ok(answer) = answer else { return false };
    let status = answer.status();
    let Ok(receipt) = answer.json::<Value>() else { return false };
    assert!(status.is_success(), "{receipt}");
    assert_eq!(receipt["accepted"], PIECE, "{receipt}");
    true
}

/// Starts a batch run whenever the last one has ended; `None` if the server has gone.
fn keep_running(server: &Server, job: &mut Option<String>) -> Option<()> {
    if let Some(id) = job {
        let state: Value = server.try_get(&format!("/v1/jobs/{id}")).ok()?.json().ok()?;
        if matches!(state["state"].as_str(), Some("queued" | "running")) {
            return Some(());
        }
    }
    let request = server.request(reqwest::Method::POST, "/v1/jobs").json(&json!({"kind": "batch"}));
    let submitted: Value = request.send().ok()?.json().ok()?;
    *job = submitted["id"].as_str().map(str::to_owned);
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

#[test]
fn two_hundred_kills_lose_nothing_and_double_nothing() {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    let mut random =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha)).new_rng();
    let mut fired = BTreeMap::<&str, usize>::new();
    let mut acknowledged = 0;
    for life in 0..KILLS {
        let failpoint = FAILPOINTS[life % FAILPOINTS.len()];
        // Steps that each request or micro-batch takes are let pass more often than those of a batch run.
        let often = [
            "log::before_commit",
            "log::write",
            "log::written",
            "log::after_commit",
            "speed::after_read",
            "speed::after_fold",
        ]
        .contains(&failpoint);
        let rare =
            failpoint.starts_with("batch::") || failpoint.ends_with("retain") || failpoint == "speed::after_drop";
        let most = if often { 40 } else { 3 };
        let crash = format!("{failpoint}:{}", if rare { 1 } else { random.random_range(1..most) });
        let Ok(mut server) = Server::start_with(&project, &[("ANABRANCH_CRASH_AT", &crash)]) else {
            // It met its failpoint before it listened.
            *fired.entry(failpoint).or_default() += 1;
            continue;
        };
        let mut job = None;
        let mut alive = true;
        let started = Instant::now();
        while alive && started.elapsed() < if rare { LIFE * 4 } else { LIFE } {
            alive = post(&server, acknowledged) && keep_running(&server, &mut job).is_some();
            acknowledged += usize::from(alive);
        }
        if alive {
            server.kill();
        } else {
            let status = server.wait();
            assert_eq!(status.signal(), Some(6), "it ended only because it was told to: {status}");
            *fired.entry(failpoint).or_default() += 1;
        }
        if life % 10 == 9 {
            let server = Server::start(&project);
            acknowledged = check(&server, acknowledged);
            server.kill();
        }
    }
    let server = Server::start(&project);
    acknowledged = check(&server, acknowledged);
    server.batch("ever");
    server.batch("per_user");
    check(&server, acknowledged);
    let batch = server.get("/v1/views/ever/rows?mode=batch");
    assert_eq!(batch["rows"][0]["n"], acknowledged * PIECE, "{batch}");
    eprintln!("{KILLS} kills, {acknowledged} pieces; failpoints that fired: {fired:?}");
    let silent: Vec<_> = FAILPOINTS.iter().filter(|name| !fired.contains_key(**name)).collect();
    assert!(silent.is_empty(), "these failpoints never fired: {silent:?}");
}
