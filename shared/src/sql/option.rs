//! The options in `WITH (name = 'value', …)`.

use std::collections::BTreeMap;

use sqlparser::ast::{CreateTableOptions, Expr, Spanned, SqlOption, Value};
use sqlparser::tokenizer::Location;

use super::error::{Fault, list, suggestion};
use super::simple_name;
use crate::clock::Micros;
use crate::unit::{parse_bytes, parse_duration};

/// The options that were given, each to be taken once.
pub(super) struct Options(BTreeMap<String, Given>);

/// The value of an option.
pub(super) struct Given {
    pub text: String,
    pub at: Location,
}

impl Options {
    /// Reads the options of a statement, which may have those of `known` only.
    pub fn read(options: &CreateTableOptions, known: &[&str]) -> Result<Self, Fault> {
        let given = match options {
            CreateTableOptions::None => &Vec::new(),
            CreateTableOptions::With(options) => options,
            other => return Err(Fault::of(other, "options are written as WITH (name = 'value', …)")),
        };
        let mut found = BTreeMap::new();
        for option in given {
            let SqlOption::KeyValue { key, value } = option else {
                return Err(Fault::of(option, format!("`{option}`: options are written as name = 'value'")));
            };
            let name = simple_name(key)?;
            if !known.contains(&name.as_str()) {
                let close = suggestion(&name, known.iter().copied());
                let known = list(known.iter().copied());
                return Err(Fault::of(key, format!("unknown option `{name}`; there are {known}{close}")));
            }
            let text = match value {
                Expr::Value(value) => match &value.value {
                    Value::SingleQuotedString(text) | Value::Number(text, false) => Some(text.clone()),
                    _ => None,
                },
                _ => None,
            };
            let text = text.ok_or_else(|| {
                Fault::of(value, format!("option `{name}` takes a text in single quotes or a number, not `{value}`"))
                    .or_at(|| key.span().start)
            })?;
            if found.insert(name.clone(), Given { text, at: value.span().start }).is_some() {
                return Err(Fault::of(key, format!("option `{name}` is given twice")));
            }
        }
        Ok(Self(found))
    }

    /// One of the options that nobody took.
    pub fn rest(self) -> Option<(String, Given)> {
        self.0.into_iter().next()
    }

    /// An option's value as it was written.
    pub fn text(&mut self, name: &str) -> Option<Given> {
        self.0.remove(name)
    }

    /// A duration.
    pub fn duration(&mut self, name: &str) -> Result<Option<Micros>, Fault> {
        self.parse(name, parse_duration)
    }

    /// A number of bytes.
    pub fn bytes(&mut self, name: &str) -> Result<Option<u64>, Fault> {
        self.parse(name, parse_bytes)
    }

    /// A whole number in a range.
    pub fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, Fault> {
        self.parse(name, |text| {
            text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
                format!("`{text}`: option `{name}` is a whole number from {} to {}", range.start(), range.end())
            })
        })
    }

    fn parse<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Fault> {
        self.text(name).map(|given| read(&given.text).map_err(|message| Fault::new(given.at, message))).transpose()
    }
}

/// Checks the shape of a cron expression; the batch layer's scheduler reads it.
pub(super) fn schedule(given: Given) -> Result<String, Fault> {
    let fields: Vec<&str> = given.text.split_whitespace().collect();
    let is_field = |field: &&str| field.chars().all(|c| c.is_ascii_alphanumeric() || "*/,-?#+".contains(c));
    if !(5..=6).contains(&fields.len()) || !fields.iter().all(is_field) {
        return Err(Fault::new(
            given.at,
            format!("`{}` isn't a cron expression of 5 or 6 fields, such as `*/15 * * * *`", given.text),
        ));
    }
    Ok(fields.join(" "))
}
