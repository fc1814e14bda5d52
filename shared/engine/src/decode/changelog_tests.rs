//! Records of changelogs: versions of rows, and deletions in all their spellings.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType as ArrowType, Int64Type, TimestampMicrosecondType};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::partitioner::record_keys;

/// 2024-01-15T10:30:45Z, when the log takes records in these tests.
const LOG_TIME: Micros = 1_705_314_645_000_000;

fn table_with(columns: &str, options: &str) -> Arc<Table> {
    let text = format!("CREATE TABLE users ({columns}) WITH (event_time = 'ts'{options});");
    let catalog = anabranch_plan::sql::plan(&[("t.sql".to_owned(), text)]);
    catalog.unwrap_or_else(|errors| panic!("{}", errors[0])).tables["users"].clone()
}

fn users() -> Arc<Table> {
    table_with("id TEXT PRIMARY KEY, name TEXT NOT NULL, ts TIMESTAMP", "")
}

fn batch<'a>(records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Batch {
    let (payloads, keys): (Vec<_>, Vec<_>) = records.into_iter().unzip();
    Batch {
        log_times: vec![LOG_TIME; payloads.len()],
        payloads: payloads.into_iter().collect(),
        keys: Some(keys.into_iter().collect()),
        ..Batch::default()
    }
}

/// A batch's rows, each a list of its cells.
fn rows(batch: &RecordBatch) -> Vec<Value> {
    let cell = |array: &ArrayRef, row: usize| match array.data_type() {
        _ if array.is_null(row) => Value::Null,
        ArrowType::Utf8View => array.as_string_view().value(row).into(),
        ArrowType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        ArrowType::Boolean => array.as_boolean().value(row).into(),
        _ => array.as_primitive::<TimestampMicrosecondType>().value(row).into(),
    };
    let row = |row: usize| batch.columns().iter().map(|array| cell(array, row)).collect::<Vec<_>>().into();
    (0..batch.num_rows()).map(row).collect()
}

/// What a record with a key makes of a table: a row, or the reason why none.
#[track_caller]
fn one(table: &Arc<Table>, payload: &str, key: impl AsRef<[u8]>) -> Result<Value, String> {
    let mut decoded = Decoder::new(table.clone()).decode_batch(&batch([(payload.as_bytes(), key.as_ref())]));
    match rows(&decoded.batch).pop() {
        Some(row) => Ok(row),
        None => Err(decoded.rejects.pop().map_or_else(|| "nothing".to_owned(), |reject| reject.reason)),
    }
}

