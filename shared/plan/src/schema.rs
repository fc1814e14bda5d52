//! Tables: what an event of a topic looks like.

use serde::{Deserialize, Serialize};

use crate::expr::Expr;
use crate::time::Micros;

pub use crate::data_type::DataType;

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, which is the key in the event's JSON object, unless it is filled from the log.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether an event may lack it.
    pub nullable: bool,
}

/// How a table's records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// One JSON object a record, which is a row.
    #[default]
    Json,
    /// Changes of a database's table as [Debezium](https://debezium.io) tells them: the row as it is after the change.
    DebeziumJson,
}

/// A table: the events of one topic, typed.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The name that views use.
    pub name: String,
    /// The topic whose events these are. No two tables share one.
    pub topic: String,
    /// How its records are written.
    pub format: Format,
    /// The columns in the order of their definition.
    pub columns: Vec<Column>,
    /// Which column is the time at which an event happened.
    pub event_time: usize,
    /// How far behind the newest event time seen the watermark stays.
    pub watermark_delay: Micros,
    /// How far ahead of the clock an event time may be, if there is a limit; beyond it the event is rejected. The clock is the log's
    /// where it took the record, and the reader's where the record's time is its producer's.
    pub max_future: Option<Micros>,
    /// How far behind the record's own time an event time may be, if there is a limit; beyond it the event is rejected.
    pub max_past: Option<Micros>,
    /// How many partitions the topic is created with.
    pub partitions: u32,
    /// The column whose value chooses an event's partition; none deals events round-robin. See [`Table::placed_by`].
    pub partition_by: Option<usize>,
    /// Events for which this holds go to the topic's last partition, and no others do.
    pub pin: Option<Expr>,
    /// The column that holds each record's key.
    pub key: Option<usize>,
    /// The column that holds each record's headers.
    pub headers: Option<usize>,
    /// The columns whose values tell a changelog's rows from each other; none if it is a stream, of whose events each is a row.
    pub primary_key: Vec<usize>,
    /// The statement that defined it, in canonical form.
    pub sql: String,
}

impl Table {
    /// Whether an event is a change of the row with its key.
    pub fn is_changelog(&self) -> bool {
        !self.primary_key.is_empty()
    }

    /// The columns whose values choose an event's partition, and are its record's key. All versions of a changelog's row are in one
    /// partition, or they would have no order.
    pub fn placed_by(&self) -> &[usize] {
        if self.is_changelog() { &self.primary_key } else { self.partition_by.as_slice() }
    }

    /// The column that holds the event time.
    pub fn event_time_column(&self) -> &Column {
        &self.columns[self.event_time]
    }
}

/// The type of a stored column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are SQL's")]
pub enum ColumnType {
    Text,
    Integer,
    BigInt,
    Double,
    Boolean,
    Timestamp,
    Date,
}

impl From<&DataType> for ColumnType {
    fn from(data_type: &DataType) -> Self {
        match data_type {
            DataType::Text | DataType::Json | DataType::List(_) => Self::Text,
            DataType::BigInt | DataType::Interval => Self::BigInt,
            DataType::Double => Self::Double,
            DataType::Boolean => Self::Boolean,
            DataType::Timestamp => Self::Timestamp,
        }
    }
}

/// What a table's rows look like. Every column may be null, so that a definition can gain columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The columns in order, partition columns included.
    pub columns: Vec<(String, ColumnType)>,
    /// The columns whose values are in the folders' names, not in the files.
    pub partition_by: Vec<String>,
}
