//! On a real broker, which `scripts/with-kafka` starts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::AdminOptions;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::{KafkaLog, KafkaOptions};
use crate::clock::{ManualClock, SystemClock};
use crate::position::Positions;
use crate::tests::{Open, append, behaviours, drain, part, read_all, strings};
use crate::{Append, Extras, Idempotency, Log, LogError, Payloads, ReadLimit, Retention, Stalls};

pub(super) const MANY: ReadLimit = ReadLimit { records: 100_000, bytes: 64 << 20 };
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A broker's address; none on a machine that has none, but never in CI.
pub(super) fn brokers() -> Option<String> {
    let brokers = std::env::var("ANABRANCH_TEST_KAFKA").ok();
    if brokers.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI runs the tests with a broker: use scripts/with-kafka");
        eprintln!("\n*** NOT TESTED: no Kafka broker. Run the tests with `scripts/with-kafka cargo test`. ***\n");
    }
    brokers
}

pub(super) fn fresh(brokers: String) -> KafkaOptions {
    KafkaOptions { topic_prefix: format!("{}.", uuid::Uuid::new_v4()), ..KafkaOptions::new(brokers) }
}

pub(super) fn open(options: &KafkaOptions) -> KafkaLog {
    KafkaLog::open(options.clone(), Arc::new(SystemClock)).expect("open")
}

fn on_kafka(behaviour: &dyn Fn(Open<'_>)) {
    let Some(brokers) = brokers() else { return };
    let options = fresh(brokers);
    behaviour(&|| Arc::new(open(&options)));
}

// All but the fairness to the record: whose records librdkafka fetches first is its own choice.
behaviours!(on_kafka:
    topics_are_created_and_extended,
    records_are_read_in_order_with_their_offsets,
    unknown_topics_and_partitions_are_named,
    a_reader_starts_inside_what_was_stored_together,
    limits_cut_and_join_without_gaps,
    a_record_above_the_limit_comes_alone,
    a_waiting_reader_is_woken_by_an_append,
    a_caught_up_reader_gets_nothing,
    an_append_is_stored_in_all_partitions_or_none,
    a_repeated_request_is_answered_with_the_first_outcome,
    one_of_many_equal_requests_is_stored,
    a_key_that_comes_with_another_digest_is_refused,
    retention_spares_what_must_be_kept,
    wanted_offsets_outside_the_log_are_an_error,
    concurrent_appends_are_each_there_once,
    keys_are_brought_to_whoever_asks_for_them,
    everything_is_there_after_reopening,
    what_was_noted_of_a_topic_fits_it_after_reopening,
);

/// Waits until the partition ends there: a broker answers to the end of a transaction before it writes the marker.
fn until_ends_at(log: &KafkaLog, end: u64) {
    let begun = Instant::now();
    loop {
        let held = log.bounds("t").expect("bounds")[&0].clone();
        if held.end == end {
            return;
        }
        assert!(held.end < end && begun.elapsed() < PATIENCE, "{held:?}, but {end} is due");
    }
}

/// There is room for 64 MiB.
#[test]
fn an_append_waits_for_room_in_the_producers_queue() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    log.create_topic("t", 1).expect("create");
    let records: Payloads = std::iter::repeat_n(vec![b'x'; 512 << 10], 160).collect();
    let appended = log.append("t", Append { parts: vec![(0, records)], ..Append::default() }).expect("stored");
    assert_eq!(appended.offsets[&0], 0..160);
}

#[test]
fn a_producer_that_has_failed_for_good_is_replaced() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    log.create_topic("t", 1).expect("create");
    let append = || log.append("t", Append { parts: vec![(0, ["a"].into_iter().collect())], ..Append::default() });
    append().expect("stored");
    let producer = log.producer.current().expect("a producer");
    super::identity::fail_for_good(producer.client().native_ptr());
    assert!(producer.client().fatal_error().is_some());
    assert_eq!(append().expect("stored by another one").offsets[&0], 1..2);
    assert!(!Arc::ptr_eq(&producer, &log.producer.current().expect("a producer")));
}

fn transactional(options: &KafkaOptions) -> BaseProducer {
    let id = uuid::Uuid::new_v4().to_string();
    let producer: BaseProducer = options.client(&[("transactional.id", &id)]).create().expect("a producer");
    producer.init_transactions(PATIENCE).expect("transactions");
    producer
}

