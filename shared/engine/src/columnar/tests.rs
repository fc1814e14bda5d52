use anabranch_plan::schema::DataType;
use arrow::array::{
    AsArray, BooleanArray, Float64Array, Int64Array, LargeListBuilder, StringViewArray, StringViewBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use polars::prelude::{AnyValue, IntoLazy, col, lit};

use super::*;
use crate::decode::arrow_type;
use crate::transform::polars_type;

const LONG: &str = "longer than the twelve bytes that a view has room for, ünïcode too";

/// A batch with a column of each type, of `rows` rows, some of them null.
fn batch(rows: usize) -> RecordBatch {
    let some = |i: &usize| !i.is_multiple_of(3);
    let text = (0..rows).map(|i| some(&i).then(|| if i % 2 == 0 { format!("{i}") } else { format!("{i} {LONG}") }));
    let mut lists = LargeListBuilder::new(StringViewBuilder::new());
    for i in 0..rows {
        (0..i % 3).for_each(|j| lists.values().append_value(format!("{i} {j} {LONG}")));
        lists.append(i % 4 != 0);
    }
    let columns: [(DataType, ArrayRef); 7] = [
        (DataType::Text, Arc::new(text.collect::<StringViewArray>())),
        (DataType::BigInt, Arc::new((0..rows).map(|i| some(&i).then_some(i as i64 - 5)).collect::<Int64Array>())),
        (DataType::Double, Arc::new((0..rows).map(|i| some(&i).then_some(i as f64 / 8.0)).collect::<Float64Array>())),
        (DataType::Boolean, Arc::new((0..rows).map(|i| some(&i).then_some(i % 2 == 0)).collect::<BooleanArray>())),
        (DataType::Timestamp, {
            let times = (0..rows).map(|i| some(&i).then_some(i as i64 * 1_000_000_007 - 3_000_000_000));
            Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
        }),
        (DataType::Json, Arc::new((0..rows).map(|i| Some(format!("[{i}]"))).collect::<StringViewArray>())),
        (DataType::List(Box::new(DataType::Text)), Arc::new(lists.finish())),
    ];
    let fields = columns.iter().map(|(data_type, _)| Field::new(data_type.to_string(), arrow_type(data_type), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, array)| array).collect()).expect("a batch")
}

#[test]
fn every_type_makes_the_round_trip() {
    let whole = batch(50);
    for (offset, length) in [(0, 50), (0, 0), (50, 0), (0, 1), (1, 49), (7, 20), (8, 16), (13, 37), (49, 1)] {
        let batch = whole.slice(offset, length);
        let frame = to_polars(&batch).expect("a frame");
        assert_eq!(frame.height(), length);
        for data_type in [DataType::Text, DataType::BigInt, DataType::Double, DataType::Boolean, DataType::Timestamp] {
            let column = frame.column(&data_type.to_string()).expect("a column");
            assert_eq!(*column.dtype(), polars_type(&data_type));
        }
        let back = to_arrow(&frame).expect("a batch");
        assert_eq!(back, batch, "rows {offset}..{}", offset + length);
    }
    let empty = to_polars(&batch(0)).expect("a frame");
    assert_eq!(to_arrow(&empty).expect("a batch"), batch(0));
}

#[test]
fn values_arrive_as_they_were() {
    let frame = to_polars(&batch(50).slice(10, 20)).expect("a frame");
    let long = format!("11 {LONG}");
    assert_eq!(frame.column("TEXT").expect("column").get(1).expect("row"), AnyValue::String(&long));
    assert_eq!(frame.column("TEXT").expect("column").get(0).expect("row"), AnyValue::String("10"));
    assert_eq!(frame.column("TEXT").expect("column").get(2).expect("row"), AnyValue::Null);
    assert_eq!(frame.column("BIGINT").expect("column").get(1).expect("row"), AnyValue::Int64(6));
    assert_eq!(frame.column("BOOLEAN").expect("column").get(0).expect("row"), AnyValue::Boolean(true));
}

#[test]
fn what_polars_made_comes_back() {
    let frame = to_polars(&batch(30)).expect("a frame");
    let filtered = frame.clone().lazy().filter(col("BIGINT").gt(lit(0))).collect().expect("filtered");
    let kept = to_arrow(&filtered).expect("a batch");
    let expected = (0..30).filter(|i| i % 3 != 0 && i - 5 > 0).map(|i| i - 5).collect::<Vec<i64>>();
    assert_eq!(kept["BIGINT"].as_primitive::<Int64Type>().values(), &expected[..]);
    assert_eq!(kept["TEXT"].as_string_view().value(0), format!("7 {LONG}"));

    // Two chunks, and slices that begin inside a byte of a bitmap.
    let stacked = frame.slice(3, 10).vstack(&frame.slice(21, 5)).expect("stacked");
    let expected = [batch(30).slice(3, 10), batch(30).slice(21, 5)];
    let expected = arrow::compute::concat_batches(&expected[0].schema(), &expected).expect("joined");
    assert_eq!(to_arrow(&stacked).expect("a batch"), expected);
}

#[test]
fn memory_is_shared_and_outlives_where_it_came_from() {
    let batch = batch(1_000);
    let times = batch["TIMESTAMP"].as_primitive::<TimestampMicrosecondType>().values().as_ptr();
    let text = batch["TEXT"].as_string_view().data_buffers()[0].as_ptr();
    let expected = batch.slice(0, 1_000);
    let frame = to_polars(&batch).expect("a frame");
    drop(batch);
    let back = to_arrow(&frame).expect("a batch");
    drop(frame);
    assert_eq!(back["TIMESTAMP"].as_primitive::<TimestampMicrosecondType>().values().as_ptr(), times);
    assert_eq!(back["TEXT"].as_string_view().data_buffers()[0].as_ptr(), text);
    assert_eq!(back, expected);
}
