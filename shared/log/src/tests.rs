//! What every log does. Each adapter runs [`all`] on logs of its own making.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::lineage::Mark;
use super::{Append, Appended, Batch, Extras, Idempotency, Log, LogError, LogReader, Payloads, ReadLimit, Retention};
use crate::position::{Coverage, Partition, Positions};

/// Makes the log to be tested: empty at first, and again what was stored when called once more after a drop. It keeps the
/// keys of the topic `keyed`.
pub(crate) type Open<'a> = &'a dyn Fn() -> Arc<dyn Log>;

const MANY: ReadLimit = ReadLimit { records: 10_000, bytes: 1 << 20 };
/// Long enough for whatever is to come, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs each behaviour on a log that `fresh` makes.
macro_rules! behaviours {
    ($fresh:path: $($behaviour:ident),* $(,)?) => {
        $(#[test] fn $behaviour() { $fresh(&$crate::tests::$behaviour); })*
    };
}

/// Makes a test of every behaviour of this module.
macro_rules! all_behaviours {
    ($fresh:path) => {
        $crate::tests::behaviours!($fresh:
            topics_are_created_and_extended,
            records_are_read_in_order_with_their_offsets,
            unknown_topics_and_partitions_are_named,
            a_reader_starts_inside_what_was_stored_together,
            limits_cut_and_join_without_gaps,
            a_record_above_the_limit_comes_alone,
            readers_are_fair_over_partitions,
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
    };
}

pub(crate) use {all_behaviours, behaviours};

pub(crate) fn part(partition: Partition, records: &[&str]) -> Append {
    Append { parts: vec![(partition, records.iter().collect())], ..Append::default() }
}

pub(crate) fn append(log: &dyn Log, topic: &str, partition: Partition, records: &[&str]) -> Appended {
    log.append(topic, part(partition, records)).expect("append")
}

fn named(partition: Partition, records: &[&str], key: &str, note: &str) -> Append {
    let idempotency = Idempotency { key: key.to_owned(), digest: None, note: note.as_bytes().to_vec() };
    Append { idempotency: Some(idempotency), ..part(partition, records) }
}

pub(crate) fn strings(batch: &Batch) -> Vec<String> {
    batch.payloads.iter().map(|payload| String::from_utf8_lossy(payload).into_owned()).collect()
}

fn poll(reader: &mut dyn LogReader, limit: ReadLimit) -> Option<Batch> {
    let before = reader.positions();
    let batch = reader.poll(limit, Duration::ZERO).expect("poll")?;
    assert_eq!(batch.coverage.start, before[&batch.partition], "a batch begins where the last one ended");
    assert_eq!(reader.positions()[&batch.partition], batch.coverage.end);
    assert!(batch.offsets.is_sorted() && batch.offsets.iter().all(|offset| batch.coverage.contains(offset)));
    assert!(batch.log_times.is_sorted(), "{:?}", batch.log_times);
    assert_eq!((batch.offsets.len(), batch.log_times.len()), (batch.payloads.len(), batch.payloads.len()));
    assert!(batch.coverage.end <= batch.log_end);
    assert!(batch.payloads.len() <= limit.records);
    assert!(batch.payloads.bytes().len() <= limit.bytes || batch.payloads.len() == 1);
    Some(batch)
}

/// Reads until there is nothing more, and checks that batches join without a gap.
pub(crate) fn drain(reader: &mut dyn LogReader, limit: ReadLimit) -> BTreeMap<Partition, Vec<String>> {
    let mut records = BTreeMap::<_, Vec<_>>::new();
    let mut covered = Coverage::starting_at(&reader.positions());
    while let Some(batch) = poll(reader, limit) {
        covered.try_apply(batch.partition, batch.coverage.clone()).expect("no gap, no overlap");
        records.entry(batch.partition).or_default().extend(strings(&batch));
    }
    records
}

pub(crate) fn read_all(log: &dyn Log, topic: &str, from: Positions) -> BTreeMap<Partition, Vec<String>> {
    drain(&mut *log.reader(topic, &from).expect("reader"), MANY)
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| format!("record {i}")).collect()
}

pub(crate) fn topics_are_created_and_extended(open: Open<'_>) {
    let log = open();
    log.create_topic("a", 2).expect("create");
    append(&*log, "a", 1, &["x"]);
    log.create_topic("a", 2).expect("again");
    log.create_topic("a", 3).expect("more");
    log.create_topic("b", 1).expect("create");
    assert_eq!(log.topics().expect("topics"), BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 1)]));
    assert_eq!(log.bounds("a").expect("bounds"), BTreeMap::from([(0, 0..0), (1, 0..1), (2, 0..0)]));
    let fewer = log.create_topic("a", 1);
    assert!(matches!(fewer, Err(LogError::FewerPartitions { existing: 3, wanted: 1, .. })), "{fewer:?}");
}

