//! One thing that FROM reads: a table, a view or a query, or windows over one.

use std::collections::BTreeSet;

use sqlparser::ast::{self, Spanned, TableAlias, TableFactor};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Location;

use super::error::{Fault, list, suggestion};
use super::expression::Relation;
use super::name::is_bound;
use super::syntax::{Tokens, fold, simple_name};
use super::{literal, option};
use crate::rows::Rows;
use crate::schema::Column;
use crate::time::Micros;
use crate::view::{Catalog, End};
use crate::window::{Days, Sliding, Window};

/// How many panes a window may be made of.
const MAX_PANES: Micros = 100_000;

const DAY: Micros = 86_400_000_000;

/// Tables and views whose own definition is wrong: a view that reads them isn't wrong for that.
#[derive(Default)]
pub(super) struct Broken {
    pub tables: BTreeSet<String>,
    pub views: BTreeSet<String>,
    /// Whether there are statements that can't even be read, which may define any name.
    pub unread: bool,
}

impl Broken {
    fn may_define(&self, name: &str) -> bool {
        self.unread || self.tables.contains(name) || self.views.contains(name)
    }
}

/// Plans the rows of a query. `None` if it reads what is wrong itself.
type Plan = fn(&ast::Query, &Tokens, &Names) -> Result<Option<Rows>, Vec<Fault>>;

/// What names mean in FROM.
#[derive(Clone)]
pub(super) struct Names<'a> {
    pub catalog: &'a Catalog,
    pub broken: &'a Broken,
    /// The queries of WITH, the last one last; none where one reads a name whose own definition is wrong.
    pub queries: Vec<(String, Option<Rows>)>,
    /// Plans a query in FROM.
    pub plan: Plan,
}

impl Names<'_> {
    /// The rows of a name, and what it is; none if its own definition is wrong.
    fn rows(&self, name: &str, at: Location) -> Result<Option<(Rows, String)>, Fault> {
        let Catalog { tables, rows, views } = self.catalog;
        if let Some((_, rows)) = self.queries.iter().rev().find(|(query, _)| query == name) {
            return Ok(rows.clone().map(|rows| (rows, format!("query `{name}`"))));
        }
        if let Some(table) = tables.get(name) {
            return Ok(Some((Rows::Scan(table.clone()), format!("table `{name}`"))));
        }
        if let Some(rows) = rows.get(name) {
            return Ok(Some((rows.clone(), format!("view `{name}`"))));
        }
        match views.get(name).map(|view| (&view.end, &view.rows)) {
            Some((End::Send(_), rows)) => return Ok(Some((rows.clone(), format!("view `{name}`")))),
            Some((End::Keep(_), _)) => {
                let message = format!("`{name}` is a view that aggregates; a view reads tables, and views of rows");
                return Err(Fault::new(at, message));
            }
            None if self.broken.may_define(name) => return Ok(None),
            None => {}
        }
        let queries = self.queries.iter().map(|(name, _)| name);
        let known: Vec<&str> = tables.keys().chain(rows.keys()).chain(queries).map(String::as_str).collect();
        let there = match known.as_slice() {
            [] => "there are no tables".to_owned(),
            known => format!("there are {}", list(known.iter().copied())),
        };
        Err(Fault::new(at, format!("unknown table `{name}`; {there}{}", suggestion(name, known))))
    }
}

/// What a query in FROM is called.
const QUERY: &str = "the query in FROM";

/// One thing that FROM reads.
pub(super) struct Read {
    pub rows: Rows,
    pub relation: Relation,
    /// Its windows, and the event time that they go by.
    pub window: Option<(Window, String)>,
    pub at: Location,
}

