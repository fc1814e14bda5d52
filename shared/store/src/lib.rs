//! What is kept in files: object storage, and Delta tables.

pub mod storage;
pub mod table;
