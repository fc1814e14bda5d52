use anabranch_plan::expr::Expr;
use anabranch_plan::rows::Rows;
use polars::prelude::*;

use super::{column, constant, holds, lower, polars_type};

const TABLE: &str = r#"CREATE TABLE t (
  n BIGINT, m BIGINT, d DOUBLE, e DOUBLE, b BOOLEAN, c BOOLEAN, s TEXT, k TEXT, j JSON, at TIMESTAMP, ts TIMESTAMP NOT NULL,
  "*" BIGINT, "^.*$" TEXT
) WITH (event_time = 'ts');"#;

/// An expression as it is planned.
fn planned(sql: &str) -> Expr {
    // A constant alone isn't a view's row.
    let text = format!("{TABLE} CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS SELECT ts, {sql} AS x FROM t;");
    let catalog =
        anabranch_plan::sql::plan(&[("t.sql".to_owned(), text)]).unwrap_or_else(|e| panic!("{sql}: {}", e[0]));
    match &catalog.views["v"].rows {
        Rows::Project { fields, .. } => fields[1].expr.clone(),
        other => panic!("{other:?}"),
    }
}

fn rows() -> DataFrame {
    let time = polars_type(&anabranch_plan::schema::DataType::Timestamp);
    let times = |times: [Option<i64>; 3]| Series::new("".into(), times).cast(&time).expect("times");
    df!(
        "n" => [Some(12_i64), None, Some(-7)],
        "m" => [Some(5_i64), Some(0), None],
        "d" => [Some(2.5), None, Some(-0.0)],
        "e" => [Some(1e17), Some(0.0), Some(f64::NAN)],
        "b" => [Some(true), Some(false), None],
        "c" => [None, Some(true), Some(false)],
        "s" => [Some("a1b22"), Some(""), None],
        "k" => [Some("A"), None, Some(" 42")],
        "j" => [Some(r#"{"x": [1, {"y": "z"}]}"#), Some("5"), None],
        "at" => times([Some(-1), None, Some(1_500_000)]),
        "ts" => times([Some(0), Some(1), Some(2)]),
        "*" => [1_i64, 2, 3],
        "^.*$" => ["p", "q", "r"],
    )
    .expect("rows")
}

fn evaluated(sql: &str, rows: DataFrame) -> Series {
    let expr = planned(sql);
    let made = rows.lazy().with_column(lower(&expr).alias("__x")).select([column("__x")]).collect();
    made.unwrap_or_else(|error| panic!("{sql}: {error}")).column("__x").expect("x").as_materialized_series().clone()
}

/// Every kind of expression, over columns and over constants.
const EXPRESSIONS: &[&str] = &[
    "n",
    "1",
    "5000000000",
    "1.5",
    "'x'",
    "TRUE",
    "NULL",
    "CAST(NULL AS BIGINT)",
    "TIMESTAMP '2024-01-15'",
    "NOT b",
    "NOT TRUE",
    "-n",
    "-d",
    "-(-5)",
    "+n",
    "n + m",
    "n - 1",
    "1 + n",
    "n * 86400000000",
    "d + n",
    "1 + 1.5",
    "d * 2",
    "n / m",
    "1 / 2",
    "n / 0",
    "n % m",
    "7 % 2",
    "n % 7",
    "7 % n",
    "d % e",
    "5.5 % 2.0",
    "n % 0",
    "n = m",
    "n <> 1",
    "1 < n",
    "d <= 1",
    "s > 'a'",
    "at >= ts",
    "at + INTERVAL '1 hour'",
    "INTERVAL '1 hour' + ts",
    "TIMESTAMP '2024-01-15' - INTERVAL '1 day'",
    "at - ts > INTERVAL '1 second'",
    "TIMESTAMP '2024-01-15' - at < INTERVAL '1 day'",
    "-(at - ts) = INTERVAL '1 s' - INTERVAL '2 s'",
    "at - NULL IS NULL",
    "at = '2024-01-15'",
    "b = c",
    "n > 1.5",
    "1 = 1",
    "b AND c",
    "b OR TRUE",
    "s || k",
    "s || 'x'",
    "'x' || 'y'",
    "n IS NULL",
    "1 IS NOT NULL",
    "b IS TRUE",
    "b IS NOT FALSE",
    "n IN (1, 12, NULL)",
    "n IN (m, 12)",
    "s IN ('a', k)",
    "d IN (1, 2.5)",
    "b IN (TRUE)",
    "at IN ('2024-01-15')",
    "1 IN (1, 2)",
    "n IN (1.5, 12.0)",
    "n BETWEEN 1 AND 20",
    "s LIKE 'a%'",
    "s NOT LIKE 'a_'",
    "s ILIKE 'A%'",
    "'abc' LIKE 'a%'",
    "CASE WHEN b THEN 1 ELSE 0 END",
    "CASE WHEN b THEN 2000000000 ELSE 1 END",
    "CASE n WHEN 12 THEN 'x' END",
    "CASE WHEN b THEN 1 ELSE 1.5 END",
    "CASE WHEN TRUE THEN n END",
    "CASE WHEN b THEN TIMESTAMP '2024-01-15' ELSE at END",
    "CASE WHEN b THEN NULL ELSE 5 END",
    "CASE WHEN FALSE THEN 1 ELSE 2 END",
    "CAST(n AS DOUBLE)",
    "CAST(n AS TEXT)",
    "CAST(d AS BIGINT)",
    "CAST(d AS TEXT)",
    "CAST(b AS TEXT)",
    "CAST(b AS BIGINT)",
    "CAST(k AS BIGINT)",
    "CAST(k AS DOUBLE)",
    "CAST(k AS BOOLEAN)",
    "CAST(k AS TIMESTAMP)",
    "CAST(j AS TEXT)",
    "CAST('7' AS BIGINT)",
    "CAST(1 AS TEXT)",
    "CAST(1.5 AS BIGINT)",
    "CAST('on' AS BOOLEAN)",
    "CAST('2024-01-15' AS TIMESTAMP)",
    "CAST(TRUE AS TEXT)",
    "lower(s)",
    "upper(s)",
    "trim(k)",
    "length(s)",
    "substring(s, 2)",
    "substring(s, 1, 2)",
    "replace(s, 'a', 'b')",
    "starts_with(s, 'a')",
    "ends_with(s, '2')",
    "contains(s, 'b')",
    "regexp_matches(s, '\\d')",
    "regexp_extract(s, '\\d+')",
    "regexp_extract(s, '([a-z])(\\d)', 2)",
    "regexp_replace(s, '(\\d+)', '$1px')",
    "regexp_replace(s, '\\d', '', 'g')",
    "j ->> 'x'",
    "j -> 'x' ->> 0",
    "json_extract_string(j, '$.x[1].y')",
    "coalesce(n, 0)",
    "coalesce(n, m, 1)",
    "coalesce(d, 1)",
    "nullif(n, 12)",
    "nullif(s, '')",
    "abs(n)",
    "abs(d)",
    "abs(-5)",
    "round(d)",
    "floor(d)",
    "ceil(d)",
    "round(n)",
    "floor(1.5)",
    "date_trunc('hour', at)",
    "date_trunc('month', TIMESTAMP '2024-01-15')",
    "extract(year FROM at)",
    "extract(second FROM at)",
    "lower('A')",
    "upper('a')",
    "trim(' a ')",
    "length('abc')",
    "substring('abc', 2)",
    "replace('abc', 'a', 'b')",
    "starts_with('abc', 'a')",
    "ends_with('abc', 'c')",
    "contains('abc', 'b')",
    "regexp_matches('abc', 'b')",
    "regexp_extract('abc', 'b')",
    "regexp_replace('abc', 'b', 'x')",
    "coalesce(NULL, 5)",
    "nullif(1, 1)",
    "round(1.5)",
    "\"*\"",
    "\"^.*$\"",
    "\"*\" + n",
    "lower(\"^.*$\")",
];

#[test]
fn every_expression_has_the_type_that_it_was_bound_with_and_a_value_for_each_row() {
    for sql in EXPRESSIONS {
        let wanted = polars_type(&planned(sql).data_type());
        for height in [3, 1, 0] {
            let made = evaluated(sql, rows().head(Some(height)));
            assert_eq!((made.dtype(), made.len()), (&wanted, height), "{sql}");
        }
    }
}

/// The value in the first row.
fn first(sql: &str) -> String {
    match evaluated(sql, rows()).get(0).expect("a row") {
        AnyValue::String(text) => text.to_owned(),
        AnyValue::StringOwned(text) => text.to_string(),
        AnyValue::Float64(number) => super::cast::from_double(number),
        other => other.to_string(),
    }
}

#[test]
fn constants_keep_64_bits() {
    for (sql, value) in [
        ("n > 60*60*24*30*1000", "false"),
        ("n * (60*60*24*365*1000)", "378432000000"),
        ("(CASE WHEN b THEN 2000000000 ELSE 1 END) * 2 + n * 0", "4000000000"),
        ("(n + 2147483640) * 2", "4294967304"),
        ("coalesce(CAST(NULL AS BIGINT), 2147483647) + n", "2147483659"),
        ("nullif(2147483647, 1) + n", "2147483659"),
        ("abs(-2147483647) + n", "2147483659"),
        ("-2147483648 - n", "-2147483660"),
        ("9223372036854775807 % 10", "7"),
    ] {
        assert_eq!(first(sql), value, "{sql}");
    }
}

#[test]
fn numbers_are_those_of_sql() {
    for (sql, value) in [
        ("e % 3.0", "1.0"),
        ("-7.5 % 2.0 + d * 0", "-1.5"),
        ("(n - 19) % 3", "-1"),
        ("(-9223372036854775807 - 1 + n * 0) % -1", "0"),
        ("round(9007199254740993 + n * 0)", "9007199254740993"),
        ("round(0.49999999999999994 + d * 0)", "0.0"),
        ("round(-2.5 + d * 0)", "-3.0"),
        ("-(d * 0)", "-0.0"),
        ("9007199254740993 + n * 0 IN (9007199254740992, 1.5)", "false"),
        ("9007199254740993 + n * 0 IN (9007199254740993.0, 1.5)", "true"),
        ("9007199254740993 + n * 0 > 9007199254740992.5", "true"),
        ("9007199254740993 + n * 0 <= 9007199254740992.5", "false"),
        ("n = 12.5", "false"),
        ("n <> 12.5", "true"),
        ("12.5 > n", "true"),
        ("-12.5 < -n", "true"),
        ("n BETWEEN 11.5 AND 12.5", "true"),
        ("n < 1e300", "true"),
        ("n > -1e300", "true"),
        ("n >= 1e300", "false"),
        ("n IN (12e0, 120e-1)", "true"),
        ("CASE n WHEN 12.5 THEN 'half' ELSE 'no' END", "no"),
        ("CAST(e AS TEXT)", "1e+17"),
        ("CAST(k || '7' AS BIGINT)", "null"),
        ("CAST(' 42' AS BIGINT) + n", "54"),
        ("d IN (0.0, 2.5)", "true"),
    ] {
        assert_eq!(first(sql), value, "{sql}");
    }
    let nan = "CAST('NaN' AS DOUBLE)";
    for (sql, value) in [
        (format!("{nan} = {nan}"), "true"),
        (format!("{nan} > e"), "true"),
        (format!("{nan} IN (1, {nan})"), "true"),
        ("nullif(d * 0, -0.0)".to_owned(), "null"),
    ] {
        assert_eq!(first(&sql), value, "{sql}");
    }
}

#[test]
fn texts_are_those_of_sql() {
    for (sql, value) in [
        (r"regexp_replace(s, '(\d+)', '$1px')", "a1pxb22"),
        (r"regexp_replace(s, '(\d+)', '\1px')", "a1pxb22"),
        (r"regexp_replace(s, '(\d+)', '$1px', 'g')", "a1pxb22px"),
        (r"regexp_replace(s, '\d+', '<$0>', 'g')", "a<1>b<22>"),
        (r"regexp_replace(s, '(?<digits>\d+)', '${digits}${1}$$')", "a11$b22"),
        (r"regexp_replace(s, '([a-z])(\d)', '$21')", "11b22"),
        (r"regexp_replace(s, 'b', 'costs $ or \')", r"a1costs $ or \22"),
        (r"regexp_replace(s, 'x*', '-', 'g')", "-a-1-b-2-2-"),
        ("trim(' a\t ')", "a\t"),
        ("j ->> 'x'", r#"[1,{"y":"z"}]"#),
        ("CAST(CAST('2024-01-15' AS TIMESTAMP) = TIMESTAMP '2024-01-15 00:00:00' AS TEXT)", "true"),
        ("CAST(CAST('2024-1-5 10:30' AS TIMESTAMP) = TIMESTAMP '2024-01-05T10:30:00Z' AS TEXT)", "true"),
        ("CAST(CAST('2024-01-15 10:30:00+02' AS TIMESTAMP) = TIMESTAMP '2024-01-15T08:30:00Z' AS TEXT)", "true"),
        ("CAST(CAST('2024-02-30' AS TIMESTAMP) IS NULL AS TEXT)", "true"),
    ] {
        assert_eq!(first(sql), value, "{sql}");
    }
}

#[test]
fn nulls_of_lists_are_unknown() {
    let truth = |sql: &str| {
        let made = evaluated(sql, rows());
        made.bool().expect("truth").iter().collect::<Vec<_>>()
    };
    assert_eq!(truth("n IN (12, 3)"), [Some(true), None, Some(false)]);
    assert_eq!(truth("n IN (12, NULL)"), [Some(true), None, None]);
    assert_eq!(truth("n NOT IN (12, NULL)"), [Some(false), None, None]);
    assert_eq!(truth("n IN (m, 12)"), [Some(true), None, None]);
    assert_eq!(truth("s IN ('a1b22', 'x')"), [Some(true), Some(false), None]);
    assert_eq!(truth("n IN (1.5)"), [Some(false), None, Some(false)]);
    assert_eq!(truth("n = 1.5"), [Some(false), None, Some(false)]);
}

#[test]
fn a_condition_holds_for_rows_whatever_the_columns_are_called() {
    let held = |sql: &str| holds(&planned(sql), rows()).expect("conditions");
    assert_eq!(held("\"*\" > 1"), [false, true, true]);
    assert_eq!(held("\"^.*$\" = 'r'"), [false, false, true]);
    assert_eq!(held("TRUE"), [true, true, true]);
    assert_eq!(held("b"), [true, false, false]);
}

#[test]
fn a_long_list_is_looked_up_once_for_each_value() {
    let texts: Vec<String> = (0..50_000).map(|i| format!("'word {i}'")).collect();
    let listed = planned(&format!("s IN ({})", texts.join(", ")));
    let values: Vec<String> = (0..50_000).map(|i| format!("word {}", i * 2)).collect();
    let rows = df!("s" => values).expect("rows");
    // A comparison with each of them would be 2,500 million.
    let found = holds(&listed, rows).expect("a list");
    assert_eq!(found.iter().filter(|found| **found).count(), 25_000);
}

#[test]
fn a_constant_has_its_own_type() {
    let made =
        rows().lazy().select([column("n"), constant(1_i64).alias("one"), constant(2_i32).alias("two")]).collect();
    let made = made.expect("constants");
    assert_eq!(made.dtypes()[1..], [DataType::Int64, DataType::Int32]);
}

#[test]
fn a_time_moves_by_an_interval_and_is_null_beyond_what_can_be_written() {
    let of = |sql: &str| {
        let times = evaluated(sql, rows()).cast(&DataType::Int64).expect("microseconds");
        times.i64().expect("numbers").iter().collect::<Vec<_>>()
    };
    assert_eq!(of("at + INTERVAL '1 ms'"), [Some(999), None, Some(1_501_000)]);
    assert_eq!(of("at - INTERVAL '1 second'"), [Some(-1_000_001), None, Some(500_000)]);
    assert_eq!(of("CASE WHEN at - ts < INTERVAL '1 s' THEN 1 ELSE 0 END"), [Some(1), Some(0), Some(0)]);
    let last = anabranch_plan::time::TIMES.end - 1;
    assert_eq!(of("TIMESTAMP '9999-12-31 23:59:59.999999' + INTERVAL '0 ms'"), [Some(last); 3]);
    assert_eq!(of("TIMESTAMP '9999-12-31 23:59:59.999999' + INTERVAL '1 ms'"), [None; 3]);
    assert_eq!(of("TIMESTAMP '0001-01-01' - INTERVAL '36500 days'"), [None; 3]);
}