#[test]
fn aborted_records_are_not_there_and_markers_are_no_gap() {
    let Some(brokers) = brokers() else { return };
    let options = fresh(brokers);
    let log = open(&options);
    log.create_topic("t", 1).expect("create");
    let producer = transactional(&options);
    let topic = format!("{}t", options.topic_prefix);
    for (records, commit) in [(["a", "b"], true), (["x", "y"], false), (["c", "d"], true), (["x", "y"], false)] {
        producer.begin_transaction().expect("begin");
        for record in records {
            producer.send(BaseRecord::<(), str>::to(&topic).payload(record)).expect("queued");
        }
        producer.flush(PATIENCE).expect("flushed");
        if commit { producer.commit_transaction(PATIENCE) } else { producer.abort_transaction(PATIENCE) }
            .expect("ended");
    }
    // Eight records and four markers.
    until_ends_at(&log, 12);
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    assert_eq!(drain(&mut *reader, MANY)[&0], ["a", "b", "c", "d"]);
    assert_eq!(reader.positions()[&0], 12, "past the last marker: nothing is left to read");
    append(&log, "t", 0, &["e"]);
    let batch = reader.poll(MANY, PATIENCE).expect("poll").expect("a batch");
    assert_eq!((strings(&batch), batch.coverage), (vec!["e".to_owned()], 12..13));
    assert_eq!(read_all(&log, "t", Positions::from([(0, 3)]))[&0], ["c", "d", "e"], "from inside an aborted one");
}

#[test]
fn offsets_that_compaction_left_out_are_no_gap() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    // Each record has a segment of its own: all but the last can be compacted at once.
    let compacted = [("cleanup.policy", "compact"), ("segment.ms", "1"), ("min.cleanable.dirty.ratio", "0.01")];
    log.cluster.create("t", 1, &compacted).expect("create");
    for round in 0..6 {
        for key in ["a", "b"] {
            let keys = BTreeMap::from([(0, Payloads::from_iter([key]))]);
            log.append("t", Append { keys, ..part(0, &[&format!("{key}{round}")]) }).expect("append");
        }
    }
    let from = |offset| Positions::from([(0, offset)]);
    let begun = Instant::now();
    // What is read joins without a gap, whatever compaction leaves.
    let left = loop {
        let left = read_all(&log, "t", from(0)).remove(&0).expect("records");
        if left.len() <= 4 {
            break left;
        }
        assert!(begun.elapsed() < PATIENCE, "it was never compacted: {left:?}");
    };
    assert_eq!(left[left.len() - 2..], ["a5", "b5"]);
    assert_eq!(log.bounds("t").expect("bounds")[&0].end, 12);
    for offset in 1..10 {
        let mut reader = log.reader("t", &from(offset)).expect("reader");
        assert!(
            drain(&mut *reader, MANY)[&0].ends_with(&["a5".to_owned(), "b5".to_owned()]),
            "from {offset}, in the hole"
        );
        assert_eq!(reader.positions(), from(12));
    }
}

#[test]
fn an_open_transaction_holds_back_what_comes_after_it() {
    let Some(brokers) = brokers() else { return };
    let options = fresh(brokers);
    let log = open(&options);
    log.create_topic("t", 1).expect("create");
    let producer = transactional(&options);
    let topic = format!("{}t", options.topic_prefix);
    append(&log, "t", 0, &["before"]);
    producer.begin_transaction().expect("begin");
    producer.send(BaseRecord::<(), str>::to(&topic).payload("in it")).expect("queued");
    producer.flush(PATIENCE).expect("flushed");
    append(&log, "t", 0, &["after"]);
    assert_eq!(log.bounds("t").expect("bounds")[&0], 0..1);
    assert_eq!(read_all(&log, "t", Positions::from([(0, 0)]))[&0], ["before"]);
    producer.commit_transaction(PATIENCE).expect("committed");
    until_ends_at(&log, 4);
    assert_eq!(read_all(&log, "t", Positions::from([(0, 0)]))[&0], ["before", "in it", "after"]);
}

