//! Which partition a record goes to: dealt round-robin, or chosen by a key the way Kafka's own producers do, so that
//! records of one key stay in order whoever wrote them.

use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};

use crate::clock::format_timestamp;
use crate::position::Partition;

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

/// The partition of a key among so many, as Kafka's default partitioner chooses it.
pub fn by_key(key: &[u8], partitions: u32) -> Partition {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// MurmurHash2 as Kafka has it (`Utils.murmur2`): 32 bits, its own seed.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let (words, rest) = data.as_chunks::<4>();
    let mut hash = words.iter().fold(0x9747_b28c ^ data.len() as u32, |hash, word| {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        hash.wrapping_mul(M) ^ (k ^ (k >> 24)).wrapping_mul(M)
    });
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, &byte| (tail << 8) | u32::from(byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
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
    fn hashes_are_kafkas() {
        // From org.apache.kafka.common.utils.UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
        assert_eq!(by_key(b"21", 10), ((-973_932_308_i32 & 0x7fff_ffff) % 10).cast_unsigned());
    }

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
