//! Jobs asked for in one process and done in another: through the topic [`TOPIC`].
//!
//! Whoever serves appends requests; the process that runs jobs appends what becomes of them. Everybody reads the topic to
//! its end before answering, so all tell the same.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anabranch_log::clock::{Clock, has_passed};
use anabranch_log::position::{Offset, Positions};
use anabranch_log::{Append, Log, LogError, Payloads, ReadLimit};
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::Catalog;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Job, JobError, JobRequest, JobState, Jobs, Trigger};

/// The topic of requests and of what became of them. It has one partition.
pub const TOPIC: &str = "_jobs";

/// How many jobs that have ended are remembered.
const KEPT: usize = 1_000;

/// For how long the process that has a job may take to hand it over, once another runs the jobs.
const MISSED: Micros = 60_000_000;

/// A record of the topic.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Somebody wants a job.
    Wanted {
        /// The job as it waits.
        job: Job,
        /// What it is to do.
        request: JobRequest,
    },
    /// Somebody wants a job to stop.
    Cancel(String),
    /// How a job stands.
    Stands(Job),
}

/// The topic, read so far.
pub struct Relay {
    log: Arc<dyn Log>,
    next: Offset,
}

fn failed(step: &'static str) -> impl FnOnce(LogError) -> JobError {
    move |source| JobError::Log { step, source }
}

impl Relay {
    /// The topic, from its start.
    pub fn open(log: Arc<dyn Log>) -> Result<Self, JobError> {
        log.create_topic(TOPIC, 1).map_err(failed("opened"))?;
        Ok(Self { log, next: 0 })
    }

    /// What was appended since; after a failure all of it is read again.
    pub fn read(&mut self) -> Result<Vec<Told>, JobError> {
        let held = self.log.bounds(TOPIC).map_err(failed("read"))?.remove(&0).unwrap_or(0..0);
        let mut next = self.next.max(held.start);
        let mut told = Vec::new();
        if next < held.end {
            let mut reader = self.log.reader(TOPIC, &Positions::from([(0, next)])).map_err(failed("read"))?;
            let limit = ReadLimit { records: 10_000, bytes: 16 << 20 };
            while next < held.end
                && let Some(batch) = reader.poll(limit, Duration::ZERO).map_err(failed("read"))?
            {
                for record in batch.payloads.iter() {
                    match serde_json::from_slice(record) {
                        Ok(record) => told.push(record),
                        Err(error) => tracing::warn!(%error, "a record of the jobs' topic can't be understood"),
                    }
                }
                next = batch.coverage.end;
            }
        }
        self.next = next;
        Ok(told)
    }

    /// Appends records.
    pub fn tell(&self, told: &[Told]) -> Result<(), JobError> {
        let records: Payloads = told.iter().map(|told| serde_json::to_vec(told).unwrap_or_default()).collect();
        let appended = self.log.append(TOPIC, Append { parts: vec![(0, records)], ..Append::default() });
        appended.map(drop).map_err(failed("written"))
    }
}

/// Jobs that another process does.
pub struct RemoteJobs {
    state: Mutex<State>,
    views: Vec<String>,
    clock: Arc<dyn Clock>,
}

struct State {
    relay: Relay,
    /// By id, which rises with time.
    jobs: BTreeMap<String, Job>,
}

impl RemoteJobs {
    /// The jobs of a platform whose batch layer is another process.
    pub fn open(log: Arc<dyn Log>, catalog: &Catalog, clock: Arc<dyn Clock>) -> Result<Self, JobError> {
        let state = State { relay: Relay::open(log)?, jobs: BTreeMap::new() };
        Ok(Self { state: Mutex::new(state), views: catalog.kept_names().cloned().collect(), clock })
    }

    fn up_to_date<T>(&self, use_it: impl FnOnce(&mut State) -> Result<T, JobError>) -> Result<T, JobError> {
        let mut state = self.state.lock();
        for told in state.relay.read()? {
            match told {
                Told::Wanted { job, .. } => {
                    state.jobs.entry(job.id.clone()).or_insert(job);
                }
                Told::Stands(job) => {
                    state.jobs.insert(job.id.clone(), job);
                }
                Told::Cancel(_) => {}
            }
        }
        prune(&mut state.jobs);
        use_it(&mut state)
    }
}

impl Jobs for RemoteJobs {
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        let request = request.check(self.views.iter())?;
        let now = self.clock.now();
        self.up_to_date(|state| {
            let id = super::id_after(state.jobs.keys().next_back(), now);
            let job = Job::queued(id, request.clone(), trigger, now);
            state.relay.tell(&[Told::Wanted { job: job.clone(), request }])?;
            Ok(job)
        })
    }

    fn list(&self) -> Result<Vec<Job>, JobError> {
        self.up_to_date(|state| Ok(state.jobs.values().rev().cloned().collect()))
    }

    fn get(&self, id: &str) -> Result<Job, JobError> {
        self.up_to_date(|state| state.jobs.get(id).cloned().ok_or_else(|| JobError::UnknownJob(id.to_owned())))
    }

    fn cancel(&self, id: &str) -> Result<Job, JobError> {
        self.up_to_date(|state| {
            let job = state.jobs.get(id).cloned().ok_or_else(|| JobError::UnknownJob(id.to_owned()))?;
            if !job.is_open() {
                return Err(JobError::Ended(id.to_owned()));
            }
            state.relay.tell(&[Told::Cancel(id.to_owned())])?;
            Ok(job)
        })
    }
}

