use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use uuid::Uuid;

use super::state::PartitionState;
use super::store::{BatchKey, Piece, Store, StoredBatch, StoredEpoch, pack};
use super::{EmbeddedLog, EmbeddedOptions, damage};
use crate::clock::{Clock, ManualClock, Micros, SystemClock};
use crate::position::{Offset, Partition, Positions};
use crate::tests::{Open, all_behaviours, append, drain, part, read_all, strings};
use crate::{Append, Extras, Idempotency, Log, LogError, Payloads, ReadLimit, Retention};

const MANY: ReadLimit = ReadLimit { records: 100_000, bytes: 64 << 20 };
const HOUR: Micros = 3600 * 1_000_000;

fn open(path: &Path) -> EmbeddedLog {
    EmbeddedLog::open(path, EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() }, Arc::new(SystemClock))
        .expect("open")
}

fn open_at(path: &Path, clock: &Arc<ManualClock>) -> EmbeddedLog {
    EmbeddedLog::open(path, EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() }, clock.clone())
        .expect("open")
}

fn on_embedded(behaviour: &dyn Fn(Open<'_>)) {
    let dir = tempfile::tempdir().expect("directory");
    let options = EmbeddedOptions { reserve_bytes: 0, keyed: BTreeSet::from(["keyed".to_owned()]) };
    behaviour(&|| Arc::new(EmbeddedLog::open(dir.path(), options.clone(), Arc::new(SystemClock)).expect("open")));
}

all_behaviours!(on_embedded);

/// Keys and values byte for byte. A log that was written by them has to be read for ever: what is written otherwise needs another
/// number in front, beside these.
#[test]
fn what_is_stored_is_read_and_written_as_the_stored_lines() {
    let payloads: Payloads = ["one", "", "three"].into_iter().collect();
    let keys: Payloads = ["k", "", "key"].into_iter().collect();
    let key = BatchKey { topic: 1, partition: 2, base: 3, log_time: 4, records: 0, bytes: 0 };
    let mut batches = Vec::new();
    for keys in [None, Some(keys)] {
        pack(key, &[Piece { payloads: payloads.clone(), keys }], &mut batches);
    }
    let begins = BTreeMap::from([((1, 2), 3), ((4, 5), 6)]);
    let epoch = StoredEpoch { id: Uuid::from_bytes(std::array::from_fn(|i| i as u8)), begins };
    let partition = PartitionState { start: 3, end: 9, log_time: -1, bytes: 300 };
    let mut written: Vec<(Vec<u8>, Vec<u8>)> =
        batches.into_iter().map(|(key, value)| (key.to_vec(), value.expect("a batch").to_vec())).collect();
    written.push((StoredEpoch::key(7), epoch.encode()));
    written.push((PartitionState::key(1, 2), partition.encode()));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: String = written.iter().map(|(key, value)| format!("{} {}\n", hex(key), hex(value))).collect();
    assert_eq!(lines, include_str!("layout-1.txt"));

    for (i, (key, value)) in written[..2].iter().enumerate() {
        let batch = StoredBatch::decode(BatchKey::decode(key).expect("a key"), value.clone().into()).expect("a batch");
        assert_eq!((batch.key.base, batch.key.end(), &batch.payloads.bytes(2..3)[..]), (3, 6, &b"three"[..]));
        assert_eq!(batch.keys.map(|keys| keys.bytes(0..3).to_vec()), (i == 1).then(|| b"kkey".to_vec()));
    }
    assert_eq!(StoredEpoch::decode(&written[2].1), Some(epoch));
    assert_eq!(PartitionState::decode(&written[3].1), Some(partition));
}

#[test]
fn keys_are_kept_from_when_they_are_wanted_and_cost_others_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let keyed = || Append { keys: [(0, ["a"].iter().collect())].into(), ..part(0, &["record"]) };
    let value = |offset| {
        let store = Store::open(dir.path()).expect("open");
        let (from, to) = (BatchKey::bound(0, 0, offset), BatchKey::bound(0, 0, offset + 1));
        store.range(&from..&to).next().expect("a batch").into_inner().expect("whole").1.to_vec()
    };
    let log = open(dir.path());
    log.create_topic("keyed", 1).expect("create");
    log.append("keyed", keyed()).expect("append");
    drop(log);
    let before = value(0);
    assert_eq!((before[0], before.len()), (1, 5 + 4 + 6), "as it is without keys");
    let options = EmbeddedOptions { reserve_bytes: 0, keyed: BTreeSet::from(["keyed".to_owned()]) };
    let log = EmbeddedLog::open(dir.path(), options, Arc::new(SystemClock)).expect("open");
    log.append("keyed", keyed()).expect("append");
    let mut reader = log.reader("keyed", &Positions::from([(0, 0)])).expect("reader");
    reader.bring(Extras { keys: true, headers: true });
    let batch = reader.poll(MANY, Duration::ZERO).expect("poll").expect("a batch");
    assert_eq!((batch.keys, batch.headers), (Some(Payloads::from_iter(["", "a"])), None), "in one batch");
    drop((reader, log));
    assert_eq!((value(1)[0], value(1).len()), (2, 5 + 4 + 6 + 4 + 1));
    open(dir.path());
}

