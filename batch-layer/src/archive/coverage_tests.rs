//! What other programs do to an archive, and what it knows of its coverage afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_exchange::note::{Note, Noted};
use anabranch_log::Log;
use anabranch_log::position::Coverage;
use anabranch_plan::schema::Table;
use anabranch_store::table::DeltaTable;
use serde_json::{Value, json};

use super::tests::archive;
use super::{ArchiveSettings, ArchiveSnapshot, Archived, Archiver, Rebuild, anchor, declare};
use crate::error::BatchError;
use crate::fixture::{Event, Other, Source, read_table, removed, source, table};

const EVENTS: [Event; 4] = [("a", Some(1), 0), ("b", Some(2), 0), ("c", Some(3), 0), ("d", Some(4), 0)];

struct Site {
    dir: tempfile::TempDir,
    source: Source,
}

impl Site {
    /// A table of which four events are archived, in two commits.
    async fn new() -> (Self, Archiver) {
        let dir = tempfile::tempdir().expect("directory");
        let site = Self { source: source(dir.path()), dir };
        let archiver = site.open().await;
        for events in EVENTS.chunks(2) {
            site.source.append(events);
            archiver.step().await.expect("step");
        }
        (site, archiver)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    async fn open(&self) -> Archiver {
        let archive = archive(self.dir.path(), &self.source, table());
        Archiver::open(archive, ArchiveSettings::default()).await.expect("open")
    }

    /// The newest note, with its version and the table's.
    async fn note(&self) -> (Archived, u64, u64) {
        let delta = DeltaTable::open(&self.root()).await.expect("open").expect("a table");
        let (version, noted) = delta.note::<Noted<Archived>>().await.expect("note").expect("a note");
        (noted.said, version, delta.version())
    }

    async fn rows(&self) -> usize {
        read_table(&self.root()).await.height()
    }

    /// Another program optimizes the table, and its log clean-up deletes the commits that have our notes.
    async fn lose_the_note(&self, archiver: &Archiver) {
        Other(&self.root()).checkpoint_each();
        self.source.append(&EVENTS[..2]);
        archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archived");
        Other(&self.root()).commit("OPTIMIZE", &[]);
        Other(&self.root()).clean_log(1);
        let delta = DeltaTable::open(&self.root()).await.expect("open").expect("a table");
        assert_eq!(delta.note::<Noted<Archived>>().await.expect("read"), None);
    }
}

fn is_stopped<T: std::fmt::Debug>(result: Result<T, BatchError>, root: &Path) {
    let error = result.expect_err("stopped");
    assert!(matches!(error, BatchError::Stopped { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&root.display().to_string()) && text.contains("_delta_log"), "{text}");
}

#[test]
fn notes_of_each_format_say_the_same_and_the_newest_is_written() {
    let [before, now] = [include_str!("note-1.json"), include_str!("note-2.json")];
    let [before, now]: [Value; 2] = [before, now].map(|note| serde_json::from_str(note).expect("JSON"));
    let read = |note: &Value| serde_json::from_value::<Noted<Archived>>(note.clone()).expect("read");
    let Noted { topic, said } = read(&now);
    assert_eq!(topic.as_deref(), Some("events"));
    let written = said.to_note("events").expect("a note");
    assert_eq!(written, now, "the format is another: raise its number and store a note of it");
    assert_eq!(read(&before), Noted { topic: None, said });
}

#[tokio::test]
async fn an_archive_of_another_topic_is_neither_read_nor_written() {
    let (site, _archiver) = Site::new().await;
    let other = Table { topic: "others".to_owned(), ..table() };
    let opened = ArchiveSnapshot::open(&site.root(), &other).await.expect_err("stopped").to_string();
    assert!(opened.contains("it is of topic `events`, and the table's is `others`"), "{opened}");
}

#[tokio::test]
async fn each_commit_s_transactions_have_the_start_and_the_end_of_each_partition() {
    let (site, _archiver) = Site::new().await;
    let delta = DeltaTable::open(&site.root()).await.expect("open").expect("a table");
    for (id, value) in [("0", 2), ("0.start", 0), ("1", 2), ("1.start", 0), ("note", delta.version() as i64)] {
        let found = delta.transaction(&format!("anabranch.archive.events.{id}")).await.expect("transaction");
        assert_eq!(found, Some(value), "{id}");
    }
}

#[tokio::test]
async fn an_archive_whose_note_was_cleaned_up_stops_and_nothing_is_archived_twice() {
    let (site, archiver) = Site::new().await;
    site.lose_the_note(&archiver).await;
    drop(archiver);
    let (root, log): (_, Arc<dyn Log>) = (site.root(), site.source.log.clone());
    let archiver = site.open().await;
    is_stopped(archiver.step().await, &root);
    assert!(archiver.status().borrow().stopped.is_some());
    is_stopped(declare(&root, &table(), &log).await, &root);
    is_stopped(anchor(&root, &table()).await, &root);
    is_stopped(ArchiveSnapshot::open(&root, &table()).await, &root);
    is_stopped(Rebuild::plan(archive(site.dir.path(), &site.source, table())).await, &root);
    assert_eq!(site.rows().await, 6);
    // The way out: its folder is moved away.
    std::fs::rename(&root, site.dir.path().join("aside")).expect("moved");
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archived anew");
    assert_eq!((site.rows().await, archiver.status().borrow().stopped.clone()), (6, None));
}

#[tokio::test]
async fn an_archiver_that_has_the_note_in_memory_commits_it_again() {
    let (site, archiver) = Site::new().await;
    site.lose_the_note(&archiver).await;
    site.source.append(&EVENTS[..1]);
    archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archived");
    let (archived, noted, newest) = site.note().await;
    assert_eq!((archived.coverage.clone(), noted), ([(0, 0..4), (1, 0..3)].into_iter().collect::<Coverage>(), newest));
    assert_eq!((archived.rows, site.rows().await), (Some(7), 7));
    let other = site.open().await;
    assert_eq!(other.archive_to(&Default::default()).await.expect("snapshot").archived, archived);
}

#[tokio::test]
async fn the_note_is_committed_again_behind_another_program_s_commit() {
    let (site, archiver) = Site::new().await;
    let before = site.note().await;
    Other(&site.root()).commit("OPTIMIZE", &[]);
    archiver.look().await.expect("look");
    let after = site.note().await;
    assert_eq!(after, (before.0, before.1 + 2, before.2 + 2));
    archiver.look().await.expect("look");
    assert_eq!(site.note().await, after, "once");
}

#[tokio::test]
async fn a_note_that_says_something_else_than_the_transactions_stops_the_archive() {
    for id in ["0", "0.start", "7"] {
        let (site, archiver) = Site::new().await;
        let transaction = json!({"txn": {"appId": format!("anabranch.archive.events.{id}"), "version": 1}});
        Other(&site.root()).commit("WRITE", &[transaction]);
        let stopped = archiver.look().await;
        if id == "7" {
            // The table has no such partition.
            stopped.expect("look");
            continue;
        }
        let stopped = stopped.expect_err("stopped").to_string();
        assert!(stopped.contains("partition 0 has the offsets 0 to 2"), "{stopped}");
    }
}

#[tokio::test]
async fn rows_without_coverage_stop_the_archive() {
    let (site, archiver) = Site::new().await;
    let file = DeltaTable::open(&site.root()).await.expect("open").expect("a table").files().remove(0);
    drop(archiver);
    let log = site.root().join("_delta_log");
    for version in 1..5 {
        let _ = std::fs::remove_file(log.join(format!("{version:020}.json")));
    }
    Other(&site.root()).commit("WRITE", &[crate::fixture::added(&file, true)]);
    let archiver = site.open().await;
    is_stopped(archiver.step().await, &site.root());
}

#[tokio::test]
async fn rows_that_another_program_took_away_are_noticed_and_stay_covered() {
    let (site, archiver) = Site::new().await;
    let file = DeltaTable::open(&site.root()).await.expect("open").expect("a table").files().remove(0);
    Other(&site.root()).commit("RESTORE", &[removed(&file, true)]);
    let snapshot = archiver.archive_to(&archiver.log_ends().await.expect("ends")).await.expect("archived");
    assert_eq!((snapshot.archived.coverage.len(), snapshot.archived.rows), (4, Some(2)));
    let (archived, noted, newest) = site.note().await;
    assert_eq!((archived, noted), (snapshot.archived, newest));
    assert_eq!(site.rows().await, 2);
}

#[tokio::test]
async fn columns_that_a_restore_took_away_are_there_again() {
    let (site, archiver) = Site::new().await;
    let layout =
        async || DeltaTable::open(&site.root()).await.expect("open").expect("a table").layout().expect("layout");
    let before = layout().await;
    let mut metadata = Other(&site.root()).metadata();
    let schema = metadata["metaData"]["schemaString"].as_str().expect("a schema");
    let mut schema: serde_json::Value = serde_json::from_str(schema).expect("JSON");
    schema["fields"].as_array_mut().expect("fields").retain(|field| field["name"] != "value");
    metadata["metaData"]["schemaString"] = schema.to_string().into();
    Other(&site.root()).commit("RESTORE", &[metadata]);
    assert_eq!(layout().await.columns.len(), before.columns.len() - 1);
    archiver.look().await.expect("look");
    let names = |layout: anabranch_plan::schema::Layout| {
        let mut names: Vec<String> = layout.columns.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    assert_eq!(names(layout().await), names(before));
}
