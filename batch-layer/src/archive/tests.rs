use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::note::Noted;
use anabranch_log::clock::Clock;
use anabranch_log::position::Coverage;
use anabranch_log::{Log, Retention};
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_store::table::{DeltaTable, TableError};
use tokio_util::sync::CancellationToken;

use super::{Archive, ArchiveSettings, Archived, Archiver};
use crate::day::DAY;
use crate::error::BatchError;
use crate::fixture::{Event, SECOND, Source, read_table, source, table};

fn settings() -> ArchiveSettings {
    ArchiveSettings { target_rows: 4, small_files: 2, grace: Duration::from_secs(60), ..Default::default() }
}

/// The archive of a table in a folder.
pub fn archive(data: &Path, source: &Source, table: Table) -> Archive {
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    Archive { root: data.join("archive"), table: Arc::new(table), log, rejects, clock }
}

async fn open_with(
    data: &Path,
    source: &Source,
    table: Table,
    settings: ArchiveSettings,
) -> Result<Archiver, BatchError> {
    Archiver::open(archive(data, source, table), settings).await
}

async fn open(data: &Path, source: &Source) -> Archiver {
    open_with(data, source, table(), settings()).await.expect("open")
}

/// Users, offsets and partitions in the archive, in order of these.
async fn archived(data: &Path) -> Vec<(i32, i64, String)> {
    let frame = read_table(&data.join("archive")).await;
    if frame.height() == 0 {
        return Vec::new();
    }
    let text = frame.column("user").expect("user").str().expect("text").clone();
    let offset = frame.column("_offset").expect("offset").i64().expect("bigint").clone();
    let partition = frame.column("_partition").expect("partition").i32().expect("integer").clone();
    let mut rows: Vec<_> = (0..frame.height())
        .map(|i| {
            let user = text.get(i).unwrap_or("null").to_owned();
            (partition.get(i).expect("partition"), offset.get(i).expect("offset"), user)
        })
        .collect();
    rows.sort();
    rows
}

fn at(user: &'static str, time: Micros) -> Event {
    (user, Some(1), time)
}

#[tokio::test]
async fn retention_leaves_what_no_commit_has_come_to() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let everything = Some(Retention { age: Some(Duration::ZERO), bytes: Some(0) });
    let settings = ArchiveSettings { retention: everything, ..settings() };
    let archiver = open_with(dir.path(), &source, table(), settings).await.expect("open");
    // A commit takes four records, which are all of one partition.
    source.append(&["a", "b", "c", "d", "e", "f", "g", "h"].map(|user| at(user, 0)));
    archiver.step().await.expect("a commit");
    assert_eq!(archived(dir.path()).await.len(), 4);
    archiver.step().await.expect("another");
    let users: Vec<String> = archived(dir.path()).await.into_iter().map(|(.., user)| user).collect();
    assert_eq!(users, ["a", "c", "e", "g", "b", "d", "f", "h"]);
}

#[tokio::test]
async fn archiving_that_is_cancelled_ends_behind_the_commit_that_is_under_way() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = open(dir.path(), &source).await;
    source.append(&["a", "b", "c", "d", "e", "f", "g", "h"].map(|user| at(user, 0)));
    archiver.step().await.expect("a commit");
    let (ends, cancel) = (archiver.log_ends().await.expect("ends"), CancellationToken::new());
    cancel.cancel();
    let cancelled = archiver.archive_until(&ends, &cancel).await;
    assert!(matches!(cancelled, Err(BatchError::Cancelled)), "{cancelled:?}");
    assert_eq!(archived(dir.path()).await.len(), 4, "what was archived stays, and no more is");
    archiver.archive_to(&ends).await.expect("it goes on");
    assert_eq!(archived(dir.path()).await.len(), 8);
}

