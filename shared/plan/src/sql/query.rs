//! Queries: `SELECT` with all that may follow it, as rows, or as an aggregation of rows.

use std::collections::BTreeSet;

use sqlparser::ast::{self, GroupByExpr, SelectItem, SetExpr, Spanned};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Location;

use super::aggregate::inner;
use super::error::Fault;
use super::expression::Scope;
use super::from;
use super::function;
use super::lag::{self, Lags};
use super::literal;
use super::name::{is_bound, is_twin, reserved};
use super::relation::Names;
use super::syntax::{Tokens, fold, simple_name};
use crate::aggregation::{Aggregate, AggregateFunction, Aggregation, Key, OrderBy, OutputColumn};
use crate::expr::{Expr, Literal};
use crate::rows::{Field, Rows, filtered};
use crate::schema::{Column, DataType};
use crate::window::Window;

/// How many rows of a window a view may keep.
const MAX_LIMIT: u64 = 100_000;

/// Who asks for plain rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A view that writes them to a topic.
    Sink,
    /// A view or a query that others read.
    Reader,
}

impl Asker {
    /// Why it has no aggregates, and what to do.
    fn refusal(self, clause: &str) -> String {
        match self {
            Self::Sink => {
                format!("rows are written as they come; leave {clause} out, or group the rows and write what they make")
            }
            Self::Reader => {
                format!(
                    "what a view reads are plain rows; leave {clause} out here, and aggregate in the view that reads them"
                )
            }
        }
    }
}

