//! What a recompute writes: panes for the other layers, and finished rows for any reader of Delta tables.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anabranch_engine::partial::{self, MISSED};
use anabranch_plan::aggregation::OutputColumn;
use anabranch_plan::schema::{ColumnType, Layout};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_store::table::{DataFile, Written, write_digested};
use polars::prelude::*;

use crate::day::{DAY, day_column, day_name};
use crate::error::BatchError;

/// Rows of a row group: a reader of one window skips the others.
const ROW_GROUP_ROWS: usize = 131_072;

/// The columns of a view's rows, with their types; the window's first.
pub(super) fn columns(view: &Kept) -> Vec<(String, ColumnType)> {
    let mut columns = Vec::new();
    if view.aggregation().window.is_some() {
        columns.push(("window_start".to_owned(), ColumnType::Timestamp));
        columns.push(("window_end".to_owned(), ColumnType::Timestamp));
    }
    for &column in &view.aggregation().columns {
        let data_type = match column {
            OutputColumn::WindowStart | OutputColumn::WindowEnd => continue,
            OutputColumn::Key(i) => view.aggregation().keys[i].expr.data_type(),
            OutputColumn::Aggregate(i) => view.aggregation().aggregates[i].data_type(),
        };
        columns.push((view.aggregation().column_name(column).to_owned(), ColumnType::from(&data_type)));
    }
    columns
}

fn day_column_of(view: &Kept) -> &'static str {
    day_column(view.aggregation().columns.iter().map(|&column| view.aggregation().column_name(column)))
}

/// How a view's rows are laid out as a table: by the day in which a window starts.
pub(super) fn layout(view: &Kept) -> Layout {
    let mut columns = columns(view);
    let mut partition_by = Vec::new();
    if view.aggregation().window.is_some() {
        columns.push((day_column_of(view).to_owned(), ColumnType::Date));
        partition_by.push(day_column_of(view).to_owned());
    }
    Layout { columns, partition_by }
}

/// What of the finished windows goes into the table: all but the bounds, which equal the values.
pub(super) fn row_columns(view: &Kept) -> impl Iterator<Item = String> + use<> {
    columns(view).into_iter().map(|(name, _)| name)
}

/// What of the partials goes into a file: all but how many windows were missed, which is none.
pub(super) fn pane_columns(view: &Kept) -> Vec<PlSmallStr> {
    partial::schema(view.aggregation()).iter_names().filter(|name| *name != MISSED).cloned().collect()
}

/// Rows in order of their windows, by the day in which these start.
pub(super) fn split_days(rows: &DataFrame, days: &Range<i64>) -> PolarsResult<Vec<(i64, DataFrame)>> {
    let starts = rows.column("window_start")?.cast(&DataType::Int64)?;
    let starts = starts.i64()?;
    let mut split = Vec::new();
    let mut offset = 0;
    for day in days.clone() {
        let rest = starts.slice(offset as i64, rows.height() - offset);
        let length = rest.iter().take_while(|start| start.is_some_and(|start| start < (day + 1) * DAY)).count();
        if length > 0 {
            split.push((day, rows.slice(offset as i64, length)));
        }
        offset += length;
    }
    Ok(split)
}

/// Writes a frame to a Parquet file, whole or not at all.
pub(super) fn write_frame(path: &Path, frame: &mut DataFrame) -> Result<Written, BatchError> {
    let written: Result<Written, FrameError> = write_digested(path, |file| {
        ParquetWriter::new(file)
            .with_compression(ParquetCompression::Zstd(None))
            .with_statistics(StatisticsOptions::full())
            .with_row_group_size(Some(ROW_GROUP_ROWS))
            .finish(frame)
            .map(drop)
            .map_err(FrameError::Polars)
    });
    let failed = |source| BatchError::File { step: "writing", path: path.to_owned(), source };
    written.map_err(|error| match error {
        FrameError::Io(source) => failed(source),
        FrameError::Polars(source) => failed(std::io::Error::other(source)),
    })
}

enum FrameError {
    Io(std::io::Error),
    Polars(PolarsError),
}

impl From<std::io::Error> for FrameError {
    fn from(source: std::io::Error) -> Self {
        Self::Io(source)
    }
}

/// Writes finished rows to a file of the view's table.
pub(super) fn write_rows(
    root: &Path,
    view: &Kept,
    stem: &str,
    day: Option<i64>,
    rows: &mut DataFrame,
    now: Micros,
) -> Result<DataFile, BatchError> {
    let (path, partition) = match day {
        None => (format!("{stem}.parquet"), BTreeMap::new()),
        Some(day) => {
            let (column, day) = (day_column_of(view), day_name(day));
            (format!("{column}={day}/{stem}.parquet"), BTreeMap::from([(column.to_owned(), Some(day))]))
        }
    };
    let Written { size, sha256 } = write_frame(&root.join(&path), rows)?;
    let stats = Some(format!("{{\"numRecords\":{}}}", rows.height()));
    let (rows, modified_ms) = (Some(rows.height() as u64), now.div_euclid(1000));
    Ok(DataFile { path, size, rows, partition, modified_ms, stats, sha256: Some(sha256) })
}
