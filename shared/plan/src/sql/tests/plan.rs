//! What is accepted, and what it becomes.

use chrono_tz::Tz;

use super::{TABLES, condition, plan, plan_beside_tables, planned, planned_output, view};
use crate::aggregation::{Aggregate, AggregateFunction as A, Key, Late, OrderBy, OutputColumn};
use crate::expr::BinaryOp as Op;
use crate::expr::{Expr, Function as F, Literal, Part, TimeUnit};
use crate::rows::{Field, Rows};
use crate::schedule::{CatchUp, Schedule};
use crate::schema::DataType::{self, BigInt, Boolean, Double, Json, Text, Timestamp};
use crate::sink::{Delivery, Emission, Emit, Sink};
use crate::window::Window;

const MINUTE: i64 = 60_000_000;

fn column(name: &str) -> Expr {
    let data_type = match name {
        "likes" => BigInt,
        "score" => Double,
        "retweeted" => Boolean,
        "payload" => Json,
        "created" | "timestamp" => Timestamp,
        _ => Text,
    };
    Expr::Column(name.to_owned(), data_type)
}

fn text(text: &str) -> Expr {
    Expr::Literal(Literal::Text(text.to_owned()))
}

fn int(number: i64) -> Expr {
    Expr::Literal(Literal::BigInt(number))
}

fn double(number: f64) -> Expr {
    Expr::Literal(Literal::Double(number))
}

fn time(micros: i64) -> Expr {
    Expr::Literal(Literal::Timestamp(micros))
}

fn null(data_type: DataType) -> Expr {
    Expr::Literal(Literal::Null(data_type))
}

fn bool(value: bool) -> Expr {
    Expr::Literal(Literal::Boolean(value))
}

fn binary(left: Expr, op: Op, right: Expr) -> Expr {
    Expr::Binary(Box::new(left), op, Box::new(right))
}

fn call(function: F, arguments: impl IntoIterator<Item = Expr>) -> Expr {
    Expr::Call(function, arguments.into_iter().collect())
}

fn not(x: Expr) -> Expr {
    Expr::Not(Box::new(x))
}

fn cast(x: Expr, to: DataType) -> Expr {
    Expr::Cast(Box::new(x), to)
}

#[test]
fn a_table_has_columns_and_options() {
    let catalog = plan(&[(
        "t.sql".to_owned(),
        "CREATE TABLE Users (Id INTEGER NOT NULL, \"userName\" VARCHAR NULL, w REAL, ok BOOL, j JSONB, at TIMESTAMPTZ, t STRING, d DOUBLE PRECISION)
         WITH (topic = 'the.users-1', format = 'json', event_time = 'at', watermark = '1 minute', max_future = '2 min', max_past = '30 days', partitions = 3, partition_by = 'userName', key = 't', headers = 'j')"
            .to_owned(),
    )])
    .expect("a sound table");
    let table = &catalog.tables["users"];
    let columns: Vec<(&str, &DataType, bool)> =
        table.columns.iter().map(|column| (column.name.as_str(), &column.data_type, column.nullable)).collect();
    let expected = [
        ("id", &BigInt, false),
        ("userName", &Text, true),
        ("w", &Double, true),
        ("ok", &Boolean, true),
        ("j", &Json, true),
        ("at", &Timestamp, false),
        ("t", &Text, true),
        ("d", &Double, true),
    ];
    assert_eq!(columns, expected);
    assert_eq!(
        (table.topic.as_str(), table.event_time, table.partition_by, table.partitions),
        ("the.users-1", 5, Some(1), 3)
    );
    assert_eq!((table.key, table.headers), (Some(6), Some(4)));
    assert_eq!((table.watermark_delay, table.max_future), (MINUTE, Some(2 * MINUTE)));
    assert_eq!(table.max_past, Some(30 * 24 * 60 * MINUTE));

    let catalog = plan(&[("t.sql".to_owned(), TABLES.to_owned())]).expect("sound tables");
    let table = &catalog.tables["clicks"];
    assert_eq!((table.topic.as_str(), table.watermark_delay, table.max_future), ("clicks", 0, Some(10 * MINUTE)));
    assert_eq!(table.max_past, None);
    assert_eq!((table.partitions, table.partition_by), (1, None));
    assert_eq!((table.key, table.headers), (None, None));
}

