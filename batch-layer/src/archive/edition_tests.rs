//! What the archive holds of a table whose definition changes is what the log says by its editions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::columnar::to_polars;
use anabranch_engine::decode::{self, DELETED, Decoder};
use anabranch_log::position::Positions;
use anabranch_log::{Append, Appended, Batch, Log, LogError, LogReader, ReadLimit, Retention};
use anabranch_plan::schema::{Column, DataType, Table};
use parking_lot::Mutex;
use polars::prelude::{DataFrame, IntoLazy, col};
use tokio::runtime::Handle;

use super::{Archive, ArchiveSettings, ArchiveSnapshot, Archiver, OFFSET, Rebuild, declare, tests};
use crate::error::BatchError;
use crate::fixture::{NOW, Source, source, table};

async fn archive(data: &Path, source: &Source, table: &Table) -> Result<Archiver, BatchError> {
    let log: Arc<dyn Log> = source.log.clone();
    declare(&data.join("archive"), table, &log).await?;
    open(data, source, table).await
}

/// As a process does that doesn't declare its definition, as it has done so before.
async fn open(data: &Path, source: &Source, table: &Table) -> Result<Archiver, BatchError> {
    let settings = ArchiveSettings { small_files: 1, ..Default::default() };
    Archiver::open(tests::archive(data, source, table.clone()), settings).await
}

/// The rows of a frame with where they came from, in order of that.
fn sorted(frame: DataFrame, table: &Table) -> DataFrame {
    let deleted = table.is_changelog().then_some(DELETED);
    let names = table.columns.iter().map(|column| column.name.as_str()).chain(deleted);
    let columns: Vec<_> = names.map(col).collect();
    let by = [col("user"), col("ts")];
    frame.lazy().select(columns).sort_by_exprs(by, Default::default()).collect().expect("rows")
}

/// What batch reads.
fn by_archive(snapshot: &ArchiveSnapshot, table: &Table) -> DataFrame {
    let files: Vec<_> = snapshot.days.values().flatten().cloned().collect();
    sorted(crate::scan::scan(snapshot, table, &files).expect("scan").collect().expect("rows"), table)
}

/// What speed reads of all that the log holds, in batches of so many records.
fn by_log(source: &Source, snapshot: &ArchiveSnapshot, table: &Table, records: usize) -> DataFrame {
    let mut decoder = Decoder::new(Arc::new(table.clone())).by(&snapshot.archived.editions);
    let held = source.log.bounds("events").expect("bounds");
    let starts: Positions = held.into_iter().map(|(partition, held)| (partition, held.start)).collect();
    let mut reader = source.log.reader("events", &starts).expect("reader");
    reader.bring(decode::extras(table));
    let limit = ReadLimit { records, bytes: 1 << 20 };
    let mut all: Option<DataFrame> = None;
    while let Some(batch) = reader.poll(limit, Default::default()).expect("poll") {
        let rows = to_polars(&decoder.decode_batch(&batch).batch).expect("rows");
        all = Some(all.map_or(rows.clone(), |all| all.vstack(&rows).expect("columns alike")));
    }
    sorted(all.expect("rows"), table)
}

/// Definitions, one after the other.
fn changes() -> Vec<(&'static str, Vec<Table>)> {
    let with = |name: &str, data_type, nullable| {
        let mut table = table();
        table.columns.retain(|column| column.name != name);
        table.columns.push(Column { name: name.into(), data_type, nullable });
        table.event_time = table.columns.iter().position(|column| column.name == "ts").expect("ts");
        table
    };
    let without = |name: &str| {
        let mut table = with(name, DataType::Text, true);
        table.columns.pop();
        table
    };
    vec![
        ("added", vec![table(), with("country", DataType::Text, true)]),
        ("added, NOT NULL", vec![table(), with("country", DataType::Text, false)]),
        ("made NOT NULL", vec![table(), with("value", DataType::BigInt, false)]),
        ("dropped", vec![table(), without("value")]),
        ("dropped and added again", vec![table(), without("value"), table()]),
        ("BIGINT to DOUBLE", vec![table(), with("value", DataType::Double, true)]),
        ("BIGINT to TEXT", vec![table(), with("value", DataType::Text, true)]),
        ("TEXT to BIGINT", vec![with("value", DataType::Text, true), table()]),
        ("TEXT to JSON", vec![with("value", DataType::Text, true), with("value", DataType::Json, true)]),
        ("there and back", vec![table(), with("value", DataType::Text, true), table()]),
        ("the partition column's name", vec![table(), with("day", DataType::BigInt, true)]),
        ("another case", vec![table(), without("value"), with("Value", DataType::BigInt, true)]),
    ]
}

