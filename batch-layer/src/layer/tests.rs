use std::path::Path;
use std::sync::Arc;

use anabranch_exchange::job::{JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_exchange::version::{Version, archive_root};
use anabranch_log::{Log, Retention};
use anabranch_plan::view::ViewId;
use anabranch_plan::window::Window;
use tokio_util::sync::CancellationToken;

use super::{BatchLayer, BatchSettings};
use crate::archive::tests::archive;
use crate::archive::{Archive, Rebuild};
use crate::fixture::{Event, SECOND, Source, catalog, fold, rows_of_partials, source, table, view};

pub(super) async fn open(data: &Path, source: &Source) -> BatchLayer {
    let table = Arc::new(table());
    let hopping = view("hopping", table.clone(), Some(Window::sliding(5 * SECOND, SECOND)));
    let catalog = catalog(vec![hopping, view("ever", table, None)]);
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    BatchLayer::open(BatchSettings::default(), data, log, &catalog, rejects, clock).await.expect("open")
}

pub(super) fn id(layer: &BatchLayer, view: &str) -> ViewId {
    layer.worker.catalog.views[view].id.clone()
}

pub(super) fn number(layer: &BatchLayer, view: &str) -> Option<u64> {
    layer.versions().get(&id(layer, view)).map(|version| version.published.version)
}

pub(super) const EVENTS: [Event; 3] = [("a", Some(1), 0), ("b", Some(2), SECOND), ("a", Some(3), 90_000 * SECOND)];

#[tokio::test]
async fn a_job_archives_and_publishes_and_a_restart_finds_the_versions() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let layer = open(dir.path(), &source).await;
    assert_eq!(number(&layer, "hopping"), None);
    source.append(&EVENTS);
    let all = || JobRequest { kind: JobKind::Batch, views: Vec::new(), full: false, from: None, to: None };
    let job = layer.jobs().submit(all(), Trigger::Cli).expect("submit");
    layer.work_once().await;
    let job = layer.jobs().get(&job.id).expect("job");
    assert_eq!((job.state, job.error.as_deref()), (JobState::Succeeded, None));
    assert_eq!(job.versions, [("ever".to_owned(), 1), ("hopping".to_owned(), 1)].into());
    let announced = layer.versions().get(&id(&layer, "hopping")).expect("a version");
    drop(layer);

    let layer = open(dir.path(), &source).await;
    let version = layer.versions().get(&id(&layer, "hopping")).expect("a version");
    assert_eq!(version.published, announced.published);
    assert_eq!(version.published.coverage.len(), 3);
    let window = Window::sliding(5 * SECOND, SECOND);
    let hopping = view("hopping", Arc::new(table()), Some(window));
    let found = tokio::task::spawn_blocking(move || rows_of_partials(&hopping, &version)).await.expect("joined");
    assert_eq!(found, fold(Some(window), &EVENTS));
    // Nothing new: the job succeeds, and the version stays.
    let job = layer.jobs().submit(all(), Trigger::Cli).expect("submit");
    layer.work_once().await;
    assert_eq!(layer.jobs().get(&job.id).expect("job").versions.get("hopping"), Some(&1));
    assert_eq!(layer.jobs().list().expect("list").len(), 2);
}

#[tokio::test]
async fn a_rebuild_that_ended_before_its_versions_were_computed_is_finished_by_the_next_start() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let layer = open(dir.path(), &source).await;
    source.append(&EVENTS);
    let all = JobRequest { kind: JobKind::Batch, views: Vec::new(), full: false, from: None, to: None };
    layer.jobs().submit(all, Trigger::Cli).expect("submit");
    layer.work_once().await;
    let version = |layer: &BatchLayer| number(layer, "hopping");
    assert_eq!((version(&layer), layer.readings().of("events").borrow().rebuilds), (Some(1), 0));
    let archive = Archive { root: archive_root(dir.path(), "events"), ..archive(dir.path(), &source, table()) };
    Rebuild::plan(archive).await.expect("plan").expect("an archive").run().await.expect("rebuild");
    // A process at work notices.
    layer.worker.publishers.refresh().await.expect("refresh");
    assert_eq!((version(&layer), layer.readings().of("events").borrow().rebuilds), (None, 1));
    assert!(layer.versions().newest(&id(&layer, "hopping")).expect("the old one").is_stale);
    drop(layer);

    let layer = open(dir.path(), &source).await;
    assert_eq!(version(&layer), None);
    let (jobs, mut hopping) = (layer.jobs(), layer.versions().0[&id(&layer, "hopping")].clone());
    let shutdown = CancellationToken::new();
    let runs = tokio::spawn(layer.run(shutdown.clone()));
    let is_new = |version: &Option<Arc<Version>>| version.as_ref().is_some_and(|version| !version.is_stale);
    let version = hopping.wait_for(is_new).await.expect("followed").clone().expect("a version");
    assert_eq!((version.published.version, version.published.rebuilds), (2, 1));
    assert_eq!(jobs.list().expect("list").len(), 2);
    shutdown.cancel();
    runs.await.expect("joined");
}

#[tokio::test]
async fn a_view_whose_version_ends_before_the_log_begins_gets_another_at_the_start() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let layer = open(dir.path(), &source).await;
    let batch = |views: Vec<String>| JobRequest { kind: JobKind::Batch, views, full: false, from: None, to: None };
    // One of the views is left out of the second run, as if it had been removed meanwhile.
    for views in [vec![], vec!["hopping".to_owned()]] {
        source.append(&EVENTS);
        layer.jobs().submit(batch(views), Trigger::Cli).expect("submit");
        layer.work_once().await;
    }
    let ends = layer.archivers()["events"].log_ends().await.expect("ends");
    source.log.retain("events", Retention { age: None, bytes: Some(0) }, &ends).expect("retain");
    drop(layer);

    let layer = open(dir.path(), &source).await;
    let (jobs, mut ever) = (layer.jobs(), layer.versions().0[&id(&layer, "ever")].clone());
    assert_eq!((number(&layer, "ever"), number(&layer, "hopping")), (Some(1), Some(2)));
    let shutdown = CancellationToken::new();
    let runs = tokio::spawn(layer.run(shutdown.clone()));
    let is_new =
        |version: &Option<Arc<Version>>| version.as_ref().is_some_and(|version| version.published.version == 2);
    let version = ever.wait_for(is_new).await.expect("followed").clone().expect("a version");
    assert_eq!(version.published.coverage.of("events").ends(), ends);
    assert_eq!(jobs.list().expect("list")[0].views, ["ever"], "the other one needs none");
    shutdown.cancel();
    runs.await.expect("joined");
}