#[test]
fn a_changelog_goes_to_partitions_by_its_primary_key_whose_columns_are_never_null() {
    for (columns, with, primary_key, partition_by) in [
        ("id TEXT PRIMARY KEY, name TEXT, at TIMESTAMP", "", vec![0], Some(0)),
        ("name TEXT, id BIGINT, at TIMESTAMP, PRIMARY KEY (ID)", "", vec![1], Some(1)),
        ("name TEXT, id BIGINT NOT NULL PRIMARY KEY, at TIMESTAMP", ", partition_by = 'id'", vec![1], Some(1)),
        ("a TIMESTAMP, b BOOLEAN, \"C\" TEXT, at TIMESTAMP, PRIMARY KEY (\"C\", a, b)", "", vec![2, 0, 1], None),
        ("id TEXT, at TIMESTAMP", ", partition_by = 'id'", vec![], Some(0)),
    ] {
        let text = format!("CREATE TABLE users ({columns}) WITH (event_time = 'at'{with})");
        let catalog = plan(&[("t.sql".to_owned(), text)]).unwrap_or_else(|errors| panic!("{columns}: {}", errors[0]));
        let table = &catalog.tables["users"];
        assert_eq!((&table.primary_key, table.partition_by), (&primary_key, partition_by), "{columns}");
        assert_eq!(table.is_changelog(), !primary_key.is_empty());
        let placed_by = if primary_key.is_empty() { &[0][..] } else { &primary_key };
        assert_eq!(table.placed_by(), placed_by, "{columns}");
        for (i, column) in table.columns.iter().enumerate() {
            let is_nullable = i != table.event_time && !primary_key.contains(&i);
            assert_eq!(column.nullable, is_nullable, "{columns}: {}", column.name);
        }
        assert_eq!(
            table.sql.contains("PRIMARY KEY"),
            table.is_changelog(),
            "views' definitions have it: {}",
            table.sql
        );
    }
}

#[test]
fn the_trending_hashtags() {
    let sql = r"CREATE MATERIALIZED VIEW v
WITH (allowed_lateness = '10 minutes', batch = '*/15 * * * *') AS
SELECT window_start, window_end, hashtag, count(*) AS mentions
FROM HOP(tweets, timestamp, INTERVAL '1 minute', INTERVAL '5 minutes')
CROSS JOIN UNNEST(regexp_extract_all(lower(text), '#\w+')) AS h(hashtag)
GROUP BY window_start, window_end, hashtag
ORDER BY mentions DESC LIMIT 100";
    let view = planned(&format!("-- What people talk about.\n{sql} ;  -- done\n"));
    assert_eq!(view.sql, sql);
    assert_eq!(view.table().name, "tweets");
    assert_eq!(view.aggregation().window, Some(Window::sliding(5 * MINUTE, MINUTE)));
    let lower = call(F::Lower, [column("text")]);
    let list = call(F::RegexpExtractAll(r"#\w+".to_owned()), [lower]);
    let scan = Box::new(Rows::Scan(view.table().clone()));
    assert_eq!(view.rows, Rows::Unnest { rows: scan, list, column: "hashtag".to_owned() });
    assert_eq!(view.aggregation().keys, [Key { name: "hashtag".to_owned(), expr: column("hashtag") }]);
    let mentions =
        Aggregate { name: "mentions".to_owned(), function: A::Count, argument: None, place: None, filter: None };
    assert_eq!(view.aggregation().aggregates, [mentions]);
    use OutputColumn as O;
    assert_eq!(view.aggregation().columns, [O::WindowStart, O::WindowEnd, O::Key(0), O::Aggregate(0)]);
    assert_eq!(view.aggregation().order, [OrderBy { column: O::Aggregate(0), descending: true }]);
    assert_eq!(
        (view.aggregation().limit, view.aggregation().allowed_lateness, view.aggregation().max_rows),
        (Some(100), 10 * MINUTE, 5_000_000)
    );
    assert_eq!(view.aggregation().schedule, Schedule::utc("*/15 * * * *").ok());
    assert_eq!(view.aggregation().late, Late::Discard);
    assert!(view.aggregation().is_top_k_by_count());
    // Where late events go changes no answer.
    for (option, late) in [
        ("late = 'discard'", Late::Discard),
        ("late = 'rejects'", Late::Rejects),
        ("late = 'topic', late_topic = 'late'", Late::Topic("late".to_owned())),
    ] {
        let other = planned(&sql.replace("allowed_lateness", &format!("{option}, allowed_lateness")));
        assert_eq!((&other.aggregation().late, &other.id.definition), (&late, &view.id.definition));
    }
    // Nor does when it is recomputed.
    let other = planned(&sql.replace("batch", "catch_up = 'all', schedule_zone = 'Asia/Tokyo', batch"));
    assert_eq!(other.aggregation().schedule, Schedule::parse("*/15 * * * *", Tz::Asia__Tokyo, CatchUp::All).ok());
    assert_eq!(other.id.definition, view.id.definition);
}

