//! Row expressions: names resolved, types checked, casts put in.

use std::cell::Cell;

use sqlparser::ast::{self, Ident, Spanned};

use super::error::{Fault, list, suggestion};
use super::lag::Lags;
use super::literal;
use super::syntax::fold;
use crate::aggregation::{Aggregate, Key};
use crate::expr::{BinaryOp, Expr, Function, Literal};
use crate::rows::Rows;
use crate::schema::{Column, DataType, Table};

/// How deep an expression may be, so that no layer's recursion can exhaust its stack.
const MAX_DEPTH: usize = 200;

/// The names that expressions of a query can read.
pub(super) struct Scope<'a> {
    relations: Vec<Relation>,
    /// Which of them has windows, by the event time of that name.
    windowed: Option<(usize, String)>,
    /// What aggregates in an expression stand for, if it is over the columns of an answer.
    selected: Option<Selected<'a>>,
    /// Where calls of LAG are taken down, if they may stand in an expression.
    pub lags: Option<Lags>,
    depth: Cell<usize>,
}

/// The aggregates that are selected, over rows of another scope.
struct Selected<'a> {
    rows: &'a Scope<'a>,
    keys: &'a [Key],
    aggregates: &'a [Aggregate],
}

/// What FROM names: a table, a view, a query, or the items of a list.
pub(super) struct Relation {
    /// What may stand before a column's name.
    pub qualifier: String,
    /// What it is, for messages.
    pub what: String,
    /// Its columns' names and types.
    pub columns: Vec<(String, DataType)>,
    /// Those of them that are event times.
    pub times: Vec<String>,
    /// Whether it is the items of a list.
    pub is_list: bool,
    /// Whether rows have its columns under names that begin with the qualifier, as they have those of others too.
    pub is_qualified: bool,
}

impl Relation {
    /// Rows of that name.
    pub fn new(qualifier: String, what: String, rows: &Rows) -> Self {
        let (columns, times) = (named(rows.schema()), rows.event_times());
        Self { qualifier, what, columns, times, is_list: false, is_qualified: false }
    }

    /// The events of a table, of which others than views speak.
    pub fn of_table(table: &Table) -> Self {
        let (qualifier, what) = (table.name.clone(), format!("table `{}`", table.name));
        let columns = named(table.columns.clone());
        Self { qualifier, what, columns, times: Vec::new(), is_list: false, is_qualified: false }
    }

    fn column(&self, name: &str) -> Option<Expr> {
        let (_, data_type) = self.columns.iter().find(|(column, _)| column == name)?;
        let name = if self.is_qualified { format!("{}.{name}", self.qualifier) } else { name.to_owned() };
        Some(Expr::Column(name, data_type.clone()))
    }

    fn all(&self) -> impl Iterator<Item = (String, Expr)> {
        self.columns.iter().filter_map(|(name, _)| Some((name.clone(), self.column(name)?)))
    }
}

fn named(columns: Vec<Column>) -> Vec<(String, DataType)> {
    columns.into_iter().map(|column| (column.name, column.data_type)).collect()
}

impl<'a> Scope<'a> {
    /// The columns of one relation, which has windows by an event time if that is given.
    pub fn new(relation: Relation, windows_by: Option<String>) -> Self {
        let windowed = windows_by.map(|time| (0, time));
        Self { relations: vec![relation], windowed, selected: None, lags: None, depth: Cell::new(0) }
    }

    /// The columns of an answer, whose aggregates may be named by their calls too.
    pub fn of_answer(
        columns: Vec<(String, DataType)>,
        rows: &'a Scope<'a>,
        keys: &'a [Key],
        aggregates: &'a [Aggregate],
    ) -> Self {
        let (qualifier, what) = (rows.relations[0].qualifier.clone(), "the SELECT list".to_owned());
        let relation = Relation { qualifier, what, columns, times: Vec::new(), is_list: false, is_qualified: false };
        Self { selected: Some(Selected { rows, keys, aggregates }), ..Self::new(relation, None) }
    }

    /// The selected aggregate that a call is, if aggregates may stand here.
    pub fn selected(&self, call: &ast::Function) -> Result<Option<Expr>, Fault> {
        let Some(Selected { rows, aggregates, .. }) = &self.selected else { return Ok(None) };
        let Some(wanted) = rows.aggregate(&ast::Expr::Function(call.clone()), "")? else { return Ok(None) };
        let is_wanted = |aggregate: &&Aggregate| Aggregate { name: String::new(), ..(*aggregate).clone() } == wanted;
        let found = aggregates
            .iter()
            .find(is_wanted)
            .ok_or_else(|| Fault::of(call, format!("`{call}` is read but not selected; add it to the SELECT list")))?;
        Ok(Some(Expr::Column(found.name.clone(), found.data_type())))
    }

