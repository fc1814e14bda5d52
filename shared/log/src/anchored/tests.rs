use std::path::{Path, PathBuf};

use super::*;
use crate::clock::ManualClock;
use crate::embedded::{EmbeddedLog, EmbeddedOptions};
use crate::lineage::Joint;
use crate::tests::{append, part};

const MANY: ReadLimit = ReadLimit { records: 1_000, bytes: 1 << 20 };

fn open(path: &Path) -> Arc<dyn Log> {
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(path, options, Arc::new(ManualClock::new(1_000_000))).expect("open");
    log.create_topic("t", 2).expect("a topic");
    Arc::new(log)
}

fn anchored(
    log: &Arc<dyn Log>,
    mark: Option<Mark>,
    reached: &[(Partition, Offset)],
    adoption: Adoption,
) -> AnchoredLog {
    let reached = reached.iter().copied().collect();
    let anchor = Anchor { table: "orders".to_owned(), mark, reached, tails: Tails::new(), adoption };
    AnchoredLog::new(log.clone(), BTreeMap::from([("t".to_owned(), anchor)]))
}

fn mark(log: &dyn Log) -> Option<Mark> {
    log.lineage("t").expect("a lineage").newest().cloned()
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let into = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &into);
        } else {
            std::fs::copy(entry.path(), into).expect("copied");
        }
    }
    to.to_owned()
}

/// Each request of a topic that isn't what was noted fails, and says why; other topics go on.
fn stopped(log: &AnchoredLog, why: &str) {
    let errors = [
        log.bounds("t").err(),
        log.append("t", part(0, &["x"])).err(),
        log.reader("t", &Positions::from([(0, 0)])).err(),
        log.retain("t", Retention::default(), &Positions::new()).err(),
        log.verify("t", "a checkpoint", None, &Positions::new()).err(),
    ];
    for error in errors {
        let error = error.expect("refused");
        assert!(matches!(error, LogError::OtherLog { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(why) && said.contains("anabranch log adopt orders"), "{said}");
    }
    log.create_topic("u", 1).expect("another topic");
    log.append("u", part(0, &["x"])).expect("which goes on");
}

#[test]
fn a_log_goes_on_over_restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut noted = None;
    for i in 0..4 {
        let log = open(folder.path());
        let held = anchored(&log, noted.clone(), &[(0, 2 * i)], Adoption::default());
        assert_eq!(append(&held, "t", 0, &["a", "b"]).offsets[&0], 2 * i..2 * i + 2);
        assert_eq!(held.bounds("t").expect("bounds")[&0], 0..2 * i + 2);
        assert_ne!(mark(&*log), noted, "each process has an epoch of its own");
        noted = mark(&*log);
    }
    let log = open(folder.path());
    assert_eq!(mark(&*log), noted, "one that changes nothing has none");
    assert_eq!(log.lineage("t").expect("a lineage").epochs.len(), 4);
}

#[test]
fn a_log_that_was_lost_is_found_to_be_another_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(&folder.path().join("one"));
    append(&*log, "t", 0, &["a", "b"]);
    let noted = mark(&*log);
    let other = open(&folder.path().join("other"));
    for _ in 0..3 {
        append(&*other, "t", 0, &["c", "d"]);
    }
    stopped(&anchored(&other, noted, &[(0, 2)], Adoption::default()), "it is of the log embedded:");
}

#[test]
fn an_older_copy_is_found_however_far_it_has_grown() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    drop(open(&path));
    let log = open(&path);
    append(&*log, "t", 0, &["a", "b"]);
    drop(log);
    let older = copy(&path, &folder.path().join("older"));
    let log = open(&path);
    append(&*log, "t", 0, &["c"]);
    let (noted, reached) = (mark(&*log), [(0, 3)]);
    drop(log);
    let log = open(&older);
    stopped(&anchored(&log, noted.clone(), &reached, Adoption::default()), "it is of the log embedded:");

    // Copied while it was written to: the epoch is known, and the copy went on elsewhere.
    let older = copy(&path, &folder.path().join("copied"));
    let log = open(&path);
    append(&*log, "t", 0, &["d"]);
    drop(log);
    let log = open(&older);
    let beyond = anchored(&log, noted.clone(), &[(0, 4)], Adoption::default());
    stopped(&beyond, "it reaches offset 4 of partition 0, and the log ends at 3");
    (0..5).for_each(|_| drop(append(&*log, "t", 0, &["e"])));
    let forked = anchored(&log, noted.clone(), &[(0, 4)], Adoption::default());
    stopped(&forked, "it reaches offset 4 of partition 0, and the log went on from 3");
    let fits = anchored(&log, noted, &[(0, 3)], Adoption::default());
    assert_eq!(fits.bounds("t").expect("what was noted before the copy fits")[&0], 0..8);
}