#[test]
fn log_times_are_the_clocks_and_go_back_only_with_them() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(100));
    let log = open_at(dir.path(), &clock);
    log.create_topic("t", 2).expect("create");
    // A little is evened out; what would take long to catch up with isn't waited for.
    for now in [100, 50, 200, 9 * HOUR, 9 * HOUR - 60_000_000, HOUR, HOUR - 1, 150] {
        clock.set(now);
        append(&log, "t", 0, &["a"]);
    }
    append(&log, "t", 1, &["a"]);
    drop(log);
    let log = open_at(dir.path(), &clock);
    append(&log, "t", 0, &["a"]);
    let mut reader = log.reader("t", &Positions::from([(0, 0), (1, 0)])).expect("reader");
    let mut times = BTreeMap::new();
    while let Some(batch) = reader.poll(MANY, Duration::ZERO).expect("poll") {
        times.insert(batch.partition, batch.log_times);
    }
    let expected = vec![100, 100, 200, 9 * HOUR, 9 * HOUR, HOUR, HOUR, 150, 150];
    assert_eq!(times, BTreeMap::from([(0, expected), (1, vec![150])]));
}

#[test]
fn retention_deletes_by_age_and_by_bytes() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(0));
    let log = open_at(dir.path(), &clock);
    log.create_topic("t", 1).expect("create");
    for hour in 0..10 {
        clock.set(hour * HOUR);
        append(&log, "t", 0, &["0123456789", "0123456789"]);
    }
    let retain = |age: Option<u64>, bytes, keep_from: &[(Partition, u64)]| {
        let retention = Retention { age: age.map(|hours| Duration::from_secs(hours * 3600)), bytes };
        log.retain("t", retention, &keep_from.iter().copied().collect()).expect("retain");
        log.bounds("t").expect("bounds")[&0].start
    };
    assert_eq!(retain(Some(9), Some(200), &[(0, Offset::MAX)]), 0, "just within both limits");
    assert_eq!(retain(Some(7), None, &[(0, 3)]), 2, "what is to be kept is inside the second batch");
    assert_eq!(retain(Some(7), None, &[(0, Offset::MAX)]), 4);
    assert_eq!(retain(None, Some(119), &[(0, 20)]), 10, "whole batches, until it is no more than that");
    assert_eq!(read_all(&log, "t", Positions::from([(0, 10)]))[&0].len(), 10);
    assert_eq!(retain(None, Some(0), &[(0, Offset::MAX)]), 20, "all of it");
}

#[test]
fn records_taken_while_the_clock_was_ahead_are_retained_no_longer_than_those_after_them() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(0));
    let log = open_at(dir.path(), &clock);
    log.create_topic("t", 1).expect("create");
    for hour in [0, 9_600, 9_601, 1, 2, 3] {
        clock.set(hour * HOUR);
        append(&log, "t", 0, &["a"]);
    }
    let mut start_at = |hour: i64| {
        clock.set(hour * HOUR);
        let retention = Retention { age: Some(Duration::from_secs(5 * 3600)), bytes: None };
        log.retain("t", retention, &Positions::from([(0, Offset::MAX)])).expect("retain");
        log.bounds("t").expect("bounds")[&0].start
    };
    assert_eq!([5, 6, 7, 8].map(&mut start_at), [0, 1, 4, 5]);
}

#[test]
fn retention_gives_room_back() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    log.create_topic("t", 1).expect("create");
    let mut noise = 1_u64;
    for _ in 0..40 {
        let record = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise as u8
        });
        let parts = vec![(0, [record.take(4 << 20).collect::<Vec<_>>()].iter().collect())];
        log.append("t", Append { parts, ..Append::default() }).expect("append");
    }
    let stored_bytes = || log.shared.with_store(|store| store.disk_bytes()).expect("size");
    let before = stored_bytes();
    log.retain("t", Retention { age: None, bytes: Some(8 << 20) }, &Positions::from([(0, Offset::MAX)]))
        .expect("retain");
    assert!(before > 160 << 20, "{before}");
    // The log's own thread gives the room of its journals back, once it comes to it.
    let started = std::time::Instant::now();
    while stored_bytes() >= 80 << 20 {
        assert!(started.elapsed() < Duration::from_secs(60), "{before} before, {} after", stored_bytes());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(log.bounds("t").expect("bounds")[&0], 38..40);
}

