//! Types of columns and expressions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The type of a column or an expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DataType {
    /// UTF-8 text.
    Text,
    /// A signed integer of 64 bits (`BIGINT`, `INTEGER`, `SMALLINT`).
    BigInt,
    /// A 64-bit floating-point number.
    Double,
    /// True or false.
    Boolean,
    /// Microseconds since the Unix epoch, UTC.
    Timestamp,
    /// What timestamps differ by, in microseconds. No column of a table has it, nor any that is kept or sent.
    Interval,
    /// Any JSON value, kept as its text; read with JSON paths.
    Json,
    /// A list, as made by `regexp_extract_all` and `string_split`; only `UNNEST` takes one.
    List(Box<DataType>),
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("TEXT"),
            Self::BigInt => f.write_str("BIGINT"),
            Self::Double => f.write_str("DOUBLE"),
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Timestamp => f.write_str("TIMESTAMP"),
            Self::Interval => f.write_str("INTERVAL"),
            Self::Json => f.write_str("JSON"),
            Self::List(item) => write!(f, "{item}[]"),
        }
    }
}
