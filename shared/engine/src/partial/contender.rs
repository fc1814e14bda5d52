//! Leaving out what can't be among a window's first rows, before the window is added up.
//!
//! A view that keeps the `k` rows with the largest counts of each window needs few of its keys. With `t` the `k`-th
//! largest count in one of a window's pieces, at least `k` keys have `t` or more in the window. So a key among the first
//! `k` has `t` or more there too and, in one of the window's `m` pieces, `t / m` or more. A key that has less than that in
//! every piece is in no answer, and all its rows can go.

use anabranch_plan::aggregation::{AggregateFunction, Aggregation, OutputColumn};
use polars::prelude::*;

use super::finish::Piece;
use super::key;
use crate::aggregate::keys::Keys;
use crate::frame::state_names;

/// With fewer rows there is nothing to gain, in multiples of the limit.
const WORTHWHILE: usize = 4;

/// The rows of those keys that may be among the first of the window: all of them unless the view keeps the largest counts
/// only, or where some events came late or a pane is degraded, whose answer tells more of those that it leaves out.
pub(super) fn contenders(aggregation: &Aggregation, pieces: &[Piece]) -> PolarsResult<Vec<Piece>> {
    let unchanged = || Ok(pieces.to_vec());
    let (Some(limit), Some(first)) = (aggregation.limit, aggregation.order.first()) else { return unchanged() };
    let OutputColumn::Aggregate(i) = first.column else { return unchanged() };
    let is_count = aggregation.aggregates[i].function == AggregateFunction::Count;
    let rows: usize = pieces.iter().map(|piece| piece.rows.height()).sum();
    let is_exact = pieces.iter().all(|piece| !piece.has_missed && piece.slack.is_none());
    if !is_count || !first.descending || aggregation.keys.is_empty() || aggregation.having.is_some() || !is_exact {
        return unchanged();
    }
    if rows <= WORTHWHILE * limit {
        return unchanged();
    }
    let Some(name) = state_names(aggregation, i).next() else { return unchanged() };
    let (mut threshold, mut counts) = (0, Vec::new());
    for piece in pieces.iter().filter(|piece| piece.rows.height() >= limit) {
        counts.clear();
        counts.extend(piece.rows.column(&name)?.i64()?.iter().flatten());
        if counts.len() >= limit {
            let at = counts.len() - limit;
            threshold = threshold.max(*counts.select_nth_unstable(at).1);
        }
    }
    // Rounded up: a count is a whole number.
    let least = (threshold + pieces.len() as i64 - 1) / pieces.len() as i64;
    if least <= 1 {
        return unchanged();
    }
    let key_columns = |rows: &DataFrame| -> PolarsResult<Vec<Column>> {
        (0..aggregation.keys.len()).map(|i| rows.column(&key(i)).cloned()).collect()
    };
    let mut keys = Keys::of(aggregation);
    for piece in pieces {
        let large = piece.rows.filter(&piece.rows.column(&name)?.i64()?.gt_eq(least))?;
        keys.number(&key_columns(&large)?, large.height())?;
    }
    let contending = |piece: &Piece| {
        let known = keys.known(&key_columns(&piece.rows)?, piece.rows.height())?;
        Ok(Piece { rows: piece.rows.filter(&known)?, ..piece.clone() })
    };
    pieces.iter().map(contending).collect()
}
