//! Rows as bytes: JSON by hand, as it is what clients wait for, and CSV, NDJSON and Arrow beside it.

use std::io::Write;
use std::sync::Arc;

use anabranch_plan::time::format_timestamp;
use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use polars::prelude::{
    BooleanChunked, Column, DataFrame, DataType, Float64Chunked, Int64Chunked, PolarsResult, StringChunked, TimeUnit,
};

use crate::decode;

enum Cells {
    Text(StringChunked),
    Json(StringChunked),
    Integer(Int64Chunked),
    Double(Float64Chunked),
    Boolean(BooleanChunked),
    Time(Int64Chunked),
}

impl Cells {
    fn of(column: &Column) -> PolarsResult<Self> {
        let series = column.as_materialized_series().rechunk();
        Ok(match series.dtype() {
            DataType::String => Self::Text(series.str()?.clone()),
            DataType::Boolean => Self::Boolean(series.bool()?.clone()),
            DataType::Float32 | DataType::Float64 => Self::Double(series.cast(&DataType::Float64)?.f64()?.clone()),
            DataType::Datetime(unit, zone) => {
                let micros = match unit {
                    TimeUnit::Microseconds => series,
                    _ => series.cast(&DataType::Datetime(TimeUnit::Microseconds, zone.clone()))?,
                };
                Self::Time(micros.cast(&DataType::Int64)?.i64()?.clone())
            }
            other if other.is_integer() => Self::Integer(series.cast(&DataType::Int64)?.i64()?.clone()),
            _ => Self::Text(series.cast(&DataType::String)?.str()?.clone()),
        })
    }

    fn write_json(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Text(cells) => match cells.get(row) {
                Some(text) => write_json_text(text, out),
                None => out.extend_from_slice(b"null"),
            },
            // A text that was cast to JSON may be none.
            Self::Json(cells) => match cells.get(row).filter(|json| decode::parse(json).is_ok()) {
                Some(json) => write_json_line(json, out),
                None => out.extend_from_slice(b"null"),
            },
            Self::Integer(cells) => match cells.get(row) {
                Some(number) => write_plain(number, out),
                None => out.extend_from_slice(b"null"),
            },
            Self::Double(cells) => match cells.get(row) {
                // JSON has no such numbers: they are texts, as PostgreSQL's `to_json` writes them.
                Some(number) if !number.is_finite() => write_json_text(name_of(number), out),
                Some(number) => write_double(number, out),
                None => out.extend_from_slice(b"null"),
            },
            Self::Boolean(cells) => out.extend_from_slice(match cells.get(row) {
                Some(true) => b"true",
                Some(false) => b"false",
                None => b"null",
            }),
            Self::Time(cells) => match cells.get(row) {
                Some(time) => write_json_text(&format_timestamp(time), out),
                None => out.extend_from_slice(b"null"),
            },
        }
    }

    fn write_csv(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Text(cells) | Self::Json(cells) => {
                if let Some(text) = cells.get(row) {
                    write_csv_text(text, out);
                }
            }
            Self::Integer(cells) => {
                if let Some(number) = cells.get(row) {
                    write_plain(number, out);
                }
            }
            Self::Double(cells) => {
                if let Some(number) = cells.get(row) {
                    write_double(number, out);
                }
            }
            Self::Boolean(cells) => {
                if let Some(value) = cells.get(row) {
                    write_plain(value, out);
                }
            }
            Self::Time(cells) => {
                if let Some(time) = cells.get(row) {
                    out.extend_from_slice(format_timestamp(time).as_bytes());
                }
            }
        }
    }

    fn to_arrow(&self) -> ArrayRef {
        match self {
            Self::Text(cells) | Self::Json(cells) => Arc::new(StringArray::from_iter(cells.iter())),
            Self::Integer(cells) => Arc::new(Int64Array::from_iter(cells.iter())),
            Self::Double(cells) => Arc::new(Float64Array::from_iter(cells.iter())),
            Self::Boolean(cells) => Arc::new(BooleanArray::from_iter(cells.iter())),
            Self::Time(cells) => Arc::new(TimestampMicrosecondArray::from_iter(cells.iter()).with_timezone("UTC")),
        }
    }
}

fn write_plain(value: impl std::fmt::Display, out: &mut Vec<u8>) {
    write!(out, "{value}").expect("a vector takes what it is given");
}

