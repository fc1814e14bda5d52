//! Pages of an answer: where one ended, and what it was read from.
//!
//! A cursor names its window, the last row's place in the answer's order, and what was read. The answers that first pages were
//! cut from are kept, a bounded number of bytes, so that later pages are cut from the same. Where one isn't kept any more
//! and the layers have moved on, the page says that it has `moved`. It has the rows that weren't sent yet, as long as the
//! server knows which were, and else what now comes behind the last row: in the order of a key these are the same.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use anabranch_log::lineage::Mark;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::Cache;
use crate::merge::Span;
use crate::source::Sources;

/// The longest cursor that still fits into an address, in bytes before it is written as hexadecimal digits.
const MAX_BYTES: usize = 24 << 10;

/// How much is kept of what clients were sent, where the answer itself isn't kept.
const SENT_BYTES: usize = 8 << 20;

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// The query.
    pub query: u64,
    /// What was read.
    pub read: u64,
    /// The end of the window that it is about, if it is one, or of the sessions that end alike.
    pub window: Option<Micros>,
    /// How many rows come before the next.
    pub rows: usize,
    /// The last row's values in the columns of the order; none if they are too long.
    pub last: Option<Vec<Place>>,
    /// Which logs that is of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Mark>,
}

/// A value by which rows are ordered.
#[derive(Debug, Clone, PartialEq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// None, which comes last.
    Null,
    /// A whole number, a time, or a truth value.
    Whole(i64),
    /// A number, by its bits.
    Double(u64),
    /// A text.
    Text(String),
}

impl Place {
    fn of(value: &AnyValue) -> Self {
        match value {
            AnyValue::Null => Self::Null,
            AnyValue::Boolean(value) => Self::Whole(i64::from(*value)),
            AnyValue::Float64(number) => Self::Double(number.to_bits()),
            AnyValue::String(text) => Self::Text((*text).to_owned()),
            AnyValue::StringOwned(text) => Self::Text(text.to_string()),
            other => other.clone().to_physical().extract().map_or(Self::Null, Self::Whole),
        }
    }

    /// As rows are sorted: nulls last in either direction, NaN above all numbers.
    fn order(&self, other: &Self, descending: bool) -> Ordering {
        let order = match (self, other) {
            (Self::Null, Self::Null) => return Ordering::Equal,
            (Self::Null, _) => return Ordering::Greater,
            (_, Self::Null) => return Ordering::Less,
            (Self::Whole(one), Self::Whole(other)) => one.cmp(other),
            (Self::Text(one), Self::Text(other)) => one.cmp(other),
            (Self::Double(one), Self::Double(other)) => {
                let (one, other) = (f64::from_bits(*one), f64::from_bits(*other));
                one.partial_cmp(&other).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
            }
            _ => Ordering::Equal,
        };
        if descending { order.reverse() } else { order }
    }
}