pub(crate) fn records_are_read_in_order_with_their_offsets(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    assert_eq!(append(&*log, "t", 0, &["a", "", "c"]).offsets, BTreeMap::from([(0, 0..3)]));
    assert_eq!(append(&*log, "t", 1, &["x"]).offsets, BTreeMap::from([(1, 0..1)]));
    assert_eq!(append(&*log, "t", 0, &["d"]).offsets, BTreeMap::from([(0, 3..4)]));
    assert_eq!(append(&*log, "t", 0, &[]).offsets, BTreeMap::from([(0, 4..4)]));
    let records = read_all(&*log, "t", Positions::from([(0, 0), (1, 0)]));
    assert_eq!(records[&0], ["a", "", "c", "d"]);
    assert_eq!(records[&1], ["x"]);
    assert_eq!(log.bounds("t").expect("bounds"), BTreeMap::from([(0, 0..4), (1, 0..1)]));
    assert_eq!(read_all(&*log, "t", Positions::from([(1, 0)])).len(), 1, "only what was asked for");
}

pub(crate) fn unknown_topics_and_partitions_are_named(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    let unknown = log.append("u", part(0, &["a"]));
    assert!(matches!(&unknown, Err(LogError::UnknownTopic { topic, existing }) if topic == "u" && existing == &["t"]));
    let unknown = log.append("t", part(2, &["a"]));
    assert!(matches!(unknown, Err(LogError::UnknownPartition { partition: 2, partitions: 2, .. })));
    assert!(matches!(log.bounds("u"), Err(LogError::UnknownTopic { .. })));
    let reader = log.reader("t", &Positions::from([(7, 0)])).err();
    assert!(matches!(reader, Some(LogError::UnknownPartition { partition: 7, .. })));
    assert!(matches!(log.reader("u", &Positions::new()).err(), Some(LogError::UnknownTopic { .. })));
    let retained = log.retain("u", Retention::default(), &Positions::new());
    assert!(matches!(retained, Err(LogError::UnknownTopic { .. })));
}

pub(crate) fn a_reader_starts_inside_what_was_stored_together(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 1).expect("create");
    let records = numbered(0..10);
    append(&*log, "t", 0, &records[..4].iter().map(String::as_str).collect::<Vec<_>>());
    append(&*log, "t", 0, &records[4..].iter().map(String::as_str).collect::<Vec<_>>());
    for from in 0..10 {
        assert_eq!(read_all(&*log, "t", Positions::from([(0, from)]))[&0], records[from as usize..], "from {from}");
    }
    assert!(read_all(&*log, "t", Positions::from([(0, 10)])).is_empty());
}

pub(crate) fn limits_cut_and_join_without_gaps(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 1).expect("create");
    let records = numbered(0..100);
    for some in records.chunks(7) {
        append(&*log, "t", 0, &some.iter().map(String::as_str).collect::<Vec<_>>());
    }
    for limit in
        [(1, 1 << 20), (3, 1 << 20), (7, 1 << 20), (20, 1 << 20), (100, 1), (100, 30), (100, 100), (1000, 5000)]
    {
        let limit = ReadLimit { records: limit.0, bytes: limit.1 };
        let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
        assert_eq!(drain(&mut *reader, limit)[&0], records, "{limit:?}");
    }
}

pub(crate) fn a_record_above_the_limit_comes_alone(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 1).expect("create");
    let large = "x".repeat(900_000);
    append(&*log, "t", 0, &["a", &large, "b"]);
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    let limit = ReadLimit { records: 10, bytes: 100 };
    let sizes: Vec<_> = std::iter::from_fn(|| poll(&mut *reader, limit)).map(|batch| batch.payloads.len()).collect();
    assert_eq!(sizes, [1, 1, 1]);
}

pub(crate) fn readers_are_fair_over_partitions(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 3).expect("create");
    for partition in 0..3 {
        append(&*log, "t", partition, &["a", "b", "c", "d"]);
    }
    let mut reader = log.reader("t", &Positions::from([(0, 0), (1, 0), (2, 0)])).expect("reader");
    let one = ReadLimit { records: 1, bytes: 1 << 20 };
    for _ in 0..4 {
        let mut turn: Vec<_> = (0..3).filter_map(|_| reader.poll(one, PATIENCE).expect("poll")).collect();
        turn.sort_by_key(|batch| batch.partition);
        let partitions: Vec<_> = turn.iter().map(|batch| batch.partition).collect();
        assert_eq!(partitions, [0, 1, 2], "each partition has its turn");
    }
}

