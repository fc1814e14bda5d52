//! The row work of a view: which events it takes, and the rows that it makes of each. An aggregating view goes on with them
//! in [`crate::partial`]; an output's are written as they are.

use polars::prelude::*;

use crate::expr;
use crate::schema::Table;
use crate::transform::{column, lower};
use crate::view::{Output, Unnest, View};

/// The rows of events, in their order. `events` has the table's columns and perhaps more. What remains are at least the
/// columns that `later` reads and those of `also`.
pub(crate) fn rows<'a>(
    events: LazyFrame,
    table: &Table,
    unnest: Option<&Unnest>,
    filter: Option<&'a expr::Expr>,
    later: impl Iterator<Item = &'a expr::Expr>,
    also: &[&str],
) -> LazyFrame {
    let mut events = events;
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for condition in filter.map(conjuncts).unwrap_or_default() {
        let reads_item = unnest.is_some_and(|unnest| condition.reads(&unnest.column));
        if reads_item { late.push(condition) } else { early.push(condition) }
    }
    for condition in early {
        events = events.filter(lower(condition));
    }
    if let Some(unnest) = unnest {
        let options = ExplodeOptions { empty_as_null: false, keep_nulls: false };
        let item = unnest.column.as_str();
        // Only what is still needed goes through the explosion.
        let readers: Vec<&expr::Expr> = later.chain(late.iter().copied()).collect();
        let names = table.columns.iter().map(|column| column.name.as_str());
        let read = names.filter(|name| !also.contains(name) && readers.iter().any(|expr| expr.reads(name)));
        let kept: Vec<Expr> = [item].into_iter().chain(also.iter().copied()).chain(read).map(column).collect();
        // The list stands beside the events first, as one that is constant would make one row.
        let listed = events.with_column(lower(&unnest.list).alias(item));
        events = listed.select(kept).explode(by_name([item], true, false), options).filter(column(item).is_not_null());
    }
    late.into_iter().fold(events, |events, condition| events.filter(lower(condition)))
}

fn conjuncts(expr: &expr::Expr) -> Vec<&expr::Expr> {
    match expr {
        expr::Expr::Binary(left, expr::BinaryOp::And, right) => [conjuncts(left), conjuncts(right)].concat(),
        other => vec![other],
    }
}

/// Numbers events, for [`taken`].
pub const ROW: &str = "__row";

/// Those of events that a view makes a row of, by their numbers. `events` has what the view reads of its table, and [`ROW`].
pub fn taken(view: &View, events: LazyFrame) -> PolarsResult<Vec<IdxSize>> {
    let View { table, unnest, filter, .. } = view;
    let rows = rows(events, table, unnest.as_ref(), filter.as_ref(), std::iter::empty(), &[ROW]);
    let rows = rows.select([col(ROW)]).collect()?;
    let mut taken: Vec<IdxSize> = rows.column(ROW)?.as_materialized_series().idx()?.iter().flatten().collect();
    taken.dedup();
    Ok(taken)
}

/// What an output makes of events, in their order: its fields. `events` has the table's columns.
pub fn of_output(output: &Output, events: LazyFrame) -> LazyFrame {
    let Output { table, unnest, filter, fields, .. } = output;
    let later = fields.iter().map(|field| &field.expr);
    // Beside the events, as constants alone would make one row.
    let made = |i: usize| format!("__field{i}");
    let values: Vec<Expr> = (0..).zip(fields).map(|(i, field)| lower(&field.expr).alias(made(i))).collect();
    let named: Vec<Expr> = (0..).zip(fields).map(|(i, field)| column(&made(i)).alias(field.name.as_str())).collect();
    rows(events, table, unnest.as_ref(), filter.as_ref(), later, &[]).with_columns(values).select(named)
}

#[cfg(test)]
mod tests;