#[test]
fn keys_are_named_by_column_alias_position_or_expression() {
    let expected = [
        Key { name: "who".to_owned(), expr: call(F::Lower, [column("user_id")]) },
        Key { name: "likes".to_owned(), expr: column("likes") },
    ];
    for group in
        ["who, likes", "1, 3", "lower(user_id), tweets.likes", "likes, (LOWER(tweets.user_id))", "Who, \"likes\""]
    {
        let view =
            planned(&view(&format!("SELECT lower(user_id) AS Who, count(*) AS n, Likes FROM Tweets GROUP BY {group}")));
        assert_eq!(view.aggregation().keys, expected, "{group}");
        assert_eq!(
            view.aggregation().columns,
            [OutputColumn::Key(0), OutputColumn::Aggregate(0), OutputColumn::Key(1)]
        );
    }
    let view = planned(&view("SELECT user_id FROM tweets AS t GROUP BY t.user_id"));
    assert_eq!((view.aggregation().keys.len(), view.aggregation().aggregates.len()), (1, 0));
}

#[test]
fn an_order_is_named_by_column_alias_position_or_expression() {
    let expected = [
        OrderBy { column: OutputColumn::Aggregate(1), descending: true },
        OrderBy { column: OutputColumn::Key(0), descending: false },
    ];
    for order in ["m DESC, user_id", "3 DESC NULLS LAST, 1 ASC", "max(likes) DESC, tweets.user_id"] {
        let query = format!("SELECT user_id, count(*) AS n, max(likes) AS m FROM tweets GROUP BY 1 ORDER BY {order}");
        assert_eq!(planned(&view(&query)).aggregation().order, expected, "{order}");
    }
}

#[test]
fn windows_tumble_and_hop() {
    for (from, size, slide) in [
        ("TUMBLE(tweets, timestamp, INTERVAL '1 minute')", MINUTE, MINUTE),
        ("tumble(tweets, \"timestamp\", INTERVAL '90' SECOND) AS w", MINUTE * 3 / 2, MINUTE * 3 / 2),
        ("TUMBLE(tweets, timestamp, INTERVAL '1 day 12 hours')", 2_160 * MINUTE, 2_160 * MINUTE),
        ("HOP(tweets, timestamp, INTERVAL '100 ms', INTERVAL '1 s')", 1_000_000, 100_000),
    ] {
        let view = planned(&view(&format!("SELECT window_end, count(*) AS n FROM {from} GROUP BY window_end")));
        assert_eq!(view.aggregation().window, Some(Window::sliding(size, slide)), "{from}");
        assert_eq!(view.aggregation().columns, [OutputColumn::WindowEnd, OutputColumn::Aggregate(0)]);
    }
}

#[test]
fn aggregates_take_arguments_and_filters() {
    let is_liked = binary(column("likes"), Op::Greater, int(0));
    for (sql, function, argument, filter) in [
        ("count(*)", A::Count, None, None),
        ("COUNT(1)", A::Count, None, None),
        ("(count(id))", A::Count, Some(column("id")), None),
        ("count(*) FILTER (WHERE likes > 0)", A::Count, None, Some(is_liked)),
        ("sum(likes)", A::Sum, Some(column("likes")), None),
        ("sum(likes + score)", A::Sum, Some(binary(cast(column("likes"), Double), Op::Add, column("score"))), None),
        ("avg(score)", A::Avg, Some(column("score")), None),
        ("min(text)", A::Min, Some(column("text")), None),
        ("max(created)", A::Max, Some(column("created")), None),
    ] {
        let view = planned(&view(&format!("SELECT {sql} AS x FROM tweets")));
        assert_eq!(
            view.aggregation().aggregates,
            [Aggregate { name: "x".to_owned(), function, argument, place: None, filter }],
            "{sql}"
        );
    }
}