/// Plans a query that aggregates: the rows, and what of an aggregation a query says. `None` if it reads what is wrong itself.
pub(super) fn aggregated(
    query: &ast::Query,
    tokens: &Tokens,
    names: &Names,
) -> Result<Option<(Rows, Aggregation)>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let names = &with(query, tokens, names)?;
    let select = plain_select(query, tokens).map_err(one)?;
    if !select.named_window.is_empty() {
        return Err(one(Fault::new(tokens.keyword(Keyword::WINDOW), lag::AGGREGATES)));
    }
    let Some(source) = from::plan(select, tokens, names)? else { return Ok(None) };
    let scope = &source.scope;

    let mut faults = Vec::new();
    let mut keep = |fault: Fault| faults.push(fault);
    let filter =
        select.selection.as_ref().and_then(|condition| scope.condition(condition, "WHERE").map_err(&mut keep).ok());
    // Of current rows all may be kept, each by itself.
    let is_ungrouped = matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
    let may_be_kept = is_ungrouped && source.rows.current().is_some();
    let mut is_complete = true;
    let found = select.projection.iter().map(|selected| match may_be_kept {
        true => items(selected, &source),
        false => item(selected, &source).map(|item| vec![item]),
    });
    let found = found.filter_map(|found| found.map_err(&mut keep).inspect_err(|()| is_complete = false).ok());
    let mut items: Vec<Item> = found.flatten().collect();
    check_names(&items, &mut keep);
    for Item { name, at, .. } in items.iter().filter(|item| !matches!(item.value, Selected::Bound(_))) {
        if is_bound(name) {
            keep(Fault::new(*at, format!("`{name}` is the name of a window's bound; give it another with AS")));
        }
    }
    check_types(&items, &mut keep);
    let mut grouped = BTreeSet::new();
    if is_complete {
        let found = match may_be_kept && items.iter().all(|item| matches!(item.value, Selected::Row(_))) {
            true => keep_each(&mut items, &source),
            false => group_by(&select.group_by, &items, &source, tokens),
        };
        match found {
            Ok(found) => grouped = found,
            Err(found) => found.into_iter().for_each(&mut keep),
        }
    }
    let limit = limit(query, tokens).map_err(&mut keep).ok().flatten();
    if !faults.is_empty() {
        return Err(faults);
    }

    // Keys and aggregates are numbered in the order in which they are selected.
    let (mut keys, mut aggregates, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for (i, item) in items.iter().enumerate() {
        columns.push(match &item.value {
            Selected::Bound(bound) => *bound,
            Selected::Aggregate(aggregate) => {
                aggregates.push(aggregate.clone());
                OutputColumn::Aggregate(aggregates.len() - 1)
            }
            Selected::Row(_) if !grouped.contains(&i) => {
                let message = format!("`{}` is neither an aggregate nor grouped by; add it to GROUP BY", item.name);
                faults.push(Fault::new(item.at, message));
                continue;
            }
            Selected::Row(expr) => {
                keys.push(Key { name: item.name.clone(), expr: expr.clone() });
                OutputColumn::Key(keys.len() - 1)
            }
        });
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    if let (true, Some(_)) = (source.window.is_some_and(Window::is_session), limit) {
        let message =
            "LIMIT keeps the first rows of each window, and sessions are windows of one key each; leave it out";
        return Err(one(Fault::new(tokens.keyword(Keyword::LIMIT), message)));
    }
    let having = having(select, &keys, &aggregates, &source).map_err(one)?;
    let order = order_by(query, &items, &columns, &source).map_err(one)?;
    let (window, time) = (source.window, source.time);
    let aggregation =
        Aggregation { window, time, keys, aggregates, columns, having, order, limit, ..Aggregation::default() };
    Ok(Some((filtered(source.rows, filter), aggregation)))
}

/// Keeps current rows each by itself: those of the items that are the primary key group them, and the others become aggregates of
/// groups of one row.
fn keep_each(items: &mut [Item], source: &from::Source) -> Result<BTreeSet<usize>, Vec<Fault>> {
    let one = |message: String| Err(vec![Fault::new(source.at, message)]);
    let Some(key) = source.rows.primary_key() else {
        let table = source.rows.table();
        let key: Vec<&str> = table.primary_key.iter().map(|&column| table.columns[column].name.as_str()).collect();
        let key = key.join("`, `");
        return one(format!("rows of `{}` are told from each other by `{key}`; select it", table.name));
    };
    let is_column = |item: &Item, name: &str| matches!(&item.value, Selected::Row(Expr::Column(it, _)) if it == name);
    if let Some(lacking) = key.iter().find(|name| !items.iter().any(|item| is_column(item, name))) {
        return one(format!("current rows are told from each other by `{lacking}`; select it"));
    }
    let (mut grouped, mut faults) = (BTreeSet::new(), Vec::new());
    for (i, item) in items.iter_mut().enumerate() {
        if key.iter().any(|name| is_column(item, name)) {
            grouped.insert(i);
        } else if let Selected::Row(value) = &item.value {
            match only(value, &item.name, &source.rows, &key) {
                Ok(aggregate) => item.value = Selected::Aggregate(aggregate),
                Err(message) => faults.push(Fault::new(item.at, message)),
            }
        }
    }
    if faults.is_empty() { Ok(grouped) } else { Err(faults) }
}

/// The value of a column of current rows, of which each group has one: so it is the one at the largest key, which is never null.
fn only(value: &Expr, name: &str, rows: &Rows, key: &[String]) -> Result<Aggregate, String> {
    if matches!(value.data_type(), DataType::Json | DataType::Interval | DataType::List(_)) {
        return Err(format!("`{name}` is {}, which can't be kept; select a part of it", value.data_type()));
    }
    let has_order = |column: &Column| key.contains(&column.name) && column.data_type != DataType::Boolean;
    let by = rows.schema().into_iter().find(has_order).map(|by| Expr::Column(by.name, by.data_type));
    let by = by.ok_or_else(|| format!("`{name}` can't be kept by a key that is a flag"))?;
    let (function, argument) = (AggregateFunction::ArgMax, Some(value.clone()));
    Ok(Aggregate { name: name.to_owned(), function, argument, place: Some(by), filter: None })
}

/// Whether a query aggregates, as far as can be told by how it is written.
pub(super) fn aggregates(query: &ast::Query) -> bool {
    let SetExpr::Select(select) = &*query.body else { return false };
    let is_grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
    let is_aggregate = |item: &SelectItem| {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { return false };
        let ast::Expr::Function(call) = inner(expr) else { return false };
        call.over.is_none() && simple_name(&call.name).is_ok_and(|name| function::aggregate(&name).is_some())
    };
    is_grouped || select.projection.iter().any(is_aggregate)
}

/// Plans a query of plain rows. `None` if it reads what is wrong itself.
pub(super) fn rows(
    query: &ast::Query,
    asker: Asker,
    tokens: &Tokens,
    names: &Names,
) -> Result<Option<Rows>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let names = &with(query, tokens, names)?;
    let select = plain_select(query, tokens).map_err(one)?;
    let is_grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, modifiers) if exprs.is_empty() && modifiers.is_empty());
    for (is_there, keyword, message) in [
        (is_grouped, Keyword::GROUP, &*asker.refusal("GROUP BY")),
        (select.having.is_some(), Keyword::HAVING, "plain rows are filtered by WHERE; HAVING is for aggregates"),
        (query.order_by.is_some(), Keyword::ORDER, "rows come in the order of their events; leave ORDER BY out"),
        (query.limit_clause.is_some(), Keyword::LIMIT, "rows come for as long as events do; leave LIMIT out"),
    ] {
        if is_there {
            return Err(vec![Fault::new(tokens.keyword(keyword), message)]);
        }
    }
    let Some(mut source) = from::plan(select, tokens, names)? else { return Ok(None) };
    if source.window.is_some() {
        return Err(vec![Fault::new(source.at, asker.refusal("windows"))]);
    }
    let mut faults = Vec::new();
    let mut keep = |fault: Fault| faults.push(fault);
    let filter = select.selection.as_ref();
    let filter = filter.and_then(|condition| source.scope.condition(condition, "WHERE").map_err(&mut keep).ok());
    // WHERE comes before them.
    source.scope.lags = Some(Lags::new(&select.named_window).map_err(one)?);
    let items = select.projection.iter().filter_map(|selected| items(selected, &source).map_err(&mut keep).ok());
    let items: Vec<Item> = items.flatten().collect();
    check_names(&items, &mut keep);
    if asker == Asker::Sink {
        check_types(&items, &mut keep);
    }
    let place = items.first().map_or(source.at, |item| item.at);
    let mut fields = Vec::new();
    for Item { name, value, at } in items {
        match value {
            Selected::Row(expr) => fields.push(Field { name, expr }),
            Selected::Aggregate(_) | Selected::Bound(_) => {
                keep(Fault::new(at, asker.refusal(&format!("the aggregate `{name}`"))))
            }
        }
    }
    let rows = filtered(source.rows, filter);
    let rows = match source.scope.lags {
        Some(lags) => {
            if let Some(unused) = lags.unused() {
                faults.push(Fault::new(tokens.keyword(Keyword::WINDOW), format!("window `{unused}` isn't used")));
            }
            if rows.unnests() && !lags.is_empty() {
                let message = "LAG can't follow UNNEST, as the items of one record have no order among rows";
                faults.push(Fault::new(place, message));
            }
            lags.rows(rows)
        }
        None => rows,
    };
    if faults.is_empty() && !fields.iter().any(|field| rows.is_read_by(&field.expr)) {
        let message = format!("the view's rows would all be the same; select a column of {}", source.what);
        faults.push(Fault::new(place, message));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Some(Rows::Project { rows: Box::new(rows), fields }))
}

