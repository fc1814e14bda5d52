use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anabranch_shared::clock::ManualClock;
use anabranch_shared::job::{Job, JobError, JobKind, JobRequest, JobState, Jobs, Trigger};
use async_trait::async_trait;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{JobQueue, Retry, ViewRun, Work};
use crate::error::BatchError;
use crate::fixture::{SECOND, catalog, table, view};

fn open(dir: &Path) -> Arc<JobQueue> {
    let table = Arc::new(table());
    let catalog = catalog(vec![view("one", table.clone(), None), view("two", table, None)]);
    let clock = Arc::new(ManualClock::new(1_700_000_000 * SECOND));
    let retry = Retry { attempts: 3, pause: Duration::from_millis(1) };
    Arc::new(JobQueue::open(&dir.join("runs.jsonl"), &catalog, clock, retry).expect("open"))
}

fn new() -> (TempDir, Arc<JobQueue>) {
    let dir = tempfile::tempdir().expect("directory");
    let queue = open(dir.path());
    (dir, queue)
}

fn batch(views: &[&str]) -> JobRequest {
    let views = views.iter().map(|&view| view.to_owned()).collect();
    JobRequest { kind: JobKind::Batch, views, full: false, from: None, to: None }
}

/// Takes a step for each permit; fails as often as told first.
struct Steps {
    permits: Semaphore,
    failures: AtomicU32,
    done: Mutex<Vec<ViewRun>>,
}

fn steps(permits: usize) -> Arc<Steps> {
    Arc::new(Steps { permits: Semaphore::new(permits), failures: AtomicU32::new(0), done: Mutex::default() })
}

#[async_trait]
impl Work for Steps {
    async fn archive(&self, _: &[String]) -> Result<(), BatchError> {
        Ok(())
    }

    async fn recompute(
        &self,
        run: ViewRun,
        progress: Arc<dyn Fn(f64) + Send + Sync>,
        cancel: CancellationToken,
    ) -> Result<u64, BatchError> {
        progress(0.5);
        tokio::select! {
            permit = self.permits.acquire() => permit.expect("open").forget(),
            () = cancel.cancelled() => return Err(BatchError::Cancelled),
        }
        if run.full {
            return Err(BatchError::Failpoint("full"));
        }
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            self.permits.add_permits(1);
            let source = std::io::Error::other("a flaw of the disk");
            return Err(BatchError::File { step: "writing", path: "file".into(), source });
        }
        let mut done = self.done.lock();
        done.push(run);
        Ok(done.len() as u64)
    }
}

async fn until(queue: &JobQueue, id: &str, state: JobState) -> Job {
    loop {
        let job = queue.get(id).expect("job");
        if job.state == state {
            return job;
        }
        assert!(job.ended.is_none(), "{job:?}");
        tokio::task::yield_now().await;
    }
}

fn work(queue: &Arc<JobQueue>, work: Arc<dyn Work>) -> CancellationToken {
    let shutdown = CancellationToken::new();
    let (queue, token) = (queue.clone(), shutdown.clone());
    tokio::spawn(async move { queue.run(work, token).await });
    shutdown
}

