//! What an archive holds of logs that come one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_exchange::reject::RejectLog;
use anabranch_log::anchored::AnchoredLog;
use anabranch_log::clock::ManualClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::position::Positions;
use anabranch_log::{Append, Log, Payloads};
use anabranch_plan::schema::Table;

use super::{Adopt, Archive, ArchiveSettings, ArchiveSnapshot, Archiver, anchor, declare};
use crate::error::BatchError;
use crate::fixture::{SECOND, read_table, table};

struct Site {
    root: PathBuf,
    table: Arc<Table>,
    log: Arc<dyn Log>,
}

impl Site {
    fn open(folder: &Path, log: &str, partitions: u32) -> Self {
        let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
        let clock = Arc::new(ManualClock::new(1_700_000_000 * SECOND));
        let log = Arc::new(EmbeddedLog::open(folder.join(log), options, clock).expect("a log"));
        log.create_topic("events", partitions).expect("a topic");
        Self { root: folder.join("archive"), table: Arc::new(table()), log }
    }

    fn append(&self, partition: u32, users: &[&str]) {
        let record =
            |user: &&str| serde_json::json!({"user": user, "value": 1, "ts": 1_700_000_000_000_i64}).to_string();
        let payloads: Payloads = users.iter().map(record).collect();
        self.log.append("events", Append { parts: vec![(partition, payloads)], ..Append::default() }).expect("append");
    }

    async fn archive(&self) -> Result<ArchiveSnapshot, BatchError> {
        let anchors = BTreeMap::from([("events".to_owned(), anchor(&self.root, &self.table).await?)]);
        let log: Arc<dyn Log> = Arc::new(AnchoredLog::new(self.log.clone(), anchors));
        declare(&self.root, &self.table, &log).await?;
        let clock = Arc::new(ManualClock::new(1_700_000_000 * SECOND));
        let rejects = Arc::new(RejectLog::open(log.clone(), clock.clone()).expect("rejects"));
        let (root, table) = (self.root.clone(), self.table.clone());
        let archive = Archive { root, table, log, rejects, clock };
        let archiver = Archiver::open(archive, ArchiveSettings::default()).await?;
        let ends = archiver.log_ends().await?;
        archiver.archive_to(&ends).await
    }

    async fn adopt(&self) -> Vec<String> {
        let plan = Adopt::plan(self.root.clone(), self.table.clone(), self.log.clone()).await.expect("a plan");
        let plan = plan.expect("another log");
        let lines = plan.description();
        plan.run().await.expect("adopted");
        let again = Adopt::plan(self.root.clone(), self.table.clone(), self.log.clone()).await.expect("a plan");
        assert!(again.is_none(), "it is the archive's log now");
        lines
    }
}

/// Users by partition and offset.
async fn rows(site: &Site) -> BTreeMap<(i32, i64), String> {
    let frame = read_table(&site.root).await;
    let users = frame.column("user").expect("user").str().expect("text").clone();
    let offsets = frame.column("_offset").expect("offset").i64().expect("bigint").clone();
    let partitions = frame.column("_partition").expect("partition").i32().expect("integer").clone();
    let row = |i| {
        let place = (partitions.get(i).expect("a partition"), offsets.get(i).expect("an offset"));
        (place, users.get(i).expect("a user").to_owned())
    };
    let rows: BTreeMap<_, _> = (0..frame.height()).map(row).collect();
    assert_eq!(rows.len(), frame.height(), "no offset is there twice");
    rows
}

fn copy(from: &Path, to: &Path) {
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
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_any_width_are_archived_one_behind_the_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let one = Site::open(dir.path(), "one", 2);
    one.append(0, &["a", "b"]);
    one.append(1, &["c"]);
    one.archive().await.expect("archived");

    let three = Site::open(dir.path(), "three", 3);
    three.append(0, &["d"]);
    three.append(2, &["e", "f"]);
    let refused = three.archive().await.expect_err("another log");
    assert!(refused.to_string().contains("anabranch log adopt events"), "{refused}");
    let said = three.adopt().await;
    assert_eq!(
        said[0],
        "partition 0: what is archived ends at offset 2; the 1 records that the topic holds from its offset 0 on come behind it"
    );
    assert_eq!(said[2], "partition 2: nothing of it is archived; the topic holds 2 records");
    let archived = three.archive().await.expect("archived").archived;
    assert_eq!(archived.coverage.ends(), Positions::from([(0, 3), (1, 1), (2, 2)]));
    let refused = one.archive().await.expect_err("the log before isn't the archive's any more");
    assert!(refused.to_string().contains("it is of the log embedded:"), "{refused}");

    let narrow = Site::open(dir.path(), "narrow", 1);
    narrow.append(0, &["g"]);
    let said = narrow.adopt().await;
    assert_eq!(said[1], "partition 1: what is archived ends at offset 1, and the topic has no such partition any more");
    narrow.archive().await.expect("archived");
    narrow.append(0, &["h"]);
    let archived = narrow.archive().await.expect("archived").archived;
    assert_eq!(archived.coverage.ends(), Positions::from([(0, 5), (1, 1), (2, 2)]));
    let users = [
        ((0, 0), "a"),
        ((0, 1), "b"),
        ((0, 2), "d"),
        ((0, 3), "g"),
        ((0, 4), "h"),
        ((1, 0), "c"),
        ((2, 0), "e"),
        ((2, 1), "f"),
    ];
    assert_eq!(rows(&narrow).await, users.map(|(place, user)| (place, user.to_owned())).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_goes_on_with_what_only_it_has() {
    let dir = tempfile::tempdir().expect("a folder");
    let site = Site::open(dir.path(), "log", 2);
    site.append(0, &["a", "b"]);
    site.append(1, &["c"]);
    site.archive().await.expect("archived");
    drop(site);
    copy(&dir.path().join("log"), &dir.path().join("older"));
    let site = Site::open(dir.path(), "log", 2);
    site.append(0, &["lost from the log"]);
    site.archive().await.expect("archived");
    drop(site);

    let older = Site::open(dir.path(), "older", 2);
    older.append(0, &["d", "e"]);
    older.append(1, &["f"]);
    older.archive().await.expect_err("it lacks a record that is archived");
    let said = older.adopt().await;
    assert!(said[0].contains("ends at offset 3; the 2 records that the topic holds from its offset 2 on"), "{said:?}");
    assert!(said[1].contains("ends at offset 1; the 1 records that the topic holds from its offset 1 on"), "{said:?}");
    older.archive().await.expect("archived");
    let users = [
        ((0, 0), "a"),
        ((0, 1), "b"),
        ((0, 2), "lost from the log"),
        ((0, 3), "d"),
        ((0, 4), "e"),
        ((1, 0), "c"),
        ((1, 1), "f"),
    ];
    assert_eq!(rows(&older).await, users.map(|(place, user)| (place, user.to_owned())).into());
}
