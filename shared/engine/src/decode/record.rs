//! One record's JSON, read once and in full, into a slot for each column.
//!
//! Nothing is written to a column before the whole record has been read, so a bad one leaves no trace.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use sonic_rs::{Deserializer, LazyValue};

/// How deep arrays and objects of a record may be nested.
pub const MAX_DEPTH: usize = 64;

/// What a record has for a column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Slot<'a> {
    /// JSON's `null`, or nothing at all.
    Null,
    Boolean(bool),
    Integer(i64),
    /// A number that isn't an integer of 64 bits.
    Float(f64),
    /// A string that stands in the record as it is.
    Text(&'a str),
    /// A string whose escapes were resolved, or JSON text that had to be copied: bytes `.0` to `.1` of the scratch.
    Escaped(usize, usize),
    /// The JSON text of a value.
    Json(&'a str),
    Array,
    Object,
}

/// Which columns to look for.
#[derive(Debug)]
pub(super) struct Layout {
    /// The name of each column, and whether its value's JSON text is wanted rather than the value; none of a column that
    /// isn't in the record.
    pub columns: Vec<Option<(String, bool)>>,
    /// The keys of an object as they came last, and the column of each: most producers write one order.
    pub order: Vec<(String, Option<usize>)>,
}

impl Layout {
    /// The column that the key at a place in the object names.
    pub fn column(&mut self, place: usize, key: &str) -> Option<usize> {
        if let Some((expected, column)) = self.order.get(place)
            && expected == key
        {
            return *column;
        }
        let column = self.columns.iter().position(|column| column.as_ref().is_some_and(|(name, _)| name == key));
        if place < self.order.len() {
            self.order[place] = (key.to_owned(), column);
        } else if place == self.order.len() && place < 4 * self.columns.len() {
            self.order.push((key.to_owned(), column));
        }
        column
    }
}

/// Reads a record into `slots`, one for each column of the layout.
///
/// Every value is parsed, those of unknown keys too, so that what is kept is JSON to every other reader as well.
/// If a key comes twice, the last one wins. The error says what is wrong, and at which byte.
pub(super) fn read<'a>(
    record: &'a str,
    layout: &mut Layout,
    slots: &mut [Slot<'a>],
    scratch: &mut String,
) -> Result<(), String> {
    // Finding the end of a JSON value recurses without a limit of its own.
    if layout.columns.iter().flatten().any(|(_, json)| *json) && is_nested_deeper(record.as_bytes(), MAX_DEPTH) {
        return Err(too_deep());
    }
    slots.fill(Slot::Null);
    scratch.clear();
    if !record.trim_ascii_start().starts_with('{') {
        let found = value(record, scratch)?;
        return Err(format!("expected an object, found {}", found.kind()));
    }
    let mut json = Deserializer::from_str(record);
    let read = serde::Deserializer::deserialize_map(&mut json, Object { layout, slots, scratch });
    read.and_then(|()| json.end()).map_err(|e| describe(&e))
}

/// Reads one value with nothing behind it.
pub(super) fn value<'a>(json: &'a str, scratch: &mut String) -> Result<Slot<'a>, String> {
    let mut json = Deserializer::from_str(json);
    let found = Value(scratch).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    found.map_err(|error| describe(&error))
}

/// Whether arrays and objects are nested deeper than `max`. Of text that isn't JSON the answer may be either.
pub fn is_nested_deeper(json: &[u8], max: usize) -> bool {
    // `[` and `{` differ in one bit. A text with few of them can't be deep, whatever they mean.
    // Counted in single bytes, 16 or more at once.
    let opening = |chunk: &[u8]| chunk.iter().map(|&byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    if json.chunks(255).map(|chunk| usize::from(opening(chunk))).sum::<usize>() <= max {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > max {
            return true;
        }
    }
    false
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

/// Parses one JSON value with nothing behind it.
pub fn parse(json: &str) -> Result<(), sonic_rs::Error> {
    let mut json = Deserializer::from_str(json);
    Skip(0).deserialize(&mut json).and_then(|()| json.end())
}

/// Whether parsing failed only for a value being nested deeper than [`MAX_DEPTH`].
pub fn is_too_deep(error: &sonic_rs::Error) -> bool {
    error.is_unmatched_type() && error.to_string().starts_with(&too_deep())
}

/// Why parsing failed, in one line.
pub fn describe(error: &sonic_rs::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    // A complaint of our own, which says it all.
    if error.is_unmatched_type() {
        return what.to_owned();
    }
    format!("not JSON at byte {}: {}", error.offset(), what)
}

impl Slot<'_> {
    /// What it is, as a message names it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) | Self::Escaped(..) => "a string",
            Self::Json(_) => "JSON",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// The record itself.
struct Object<'s, 'a> {
    layout: &'s mut Layout,
    slots: &'s mut [Slot<'a>],
    scratch: &'s mut String,
}

impl<'a> Visitor<'a> for Object<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        let mut place = 0;
        while let Some(column) = map.next_key_seed(Key(self.layout, place))? {
            place += 1;
            let Some(column) = column else {
                map.next_value_seed(Skip(1))?;
                continue;
            };
            self.slots[column] = match &self.layout.columns[column] {
                Some((name, true)) => json_text(map.next_value()?, self.scratch)
                    .map_err(|e| M::Error::custom(format_args!("column `{name}`: {}", describe(&e))))?,
                _ => map.next_value_seed(Value(self.scratch))?,
            };
        }
        Ok(())
    }
}