#[tokio::test]
async fn jobs_run_one_after_the_other() {
    let ((_dir, queue), steps) = (new(), steps(0));
    let first = queue.submit(batch(&[]), Trigger::Api).expect("submit");
    let second = queue.submit(batch(&["two", "two"]), Trigger::Cli).expect("submit");
    assert_eq!((first.state, first.views.len(), second.views.len()), (JobState::Queued, 2, 1));
    let _shutdown = work(&queue, steps.clone());
    assert_eq!(until(&queue, &first.id, JobState::Running).await.versions.len(), 0);
    assert_eq!(queue.get(&second.id).expect("job").state, JobState::Queued);
    let metrics = queue.metrics();
    assert_eq!((metrics.queued, metrics.running), (1, 1));
    assert!(queue.is_busy("two"));
    steps.permits.add_permits(2);
    let ended = until(&queue, &first.id, JobState::Succeeded).await;
    assert_eq!((ended.progress, ended.versions), (1.0, [("one".to_owned(), 1), ("two".to_owned(), 2)].into()));
    steps.permits.add_permits(1);
    until(&queue, &second.id, JobState::Succeeded).await;
    let ids: Vec<String> = queue.list().expect("list").into_iter().map(|job| job.id).collect();
    assert_eq!(ids, [second.id, first.id], "newest first");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let (_dir, queue) = new();
    let unknown = queue.submit(batch(&["three"]), Trigger::Api).expect_err("unknown").to_string();
    assert_eq!(unknown, r#"no view named `three`; there are ["one", "two"]"#);
    let request = JobRequest { from: Some("yesterday".into()), ..batch(&[]) };
    let wrong = queue.submit(request, Trigger::Api).expect_err("no time").to_string();
    assert!(wrong.contains("`from` is `yesterday`") && wrong.contains("2024-01-15T10:30:00Z"), "{wrong}");
    let (from, to) = (Some("2024-01-02T00:00:00Z".into()), Some("2024-01-01T00:00:00Z".into()));
    assert!(matches!(queue.submit(JobRequest { from, to, ..batch(&[]) }, Trigger::Api), Err(JobError::Invalid(_))));
    assert!(matches!(queue.get("run-0"), Err(JobError::UnknownJob(_))));
    assert!(matches!(queue.cancel("run-0"), Err(JobError::UnknownJob(_))));
    assert!(queue.list().expect("list").is_empty());
}

#[tokio::test]
async fn a_job_is_cancelled_while_it_waits_and_while_it_works() {
    let ((_dir, queue), steps) = (new(), steps(0));
    let first = queue.submit(batch(&[]), Trigger::Api).expect("submit");
    let second = queue.submit(batch(&[]), Trigger::Api).expect("submit");
    let _shutdown = work(&queue, steps.clone());
    until(&queue, &first.id, JobState::Running).await;
    assert_eq!(queue.cancel(&second.id).expect("cancel").state, JobState::Cancelled);
    queue.cancel(&first.id).expect("cancel");
    let ended = until(&queue, &first.id, JobState::Cancelled).await;
    assert!(ended.ended.is_some() && ended.versions.is_empty());
    assert!(matches!(queue.cancel(&first.id), Err(JobError::Ended(_))));
    assert!(!queue.has_open());
}

#[tokio::test]
async fn only_faults_of_the_storage_are_tried_again() {
    let ((_dir, queue), steps) = (new(), steps(100));
    steps.failures.store(2, Ordering::SeqCst);
    let _shutdown = work(&queue, steps.clone());
    let job = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    until(&queue, &job.id, JobState::Succeeded).await;
    steps.failures.store(3, Ordering::SeqCst);
    let job = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    let failed = until(&queue, &job.id, JobState::Failed).await;
    assert_eq!(failed.error.as_deref(), Some("one: writing file failed: a flaw of the disk"));
    let left = steps.permits.available_permits();
    let job = queue.submit(JobRequest { full: true, ..batch(&["one"]) }, Trigger::Api).expect("submit");
    until(&queue, &job.id, JobState::Failed).await;
    assert_eq!(steps.permits.available_permits(), left - 1, "it was tried once");
    let runs = queue.metrics().runs.into_iter().filter(|(_, _, counts)| counts.count() > 0);
    let runs: Vec<_> = runs.map(|(view, state, counts)| (view, state, counts.count())).collect();
    assert_eq!(runs, [("one".to_owned(), "failed", 2), ("one".to_owned(), "succeeded", 1)]);
}

#[tokio::test]
async fn the_history_outlives_the_process() {
    let ((dir, queue), steps) = (new(), steps(1));
    let shutdown = work(&queue, steps.clone());
    let first = queue.submit(batch(&["one"]), Trigger::Schedule).expect("submit");
    until(&queue, &first.id, JobState::Succeeded).await;
    let second = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    until(&queue, &second.id, JobState::Running).await;
    let third = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    // The file as it is now is what a kill would leave, with a line torn.
    let crashed = tempfile::tempdir().expect("directory");
    let path = crashed.path().join("runs.jsonl");
    std::fs::copy(dir.path().join("runs.jsonl"), &path).expect("copy");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("open");
    file.write_all(b"{\"id\":\"run-").expect("write");
    shutdown.cancel();
    until(&queue, &second.id, JobState::Cancelled).await;

    for _ in 0..2 {
        let queue = open(crashed.path());
        let states: Vec<JobState> = queue.list().expect("list").iter().map(|job| job.state).collect();
        assert_eq!(states, [JobState::Cancelled, JobState::Failed, JobState::Succeeded]);
        let interrupted = queue.get(&second.id).expect("job");
        assert_eq!(interrupted.error.as_deref(), Some("interrupted"));
        assert!(interrupted.ended.is_some());
        assert_eq!(queue.last_scheduled("one"), Some(1_700_000_000 * SECOND));
        assert_eq!(queue.last_scheduled("two"), None);
    }
    let queue = open(crashed.path());
    let fourth = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    assert!(fourth.id > third.id);
}

#[tokio::test]
async fn the_history_is_pruned() {
    let (dir, queue) = new();
    let template = serde_json::to_value(queue.submit(batch(&["one"]), Trigger::Api).expect("submit")).expect("json");
    let mut lines = String::new();
    for i in 0..1_500 {
        let mut job = template.clone();
        job["id"] = format!("run-{i:016x}").into();
        job["state"] = "succeeded".into();
        lines.push_str(&format!("{job}\n"));
    }
    std::fs::write(dir.path().join("runs.jsonl"), lines).expect("write");
    let jobs = open(dir.path()).list().expect("list");
    assert_eq!((jobs.len(), jobs[0].id.as_str()), (1_000, "run-00000000000005db"));
}

/// Recomputes every view but `one`, at which it panics.
struct Panicking;

#[async_trait]
impl Work for Panicking {
    async fn archive(&self, _: &[String]) -> Result<(), BatchError> {
        Ok(())
    }

    async fn recompute(
        &self,
        run: ViewRun,
        _: Arc<dyn Fn(f64) + Send + Sync>,
        _: CancellationToken,
    ) -> Result<u64, BatchError> {
        assert!(run.view != "one", "a fault in its evaluation");
        Ok(1)
    }
}

#[tokio::test]
async fn a_view_whose_run_panics_fails_its_part_of_the_job_alone() {
    let (_dir, queue) = new();
    let job = queue.submit(batch(&[]), Trigger::Api).expect("submit");
    let next = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    let _shutdown = work(&queue, Arc::new(Panicking));
    let failed = until(&queue, &job.id, JobState::Failed).await;
    assert_eq!(failed.versions, [("two".to_owned(), 1)].into());
    assert_eq!(failed.error.as_deref(), Some("one: recomputing panicked: a fault in its evaluation"));
    until(&queue, &next.id, JobState::Succeeded).await;
}
