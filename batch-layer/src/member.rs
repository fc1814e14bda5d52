//! The batch layer as a member of consumer groups: one shares out the tables to those who archive, and one lets a single process
//! at a time run the jobs.

mod archive;
mod jobs;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use anabranch_exchange::reject::RejectLog;
use anabranch_log::Log;
use anabranch_log::clock::Clock;
use anabranch_plan::view::Catalog;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::archive::ArchiveMember;
pub use self::jobs::JobsMember;
use crate::layer::BatchSettings;

/// What members work with.
#[derive(Clone)]
pub struct Context {
    /// How they work.
    pub settings: BatchSettings,
    /// Where archives, versions and history are.
    pub data: PathBuf,
    /// The tables and views.
    pub catalog: Arc<Catalog>,
    /// Where events come from, and jobs.
    pub log: Arc<dyn Log>,
    /// Where records are recorded that are no events.
    pub rejects: Arc<RejectLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// Something that a task of the runtime does until it is stopped.
struct Task<T> {
    about: T,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl<T> Task<T> {
    fn end(self, runtime: &Handle) {
        self.stop.cancel();
        if let Err(error) = runtime.block_on(self.task) {
            tracing::error!(%error, "a task has failed");
        }
    }
}
