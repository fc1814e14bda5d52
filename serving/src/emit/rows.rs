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
const EVERYTHING: Final = Final { end: Micros::MAX, start: Micros::MIN };

/// The rows of an answer, which say of which windows they are if the view has any. Those of windows that are `unsure` have no bounds.
pub fn rows(view: &Kept, mut rows: DataFrame, unsure: impl Fn(Final) -> bool) -> PolarsResult<Vec<Change>> {
    let windows = windows(view, &rows)?;
    let sure: BooleanChunked = windows.iter().map(|&window| !unsure(window)).collect();
    if !sure.all() {
        without_bounds(view, &mut rows, &sure)?;
    }
    let names = view.aggregation().row_key();
    let named = to_arrow(&rows.select(names.iter().copied())?);
    let named = named.map_err(|error| PolarsError::ComputeError(error.to_string().into()))?;
    let columns: Vec<_> = names.iter().copied().zip(named.columns()).collect();
    let keys = row_keys(rows.height(), &columns);
    let cells = Rows::of(&rows)?;
    let change = |(i, (key, window)): (usize, (String, Final))| {
        let mut row = Vec::new();
        cells.write_json_object(i, |_| true, &mut row);
        Change { window, key: key.into_bytes().into(), row: Some(row) }
    };
    Ok(keys.into_iter().zip(windows).enumerate().map(change).collect())
}

fn without_bounds(view: &Kept, rows: &mut DataFrame, sure: &BooleanChunked) -> PolarsResult<()> {
    for aggregate in &view.aggregation().aggregates {
        for bound in ["lower", "upper"].map(|bound| format!("{}_{bound}", aggregate.name)) {
            let bounds = rows.column(&bound)?.as_materialized_series();
            let unknown = Series::full_null(bound.as_str().into(), rows.height(), bounds.dtype());
            let known = bounds.zip_with(sure, &unknown)?;
            rows.replace(&bound, known.into_column())?;
        }
    }
    Ok(())
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

/// Whether a record is a row that a view has written, perhaps by another definition: it has the columns of this one's rows, or some
/// value beside its bounds.
pub fn is_row(view: &Kept, key: &[u8], row: &[u8]) -> bool {
    let Ok(Value::Object(row)) = serde_json::from_slice(row) else { return false };
    let bounded = |name: &String| ["lower", "upper"].iter().all(|bound| row.contains_key(&format!("{name}_{bound}")));
    let names = || view.aggregation().row_key().into_iter().chain(["window_end"]);
    let is_key = |name: &String| names().any(|key| key == name);
    !key.is_empty() && (row.keys().any(bounded) || row.keys().all(is_key))
}

/// Half of a SHA-256.
type Hash = [u8; 16];

fn hash(row: &[u8]) -> Hash {
    let mut half = [0; 16];
    half.copy_from_slice(&Sha256::digest(row)[..16]);
    half
}

/// The rows that a topic holds, by the start of their window.
#[derive(Debug, Default)]
pub struct Held(BTreeMap<Micros, Keyed>);

/// Of each row, by its key, where its window ends, and its hash.
type Keyed = HashMap<Box<[u8]>, (Micros, Hash)>;

impl Held {
    /// Takes up what the topic has got.
    pub fn take(&mut self, Final { end, start }: Final, key: &[u8], row: Option<&[u8]>) {
        match row {
            Some(row) => drop(self.0.entry(start).or_default().insert(key.into(), (end, hash(row)))),
            None => {
                let Some(rows) = self.0.get_mut(&start) else { return };
                rows.remove(key);
                if rows.is_empty() {
                    self.0.remove(&start);
                }
            }
        }
    }

    /// What makes `rows`, which are all those of some windows, of the rows of these windows.
    pub fn difference(&self, is_asked: impl Fn(Final) -> bool, rows: Vec<Change>) -> Vec<Change> {
        let there: HashSet<(Micros, &[u8])> = rows.iter().map(|row| (row.window.start, &*row.key)).collect();
        let held = self
            .0
            .iter()
            .flat_map(|(&start, rows)| rows.iter().map(move |(key, &(end, _))| (Final { end, start }, key)));
        let gone = held.filter(|(window, key)| is_asked(*window) && !there.contains(&(window.start, key)));
        let gone: Vec<_> = gone.map(|(window, key)| Change { window, key: key.clone(), row: None }).collect();
        let is_new = |change: &Change| {
            let held = self.0.get(&change.window.start).and_then(|rows| rows.get(&change.key));
            held.map(|(_, hash)| *hash) != change.row.as_deref().map(hash)
        };
        rows.into_iter().filter(is_new).chain(gone).collect()
    }
}