/// Each is the left side of `… IS NULL`.
#[test]
fn expressions_are_typed() {
    let micros = 1_503_792_000_000_000;
    let retweeted = || column("retweeted");
    let call_text = |function| call(function, [column("text")]);
    let cases = [
        ("likes", column("likes")),
        ("tweets.LIKES", column("likes")),
        ("-5", int(-5)),
        ("-9223372036854775808", int(i64::MIN)),
        ("-likes", Expr::Negate(Box::new(column("likes")))),
        ("1.5", double(1.5)),
        ("1e3", double(1000.0)),
        ("'it''s'", text("it's")),
        (r"E'a\nb'", text("a\nb")),
        (r"$$\w'$$", text(r"\w'")),
        ("TIMESTAMP '2017-08-27 00:00:00'", time(micros)),
        ("likes + 1", binary(column("likes"), Op::Add, int(1))),
        ("likes * score", binary(cast(column("likes"), Double), Op::Multiply, column("score"))),
        ("score - 1", binary(column("score"), Op::Subtract, double(1.0))),
        ("likes / 2", binary(cast(column("likes"), Double), Op::Divide, double(2.0))),
        ("likes % 2", binary(column("likes"), Op::Modulo, int(2))),
        ("likes + NULL", binary(column("likes"), Op::Add, null(BigInt))),
        ("text || '!'", binary(column("text"), Op::Concat, text("!"))),
        ("likes = score", binary(cast(column("likes"), Double), Op::Equal, column("score"))),
        ("likes < 1.5", binary(column("likes"), Op::LessOrEqual, int(1))),
        ("1e3 >= likes", binary(column("likes"), Op::LessOrEqual, int(1_000))),
        ("60 * 60 * 24 * 365 * 1000", int(31_536_000_000)),
        ("likes <> NULL", binary(column("likes"), Op::NotEqual, null(BigInt))),
        ("created >= '2017-08-27T00:00:00Z'", binary(column("created"), Op::GreaterOrEqual, time(micros))),
        ("'2017-08-27' < created", binary(time(micros), Op::Less, column("created"))),
        ("retweeted AND NOT retweeted", binary(retweeted(), Op::And, not(retweeted()))),
        ("retweeted OR NULL", binary(retweeted(), Op::Or, null(Boolean))),
        ("retweeted IS TRUE", call(F::Coalesce, [retweeted(), bool(false)])),
        ("retweeted IS NOT FALSE", not(call(F::Coalesce, [not(retweeted()), bool(false)]))),
        ("retweeted IS UNKNOWN", Expr::IsNull(Box::new(retweeted()))),
        ("text IS NOT NULL", not(Expr::IsNull(Box::new(column("text"))))),
        ("likes IN (1, NULL)", Expr::In(Box::new(column("likes")), vec![int(1), null(BigInt)])),
        ("likes NOT IN (1, 2.5)", not(Expr::In(Box::new(column("likes")), vec![int(1)]))),
        (
            "likes NOT BETWEEN 1 AND 2",
            not(binary(
                binary(column("likes"), Op::GreaterOrEqual, int(1)),
                Op::And,
                binary(column("likes"), Op::LessOrEqual, int(2)),
            )),
        ),
        (
            "text NOT LIKE 'a%'",
            not(Expr::Like { text: Box::new(column("text")), pattern: "a%".to_owned(), ignore_case: false }),
        ),
        ("text ILIKE '%b'", Expr::Like { text: Box::new(column("text")), pattern: "%b".to_owned(), ignore_case: true }),
        (
            "CASE likes WHEN 1 THEN NULL WHEN 2 THEN 2 ELSE 0.5 END",
            Expr::Case {
                branches: vec![
                    (binary(column("likes"), Op::Equal, int(1)), null(Double)),
                    (binary(column("likes"), Op::Equal, int(2)), double(2.0)),
                ],
                otherwise: Some(Box::new(double(0.5))),
            },
        ),
        (
            "CASE WHEN retweeted THEN 'rt' END",
            Expr::Case { branches: vec![(retweeted(), text("rt"))], otherwise: None },
        ),
        ("CAST(text AS BIGINT)", cast(column("text"), BigInt)),
        ("TRY_CAST(text AS TIMESTAMP)", cast(column("text"), Timestamp)),
        ("likes::double", cast(column("likes"), Double)),
        ("text::TEXT", column("text")),
        ("NULL::BIGINT", null(BigInt)),
        ("upper(text)", call_text(F::Upper)),
        ("trim(text)", call_text(F::Trim)),
        ("char_length(text)", call_text(F::Length)),
        ("substr(text, 2)", call_text(F::Substring { from: 2, length: None })),
        ("substring(text FROM 2 FOR 3)", call_text(F::Substring { from: 2, length: Some(3) })),
        ("replace(text, 'a', '')", call_text(F::Replace { what: "a".to_owned(), with: String::new() })),
        ("starts_with(text, 'RT')", call_text(F::StartsWith("RT".to_owned()))),
        ("ends_with(text, '!')", call_text(F::EndsWith("!".to_owned()))),
        ("contains(text, 'x')", call_text(F::Contains("x".to_owned()))),
        ("regexp_like(text, '^a')", call_text(F::RegexpMatches("^a".to_owned()))),
        ("regexp_extract(text, 'a(b)', 1)", call_text(F::RegexpExtract { pattern: "a(b)".to_owned(), group: 1 })),
        (
            "regexp_replace(text, 'a(b)', '$1', 'g')",
            call_text(F::RegexpReplace { pattern: "a(b)".to_owned(), with: vec![Part::Group(1)], all: true }),
        ),
        ("payload ->> 'a'", call(F::JsonText("$.a".to_owned()), [column("payload")])),
        ("payload -> 'a' -> 0 ->> '$.b'", call(F::JsonText("$.a[0].b".to_owned()), [column("payload")])),
        ("payload ->> '$.a.\"b-c\"[1]'", call(F::JsonText("$.a['b-c'][1]".to_owned()), [column("payload")])),
        ("json_extract_string(payload, 'x y')", call(F::JsonText("$['x y']".to_owned()), [column("payload")])),
        ("coalesce(NULL, likes, 0.5)", call(F::Coalesce, [null(Double), cast(column("likes"), Double), double(0.5)])),
        ("nullif(text, '')", call(F::NullIf, [column("text"), text("")])),
        ("abs(likes)", call(F::Abs, [column("likes")])),
        ("round(likes)", column("likes")),
        ("floor(score)", call(F::Floor, [column("score")])),
        ("ceil(score)", call(F::Ceil, [column("score")])),
        ("date_trunc('HOUR', created)", call(F::DateTrunc(TimeUnit::Hour), [column("created")])),
        ("extract(hour FROM created)", call(F::Extract(TimeUnit::Hour), [column("created")])),
    ];
    for (sql, expected) in cases {
        let view = planned(&condition(&format!("({sql}) IS NULL")));
        let rows = Box::new(Rows::Scan(view.table().clone()));
        assert_eq!(view.rows, Rows::Filter { rows, condition: Expr::IsNull(Box::new(expected)) }, "{sql}");
    }
}

