//! The project as planned: tables and views, their schemas, expressions, windows and schedules, and the SQL front end that
//! makes them of text.
//!
//! This crate knows no Polars, no Kafka and no files.

pub mod aggregation;
pub mod data_type;
pub mod expr;
pub mod function;
pub mod placement;
pub mod rows;
pub mod schedule;
pub mod schema;
pub mod sink;
pub mod sql;
pub mod time;
pub mod unit;
pub mod view;
pub mod window;