/// The names that a query's parts may read: those that it may read itself, and the queries of its WITH.
fn with<'a>(query: &ast::Query, tokens: &Tokens, names: &Names<'a>) -> Result<Names<'a>, Vec<Fault>> {
    let mut names = names.clone();
    let outer = names.queries.len();
    let Some(with) = &query.with else { return Ok(names) };
    if with.recursive {
        return Err(vec![Fault::of(with, "WITH RECURSIVE isn't supported; write WITH")]);
    }
    for ast::Cte { alias, query, from, materialized, closing_paren_token: _ } in &with.cte_tables {
        let name = fold(&alias.name);
        if !alias.columns.is_empty() || from.is_some() || materialized.is_some() {
            return Err(vec![Fault::new(
                alias.name.span.start,
                format!("write {name} AS (SELECT …), and name columns with AS there"),
            )]);
        }
        if names.queries[outer..].iter().any(|(other, _)| *other == name) {
            return Err(vec![Fault::new(alias.name.span.start, format!("query `{name}` is defined twice"))]);
        }
        let rows = rows(query, Asker::Reader, tokens, &names)?;
        names.queries.push((name, rows));
    }
    Ok(names)
}

/// The SELECT of a query that has no clause which isn't supported.
fn plain_select<'a>(query: &'a ast::Query, tokens: &Tokens) -> Result<&'a ast::Select, Fault> {
    let ast::Query {
        with: _,
        body,
        order_by: _,
        limit_clause: _,
        fetch,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    let refuse = |keyword, message: &str| Err(Fault::new(tokens.keyword(keyword), message));
    if fetch.is_some() {
        return refuse(Keyword::FETCH, "FETCH isn't supported; write LIMIT");
    }
    if !locks.is_empty() || for_clause.is_some() {
        return refuse(Keyword::FOR, "FOR isn't supported");
    }
    if settings.is_some() || format_clause.is_some() || !pipe_operators.is_empty() {
        return Err(Fault::of(
            query,
            "unsupported clause; a view is SELECT … FROM … WHERE … GROUP BY … ORDER BY … LIMIT …",
        ));
    }
    let select = match &**body {
        SetExpr::Select(select) => select,
        SetExpr::SetOperation { op, .. } => {
            let keyword = match op {
                ast::SetOperator::Union => Keyword::UNION,
                ast::SetOperator::Intersect => Keyword::INTERSECT,
                ast::SetOperator::Except | ast::SetOperator::Minus => Keyword::EXCEPT,
            };
            return refuse(keyword, &format!("{op} isn't supported; write one view for each SELECT"));
        }
        _ => return Err(Fault::of(query, "a view is one SELECT over one table")),
    };
    let ast::Select {
        select_token: _,
        optimizer_hints,
        distinct,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection: _,
        exclude,
        into,
        from: _,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by: _,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window: _,
        qualify,
        window_before_qualify: _,
        value_table_mode,
        flavor,
    } = &**select;
    if distinct.is_some() {
        return refuse(Keyword::DISTINCT, "SELECT DISTINCT isn't supported; GROUP BY the columns");
    }
    if qualify.is_some() {
        return refuse(Keyword::QUALIFY, "QUALIFY isn't supported; write ORDER BY … LIMIT k for the first k rows");
    }
    let others = [
        !optimizer_hints.is_empty(),
        select_modifiers.is_some(),
        top.is_some(),
        exclude.is_some(),
        into.is_some(),
        !lateral_views.is_empty(),
        prewhere.is_some(),
        !connect_by.is_empty(),
        !cluster_by.is_empty(),
        !distribute_by.is_empty(),
        !sort_by.is_empty(),
        value_table_mode.is_some(),
        *flavor != ast::SelectFlavor::Standard,
    ];
    if others.contains(&true) {
        return Err(Fault::of(
            &**select,
            "unsupported clause; a view is SELECT … FROM … WHERE … GROUP BY … ORDER BY … LIMIT …",
        ));
    }
    Ok(select)
}