    /// Adds what else FROM names.
    pub fn add(&mut self, relation: Relation) {
        self.relations.push(relation);
    }

    /// Whether a name is what may stand before the columns of a relation.
    pub fn is_relation(&self, name: &str) -> bool {
        self.relations.iter().any(|relation| relation.qualifier == name)
    }

    /// Whether a name is what may stand before the bounds of windows.
    pub fn is_windowed(&self, name: &str) -> bool {
        self.windowed.as_ref().is_some_and(|(at, _)| self.relations[*at].qualifier == name)
    }

    /// The event times: their names, and what rows call them.
    pub fn event_times(&self) -> Vec<(String, String)> {
        let times = |relation: &Relation| {
            let column = |time: &String| match relation.column(time) {
                Some(Expr::Column(column, _)) => Some((time.clone(), column)),
                _ => None,
            };
            relation.times.iter().filter_map(column).collect::<Vec<_>>()
        };
        self.relations.iter().flat_map(times).collect()
    }

    /// Whether a name is that of a column.
    pub fn has_column(&self, name: &str) -> bool {
        self.column(name).is_some()
    }

    /// How many relations there are.
    pub fn relations(&self) -> usize {
        self.relations.len()
    }

    /// All columns by their names, in the order of FROM.
    pub fn columns(&self) -> Vec<(String, Expr)> {
        self.relations.iter().flat_map(Relation::all).collect()
    }

    /// The columns of the relation of a name.
    pub fn columns_of(&self, name: &str) -> Option<Vec<(String, Expr)>> {
        let relation = self.relations.iter().find(|relation| relation.qualifier == name)?;
        Some(relation.all().collect())
    }

    fn column(&self, name: &str) -> Option<Expr> {
        self.relations.iter().find_map(|relation| relation.column(name))
    }

    fn resolve(&self, qualifier: Option<&Ident>, ident: &Ident) -> Result<Expr, Fault> {
        let name = fold(ident);
        if let (Some(qualifier), Some(Selected { rows, keys, .. })) = (qualifier, &self.selected) {
            let wanted = rows.resolve(Some(qualifier), ident)?;
            let key = keys.iter().find(|key| key.expr == wanted);
            let message =
                || format!("`{qualifier}.{ident}` is read but not grouped by; HAVING is over the columns of an answer");
            let key = key.ok_or_else(|| Fault::new(qualifier.span.start, message()))?;
            return Ok(Expr::Column(key.name.clone(), key.expr.data_type()));
        }
        if let Some(qualifier) = qualifier {
            let (place, wanted) = (qualifier.span.start, fold(qualifier));
            let Some(relation) = self.relations.iter().find(|relation| relation.qualifier == wanted) else {
                let known = self.relations.iter().map(|relation| relation.qualifier.as_str());
                let known = list(known.filter(|name| !name.is_empty()));
                return Err(Fault::new(place, format!("unknown table `{wanted}`; this view reads {known}")));
            };
            if let Some(column) = relation.column(&name) {
                return Ok(column);
            }
            if self.has_column(&name) {
                return Err(Fault::new(place, format!("`{wanted}` has no column `{name}`; write `{name}` alone")));
            }
        }
        let mut holders = self.relations.iter().filter(|relation| relation.column(&name).is_some());
        if let (Some(one), Some(other)) = (holders.next(), holders.next()) {
            let (one, other) = (&one.qualifier, &other.qualifier);
            let message =
                format!("`{name}` is a column of `{one}` and of `{other}`; write {one}.{name} or {other}.{name}");
            return Err(Fault::new(ident.span.start, message));
        }
        self.column(&name).ok_or_else(|| Fault::new(ident.span.start, self.unknown_column(&name)))
    }

    fn unknown_column(&self, name: &str) -> String {
        if matches!(name, "window_start" | "window_end") {
            return if self.selected.is_some() {
                format!("`{name}` needs windows, and the view has none: read FROM TUMBLE(…), HOP(…) or SESSION(…)")
            } else if let Some((_, time)) = &self.windowed {
                format!("`{name}` can only be selected and grouped by as it is; filter on `{time}`")
            } else {
                let first = &self.relations[0];
                let time = first.times.first().map_or("event_time", |name| name);
                format!(
                    "`{name}` needs windows: read FROM TUMBLE({}, {time}, INTERVAL '1 minute'), HOP(…) or SESSION(…)",
                    first.qualifier
                )
            };
        }
        let [first, others @ ..] = self.relations.as_slice() else { return format!("unknown column `{name}`") };
        let names = |relation: &Relation| list(relation.columns.iter().map(|(name, _)| name.as_str()));
        let others = others.iter().map(|relation| match relation.is_list {
            true => format!(", and UNNEST makes {}", names(relation)),
            false => format!(", and {} has {}", relation.what, names(relation)),
        });
        let columns = self.columns();
        let close = suggestion(name, columns.iter().map(|(name, _)| name.as_str()));
        let others = others.collect::<String>();
        format!("unknown column `{name}`; {} has {}{others}{close}", first.what, names(first))
    }

