//! Records to columns: JSON objects, read once, straight into Arrow arrays.
//!
//! One bad record never spoils its batch: it becomes a [`Reject`], and its neighbours are what they would be without
//! it. A record is good if
//! - it is at most [`MAX_RECORD_BYTES`] long, UTF-8, and one JSON object nested at most [`MAX_DEPTH`] levels deep;
//! - each column's value has the column's type, or is `null` or absent where the column may be null;
//! - its event time is there, lies in the years 0200 to 9799 ([`EVENT_TIMES`]), and is not further than the table's
//!   `max_future` ahead of the time the log took the record, or of the time it is read where its producer set that time.
//!
//! | column      | JSON that it takes                                                                         |
//! |-------------|--------------------------------------------------------------------------------------------|
//! | `TEXT`      | a string                                                                                   |
//! | `BIGINT`    | a whole number of 64 bits, however it is written: `5`, `-0`, `5.0`, `1e3`                  |
//! | `DOUBLE`    | any finite number                                                                          |
//! | `BOOLEAN`   | `true`, `false`                                                                            |
//! | `TIMESTAMP` | RFC 3339 text, UTC if it names no offset, or a whole number of milliseconds since the Unix epoch |
//! | `JSON`      | any value; its text is kept                                                                |
//!
//! Keys that name no column are ignored; of a key that comes twice, the last one counts.
//!
//! A table's `key` and `headers` name columns that are filled from the log, not from the JSON. The key has to be UTF-8, and
//! is null if the record has none. The headers are the text of a JSON object, as the log hands them out.
//!
//! An empty record is a *tombstone*, as Kafka's compacted topics have it: it is neither a row nor bad.
//!
//! With `format = 'debezium-json'` a record is the envelope of a change, with or without the schema around it. The row is what
//! the database's row is after the change (`op` is `c`, `u` or `r`); a deletion (`d`) or truncation (`t`) and a message of
//! the connector's own (`m`) make none.
//!
//! # Changelogs
//!
//! A record of a table with a primary key is a version of a row, or deletes it. Both make a row here, with [`DELETED`] behind the
//! table's columns. What a deletion doesn't say is null, `NOT NULL` or not. A record deletes a row if it is
//!
//! - a tombstone, or Debezium's `d`. The record's [`key`] is the row's, and the record's time is the event time;
//! - an object with the primary key and `"__deleted": true`. Its event time is the record's time as well, unless it has one.
//!
//! `"__deleted"` may be the text `"true"` or `"false"`, as Debezium's `rewrite` writes it. A truncation is a reject: rows can't be
//! deleted but by their keys.

mod debezium;
mod earlier;
pub mod key;
mod number;
mod plain;
mod record;
mod time;

#[cfg(test)]
mod changelog_tests;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use anabranch_log::{Batch, Extras, Payloads};
use anabranch_plan::schema::{Column, DataType, Format, Table};
use anabranch_plan::time::{EVENT_TIMES, Micros, format_timestamp};
use arrow::array::{
    ArrayRef, AsArray, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringViewBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};

use self::debezium::Change;
use self::earlier::Earlier;
pub use self::record::MAX_DEPTH;
use self::record::{Layout, Slot};
pub use self::record::{describe, is_nested_deeper, is_too_deep, parse};
use crate::edition::Editions;

/// The column of a changelog's rows that says whether the change is a deletion.
pub const DELETED: &str = "__deleted";

/// How many bytes a record may have.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// How many bytes of a reason are kept: it may quote the record, and there may be millions of them.
const MAX_REASON_BYTES: usize = 400;

/// Within this time all layers read a record: what is further ahead than this is ahead of all their clocks. 30 days.
const READ_WITHIN: Micros = 30 * 86_400_000_000;

/// What records have to bring along for a table's columns.
pub fn extras(table: &Table) -> Extras {
    Extras { keys: table.key.is_some() || table.is_changelog(), headers: table.headers.is_some() }
}

/// Turns the records of one table into columns.
#[derive(Debug)]
pub struct Decoder {
    table: Arc<Table>,
    schema: SchemaRef,
    /// Which columns are made; the others are checked only. Behind those of the table is [`DELETED`].
    made: Vec<usize>,
    layout: Layout,
    /// What reads records that earlier definitions govern, oldest first.
    earlier: Vec<Earlier>,
    /// Strings of the current record whose escapes had to be resolved.
    scratch: String,
}

