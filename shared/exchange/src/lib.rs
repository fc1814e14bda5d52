//! What layers tell each other: snapshots, versions, jobs, audits, how tables are read, what commits note; and what comes in: events and rejects.

pub mod audit;
pub mod histogram;
pub mod ingest;
pub mod job;
pub mod note;
pub mod reading;
pub mod reject;
pub mod snapshot;
pub mod version;
