//! Stored files that aren't what was written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_exchange::job::{Job, JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_exchange::version::archive_root;
use anabranch_log::{Log, Retention};
use anabranch_plan::window::Window;
use anabranch_store::table::{Change, DataFile, DeltaTable};

use super::BatchLayer;
use super::tests::{EVENTS, id, number, open};
use crate::archive::tests::archive;
use crate::archive::{Archive, Rebuild, check_table};
use crate::fixture::{Event, SECOND, Source, fold, rows_of_partials, source, table, view};

/// The files below a folder whose names end so, in order.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path, end)),
            path if path.to_string_lossy().ends_with(end) => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Flips a bit in the middle of a file.
fn flip(path: &Path) {
    let mut content = fs::read(path).expect("read");
    let middle = content.len() / 2;
    content[middle] ^= 4;
    fs::write(path, content).expect("write");
}

async fn run(layer: &BatchLayer, full: bool) -> Job {
    let all = JobRequest { kind: JobKind::Batch, views: Vec::new(), full, from: None, to: None };
    let job = layer.jobs().submit(all, Trigger::Cli).expect("submit");
    layer.work_once().await;
    layer.jobs().get(&job.id).expect("job")
}

/// What the view `hopping` says by its partials is a fold over the events.
async fn assert_is_fold(layer: &BatchLayer, events: &[Event]) {
    let window = Window::sliding(5 * SECOND, SECOND);
    let version = layer.versions().get(&id(layer, "hopping")).expect("a version");
    let hopping = view("hopping", Arc::new(table()), Some(window));
    let found = tokio::task::spawn_blocking(move || rows_of_partials(&hopping, &version)).await.expect("joined");
    assert_eq!(found, fold(Some(window), events));
}

async fn computed() -> (tempfile::TempDir, Source, BatchLayer) {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let layer = open(dir.path(), &source).await;
    source.append(&EVENTS);
    assert_eq!(run(&layer, false).await.state, JobState::Succeeded);
    (dir, source, layer)
}

#[tokio::test]
async fn a_damaged_or_missing_archive_file_fails_the_runs_that_need_it_and_publishes_nothing() {
    let (dir, source, layer) = computed().await;
    let damaged = &files(&archive_root(dir.path(), "events"), ".parquet")[0];
    let whole = fs::read(damaged).expect("read");
    for is_missing in [false, true] {
        if is_missing {
            fs::remove_file(damaged).expect("remove")
        } else {
            flip(damaged)
        }
        let job = run(&layer, true).await;
        let error = job.error.expect("a reason");
        let named = [damaged.to_str().expect("a name"), "table `events`", "anabranch archive rebuild events"];
        assert!(job.state == JobState::Failed && named.iter().all(|it| error.contains(it)), "{error}");
        assert_eq!((number(&layer, "hopping"), number(&layer, "ever")), (Some(1), Some(1)));
        let checked = check_table(&archive_root(dir.path(), "events")).await.expect("check").expect("a table");
        assert_eq!((checked.damaged.len(), &checked.damaged[0].0), (1, damaged));
        fs::write(damaged, &whole).expect("write");
    }
    // A day that the run doesn't read is as it was computed.
    flip(damaged);
    let late: [Event; 1] = [("z", Some(5), 90_000 * SECOND + 1_000)];
    source.append(&late);
    let job = run(&layer, false).await;
    assert_eq!((job.state, number(&layer, "hopping")), (JobState::Succeeded, Some(2)));
    assert_is_fold(&layer, &[&EVENTS[..], &late].concat()).await;
}

#[tokio::test]
async fn damaged_and_missing_partials_are_computed_anew_by_the_next_run() {
    let (dir, source, layer) = computed().await;
    let panes = files(&dir.path().join("views/hopping/_panes"), ".parquet");
    assert_eq!(panes.len(), 2);
    flip(&panes[0]);
    fs::remove_file(&panes[1]).expect("remove");
    drop(layer);
    let layer = open(dir.path(), &source).await;
    let version = layer.versions().get(&id(&layer, "hopping")).expect("a version");
    let reasons: Vec<String> = version.published.panes.iter().filter_map(|file| version.damage(file)).collect();
    assert!(reasons.len() == 2 && reasons[0].contains("SHA-256") && reasons[1].contains("missing"), "{reasons:?}");
    let job = run(&layer, false).await;
    assert_eq!((job.state, number(&layer, "hopping")), (JobState::Succeeded, Some(2)));
    assert_eq!(number(&layer, "ever"), Some(1), "nothing of it was damaged");
    assert_is_fold(&layer, &EVENTS).await;
}

