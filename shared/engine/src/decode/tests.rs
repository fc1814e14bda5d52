use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

/// 2024-01-15T10:30:45Z, the log's clock in these tests.
const LOG_TIME: Micros = 1_705_314_645_000_000;

fn table() -> Arc<Table> {
    let column = |name: &str, data_type, nullable| Column { name: name.to_owned(), data_type, nullable };
    Arc::new(Table {
        name: "events".to_owned(),
        topic: "events".to_owned(),
        format: anabranch_plan::schema::Format::Json,
        columns: vec![
            column("id", DataType::Text, false),
            column("bytes", DataType::BigInt, true),
            column("price", DataType::Double, true),
            column("ok", DataType::Boolean, true),
            column("data", DataType::Json, true),
            column("ts", DataType::Timestamp, true),
        ],
        event_time: 5,
        watermark_delay: 0,
        max_future: Some(60_000_000),
        max_past: None,
        partitions: 1,
        partition_by: None,
        pin: None,
        key: None,
        headers: None,
        primary_key: Vec::new(),
        sql: String::new(),
    })
}

fn decode<T: AsRef<[u8]>>(records: &[T]) -> Decoded {
    Decoder::new(table()).decode(&records.iter().collect(), &vec![LOG_TIME; records.len()])
}

/// The cells of a row, as JSON.
fn row(batch: &RecordBatch, row: usize) -> Json {
    let cell = |column: &ArrayRef, data_type: &DataType| match data_type {
        _ if column.is_null(row) => Json::Null,
        DataType::Text => column.as_string_view().value(row).into(),
        DataType::BigInt => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Double => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Timestamp => column.as_primitive::<TimestampMicrosecondType>().value(row).into(),
        _ => format!("JSON {}", column.as_string_view().value(row)).into(),
    };
    batch.columns().iter().zip(&table().columns).map(|(array, column)| cell(array, &column.data_type)).collect()
}

