//! Every operator and every scalar function over edge values of its types, in both layers, against DuckDB's SQL over the same
//! events.

use std::collections::BTreeMap;

use duckdb::Connection;
use duckdb::types::Value as Cell;
use serde_json::{Value, json};

use crate::support::{Project, Server};

const WHOLE: [Option<i64>; 13] = [
    None,
    Some(0),
    Some(1),
    Some(-1),
    Some(7),
    Some(2_147_483_647),
    Some(2_147_483_648),
    Some(-2_147_483_649),
    Some(9_007_199_254_740_992),
    Some(9_007_199_254_740_993),
    Some(i64::MAX),
    Some(i64::MIN + 1),
    Some(i64::MIN),
];
/// Their sums, differences and products have 64 bits.
const SMALL: [Option<i64>; 7] =
    [None, Some(0), Some(3), Some(-4), Some(2_147_483_647), Some(-2_147_483_648), Some(1_000_000_007)];
const DOUBLE: [Option<f64>; 16] = [
    None,
    Some(0.0),
    Some(-0.0),
    Some(1.0),
    Some(-1.5),
    Some(2.5),
    Some(3.5),
    Some(0.1),
    Some(0.49999999999999994),
    Some(-4503599627370497.5),
    Some(9007199254740992.0),
    Some(1e17),
    Some(-1e-7),
    Some(1.7976931348623157e308),
    Some(5e-324),
    Some(9223372036854775807.0),
];
const TRUTH: [Option<bool>; 3] = [None, Some(true), Some(false)];
const TEXT: [Option<&str>; 27] = [
    None,
    Some(""),
    Some(" "),
    Some("a"),
    Some("abc"),
    Some("ABC abc"),
    Some(" a b "),
    Some("\ta\n"),
    Some("größer"),
    Some("日本語 text"),
    Some("#one #two,#three"),
    Some("a42b43"),
    Some("a.c"),
    Some("a%c_d\\e"),
    Some(",a,,b,"),
    Some("42"),
    Some(" -42 "),
    Some("+7"),
    Some("9223372036854775807"),
    Some("9223372036854775808"),
    Some("1.5"),
    Some("1e10"),
    Some("-Infinity"),
    Some("true"),
    Some("No"),
    Some("2024-02-29"),
    Some("2024-02-29 23:59:59.999999"),
];
const TIME: [Option<&str>; 12] = [
    None,
    Some("1970-01-01T00:00:00Z"),
    Some("1969-12-31T23:59:59.999999Z"),
    Some("2024-02-29T12:34:56.789Z"),
    Some("2023-12-31T23:59:59Z"),
    Some("2024-01-01T00:00:00Z"),
    Some("2000-03-01T00:00:00.000001Z"),
    Some("1900-03-01T06:00:00Z"),
    Some("0400-02-29T01:02:03Z"),
    Some("9700-12-31T23:59:59.999999Z"),
    Some("2038-01-19T03:14:08Z"),
    Some("1582-10-10T10:10:10Z"),
];
const JSON: [Option<&str>; 9] = [
    None,
    Some("null"),
    Some("5"),
    Some(r#"{"a":1}"#),
    Some(r#"{"a":"t\u00e9\n","b":[1,{"c":"x"}]}"#),
    Some(r#"{"a":123456789012345678901234567890}"#),
    Some(r#"{"a":true,"b":[]}"#),
    Some(r#"{"a":null,"b":[[2],3]}"#),
    Some(r#"{"a":{"b":["x","y"]},"a b":"z"}"#),
];
/// As many as there are pairs of the longest two columns that are drawn in pairs.
const EVENTS: usize = 256;

fn event(n: usize) -> Value {
    let json: Value = JSON[n % JSON.len()].map_or(Value::Null, |text| serde_json::from_str(text).expect("JSON"));
    let mut event = json!({
        "n": n,
        "v": WHOLE[n % 13], "w": WHOLE[n / 13 % 13],
        "i": SMALL[n % 7], "k": SMALL[n / 7 % 7],
        "d": DOUBLE[n % 16], "e": DOUBLE[n / 16 % 16],
        "b": TRUTH[n % 3], "c": TRUTH[n / 3 % 3],
        "s": TEXT[n % 27], "t": TEXT[n / 27 * 5 % 27],
        "time": TIME[n % 12],
        "ts": "2024-01-15T10:00:00Z",
    });
    // The number of many digits goes as it is, which no value of this library's is.
    event["j"] = json;
    event
}

/// The event as it is posted.
fn line(n: usize) -> String {
    let mut event = event(n);
    let json = JSON[n % JSON.len()].unwrap_or("null");
    event.as_object_mut().expect("an object").remove("j");
    let text = event.to_string();
    format!("{},\"j\":{json}}}", &text[..text.len() - 1])
}

/// What is computed, as both write it.
const SAME: &[&str] = &[
    // Constants, of every size.
    "1",
    "60::BIGINT*60*24*365*1000",
    "9223372036854775807",
    "'x'",
    "TRUE",
    "CASE WHEN b THEN 1 ELSE 0 END",
    "CASE WHEN b THEN 2000000000 ELSE 1 END * 2::BIGINT",
    "CASE WHEN b THEN 5000000000 ELSE i END",
    "CASE WHEN b THEN 1 ELSE 0.5::DOUBLE END",
    "i * (60::BIGINT*60*24*1000)",
    "abs(-5)",
    "-(-2147483648)",
    // Arithmetic.
    "i + k",
    "i - k",
    "i * k",
    "-i",
    "i + 3000000000",
    "3000000000 - k",
    "d + e",
    "d - e",
    "d * e",
    "-d",
    "d + i",
    "i * d",
    "v % 7",
    "7 % i",
    "i % k",
    "v % 9007199254740993",
    "d % 3",
    "1e17::DOUBLE % 3.0::DOUBLE",
    // Comparisons.
    "v = w",
    "v <> w",
    "v < w",
    "v <= w",
    "v > w",
    "v >= w",
    "d = e",
    "d <> e",
    "d < e",
    "d <= e",
    "d > e",
    "d >= e",
    "s = t",
    "s < t",
    "s >= t",
    "b = c",
    "b <> c",
    "time = TIMESTAMP '2024-01-01'",
    "time < TIMESTAMP '2000-01-01'",
    "time >= TIMESTAMP '1970-01-01'",
    "v = d",
    "v < d",
    "v > 9007199254740992.5",
    "v <= 9007199254740992.5",
    "v = 7.0",
    "v <> 7.5",
    "7.5 > v",
    "v BETWEEN -1.5 AND 7.5",
    "v > 60::BIGINT*60*24*30*1000",
    "v BETWEEN 0 AND 2147483648",
    "v NOT BETWEEN w AND 7",
    "s BETWEEN 'a' AND 'b'",
    "d BETWEEN -1 AND 2.5",
    // Truth.
    "NOT b",
    "b AND c",
    "b OR c",
    "b AND NULL",
    "b OR NULL",
    "b IS TRUE",
    "b IS NOT TRUE",
    "b IS FALSE",
    "b IS NULL",
    "v IS NULL",
    "s IS NOT NULL",
    // Lists.
    "v IN (1, 7, 2147483648)",
    "v IN (1, NULL)",
    "v NOT IN (1, NULL)",
    "v IN (w, 7)",
    "v IN (9007199254740992, 1.5)",
    "d IN (0, 2.5, 1e17)",
    "d NOT IN (e, 1)",
    "s IN ('abc', '', '42')",
    "s NOT IN ('abc', NULL)",
    "b IN (TRUE)",
    "time IN (TIMESTAMP '2024-01-01', TIMESTAMP '1970-01-01')",
    "i IN (1.5)",
    // Choices.
    "coalesce(v, w, 5)",
    "coalesce(s, t, 'none')",
    "coalesce(d, 1.5)",
    "coalesce(time, TIMESTAMP '2024-01-01') = TIMESTAMP '2024-01-01'",
    "nullif(v, w)",
    "nullif(v, 7)",
    "nullif(s, t)",
    "nullif(d, 0)",
    "CASE v WHEN 1 THEN 'one' WHEN 7 THEN 'seven' ELSE s END",
    "CASE WHEN v > 0 THEN v WHEN d > 0 THEN 0 END",
    "CASE s WHEN 'abc' THEN 1 END",
    "CASE WHEN NULL THEN 1 ELSE 2 END",
    // Texts.
    "s || t",
    "s || '-' || 'x'",
    "lower(s)",
    "upper(replace(s, 'ß', 'ss'))",
    "length(s)",
    "trim(s)",
    "substring(s, 1, 2)",
    "substring(s, 3)",
    "substring(s, 2, 0)",
    "replace(s, 'a', 'xyz')",
    "replace(s, ' ', '')",
    "starts_with(s, 'a')",
    "ends_with(s, 'c')",
    "contains(s, 'b')",
    "contains(s, '')",
    "s LIKE 'a%'",
    "s LIKE '%b%'",
    "s LIKE 'a_c'",
    "s NOT LIKE '%a%'",
    "s ILIKE 'A%'",
    "s LIKE ''",
    "s LIKE 'a.c'",
    "regexp_matches(s, '[0-9]+')",
    "regexp_matches(s, '^a')",
    "regexp_extract(s, '[a-z]+')",
    "regexp_extract(s, '([a-z])([0-9]+)', 2)",
    "regexp_replace(s, '([0-9]+)', '\\1px')",
    "regexp_replace(s, '([0-9]+)', '<\\0>', 'g')",
    "regexp_replace(s, '[a-z]', '', 'g')",
    "regexp_replace(s, 'x*', '-', 'g')",
    "lower('ABC')",
    "length('größer')",
    "substring('abc', 2)",
    // Numbers.
    "abs(i)",
    "abs(d)",
    "round(d)",
    "floor(d)",
    "ceil(d)",
    "round(v)",
    // Casts.
    "CAST(v AS DOUBLE)",
    "CAST(v AS TEXT)",
    "CAST(b AS TEXT)",
    "CAST(b AS BIGINT)",
    "TRY_CAST(d AS BIGINT)",
    "TRY_CAST(s AS DOUBLE)",
    // Times.
    "extract(year FROM time)",
    "extract(month FROM time)",
    "extract(day FROM time)",
    "extract(hour FROM time)",
    "extract(minute FROM time)",
    "extract(second FROM time)",
];

/// What is computed, as we write it and as DuckDB does.
const OTHER: &[(&str, &str)] = &[
    // Of a whole number both give it back; DuckDB by way of a DOUBLE.
    ("floor(v)", "v"),
    ("ceil(v)", "v"),
    // A zero in an event's JSON has no sign.
    ("CAST(d AS TEXT)", "CASE WHEN d = 0 THEN '0.0' ELSE CAST(d AS TEXT) END"),
    // What PostgreSQL refuses is null here.
    ("i / k", "i / nullif(k, 0)"),
    ("d / e", "d / nullif(e, 0)"),
    ("d % e", "d % nullif(e, 0)"),
    ("i % 0", "NULL"),
    ("v % -1", "v % 1"),
    ("CAST(s AS BIGINT)", "CASE WHEN regexp_full_match(s, '\\s*[-+]?[0-9]+\\s*') THEN TRY_CAST(s AS BIGINT) END"),
    ("CAST(s AS BOOLEAN)", "CASE WHEN lower(s) IN ('true', 'no', 'a') THEN TRY_CAST(s AS BOOLEAN) END"),
    (
        "CAST(s AS TIMESTAMP) = TIMESTAMP '2024-02-29'",
        "TRY_CAST(nullif(s, '-Infinity') AS TIMESTAMP) = TIMESTAMP '2024-02-29'",
    ),
    (
        "CAST(s AS TIMESTAMP) > TIMESTAMP '2024-02-29'",
        "TRY_CAST(nullif(s, '-Infinity') AS TIMESTAMP) > TIMESTAMP '2024-02-29'",
    ),
    ("s LIKE 'a\\%%'", "s LIKE 'a!%%' ESCAPE '!'"),
    ("s LIKE '%\\\\e'", "ends_with(s, '\\e')"),
    ("regexp_replace(s, '([0-9]+)', '$1px')", "regexp_replace(s, '([0-9]+)', '\\1px')"),
    ("regexp_replace(s, '([a-z])([0-9])', '$2$1', 'g')", "regexp_replace(s, '([a-z])([0-9])', '\\2\\1', 'g')"),
    ("date_trunc('second', time)", "strftime(date_trunc('second', time), '%Y-%m-%dT%H:%M:%SZ')"),
    ("date_trunc('minute', time)", "strftime(date_trunc('minute', time), '%Y-%m-%dT%H:%M:%SZ')"),
    ("date_trunc('hour', time)", "strftime(date_trunc('hour', time), '%Y-%m-%dT%H:%M:%SZ')"),
    ("date_trunc('day', time)", "strftime(date_trunc('day', time), '%Y-%m-%dT%H:%M:%SZ')"),
    ("date_trunc('month', time)", "strftime(date_trunc('month', time), '%Y-%m-%dT%H:%M:%SZ')"),
    ("date_trunc('year', time)", "strftime(date_trunc('year', time), '%Y-%m-%dT%H:%M:%SZ')"),
    ("j ->> 'a'", "j ->> '$.a'"),
    ("j ->> 'a b'", "j ->> '$.\"a b\"'"),
    ("j -> 'b' ->> 0", "j ->> '$.b[0]'"),
    ("j ->> '$.b[1].c'", "j ->> '$.b[1].c'"),
    ("json_extract_string(j, '$.a.b[1]')", "j ->> '$.a.b[1]'"),
];

/// As many columns has a view.
const COLUMNS: usize = 30;

fn cell(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Boolean(truth) => truth.into(),
        Cell::Int(number) => number.into(),
        Cell::BigInt(number) => number.into(),
        Cell::HugeInt(number) => i64::try_from(number).expect("64 bits").into(),
        // In JSON, a number that isn't finite is its name.
        Cell::Double(f64::INFINITY) => "Infinity".into(),
        Cell::Double(f64::NEG_INFINITY) => "-Infinity".into(),
        Cell::Double(number) if number.is_nan() => "NaN".into(),
        Cell::Double(number) => number.into(),
        Cell::Decimal(number) => number.to_string().parse::<f64>().expect("a number").into(),
        Cell::Text(text) => text.into(),
        other => panic!("{other:?}"),
    }
}

/// Whether two are the same, a DOUBLE bit for bit but for the sign of zero.
fn is_same(ours: &Value, theirs: &Value) -> bool {
    match (ours.as_i64(), theirs.as_i64(), ours.as_f64(), theirs.as_f64()) {
        (Some(ours), Some(theirs), ..) => ours == theirs,
        (_, _, Some(ours), Some(theirs)) => ours == theirs,
        _ => ours == theirs,
    }
}

/// The number and the value of each row.
fn theirs_of(duckdb: &Connection, sql: &str) -> duckdb::Result<Vec<(i64, Value)>> {
    let mut statement = duckdb.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, cell(row.get(1)?))))?;
    rows.collect()
}

#[test]
fn every_operator_and_function_over_edge_values_is_as_in_duckdb_in_both_layers() {
    let cases: Vec<(&str, &str)> = SAME.iter().map(|sql| (*sql, *sql)).chain(OTHER.iter().copied()).collect();
    let lines: Vec<String> = (0..EVENTS).map(line).collect();
    let columns = "n BIGINT, v BIGINT, w BIGINT, i BIGINT, k BIGINT, d DOUBLE, e DOUBLE, b BOOLEAN, c BOOLEAN, s TEXT, t TEXT, \
                   time TIMESTAMP, ts TIMESTAMP, j JSON";
    let mut sql = format!("CREATE TABLE events ({columns}) WITH (event_time = 'ts');\n");
    let views: Vec<String> = (0..cases.len().div_ceil(COLUMNS)).map(|i| format!("grid{i}")).collect();
    for (view, cases) in views.iter().zip(cases.chunks(COLUMNS)) {
        // One event is one row, whose value is that of the expression.
        let selected: Vec<String> =
            cases.iter().enumerate().map(|(i, (ours, _))| format!("arg_max({ours}, n) AS a{i}")).collect();
        let selected = selected.join(", ").replace("TRY_CAST", "CAST").replace("::DOUBLE", "").replace("::BIGINT", "");
        sql += &format!("CREATE MATERIALIZED VIEW {view} AS SELECT n, {selected} FROM events GROUP BY n;\n");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("events.ndjson");
    std::fs::write(&file, lines.join("\n")).expect("written");
    let duckdb = Connection::open_in_memory().expect("DuckDB");
    let typed: Vec<String> =
        columns.split(", ").map(|column| format!("\"{}'", column.replacen(' ', "\": '", 1))).collect();
    let load = format!(
        "SET TimeZone = 'UTC'; CREATE TABLE events AS SELECT * FROM read_json('{}', format = 'newline_delimited', columns = {{{}}})",
        file.display(),
        typed.join(", ")
    );
    duckdb.execute_batch(&load).unwrap_or_else(|error| panic!("{error}\n{load}"));

    let project = Project::with_sql(&sql);
    let server = Server::start(&project);
    server.post_lines("events", &lines);
    views.iter().for_each(|view| drop(server.settle(view)));
    let rows = |view: &str, mode: &str| -> BTreeMap<i64, Value> {
        let answer = server.get(&format!("/v1/views/{view}/rows?mode={mode}&limit=100000"));
        assert_eq!(answer["exact"], true, "{view}, {mode}");
        let rows = answer["rows"].as_array().expect("rows").iter();
        rows.map(|row| (row["n"].as_i64().expect("a number"), row.clone())).collect()
    };
    let speed: Vec<_> = views.iter().map(|view| rows(view, "speed")).collect();
    server.batch_all(&views.iter().map(String::as_str).collect::<Vec<_>>());
    let batch: Vec<_> = views.iter().map(|view| rows(view, "batch")).collect();

    let mut wrong = Vec::new();
    for (at, (ours, theirs)) in cases.iter().enumerate() {
        let (of, column) = (at / COLUMNS, format!("a{}", at % COLUMNS));
        let sql = format!("SELECT n, ({theirs}) AS x FROM events ORDER BY n");
        let expected = match theirs_of(&duckdb, &sql) {
            Ok(expected) => expected,
            Err(error) => {
                wrong.push(format!("{theirs}: {error}"));
                continue;
            }
        };
        let mut first = None;
        for (n, expected) in expected {
            for (layer, rows) in [("speed", &speed[of]), ("batch", &batch[of])] {
                let value = &rows[&n][&column];
                if !is_same(value, &expected) && first.is_none() {
                    first = Some(format!("{ours}, {layer}: {value}, DuckDB {expected}, of {}", lines[n as usize]));
                }
            }
        }
        wrong.extend(first);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn lists_have_the_items_that_duckdbs_have() {
    let lists = [("string_split(s, ',')", "split"), ("regexp_extract_all(s, '[a-z]+')", "words")];
    let mut sql = "CREATE TABLE events (s TEXT, ts TIMESTAMP) WITH (event_time = 'ts');\n".to_owned();
    for (list, view) in lists {
        sql += &format!(
            "CREATE MATERIALIZED VIEW {view} AS SELECT item, count(*) AS n FROM events CROSS JOIN UNNEST({list}) AS x(item) \
             GROUP BY item;\n"
        );
    }
    let project = Project::with_sql(&sql);
    let server = Server::start(&project);
    let lines: Vec<String> =
        TEXT.iter().map(|text| json!({"s": text, "ts": "2024-01-15T10:00:00Z"}).to_string()).collect();
    server.post_lines("events", &lines);
    let duckdb = Connection::open_in_memory().expect("DuckDB");
    duckdb.execute_batch("CREATE TABLE events (s TEXT)").expect("a table");
    for text in TEXT {
        duckdb.execute("INSERT INTO events VALUES (?)", [text]).expect("a row");
    }
    for (list, view) in lists {
        server.settle(view);
        let sql = format!("SELECT item, count(*) FROM (SELECT unnest({list}) AS item FROM events) GROUP BY item");
        let mut statement = duckdb.prepare(&sql).expect("a query");
        let counted = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        let theirs: BTreeMap<String, i64> = counted.collect::<duckdb::Result<_>>().expect("texts and counts");
        assert!(theirs.len() > 5, "{theirs:?}");
        let answer = server.get(&format!("/v1/views/{view}/rows?limit=1000"));
        let rows = answer["rows"].as_array().expect("rows").iter();
        let text = |row: &Value| row["item"].as_str().expect("a text").to_owned();
        let ours: BTreeMap<String, i64> = rows.map(|row| (text(row), row["n"].as_i64().expect("a count"))).collect();
        assert_eq!(ours, theirs, "{list}");
    }
}