#[tokio::test]
async fn versions_that_cant_be_read_harm_no_other_view_and_begin_anew_with_the_next_run() {
    let (dir, source, layer) = computed().await;
    assert_eq!(run(&layer, true).await.state, JobState::Succeeded);
    let newest = dir.path().join("views/hopping/_delta_log/00000000000000000002.json");
    let whole = fs::read(&newest).expect("read");
    drop(layer);
    for (attempt, damage) in [whole[..whole.len() / 2].to_vec(), Vec::new()].into_iter().enumerate() {
        fs::write(&newest, damage).expect("write");
        let layer = open(dir.path(), &source).await;
        let versions = layer.versions();
        let why = versions.trouble("hopping").expect("a reason");
        assert!(why.contains("00000000000000000002.json is damaged"), "{why}");
        assert_eq!((number(&layer, "hopping"), versions.trouble("ever")), (None, None));
        assert_eq!(number(&layer, "ever"), Some(2));
        if attempt == 0 {
            continue;
        }
        assert_eq!(run(&layer, false).await.state, JobState::Succeeded);
        assert_eq!((number(&layer, "hopping"), layer.versions().trouble("hopping")), (Some(3), None));
        assert_is_fold(&layer, &EVENTS).await;
        let aside = fs::read_dir(dir.path().join("views")).expect("views").flatten();
        let aside: Vec<PathBuf> =
            aside.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("hopping.aside-")).collect();
        assert!(aside.len() == 1 && aside[0].join("_delta_log/00000000000000000002.json").is_file(), "{aside:?}");
    }
}

#[tokio::test]
async fn versions_that_get_damaged_while_they_are_served_begin_anew_and_are_noticed() {
    let (dir, _source, layer) = computed().await;
    let newest = dir.path().join("views/hopping/_delta_log/00000000000000000001.json");
    flip(&newest);
    // What was read is right still.
    layer.worker.publishers.refresh().await.expect("refresh");
    assert_eq!(number(&layer, "hopping"), Some(1));
    assert_eq!(run(&layer, false).await.state, JobState::Succeeded);
    assert_eq!(number(&layer, "hopping"), Some(2));
    assert_is_fold(&layer, &EVENTS).await;
}

#[tokio::test]
async fn a_damaged_archive_file_is_archived_again_from_the_log() {
    let (dir, source, layer) = computed().await;
    let root = archive_root(dir.path(), "events");
    flip(&files(&root, ".parquet")[0]);
    let archive = Archive { root: root.clone(), ..archive(dir.path(), &source, table()) };
    let plan = Rebuild::plan(archive).await.expect("plan").expect("an archive");
    let lines = plan.description();
    assert!(lines.iter().any(|line| line.contains("is damaged") && line.contains("are archived anew")), "{lines:?}");
    plan.run().await.expect("rebuild");
    assert_eq!(run(&layer, true).await.state, JobState::Succeeded);
    assert_is_fold(&layer, &EVENTS).await;
    assert!(check_table(&root).await.expect("check").expect("a table").damaged.is_empty());
}

#[tokio::test]
async fn rows_of_a_damaged_file_that_the_log_no_longer_holds_are_counted_before_they_are_lost() {
    let (dir, source, layer) = computed().await;
    let more: [Event; 2] = [("c", Some(4), 90_001 * SECOND), ("d", Some(5), 2 * SECOND)];
    source.append(&more);
    assert_eq!(run(&layer, false).await.state, JobState::Succeeded);
    let all = source.log.bounds("events").expect("bounds").into_iter().map(|(p, held)| (p, held.end)).collect();
    source.log.retain("events", Retention { age: None, bytes: Some(0) }, &all).expect("retain");
    let held = source.log.bounds("events").expect("bounds");
    assert!(held.values().all(|held| held.start > 0), "{held:?}");
    let root = archive_root(dir.path(), "events");
    let damaged = &files(&root, ".parquet")[0];
    flip(damaged);
    let archive = Archive { root: root.clone(), ..archive(dir.path(), &source, table()) };
    let plan = Rebuild::plan(archive).await.expect("plan").expect("an archive");
    let lines = plan.description();
    let line = lines.iter().find(|line| line.contains(damaged.to_str().expect("a name"))).expect("a line");
    assert!(line.contains("of its 2 rows are lost") || line.contains("of its 1 rows are lost"), "{line}");
    plan.run().await.expect("rebuild");
    assert_eq!(run(&layer, true).await.state, JobState::Succeeded);
    assert!(check_table(&root).await.expect("check").expect("a table").damaged.is_empty());
}

#[tokio::test]
async fn of_files_without_a_digest_a_check_compares_the_rows_and_they_are_read_as_before() {
    let (dir, _source, layer) = computed().await;
    let root = archive_root(dir.path(), "events");
    let mut table = DeltaTable::open(&root).await.expect("open").expect("a table");
    let file = table.files().remove(0);
    let bare = DataFile { sha256: None, ..file.clone() };
    let note = table.note().await.expect("note").expect("a note").1;
    let change = |file: &DataFile, note: &serde_json::Value| Change {
        add: vec![file.clone()],
        note: note.clone(),
        ..Change::default()
    };
    table.commit(change(&bare, &note)).await.expect("commit");
    let checked = check_table(&root).await.expect("check").expect("a table");
    assert_eq!((checked.files, checked.undigested, checked.damaged), (2, 1, Vec::new()));
    assert_eq!(run(&layer, true).await.state, JobState::Succeeded);
    let other = DataFile { stats: Some("{\"numRecords\":77}".to_owned()), ..bare };
    table.commit(change(&other, &note)).await.expect("commit");
    let checked = check_table(&root).await.expect("check").expect("a table");
    assert!(checked.damaged.len() == 1 && checked.damaged[0].1.contains("its commit says 77"), "{checked:?}");
}