#[test]
fn plain_rows_are_written_to_a_topic() {
    let sql = r"CREATE MATERIALIZED VIEW v
WITH (sink = 'kafka', topic = 'tags', delivery = 'at_most_once', partition_by = 'tag') AS
SELECT id, lower(h.tag) AS tag, 'tweet' AS kind, timestamp FROM tweets AS t
CROSS JOIN UNNEST(regexp_extract_all(text, '#\w+')) AS h(tag)
WHERE t.likes > 0";
    let output = planned_output(&format!("{sql};"));
    assert_eq!((output.id.name.as_str(), output.sql.as_str(), output.table().name.as_str()), ("v", sql, "tweets"));
    assert!(output.id.definition.starts_with("sha256:"));
    let list = call(F::RegexpExtractAll(r"#\w+".to_owned()), [column("text")]);
    let rows = Rows::Unnest { rows: Box::new(Rows::Scan(output.table().clone())), list, column: "tag".to_owned() };
    let rows = Rows::Filter { rows: Box::new(rows), condition: binary(column("likes"), Op::Greater, int(0)) };
    let field = |name: &str, expr| Field { name: name.to_owned(), expr };
    let fields = [
        field("id", column("id")),
        field("tag", call(F::Lower, [column("tag")])),
        field("kind", text("tweet")),
        field("timestamp", column("timestamp")),
    ];
    assert_eq!(output.rows, Rows::Project { rows: Box::new(rows), fields: fields.to_vec() });
    let sink = Sink { topic: "tags".to_owned(), delivery: Delivery::AtMostOnce, partition_by: Some(1) };
    assert_eq!(*output.sink(), sink);
    let output = planned_output("CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS SELECT payload FROM tweets");
    let sink = Sink { topic: "v".to_owned(), delivery: Delivery::ExactlyOnce, partition_by: None };
    assert_eq!(*output.sink(), sink);
}

