//! `FROM`: one table, its windows, and at most one `CROSS JOIN UNNEST`.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlparser::ast::{self, Spanned, TableAlias, TableFactor};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Location;

use super::error::{Fault, list, suggestion};
use super::expression::Scope;
use super::name::reserved;
use super::syntax::{Tokens, fold, simple_name};
use super::{literal, option};
use crate::aggregation::OutputColumn;
use crate::expr::Expr;
use crate::rows::Rows;
use crate::schema::{DataType, Table};
use crate::time::Micros;
use crate::view::{Catalog, End};
use crate::window::{Days, Sliding, Window};

/// How many panes a window may be made of.
const MAX_PANES: Micros = 100_000;

const DAY: Micros = 86_400_000_000;

/// Tables whose own definition is wrong: a view that reads them isn't wrong for that.
pub(super) struct Broken {
    pub names: BTreeSet<String>,
    /// Whether there are statements that can't even be read, which may define any table.
    pub unread: bool,
}

impl Broken {
    pub fn may_define(&self, table: &str) -> bool {
        self.unread || self.names.contains(table)
    }
}

/// What a view reads.
pub(super) struct Source<'a> {
    pub table: Arc<Table>,
    pub window: Option<Window>,
    /// Its rows, before any condition.
    pub rows: Rows,
    pub scope: Scope<'a>,
    /// Where FROM's table is named.
    pub at: Location,
}

impl Source<'_> {
    /// The bound of a window that an expression names, if the view has windows.
    pub fn bound(&self, expr: &ast::Expr) -> Option<(OutputColumn, &'static str)> {
        self.window?;
        let name = match expr {
            ast::Expr::Identifier(ident) => fold(ident),
            ast::Expr::CompoundIdentifier(parts) if parts.len() == 2 && self.scope.is_table(&fold(&parts[0])) => {
                fold(&parts[1])
            }
            ast::Expr::Nested(inner) => return self.bound(inner),
            _ => return None,
        };
        match name.as_str() {
            "window_start" => Some((OutputColumn::WindowStart, "window_start")),
            "window_end" => Some((OutputColumn::WindowEnd, "window_end")),
            _ => None,
        }
    }

    /// Whether an expression reads anything of a row.
    pub fn reads_any(&self, expr: &Expr) -> bool {
        self.rows.schema().iter().any(|column| expr.reads(&column.name))
    }
}

/// Plans FROM. `None` if it reads a table whose own definition is wrong.
pub(super) fn plan<'a>(
    select: &ast::Select,
    tokens: &Tokens,
    catalog: &'a Catalog,
    broken: &Broken,
) -> Result<Option<Source<'a>>, Fault> {
    let from = match select.from.as_slice() {
        [from] => from,
        [] => return Err(Fault::of(select, "the view needs FROM: a table, TUMBLE(…), HOP(…) or SESSION(…)")),
        [_, second, ..] => {
            return Err(Fault::of(
                &second.relation,
                "a view reads one table; lists are unnested by CROSS JOIN UNNEST(…) AS t(item)",
            ));
        }
    };
    let (name, alias, arguments) = relation(&from.relation, tokens)?;
    let function = simple_name(name)?;
    let (name, form) = match (&arguments, form_of(&function)) {
        (None, _) => (function.clone(), None),
        (Some(arguments), Some(form)) => (windowed_table(arguments, form, name)?, Some((form, arguments))),
        (Some(_), None) => {
            let message = format!("unknown table function `{function}`; there are TUMBLE, HOP and SESSION");
            return Err(Fault::of(name, message));
        }
    };
    let at = arguments.as_ref().map_or(from.relation.span().start, |arguments| arguments[0].span().start);
    let Some(table) = catalog.tables.get(&name) else {
        if broken.may_define(&name) {
            return Ok(None);
        }
        if let Some(view) = catalog.views.get(&name) {
            let way_out = match &view.end {
                End::Keep(_) => String::new(),
                End::Send(sink) => format!(": create one WITH (topic = '{}')", sink.topic),
            };
            return Err(Fault::new(at, format!("`{name}` is a view; a view reads a table{way_out}")));
        }
        let names = || catalog.tables.keys().map(String::as_str);
        let known = if catalog.tables.is_empty() {
            "there are no tables".to_owned()
        } else {
            format!("there are {}", list(names()))
        };
        return Err(Fault::new(at, format!("unknown table `{name}`; {known}{}", suggestion(&name, names()))));
    };
    let window = form.map(|(form, arguments)| window(form, arguments, table)).transpose()?;
    let qualifier = alias.map_or_else(|| name.clone(), |alias| fold(&alias.name));
    let mut scope = Scope::new(table, qualifier, window.is_some());
    let scan = Rows::Scan(table.clone());
    let rows = match from.joins.as_slice() {
        [] => scan,
        [join] => unnest(scan, join, &mut scope)?,
        [_, second, ..] => {
            return Err(Fault::of(&second.relation, "a view unnests at most one list, and joins nothing else"));
        }
    };
    Ok(Some(Source { table: table.clone(), window, rows, scope, at }))
}