#[test]
fn idempotency_keys_are_forgotten_after_a_day() {
    let dir = tempfile::tempdir().expect("directory");
    let clock = Arc::new(ManualClock::new(HOUR));
    let log = open_at(dir.path(), &clock);
    log.create_topic("t", 1).expect("create");
    let request = |key: &str| {
        let idempotency = Some(Idempotency { key: key.to_owned(), ..Idempotency::default() });
        log.append("t", Append { idempotency, ..part(0, &["a"]) }).expect("append").repeated.is_some()
    };
    assert!(!request("one"));
    clock.set(24 * HOUR);
    assert!(!request("two"));
    assert!(request("one"), "not a day yet");
    clock.set(25 * HOUR);
    assert!(!request("one"), "a day later");
    assert!(request("one"), "the new one is known");
    assert!(request("two"));
    clock.set(80 * HOUR);
    assert!(!request("three"));
    let store = log.shared.store.read();
    let store = store.as_ref().expect("store");
    let left = |prefix: &[u8]| store.prefix(prefix).count();
    assert_eq!((left(b"i"), left(b"a")), (1, 1), "what is forgotten is deleted");
}

/// A clock that, once armed, tells when it is asked and answers when it is let.
#[derive(Debug)]
struct GatedClock(Mutex<Option<(SyncSender<()>, Receiver<()>)>>);

impl Clock for GatedClock {
    fn now(&self) -> Micros {
        if let Some((asked, answer)) = self.0.lock().take() {
            asked.send(()).expect("asked");
            answer.recv().expect("answer");
        }
        0
    }
}

/// Appends `first`, and the others while its commit is held back, so that these are stored by one commit.
fn append_together(
    log: &EmbeddedLog,
    clock: &GatedClock,
    first: Append,
    others: Vec<Append>,
) -> Vec<Result<super::Appended, LogError>> {
    let ((asked, is_asked), (answer, answers)) = (sync_channel(1), sync_channel(1));
    *clock.0.lock() = Some((asked, answers));
    let appends = log.stats().appends + 1 + others.len() as u64;
    std::thread::scope(|scope| {
        scope.spawn(|| log.append("t", first).expect("append"));
        is_asked.recv().expect("the first commit has begun");
        let others: Vec<_> = others.into_iter().map(|other| scope.spawn(|| log.append("t", other))).collect();
        while log.stats().appends < appends {
            std::thread::yield_now();
        }
        answer.send(()).expect("answer");
        others.into_iter().map(|other| other.join().expect("join")).collect()
    })
}

fn gated(path: &Path) -> (EmbeddedLog, Arc<GatedClock>) {
    let clock = Arc::new(GatedClock(Mutex::new(None)));
    let log =
        EmbeddedLog::open(path, EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() }, clock.clone())
            .expect("open");
    log.create_topic("t", 2).expect("create");
    (log, clock)
}

#[test]
fn appends_that_wait_share_a_sync_and_a_batch() {
    let dir = tempfile::tempdir().expect("directory");
    let (log, clock) = gated(dir.path());
    let before = log.stats();
    let others = (0..50).map(|i| part(i % 2, &["a", "b"])).collect();
    let appended = append_together(&log, &clock, part(0, &["first"]), others);
    let after = log.stats();
    assert_eq!(after.appends - before.appends, 51);
    assert_eq!(after.commits - before.commits, 2);
    assert_eq!(after.batches - before.batches, 3, "one for the first, one for each partition of the others");
    let starts: BTreeSet<_> =
        appended.iter().flat_map(|one| &one.as_ref().expect("stored").offsets).map(|(p, o)| (*p, o.start)).collect();
    assert_eq!(starts.len(), 50, "each has offsets of its own");
    let records = read_all(&log, "t", Positions::from([(0, 0), (1, 0)]));
    assert_eq!((records[&0].len(), records[&1].len()), (51, 50));
}

