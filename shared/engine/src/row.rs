//! The row work of a view: which events it takes, and the rows that it makes of each. An aggregating view goes on with them
//! in [`crate::partial`]; an output's are written as they are.

use anabranch_plan::expr;
use anabranch_plan::schema::Table;
use anabranch_plan::view::{Output, Unnest};
use polars::prelude::*;

use crate::transform::{column, lower};

/// The row work, lowered once for all micro-batches: with it are made the hash tables of lists and the regular expressions.
#[derive(Debug)]
pub(crate) struct Rows {
    /// The conditions that are decided before the list makes rows of its items.
    early: Vec<Expr>,
    unnest: Option<Items>,
    late: Vec<Expr>,
}

/// A list, and what goes through its explosion.
#[derive(Debug)]
struct Items {
    list: Expr,
    item: String,
    kept: Vec<Expr>,
}

impl Rows {
    /// What remains of events are at least the columns that `later` reads.
    pub fn new<'a>(
        table: &Table,
        unnest: Option<&Unnest>,
        filter: Option<&'a expr::Expr>,
        later: impl Iterator<Item = &'a expr::Expr>,
    ) -> Self {
        let reads_item = |condition: &&expr::Expr| unnest.is_some_and(|unnest| condition.reads(&unnest.column));
        let (late, early): (Vec<_>, Vec<_>) =
            filter.map(conjuncts).unwrap_or_default().into_iter().partition(reads_item);
        let items = unnest.map(|Unnest { list, column: item }| {
            // Only what is still needed goes through the explosion.
            let readers: Vec<&expr::Expr> = later.chain(late.iter().copied()).collect();
            let names = table.columns.iter().map(|column| column.name.as_str());
            let read = names.filter(|name| readers.iter().any(|expr| expr.reads(name)));
            let kept = [item.as_str()].into_iter().chain(read).map(column).collect();
            Items { list: lower(list).alias(item.as_str()), item: item.clone(), kept }
        });
        let lowered = |conditions: Vec<&expr::Expr>| conditions.into_iter().map(lower).collect();
        Self { early: lowered(early), unnest: items, late: lowered(late) }
    }

    /// The rows of events, in their order. `events` has the table's columns, and perhaps one more that remains.
    pub fn of(&self, events: LazyFrame, also: Option<&str>) -> LazyFrame {
        let filtered = |rows: LazyFrame, conditions: &[Expr]| conditions.iter().cloned().fold(rows, LazyFrame::filter);
        let mut rows = filtered(events, &self.early);
        if let Some(Items { list, item, kept }) = &self.unnest {
            let options = ExplodeOptions { empty_as_null: false, keep_nulls: false };
            let kept: Vec<Expr> = kept.iter().cloned().chain(also.map(column)).collect();
            // The list stands beside the events first, as one that is constant would make one row.
            let listed = rows.with_column(list.clone()).select(kept);
            rows = listed.explode(by_name([item.as_str()], true, false), options).filter(column(item).is_not_null());
        }
        filtered(rows, &self.late)
    }

    /// Those of events that make a row, by their numbers: `events` has the table's columns, and [`ROW`].
    pub fn taken(&self, events: LazyFrame) -> PolarsResult<Vec<IdxSize>> {
        let rows = self.of(events, Some(ROW)).select([col(ROW)]).collect()?;
        let mut taken: Vec<IdxSize> = rows.column(ROW)?.as_materialized_series().idx()?.iter().flatten().collect();
        taken.dedup();
        Ok(taken)
    }
}

fn conjuncts(expr: &expr::Expr) -> Vec<&expr::Expr> {
    match expr {
        expr::Expr::Binary(left, expr::BinaryOp::And, right) => [conjuncts(left), conjuncts(right)].concat(),
        other => vec![other],
    }
}

/// Numbers events, for [`partial::Rows::taken`](crate::partial::Rows::taken).
pub const ROW: &str = "__row";

/// What an output makes of events, lowered once.
#[derive(Debug)]
pub struct Records {
    rows: Rows,
    values: Vec<Expr>,
    named: Vec<Expr>,
}

impl Records {
    /// Those of an output.
    pub fn new(output: &Output) -> Self {
        let Output { table, unnest, filter, fields, .. } = output;
        let rows = Rows::new(table, unnest.as_ref(), filter.as_ref(), fields.iter().map(|field| &field.expr));
        // Beside the events, as constants alone would make one row.
        let made = |i: usize| format!("__field{i}");
        let values = (0..).zip(fields).map(|(i, field)| lower(&field.expr).alias(made(i))).collect();
        let named = (0..).zip(fields).map(|(i, field)| column(&made(i)).alias(field.name.as_str())).collect();
        Self { rows, values, named }
    }

    /// The output's fields of events, in their order. `events` has the table's columns.
    pub fn of(&self, events: LazyFrame) -> LazyFrame {
        self.rows.of(events, None).with_columns(self.values.clone()).select(self.named.clone())
    }
}

#[cfg(test)]
mod tests;
