//! `LAG(…) OVER (PARTITION BY … ORDER BY …)`.

use sqlparser::ast::{self, Spanned, WindowSpec, WindowType};

use super::error::{Fault, list};
use super::expression::{Scope, is_null};
use super::function;
use super::lag::{AGGREGATES, Call, Lags, Over};
use crate::expr::{Expr, Literal};
use crate::schema::DataType;

/// How many rows before a row may be asked for.
const MOST: usize = 1_000;

impl Scope<'_> {
    /// Plans a call with `OVER`.
    pub(super) fn lag(&self, called: &str, call: &ast::Function) -> Result<Expr, Fault> {
        if called == "lead" {
            return Err(Fault::of(
                call,
                "LEAD isn't supported, as it waits for rows to come; write LAG, which the later row has",
            ));
        }
        if called != "lag" {
            return Err(Fault::of(
                call,
                "OVER goes with LAG(x); other windows are made by FROM TUMBLE(…), HOP(…) or SESSION(…)",
            ));
        }
        let Some(lags) = &self.lags else { return Err(Fault::of(call, AGGREGATES)) };
        if lags.is_inside.replace(true) {
            let message =
                "LAG can't stand in LAG; name the first in FROM (SELECT …, LAG(x) OVER (…) AS previous FROM t) AS t";
            return Err(Fault::of(call, message));
        }
        let planned = self.looked_up(lags, call);
        lags.is_inside.set(false);
        let (over, call) = planned?;
        Ok(lags.take(over, call))
    }

    fn looked_up(&self, lags: &Lags, call: &ast::Function) -> Result<(Over, Call), Fault> {
        let has_more = call.filter.is_some() || call.null_treatment.is_some() || !call.within_group.is_empty();
        let (spec, arguments) = match (&call.over, function::arguments(call)?) {
            (Some(over), arguments) if !has_more => (over, arguments),
            _ => return Err(Fault::of(call, "write LAG(x) OVER (PARTITION BY k ORDER BY ts)")),
        };
        let spec = match spec {
            WindowType::WindowSpec(spec) => spec,
            WindowType::NamedWindow(name) => lags.window(name)?,
        };
        let (value, back, default) = match arguments.as_slice() {
            [Some(value)] => (value, 1, None),
            [Some(value), Some(back)] => (value, self.constant_integer(back, "how many rows before", 1)?, None),
            [Some(value), Some(back), Some(default)] => {
                (value, self.constant_integer(back, "how many rows before", 1)?, Some(default))
            }
            _ => return Err(Fault::of(call, "LAG is LAG(value[, rows before[, default]])")),
        };
        let over = self.over(spec, call)?;
        let (value, default) = match default {
            None => (self.value(value)?, None),
            Some(default) => {
                let (value, planned) = self.same_type(value, default)?;
                match planned {
                    planned if is_null(&planned) => (value, None),
                    Expr::Literal(_) => (value, Some(planned)),
                    _ => return Err(Fault::of(*default, "the default of LAG is a constant")),
                }
            }
        };
        if matches!(value, Expr::Literal(Literal::Null(_))) {
            return Err(Fault::of(call, "LAG of NULL is NULL"));
        }
        let back = usize::try_from(back).ok().filter(|back| *back <= MOST);
        let back = back.ok_or_else(|| Fault::of(call, format!("LAG looks at most {MOST} rows back")))?;
        Ok((over, Call { value, back, default }))
    }

    fn over(&self, spec: &WindowSpec, call: &ast::Function) -> Result<Over, Fault> {
        if spec.window_name.is_some() || spec.window_frame.is_some() {
            return Err(Fault::of(call, "LAG has no frame; write LAG(x) OVER (PARTITION BY k ORDER BY ts)"));
        }
        let key = |expr: &ast::Expr| match self.value(expr)? {
            key if key.data_type() == DataType::Json => {
                Err(Fault::of(expr, "JSON can't be a key; read a part of it with ->> 'key'"))
            }
            key => Ok(key),
        };
        let keys = spec.partition_by.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        let times = self.event_times();
        let goes_by = || {
            let times = list(times.iter().map(|(name, _)| name.as_str()));
            format!("LAG goes by an event time, ascending: ORDER BY one of {times}")
        };
        let [order] = spec.order_by.as_slice() else { return Err(Fault::of(call, goes_by())) };
        let is_ascending =
            matches!(order.options.sort, None | Some(ast::OrderBySort::Asc)) && order.options.nulls_first.is_none();
        match self.value(&order.expr)? {
            Expr::Column(time, _) if is_ascending && times.iter().any(|(_, column)| *column == time) => {
                Ok(Over { keys, time })
            }
            _ => Err(Fault::new(order.expr.span().start, goes_by())),
        }
    }
}
