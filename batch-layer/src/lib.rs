//! The batch layer: archives every event, recomputes views exactly, publishes versions, keeps schedules and history.
//!
//! Below the data folder: `archive/<table>/` and `views/<view>/` are Delta tables, `runs/` is the history of runs.
//!
//! This crate knows neither the speed layer nor serving.

pub mod archive;
pub mod day;
pub mod error;
#[cfg(test)]
mod fixture;
mod history;
pub mod jobs;
mod layer;
pub mod member;
mod metrics;
pub mod recompute;
pub mod scan;
pub mod schedule;

pub use error::BatchError;
pub use layer::{BatchLayer, BatchSettings, OpenError};
pub use metrics::{JobMetrics, ScheduleMetrics};
