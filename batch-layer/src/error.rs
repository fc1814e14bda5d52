//! What can go wrong in the batch layer.

use std::any::Any;
use std::path::PathBuf;

use anabranch_engine::edition::OtherBasis;
use anabranch_log::LogError;
use anabranch_log::position::PositionError;
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_store::table::TableError;
use polars::prelude::PolarsError;

use crate::day::day_name;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A table can't be read or written, or was overtaken by another writer.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log returned batches that don't join: a fault of the log.
    #[error("topic `{topic}` was read with a gap or twice")]
    Position {
        /// The topic.
        topic: String,
        /// Where.
        #[source]
        source: PositionError,
    },
    /// Archiving has stopped, because events are lost, or another definition is in force: see the cause, then restart.
    #[error("archiving of topic `{topic}` has stopped: {why}")]
    Stopped {
        /// The topic.
        topic: String,
        /// Why.
        why: String,
    },
    /// The archive can't go on with the table's definition: see the way out.
    #[error("table `{}`: {_0}", _0.table)]
    Definition(#[from] OtherBasis),
    /// The archive can't be rebuilt by the table's definition.
    #[error(
        "table `{}`: its {} is {} now, and rows stay that are filed by {}, as the log no longer holds their records: give the table \
         another name, and so an archive of its own",
        _0.table, _0.what, _0.new, _0.old
    )]
    Unfiled(OtherBasis),
    /// Another process has changed meanwhile how the archive's table is read.
    #[error("archive {}: another process has rebuilt it meanwhile, or declared another definition: try again", archive.display())]
    Rebuilt {
        /// The archive.
        archive: PathBuf,
    },
    /// A file of an archive has events of other days than its folder says.
    #[error(
        "view `{view}`: events of {} to {} are filed by another program under {} or a day before it, or after it: put them into the \
         folders of their days",
        format_timestamp(*from), format_timestamp(*to), day_name(*day)
    )]
    Unordered {
        /// The view.
        view: String,
        /// The day at which that was found.
        day: i64,
        /// The first event time that is concerned.
        from: Micros,
        /// The last.
        to: Micros,
    },
    /// The log doesn't hand out records that it says it has.
    #[error("topic `{topic}` partition {partition} doesn't come to offset {end}: {reached} is reached")]
    Stalled {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Where it should end.
        end: u64,
        /// Where it does.
        reached: u64,
    },
    /// A file can't be written or read.
    #[error("{step} {path} failed")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file of an archive isn't what was written.
    #[error(
        "table `{table}`: {} is damaged: {found}; `anabranch archive rebuild {table}` archives anew what the log still holds",
        path.display()
    )]
    Damaged {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// Columns can't be put into a Parquet file or taken out of one.
    #[error("{step} {path} failed")]
    Parquet {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A query failed.
    #[error("{step} of view `{view}` failed")]
    Query {
        /// What was computed.
        step: &'static str,
        /// The view.
        view: String,
        /// Why it failed.
        #[source]
        source: PolarsError,
    },
    /// Rejected records can't be recorded.
    #[error("recording the rejected records of topic `{topic}` failed")]
    Rejects {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: LogError,
    },
    /// A job that was asked for earlier names a view that the project has no more.
    #[error("the project has no view `{0}`")]
    UnknownView(String),
    /// The run was asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A computation ended without a result: it panicked.
    #[error("{what} panicked: {why}")]
    Panicked {
        /// What was done.
        what: &'static str,
        /// What the panic said.
        why: String,
    },
    /// A failpoint is set here.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

impl BatchError {
    /// Of a computation that panicked.
    pub(crate) fn panicked(what: &'static str, panic: &(dyn Any + Send)) -> Self {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Self::Panicked { what, why: said.unwrap_or("it said nothing").to_owned() }
    }

    /// Whether the same might work a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            // Another writer was faster: what it published is the start of the next attempt.
            Self::Table(TableError::Superseded { .. }) => true,
            Self::Table(error) => error.is_transient(),
            Self::Log(error) | Self::Rejects { source: error, .. } => {
                matches!(error, LogError::Backend { .. } | LogError::StorageFull { .. })
            }
            Self::File { .. } | Self::Rebuilt { .. } => true,
            Self::Query { source, .. } => matches!(source, PolarsError::IO { .. }),
            _ => false,
        }
    }

    /// The error with its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Runs blocking work where it doesn't hold up anything else.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, BatchError> + Send + 'static,
) -> Result<T, BatchError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => Err(BatchError::panicked(what, &*panic)),
        Err(_) => Err(BatchError::Cancelled),
    })
}
