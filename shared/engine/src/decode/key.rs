//! The key of a record, as it names a row of a changelog.
//!
//! | the table's primary key is | the record's key is |
//! |---|---|
//! | one column | its value as plain text: `a`, `17`, `true`, `2024-01-15T10:30:45Z` |
//! | one column | a JSON value, if it begins with `"` or the column isn't `TEXT` |
//! | any | a JSON object with its columns, if it begins with `{`: `{"id":17}`, as Debezium writes it, with or without the schema around it |
//!
//! Ours are plain text wherever that is read as the same, so that other producers choose the same partition, and compaction goes
//! by it.

use anabranch_plan::schema::{DataType, Table};
use serde_json::{Map, Value};

use super::record::{self, Slot};
use super::{Decoder, debezium, number, shown};

/// So much of a key is shown.
const SHOWN: usize = 60;

/// Whether a text is read as itself.
pub fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['{', '"', '\0'])
}

/// A key as an object: the names and values of the columns.
pub fn object<'a>(columns: impl IntoIterator<Item = (&'a str, Value)>) -> String {
    let object: Map<String, Value> = columns.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Value::Object(object).to_string()
}

impl Decoder {
    /// Reads a key into the slots of the primary key, and empties all others. Gives the object that it is, if it is one.
    pub(super) fn read_key<'a>(&mut self, key: &'a [u8], slots: &mut [Slot<'a>]) -> Result<&'a str, String> {
        let text = std::str::from_utf8(key).map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to()))?;
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        if text.starts_with('\0') {
            return Err("it begins with a zero byte, as binary keys do".to_owned());
        }
        if text.starts_with('{') {
            let object = debezium::inside(text)?;
            self.read(object, slots)?;
            let of_key = &self.table.primary_key;
            slots.iter_mut().enumerate().filter(|(i, _)| !of_key.contains(i)).for_each(|(_, slot)| *slot = Slot::Null);
            self.delete(slots);
            return Ok(object);
        }
        slots.fill(Slot::Null);
        self.scratch.clear();
        let [column] = self.table.primary_key[..] else { return Err("it is no JSON object".to_owned()) };
        slots[column] = match self.table.columns[column].data_type {
            DataType::Text if !text.starts_with('"') => Slot::Text(text),
            DataType::Text => record::value(text, &mut self.scratch)?,
            _ => match record::value(text, &mut self.scratch).unwrap_or(Slot::Text(text)) {
                Slot::Float(_) => Slot::Integer(number::whole(text)?),
                other => other,
            },
        };
        self.delete(slots);
        Ok(text)
    }

    fn delete(&self, slots: &mut [Slot<'_>]) {
        slots[self.table.columns.len()] = Slot::Boolean(true);
    }

    /// Why a key names no row, and what one would be.
    pub(super) fn misfit(&self, key: &[u8], why: &str) -> String {
        let right = right_key(&self.table);
        if key.is_empty() {
            return format!("a deletion is of the row that the record's key names, and the record has none; {right}");
        }
        let key = String::from_utf8_lossy(key);
        let key = shown(&key, SHOWN).replace(char::is_control, "\u{fffd}");
        format!("a deletion is of the row that the record's key names, and `{key}` names none: {why}; {right}")
    }
}

/// What a key has to be.
fn right_key(table: &Table) -> String {
    let names: Vec<&str> = table.primary_key.iter().map(|&column| table.columns[column].name.as_str()).collect();
    let object: Vec<String> = names.iter().map(|name| format!("\"{name}\": …")).collect();
    let object = format!("{{{}}}", object.join(", "));
    match names[..] {
        [name] => format!("a key is the text of `{name}`, or {object}"),
        _ => format!("a key is {object}"),
    }
}
