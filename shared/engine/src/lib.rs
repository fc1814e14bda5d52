//! Evaluation: records become columns, row expressions are lowered to Polars, rows become groups, and groups travel as partials.
//! Every layer computes by these.

mod aggregate;
pub mod columnar;
pub mod decode;
pub mod edition;
mod fragment;
mod frame;
pub mod group;
pub mod operator;
pub mod partial;
pub mod partitioner;
pub mod render;
pub mod row;
pub mod transform;