#[test]
fn equal_requests_in_one_commit_are_stored_once() {
    let dir = tempfile::tempdir().expect("directory");
    let (log, clock) = gated(dir.path());
    let request = |note: &str| {
        let idempotency = Some(Idempotency { key: "key".to_owned(), digest: None, note: note.as_bytes().to_vec() });
        Append { idempotency, ..part(1, &["a"]) }
    };
    let appended = append_together(&log, &clock, part(0, &["first"]), vec![request("x"), request("x"), request("x")]);
    let repeated = appended.iter().map(|one| one.as_ref().expect("an answer").repeated.as_deref());
    assert_eq!(repeated.clone().filter(Option::is_none).count(), 1);
    assert_eq!(repeated.filter(|note| *note == Some(b"x")).count(), 2);
    assert_eq!(log.bounds("t").expect("bounds")[&1], 0..1);
}

#[test]
fn a_key_with_another_digest_in_one_commit_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let (log, clock) = gated(dir.path());
    let request = |digest: u8| {
        let idempotency = Some(Idempotency { key: "key".to_owned(), digest: Some([digest; 32]), note: Vec::new() });
        Append { idempotency, ..part(1, &["a"]) }
    };
    let outcomes = append_together(&log, &clock, part(0, &["first"]), vec![request(1), request(2)]);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(LogError::KeyReused { .. }))), "{outcomes:?}");
    assert_eq!(log.bounds("t").expect("bounds")[&1], 0..1);
}

#[test]
fn a_request_that_was_remembered_without_a_digest_is_known() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    log.create_topic("t", 1).expect("create");
    let request = |digest| {
        let idempotency = Some(Idempotency { key: "key".to_owned(), digest, note: b"note".to_vec() });
        log.append("t", Append { idempotency, ..part(0, &["a"]) })
    };
    request(None).expect("as earlier programs did");
    let again = request(Some([1; 32])).expect("taken for the same");
    assert_eq!((again.offsets[&0].clone(), again.repeated.as_deref()), (0..1, Some(&b"note"[..])));
}

#[test]
fn large_appends_are_stored_in_several_batches() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    log.create_topic("t", 1).expect("create");
    let records: Vec<_> = (0..100_000).map(|i| format!("{i:040}")).chain([String::from("y").repeat(3 << 20)]).collect();
    log.append("t", Append { parts: vec![(0, records.iter().collect())], ..Append::default() }).expect("append");
    assert_eq!(log.stats().batches, 5);
    for limit in [MANY, ReadLimit { records: 999, bytes: 1 << 30 }, ReadLimit { records: 1 << 20, bytes: 2_500_000 }] {
        let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
        assert!(drain(&mut *reader, limit)[&0] == records, "{limit:?}");
    }
}

#[test]
fn a_full_disk_refuses_appends_and_lets_reads_go_on() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    log.create_topic("t", 1).expect("create");
    append(&log, "t", 0, &["a"]);
    drop(log);
    let full = EmbeddedOptions { reserve_bytes: u64::MAX / 2, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(dir.path(), full, Arc::new(SystemClock)).expect("open");
    let refused = log.append("t", part(0, &["b"]));
    let Err(LogError::StorageFull { path, free_bytes, reserve_bytes }) = refused else { panic!("{refused:?}") };
    assert_eq!((path.as_str(), reserve_bytes), (dir.path().to_str().expect("path"), u64::MAX / 2));
    assert!(free_bytes > 0);
    assert_eq!(read_all(&log, "t", Positions::from([(0, 0)]))[&0], ["a"]);
    log.retain("t", Retention { age: None, bytes: Some(0) }, &Positions::from([(0, Offset::MAX)]))
        .expect("deleting is allowed");
    drop(log);
    let log = open(dir.path());
    assert_eq!(append(&log, "t", 0, &["b"]).offsets, BTreeMap::from([(0, 1..2)]));
}

/// A clock that, once armed, takes all that is left of its file system when it is asked: after the log has found room,
/// and before it writes.
#[derive(Debug)]
struct FillingClock(Mutex<Option<PathBuf>>);

impl Clock for FillingClock {
    fn now(&self) -> Micros {
        if let Some(ballast) = self.0.lock().take() {
            let mut file = std::fs::File::create(ballast).expect("ballast");
            while file.write_all(&[1; 4096]).is_ok() {}
        }
        0
    }
}

