use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_exchange::job::relay::{self, RemoteJobs};
use anabranch_exchange::job::{JobKind, JobRequest, JobState, Jobs, Trigger};
use anabranch_exchange::version::Versions;
use anabranch_log::Log;
use anabranch_log::kafka::group::Member;
use tokio::runtime::Runtime;

use super::{ArchiveMember, Context, JobsMember};
use crate::archive::ArchiveSettings;
use crate::fixture::{Source, catalog, table, view};
use crate::layer::BatchSettings;

fn context(data: &Path, source: &Source) -> Context {
    let archive = ArchiveSettings { interval: Duration::from_millis(1), ..ArchiveSettings::default() };
    Context {
        settings: BatchSettings { archive, ..BatchSettings::default() },
        data: data.to_owned(),
        catalog: Arc::new(catalog(vec![view("ever", Arc::new(table()), None)])),
        log: source.log.clone(),
        rejects: source.rejects.clone(),
        clock: source.clock.clone(),
    }
}

fn wait_until(mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain");
        std::thread::yield_now();
    }
}

#[test]
fn a_member_archives_the_tables_of_which_it_has_the_first_partition() {
    let (dir, runtime) = (tempfile::tempdir().expect("directory"), Runtime::new().expect("runtime"));
    let _entered = runtime.enter();
    let source = crate::fixture::source(dir.path());
    source.append(&[("a", Some(1), 0), ("b", Some(2), 0), ("a", Some(3), 0)]);
    let mut member = ArchiveMember::new(context(dir.path(), &source), Versions::default());
    let archivers = member.archivers();
    member.gain("events", 1);
    assert!(archivers().is_empty());
    member.gain("events", 0);
    assert_eq!(archivers()[0].table().name, "events");
    wait_until(|| member.tick() == [("events".to_owned(), [(0, 2), (1, 1)].into())]);
    member.give_up("events", 1, false);
    assert_eq!(archivers().len(), 1);
    member.give_up("events", 0, false);
    assert!(archivers().is_empty() && member.tick().is_empty());
}

#[test]
fn a_member_runs_what_is_asked_for_in_the_jobs_topic_while_it_has_it() {
    let (dir, runtime) = (tempfile::tempdir().expect("directory"), Runtime::new().expect("runtime"));
    let _entered = runtime.enter();
    let source = crate::fixture::source(dir.path());
    source.append(&[("a", Some(1), 0)]);
    source.log.create_topic(relay::TOPIC, 1).expect("topic");
    let context = context(dir.path(), &source);
    let jobs = RemoteJobs::open(source.log.clone(), &context.catalog, source.clock.clone()).expect("jobs");
    let request = JobRequest { kind: JobKind::Batch, views: Vec::new(), full: false, from: None, to: None };
    let job = jobs.submit(request, Trigger::Cli).expect("asked for");

    let mut member = JobsMember::new(context);
    let queue = member.queue();
    assert!(queue().is_none());
    member.gain(relay::TOPIC, 0);
    wait_until(|| !jobs.get(&job.id).expect("job").is_open());
    let job = jobs.get(&job.id).expect("job");
    assert_eq!((job.state, job.versions), (JobState::Succeeded, [("ever".to_owned(), 1)].into()));
    assert!(queue().is_some_and(|queue| queue.get(&job.id).is_ok()));
    member.give_up(relay::TOPIC, 0, false);
    assert!(queue().is_none());
}
