//! Reads a project's SQL: `CREATE TABLE`, `CREATE VIEW` and `CREATE MATERIALIZED VIEW` statements become a [`Catalog`].
//!
//! Statements are parsed by `sqlparser` in PostgreSQL's dialect, once, into one typed plan. What the platform can't do
//! is refused here with its place and a way out; nothing of a statement is ever ignored. Names are folded to lower
//! case unless quoted.

mod aggregate;
mod error;
mod expression;
mod foreign;
mod from;
mod function;
mod join;
mod lag;
mod literal;
mod name;
mod option;
mod over;
mod query;
mod relation;
mod sink;
mod syntax;
mod table;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sqlparser::ast::{CreateTable, CreateView, Query};

use self::error::Fault;
pub use self::error::SqlError;
use self::query::Asker;
use self::relation::{Broken, Names};
use self::syntax::{Definition, Source, Tokens, relations, simple_name, statements};
use self::view::Texts;
use crate::rows::Rows;
use crate::view::{Catalog, View};

/// Plans the tables and views of all files, given with their names. Tables may be defined after the views that read
/// them and in other files. The errors are all that there are, in the order of the files.
pub fn plan(files: &[(String, String)]) -> Result<Catalog, Vec<SqlError>> {
    let mut errors = Vec::new();
    let mut sources = Vec::new();
    for (file, text) in files {
        // Editors put a byte order mark before the first character, which is none of the text.
        let (read, faults) = statements(text.strip_prefix('\u{feff}').unwrap_or(text));
        sources.extend(read.into_iter().map(|source| (file.as_str(), source)));
        errors.extend(faults.into_iter().map(|fault| fault.in_file(file)));
    }
    let mut catalog = Catalog::default();
    let mut broken = Broken { unread: !errors.is_empty(), ..Broken::default() };
    for (file, source) in &sources {
        if let Definition::Table(create) = &source.definition {
            match table::plan(create, &source.tokens) {
                Ok(table) => {
                    if let Err(fault) = add_table(&mut catalog, create, table) {
                        errors.push(fault.in_file(file));
                    }
                }
                Err(faults) => {
                    broken.tables.extend(simple_name(&create.name).ok());
                    errors.extend(faults.into_iter().map(|fault| fault.or_at(|| source.start()).in_file(file)));
                }
            }
        }
    }
    let views = sources.iter().filter_map(|(file, source)| match &source.definition {
        Definition::View(create) => {
            let is_view = |name: &String| !catalog.tables.contains_key(name) && !broken.tables.contains(name);
            let reads = relations(&create.query).into_iter().filter(is_view).collect();
            Some(Statement { file, source, create, name: simple_name(&create.name).ok(), reads })
        }
        Definition::Table(_) => None,
    });
    let (ordered, circular) = in_order(views.collect());
    broken.views.extend(circular.iter().filter_map(|view| view.name.clone()));
    for view in circular.iter().filter(|view| view.reads_itself(&circular)) {
        let message = format!("view `{}` reads itself, or what reads it", view.create.name);
        errors.push(Fault::of(&view.create.name, message).in_file(view.file));
    }
    // The texts of each view of rows and of those that it reads.
    let mut texts: BTreeMap<String, Texts> = BTreeMap::new();
    for Statement { file, source, create, name, reads } in &ordered {
        let plan = |query: &Query, tokens: &Tokens, names: &Names| query::rows(query, Asker::Reader, tokens, names);
        let names = Names { catalog: &catalog, broken: &broken, queries: Vec::new(), plan };
        let above = reads.iter().filter_map(|name| texts.get(name)).flatten();
        let mut above: Texts = above.map(|(name, text)| (name.clone(), text.clone())).collect();
        let planned = match create.materialized {
            true => view::plan(create, source, &names, &above).map(|view| view.map(Planned::View)),
            false => view::rows(create, source, &names).map(|rows| rows.map(|(name, rows)| Planned::Rows(name, rows))),
        };
        match planned {
            Ok(Some(planned)) => {
                let name = planned.name().to_owned();
                above.insert(name.clone(), create.query.to_string());
                texts.insert(name.clone(), above);
                match planned {
                    Planned::View(view) => drop(catalog.views.insert(name, Arc::new(view))),
                    Planned::Rows(_, rows) => drop(catalog.rows.insert(name, rows)),
                }
            }
            Ok(None) => broken.views.extend(name.clone()),
            Err(faults) => {
                broken.views.extend(name.clone());
                errors.extend(faults.into_iter().map(|fault| fault.or_at(|| source.start()).in_file(file)));
            }
        }
    }
    if errors.is_empty() {
        return Ok(catalog);
    }
    let position = |file: &str| files.iter().position(|(name, _)| name == file);
    errors.sort_by_key(|error| (position(&error.file), error.line, error.column));
    Err(errors)
}

fn add_table(catalog: &mut Catalog, create: &CreateTable, table: crate::schema::Table) -> Result<(), Fault> {
    if catalog.tables.contains_key(&table.name) {
        return Err(Fault::of(&create.name, format!("table `{}` is defined twice", table.name)));
    }
    if let Some(other) = catalog.table_of_topic(&table.topic) {
        return Err(Fault::of(
            &create.name,
            format!(
                "tables `{}` and `{}` are both over topic `{}`; a topic has one table",
                other.name, table.name, table.topic
            ),
        ));
    }
    catalog.tables.insert(table.name.clone(), Arc::new(table));
    Ok(())
}

/// The definition of a view, as read.
struct Statement<'a> {
    file: &'a str,
    source: &'a Source,
    create: &'a CreateView,
    /// Its name, unless that is none.
    name: Option<String>,
    /// The names of what it reads, but for tables.
    reads: BTreeSet<String>,
}

impl Statement<'_> {
    fn is_read_by(&self, other: &Self) -> bool {
        self.name.as_ref().is_some_and(|name| other.reads.contains(name))
    }

    /// Whether it is among what it reads.
    fn reads_itself(&self, all: &[Statement<'_>]) -> bool {
        let mut reached = self.reads.clone();
        loop {
            let is_reached = |view: &&Statement| view.name.as_ref().is_some_and(|name| reached.contains(name));
            let more: BTreeSet<String> = all.iter().filter(is_reached).flat_map(|view| view.reads.clone()).collect();
            if more.is_subset(&reached) {
                return self.name.as_ref().is_some_and(|name| reached.contains(name));
            }
            reached.extend(more);
        }
    }
}

enum Planned {
    View(View),
    Rows(String, Rows),
}

impl Planned {
    fn name(&self) -> &str {
        match self {
            Self::View(view) => &view.id.name,
            Self::Rows(name, _) => name,
        }
    }
}

/// Views in such an order that each follows those that it reads, else in that of their files; and those that read themselves, or
/// such a view.
fn in_order(mut views: Vec<Statement<'_>>) -> (Vec<Statement<'_>>, Vec<Statement<'_>>) {
    let mut ordered = Vec::new();
    while let Some(next) = views.iter().position(|view| !views.iter().any(|other| other.is_read_by(view))) {
        ordered.push(views.remove(next));
    }
    (ordered, views)
}
