//! What the archive holds of a table whose definition changes is what the log says by its editions.

use std::path::Path;
use std::sync::Arc;

use anabranch_shared::columnar::to_polars;
use anabranch_shared::decode::Decoder;
use anabranch_shared::log::{Log, ReadLimit};
use anabranch_shared::position::Positions;
use anabranch_shared::schema::{Column, DataType, Table};
use polars::prelude::{DataFrame, IntoLazy, col};

use super::{ArchiveSettings, ArchiveSnapshot, Archiver, declare};
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
