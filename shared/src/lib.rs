//! The vocabulary and contracts that every layer speaks: events and their schemas, SQL views and their plan, the row
//! transform, windows, aggregates, log positions, the event log, table commits and configuration.
//!
//! This crate knows no sibling, no HTTP and no DuckDB.

mod aggregate;
pub mod audit;
pub mod clock;
pub mod columnar;
pub mod config;
pub mod data_type;
pub mod decode;
pub mod edition;
pub mod expr;
mod fragment;
mod frame;
pub mod group;
pub mod histogram;
pub mod ingest;
pub mod job;
pub mod log;
pub mod partial;
pub mod partitioner;
pub mod position;
pub mod project;
pub mod reject;
pub mod render;
pub mod row;
pub mod schedule;
pub mod schema;
pub mod snapshot;
pub mod sql;
pub mod storage;
pub mod table;
pub mod transform;
pub mod unit;
pub mod version;
pub mod view;
pub mod window;