#[test]
fn a_table_may_read_what_an_output_writes() {
    let chain = "CREATE MATERIALIZED VIEW v WITH (sink = 'kafka', topic = 'one') AS SELECT text, timestamp FROM tweets;
        CREATE TABLE one (text TEXT, timestamp TIMESTAMP) WITH (event_time = 'timestamp');
        CREATE MATERIALIZED VIEW w WITH (sink = 'kafka', topic = 'two') AS SELECT text, timestamp FROM one;
        CREATE TABLE two (text TEXT, timestamp TIMESTAMP) WITH (event_time = 'timestamp');";
    let catalog = plan_beside_tables(chain).unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(catalog.sent_of("one").map(|output| output.sink().topic.clone()).collect::<Vec<_>>(), ["two"]);
    let closed =
        format!("{chain}\nCREATE MATERIALIZED VIEW x WITH (sink = 'kafka', topic = 'one') AS SELECT text FROM two;");
    let errors = plan_beside_tables(&closed).expect_err("it goes round");
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].message.contains("into topic `two`, which it reads by way of `one`, and go round"),
        "{}",
        errors[0]
    );
}

#[test]
fn the_rows_of_an_aggregation_are_written_as_they_change_or_once_they_are_final() {
    let minutes =
        "SELECT window_start, window_end, user_id, count(*) AS n FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute')
        GROUP BY window_start, window_end, user_id";
    let emission = |options: &str, select: &str| {
        let view = planned(&format!("CREATE MATERIALIZED VIEW v WITH ({options}) AS {select}"));
        assert!(view.aggregation().schedule.is_some() || !options.contains("batch"));
        (view.aggregation().emission.clone(), view.id.definition.clone())
    };
    let topic = |topic: &str, emit| Some(Emission { topic: topic.to_owned(), emit });
    let counts = "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id";
    assert_eq!(emission("sink = 'kafka'", counts).0, topic("v", Emit::Changes));
    assert_eq!(emission("sink = 'kafka'", "SELECT count(*) AS n FROM tweets").0, topic("v", Emit::Changes));
    assert_eq!(emission("sink = 'kafka', emit = 'changes', batch = '0 * * * *'", minutes).0, topic("v", Emit::Changes));
    let (finals, definition) = emission("sink = 'kafka', topic = 'minutes', emit = 'final'", minutes);
    assert_eq!(finals, topic("minutes", Emit::Final));
    let (none, same) = emission("batch = '0 * * * *'", minutes);
    assert_eq!((none, same), (None, definition), "what is written means the same as what is not");
}

#[test]
fn a_changelog_may_read_the_rows_of_an_aggregation_by_their_key() {
    let minutes = "SELECT window_start, window_end, user_id, count(*) AS n, max(timestamp) AS at
        FROM TUMBLE(tweets, timestamp, INTERVAL '1 minute') GROUP BY window_start, window_end, user_id";
    let read = |with: &str, key: &str| {
        let table = format!(
            "CREATE TABLE t (user_id TEXT, window_start TIMESTAMP, n BIGINT, at TIMESTAMP{key}) WITH (topic = 'v', event_time = 'at');"
        );
        let sql = format!("{table} CREATE MATERIALIZED VIEW v WITH (sink = 'kafka', {with}) AS {minutes};");
        plan_beside_tables(&sql).map(|catalog| catalog.emitted().count()).map_err(|errors| errors[0].message.clone())
    };
    let key = ", PRIMARY KEY (user_id, window_start)";
    assert_eq!(read("emit = 'changes'", key), Ok(1));
    assert_eq!(read("emit = 'final'", key), Ok(1));
    assert_eq!(read("emit = 'final'", ""), Ok(1), "finals are events");
    let way_out = "table `t` reads topic `v`, whose records replace and delete rows; \
                   a table that reads it has PRIMARY KEY (window_start, user_id)";
    assert_eq!(read("emit = 'changes'", ""), Err(way_out.to_owned()));
    assert_eq!(read("emit = 'changes'", ", PRIMARY KEY (user_id)"), Err(way_out.to_owned()));
    let round = "CREATE TABLE t (n BIGINT PRIMARY KEY, at TIMESTAMP) WITH (topic = 'tweets.n', event_time = 'at');
        CREATE MATERIALIZED VIEW a WITH (sink = 'kafka', topic = 'tweets.n') AS SELECT n, max(at) AS at FROM t GROUP BY n;";
    let round = plan_beside_tables(round).expect_err("it goes round")[0].message.clone();
    assert!(round.starts_with("what `a` writes would come back into topic `tweets.n`"), "{round}");
}