#[test]
fn what_was_noted_elsewhere_is_checked_when_it_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    append(&*log, "t", 0, &["a", "b"]);
    let held = anchored(&log, None, &[(0, 2)], Adoption::default());
    let newest = held.verify("t", "a checkpoint", None, &Positions::from([(0, 2)])).expect("up to the end");
    assert_eq!(newest, mark(&*log));
    let other = Some(Mark::new("embedded:other"));
    let error = held.verify("t", "version 7 of view `v`", other.as_ref(), &Positions::new()).expect_err("another log");
    assert!(error.to_string().contains("isn't what version 7 of view `v` is of"), "{error}");
    stopped(&held, "version 7 of view `v`");
}

#[test]
fn an_adopted_log_is_read_and_written_behind_what_came_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    append(&*log, "t", 0, &["unread", "a", "b"]);
    append(&*log, "t", 1, &["c"]);
    let joints = [(0, Joint { own: 1, shown: 100 }), (7, Joint { own: 0, shown: 9 })].into();
    let held = anchored(&log, None, &[(0, 100), (7, 9)], Adoption { count: 1, joints });
    assert_eq!(held.bounds("t").expect("bounds"), BTreeMap::from([(0, 100..102), (1, 0..1)]));
    assert_eq!(append(&held, "t", 0, &["d"]).offsets[&0], 102..103);
    let mut reader = held.reader("t", &Positions::from([(0, 101), (1, 0)])).expect("a reader");
    let mut read = BTreeMap::new();
    while let Some(batch) = reader.poll(MANY, Duration::ZERO).expect("read") {
        let payloads = batch.payloads.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect::<Vec<_>>();
        read.insert(batch.partition, (batch.coverage, batch.offsets, payloads, batch.log_end));
    }
    assert_eq!(read[&0], (101..103, vec![101, 102], vec!["b".to_owned(), "d".to_owned()], 103));
    assert_eq!(read[&1], (0..1, vec![0], vec!["c".to_owned()], 1));
    assert_eq!(reader.positions(), Positions::from([(0, 103), (1, 1)]));

    let before = held.reader("t", &Positions::from([(0, 40)])).err().expect("only the archive has it");
    assert!(matches!(before, LogError::OutOfRange { wanted: 40, held, .. } if held == (100..103)), "named");
    let all = Retention { age: None, bytes: Some(0) };
    held.retain("t", all, &Positions::from([(0, 102)])).expect("retained");
    assert_eq!(held.bounds("t").expect("bounds")[&0].end, 103);
    assert_eq!(held.verify("t", "it", None, &Positions::from([(0, 103), (7, 9)])).expect("fits"), {
        mark(&*log).map(|mark| Mark::new(format!("{mark}+1")))
    });
    let noted_before = mark(&*log);
    assert!(held.verify("t", "a checkpoint", noted_before.as_ref(), &Positions::from([(0, 50)])).is_err());
}

/// A log under which topics can be made anew.
struct Swapped(Mutex<Arc<dyn Log>>);

impl Log for Swapped {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.0.lock().create_topic(topic, partitions)
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        self.0.lock().topics()
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        self.0.lock().bounds(topic)
    }

    fn lineage(&self, topic: &str) -> Result<Lineage, LogError> {
        self.0.lock().lineage(topic)
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        self.0.lock().append(topic, append)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        self.0.lock().reader(topic, from)
    }

    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        self.0.lock().retain(topic, retention, keep_from)
    }
}

#[test]
fn a_topic_that_is_made_anew_meanwhile_is_found_by_the_next_receipt() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = open(&folder.path().join("one"));
    let swapped = Arc::new(Swapped(Mutex::new(one.clone())));
    let log: Arc<dyn Log> = swapped.clone();
    let held = anchored(&log, mark(&*one), &[], Adoption::default());
    append(&held, "t", 0, &["a", "b"]);
    *swapped.0.lock() = open(&folder.path().join("other"));
    let refused = held.append("t", part(0, &["c"])).expect_err("no receipt for an offset that another record has");
    assert!(matches!(refused, LogError::OtherLog { .. }), "{refused}");
    stopped(&held, "what this process has seen of it");
}
