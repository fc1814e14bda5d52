mod across;
mod plan;
mod refusal;

use proptest::prelude::*;

use super::{SqlError, plan};
use crate::view::{Catalog, Kept, Sent};

const TABLES: &str = "
CREATE TABLE tweets (
  id TEXT, user_id TEXT, text TEXT, likes BIGINT, score DOUBLE, retweeted BOOLEAN,
  payload JSON, created TIMESTAMP, timestamp TIMESTAMP NOT NULL
) WITH (event_time = 'timestamp', watermark = '5 seconds');
CREATE TABLE clicks (ts TIMESTAMP) WITH (event_time = 'ts');
CREATE MATERIALIZED VIEW other AS SELECT count(*) AS n FROM clicks;
CREATE TABLE changes (ts TIMESTAMP) WITH (format = 'debezium-json', event_time = 'ts');
CREATE MATERIALIZED VIEW big WITH (sink = 'kafka', topic = 'clicks.big') AS SELECT ts FROM clicks;
CREATE MATERIALIZED VIEW back WITH (sink = 'kafka', topic = 'tweets') AS SELECT ts AS timestamp FROM clicks;
";

fn plan_beside_tables(text: &str) -> Result<Catalog, Vec<SqlError>> {
    plan(&[("tables.sql".to_owned(), TABLES.to_owned()), ("v.sql".to_owned(), text.to_owned())])
}

fn view(query: &str) -> String {
    format!("CREATE MATERIALIZED VIEW v AS\n{query}")
}

fn condition(condition: &str) -> String {
    view(&format!("SELECT count(*) AS n FROM tweets WHERE\n{condition}"))
}

fn planned(text: &str) -> Kept {
    match plan_beside_tables(text) {
        Ok(catalog) => catalog.kept_view("v").expect("a view that keeps something"),
        Err(errors) => panic!("{text}\n{}", errors[0]),
    }
}

fn planned_output(text: &str) -> Sent {
    match plan_beside_tables(text) {
        Ok(catalog) => Sent::of(&catalog.views["v"]).expect("a view that sends its rows on"),
        Err(errors) => panic!("{text}\n{}", errors[0]),
    }
}

/// Checks that a text is refused, and that `expected`, `line:column: message`, is the one error.
fn check(text: &str, expected: &str) {
    let errors = plan_beside_tables(text).expect_err(text);
    let errors: Vec<String> = errors.iter().map(SqlError::to_string).collect();
    assert_eq!(errors, [format!("v.sql:{expected}")], "{text}");
}

#[test]
fn all_errors_of_all_files_are_told_in_order() {
    let files = [
        (
            "b.sql",
            "CREATE TABLE t (a DAY, ts TIMESTAMP) WITH (event_time = 'ts');\nCREATE MATERIALIZED VIEW v AS SELECT x FROM t;",
        ),
        (
            "a.sql",
            "CREATE TABLE u (ts TIMESTAMP) WITH (event_time = 'ts');\n\
             CREATE MATERIALIZED VIEW w WITH (max_row = 5) AS\nSELECT min(ä) AS x, max(b) AS y FROM u WHERE c;\n\
             CREATE MATERIALIZED VIEW w AS SELECT count(*) AS \"Größe\", sum(ü) AS s FROM u; SELECT",
        ),
    ];
    let errors = plan(&files.map(|(name, text)| (name.to_owned(), text.to_owned()))).expect_err("both are wrong");
    let places: Vec<String> = errors.iter().map(|e| format!("{}:{}:{}", e.file, e.line, e.column)).collect();
    assert_eq!(
        places,
        ["b.sql:1:19", "a.sql:2:34", "a.sql:3:12", "a.sql:3:25", "a.sql:3:46", "a.sql:4:63", "a.sql:4:79"]
    );
}

#[test]
fn a_view_isnt_blamed_for_its_tables_mistakes() {
    let table = "CREATE TABLE t (ts TIMESTAMP) WITH (event_time = 'at');";
    let view = "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM t;";
    for (text, expected) in
        [(format!("{view}{table}"), 1), (format!("{view} CREATE TABLE t (;"), 1), (view.to_owned(), 1)]
    {
        let errors = plan(&[("v.sql".to_owned(), text.clone())]).expect_err("the table is wrong");
        assert_eq!(errors.len(), expected, "{text}");
    }
}

#[test]
fn a_table_may_follow_the_view_that_reads_it() {
    let view = "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM t";
    let table = "CREATE TABLE t (ts TIMESTAMP) WITH (event_time = 'ts')";
    let files = [("a.sql".to_owned(), view.to_owned()), ("b.sql".to_owned(), table.to_owned())];
    assert!(plan(&files).is_ok());
    assert!(plan(&[]).is_ok_and(|catalog| catalog.tables.is_empty()));
}

