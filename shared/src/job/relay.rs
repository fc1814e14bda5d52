//! Jobs asked for in one process and done in another: through the topic [`TOPIC`].
//!
//! Whoever serves appends requests; the process that runs jobs appends what becomes of them. Everybody reads the topic to
//! its end before answering, so all tell the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Job, JobError, JobRequest, JobState, Jobs, Trigger};
use crate::clock::{Clock, format_timestamp};
use crate::log::{Append, Log, LogError, Payloads, ReadLimit};
use crate::position::{Offset, Positions};
use crate::view::Catalog;

/// The topic of requests and of what became of them. It has one partition.
pub const TOPIC: &str = "_jobs";

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
    move |error| JobError::History { step, source: std::io::Error::other(error) }
}

impl Relay {
    /// The topic, from its start.
    pub fn open(log: Arc<dyn Log>) -> Result<Self, JobError> {
        log.create_topic(TOPIC, 1).map_err(failed("opened"))?;
        Ok(Self { log, next: 0 })
    }

    /// What was appended since.
    pub fn read(&mut self) -> Result<Vec<Told>, JobError> {
        let held = self.log.bounds(TOPIC).map_err(failed("read"))?.remove(&0).unwrap_or(0..0);
        self.next = self.next.max(held.start);
        let mut told = Vec::new();
        if self.next < held.end {
            let mut reader = self.log.reader(TOPIC, &Positions::from([(0, self.next)])).map_err(failed("read"))?;
            let limit = ReadLimit { records: 10_000, bytes: 16 << 20 };
            while self.next < held.end
                && let Some(batch) = reader.poll(limit, Duration::ZERO).map_err(failed("read"))?
            {
                for record in batch.payloads.iter() {
                    match serde_json::from_slice(record) {
                        Ok(record) => told.push(record),
                        Err(error) => tracing::warn!(%error, "a record of the jobs' topic can't be understood"),
                    }
                }
                self.next = batch.coverage.end;
            }
        }
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
        Ok(Self { state: Mutex::new(state), views: catalog.views.keys().cloned().collect(), clock })
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
        use_it(&mut state)
    }
}

impl Jobs for RemoteJobs {
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        if let Some(name) = request.views.iter().find(|name| !self.views.contains(name)) {
            return Err(JobError::UnknownView { name: name.clone(), existing: self.views.clone() });
        }
        let views = if request.views.is_empty() { self.views.clone() } else { request.views.clone() };
        let now = self.clock.now();
        self.up_to_date(|state| {
            let mut number = now.max(0).unsigned_abs();
            while state.jobs.contains_key(&super::id(number)) {
                number += 1;
            }
            let job = Job {
                id: super::id(number),
                kind: request.kind,
                views,
                state: JobState::Queued,
                trigger,
                progress: 0.0,
                queued: format_timestamp(now),
                started: None,
                ended: None,
                error: None,
                versions: BTreeMap::new(),
            };
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
            if !matches!(job.state, JobState::Queued | JobState::Running) {
                return Err(JobError::Ended(id.to_owned()));
            }
            state.relay.tell(&[Told::Cancel(id.to_owned())])?;
            Ok(job)
        })
    }
}

/// Does what is asked for in the topic, with the jobs of this process.
pub struct Foreman {
    relay: Relay,
    jobs: Arc<dyn Jobs>,
    /// The requests that nobody has taken on, by the job's id.
    wanted: BTreeMap<String, (JobRequest, Trigger)>,
    /// How each job stood when it was last told.
    told: BTreeMap<String, Job>,
}

impl Foreman {
    /// A foreman of these jobs.
    pub fn open(log: Arc<dyn Log>, jobs: Arc<dyn Jobs>) -> Result<Self, JobError> {
        Ok(Self { relay: Relay::open(log)?, jobs, wanted: BTreeMap::new(), told: BTreeMap::new() })
    }

    /// Takes on what was asked for since, and tells what has changed. To be called every moment.
    pub fn work(&mut self) -> Result<(), JobError> {
        for told in self.relay.read()? {
            match told {
                Told::Wanted { job, request } => {
                    self.wanted.insert(job.id, (request, job.trigger));
                }
                Told::Stands(job) => {
                    self.wanted.remove(&job.id);
                    self.told.insert(job.id.clone(), job);
                }
                Told::Cancel(id) => match self.jobs.cancel(&id) {
                    Ok(_) | Err(JobError::Ended(_) | JobError::UnknownJob(_)) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        while let Some((id, (request, trigger))) = self.wanted.pop_first() {
            if self.jobs.get(&id).is_ok() {
                continue;
            }
            if let Err(error) = self.jobs.submit_as(Some(&id), request, trigger) {
                // Whoever asked has checked the request, so this is about this process.
                tracing::warn!(job = id, %error, "a job can't be taken on");
            }
        }
        let changed: Vec<Job> =
            self.jobs.list()?.into_iter().filter(|job| self.told.get(&job.id) != Some(job)).collect();
        if !changed.is_empty() {
            self.relay.tell(&changed.iter().cloned().map(Told::Stands).collect::<Vec<_>>())?;
            self.told.extend(changed.into_iter().map(|job| (job.id.clone(), job)));
        }
        Ok(())
    }
}
