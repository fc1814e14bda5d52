//! `JOIN`: of two streams within an interval, and of rows with a changelog as of their time.

use sqlparser::ast::{self, JoinConstraint, JoinOperator, TableFactor, TableVersion};

use super::error::{Fault, list};
use super::expression::{Relation, Scope};
use super::relation::{Names, Read, read};
use super::syntax::Tokens;
use crate::expr::{BinaryOp, Expr, Literal};
use crate::rows::{AsOfJoin, Field, IntervalJoin, Rows, filtered};
use crate::time::Micros;

/// What a join of two streams looks like.
const EXAMPLE: &str =
    "FROM a JOIN b ON b.id = a.id AND b.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '10 seconds'";

/// What windows are over.
pub(super) const WINDOWS: &str =
    "windows are over what a join makes: FROM TUMBLE((SELECT … FROM a JOIN b ON …), ts, size)";

/// Rows whose columns are named after what they are of, so that those of two sides differ: `t.c` for the column `c` of `t`.
pub(super) fn qualified(rows: Rows, relation: &mut Relation) -> Rows {
    let fields = rows.schema().into_iter().map(|column| Field {
        name: format!("{}.{}", relation.qualifier, column.name),
        expr: Expr::Column(column.name, column.data_type),
    });
    let fields = fields.collect();
    relation.is_qualified = true;
    Rows::Project { rows: Box::new(rows), fields }
}

/// Whether columns may be named after it: up to the first dot.
pub(super) fn is_qualifier(name: &str) -> bool {
    !name.is_empty() && !name.contains('.')
}

/// Plans a join with the rows so far. `None` if it reads what is wrong itself.
pub(super) fn plan(
    left: Rows,
    join: &ast::Join,
    scope: &mut Scope,
    tokens: &Tokens,
    names: &Names,
) -> Result<Option<Rows>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let (constraint, is_outer) = match &join.join_operator {
        JoinOperator::Join(constraint) | JoinOperator::Inner(constraint) => (constraint, false),
        JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => (constraint, true),
        _ => {
            let message =
                "unsupported join; there are JOIN … ON and LEFT JOIN … ON, and CROSS JOIN UNNEST(…) AS t(item)";
            return Err(one(Fault::of(&join.relation, message)));
        }
    };
    let JoinConstraint::On(on) = constraint else {
        return Err(one(Fault::of(&join.relation, format!("a join says ON what: {EXAMPLE}"))));
    };
    // What the changelog is as of is told by the rows before it.
    let (factor, as_of) = match &join.relation {
        TableFactor::Table { version: Some(TableVersion::ForSystemTimeAsOf(time)), .. } => {
            let mut factor = join.relation.clone();
            if let TableFactor::Table { version, .. } = &mut factor {
                *version = None;
            }
            (factor, Some((time, scope.value(time).map_err(one)?)))
        }
        other => (other.clone(), None),
    };
    let Some(Read { rows, mut relation, window, at }) = read(&factor, tokens, names)? else { return Ok(None) };
    if window.is_some() {
        return Err(one(Fault::new(at, WINDOWS)));
    }
    if scope.is_relation(&relation.qualifier) || !is_qualifier(&relation.qualifier) {
        let message = "each side of a join needs a name of its own, without dots: FROM t AS a JOIN t AS b ON …";
        return Err(one(Fault::of(&join.relation, message)));
    }
    let table = if let Rows::Scan(table) = &rows { Some(table.clone()) } else { None };
    let (what, number) = (relation.what.clone(), scope.relations());
    let right = qualified(rows, &mut relation);
    if is_outer || as_of.is_some() {
        // They may be null, or long before the row's.
        relation.times.clear();
    }
    scope.add(relation);
    let condition = scope.condition(on, "ON").map_err(one)?;
    let mut sides = Sides { left, right, keys: Vec::new(), number };
    let rest = condition.conjuncts().into_iter().filter(|part| !sides.take_key(part)).cloned().collect();
    let changelog = table.filter(|table| table.is_changelog());
    match (changelog, as_of) {
        (Some(table), Some((given, time))) => {
            let primary_key: Vec<String> =
                table.primary_key.iter().map(|&column| table.columns[column].name.clone()).collect();
            let version_time = &table.event_time_column().name;
            sides.versions(rest, given, time, (&primary_key, version_time), is_outer).map(Some).map_err(one)
        }
        (Some(_), None) => {
            let time = sides.left.event_times().first().cloned().unwrap_or_else(|| "ts".to_owned());
            let message =
                format!("{what} is a changelog: say as of which time, JOIN … FOR SYSTEM_TIME AS OF {time} AS t ON …");
            Err(one(Fault::of(&join.relation, message)))
        }
        (None, Some((time, _))) => {
            let message = format!(
                "{what} is no changelog, which has a PRIMARY KEY; two streams are joined within an interval: {EXAMPLE}"
            );
            Err(one(Fault::of(time, message)))
        }
        (None, None) => sides.within(rest, is_outer).map(Some).map_err(|message| one(Fault::of(on, message))),
    }
}