/// What became of some records.
#[derive(Debug)]
pub struct Decoded {
    /// The good records, one row each, with the table's columns in their order, and [`DELETED`] of a changelog.
    pub batch: RecordBatch,
    /// For each row, which record it was: ascending.
    pub kept: Vec<u32>,
    /// The bad records, ascending.
    pub rejects: Vec<Reject>,
    event_time: usize,
}

/// A record that isn't a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Which record it is.
    pub index: u32,
    /// What is wrong with it.
    pub reason: String,
    /// Its event time, if that is ahead of its reader's clock, so that whoever reads it later may take it.
    pub early: Option<Micros>,
}

/// Why a record makes no row, as in [`Reject`].
struct Refusal {
    reason: String,
    early: Option<Micros>,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, early: None }
    }
}

impl Decoded {
    /// The event time of each row.
    pub fn event_times(&self) -> &[Micros] {
        self.batch.column(self.event_time).as_primitive::<TimestampMicrosecondType>().values()
    }
}

/// The type that a column has in Arrow. Polars lays out its own the same way, so arrays pass without being copied.
pub fn arrow_type(data_type: &DataType) -> arrow::datatypes::DataType {
    use arrow::datatypes::DataType as Arrow;
    match data_type {
        DataType::Text | DataType::Json => Arrow::Utf8View,
        DataType::BigInt | DataType::Interval => Arrow::Int64,
        DataType::Double => Arrow::Float64,
        DataType::Boolean => Arrow::Boolean,
        DataType::Timestamp => Arrow::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::List(item) => Arrow::LargeList(Arc::new(Field::new("item", arrow_type(item), true))),
    }
}

/// The Arrow schema of a table's rows.
pub fn arrow_schema(table: &Table) -> SchemaRef {
    let field = |(i, column): (usize, &Column)| {
        let nullable = column.nullable || table.is_changelog() && !is_of_deletion(table, i);
        Field::new(&column.name, arrow_type(&column.data_type), nullable)
    };
    let deleted = table.is_changelog().then(|| Field::new(DELETED, arrow_type(&DataType::Boolean), false));
    Arc::new(Schema::new(table.columns.iter().enumerate().map(field).chain(deleted).collect::<Vec<_>>()))
}

/// Whether a deletion has a column as any change has it.
fn is_of_deletion(table: &Table, column: usize) -> bool {
    column == table.event_time || table.primary_key.contains(&column)
}

impl Decoder {
    /// A decoder of a table's records.
    pub fn new(table: Arc<Table>) -> Self {
        let is_given = |i| table.key != Some(i) && table.headers != Some(i);
        let columns = table.columns.iter().enumerate().map(|(i, column)| {
            let is_json = column.data_type == DataType::Json;
            is_given(i).then(|| (column.name.clone(), is_json))
        });
        let deleted = table.is_changelog().then(|| Some((DELETED.to_owned(), false)));
        let layout = Layout { columns: columns.chain(deleted).collect(), order: Vec::new() };
        let made = (0..layout.columns.len()).collect();
        Self { schema: arrow_schema(&table), made, layout, earlier: Vec::new(), scratch: String::new(), table }
    }

    /// A decoder that makes only those columns for which `is_read` says so, and those that any change of a row has. Records are
    /// good or bad all the same.
    pub fn reading(table: Arc<Table>, is_read: impl Fn(&str) -> bool) -> Self {
        let mut decoder = Self::new(table.clone());
        let is_made = |&i: &usize| table.columns.get(i).is_none_or(|it| is_of_deletion(&table, i) || is_read(&it.name));
        decoder.made.retain(is_made);
        decoder.schema = Arc::new(arrow_schema(&table).project(&decoder.made).expect("columns of the table"));
        decoder
    }

    /// Has it read records below a definition's beginning by the definitions that were in force then.
    pub fn by(mut self, editions: &Editions) -> Self {
        self.earlier = editions.earlier().map(|(edition, ends)| Earlier::new(edition, ends, &self)).collect();
        if !self.earlier.is_empty() {
            self.schema = earlier::nullable(&self.schema);
        }
        self
    }

    /// The name and type of a column that is made.
    fn column(&self, i: usize) -> (&str, &DataType) {
        self.table.columns.get(i).map_or((DELETED, &DataType::Boolean), |column| (&column.name, &column.data_type))
    }

