use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anabranch_log::Log;
use anabranch_log::clock::ManualClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_plan::view::Catalog;
use parking_lot::Mutex;

use super::{Foreman, Relay, RemoteJobs, Told};
use crate::job::{Job, JobError, JobKind, JobRequest, JobState, Jobs, Trigger};

const NOW: i64 = 1_700_000_000_000_000;

/// The jobs of the process that runs them: they stay as they are until a test says otherwise.
#[derive(Default)]
struct Queue {
    jobs: Mutex<BTreeMap<String, Job>>,
    /// Nothing can be written down.
    is_full: AtomicBool,
}

impl Queue {
    fn set(&self, id: &str, state: JobState) {
        self.jobs.lock().get_mut(id).expect("a job").state = state;
    }

    fn states(&self) -> Vec<JobState> {
        self.jobs.lock().values().map(|job| job.state).collect()
    }
}

impl Jobs for Queue {
    fn submit(&self, _: JobRequest, _: Trigger) -> Result<Job, JobError> {
        unreachable!("a foreman's jobs have ids")
    }

    fn submit_as(&self, id: &str, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        let request = request.check([&"one".to_owned()].into_iter())?;
        if self.is_full.load(Ordering::SeqCst) {
            return Err(JobError::History { step: "written", source: io::ErrorKind::StorageFull.into() });
        }
        let job = Job::queued(id.to_owned(), request, trigger, NOW);
        self.jobs.lock().insert(id.to_owned(), job.clone());
        Ok(job)
    }

    fn list(&self) -> Result<Vec<Job>, JobError> {
        Ok(self.jobs.lock().values().cloned().collect())
    }

    fn get(&self, id: &str) -> Result<Job, JobError> {
        self.jobs.lock().get(id).cloned().ok_or_else(|| JobError::UnknownJob(id.to_owned()))
    }

    fn cancel(&self, id: &str) -> Result<Job, JobError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(JobError::History { step: "written", source: io::ErrorKind::StorageFull.into() });
        }
        match self.get(id)?.is_open() {
            true => self.set(id, JobState::Cancelled),
            false => return Err(JobError::Ended(id.to_owned())),
        }
        self.get(id)
    }
}

/// A process that serves and one that runs jobs, on one log.
struct Processes {
    log: Arc<dyn Log>,
    clock: Arc<ManualClock>,
    serving: RemoteJobs,
    queue: Arc<Queue>,
    foreman: Foreman,
}

fn processes(folder: &Path) -> Processes {
    let clock = Arc::new(ManualClock::new(NOW));
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder, options, clock.clone()).expect("log"));
    let (serving, queue) = (serving(&log, &clock, &["one"]), Arc::new(Queue::default()));
    let foreman = Foreman::open(log.clone(), queue.clone(), clock.clone()).expect("a foreman");
    Processes { log, clock, serving, queue, foreman }
}

/// A process that serves a project with these views.
fn serving(log: &Arc<dyn Log>, clock: &Arc<ManualClock>, views: &[&str]) -> RemoteJobs {
    let sql = views.iter().fold(
        String::from("CREATE TABLE t (ts TIMESTAMP NOT NULL) WITH (topic = 't', event_time = 'ts');"),
        |sql, view| format!("{sql} CREATE MATERIALIZED VIEW {view} AS SELECT count(*) AS n FROM t;"),
    );
    let catalog: Catalog = anabranch_plan::sql::plan(&[("views.sql".to_owned(), sql)]).expect("a project");
    RemoteJobs::open(log.clone(), &catalog, clock.clone()).expect("jobs")
}

fn request() -> JobRequest {
    JobRequest { kind: JobKind::Batch, views: vec!["one".to_owned()], full: true, from: None, to: None }
}