#[tokio::test]
async fn each_event_is_archived_once_by_its_day() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = open(dir.path(), &source).await;
    source.append(&[at("a", 0), at("b", -SECOND), at("c", DAY), at("d", 0), at("e", DAY - 1000), at("f", 5)]);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    let days: Vec<(i64, Option<u64>)> = snapshot.days.keys().map(|&day| (day, snapshot.rows(day))).collect();
    assert_eq!(days, [(-1, Some(1)), (0, Some(4)), (1, Some(1))]);
    assert_eq!(snapshot.archived.coverage, [(0, 0..3), (1, 0..3)].into_iter().collect::<Coverage>());
    assert_eq!(snapshot.archived.event_times, [(0, DAY), (1, 0)].into());
    let expected = [(0, 0, "a"), (0, 1, "c"), (0, 2, "e"), (1, 0, "b"), (1, 1, "d"), (1, 2, "f")];
    assert_eq!(archived(dir.path()).await, expected.map(|(p, o, user)| (p, o, user.to_owned())));
    // Another one goes on where the table ends.
    drop(archiver);
    let archiver = open(dir.path(), &source).await;
    assert_eq!(archiver.step().await.expect("nothing to do"), 0);
    source.append(&[at("g", 0)]);
    assert_eq!(archiver.step().await.expect("step"), 1);
    assert_eq!(archived(dir.path()).await.len(), 7);
    let delta = DeltaTable::open(&dir.path().join("archive")).await.expect("open").expect("table");
    let (version, note) = delta.note::<Noted<Archived>>().await.expect("note").expect("a note");
    assert_eq!((version, note.said.coverage.next(&0)), (delta.version(), 4));
    assert_eq!(delta.transaction("anabranch.archive.events.0").await.expect("transaction"), Some(4));
}

#[tokio::test]
async fn rows_of_a_file_are_in_order_of_event_time() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = open_with(dir.path(), &source, table(), ArchiveSettings::default()).await.expect("open");
    let events: Vec<Event> = (0..500).map(|i| at("a", (i * 7919 % 500) * SECOND)).collect();
    source.append(&events);
    archiver.step().await.expect("step");
    let frame = read_table(&dir.path().join("archive")).await;
    let times = frame.column("ts").expect("ts").cast(&polars::prelude::DataType::Int64).expect("cast");
    let times: Vec<i64> = times.i64().expect("times").iter().flatten().collect();
    assert_eq!(times.len(), 500);
    assert!(times.is_sorted());
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!(snapshot.days.values().map(Vec::len).sum::<usize>(), 1);
}

#[tokio::test]
async fn events_on_many_days_are_archived_in_one_commit_with_a_file_for_each() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = open_with(dir.path(), &source, table(), ArchiveSettings::default()).await.expect("open");
    let events: Vec<Event> = (0..1_000).map(|i| at("a", (i * 7919 % 500) * DAY + i)).collect();
    source.append(&events);
    assert_eq!(archiver.step().await.expect("step"), 1_000);
    let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!(snapshot.days.keys().copied().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
    assert!(snapshot.days.values().all(|files| files.len() == 1 && files[0].rows == Some(2)));
    assert_eq!(archived(dir.path()).await.len(), 1_000);
}

#[tokio::test]
async fn bad_records_are_covered_and_recorded_as_rejects() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = open(dir.path(), &source).await;
    source.append_text(0, &["{\"user\":\"a\",\"ts\":0}", "nonsense", "{\"user\":\"b\"}"]);
    source.append_text(1, &["{"]);
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archive");
    assert_eq!(archived(dir.path()).await, [(0, 0, "a".to_owned())]);
    let rejects = source.rejects.list(Some("events"), None, 10).expect("list").rejects;
    let mut offsets: Vec<_> = rejects.iter().map(|reject| (reject.partition, reject.offset)).collect();
    offsets.sort();
    assert_eq!(offsets, [(Some(0), Some(1)), (Some(0), Some(2)), (Some(1), Some(0))]);
}

