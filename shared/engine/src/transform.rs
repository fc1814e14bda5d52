//! The one lowering of row expressions to Polars, which evaluates them in every layer: the speed layer on each
//! micro-batch, the batch layer on a scan of the archive.

mod cast;
mod json;
mod set;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;

use anabranch_plan::expr::{BinaryOp, Expr, Function, Literal, TimeUnit as Unit};
use anabranch_plan::schema::DataType;
use anabranch_plan::time::TIMES;
use polars::prelude::*;

/// Starts the threads of both of Polars' engines. It does so by itself at the first evaluation, but panics if the process may open
/// no more files by then.
pub fn start_threads() -> PolarsResult<()> {
    let nothing = DataFrame::empty().lazy().select([lit(0)]);
    nothing.clone().collect()?;
    nothing.collect_with_engine(Engine::Streaming)?;
    Ok(())
}

/// The one zero and the one NaN that stand for all.
pub(crate) fn canonical(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value + 0.0 }
}

/// How Polars holds a type. JSON is text; times are microseconds in UTC.
pub fn polars_type(data_type: &DataType) -> polars::prelude::DataType {
    use polars::prelude::DataType as P;
    match data_type {
        DataType::Text | DataType::Json => P::String,
        DataType::BigInt | DataType::Interval => P::Int64,
        DataType::Double => P::Float64,
        DataType::Boolean => P::Boolean,
        DataType::Timestamp => P::Datetime(TimeUnit::Microseconds, Some(TimeZone::UTC)),
        DataType::List(item) => P::List(Box::new(polars_type(item))),
    }
}

/// Intervals are shorter than this, about 146,000 years: times differ by less, and two of them can be added up.
const INTERVALS: i64 = 1 << 62;

/// A column by its name, whatever that is. (`col` takes some names for patterns.)
pub fn column(name: &str) -> polars::prelude::Expr {
    polars::prelude::Expr::Column(name.into())
}

/// A constant of its own type. (`lit` leaves that of a number to what it stands beside.)
pub(crate) fn constant<T>(value: T) -> polars::prelude::Expr
where
    Scalar: From<T>,
{
    lit(Scalar::from(value))
}

/// Lowers an expression. Every leaf has its bound type, so that nothing is left for Polars to infer.
pub fn lower(expr: &Expr) -> polars::prelude::Expr {
    match expr {
        Expr::Column(name, _) => column(name),
        Expr::Literal(literal) => lower_literal(literal),
        Expr::Not(x) => lower(x).not(),
        Expr::Negate(x) => -lower(x),
        Expr::Binary(left, op, right) => lower_binary(left, *op, right),
        Expr::IsNull(x) => lower(x).is_null(),
        Expr::In(x, list) => lower_in(x, list),
        Expr::Like { text, pattern, ignore_case } => {
            lower(text).str().contains(lit(like_to_regex(pattern, *ignore_case)), true)
        }
        Expr::Case { branches, otherwise } => {
            let last = otherwise.as_deref().map_or_else(|| lower_null(&expr.data_type()), lower);
            branches.iter().rev().fold(last, |rest, (when, then)| ternary_expr(lower(when), lower(then), rest))
        }
        Expr::Cast(x, to) => lower_cast(x, to),
        Expr::Call(function, arguments) => lower_call(function, arguments),
    }
}

/// For which rows a condition holds. A null is no yes.
pub fn holds(condition: &Expr, rows: DataFrame) -> PolarsResult<Vec<bool>> {
    // Beside the columns, as a constant alone would make one row.
    let held = rows.lazy().with_column(lower(condition).alias("__holds")).select([column("__holds")]).collect()?;
    Ok(held.column("__holds")?.bool()?.iter().map(|holds| holds == Some(true)).collect())
}

fn lower_null(data_type: &DataType) -> polars::prelude::Expr {
    lit(NULL).cast(polars_type(data_type))
}