/// The JSON text of a value, parsed as well, as skipping alone doesn't look into strings and numbers.
fn json_text<'a>(value: LazyValue<'a>, scratch: &mut String) -> Result<Slot<'a>, sonic_rs::Error> {
    let text = value.as_raw_cow();
    Skip(1).deserialize(&mut Deserializer::from_str(&text))?;
    match text {
        Cow::Borrowed("null") => Ok(Slot::Null),
        Cow::Borrowed(text) => Ok(Slot::Json(text)),
        Cow::Owned(text) => Value(scratch).visit_str(&text),
    }
}

/// A key, looked up.
struct Key<'s>(&'s mut Layout, usize);

impl<'a> DeserializeSeed<'a> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.column(self.1, key))
    }
}

/// The value of a column.
struct Value<'s>(&'s mut String);

impl<'a> DeserializeSeed<'a> for Value<'_> {
    type Value = Slot<'a>;

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<Slot<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Value<'_> {
    type Value = Slot<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Slot<'a>, E> {
        Ok(Slot::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Slot<'a>, E> {
        Ok(Slot::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Slot<'a>, E> {
        Ok(Slot::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Slot<'a>, E> {
        Ok(i64::try_from(value).map_or(Slot::Float(value as f64), Slot::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Slot<'a>, E> {
        Ok(Slot::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> Result<Slot<'a>, E> {
        Ok(Slot::Text(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Slot<'a>, E> {
        let start = self.0.len();
        self.0.push_str(value);
        Ok(Slot::Escaped(start, self.0.len()))
    }

    fn visit_seq<S: SeqAccess<'a>>(self, seq: S) -> Result<Slot<'a>, S::Error> {
        Skip(1).visit_seq(seq).map(|()| Slot::Array)
    }

    fn visit_map<M: MapAccess<'a>>(self, map: M) -> Result<Slot<'a>, M::Error> {
        Skip(1).visit_map(map).map(|()| Slot::Object)
    }
}

/// The text of the number that a column's value is in a record that was read: of a key that comes twice, the last one.
pub(super) fn number<'a>(record: &'a str, column: &str) -> Option<&'a str> {
    serde::Deserializer::deserialize_map(&mut Deserializer::from_str(record), Find(column)).ok().flatten()
}

/// Looks for the value of one key.
struct Find<'s>(&'s str);

impl<'a> Visitor<'a> for Find<'_> {
    type Value = Option<&'a str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != self.0 {
                map.next_value_seed(Skip(1))?;
            } else if let Cow::Borrowed(text) = map.next_value::<LazyValue<'a>>()?.as_raw_cow() {
                found = Some(text);
            }
        }
        Ok(found)
    }
}

/// A value that nobody wants, parsed nevertheless; it is inside that many arrays and objects.
struct Skip(usize);

impl Skip {
    fn deeper<E: serde::de::Error>(self) -> Result<usize, E> {
        if self.0 == MAX_DEPTH { Err(E::custom(too_deep())) } else { Ok(self.0 + 1) }
    }
}

impl<'a> DeserializeSeed<'a> for Skip {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Skip {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<(), S::Error> {
        let depth = self.deeper()?;
        while seq.next_element_seed(Skip(depth))?.is_some() {}
        Ok(())
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        let depth = self.deeper()?;
        while map.next_key_seed(Skip(depth))?.is_some() {
            map.next_value_seed(Skip(depth))?;
        }
        Ok(())
    }
}