    /// A condition.
    pub fn condition(&self, expr: &ast::Expr, clause: &str) -> Result<Expr, Fault> {
        let planned = self.value(expr)?;
        coerce(planned, &DataType::Boolean)
            .map_err(|found| Fault::of(expr, format!("{clause} takes a condition, a BOOLEAN, not {found}")))
    }

    /// An expression that isn't a list.
    pub fn value(&self, expr: &ast::Expr) -> Result<Expr, Fault> {
        let planned = self.any(expr)?;
        match planned.data_type() {
            DataType::List(_) => Err(Fault::of(expr, "a list can only be read by CROSS JOIN UNNEST(…) AS t(item)")),
            _ => Ok(planned),
        }
    }

    /// An expression of a type.
    pub fn typed(&self, expr: &ast::Expr, data_type: &DataType, what: &str) -> Result<Expr, Fault> {
        coerce(self.value(expr)?, data_type).map_err(|found| {
            Fault::of(expr, format!("{what} takes {data_type}, not {found}{}", cast_hint(&found, data_type)))
        })
    }

    /// A number.
    pub fn numeric(&self, expr: &ast::Expr, what: &str) -> Result<Expr, Fault> {
        number(self.value(expr)?, expr, what)
    }

    /// Any expression, a list too.
    pub fn any(&self, expr: &ast::Expr) -> Result<Expr, Fault> {
        let depth = self.depth.get();
        if depth == MAX_DEPTH {
            return Err(Fault::of(expr, format!("the expression is more than {MAX_DEPTH} levels deep")));
        }
        self.depth.set(depth + 1);
        let planned = self.plan(expr).map_err(|fault| fault.or_at(|| expr.span().start));
        self.depth.set(depth);
        planned
    }