#[test]
fn a_partition_that_delivers_nothing_is_named_and_read_again_from_its_position() {
    let Some(brokers) = brokers() else { return };
    let options = KafkaOptions { stall: Duration::from_secs(1), ..fresh(brokers) };
    let log = open(&options);
    log.create_topic("t", 2).expect("create");
    append(&log, "t", 0, &["a", "b"]);
    append(&log, "t", 1, &["x"]);
    let stalls = |partition| log.stalls().get(&("t".to_owned(), partition)).copied();
    let left_out = format!("kafka::assign {}t/0", options.topic_prefix);
    fail::cfg(&left_out, "return").expect("a failpoint");
    let mut reader = log.reader("t", &Positions::from([(0, 1), (1, 0)])).expect("reader");
    assert_eq!(stalls(0), Some(Stalls::default()), "it is read, and hasn't stalled");
    for count in 1..3 {
        let error = loop {
            match reader.poll(MANY, Duration::ZERO) {
                Ok(batch) => assert_eq!(batch.expect("not caught up").partition, 1, "which isn't held up"),
                Err(error) => break error,
            }
        };
        let LogError::Backend { step, source } = error else { panic!("{error}") };
        assert_eq!(step, "reading topic `t` partition 0");
        assert!(source.to_string().starts_with("offsets 1..2 wait, and none came for "), "{source}");
        assert_eq!(stalls(0), Some(Stalls { count, stands: true }));
        assert_eq!(reader.positions()[&0], 1);
    }
    // A reader that is made anew while the partition stands notices its recovery as well.
    drop(reader);
    fail::remove(&left_out);
    append(&log, "t", 0, &["c"]);
    assert_eq!(read_all(&log, "t", Positions::from([(0, 1)]))[&0], ["b", "c"]);
    assert_eq!(stalls(0), Some(Stalls { count: 2, stands: false }));
    assert_eq!(stalls(1).map(|stalls| stalls.stands), Some(false));
}

#[test]
fn headers_are_brought_to_whoever_asks_for_them() {
    let Some(brokers) = brokers() else { return };
    let options = fresh(brokers);
    let log = open(&options);
    log.create_topic("t", 1).expect("create");
    let topic = format!("{}t", options.topic_prefix);
    let producer: BaseProducer = options.client(&[("enable.idempotence", "true")]).create().expect("a producer");
    let headers = OwnedHeaders::new()
        .insert(Header { key: "trace", value: Some("first") })
        .insert(Header { key: "a \"quoted\" name", value: Some("é\n") })
        .insert(Header { key: "binary", value: Some(&[0xff, 0x00][..]) })
        .insert(Header { key: "none", value: None::<&str> })
        .insert(Header { key: "trace", value: Some("last") });
    let record = || BaseRecord::<str, str>::to(&topic);
    producer.send(record().key("k").payload("1").headers(headers)).expect("queued");
    producer.send(record().payload("2")).expect("queued");
    // A tombstone.
    producer.send(record().key("k").headers(OwnedHeaders::new())).expect("queued");
    producer.flush(PATIENCE).expect("flushed");
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    let batch = reader.poll(MANY, PATIENCE).expect("poll").expect("a batch");
    assert_eq!((batch.keys, batch.headers), (None, None), "nobody asked");
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    reader.bring(Extras { keys: true, headers: true });
    let batch = reader.poll(MANY, PATIENCE).expect("poll").expect("a batch");
    assert_eq!(batch.payloads, Payloads::from_iter(["1", "2", ""]));
    assert_eq!(batch.keys, Some(Payloads::from_iter(["k", "", "k"])));
    let object = r#"{"trace":"last","a \"quoted\" name":"é\n","binary":"/wA=","none":null}"#;
    assert_eq!(batch.headers, Some(Payloads::from_iter([object, "", ""])));
}

#[test]
fn a_batch_of_records_with_their_producers_times_says_when_it_was_read() {
    let Some(brokers) = brokers() else { return };
    let options = fresh(brokers);
    let now = 1_705_314_645_000_000;
    let log = KafkaLog::open(options.clone(), Arc::new(ManualClock::new(now))).expect("open");
    log.cluster.create("theirs", 1, &[("message.timestamp.type", "CreateTime")]).expect("create");
    log.create_topic("ours", 1).expect("create");
    let producer: BaseProducer = options.client(&[("enable.idempotence", "true")]).create().expect("a producer");
    for topic in ["theirs", "ours"] {
        let topic = format!("{}{topic}", options.topic_prefix);
        producer.send(BaseRecord::<(), str>::to(&topic).payload("a").timestamp(7)).expect("queued");
    }
    producer.flush(PATIENCE).expect("flushed");
    let read = |topic| {
        let mut reader = log.reader(topic, &Positions::from([(0, 0)])).expect("reader");
        reader.poll(MANY, PATIENCE).expect("poll").expect("a batch")
    };
    let theirs = read("theirs");
    assert_eq!((theirs.log_times, theirs.read_at), (vec![7_000], Some(now)));
    let ours = read("ours");
    assert!(ours.log_times[0] > now && ours.read_at.is_none(), "{ours:?}");
}

