//! What is kept in files: object storage, Delta tables, and the envelope of what is stored or sent in bytes.

pub mod envelope;
pub mod storage;
pub mod table;
