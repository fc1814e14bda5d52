//! Whether a view can be computed at all, tried out before there is an event.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anabranch_engine::partial::{self, Part, Scope, windows};
use anabranch_engine::transform::polars_type;
use anabranch_plan::expr::Expr;
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
    let nulls = scan_schema(view.table())
        .iter()
        .map(|(name, data_type)| Column::full_null(name.clone(), 1, data_type))
        .collect();
    let mut event = DataFrame::new(1, nulls)?;
    let time = view.table().event_time_column();
    let instant = Series::new(time.name.as_str().into(), [0_i64]).cast(&polars_type(&time.data_type))?;
    event.with_column(instant.into())?;
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
