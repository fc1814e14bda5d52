//! On a real broker, which `scripts/with-kafka` starts.

use std::sync::Arc;

use super::*;
use crate::kafka::KafkaLog;
use crate::kafka::tests::{MANY, PATIENCE, brokers, fresh, open};
use crate::tests::{append, read_all};
use crate::{Log, Retention};

fn stream(name: &str, commit: Commit) -> Arc<Stream> {
    Arc::new(Stream { name: name.to_owned(), from: "orders".to_owned(), to: "big".to_owned(), commit })
}

/// A log with three partitions of orders.
fn cluster() -> Option<(KafkaLog, Outlets)> {
    let log = open(&fresh(brokers()?));
    log.create_topic("orders", 3).expect("create");
    let outlets = log.outlets(&uuid::Uuid::new_v4().to_string());
    Some((log, outlets))
}

fn parts(partition: Partition, records: &[&str]) -> Parts {
    vec![(partition, records.iter().collect())]
}

fn written(log: &KafkaLog) -> Vec<String> {
    let all = read_all(log, "big", Positions::from([(0, 0), (1, 0), (2, 0)]));
    all.into_values().flatten().collect()
}

#[test]
fn an_older_writer_can_store_nothing_any_more() {
    let Some((log, outlets)) = cluster() else { return };
    for commit in [Commit::WithRecords, Commit::BeforeRecords] {
        let stream = stream(&format!("big_{commit:?}"), commit);
        let (old, next) = outlets.open(&stream, 1).expect("open");
        assert_eq!(next, 0);
        old.write(&parts(0, &["a", "b"]), &Keys::new(), 2).expect("written");
        let (new, next) = outlets.open(&stream, 1).expect("open");
        assert_eq!(next, 2, "goes on where the old one was");
        let refused = old.write(&parts(0, &["x"]), &Keys::new(), 3);
        assert!(matches!(&refused, Err(LogError::Fenced { writer }) if writer.ends_with("-1")), "{refused:?}");
        let (other, next) = outlets.open(&stream, 2).expect("another partition has another writer");
        assert_eq!(next, 0);
        new.write(&parts(0, &["c"]), &Keys::new(), 3).expect("written");
        other.write(&parts(0, &["d"]), &Keys::new(), 9).expect("written");
        assert_eq!(
            outlets.positions(&stream.name, &stream.from).expect("positions"),
            Positions::from([(1, 3), (2, 9)]),
            "0 never began"
        );
    }
    assert_eq!(written(&log), ["a", "b", "c", "d", "a", "b", "c", "d"]);
    assert_eq!(log.bounds("big").expect("bounds").len(), 3, "created as wide as what it is made of");
}

#[test]
fn what_a_dead_writer_left_open_is_not_there() {
    let Some((log, outlets)) = cluster() else { return };
    let stream = stream("big", Commit::WithRecords);
    let (dead, _) = outlets.open(&stream, 0).expect("open");
    dead.write(&parts(0, &["a"]), &Keys::new(), 1).expect("written");
    dead.producer.begin_transaction().expect("begun");
    dead.send(&parts(0, &["x", "y"]), &Keys::new()).expect("sent");
    dead.send_position(3).expect("sent");
    let (next_one, next) = outlets.open(&stream, 0).expect("open");
    assert_eq!(next, 1);
    let committed = dead.producer.commit_transaction(PATIENCE);
    assert!(committed.is_err(), "it can't be committed any more");
    next_one.write(&parts(0, &["b"]), &Keys::new(), 3).expect("written");
    assert_eq!(written(&log), ["a", "b"]);
    assert_eq!(outlets.positions(&stream.name, &stream.from).expect("positions"), Positions::from([(0, 3)]));
}

#[test]
fn a_writer_that_repeats_fences_nobody() {
    let Some((log, outlets)) = cluster() else { return };
    let stream = stream("big", Commit::AfterRecords);
    let (old, _) = outlets.open(&stream, 0).expect("open");
    let (new, _) = outlets.open(&stream, 0).expect("open");
    new.write(&parts(0, &["a", "b"]), &Keys::new(), 2).expect("written");
    old.write(&parts(0, &["a"]), &Keys::new(), 1).expect("written");
    assert_eq!(written(&log), ["a", "b", "a"]);
    let (_, next) = outlets.open(&stream, 0).expect("open");
    assert_eq!(next, 1, "so one is repeated, and none lost");
}

#[test]
fn what_is_wanted_is_known_from_the_beginning() {
    let Some((log, outlets)) = cluster() else { return };
    append(&log, "orders", 0, &["a", "b", "c"]);
    let all = Retention { age: Some(std::time::Duration::ZERO), bytes: None };
    log.retain("orders", all, &Positions::from([(0, 1)])).expect("retain");
    let stream = stream("big", Commit::WithRecords);
    let (_, start) = outlets.open(&stream, 0).expect("open");
    assert_eq!(start, 1, "where the partition begins");
    log.retain("orders", all, &Positions::from([(0, 2)])).expect("retain");
    let (_, wanted) = outlets.open(&stream, 0).expect("open");
    assert_eq!(wanted, 1, "although it is gone");
    let read = log.reader("orders", &Positions::from([(0, wanted)])).expect("reader").poll(MANY, PATIENCE);
    assert!(matches!(read, Err(LogError::OutOfRange { wanted: 1, held, .. }) if held == (2..3)));
}

#[test]
fn a_record_that_the_topic_does_not_take_is_named() {
    let Some((log, outlets)) = cluster() else { return };
    let stream = stream("big", Commit::WithRecords);
    let (outlet, _) = outlets.open(&stream, 0).expect("open");
    // Nothing that could be compressed.
    let noise = std::iter::repeat_with(uuid::Uuid::new_v4).flat_map(uuid::Uuid::into_bytes);
    let large: Vec<u8> = noise.take(2_000_000).collect();
    let part = vec![(0, [&b"small"[..], &large, b"small"].iter().collect())];
    let refused = outlet.write(&part, &Keys::new(), 3);
    assert!(matches!(&refused, Err(LogError::TooLarge { topic, bytes: 2_000_000 }) if topic == "big"), "{refused:?}");
    assert!(written(&log).is_empty());
    let (_, next) = outlets.open(&stream, 0).expect("open");
    assert_eq!(next, 0);
}
