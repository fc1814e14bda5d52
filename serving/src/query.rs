//! What a request for rows asks, checked against the view.

use anabranch_engine::transform::{column, polars_type};
use anabranch_plan::aggregation::OutputColumn;
use anabranch_plan::schema::DataType;
use anabranch_plan::time::{Micros, TIMES, format_timestamp, parse_timestamp};
use anabranch_plan::view::Kept;
use polars::prelude::{DataFrame, IntoLazy, PolarsResult, lit};
use sha2::{Digest, Sha256};

use crate::format::Format;
use crate::merge::Ask;
use crate::page::Cursor;
use crate::problem::{Problem, quoted};
use crate::source::Mode;

const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: usize = 100_000;
/// How many windows a range may name.
const MAX_WINDOWS: i64 = 10_000;
const PARAMETERS: [&str; 9] = ["window", "from", "to", "limit", "cursor", "mode", "order", "totals", "format"];

/// A request for rows.
#[derive(Debug, Clone, PartialEq)]
pub struct RowsQuery {
    /// Which windows.
    pub ask: Ask,
    /// From which layers.
    pub mode: Mode,
    /// Only rows with these values in these key columns.
    pub keys: Vec<(String, KeyValue)>,
    /// How many rows at most.
    pub limit: usize,
    /// The column to rank by, and whether the largest come first; none is the view's own order.
    pub order: Option<(String, bool)>,
    /// Whether each window's totals are wanted.
    pub totals: bool,
    /// The form wanted, whatever is accepted.
    pub format: Option<Format>,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    fingerprint: u64,
}

/// The value that a key is to have.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyValue {
    /// A text.
    Text(String),
    /// An integer.
    Integer(i64),
    /// A number.
    Double(f64),
    /// True or false.
    Boolean(bool),
    /// A time.
    Time(Micros),
    /// None.
    Null,
}

impl RowsQuery {
    /// Reads the parameters of a request.
    pub fn parse(view: &Kept, parameters: &[(String, String)]) -> Result<Self, Problem> {
        for (name, _) in parameters {
            if !PARAMETERS.contains(&name.as_str()) && !name.starts_with("key.") {
                let known = quoted(PARAMETERS.into_iter().chain(["key.<column>"]));
                let detail = format!("there is no parameter `{name}`; there are {known}");
                return Err(Problem::bad_request("unknown-parameter", detail));
            }
        }
        let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let mode = match get("mode") {
            None | Some("merged") => Mode::Merged,
            Some("batch") => Mode::Batch,
            Some("speed") => Mode::Speed,
            Some(other) => {
                let detail = format!("`mode` is `{other}`; it can be `merged`, `batch` or `speed`");
                return Err(Problem::bad_request("bad-mode", detail));
            }
        };
        let limit = match get("limit") {
            None => DEFAULT_LIMIT,
            Some(text) => text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or_else(|| {
                Problem::bad_request("bad-limit", format!("`limit` is `{text}`; it can be 1 to {MAX_LIMIT}"))
            })?,
        };
        let mut query = Self {
            ask: ask(view, get("window"), get("from"), get("to"))?,
            mode,
            keys: key_values(view, parameters)?,
            limit,
            order: get("order").map(|order| ranked(view, order)).transpose()?,
            totals: flag("totals", get("totals"))?,
            format: get("format").map(format).transpose()?,
            after: None,
            fingerprint: fingerprint(view, parameters),
        };
        if query.totals && query.format.is_some_and(|format| format != Format::Json) {
            return Err(Problem::bad_request("bad-parameter", "`totals` are of JSON only"));
        }
        if let Some(cursor) = get("cursor") {
            query.resume(cursor)?;
        }
        Ok(query)
    }

    /// The same for all pages of a query, different for all other queries and definitions.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Goes on where a page ended, in the window that it was about, although a newer one may have opened.
    fn resume(&mut self, cursor: &str) -> Result<(), Problem> {
        let bad = |why: &str| Problem::bad_request("bad-cursor", format!("{why}; begin again without `cursor`"));
        let cursor = Cursor::read(cursor).ok_or_else(|| bad("the cursor is not one of this server's"))?;
        if cursor.query != self.fingerprint {
            return Err(bad("the cursor belongs to another query or another definition of the view"));
        }
        if let Some(end) = cursor.window {
            self.ask = Ask::End(end);
        }
        self.after = Some(cursor);
        Ok(())
    }

