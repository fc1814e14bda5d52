//! Whether a view can be computed at all, tried out before there is an event.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anabranch_engine::decode::DELETED;
use anabranch_engine::operator::{self, Operators, Records};
use anabranch_engine::partial::{self, Part, Scope, windows};
use anabranch_engine::transform::polars_type;
use anabranch_plan::expr::Expr;
use anabranch_plan::schema::Table;
use anabranch_plan::view::Kept;
use polars::prelude::{Column, DataFrame, IntoLazy, NamedFrom, PolarsResult, Series, polars_ensure};

use super::{output, partials};
use crate::error::BatchError;
use crate::scan::{polars_type_of, scan_schema};

/// Computes the view of one event without any value, as a run would. So what would fail every run fails here.
pub fn check(view: &Kept) -> Result<(), BatchError> {
    let tried = catch_unwind(AssertUnwindSafe(|| compute(view)));
    let tried = tried.map_err(|panic| BatchError::panicked("computing a view of one event", &*panic))?;
    tried.map_err(|source| BatchError::Query { step: "computing one event", view: view.id.name.clone(), source })
}

fn compute(view: &Kept) -> PolarsResult<()> {
    let event = match view.rows.looks_across() {
        false => nothing(view.table())?,
        true => across(view)?,
    };
    let evaluated = partial::inputs(view, event.clone().lazy(), false).collect()?;
    let keys = view.aggregation().keys.iter().enumerate().map(|(i, key)| (partial::key(i), Some(&key.expr)));
    let aggregates = view.aggregation().aggregates.iter().enumerate();
    let values =
        aggregates.flat_map(|(i, it)| [(format!("v{i}"), it.argument.as_ref()), (format!("p{i}"), it.place.as_ref())]);
    for (name, expr) in keys.chain(values) {
        let Some(bound) = expr.map(Expr::data_type) else { continue };
        let (found, wanted) = (evaluated.column(&name)?.dtype(), polars_type(&bound));
        polars_ensure!(*found == wanted, SchemaMismatch: "`{name}` is evaluated as {found}, and is {bound}");
    }
    let partials = partials(view, event.lazy())?;
    let finished = windows(view.aggregation(), &[Part { partials, slack: None }], Scope::All)?;
    let rows = finished.rows.select(output::row_columns(view))?;
    for (name, stored) in output::columns(view) {
        let (found, wanted) = (rows.column(&name)?.dtype(), polars_type_of(stored));
        polars_ensure!(*found == wanted, SchemaMismatch: "column `{name}` is computed as {found}, and is {wanted}");
    }
    Ok(())
}

/// A table's event without any value but its time.
fn nothing(table: &Table) -> PolarsResult<DataFrame> {
    let columns = scan_schema(table);
    let nulls = columns.iter().map(|(name, data_type)| Column::full_null(name.clone(), 1, data_type)).collect();
    let mut event = DataFrame::new(1, nulls)?;
    let time = table.event_time_column();
    let instant = Series::new(time.name.as_str().into(), [0_i64]).cast(&polars_type(&time.data_type))?;
    event.with_column(instant.into())?;
    Ok(event)
}

/// The row that such events of all tables make, or one of nulls.
fn across(view: &Kept) -> PolarsResult<DataFrame> {
    let mut records = Records::new();
    for table in view.tables() {
        let mut event = nothing(table)?;
        let place = |name: &str| Column::new(name.into(), [0_i64]);
        event.hstack_mut(&[place(operator::PARTITION), place(operator::OFFSET)])?;
        if table.is_changelog() {
            event.with_column(Column::new(DELETED.into(), [false]))?;
        }
        records.insert(table.name.clone(), event);
    }
    let mut operators = Operators::new(&view.rows, &|name| view.reads(name), None)?;
    let mut rows = DataFrame::empty_with_schema(operators.schema());
    operators.advance(&records, 0, &mut |settled| rows.vstack_mut(&settled).map(drop))?;
    rows.vstack_mut(&operators.pending()?)?;
    operators.advance(&Records::new(), i64::MAX, &mut |settled| rows.vstack_mut(&settled).map(drop))?;
    if rows.height() == 0 {
        rows = DataFrame::full_null(rows.schema(), 1);
    }
    let mut first = rows.slice(0, 1);
    // A window needs a time.
    for time in view.rows.event_times() {
        let instant = Series::new(time.as_str().into(), [0_i64]).cast(first.column(&time)?.dtype())?;
        first.with_column(instant.into())?;
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anabranch_plan::schema::DataType;
    use anabranch_plan::window::Window;

    use super::*;
    use crate::fixture::{SECOND, table, view, with};

    #[test]
    fn what_would_fail_every_run_fails_before_there_is_an_event() {
        for window in [None, Some(Window::sliding(5 * SECOND, SECOND)), Some(Window::Session { gap: SECOND })] {
            let view = view("sums", Arc::new(table()), window);
            check(&view).expect("a sound view");
            let missing = Some(Expr::Column("missing".into(), DataType::BigInt));
            let unknown = with(&view, |kept| kept.aggregates[1].argument = missing);
            assert!(check(&unknown).is_err(), "{window:?}");
            // Bound as one type, and evaluated as another.
            let other = with(&view, |kept| {
                kept.aggregates.truncate(1);
                kept.columns.truncate(2);
                kept.keys[0].expr = Expr::Column("value".into(), DataType::Text);
            });
            assert!(check(&other).is_err(), "{window:?}");
        }
    }
}