type Relation<'a> = (&'a ast::ObjectName, Option<&'a TableAlias>, Option<Vec<&'a ast::Expr>>);

/// The name, alias and arguments of a table or a table function.
fn relation<'a>(factor: &'a TableFactor, tokens: &Tokens) -> Result<Relation<'a>, Fault> {
    let TableFactor::Table {
        name,
        alias,
        args,
        with_hints,
        version,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_directives,
        inheritance: None,
    } = factor
    else {
        let message = match factor {
            TableFactor::Derived { .. } => "subqueries aren't supported; a view reads one table",
            TableFactor::UNNEST { .. } => "UNNEST follows a table: FROM t CROSS JOIN UNNEST(…) AS u(item)",
            _ => "unsupported FROM; a view reads a table, TUMBLE(…), HOP(…) or SESSION(…)",
        };
        return Err(Fault::of(factor, message).or_at(|| tokens.keyword(Keyword::FROM)));
    };
    if !with_hints.is_empty() || version.is_some() || !partitions.is_empty() || !index_directives.is_empty() {
        return Err(Fault::of(name, format!("`{factor}`: a table is read by its name alone")));
    }
    if let Some(alias) = alias.as_ref().filter(|alias| !alias.columns.is_empty() || alias.at.is_some()) {
        return Err(Fault::of(alias, "a table's columns keep their names; write AS t"));
    }
    let arguments = args.as_ref().map(|given| {
        let argument = |argument: &'a ast::FunctionArg| match argument {
            ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr)) => Ok(expr),
            other => {
                Err(Fault::of(other, format!("`{other}`: arguments are given by position")).or_at(|| name.span().start))
            }
        };
        match (&given.settings, given.args.is_empty()) {
            (None, false) => given.args.iter().map(argument).collect(),
            _ => Err(Fault::of(name, format!("`{name}` takes a table, its event time and intervals"))),
        }
    });
    Ok((name, alias.as_ref(), arguments.transpose()?))
}

/// A table function that makes windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Tumble,
    Hop,
    Session,
}

fn form_of(function: &str) -> Option<Form> {
    Some(match function {
        "tumble" => Form::Tumble,
        "hop" => Form::Hop,
        "session" => Form::Session,
        _ => return None,
    })
}

impl Form {
    /// How many arguments it takes: without what may be left out, and with it.
    fn arguments(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Tumble => 3..=4,
            Self::Hop => 4..=5,
            Self::Session => 3..=3,
        }
    }

    /// How it is written.
    fn example(self) -> &'static str {
        match self {
            Self::Tumble => {
                "TUMBLE(table, event_time, INTERVAL '1 minute'), and after it perhaps an offset or, of days, a time zone"
            }
            Self::Hop => {
                "HOP(table, event_time, INTERVAL '1 minute', INTERVAL '5 minutes'), the slide before the size, and after \
                 it perhaps an offset"
            }
            Self::Session => "SESSION(table, event_time, INTERVAL '30 minutes'), the gap that ends one",
        }
    }
}

/// The table that a window function is over.
fn windowed_table(arguments: &[&ast::Expr], form: Form, name: &ast::ObjectName) -> Result<String, Fault> {
    if !form.arguments().contains(&arguments.len()) {
        return Err(Fault::of(name, format!("write {}", form.example())));
    }
    match arguments[0] {
        ast::Expr::Identifier(ident) => Ok(fold(ident)),
        other => Err(Fault::of(other, format!("`{other}` isn't a table; write {}", form.example()))),
    }
}

