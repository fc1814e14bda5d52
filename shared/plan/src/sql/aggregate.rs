//! Calls of aggregates.

use sqlparser::ast;

use super::error::Fault;
use super::expression::Scope;
use super::syntax::simple_name;
use super::{function, literal};
use crate::aggregation::{Aggregate, AggregateFunction};
use crate::expr::{Expr, Literal};
use crate::schema::DataType;

/// What stands in parentheses.
pub(super) fn inner(expr: &ast::Expr) -> &ast::Expr {
    match expr {
        ast::Expr::Nested(nested) => inner(nested),
        expr => expr,
    }
}

impl Scope<'_> {
    /// Plans an aggregate; `None` if the expression isn't one.
    pub(super) fn aggregate(&self, expr: &ast::Expr, name: &str) -> Result<Option<Aggregate>, Fault> {
        use AggregateFunction as A;
        let ast::Expr::Function(call) = inner(expr) else { return Ok(None) };
        let Some(called) = simple_name(&call.name).ok() else { return Ok(None) };
        let Some(mut function) = function::aggregate(&called) else { return Ok(None) };
        if call.over.is_some() {
            return Err(Fault::of(
                call,
                "OVER isn't supported; windows are made by FROM TUMBLE(…), HOP(…) or SESSION(…)",
            ));
        }
        if let ast::FunctionArguments::List(list) = &call.args
            && let Some(treatment) = list.duplicate_treatment
        {
            match (treatment, function) {
                (ast::DuplicateTreatment::All, _) => {}
                (ast::DuplicateTreatment::Distinct, A::Count) => function = A::CountDistinct,
                // The same value once or often: it is the same.
                (ast::DuplicateTreatment::Distinct, A::Min | A::Max | A::ApproxCountDistinct) => {}
                (ast::DuplicateTreatment::Distinct, _) => {
                    return Err(Fault::of(call, format!("{called}(DISTINCT …) isn't supported; there is {called}(…)")));
                }
            }
        }
        let has_parameters = !matches!(call.parameters, ast::FunctionArguments::None);
        if has_parameters || !call.within_group.is_empty() || call.null_treatment.is_some() || call.uses_odbc_syntax {
            return Err(Fault::of(
                call,
                format!("`{call}`: an aggregate is {called}(x), with FILTER (WHERE …) if need be"),
            ));
        }
        let mut place = None;
        let argument = match (function, function::arguments(call)?.as_slice()) {
            (A::Count, [None]) | (A::Count, []) => None,
            (A::Count, [Some(x)]) => match self.value(x)? {
                // A constant is never null.
                Expr::Literal(literal) if !matches!(literal, Literal::Null(_)) => None,
                argument => Some(argument),
            },
            (A::CountDistinct | A::ApproxCountDistinct, [Some(x)]) => Some(no_json(self, x, &called)?),
            (A::Sum | A::Avg, [Some(x)]) => Some(self.numeric(x, &called)?),
            (A::Spread(_), [Some(x)]) => Some(double(self.numeric(x, &called)?)),
            (A::ApproxPercentile(_), [Some(x), Some(share)]) => {
                function = A::ApproxPercentile(fraction(share)?);
                Some(double(self.numeric(x, &called)?))
            }
            (A::Min | A::Max, [Some(x)]) => Some(sortable(self, x, &called)?),
            (A::ArgMin | A::ArgMax, [Some(x), Some(by)]) => {
                place = Some(sortable(self, by, &called)?);
                Some(no_json(self, x, &called)?)
            }
            (A::Count, _) => return Err(Fault::of(call, "count is count(*), count(x) or count(DISTINCT x)")),
            (A::ArgMin | A::ArgMax, _) => {
                return Err(Fault::of(call, format!("{called} takes a value and where it is: {called}(x, by)")));
            }
            (A::ApproxPercentile(_), _) => {
                return Err(Fault::of(
                    call,
                    "approx_percentile takes a number and a share: approx_percentile(x, 0.95)",
                ));
            }
            _ => return Err(Fault::of(call, format!("{called} takes one value: {called}(x)"))),
        };
        let filter = call.filter.as_ref().map(|condition| self.condition(condition, "FILTER")).transpose()?;
        Ok(Some(Aggregate { name: name.to_owned(), function, argument, place, filter }))
    }
}

/// A value that has an order.
fn sortable(scope: &Scope, expr: &ast::Expr, called: &str) -> Result<Expr, Fault> {
    let value = scope.value(expr)?;
    if matches!(value.data_type(), DataType::Json | DataType::Boolean | DataType::Interval) {
        let message = format!("{called} takes a number, a text or a timestamp, not {}", value.data_type());
        return Err(Fault::of(expr, message));
    }
    Ok(value)
}

/// A value that can be compared. One JSON can be written in many ways.
fn no_json(scope: &Scope, expr: &ast::Expr, called: &str) -> Result<Expr, Fault> {
    let value = scope.value(expr)?;
    if value.data_type() == DataType::Interval {
        return Err(Fault::of(expr, format!("{called} doesn't take an INTERVAL; give it the timestamps")));
    }
    if value.data_type() == DataType::Json {
        return Err(Fault::of(expr, format!("{called} doesn't take JSON; read a part of it with ->> 'key'")));
    }
    Ok(value)
}

fn double(value: Expr) -> Expr {
    if value.data_type() == DataType::Double { value } else { Expr::Cast(Box::new(value), DataType::Double) }
}

/// A share from 0 to 1, as a constant.
fn fraction(expr: &ast::Expr) -> Result<f64, Fault> {
    let share = match inner(expr) {
        ast::Expr::Value(value) => match literal::literal(value)? {
            Literal::Double(share) => Some(share),
            Literal::BigInt(share) => Some(share as f64),
            _ => None,
        },
        _ => None,
    };
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| Fault::of(expr, format!("`{expr}`: the share is a constant from 0 to 1, such as 0.95")))
}