    fn plan(&self, expr: &ast::Expr) -> Result<Expr, Fault> {
        use ast::Expr as E;
        let boolean = |x: &ast::Expr, what: &str| self.typed(x, &DataType::Boolean, what).map(Box::new);
        let is_true = |x: Box<Expr>| Expr::Call(Function::Coalesce, vec![*x, Expr::Literal(Literal::Boolean(false))]);
        match expr {
            E::Identifier(ident) => self.resolve(None, ident),
            E::CompoundIdentifier(parts) => match parts.as_slice() {
                [qualifier, ident] => self.resolve(Some(qualifier), ident),
                _ => Err(Fault::of(expr, format!("`{expr}`: write table.column"))),
            },
            E::Nested(inner) => self.any(inner),
            E::Value(value) => literal::literal(value).map(Expr::Literal),
            E::TypedString(typed) => match (literal::data_type(&typed.data_type), typed.value.clone().into_string()) {
                (Ok(DataType::Timestamp), Some(text)) => {
                    literal::timestamp(&text).map(Expr::Literal).map_err(|message| Fault::of(&typed.value, message))
                }
                _ => Err(Fault::of(&typed.value, format!("`{expr}`: write TIMESTAMP '…' or a CAST"))),
            },
            E::UnaryOp { op: ast::UnaryOperator::Not, expr } => Ok(Expr::Not(boolean(expr, "NOT")?)),
            E::UnaryOp { op: ast::UnaryOperator::Plus, expr } => self.numeric(expr, "+"),
            E::UnaryOp { op: ast::UnaryOperator::Minus, expr } => self.negate(expr),
            E::BinaryOp { left, op, right } => self.binary(expr, left, op, right),
            E::IsNull(x) => Ok(Expr::IsNull(Box::new(self.value(x)?))),
            E::IsNotNull(x) => Ok(not(Expr::IsNull(Box::new(self.value(x)?)))),
            E::IsTrue(x) => Ok(is_true(boolean(x, "IS TRUE")?)),
            E::IsNotTrue(x) => Ok(not(is_true(boolean(x, "IS NOT TRUE")?))),
            E::IsFalse(x) => Ok(is_true(Box::new(Expr::Not(boolean(x, "IS FALSE")?)))),
            E::IsNotFalse(x) => Ok(not(is_true(Box::new(Expr::Not(boolean(x, "IS NOT FALSE")?))))),
            E::IsUnknown(x) => Ok(Expr::IsNull(boolean(x, "IS UNKNOWN")?)),
            E::IsNotUnknown(x) => Ok(not(Expr::IsNull(boolean(x, "IS NOT UNKNOWN")?))),
            E::In { expr: x, target: ast::InTarget::List(items), negated, global: false } => {
                self.in_list(x, items).map(|found| negate_if(*negated, found))
            }
            E::In { .. } => Err(Fault::of(expr, "IN takes a list of values: x IN (1, 2, 3)")),
            E::Between { expr: x, negated, low, high } => {
                let from = self.compare(x, BinaryOp::GreaterOrEqual, low)?;
                let to = self.compare(x, BinaryOp::LessOrEqual, high)?;
                Ok(negate_if(*negated, Expr::Binary(Box::new(from), BinaryOp::And, Box::new(to))))
            }
            E::Like { negated, any: false, expr, pattern, escape_char } => {
                self.like(expr, pattern, escape_char.as_deref(), false).map(|found| negate_if(*negated, found))
            }
            E::ILike { negated, any: false, expr, pattern, escape_char } => {
                self.like(expr, pattern, escape_char.as_deref(), true).map(|found| negate_if(*negated, found))
            }
            E::SimilarTo { .. } | E::RLike { .. } => {
                Err(Fault::of(expr, "unsupported match; write regexp_matches(text, 'pattern')"))
            }
            E::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            E::Cast { expr: x, data_type, format: None, .. } => self.cast(x, data_type),
            E::Function(function) => self.function(function),
            E::Trim { trim_where: None, trim_what: None, expr: x, trim_characters: None } => {
                self.text_call(Function::Trim, x, "trim")
            }
            E::Trim { .. } => {
                Err(Fault::of(expr, "trim(text) takes white space off both ends; there are no other forms"))
            }
            E::Substring { expr: x, substring_from, substring_for, .. } => {
                self.substring(x, substring_from.as_deref(), substring_for.as_deref())
            }
            E::Extract { field, expr: x, .. } => {
                let unit = literal::extract_unit(field).map_err(|message| Fault::of(x.as_ref(), message))?;
                Ok(Expr::Call(Function::Extract(unit), vec![self.typed(x, &DataType::Timestamp, "extract")?]))
            }
            E::Floor { expr: x, field: ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime) } => {
                self.rounded(Function::Floor, x, "floor")
            }
            E::Ceil { expr: x, field: ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime) } => {
                self.rounded(Function::Ceil, x, "ceil")
            }
            E::Interval(interval) => {
                literal::interval(expr, interval).map(|length| Expr::Literal(Literal::Interval(length)))
            }
            E::Subquery(_) | E::Exists { .. } | E::AnyOp { .. } | E::AllOp { .. } => {
                Err(Fault::of(expr, "subqueries aren't supported"))
            }
            E::GroupingSets(_) | E::Cube(_) | E::Rollup(_) => Err(Fault::of(
                expr,
                "GROUPING SETS, CUBE and ROLLUP aren't supported; write one view for each grouping",
            )),
            E::AtTimeZone { .. } => Err(Fault::of(expr, "AT TIME ZONE isn't supported; times are UTC")),
            _ => Err(Fault::of(expr, format!("unsupported expression `{expr}`"))),
        }
    }

    fn negate(&self, expr: &ast::Expr) -> Result<Expr, Fault> {
        if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(digits, false), .. }) = expr {
            let number = literal::number(&format!("-{digits}")).map_err(|message| Fault::of(expr, message))?;
            return Ok(Expr::Literal(number));
        }
        let planned = self.value(expr)?;
        if let Expr::Literal(Literal::Interval(length)) = planned {
            return Ok(Expr::Literal(Literal::Interval(-length)));
        }
        if planned.data_type() == DataType::Interval {
            return Ok(Expr::Negate(Box::new(planned)));
        }
        match number(planned, expr, "-")? {
            Expr::Literal(Literal::BigInt(number)) => match number.checked_neg() {
                Some(number) => Ok(Expr::Literal(Literal::BigInt(number))),
                None => Err(Fault::of(expr, format!("`-{expr}` is beyond BIGINT"))),
            },
            number => Ok(Expr::Negate(Box::new(number))),
        }
    }

    fn binary(
        &self,
        whole: &ast::Expr,
        left: &ast::Expr,
        op: &ast::BinaryOperator,
        right: &ast::Expr,
    ) -> Result<Expr, Fault> {
        use ast::BinaryOperator as O;
        let (op, what) = match op {
            O::Eq => return self.compare(left, BinaryOp::Equal, right),
            O::NotEq => return self.compare(left, BinaryOp::NotEqual, right),
            O::Lt => return self.compare(left, BinaryOp::Less, right),
            O::LtEq => return self.compare(left, BinaryOp::LessOrEqual, right),
            O::Gt => return self.compare(left, BinaryOp::Greater, right),
            O::GtEq => return self.compare(left, BinaryOp::GreaterOrEqual, right),
            O::Plus => (BinaryOp::Add, "+"),
            O::Minus => (BinaryOp::Subtract, "-"),
            O::Multiply => (BinaryOp::Multiply, "*"),
            O::Divide => (BinaryOp::Divide, "/"),
            O::Modulo => (BinaryOp::Modulo, "%"),
            O::And | O::Or => {
                let (name, op) = if *op == O::And { ("AND", BinaryOp::And) } else { ("OR", BinaryOp::Or) };
                let side = |x| self.typed(x, &DataType::Boolean, name).map(Box::new);
                return Ok(Expr::Binary(side(left)?, op, side(right)?));
            }
            O::StringConcat => {
                let side = |x| self.typed(x, &DataType::Text, "||").map(Box::new);
                return Ok(Expr::Binary(side(left)?, BinaryOp::Concat, side(right)?));
            }
            O::LongArrow | O::Arrow => return self.json_text(whole),
            O::PGRegexMatch | O::PGRegexIMatch | O::PGRegexNotMatch | O::PGRegexNotIMatch => {
                return Err(Fault::of(
                    whole,
                    format!("unsupported operator `{op}`; write regexp_matches(text, 'pattern')"),
                ));
            }
            _ => return Err(Fault::of(whole, format!("unsupported operator `{op}`"))),
        };
        let (x, y) = (self.value(left)?, self.value(right)?);
        if [&x, &y].into_iter().any(|side| matches!(side.data_type(), DataType::Timestamp | DataType::Interval)) {
            return time_arithmetic(x, op, y).map_err(|message| Fault::of(whole, message));
        }
        let (left, right) = (number(x, left, what)?, number(y, right, what)?);
        if let (Expr::Literal(Literal::BigInt(x)), Expr::Literal(Literal::BigInt(y))) = (&left, &right)
            && let Some(folded) = fold_whole(*x, op, *y)
        {
            let message = || format!("`{whole}` is beyond BIGINT; write one of its numbers as a DOUBLE, such as 60.0");
            return folded
                .map(|number| Expr::Literal(Literal::BigInt(number)))
                .ok_or_else(|| Fault::of(whole, message()));
        }
        let is_double =
            op == BinaryOp::Divide || left.data_type() == DataType::Double || right.data_type() == DataType::Double;
        let (left, right) = if is_double { (to_double(left), to_double(right)) } else { (left, right) };
        Ok(Expr::Binary(Box::new(left), op, Box::new(right)))
    }

    fn compare(&self, left: &ast::Expr, op: BinaryOp, right: &ast::Expr) -> Result<Expr, Fault> {
        let planned = [self.value(left)?, self.value(right)?];
        for (x, op, decimal) in
            [(&planned[0], op, literal::decimal(right)), (&planned[1], op.mirrored(), literal::decimal(left))]
        {
            if let (Some(decimal), true) = (decimal, is_whole(x)) {
                return Ok(compare_whole(x.clone(), op, &decimal));
            }
        }
        let (x, y) = self.pair(planned.into(), left, right)?;
        let data_type = x.data_type();
        if data_type == DataType::Json {
            return Err(Fault::of(left, "JSON can't be compared; read a part of it with ->> 'key'"));
        }
        if data_type == DataType::Boolean && !matches!(op, BinaryOp::Equal | BinaryOp::NotEqual) {
            return Err(Fault::of(left, "BOOLEAN has no order; compare with = or <>"));
        }
        Ok(Expr::Binary(Box::new(x), op, Box::new(y)))
    }

    /// Two expressions brought to one type.
    pub fn same_type(&self, left: &ast::Expr, right: &ast::Expr) -> Result<(Expr, Expr), Fault> {
        self.pair(vec![self.value(left)?, self.value(right)?], left, right)
    }

    fn pair(&self, planned: Vec<Expr>, left: &ast::Expr, right: &ast::Expr) -> Result<(Expr, Expr), Fault> {
        let mut both = self.to_one_type(planned, &[left, right])?.into_iter();
        match (both.next(), both.next()) {
            (Some(x), Some(y)) => Ok((x, y)),
            _ => Err(Fault::of(left, "two values are needed")),
        }
    }

    /// Expressions brought to one type: integers beside doubles become doubles, `NULL` becomes what it stands
    /// beside, and a constant text beside a timestamp is read as one.
    pub fn one_type(&self, exprs: &[&ast::Expr]) -> Result<Vec<Expr>, Fault> {
        let planned = exprs.iter().map(|expr| self.value(expr)).collect::<Result<Vec<_>, _>>()?;
        self.to_one_type(planned, exprs)
    }

    /// The same of expressions that are planned.
    fn to_one_type(&self, planned: Vec<Expr>, exprs: &[&ast::Expr]) -> Result<Vec<Expr>, Fault> {
        let typed: Vec<&Expr> = planned.iter().filter(|x| !is_null(x)).collect();
        let has = |data_type: DataType| typed.iter().any(|x| x.data_type() == data_type);
        let common = if has(DataType::Double) {
            DataType::Double
        } else if has(DataType::Timestamp) {
            DataType::Timestamp
        } else {
            let mut types = typed.iter().map(|x| x.data_type());
            let first = types.next().unwrap_or(DataType::Text);
            if first == DataType::Json { types.find(|other| *other != DataType::Json).unwrap_or(first) } else { first }
        };
        let one = |(x, expr): (Expr, &&ast::Expr)| {
            if let (Expr::Literal(Literal::Text(text)), DataType::Timestamp) = (&x, &common) {
                return literal::timestamp(text).map(Expr::Literal).map_err(|message| Fault::of(*expr, message));
            }
            coerce(x, &common).map_err(|found| {
                Fault::of(*expr, format!("{found} can't stand beside {common}{}", cast_hint(&found, &common)))
            })
        };
        planned.into_iter().zip(exprs).map(one).collect()
    }

    fn in_list(&self, x: &ast::Expr, items: &[ast::Expr]) -> Result<Expr, Fault> {
        let all: Vec<&ast::Expr> = std::iter::once(x).chain(items).collect();
        let planned = all.iter().map(|expr| self.value(expr)).collect::<Result<Vec<_>, _>>()?;
        let decimals: Vec<_> = all.iter().map(|item| literal::decimal(item)).collect();
        let fits = |(item, decimal): (&Expr, &Option<_>)| decimal.is_some() || is_null(item) || is_whole(item);
        let mut planned = if is_whole(&planned[0]) && planned.iter().zip(&decimals).all(fits) {
            // As a DOUBLE, a whole number could be equal to one beside it.
            let whole = |(item, decimal): (Expr, Option<literal::Decimal>)| match decimal {
                Some(decimal) if decimal.is_whole => {
                    i64::try_from(decimal.floor).ok().map(Literal::BigInt).map(Expr::Literal)
                }
                Some(_) => None,
                None if is_null(&item) => Some(Expr::Literal(Literal::Null(DataType::BigInt))),
                None => Some(item),
            };
            planned.into_iter().zip(decimals).filter_map(whole).collect()
        } else {
            self.to_one_type(planned, &all)?
        }
        .into_iter();
        match planned.next() {
            Some(x) if x.data_type() == DataType::Json => {
                Err(Fault::of(all[0], "JSON can't be compared; read a part of it with ->> 'key'"))
            }
            Some(x) => Ok(Expr::In(Box::new(x), planned.collect())),
            None => Err(Fault::of(all[0], "IN takes a list of values")),
        }
    }

    fn like(
        &self,
        text: &ast::Expr,
        pattern: &ast::Expr,
        escape: Option<&ast::Expr>,
        ignore_case: bool,
    ) -> Result<Expr, Fault> {
        if let Some(escape) = escape {
            return Err(Fault::of(escape, "LIKE … ESCAPE isn't supported; the escape is `\\`"));
        }
        let planned = self.typed(text, &DataType::Text, "LIKE")?;
        let constant = self.constant_text(pattern, "the pattern of LIKE")?;
        literal::like_pattern(&constant).map_err(|message| Fault::of(pattern, message))?;
        Ok(Expr::Like { text: Box::new(planned), pattern: constant, ignore_case })
    }

    fn case(
        &self,
        operand: Option<&ast::Expr>,
        conditions: &[ast::CaseWhen],
        otherwise: Option<&ast::Expr>,
    ) -> Result<Expr, Fault> {
        let whens = conditions.iter().map(|branch| match operand {
            Some(operand) => self.compare(operand, BinaryOp::Equal, &branch.condition),
            None => self.condition(&branch.condition, "WHEN"),
        });
        let whens = whens.collect::<Result<Vec<_>, _>>()?;
        let results: Vec<&ast::Expr> = conditions.iter().map(|branch| &branch.result).chain(otherwise).collect();
        let mut thens = self.one_type(&results)?;
        let otherwise = if otherwise.is_some() { thens.pop().map(Box::new) } else { None };
        Ok(Expr::Case { branches: whens.into_iter().zip(thens).collect(), otherwise })
    }

    fn cast(&self, x: &ast::Expr, to: &ast::DataType) -> Result<Expr, Fault> {
        use DataType as T;
        let to = literal::data_type(to).map_err(|message| Fault::of(x, message))?;
        let planned = self.value(x)?;
        match (planned.data_type(), &to) {
            _ if is_null(&planned) => Ok(Expr::Literal(Literal::Null(to))),
            (from, to) if from == *to => Ok(planned),
            (T::Text, _) | (T::BigInt, T::Double) | (T::Double, T::BigInt) => Ok(Expr::Cast(Box::new(planned), to)),
            (T::BigInt | T::Double | T::Boolean | T::Json, T::Text) | (T::Boolean, T::BigInt) => {
                Ok(Expr::Cast(Box::new(planned), to))
            }
            (from, _) => {
                let hint = match (&from, &to) {
                    (T::Json, _) => "; read a part of it as text with ->> 'key' first",
                    (T::Timestamp, _) => {
                        "; read a part of it with extract(hour FROM x), or round it with date_trunc('hour', x)"
                    }
                    (_, T::Boolean) => "; write x <> 0",
                    _ => "",
                };
                Err(Fault::of(x, format!("{from} can't be cast to {to}{hint}")))
            }
        }
    }

    /// `x -> 'a' ->> 'b'`: the steps make one path.
    fn json_text(&self, expr: &ast::Expr) -> Result<Expr, Fault> {
        use ast::BinaryOperator as O;
        let ast::Expr::BinaryOp { left, op: O::LongArrow, right } = expr else {
            return Err(Fault::of(
                expr,
                "`->` gives JSON, which nothing takes; read a text with ->> 'key' or ->> '$.a.b'",
            ));
        };
        let mut steps = vec![right.as_ref()];
        let mut base = left.as_ref();
        while let ast::Expr::BinaryOp { left, op: O::Arrow, right } = base {
            steps.push(right);
            base = left;
        }
        let mut path = String::from("$");
        for step in steps.into_iter().rev() {
            path.push_str(&self.json_path(step)?[1..]);
        }
        Ok(Expr::Call(Function::JsonText(path), vec![self.typed(base, &DataType::Json, "->>")?]))
    }

    /// A constant key, index or path, in canonical form.
    pub fn json_path(&self, expr: &ast::Expr) -> Result<String, Fault> {
        match self.value(expr)? {
            Expr::Literal(Literal::Text(path)) => literal::json_path(&path).map_err(|message| Fault::of(expr, message)),
            Expr::Literal(Literal::BigInt(index)) if (0..=i64::from(u32::MAX)).contains(&index) => {
                Ok(format!("$[{index}]"))
            }
            _ => {
                Err(Fault::of(expr, "a JSON path is a constant: a key, an index from 0, or a path such as '$.a.b[0]'"))
            }
        }
    }

    /// A constant text.
    pub fn constant_text(&self, expr: &ast::Expr, what: &str) -> Result<String, Fault> {
        match self.value(expr)? {
            Expr::Literal(Literal::Text(text)) => Ok(text),
            _ => Err(Fault::of(expr, format!("{what} must be a constant text"))),
        }
    }

    /// A constant whole number.
    pub fn constant_integer(&self, expr: &ast::Expr, what: &str, least: i64) -> Result<i64, Fault> {
        match self.value(expr)? {
            Expr::Literal(Literal::BigInt(number)) if number >= least => Ok(number),
            _ => Err(Fault::of(expr, format!("{what} must be a constant whole number, {least} or more"))),
        }
    }
}

