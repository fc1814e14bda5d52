//! Leaving out what can't be among a window's first rows, before the windows are added up.
//!
//! A view that keeps the `k` rows with the largest counts of each window needs few of its keys. With `t` the `k`-th
//! largest count in a pane, at least `k` keys have `t` or more in each window that the pane is in; so a key among the
//! first `k` of a window has `t` or more there, and, in one of the window's `m` panes, `t / m` or more. A key that has
//! less than that in every pane is in no answer, and all its rows can go.

use anabranch_shared::partial::{PANE, key};
use anabranch_shared::view::{AggregateFunction, OutputColumn, View};
use polars::prelude::*;

use crate::day::DAY;

const THRESHOLD: &str = "__threshold";

/// The partials of those keys that may be among the first rows of a window: all of them unless the view keeps the
/// largest counts only. A pane and key must not be there twice.
pub(super) fn contenders(view: &View, partials: LazyFrame) -> LazyFrame {
    let (Some(window), Some(limit), Some(first)) = (view.window, view.limit, view.order.first()) else {
        return partials;
    };
    let OutputColumn::Aggregate(i) = first.column else { return partials };
    let is_count = view.aggregates[i].function == AggregateFunction::Count;
    // A pane that two days share has rows of a key in the files of both.
    if !is_count || !first.descending || limit == 0 || view.keys.is_empty() || DAY % window.pane() != 0 {
        return partials;
    }
    let count = || col(format!("a{i}"));
    let panes = window.size / window.pane();
    let threshold = ternary_expr(
        len().cast(DataType::UInt64).gt_eq(lit(limit as u64)),
        count().top_k(lit(limit as u64)).min(),
        lit(0_i64),
    );
    let thresholds = partials.clone().group_by([col(PANE)]).agg([threshold.alias(THRESHOLD)]);
    let keys: Vec<Expr> = (0..view.keys.len()).map(|i| col(key(i))).collect();
    let contenders = partials
        .clone()
        .inner_join(thresholds, col(PANE), col(PANE))
        .filter((count() * lit(panes)).gt_eq(col(THRESHOLD)))
        .select(keys.clone())
        .unique(None, UniqueKeepStrategy::Any);
    partials.join_builder().with(contenders).on(keys).how(JoinType::Semi).join_nulls(true).finish()
}
