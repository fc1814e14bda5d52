//! The envelope that [Debezium](https://debezium.io) puts around a database's row.

use std::borrow::Cow;

use sonic_rs::{JsonValueTrait, LazyValue};

use super::record::{MAX_DEPTH, describe, is_nested_deeper, parse};
use super::shown;

/// What a record says of a row.
pub(super) enum Change<'a> {
    /// What it is now.
    Row(&'a str),
    /// That there is none any more. Which one the record's key says.
    Deletion,
    /// That there are none at all any more.
    Truncation,
    /// Nothing: the connector says something of itself.
    None,
}

/// What is inside of the schema that Kafka Connect puts around a value or a key, if it does.
pub(super) fn inside(record: &str) -> Result<&str, String> {
    // Looking for a key skips over values without reading them.
    if is_nested_deeper(record.as_bytes(), MAX_DEPTH) {
        return Err(format!("nested deeper than {MAX_DEPTH} levels"));
    }
    parse(record).map_err(|error| describe(&error))?;
    let whole = || sonic_rs::get(record, [] as [&str; 0]).ok();
    let inside = || sonic_rs::get(record, ["payload"]).ok().filter(LazyValue::is_object);
    Ok(inside().or_else(whole).and_then(raw).unwrap_or(record))
}

/// The change that an envelope tells.
pub(super) fn change(record: &str) -> Result<Change<'_>, String> {
    let envelope = inside(record)?;
    let get = |key: &str| sonic_rs::get(envelope, [key]).ok();
    let op = get("op").and_then(|op| op.as_str().map(str::to_owned));
    match op.as_deref() {
        Some("c" | "u" | "r") => match get("after").filter(LazyValue::is_object).and_then(raw) {
            Some(row) => Ok(Change::Row(row)),
            None => Err("a change of Debezium's without a row in `after`".to_owned()),
        },
        Some("d") => Ok(Change::Deletion),
        Some("t") => Ok(Change::Truncation),
        Some("m") => Ok(Change::None),
        Some(op) => Err(format!("`op` is `{}`, but Debezium's are `c`, `u`, `r`, `d`, `t` and `m`", shown(op, 40))),
        None => Err("no envelope of Debezium's: there is no `op`".to_owned()),
    }
}

/// The text of a value in the record that it was found in.
fn raw(value: LazyValue<'_>) -> Option<&str> {
    match value.as_raw_cow() {
        Cow::Borrowed(text) => Some(text),
        Cow::Owned(_) => None,
    }
}
