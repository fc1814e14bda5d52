use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anabranch_log::clock::ManualClock;
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Appended, Batch, Digest, LogReader, ReadLimit, Retention};
use anabranch_plan::schema::{Column, DataType, Table};
use parking_lot::Mutex;

use super::*;

/// 2024-01-15T10:30:45Z.
const NOW: i64 = 1_705_314_645_000_000;

/// A log in memory, shared by its readers.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryLog(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    topics: BTreeMap<String, Vec<Vec<Vec<u8>>>>,
    remembered: BTreeMap<(String, String), (Option<Digest>, Appended)>,
    /// The topic whose next append fails.
    failing: Option<String>,
    /// How many records each append had.
    sizes: Vec<usize>,
    /// The keys of all records that came with one, in their order.
    keys: Vec<String>,
    /// How often a topic was read.
    reads: usize,
}

impl MemoryLog {
    /// Makes the next append to a topic fail.
    pub(crate) fn fail_once(&self, topic: &str) {
        self.0.lock().failing = Some(topic.to_owned());
    }

    /// How often it was read.
    pub(crate) fn reads(&self) -> usize {
        self.0.lock().reads
    }

    /// The records of a partition.
    pub(crate) fn records(&self, topic: &str, partition: usize) -> Vec<String> {
        let memory = self.0.lock();
        memory.topics[topic][partition].iter().map(|record| String::from_utf8_lossy(record).into_owned()).collect()
    }
}

impl Log for MemoryLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        let mut memory = self.0.lock();
        memory.topics.entry(topic.to_owned()).or_default().resize(partitions as usize, Vec::new());
        Ok(())
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        Ok(self.0.lock().topics.iter().map(|(name, partitions)| (name.clone(), partitions.len() as u32)).collect())
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        Ok((0..).zip(self.0.lock().topics[topic].iter().map(|records| 0..records.len() as u64)).collect())
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let mut memory = self.0.lock();
        if memory.failing.take_if(|failing| failing == topic).is_some() {
            return Err(LogError::Closed);
        }
        if let Some(Idempotency { key, digest, .. }) = &append.idempotency
            && let Some((before, first)) = memory.remembered.get(&(topic.to_owned(), key.clone()))
        {
            return anabranch_log::check_same(topic, key, *before, *digest).map(|()| first.clone());
        }
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        memory.keys.extend(append.keys.values().flat_map(Payloads::iter).map(text));
        let mut appended = Appended { offsets: BTreeMap::new(), repeated: None };
        for (partition, payloads) in append.parts {
            memory.sizes.push(payloads.len());
            let records = &mut memory.topics.get_mut(topic).expect("a topic")[partition as usize];
            let start = records.len() as u64;
            records.extend(payloads.iter().map(<[u8]>::to_vec));
            appended.offsets.insert(partition, start..records.len() as u64);
        }
        if let Some(Idempotency { key, digest, note }) = append.idempotency {
            let first = Appended { repeated: Some(note), ..appended.clone() };
            memory.remembered.insert((topic.to_owned(), key), (digest, first));
        }
        Ok(appended)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        self.0.lock().reads += 1;
        Ok(Box::new(MemoryReader { log: self.clone(), topic: topic.to_owned(), positions: from.clone() }))
    }

    fn retain(&self, _: &str, _: Retention, _: &Positions) -> Result<(), LogError> {
        unreachable!("no test deletes records")
    }
}

struct MemoryReader {
    log: MemoryLog,
    topic: String,
    positions: Positions,
}

impl LogReader for MemoryReader {
    fn poll(&mut self, limit: ReadLimit, _: Duration) -> Result<Option<Batch>, LogError> {
        let memory = self.log.0.lock();
        for (&partition, position) in &mut self.positions {
            let records = &memory.topics[&self.topic][partition as usize];
            let coverage = *position..records.len().min(*position as usize + limit.records) as u64;
            if !coverage.is_empty() {
                *position = coverage.end;
                return Ok(Some(Batch {
                    partition,
                    offsets: coverage.clone().collect(),
                    log_times: coverage.clone().map(|_| NOW).collect(),
                    read_at: None,
                    payloads: records[coverage.start as usize..coverage.end as usize].iter().collect(),
                    keys: None,
                    headers: None,
                    log_end: records.len() as u64,
                    coverage,
                }));
            }
        }
        Ok(None)
    }

