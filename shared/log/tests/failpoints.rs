//! What is stored, and what is answered, when a step of the embedded log fails or its process dies there; and that a client of Kafka
//! that doesn't end holds nobody up.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_log::clock::ManualClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::kafka::{KafkaLog, KafkaOptions};
use anabranch_log::position::Positions;
use anabranch_log::{Append, Appended, Idempotency, Log, LogError, ReadLimit, Retention};
use fail::FailScenario;

fn open(path: &Path) -> EmbeddedLog {
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(path, options, Arc::new(ManualClock::new(0))).expect("open");
    log.create_topic("t", 2).expect("create");
    log
}

/// Appends one record to each of two partitions, by a name.
fn append(log: &EmbeddedLog, name: &str) -> Result<Appended, LogError> {
    let parts = vec![(0, [name].iter().collect()), (1, [name].iter().collect())];
    let idempotency = Some(Idempotency { key: name.to_owned(), ..Idempotency::default() });
    log.append("t", Append { parts, idempotency, ..Append::default() })
}

fn records(log: &EmbeddedLog, partition: u32) -> Vec<String> {
    let mut reader = log.reader("t", &Positions::from([(partition, 0)])).expect("reader");
    let limit = ReadLimit { records: 100, bytes: 1000 };
    let batches = std::iter::from_fn(|| reader.poll(limit, Duration::ZERO).expect("poll"));
    batches
        .flat_map(|batch| batch.payloads.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect::<Vec<_>>())
        .collect()
}

fn holds(log: &EmbeddedLog, expected: &[&str]) {
    assert_eq!(records(log, 0), expected);
    assert_eq!(records(log, 1), expected);
}

#[test]
fn a_full_disk_is_named_and_nothing_is_stored() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    append(&log, "a").expect("append");
    fail::cfg("log::write", "return").expect("cfg");
    assert!(matches!(append(&log, "b"), Err(LogError::StorageFull { .. })));
    holds(&log, &["a"]);
    fail::remove("log::write");
    assert_eq!(append(&log, "b").expect("room again").repeated, None);
    holds(&log, &["a", "b"]);
    scenario.teardown();
}

#[test]
fn a_write_that_failed_after_it_was_stored_is_answered_as_stored() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    append(&log, "a").expect("append");
    fail::cfg("log::written", "return").expect("cfg");
    assert_eq!(append(&log, "b").expect("it is stored").repeated, None);
    fail::remove("log::written");
    assert!(append(&log, "b").expect("again").repeated.is_some());
    append(&log, "c").expect("append");
    drop(log);
    holds(&open(dir.path()), &["a", "b", "c"]);
    scenario.teardown();
}

#[test]
fn who_dies_before_the_commit_has_stored_nothing_and_afterwards_everything() {
    let scenario = FailScenario::setup();
    let dir = tempfile::tempdir().expect("directory");
    for (step, stored) in [("log::before_commit", false), ("log::after_commit", true)] {
        let log = open(dir.path());
        fail::cfg(step, "panic").expect("cfg");
        assert!(matches!(append(&log, step), Err(LogError::Closed)), "no answer");
        fail::remove(step);
        drop(log);
        let log = open(dir.path());
        assert_eq!(records(&log, 0).iter().any(|record| record == step), stored);
        assert_eq!(append(&log, step).expect("retry").repeated.is_some(), stored);
    }
    holds(&open(dir.path()), &["log::before_commit", "log::after_commit"]);
    scenario.teardown();
}

#[test]
fn who_dies_in_retention_has_deleted_all_of_it_or_nothing() {
    let scenario = FailScenario::setup();
    for (step, held) in [("log::before_retain", 0..3), ("log::after_retain", 2..3)] {
        let dir = tempfile::tempdir().expect("directory");
        let log = open(dir.path());
        for name in ["a", "b", "c"] {
            append(&log, name).expect("append");
        }
        fail::cfg(step, "panic").expect("cfg");
        let died = log.retain("t", Retention { age: None, bytes: Some(0) }, &Positions::from([(0, 2), (1, 0)]));
        assert!(matches!(died, Err(LogError::Closed)));
        fail::remove(step);
        drop(log);
        let log = open(dir.path());
        assert_eq!(log.bounds("t").expect("bounds")[&0], held);
        let mut reader = log.reader("t", &Positions::from([(0, held.start)])).expect("reader");
        let batch = reader.poll(ReadLimit { records: 9, bytes: 99 }, Duration::ZERO).expect("poll").expect("a batch");
        assert_eq!(batch.coverage, held);
    }
    scenario.teardown();
}

/// How the broker is reached that `scripts/with-kafka` starts, with topics of one's own; none on a machine that has none, but never in CI.
fn kafka() -> Option<KafkaOptions> {
    let Ok(brokers) = std::env::var("ANABRANCH_TEST_KAFKA") else {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests with a broker: use scripts/with-kafka");
        eprintln!("\n*** NOT TESTED: no Kafka broker. Run the tests with `scripts/with-kafka cargo test`. ***\n");
        return None;
    };
    Some(KafkaOptions { topic_prefix: format!("{}.", uuid::Uuid::new_v4()), ..KafkaOptions::new(brokers) })
}

/// What another process has answered is there, and comes a moment later than it is looked for.
#[test]
fn a_request_that_another_process_has_answered_isnt_stored_again_though_the_answer_comes_late() {
    let Some(options) = kafka() else { return };
    let scenario = FailScenario::setup();
    let open = || KafkaLog::open(options.clone(), Arc::new(ManualClock::new(0))).expect("open");
    let (one, other) = (open(), open());
    one.create_topic("t", 1).expect("create");
    let append = |log: &KafkaLog, key: &str| {
        let idempotency = Some(Idempotency { key: key.to_owned(), ..Idempotency::default() });
        let parts = vec![(0, [key].iter().collect())];
        log.append("t", Append { parts, idempotency, ..Append::default() }).expect("append")
    };
    for key in ["a", "b", "c", "d"] {
        // It has just been told where the partitions end.
        append(&one, "mine");
        append(&one, "mine");
        let first = append(&other, key);
        fail::cfg("kafka::fetch", "1*return").expect("cfg");
        let again = append(&one, key);
        fail::remove("kafka::fetch");
        assert_eq!((again.offsets, again.repeated), (first.offsets, Some(Vec::new())), "{key}");
    }
    scenario.teardown();
}

#[test]
fn nobody_waits_for_a_readers_client_to_be_closed() {
    let Some(options) = kafka() else { return };
    let scenario = FailScenario::setup();
    let log = KafkaLog::open(options, Arc::new(ManualClock::new(0))).expect("open");
    log.create_topic("t", 1).expect("create");
    let parts = vec![(0, ["a"].iter().collect())];
    log.append("t", Append { parts, ..Append::default() }).expect("append");
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    let limit = ReadLimit { records: 100, bytes: 1000 };
    assert!(reader.poll(limit, Duration::from_secs(60)).expect("poll").is_some());

    fail::cfg("kafka::close", "pause").expect("cfg");
    let dropping = std::thread::spawn(move || drop(reader));
    let begun = Instant::now();
    while !dropping.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it waits");
        std::thread::yield_now();
    }
    fail::remove("kafka::close");
    scenario.teardown();
}