/// Checks the row that a record makes, as a JSON array, or the beginning of the reason for which it is rejected.
#[track_caller]
fn check(record: impl AsRef<[u8]>, expected: Result<&str, &str>) {
    let record = record.as_ref();
    let good = br#"{"id":"good","ts":0}"#.as_slice();
    let decoded = decode(&[good, record, good]);
    let shown = String::from_utf8_lossy(&record[..record.len().min(200)]);
    match expected {
        Ok(expected) => {
            assert_eq!(decoded.rejects, [], "{shown}");
            assert_eq!(decoded.kept, [0, 1, 2]);
            assert_eq!(row(&decoded.batch, 1), serde_json::from_str::<Json>(expected).expect("json"), "{shown}");
        }
        Err(reason) => {
            assert_eq!(decoded.kept, [0, 2], "{shown}");
            assert_eq!(decoded.rejects.len(), 1);
            assert_eq!(decoded.rejects[0].index, 1);
            let actual = &decoded.rejects[0].reason;
            assert!(actual.starts_with(reason), "{shown}\nexpected: {reason}\n  actual: {actual}");
        }
    }
    for i in [0, decoded.batch.num_rows() - 1] {
        assert_eq!(row(&decoded.batch, i).to_string(), r#"["good",null,null,null,null,0]"#, "beside {shown}");
    }
}

/// Checks what a value of one column becomes; the value is JSON text.
#[track_caller]
fn check_value(column: &str, value: &str, expected: Result<&str, &str>) {
    let place = table().columns.iter().position(|c| c.name == column).expect("a column");
    let mut cells = [r#""a""#, "null", "null", "null", "null", "0"];
    let record = match column {
        "id" => format!(r#"{{"id":{value},"ts":0}}"#),
        "ts" => format!(r#"{{"id":"a","ts":{value}}}"#),
        _ => format!(r#"{{"id":"a","ts":0,"{column}":{value}}}"#),
    };
    let reason = expected.map_err(|reason| format!("column `{column}`{reason}"));
    match &reason {
        Ok(cell) => {
            cells[place] = cell;
            check(record, Ok(&format!("[{}]", cells.join(","))));
        }
        Err(reason) => check(record, Err(reason)),
    }
}

#[test]
fn a_record_becomes_a_row() {
    let record = r#" {"ok":true,"unknown":{"a":[1,{"b":null}]},"ts":"2024-01-15T10:30:45.123Z","id":"x\n\u00e9\ud83d\ude00",
        "data": {"a" : [1, 2]} ,"price":1e3,"bytes":-7, "more":"\t"} "#;
    check(record.replace("\\t", "\t"), Err("not JSON at byte"));
    check(record, Ok(r#"["x\né😀",-7,1000.0,true,"JSON {\"a\" : [1, 2]}",1705314645123000]"#));
    check(r#"{"id":"a","ts":0}"#, Ok(r#"["a",null,null,null,null,0]"#));
    check(r#"{"id":"","ts":0,"bytes":null,"data":null}"#, Ok(r#"["",null,null,null,null,0]"#));
    check(r#"{"i\u0064":"escaped key","ts":0}"#, Ok(r#"["escaped key",null,null,null,null,0]"#));
    let long = "lörem ipsum ".repeat(1_000);
    check(format!(r#"{{"id":"{long}","ts":0}}"#), Ok(&format!(r#"["{long}",null,null,null,null,0]"#)));
}

#[test]
fn what_is_no_object_is_rejected() {
    check("  ", Err("not JSON at byte"));
    check("nonsense", Err("not JSON at byte"));
    check("[1,2]", Err("expected an object, found an array"));
    check("\"a\"", Err("expected an object, found a string"));
    check("null", Err("expected an object, found null"));
    check("12", Err("expected an object, found a number"));
    check("{", Err("not JSON at byte"));
    check(r#"{"id":"a","ts":0"#, Err("not JSON at byte"));
    check(r#"{"id":"a","ts":0}}"#, Err("not JSON at byte 17"));
    check(r#"{"id":"a","ts":0} {}"#, Err("not JSON at byte 18"));
    check(r#"{"id":"a","ts":0,}"#, Err("not JSON at byte"));
    check(r#"{"id":"a" "ts":0}"#, Err("not JSON at byte 10"));
    check(r#"{"id":"a","ts":00}"#, Err("not JSON at byte"));
    check(r#"{id:"a","ts":0}"#, Err("not JSON at byte 1"));
    check(r#"{"id":"a","ts":0,"x":NaN}"#, Err("not JSON at byte"));
    check(r#"{"id":"a","ts":0,"x":1e999}"#, Err("not JSON at byte"));
    check(b"{\"id\":\"\xff\",\"ts\":0}", Err("not UTF-8 at byte 7"));
    check(b"{\"id\":\"a\",\"ts\":0}\xc3", Err("not UTF-8 at byte 17"));
    check(b"\xef\xbb\xbf{\"id\":\"a\",\"ts\":0}", Err("not JSON at byte 0"));
}

#[test]
fn strings_are_whole_characters() {
    for escape in [r"\ud800", r"\udc00", r"\ud800x", r"\ud800\u0041", r"\u12", r"\u12g4", r"\x"] {
        check(format!(r#"{{"id":"{escape}","ts":0}}"#), Err("not JSON at byte"));
        check(format!(r#"{{"id":"a","ts":0,"unknown":"{escape}"}}"#), Err("not JSON at byte"));
        check(format!(r#"{{"id":"a","ts":0,"data":["{escape}"]}}"#), Err(""));
        check(format!(r#"{{"id":"a","ts":0,"{escape}":1}}"#), Err("not JSON at byte"));
    }
}

#[test]
fn nesting_and_length_are_limited() {
    let nested = |key: &str, levels: usize| {
        format!(r#"{{"id":"a","ts":0,"{key}":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1))
    };
    check(nested("unknown", 64), Ok(r#"["a",null,null,null,null,0]"#));
    check(nested("unknown", 65), Err("nested deeper than 64 levels"));
    check(nested("data", 65), Err("nested deeper than 64 levels"));
    check(nested("data", 500_000), Err("nested deeper than 64 levels"));
    check(nested("id", 65), Err("nested deeper than 64 levels"));
    let wide = format!(r#"{{"id":"a","ts":0,"data":[{}]}}"#, ["\"[[\\\"\""; 100].join(","));
    assert_eq!(decode(&[wide]).rejects, [], "brackets inside strings are no nesting");

    let sized = |bytes: usize| format!(r#"{{"id":"{}","ts":0}}"#, "x".repeat(bytes - 16));
    assert_eq!(decode(&[sized(MAX_RECORD_BYTES)]).rejects, []);
    check(sized(MAX_RECORD_BYTES + 1), Err("1048577 bytes long"));

    let mut decoder = Decoder::new(Arc::new(Table {
        columns: vec![table().columns[5].clone()],
        event_time: 0,
        ..(*table()).clone()
    }));
    let deep = nested("unknown", 500_000);
    let decoded = decoder.decode(&[deep].iter().collect(), &[LOG_TIME]);
    assert_eq!(decoded.rejects[0].reason, "nested deeper than 64 levels", "without a JSON column too");
}

#[test]
fn values_fit_their_columns() {
    check_value("id", "1", Err(": expected TEXT, found a number"));
    check_value("id", "null", Err(" is null or absent, but NOT NULL"));
    check(r#"{"ts":0}"#, Err("column `id` is null or absent, but NOT NULL"));
    check_value("id", "[\"a\"]", Err(": expected TEXT, found an array"));

    check_value("bytes", "0", Ok("0"));
    check_value("bytes", "9223372036854775807", Ok("9223372036854775807"));
    check_value("bytes", "-9223372036854775808", Ok("-9223372036854775808"));
    check_value("bytes", "\"1\"", Err(": expected BIGINT, found a string"));
    check_value("bytes", "true", Err(": expected BIGINT, found a boolean"));
    check_value("bytes", "[]", Err(": expected BIGINT, found an array"));

    check_value("price", "1", Ok("1.0"));
    check_value("price", "-2.5e-3", Ok("-0.0025"));
    check_value("price", "18446744073709551616", Ok("18446744073709551616.0"));
    check_value("price", "\"1\"", Err(": expected DOUBLE, found a string"));
    check_value("price", "{}", Err(": expected DOUBLE, found an object"));

    check_value("ok", "false", Ok("false"));
    check_value("ok", "0", Err(": expected BOOLEAN, found a number"));

    check_value("data", "\"a\"", Ok(r#""JSON \"a\"""#));
    check_value("data", " [ 1 , \n 2 ] ", Ok(r#""JSON [ 1 , \n 2 ]""#));
    check_value("data", r#""\"\u0041""#, Ok(r#""JSON \"\\\"\\u0041\"""#));
    check_value("data", "1.50", Ok(r#""JSON 1.50""#));
}

#[test]
fn a_whole_number_is_a_bigint_however_it_is_written() {
    for (number, value) in [
        ("-0", 0),
        ("0.0", 0),
        ("-0.00e-7", 0),
        ("0e99999999999999999999", 0),
        ("5.0", 5),
        ("-5.000", -5),
        ("1e3", 1_000),
        ("1E+3", 1_000),
        ("1.25e2", 125),
        ("120e-1", 12),
        ("0.5e1", 5),
        ("100000000000000000000000e-22", 10),
        // No way over a DOUBLE leads there.
        ("9007199254740993.0", 9_007_199_254_740_993),
        ("900719925474099.3e1", 9_007_199_254_740_993),
        ("9223372036854775807.0", i64::MAX),
        ("-9223372036854775808.0", i64::MIN),
        ("-9.223372036854775808e18", i64::MIN),
    ] {
        check_value("bytes", number, Ok(&value.to_string()));
    }
    for (number, why) in [
        ("0.5", "0.5 has a fraction"),
        ("-1.5e0", "-1.5e0 has a fraction"),
        ("9007199254740993.1", "9007199254740993.1 has a fraction"),
        ("1e-3", "1e-3 has a fraction"),
        ("1e-99999999999999999999", "1e-99999999999999999999 has a fraction"),
        ("9223372036854775808", "9223372036854775808 is beyond 64 bits"),
        ("-9223372036854775809", "-9223372036854775809 is beyond 64 bits"),
        ("9223372036854775808.0", "9223372036854775808.0 is beyond 64 bits"),
        ("18446744073709551615", "18446744073709551615 is beyond 64 bits"),
        ("1e30", "1e30 is beyond 64 bits"),
        ("123456789012345678901", "123456789012345678901 is beyond 64 bits"),
        (
            "12345678901234567890123456789012345678901234567890",
            "1234567890123456789012345678901234567890… is beyond 64 bits",
        ),
    ] {
        check_value("bytes", number, Err(&format!(": expected BIGINT, but {why}")));
    }
    // A DOUBLE is no integer: its zero keeps its sign, and its digits are those of the parser.
    check_value("price", "-0", Ok("-0.0"));
    check_value("price", "9007199254740993.0", Ok("9007199254740992.0"));
    check_value("data", "-0", Ok(r#""JSON -0""#));
    check_value("ts", "1705314645000.0", Ok("1705314645000000"));
    check_value("ts", "1.705314645e12", Ok("1705314645000000"));
    check(r#"{"id":"a","ts":0,"bytes":1.5,"b\u0079tes":2.0}"#, Ok(r#"["a",2,null,null,null,0]"#));
    check(
        r#"{"id":"a","ts":0,"bytes":2.0,"bytes":1.5}"#,
        Err("column `bytes`: expected BIGINT, but 1.5 has a fraction"),
    );
    let table = Table { format: anabranch_plan::schema::Format::DebeziumJson, ..(*table()).clone() };
    let change = r#"{"bytes":1.5,"before":null,"after":{"id":"a","bytes":7.0,"ts":0},"op":"c"}"#;
    let decoded = Decoder::new(Arc::new(table)).decode(&[change].iter().collect(), &[LOG_TIME]);
    assert_eq!((row(&decoded.batch, 0)[1].as_i64(), decoded.rejects), (Some(7), vec![]));
}

#[test]
fn timestamps_are_rfc_3339_or_milliseconds() {
    for (text, micros) in [
        ("2024-01-15T10:30:45Z", LOG_TIME),
        ("2024-01-15 10:30:45Z", LOG_TIME),
        ("2024-01-15t10:30:45z", LOG_TIME),
        ("2024-01-15T10:30:45", LOG_TIME),
        ("2024-01-15 10:30:45.25", LOG_TIME + 250_000),
        ("2024-01-15T10:30:45.1Z", LOG_TIME + 100_000),
        ("2024-01-15T10:30:45.1234567899999Z", LOG_TIME + 123_456),
        ("2024-01-15T11:30:45+01:00", LOG_TIME),
        ("2024-01-15 05:00:45.5-05:30", LOG_TIME + 500_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("0200-01-01T00:00:00Z", anabranch_plan::time::EVENT_TIMES.start),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
        ("2024-01-15T10:30:45\\u005a", LOG_TIME),
    ] {
        if micros <= LOG_TIME + 60_000_000 {
            check_value("ts", &format!("\"{text}\""), Ok(&micros.to_string()));
        }
    }
    for text in [
        "",
        "now",
        "2024-01-15",
        "2024-13-15T10:30:45Z",
        "2024-01-32T10:30:45Z",
        "2023-02-29T10:30:45Z",
        "2024-01-15T24:30:45Z",
        "2024-01-15T10:60:45Z",
        "2024-01-15T10:30:45.Z",
        "2024-01-15T10:30:45ZZ",
        "0000-12-31T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2024-01-15T10:30:45,5Z",
        "0001-01-01T00:00:00+01:00",
        "２024-01-15T10:30:45Z",
    ] {
        check_value("ts", &format!("\"{text}\""), Err(": `"));
    }
    check_value("ts", "1705314645123", Ok("1705314645123000"));
    check_value("ts", "-1", Ok("-1000"));
    check_value("ts", "253402300800000", Err(": 253402300800000 ms is outside the years 0001 to 9999"));
    check_value("ts", "9223372036854775807", Err(": 9223372036854775807 ms is outside"));
    check_value("ts", "1.5", Err(": expected TIMESTAMP, but 1.5 has a fraction"));
    check_value("ts", "true", Err(": expected TIMESTAMP, found a boolean"));
}

#[test]
fn the_event_time_is_needed_and_not_far_ahead() {
    check(r#"{"id":"a"}"#, Err("column `ts`, the event time, is null or absent"));
    check(r#"{"id":"a","ts":null}"#, Err("column `ts`, the event time, is null or absent"));
    check_value("ts", "\"2024-01-15T10:31:45Z\"", Ok("1705314705000000"));
    check_value(
        "ts",
        "\"2024-01-15T10:31:45.000001Z\"",
        Err(
            ": 2024-01-15T10:31:45.000001Z is more than 60 s (`max_future`) ahead of the clock, which showed 2024-01-15T10:30:45Z",
        ),
    );
}

#[test]
fn an_event_time_is_not_too_far_back_by_the_records_own_time_whenever_it_is_read() {
    let table = Table { max_past: Some(60_000_000), ..(*table()).clone() };
    let record = |back: Micros| format!(r#"{{"id":"a","ts":"{}"}}"#, format_timestamp(LOG_TIME - back));
    let payloads: Payloads = [record(60_000_000), record(60_000_001)].iter().collect();
    for read_at in [None, Some(LOG_TIME + 3_600_000_000)] {
        let batch = Batch {
            partition: 0,
            coverage: 0..2,
            offsets: vec![0, 1],
            log_times: vec![LOG_TIME; 2],
            read_at,
            payloads: payloads.clone(),
            keys: None,
            headers: None,
            log_end: 2,
        };
        let decoded = Decoder::new(Arc::new(table.clone())).decode_batch(&batch);
        let reasons: Vec<_> = decoded.rejects.iter().map(|reject| (reject.index, reject.reason.as_str())).collect();
        let expected = "column `ts`: 2024-01-15T10:29:44.999999Z is more than 60 s (`max_past`) behind the clock, which showed \
                        2024-01-15T10:30:45Z";
        assert_eq!((decoded.kept, reasons), (vec![0], vec![(1, expected)]));
    }
}

#[test]
fn an_event_time_leaves_room_for_what_is_computed_from_it_and_other_times_need_none() {
    let mut table = Table { max_future: None, ..(*table()).clone() };
    table.columns.push(Column { name: "seen".to_owned(), data_type: DataType::Timestamp, nullable: true });
    let mut decoder = Decoder::new(Arc::new(table));
    let times = [
        "0200-01-01T00:00:00Z",
        "9799-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00Z",
        "0199-12-31T23:59:59.999999Z",
        "9800-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
    ];
    let records = times.map(|time| format!(r#"{{"id":"a","ts":"{time}"}}"#));
    let decoded = decoder.decode(&records.iter().collect(), &[LOG_TIME; 6]);
    assert_eq!(
        decoded.event_times(),
        [anabranch_plan::time::EVENT_TIMES.start, anabranch_plan::time::EVENT_TIMES.end - 1]
    );
    for (reject, time) in decoded.rejects.iter().zip(&times[2..]) {
        let expected = format!("column `ts`, the event time: {time} is outside the years 0200 to 9799");
        assert_eq!(reject.reason, expected);
    }
    let records = times.map(|time| format!(r#"{{"id":"a","ts":0,"seen":"{time}"}}"#));
    assert_eq!(decoder.decode(&records.iter().collect(), &[LOG_TIME; 6]).kept.len(), 6);
}

#[test]
fn of_a_repeated_key_the_last_counts() {
    check(r#"{"id":"a","ts":0,"id":"b"}"#, Ok(r#"["b",null,null,null,null,0]"#));
    check(r#"{"id":1,"ts":true,"ts":0,"id":"b"}"#, Ok(r#"["b",null,null,null,null,0]"#));
    check(r#"{"id":"a","ts":0,"bytes":1,"bytes":null}"#, Ok(r#"["a",null,null,null,null,0]"#));
    check(r#"{"id":"a","ts":0,"bytes":1,"bytes":"x"}"#, Err("column `bytes`: expected BIGINT, found a string"));
}

#[test]
fn a_decoder_carries_nothing_from_batch_to_batch() {
    let mut decoder = Decoder::new(table());
    let first = decoder.decode(&[r#"{"id":"\u0041","bytes":1,"ts":0}"#].iter().collect(), &[LOG_TIME]);
    let second = decoder.decode(&[r#"{"ts":1,"id":"\u0042"}"#, "{"].iter().collect(), &[LOG_TIME; 2]);
    assert_eq!(row(&first.batch, 0).to_string(), r#"["A",1,null,null,null,0]"#);
    assert_eq!(row(&second.batch, 0).to_string(), r#"["B",null,null,null,null,1000]"#);
    assert_eq!(second.event_times(), [1_000]);
    let none = decoder.decode(&Payloads::default(), &[]);
    assert_eq!((none.batch.num_rows(), none.batch.schema()), (0, arrow_schema(&table())));
}

/// Decodes a record slowly, with another parser and another reader of times.
fn slow(record: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(record).ok()?;
    let Json::Object(object) = serde_json::from_str::<Json>(text).ok()? else { return None };
    let cell = |column: &Column| {
        let value = object.get(&column.name).unwrap_or(&Json::Null);
        match (&column.data_type, value) {
            (_, Json::Null) => (column.nullable && column.name != "ts").then_some(Json::Null),
            (DataType::Text, Json::String(_)) | (DataType::Boolean, Json::Bool(_)) => Some(value.clone()),
            (DataType::BigInt, Json::Number(number)) => slow_integer(number).map(Json::from),
            (DataType::Double, Json::Number(number)) => number.as_f64().map(Json::from),
            (DataType::Json, value) => Some(value.clone()),
            (DataType::Timestamp, Json::Number(number)) => {
                let time = chrono::DateTime::from_timestamp_millis(slow_integer(number)?)?;
                (1..=9999).contains(&chrono::Datelike::year(&time)).then(|| time.timestamp_micros().into())
            }
            (DataType::Timestamp, Json::String(text)) => anabranch_plan::time::parse_timestamp(text).map(Json::from),
            _ => None,
        }
    };
    let cells = table().columns.iter().map(cell).collect::<Option<Vec<_>>>()?;
    let time = cells[5].as_i64()?;
    (anabranch_plan::time::EVENT_TIMES.contains(&time) && time <= LOG_TIME + 60_000_000).then_some(Json::Array(cells))
}

fn slow_integer(number: &serde_json::Number) -> Option<i64> {
    let float = number.as_f64().filter(|value| number.is_f64() && value.fract() == 0.0);
    number.as_i64().or_else(|| float.map(|value| value as i64))
}

/// Whether that parser has no exact idea of a number in a record.
fn is_rounded(value: &Json) -> bool {
    match value {
        Json::Number(number) => number.is_f64() && number.as_f64().is_some_and(|value| value.abs() > 1e9),
        Json::Array(items) => items.iter().any(is_rounded),
        Json::Object(entries) => entries.values().any(is_rounded),
        _ => false,
    }
}

/// A row with its JSON parsed, so that the two decoders can be compared.
fn comparable(batch: &RecordBatch, i: usize) -> Json {
    let mut cells = row(batch, i);
    if let Json::String(text) = &cells[4] {
        cells[4] = serde_json::from_str(text.strip_prefix("JSON ").expect("JSON")).expect("what is kept is JSON");
    }
    cells
}

fn value() -> impl Strategy<Value = Json> {
    let time =
        "[012][0-9]{3}-(0[1-9]|1[0-3])-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,9})?(Z|[+-]0[0-9]:30)";
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        (-1_000_i64..1_705_314_645_123).prop_map(Json::from),
        (-1_000_000_i32..1_000_000).prop_map(|eighths| Json::from(f64::from(eighths) / 8.0)),
        any::<String>().prop_map(Json::from),
        "[a-z\\\\\"é😀\n]{0,40}".prop_map(Json::from),
        time.prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::vec(("[a-z]{0,3}", inner), 0..4)
                .prop_map(|entries| Json::Object(entries.into_iter().collect())),
        ]
    })
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let text = "[ -~é😀]{0,30}".prop_map(Json::from);
    let time =
        "20[012][0-9]-0[1-9]-[0-2][0-9][T ][01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?Z".prop_map(Json::from);
    let key = prop::sample::select(vec!["id", "bytes", "price", "ok", "data", "ts", "other"]);
    let entries = (text, time, prop::collection::vec((key, value()), 0..6));
    let written = entries.prop_map(|(id, time, more)| {
        let mut entries = vec![("id", id), ("ts", time)];
        entries.extend(more);
        let entries = entries.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect::<Vec<_>>();
        format!("{{{}}}", entries.join(", ")).into_bytes()
    });
    let mutation = prop::option::of((
        any::<prop::sample::Index>(),
        0..3_u8,
        prop::sample::select(b"{}[]\":,\\u0e.-tn \n\x00\xff".to_vec()),
    ));
    (written, mutation).prop_map(|(mut record, mutation)| {
        if let Some((index, kind, byte)) = mutation {
            let at = index.index(record.len());
            match kind {
                0 => record[at] = byte,
                1 => record.insert(at, byte),
                _ => record.truncate(at),
            }
        }
        record
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_slow_decoder_agrees(records in prop::collection::vec(record(), 1..8)) {
        let records: Vec<_> =
            records.into_iter().filter(|record| !serde_json::from_slice(record).is_ok_and(|json| is_rounded(&json))).collect();
        let decoded = decode(&records);
        let expected = records.iter().map(|record| slow(record)).collect::<Vec<_>>();
        let kept = (0..).zip(&expected).filter(|(_, row)| row.is_some()).map(|(i, _)| i).collect::<Vec<u32>>();
        prop_assert_eq!(&decoded.kept, &kept, "{:?}", decoded.rejects);
        let tombstones = records.iter().filter(|record| record.is_empty()).count();
        prop_assert_eq!(decoded.kept.len() + decoded.rejects.len() + tombstones, records.len());
        for (i, expected) in expected.into_iter().flatten().enumerate() {
            prop_assert_eq!(comparable(&decoded.batch, i), expected);
        }
    }

    #[test]
    fn the_fast_path_for_times_agrees_with_chrono(
        text in "[0-9]{4}-(0[0-9]|1[0-3])-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,12})?Z"
    ) {
        let expected = chrono::DateTime::parse_from_rfc3339(&text).ok().map(|time| time.timestamp_micros());
        let expected = expected.filter(|_| !text.starts_with("0000"));
        prop_assert_eq!(time::from_text(&text), expected);
    }
}

#[test]
fn a_change_told_by_debezium_is_the_row_after_it() {
    let table = Table { format: anabranch_plan::schema::Format::DebeziumJson, ..(*table()).clone() };
    let row_of = r#"{"id":"a","bytes":7,"ts":1705314645000}"#;
    let source = r#""source":{"db":"shop","table":"events"},"ts_ms":1705314645123"#;
    let schema = r#""schema":{"type":"struct","fields":[{"field":"op"}]}"#;
    let records = [
        format!(r#"{{"before":null,"after":{row_of},"op":"c",{source}}}"#),
        format!(r#"{{{schema},"payload":{{"before":{row_of},"after":{row_of},"op":"u",{source}}}}}"#),
        format!(r#"{{"before":{row_of},"after":null,"op":"d",{source}}}"#),
        String::new(),
        format!(r#"{{"after":{row_of},"op":"r",{source}}}"#),
        row_of.to_owned(),
        format!(r#"{{"before":{row_of},"after":null,"op":"u",{source}}}"#),
        r#"{"op":"c","after":{"id":7,"ts":0}}"#.to_owned(),
        r#"{"op":"c","after":"#.to_owned(),
        r#"{"op":"x"}"#.to_owned(),
    ];
    let times = vec![LOG_TIME; records.len()];
    let decoded = Decoder::new(Arc::new(table)).decode(&records.iter().collect(), &times);
    assert_eq!(decoded.kept, [0, 1, 4], "the deletion and its tombstone make no row, and are not bad");
    for at in 0..3 {
        assert_eq!(row(&decoded.batch, at)[1], 7);
    }
    let reasons: Vec<(u32, &str)> = decoded.rejects.iter().map(|r| (r.index, r.reason.as_str())).collect();
    assert_eq!(reasons.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [5, 6, 7, 8, 9], "{reasons:?}");
    assert!(reasons[0].1.contains("there is no `op`"), "{reasons:?}");
    assert!(reasons[1].1.contains("without a row in `after`"), "{reasons:?}");
    assert!(reasons[2].1.starts_with("column `id`"), "{reasons:?}");
    assert!(reasons[4].1.contains("`op` is `x`"), "{reasons:?}");
}

#[test]
fn columns_of_the_log_are_filled_from_beside_the_record() {
    let column = |name: &str, data_type| Column { name: name.to_owned(), data_type, nullable: true };
    let columns = vec![
        column("id", DataType::Text),
        column("key", DataType::Text),
        column("headers", DataType::Json),
        column("ts", DataType::Timestamp),
    ];
    let table = Table { columns, event_time: 3, key: Some(1), headers: Some(2), ..(*table()).clone() };
    let record = r#"{"headers":{"not":"these"},"id":"a","key":"not this","ts":0}"#;
    let batch = Batch {
        log_times: vec![LOG_TIME; 5],
        payloads: Payloads::from_iter([record, record, "", record, "{"]),
        keys: Some(Payloads::from_iter([&b"one"[..], b"", b"\xff", b"tw\xff", b"two"])),
        headers: Some(Payloads::from_iter([r#"{"trace":"1"}"#, "", "", "", ""])),
        ..Batch::default()
    };
    let mut decoder = Decoder::new(Arc::new(table));
    let decoded = decoder.decode_batch(&batch);
    assert_eq!(decoded.kept, [0, 1], "the tombstone makes no row");
    let texts = |column: usize| decoded.batch.column(column).as_string_view().iter().collect::<Vec<_>>();
    assert_eq!((texts(0), texts(1)), (vec![Some("a"); 2], vec![Some("one"), None]));
    assert_eq!(texts(2), [Some(r#"{"trace":"1"}"#), None]);
    let rejects: Vec<_> = decoded.rejects.iter().map(|reject| (reject.index, reject.reason.as_str())).collect();
    assert_eq!((rejects[0], rejects[1].0, rejects.len()), ((3, "its key: not UTF-8 at byte 2"), 4, 2));
    let bare = decoder.decode(&batch.payloads, &batch.log_times);
    assert_eq!(bare.kept, [0, 1, 3]);
    assert_eq!((bare.batch.column(1).null_count(), bare.batch.column(2).null_count()), (3, 3));
}

#[test]
fn a_tombstone_is_neither_a_row_nor_bad() {
    let decoded = decode(&["", r#"{"id":"a","ts":0}"#, ""]);
    assert_eq!((decoded.kept, decoded.rejects), (vec![1], vec![]));
}

/// Texts that are JSON, or nearly.
fn nearly_json() -> impl Strategy<Value = String> {
    let key =
        prop::sample::select(vec!["id", "bytes", "price", "ok", "data", "ts", "other", "", "a\\\"b", "ü", "\\u0069d"]);
    let value = prop::sample::select(vec![
        "\"\"",
        "\"plain\"",
        "\"a longer string without escapes, ünïcode\"",
        "\"tab\\t\"",
        "\"\\u00e9\"",
        "\"raw\ttab\"",
        "0",
        "-0",
        "01",
        "7",
        "-12",
        "123456789012345678",
        "1234567890123456789",
        "99999999999999999999",
        "1.5",
        "1e3",
        "-",
        "true",
        "false",
        "null",
        "nul",
        "tru",
        "[1]",
        "{\"a\":1}",
        "[",
        "\"open",
        "\"\\\"\"",
        "\"{}\"",
        "2024-01-15",
    ]);
    let space = prop::sample::select(vec!["", "", "", " ", "\n", "\t ", "\r", "\u{b}"]);
    let pair = (space.clone(), key, space.clone(), value, space.clone())
        .prop_map(|(a, key, b, value, c)| format!("{a}\"{key}\"{b}:{c}{value}{a}"));
    let ends = (
        prop::sample::select(vec!["{", "{", "{", "{", "[", " {", "{,"]),
        prop::sample::select(vec!["}", "}", "}", "} ", "}}", "", ",}", "}x"]),
    );
    (prop::collection::vec(pair, 0..5), ends)
        .prop_map(|(pairs, (open, close))| format!("{open}{}{close}", pairs.join(",")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_without_the_parser_is_what_the_parser_reads(record in nearly_json()) {
        let layout = || Decoder::new(table()).layout;
        let (mut slots, mut parsed) = (vec![Slot::Null; 6], vec![Slot::Null; 6]);
        if plain::read(&record, &mut layout(), &mut slots) {
            let read = record::read(&record, &mut layout(), &mut parsed, &mut String::new());
            prop_assert_eq!(read, Ok(()), "{}", record);
            prop_assert_eq!(slots, parsed, "{}", record);
        }
    }
}

#[test]
fn the_plainest_records_need_no_parser() {
    let mut slots = vec![Slot::Null; 6];
    let record =
        r#" {"id" : "x", "bytes":-12,"ok":true,"price":null,"data":"a string of JSON","more":"ünïcode","ts":17}"#;
    assert!(plain::read(record, &mut Decoder::new(table()).layout, &mut slots));
    let expected = [
        Slot::Text("x"),
        Slot::Integer(-12),
        Slot::Null,
        Slot::Boolean(true),
        Slot::Json("\"a string of JSON\""),
        Slot::Integer(17),
    ];
    assert_eq!(slots, expected);
}

#[test]
fn columns_that_nobody_reads_are_checked_all_the_same() {
    let records = [r#"{"id":"a","bytes":1,"ts":0}"#, r#"{"id":"b","bytes":"none","ts":0}"#, r#"{"bytes":1,"ts":0}"#];
    let decoded =
        Decoder::reading(table(), |column| column == "price").decode(&records.iter().collect(), &[LOG_TIME; 3]);
    let names: Vec<String> = decoded.batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["price", "ts"]);
    assert_eq!((decoded.kept.as_slice(), decoded.rejects.len()), (&[0][..], 2));
    assert_eq!(decoded.event_times(), [0]);
}

#[test]
fn where_records_have_their_producers_times_what_is_too_far_ahead_is_told_by_the_readers_clock() {
    let future = LOG_TIME + 7_000 * 365 * 86_400 * 1_000_000;
    let record = |time: Micros| format!(r#"{{"id":"a","ts":"{}"}}"#, format_timestamp(time));
    let times = [LOG_TIME, LOG_TIME + 60_000_000, LOG_TIME + 60_000_001, future];
    // The second and the third producer's clock is wrong.
    let batch = |read_at| Batch {
        log_times: vec![LOG_TIME, 0, LOG_TIME, future],
        read_at,
        payloads: times.map(record).iter().collect(),
        ..Batch::default()
    };
    let mut decoder = Decoder::new(table());
    let mut kept = |read_at| {
        let decoded = decoder.decode_batch(&batch(read_at));
        let early = decoded.rejects.iter().filter(|reject| reject.early.is_some()).map(|reject| reject.index);
        (decoded.kept, early.collect::<Vec<_>>())
    };
    assert_eq!(kept(Some(LOG_TIME)), (vec![0, 1], vec![2]), "a later reader may take the third");
    assert_eq!(kept(Some(LOG_TIME + 1)), (vec![0, 1, 2], vec![]), "as this one does");
    assert_eq!(kept(None), (vec![0, 3], vec![]), "the log's times, by which all readers decide alike");
}
