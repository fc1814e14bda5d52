//! The API in process, over snapshots and versions made by hand.

mod api;
mod audit;
mod change;
mod collect;
mod contract;
mod edge;
mod identity;
mod merge;
mod page;
mod rows;
mod source;
mod stream;
pub(crate) mod support;