/// Whether an expression is the word `NULL`, which takes any type.
pub(super) fn is_null(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(Literal::Null(_)))
}

/// A planned expression, if it is a number.
fn number(planned: Expr, expr: &ast::Expr, what: &str) -> Result<Expr, Fault> {
    match planned.data_type() {
        DataType::BigInt | DataType::Double => Ok(planned),
        _ if is_null(&planned) => Ok(Expr::Literal(Literal::Null(DataType::BigInt))),
        found => {
            let hint = cast_hint(&found, &DataType::Double);
            Err(Fault::of(expr, format!("{what} takes a number, not {found}{hint}")))
        }
    }
}

/// What timestamps and intervals make of each other. An interval stands on the right, a timestamp on the left.
fn time_arithmetic(x: Expr, op: BinaryOp, y: Expr) -> Result<Expr, String> {
    use DataType::{Interval, Timestamp};
    let null_as = |x: Expr, data_type| if is_null(&x) { Expr::Literal(Literal::Null(data_type)) } else { x };
    let (x, y) = match (is_null(&x), is_null(&y)) {
        (true, _) if op == BinaryOp::Subtract && y.data_type() == Timestamp => (null_as(x, Timestamp), y),
        (true, _) if y.data_type() == Timestamp => (null_as(x, Interval), y),
        (true, _) => (null_as(x, Timestamp), y),
        (_, true) => (x, null_as(y, Interval)),
        _ => (x, y),
    };
    let (x, y) = match (x.data_type(), op, y.data_type()) {
        (Timestamp, BinaryOp::Add | BinaryOp::Subtract, Interval) | (Timestamp, BinaryOp::Subtract, Timestamp) => {
            (x, y)
        }
        (Interval, BinaryOp::Add, Timestamp) => (y, x),
        (Interval, BinaryOp::Add | BinaryOp::Subtract, Interval) => match (&x, &y) {
            (Expr::Literal(Literal::Interval(x)), Expr::Literal(Literal::Interval(y))) => {
                let sum = if op == BinaryOp::Add { x + y } else { x - y };
                return Ok(Expr::Literal(Literal::Interval(sum)));
            }
            _ => (x, y),
        },
        (Timestamp, BinaryOp::Add | BinaryOp::Subtract, DataType::BigInt | DataType::Double) => {
            return Err("a timestamp and a number can't be added; write + INTERVAL '5 seconds'".to_owned());
        }
        (x, _, y) => {
            return Err(format!(
                "{x} and {y}: an INTERVAL is added to a TIMESTAMP or taken from it, and two TIMESTAMPs differ by an INTERVAL"
            ));
        }
    };
    Ok(Expr::Binary(Box::new(x), op, Box::new(y)))
}