/// A column of the SELECT list.
struct Item {
    name: String,
    value: Selected,
    at: Location,
}

/// What is selected.
enum Selected {
    Bound(OutputColumn),
    Row(Expr),
    Aggregate(Aggregate),
}

/// The columns that an item of plain rows means: `*` and `t.*` are many.
fn items(selected: &SelectItem, source: &from::Source) -> Result<Vec<Item>, Fault> {
    let (columns, options) = match selected {
        SelectItem::Wildcard(options) => (source.scope.columns(), options),
        SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
            let name = simple_name(name)?;
            let unknown = || Fault::of(selected, format!("unknown table `{name}`"));
            (source.scope.columns_of(&name).ok_or_else(unknown)?, options)
        }
        _ => return item(selected, source).map(|item| vec![item]),
    };
    let plain = ast::WildcardAdditionalOptions { wildcard_token: options.wildcard_token.clone(), ..Default::default() };
    if *options != plain {
        return Err(Fault::of(selected, "write * alone, or name the columns"));
    }
    let at = selected.span().start;
    Ok(columns.into_iter().map(|(name, column)| Item { name, value: Selected::Row(column), at }).collect())
}

fn item(selected: &SelectItem, source: &from::Source) -> Result<Item, Fault> {
    let (expr, alias) = match selected {
        SelectItem::UnnamedExpr(expr) => (expr, None),
        SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias)),
        SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
            return Err(Fault::of(selected, "* is for plain rows; name the columns"));
        }
        SelectItem::ExprWithAliases { .. } => return Err(Fault::of(selected, "a column has one name")),
    };
    let at = expr.span().start;
    if let Some(bound) = source.bound(expr) {
        let (value, name) = bound;
        if let Some(alias) = alias.filter(|alias| fold(alias) != name) {
            return Err(Fault::new(alias.span.start, format!("`{name}` keeps its name; leave AS out")));
        }
        return Ok(Item { name: name.to_owned(), value: Selected::Bound(value), at });
    }
    let name = match (alias, inner(expr)) {
        (Some(alias), _) => fold(alias),
        (None, ast::Expr::Identifier(ident)) => fold(ident),
        (None, ast::Expr::CompoundIdentifier(parts)) => parts.last().map(fold).unwrap_or_default(),
        (None, _) => return Err(Fault::of(expr, format!("give `{expr}` a name with AS"))),
    };
    if let Some(alias) = alias {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(Fault::new(alias.span.start, "a column's name can't be empty or hold control characters"));
        }
        reserved(alias, &name)?;
    }
    let value = match source.scope.aggregate(expr, &name)? {
        Some(aggregate) => Selected::Aggregate(aggregate),
        None => Selected::Row(source.scope.value(expr)?),
    };
    Ok(Item { name, value, at: alias.map_or(at, |alias| alias.span.start) })
}

