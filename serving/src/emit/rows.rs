//! An answer's rows as records of a topic, and what has to be written so that a topic that holds others holds these.

use std::collections::{BTreeMap, HashMap, HashSet};

use anabranch_engine::columnar::to_arrow;
use anabranch_engine::partitioner::row_keys;
use anabranch_engine::render::Rows;
use anabranch_plan::time::{Micros, parse_timestamp};
use anabranch_plan::view::Kept;
use polars::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::merge::Final;

/// A row that is new or changed, or the deletion of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The window that it is of; of a view without windows always the same.
    pub window: Final,
    /// The key of its record.
    pub key: Box<[u8]>,
    /// The row as a JSON object; none deletes it.
    pub row: Option<Vec<u8>>,
}

/// The window of all rows of a view without windows.
const EVERYTHING: Final = Final { end: Micros::MAX, start: 0 };

/// The rows of an answer, which say of which windows they are if the view has any.
pub fn rows(view: &Kept, rows: &DataFrame) -> PolarsResult<Vec<Change>> {
    let names = view.aggregation().row_key();
    let named = to_arrow(&rows.select(names.iter().copied())?);
    let named = named.map_err(|error| PolarsError::ComputeError(error.to_string().into()))?;
    let columns: Vec<_> = names.iter().copied().zip(named.columns()).collect();
    let keys = row_keys(rows.height(), &columns);
    let windows = windows(view, rows)?;
    let cells = Rows::of(rows)?;
    let change = |(i, (key, window)): (usize, (String, Final))| {
        let mut row = Vec::new();
        cells.write_json_object(i, |_| true, &mut row);
        Change { window, key: key.into_bytes().into(), row: Some(row) }
    };
    Ok(keys.into_iter().zip(windows).enumerate().map(change).collect())
}

fn windows(view: &Kept, rows: &DataFrame) -> PolarsResult<Vec<Final>> {
    if view.aggregation().window.is_none() {
        return Ok(vec![EVERYTHING; rows.height()]);
    }
    let times = |name: &str| rows.column(name)?.cast(&DataType::Int64)?.i64().cloned();
    let (starts, ends) = (times("window_start")?, times("window_end")?);
    let each = starts.iter().zip(ends.iter());
    Ok(each.map(|(start, end)| Final { end: end.unwrap_or(Micros::MAX), start: start.unwrap_or(0) }).collect())
}

/// The window that a record of a topic is of. One that is none of the view's comes before all windows.
pub fn window_of(view: &Kept, key: &[u8], row: &[u8]) -> Final {
    if view.aggregation().window.is_none() {
        return EVERYTHING;
    }
    let time = |text: &[u8], name: &str| {
        let object: Value = serde_json::from_slice(text).ok()?;
        parse_timestamp(object.get(name)?.as_str()?)
    };
    let plain = || std::str::from_utf8(key).ok().and_then(parse_timestamp);
    let start = time(key, "window_start").or_else(plain).unwrap_or(Micros::MIN);
    Final { end: time(row, "window_end").unwrap_or(start), start }
}

/// Half of a SHA-256.
type Hash = [u8; 16];

fn hash(row: &[u8]) -> Hash {
    let mut half = [0; 16];
    half.copy_from_slice(&Sha256::digest(row)[..16]);
    half
}

/// The rows that a topic holds, by window and key.
#[derive(Debug, Default)]
pub struct Held(BTreeMap<Micros, Window>);

#[derive(Debug, Default)]
struct Window {
    end: Micros,
    rows: HashMap<Box<[u8]>, Hash>,
}

impl Held {
    /// Takes up what the topic has got.
    pub fn take(&mut self, window: Final, key: &[u8], row: Option<&[u8]>) {
        match row {
            Some(row) => {
                let held = self.0.entry(window.start).or_default();
                held.end = held.end.max(window.end);
                held.rows.insert(key.into(), hash(row));
            }
            None => {
                let Some(held) = self.0.get_mut(&window.start) else { return };
                held.rows.remove(key);
                if held.rows.is_empty() {
                    self.0.remove(&window.start);
                }
            }
        }
    }

    /// Where the first of the windows starts that end after an instant.
    pub fn first_ending_after(&self, instant: Micros) -> Option<Micros> {
        self.0.iter().find(|(_, window)| window.end > instant).map(|(&start, _)| start)
    }

    /// What makes `rows`, which are those of all windows that start at `from` or later, of the rows of these windows.
    pub fn difference(&self, from: Micros, rows: Vec<Change>) -> Vec<Change> {
        let there: HashSet<(Micros, &[u8])> = rows.iter().map(|row| (row.window.start, &*row.key)).collect();
        let gone = self.0.range(from..).flat_map(|(&start, window)| {
            let window_of = Final { end: window.end, start };
            window.rows.keys().map(move |key| (window_of, key))
        });
        let gone = gone.filter(|(window, key)| !there.contains(&(window.start, key)));
        let gone: Vec<_> = gone.map(|(window, key)| Change { window, key: key.clone(), row: None }).collect();
        let is_new = |change: &Change| {
            let held = self.0.get(&change.window.start).and_then(|window| window.rows.get(&change.key));
            held.copied() != change.row.as_deref().map(hash)
        };
        rows.into_iter().filter(is_new).chain(gone).collect()
    }
}
