//! Reads a project's SQL: `CREATE TABLE` and `CREATE MATERIALIZED VIEW` statements become a [`Catalog`].
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
mod literal;
mod name;
mod option;
mod query;
mod sink;
mod syntax;
mod table;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlparser::ast::CreateTable;

use self::error::Fault;
pub use self::error::SqlError;
use self::from::Broken;
use self::syntax::{Definition, simple_name, statements};
use crate::view::Catalog;

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
    let mut broken = Broken { names: BTreeSet::new(), unread: !errors.is_empty() };
    for (file, source) in &sources {
        if let Definition::Table(create) = &source.definition {
            match table::plan(create, &source.tokens) {
                Ok(table) => {
                    if let Err(fault) = add_table(&mut catalog, create, table) {
                        errors.push(fault.in_file(file));
                    }
                }
                Err(faults) => {
                    broken.names.extend(simple_name(&create.name).ok());
                    errors.extend(faults.into_iter().map(|fault| fault.or_at(|| source.start()).in_file(file)));
                }
            }
        }
    }
    for (file, source) in &sources {
        if let Definition::View(create) = &source.definition {
            match view::plan(create, source, &catalog, &broken) {
                Ok(Some(view)) => {
                    catalog.views.insert(view.id.name.clone(), Arc::new(view));
                }
                Ok(None) => {}
                Err(faults) => {
                    errors.extend(faults.into_iter().map(|fault| fault.or_at(|| source.start()).in_file(file)));
                }
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