#[test]
fn records_of_every_compression_are_read() {
    let Some(brokers) = brokers() else { return };
    let options = fresh(brokers);
    let log = open(&options);
    log.create_topic("t", 1).expect("create");
    let topic = format!("{}t", options.topic_prefix);
    let all = ["none", "gzip", "snappy", "lz4", "zstd"];
    for compression in all {
        let producer: BaseProducer = options
            .client(&[("compression.type", compression), ("enable.idempotence", "true")])
            .create()
            .expect("a producer");
        let record = compression.repeat(1_000);
        producer.send(BaseRecord::<(), str>::to(&topic).payload(&record)).expect("queued");
        producer.flush(PATIENCE).expect("flushed");
    }
    assert_eq!(read_all(&log, "t", Positions::from([(0, 0)]))[&0], all.map(|compression| compression.repeat(1_000)));
}

#[test]
fn a_reader_may_be_dropped_with_records_that_nobody_took() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    log.create_topic("t", 2).expect("create");
    for partition in 0..2 {
        append(&log, "t", partition, &["record"; 1_000]);
    }
    let mut reader = log.reader("t", &Positions::from([(0, 0), (1, 0)])).expect("reader");
    let one = ReadLimit { records: 1, bytes: 1 << 20 };
    assert_eq!(reader.poll(one, PATIENCE).expect("poll").expect("a batch").payloads.len(), 1);
    // It returns.
    drop(reader);
}

#[test]
fn retention_by_age_spares_the_young() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    log.create_topic("t", 1).expect("create");
    append(&log, "t", 0, &["a", "b"]);
    let hour = Retention { age: Some(Duration::from_secs(3600)), bytes: None };
    log.retain("t", hour, &Positions::from([(0, 2)])).expect("retain");
    assert_eq!(log.bounds("t").expect("bounds")[&0], 0..2);
}

#[test]
fn what_a_topic_never_takes_is_no_failure_that_passes() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    log.cluster.create("compacted", 1, &[("cleanup.policy", "compact")]).expect("create");
    log.cluster.create("small", 1, &[("max.message.bytes", "1000")]).expect("create");
    // Producers compress, and this doesn't become small.
    let large: String = (0..200).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    for key in [None, Some("key")] {
        let idempotency = || key.map(|key| Idempotency { key: key.to_owned(), ..Idempotency::default() });
        let refused = log.append("compacted", Append { idempotency: idempotency(), ..part(0, &["no key"]) });
        assert!(matches!(&refused, Err(LogError::Refused { topic, .. }) if topic == "compacted"), "{refused:?}");
        let refused = log.append("small", Append { idempotency: idempotency(), ..part(0, &["a", &large]) });
        assert!(matches!(refused, Err(LogError::TooLarge { bytes: 6_400, .. })), "{refused:?}");
        assert!(log.accepts().is_ok(), "the log is well");
        append(&log, "small", 0, &["a"]);
    }
}

#[test]
fn a_topic_that_is_made_anew_has_another_mark() {
    let Some(brokers) = brokers() else { return };
    let log = open(&fresh(brokers));
    log.create_topic("t", 1).expect("a topic");
    let before = log.lineage("t").expect("a lineage");
    assert_eq!(log.lineage("t").expect("a lineage"), before);
    let full = log.cluster.full("t");
    let deleted = super::block_on(log.cluster.admin.delete_topics(&[&full], &AdminOptions::new()));
    assert!(deleted.expect("asked").iter().all(Result::is_ok));
    let begun = Instant::now();
    let after = loop {
        // Brokers take a moment to forget the old one.
        if let (Ok(()), Ok(after)) = (log.create_topic("t", 1), log.lineage("t"))
            && after.newest() != before.newest()
        {
            break after;
        }
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(100));
    };
    let (one, other) = (before.newest().expect("a mark"), after.newest().expect("a mark"));
    assert_eq!(
        one.as_str().rsplit_once(':').map(|it| it.0),
        other.as_str().rsplit_once(':').map(|it| it.0),
        "one cluster"
    );
    assert!(log.verify("t", "it", Some(one), &Positions::new()).is_err());
}