const RECORDS: [&str; 6] = [
    r#"{"user":"a","value":1,"country":"de","day":1,"Value":7}"#,
    r#"{"user":"b","value":"2","country":"fr"}"#,
    r#"{"user":"c"}"#,
    r#"{"user":"d","value":4}"#,
    r#"{"user":"e","value":null,"country":null,"day":"monday"}"#,
    r#"{"user":"f","value":5.5,"country":"it","day":9}"#,
];

/// The records with a time of their own.
fn append(source: &Source, round: usize) {
    for (i, record) in RECORDS.iter().enumerate() {
        let time = round * 100 + i * 7;
        source.append_text((i % 2) as u32, &[&record.replace('}', &format!(r#","ts":{time}}}"#))]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_column_is_read_alike_from_the_archive_and_from_the_log() {
    for (change, tables) in changes() {
        // Before anything was archived, and after.
        for archives_first in [false, true] {
            let dir = tempfile::tempdir().expect("directory");
            let source = source(dir.path());
            let mut round = 0;
            for (i, table) in tables.iter().enumerate() {
                // Opened twice: a restart.
                drop(archive(dir.path(), &source, table).await.expect(change));
                let archiver = archive(dir.path(), &source, table).await.expect(change);
                for step in 0..2 {
                    append(&source, round);
                    round += 1;
                    if archives_first || i + 1 == tables.len() {
                        archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect(change);
                    }
                    if step == 1 {
                        archiver.tend().await.expect("tend");
                    }
                }
                let snapshot = archiver.archive_to(&Default::default()).await.expect(change);
                if i + 1 < tables.len() && !archives_first {
                    continue;
                }
                let (source, table) = (&source, table);
                tokio::task::block_in_place(|| {
                    let archived = by_archive(&snapshot, table);
                    for records in [1, 3, 1_000] {
                        let read = by_log(source, &snapshot, table, records);
                        assert!(archived.equals_missing(&read), "{change}, {archives_first}:\n{archived}\n{read}");
                    }
                    assert!(archived.height() > 0, "{change}");
                    if !archives_first {
                        assert_eq!(snapshot.archived.editions.earlier().count(), 0, "nothing was archived by another");
                    }
                });
            }
        }
    }
}

fn retyped() -> Table {
    let mut table = table();
    table.columns[1].data_type = DataType::Text;
    table
}

/// How many rows there are by the second definition, and their values.
fn texts(snapshot: &ArchiveSnapshot) -> (usize, Vec<String>) {
    let rows = tokio::task::block_in_place(|| by_archive(snapshot, &retyped()));
    let values = rows.column("value").expect("value").str().expect("text").iter().flatten().map(str::to_owned);
    (rows.height(), values.collect())
}

/// The values that the archive keeps by the first definition.
fn numbers(snapshot: &ArchiveSnapshot) -> BTreeSet<i64> {
    let rows = tokio::task::block_in_place(|| by_archive(snapshot, &table()));
    rows.column("value").expect("value").i64().expect("integers").iter().flatten().collect()
}

async fn rebuild(data: &Path, source: &Source, table: &Table) -> Result<Option<Rebuild>, BatchError> {
    Rebuild::plan(tests::archive(data, source, table.clone())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_keeps_what_it_was_read_as_until_the_archive_is_rebuilt() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    assert!(rebuild(dir.path(), &source, &table()).await.expect("plan").is_none(), "nothing is archived");
    let archiver = archive(dir.path(), &source, &table()).await.expect("open");
    append(&source, 0);
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    let says = super::preview(&dir.path().join("archive"), &retyped()).await.expect("preview");
    assert!(says[0].contains("begins at offset 3 of partition 0, 3 of partition 1"), "{says:?}");
    assert!(says[1].contains("column `value` is TEXT and was BIGINT: it is null in them"), "{says:?}");
    let archiver = archive(dir.path(), &source, &retyped()).await.expect("open");
    append(&source, 1);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    // Of the first round the rows are those whose value was a BIGINT, and it is null; of the second those with a text.
    assert_eq!(texts(&snapshot), (4 + 3, vec!["2".to_owned()]));

    let plan = rebuild(dir.path(), &source, &retyped()).await.expect("plan").expect("an archive");
    let says = plan.description();
    assert!(says.iter().any(|line| line == "partition 0: offsets 0 to 6 are archived anew"), "{says:?}");
    plan.run().await.expect("rebuild");
    // Who archives goes on from there.
    append(&source, 2);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    assert_eq!((snapshot.archived.rebuilds, snapshot.archived.editions.earlier().count()), (1, 0));
    assert_eq!(texts(&snapshot), (3 * 3, vec!["2".to_owned(); 3]));
    tokio::task::block_in_place(|| {
        assert!(by_archive(&snapshot, &retyped()).equals_missing(&by_log(&source, &snapshot, &retyped(), 2)));
    });
    assert!(snapshot.layout.columns.iter().all(|(name, _)| name != "value_text"), "{:?}", snapshot.layout);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_event_time_is_refused_until_the_archive_is_rebuilt() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let mut other = table();
    other.columns.push(Column { name: "at".into(), data_type: DataType::Timestamp, nullable: false });
    other.event_time = 3;
    // Nothing is archived by the first.
    archive(dir.path(), &source, &table()).await.expect("open");
    archive(dir.path(), &source, &other).await.expect("open");
    let archiver = archive(dir.path(), &source, &table()).await.expect("open");
    source.append_text(0, &[r#"{"user":"a","ts":1000,"at":90000000}"#, r#"{"user":"b","ts":2000}"#]);
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    let refused = archive(dir.path(), &source, &other).await.err().expect("refused");
    assert!(matches!(refused, BatchError::Definition(_)), "{refused}");
    assert!(refused.to_string().contains("`anabranch archive rebuild events`"), "{refused}");
    // Who archives all the same archives nothing, and says why.
    let archiver = open(dir.path(), &source, &other).await.expect("open");
    let stopped = archiver.status().borrow().stopped.clone().expect("stopped");
    assert!(stopped.contains("its event time is `at` now") && stopped.contains("archive rebuild events"), "{stopped}");
    let refused = archiver.archive_to(&Default::default()).await.expect_err("refused");
    assert!(matches!(refused, BatchError::Stopped { .. }), "{refused}");
    rebuild(dir.path(), &source, &other).await.expect("plan").expect("an archive").run().await.expect("rebuild");
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!(archiver.status().borrow().stopped, None);
    assert_eq!(snapshot.days.keys().collect::<Vec<_>>(), [&1], "the files are by the new time");
    assert_eq!(snapshot.archived.event_times.get(&0), Some(&90_000_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_archives_by_another_definition_than_the_one_in_force_stops_while_it_is() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let old = archive(dir.path(), &source, &table()).await.expect("open");
    append(&source, 0);
    old.archive_to(&old.log_ends().await.expect("ends")).await.expect("archive");
    let new = archive(dir.path(), &source, &retyped()).await.expect("open");
    // It notices with nothing to archive.
    old.look().await.expect_err("stopped");
    let stopped = |archiver: &Archiver| archiver.status().borrow().stopped.clone();
    assert!(stopped(&old).expect("stopped").contains("another process has started with another definition of table"));
    assert_eq!(stopped(&new), None);
    append(&source, 1);
    let refused = old.archive_to(&old.log_ends().await.expect("ends")).await.expect_err("refused");
    assert!(matches!(&refused, BatchError::Stopped { why, .. } if why.contains("another definition")), "{refused}");
    new.archive_to(&new.log_ends().await.expect("ends")).await.expect("archive");
    // The old definition is in force again.
    let log: Arc<dyn Log> = source.log.clone();
    declare(&dir.path().join("archive"), &table(), &log).await.expect("declared");
    old.look().await.expect("goes on");
    assert_eq!(stopped(&old), None);
    append(&source, 2);
    let snapshot = old.archive_to(&old.log_ends().await.expect("ends")).await.expect("archive");
    assert_eq!(snapshot.archived.editions.earlier().count(), 2);
    tokio::task::block_in_place(|| {
        assert!(by_archive(&snapshot, &table()).equals_missing(&by_log(&source, &snapshot, &table(), 2)));
    });
}

/// Lets the log's first records go, of each partition those below an offset.
fn forget(source: &Source, below: u64) {
    let retention = Retention { age: None, bytes: Some(0) };
    source.log.retain("events", retention, &Positions::from([(0, below), (1, below)])).expect("retain");
    assert_eq!(source.log.bounds("events").expect("bounds")[&1].start, below);
}

/// A round read by the first definition, and two by the second.
async fn three_rounds(data: &Path, source: &Source) -> Archiver {
    let archiver = archive(data, source, &table()).await.expect("open");
    append(source, 0);
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    let archiver = archive(data, source, &retyped()).await.expect("open");
    for round in [1, 2] {
        append(source, round);
        archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    }
    archiver
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_log_no_longer_holds_stay_as_they_are_in_a_rebuild() {
    // What the log has let go: less than the first definition governs, as much, and more; in files of their own or with others.
    for (below, compacts) in [(1, false), (1, true), (3, false), (5, false), (5, true), (9, true)] {
        let dir = tempfile::tempdir().expect("directory");
        let source = source(dir.path());
        let archiver = three_rounds(dir.path(), &source).await;
        if compacts {
            archiver.tend().await.expect("tend");
        }
        let before = archiver.archive_to(&Default::default()).await.expect("snapshot");
        forget(&source, below);
        let plan = rebuild(dir.path(), &source, &retyped()).await.expect("plan").expect("an archive");
        let says = plan.description();
        for partition in [0, 1] {
            let gone = format!(
                "partition {partition}: offsets 0 to {below} are no longer in the log: their rows stay as they are"
            );
            let anew = format!("partition {partition}: offsets {below} to 9 are archived anew");
            assert_eq!((says.contains(&gone), says.contains(&anew)), (true, below < 9), "{says:?}");
        }
        let null = "of rows that stay, column `value` is TEXT and was BIGINT: it is null in them, and the archive keeps the old values";
        assert!(says.iter().any(|line| line == null), "{says:?}");
        plan.run().await.expect("rebuild");

        let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
        assert_eq!((&snapshot.archived.coverage, snapshot.archived.rebuilds), (&before.archived.coverage, 1));
        // Of the first round `a`, `c` and `e` in one partition and `d` in the other were rows by the first definition; by the
        // second only `c`, `e` and `b` are, but that one's record is gone.
        let of_first: &[i64] = if below == 1 { &[1] } else { &[1, 4] };
        let rows = if below == 1 { 3 } else { 4 };
        assert_eq!(texts(&snapshot), (rows + 3 + 3, vec!["2".to_owned(); 2]), "{below}");
        assert_eq!(numbers(&snapshot), of_first.iter().copied().collect(), "{below}");
        // What the log holds, both read alike.
        tokio::task::block_in_place(|| {
            let held = col(OFFSET).gt_eq(polars::prelude::lit(below));
            let files: Vec<_> = snapshot.days.values().flatten().cloned().collect();
            let archived = crate::scan::scan(&snapshot, &retyped(), &files).expect("scan").filter(held);
            let archived = sorted(archived.collect().expect("rows"), &retyped());
            let read = if below == 9 { archived.clear() } else { by_log(&source, &snapshot, &retyped(), 2) };
            assert!(archived.equals_missing(&read), "{below}:\n{archived}\n{read}");
        });
        // Once more, it is the same.
        let again = rebuild(dir.path(), &source, &retyped()).await.expect("plan").expect("an archive");
        again.run().await.expect("rebuild");
        let again = archiver.archive_to(&Default::default()).await.expect("snapshot");
        assert_eq!(texts(&again), texts(&snapshot));
        assert_eq!(again.archived.editions, snapshot.archived.editions);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stay_are_not_filed_by_another_event_time() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    three_rounds(dir.path(), &source).await;
    let mut other = retyped();
    other.columns.push(Column { name: "at".into(), data_type: DataType::Timestamp, nullable: false });
    other.event_time = 3;
    rebuild(dir.path(), &source, &other).await.expect("plan").expect("all is in the log");
    forget(&source, 1);
    let refused = rebuild(dir.path(), &source, &other).await.expect_err("refused");
    assert!(matches!(refused, BatchError::Unfiled(_)), "{refused}");
    assert!(refused.to_string().contains("give the table another name"), "{refused}");
}

/// The table as a changelog of `user`.
fn changelog() -> Table {
    let mut table = table();
    table.columns[0].nullable = false;
    table.columns[1].nullable = false;
    Table { primary_key: vec![0], ..table }
}

/// The users of a frame that an archive's files or the log make, with their values, and whether each is deleted.
fn versions(frame: &DataFrame) -> Vec<(String, Option<i64>, Option<bool>)> {
    let column = |name: &str| frame.column(name).unwrap_or_else(|_| panic!("no {name}")).clone();
    let (users, values, deleted) = (column("user"), column("value"), column(DELETED));
    let (users, values) = (users.str().expect("texts"), values.i64().expect("integers"));
    let deleted = deleted.bool().expect("booleans");
    let row = |i| (users.get(i).expect("a key").to_owned(), values.get(i), deleted.get(i));
    (0..frame.height()).map(row).collect()
}

/// All that is archived, in order of partition and offset.
fn all_versions(snapshot: &ArchiveSnapshot, table: &Table) -> Vec<(String, Option<i64>, Option<bool>)> {
    let files: Vec<_> = snapshot.days.values().flatten().cloned().collect();
    let rows = crate::scan::scan(snapshot, table, &files).expect("scan");
    versions(&rows.sort(["_partition", "_offset"], Default::default()).collect().expect("rows"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_and_each_deletion_of_a_changelogs_rows_is_archived() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = archive(dir.path(), &source, &changelog()).await.expect("open");
    source.append_text(0, &[r#"{"user":"a","value":1,"ts":1000}"#, r#"{"user":"b","value":2,"ts":1000}"#]);
    source.append_tombstones(0, &["a", "", "b"]);
    source.append_text(0, &[r#"{"user":"a","value":3,"ts":2000}"#, r#"{"user":"a","__deleted":true,"ts":3000}"#]);
    // Files of two definitions become one.
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    let mut grown = changelog();
    grown.columns.push(Column { name: "more".into(), data_type: DataType::Text, nullable: false });
    let archiver = archive(dir.path(), &source, &grown).await.expect("another column is no other key");
    source.append_text(0, &[r#"{"user":"c","value":4,"more":"x","ts":4000}"#, r#"{"user":"c","__deleted":true}"#]);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    let row = |user: &str, value: Option<i64>| (user.to_owned(), value, Some(value.is_none()));
    let (one, two) =
        ([row("a", Some(1)), row("b", Some(2)), row("a", None), row("b", None)], [row("a", Some(3)), row("a", None)]);
    let expected = [&one[..], &two, &[row("c", Some(4)), row("c", None)]].concat();
    let found = tokio::task::block_in_place(|| all_versions(&snapshot, &grown));
    assert_eq!(found, expected);
    assert_eq!(snapshot.archived.rows, Some(8));
    let rejects = source.rejects.list(Some("events"), None, 10).expect("rejects").rejects;
    assert_eq!((rejects.len(), rejects[0].offset), (1, Some(3)));
    assert!(rejects[0].reason.contains("the record has none"), "{rejects:?}");
    // Speed reads the same, by the definitions of their time.
    tokio::task::block_in_place(|| {
        let read = by_log(&source, &snapshot, &grown, 3);
        assert!(by_archive(&snapshot, &grown).equals_missing(&read), "{read}");
    });
    // Deletions without a time of their own are in the day in which the log took them.
    let days: Vec<i64> = snapshot.days.keys().copied().collect();
    assert_eq!(days, [0, NOW.div_euclid(crate::day::DAY)]);
    while archiver.compact().await.expect("compact") {}
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert!(snapshot.days.values().all(|files| files.len() == 1), "{:?}", snapshot.days);
    assert_eq!(tokio::task::block_in_place(|| all_versions(&snapshot, &grown)), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_primary_key_is_refused_until_the_archive_is_rebuilt() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    // Nothing is archived by the first.
    archive(dir.path(), &source, &changelog()).await.expect("open");
    let archiver = archive(dir.path(), &source, &table()).await.expect("open");
    source.append_text(0, &[r#"{"user":"a","value":1,"ts":1000}"#]);
    source.append_tombstones(0, &["a"]);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    assert_eq!(snapshot.archived.rows, Some(1), "to a stream a tombstone is nothing");
    let refused = archive(dir.path(), &source, &changelog()).await.err().expect("refused").to_string();
    let expected = "its primary key is `user` TEXT now, but its archive is by none; `anabranch archive rebuild events` archives anew";
    assert!(refused.contains(expected), "{refused}");
    let archiver = open(dir.path(), &source, &changelog()).await.expect("open");
    let stopped = archiver.status().borrow().stopped.clone().expect("stopped");
    assert!(stopped.contains(expected), "{stopped}");
    rebuild(dir.path(), &source, &changelog()).await.expect("plan").expect("an archive").run().await.expect("rebuild");
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    let expected = [("a".to_owned(), Some(1), Some(false)), ("a".to_owned(), None, Some(true))];
    assert_eq!(tokio::task::block_in_place(|| all_versions(&snapshot, &changelog())), expected);

    // A key of another type or of more columns is another key, as is none.
    let mut retyped = changelog();
    retyped.columns[0].data_type = DataType::BigInt;
    let longer = Table { primary_key: vec![0, 1], ..changelog() };
    for (other, said) in [(retyped, "`user` BIGINT"), (longer, "`user` TEXT, `value` BIGINT"), (table(), "none")] {
        let refused = archive(dir.path(), &source, &other).await.err().expect("refused").to_string();
        assert!(
            refused.contains(&format!("its primary key is {said} now, but its archive is by `user` TEXT")),
            "{refused}"
        );
    }
    let retention = Retention { age: None, bytes: Some(0) };
    source.log.retain("events", retention, &Positions::from([(0, 1)])).expect("retain");
    let refused = rebuild(dir.path(), &source, &table()).await.expect_err("rows would stay").to_string();
    assert!(refused.contains("rows stay that are filed by `user` TEXT"), "{refused}");
}

type Once = Box<dyn FnOnce() + Send>;

/// A log without some of its records, that has something done before it is read first.
struct Tampered {
    log: Arc<dyn Log>,
    gone: BTreeSet<(u32, u64)>,
    first: Arc<Mutex<Option<Once>>>,
}

impl Log for Tampered {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.log.create_topic(topic, partitions)
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        self.log.topics()
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<u32, Range<u64>>, LogError> {
        self.log.bounds(topic)
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        self.log.append(topic, append)
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        if let Some(first) = self.first.lock().take() {
            first();
        }
        Ok(Box::new(TamperedReader { reader: self.log.reader(topic, from)?, gone: self.gone.clone() }))
    }

    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        self.log.retain(topic, retention, keep_from)
    }
}

struct TamperedReader {
    reader: Box<dyn LogReader>,
    gone: BTreeSet<(u32, u64)>,
}

impl LogReader for TamperedReader {
    fn poll(&mut self, limit: ReadLimit, wait: Duration) -> Result<Option<Batch>, LogError> {
        let Some(mut batch) = self.reader.poll(limit, wait)? else { return Ok(None) };
        let held: Vec<usize> =
            (0..batch.offsets.len()).filter(|&i| !self.gone.contains(&(batch.partition, batch.offsets[i]))).collect();
        batch.payloads = held.iter().map(|&i| batch.payloads.get(i)).collect();
        batch.offsets = held.iter().map(|&i| batch.offsets[i]).collect();
        batch.log_times = held.iter().map(|&i| batch.log_times[i]).collect();
        Ok(Some(batch))
    }

    fn positions(&self) -> Positions {
        self.reader.positions()
    }
}

/// A rebuild that reads such a log.
async fn tampered(
    data: &Path,
    source: &Source,
    gone: &[(u32, u64)],
    first: impl FnOnce() + Send + 'static,
) -> Result<(), BatchError> {
    let first: Once = Box::new(first);
    let (gone, first) = (gone.iter().copied().collect(), Arc::new(Mutex::new(Some(first))));
    let archive = tests::archive(data, source, retyped());
    let log = Arc::new(Tampered { log: archive.log.clone(), gone, first });
    Rebuild::plan(Archive { log, ..archive }).await.expect("plan").expect("an archive").run().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_records_that_compaction_has_removed_stay_in_a_rebuild() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = three_rounds(dir.path(), &source).await;
    archiver.tend().await.expect("tend");
    // The first round's `a` and `d`, its `b`, which was no row then, and the last round's `b`.
    tampered(dir.path(), &source, &[(0, 0), (1, 0), (1, 1), (1, 6)], || {}).await.expect("rebuild");
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!((snapshot.archived.coverage.len(), snapshot.archived.rebuilds), (18, 1));
    // Of the first round `a` and `d` stay, `c` and `e` are read anew; the last round's `b` stays with its value.
    assert_eq!(texts(&snapshot), (4 + 3 + 3, vec!["2".to_owned(); 2]));
    assert_eq!(numbers(&snapshot), [1, 4].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_takes_along_what_another_process_archives_meanwhile() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let other = Arc::new(three_rounds(dir.path(), &source).await);
    // It archives a round more, and makes one file of those that the rebuild knows.
    let (handle, writer, log) = (Handle::current(), other.clone(), source.clone());
    let writes = move || {
        append(&log, 3);
        handle.block_on(async {
            writer.archive_to(&writer.log_ends().await.expect("ends")).await.expect("archive");
            writer.tend().await.expect("tend");
        });
    };
    tampered(dir.path(), &source, &[], writes).await.expect("rebuild");
    let snapshot = other.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!((snapshot.archived.coverage.len(), snapshot.archived.rebuilds), (4 * 6, 1));
    assert_eq!(snapshot.archived.editions.earlier().count(), 0);
    assert_eq!(texts(&snapshot), (4 * 3, vec!["2".to_owned(); 4]));
    append(&source, 4);
    let snapshot = other.archive_to(&other.log_ends().await.expect("ends")).await.expect("archive");
    assert_eq!(texts(&snapshot), (5 * 3, vec!["2".to_owned(); 5]), "it goes on from there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_gives_up_if_the_table_is_read_otherwise_meanwhile() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = three_rounds(dir.path(), &source).await;
    let (handle, root) = (Handle::current(), dir.path().join("archive"));
    let log: Arc<dyn Log> = source.log.clone();
    let of_source = log.clone();
    let declares = move || drop(handle.block_on(declare(&root, &table(), &of_source)).expect("declared"));
    let refused = tampered(dir.path(), &source, &[], declares).await.expect_err("refused");
    assert!(matches!(refused, BatchError::Rebuilt { .. }), "{refused}");
    declare(&dir.path().join("archive"), &retyped(), &log).await.expect("declared");
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!(snapshot.archived.rebuilds, 0);
    assert_eq!(texts(&snapshot), (4 + 3 + 3, vec!["2".to_owned(); 2]), "the archive is as it was");

    let (handle, data, log) = (Handle::current(), dir.path().to_owned(), source.clone());
    let rebuilds = move || {
        let plan = handle.block_on(rebuild(&data, &log, &retyped())).expect("plan").expect("an archive");
        handle.block_on(plan.run()).expect("rebuild");
    };
    let refused = tampered(dir.path(), &source, &[], rebuilds).await.expect_err("refused");
    assert!(matches!(refused, BatchError::Rebuilt { .. }), "{refused}");
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!((snapshot.archived.rebuilds, texts(&snapshot).0), (1, 3 * 3));
}
