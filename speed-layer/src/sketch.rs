//! Top-k in bounded memory: the counts of a pane's keys, from all of which the same was taken.
//!
//! Where keys are too many, as much is taken from each count as leaves nothing of the smaller half, and that half is
//! forgotten. So a count is at most as far below the truth as was taken in all, never above it, and a key that was forgotten
//! had at most as many events. As each time at least half of the counts lose as much, the sum of what was taken is at most
//! twice the number of events by the number of keys that there was room for.
//!
//! That is the summary of Misra and Gries (1982) with the purge of Anderson and others (IMC 2017), which Apache's
//! frequent-items sketch is too. Here the counts stay what they were before: groups of an open pane, the columns of a closed one.

use anabranch_shared::partial::MISSED;
use polars::prelude::*;

/// With fewer rows there is nothing to save.
pub(crate) const LEAST_ROWS: usize = 24;

/// What is to be taken from each count of events in time, and the rows of which that leaves something. Late events stay.
pub(crate) fn cut(partials: &DataFrame) -> PolarsResult<(i64, DataFrame)> {
    let in_time = partials.column(MISSED)?.i32()?.equal(0);
    let counts = partials.column("a0")?.i64()?;
    let taken = excess(&counts.filter(&in_time)?);
    Ok((taken, partials.filter(&(counts.gt(taken) | !in_time))?))
}

/// How many rows are of events in time.
pub(crate) fn rows_in_time(partials: &DataFrame) -> usize {
    let missed = partials.column(MISSED).and_then(Column::i32);
    missed.map_or(0, |missed| missed.iter().filter(|missed| *missed == Some(0)).count())
}

/// Adds to the counts of events in time.
pub(crate) fn raise(partials: &DataFrame, by: i64) -> PolarsResult<DataFrame> {
    if by == 0 {
        return Ok(partials.clone());
    }
    let by = ternary_expr(col(MISSED).eq(lit(0_i32)), lit(by), lit(0_i64));
    partials.clone().lazy().with_column((col("a0") + by).alias("a0")).collect()
}

/// The least number that at most half of the counts are above.
fn excess(counts: &Int64Chunked) -> i64 {
    let mut counts: Vec<i64> = counts.iter().flatten().collect();
    let half = counts.len() / 2;
    if counts.is_empty() { 0 } else { *counts.select_nth_unstable_by(half, |a, b| b.cmp(a)).1 }
}
