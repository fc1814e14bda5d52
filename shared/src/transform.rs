//! The one lowering of row expressions to Polars, which evaluates them in every layer: the speed layer on each
//! micro-batch, the batch layer on a scan of the archive.

mod text;

use std::sync::Arc;

use polars::prelude::*;

use crate::expr::{BinaryOp, Expr, Function, Literal, TimeUnit as Unit};
use crate::schema::DataType;

/// How Polars holds a type. JSON is text; times are microseconds in UTC.
pub fn polars_type(data_type: &DataType) -> polars::prelude::DataType {
    use polars::prelude::DataType as P;
    match data_type {
        DataType::Text | DataType::Json => P::String,
        DataType::BigInt => P::Int64,
        DataType::Double => P::Float64,
        DataType::Boolean => P::Boolean,
        DataType::Timestamp => P::Datetime(TimeUnit::Microseconds, Some(TimeZone::UTC)),
        DataType::List(item) => P::List(Box::new(polars_type(item))),
    }
}

/// Lowers an expression.
pub fn lower(expr: &Expr) -> polars::prelude::Expr {
    match expr {
        Expr::Column(name, _) => col(name.as_str()),
        Expr::Literal(literal) => lower_literal(literal),
        Expr::Not(x) => lower(x).not(),
        Expr::Negate(x) => lit(0) - lower(x),
        Expr::Binary(left, op, right) => lower_binary(left, *op, right),
        Expr::IsNull(x) => lower(x).is_null(),
        Expr::In(x, list) => list
            .iter()
            .map(|item| lower(x).eq(lower(item)))
            .reduce(|any, one| any.or(one))
            .unwrap_or_else(|| lit(false)),
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
    let held = rows.lazy().select([lower(condition).alias("holds")]).collect()?;
    Ok(held.column("holds")?.bool()?.iter().map(|holds| holds == Some(true)).collect())
}

fn lower_null(data_type: &DataType) -> polars::prelude::Expr {
    lit(NULL).cast(polars_type(data_type))
}

fn lower_literal(literal: &Literal) -> polars::prelude::Expr {
    match literal {
        Literal::Null(data_type) => lower_null(data_type),
        Literal::Text(text) => lit(text.as_str()),
        Literal::BigInt(x) => lit(*x),
        Literal::Double(x) => lit(*x),
        Literal::Boolean(x) => lit(*x),
        Literal::Timestamp(micros) => lit(*micros).cast(polars_type(&DataType::Timestamp)),
    }
}

fn lower_binary(left: &Expr, op: BinaryOp, right: &Expr) -> polars::prelude::Expr {
    let is_double = left.data_type() == DataType::Double;
    let (x, y) = (lower(left), lower(right));
    match op {
        BinaryOp::Add => x + y,
        BinaryOp::Subtract => x - y,
        BinaryOp::Multiply => x * y,
        BinaryOp::Divide => {
            let (x, y) = (x.cast(polars::prelude::DataType::Float64), y.cast(polars::prelude::DataType::Float64));
            let by_zero = y.clone().eq(lit(0.0));
            ternary_expr(by_zero, lower_null(&DataType::Double), x / y)
        }
        BinaryOp::Modulo => {
            // Polars' remainder takes the divisor's sign; SQL's takes the dividend's.
            let zero = || if is_double { lit(0.0) } else { lit(0_i64) };
            let floored = x.clone() % y.clone();
            let signs_differ = x.lt(zero()).neq(y.clone().lt(zero()));
            let adjust = floored.clone().neq(zero()).and(signs_differ);
            let remainder = ternary_expr(adjust, floored.clone() - y.clone(), floored);
            ternary_expr(y.eq(zero()), lower_null(&left.data_type()), remainder)
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

fn lower_cast(x: &Expr, to: &DataType) -> polars::prelude::Expr {
    let value = lower(x);
    match (x.data_type(), to) {
        (from, to) if from == *to => value,
        (DataType::Text | DataType::Json, DataType::Text | DataType::Json) => value,
        (DataType::Double, DataType::BigInt) => {
            value.round(0, RoundMode::HalfToEven).cast(polars::prelude::DataType::Int64)
        }
        (DataType::Text, DataType::Timestamp) => value.map(
            |texts| {
                let texts = texts.str()?;
                let micros: Int64Chunked =
                    texts.iter().map(|text| text.and_then(crate::clock::parse_timestamp)).collect();
                micros
                    .into_series()
                    .with_name(texts.name().clone())
                    .cast(&polars_type(&DataType::Timestamp))
                    .map(Column::from)
            },
            |_, field| Ok(Field::new(field.name().clone(), polars_type(&DataType::Timestamp))),
        ),
        (DataType::Text, DataType::Boolean) => {
            let text = value.str().to_lowercase();
            let is_one_of = |words: [&str; 4]| {
                words.into_iter().map(|word| text.clone().eq(lit(word))).reduce(|a, b| a.or(b)).unwrap_or(lit(false))
            };
            let otherwise = ternary_expr(is_one_of(["false", "f", "no", "0"]), lit(false), lower_null(to));
            ternary_expr(is_one_of(["true", "t", "yes", "1"]), lit(true), otherwise)
        }
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
        Function::Lower => x.map(|texts| Ok(text::lower(texts.str()?).into_column()), |_, field| Ok(field.clone())),
        Function::Upper => x.str().to_uppercase(),
        Function::Trim => x.str().strip_chars(lit(NULL)),
        Function::Length => x.str().len_chars().cast(P::Int64),
        Function::Substring { from, length } => {
            let length = length.map_or_else(|| lit(NULL).cast(P::UInt64), |n| lit(n.max(0) as u64));
            x.str().slice(lit(from - 1), length)
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
        Function::RegexpReplace { pattern, with } => {
            x.str().replace_all(lit(pattern.as_str()), lit(with.as_str()), false)
        }
        Function::StringSplit(separator) => x.str().split(lit(separator.as_str())),
        Function::JsonText(path) => x.str().json_path_match(lit(path.as_str())),
        Function::Coalesce => coalesce(&arguments.iter().map(lower).collect::<Vec<_>>()),
        Function::NullIf => {
            let same = x.clone().eq(lower(&arguments[1])).fill_null(lit(false));
            ternary_expr(same, lower_null(&arguments[0].data_type()), x)
        }
        Function::Abs => x.abs(),
        Function::Round => x.cast(P::Float64).round(0, RoundMode::HalfAwayFromZero),
        Function::Floor => x.cast(P::Float64).floor(),
        Function::Ceil => x.cast(P::Float64).ceil(),
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
