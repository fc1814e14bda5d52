//! Which partition a record goes to: dealt round-robin, or chosen by a key the way Kafka's own producers do, so that
//! records of one key stay in order whoever wrote them.

use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_log::key::by_key;
use anabranch_log::position::Partition;
use anabranch_plan::time::format_timestamp;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};

/// Deals records to the partitions of topics.
#[derive(Debug, Default)]
pub struct Partitioner {
    next: AtomicU64,
}

impl Partitioner {
    /// The partition of each row. `key` is the column whose text chooses it: times in RFC 3339, numbers in decimal.
    /// Rows are dealt round-robin if there is no such column, and where it is null.
    ///
    /// Of rows that are `pinned` (one for each, or none at all) each goes to the last partition, to which no other goes.
    pub fn assign(
        &self,
        batch: &RecordBatch,
        key: Option<usize>,
        pinned: Option<&[bool]>,
        partitions: u32,
    ) -> Vec<Partition> {
        let last = partitions.max(1) - 1;
        let partitions = if pinned.is_some() { last.max(1) } else { last + 1 };
        let first = self.next.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        let key = key.map(|column| batch.column(column).as_ref());
        let is_pinned = |row: usize| pinned.is_some_and(|pinned| pinned.get(row) == Some(&true));
        let partition = |row: usize| match key.and_then(|column| text(column, row)) {
            _ if is_pinned(row) => last,
            Some(key) => by_key(key.as_bytes(), partitions),
            None => (first.wrapping_add(row as u64) % u64::from(partitions)) as Partition,
        };
        (0..batch.num_rows()).map(partition).collect()
    }
}

/// The text of each row's key; none where it is null.
pub fn keys(batch: &RecordBatch, key: usize) -> Vec<Option<String>> {
    (0..batch.num_rows()).map(|row| text(batch.column(key), row)).collect()
}

/// A cell as text; none if it is null.
fn text(column: &dyn Array, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8View => Some(column.as_string_view().value(row).to_owned()),
        DataType::Int64 => Some(column.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::Float64 => Some(column.as_primitive::<Float64Type>().value(row).to_string()),
        DataType::Boolean => Some(column.as_boolean().value(row).to_string()),
        DataType::Timestamp(..) => Some(format_timestamp(column.as_primitive::<TimestampMicrosecondType>().value(row))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray};

    use super::*;

    #[test]
    fn keys_choose_and_the_rest_is_dealt() {
        let keys: ArrayRef = Arc::new(StringViewArray::from(vec![Some("21"), None, Some("21"), None, Some("")]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![21, 21, 21, 21, 21]));
        let batch = RecordBatch::try_from_iter([("key", keys), ("number", numbers)]).expect("a batch");
        let partitioner = Partitioner::default();
        assert_eq!(partitioner.assign(&batch, None, None, 3), [0, 1, 2, 0, 1]);
        assert_eq!(partitioner.assign(&batch, None, None, 3), [2, 0, 1, 2, 0], "goes on where it stopped");
        let of_21 = by_key(b"21", 3);
        assert_eq!(partitioner.assign(&batch, Some(1), None, 3), [of_21; 5]);
        let by_text = partitioner.assign(&batch, Some(0), None, 3);
        assert_eq!(by_text, [of_21, (15 + 1) % 3, of_21, (15 + 3) % 3, by_key(b"", 3)]);
    }

    #[test]
    fn pinned_rows_have_the_last_partition_for_themselves() {
        let keys: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..100).map(|i| i.to_string())));
        let batch = RecordBatch::try_from_iter([("key", keys)]).expect("a batch");
        let pinned: Vec<bool> = (0..100).map(|i| i % 10 == 0).collect();
        for key in [None, Some(0)] {
            let chosen = Partitioner::default().assign(&batch, key, Some(&pinned), 4);
            let is_last: Vec<bool> = chosen.iter().map(|&partition| partition == 3).collect();
            assert_eq!(is_last, pinned);
            assert!((0..3).all(|partition| chosen.contains(&partition)));
        }
        assert_eq!(Partitioner::default().assign(&batch, None, Some(&pinned), 1), [0; 100]);
    }
}
