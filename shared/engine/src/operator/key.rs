//! What rows are found by: the hash of their key, their time, and where they stood in the log.

use std::cmp::Ordering;
use std::hash::BuildHasher;
use std::sync::LazyLock;

use anabranch_plan::time::Micros;
use foldhash::fast::RandomState;
use polars::prelude::*;

use crate::aggregate::keys::Given;

/// One for the whole process, and another in each: nobody can choose keys that all have one hash.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// The key columns of rows.
pub(super) fn given(rows: &DataFrame, names: &[String]) -> PolarsResult<Vec<Given>> {
    names.iter().map(|name| Given::of(rows.column(name)?)).collect()
}

/// The hash of each row's key, which is in the columns of these names.
pub(super) fn hashes(rows: &DataFrame, names: &[String]) -> PolarsResult<Vec<u64>> {
    let given = given(rows, names)?;
    Ok((0..rows.height()).map(|row| Given::hash_all(&given, row, &HASHER)).collect())
}

/// A hash for a row that has no key, and so is found by none.
pub(super) fn no_key(row: usize) -> u64 {
    HASHER.hash_one(("no key", row))
}

/// Which rows have a key: NULL equals nothing.
pub(super) fn have_key(rows: &DataFrame, names: &[String]) -> PolarsResult<BooleanChunked> {
    let mut have = BooleanChunked::full(PlSmallStr::EMPTY, true, rows.height());
    for name in names {
        have = have & rows.column(name)?.is_not_null();
    }
    Ok(have)
}

/// The times in a column, none of which is null.
pub fn times(rows: &DataFrame, name: &str) -> PolarsResult<Vec<Micros>> {
    let times = rows.column(name)?.as_materialized_series().to_physical_repr().into_owned();
    Ok(times.i64()?.iter().map(Option::unwrap_or_default).collect())
}

/// The column that says of which partition a row's record of a table is. The tables of rows are numbered from left to right.
pub(super) fn partition_column(table: usize) -> String {
    format!("__p{table}")
}

/// The column that says at which offset it stood.
pub(super) fn offset_column(table: usize) -> String {
    format!("__o{table}")
}

/// Whether a column says where a record stood.
pub(super) fn is_position(name: &str) -> bool {
    is_partition(name) || is_numbered(name.strip_prefix("__o"))
}

/// Whether a column says of which partition a record is.
pub(super) fn is_partition(name: &str) -> bool {
    is_numbered(name.strip_prefix("__p"))
}

fn is_numbered(number: Option<&str>) -> bool {
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// Where rows stood in the log, which tells the order of those of one time.
pub(super) struct Position(Vec<Int64Chunked>);

impl Position {
    pub fn of(rows: &DataFrame) -> PolarsResult<Self> {
        let column = |name: PlSmallStr| Ok(rows.column(&name)?.as_materialized_series().i64()?.rechunk().into_owned());
        let names = rows.get_column_names_owned().into_iter().filter(|name| is_position(name));
        names.map(column).collect::<PolarsResult<_>>().map(Self)
    }

    /// Compares the positions of two rows. A record that isn't there comes first.
    pub fn compare(&self, row: usize, other: &Self, other_row: usize) -> Ordering {
        let each = self.0.iter().zip(&other.0).map(|(a, b)| a.get(row).cmp(&b.get(other_row)));
        each.fold(Ordering::Equal, Ordering::then)
    }
}