/// Needs a small file system of its own, to be filled to the last byte:
/// `mount -t tmpfs -o size=400m tmpfs DIR`, then `SMALL_FILE_SYSTEM=DIR cargo test … -- --ignored`.
#[test]
#[ignore = "needs a small file system"]
fn a_disk_filled_behind_the_logs_back_is_survived() {
    let dir = tempfile::tempdir_in(std::env::var("SMALL_FILE_SYSTEM").expect("SMALL_FILE_SYSTEM")).expect("directory");
    let (path, ballast) = (dir.path().join("log"), dir.path().join("ballast"));
    let clock = Arc::new(FillingClock(Mutex::new(None)));
    let log =
        EmbeddedLog::open(&path, EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() }, clock.clone())
            .expect("open");
    log.create_topic("t", 1).expect("create");
    let records = vec!["0123456789".repeat(1000); 100];
    let append_records = || log.append("t", Append { parts: vec![(0, records.iter().collect())], ..Append::default() });
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    let (mut stored, mut read, mut refused) = (0, 0, 0);
    for round in 0..200 {
        let fill = round % 10 == 7;
        *clock.0.lock() = fill.then(|| ballast.clone());
        for _ in 0..if fill { 3 } else { 1 } {
            match append_records() {
                // Even then, if flushing has just made room.
                Ok(appended) => {
                    assert_eq!(appended.offsets[&0], stored..stored + 100);
                    stored += 100;
                }
                Err(LogError::StorageFull { .. }) if fill => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
            read += drain(&mut *reader, MANY).values().map(Vec::len).sum::<usize>() as u64;
            assert_eq!(read, stored, "reads go on, and what was refused isn't there");
        }
        if fill {
            std::fs::remove_file(&ballast).expect("make room");
        }
        log.retain("t", Retention { age: None, bytes: Some(20 << 20) }, &reader.positions()).expect("retain");
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_second_opener_is_told_that_the_log_is_open() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    let second = EmbeddedLog::open(dir.path(), EmbeddedOptions::default(), Arc::new(SystemClock));
    let Err(LogError::Backend { step, .. }) = second else { panic!("opened twice") };
    assert!(step.contains("another process has open"), "{step}");
    log.create_topic("t", 1).expect("the first goes on");
}

#[test]
fn readers_end_with_the_log() {
    let dir = tempfile::tempdir().expect("directory");
    let log = open(dir.path());
    log.create_topic("t", 1).expect("create");
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reader.poll(MANY, Duration::from_secs(60)));
        drop(log);
        assert!(matches!(waiting.join().expect("join"), Err(LogError::Closed)));
    });
    open(dir.path()).topics().expect("a reader that is still there doesn't keep it locked");
}

/// A log with three stored batches of 30 records of 100 bytes.
fn three_batches(path: &Path) {
    let log = open(path);
    log.create_topic("t", 1).expect("create");
    for batch in ["a", "b", "c"] {
        append(&log, "t", 0, &[batch.repeat(100).as_str(); 30]);
    }
}

fn expect_damage_of_the_second(path: &Path) {
    let log = open(path);
    let mut reader = log.reader("t", &Positions::from([(0, 0)])).expect("reader");
    let one = ReadLimit { records: 30, bytes: 1 << 20 };
    assert_eq!(reader.poll(one, Duration::ZERO).expect("poll").map(|batch| batch.coverage), Some(0..30));
    let error = reader.poll(one, Duration::ZERO).expect_err("damaged");
    assert!(matches!(error, LogError::Damaged { partition: 0, offset: 30, .. }), "{error:?}");
    assert_eq!(reader.positions(), Positions::from([(0, 30)]));
    let mut after = log.reader("t", &Positions::from([(0, 60)])).expect("reader");
    let batch = after.poll(one, Duration::ZERO).expect("poll").expect("the third is whole");
    assert_eq!(strings(&batch)[0], "c".repeat(100));
}

#[test]
fn a_batch_that_isnt_what_was_written_is_damaged() {
    let dir = tempfile::tempdir().expect("directory");
    let damages: [fn(&mut Vec<u8>); 4] =
        [|value| value[500] ^= 1, |value| value[7] ^= 1, |value| value[0] = 9, |value| value.truncate(1000)];
    three_batches(dir.path());
    for damage in damages {
        let store = Store::open(dir.path()).expect("open");
        let from = BatchKey::bound(0, 0, 30);
        let (key, value) = store.range(&from..&b"c"[..]).next().expect("second").into_inner().expect("whole");
        let mut damaged = value.to_vec();
        damage(&mut damaged);
        store.write(&[(key.clone(), Some(damaged.into()))]).expect("write");
        drop(store);
        expect_damage_of_the_second(dir.path());
        let store = Store::open(dir.path()).expect("open");
        store.write(&[(key, Some(value))]).expect("write");
    }
    let store = Store::open(dir.path()).expect("open");
    let from = BatchKey::bound(0, 0, 30);
    let key = store.range(&from..&b"c"[..]).next().expect("second").key().expect("key");
    store.write(&[(key, None)]).expect("write");
    drop(store);
    expect_damage_of_the_second(dir.path());
}