/// Brings an expression to a type where that loses nothing; else tells the type that it has.
fn coerce(expr: Expr, to: &DataType) -> Result<Expr, DataType> {
    match (expr.data_type(), to) {
        _ if is_null(&expr) => Ok(Expr::Literal(Literal::Null(to.clone()))),
        (from, to) if from == *to => Ok(expr),
        (DataType::BigInt, DataType::Double) => Ok(to_double(expr)),
        (from, _) => Err(from),
    }
}

fn to_double(expr: Expr) -> Expr {
    match expr {
        Expr::Literal(Literal::BigInt(number)) => Expr::Literal(Literal::Double(number as f64)),
        Expr::Literal(Literal::Null(_)) => Expr::Literal(Literal::Null(DataType::Double)),
        expr if expr.data_type() == DataType::Double => expr,
        expr => Expr::Cast(Box::new(expr), DataType::Double),
    }
}

/// Whether an expression is a `BIGINT`, and not the word `NULL`.
fn is_whole(expr: &Expr) -> bool {
    expr.data_type() == DataType::BigInt && !is_null(expr)
}

/// Computes what is constant; none inside if it is beyond 64 bits, none at all if it isn't a whole number.
fn fold_whole(x: i64, op: BinaryOp, y: i64) -> Option<Option<i64>> {
    match op {
        BinaryOp::Add => Some(x.checked_add(y)),
        BinaryOp::Subtract => Some(x.checked_sub(y)),
        BinaryOp::Multiply => Some(x.checked_mul(y)),
        BinaryOp::Modulo if y != 0 => Some(Some(x.wrapping_rem(y))),
        _ => None,
    }
}