#[test]
fn a_job_asked_for_in_one_process_runs_in_another_and_is_seen_in_all() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    let job = all.serving.submit(request(), Trigger::Api).expect("taken");
    assert_eq!((job.state, job.full), (JobState::Queued, true));
    all.foreman.work().expect("works");
    assert_eq!(all.queue.get(&job.id).expect("taken on"), job);
    all.queue.set(&job.id, JobState::Running);
    all.foreman.work().expect("works");
    let other = serving(&all.log, &all.clock, &["one"]);
    for seen in [&all.serving, &other] {
        assert_eq!(seen.get(&job.id).expect("known").state, JobState::Running);
    }
    // What hasn't changed isn't told again.
    let end = |log: &Arc<dyn Log>| log.bounds(super::TOPIC).expect("bounds")[&0].end;
    let before = end(&all.log);
    all.foreman.work().expect("works");
    assert_eq!(end(&all.log), before);
}

#[test]
fn a_submit_and_its_cancel_read_in_one_go_run_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    let job = all.serving.submit(request(), Trigger::Api).expect("taken");
    let kept = all.serving.submit(request(), Trigger::Api).expect("taken");
    assert_eq!(all.serving.cancel(&job.id).expect("told").state, JobState::Queued);
    all.foreman.work().expect("works");
    assert_eq!(all.queue.jobs.lock().keys().collect::<Vec<_>>(), [&kept.id]);
    let cancelled = all.serving.get(&job.id).expect("known");
    assert_eq!((cancelled.state, cancelled.ended.is_some()), (JobState::Cancelled, true));
    assert!(matches!(all.serving.cancel(&job.id), Err(JobError::Ended(_))));
    // Nor when all of it is read again.
    let mut second = Foreman::open(all.log.clone(), all.queue.clone(), all.clock.clone()).expect("a foreman");
    second.work().expect("works");
    assert_eq!(all.queue.states(), [JobState::Queued]);
}

#[test]
fn a_cancel_reaches_a_job_that_was_taken_on_and_none_that_has_ended() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    let job = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.foreman.work().expect("works");
    all.queue.set(&job.id, JobState::Running);
    all.serving.cancel(&job.id).expect("told");
    all.foreman.work().expect("works");
    assert_eq!(all.serving.get(&job.id).expect("known").state, JobState::Cancelled);
    let next = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.foreman.work().expect("works");
    // It ends before the cancel is read.
    all.serving.cancel(&next.id).expect("told");
    all.queue.set(&next.id, JobState::Succeeded);
    all.foreman.work().expect("works");
    assert_eq!(all.serving.get(&next.id).expect("known").state, JobState::Succeeded);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_before_it_is_accepted() {
    let dir = tempfile::tempdir().expect("folder");
    let all = processes(dir.path());
    let wrong = [
        JobRequest { from: Some("garbage".to_owned()), ..request() },
        JobRequest { to: Some("2024-13-01T00:00:00Z".to_owned()), ..request() },
        JobRequest {
            from: Some("2024-01-02T00:00:00Z".to_owned()),
            to: Some("2024-01-02T00:00:00Z".to_owned()),
            ..request()
        },
    ];
    for request in wrong {
        assert!(matches!(all.serving.submit(request, Trigger::Api), Err(JobError::Invalid(_))));
    }
    let unknown = JobRequest { views: vec!["two".to_owned()], ..request() };
    assert!(matches!(all.serving.submit(unknown, Trigger::Api), Err(JobError::UnknownView { .. })));
    assert_eq!(all.serving.list().expect("list"), []);
}

#[test]
fn a_request_that_this_process_cannot_take_fails_with_the_reason() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    // Another process serves another project, or checked less.
    let other = serving(&all.log, &all.clock, &["one", "two"]);
    let everything = JobRequest { views: Vec::new(), ..request() };
    let unknown = other.submit(everything, Trigger::Api).expect("taken");
    assert_eq!(unknown.views, ["one", "two"]);
    let garbage = JobRequest { from: Some("garbage".to_owned()), ..request() };
    let job = Job::queued("run-1".to_owned(), garbage.clone(), Trigger::Api, NOW);
    Relay::open(all.log.clone()).expect("open").tell(&[Told::Wanted { job, request: garbage }]).expect("told");
    for _ in 0..2 {
        all.foreman.work().expect("works");
        for (id, why) in [(unknown.id.as_str(), "no view named `two`"), ("run-1", "`from` is `garbage`")] {
            let job = all.serving.get(id).expect("known");
            assert_eq!((job.state, job.ended.is_some()), (JobState::Failed, true));
            assert!(job.error.as_ref().is_some_and(|error| error.contains(why)), "{:?}", job.error);
        }
        // Whoever takes over finds them told.
        all.foreman = Foreman::open(all.log.clone(), all.queue.clone(), all.clock.clone()).expect("a foreman");
    }
}

