//! What can go wrong in the speed layer.

use std::any::Any;
use std::error::Error;

use anabranch_log::LogError;
use anabranch_log::position::{Coverage, PositionError, TopicPartition};
use polars::prelude::PolarsError;

/// Why the speed layer can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// An expression or a merge failed; the view can't go on.
    #[error("view `{view}`: {step} failed")]
    Evaluate {
        /// The view.
        view: String,
        /// What was done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: PolarsError,
    },
    /// Records could not be turned into columns.
    #[error("table `{table}`: turning records into columns failed")]
    Columns {
        /// The table.
        table: String,
        /// Why it failed.
        #[source]
        source: PolarsError,
    },
    /// The log failed, or no longer holds what is needed.
    #[error("table `{table}`: reading the log failed")]
    Log {
        /// The table.
        table: String,
        /// Why it failed.
        #[source]
        source: LogError,
    },
    /// Tables that are joined have other numbers of partitions, so that they can't be shared out.
    #[error(
        "tables `{unit}` can't be shared out among processes, as their topics have other numbers of partitions: {partitions}; \
         `anabranch views partitions` raises one"
    )]
    Unlike {
        /// The tables.
        unit: String,
        /// How many each topic has.
        partitions: String,
    },
    /// An output's records couldn't be stored.
    #[error("view `{view}`: writing topic `{topic}` failed")]
    Output {
        /// The view.
        view: String,
        /// The topic that it writes.
        topic: String,
        /// Why it failed.
        #[source]
        source: LogError,
    },
    /// Late events couldn't be stored where the view wants them.
    #[error("view `{view}`: writing late events failed")]
    Late {
        /// The view.
        view: String,
        /// Why it failed.
        #[source]
        source: LogError,
    },
    /// Records would have been counted twice, or skipped.
    #[error("view `{view}`: records don't join what is covered")]
    Position {
        /// The view.
        view: String,
        /// What doesn't join.
        #[source]
        source: PositionError<TopicPartition>,
    },
    /// A range of the log was read again and did not hold what it had held.
    #[error("table `{table}`: the log did not deliver {missing} again")]
    Unread {
        /// The table.
        table: String,
        /// What was not read.
        missing: Coverage<TopicPartition>,
    },
    /// A checkpoint could not be stored or read.
    #[error("checkpoint `{path}`: {step} failed")]
    Checkpoint {
        /// Where it is, or where those of its table are.
        path: String,
        /// What was done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Box<object_store::Error>,
    },
    /// Somebody else has stored a checkpoint of the same name.
    #[error(
        "checkpoint `{path}`: another process has stored one there, which is left as it is; give each project a place of \
         its own, such as `s3://bucket/project`"
    )]
    CheckpointTaken {
        /// Where it is.
        path: String,
    },
    /// A thread could not be started.
    #[error("starting the thread `{name}` failed")]
    Thread {
        /// Its name.
        name: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl SpeedError {
    /// Whether evaluating a view has failed, rather than what it is evaluated from.
    pub(crate) fn is_of_view(&self) -> bool {
        matches!(self, Self::Evaluate { .. } | Self::Position { .. } | Self::Late { .. })
    }

    /// Whether the same may work a little later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Checkpoint { .. } | Self::Log { source: LogError::Backend { .. }, .. })
    }
}

/// Why a source, or a view, has stopped for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stop {
    /// In words.
    pub reason: String,
    /// What retention has taken of what it wants.
    pub lost: Coverage<TopicPartition>,
    /// Whether the log isn't the one that it had read.
    pub other_log: bool,
}

impl Stop {
    /// Of a thread that panicked.
    pub fn panicked(panic: &(dyn Any + Send)) -> Self {
        Self::because(panicked(panic))
    }

    /// For a reason in words.
    pub fn because(reason: String) -> Self {
        Self { reason, lost: Coverage::new(), other_log: false }
    }

    /// Of one view, in words that don't name it again.
    pub fn of_view(view: &str, error: SpeedError) -> Self {
        let stop = Self::from(error);
        let reason = stop.reason.strip_prefix(&format!("view `{view}`: ")).map(str::to_owned);
        Self { reason: reason.unwrap_or(stop.reason), ..stop }
    }
}

impl From<SpeedError> for Stop {
    fn from(error: SpeedError) -> Self {
        let lost = match &error {
            SpeedError::Log { source, .. } => source.lost(),
            _ => Coverage::new(),
        };
        let other_log = matches!(&error, SpeedError::Log { source: LogError::OtherLog { .. }, .. });
        Self { reason: reason(&error), lost, other_log }
    }
}

/// An error and its causes in one line.
pub(crate) fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some repeat their causes.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// What a thread that panicked said.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a fault in the program: {}", text.unwrap_or("unknown"))
}
