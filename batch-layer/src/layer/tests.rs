use std::path::Path;
use std::sync::Arc;

use anabranch_shared::job::{JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_shared::window::Window;

use super::{BatchLayer, BatchSettings};
use crate::fixture::{Event, SECOND, Source, catalog, fold, rows_of_partials, source, table, view};

async fn open(data: &Path, source: &Source) -> BatchLayer {
    let table = Arc::new(table());
    let hopping = view("hopping", table.clone(), Some(Window::sliding(5 * SECOND, SECOND)));
    let catalog = catalog(vec![hopping, view("ever", table, None)]);
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    BatchLayer::open(BatchSettings::default(), data, log, &catalog, rejects, clock).await.expect("open")
}

const EVENTS: [Event; 3] = [("a", Some(1), 0), ("b", Some(2), SECOND), ("a", Some(3), 90_000 * SECOND)];

#[tokio::test]
async fn a_job_archives_and_publishes_and_a_restart_finds_the_versions() {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let layer = open(dir.path(), &source).await;
    assert!(layer.versions().get("hopping").is_none());
    source.append(&EVENTS);
    let all = || JobRequest { kind: JobKind::Batch, views: Vec::new(), full: false, from: None, to: None };
    let job = layer.jobs().submit(all(), Trigger::Cli).expect("submit");
    layer.work_once().await;
    let job = layer.jobs().get(&job.id).expect("job");
    assert_eq!((job.state, job.error.as_deref()), (JobState::Succeeded, None));
    assert_eq!(job.versions, [("ever".to_owned(), 1), ("hopping".to_owned(), 1)].into());
    let announced = layer.versions().get("hopping").expect("a version");
    drop(layer);

    let layer = open(dir.path(), &source).await;
    let version = layer.versions().get("hopping").expect("a version");
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
