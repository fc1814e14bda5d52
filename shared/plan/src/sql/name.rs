//! What tables, views, columns and topics may be called.

use sqlparser::ast::{Ident, ObjectName, Spanned};

use super::error::Fault;
use super::option::Given;
use super::syntax::simple_name;

/// The name of a table or view, which is part of addresses and of paths.
pub(super) fn defined_name(name: &ObjectName) -> Result<String, Fault> {
    let text = simple_name(name)?;
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.len() <= 128;
    if is_word {
        Ok(text)
    } else {
        Err(Fault::new(
            name.span().start,
            format!("`{text}`: a table's or view's name is a letter and up to 127 letters, digits and underscores"),
        ))
    }
}

/// Whether two names are the same, or differ in case only: the archive and the tables of views, as Delta Lake has them, can't tell
/// such columns apart.
pub(super) fn is_twin(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

/// That there are two columns of one name.
pub(super) fn twins(one: &str, other: &str) -> String {
    if one == other {
        return format!("column `{one}` is defined twice");
    }
    format!(
        "columns `{one}` and `{other}` differ in case only, and Delta Lake's tables take them for one; choose another name"
    )
}

/// Whether a column of an answer has this name that isn't a view's own.
pub(super) fn is_bound(name: &str) -> bool {
    ["window_start", "window_end"].iter().any(|bound| is_twin(bound, name))
}

/// Refuses the names that the platform gives to columns of answers itself.
pub(super) fn reserved(ident: &Ident, name: &str) -> Result<(), Fault> {
    if is_bound(name) {
        return Err(Fault::new(ident.span.start, format!("`{name}` is the name of a window's bound; choose another")));
    }
    internal(ident, name)
}

/// Refuses the names that columns have inside only.
pub(super) fn internal(ident: &Ident, name: &str) -> Result<(), Fault> {
    if name.starts_with("__") {
        return Err(Fault::new(
            ident.span.start,
            format!("`{name}`: names that start with two underscores are the platform's own"),
        ));
    }
    Ok(())
}

/// A topic that a user may name.
pub(super) fn topic(given: Given) -> Result<String, Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_dots = matches!(given.text.as_str(), "." | "..");
    if !(1..=249).contains(&given.text.len())
        || !given.text.chars().all(allowed)
        || given.text.starts_with('_')
        || is_dots
    {
        let message = format!(
            "`{}` can't be a topic; its name has 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and doesn't start with `_`",
            given.text
        );
        return Err(Fault::new(given.at, message));
    }
    Ok(given.text)
}
