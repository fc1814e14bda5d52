//! Jobs: batch runs as the API shows them.

pub mod relay;

use std::collections::BTreeMap;

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
    /// Only event times from here on (RFC 3339).
    #[serde(default)]
    pub from: Option<String>,
    /// Only event times before this (RFC 3339).
    #[serde(default)]
    pub to: Option<String>,
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
    /// Where it stands.
    pub state: JobState,
    /// Who asked for it.
    pub trigger: Trigger,
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
        /// `read` or `written`.
        step: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The jobs of a platform.
pub trait Jobs: Send + Sync {
    /// Queues a job and returns it.
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError>;

    /// Queues a job that has an id already.
    fn submit_as(&self, id: Option<&str>, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        match id {
            None => self.submit(request, trigger),
            Some(id) => Err(JobError::Invalid(format!("job `{id}` is for another process"))),
        }
    }

    /// All jobs that are remembered, newest first.
    fn list(&self) -> Result<Vec<Job>, JobError>;

    /// One job.
    fn get(&self, id: &str) -> Result<Job, JobError>;

    /// Asks a job to stop; it stops before it publishes anything more.
    fn cancel(&self, id: &str) -> Result<Job, JobError>;
}

/// The id of a job by its number, which is the time in microseconds unless that is taken: ids sort by time.
pub fn id(number: u64) -> String {
    format!("run-{number:016x}")
}