#[test]
fn a_change_of_meaning_changes_the_definition_and_nothing_else_does() {
    let view = |options: &str, select: &str| {
        planned(&format!("CREATE MATERIALIZED VIEW v WITH (batch = '0 * * * *'{options}) AS {select} FROM tweets"))
            .id
            .definition
            .clone()
    };
    let one = view("", "SELECT count(*) AS n");
    assert!(one.len() == 71 && one.starts_with("sha256:"));
    assert_eq!(one, view(", max_rows = 5", "SELECT  -- all of them\n  count( * ) AS n"));
    assert_eq!(one, view(", allowed_lateness = '0 s'", "SELECT count(*) AS n"));
    assert_ne!(one, view(", allowed_lateness = '1 s'", "SELECT count(*) AS n"));
    assert_ne!(one, view("", "SELECT count(id) AS n"));
    let over = |watermark: &str| {
        let table = format!("CREATE TABLE t (ts TIMESTAMP) WITH (event_time = 'ts', watermark = '{watermark}');");
        planned(&format!("{table} CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM t")).id.definition.clone()
    };
    assert_eq!(over("1 s"), over("1 s"));
    assert_ne!(over("1 s"), over("2 s"));
}

#[test]
fn deep_expressions_are_refused_before_they_exhaust_a_stack() {
    let terms = |count| vec!["likes"; count].join("+");
    for text in [
        condition(&vec!["likes = 1"; 600].join(" OR ")),
        condition(&terms(900)),
        condition(&format!("{} & 1 = 1", terms(900))),
        condition(&terms(5_000)),
        condition(&"(".repeat(1_500)),
        condition(&"NOT ".repeat(1_500)),
    ] {
        let errors = plan_beside_tables(&text).expect_err("too deep");
        assert!(
            ["levels deep", "nested too deeply", "unsupported operator", "words", "found NOT"]
                .iter()
                .any(|part| errors[0].message.contains(part)),
            "{}",
            errors[0]
        );
    }
}

/// Words, numbers and signs that SQL is made of, to be thrown together.
fn soup() -> impl Strategy<Value = String> {
    let words = "CREATE TABLE MATERIALIZED VIEW WITH AS SELECT FROM WHERE GROUP BY ORDER LIMIT TUMBLE HOP INTERVAL CROSS JOIN UNNEST \
        count sum avg min max FILTER CASE WHEN THEN ELSE END CAST IN LIKE BETWEEN AND OR NOT IS NULL TRUE coalesce nullif \
        regexp_extract_all regexp_replace string_split substring date_trunc extract trim floor tweets clicks likes score text \
        timestamp payload user_id window_start window_end h t v x ( ( ( ) ) ) , , . ; * + - / % = <> < >= || :: ->> -> ~ # $1 @ [ ] { } \
        0 1 5 1e9 99999999999999999999 '1' 'minute' '1 minute' '#\\w+' '$.a[0]' '[' '(a)' '%\\' \"T\" ä 💥 ' \" $$ -- /* \n";
    let word = proptest::sample::select(words.split(' ').collect::<Vec<_>>());
    proptest::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
}

fn has_a_place(errors: &[SqlError]) -> bool {
    errors.iter().all(|error| error.line > 0 && error.column > 0 && !error.message.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_text_makes_the_planner_panic(
        soup in soup(),
        frame in proptest::sample::select(vec![
            "{}",
            "CREATE MATERIALIZED VIEW v AS SELECT {} FROM tweets",
            "CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS SELECT {} FROM tweets",
            "CREATE MATERIALIZED VIEW v WITH (sink = 'kafka', {}) AS SELECT text FROM tweets",
            "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM {}",
            "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets WHERE {}",
            "CREATE MATERIALIZED VIEW v AS SELECT likes, count(*) AS n FROM tweets GROUP BY {}",
            "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM tweets CROSS JOIN UNNEST({}) AS h(x)",
            "CREATE TABLE t ({}) WITH (event_time = 'x')",
            "CREATE TABLE t (x TIMESTAMP) WITH ({})",
        ]),
    ) {
        if let Err(errors) = plan_beside_tables(&frame.replace("{}", &soup)) {
            prop_assert!(has_a_place(&errors), "{errors:?}");
        }
    }

    #[test]
    fn no_characters_make_the_planner_panic(text in "\\PC{0,80}") {
        if let Err(errors) = plan_beside_tables(&text) {
            prop_assert!(has_a_place(&errors), "{errors:?}");
        }
    }
}

#[test]
fn a_suggestion_is_near_in_spelling() {
    use super::error::suggestion;
    let known = ["lower", "length", "count", "coalesce"];
    for (unknown, meant) in [("lowr", "lower"), ("olwer", "lower"), ("coalsece", "coalesce"), ("LENGHT", "length")] {
        assert_eq!(suggestion(unknown, known), format!("; did you mean `{meant}`?"));
    }
    for unknown in ["power", "mount", "l", "avg"] {
        assert_eq!(suggestion(unknown, known), "", "{unknown}");
    }
}

#[test]
fn a_byte_order_mark_before_the_sql_is_none_of_it() {
    let text = "\u{feff}CREATE TABLE t (ts TIMESTAMP NOT NULL) WITH (topic = 't', event_time = 'ts');\n";
    let planned = plan(&[("a.sql".to_owned(), text.to_owned())]).expect("planned");
    assert_eq!(planned.tables["t"].sql.chars().next(), Some('C'));
    let wrong = plan(&[("a.sql".to_owned(), "\u{feff}DROP TABLE t".to_owned())]).expect_err("refused");
    assert_eq!((wrong[0].line, wrong[0].column), (1, 1));
}