    /// The rows that have the keys asked for.
    pub fn select(&self, rows: DataFrame) -> PolarsResult<DataFrame> {
        if self.keys.is_empty() || rows.width() == 0 {
            return Ok(rows);
        }
        let conditions = self.keys.iter().map(|(key, value)| {
            let value = match value {
                KeyValue::Null => return column(key).is_null(),
                KeyValue::Text(text) => lit(text.as_str()),
                KeyValue::Integer(number) => lit(*number),
                KeyValue::Double(number) => lit(*number),
                KeyValue::Boolean(value) => lit(*value),
                KeyValue::Time(time) => lit(*time).cast(polars_type(&DataType::Timestamp)),
            };
            column(key).eq(value)
        });
        let condition = conditions.reduce(|all, one| all.and(one)).unwrap_or_else(|| lit(true));
        rows.lazy().filter(condition).collect()
    }
}

fn flag(name: &str, text: Option<&str>) -> Result<bool, Problem> {
    match text {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            Err(Problem::bad_request("bad-parameter", format!("`{name}` is `{other}`; it can be `true` or `false`")))
        }
    }
}

fn format(text: &str) -> Result<Format, Problem> {
    Format::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
        let known = quoted(Format::ALL.into_iter().map(Format::name));
        Problem::bad_request("bad-format", format!("`format` is `{text}`; it can be {known}"))
    })
}

/// The column of an answer that is to be ranked by. Aggregates come largest first unless it is said otherwise.
fn ranked(view: &Kept, text: &str) -> Result<(String, bool), Problem> {
    let names = view.aggregation().columns.iter().flat_map(|&column| {
        let (name, is_aggregate) =
            (view.aggregation().column_name(column), matches!(column, OutputColumn::Aggregate(_)));
        let bounds = ["_lower", "_upper"].into_iter().filter(move |_| is_aggregate).map(move |b| format!("{name}{b}"));
        std::iter::once(name.to_owned()).chain(bounds).map(move |name| (name, is_aggregate))
    });
    let columns: Vec<(String, bool)> = names.collect();
    let known = |name: &str| columns.iter().find(|(column, _)| column == name).cloned();
    let of = |suffix: &str, descending: bool| {
        text.strip_suffix(suffix).and_then(known).map(|(column, _)| (column, descending))
    };
    known(text).or_else(|| of(":asc", false)).or_else(|| of(":desc", true)).ok_or_else(|| {
        let names = quoted(columns.iter().map(|(name, _)| name.as_str()));
        let detail = format!("`order` is `{text}`; it can be a column, with `:asc` or `:desc` behind it: {names}");
        Problem::bad_request("bad-order", detail)
    })
}