/// A table, view or query, or windows over one. `None` if its own definition is wrong.
pub(super) fn read(factor: &TableFactor, tokens: &Tokens, names: &Names) -> Result<Option<Read>, Vec<Fault>> {
    let one = |fault| vec![fault];
    if let TableFactor::Derived { lateral: false, subquery, alias, sample: None } = factor {
        check_alias(alias.as_ref()).map_err(one)?;
        let at = subquery.span().start;
        let Some(rows) = (names.plan)(subquery, tokens, names)? else { return Ok(None) };
        let qualifier = alias.as_ref().map(|alias| fold(&alias.name)).unwrap_or_default();
        let relation = Relation::new(qualifier, QUERY.to_owned(), &rows);
        return Ok(Some(Read { rows, relation, window: None, at }));
    }
    let (name, alias, arguments) = named(factor, tokens).map_err(one)?;
    let function = simple_name(name).map_err(one)?;
    let start = factor.span().start;
    let (found, name, form, at) = match (arguments, form_of(&function)) {
        (None, _) => (names.rows(&function, start).map_err(one)?, function, None, start),
        (Some(arguments), Some(form)) => {
            if !form.arguments().contains(&arguments.len()) {
                return Err(one(Fault::of(name, format!("write {}", form.example()))));
            }
            let at = arguments[0].span().start;
            let (found, name) = match arguments[0] {
                ast::Expr::Identifier(ident) => (names.rows(&fold(ident), at).map_err(one)?, fold(ident)),
                ast::Expr::Subquery(subquery) => {
                    let rows = (names.plan)(subquery, tokens, names)?;
                    (rows.map(|rows| (rows, QUERY.to_owned())), String::new())
                }
                other => {
                    return Err(one(Fault::of(other, format!("`{other}` isn't a table; write {}", form.example()))));
                }
            };
            (found, name, Some((form, arguments)), at)
        }
        (Some(_), None) => {
            let message = format!("unknown table function `{function}`; there are TUMBLE, HOP and SESSION");
            return Err(one(Fault::of(name, message)));
        }
    };
    let Some((rows, what)) = found else { return Ok(None) };
    let qualifier = alias.map_or(name, |alias| fold(&alias.name));
    let relation = Relation::new(qualifier, what, &rows);
    let window = form.map(|(form, arguments)| window(form, &arguments, &relation)).transpose().map_err(one)?;
    let hidden = rows.schema().into_iter().find(|column| window.is_some() && is_bound(&column.name));
    if let Some(Column { name, .. }) = hidden {
        let message = format!(
            "{} has a column `{name}`, which a bound of these windows is called; read it by another name: \
             (SELECT {name} AS other, … FROM …) in its place",
            relation.what
        );
        return Err(one(Fault::new(at, message)));
    }
    Ok(Some(Read { rows, relation, window, at }))
}

fn check_alias(alias: Option<&TableAlias>) -> Result<(), Fault> {
    match alias.filter(|alias| !alias.columns.is_empty() || alias.at.is_some()) {
        Some(alias) => Err(Fault::of(alias, "a table's columns keep their names; write AS t")),
        None => Ok(()),
    }
}

type Named<'a> = (&'a ast::ObjectName, Option<&'a TableAlias>, Option<Vec<&'a ast::Expr>>);

/// The name, alias and arguments of a table or a table function.
fn named<'a>(factor: &'a TableFactor, tokens: &Tokens) -> Result<Named<'a>, Fault> {
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
            TableFactor::Derived { .. } => "unsupported query in FROM; write FROM (SELECT …) AS t",
            TableFactor::UNNEST { .. } => "UNNEST follows a table: FROM t CROSS JOIN UNNEST(…) AS u(item)",
            _ => "unsupported FROM; a view reads a table, TUMBLE(…), HOP(…) or SESSION(…)",
        };
        return Err(Fault::of(factor, message).or_at(|| tokens.keyword(Keyword::FROM)));
    };
    if !with_hints.is_empty() || version.is_some() || !partitions.is_empty() || !index_directives.is_empty() {
        return Err(Fault::of(name, format!("`{factor}`: a table is read by its name alone")));
    }
    check_alias(alias.as_ref())?;
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

/// The windows, and the event time that they go by.
fn window(form: Form, arguments: &[&ast::Expr], over: &Relation) -> Result<(Window, String), Fault> {
    let named = if let ast::Expr::Identifier(ident) = arguments[1] { Some(fold(ident)) } else { None };
    let Some(time) = over.times.iter().find(|time| Some(*time) == named.as_ref()).cloned() else {
        let (what, given) = (&over.what, arguments[1]);
        let message = match over.times.as_slice() {
            [] => {
                format!("windows are over an event time, and {what} has none: no column of it comes unchanged from one")
            }
            [time] => format!("windows are over the event time, which is `{time}` in {what}, not `{given}`"),
            times => {
                let times = list(times.iter().map(String::as_str));
                format!("windows are over an event time, which are {times} in {what}, not `{given}`")
            }
        };
        return Err(Fault::of(arguments[1], message));
    };
    Ok((window_of(form, arguments)?, time))
}

fn window_of(form: Form, arguments: &[&ast::Expr]) -> Result<Window, Fault> {
    let first = literal::length(arguments[2])?;
    let (slide, size, last) = match form {
        Form::Session => return Ok(Window::Session { gap: first }),
        Form::Tumble => (first, first, arguments.get(3)),
        Form::Hop => (first, literal::length(arguments[3])?, arguments.get(4)),
    };
    if slide > size {
        return Err(Fault::of(
            arguments[2],
            "the slide is longer than the window, so events between windows would be lost; HOP takes the slide before the size",
        ));
    }
    let offset = match last {
        Some(&last) if literal::text(last).is_some() => return days(form, size, arguments[2], last),
        Some(&last) => literal::length(last)?.rem_euclid(slide),
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