#[test]
fn a_file_that_isnt_what_was_written_is_damage() {
    let dir = tempfile::tempdir().expect("directory");
    three_batches(dir.path());
    Store::open(dir.path()).and_then(|store| store.flush()).expect("flush");
    let key = BatchKey::bound(0, 0, 30);
    let mut files = vec![dir.path().to_owned()];
    let mut found = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(path.read_dir().expect("directory").map(|entry| entry.expect("entry").path()));
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("read");
        let in_blobs = path.parent().is_some_and(|parent| parent.ends_with("blobs"));
        if let Some(at) = bytes.windows(key.len()).position(|window| in_blobs && window == key) {
            bytes[at + 60] ^= 1;
            std::fs::write(&path, bytes).expect("write");
            found += 1;
        }
    }
    assert_eq!(found, 1, "one file holds the second batch");
    expect_damage_of_the_second(dir.path());
}

/// Copies what is in a folder, folders too.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("directory");
    for entry in from.read_dir().expect("directory").map(|entry| entry.expect("entry").path()) {
        let to = to.join(entry.file_name().expect("name"));
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            std::fs::copy(&entry, to).expect("copied");
        }
    }
}

/// What a log holds; or why it can't be opened.
fn held(path: &Path) -> Result<BTreeMap<Partition, Vec<String>>, String> {
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    match EmbeddedLog::open(path, options, Arc::new(SystemClock)) {
        Ok(log) => read(&log).map_err(|error| error.to_string()),
        Err(LogError::Backend { step, source }) => Err(format!("{step}: {source}")),
        Err(error) => panic!("{error:?}"),
    }
}

fn read(log: &EmbeddedLog) -> Result<BTreeMap<Partition, Vec<String>>, LogError> {
    let mut reader = log.reader("t", &Positions::from([(0, 0), (1, 0)]))?;
    let mut read = BTreeMap::<_, Vec<_>>::new();
    while let Some(batch) = reader.poll(MANY, Duration::ZERO)? {
        read.entry(batch.partition).or_default().extend(strings(&batch));
    }
    Ok(read)
}

/// A log whose journal isn't larger than what was written, as it was opened again. Returns the journal.
fn with_journal(path: &Path) -> PathBuf {
    open(path).create_topic("t", 2).expect("create");
    append_some(path, 0..3);
    path.join("0.jnl")
}

/// Appends records that are named after their appends, with idempotency keys.
fn append_some(path: &Path, appends: std::ops::Range<usize>) {
    let log = open(path);
    for i in appends {
        let idempotency = Some(Idempotency { key: format!("key {i}"), ..Idempotency::default() });
        let [first, second] = [format!("first {i}"), format!("second {i}")];
        let append = Append { idempotency, ..part(i as Partition % 2, &[&first, &second]) };
        log.append("t", append).expect("append");
    }
}

#[test]
fn no_flipped_bit_of_a_journal_loses_an_acknowledged_record() {
    let dir = tempfile::tempdir().expect("directory");
    let journal = with_journal(dir.path());
    let older = std::fs::read(&journal).expect("read");
    let check_all = |cut: usize, expected: &BTreeMap<Partition, Vec<String>>| {
        let whole = std::fs::read(&journal).expect("read")[cut..].to_vec();
        let mut accepted = 0;
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&journal, &damaged).expect("write");
            if let Err(error) = damage::check(dir.path()) {
                assert!(error.to_string().contains(journal.to_str().expect("path")), "{error}");
                continue;
            }
            assert_eq!(
                std::fs::metadata(&journal).expect("there").len(),
                whole.len() as u64,
                "bit {bit}: it was cut off"
            );
            accepted += 1;
            let opened = tempfile::tempdir().expect("directory");
            copy(dir.path(), opened.path());
            match held(opened.path()) {
                Ok(held) => assert_eq!(held, *expected, "bit {bit}"),
                Err(said) => assert!(said.contains("anabranch log adopt"), "bit {bit}: {said}"),
            }
        }
        std::fs::write(&journal, &whole).expect("write");
        assert!(accepted < 200, "{accepted} flips went through, more than those of sequence numbers");
    };
    let expected = held(dir.path()).expect("whole");
    assert_eq!((expected[&0].len(), expected[&1].len()), (4, 2));
    check_all(0, &expected);

    // Its first batch is behind what is in tables, as after an older journal was deleted.
    Store::open(dir.path()).and_then(|store| store.flush()).expect("flush");
    append_some(dir.path(), 3..5);
    let expected = held(dir.path()).expect("whole");
    assert_eq!((expected[&0].len(), expected[&1].len()), (6, 4));
    check_all(older.len(), &expected);
    assert_eq!(held(dir.path()).expect("whole"), expected);
}

