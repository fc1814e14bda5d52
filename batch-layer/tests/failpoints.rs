//! What is in the archive and in a view when any step fails, or the process dies there.

#[path = "../src/fixture.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod fixture;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anabranch_batch_layer::BatchError;
use anabranch_batch_layer::archive::{Archive, ArchiveSettings, Archiver, Rebuild};
use anabranch_batch_layer::recompute::Recompute;
use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::version::committed_version;
use anabranch_plan::window::Window;
use anabranch_store::table::DeltaTable;
use fail::FailScenario;
use fixture::{Event, SECOND, Source, fold, read_table, rows, source, table, view};
use tokio_util::sync::CancellationToken;

const DAY: i64 = 86_400 * SECOND;

const EVENTS: [Event; 7] = [
    ("a", Some(3), 0),
    ("b", None, SECOND),
    ("a", Some(7), -1_000),
    ("b", Some(1), DAY - 1_000),
    ("b", Some(2), DAY),
    ("c", Some(4), 3 * DAY),
    ("a", Some(9), 2 * SECOND),
];

async fn open(data: &Path, source: &Source) -> Archiver {
    let settings = ArchiveSettings { small_files: 1, grace: Duration::ZERO, ..Default::default() };
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    let archive = Archive { root: data.join("archive"), table: Arc::new(table()), log, rejects, clock };
    Archiver::open(archive, settings).await.expect("open")
}

async fn archive(archiver: &Archiver) -> Result<(), BatchError> {
    archiver.archive_to(&archiver.log_ends().await?).await?;
    while archiver.compact().await? {}
    Ok(())
}

/// Each event's partition and offset, in order; none twice.
async fn origins(data: &Path) -> Vec<(i32, i64)> {
    let frame = read_table(&data.join("archive")).await;
    let offset = frame.column("_offset").expect("offset").i64().expect("bigint").clone();
    let partition = frame.column("_partition").expect("partition").i32().expect("integer").clone();
    let mut rows: Vec<_> = partition.iter().flatten().zip(offset.iter().flatten()).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn the_archive_holds_each_event_once_wherever_it_fails() {
    let scenario = FailScenario::setup();
    let failpoints = [
        "archive::after_read",
        "archive::file_written",
        "archive::before_commit",
        "archive::after_commit",
        "compact::before_commit",
        "compact::after_commit",
    ];
    for failpoint in failpoints {
        // In this life of the process and in the next one.
        for dies in [false, true] {
            let dir = tempfile::tempdir().expect("directory");
            let source = source(dir.path());
            let mut archiver = open(dir.path(), &source).await;
            source.append(&EVENTS);
            archive(&archiver).await.expect("archive");
            source.append(&EVENTS);
            source.append_text(0, &["nonsense"]);
            fail::cfg(failpoint, "1*return").expect("cfg");
            let failed = archive(&archiver).await.expect_err(failpoint);
            assert!(matches!(failed, BatchError::Failpoint(name) if name == failpoint), "{failed}");
            fail::remove(failpoint);
            if dies {
                drop(archiver);
                archiver = open(dir.path(), &source).await;
            }
            archive(&archiver).await.expect("archive");
            let mut expected: Vec<(i32, i64)> = (0..8).map(|offset| (0, offset)).collect();
            expected.extend((0..6).map(|offset| (1, offset)));
            assert_eq!(origins(dir.path()).await, expected, "{failpoint}");
            let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
            assert_eq!(snapshot.archived.coverage.len(), 15);
            assert_eq!(source.rejects.count(Some("events")).expect("count"), 1, "{failpoint}");
            // What the failure left is swept, and nothing else.
            archiver.sweep().await.expect("sweep");
            assert_eq!(origins(dir.path()).await, expected);
        }
    }
    scenario.teardown();
}

#[tokio::test]
async fn the_archive_is_as_it_was_or_rebuilt_wherever_a_rebuild_fails() {
    let scenario = FailScenario::setup();
    for (failpoint, rebuilds) in [("rebuild::before_commit", 0), ("rebuild::after_commit", 1)] {
        let dir = tempfile::tempdir().expect("directory");
        let source = source(dir.path());
        let archiver = open(dir.path(), &source).await;
        source.append(&EVENTS);
        archive(&archiver).await.expect("archive");
        let expected = origins(dir.path()).await;
        let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
        let root = dir.path().join("archive");
        let rebuild = async || {
            let (log, rejects, clock) = (log.clone(), rejects.clone(), clock.clone());
            let archive = Archive { root: root.clone(), table: Arc::new(table()), log, rejects, clock };
            Rebuild::plan(archive).await?.expect("an archive").run().await
        };
        fail::cfg(failpoint, "1*return").expect("cfg");
        rebuild().await.expect_err(failpoint);
        fail::remove(failpoint);
        let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
        assert_eq!((snapshot.archived.coverage.len(), snapshot.archived.rebuilds), (7, rebuilds), "{failpoint}");
        assert_eq!(origins(dir.path()).await, expected, "{failpoint}");
        rebuild().await.expect("rebuild");
        let snapshot = archiver.archive_to(&Default::default()).await.expect("snapshot");
        assert_eq!(snapshot.archived.rebuilds, rebuilds + 1);
        // What was replaced and what the failure left is swept, and nothing else.
        archiver.sweep().await.expect("sweep");
        assert_eq!(origins(dir.path()).await, expected, "{failpoint}");
    }
    scenario.teardown();
}

#[tokio::test]
async fn a_view_has_its_old_version_or_its_new_one_wherever_a_run_fails() {
    let scenario = FailScenario::setup();
    let failpoints =
        ["batch::panes_written", "batch::windows_written", "batch::before_publish", "batch::after_publish"];
    for failpoint in failpoints {
        let dir = tempfile::tempdir().expect("directory");
        let source = source(dir.path());
        let archiver = open(dir.path(), &source).await;
        let view = view("sums", Arc::new(table()), Some(Window::sliding(5 * SECOND, 2 * SECOND)));
        let root = dir.path().join("views/sums");
        let recompute = async || {
            let archive = archiver.archive_to(&archiver.log_ends().await?).await?;
            let run = Recompute {
                view: view.clone(),
                views: dir.path().join("views"),
                audits: AuditLog::new(dir.path().join("audit")),
                archives: vec![archive],
                full: false,
                times: None,
                run: "run".into(),
                clock: source.clock.clone(),
                cancel: CancellationToken::new(),
                progress: Arc::new(|_| {}),
            };
            run.run().await
        };
        source.append(&EVENTS);
        recompute().await.expect("recompute");
        source.append(&EVENTS);
        fail::cfg(failpoint, "1*return").expect("cfg");
        recompute().await.expect_err(failpoint);
        fail::remove(failpoint);
        let is_new = failpoint == "batch::after_publish";
        let twice: Vec<Event> = EVENTS.into_iter().chain(EVENTS).collect();
        let held = if is_new { twice.as_slice() } else { EVENTS.as_slice() };
        assert_eq!(rows(&read_table(&root).await), fold(view.aggregation().window, held), "{failpoint}");
        assert_eq!(recompute().await.expect("recompute").is_none(), is_new, "{failpoint}");
        assert_eq!(rows(&read_table(&root).await), fold(view.aggregation().window, &twice), "{failpoint}");
        let table = DeltaTable::open(&root).await.expect("open").expect("table");
        let committed = committed_version(&table).await.expect("note").expect("a version");
        assert_eq!((committed.published().version, committed.published().coverage.len()), (2, 14));
    }
    scenario.teardown();
}