/// What a query asks, but for the page: the same for all pages, different for all other queries and definitions.
fn fingerprint(view: &Kept, parameters: &[(String, String)]) -> u64 {
    let mut parts: Vec<&(String, String)> =
        parameters.iter().filter(|(name, _)| !matches!(name.as_str(), "cursor" | "limit" | "format")).collect();
    parts.sort();
    let mut hash = Sha256::new();
    hash.update(view.id.definition.as_bytes());
    for (name, value) in parts {
        for part in [name, value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.finalize().iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn time(name: &str, text: &str) -> Result<Micros, Problem> {
    // A `+` that wasn't escaped arrives as a space: `2017-08-27T02:05:00 02:00`.
    let offset_at = text.len().checked_sub(6).filter(|&at| at > 10 && text.as_bytes()[at] == b' ');
    let text = match offset_at {
        Some(at) => format!("{}+{}", &text[..at], &text[at + 1..]),
        None => text.to_owned(),
    };
    parse_timestamp(&text).ok_or_else(|| {
        let detail = format!("`{name}` is `{text}`, which is no time; write RFC 3339, such as 2017-08-27T00:05:00Z");
        Problem::bad_request("bad-time", detail)
    })
}

fn ask(view: &Kept, named: Option<&str>, from: Option<&str>, to: Option<&str>) -> Result<Ask, Problem> {
    let Some(window) = view.aggregation().window else {
        return match (named, from, to) {
            (None | Some("latest" | "current"), None, None) => Ok(Ask::Latest),
            _ => Err(Problem::bad_request(
                "no-windows",
                format!("view `{}` has no windows to choose from", view.id.name),
            )),
        };
    };
    match (named, from, to) {
        (None | Some("latest"), None, None) => Ok(Ask::Latest),
        (Some("current"), None, None) => Ok(Ask::Current),
        (Some("closed"), None, None) => Ok(Ask::Closed),
        (Some(text), None, None) => {
            let end = time("window", text).map_err(|_| {
                let detail = format!(
                    "`window` is `{text}`; it can be `latest`, `current`, `closed` or a window's end in RFC 3339"
                );
                Problem::bad_request("bad-window", detail)
            })?;
            let start = window.first_start(end - 1);
            // No window holds a time that can't be written.
            if (window.is_session() || window.end_of(start) == end) && TIMES.contains(&start) {
                return Ok(Ask::End(end));
            }
            let after = window.end_of(start);
            let before = window.end_of(window.inside(Micros::MIN / 2, after - 1).1);
            let nearest = [before, after].into_iter().filter(|end| TIMES.contains(end)).map(format_timestamp);
            let detail = format!(
                "no window of `{}` ends at {}; the nearest end at {}",
                view.id.name,
                format_timestamp(end),
                nearest.collect::<Vec<_>>().join(" and ")
            );
            Err(Problem::bad_request("no-such-window", detail))
        }
        (None, Some(from), Some(to)) => {
            let (from, to) = (time("from", from)?, time("to", to)?);
            if from > to {
                return Err(Problem::bad_request("bad-range", "`from` is after `to`"));
            }
            let (first, last) = window.inside(from, to);
            let windows = window.count_between(first, last);
            if windows > MAX_WINDOWS && !window.is_session() {
                let detail = format!("the range holds {windows} windows; ask for {MAX_WINDOWS} at most at a time");
                return Err(Problem::bad_request("range-too-long", detail));
            }
            Ok(Ask::Range { from, to })
        }
        (None, ..) => Err(Problem::bad_request("bad-range", "a range needs both `from` and `to`")),
        (Some(_), ..) => Err(Problem::bad_request("bad-range", "give either `window`, or `from` and `to`")),
    }
}

fn key_values(view: &Kept, parameters: &[(String, String)]) -> Result<Vec<(String, KeyValue)>, Problem> {
    let wanted = parameters.iter().filter_map(|(name, value)| name.strip_prefix("key.").map(|column| (column, value)));
    let values = wanted.map(|(column, text)| {
        let is_key = |name: &str| view.aggregation().keys.iter().any(|key| key.name == name);
        if let Some(base) = column.strip_suffix(".null").filter(|base| !is_key(column) && is_key(base)) {
            if text != "true" || parameters.iter().any(|(name, _)| name.strip_prefix("key.") == Some(base)) {
                let detail = format!("`key.{column}` can be `true`, without a value of `key.{base}` beside it");
                return Err(Problem::bad_request("bad-key", detail));
            }
            return Ok((base.to_owned(), KeyValue::Null));
        }
        let key = view.aggregation().keys.iter().find(|key| key.name == column).ok_or_else(|| {
            let names = quoted(view.aggregation().keys.iter().map(|key| key.name.as_str()));
            let there_are = if names.is_empty() { "there are none".into() } else { format!("there are {names}") };
            let detail = format!("view `{}` has no key column `{column}`; {there_are}", view.id.name);
            Problem::bad_request("unknown-key", detail)
        })?;
        let data_type = key.expr.data_type();
        let value = match data_type {
            DataType::BigInt | DataType::Interval => text.parse().ok().map(KeyValue::Integer),
            DataType::Double => text.parse().ok().map(KeyValue::Double),
            DataType::Boolean => text.to_ascii_lowercase().parse().ok().map(KeyValue::Boolean),
            DataType::Timestamp => time(column, text).ok().map(KeyValue::Time),
            DataType::Text | DataType::Json | DataType::List(_) => Some(KeyValue::Text(text.clone())),
        };
        let value = value.ok_or_else(|| {
            Problem::bad_request("bad-key", format!("`key.{column}` is `{text}`, which is no {data_type}"))
        })?;
        Ok((column.to_owned(), value))
    });
    values.collect()
}