#[test]
fn what_an_outputs_rows_mean_is_its_definition() {
    let of = |options: &str, select: &str| {
        planned_output(&format!(
            "CREATE MATERIALIZED VIEW v WITH (sink = 'kafka'{options}) AS SELECT {select} FROM tweets"
        ))
        .id
        .definition
        .clone()
    };
    assert_eq!(of("", "id"), of(", topic = 'x', delivery = 'at_least_once'", "  id -- the number\n"));
    assert_ne!(of("", "id"), of("", "text"));
}

#[test]
fn having_reads_the_bounds_of_windows() {
    let having = |condition: &str| {
        let from = "FROM TUMBLE(tweets, timestamp, INTERVAL '1 hour') GROUP BY window_start, window_end";
        planned(&view(&format!("SELECT window_start, window_end, count(*) AS n {from} HAVING {condition}")))
            .aggregation()
            .having
            .clone()
    };
    let start = || Expr::Column("window_start".to_owned(), Timestamp);
    let at = time(1_503_792_000_000_000);
    assert_eq!(having("window_start >= '2017-08-27'"), Some(binary(start(), Op::GreaterOrEqual, at)));
    let end = Expr::Column("window_end".to_owned(), Timestamp);
    let midnight = call(F::Extract(TimeUnit::Hour), [end]);
    assert_eq!(having("extract(hour FROM window_end) = 0"), Some(binary(midnight, Op::Equal, int(0))));
}

/// Were each level planned three times, this would be 400 million plans.
#[test]
fn nested_lists_and_comparisons_are_planned_once() {
    let nested = |around: fn(String) -> String| (0..18).fold("likes".to_owned(), |inner, _| around(inner));
    for condition_of in [
        |inner| format!("(CASE WHEN {inner} IN (1, 2.5) THEN 1 END)"),
        |inner| format!("(CASE WHEN {inner} < 2.5 THEN 1.5 ELSE 1.0 END)"),
    ] {
        planned(&condition(&format!("{} IS NULL", nested(condition_of))));
    }
}

#[test]
fn a_view_of_rows_is_read_under_its_name_wherever_it_is_defined() {
    let select =
        "SELECT tag, window_end, count(*) AS n FROM TUMBLE(tags, at, INTERVAL '1 minute') GROUP BY tag, window_end";
    let tags = "CREATE VIEW tags AS SELECT lower(h) AS tag, at FROM (SELECT timestamp AS at, text FROM tweets WHERE likes > 1) AS t
        CROSS JOIN UNNEST(string_split(t.text, ' ')) AS u(h);";
    let view = planned(&format!("CREATE MATERIALIZED VIEW v AS {select}; {tags}"));
    let boxed = Box::new;
    let scan = Rows::Scan(view.table().clone());
    let liked = Rows::Filter { rows: boxed(scan), condition: binary(column("likes"), Op::Greater, int(1)) };
    let field = |name: &str, expr: Expr| Field { name: name.to_owned(), expr };
    let fields = vec![field("at", column("timestamp")), field("text", column("text"))];
    let split = call(F::StringSplit(" ".to_owned()), [column("text")]);
    let rows = Rows::Project { rows: boxed(liked), fields };
    let rows = Rows::Unnest { rows: boxed(rows), list: split, column: "h".to_owned() };
    let at = Expr::Column("at".to_owned(), Timestamp);
    let fields = vec![field("tag", call(F::Lower, [column("h")])), field("at", at)];
    assert_eq!(view.rows, Rows::Project { rows: boxed(rows), fields });
    assert_eq!(view.aggregation().time.as_deref(), Some("at"));
    assert_eq!(view.aggregation().keys[0].name, "tag");
}

