//! Records in, an output's records out: through the decoder, the row work and the rendering that the layers use.

use anabranch_log::Payloads;
use anabranch_plan::schema::DataType;
use anabranch_plan::sql;
use anabranch_plan::time::Micros;
use polars::prelude::IntoLazy;

use crate::columnar::to_polars;
use crate::decode::Decoder;
use crate::render::Rows;
use crate::row::Records;

const TABLE: &str =
    "CREATE TABLE orders (id BIGINT, kind TEXT, text TEXT, price DOUBLE, paid BOOLEAN, extra JSON, ts TIMESTAMP)
    WITH (event_time = 'ts');";

/// What `SELECT …` makes of records.
fn written(select: &str, records: &[&str]) -> Vec<String> {
    let view = format!("{TABLE} CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS {select}");
    let catalog = sql::plan(&[("v.sql".to_owned(), view)]).unwrap_or_else(|errors| panic!("{errors:?}"));
    let view = &catalog.views["v"];
    let payloads: Payloads = records.iter().collect();
    let decoded = Decoder::new(view.table().clone()).decode(&payloads, &vec![Micros::MAX; payloads.len()]);
    let rows = Records::new(&view.rows).of(to_polars(&decoded.batch).expect("a frame").lazy()).collect().expect("rows");
    let is_json =
        |name: &str| view.rows.schema().iter().any(|column| column.name == name && column.data_type == DataType::Json);
    let rows = Rows::of(&rows).expect("cells").with_json(is_json);
    let record = |row| {
        let mut record = Vec::new();
        rows.write_json_object(row, |_| true, &mut record);
        String::from_utf8(record).expect("text")
    };
    (0..rows.height()).map(record).collect()
}

#[test]
fn filter_map_and_flat_map_keep_the_order() {
    let records = [
        r#"{"id":1,"kind":"purchase","text":"The quick, quick fox","ts":"2024-01-15T10:00:00Z"}"#,
        r#"{"id":2,"kind":"view","text":"jumps","ts":"2024-01-15T10:00:01Z"}"#,
        r#"{"id":3,"kind":"purchase","text":"","ts":"2024-01-15T10:00:02Z"}"#,
        r#"not a record"#,
        r#"{"id":4,"kind":null,"text":null,"ts":"2024-01-15T10:00:03Z"}"#,
        r#"{"id":5,"kind":"purchase","text":"Ende","ts":"2024-01-15T10:00:04Z"}"#,
    ];
    let filtered = written("SELECT id FROM orders WHERE kind = 'purchase'", &records);
    assert_eq!(filtered, [r#"{"id":1}"#, r#"{"id":3}"#, r#"{"id":5}"#]);
    let mapped =
        written("SELECT id * 10 AS ten, upper(kind) AS kind, 'order' AS what FROM orders WHERE id > 3", &records);
    assert_eq!(mapped, [r#"{"ten":40,"kind":null,"what":"order"}"#, r#"{"ten":50,"kind":"PURCHASE","what":"order"}"#]);
    let words = "CROSS JOIN UNNEST(regexp_extract_all(lower(text), '\\w+')) AS w(word)";
    let all = written(&format!("SELECT id, word FROM orders {words}"), &records);
    let expected = [(1, "the"), (1, "quick"), (1, "quick"), (1, "fox"), (2, "jumps"), (5, "ende")];
    assert_eq!(all, expected.map(|(id, word)| format!(r#"{{"id":{id},"word":"{word}"}}"#)));
    let some =
        written(&format!("SELECT word FROM orders {words} WHERE word LIKE '%e' AND kind = 'purchase'"), &records);
    assert_eq!(some, [r#"{"word":"the"}"#, r#"{"word":"ende"}"#]);
    assert!(written("SELECT id, 'x' AS x FROM orders WHERE id > 100", &records).is_empty());
}

#[test]
fn values_are_rendered_as_in_answers() {
    let records = [
        "{\"id\":-9223372036854775808,\"text\":\"Größe \\\"💥\\\"\\n\",\"price\":0.1,\"paid\":true,\"extra\":{ \"a\" : [1.0,\n \"b\"] },\"ts\":\"1969-12-31T23:59:59.999999Z\"}",
        r#"{"id":1,"text":"\u0000\ud83d\ude00","price":1e300,"paid":false,"extra":"ä\n","ts":-55855785600000}"#,
        r#"{"ts":"0200-01-01T00:00:00Z"}"#,
    ];
    let all = written("SELECT id, text, price, paid, extra, ts FROM orders", &records);
    let expected = [
        r#"{"id":-9223372036854775808,"text":"Größe \"💥\"\n","price":0.1,"paid":true,"extra":{ "a" : [1.0,  "b"] },"ts":"1969-12-31T23:59:59.999999Z"}"#,
        "{\"id\":1,\"text\":\"\\u0000😀\",\"price\":1e+300,\"paid\":false,\"extra\":\"ä\\n\",\"ts\":\"0200-01-01T00:00:00Z\"}",
        r#"{"id":null,"text":null,"price":null,"paid":null,"extra":null,"ts":"0200-01-01T00:00:00Z"}"#,
    ];
    assert_eq!(all, expected);
    for record in &all {
        assert!(serde_json::from_str::<serde_json::Value>(record).is_ok() && !record.contains('\n'), "{record}");
    }
    let numbers = written("SELECT id / 0 AS nothing, price * 1e10 AS large FROM orders WHERE id = 1", &records);
    assert_eq!(numbers, [r#"{"nothing":null,"large":"Infinity"}"#], "what is no finite number is a text");
    let cast = written(
        "SELECT CAST(text AS JSON) AS extra, extra ->> 'a' AS a FROM orders",
        &[r#"{"text":"{\"b\":[]}","extra":{"a":"x"},"ts":0}"#, r#"{"text":"{\"b\":","extra":{"a":{"c":1}},"ts":0}"#],
    );
    assert_eq!(
        cast,
        [r#"{"extra":{"b":[]},"a":"x"}"#, r#"{"extra":null,"a":"{\"c\":1}"}"#],
        "a text that is no JSON is null"
    );
}
