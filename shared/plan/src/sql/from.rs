//! `FROM`: tables, views and queries, joined, or one of them with its windows; and at most one `CROSS JOIN UNNEST`.

use sqlparser::ast::{self, TableFactor};
use sqlparser::tokenizer::Location;

use super::error::Fault;
use super::expression::{Relation, Scope};
use super::join;
use super::name::reserved;
use super::relation::{Names, Read, read};
use super::syntax::{Tokens, fold};
use crate::aggregation::OutputColumn;
use crate::rows::Rows;
use crate::schema::DataType;
use crate::window::Window;

/// What a query reads.
pub(super) struct Source<'a> {
    pub window: Option<Window>,
    /// The event time that windows go by.
    pub time: Option<String>,
    /// Its rows, before any condition.
    pub rows: Rows,
    pub scope: Scope<'a>,
    /// What FROM names, for messages.
    pub what: String,
    /// Where FROM's table is named.
    pub at: Location,
}

impl Source<'_> {
    /// The bound of a window that an expression names, if the view has windows.
    pub fn bound(&self, expr: &ast::Expr) -> Option<(OutputColumn, &'static str)> {
        self.window?;
        let name = match expr {
            ast::Expr::Identifier(ident) => fold(ident),
            ast::Expr::CompoundIdentifier(parts) if parts.len() == 2 && self.scope.is_windowed(&fold(&parts[0])) => {
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
}

/// Plans FROM. `None` if it reads what is wrong itself.
pub(super) fn plan<'a>(select: &ast::Select, tokens: &Tokens, names: &Names) -> Result<Option<Source<'a>>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let from = match select.from.as_slice() {
        [from] => from,
        [] => return Err(one(Fault::of(select, "the view needs FROM: a table, TUMBLE(…), HOP(…) or SESSION(…)"))),
        [_, second, ..] => {
            return Err(one(Fault::of(
                &second.relation,
                "tables are joined by JOIN … ON, and lists are unnested by CROSS JOIN UNNEST(…) AS t(item)",
            )));
        }
    };
    let Some(Read { mut rows, mut relation, window, at }) = read(&from.relation, tokens, names)? else {
        return Ok(None);
    };
    let (window, time) = window.unzip();
    let what = relation.what.clone();
    let is_unnest = |join: &&ast::Join| matches!(join.relation, TableFactor::UNNEST { .. });
    if let Some(join) = from.joins.iter().find(|join| !is_unnest(join)) {
        if window.is_some() {
            return Err(one(Fault::new(at, join::WINDOWS)));
        }
        if !join::is_qualifier(&relation.qualifier) {
            let message = "each side of a join needs a name without dots: FROM (SELECT …) AS a JOIN …";
            return Err(one(Fault::of(&join.relation, message)));
        }
        rows = join::qualified(rows, &mut relation);
    }
    let mut scope = Scope::new(relation, time.clone());
    let mut has_list = false;
    for join in &from.joins {
        if !is_unnest(&join) {
            let Some(joined) = join::plan(rows, join, &mut scope, tokens, names)? else { return Ok(None) };
            rows = joined;
        } else if std::mem::replace(&mut has_list, true) {
            return Err(one(Fault::of(&join.relation, "a view unnests at most one list")));
        } else {
            rows = unnest(rows, join, &mut scope).map_err(one)?;
        }
    }
    Ok(Some(Source { window, time, rows, scope, what, at }))
}

fn unnest(rows: Rows, join: &ast::Join, scope: &mut Scope) -> Result<Rows, Fault> {
    let only = "write CROSS JOIN UNNEST(…) AS t(item)";
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
    if scope.is_relation(&fold(alias)) {
        return Err(Fault::new(
            alias.span.start,
            format!("`{alias}` names the table already; choose another name for the list"),
        ));
    }
    scope.add(Relation {
        qualifier: fold(alias),
        what: "the list".to_owned(),
        columns: vec![(name.clone(), *item)],
        times: Vec::new(),
        is_list: true,
        is_qualified: false,
    });
    Ok(Rows::Unnest { rows: Box::new(rows), list: planned, column: name })
}