#[test]
fn a_query_may_stand_in_from_or_before_it() {
    let rows =
        |sql: &str| planned_output(&format!("CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS {sql}")).rows.clone();
    let inside = rows("SELECT t.id FROM (SELECT id, likes FROM tweets WHERE likes > 1) AS t WHERE t.likes < 9");
    let before = rows("WITH t AS (SELECT id, likes FROM tweets WHERE likes > 1) SELECT id FROM t WHERE likes < 9");
    assert_eq!(inside, before);
    let hidden =
        rows("WITH tweets AS (SELECT id, likes FROM tweets WHERE likes > 1) SELECT id FROM tweets WHERE likes < 9");
    assert_eq!(inside, hidden, "the query's own name hides the table's behind it");
    let chained = rows(
        "WITH a AS (SELECT id, text, likes FROM tweets WHERE likes > 1), b AS (SELECT * FROM a WHERE likes < 9) SELECT id FROM b",
    );
    let names = |rows: &Rows| rows.schema().into_iter().map(|column| column.name).collect::<Vec<_>>();
    assert_eq!(names(&chained), ["id"]);
    assert_eq!(names(chained.of()[0].of()[0]), ["id", "likes"], "no more is computed than is read");
    let all = rows("SELECT * FROM tweets");
    assert_eq!(
        all.schema().len(),
        planned_output("CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS SELECT id FROM tweets")
            .table()
            .columns
            .len()
    );
    let windowed = planned("CREATE MATERIALIZED VIEW v AS WITH t AS (SELECT id, timestamp AS at FROM tweets)
        SELECT t.window_end, count(*) AS n FROM HOP(t, at, INTERVAL '1 minute', INTERVAL '2 minutes') WHERE t.id <> '' GROUP BY window_end");
    assert_eq!(windowed.aggregation().time.as_deref(), Some("at"));
    let over = planned("CREATE MATERIALIZED VIEW v AS
        SELECT window_end, count(*) AS n FROM TUMBLE((SELECT timestamp AS at FROM tweets), at, INTERVAL '1 minute') GROUP BY window_end");
    assert_eq!(over.aggregation().window, Some(Window::sliding(MINUTE, MINUTE)));
}

#[test]
fn a_view_changes_with_the_views_that_it_reads() {
    let hash = |views: &str| {
        planned(&format!("{views} CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM a")).id.definition.clone()
    };
    let one = hash("CREATE VIEW a AS SELECT id FROM b; CREATE VIEW b AS SELECT id FROM tweets;");
    assert_eq!(one, hash("CREATE VIEW b AS SELECT  id FROM tweets; CREATE VIEW a AS SELECT id -- it\n FROM b;"));
    assert_ne!(one, hash("CREATE VIEW a AS SELECT id FROM b; CREATE VIEW b AS SELECT id FROM tweets WHERE likes > 1;"));
    assert_ne!(one, hash("CREATE VIEW a AS SELECT id FROM b WHERE id <> ''; CREATE VIEW b AS SELECT id FROM tweets;"));
    assert_eq!(
        one,
        hash(
            "CREATE VIEW a AS SELECT id FROM b; CREATE VIEW b AS SELECT id FROM tweets; CREATE VIEW c AS SELECT id FROM a;"
        )
    );
}

#[test]
fn views_that_read_each_other_are_the_only_ones_blamed() {
    let text = "CREATE VIEW a AS SELECT id FROM b; CREATE VIEW b AS SELECT id FROM a;
        CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM a;
        CREATE MATERIALIZED VIEW w AS SELECT count(*) AS n FROM tweets;";
    let errors = plan_beside_tables(text).expect_err("a circle");
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected =
        ["v.sql:1:13: view `a` reads itself, or what reads it", "v.sql:1:48: view `b` reads itself, or what reads it"];
    assert_eq!(errors, expected);
    let errors = plan_beside_tables(
        "CREATE VIEW a AS SELECT nothing FROM tweets; CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM a",
    )
    .expect_err("a view that can't be planned");
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn times_and_intervals_are_added_up_as_they_are_written() {
    let second = |n: i64| Expr::Literal(Literal::Interval(n * 1_000_000));
    let of = |text: &str| match &planned(&condition(text)).rows {
        Rows::Filter { condition, .. } => condition.clone(),
        other => panic!("{other:?}"),
    };
    let (at, created) = (column("timestamp"), column("created"));
    let later = binary(created.clone(), Op::Add, second(5));
    assert_eq!(of("timestamp > created + INTERVAL '5 seconds'"), binary(at.clone(), Op::Greater, later.clone()));
    assert_eq!(of("timestamp > INTERVAL '5' SECOND + created"), binary(at.clone(), Op::Greater, later));
    let age = binary(at.clone(), Op::Subtract, created.clone());
    assert_eq!(
        of("timestamp - created <= INTERVAL '1 minute' + INTERVAL '1 s'"),
        binary(age.clone(), Op::LessOrEqual, second(61))
    );
    assert_eq!(of("timestamp - created <= -INTERVAL '1 s'"), binary(age.clone(), Op::LessOrEqual, second(-1)));
    let more = binary(age, Op::Add, second(2));
    assert_eq!(of("timestamp - created + INTERVAL '2 s' > INTERVAL '0 s'"), binary(more, Op::Greater, second(0)));
    assert_eq!(
        of("timestamp - NULL IS NULL"),
        Expr::IsNull(Box::new(binary(at, Op::Subtract, null(DataType::Interval))))
    );
}