fn lower_literal(literal: &Literal) -> polars::prelude::Expr {
    match literal {
        Literal::Null(data_type) => lower_null(data_type),
        Literal::Text(text) => lit(text.as_str()),
        Literal::BigInt(x) => constant(*x),
        Literal::Double(x) => constant(*x),
        Literal::Boolean(x) => lit(*x),
        Literal::Interval(micros) => constant(*micros),
        Literal::Timestamp(micros) => constant(*micros).cast(polars_type(&DataType::Timestamp)),
    }
}

/// Computes a column of another type from one, value by value.
fn each(
    x: polars::prelude::Expr,
    to: &DataType,
    compute: impl Fn(&Column) -> PolarsResult<Column> + Send + Sync + 'static,
) -> polars::prelude::Expr {
    let to = polars_type(to);
    x.map(move |values| compute(&values), move |_, field| Ok(Field::new(field.name().clone(), to.clone())))
}

fn lower_in(x: &Expr, list: &[Expr]) -> polars::prelude::Expr {
    let literals = list.iter().filter_map(|item| if let Expr::Literal(literal) = item { Some(literal) } else { None });
    let constants = set::Constants::new(&x.data_type(), literals);
    let is_constant = each(lower(x), &DataType::Boolean, move |values| constants.contain(values));
    let others = list.iter().filter(|item| !matches!(item, Expr::Literal(_)));
    others.fold(is_constant, |any, item| any.or(lower(x).eq(lower(item))))
}

fn lower_binary(left: &Expr, op: BinaryOp, right: &Expr) -> polars::prelude::Expr {
    use polars::prelude::DataType as P;
    let (x, y) = (lower(left), lower(right));
    let is_time = |side: &Expr| matches!(side.data_type(), DataType::Timestamp | DataType::Interval);
    match op {
        BinaryOp::Add | BinaryOp::Subtract if is_time(left) => lower_time_arithmetic(left, op, right),
        BinaryOp::Add => x + y,
        BinaryOp::Subtract => x - y,
        BinaryOp::Multiply => x * y,
        BinaryOp::Divide => {
            let (x, y) = (x.cast(P::Float64), y.cast(P::Float64));
            let by_zero = y.clone().eq(constant(0.0_f64));
            ternary_expr(by_zero, lower_null(&DataType::Double), x / y)
        }
        BinaryOp::Modulo => {
            let to = polars_type(&left.data_type());
            x.map_many(
                |operands| remainder(&operands[0], &operands[1]),
                &[y],
                move |_, fields| Ok(Field::new(fields[0].name().clone(), to.clone())),
            )
        }
        BinaryOp::Equal => x.eq(y),
        BinaryOp::NotEqual => x.neq(y),
        BinaryOp::Less => x.lt(y),
        BinaryOp::LessOrEqual => x.lt_eq(y),
        BinaryOp::Greater => x.gt(y),
        BinaryOp::GreaterOrEqual => x.gt_eq(y),
        BinaryOp::And => x.and(y),
        BinaryOp::Or => x.or(y),
        BinaryOp::Concat => concat_str([x, y], "", false),
    }
}

/// Sums and differences of timestamps and intervals, in microseconds. What is no time any more is null. Nothing overflows before: a
/// time is less than 2^58, and an interval less than 2^62.
fn lower_time_arithmetic(left: &Expr, op: BinaryOp, right: &Expr) -> polars::prelude::Expr {
    let micros = |side: &Expr| lower(side).cast(polars::prelude::DataType::Int64);
    let (x, y) = (micros(left), micros(right));
    let result = if op == BinaryOp::Add { x + y } else { x - y };
    let data_type = Expr::Binary(Box::new(left.clone()), op, Box::new(right.clone())).data_type();
    let (least, beyond) = match data_type {
        DataType::Timestamp => (TIMES.start, TIMES.end),
        _ => (-INTERVALS, INTERVALS),
    };
    let is_one = result.clone().gt_eq(constant(least)).and(result.clone().lt(constant(beyond)));
    ternary_expr(is_one, result, lower_null(&DataType::BigInt)).cast(polars_type(&data_type))
}

