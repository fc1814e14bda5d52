//! The resources, each with its parameters, its response and its handler in one file.

pub mod audit;
pub mod column;
pub mod dashboard;
pub mod health;
pub mod heartbeat;
pub mod ingest;
pub mod jobs;
pub mod metrics;
pub mod openapi;
pub mod output;
pub mod rejects;
pub mod rows;
pub mod stream;
pub mod views;