pub(crate) fn a_waiting_reader_is_woken_by_an_append(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    let mut reader = log.reader("t", &Positions::from([(0, 0), (1, 0)])).expect("reader");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || reader.poll(MANY, PATIENCE).expect("poll"));
        append(&*log, "t", 1, &["now"]);
        let batch = waiting.join().expect("join").expect("woken");
        assert_eq!((batch.partition, strings(&batch)), (1, vec!["now".to_owned()]));
    });
}

pub(crate) fn a_caught_up_reader_gets_nothing(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 1).expect("create");
    append(&*log, "t", 0, &["a"]);
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    let batch = reader.poll(MANY, PATIENCE).expect("poll").expect("a batch");
    assert_eq!(batch.coverage.end, batch.log_end, "caught up");
    assert_eq!(reader.poll(MANY, Duration::from_millis(1)).expect("poll"), None);
    append(&*log, "t", 0, &["b"]);
    assert_eq!(strings(&reader.poll(MANY, PATIENCE).expect("poll").expect("a batch")), ["b"]);
    let mut nothing = log.reader("t", &Positions::new()).expect("reader of nothing");
    assert_eq!(nothing.poll(MANY, Duration::ZERO).expect("poll"), None);
}

pub(crate) fn an_append_is_stored_in_all_partitions_or_none(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    let both = |second| {
        let parts = vec![(0, Payloads::from_iter(["a", "b"])), (second, Payloads::from_iter(["c"]))];
        log.append("t", Append { parts, ..Append::default() })
    };
    assert!(matches!(both(9), Err(LogError::UnknownPartition { partition: 9, .. })));
    assert_eq!(log.bounds("t").expect("bounds"), BTreeMap::from([(0, 0..0), (1, 0..0)]));
    assert_eq!(both(1).expect("append").offsets, BTreeMap::from([(0, 0..2), (1, 0..1)]));
}

pub(crate) fn a_repeated_request_is_answered_with_the_first_outcome(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    log.create_topic("u", 1).expect("create");
    append(&*log, "t", 1, &["before"]);
    let first = log.append("t", named(1, &["a", "b"], "key", "note")).expect("first");
    assert_eq!(first, Appended { offsets: BTreeMap::from([(1, 1..3)]), repeated: None });
    let again = log.append("t", named(1, &["a", "b"], "key", "other")).expect("again");
    assert_eq!(again, Appended { repeated: Some(b"note".to_vec()), ..first.clone() });
    let elsewhere = log.append("u", named(0, &["a"], "key", "")).expect("another topic");
    assert_eq!(elsewhere.repeated, None, "keys are a topic's own");
    let nothing = log.append("t", named(0, &[], "empty", "nothing fitted")).expect("no records");
    assert_eq!(nothing.offsets, BTreeMap::from([(0, 0..0)]));
    drop(log);
    let log = open();
    let again = log.append("t", named(1, &["a", "b"], "key", "")).expect("after reopening");
    assert_eq!(again, Appended { repeated: Some(b"note".to_vec()), ..first });
    let nothing = log.append("t", named(0, &["late"], "empty", "")).expect("no records");
    assert_eq!(nothing.repeated, Some(b"nothing fitted".to_vec()));
    let stored = read_all(&*log, "t", Positions::from([(0, 0), (1, 0)]));
    assert_eq!(
        stored.into_iter().filter(|(_, records)| !records.is_empty()).collect::<Vec<_>>(),
        [(1, ["before", "a", "b"].map(str::to_owned).to_vec())]
    );
}

pub(crate) fn one_of_many_equal_requests_is_stored(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 1).expect("create");
    let stored = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let appended = log.append("t", named(0, &["a", "b"], "key", "note")).expect("append");
                assert_eq!(appended.offsets, BTreeMap::from([(0, 0..2)]));
                stored.fetch_add(usize::from(appended.repeated.is_none()), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(stored.into_inner(), 1);
    assert_eq!(read_all(&*log, "t", Positions::from([(0, 0)]))[&0], ["a", "b"]);
}