#[test]
fn what_cannot_be_taken_on_now_is_taken_on_later() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    let running = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.foreman.work().expect("works");
    all.queue.is_full.store(true, Ordering::SeqCst);
    all.serving.cancel(&running.id).expect("told");
    let waiting = all.serving.submit(request(), Trigger::Api).expect("taken");
    for _ in 0..2 {
        assert!(matches!(all.foreman.work(), Err(JobError::History { .. })));
    }
    assert_eq!(all.queue.states(), [JobState::Queued]);
    all.queue.is_full.store(false, Ordering::SeqCst);
    all.foreman.work().expect("works");
    assert_eq!(all.queue.states(), [JobState::Cancelled, JobState::Queued]);
    assert_eq!(all.serving.get(&waiting.id).expect("known").state, JobState::Queued);
}

#[test]
fn whoever_takes_over_takes_on_what_nobody_has_and_nothing_twice() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    let first = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.foreman.work().expect("works");
    all.queue.set(&first.id, JobState::Succeeded);
    all.foreman.work().expect("works");
    let second = all.serving.submit(request(), Trigger::Api).expect("taken");
    // A process that knows nothing of the first.
    let queue = Arc::new(Queue::default());
    let mut foreman = Foreman::open(all.log.clone(), queue.clone(), all.clock.clone()).expect("a foreman");
    foreman.work().expect("works");
    assert_eq!(queue.jobs.lock().keys().collect::<Vec<_>>(), [&second.id]);
    assert_eq!(all.serving.get(&first.id).expect("known").state, JobState::Succeeded);
}

#[test]
fn a_job_whose_process_is_gone_with_its_history_fails_after_a_minute() {
    let dir = tempfile::tempdir().expect("folder");
    let mut all = processes(dir.path());
    let job = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.foreman.work().expect("works");
    all.queue.set(&job.id, JobState::Running);
    all.foreman.work().expect("works");
    let queue = Arc::new(Queue::default());
    let mut foreman = Foreman::open(all.log.clone(), queue.clone(), all.clock.clone()).expect("a foreman");
    for (second, state) in [(0, JobState::Running), (59, JobState::Running), (60, JobState::Failed)] {
        all.clock.set(NOW + second * 1_000_000);
        foreman.work().expect("works");
        assert_eq!(all.serving.get(&job.id).expect("known").state, state);
    }
    // One that is handed over in time goes on.
    let next = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.foreman.work().expect("works");
    foreman.work().expect("works");
    queue.jobs.lock().insert(next.id.clone(), all.queue.get(&next.id).expect("a job"));
    foreman.work().expect("works");
    all.clock.set(NOW + 200 * 1_000_000);
    foreman.work().expect("works");
    assert_eq!(all.serving.get(&next.id).expect("known").state, JobState::Queued);
}

#[test]
fn ids_rise_also_when_the_clock_is_set_back_and_no_two_processes_make_the_same() {
    let dir = tempfile::tempdir().expect("folder");
    let all = processes(dir.path());
    let first = all.serving.submit(request(), Trigger::Api).expect("taken");
    all.clock.set(NOW - 400 * 86_400_000_000);
    let other = serving(&all.log, &all.clock, &["one"]);
    let (second, third) = (all.serving.submit(request(), Trigger::Api), other.submit(request(), Trigger::Api));
    let ids: Vec<String> = all.serving.list().expect("list").into_iter().map(|job| job.id).collect();
    assert_eq!(ids, [third.expect("taken").id, second.expect("taken").id, first.id]);
    let (one, two) = (crate::job::id_after(None, NOW), crate::job::id_after(None, NOW));
    assert_ne!(one, two);
}
