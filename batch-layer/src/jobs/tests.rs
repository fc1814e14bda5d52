use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anabranch_exchange::job::{Job, JobError, JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_log::clock::ManualClock;
use anabranch_store::table::TableError;
use async_trait::async_trait;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{JobQueue, Retry, ViewRun, Work};
use crate::error::BatchError;
use crate::fixture::{SECOND, catalog, table, view};
use crate::layer::{BatchLayer, BatchSettings};

fn open(dir: &Path) -> Arc<JobQueue> {
    open_at(dir, &Arc::new(ManualClock::new(1_700_000_000 * SECOND)))
}

fn open_at(dir: &Path, clock: &Arc<ManualClock>) -> Arc<JobQueue> {
    let table = Arc::new(table());
    let catalog = catalog(vec![view("one", table.clone(), None), view("two", table, None)]);
    let retry = Retry { attempts: 3, pause: Duration::from_millis(1) };
    Arc::new(JobQueue::open(dir, &catalog, clock.clone(), retry).expect("open"))
}

/// The data folder as a kill would leave it now.
fn killed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("directory");
    std::fs::create_dir(copy.path().join("runs")).expect("create");
    for file in std::fs::read_dir(dir.join("runs")).expect("list") {
        let file = file.expect("file");
        std::fs::copy(file.path(), copy.path().join("runs").join(file.file_name())).expect("copy");
    }
    copy
}

/// The files of the history.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir.join("runs")).expect("list").map(|file| file.expect("file").path()).collect()
}