/// Refuses what can't be kept or sent.
fn check_types(items: &[Item], keep: &mut impl FnMut(Fault)) {
    for Item { name, value, at } in items {
        if matches!(value, Selected::Row(expr) if expr.data_type() == DataType::Interval) {
            keep(Fault::new(
                *at,
                format!("`{name}` is an INTERVAL, which is for conditions; select the timestamps instead"),
            ));
        }
    }
}

fn check_names(items: &[Item], keep: &mut impl FnMut(Fault)) {
    for (i, item) in items.iter().enumerate() {
        match items[..i].iter().find(|other| is_twin(&other.name, &item.name)) {
            Some(other) if other.name == item.name => {
                keep(Fault::new(item.at, format!("two columns are called `{}`; name one with AS", item.name)));
            }
            Some(Item { name, .. }) => {
                let message = format!(
                    "columns `{name}` and `{}` differ in case only, and Delta Lake's tables take them for one; name one with AS",
                    item.name
                );
                keep(Fault::new(item.at, message));
            }
            None => {}
        }
        for bound in ["_lower", "_upper"] {
            let of = item.name.strip_suffix(bound);
            let is_aggregate =
                |other: &&Item| matches!(other.value, Selected::Aggregate(_)) && Some(other.name.as_str()) == of;
            if let Some(other) = items.iter().find(is_aggregate) {
                keep(Fault::new(
                    item.at,
                    format!("`{}` is the name of a bound of `{}`; choose another", item.name, other.name),
                ));
            }
        }
    }
}

