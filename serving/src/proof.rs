//! What every answer says beside its rows: how exact it is, and what it was made of.

use std::collections::BTreeMap;

use anabranch_engine::render::write_json_text;
use anabranch_log::position::{Coverage, Offset, Positions, TopicPartition, of_topic};
use anabranch_plan::time::format_timestamp;
use anabranch_plan::view::Kept;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, SchemaType};
use utoipa::openapi::{RefOr, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::merge::{self, Quality, Span};
use crate::source::Sources;

/// An answer without its rows.
#[derive(Debug)]
pub struct Proof<'a> {
    /// The view.
    pub view: &'a Kept,
    /// What the answer was made of.
    pub sources: &'a Sources,
    /// What it is about.
    pub span: Span,
    /// How far it can be relied on.
    pub quality: Quality,
    /// Events that came too late for it.
    pub late: u64,
    /// Records of the topic that were rejected.
    pub rejected: u64,
    /// How many rows there are.
    pub total: usize,
}

impl Proof<'_> {
    /// Writes what comes before the rows, from `{"view":` on, without a comma at its end.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"view\":");
        write_json_text(&self.view.id.name, out);
        out.extend_from_slice(b",\"mode\":");
        write_json_text(self.sources.mode.name(), out);
        let incomplete = self.sources.is_incomplete();
        out.extend_from_slice(format!(",\"exact\":{},\"incomplete\":{incomplete}", self.quality.exact).as_bytes());
        if incomplete {
            out.extend_from_slice(b",\"missing\":");
            write_value(&Offsets::of(self.view, &self.sources.lacking()), out);
            if let Some(why) = self.sources.reason() {
                out.extend_from_slice(b",\"reason\":");
                write_json_text(&why, out);
            }
        }
        out.extend_from_slice(b",\"window\":");
        write_value(&self.window(), out);
        out.extend_from_slice(format!(",\"total\":{}", self.total).as_bytes());
    }

    /// Writes what comes after the rows, from `"sources":` on, without the last brace.
    pub fn write_tail(&self, out: &mut Vec<u8>) {
        let offsets = |coverage| Offsets::of(self.view, coverage);
        let version = self.sources.version.as_ref().map(|version| &version.published);
        let batch = version.map(|it| json!({ "version": it.version, "offsets": offsets(&it.coverage) }));
        let speed = self.sources.speed.as_ref().map(|coverage| json!({ "offsets": offsets(coverage) }));
        out.extend_from_slice(b"\"sources\":");
        write_value(&json!({ "batch": batch, "speed": speed }), out);
        out.extend_from_slice(b",\"watermark\":");
        write_value(&self.sources.watermark.map(format_timestamp), out);
        out.extend_from_slice(format!(",\"late\":{},\"rejected\":{}", self.late, self.rejected).as_bytes());
        out.extend_from_slice(b",\"definition\":");
        write_json_text(&self.view.id.definition, out);
        let Quality { certain, confidence, .. } = self.quality;
        out.extend_from_slice(format!(",\"certain\":{certain},\"confidence\":{confidence:?}").as_bytes());
    }

    fn window(&self) -> Value {
        match (self.span, self.view.aggregation().window) {
            (Span::One(start), Some(window)) => {
                let end = window.end_of(start);
                let state = merge::state(self.view, end, self.sources.watermark);
                json!({ "start": format_timestamp(start), "end": format_timestamp(end), "state": state })
            }
            (Span::Session { start, end }, _) => {
                let state = merge::state(self.view, end, self.sources.watermark);
                json!({ "start": format_timestamp(start), "end": format_timestamp(end), "state": state })
            }
            (Span::Ending(end), _) => {
                let state = merge::state(self.view, end, self.sources.watermark);
                json!({ "end": format_timestamp(end), "state": state })
            }
            (Span::Open, _) => json!({ "state": "open" }),
            (Span::Range { from, to }, _) => json!({ "from": format_timestamp(from), "to": format_timestamp(to) }),
            _ => Value::Null,
        }
    }
}

/// Offsets as the API writes them: `{"topic":{"0":[first,next]}}`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Offsets(BTreeMap<String, Ranges>);

impl Offsets {
    /// Those in the topics that a view reads.
    pub fn of(view: &Kept, coverage: &Coverage<TopicPartition>) -> Self {
        let of_topic = |topic: &String| (topic.clone(), Ranges(coverage.of(topic)));
        Self(view.tables().into_iter().map(|table| of_topic(&table.topic)).collect())
    }
}

/// Offsets of a topic: `{"0":[first,next]}`.
#[derive(Debug, Serialize)]
pub struct Ranges(pub Coverage);

impl PartialSchema for Ranges {
    fn schema() -> RefOr<Schema> {
        let range = ArrayBuilder::new().items(u64::schema()).min_items(Some(2)).max_items(Some(2));
        let description = "By partition the first offset, and the one after the last.";
        ObjectBuilder::new().description(Some(description)).additional_properties(Some(range)).into()
    }
}

impl ToSchema for Ranges {}

/// Positions in the topics that a view reads, as the API writes them.
pub(crate) fn all_positions_json(
    view: &Kept,
    positions: &Positions<TopicPartition>,
) -> BTreeMap<String, BTreeMap<String, Offset>> {
    let topics = view.tables().into_iter().map(|table| table.topic.as_str());
    topics.flat_map(|topic| positions_json(topic, &of_topic(topic, positions))).collect()
}

/// Positions in a topic as the API writes them: `{"topic":{"0":next}}`.
pub(crate) fn positions_json(topic: &str, positions: &Positions) -> BTreeMap<String, BTreeMap<String, Offset>> {
    let of_topic = positions.iter().map(|(partition, offset)| (partition.to_string(), *offset)).collect();
    [(topic.to_owned(), of_topic)].into()
}

/// A value in a row.
#[derive(Debug, Serialize)]
pub struct Cell(Value);

impl PartialSchema for Cell {
    fn schema() -> RefOr<Schema> {
        let description = "A value. A `BIGINT` has all its digits, also where a double can't hold it; a time is a text in RFC 3339; \
                           a `DOUBLE` that JSON has no number for is a text: `NaN`, `Infinity` or `-Infinity`.";
        let types = SchemaType::Array(vec![Type::String, Type::Number, Type::Boolean, Type::Null]);
        ObjectBuilder::new().schema_type(types).description(Some(description)).into()
    }
}

impl ToSchema for Cell {}

/// A row, or some of its columns, by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct Row(BTreeMap<String, Cell>);

fn write_value(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("a value is JSON");
}