pub(crate) fn a_key_that_comes_with_another_digest_is_refused(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 1).expect("create");
    let request = |log: &dyn Log, records: &[&str], digest: u8| {
        let mut append = named(0, records, "key", "note");
        append.idempotency.as_mut().expect("a key").digest = Some([digest; 32]);
        log.append("t", append)
    };
    let first = request(&*log, &["a"], 1).expect("first");
    let check = |log: &dyn Log| {
        let refused = request(log, &["b"], 2).expect_err("another request");
        let LogError::KeyReused { topic, key } = refused else { panic!("{refused}") };
        assert_eq!((topic.as_str(), key.as_str()), ("t", "key"));
        let again = request(log, &["a"], 1).expect("the same again");
        assert_eq!(again, Appended { repeated: Some(b"note".to_vec()), ..first.clone() });
    };
    check(&*log);
    drop(log);
    let log = open();
    check(&*log);
    assert_eq!(read_all(&*log, "t", Positions::from([(0, 0)]))[&0], ["a"]);
}

pub(crate) fn retention_spares_what_must_be_kept(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    let records = numbered(0..40);
    for some in records.chunks(4) {
        append(&*log, "t", 0, &some.iter().map(String::as_str).collect::<Vec<_>>());
    }
    append(&*log, "t", 1, &["of a partition that nobody has archived yet"]);
    let nothing = Retention { age: Some(Duration::ZERO), bytes: Some(0) };
    log.retain("t", Retention::default(), &Positions::from([(0, 40)])).expect("retain");
    assert_eq!(log.bounds("t").expect("bounds")[&0], 0..40, "no limit, nothing deleted");
    log.retain("t", nothing, &Positions::from([(0, 22)])).expect("retain");
    let held = log.bounds("t").expect("bounds")[&0].clone();
    assert!(held.start <= 22 && held.end == 40, "{held:?}");
    let rest = read_all(&*log, "t", Positions::from([(0, held.start)]));
    assert_eq!(rest[&0], records[held.start as usize..]);
    assert_eq!(log.bounds("t").expect("bounds")[&1], 0..1, "what isn't named is kept whole");
    drop(log);
    let log = open();
    assert_eq!(log.bounds("t").expect("bounds")[&0], held);
    assert_eq!(append(&*log, "t", 0, &["after"]).offsets, BTreeMap::from([(0, 40..41)]));
}

pub(crate) fn wanted_offsets_outside_the_log_are_an_error(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 2).expect("create");
    for record in numbered(0..20) {
        append(&*log, "t", 0, &[&record]);
    }
    let mut slow = log.reader("t", &Positions::from([(0, 3), (1, 0)])).expect("reader");
    log.retain("t", Retention { age: Some(Duration::ZERO), bytes: Some(0) }, &Positions::from([(0, 10)]))
        .expect("retain");
    let held = log.bounds("t").expect("bounds")[&0].clone();
    assert!(held.start > 3, "{held:?}");
    for _ in 0..2 {
        let error = slow.poll(MANY, PATIENCE).expect_err("deleted");
        let LogError::OutOfRange { topic, partition: 0, wanted: 3, held: named } = error else { panic!("{error}") };
        assert_eq!((topic.as_str(), named), ("t", held.clone()));
    }
    assert_eq!(slow.positions(), Positions::from([(0, 3), (1, 0)]), "never reset in silence");
    let beyond = log.reader("t", &Positions::from([(0, 21)])).and_then(|mut reader| reader.poll(MANY, PATIENCE));
    assert!(matches!(beyond, Err(LogError::OutOfRange { wanted: 21, .. })), "{beyond:?}");
}

pub(crate) fn concurrent_appends_are_each_there_once(open: Open<'_>) {
    let log = open();
    log.create_topic("t", 3).expect("create");
    let mut reader = log.reader("t", &Positions::from([(0, 0), (1, 0), (2, 0)])).expect("reader");
    let mut read = BTreeMap::<_, Vec<String>>::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let log = &log;
            scope.spawn(move || {
                for i in 0..25 {
                    let record = format!("{thread}/{i}");
                    append(&**log, "t", (thread + i) % 3, &[&record, &record]);
                }
            });
        }
        let mut count = 0;
        while count < 400 {
            let batch = reader.poll(MANY, PATIENCE).expect("poll").expect("more to come");
            count += batch.payloads.len();
            read.entry(batch.partition).or_default().extend(strings(&batch));
        }
    });
    assert_eq!(read, read_all(&*log, "t", Positions::from([(0, 0), (1, 0), (2, 0)])), "read beside and afterwards");
    let mut records: Vec<_> = read.values().flatten().cloned().collect();
    records.sort();
    let mut expected: Vec<_> = (0..8).flat_map(|thread| (0..25).map(move |i| format!("{thread}/{i}"))).collect();
    expected.extend(expected.clone());
    expected.sort();
    assert_eq!(records, expected);
    for thread in 0..8 {
        let of_one = read[&0].iter().filter_map(|record| record.strip_prefix(&format!("{thread}/")));
        assert!(of_one.map(|i| i.parse::<u32>().expect("a number")).is_sorted(), "in each thread's own order");
    }
}

