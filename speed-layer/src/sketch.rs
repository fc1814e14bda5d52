//! Top-k in bounded memory: Apache's frequent-items sketch, over the keys of a pane.
//!
//! The sketch keeps a count per tracked key that is never above the truth and at most [`KeySketch::error`] below it; of
//! a key that it doesn't track there were at most as many events. A frame of partials made of it says the *upper* end
//! of each count, so a named key's count may be up to `error` too high, and is never too low.
//!
//! An item is a key tuple as a JSON array (`["#mcgregor"]`); timestamps are microseconds and floating-point numbers
//! their bits.

use anabranch_shared::partial::{self, key};
use anabranch_shared::view::View;
use datasketches::frequencies::{ErrorType, FrequentItemsSketch};
use polars::prelude::*;
use serde_json::Value;

use crate::error::SpeedError;
use crate::fold::failed;

/// Counts by key, approximately.
#[derive(Debug)]
pub(crate) struct KeySketch {
    sketch: FrequentItemsSketch<String>,
    /// How far off the counts were that came from elsewhere.
    before: u64,
    /// How many items came, and their bytes.
    items: usize,
    bytes: usize,
}

/// So many partials become items at a time.
const SLICE: usize = 65_536;

/// What the sketch takes for each item that it tracks, beside the item's own bytes.
const ITEM: usize = 80;

impl KeySketch {
    /// With fewer rows there is nothing to save.
    pub const LEAST_ROWS: usize = 24;

    /// A sketch that keeps at most half of `rows` keys, for counts that are `error` below the truth already.
    pub fn for_rows(rows: usize, error: i64) -> Result<Self, SpeedError> {
        let size = 1_usize << (rows * 2 / 3).max(8).ilog2().min(30);
        let sketch = FrequentItemsSketch::new(size).map_err(|error| broken(&error))?;
        Ok(Self { sketch, before: u64::try_from(error).unwrap_or(0), items: 0, bytes: 0 })
    }

    /// The same counts in half the memory.
    pub fn halved(self) -> Result<Self, SpeedError> {
        let half = Self::for_rows(self.rows(), self.error())?;
        let mut half = Self { items: self.items, bytes: self.bytes, ..half };
        for row in self.tracked() {
            half.sketch.update_with_count_ref(row.item().as_str(), row.lower_bound());
        }
        Ok(half)
    }

    /// Adds partials, whose counts are `above` too high.
    pub fn add(&mut self, view: &View, partials: &DataFrame, above: i64) -> Result<(), SpeedError> {
        for start in (0..partials.height()).step_by(SLICE) {
            let partials = partials.slice(start as i64, SLICE);
            let items = encode(view, &partials).map_err(failed(view, "reading keys"))?;
            let counts =
                partials.column("a0").and_then(|c| c.i64().cloned()).map_err(failed(view, "reading counts"))?;
            for (item, count) in items.iter().zip(counts.iter()) {
                let count = u64::try_from(count.unwrap_or(0) - above).unwrap_or(0);
                self.sketch.update_with_count_ref(item.as_str(), count);
                self.bytes += item.len();
            }
            self.items += items.len();
        }
        Ok(())
    }

    /// How many keys are tracked.
    pub fn rows(&self) -> usize {
        self.sketch.num_active_items()
    }

    /// The bytes that it takes, by the items' average length.
    pub fn bytes(&self) -> usize {
        self.rows() * (ITEM + self.bytes / self.items.max(1))
    }

    /// How far off a count may be.
    pub fn error(&self) -> i64 {
        i64::try_from(self.before + self.sketch.maximum_error()).unwrap_or(i64::MAX)
    }

    /// The tracked keys as partials that missed nothing, with the upper ends of their counts.
    pub fn frame(&self, view: &View, pane: i64) -> Result<DataFrame, SpeedError> {
        let (rows, error) = (self.tracked(), self.error());
        let mut all = DataFrame::empty_with_schema(&partial::schema(view));
        for rows in rows.chunks(SLICE) {
            let upper = |count: u64| i64::try_from(count).unwrap_or(i64::MAX).saturating_add(error);
            let counts = rows.iter().map(|row| upper(row.lower_bound())).collect();
            let items: Vec<&str> = rows.iter().map(|row| row.item().as_str()).collect();
            let slice = decode(view, pane, &items, counts);
            let stacked = slice.and_then(|slice| all.vstack_mut(&slice).map(drop));
            stacked.map_err(failed(view, "listing a sketch's keys"))?;
        }
        Ok(all)
    }

    fn tracked(&self) -> Vec<datasketches::frequencies::Row<String>> {
        // Every tracked key's upper end is above the sketch's own error.
        self.sketch.frequent_items(ErrorType::NoFalseNegatives)
    }
}

fn broken(error: &dyn std::fmt::Display) -> SpeedError {
    let source = PolarsError::ComputeError(error.to_string().into());
    SpeedError::Evaluate { view: String::new(), step: "making a sketch", source }
}

fn encode(view: &View, partials: &DataFrame) -> PolarsResult<Vec<String>> {
    let mut tuples = vec![Vec::with_capacity(view.keys.len()); partials.height()];
    for i in 0..view.keys.len() {
        let column = partials.column(&key(i))?;
        let series = column.as_materialized_series().to_physical_repr();
        let values: Vec<Value> = match series.dtype() {
            DataType::String => series.str()?.iter().map(|x| x.map_or(Value::Null, Value::from)).collect(),
            DataType::Boolean => series.bool()?.iter().map(|x| x.map_or(Value::Null, Value::from)).collect(),
            DataType::Float64 => {
                series.f64()?.iter().map(|x| x.map_or(Value::Null, |x| Value::from(x.to_bits()))).collect()
            }
            _ => series.i64()?.iter().map(|x| x.map_or(Value::Null, Value::from)).collect(),
        };
        for (tuple, value) in tuples.iter_mut().zip(values) {
            tuple.push(value);
        }
    }
    Ok(tuples.into_iter().map(|tuple| Value::Array(tuple).to_string()).collect())
}

fn decode(view: &View, pane: i64, items: &[&str], counts: Vec<i64>) -> PolarsResult<DataFrame> {
    let schema = partial::schema(view);
    let tuples: Vec<Vec<Value>> = items
        .iter()
        .map(|item| serde_json::from_str(item))
        .collect::<Result<_, _>>()
        .map_err(|error| polars_err!(ComputeError: "an item of a sketch is no key: {error}"))?;
    let mut columns = vec![
        Column::new(partial::PANE.into(), vec![pane; items.len()]),
        Column::new(partial::MISSED.into(), vec![0_i32; items.len()]),
    ];
    for i in 0..view.keys.len() {
        let name: PlSmallStr = key(i).into();
        let data_type = schema.try_get(&name)?;
        let values = || tuples.iter().map(|tuple| tuple.get(i).unwrap_or(&Value::Null));
        let series = match data_type {
            DataType::String => Series::new(name, values().map(Value::as_str).collect::<Vec<_>>()),
            DataType::Boolean => Series::new(name, values().map(Value::as_bool).collect::<Vec<_>>()),
            DataType::Float64 => {
                Series::new(name, values().map(|x| x.as_u64().map(f64::from_bits)).collect::<Vec<_>>())
            }
            _ => Series::new(name, values().map(Value::as_i64).collect::<Vec<_>>()).cast(data_type)?,
        };
        columns.push(series.into());
    }
    columns.push(Column::new("a0".into(), counts));
    DataFrame::new(items.len(), columns)
}
