//! Answers about the same windows and keys, side by side.

use std::collections::BTreeSet;

use anabranch_engine::render::Rows;
use anabranch_engine::transform::column;
use anabranch_plan::time::format_timestamp;
use polars::prelude::*;
use serde_json::{Map, Value};

use super::{Cause, Correction};

/// Rows side by side. Each side has a mark, which its columns' names end in.
pub struct Compared {
    rows: DataFrame,
    names: Vec<String>,
}

impl Compared {
    /// Puts rows that agree in the columns `names` beside each other, and of each side its columns `values`.
    pub fn of(names: Vec<String>, values: &[String], sides: &[(&str, &DataFrame)]) -> PolarsResult<Self> {
        // A view without keys and windows has one row; the constant joins it.
        let on: Vec<&str> = if names.is_empty() { vec!["__one"] } else { names.iter().map(String::as_str).collect() };
        let by: Vec<Expr> = on.into_iter().map(column).collect();
        let marked = |(mark, rows): &(&str, &DataFrame)| {
            let values = values.iter().map(|name| column(name).alias(format!("{name}{mark}")));
            let kept = by.iter().cloned().chain([lit(true).alias(format!("__is{mark}"))]);
            let with_one = (*rows).clone().lazy().with_column(lit(1_i32).alias("__one"));
            with_one.select(kept.chain(values).collect::<Vec<_>>())
        };
        let args =
            JoinArgs { nulls_equal: true, coalesce: JoinCoalesce::CoalesceColumns, ..JoinArgs::new(JoinType::Full) };
        let joined = sides.iter().map(marked).reduce(|all, side| all.join(side, &by, &by, args.clone()));
        let Some(joined) = joined else { return Ok(Self { rows: DataFrame::empty(), names }) };
        let sorted = joined.sort_by_exprs(&by, SortMultipleOptions::default().with_nulls_last(true));
        Ok(Self { rows: sorted.collect()?, names })
    }

    /// How many rows there are in any side.
    pub fn height(&self) -> usize {
        self.rows.height()
    }

    /// Which rows are in a side.
    pub fn is_in(&self, mark: &str) -> PolarsResult<Vec<bool>> {
        Ok(self.rows.column(&format!("__is{mark}"))?.bool()?.iter().map(|is| is == Some(true)).collect())
    }

    /// A value of a side.
    pub fn value(&self, name: &str, mark: &str, row: usize) -> PolarsResult<AnyValue<'_>> {
        self.rows.column(&format!("{name}{mark}"))?.get(row)
    }

    /// What a column's values in these rows were in the side `old`, and are in `new`.
    pub fn corrections(
        &self,
        name: &str,
        (old, new): (&str, &str),
        changes: impl IntoIterator<Item = (usize, Cause)>,
    ) -> PolarsResult<Vec<Correction>> {
        let cells = Rows::of(&self.rows)?;
        let keys: BTreeSet<&str> = self
            .names
            .iter()
            .map(String::as_str)
            .filter(|name| !matches!(*name, "window_start" | "window_end"))
            .collect();
        let (old, new) = (format!("{name}{old}"), format!("{name}{new}"));
        let correction = |(row, cause)| {
            let of = |wanted: &dyn Fn(&str) -> bool| -> Map<String, Value> {
                let mut bytes = Vec::new();
                cells.write_json_object(row, wanted, &mut bytes);
                serde_json::from_slice(&bytes).unwrap_or_default()
            };
            let time = |name: &str| {
                let time = self.rows.column(name).ok()?.get(row).ok()?;
                time.to_physical().extract::<i64>().map(format_timestamp)
            };
            let mut values = of(&|column| column == old || column == new);
            let is_bound = |bound: &str| self.names.iter().any(|name| name == bound);
            Correction {
                window_start: time("window_start").filter(|_| is_bound("window_start")),
                window_end: time("window_end").filter(|_| is_bound("window_end")),
                key: of(&|column| keys.contains(column)),
                column: name.to_owned(),
                old: values.remove(&old).unwrap_or(Value::Null),
                new: values.remove(&new).unwrap_or(Value::Null),
                cause,
            }
        };
        Ok(changes.into_iter().map(correction).collect())
    }
}

/// Whether two values are one.
pub fn is_same(one: &AnyValue, other: &AnyValue) -> bool {
    match (one, other) {
        (AnyValue::Float64(one), AnyValue::Float64(other)) => one == other || one.is_nan() && other.is_nan(),
        (one, other) => one == other,
    }
}