#[tokio::test]
async fn an_archiver_that_was_overtaken_reads_on_from_where_the_other_stopped() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let (one, other) = (open(dir.path(), &source).await, open(dir.path(), &source).await);
    source.append(&[at("a", 0), at("b", 0)]);
    one.step().await.expect("step");
    let refused = other.step().await.expect_err("overtaken");
    assert!(matches!(refused, BatchError::Table(TableError::Superseded { .. })), "{refused}");
    source.append(&[at("c", 0)]);
    other.step().await.expect("it has read the table again");
    one.archive_to(&one.log_ends().await.expect("ends")).await.expect("nothing to do");
    assert_eq!(archived(dir.path()).await.len(), 3);
}

#[tokio::test]
async fn small_files_become_one_and_the_old_ones_go_after_a_while() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let settings = ArchiveSettings { target_rows: 100, ..settings() };
    let archiver = open_with(dir.path(), &source, table(), settings).await.expect("open");
    for i in 0..5 {
        source.append(&[at("a", i * SECOND), at("b", DAY)]);
        archiver.step().await.expect("step");
    }
    let before = archiver.archive_to(&Default::default()).await.expect("snapshot");
    let rows = archived(dir.path()).await;
    archiver.tend().await.expect("tend");
    let after = archiver.archive_to(&Default::default()).await.expect("snapshot");
    assert_eq!(after.archived, before.archived, "a rewrite covers the same");
    assert_eq!(after.days.values().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    assert_eq!((after.rows(0), after.rows(1)), (before.rows(0), before.rows(1)));
    assert_eq!(archived(dir.path()).await, rows);
    let is_there = |path: &str| dir.path().join("archive").join(path).exists();
    assert!(before.days.values().flatten().all(|file| is_there(&file.path)), "readers may still be at work");
    for swept in [0, 10] {
        source.clock.set(source.clock.now() + 30 * SECOND);
        assert_eq!(archiver.sweep().await.expect("sweep"), swept);
    }
    assert!(!before.days.values().flatten().any(|file| is_there(&file.path)));
    assert_eq!(archived(dir.path()).await, rows);
}

#[tokio::test]
async fn what_another_process_has_committed_is_not_swept() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let (one, other) = (open(dir.path(), &source).await, open(dir.path(), &source).await);
    source.append(&[at("a", 0), at("b", 0)]);
    other.step().await.expect("step");
    // The one has nothing to archive, and a grace period passes twice.
    for _ in 0..3 {
        one.sweep().await.expect("sweep");
        source.clock.set(source.clock.now() + 61 * SECOND);
    }
    assert_eq!(archived(dir.path()).await.len(), 2);
}

#[tokio::test]
async fn the_log_may_forget_what_is_archived_and_loss_stops_the_archive() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let retention = Retention { age: Some(Duration::from_secs(10)), bytes: None };
    let settings = ArchiveSettings { retention: Some(retention), ..settings() };
    let archiver = open_with(dir.path(), &source, table(), settings).await.expect("open");
    source.append(&[at("a", 0), at("b", 0)]);
    source.clock.set(source.clock.now() + 20 * SECOND);
    archiver.step().await.expect("step");
    // Somebody else lets go what is not archived.
    source.append(&[at("c", 0), at("d", 0), at("e", 0), at("f", 0)]);
    source.clock.set(source.clock.now() + 20 * SECOND);
    source.append(&[at("g", 0), at("h", 0)]);
    let end = archiver.log_ends().await.expect("ends");
    source.log.retain("events", retention, &end).expect("retain");
    if source.log.bounds("events").expect("bounds")[&0].start <= 1 {
        return; // This log keeps whole batches.
    }
    let lost = archiver.step().await.expect_err("lost");
    assert!(matches!(lost, BatchError::Stopped { .. }), "{lost}");
    let stopped = archiver.status().borrow().stopped.clone().expect("stopped");
    assert!(stopped.contains("offsets 1.."), "{stopped}");
    let start = source.log.bounds("events").expect("bounds")[&0].start;
    assert_eq!(archiver.status().borrow().lost.of("events").get(&0), Some(&(1..start)));
    assert!(matches!(archiver.step().await, Err(BatchError::Stopped { .. })), "it stays stopped");
}
