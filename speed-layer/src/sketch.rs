//! Top-k in bounded memory: the counts of a pane's keys, from all of which the same was taken.
//!
//! Where keys are too many, as much is taken from each count as leaves nothing of the smaller half, and that half is
//! forgotten. So a count is at most as far below the truth as was taken in all, never above it, and a key that was forgotten
//! had at most as many events. As each time at least half of the counts lose as much, the sum of what was taken is at most
//! twice the number of events by the number of keys that there was room for.
//!
//! That is the summary of Misra and Gries (1982) with the purge of Anderson and others (IMC 2017), which Apache's
//! frequent-items sketch is too. Here the counts stay what they were before: groups of an open pane, the columns of a closed one.
//!
//! A pane gives way by its events in time, or by its late events, whichever are more rows. Late events are counted by how many
//! windows they missed, and from each of these numbers' counts is taken what halves them. A key may lack what was taken at
//! each number, so the sum of it all is what any key may lack of late events ([`Slack::late`]).
//!
//! Others see the counts of events in time raised by what was taken, as upper ends. Those of late events stay lower ends: a
//! key has one row of events in time and several of late ones, and what it lacks can be added once for all of them.
//!
//! [`Slack::late`]: anabranch_engine::partial::Slack::late

use anabranch_engine::partial::{self, MISSED};
use polars::prelude::*;

/// With fewer rows there is nothing to save.
const LEAST_ROWS: usize = 24;

/// How many rows of a pane may give way next, and whether they are those of late events, by how many it has in time and in all.
pub(crate) fn spare(in_time: usize, rows: usize) -> (usize, bool) {
    let late = rows - in_time;
    let most = in_time.max(late);
    (if most < LEAST_ROWS { 0 } else { most }, late > in_time)
}

/// What is to be taken from each of these counts, and the rows of which that leaves something.
pub(crate) fn cut(partials: &DataFrame) -> PolarsResult<(i64, DataFrame)> {
    let counts = partials.column("a0")?.i64()?;
    let taken = excess(counts);
    Ok((taken, partials.filter(&counts.gt(taken))?))
}

/// Cuts a closed pane's rows: those of late events, or the others, and those it takes from. What was taken in all.
pub(crate) fn cut_pane(partials: &DataFrame, is_late: bool) -> PolarsResult<(i64, DataFrame)> {
    let (mut all, mut sum) = (partials.clear(), 0);
    for ((_, missed), rows) in partial::split(partials.clone())? {
        let rows = match (missed > 0, is_late) {
            (true, true) => {
                let (taken, kept) = cut(&rows)?;
                sum += taken;
                lowered(&kept, taken)?
            }
            (false, false) => {
                // The counts are upper ends: what was taken is in them, and stays in those that are left.
                let (taken, kept) = cut(&rows)?;
                sum = taken;
                kept
            }
            _ => rows,
        };
        all.vstack_mut(&rows)?;
    }
    Ok((sum, all))
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

/// Takes from all counts.
pub(crate) fn lowered(partials: &DataFrame, by: i64) -> PolarsResult<DataFrame> {
    partials.clone().lazy().with_column((col("a0") - lit(by)).alias("a0")).collect()
}

/// The least number that at most half of the counts are above.
fn excess(counts: &Int64Chunked) -> i64 {
    let mut counts: Vec<i64> = counts.iter().flatten().collect();
    let half = counts.len() / 2;
    if counts.is_empty() { 0 } else { *counts.select_nth_unstable_by(half, |a, b| b.cmp(a)).1 }
}