fn write_double(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        serde_json::to_writer(out, &number).expect("a finite number is JSON");
    } else {
        write_plain(name_of(number), out);
    }
}

/// What SQL calls a number that isn't finite.
fn name_of(number: f64) -> &'static str {
    match number {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => "NaN",
    }
}

/// Writes a text as a JSON string.
pub fn write_json_text(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a text is JSON");
}

/// Writes JSON on one line: between its tokens a line break is a space like any other, and inside them there is none.
fn write_json_line(json: &str, out: &mut Vec<u8>) {
    out.extend(json.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
}

fn write_csv_text(text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() && !text.contains(['"', ',', '\n', '\r']) && text.trim() == text {
        out.extend_from_slice(text.as_bytes());
    } else {
        out.push(b'"');
        out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    }
}

/// Rows that are ready to be written in any form.
pub struct Rows {
    names: Vec<String>,
    cells: Vec<Cells>,
    height: usize,
}

impl Rows {
    /// The rows of a frame.
    pub fn of(frame: &DataFrame) -> PolarsResult<Self> {
        Ok(Self {
            names: frame.get_column_names().iter().map(|name| name.to_string()).collect(),
            cells: frame.columns().iter().map(Cells::of).collect::<PolarsResult<_>>()?,
            height: frame.height(),
        })
    }

    /// The same, where these columns are written into JSON as the JSON that they hold, not as texts.
    pub fn with_json(mut self, is_json: impl Fn(&str) -> bool) -> Self {
        for (name, cells) in self.names.iter().zip(&mut self.cells) {
            if let Cells::Text(texts) = cells
                && is_json(name)
            {
                *cells = Cells::Json(std::mem::take(texts));
            }
        }
        self
    }

    /// How many there are.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Writes a row as a JSON object of the columns for which `wanted` says so.
    pub fn write_json_object(&self, row: usize, wanted: impl Fn(&str) -> bool, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut first = true;
        for (name, cells) in self.names.iter().zip(&self.cells).filter(|(name, _)| wanted(name)) {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            write_json_text(name, out);
            out.push(b':');
            cells.write_json(row, out);
        }
        out.push(b'}');
    }

    /// Writes all rows as a JSON array.
    pub fn write_json_array(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for row in 0..self.height {
            if row > 0 {
                out.push(b',');
            }
            self.write_json_object(row, |_| true, out);
        }
        out.push(b']');
    }

    /// Writes all rows as one JSON object a line.
    pub fn write_ndjson(&self, out: &mut Vec<u8>) {
        for row in 0..self.height {
            self.write_json_object(row, |_| true, out);
            out.push(b'\n');
        }
    }

    /// Writes a header line and all rows as CSV. Null is nothing, an empty text `""`.
    pub fn write_csv(&self, out: &mut Vec<u8>) {
        for (i, name) in self.names.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_csv_text(name, out);
        }
        out.extend_from_slice(b"\r\n");
        for row in 0..self.height {
            for (i, cells) in self.cells.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                cells.write_csv(row, out);
            }
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Writes all rows as an Arrow IPC stream.
    pub fn write_arrow(&self, out: &mut Vec<u8>) -> Result<(), arrow::error::ArrowError> {
        let arrays = self.names.iter().zip(&self.cells).map(|(name, cells)| (name, cells.to_arrow(), true));
        let batch = RecordBatch::try_from_iter_with_nullable(arrays)?;
        let mut writer = arrow::ipc::writer::StreamWriter::try_new(out, &batch.schema())?;
        writer.write(&batch)?;
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_have_their_names_in_json_and_csv() {
        let doubles = [Some(f64::INFINITY), Some(f64::NEG_INFINITY), Some(-f64::NAN), None, Some(1.5)];
        let frame = DataFrame::new(5, vec![Column::new("x".into(), &doubles)]).expect("a frame");
        let rows = Rows::of(&frame).expect("rows");
        let (mut json, mut csv) = (Vec::new(), Vec::new());
        rows.write_json_array(&mut json);
        rows.write_csv(&mut csv);
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        let expected =
            serde_json::json!([{"x": "Infinity"}, {"x": "-Infinity"}, {"x": "NaN"}, {"x": null}, {"x": 1.5}]);
        assert_eq!(json, expected);
        assert_eq!(csv, b"x\r\nInfinity\r\n-Infinity\r\nNaN\r\n\r\n1.5\r\n");
    }
}
