//! Which partition a record goes to: dealt round-robin, or chosen by a key the way Kafka's own producers do, so that
//! records of one key stay in order whoever wrote them.

use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_log::key::by_key;
use anabranch_log::position::Partition;
use anabranch_plan::schema::Table;
use anabranch_plan::time::format_timestamp;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use serde_json::Value;

use crate::decode::key;

/// Deals records to the partitions of topics.
#[derive(Debug, Default)]
pub struct Partitioner {
    next: AtomicU64,
}

impl Partitioner {
    /// The partition of each of so many rows, which their `keys` choose. Rows without one are dealt round-robin.
    ///
    /// Of rows that are `pinned` (one for each, or none at all) each goes to the last partition, to which no other goes.
    pub fn assign(
        &self,
        rows: usize,
        keys: Option<&[Option<String>]>,
        pinned: Option<&[bool]>,
        partitions: u32,
    ) -> Vec<Partition> {
        let last = partitions.max(1) - 1;
        let partitions = if pinned.is_some() { last.max(1) } else { last + 1 };
        let first = self.next.fetch_add(rows as u64, Ordering::Relaxed);
        let is_pinned = |row: usize| pinned.is_some_and(|pinned| pinned.get(row) == Some(&true));
        let partition = |row: usize| match keys.and_then(|keys| keys[row].as_ref()) {
            _ if is_pinned(row) => last,
            Some(key) => by_key(key.as_bytes(), partitions),
            None => (first.wrapping_add(row as u64) % u64::from(partitions)) as Partition,
        };
        (0..rows).map(partition).collect()
    }
}

/// The key of each record of a table, whose columns these are; none where it is null, or if the table's records have none.
pub fn record_keys(batch: &RecordBatch, table: &Table) -> Option<Vec<Option<String>>> {
    match (table.placed_by(), table.is_changelog()) {
        ([column], false) => Some(keys(batch, *column)),
        (columns, true) => {
            let named = columns.iter().map(|&column| (table.columns[column].name.as_str(), batch.column(column)));
            let keys = row_keys(batch.num_rows(), &named.collect::<Vec<_>>());
            Some(keys.into_iter().map(Some).collect())
        }
        _ => None,
    }
}

/// The keys of records that each are a row's newest version, which these columns name.
pub fn row_keys(rows: usize, columns: &[(&str, &ArrayRef)]) -> Vec<String> {
    let plain = |row: usize| match columns {
        [(_, column)] => text(column, row).filter(|text| key::is_plain(text)),
        _ => None,
    };
    let object = |row: usize| key::object(columns.iter().map(|(name, column)| (*name, json(column, row))));
    (0..rows).map(|row| plain(row).unwrap_or_else(|| object(row))).collect()
}

/// The text of each row's key, times in RFC 3339, numbers in decimal; none where it is null.
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

/// A cell as JSON.
fn json(column: &dyn Array, row: usize) -> Value {
    match column.data_type() {
        _ if column.is_null(row) => Value::Null,
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        _ => text(column, row).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewArray};

    use super::*;

    #[test]
    fn keys_choose_and_the_rest_is_dealt() {
        let texts: ArrayRef = Arc::new(StringViewArray::from(vec![Some("21"), None, Some("21"), None, Some("")]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![21, 21, 21, 21, 21]));
        let batch = RecordBatch::try_from_iter([("key", texts), ("number", numbers)]).expect("a batch");
        let partitioner = Partitioner::default();
        assert_eq!(partitioner.assign(5, None, None, 3), [0, 1, 2, 0, 1]);
        assert_eq!(partitioner.assign(5, None, None, 3), [2, 0, 1, 2, 0], "goes on where it stopped");
        let of_21 = by_key(b"21", 3);
        assert_eq!(partitioner.assign(5, Some(&keys(&batch, 1)), None, 3), [of_21; 5]);
        let by_text = partitioner.assign(5, Some(&keys(&batch, 0)), None, 3);
        assert_eq!(by_text, [of_21, (15 + 1) % 3, of_21, (15 + 3) % 3, by_key(b"", 3)]);
    }

    #[test]
    fn a_changelogs_records_have_the_whole_key_of_their_row() {
        let text = "CREATE TABLE t (id TEXT, n BIGINT, ts TIMESTAMP, PRIMARY KEY (n, id)) WITH (event_time = 'ts');
            CREATE TABLE u (id TEXT PRIMARY KEY, n BIGINT, ts TIMESTAMP) WITH (event_time = 'ts');";
        let catalog = anabranch_plan::sql::plan(&[("t.sql".to_owned(), text.to_owned())]).expect("tables");
        let ids: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "ü\"", "", "{\"id\":1}", "\"a\""]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, -2, 3, 4, 5]));
        let batch = RecordBatch::try_from_iter([("id", ids), ("n", numbers)]).expect("a batch");
        let keys = |table: &str| -> Vec<String> {
            record_keys(&batch, &catalog.tables[table]).expect("keys").into_iter().flatten().collect()
        };
        // As Debezium writes them.
        let several = [r#"{"n":1,"id":"a"}"#, r#"{"n":-2,"id":"ü\""}"#, r#"{"n":3,"id":""}"#];
        assert_eq!(keys("t")[..3], several);
        // What is plain stays so; of the others it would be read as something else, or as no key.
        let one = ["a", "ü\"", r#"{"id":""}"#, r#"{"id":"{\"id\":1}"}"#, r#"{"id":"\"a\""}"#];
        assert_eq!(keys("u"), one);
    }

    #[test]
    fn pinned_rows_have_the_last_partition_for_themselves() {
        let keys: Vec<_> = (0..100).map(|i| Some(i.to_string())).collect();
        let pinned: Vec<bool> = (0..100).map(|i| i % 10 == 0).collect();
        for keys in [None, Some(&keys[..])] {
            let chosen = Partitioner::default().assign(100, keys, Some(&pinned), 4);
            let is_last: Vec<bool> = chosen.iter().map(|&partition| partition == 3).collect();
            assert_eq!(is_last, pinned);
            assert!((0..3).all(|partition| chosen.contains(&partition)));
        }
        assert_eq!(Partitioner::default().assign(100, None, Some(&pinned), 1), [0; 100]);
    }
}
