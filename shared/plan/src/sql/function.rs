//! Calls of scalar functions.

use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments, Spanned};

use super::error::{Fault, suggestion};
use super::expression::Scope;
use super::literal;
use super::syntax::simple_name;
use crate::aggregation::{AggregateFunction, Spread};
use crate::expr::{Expr, Function};
use crate::function::{self as catalog, AGGREGATES, Entry, SCALARS};
use crate::schema::DataType;

/// The aggregate of a name. The share of `approx_percentile` is an argument, and `DISTINCT` no part of the name.
pub(super) fn aggregate(name: &str) -> Option<AggregateFunction> {
    use AggregateFunction as A;
    let spread = |is_sample, is_root| A::Spread(Spread { is_sample, is_root });
    Some(match catalog::aggregate(name)?.name() {
        "count" => A::Count,
        "sum" => A::Sum,
        "avg" => A::Avg,
        "min" => A::Min,
        "max" => A::Max,
        "var_samp" => spread(true, false),
        "var_pop" => spread(false, false),
        "stddev_samp" => spread(true, true),
        "stddev_pop" => spread(false, true),
        "arg_min" => A::ArgMin,
        "arg_max" => A::ArgMax,
        "approx_count_distinct" => A::ApproxCountDistinct,
        "approx_percentile" => A::ApproxPercentile(0.5),
        _ => return None,
    })
}

/// The arguments of a call; an asterisk is none.
pub(super) fn arguments(call: &ast::Function) -> Result<Vec<Option<&ast::Expr>>, Fault> {
    let FunctionArguments::List(list) = &call.args else {
        return match &call.args {
            FunctionArguments::None => Ok(Vec::new()),
            _ => Err(Fault::of(call, "subqueries aren't supported")),
        };
    };
    if !list.clauses.is_empty() {
        return Err(Fault::of(call, format!("`{call}`: a call has arguments only")));
    }
    let argument = |argument| match argument {
        &FunctionArg::Unnamed(FunctionArgExpr::Expr(ref expr)) => Ok(Some(expr)),
        FunctionArg::Unnamed(FunctionArgExpr::Wildcard) => Ok(None),
        other => Err(Fault::of(call, format!("`{other}`: arguments are given by position"))),
    };
    list.args.iter().map(argument).collect()
}