impl Cursor {
    /// Reads what [`Cursor::write`] has written.
    pub fn read(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes = digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes it as a parameter of an address.
    pub fn write(&self) -> String {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The columns by which an answer's rows are in order, each with whether the largest come first. Of sessions, which are each
/// key's own, the order asked for goes over all of them; else it is within each window.
pub fn order(view: &Kept, asked: Option<&(String, bool)>, rows: &DataFrame) -> Vec<(String, bool)> {
    let is_session = view.aggregation().window.is_some_and(Window::is_session);
    let windows = ["window_end", "window_start"].map(|name| (name.to_owned(), false)).into_iter();
    let by: Vec<(String, bool)> = match asked {
        Some(asked) => vec![asked.clone()],
        None => view
            .aggregation()
            .order
            .iter()
            .map(|by| (view.aggregation().column_name(by.column).to_owned(), by.descending))
            .collect(),
    };
    let keys = view.aggregation().keys.iter().map(|key| (key.name.clone(), false));
    let all: Vec<_> = if is_session && asked.is_some() {
        by.into_iter().chain(windows).chain(keys).collect()
    } else {
        windows.chain(by).chain(keys).collect()
    };
    let mut order: Vec<(String, bool)> = Vec::new();
    for column in all {
        let is_there = rows.get_column_index(&column.0).is_some();
        if is_there && order.iter().all(|(name, _)| *name != column.0) {
            order.push(column);
        }
    }
    order
}

/// Puts rows in an order.
pub fn sorted(rows: DataFrame, order: &[(String, bool)]) -> PolarsResult<DataFrame> {
    if order.is_empty() || rows.height() < 2 {
        return Ok(rows);
    }
    let (by, descending): (Vec<&str>, Vec<bool>) = order.iter().map(|(name, desc)| (name.as_str(), *desc)).unzip();
    rows.sort(by, SortMultipleOptions::default().with_order_descending_multi(descending).with_nulls_last(true))
}

/// A row's values in the columns of an order; none if they are too long for a cursor.
pub fn places(rows: &DataFrame, order: &[(String, bool)], row: usize) -> PolarsResult<Option<Vec<Place>>> {
    let places = order.iter().map(|(name, _)| Ok(Place::of(&rows.column(name)?.get(row)?)));
    let places = places.collect::<PolarsResult<Vec<_>>>()?;
    let bytes = places.iter().map(|place| if let Place::Text(text) = place { 2 * text.len() } else { 24 });
    Ok((bytes.sum::<usize>() <= MAX_BYTES).then_some(places))
}

/// The rows behind a place in their order.
pub fn behind(rows: &DataFrame, order: &[(String, bool)], last: &[Place]) -> PolarsResult<DataFrame> {
    let columns = order.iter().map(|(name, desc)| Ok((rows.column(name)?, *desc))).collect::<PolarsResult<Vec<_>>>()?;
    let is_behind = |row: usize| -> PolarsResult<bool> {
        for ((column, descending), last) in columns.iter().zip(last) {
            match Place::of(&column.get(row)?).order(last, *descending) {
                Ordering::Equal => {}
                other => return Ok(other == Ordering::Greater),
            }
        }
        Ok(false)
    };
    let mask = (0..rows.height()).map(is_behind).collect::<PolarsResult<Vec<bool>>>()?;
    rows.filter(&mask.into_iter().collect())
}

/// The rows that a client was sent up to a cursor, by their identities.
pub type Sent = HashSet<u64>;

/// Each row's identity: its window's start and its keys.
pub fn identities(view: &Kept, rows: &DataFrame) -> PolarsResult<Vec<u64>> {
    let names = ["window_start"].into_iter().chain(view.aggregation().keys.iter().map(|key| key.name.as_str()));
    let columns: Vec<&Column> = names.filter_map(|name| rows.column(name).ok()).collect();
    let identity = |row: usize| {
        let mut hash = DefaultHasher::new();
        for column in &columns {
            Place::of(&column.get(row)?).hash(&mut hash);
        }
        Ok(hash.finish())
    };
    (0..rows.height()).map(identity).collect()
}

/// The rows that weren't sent.
pub fn unsent(view: &Kept, rows: &DataFrame, sent: &Sent) -> PolarsResult<DataFrame> {
    let mask = identities(view, rows)?.into_iter().map(|row| !sent.contains(&row));
    rows.filter(&mask.collect())
}

/// Whether rows keep their places whatever their values become. A session doesn't that goes on: it ends later then.
pub fn is_by_key(view: &Kept, order: &[(String, bool)]) -> bool {
    let identity = view.aggregation().identity();
    !view.aggregation().window.is_some_and(Window::is_session) && order.iter().all(|(name, _)| identity.contains(name))
}

/// What an answer was read from, as a number: the query, the version, and the offsets of both layers.
pub fn reading(query: u64, sources: &Sources, span: Span) -> u64 {
    let version = sources.version.as_ref().map(|version| (version.published.version, &version.published.coverage));
    let slack =
        sources.chunks.iter().flat_map(|chunk| chunk.panes.values()).filter(|pane| pane.slack.is_some()).count();
    let mut read = format!("{query} {version:?} {:?} {:?} {slack} {span:?}", sources.speed, sources.lacking());
    // Rows may settle without a record.
    if let Some(settled) = sources.settled {
        read += &format!(" {settled:?} {:?} {:?}", sources.unsure, sources.sequence);
    }
    name(&read)
}

/// What the rest of an answer was read from that goes on behind a cursor of another.
pub fn rest(read: u64, cursor: &Cursor) -> u64 {
    name(&format!("{read} {} {}", cursor.read, cursor.rows))
}

fn name(of: &str) -> u64 {
    Sha256::digest(of).iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// An answer that pages are cut from.
#[derive(Debug)]
pub struct Reading {
    /// What it was read from.
    pub name: u64,
    /// What comes before its rows, from `{"view":` on.
    pub head: Vec<u8>,
    /// What comes after them, without the last brace.
    pub tail: Vec<u8>,
    /// Its rows, in order; of one that goes on after another, those that are left.
    pub rows: DataFrame,
    /// By which columns they are in order.
    pub order: Vec<(String, bool)>,
    /// How many rows the answer has.
    pub total: usize,
    /// The end of the window that it is about, if it is one, or of the sessions that end alike.
    pub window: Option<Micros>,
    /// Which logs it was read from.
    pub logs: Vec<Mark>,
}

impl Reading {
    /// The bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.rows.estimated_size() + self.head.len() + self.tail.len()
    }
}

/// What pages are made from.
#[derive(Debug)]
pub struct Pages {
    /// The answers that they are cut from, by what they were read from.
    pub readings: Cache<(), Reading>,
    /// The rows that were sent up to a cursor, by what it was read from and how many rows of that come before.
    pub sent: Cache<(), Sent>,
}

impl Pages {
    /// Keeps so many bytes of answers.
    pub fn new(bytes: usize) -> Self {
        Self { readings: Cache::new(bytes), sent: Cache::new(SENT_BYTES) }
    }
}