fn states(queue: &JobQueue) -> Vec<JobState> {
    queue.list().expect("list").iter().map(|job| job.state).collect()
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
    async fn archive(&self, _: &[String], _: &CancellationToken) -> Result<(), BatchError> {
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
    let dir = tempfile::tempdir().expect("directory");
    let queue = open(dir.path());
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
async fn another_writer_that_was_faster_is_no_failure() {
    struct Faster(AtomicU32);

    #[async_trait]
    impl Work for Faster {
        async fn archive(&self, _: &[String], _: &CancellationToken) -> Result<(), BatchError> {
            Ok(())
        }

        async fn recompute(
            &self,
            _: ViewRun,
            _: Arc<dyn Fn(f64) + Send + Sync>,
            _: CancellationToken,
        ) -> Result<u64, BatchError> {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Err(TableError::Superseded { table: "one".into(), version: 1 }.into()),
                _ => Ok(2),
            }
        }
    }
    let dir = tempfile::tempdir().expect("directory");
    let queue = open(dir.path());
    let job = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    let _shutdown = work(&queue, Arc::new(Faster(AtomicU32::new(0))));
    assert_eq!(until(&queue, &job.id, JobState::Succeeded).await.versions, [("one".to_owned(), 2)].into());
}

#[tokio::test]
async fn a_stop_leaves_jobs_waiting_and_the_next_process_runs_them() {
    let dir = tempfile::tempdir().expect("directory");
    let (queue, cut_off) = (open(dir.path()), steps(0));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn({
        let (queue, cut_off, token) = (queue.clone(), cut_off.clone(), shutdown.clone());
        async move { queue.run(cut_off, token).await }
    });
    let since = JobRequest { from: Some("2024-01-01T00:00:00Z".into()), ..batch(&["one"]) };
    let first = queue.submit(since, Trigger::Api).expect("submit");
    let second = queue.submit(batch(&["two"]), Trigger::Cli).expect("submit");
    until(&queue, &first.id, JobState::Running).await;
    shutdown.cancel();
    running.await.expect("stopped");
    assert_eq!(states(&queue), [JobState::Queued, JobState::Queued]);
    drop(queue);

    let (queue, steps) = (open(dir.path()), steps(2));
    assert_eq!(states(&queue), [JobState::Queued, JobState::Queued]);
    let _shutdown = work(&queue, steps.clone());
    until(&queue, &second.id, JobState::Succeeded).await;
    let first = until(&queue, &first.id, JobState::Succeeded).await;
    assert_eq!((first.attempts, first.error.as_deref()), (2, None));
    let done = steps.done.lock();
    assert_eq!(done[0].times, Some(1_704_067_200 * SECOND..i64::MAX), "it does what it was to do");
    assert!(done[0].run.ends_with("-2"), "what the first attempt has written stays as it is");
}

#[tokio::test]
async fn what_was_accepted_before_a_kill_is_run_after_it() {
    let dir = tempfile::tempdir().expect("directory");
    let (queue, cut_off) = (open(dir.path()), steps(1));
    let _shutdown = work(&queue, cut_off);
    let jobs: Vec<Job> = (0..30).map(|_| queue.submit(batch(&["one"]), Trigger::Api).expect("submit")).collect();
    until(&queue, &jobs[0].id, JobState::Succeeded).await;
    until(&queue, &jobs[1].id, JobState::Running).await;
    let cancelled = queue.cancel(&jobs[2].id).expect("cancel");
    let dir = killed(dir.path());
    // The kill has torn a line.
    let mut file = std::fs::OpenOptions::new().append(true).open(&files(dir.path())[0]).expect("open");
    file.write_all(b"{\"id\":\"run-").expect("write");
    drop(file);

    let (queue, steps) = (open(dir.path()), steps(30));
    let _shutdown = work(&queue, steps.clone());
    until(&queue, &jobs[29].id, JobState::Succeeded).await;
    let succeeded = states(&queue).iter().filter(|state| **state == JobState::Succeeded).count();
    assert_eq!((succeeded, steps.done.lock().len()), (29, 28));
    assert_eq!(queue.get(&cancelled.id).expect("job"), cancelled);
    assert_eq!(queue.get(&jobs[1].id).expect("job").attempts, 2);
    let next = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    assert!(next.id > jobs[29].id);
}

#[tokio::test]
async fn a_job_that_was_to_stop_when_its_process_was_killed_is_cancelled() {
    let ((dir, queue), steps) = (new(), steps(0));
    let job = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    let shutdown = CancellationToken::new();
    queue.begin(&shutdown).expect("it begins");
    assert_eq!(queue.cancel(&job.id).expect("cancel").state, JobState::Running, "it will stop");
    drop(steps);
    let dir = killed(dir.path());
    assert_eq!(open(dir.path()).get(&job.id).expect("job").state, JobState::Cancelled);
}

#[test]
fn a_job_at_which_the_process_dies_again_and_again_fails_with_the_reason() {
    let mut dir = tempfile::tempdir().expect("directory");
    let id = open(dir.path()).submit(batch(&["one"]), Trigger::Api).expect("submit").id;
    for _ in 0..3 {
        let queue = open(dir.path());
        assert_eq!(queue.get(&id).expect("job").state, JobState::Queued);
        queue.begin(&CancellationToken::new()).expect("it begins");
        dir = killed(dir.path());
    }
    let job = open(dir.path()).get(&id).expect("job");
    assert_eq!((job.state, job.attempts, job.ended.is_some()), (JobState::Failed, 3, true));
    assert!(job.error.as_ref().is_some_and(|error| error.contains("ended 3 times")), "{:?}", job.error);
}

#[test]
fn a_job_that_is_told_cancelled_never_begins() {
    let dir = tempfile::tempdir().expect("directory");
    let queue = open(dir.path());
    // Cancelled and begun at the same instant, over and over: whatever comes first, both agree.
    for _ in 0..200 {
        let job = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
        let (begun, cancelled) = std::thread::scope(|scope| {
            let begun = scope.spawn(|| queue.begin(&CancellationToken::new()));
            let cancelled = queue.cancel(&job.id).expect("cancel");
            (begun.join().expect("joined"), cancelled)
        });
        match begun {
            None => assert_eq!(cancelled.state, JobState::Cancelled),
            Some((_, cancel)) => {
                assert_eq!(cancelled.state, JobState::Running);
                assert!(cancel.is_cancelled(), "it is stopped");
                queue.state.lock().end(&job.id, JobState::Cancelled, None, 0);
            }
        }
        assert_eq!(queue.get(&job.id).expect("job").state, JobState::Cancelled);
    }
}

#[test]
fn processes_that_share_a_folder_lose_no_line_of_each_other() {
    let dir = tempfile::tempdir().expect("directory");
    let (one, other) = (open(dir.path()), open(dir.path()));
    for _ in 0..14 {
        for queue in [&one, &other] {
            let job = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
            queue.state.lock().end(&job.id, JobState::Succeeded, None, 0);
        }
    }
    let waiting = other.submit(batch(&["two"]), Trigger::Api).expect("submit");
    // Each has its own jobs, and a third those of neither, as long as they live.
    assert_eq!((states(&one).len(), states(&open(dir.path())).len()), (14, 0));
    drop(other);
    one.state.lock().adopt(0).expect("adopted");
    assert_eq!((states(&one).len(), one.get(&waiting.id).expect("job").state), (29, JobState::Queued));
    drop(one);
    assert_eq!(states(&open(dir.path())).len(), 29);
    assert!(files(dir.path()).len() <= 1, "what was taken over is deleted");
}

#[test]
fn a_history_of_the_build_before_is_taken_over() {
    let dir = tempfile::tempdir().expect("directory");
    let old = |id: u32, state: &str, ended: Option<&str>| {
        serde_json::json!({
            "id": format!("run-{id:016x}"), "kind": "batch", "views": ["one"], "state": state, "trigger": "schedule",
            "progress": 0.5, "queued": "2023-11-14T22:00:00Z", "started": "2023-11-14T22:00:01Z", "ended": ended,
            "error": null, "versions": {},
        })
    };
    let lines = [old(1, "succeeded", Some("2023-11-14T22:00:02Z")), old(2, "running", None), old(3, "queued", None)];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(dir.path().join("runs.jsonl"), text).expect("write");
    let queue = open(dir.path());
    assert_eq!(states(&queue), [JobState::Failed, JobState::Failed, JobState::Succeeded]);
    let why = queue.get("run-0000000000000003").expect("job").error.expect("a reason");
    assert!(why.contains("ask for it again"), "{why}");
    assert!(!dir.path().join("runs.jsonl").exists());
}

#[test]
fn the_history_is_pruned_but_for_what_waits() {
    let dir = tempfile::tempdir().expect("directory");
    let waiting = open(dir.path()).submit(batch(&["one"]), Trigger::Api).expect("submit");
    let mut text = String::new();
    for i in 0..1_500 {
        let id = format!("run-{:016x}-0", u64::MAX / 2 + i);
        let job = Job { id, state: JobState::Succeeded, ended: Some(waiting.queued.clone()), ..waiting.clone() };
        text.push_str(&format!("{}\n", serde_json::to_string(&job).expect("JSON")));
    }
    std::fs::write(dir.path().join("runs/00000000-x.jsonl"), text).expect("write");
    for _ in 0..2 {
        let jobs = open(dir.path()).list().expect("list");
        assert_eq!((jobs.len(), &jobs[999]), (1_000, &waiting));
        assert_eq!(jobs[0].id, format!("run-{:016x}-0", u64::MAX / 2 + 1_499));
    }
}

#[tokio::test]
async fn what_cannot_be_written_down_is_refused_and_what_goes_on_is_written_later() {
    let ((dir, queue), steps) = (new(), steps(0));
    let _shutdown = work(&queue, steps.clone());
    let running = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    until(&queue, &running.id, JobState::Running).await;
    queue.fill();
    let refused = queue.submit(batch(&["one"]), Trigger::Api).expect_err("no room");
    assert!(matches!(refused, JobError::History { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(queue.list().expect("list").len(), 1);
    steps.permits.add_permits(1);
    until(&queue, &running.id, JobState::Succeeded).await;
    assert!(queue.trouble().is_some_and(|why| why.contains("No space left")), "{:?}", queue.trouble());
    queue.free();
    let next = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    assert_eq!(queue.trouble(), None);
    let dir = killed(dir.path());
    let states = states(&open(dir.path()));
    assert_eq!(states.last(), Some(&JobState::Succeeded), "{states:?}");
    assert_eq!(states.len(), 2);
    assert!(next.id > running.id);
}

#[tokio::test]
async fn a_job_of_a_view_that_is_gone_fails_with_the_reason() {
    let dir = tempfile::tempdir().expect("directory");
    let source = crate::fixture::source(dir.path());
    let (log, rejects, clock) = (source.log.clone(), source.rejects.clone(), source.clock.clone());
    let waiting = open(dir.path()).submit(batch(&["two", "one"]), Trigger::Api).expect("submit");
    let catalog = catalog(vec![view("one", Arc::new(table()), None)]);
    let layer = BatchLayer::open(BatchSettings::default(), dir.path(), log, &catalog, rejects, clock);
    let layer = layer.await.expect("open");
    layer.work_once().await;
    let job = layer.jobs().get(&waiting.id).expect("job");
    assert_eq!((job.state, job.error.as_deref()), (JobState::Failed, Some("two: the project has no view `two`")));
}

/// A queue whose jobs may take a second.
fn hurried(dir: &Path, notice: Duration) -> Arc<JobQueue> {
    let queue = Arc::into_inner(open(dir)).expect("alone").with_timeout(Some(Duration::from_secs(1)));
    Arc::new(JobQueue { notice, ..queue })
}

#[tokio::test]
async fn a_run_that_takes_too_long_fails_and_holds_up_no_other() {
    let dir = tempfile::tempdir().expect("directory");
    let (queue, steps) = (hurried(dir.path(), Duration::from_secs(600)), steps(0));
    let _shutdown = work(&queue, steps.clone());
    let slow = queue.submit(batch(&["one"]), Trigger::Api).expect("submit");
    let failed = until(&queue, &slow.id, JobState::Failed).await;
    assert_eq!(failed.error.as_deref(), Some("it took longer than `timeout` under [batch] allows"));
    steps.permits.add_permits(1);
    let next = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    until(&queue, &next.id, JobState::Succeeded).await;
}

/// Archives without end, and doesn't notice that it is stopped.
struct Hanging;

#[async_trait]
impl Work for Hanging {
    async fn archive(&self, _: &[String], _: &CancellationToken) -> Result<(), BatchError> {
        std::future::pending().await
    }

    async fn recompute(
        &self,
        _: ViewRun,
        _: Arc<dyn Fn(f64) + Send + Sync>,
        _: CancellationToken,
    ) -> Result<u64, BatchError> {
        unreachable!("nothing is archived")
    }
}

#[tokio::test]
async fn a_run_that_hangs_is_left_alone() {
    let dir = tempfile::tempdir().expect("directory");
    let queue = hurried(dir.path(), Duration::from_millis(1));
    let jobs = [(); 2].map(|()| queue.submit(batch(&["one"]), Trigger::Api).expect("submit"));
    let _shutdown = work(&queue, Arc::new(Hanging));
    for job in jobs {
        let failed = until(&queue, &job.id, JobState::Failed).await;
        assert!(failed.error.as_ref().is_some_and(|why| why.contains("doesn't stop")), "{:?}", failed.error);
    }
}

/// Recomputes every view but `one`, at which it panics.
struct Panicking;

#[async_trait]
impl Work for Panicking {
    async fn archive(&self, _: &[String], _: &CancellationToken) -> Result<(), BatchError> {
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
    let dir = tempfile::tempdir().expect("directory");
    let queue = open(dir.path());
    let job = queue.submit(batch(&[]), Trigger::Api).expect("submit");
    let next = queue.submit(batch(&["two"]), Trigger::Api).expect("submit");
    let _shutdown = work(&queue, Arc::new(Panicking));
    let failed = until(&queue, &job.id, JobState::Failed).await;
    assert_eq!(failed.versions, [("two".to_owned(), 1)].into());
    assert_eq!(failed.error.as_deref(), Some("one: recomputing panicked: a fault in its evaluation"));
    until(&queue, &next.id, JobState::Succeeded).await;
}