/// Which items are grouped by. Checks that the grouping fits the windows and that every key is selected.
fn group_by(
    clause: &GroupByExpr,
    items: &[Item],
    source: &from::Source,
    tokens: &Tokens,
) -> Result<BTreeSet<usize>, Vec<Fault>> {
    let GroupByExpr::Expressions(exprs, modifiers) = clause else {
        return Err(vec![Fault::new(tokens.keyword(Keyword::GROUP), "GROUP BY ALL isn't supported; name the keys")]);
    };
    if !modifiers.is_empty() {
        let message = "GROUPING SETS, CUBE and ROLLUP aren't supported; write one view for each grouping";
        return Err(vec![Fault::new(tokens.keyword(Keyword::GROUP), message)]);
    }
    let (mut grouped, mut faults, mut has_bound) = (BTreeSet::new(), Vec::new(), false);
    for expr in exprs {
        match group(expr, items, source) {
            Ok(Some(found)) => grouped.extend(found),
            Ok(None) => has_bound = true,
            Err(fault) => faults.push(fault),
        }
    }
    if source.window.is_some() && !has_bound && faults.is_empty() {
        let message = "a view over windows must GROUP BY window_start, window_end";
        faults.push(Fault::new(exprs.first().map_or(source.at, |expr| expr.span().start), message));
    }
    let has_aggregate = items.iter().any(|item| matches!(item.value, Selected::Aggregate(_)));
    if exprs.is_empty() && !has_aggregate {
        let at = items.first().map_or(source.at, |item| item.at);
        faults = vec![Fault::new(
            at,
            "the view has neither GROUP BY nor an aggregate; plain rows are written to a topic: WITH (sink = 'kafka', topic = '…')",
        )];
    }
    if faults.is_empty() { Ok(grouped) } else { Err(faults) }
}

/// The items that one part of GROUP BY means; `None` for a window's bound.
fn group(expr: &ast::Expr, items: &[Item], source: &from::Source) -> Result<Option<Vec<usize>>, Fault> {
    if source.bound(expr).is_some() {
        return Ok(None);
    }
    let key = match referred(expr, items, source)? {
        Some(i) => match &items[i].value {
            Selected::Bound(_) => return Ok(None),
            Selected::Aggregate(_) => {
                return Err(Fault::of(expr, format!("`{}` is an aggregate; it can't be grouped by", items[i].name)));
            }
            Selected::Row(key) => key.clone(),
        },
        None => source.scope.value(expr)?,
    };
    if key.data_type() == DataType::Json {
        return Err(Fault::of(expr, "JSON can't be a key; read a part of it with ->> 'key'"));
    }
    if !source.rows.is_read_by(&key) {
        return Err(Fault::of(expr, format!("`{expr}` is the same for every row; a key reads a column")));
    }
    let is_key = |item: &Item| matches!(&item.value, Selected::Row(expr) if *expr == key);
    let found: Vec<usize> = (0..items.len()).filter(|i| is_key(&items[*i])).collect();
    if found.is_empty() {
        return Err(Fault::of(expr, format!("`{expr}` is grouped by but not selected; add it to the SELECT list")));
    }
    Ok(Some(found))
}

/// The item that an ordinal or an alias means.
fn referred(expr: &ast::Expr, items: &[Item], source: &from::Source) -> Result<Option<usize>, Fault> {
    match inner(expr) {
        ast::Expr::Value(value) => match literal::literal(value)? {
            Literal::BigInt(number) => {
                let position = usize::try_from(number).ok().filter(|number| (1..=items.len()).contains(number));
                let message = || format!("there is no column {number}; the SELECT list has {}", items.len());
                position.map(|number| Some(number - 1)).ok_or_else(|| Fault::of(expr, message()))
            }
            _ => Ok(None),
        },
        ast::Expr::Identifier(ident) => {
            let name = fold(ident);
            let Some(i) = items.iter().position(|item| item.name == name) else { return Ok(None) };
            let is_itself = match &items[i].value {
                Selected::Row(selected) => source.scope.value(expr).is_ok_and(|column| column == *selected),
                _ => false,
            };
            if source.scope.has_column(&name) && !is_itself {
                let message = format!(
                    "`{name}` is a column of the table and another column's alias; call the alias something else"
                );
                return Err(Fault::of(expr, message));
            }
            Ok(Some(i))
        }
        _ => Ok(None),
    }
}

/// HAVING, over the columns of an answer.
fn having(
    select: &ast::Select,
    keys: &[Key],
    aggregates: &[Aggregate],
    source: &from::Source,
) -> Result<Option<Expr>, Fault> {
    let Some(condition) = &select.having else { return Ok(None) };
    let grouped = keys.iter().map(|key| (key.name.as_str(), key.expr.data_type()));
    let aggregated = aggregates.iter().map(|aggregate| (aggregate.name.as_str(), aggregate.data_type()));
    let bounds = ["window_start", "window_end"].map(|bound| (bound, DataType::Timestamp)).into_iter();
    let bounds = bounds.filter(|_| source.window.is_some());
    let columns = bounds.chain(grouped).chain(aggregated);
    let columns = columns.map(|(name, data_type)| (name.to_owned(), data_type)).collect();
    Scope::of_answer(columns, &source.scope, keys, aggregates).condition(condition, "HAVING").map(Some)
}