fn all_of(conditions: Vec<Expr>) -> Option<Expr> {
    conditions.into_iter().reduce(|all, next| Expr::Binary(Box::new(all), BinaryOp::And, Box::new(next)))
}

/// What is joined.
struct Sides {
    left: Rows,
    right: Rows,
    /// The columns that are equal.
    keys: Vec<(String, String)>,
    /// How many relations there were before, which makes names of computed keys.
    number: usize,
}

impl Sides {
    /// Takes an equality of the two sides as a key.
    fn take_key(&mut self, condition: &Expr) -> bool {
        let Expr::Binary(one, BinaryOp::Equal, other) = condition else { return false };
        let is_of = |expr: &Expr, rows: &Rows, not: &Rows| rows.is_read_by(expr) && !not.is_read_by(expr);
        let (left, right) = if is_of(one, &self.left, &self.right) && is_of(other, &self.right, &self.left) {
            (one, other)
        } else if is_of(other, &self.left, &self.right) && is_of(one, &self.right, &self.left) {
            (other, one)
        } else {
            return false;
        };
        // An equality of times says how far they may differ.
        let (left_times, right_times) = (self.left.event_times(), self.right.event_times());
        if left_times.iter().any(|one| right_times.iter().any(|other| bound(condition, one, other).is_some())) {
            return false;
        }
        let name = |side: &str| format!("__{side}{}_{}", self.number, self.keys.len());
        let (left_name, right_name) = (name("left"), name("right"));
        let pair = (column(&mut self.left, left, left_name), column(&mut self.right, right, right_name));
        self.keys.push(pair);
        true
    }

    /// The rows of each pair whose times differ by what the conditions allow.
    fn within(self, conditions: Vec<Expr>, is_outer: bool) -> Result<Rows, String> {
        let Self { left, right, keys, .. } = self;
        if keys.is_empty() {
            return Err(format!("a join needs columns of both sides that are equal: {EXAMPLE}"));
        }
        let (left_times, right_times) = (left.event_times(), right.event_times());
        if let Some(without) =
            [(&left_times, &left), (&right_times, &right)].into_iter().find(|(times, _)| times.is_empty())
        {
            let table = &without.1.table().name;
            return Err(format!(
                "a join of two streams goes by their event times, and one side, of `{table}`, has none"
            ));
        }
        // The pair of times whose difference is bounded on both sides.
        for left_time in &left_times {
            for right_time in &right_times {
                let (mut from, mut to, mut rest) = (None::<Micros>, None::<Micros>, Vec::new());
                for condition in &conditions {
                    match bound(condition, left_time, right_time) {
                        Some((least, most)) => {
                            from = least.or(from).map(|least| from.map_or(least, |from| from.max(least)));
                            to = most.or(to).map(|most| to.map_or(most, |to| to.min(most)));
                        }
                        None => rest.push(condition.clone()),
                    }
                }
                if let (Some(from), Some(to)) = (from, to) {
                    if from > to {
                        return Err("no two times can differ by that".to_owned());
                    }
                    let times = (left_time.clone(), right_time.clone());
                    // What concerns one side is dealt with before; but a left row for which it doesn't hold has no partner.
                    let (of_right, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|it| !left.is_read_by(it));
                    let (of_left, rest): (Vec<_>, Vec<_>) =
                        rest.into_iter().partition(|it| !is_outer && !right.is_read_by(it));
                    let (left, right) = (filtered(left, all_of(of_left)), filtered(right, all_of(of_right)));
                    let (within, condition) = ((from, to), all_of(rest));
                    return Ok(Rows::Interval(Box::new(IntervalJoin {
                        left,
                        right,
                        keys,
                        times,
                        within,
                        condition,
                        is_outer,
                    })));
                }
            }
        }
        let named = |times: &[String]| list(times.iter().map(String::as_str));
        Err(format!(
            "a join of two streams says by how much {} may be earlier and later than {}: {EXAMPLE}",
            named(&right_times),
            named(&left_times)
        ))
    }