/// Forgets the oldest jobs that have ended.
fn prune(jobs: &mut BTreeMap<String, Job>) {
    let surplus = jobs.len().saturating_sub(KEPT);
    let ended = jobs.values().filter(|job| !job.is_open());
    let oldest: Vec<String> = ended.take(surplus).map(|job| job.id.clone()).collect();
    oldest.iter().for_each(|id| drop(jobs.remove(id)));
}

/// Does what is asked for in the topic, with the jobs of this process.
pub struct Foreman {
    relay: Relay,
    jobs: Arc<dyn Jobs>,
    clock: Arc<dyn Clock>,
    /// What was read and isn't dealt with.
    read: VecDeque<Told>,
    /// The requests that nobody has taken on, by the job's id.
    wanted: BTreeMap<String, Wanted>,
    /// How each job of this process, and at first of those before it, stood when it was last told.
    told: BTreeMap<String, Job>,
    /// Open jobs that this process doesn't have, each with when that was found.
    missing: BTreeMap<String, (Job, Micros)>,
}

/// A request that no process has taken on.
struct Wanted {
    job: Job,
    request: JobRequest,
    is_cancelled: bool,
}

impl Foreman {
    /// A foreman of these jobs.
    pub fn open(log: Arc<dyn Log>, jobs: Arc<dyn Jobs>, clock: Arc<dyn Clock>) -> Result<Self, JobError> {
        let (relay, read) = (Relay::open(log)?, VecDeque::new());
        let (wanted, told, missing) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { relay, jobs, clock, read, wanted, told, missing })
    }

    /// Takes on what was asked for since, and tells what has changed. To be called every moment. What fails is tried
    /// again with the next call.
    pub fn work(&mut self) -> Result<(), JobError> {
        self.read.extend(self.relay.read()?);
        while let Some(told) = self.read.front() {
            match told.clone() {
                Told::Wanted { job, request } => {
                    self.wanted.insert(job.id.clone(), Wanted { job, request, is_cancelled: false });
                }
                Told::Stands(job) => {
                    self.wanted.remove(&job.id);
                    self.missing.remove(&job.id);
                    if job.is_open() {
                        self.missing.insert(job.id.clone(), (job.clone(), self.clock.now()));
                    }
                    self.told.insert(job.id.clone(), job);
                }
                Told::Cancel(id) => match self.wanted.get_mut(&id) {
                    Some(wanted) => wanted.is_cancelled = true,
                    None => self.cancel(&id)?,
                },
            }
            self.read.pop_front();
        }
        // Only now is it known which of the requests were taken back, or taken on before.
        while let Some((id, Wanted { job, request, is_cancelled })) = self.wanted.first_key_value() {
            let is_known = self.jobs.get(id).is_ok();
            let refused = if *is_cancelled {
                self.cancel(id)?;
                (!is_known).then_some((JobState::Cancelled, None))
            } else if is_known {
                None
            } else {
                match self.jobs.submit_as(id, request.clone(), job.trigger) {
                    Ok(_) => None,
                    Err(error @ (JobError::History { .. } | JobError::Log { .. })) => return Err(error),
                    // The process that accepted it has checked it, but maybe by another project than ours.
                    Err(error) => Some((JobState::Failed, Some(error.to_string()))),
                }
            };
            if let Some((state, error)) = refused {
                self.end(job.clone(), state, error)?;
            }
            self.wanted.pop_first();
        }
        let jobs: BTreeMap<String, Job> = self.jobs.list()?.into_iter().map(|job| (job.id.clone(), job)).collect();
        let changed = jobs.values().filter(|job| self.told.get(&job.id) != Some(job));
        let changed: Vec<Told> = changed.cloned().map(Told::Stands).collect();
        if !changed.is_empty() {
            self.relay.tell(&changed)?;
        }
        self.told = jobs;
        self.missing.retain(|id, _| !self.told.contains_key(id));
        let now = self.clock.now();
        while let Some((id, (job, _))) = self.missing.iter().find(|(_, (_, since))| has_passed(*since, now, MISSED)) {
            let (id, job) = (id.clone(), job.clone());
            let why = "the process that had it is gone, and its history of runs with it: ask for it again";
            self.end(job, JobState::Failed, Some(why.to_owned()))?;
            self.missing.remove(&id);
        }
        Ok(())
    }

    /// Stops a job, if it is one of this process's and hasn't ended.
    fn cancel(&self, id: &str) -> Result<(), JobError> {
        match self.jobs.cancel(id) {
            Ok(_) | Err(JobError::Ended(_) | JobError::UnknownJob(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells that a job has ended which this process doesn't have.
    fn end(&self, job: Job, state: JobState, error: Option<String>) -> Result<(), JobError> {
        let ended = Some(format_timestamp(self.clock.now()));
        self.relay.tell(&[Told::Stands(Job { state, error, ended, ..job })])
    }
}