impl Scope<'_> {
    /// A call of a scalar function.
    pub(super) fn function(&self, call: &ast::Function) -> Result<Expr, Fault> {
        let name = simple_name(&call.name)?;
        if call.over.is_some() || name == "lag" || name == "lead" {
            return self.lag(&name, call);
        }
        if aggregate(&name).is_some() {
            if let Some(selected) = self.selected(call)? {
                return Ok(selected);
            }
            return Err(Fault::of(
                call,
                format!(
                    "aggregate `{name}` can't stand here; each is a column of its own in the SELECT list, as {name}(…) AS name"
                ),
            ));
        }
        if call.filter.is_some() {
            return Err(Fault::of(call, format!("FILTER belongs to an aggregate; `{name}` isn't one")));
        }
        let has_distinct = matches!(&call.args, FunctionArguments::List(list) if list.duplicate_treatment.is_some());
        let is_plain = matches!(call.parameters, FunctionArguments::None) && call.within_group.is_empty();
        if has_distinct || !is_plain || call.null_treatment.is_some() || call.uses_odbc_syntax {
            return Err(Fault::of(call, format!("`{call}`: a call has arguments only")));
        }
        let arguments = arguments(call)?
            .into_iter()
            .map(|argument| argument.ok_or_else(|| Fault::of(call, format!("`{name}` takes values, not *"))))
            .collect::<Result<Vec<_>, _>>()?;
        self.call(&name, &arguments, call)
    }

    fn call(&self, name: &str, arguments: &[&ast::Expr], call: &ast::Function) -> Result<Expr, Fault> {
        use Function as F;
        match (catalog::scalar(name).map_or(name, |entry| entry.name()), arguments) {
            ("lower", [x]) => self.text_call(F::Lower, x, name),
            ("upper", [x]) => self.text_call(F::Upper, x, name),
            ("trim", [x]) => self.text_call(F::Trim, x, name),
            ("length", [x]) => self.text_call(F::Length, x, name),
            ("substring", [x, from]) => self.substring(x, Some(from), None),
            ("substring", [x, from, length]) => self.substring(x, Some(from), Some(length)),
            ("replace", [x, what, with]) => {
                let what = self.nonempty(what, "the text looked for")?;
                let with = self.constant_text(with, "the replacement")?;
                self.text_call(F::Replace { what, with }, x, name)
            }
            ("starts_with", [x, prefix]) => {
                self.text_call(F::StartsWith(self.constant_text(prefix, "the prefix")?), x, name)
            }
            ("ends_with", [x, suffix]) => {
                self.text_call(F::EndsWith(self.constant_text(suffix, "the suffix")?), x, name)
            }
            ("contains", [x, part]) => self.text_call(F::Contains(self.constant_text(part, "the part")?), x, name),
            ("regexp_matches", [x, pattern]) => self.text_call(F::RegexpMatches(self.pattern(pattern, 0)?), x, name),
            ("regexp_extract", [x, pattern]) => {
                self.text_call(F::RegexpExtract { pattern: self.pattern(pattern, 0)?, group: 0 }, x, name)
            }
            ("regexp_extract", [x, pattern, group]) => {
                let group = self.constant_integer(group, "the group", 0)?;
                let group = usize::try_from(group).unwrap_or(usize::MAX);
                self.text_call(F::RegexpExtract { pattern: self.pattern(pattern, group)?, group }, x, name)
            }
            ("regexp_extract_all", [x, pattern]) => {
                self.text_call(F::RegexpExtractAll(self.pattern(pattern, 0)?), x, name)
            }
            ("regexp_replace", [x, pattern, with]) => self.regexp_replace(x, pattern, with, false),
            ("regexp_replace", [x, pattern, with, flags]) if self.constant_text(flags, "the flags")? == "g" => {
                self.regexp_replace(x, pattern, with, true)
            }
            ("regexp_replace", [_, _, _, flags]) => {
                let message =
                    "the flags of `regexp_replace` are 'g', for every match; write (?i) at the start of the pattern";
                Err(Fault::of(*flags, message))
            }
            ("regexp_matches" | "regexp_extract_all", [_, _, .., extra]) => {
                Err(Fault::of(*extra, format!("`{name}` has no flags; write (?i) at the start of the pattern")))
            }
            ("string_split", [x, separator]) => {
                self.text_call(F::StringSplit(self.nonempty(separator, "the separator")?), x, name)
            }
            ("json_extract_string", [x, path]) => {
                let path = self.json_path(path)?;
                Ok(Expr::Call(F::JsonText(path), vec![self.typed(x, &DataType::Json, name)?]))
            }
            ("coalesce", [_, ..]) => Ok(Expr::Call(F::Coalesce, self.one_type(arguments)?)),
            ("nullif", [x, y]) => {
                let (planned, other) = self.same_type(x, y)?;
                if planned.data_type() == DataType::Json {
                    return Err(Fault::of(*x, "JSON can't be compared; read a part of it with ->> 'key'"));
                }
                Ok(Expr::Call(F::NullIf, vec![planned, other]))
            }
            ("abs", [x]) => Ok(Expr::Call(F::Abs, vec![self.numeric(x, name)?])),
            ("round", [x]) => self.rounded(F::Round, x, name),
            ("floor", [x]) => self.rounded(F::Floor, x, name),
            ("ceil", [x]) => self.rounded(F::Ceil, x, name),
            ("date_trunc", [unit, x]) => {
                let text = self.constant_text(unit, "the unit")?;
                let planned = literal::time_unit(&text).map_err(|message| Fault::of(*unit, message))?;
                Ok(Expr::Call(F::DateTrunc(planned), vec![self.typed(x, &DataType::Timestamp, name)?]))
            }
            _ => Err(Fault::of(call, refusal(name, arguments.len()))),
        }
    }

    /// A call whose one argument that isn't constant is a text.
    pub(super) fn text_call(&self, function: Function, x: &ast::Expr, name: &str) -> Result<Expr, Fault> {
        Ok(Expr::Call(function, vec![self.typed(x, &DataType::Text, name)?]))
    }

    pub(super) fn substring(
        &self,
        x: &ast::Expr,
        from: Option<&ast::Expr>,
        length: Option<&ast::Expr>,
    ) -> Result<Expr, Fault> {
        let from = from.map_or(Ok(1), |from| self.constant_integer(from, "where the substring starts", 1))?;
        let length = length.map(|length| self.constant_integer(length, "the substring's length", 0)).transpose()?;
        self.text_call(Function::Substring { from, length }, x, "substring")
    }

    /// A number without a fraction; a whole one is that already.
    pub(super) fn rounded(&self, function: Function, x: &ast::Expr, name: &str) -> Result<Expr, Fault> {
        let number = self.numeric(x, name)?;
        Ok(if number.data_type() == DataType::Double { Expr::Call(function, vec![number]) } else { number })
    }

    fn regexp_replace(&self, x: &ast::Expr, pattern: &ast::Expr, with: &ast::Expr, all: bool) -> Result<Expr, Fault> {
        let template = self.constant_text(with, "the replacement")?;
        let pattern = self.pattern(pattern, 0)?;
        let parts = literal::replacement(&template, &pattern).map_err(|message| Fault::of(with, message))?;
        self.text_call(Function::RegexpReplace { pattern, with: parts, all }, x, "regexp_replace")
    }

    /// A regular expression that has a group.
    fn pattern(&self, expr: &ast::Expr, group: usize) -> Result<String, Fault> {
        let pattern = self.constant_text(expr, "a regular expression")?;
        literal::regex(&pattern, group).map_err(|message| Fault::of(expr, message))?;
        Ok(pattern)
    }

    fn nonempty(&self, expr: &ast::Expr, what: &str) -> Result<String, Fault> {
        let text = self.constant_text(expr, what)?;
        if text.is_empty() { Err(Fault::new(expr.span().start, format!("{what} can't be empty"))) } else { Ok(text) }
    }
}

fn refusal(name: &str, arguments: usize) -> String {
    let Some(Entry { takes, .. }) = catalog::scalar(name) else {
        return match name {
            "concat" => {
                "unsupported function `concat`; write a || b, and coalesce(x, '') for what may be null".to_owned()
            }
            "now" | "current_timestamp" | "current_date" | "random" | "uuid" => format!(
                "`{name}` isn't supported: a view depends on its events alone, so that it can be computed again"
            ),
            "session" | "tumble" | "hop" => format!("`{name}` makes windows; it belongs to FROM"),
            _ => {
                let names = || SCALARS.iter().chain(AGGREGATES).flat_map(|entry| entry.names).copied();
                let close = suggestion(name, names());
                let shown = |entries: &[Entry]| entries.iter().map(Entry::name).collect::<Vec<_>>().join(", ");
                match close.is_empty() {
                    true => format!(
                        "unknown function `{name}`; the aggregates are {}, the functions {}",
                        shown(AGGREGATES),
                        shown(SCALARS)
                    ),
                    false => format!("unknown function `{name}`{close}"),
                }
            }
        };
    };
    let plural = if arguments == 1 { "" } else { "s" };
    format!("`{name}` is {name}{takes}; it was given {arguments} argument{plural}")
}