    /// The rows with the versions of a changelog that held at their time.
    fn versions(
        self,
        conditions: Vec<Expr>,
        given: &ast::Expr,
        time: Expr,
        (primary_key, version_time): (&[String], &str),
        is_outer: bool,
    ) -> Result<Rows, Fault> {
        let Self { left: rows, right: table, keys, .. } = self;
        let is_event_time = |name: &String| rows.event_times().contains(name);
        let Some(time) = (if let Expr::Column(name, _) = time { Some(name).filter(is_event_time) } else { None })
        else {
            let times = rows.event_times();
            let times = list(times.iter().map(String::as_str));
            return Err(Fault::of(
                given,
                format!("FOR SYSTEM_TIME AS OF takes an event time of the rows before it: {times}"),
            ));
        };
        // The columns of the changelog are named after it.
        let qualifier =
            table.schema().first().and_then(|first| first.name.split_once('.').map(|(name, _)| name.to_owned()));
        let named = |column: &String| format!("{}.{column}", qualifier.as_deref().unwrap_or_default());
        let (mut sorted, mut rest) = (Vec::new(), conditions);
        for column in primary_key {
            let name = named(column);
            match keys.iter().position(|(_, right)| *right == name) {
                Some(i) => sorted.push(keys[i].clone()),
                None => {
                    let columns = list(primary_key.iter().map(String::as_str));
                    let message = format!("a changelog is joined by its primary key, {columns}: ON {name} = …");
                    return Err(Fault::of(given, message));
                }
            }
        }
        // What else is equal is a condition like others.
        let type_of = |rows: &Rows, name: &str| {
            rows.schema().into_iter().find(|column| column.name == name).map(|column| column.data_type)
        };
        for (left, right) in keys.iter().filter(|pair| !sorted.contains(pair)) {
            if let (Some(one), Some(other)) = (type_of(&rows, left), type_of(&table, right)) {
                let (one, other) = (Expr::Column(left.clone(), one), Expr::Column(right.clone(), other));
                rest.push(Expr::Binary(Box::new(one), BinaryOp::Equal, Box::new(other)));
            }
        }
        let times = (time, named(&version_time.to_owned()));
        Ok(Rows::AsOf(Box::new(AsOfJoin { rows, table, keys: sorted, times, condition: all_of(rest), is_outer })))
    }
}

/// The column of rows that an expression is; a computed one is added under a name.
fn column(rows: &mut Rows, expr: &Expr, name: String) -> String {
    if let Expr::Column(name, _) = expr {
        return name.clone();
    }
    let mut fields = rows.fields();
    fields.push(Field { name: name.clone(), expr: expr.clone() });
    *rows = Rows::Project { rows: Box::new(rows.clone()), fields };
    name
}

/// By how much the right time is later than the left one if a condition holds: at least, and at most. None if it doesn't say so.
fn bound(condition: &Expr, left: &str, right: &str) -> Option<(Option<Micros>, Option<Micros>)> {
    let Expr::Binary(one, op, other) = condition else { return None };
    let (one, other) = (Sum::of(one, left, right)?, Sum::of(other, left, right)?);
    // Everything on one side: right - left + constant, or the opposite, compared with nothing.
    let sum = Sum {
        left: one.left - other.left,
        right: one.right - other.right,
        micros: one.micros.checked_sub(other.micros)?,
    };
    let (op, constant) = match (sum.left, sum.right) {
        (-1, 1) => (*op, sum.micros),
        (1, -1) => (op.mirrored(), -sum.micros),
        _ => return None,
    };
    Some(match op {
        BinaryOp::Equal => (Some(-constant), Some(-constant)),
        BinaryOp::Less => (None, Some(-constant - 1)),
        BinaryOp::LessOrEqual => (None, Some(-constant)),
        BinaryOp::Greater => (Some(-constant + 1), None),
        BinaryOp::GreaterOrEqual => (Some(-constant), None),
        _ => return None,
    })
}

/// A sum of two times, each so often, and of an interval.
struct Sum {
    left: i32,
    right: i32,
    micros: Micros,
}

impl Sum {
    fn of(expr: &Expr, left: &str, right: &str) -> Option<Self> {
        let sum = match expr {
            Expr::Column(name, _) if name == left => Self { left: 1, right: 0, micros: 0 },
            Expr::Column(name, _) if name == right => Self { left: 0, right: 1, micros: 0 },
            Expr::Literal(Literal::Interval(micros)) => Self { left: 0, right: 0, micros: *micros },
            Expr::Negate(x) => Self::of(x, left, right)?.times(-1),
            Expr::Binary(x, BinaryOp::Add, y) => Self::of(x, left, right)?.plus(&Self::of(y, left, right)?)?,
            Expr::Binary(x, BinaryOp::Subtract, y) => {
                Self::of(x, left, right)?.plus(&Self::of(y, left, right)?.times(-1))?
            }
            _ => return None,
        };
        Some(sum)
    }

    fn times(self, sign: i32) -> Self {
        Self { left: self.left * sign, right: self.right * sign, micros: self.micros * Micros::from(sign) }
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        let micros = self.micros.checked_add(other.micros)?;
        Some(Self { left: self.left + other.left, right: self.right + other.right, micros })
    }
}
