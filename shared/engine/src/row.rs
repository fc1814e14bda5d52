//! The rows of a view: which events it takes, and what it makes of each. One that aggregates goes on with them in
//! [`crate::partial`]; those that are sent are written as they are.

use anabranch_plan::expr::Expr as Value;
use anabranch_plan::rows::{Field, Rows};
use polars::prelude::*;

use crate::transform::{column, lower};

/// Rows, lowered once for all micro-batches: with them are made the hash tables of lists and the regular expressions.
#[derive(Debug)]
pub(crate) struct Lowered(Vec<Step>);

/// What is made of each row.
#[derive(Debug)]
enum Step {
    Filter(Expr),
    /// A list makes rows of its items. What goes through that is named.
    Unnest {
        list: Expr,
        item: String,
        kept: Vec<Expr>,
    },
    /// Columns are computed beside the others, as constants alone would make one row, and then they alone are left.
    Project {
        values: Vec<Expr>,
        named: Vec<Expr>,
    },
}

impl Lowered {
    /// What remains of events are at least the columns that `later` reads.
    pub fn new<'a>(rows: &'a Rows, later: impl Iterator<Item = &'a Value>) -> Self {
        Self::steps(rows, later).0
    }

    /// Nothing is made of rows.
    pub fn nothing() -> Self {
        Self(Vec::new())
    }

    /// The same down to what looks across records, or to a table; and that.
    pub fn steps<'a>(rows: &'a Rows, later: impl Iterator<Item = &'a Value>) -> (Self, &'a Rows) {
        let mut readers: Vec<&Value> = later.collect();
        // From the last step to the first. A condition is moved down to where all that it reads is there.
        let (mut steps, mut conditions, mut at) = (Vec::new(), Vec::new(), rows);
        loop {
            at = match at {
                Rows::Filter { rows, condition } => {
                    conditions = [condition.conjuncts(), conditions].concat();
                    rows
                }
                Rows::Unnest { rows, list, column: item } => {
                    let (late, early): (Vec<_>, Vec<_>) = conditions.into_iter().partition(|it| it.reads(item));
                    conditions = early;
                    steps.extend(late.iter().rev().map(|condition| Step::Filter(lower(condition))));
                    readers.extend(late);
                    // Only what is still needed goes through the explosion.
                    let below = rows.schema();
                    let read = below.iter().map(|column| column.name.as_str());
                    let read = read.filter(|name| readers.iter().any(|expr| expr.reads(name)));
                    let kept = [item.as_str()].into_iter().chain(read).map(column).collect();
                    steps.push(Step::Unnest { list: lower(list).alias(item.as_str()), item: item.clone(), kept });
                    readers.push(list);
                    rows
                }
                Rows::Project { rows, fields } => {
                    steps.extend(conditions.drain(..).rev().map(|condition| Step::Filter(lower(condition))));
                    let made = |i: usize| format!("__field{i}");
                    let value = |(i, field): (usize, &Field)| lower(&field.expr).alias(made(i));
                    let named = |(i, field): (usize, &Field)| column(&made(i)).alias(field.name.as_str());
                    let values = fields.iter().enumerate().map(value).collect();
                    steps.push(Step::Project { values, named: fields.iter().enumerate().map(named).collect() });
                    readers = fields.iter().map(|field| &field.expr).collect();
                    rows
                }
                Rows::Scan(_) | Rows::Interval(_) | Rows::AsOf(_) | Rows::Lag(_) => break,
            }
        }
        steps.extend(conditions.iter().rev().map(|condition| Step::Filter(lower(condition))));
        steps.reverse();
        (Self(steps), at)
    }

    /// The rows of events, in their order. `events` has the table's columns, and perhaps others, those of `also`, which remain.
    pub fn of(&self, events: LazyFrame, also: &[PlSmallStr]) -> LazyFrame {
        let also = || also.iter().map(|name| column(name));
        self.0.iter().fold(events, |rows, step| match step {
            Step::Filter(condition) => rows.filter(condition.clone()),
            Step::Unnest { list, item, kept } => {
                let options = ExplodeOptions { empty_as_null: false, keep_nulls: false };
                let kept: Vec<Expr> = kept.iter().cloned().chain(also()).collect();
                // The list stands beside the events first, as one that is constant would make one row.
                let listed = rows.with_column(list.clone()).select(kept);
                listed.explode(by_name([item.as_str()], true, false), options).filter(column(item).is_not_null())
            }
            Step::Project { values, named } => {
                let named: Vec<Expr> = named.iter().cloned().chain(also()).collect();
                rows.with_columns(values.clone()).select(named)
            }
        })
    }

    /// Those of events that make a row, by their numbers: `events` has the table's columns, and [`ROW`].
    pub fn taken(&self, events: LazyFrame) -> PolarsResult<Vec<IdxSize>> {
        let rows = self.of(events, &[ROW.into()]).select([col(ROW)]).collect()?;
        let mut taken: Vec<IdxSize> = rows.column(ROW)?.as_materialized_series().idx()?.iter().flatten().collect();
        taken.dedup();
        Ok(taken)
    }
}

/// Numbers events, for [`partial::Inputs::taken`](crate::partial::Inputs::taken).
pub const ROW: &str = "__row";

/// Rows as they are sent on, lowered once.
#[derive(Debug)]
pub struct Records(Lowered);

impl Records {
    /// Those of a view's rows.
    pub fn new(rows: &Rows) -> Self {
        Self(Lowered::new(rows, std::iter::empty()))
    }

    /// The rows of events. `events` has the table's columns.
    pub fn of(&self, events: LazyFrame) -> LazyFrame {
        self.0.of(events, &[])
    }
}

#[cfg(test)]
mod tests;
