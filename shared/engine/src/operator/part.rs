//! Operators that are given one partition of the tables, while other processes have the others.
//!
//! They make their part of the rows by themselves, as the tables are partitioned by what rows are joined by: see
//! [`placement`](anabranch_plan::placement). Who wrote the records decides whether that is so, hence each record is looked at. One that lies
//! elsewhere would not be found by its partners, so it is an error.
//!
//! What a version's operators keep is of all partitions. Each part takes the rows whose key belongs to it, wherever their records lay: a
//! version has dealt with what lay elsewhere, and with what was written when there were fewer partitions.

use anabranch_log::key::by_key;
use anabranch_log::position::Partition;
use polars::prelude::*;

use super::key::is_partition;
use crate::columnar::to_arrow;
use crate::partitioner::keys;

/// A partition of all tables that are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which one.
    pub partition: Partition,
    /// How many there are of each of the tables.
    pub partitions: u32,
}

impl Part {
    /// Those of the rows whose first record lay in the partition; all if there is one part alone.
    pub(super) fn own(part: Option<Self>, rows: DataFrame) -> PolarsResult<DataFrame> {
        match part {
            Some(part) => rows.filter(&part.holds(&rows)?),
            None => Ok(rows),
        }
    }

    /// Of which rows the first record lay in the partition.
    fn holds(self, rows: &DataFrame) -> PolarsResult<BooleanChunked> {
        let first = rows.columns().iter().find(|column| is_partition(column.name()));
        let first = first.ok_or_else(|| polars_err!(ComputeError: "the rows don't say where their records lay"))?;
        Ok(first.as_materialized_series().i64()?.equal(i64::from(self.partition)))
    }

    /// Where a key belongs.
    fn place(self, key: &str) -> Partition {
        by_key(key.as_bytes(), self.partitions)
    }
}

/// By which columns of its inputs a join or a `LAG` is placed.
#[derive(Debug)]
pub(super) struct Placed<const N: usize> {
    part: Part,
    columns: [String; N],
    /// Whether rows without a key find each other.
    nulls_are_equal: bool,
}

impl<const N: usize> Placed<N> {
    /// None if there is one part alone. Without such columns, there can't be more.
    pub fn of(part: Option<Part>, columns: Option<[&String; N]>, nulls_are_equal: bool) -> PolarsResult<Option<Self>> {
        let Some(part) = part else { return Ok(None) };
        let columns = columns.ok_or_else(
            || polars_err!(ComputeError: "the tables aren't partitioned by what their rows are joined by"),
        )?;
        Ok(Some(Self { part, columns: columns.map(String::clone), nulls_are_equal }))
    }

    /// Those of an input's rows whose key belongs to the part. Those without one find nothing, and are of the part that their first record
    /// lay in.
    pub fn own(placed: Option<&Self>, input: usize, rows: DataFrame) -> PolarsResult<DataFrame> {
        let Some(Self { part, columns, .. }) = placed else { return Ok(rows) };
        let (keys, holds) = (texts(&rows, &columns[input])?, part.holds(&rows)?);
        let is_own = keys.into_iter().zip(holds.iter()).map(|(key, holds)| match key {
            Some(key) => part.place(&key) == part.partition,
            None => holds == Some(true),
        });
        rows.filter(&is_own.collect())
    }

    /// Refuses rows that belong to another part; also those without a key, if these find each other.
    pub fn check(placed: Option<&Self>, inputs: [&DataFrame; N]) -> PolarsResult<()> {
        let Some(Self { part, columns, nulls_are_equal }) = placed else { return Ok(()) };
        for (column, rows) in columns.iter().zip(inputs).filter(|(_, rows)| rows.height() > 0) {
            let misplaced = texts(rows, column)?.into_iter().find(|key| match key {
                Some(key) => part.place(key) != part.partition,
                None => *nulls_are_equal,
            });
            let Some(key) = misplaced else { continue };
            let (Part { partition, partitions }, name) = (part, column.rsplit('.').next().unwrap_or(column));
            let why = match &key {
                None => "those without a key lie in all partitions; leave them out with WHERE".to_owned(),
                Some(key) => format!(
                    "its place among {partitions} is {}; whoever writes the topic has to partition it as Kafka's clients do by a key that \
                     is this text",
                    part.place(key)
                ),
            };
            let key = key.as_deref().unwrap_or("NULL");
            polars_bail!(ComputeError: "a record with {name} = {key} is in partition {partition}, where it finds no others: {why}");
        }
        Ok(())
    }
}

/// The keys of rows, as producers write them; none where one is null.
fn texts(rows: &DataFrame, column: &str) -> PolarsResult<Vec<Option<String>>> {
    let batch = to_arrow(&rows.select([column])?).map_err(|error| polars_err!(ComputeError: "{error}"))?;
    Ok(keys(&batch, 0))
}
