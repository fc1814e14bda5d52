//! Jobs: batch runs as the API shows them.

pub mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anabranch_log::LogError;
use anabranch_plan::time::{Micros, format_timestamp, parse_timestamp};
use serde::{Deserialize, Serialize};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The kind of job.
    pub kind: JobKind,
    /// The views to recompute; all of them if none is named.
    #[serde(default)]
    pub views: Vec<String>,
    /// Recompute everything, not only what new events touch.
    #[serde(default)]
    pub full: bool,
    /// Event times from here on in any case (RFC 3339).
    #[serde(default)]
    pub from: Option<String>,
    /// Event times before this in any case (RFC 3339).
    #[serde(default)]
    pub to: Option<String>,
}

impl JobRequest {
    /// The request with every view by name and none twice, or why it can't be taken, where these are the views.
    pub fn check<'a>(self, existing: impl Iterator<Item = &'a String> + Clone) -> Result<Self, JobError> {
        let unknown = self.views.iter().find(|&view| !existing.clone().any(|name| name == view));
        if let Some(name) = unknown {
            return Err(JobError::UnknownView { name: name.clone(), existing: existing.cloned().collect() });
        }
        times(self.from.as_deref(), self.to.as_deref())?;
        let mut views = if self.views.is_empty() { existing.cloned().collect() } else { self.views };
        let mut seen = BTreeSet::new();
        views.retain(|view| seen.insert(view.clone()));
        Ok(Self { views, ..self })
    }
}

/// The event times from one to another; all if neither is given.
fn times(from: Option<&str>, to: Option<&str>) -> Result<Option<Range<Micros>>, JobError> {
    let read = |name: &str, text: &str| {
        parse_timestamp(text).ok_or_else(|| {
            JobError::Invalid(format!("`{name}` is `{text}`, but a time such as 2024-01-15T10:30:00Z is wanted"))
        })
    };
    let from = from.map(|text| read("from", text)).transpose()?;
    let to = to.map(|text| read("to", text)).transpose()?;
    let times = from.unwrap_or(Micros::MIN)..to.unwrap_or(Micros::MAX);
    if times.is_empty() {
        return Err(JobError::Invalid("`from` has to be earlier than `to`".into()));
    }
    Ok((from.is_some() || to.is_some()).then_some(times))
}

/// The kinds of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// An exact recomputation from the archive, published as a new version of each view.
    Batch,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// It is at work.
    Running,
    /// It has published what it was to publish.
    Succeeded,
    /// It ended with an error; nothing of the view that failed was published.
    Failed,
    /// It was stopped on request, or by the end of the process.
    Cancelled,
}

/// Who asked for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// The view's cron schedule.
    Schedule,
    /// The API.
    Api,
    /// The command line.
    Cli,
}

/// A job. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: JobKind,
    /// The views that it recomputes.
    pub views: Vec<String>,
    /// Everything, not only what new events touch.
    #[serde(default)]
    pub full: bool,
    /// Event times from here on in any case.
    #[serde(default)]
    pub from: Option<String>,
    /// Event times before this in any case.
    #[serde(default)]
    pub to: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// Who asked for it.
    pub trigger: Trigger,
    /// The time of the schedule that it is for.
    #[serde(default)]
    pub scheduled: Option<String>,
    /// How often it has begun, counting those times that the process didn't live to end.
    #[serde(default)]
    pub attempts: u32,
    /// How much of it is done, from 0 to 1.
    pub progress: f64,
    /// When it was asked for.
    pub queued: String,
    /// When it started.
    pub started: Option<String>,
    /// When it ended.
    pub ended: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The version of each view that it published.
    pub versions: BTreeMap<String, u64>,
}

impl Job {
    /// A job as it waits. The request has been checked.
    pub fn queued(id: String, request: JobRequest, trigger: Trigger, now: Micros) -> Self {
        let JobRequest { kind, views, full, from, to } = request;
        Self {
            id,
            kind,
            views,
            full,
            from,
            to,
            state: JobState::Queued,
            trigger,
            scheduled: None,
            attempts: 0,
            progress: 0.0,
            queued: format_timestamp(now),
            started: None,
            ended: None,
            error: None,
            versions: BTreeMap::new(),
        }
    }

    /// The event times that it recomputes in any case.
    pub fn times(&self) -> Result<Option<Range<Micros>>, JobError> {
        times(self.from.as_deref(), self.to.as_deref())
    }

    /// Whether it waits or is at work.
    pub fn is_open(&self) -> bool {
        matches!(self.state, JobState::Queued | JobState::Running)
    }
}

/// Why a job can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// There is no such view.
    #[error("no view named `{name}`; there are {existing:?}")]
    UnknownView {
        /// The name asked for.
        name: String,
        /// The views that exist.
        existing: Vec<String>,
    },
    /// There is no such job.
    #[error("no job with id `{0}`")]
    UnknownJob(String),
    /// The request makes no sense, or asks for what can't be done.
    #[error("{0}")]
    Invalid(String),
    /// The job has ended already.
    #[error("job `{0}` has ended")]
    Ended(String),
    /// The history of runs can't be read or written.
    #[error("the history of runs can't be {step}")]
    History {
        /// `opened` or `written`.
        step: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The topic of jobs can't be read or written.
    #[error("the topic of jobs can't be {step}")]
    Log {
        /// `opened`, `read` or `written`.
        step: &'static str,
        /// Why.
        #[source]
        source: LogError,
    },
}

/// Whether something can't be written as there is no room.
pub fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), QuotaExceeded | StorageFull)
}

/// The jobs of a platform.
pub trait Jobs: Send + Sync {
    /// Queues a job and returns it.
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError>;

    /// Queues a job that has an id already.
    fn submit_as(&self, id: &str, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        let _ = (request, trigger);
        Err(JobError::Invalid(format!("job `{id}` is for another process")))
    }

    /// All jobs that are remembered, newest first.
    fn list(&self) -> Result<Vec<Job>, JobError>;

    /// One job.
    fn get(&self, id: &str) -> Result<Job, JobError>;

    /// Asks a job to stop; it stops before it publishes anything more.
    fn cancel(&self, id: &str) -> Result<Job, JobError>;
}

/// A new id that sorts behind another one: the time, or what comes after the other's if the clock was set back, and then
/// what tells it from those of other processes.
pub fn id_after(newest: Option<&String>, now: Micros) -> String {
    let number = |id: &String| u64::from_str_radix(id.split('-').nth(1)?, 16).ok();
    let next = newest.and_then(number).map_or(0, |newest| newest.saturating_add(1));
    let unique = uuid::Uuid::new_v4().as_u128() as u32;
    format!("run-{:016x}-{unique:08x}", next.max(now.max(0).cast_unsigned()))
}