    /// The table whose records it decodes.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Decodes the records of a batch.
    pub fn decode_batch(&mut self, batch: &Batch) -> Decoded {
        match self.decode_by_editions(batch) {
            Some(decoded) => decoded,
            None => self.decode_records(batch, 0..batch.payloads.len()),
        }
    }

    fn decode_records(&mut self, batch: &Batch, records: Range<usize>) -> Decoded {
        let beside = (batch.keys.as_ref(), batch.headers.as_ref());
        self.decode_with(&batch.payloads, &batch.log_times, batch.read_at, beside, records)
    }

    /// Decodes records without keys and headers, of which the log took the i-th at `log_times[i]`. Panics unless there is
    /// a time for each.
    pub fn decode(&mut self, payloads: &Payloads, log_times: &[Micros]) -> Decoded {
        self.decode_with(payloads, log_times, None, (None, None), 0..payloads.len())
    }

    fn decode_with(
        &mut self,
        payloads: &Payloads,
        log_times: &[Micros],
        read_at: Option<Micros>,
        (keys, headers): (Option<&Payloads>, Option<&Payloads>),
        records: Range<usize>,
    ) -> Decoded {
        assert_eq!(payloads.len(), log_times.len(), "a log time for each record");
        // Text that is UTF-8 as a whole is so in its parts, if none begins or ends inside a character.
        let text = simdutf8::basic::from_utf8(payloads.bytes()).ok();
        let builder = |&i: &usize| (i, Builder::new(self.column(i).1, records.len()));
        let mut builders = self.made.iter().map(builder).collect::<Vec<_>>();
        let mut slots = vec![Slot::Null; self.layout.columns.len()];
        let (mut kept, mut rejects) = (Vec::with_capacity(records.len()), Vec::new());
        let mut start = records.start.checked_sub(1).map_or(0, |before| payloads.ends()[before] as usize);
        let each = payloads.ends().iter().zip(log_times).take(records.end).skip(records.start);
        for (index, (&end, &log_time)) in (records.start as u32..).zip(each) {
            let range = start..end as usize;
            start = range.end;
            let record = match text.and_then(|text| text.get(range.clone())) {
                Some(record) => Ok(record),
                None => std::str::from_utf8(&payloads.bytes()[range])
                    .map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to())),
            };
            let beside = [keys, headers].map(|all| all.map_or(&[][..], |all| all.get(index as usize)));
            match record
                .map_err(Refusal::from)
                .and_then(|record| self.row(record, (log_time, read_at), beside, &mut slots))
            {
                Ok(false) => {}
                Ok(true) => {
                    kept.push(index);
                    for (column, builder) in &mut builders {
                        builder.append(slots[*column], &self.scratch);
                    }
                }
                Err(Refusal { reason, early }) => {
                    let reason = shown(&reason, MAX_REASON_BYTES).into_owned();
                    rejects.push(Reject { index, reason, early });
                }
            }
        }
        let event_time = builders.iter().position(|(column, _)| *column == self.table.event_time).unwrap_or(0);
        let columns = builders.into_iter().map(|(_, builder)| builder.finish()).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), columns).expect("columns of the schema, equally long");
        Decoded { batch, kept, rejects, event_time }
    }

    /// Reads a record and fits each slot to its column. Whether the record makes a row.
    fn row<'a>(
        &mut self,
        record: &'a str,
        (log_time, read_at): (Micros, Option<Micros>),
        [key, headers]: [&'a [u8]; 2],
        slots: &mut [Slot<'a>],
    ) -> Result<bool, Refusal> {
        if record.len() > MAX_RECORD_BYTES {
            return Err(format!("{} bytes long, but at most {MAX_RECORD_BYTES} are taken", record.len()).into());
        }
        let change = match self.table.format {
            _ if record.is_empty() => Change::Deletion,
            Format::Json => Change::Row(record),
            Format::DebeziumJson => debezium::change(record)?,
        };
        let (row, of_key) = match change {
            Change::Row(row) => {
                self.read(row, slots)?;
                (row, None)
            }
            Change::Deletion if self.table.is_changelog() => {
                (self.read_key(key, slots).map_err(|why| self.misfit(key, &why))?, Some(key))
            }
            Change::Truncation if self.table.is_changelog() => {
                return Err("a truncation of Debezium's: rows are deleted by their keys only".to_owned().into());
            }
            Change::Deletion | Change::Truncation | Change::None => return Ok(false),
        };
        let is_deletion = of_key.is_some() || self.is_deletion(slots)?;
        if let Some(column) = self.table.key.filter(|_| !key.is_empty()) {
            slots[column] = Slot::Text(beside("key", key)?);
        }
        if let Some(column) = self.table.headers.filter(|_| !headers.is_empty()) {
            slots[column] = Slot::Json(beside("headers", headers)?);
        }
        for (i, (column, slot)) in self.table.columns.iter().zip(slots.iter_mut()).enumerate() {
            if is_deletion && *slot == Slot::Null && !self.table.primary_key.contains(&i) {
                continue;
            }
            let found = match (&column.data_type, *slot) {
                (DataType::BigInt | DataType::Timestamp, Slot::Float(_)) => whole(row, column).map(Slot::Integer),
                (_, found) => Ok(found),
            };
            let fitted = found.and_then(|found| fit(found, column, &self.scratch));
            *slot = fitted.map_err(|why| match of_key {
                Some(key) if self.table.primary_key.contains(&i) => self.misfit(key, &why),
                _ => why,
            })?;
        }
        if is_deletion && slots[self.table.event_time] == Slot::Null {
            slots[self.table.event_time] = Slot::Integer(log_time);
        }
        let Slot::Integer(time) = slots[self.table.event_time] else {
            let name = &self.table.event_time_column().name;
            return Err(format!("column `{name}`, the event time, is null or absent").into());
        };
        self.check_time(time, log_time, read_at)?;
        Ok(true)
    }

    /// Reads an object into the slots.
    fn read<'a>(&mut self, object: &'a str, slots: &mut [Slot<'a>]) -> Result<(), String> {
        if plain::read(object, &mut self.layout, slots) {
            return Ok(());
        }
        record::read(object, &mut self.layout, slots, &mut self.scratch)
    }

    /// Whether an object that was read says of itself that it deletes a row.
    fn is_deletion(&self, slots: &mut [Slot<'_>]) -> Result<bool, String> {
        let Some(slot) = slots.get_mut(self.table.columns.len()) else { return Ok(false) };
        let is_deletion = match *slot {
            Slot::Null | Slot::Boolean(false) | Slot::Text("false") => false,
            Slot::Boolean(true) | Slot::Text("true") => true,
            other => return Err(format!("`{DELETED}`: expected BOOLEAN, found {}", other.kind())),
        };
        *slot = Slot::Boolean(is_deletion);
        Ok(is_deletion)
    }

    /// Whether an event may have happened then. How late it is goes by the record's own time, so that every reading says the same.
    /// But for what is ahead of its reader's clock, where records' times are their producers'.
    fn check_time(&self, time: Micros, log_time: Micros, read_at: Option<Micros>) -> Result<(), Refusal> {
        let clock = read_at.unwrap_or(log_time);
        let is_ahead = |by: Micros| time > clock.saturating_add(by);
        let is_behind = |by: Micros| time < log_time.saturating_sub(by);
        let (by, option, side, clock, early) = if !EVENT_TIMES.contains(&time) {
            let name = &self.table.event_time_column().name;
            let time = format_timestamp(time);
            return Err(format!("column `{name}`, the event time: {time} is outside the years 0200 to 9799").into());
        } else if let Some(by) = self.table.max_future.filter(|&by| is_ahead(by)) {
            let early = (read_at.is_some() && !is_ahead(by.saturating_add(READ_WITHIN))).then_some(time);
            (by, "max_future", "ahead of", clock, early)
        } else if let Some(by) = self.table.max_past.filter(|&by| is_behind(by)) {
            (by, "max_past", "behind", log_time, None)
        } else {
            return Ok(());
        };
        let reason = format!(
            "column `{}`: {} is more than {} s (`{option}`) {side} the clock, which showed {}",
            self.table.event_time_column().name,
            format_timestamp(time),
            by as f64 / 1e6,
            format_timestamp(clock),
        );
        Err(Refusal { reason, early })
    }
}

/// A text as a message shows it: its beginning, if it is long.
fn shown(text: &str, bytes: usize) -> Cow<'_, str> {
    match text.floor_char_boundary(bytes) {
        end if end < text.len() => format!("{}…", &text[..end]).into(),
        _ => text.into(),
    }
}