#[test]
fn a_journal_that_a_crash_cut_off_in_its_last_commit_opens_with_all_before_it() {
    let dir = tempfile::tempdir().expect("directory");
    let journal = with_journal(dir.path());
    let (before, begins) = (held(dir.path()).expect("whole"), std::fs::read(&journal).expect("read").len());
    append_some(dir.path(), 3..4);
    let (after, whole) = (held(dir.path()).expect("whole"), std::fs::read(&journal).expect("read"));
    assert_eq!((before[&1].len(), after[&1].len()), (2, 4));
    for ends in begins..=whole.len() {
        // A file that was made larger beforehand goes on with zeros.
        for zeros in [0, 10_000] {
            let mut cut = whole[..ends].to_vec();
            cut.resize(ends + zeros, 0);
            std::fs::write(&journal, cut).expect("write");
            let expected = if ends == whole.len() { &after } else { &before };
            assert_eq!(held(dir.path()).as_ref(), Ok(expected), "{ends} of {} bytes, {zeros} zeros", whole.len());
        }
    }
}

#[test]
fn a_page_that_is_missing_is_no_damage_in_the_last_commit_and_is_in_one_before_it() {
    let dir = tempfile::tempdir().expect("directory");
    let journal = with_journal(dir.path());
    let (before, begins) = (held(dir.path()).expect("whole"), std::fs::read(&journal).expect("read").len());
    append(&open(dir.path()), "t", 0, &["x".repeat(999).as_str(); 20]);
    let ends = std::fs::read(&journal).expect("read").len();
    for followed in [false, true] {
        if followed {
            append_some(dir.path(), 3..4);
        }
        let whole = std::fs::read(&journal).expect("read");
        for page in begins / 4096..ends / 4096 {
            let mut torn = whole.clone();
            torn[(page * 4096).max(begins)..(page + 1) * 4096].fill(0);
            std::fs::write(&journal, torn).expect("write");
            match held(dir.path()) {
                Ok(held) => assert!(!followed && held == before, "page {page}"),
                Err(said) => {
                    let place = format!("`{}` is damaged at byte {begins}", journal.display());
                    assert!(followed && said.contains(&place), "page {page}: {said}");
                }
            }
        }
        std::fs::write(&journal, whole).expect("write");
    }
    assert_eq!(held(dir.path()).expect("whole")[&0].len(), before[&0].len() + 20);
}

#[test]
fn a_manifest_with_a_flipped_bit_is_named_and_no_file_is_deleted() {
    let dir = tempfile::tempdir().expect("directory");
    with_journal(dir.path());
    Store::open(dir.path()).and_then(|store| store.flush()).expect("flush");
    let expected = held(dir.path()).expect("whole");
    for keyspace in ["keyspaces/0", "keyspaces/1"] {
        let folder = dir.path().join(keyspace);
        let current = std::fs::read(folder.join("current")).expect("read");
        let named = u64::from_le_bytes(*current.first_chunk().expect("a number"));
        for file in [folder.join("current"), folder.join(format!("v{named}"))] {
            let whole = std::fs::read(&file).expect("read");
            for bit in 0..whole.len() * 8 {
                let mut damaged = whole.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&file, damaged).expect("write");
                match damage::check(dir.path()) {
                    Err(error) => assert!(error.to_string().contains(folder.to_str().expect("path")), "{error}"),
                    // The kind of the digest, of which there is one.
                    Ok(_) => assert!(file.ends_with("current") && bit / 8 == whole.len() - 1, "bit {bit} of {file:?}"),
                }
            }
            std::fs::write(&file, whole).expect("write");
        }
    }
    assert_eq!(held(dir.path()).expect("whole"), expected);
}