pub(crate) fn keys_are_brought_to_whoever_asks_for_them(open: Open<'_>) {
    let log = open();
    log.create_topic("keyed", 2).expect("create");
    let keyed = |records: &[&str], keys: &[&str]| {
        let keys = BTreeMap::from([(1, keys.iter().collect())]);
        log.append("keyed", Append { keys, ..part(1, records) }).expect("append")
    };
    keyed(&["1", "2", "", "4"], &["a", "", "a longer one", "ü"]);
    append(&*log, "keyed", 1, &["5", "6"]);
    keyed(&["7"], &["b"]);
    let expected = ["a", "", "a longer one", "ü", "", "", "b"];
    let check = |log: &dyn Log| {
        for (from, records) in [(0, 100), (0, 1), (1, 2), (3, 3), (6, 100)] {
            let mut reader = log.reader("keyed", &Positions::from([(1, from)])).expect("reader");
            reader.bring(Extras { keys: true, headers: false });
            let (mut keys, mut count) = (Vec::new(), 0);
            while let Some(batch) = poll(&mut *reader, ReadLimit { records, ..MANY }) {
                let brought = batch.keys.as_ref().expect("keys");
                assert_eq!((brought.len(), batch.headers), (batch.payloads.len(), None));
                keys.extend(brought.iter().map(|key| String::from_utf8_lossy(key).into_owned()));
                count += batch.payloads.len();
            }
            assert_eq!((&keys[..], count), (&expected.map(str::to_owned)[from as usize..], 7 - from as usize));
        }
    };
    check(&*log);
    let mut reader = log.reader("keyed", &Positions::from([(1, 0)])).expect("reader");
    assert_eq!(reader.poll(MANY, PATIENCE).expect("poll").expect("a batch").keys, None, "nobody asked");
    drop((reader, log));
    check(&*open());
}

pub(crate) fn everything_is_there_after_reopening(open: Open<'_>) {
    for round in 0..3 {
        let log = open();
        log.create_topic("t", 2).expect("create");
        let expected: Vec<_> = (0..round).map(|round| round.to_string()).collect();
        let read = read_all(&*log, "t", Positions::from([(0, 0), (1, 0)]));
        assert_eq!(read.get(&1).cloned().unwrap_or_default(), expected);
        let offsets = append(&*log, "t", 1, &[&round.to_string()]).offsets;
        assert_eq!(offsets, BTreeMap::from([(1, round..round + 1)]));
    }
}

#[test]
fn payloads_end_where_the_buffer_ends() {
    assert!(Payloads::new(Bytes::from_static(b"abc"), vec![1, 1, 3]).is_some());
    assert!(Payloads::new(Bytes::from_static(b"abc"), vec![1, 2]).is_none());
    assert!(Payloads::new(Bytes::from_static(b"abc"), vec![2, 1, 3]).is_none());
    let payloads = Payloads::from_iter(["ab", "", "c"]);
    assert_eq!(payloads.iter().collect::<Vec<_>>(), [b"ab".as_slice(), b"", b"c"]);
}

pub(crate) fn what_was_noted_of_a_topic_fits_it_after_reopening(open: Open<'_>) {
    let (mut noted, mut marks) = (Vec::new(), Vec::new());
    for i in 0..3 {
        let log = open();
        log.create_topic("t", 2).expect("a topic");
        log.create_topic("u", 1).expect("another one");
        append(&*log, "t", 0, &["a", "b"]);
        let lineage = log.lineage("t").expect("a lineage");
        marks.push(lineage.newest().cloned().expect("a mark"));
        assert!(lineage.ends[&0] >= 2 * (i + 1) && lineage.ends[&1] == 0, "{lineage:?}");
        noted.push((lineage.newest().cloned(), lineage.ends));
        for (mark, reached) in &noted {
            let newest = log.verify("t", "it", mark.as_ref(), reached).expect("it is the same log");
            assert_eq!(newest.as_ref(), marks.last());
        }
        let beyond = noted[i as usize].1.iter().map(|(&partition, &end)| (partition, end + 1)).collect();
        let refused = log.verify("t", "it", marks.last(), &beyond).expect_err("the log ends before that");
        assert!(matches!(refused, LogError::OtherLog { .. }), "{refused}");
        let other = Mark::new("another");
        assert!(log.verify("t", "it", Some(&other), &Positions::new()).is_err(), "it isn't this one");
        assert!(log.lineage("none").is_err());
    }
}