/// What stands beside a record, as text.
fn beside<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("its {what}: not UTF-8 at byte {}", error.valid_up_to()))
}

/// The integer that the parser took for a number with a fraction, by its digits: a DOUBLE hasn't got them all.
fn whole(row: &str, Column { name, data_type, .. }: &Column) -> Result<i64, String> {
    let text = record::number(row, name).unwrap_or_default();
    number::whole(text).map_err(|why| format!("column `{name}`: expected {data_type}, but {why}"))
}

/// What a column stores for a slot, or why it can't.
fn fit<'a>(slot: Slot<'a>, column: &Column, scratch: &str) -> Result<Slot<'a>, String> {
    let Column { name, data_type, nullable } = column;
    let time = |text: &str| {
        let unreadable = || format!("column `{name}`: `{}` is no RFC 3339 time", shown(text, 60).escape_debug());
        time::from_text(text).map(Slot::Integer).ok_or_else(unreadable)
    };
    match (data_type, slot) {
        (_, Slot::Null) if *nullable => Ok(slot),
        (_, Slot::Null) => Err(format!("column `{name}` is null or absent, but NOT NULL")),
        (DataType::Text, Slot::Text(_) | Slot::Escaped(..))
        | (DataType::BigInt, Slot::Integer(_))
        | (DataType::Double, Slot::Float(_))
        | (DataType::Boolean, Slot::Boolean(_))
        | (DataType::Json, Slot::Json(_) | Slot::Escaped(..)) => Ok(slot),
        (DataType::Double, Slot::Integer(value)) => Ok(Slot::Float(value as f64)),
        (DataType::Timestamp, Slot::Text(text)) => time(text),
        (DataType::Timestamp, Slot::Escaped(start, end)) => time(&scratch[start..end]),
        (DataType::Timestamp, Slot::Integer(millis)) => time::from_millis(millis)
            .map(Slot::Integer)
            .ok_or_else(|| format!("column `{name}`: {millis} ms is outside the years 0001 to 9999")),
        _ => Err(format!("column `{name}`: expected {data_type}, found {}", slot.kind())),
    }
}