fn window(form: Form, arguments: &[&ast::Expr], table: &Table) -> Result<Window, Fault> {
    let time = &table.event_time_column().name;
    if !matches!(arguments[1], ast::Expr::Identifier(ident) if fold(ident) == *time) {
        return Err(Fault::of(
            arguments[1],
            format!(
                "windows are over the event time, which is `{time}` in table `{}`, not `{}`",
                table.name, arguments[1]
            ),
        ));
    }
    let first = literal::interval(arguments[2])?;
    let (slide, size, last) = match form {
        Form::Session => return Ok(Window::Session { gap: first }),
        Form::Tumble => (first, first, arguments.get(3)),
        Form::Hop => (first, literal::interval(arguments[3])?, arguments.get(4)),
    };
    if slide > size {
        return Err(Fault::of(
            arguments[2],
            "the slide is longer than the window, so events between windows would be lost; HOP takes the slide before the size",
        ));
    }
    let offset = match last {
        Some(&last) if literal::text(last).is_some() => return days(form, size, arguments[2], last),
        Some(&last) => literal::interval(last)?.rem_euclid(slide),
        None => 0,
    };
    let sliding = Sliding { size, slide, offset };
    if size / sliding.pane() > MAX_PANES {
        return Err(Fault::of(
            arguments[2],
            format!(
                "the window would be made of more than {MAX_PANES} panes; choose a longer slide that divides the size"
            ),
        ));
    }
    Ok(Window::Sliding(sliding))
}

/// Windows of days in a zone.
fn days(form: Form, size: Micros, interval: &ast::Expr, zone: &ast::Expr) -> Result<Window, Fault> {
    if form != Form::Tumble || size % DAY != 0 {
        let message =
            "a time zone is for windows of whole days: TUMBLE(table, event_time, INTERVAL '1 day', 'Europe/Paris')";
        return Err(Fault::of(interval, message));
    }
    let name = literal::text(zone).unwrap_or_default();
    let zone = option::zone(&name, zone.span().start)?;
    let count = u32::try_from(size / DAY).unwrap_or(u32::MAX);
    Ok(Window::Days(Days { count, zone }))
}

fn unnest(rows: Rows, join: &ast::Join, scope: &mut Scope) -> Result<Rows, Fault> {
    let only = "joins aren't supported but for CROSS JOIN UNNEST(…) AS t(item)";
    let (
        TableFactor::UNNEST { alias, array_exprs, with_offset: false, with_offset_alias: None, with_ordinality: false },
        ast::JoinOperator::CrossJoin(ast::JoinConstraint::None),
        false,
    ) = (&join.relation, &join.join_operator, join.global)
    else {
        return Err(Fault::of(&join.relation, only));
    };
    let [list] = array_exprs.as_slice() else {
        return Err(Fault::of(&join.relation, "UNNEST takes one list"));
    };
    let planned = scope.any(list)?;
    let DataType::List(item) = planned.data_type() else {
        let message =
            format!("UNNEST takes a list, as regexp_extract_all and string_split make, not {}", planned.data_type());
        return Err(Fault::of(list, message));
    };
    let named = alias.as_ref().and_then(|alias| match alias.columns.as_slice() {
        [column] if column.data_type.is_none() && alias.at.is_none() => Some((&alias.name, &column.name)),
        _ => None,
    });
    let Some((alias, column)) = named else {
        return Err(Fault::of(&join.relation, "name the items of the list: CROSS JOIN UNNEST(…) AS t(item)"));
    };
    let name = fold(column);
    reserved(column, &name)?;
    if scope.has_column(&name) {
        return Err(Fault::new(
            column.span.start,
            format!("the table has a column `{name}` already; choose another name for the items"),
        ));
    }
    if scope.is_table(&fold(alias)) {
        return Err(Fault::new(
            alias.span.start,
            format!("`{alias}` names the table already; choose another name for the list"),
        ));
    }
    scope.unnest(fold(alias), name.clone(), *item);
    Ok(Rows::Unnest { rows: Box::new(rows), list: planned, column: name })
}
