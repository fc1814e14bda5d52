//! What the archive holds of a table whose definition changes is what the log says by its editions.

use std::path::Path;
use std::sync::Arc;

use anabranch_shared::columnar::to_polars;
use anabranch_shared::decode::Decoder;
use anabranch_shared::log::{Log, ReadLimit};
use anabranch_shared::position::Positions;
use anabranch_shared::schema::{Column, DataType, Table};
use polars::prelude::{DataFrame, IntoLazy, col};

use super::{ArchiveSettings, ArchiveSnapshot, Archiver, Rebuild, declare};
use crate::error::BatchError;
use crate::fixture::{Source, source, table};

async fn archive(data: &Path, source: &Source, table: &Table) -> Result<Archiver, BatchError> {
    let root = data.join("archive");
    declare(&root, table).await?;
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    let settings = ArchiveSettings { small_files: 1, ..Default::default() };
    Archiver::open(root, Arc::new(table.clone()), log, rejects, clock, settings).await
}

/// The rows of a frame with where they came from, in order of that.
fn sorted(frame: DataFrame, table: &Table) -> DataFrame {
    let columns: Vec<_> = table.columns.iter().map(|column| col(column.name.as_str())).collect();
    let by = [col("user"), col("ts")];
    frame.lazy().select(columns).sort_by_exprs(by, Default::default()).collect().expect("rows")
}

/// What batch reads.
fn by_archive(snapshot: &ArchiveSnapshot, table: &Table) -> DataFrame {
    let files: Vec<_> = snapshot.days.values().flatten().cloned().collect();
    sorted(crate::scan::scan(snapshot, table, &files).expect("scan").collect().expect("rows"), table)
}

/// What speed reads, in batches of so many records.
fn by_log(source: &Source, snapshot: &ArchiveSnapshot, table: &Table, records: usize) -> DataFrame {
    let mut decoder = Decoder::new(Arc::new(table.clone())).by(&snapshot.archived.editions);
    let mut reader = source.log.reader("events", &Positions::from([(0, 0), (1, 0)])).expect("reader");
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

async fn rebuild(data: &Path, source: &Source, table: &Table) -> Result<Option<Rebuild>, BatchError> {
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    Rebuild::plan(data.join("archive"), Arc::new(table.clone()), log, rejects, clock).await
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
    let values = |frame: &DataFrame| -> Vec<Option<String>> {
        frame
            .column("value")
            .expect("value")
            .str()
            .expect("text")
            .iter()
            .map(|value| value.map(str::to_owned))
            .collect()
    };
    let archived = tokio::task::block_in_place(|| by_archive(&snapshot, &retyped()));
    // Of the first round the rows are those whose value was a BIGINT, and it is null; of the second those with a text.
    assert_eq!(archived.height(), 4 + 3);
    assert_eq!(values(&archived).into_iter().flatten().collect::<Vec<_>>(), ["2"]);

    let plan = rebuild(dir.path(), &source, &retyped()).await.expect("plan").expect("an archive");
    let says = plan.description();
    assert!(says.iter().any(|line| line == "partition 0: offsets 0 to 6 are archived anew"), "{says:?}");
    plan.run().await.expect("rebuild");
    // Who archives goes on from there.
    append(&source, 2);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    assert_eq!((snapshot.archived.rebuilds, snapshot.archived.editions.earlier().count()), (1, 0));
    tokio::task::block_in_place(|| {
        let archived = by_archive(&snapshot, &retyped());
        assert_eq!(archived.height(), 3 * 3);
        assert_eq!(values(&archived).into_iter().flatten().collect::<Vec<_>>(), ["2"; 3]);
        assert!(archived.equals_missing(&by_log(&source, &snapshot, &retyped(), 2)));
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
    rebuild(dir.path(), &source, &other).await.expect("plan").expect("an archive").run().await.expect("rebuild");
    let archiver = archive(dir.path(), &source, &other).await.expect("open");
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!(snapshot.days.keys().collect::<Vec<_>>(), [&1], "the files are by the new time");
    assert_eq!(snapshot.archived.event_times.get(&0), Some(&90_000_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_archives_by_another_definition_than_the_one_in_force_stops() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let old = archive(dir.path(), &source, &table()).await.expect("open");
    append(&source, 0);
    old.archive_to(&old.log_ends().await.expect("ends")).await.expect("archive");
    let new = archive(dir.path(), &source, &retyped()).await.expect("open");
    append(&source, 1);
    let refused = old.archive_to(&old.log_ends().await.expect("ends")).await.expect_err("refused");
    assert!(matches!(&refused, BatchError::Stopped { why, .. } if why.contains("another definition")), "{refused}");
    new.archive_to(&new.log_ends().await.expect("ends")).await.expect("archive");
}
