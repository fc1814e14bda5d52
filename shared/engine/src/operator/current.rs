//! The current rows of a changelog: of each key the version that stands last in the log, unless that deletes it.
//!
//! Any of them may be replaced by the next record, so all of them wait, and none ever settles. What is computed from them is computed from
//! all of them again. A late version is no different from others: the log has an order of its own.

use anabranch_plan::schema::Table;
use polars::prelude::*;

use super::key::offset_column;
use super::newest::Newest;
use crate::decode::DELETED;

/// The newest versions.
#[derive(Debug)]
pub(super) struct Current {
    newest: Newest,
    /// The columns of a version.
    schema: SchemaRef,
}

impl Current {
    /// Of a changelog, which is the table of this number. `schema` has its columns, where versions stood, and [`DELETED`].
    pub fn new(table: &Table, number: usize, schema: SchemaRef) -> Self {
        let keys = table.primary_key.iter().map(|&column| table.columns[column].name.clone());
        // Versions of a key are in one partition, in order of offset.
        Self { newest: Newest::new(keys.collect(), offset_column(number), 1), schema }
    }

    /// Takes versions.
    pub fn advance(&mut self, versions: &DataFrame) -> PolarsResult<()> {
        self.newest.add(versions)?;
        self.newest.forget(i64::MAX)
    }

    /// The rows as things are.
    pub fn pending(&self) -> PolarsResult<DataFrame> {
        let versions = self.newest.all(&self.schema)?;
        let is_there = !versions.column(DELETED)?.bool()?;
        versions.filter(&is_there)?.drop(DELETED)
    }

    /// How many versions are kept.
    pub fn len(&self) -> usize {
        self.newest.segments.len()
    }

    /// The bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.newest.segments.bytes()
    }

    /// The versions, and perhaps some of before.
    pub fn state(&self) -> PolarsResult<[DataFrame; 1]> {
        Ok([self.newest.segments.frame(&self.schema)?])
    }

    /// Keeps the versions that another one kept.
    pub fn resume(&mut self, [versions]: [DataFrame; 1]) -> PolarsResult<()> {
        self.newest.add(&versions)
    }
}