#[test]
fn a_record_is_a_version_of_a_row_or_deletes_it() {
    for (payload, key, expected) in [
        (r#"{"id":"a","name":"x","ts":1}"#, "", json!(["a", "x", 1_000, false])),
        (r#"{"id":"a","name":"x","ts":1}"#, "b", json!(["a", "x", 1_000, false])),
        (r#"{"id":"a","name":"x","ts":1,"__deleted":false}"#, "", json!(["a", "x", 1_000, false])),
        (r#"{"id":"a","name":"x","ts":1,"__deleted":null}"#, "", json!(["a", "x", 1_000, false])),
        (r#"{"id":"a","name":"x","ts":1,"__deleted":true,"__deleted":false}"#, "", json!(["a", "x", 1_000, false])),
        ("", "a", json!(["a", null, LOG_TIME, true])),
        (r#"{"id":"a","__deleted":true}"#, "", json!(["a", null, LOG_TIME, true])),
        (
            r#"{"__deleted":true,"id":"\u0061","name":null,"ts":null,"more":[1]}"#,
            "",
            json!(["a", null, LOG_TIME, true]),
        ),
        (r#"{"id":"a","__deleted":true,"ts":5}"#, "b", json!(["a", null, 5_000, true])),
        // As Debezium's `rewrite` has it.
        (r#"{"id":"a","name":"x","ts":1,"__deleted":"false"}"#, "", json!(["a", "x", 1_000, false])),
        (r#"{"id":"a","name":"x","ts":1,"__deleted":"true"}"#, "", json!(["a", "x", 1_000, true])),
    ] {
        assert_eq!(one(&users(), payload, key), Ok(expected), "{payload}");
    }
    for (payload, expected) in [
        (r#"{"id":"a","ts":1}"#, "column `name` is null or absent, but NOT NULL"),
        (r#"{"name":"x","ts":1}"#, "column `id` is null or absent, but NOT NULL"),
        (r#"{"id":"a","name":"x"}"#, "column `ts` is null or absent, but NOT NULL"),
        (r#"{"id":null,"__deleted":true}"#, "column `id` is null or absent, but NOT NULL"),
        (r#"{"name":"x","__deleted":true}"#, "column `id` is null or absent, but NOT NULL"),
        (r#"{"id":7,"__deleted":true}"#, "column `id`: expected TEXT, found a number"),
        (r#"{"id":"a","name":7,"__deleted":true}"#, "column `name`: expected TEXT, found a number"),
        (r#"{"id":"a","__deleted":"yes"}"#, "`__deleted`: expected BOOLEAN, found a string"),
        (r#"{"id":"a","__deleted":1}"#, "`__deleted`: expected BOOLEAN, found a number"),
        (r#"{"id":"a","__deleted":{}}"#, "`__deleted`: expected BOOLEAN, found an object"),
        // As some sinks write a deletion by mistake.
        ("null", "expected an object, found null"),
        (
            "",
            r#"a deletion is of the row that the record's key names, and the record has none; a key is the text of `id`, or {"id": …}"#,
        ),
    ] {
        assert_eq!(one(&users(), payload, ""), Err(expected.to_owned()), "{payload}");
    }
    let stream = table_with("id TEXT, name TEXT, ts TIMESTAMP", "");
    assert_eq!(one(&stream, "", "a"), Err("nothing".to_owned()), "a tombstone is nothing to a stream");
    let deleted = one(&stream, r#"{"id":"a","ts":1,"__deleted":"yes"}"#, "a");
    assert_eq!(deleted, Ok(json!(["a", null, 1_000])), "a key that names no column");
}

/// Checks which row the key of a tombstone names, by the table's primary key, or a part of the reason why none.
#[track_caller]
fn check_key(columns: &str, key: impl AsRef<[u8]>, expected: Result<Value, &str>) {
    let table = table_with(&format!("{columns}, name TEXT NOT NULL, ts TIMESTAMP"), "");
    let (actual, keys) = (one(&table, "", &key), table.primary_key.len());
    let key = String::from_utf8_lossy(key.as_ref());
    match (actual, expected) {
        (Ok(row), Ok(expected)) => {
            let row = row.as_array().expect("cells");
            assert_eq!(Value::from(&row[..keys]), expected, "{key}");
            assert_eq!(row[keys..], [Value::Null, LOG_TIME.into(), true.into()], "{key}");
        }
        (Err(reason), Err(expected)) => {
            assert!(reason.contains(expected), "{key}: {reason}");
            assert!(reason.starts_with("a deletion is of the row that the record's key names, and `"), "{reason}");
        }
        (actual, expected) => panic!("{key}: {actual:?}, {expected:?}"),
    }
}

#[test]
fn a_tombstones_key_is_plain_text_or_json() {
    let text = "id TEXT PRIMARY KEY";
    for plain in ["a", "ünï çödé 🦀", "17", "null", "true", "[1]", " a ", "a\"b", "a{b}"] {
        check_key(text, plain, Ok(json!([plain])));
    }
    check_key(text, r#""a""#, Ok(json!(["a"])));
    check_key(text, r#""\u0061\n""#, Ok(json!(["a\n"])));
    check_key(text, r#"{"id":"a"}"#, Ok(json!(["a"])));
    check_key(text, r#"{"id":"\u0061","name":"no part of the key","ts":7,"__deleted":"yes"}"#, Ok(json!(["a"])));
    let schema = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"}]}"#;
    check_key(text, format!(r#"{{"schema":{schema},"payload":{{"id":"a"}}}}"#), Ok(json!(["a"])));
    check_key(
        text,
        r#"{"ID":"a"}"#,
        Err(r#"column `id` is null or absent, but NOT NULL; a key is the text of `id`, or {"id": …}"#),
    );
    check_key(text, r#"{"id":7}"#, Err("column `id`: expected TEXT, found a number"));
    check_key(text, r#"{"id":"#, Err("not JSON at byte"));
    check_key(text, r#""a"#, Err("not JSON at byte"));
    check_key(text, b"\xff\xfe", Err("not UTF-8 at byte 0"));
    // As a schema registry's serializer writes it.
    check_key(text, b"\0\0\0\0\x05\x02a", Err("it begins with a zero byte"));

    let number = "id BIGINT PRIMARY KEY";
    for (key, value) in
        [("17", 17), ("-1", -1), ("0", 0), ("-0", 0), ("1e3", 1_000), ("5.0", 5), (r#"{"id":17.0}"#, 17)]
    {
        check_key(number, key, Ok(json!([value])));
    }
    check_key(number, i64::MIN.to_string(), Ok(json!([i64::MIN])));
    check_key(number, "5.5", Err("5.5 has a fraction"));
    check_key(number, r#"{"id":5.5}"#, Err("5.5 has a fraction; a key is"));
    check_key(number, "9223372036854775808", Err("is beyond 64 bits"));
    check_key(number, "null", Err("column `id` is null or absent"));
    for wrong in ["007", "abc", r#""17""#, "+17", "17 18"] {
        check_key(number, wrong, Err("column `id`: expected BIGINT, found a string"));
    }
    check_key(number, 17_i64.to_be_bytes(), Err("it begins with a zero byte"));

    check_key("ok BOOLEAN PRIMARY KEY", "true", Ok(json!([true])));
    check_key("ok BOOLEAN PRIMARY KEY", "yes", Err("column `ok`: expected BOOLEAN, found a string"));
    check_key("at TIMESTAMP PRIMARY KEY", "2024-01-15T10:30:45Z", Ok(json!([LOG_TIME])));
    check_key("at TIMESTAMP PRIMARY KEY", "1705314645000", Ok(json!([LOG_TIME])));
    check_key("at TIMESTAMP PRIMARY KEY", "monday", Err("`monday` is no RFC 3339 time"));

    let several = "a BIGINT, b TEXT, PRIMARY KEY (b, a)";
    check_key(several, r#"{"b":"x","a":1}"#, Ok(json!([1, "x"])));
    check_key(several, r#"{"b":"x"}"#, Err(r#"column `a` is null or absent, but NOT NULL; a key is {"b": …, "a": …}"#));
    check_key(several, "x", Err("it is no JSON object"));
    check_key(several, "{b=x, a=1}", Err("not JSON at byte"));
}

#[test]
fn of_a_deletion_all_may_be_null_but_its_key_and_its_time() {
    let nullable = |table: &Table| {
        let schema = arrow_schema(table);
        schema.fields().iter().map(|field| (field.name().clone(), field.is_nullable())).collect::<Vec<_>>()
    };
    let expected = [("id", false), ("name", true), ("ts", false), ("__deleted", false)];
    assert_eq!(nullable(&users()), expected.map(|(name, nullable)| (name.to_owned(), nullable)));
    let stream = table_with("id TEXT NOT NULL, name TEXT NOT NULL, ts TIMESTAMP", "");
    let expected = ["id", "name", "ts"].map(|name| (name.to_owned(), false));
    assert_eq!(nullable(&stream), expected);
    assert_eq!((extras(&users()).keys, extras(&stream).keys), (true, false));
}

#[test]
fn whatever_is_read_of_a_changelog_its_key_time_and_deletions_are_made() {
    let table = table_with("name TEXT, id TEXT PRIMARY KEY, more BIGINT, ts TIMESTAMP", "");
    let records = [r#"{"id":"a","name":"x","ts":1}"#, "", r#"{"id":"b","more":"none","ts":1}"#];
    let records = batch(records.iter().map(|record| (record.as_bytes(), &b"a"[..])));
    let decoded = Decoder::reading(table.clone(), |_| false).decode_batch(&records);
    let schema = decoded.batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["id", "ts", DELETED]);
    assert_eq!(rows(&decoded.batch), [json!(["a", 1_000, false]), json!(["a", LOG_TIME, true])]);
    assert_eq!((decoded.event_times(), decoded.rejects.len()), (&[1_000, LOG_TIME][..], 1));
}

#[test]
fn a_key_column_is_filled_from_a_tombstone_too() {
    let table = table_with("id TEXT PRIMARY KEY, k TEXT, ts TIMESTAMP", ", key = 'k'");
    assert_eq!(one(&table, "", r#"{"id":"a"}"#), Ok(json!(["a", r#"{"id":"a"}"#, LOG_TIME, true])));
    assert_eq!(one(&table, r#"{"id":"a","__deleted":true}"#, "b"), Ok(json!(["a", "b", LOG_TIME, true])));
}

#[test]
fn debezium_deletes_by_the_records_key_and_at_the_records_time() {
    let table = table_with("id BIGINT PRIMARY KEY, state TEXT NOT NULL, ts TIMESTAMP", ", format = 'debezium-json'");
    let row = r#"{"id":1,"state":"new","ts":1}"#;
    let change = |op: &str, before: &str, after: &str| format!(r#"{{"op":"{op}","before":{before},"after":{after}}}"#);
    let key = r#"{"id":1}"#;
    assert_eq!(one(&table, &change("c", "null", row), key), Ok(json!([1, "new", 1_000, false])));
    let deleted = json!([1, null, LOG_TIME, true]);
    // What was before may be all of the row, its key alone, or nothing.
    for before in [row, r#"{"id":1,"state":"","ts":0}"#, "null"] {
        assert_eq!(one(&table, &change("d", before, "null"), key), Ok(deleted.clone()), "{before}");
    }
    assert_eq!(one(&table, "", key), Ok(deleted), "and the tombstone behind it says the same");
    let reason = one(&table, &change("d", row, "null"), "").expect_err("no key");
    assert!(reason.ends_with(r#"the record has none; a key is the text of `id`, or {"id": …}"#), "{reason}");
    let truncated = one(&table, r#"{"op":"t"}"#, "");
    assert_eq!(truncated, Err("a truncation of Debezium's: rows are deleted by their keys only".to_owned()));
    assert_eq!(one(&table, r#"{"op":"m"}"#, ""), Err("nothing".to_owned()));
}

#[test]
fn a_tombstone_whose_producer_is_ahead_of_its_reader_is_early_as_any_event_is() {
    let ahead = LOG_TIME + 3_600_000_000;
    let records = batch([(&b""[..], &b"a"[..])]);
    let records = Batch { log_times: vec![ahead], read_at: Some(LOG_TIME), ..records };
    let decoded = Decoder::new(users()).decode_batch(&records);
    assert_eq!((decoded.kept.len(), decoded.rejects[0].early), (0, Some(ahead)), "{:?}", decoded.rejects);
    let later = Batch { read_at: Some(ahead), ..records };
    assert_eq!(rows(&Decoder::new(users()).decode_batch(&later).batch), [json!(["a", null, ahead, true])]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_spellings_of_a_deletion_are_one(
        id in prop_oneof![any::<String>(), "[\"{}\\\\:a\u{0}ü0-9.e-]{0,6}"],
        n in any::<i64>(),
        ok in any::<bool>(),
    ) {
        for primary_key in ["id", "n", "at", "ok", "n, id", "ok, at, id"] {
            let columns = "id TEXT, n BIGINT, at TIMESTAMP, ok BOOLEAN, name TEXT NOT NULL, ts TIMESTAMP";
            let table = table_with(&format!("{columns}, PRIMARY KEY ({primary_key})"), "");
            let all = json!({"id": id, "n": n, "at": n.rem_euclid(1 << 40), "ok": ok, DELETED: true});
            let mut object = all.clone();
            let is_said = |name: &String| name == DELETED || primary_key.split(", ").any(|column| column == name);
            object.as_object_mut().expect("an object").retain(|name, _| is_said(name));
            let object = object.to_string();
            let decode = |payload: &str, key: &str| {
                Decoder::new(table.clone()).decode_batch(&batch([(payload.as_bytes(), key.as_bytes())]))
            };
            let by_object = decode(&object, "");
            prop_assert_eq!(by_object.batch.num_rows(), 1, "{}: {:?}", object, by_object.rejects);
            let key = record_keys(&by_object.batch, &table).expect("keys")[0].clone().expect("a key");
            let by_key = decode("", &key);
            prop_assert_eq!(&by_key.batch, &by_object.batch, "{}: {} {:?}", object, key, by_key.rejects);
        }
    }
}
