//! What the API says of a column.

use anabranch_plan::schema::DataType;
use serde::Serialize;
use utoipa::ToSchema;

/// A column.
#[derive(Serialize, ToSchema)]
pub struct ViewColumn {
    pub name: String,
    /// `TEXT`, `BIGINT`, `DOUBLE`, `BOOLEAN`, `TIMESTAMP` or `JSON`.
    #[serde(rename = "type")]
    pub data_type: String,
    /// `window`, `key` or `aggregate`; `field` of one that writes its rows to a topic.
    pub role: &'static str,
    /// Of an aggregate, which.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub function: Option<&'static str>,
    /// Of an aggregate, whether it is over distinct values.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub distinct: Option<bool>,
    /// Of an aggregate, whether its values may be added up over keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub additive: Option<bool>,
}

impl ViewColumn {
    /// A column of an output.
    pub(crate) fn field(name: &str, data_type: &DataType) -> Self {
        Self {
            name: name.to_owned(),
            data_type: data_type.to_string(),
            role: "field",
            function: None,
            distinct: None,
            additive: None,
        }
    }
}
