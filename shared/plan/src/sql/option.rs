//! The options in `WITH (name = 'value', …)`.

use std::collections::BTreeMap;

use chrono_tz::{TZ_VARIANTS, Tz};
use sqlparser::ast::{CreateTableOptions, Expr, Spanned, SqlOption, Value};
use sqlparser::tokenizer::Location;

use super::error::{Fault, list, suggestion};
use super::syntax::simple_name;
use crate::schedule::{CatchUp, Schedule};
use crate::time::Micros;
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

    /// Whether an option is given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
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

/// When a view is recomputed: `batch`, and what goes with it.
pub(super) fn schedule(options: &mut Options) -> Result<Option<Schedule>, Fault> {
    let (cron, zone, catch_up) = (options.text("batch"), options.text("schedule_zone"), options.text("catch_up"));
    let Some(Given { text: cron, at }) = cron else {
        let without = [("schedule_zone", zone), ("catch_up", catch_up)];
        return match without.into_iter().find_map(|(name, given)| Some((name, given?))) {
            None => Ok(None),
            Some((name, given)) => {
                let message =
                    format!("option `{name}` goes with batch = 'cron expression', which says when to recompute");
                Err(Fault::new(given.at, message))
            }
        };
    };
    let zone = zone.map_or(Ok(Tz::UTC), |zone| self::zone(&zone.text, zone.at))?;
    let catch_up = catch_up.map_or(Ok(CatchUp::default()), |Given { text, at }| {
        let message = || format!("catch_up = `{text}`: there are `last`, `all` and `none`");
        CatchUp::ALL.into_iter().find(|policy| policy.name() == text).ok_or_else(|| Fault::new(at, message()))
    })?;
    Schedule::parse(&cron, zone, catch_up).map(Some).map_err(|why| Fault::new(at, why))
}

/// A zone by its name.
pub(super) fn zone(name: &str, at: Location) -> Result<Tz, Fault> {
    name.parse().map_err(|_| {
        let close = suggestion(name, TZ_VARIANTS.iter().map(|zone| zone.name()));
        Fault::new(at, format!("unknown time zone `{name}`; names are those of the IANA database{close}"))
    })
}