    fn positions(&self) -> Positions {
        self.positions.clone()
    }
}

fn ingest(partitions: u32, partition_by: Option<usize>) -> (MemoryLog, Arc<ManualClock>, Ingest) {
    let column = |name: &str, data_type, nullable| Column { name: name.to_owned(), data_type, nullable };
    let table = Table {
        name: "clicks".to_owned(),
        topic: "clicks".to_owned(),
        format: anabranch_plan::schema::Format::Json,
        columns: vec![column("user", DataType::Text, true), column("ts", DataType::Timestamp, false)],
        event_time: 1,
        watermark_delay: 0,
        max_future: Some(60_000_000),
        max_past: None,
        partitions,
        partition_by,
        pin: None,
        key: None,
        headers: None,
        primary_key: Vec::new(),
        sql: String::new(),
    };
    of_tables([("clicks".to_owned(), Arc::new(table))].into())
}

fn of_tables(tables: BTreeMap<String, Arc<Table>>) -> (MemoryLog, Arc<ManualClock>, Ingest) {
    let log = MemoryLog::default();
    tables.values().for_each(|table| log.create_topic(&table.topic, table.partitions).expect("a topic"));
    let catalog = Catalog { tables, ..Catalog::default() };
    let clock = Arc::new(ManualClock::new(NOW));
    let ingest = Ingest::new(Arc::new(log.clone()), Arc::new(catalog), clock.clone()).expect("ingest");
    (log, clock, ingest)
}

/// Changelogs with one key column and with two, and a stream.
fn changelogs() -> (MemoryLog, Ingest) {
    let text = "
        CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, ts TIMESTAMP) WITH (event_time = 'ts', partitions = 64);
        CREATE TABLE orders (id BIGINT PRIMARY KEY, ts TIMESTAMP) WITH (event_time = 'ts', partitions = 64);
        CREATE TABLE rooms (house TEXT, n BIGINT, ts TIMESTAMP, PRIMARY KEY (house, n)) WITH (event_time = 'ts', partitions = 64);
        CREATE TABLE clicks (id TEXT, ts TIMESTAMP) WITH (event_time = 'ts', partition_by = 'id');
        CREATE TABLE changes (id TEXT PRIMARY KEY, ts TIMESTAMP) WITH (event_time = 'ts', format = 'debezium-json');";
    let catalog = anabranch_plan::sql::plan(&[("t.sql".to_owned(), text.to_owned())]);
    let (log, _, ingest) = of_tables(catalog.unwrap_or_else(|errors| panic!("{}", errors[0])).tables);
    (log, ingest)
}

/// Checks the lines and texts that a body is split into, or the beginning of the reason for which it is refused.
#[track_caller]
fn check(body: impl AsRef<[u8]>, expected: Result<&[(u64, &str)], &str>) {
    let actual = split(body.as_ref(), Form::Any);
    match (&actual, expected) {
        (Ok(records), Ok(expected)) => assert_eq!(listed(records), owned(expected)),
        (Err(actual), Err(reason)) => assert!(actual.starts_with(reason), "expected: {reason}\n  actual: {actual}"),
        _ => panic!("expected: {expected:?}\n  actual: {actual:?}"),
    }
}

fn listed(records: &Records<'_>) -> Vec<(u64, String)> {
    records.iter().map(|record| (record.line, String::from_utf8_lossy(&record.text).into_owned())).collect()
}

fn owned(records: &[(u64, &str)]) -> Vec<(u64, String)> {
    records.iter().map(|&(line, text)| (line, text.to_owned())).collect()
}