/// The remainder with the sign of the dividend; none of a division by zero. A constant beside a column is a column of one row.
fn remainder(x: &Column, y: &Column) -> PolarsResult<Column> {
    let height = if x.len() == 1 { y.len() } else { x.len() };
    let whole = |side: &Column| if side.len() == height { side.clone() } else { side.new_from_index(0, height) };
    let (x, y) = (whole(x), whole(y));
    let (x, y) = (x.as_materialized_series(), y.as_materialized_series());
    let remainders = if x.dtype() == &polars::prelude::DataType::Float64 {
        let of = |(x, y): (Option<f64>, Option<f64>)| Some(x? % y.filter(|y| *y != 0.0)?);
        x.f64()?.iter().zip(y.f64()?.iter()).map(of).collect::<Float64Chunked>().into_series()
    } else {
        // The least number has no opposite, so `checked_rem` by -1 would fail.
        let of = |(x, y): (Option<i64>, Option<i64>)| Some(x?.wrapping_rem(y.filter(|y| *y != 0)?));
        x.i64()?.iter().zip(y.i64()?.iter()).map(of).collect::<Int64Chunked>().into_series()
    };
    Ok(remainders.with_name(x.name().clone()).into_column())
}

fn lower_cast(x: &Expr, to: &DataType) -> polars::prelude::Expr {
    let value = lower(x);
    match (x.data_type(), to) {
        (from, to) if from == *to => value,
        (DataType::Text | DataType::Json, DataType::Text | DataType::Json) => value,
        (DataType::Double, DataType::BigInt) => each(value, to, |numbers| {
            let whole = numbers.f64()?.iter().map(|number| number.and_then(cast::double_to_bigint));
            Ok(whole.collect::<Int64Chunked>().with_name(numbers.name().clone()).into_column())
        }),
        (DataType::Double, DataType::Text) => each(value, to, |numbers| {
            let texts = numbers.f64()?.iter().map(|number| number.map(cast::from_double));
            Ok(texts.collect::<StringChunked>().with_name(numbers.name().clone()).into_column())
        }),
        (DataType::Text, DataType::BigInt) => {
            each(value, to, |texts| Ok(cast::texts::<Int64Type>(texts, cast::to_bigint)?.into_column()))
        }
        (DataType::Text, DataType::Double) => {
            each(value, to, |texts| Ok(cast::texts::<Float64Type>(texts, cast::to_double)?.into_column()))
        }
        (DataType::Text, DataType::Timestamp) => {
            each(value, to, |texts| cast::to_timestamps(texts)?.into_column().cast(&polars_type(&DataType::Timestamp)))
        }
        (DataType::Text, DataType::Boolean) => each(value, to, |texts| {
            let read = texts.str()?.iter().map(|text| text.and_then(cast::to_boolean));
            Ok(read.collect::<BooleanChunked>().with_name(texts.name().clone()).into_column())
        }),
        (DataType::Boolean, DataType::Text) => {
            let text = ternary_expr(value.clone(), lit("true"), lit("false"));
            ternary_expr(value.is_null(), lower_null(to), text)
        }
        _ => value.cast(polars_type(to)),
    }
}