/// A whole number against one that may have a fraction, without rounding either.
fn compare_whole(x: Expr, op: BinaryOp, decimal: &literal::Decimal) -> Expr {
    use BinaryOp as O;
    let whole = |op: BinaryOp, number: i64| {
        Expr::Binary(Box::new(x.clone()), op, Box::new(Expr::Literal(Literal::BigInt(number))))
    };
    let itself = |op: BinaryOp| Expr::Binary(Box::new(x.clone()), op, Box::new(x.clone()));
    match (i64::try_from(decimal.floor), op) {
        (Ok(number), op) if decimal.is_whole => whole(op, number),
        (_, O::Equal) => itself(O::NotEqual),
        (_, O::NotEqual) => itself(O::Equal),
        (Ok(number), O::Less | O::LessOrEqual) => whole(O::LessOrEqual, number),
        (Ok(number), _) => whole(O::Greater, number),
        (Err(_), O::Less | O::LessOrEqual) if decimal.floor > 0 => whole(O::LessOrEqual, i64::MAX),
        (Err(_), O::Less | O::LessOrEqual) => whole(O::Less, i64::MIN),
        (Err(_), _) if decimal.floor > 0 => whole(O::Greater, i64::MAX),
        (Err(_), _) => whole(O::GreaterOrEqual, i64::MIN),
    }
}

fn cast_hint(from: &DataType, to: &DataType) -> String {
    match (from, to) {
        (DataType::Json, _) => "; read a part of it with ->> 'key'".to_owned(),
        (DataType::Timestamp | DataType::List(_), _) | (_, DataType::List(_)) => String::new(),
        (_, DataType::Boolean) => "; write a comparison".to_owned(),
        (DataType::Text, _) | (_, DataType::Text) | (DataType::Boolean, DataType::BigInt) => {
            format!("; write CAST(x AS {to})")
        }
        _ => String::new(),
    }
}

fn not(expr: Expr) -> Expr {
    Expr::Not(Box::new(expr))
}

fn negate_if(negated: bool, expr: Expr) -> Expr {
    if negated { not(expr) } else { expr }
}