fn order_by(
    query: &ast::Query,
    items: &[Item],
    columns: &[OutputColumn],
    source: &from::Source,
) -> Result<Vec<OrderBy>, Fault> {
    let Some(clause) = &query.order_by else { return Ok(Vec::new()) };
    let ast::OrderByKind::Expressions(parts) = &clause.kind else {
        return Err(Fault::of(clause, "ORDER BY ALL isn't supported; name the columns"));
    };
    if clause.interpolate.is_some() {
        return Err(Fault::of(clause, "INTERPOLATE isn't supported"));
    }
    let part = |part: &ast::OrderByExpr| {
        let refuse = |message: &str| Err(Fault::of(&part.expr, message));
        let descending = match part.options.sort {
            None | Some(ast::OrderBySort::Asc) => false,
            Some(ast::OrderBySort::Desc) => true,
            Some(ast::OrderBySort::Using(_)) => return refuse("ORDER BY … USING isn't supported; write ASC or DESC"),
        };
        if part.options.nulls_first == Some(true) || part.with_fill.is_some() {
            return refuse("nulls come last; NULLS FIRST and WITH FILL aren't supported");
        }
        let position = match referred(&part.expr, items, source)? {
            _ if source.bound(&part.expr).is_some() => None,
            Some(i) => Some(i),
            None => position_of(&part.expr, items, source)?,
        };
        match position.map(|i| columns[i]) {
            Some(column @ (OutputColumn::Key(_) | OutputColumn::Aggregate(_))) => Ok(OrderBy { column, descending }),
            _ => refuse("rows are ordered within their window; order by keys and aggregates"),
        }
    };
    parts.iter().map(part).collect()
}

/// The item that is the same expression or aggregate.
fn position_of(expr: &ast::Expr, items: &[Item], source: &from::Source) -> Result<Option<usize>, Fault> {
    let found = match source.scope.aggregate(expr, "")? {
        Some(wanted) => items.iter().position(|item| match &item.value {
            Selected::Aggregate(aggregate) => Aggregate { name: String::new(), ..aggregate.clone() } == wanted,
            _ => false,
        }),
        None => {
            let wanted = source.scope.value(expr)?;
            items.iter().position(|item| matches!(&item.value, Selected::Row(expr) if *expr == wanted))
        }
    };
    found
        .map(Some)
        .ok_or_else(|| Fault::of(expr, format!("`{expr}` is ordered by but not selected; add it to the SELECT list")))
}

fn limit(query: &ast::Query, tokens: &Tokens) -> Result<Option<usize>, Fault> {
    let (limit, offset, by) = match &query.limit_clause {
        None => return Ok(None),
        Some(ast::LimitClause::LimitOffset { limit, offset, limit_by }) => {
            (limit, offset.is_some(), !limit_by.is_empty())
        }
        Some(ast::LimitClause::OffsetCommaLimit { .. }) => (&None, true, false),
    };
    if offset || by {
        let at = tokens.keyword(if offset { Keyword::OFFSET } else { Keyword::LIMIT });
        return Err(Fault::new(
            at,
            "OFFSET and LIMIT … BY aren't supported; a view keeps the first rows of each window: LIMIT k",
        ));
    }
    let Some(limit) = limit else { return Ok(None) };
    let number = match limit {
        ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(digits, false), .. }) => {
            digits.parse::<u64>().ok()
        }
        _ => None,
    };
    let Some(number) = number.filter(|number| (1..=MAX_LIMIT).contains(number)) else {
        return Err(Fault::of(limit, format!("LIMIT is a whole number from 1 to {MAX_LIMIT}")));
    };
    if query.order_by.is_none() {
        return Err(Fault::of(limit, "LIMIT needs ORDER BY, or which rows are kept would be chance"));
    }
    Ok(Some(number as usize))
}