fn lower_call(function: &Function, arguments: &[Expr]) -> polars::prelude::Expr {
    use polars::prelude::DataType as P;
    let x = lower(&arguments[0]);
    match function {
        Function::Lower => each(x, &DataType::Text, |texts| Ok(text::lower(texts.str()?).into_column())),
        Function::Upper => x.str().to_uppercase(),
        Function::Trim => x.str().strip_chars(lit(" ")),
        Function::Length => x.str().len_chars().cast(P::Int64),
        Function::Substring { from, length } => {
            let length = length.map_or_else(|| lit(NULL).cast(P::UInt64), |n| constant(n.max(0) as u64));
            x.str().slice(constant(from - 1), length)
        }
        Function::Replace { what, with } => x.str().replace_all(lit(what.as_str()), lit(with.as_str()), true),
        Function::StartsWith(prefix) => x.str().starts_with(lit(prefix.as_str())),
        Function::EndsWith(suffix) => x.str().ends_with(lit(suffix.as_str())),
        Function::Contains(part) => x.str().contains_literal(lit(part.as_str())),
        Function::RegexpMatches(pattern) => x.str().contains(lit(pattern.as_str()), true),
        Function::RegexpExtract { pattern, group } => {
            let found = x.clone().str().extract(lit(pattern.as_str()), *group).fill_null(lit(""));
            ternary_expr(x.is_null(), lower_null(&DataType::Text), found)
        }
        Function::RegexpExtractAll(pattern) => {
            let pattern = text::Pattern::new(pattern).map(Arc::new).map_err(|error| error.to_string());
            x.map(
                move |texts| {
                    let pattern = pattern.as_ref().map_err(|error| polars_err!(ComputeError: "{error}"))?;
                    Ok(pattern.extract_all(texts.str()?)?.into_column())
                },
                |_, field| Ok(Field::new(field.name().clone(), P::List(Box::new(P::String)))),
            )
        }
        Function::RegexpReplace { pattern, with, all } => {
            let replacement = text::Replacement::new(pattern, with, *all).map_err(|error| error.to_string());
            each(x, &DataType::Text, move |texts| {
                let replacement = replacement.as_ref().map_err(|error| polars_err!(ComputeError: "{error}"))?;
                Ok(replacement.replace(texts.str()?).into_column())
            })
        }
        Function::StringSplit(separator) => x.str().split(lit(separator.as_str())),
        Function::JsonText(path) => {
            let path = json::Path::new(path);
            each(x, &DataType::Text, move |texts| path.texts(texts))
        }
        Function::Coalesce => coalesce(&arguments.iter().map(lower).collect::<Vec<_>>()),
        Function::NullIf => {
            let same = x.clone().eq(lower(&arguments[1])).fill_null(lit(false));
            ternary_expr(same, lower_null(&arguments[0].data_type()), x)
        }
        Function::Abs => x.abs(),
        Function::Round => rounded(x, f64::round),
        Function::Floor => rounded(x, f64::floor),
        Function::Ceil => rounded(x, f64::ceil),
        Function::DateTrunc(unit) => x.dt().truncate(lit(match unit {
            Unit::Second => "1s",
            Unit::Minute => "1m",
            Unit::Hour => "1h",
            Unit::Day => "1d",
            Unit::Month => "1mo",
            Unit::Year => "1y",
        })),
        Function::Extract(unit) => match unit {
            Unit::Second => x.dt().second(),
            Unit::Minute => x.dt().minute(),
            Unit::Hour => x.dt().hour(),
            Unit::Day => x.dt().day(),
            Unit::Month => x.dt().month(),
            Unit::Year => x.dt().year(),
        }
        .cast(P::Int64),
    }
}

fn rounded(x: polars::prelude::Expr, round: fn(f64) -> f64) -> polars::prelude::Expr {
    each(x, &DataType::Double, move |numbers| Ok(numbers.f64()?.apply_values(round).into_column()))
}

/// The regular expression that matches what a `LIKE` pattern does.
fn like_to_regex(pattern: &str, ignore_case: bool) -> String {
    let mut regex = String::from(if ignore_case { "(?is)^" } else { "(?s)^" });
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match character {
            '%' => regex.push_str(".*"),
            '_' => regex.push('.'),
            '\\' => regex.push_str(&regex::escape(&characters.next().unwrap_or('\\').to_string())),
            other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push('$');
    regex
}
