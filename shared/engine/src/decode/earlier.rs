//! Records that are read by an earlier definition of their table.

use std::ops::Range;

use anabranch_log::Batch;
use anabranch_log::position::{Offset, Partition, Positions};
use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};

use super::{DELETED, Decoded, Decoder};
use crate::edition::{Edition, Ends};

/// Reads what an earlier definition governs, into the columns of the newest.
#[derive(Debug)]
pub(super) struct Earlier {
    /// Where later definitions begin, by partition; in those that aren't named, at 0.
    begins: Vec<Positions>,
    decoder: Decoder,
    /// For each column of the newest definition that is made, its place in what `decoder` makes, if it was a column then.
    places: Vec<Option<usize>>,
}

impl Earlier {
    /// Reads by an edition what `newest` makes of its own records.
    pub fn new(edition: &Edition, ends: Ends<'_>, newest: &Decoder) -> Self {
        let wanted = || newest.made.iter().map(|&i| newest.column(i));
        let table = edition.table(&newest.table);
        // A changelog's archive has been one from its beginning.
        let is_shared = |name: &str| {
            name == DELETED || wanted().any(|(it, data_type)| it == name && edition.column(name, data_type).is_some())
        };
        let decoder = Decoder::reading(table.into(), is_shared);
        let place = |name: &str| {
            let made = decoder.made.iter().position(|&i| decoder.column(i).0 == name);
            made.filter(|_| is_shared(name))
        };
        let places = wanted().map(|(name, _)| place(name)).collect();
        Self { begins: ends.begins(), decoder, places }
    }

    /// Where it ends in a partition.
    fn end(&self, partition: Partition) -> Offset {
        let begin = |begins: &Positions| begins.get(&partition).copied().unwrap_or(0);
        self.begins.iter().map(begin).min().unwrap_or(Offset::MAX)
    }

    fn decode(&mut self, batch: &Batch, records: Range<usize>, schema: &SchemaRef) -> Decoded {
        let decoded = self.decoder.decode_records(batch, records);
        let column = |(place, field): (&Option<usize>, &arrow::datatypes::FieldRef)| match place {
            Some(place) => decoded.batch.column(*place).clone(),
            None => new_null_array(field.data_type(), decoded.batch.num_rows()),
        };
        let columns = self.places.iter().zip(schema.fields()).map(column).collect();
        let batch = RecordBatch::try_new(schema.clone(), columns).expect("columns of the schema, equally long");
        Decoded { batch, ..decoded }
    }
}

/// A schema whose columns may all be null.
pub(super) fn nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Schema::new(fields.collect::<Vec<_>>()).into()
}

impl Decoder {
    /// Decodes a batch of which earlier definitions govern a part; none if they don't.
    pub(super) fn decode_by_editions(&mut self, batch: &Batch) -> Option<Decoded> {
        let mut from = 0;
        let mut parts = Vec::new();
        for earlier in &mut self.earlier {
            let end = earlier.end(batch.partition);
            let to = batch.offsets.partition_point(|&offset| offset < end);
            if to > from {
                parts.push(earlier.decode(batch, from..to, &self.schema));
                from = to;
            }
        }
        if parts.is_empty() {
            return None;
        }
        parts.push(self.decode_records(batch, from..batch.payloads.len()));
        let event_time = parts.last()?.event_time;
        let joined = concat_batches(&self.schema, parts.iter().map(|part| &part.batch));
        let joined = joined.expect("batches of one schema");
        let (mut kept, mut rejects) = (Vec::new(), Vec::new());
        for part in parts {
            kept.extend(part.kept);
            rejects.extend(part.rejects);
        }
        Some(Decoded { batch: joined, kept, rejects, event_time })
    }
}