#[test]
fn lines_are_each_judged_by_themselves_whatever_they_are() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(70), "]".repeat(70));
    let body = [b"\xef\xbb\xbf[1,\n".as_slice(), b"\xff\n\n", deep.as_bytes(), b"\r\n{\"ts\":\n0}"].concat();
    let expected = [(1, "[1,"), (2, "\u{fffd}"), (4, &*deep), (5, "{\"ts\":"), (6, "0}")];
    assert_eq!(listed(&split(&body, Form::Lines).expect("never refused")), owned(&expected));
    let (log, _, ingest) = ingest(1, None);
    let body = [&body[..], b"\n{\"ts\":0}"].concat();
    let receipt = ingest.ingest("clicks", &body, Form::Lines, None).expect("receipt");
    assert_eq!((receipt.accepted, receipt.rejected_count), (1, 5), "{receipt:?}");
    assert!(receipt.rejected[1].error.starts_with("not UTF-8 at byte 0"), "{receipt:?}");
    assert!(receipt.rejected[2].error.contains("nested deeper"), "{receipt:?}");
    assert_eq!(log.records("clicks", 0), [r#"{"ts":0}"#]);
}

#[test]
fn a_body_is_lines_an_array_or_one_object() {
    check("", Ok(&[]));
    check(" \r\n\n\t ", Ok(&[]));
    check("[]", Ok(&[]));
    check(r#"{"a":1}"#, Ok(&[(1, r#"{"a":1}"#)]));
    check("{\"a\":1}\n{\"a\":2}\n", Ok(&[(1, r#"{"a":1}"#), (2, r#"{"a":2}"#)]));
    check("\n{\"a\":1}\r\n\r\n  {\"a\":2}  \r\n", Ok(&[(2, r#"{"a":1}"#), (4, r#"{"a":2}"#)]));
    check("\u{feff}{\"a\":1}\n", Ok(&[(1, r#"{"a":1}"#)]));
    check("{\"a\":1}\nnonsense\n{\"a\":", Ok(&[(1, r#"{"a":1}"#), (2, "nonsense"), (3, "{\"a\":")]));
    check("{\"a\":\n{\"a\":2}", Ok(&[(1, "{\"a\":"), (2, r#"{"a":2}"#)]));
    check("\n{\n  \"a\": [\n 1]\n}\n", Ok(&[(2, "{\n  \"a\": [\n 1]\n}")]));
    check(
        " [ {\"a\" : 1}, {\n\"a\":[2]} ,3,\"\\n\"]\n",
        Ok(&[(1, "{\"a\" : 1}"), (2, "{\n\"a\":[2]}"), (3, "3"), (4, "\"\\n\"")]),
    );
}

#[test]
fn a_body_that_can_not_be_split_is_refused() {
    check(b"{\"a\":\"\xff\"}", Err("not UTF-8 at byte 6"));
    check("[{\"a\":1},", Err("not JSON at byte"));
    check("[{\"a\":1} {\"a\":2}]", Err("not JSON at byte"));
    check("[{\"a\":1}]\n{\"a\":2}", Err("not JSON at byte 10"));
    check("[{\"a\":\"\\ud800\"}]", Err("not JSON at byte"));
    let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
    check(format!("{{}}\n{}", deep(64)), Ok(&[(1, "{}"), (2, &deep(64))]));
    check(format!("{{}}\n{}\n{{}}", deep(65)), Err("line 2: nested deeper than 64 levels"));
    check(deep(65).replace('{', "{\n"), Err("line 1: nested deeper than 64 levels"));
    check("[".repeat(1_000_000), Err("nested deeper than 64 levels"));
    check(format!("{{\"a\":{}", "[".repeat(1_000_000)), Err("line 1: nested deeper than 64 levels"));
}

#[test]
fn good_records_are_stored_as_sent_and_bad_ones_told() {
    let (log, _, ingest) = ingest(1, None);
    let body = "{\"user\": \"a\", \"ts\":0}\n\n{\"user\":1,\"ts\":0}\n{\"more\":[1 ,2],\"ts\":1.5}\n{\"more\":[1 ,2],\"ts\":1}";
    let receipt = ingest.ingest("clicks", body.as_bytes(), Form::Any, None).expect("receipt");
    assert_eq!(
        serde_json::to_string(&receipt).expect("json"),
        concat!(
            r#"{"accepted":2,"rejected":[{"line":3,"error":"column `user`: expected TEXT, found a number"},"#,
            r#"{"line":4,"error":"column `ts`: expected TIMESTAMP, but 1.5 has a fraction"}],"#,
            r#""rejected_count":2,"offsets":{"0":[0,2]}}"#
        )
    );
    assert_eq!(log.records("clicks", 0), [r#"{"user": "a", "ts":0}"#, r#"{"more":[1 ,2],"ts":1}"#]);
    let rejects = ingest.rejects().list(Some("clicks"), None, 10).expect("rejects").rejects;
    assert_eq!(rejects.iter().map(|reject| reject.line).collect::<Vec<_>>(), [Some(4), Some(3)]);
    assert_eq!(rejects[1].record, r#"{"user":1,"ts":0}"#);
    assert_eq!((rejects[1].offset, rejects[1].rejected_at.as_str()), (None, "2024-01-15T10:30:45Z"));

    let empty = ingest.ingest("clicks", b"\n", Form::Any, Some("key")).expect("receipt");
    assert_eq!(
        serde_json::to_string(&empty).expect("json"),
        r#"{"accepted":0,"rejected":[],"rejected_count":0,"offsets":{}}"#
    );
    let refused = ingest.ingest("clicks", b"[{\"ts\":0},", Form::Any, None).expect_err("refused").to_string();
    assert!(refused.starts_with("the body is refused: not JSON"), "{refused}");
    assert_eq!(log.records("clicks", 0).len(), 2);
    let unknown = ingest.ingest("click", b"", Form::Any, None).expect_err("unknown").to_string();
    assert_eq!(unknown, "no table has the topic `click`; topics that have one: clicks");
}

#[test]
fn records_are_spread_over_partitions_in_order() {
    let body = r#"[{"user":"x","ts":0},{"user":"x","ts":1},{"user":null,"ts":2},{"ts":true},{"user":"y","ts":3}]"#;
    let (log, _, dealt) = ingest(2, None);
    let receipt = dealt.ingest("clicks", body.as_bytes(), Form::Any, None).expect("receipt");
    assert_eq!(receipt.offsets, [(0, 0..2), (1, 0..2)].into_iter().collect());
    assert_eq!(log.records("clicks", 1), [r#"{"user":"x","ts":1}"#, r#"{"user":"y","ts":3}"#]);
    assert_eq!(receipt.rejected[0].line, 4);

    let (log, _, keyed) = ingest(64, Some(0));
    keyed.ingest("clicks", body.as_bytes(), Form::Any, None).expect("receipt");
    let of_x = anabranch_log::key::by_key(b"x", 64) as usize;
    assert_eq!(log.records("clicks", of_x), [r#"{"user":"x","ts":0}"#, r#"{"user":"x","ts":1}"#]);
}

#[test]
fn versions_and_deletions_of_a_row_are_in_one_partition_under_one_key() {
    type Send<'a> = &'a dyn Fn(&Ingest) -> Receipt;
    let check = |topic: &str, key: &str, sent: &[(&str, Send<'_>)]| {
        let (log, ingest) = changelogs();
        let of_key = anabranch_log::key::by_key(key.as_bytes(), 64);
        for (offset, (_, send)) in (0..).zip(sent) {
            let receipt = send(&ingest);
            assert_eq!((receipt.accepted, receipt.rejected_count), (1, 0), "{receipt:?}");
            assert_eq!(receipt.offsets, [(of_key, offset..offset + 1)].into_iter().collect(), "{key}");
        }
        let records: Vec<&str> = sent.iter().map(|(record, _)| *record).collect();
        assert_eq!(log.records(topic, of_key as usize), records, "{key}");
        assert_eq!(log.0.lock().keys, vec![key; records.len()]);
    };
    let post = |ingest: &Ingest, topic: &str, body: &str| {
        ingest.ingest(topic, body.as_bytes(), Form::Any, None).expect("receipt")
    };
    for (id, is_plain) in [
        ("a", true),
        ("ü/ñ 🦀", true),
        ("17", true),
        // What would be read as something else.
        ("{\"id\":1}", false),
        ("\"a\"", false),
        ("{", false),
        ("\0", false),
    ] {
        let json = serde_json::Value::from(id).to_string();
        let upsert = format!(r#"{{"id":{json},"name":"x","ts":0}}"#);
        let deletion = format!(r#"{{"__deleted":true,"id":{json}}}"#);
        let key = if is_plain { id.to_owned() } else { format!(r#"{{"id":{json}}}"#) };
        check(
            "users",
            &key,
            &[
                (&upsert, &|ingest| post(ingest, "users", &upsert)),
                (&deletion, &|ingest| post(ingest, "users", &deletion)),
                ("", &|ingest| ingest.delete("users", id, None).expect("receipt")),
            ],
        );
    }
    let upsert = r#"{"id":17.0,"ts":0}"#;
    check(
        "orders",
        "17",
        &[
            (upsert, &|ingest| post(ingest, "orders", upsert)),
            ("", &|ingest| ingest.delete("orders", "17", None).expect("receipt")),
        ],
    );
    let (upsert, deletion) = (r#"{"n":1,"house":"a","ts":0}"#, r#"{"house":"a","n":1.0,"__deleted":true}"#);
    check(
        "rooms",
        r#"{"house":"a","n":1}"#,
        &[(upsert, &|ingest| post(ingest, "rooms", upsert)), (deletion, &|ingest| post(ingest, "rooms", deletion))],
    );
}

#[test]
fn a_deletion_that_names_no_row_is_refused_with_a_way_out_and_nothing_is_stored() {
    let (log, ingest) = changelogs();
    for (topic, value, expected) in [
        (
            "clicks",
            "a",
            "table `clicks` has no PRIMARY KEY: what was sent to it stays, and only the rows of a changelog can be deleted",
        ),
        (
            "rooms",
            "a",
            "the primary key of table `rooms` has several columns: send the event {\"house\": …, \"n\": …, \"__deleted\": true} to delete a row",
        ),
        (
            "orders",
            "a",
            "nothing is deleted: a deletion is of the row that the record's key names, and `a` names none: column `id`: expected \
             BIGINT, found a string; a key is the text of `id`, or {\"id\": …}",
        ),
        ("user", "a", "no table has the topic `user`; topics that have one: changes, clicks, orders, rooms, users"),
        (
            "changes",
            "a",
            "topic `changes` has format debezium-json: its connector writes it to Kafka, and nothing else may",
        ),
    ] {
        assert_eq!(ingest.delete(topic, value, Some("key")).expect_err(topic).to_string(), expected);
    }
    assert!(log.0.lock().sizes.is_empty());
    assert_eq!(ingest.rejects().count(None).expect("count"), 0);
    ingest.delete("orders", "1", Some("key")).expect("a key of a request that stored nothing is free");
}

#[test]
fn a_deletion_under_a_key_of_its_request_is_stored_once() {
    let (log, ingest) = changelogs();
    let first = ingest.delete("orders", "1", Some("key")).expect("receipt");
    let again = ingest.delete("orders", "1", Some("key")).expect("receipt");
    assert_eq!((first.accepted, first.repeated), (1, false));
    assert_eq!(again, Receipt { repeated: true, ..first });
    let other = ingest.delete("orders", "2", Some("key"));
    assert!(matches!(other, Err(IngestError::Log(LogError::KeyReused { .. }))), "{other:?}");
    let event = ingest.ingest("orders", b"{\"id\":1,\"ts\":0}", Form::Any, Some("key"));
    assert!(matches!(event, Err(IngestError::Log(LogError::KeyReused { .. }))), "{event:?}");
    assert_eq!(log.0.lock().sizes, [1]);
}

#[test]
fn a_retry_is_answered_as_the_first_time() {
    let (log, clock, ingest) = ingest(2, None);
    // The third is too far ahead, but won't be when the retry comes.
    let body = "{\"ts\":0}\nnonsense\n{\"ts\":\"2024-01-15T10:40:00Z\"}";
    for (failing, stored) in [("clicks", 0), ("_rejects", 1)] {
        log.fail_once(failing);
        let failed = ingest.ingest("clicks", body.as_bytes(), Form::Any, Some("key"));
        assert!(matches!(failed, Err(IngestError::Log(LogError::Closed))), "{failed:?}");
        assert_eq!(ingest.rejects().count(None).expect("count"), 0);
        assert_eq!(log.records("clicks", 0).len() + log.records("clicks", 1).len(), stored);
    }
    // The events were stored, their rejects were not: a retry makes up for it, and judges by the time of the first.
    clock.set(NOW + 3_600_000_000);
    let first = ingest.ingest("clicks", body.as_bytes(), Form::Any, Some("key")).expect("receipt");
    assert_eq!((first.accepted, first.rejected.len(), first.rejected_count, first.repeated), (1, 2, 2, true));
    let retried = ingest.ingest("clicks", body.as_bytes(), Form::Any, Some("key")).expect("receipt");
    assert_eq!(retried, first);
    assert_eq!(ingest.rejects().count(Some("clicks")).expect("count"), 2);
    assert_eq!(log.records("clicks", 0).len() + log.records("clicks", 1).len(), 1);

    let other = ingest.ingest("clicks", b"nonsense", Form::Any, Some("other key")).expect("receipt");
    assert_eq!((other.accepted, other.rejected.len(), other.offsets.len(), other.repeated), (0, 1, 0, false));
    let again = ingest.ingest("clicks", b"nonsense", Form::Any, Some("other key")).expect("receipt");
    assert_eq!(again, Receipt { repeated: true, ..other });
    assert_eq!(ingest.rejects().count(None).expect("count"), 3);
    let again = ingest.ingest("clicks", body.as_bytes(), Form::Any, None).expect("receipt");
    assert_eq!(again.accepted, 2);
}

#[test]
fn a_key_with_another_body_is_refused_and_nothing_of_it_is_stored() {
    let (log, _, ingest) = ingest(1, None);
    let first = ingest.ingest("clicks", b"{\"ts\":0}\nnonsense", Form::Any, Some("key")).expect("receipt");
    let refused = ingest.ingest("clicks", b"{\"ts\":1}\nother nonsense", Form::Any, Some("key"));
    assert!(matches!(&refused, Err(IngestError::Log(LogError::KeyReused { key, .. })) if key == "key"), "{refused:?}");
    assert_eq!((log.records("clicks", 0).len(), ingest.rejects().count(None).expect("count")), (1, 1));
    let again = ingest.ingest("clicks", b"{\"ts\":0}\nnonsense", Form::Any, Some("key")).expect("receipt");
    assert_eq!(again, Receipt { repeated: true, ..first });
}

#[test]
fn of_very_many_bad_records_the_first_are_told_and_all_are_kept_in_chunks() {
    for key in [None, Some("key")] {
        let (log, _, ingest) = ingest(1, None);
        let bad = 3 * PIECE_RECORDS as u64 + 7;
        let body = format!("{}{{\"ts\":0}}\n", "x\n".repeat(bad as usize));
        let receipt = ingest.ingest("clicks", body.as_bytes(), Form::Any, key).expect("receipt");
        assert_eq!((receipt.accepted, receipt.rejected_count), (1, bad));
        assert_eq!(receipt.rejected.iter().map(|told| told.line).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
        assert_eq!(ingest.rejects().count(Some("clicks")).expect("count"), bad);
        let newest = ingest.rejects().list(None, None, 1).expect("rejects").rejects.remove(0);
        assert_eq!(newest.line, Some(bad), "each has its line in the body");
        let largest = log.0.lock().sizes.iter().copied().max();
        assert_eq!(largest, Some(1_000), "no append holds others up for long");
        ingest.ingest("clicks", body.as_bytes(), Form::Any, key).expect("receipt");
        let expected = if key.is_some() { bad } else { 2 * bad };
        assert_eq!(ingest.rejects().count(Some("clicks")).expect("count"), expected);
    }
}

#[test]
fn an_error_quotes_no_more_than_the_beginning_of_a_record() {
    let (_, _, ingest) = ingest(1, None);
    let body = format!("{{\"ts\":\"{}\"}}", "\u{1}😀".repeat(100_000).replace('\u{1}', "\\u0001"));
    let receipt = ingest.ingest("clicks", body.as_bytes(), Form::Any, None).expect("receipt");
    let error = &receipt.rejected[0].error;
    assert!(error.starts_with("column `ts`: `") && error.ends_with("is no RFC 3339 time"), "{error}");
    assert!(error.len() < 500, "{} bytes", error.len());
}