#[test]
fn a_flipped_bit_in_a_table_or_a_blob_file_is_an_error_or_changes_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    with_journal(dir.path());
    append(&open(dir.path()), "t", 0, &["x".repeat(100).as_str(); 20]);
    Store::open(dir.path()).and_then(|store| store.flush()).expect("flush");
    let expected = held(dir.path()).expect("whole");
    for folder in ["keyspaces/0/tables", "keyspaces/1/tables", "keyspaces/1/blobs"] {
        let files = dir.path().join(folder).read_dir().expect("directory").map(|entry| entry.expect("entry").path());
        let mut refused = 0;
        for file in files {
            for bit in (0..std::fs::metadata(&file).expect("there").len() as usize * 8).step_by(97) {
                let damaged = tempfile::tempdir().expect("directory");
                copy(dir.path(), damaged.path());
                let file = damaged.path().join(file.strip_prefix(dir.path()).expect("below"));
                let mut content = std::fs::read(&file).expect("read");
                content[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&file, content).expect("write");
                match held(damaged.path()) {
                    Ok(held) => assert_eq!(held, expected, "bit {bit} of {file:?}"),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > 0, "{folder}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<(Partition, Vec<Vec<u8>>)>),
    Read { from: Vec<prop::sample::Index>, limit: ReadLimit, polls: usize },
    Retain { bytes: u64, keep_from: prop::sample::Index },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let parts = prop::collection::vec((0..3_u32, prop::collection::vec(payload, 0..20)), 0..4);
    let limit = (1..50_usize, 1..2000_usize).prop_map(|(records, bytes)| ReadLimit { records, bytes });
    let from = prop::collection::vec(any::<prop::sample::Index>(), 3);
    let step = prop_oneof![
        6 => parts.prop_map(Step::Append),
        4 => (from, limit, 1..20_usize).prop_map(|(from, limit, polls)| Step::Read { from, limit, polls }),
        1 => (0..500_u64, any::<prop::sample::Index>()).prop_map(|(bytes, keep_from)| Step::Retain { bytes, keep_from }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is appended, read from wherever with whatever limits, is what three vectors would hold.
    #[test]
    fn a_log_is_vectors_of_records(steps in steps()) {
        let dir = tempfile::tempdir().expect("directory");
        let mut log = open(dir.path());
        log.create_topic("t", 3).expect("create");
        let mut model = vec![Vec::<Vec<u8>>::new(); 3];
        for step in steps {
            match step {
                Step::Append(parts) => {
                    let mut seen = BTreeSet::new();
                    let parts: Vec<_> = parts.into_iter().filter(|(partition, _)| seen.insert(*partition)).collect();
                    let mut expected = BTreeMap::new();
                    for (partition, records) in &parts {
                        let held = &mut model[*partition as usize];
                        let base = held.len() as u64;
                        held.extend(records.iter().cloned());
                        expected.insert(*partition, base..held.len() as u64);
                    }
                    let parts = parts.iter().map(|(p, records)| (*p, Payloads::from_iter(records))).collect();
                    let appended = log.append("t", Append { parts, ..Append::default() }).expect("append");
                    prop_assert_eq!(appended.offsets, expected);
                }
                Step::Read { from, limit, polls } => {
                    let bounds = log.bounds("t").expect("bounds");
                    let from = bounds.iter().zip(&from).map(|((partition, held), from)| {
                        (*partition, held.start + from.index((held.end - held.start) as usize + 1) as u64)
                    });
                    let mut next: Positions = from.collect();
                    let mut reader = log.reader("t", &next).expect("reader");
                    for _ in 0..polls {
                        let Some(batch) = reader.poll(limit, Duration::ZERO).expect("poll") else {
                            prop_assert!(next.iter().all(|(p, next)| *next == bounds[p].end), "caught up");
                            break;
                        };
                        let from = next.insert(batch.partition, batch.coverage.end).expect("a partition asked for");
                        prop_assert_eq!(from, batch.coverage.start);
                        let held = &model[batch.partition as usize];
                        prop_assert_eq!(batch.log_end, held.len() as u64);
                        prop_assert!(batch.payloads.iter().eq(&held[from as usize..batch.coverage.end as usize]));
                        prop_assert!(batch.payloads.len() <= limit.records);
                        prop_assert!(batch.payloads.bytes().len() <= limit.bytes || batch.payloads.len() == 1);
                    }
                }
                Step::Retain { bytes, keep_from } => {
                    let keep: Positions =
                        (0..3).map(|p| (p, keep_from.index(model[p as usize].len() + 1) as u64)).collect();
                    let before = log.bounds("t").expect("bounds");
                    log.retain("t", Retention { age: None, bytes: Some(bytes) }, &keep).expect("retain");
                    for (partition, held) in log.bounds("t").expect("bounds") {
                        prop_assert_eq!(held.end, before[&partition].end);
                        prop_assert!(held.start >= before[&partition].start);
                        prop_assert!(held.start <= keep[&partition].max(before[&partition].start));
                    }
                }
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path());
                }
            }
        }
    }
}