/// A column in the making.
enum Builder {
    Text(StringViewBuilder),
    BigInt(Int64Builder),
    Double(Float64Builder),
    Boolean(BooleanBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl Builder {
    fn new(data_type: &DataType, rows: usize) -> Self {
        match data_type {
            DataType::BigInt | DataType::Interval => Self::BigInt(Int64Builder::with_capacity(rows)),
            DataType::Double => Self::Double(Float64Builder::with_capacity(rows)),
            DataType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            DataType::Timestamp => {
                let builder = TimestampMicrosecondBuilder::with_capacity(rows);
                Self::Timestamp(builder.with_data_type(arrow_type(&DataType::Timestamp)))
            }
            DataType::Text | DataType::Json | DataType::List(_) => Self::Text(StringViewBuilder::with_capacity(rows)),
        }
    }

    /// Appends what [`fit`] made of a slot.
    #[inline]
    fn append(&mut self, slot: Slot<'_>, scratch: &str) {
        match (self, slot) {
            (Self::Text(builder), Slot::Text(text) | Slot::Json(text)) => builder.append_value(text),
            (Self::Text(builder), Slot::Escaped(start, end)) => builder.append_value(&scratch[start..end]),
            (Self::Text(builder), _) => builder.append_null(),
            (Self::BigInt(builder), Slot::Integer(value)) => builder.append_value(value),
            (Self::BigInt(builder), _) => builder.append_null(),
            (Self::Double(builder), Slot::Float(value)) => builder.append_value(value),
            (Self::Double(builder), _) => builder.append_null(),
            (Self::Boolean(builder), Slot::Boolean(value)) => builder.append_value(value),
            (Self::Boolean(builder), _) => builder.append_null(),
            (Self::Timestamp(builder), Slot::Integer(value)) => builder.append_value(value),
            (Self::Timestamp(builder), _) => builder.append_null(),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut builder) => Arc::new(builder.finish()),
            Self::BigInt(mut builder) => Arc::new(builder.finish()),
            Self::Double(mut builder) => Arc::new(builder.finish()),
            Self::Boolean(mut builder) => Arc::new(builder.finish()),
            Self::Timestamp(mut builder) => Arc::new(builder.finish()),
        }
    }
}
