//! Rows that are made of several records.

use super::plan;
use crate::expr::{BinaryOp, Expr, Literal};
use crate::rows::{IntervalJoin, Lag, Lagged, Rows};
use crate::schema::DataType::{self, BigInt, Text};

const TABLES: &str = "
CREATE TABLE clicks (user_id TEXT, url TEXT, n BIGINT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE TABLE purchases (user_id TEXT, amount BIGINT, at TIMESTAMP, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
";

const SECOND: i64 = 1_000_000;

fn rows(select: &str) -> Result<Rows, String> {
    let text = format!("{TABLES}CREATE VIEW v AS\n{select}");
    match plan(&[("v.sql".to_owned(), text)]) {
        Ok(catalog) => Ok(catalog.rows["v"].clone()),
        Err(errors) => {
            // The view begins on the fourth line.
            let error = &errors[0];
            Err(format!("{}:{}: {}", error.line - 4, error.column, error.message))
        }
    }
}

fn planned(select: &str) -> Rows {
    rows(select).unwrap_or_else(|error| panic!("{select}\n{error}"))
}

/// The join below a SELECT list.
fn joined(on: &str) -> IntervalJoin {
    below(&planned(&format!("SELECT c.url, p.amount FROM clicks AS c JOIN purchases AS p ON {on}")))
}

fn below(rows: &Rows) -> IntervalJoin {
    match rows {
        Rows::Interval(join) => IntervalJoin::clone(join),
        other => below(other.of()[0]),
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

fn column(name: &str, data_type: DataType) -> Expr {
    Expr::Column(name.to_owned(), data_type)
}

#[test]
fn however_it_is_written_an_interval_is_one() {
    let both = (-10 * SECOND, 5 * SECOND);
    for (between, within) in [
        ("p.ts BETWEEN c.ts - INTERVAL '10 seconds' AND c.ts + INTERVAL '5 seconds'", both),
        ("c.ts BETWEEN p.ts - INTERVAL '5 seconds' AND p.ts + INTERVAL '10 seconds'", both),
        ("p.ts >= c.ts - INTERVAL '10 seconds' AND p.ts <= c.ts + INTERVAL '5 seconds'", both),
        ("p.ts - c.ts BETWEEN -INTERVAL '10 seconds' AND INTERVAL '5 seconds'", both),
        ("c.ts - p.ts <= INTERVAL '10 seconds' AND c.ts >= p.ts - INTERVAL '5 seconds'", both),
        ("c.ts - INTERVAL '10 seconds' <= p.ts AND NOT FALSE AND p.ts - INTERVAL '5 seconds' <= c.ts", both),
        ("p.ts > c.ts AND p.ts < c.ts + INTERVAL '1 second'", (1, SECOND - 1)),
        ("p.ts >= c.ts AND p.ts <= c.ts + INTERVAL '1 second' AND p.ts <= c.ts + INTERVAL '2 seconds'", (0, SECOND)),
        ("p.ts = c.ts", (0, 0)),
        ("p.ts = c.ts + INTERVAL '1 second'", (SECOND, SECOND)),
    ] {
        let join = joined(&format!("c.user_id = p.user_id AND {between}"));
        assert_eq!(join.within, within, "{between}");
        assert_eq!(join.times, pair("c.ts", "p.ts"));
        assert_eq!(join.keys, [pair("c.user_id", "p.user_id")]);
        assert!(!join.is_outer);
    }
}

#[test]
fn what_else_is_asked_of_a_pair_is_where_it_costs_least() {
    let within = "p.ts BETWEEN c.ts AND c.ts + INTERVAL '5 seconds'";
    let join =
        joined(&format!("lower(c.user_id) = p.user_id AND {within} AND c.n > p.amount AND p.amount > 1 AND c.n < 9"));
    assert_eq!(join.keys, [pair("__left1_0", "p.user_id")], "a computed key is a column");
    let more = Expr::Binary(Box::new(column("c.n", BigInt)), BinaryOp::Greater, Box::new(column("p.amount", BigInt)));
    assert_eq!(join.condition, Some(more));
    assert!(matches!(&join.right, Rows::Filter { condition, .. } if condition.reads("p.amount")), "{:?}", join.right);
    assert!(matches!(&join.left, Rows::Filter { condition, .. } if condition.reads("c.n")), "{:?}", join.left);

    let left = format!(
        "SELECT c.url, p.amount FROM clicks AS c LEFT JOIN purchases AS p ON c.user_id = p.user_id AND {within} AND p.amount > 1 AND c.n < 9"
    );
    let join = below(&planned(&left));
    assert!(join.is_outer);
    assert!(
        join.condition.is_some_and(|condition| condition.reads("c.n")),
        "a left row for which it doesn't hold stays"
    );
    assert!(matches!(&join.right, Rows::Filter { .. }));
    assert!(!matches!(&join.left, Rows::Filter { .. }));
}

#[test]
fn an_event_time_of_a_pair_is_behind_by_as_much_as_its_times_may_differ() {
    let select = "SELECT c.ts AS clicked, p.ts AS bought, p.at FROM clicks c JOIN purchases p
        ON c.user_id = p.user_id AND p.ts BETWEEN c.ts - INTERVAL '2 seconds' AND c.ts + INTERVAL '10 seconds'";
    let rows = planned(select);
    assert_eq!(rows.event_times(), ["clicked", "bought"]);
    // A click is in a pair up to 10 s after its own time, a purchase up to 2 s.
    assert_eq!((rows.delay("clicked"), rows.delay("bought")), (10 * SECOND, 2 * SECOND));
    let three = planned(
        &format!(
            "SELECT b.clicked, b.bought, s.ts AS shipped FROM ({select}) AS b JOIN purchases AS s
         ON s.user_id = b.at::text AND s.ts BETWEEN b.bought AND b.bought + INTERVAL '5 seconds'"
        )
        .replace("b.at::text", "'x'")
        .replace("s.user_id = 'x'", "s.at = b.at"),
    );
    assert_eq!(three.event_times(), ["clicked", "bought", "shipped"]);
    // The shipment is up to 5 s after the purchase, which is up to 10 s after the click.
    assert_eq!(three.delay("bought"), 5 * SECOND);
    assert_eq!(three.delay("clicked"), 15 * SECOND);
    let outer = planned(&select.replace("JOIN", "LEFT JOIN"));
    assert_eq!(outer.event_times(), ["clicked"], "the other may be null");
}

#[test]
fn a_table_is_joined_with_itself() {
    let rows = planned(
        "SELECT a.amount FROM purchases a LEFT JOIN purchases b ON b.user_id = a.user_id AND b.ts > a.ts AND b.ts <= a.ts + INTERVAL '1 minute'
         WHERE b.user_id IS NULL",
    );
    assert_eq!(rows.inputs().len(), 2);
    assert_eq!(below(&rows).within, (1, 60 * SECOND));
}

#[test]
fn lag_looks_back_in_the_window_that_is_named() {
    let select = "SELECT user_id, amount - LAG(amount) OVER w AS more, LAG(ts) OVER w AS before, LAG(amount, 2, -1) OVER w AS two
        FROM purchases WHERE amount > 0 WINDOW w AS (PARTITION BY user_id ORDER BY ts)";
    let rows = planned(select);
    let [Rows::Lag(lag)] = rows.of()[..] else { panic!("{rows:?}") };
    let lagged = |name: &str, of: &str, back, default: Option<i64>| Lagged {
        name: name.to_owned(),
        of: of.to_owned(),
        back,
        default: default.map(|number| Expr::Literal(Literal::BigInt(number))),
    };
    let columns = vec![
        lagged("__lag0", "amount", 1, None),
        lagged("__lag1", "ts", 1, None),
        lagged("__lag2", "amount", 2, Some(-1)),
    ];
    assert_eq!((&lag.keys, lag.time.as_str(), &lag.columns), (&vec!["user_id".to_owned()], "ts", &columns));
    assert!(matches!(lag.rows, Rows::Filter { .. }), "WHERE comes first");
    let spelled = select
        .replace("OVER w", "OVER (PARTITION BY user_id ORDER BY ts ASC)")
        .replace("WINDOW w AS (PARTITION BY user_id ORDER BY ts)", "");
    assert_eq!(planned(&spelled), rows);
    // What is computed is a column of the rows below.
    let rows = planned("SELECT LAG(amount * 2) OVER (PARTITION BY lower(user_id) ORDER BY ts) AS x FROM purchases");
    let [Rows::Lag(lag)] = rows.of()[..] else { panic!("{rows:?}") };
    let Lag { rows: Rows::Project { fields, .. }, keys, .. } = &**lag else { panic!("{lag:?}") };
    assert_eq!((keys[0].as_str(), lag.columns[0].of.as_str()), ("__of4", "__of5"));
    assert_eq!(fields[4].expr.data_type(), Text);
    // Two windows are two steps.
    let rows = planned(
        "SELECT LAG(amount) OVER (PARTITION BY user_id ORDER BY ts) AS x, LAG(amount) OVER (ORDER BY ts) AS y FROM purchases",
    );
    assert!(matches!(rows.of()[0].of()[0], Rows::Lag(_)));
}

#[test]
fn rapid_transactions_as_the_design_writes_them() {
    let rows = planned(
        "SELECT user_id, amount, previous, ts FROM (
           SELECT user_id, amount, ts, LAG(amount) OVER w AS previous, LAG(ts) OVER w AS previous_ts
           FROM purchases WINDOW w AS (PARTITION BY user_id ORDER BY ts)) t
         WHERE ts < previous_ts + INTERVAL '60 seconds' AND abs(amount - previous) > 10000",
    );
    assert!(rows.looks_across());
    assert_eq!(rows.event_times(), ["ts"], "the time of the row before isn't the row's");
}

#[test]
fn what_cant_be_joined_or_looked_back_at_is_refused_with_a_way_out() {
    let join = |on: &str| format!("SELECT c.url FROM clicks c JOIN purchases p ON {on}");
    let example =
        "FROM a JOIN b ON b.id = a.id AND b.ts BETWEEN a.ts - INTERVAL '10 seconds' AND a.ts + INTERVAL '10 seconds'";
    let within = "p.ts BETWEEN c.ts AND c.ts + INTERVAL '5 seconds'";
    for (select, expected) in [
        (join("c.user_id = p.user_id"), format!("1:48: a join of two streams says by how much `p.ts` may be earlier and later than `c.ts`: {example}")),
        (join("c.user_id = p.user_id AND p.ts > c.ts"), format!("1:48: a join of two streams says by how much `p.ts` may be earlier and later than `c.ts`: {example}")),
        (join("c.user_id = p.user_id AND p.at BETWEEN c.ts AND c.ts + INTERVAL '5 seconds'"), format!("1:48: a join of two streams says by how much `p.ts` may be earlier and later than `c.ts`: {example}")),
        (join(within), format!("1:48: a join needs columns of both sides that are equal: {example}")),
        (join("c.user_id = p.user_id AND p.ts > c.ts + INTERVAL '5 s' AND p.ts < c.ts"), "1:48: no two times can differ by that".to_owned()),
        (join("user_id = p.user_id"), "1:48: `user_id` is a column of `c` and of `p`; write c.user_id or p.user_id".to_owned()),
        (join("c.x = p.user_id"), "1:50: unknown column `x`; table `clicks` has `user_id`, `url`, `n`, `ts`, and table `purchases` has `user_id`, `amount`, `at`, `ts`".to_owned()),
        (format!("SELECT url FROM clicks JOIN clicks ON {within}"), "1:29: each side of a join needs a name of its own, without dots: FROM t AS a JOIN t AS b ON …".to_owned()),
        (format!("SELECT url FROM clicks c JOIN (SELECT * FROM purchases) ON {within}"), "1:32: each side of a join needs a name of its own, without dots: FROM t AS a JOIN t AS b ON …".to_owned()),
        ("SELECT url FROM clicks c RIGHT JOIN purchases p ON TRUE".to_owned(), "1:37: unsupported join; there are JOIN … ON and LEFT JOIN … ON, and CROSS JOIN UNNEST(…) AS t(item)".to_owned()),
        ("SELECT url FROM clicks c JOIN purchases p USING (user_id)".to_owned(), format!("1:31: a join says ON what: {example}")),
        ("SELECT url FROM clicks c JOIN purchases FOR SYSTEM_TIME AS OF c.ts AS p ON p.user_id = c.user_id".to_owned(), format!("1:63: table `purchases` is no changelog, which has a PRIMARY KEY; two streams are joined within an interval: {example}")),
        ("SELECT LEAD(amount) OVER (ORDER BY ts) AS x FROM purchases".to_owned(), "1:8: LEAD isn't supported, as it waits for rows to come; write LAG, which the later row has".to_owned()),
        ("SELECT LAG(amount) OVER (ORDER BY at) AS x FROM purchases".to_owned(), "1:35: LAG goes by an event time, ascending: ORDER BY one of `ts`".to_owned()),
        ("SELECT LAG(amount) OVER (ORDER BY ts DESC) AS x FROM purchases".to_owned(), "1:35: LAG goes by an event time, ascending: ORDER BY one of `ts`".to_owned()),
        ("SELECT LAG(amount) AS x FROM purchases".to_owned(), "1:8: write LAG(x) OVER (PARTITION BY k ORDER BY ts)".to_owned()),
        ("SELECT LAG(amount) OVER x AS x FROM purchases WINDOW w AS (ORDER BY ts)".to_owned(), "1:25: unknown window `x`; WINDOW names `w`".to_owned()),
        ("SELECT LAG(amount) OVER (ORDER BY ts) AS x FROM purchases WINDOW w AS (ORDER BY ts)".to_owned(), "1:59: window `w` isn't used".to_owned()),
        ("SELECT LAG(amount) OVER w AS x FROM purchases WINDOW w AS (ORDER BY ts), w AS (ORDER BY at)".to_owned(), "1:74: window `w` is defined twice".to_owned()),
        ("SELECT LAG(LAG(amount) OVER w) OVER w AS x FROM purchases WINDOW w AS (ORDER BY ts)".to_owned(), "1:12: LAG can't stand in LAG; name the first in FROM (SELECT …, LAG(x) OVER (…) AS previous FROM t) AS t".to_owned()),
        ("SELECT LAG(w) OVER (ORDER BY ts) AS x FROM clicks CROSS JOIN UNNEST(string_split(url, '/')) AS u(w)".to_owned(), "1:37: LAG can't follow UNNEST, as the items of one record have no order among rows".to_owned()),
        (format!("SELECT LAG(c.n) OVER (ORDER BY p.ts) AS x FROM clicks c LEFT JOIN purchases p ON c.user_id = p.user_id AND {within}"), "1:32: LAG goes by an event time, ascending: ORDER BY one of `ts`".to_owned()),
        (format!("SELECT c.url FROM clicks c JOIN purchases \"p.q\" ON {within}"), "1:33: each side of a join needs a name of its own, without dots: FROM t AS a JOIN t AS b ON …".to_owned()),
        ("SELECT amount FROM purchases WHERE LAG(amount) OVER (ORDER BY ts) > 1".to_owned(), "1:36: LAG belongs to plain rows; write it in FROM (SELECT …, LAG(x) OVER (PARTITION BY k ORDER BY ts) AS previous FROM t) AS t".to_owned()),
    ] {
        assert_eq!(rows(&select).expect_err(&select), expected, "{select}");
    }
}

const USERS: &str = "
CREATE TABLE users (id TEXT PRIMARY KEY, plan TEXT, changed TIMESTAMP) WITH (event_time = 'changed');
CREATE TABLE rooms (house TEXT, number BIGINT, changed TIMESTAMP, PRIMARY KEY (house, number)) WITH (event_time = 'changed');
CREATE VIEW paying AS SELECT * FROM users WHERE plan <> 'free';
";

#[test]
fn a_changelog_is_joined_as_of_an_events_time_by_its_primary_key() {
    let planned = |on: &str| {
        let text = format!("{TABLES}{USERS}CREATE VIEW v AS SELECT c.url, u.plan FROM clicks c JOIN {on};");
        plan(&[("v.sql".to_owned(), text)]).map_err(|errors| errors[0].message.clone())
    };
    let catalog = planned("users FOR SYSTEM_TIME AS OF c.ts AS u ON u.id = c.user_id").expect("a join");
    let [Rows::AsOf(join)] = catalog.rows["v"].of()[..] else { panic!("{:?}", catalog.rows["v"]) };
    assert_eq!(join.keys, [pair("c.user_id", "u.id")]);
    let refused = planned("users FOR SYSTEM_TIME AS OF c.ts AS u ON u.plan = c.user_id").expect_err("no key");
    assert!(refused.starts_with("a changelog is joined by its primary key, `id`: ON "), "{refused}");
    let refused = planned("users AS u ON u.id = c.user_id").expect_err("no time");
    assert!(refused.starts_with("table `users` is a changelog: say as of which time"), "{refused}");
}

#[test]
fn current_rows_of_a_changelog_are_kept_or_aggregated_and_are_in_no_window() {
    let planned = |view: &str| {
        let view = ("v.sql".to_owned(), format!("CREATE MATERIALIZED VIEW {view};"));
        plan(&[("t.sql".to_owned(), format!("{TABLES}{USERS}")), view]).map_err(|errors| errors[0].to_string())
    };
    let aggregation = |view: &str| {
        let catalog = planned(view).unwrap_or_else(|error| panic!("{error}"));
        let kept = catalog.kept_view("v").expect("it keeps something");
        assert!(kept.rows.looks_across() && (kept.reads("id") || kept.reads("house")), "{view}: its key is read");
        let names = |all: Vec<&String>| all.into_iter().cloned().collect::<Vec<_>>().join(",");
        let aggregation = kept.aggregation();
        let keys = names(aggregation.keys.iter().map(|key| &key.name).collect());
        (keys, names(aggregation.aggregates.iter().map(|aggregate| &aggregate.name).collect()))
    };
    let is = |keys: &str, aggregates: &str| (keys.to_owned(), aggregates.to_owned());
    assert_eq!(aggregation("v AS SELECT count(*) AS n FROM users"), is("", "n"));
    assert_eq!(aggregation("v AS SELECT plan, count(*) AS n FROM paying GROUP BY plan"), is("plan", "n"));
    assert_eq!(aggregation("v AS SELECT plan, id AS who, changed FROM paying"), is("who", "plan,changed"));
    assert_eq!(aggregation("v AS SELECT * FROM users"), is("id", "plan,changed"));
    assert_eq!(
        aggregation("v AS SELECT upper(house) AS block, number, house, changed FROM rooms WHERE number > 3"),
        is("number,house", "block,changed")
    );
    for (view, expected) in [
        (
            "v AS SELECT window_start, window_end, count(*) AS n FROM TUMBLE(users, changed, INTERVAL '1 day') GROUP BY window_start, window_end",
            "v.sql:1:26: table `users` is a changelog: each of its current rows may change at any time, so they are in no window; leave it out",
        ),
        (
            "v AS SELECT before, count(*) AS n FROM (SELECT LAG(plan) OVER (ORDER BY changed) AS before FROM users) AS t GROUP BY before",
            "v.sql:1:26: table `users` is a changelog: events are joined with it FOR SYSTEM_TIME AS OF their time, and LAG looks back at events",
        ),
        ("v AS SELECT plan FROM users", "v.sql:1:48: current rows are told from each other by `id`; select it"),
        (
            "v AS SELECT number, changed FROM rooms",
            "v.sql:1:59: current rows are told from each other by `house`; select it",
        ),
        (
            "v AS SELECT plan FROM (SELECT plan FROM users) AS u",
            "v.sql:1:49: rows of `users` are told from each other by `id`; select it",
        ),
        (
            "v WITH (sink = 'kafka') AS SELECT id FROM (SELECT id FROM users) AS u",
            "v.sql:1:26: the current rows of a changelog are written as they change; add emit = 'changes'",
        ),
    ] {
        assert_eq!(planned(view).expect_err(view), expected);
    }
}

#[test]
fn an_output_that_a_changelog_reads_keeps_the_versions_of_a_row_in_one_partition() {
    let output = |of: &str, with: &str| {
        let select = "SELECT user_id AS id, url AS plan, url AS house, n AS number, ts AS changed FROM clicks";
        let text = format!(
            "{TABLES}{USERS}CREATE MATERIALIZED VIEW v WITH (sink = 'kafka', topic = '{of}'{with}) AS {select};"
        );
        plan(&[("v.sql".to_owned(), text)]).map_err(|errors| errors[0].message.clone())
    };
    output("users", ", partition_by = 'id'").expect("by the key");
    let one = "and all versions of its rows are in one partition, by the primary key";
    let expected = format!("table `users` reads topic `users`, {one} `id`; add partition_by = 'id'");
    for with in ["", ", partition_by = 'plan'"] {
        assert_eq!(output("users", with).expect_err(with), expected);
    }
    let expected = format!(
        "table `rooms` reads topic `rooms`, {one} `house`, `number`; an output chooses it by one column, so it can't write that topic"
    );
    assert_eq!(output("rooms", ", partition_by = 'house'").expect_err("two columns"), expected);
}

fn materialized(select: &str) -> Result<crate::view::Catalog, String> {
    let text = format!("{TABLES}CREATE MATERIALIZED VIEW v AS\n{select}");
    plan(&[("v.sql".to_owned(), text)]).map_err(|errors| errors[0].message.clone())
}

#[test]
fn rows_of_several_records_are_aggregated_and_neither_sent_nor_put_aside() {
    let joined =
        "SELECT c.url, count(*) AS many FROM clicks c JOIN purchases p ON c.user_id = p.user_id AND p.ts = c.ts";
    for select in [
        format!("{joined} GROUP BY c.url HAVING c.url <> ''"),
        format!("{joined} GROUP BY url ORDER BY many DESC, url LIMIT 3"),
        "SELECT x, count(*) AS n FROM (SELECT LAG(amount) OVER (ORDER BY ts) AS x FROM purchases) AS t GROUP BY x"
            .to_owned(),
    ] {
        let catalog = materialized(&select).unwrap_or_else(|error| panic!("{select}\n{error}"));
        assert!(catalog.views["v"].rows.looks_across(), "{select}");
    }
    let refused = materialized(&format!("{joined} GROUP BY c.url HAVING p.user_id <> ''")).expect_err("not grouped");
    assert_eq!(refused, "`p.user_id` is read but not grouped by; HAVING is over the columns of an answer");
    let j =
        "CREATE VIEW j AS SELECT c.url, p.ts FROM clicks c JOIN purchases p ON c.user_id = p.user_id AND p.ts = c.ts;";
    let failed = |view: &str| {
        let text = format!("{TABLES}{j}\n{view}");
        plan(&[("v.sql".to_owned(), text)]).expect_err(view)[0].message.clone()
    };
    assert_eq!(
        failed("CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS SELECT url FROM j;"),
        "rows that joins and LAG make can be kept or aggregated, but not sent yet"
    );
    let late = "CREATE MATERIALIZED VIEW v WITH (late = 'rejects') AS SELECT window_start, window_end, count(*) AS n
                FROM TUMBLE(j, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;";
    assert_eq!(
        failed(late),
        "late events can't be put aside of a view that joins or uses LAG: several records make a row; leave `late` out"
    );
}

#[test]
fn views_over_the_same_tables_are_read_together() {
    let views = "CREATE VIEW j AS SELECT c.url, p.ts FROM clicks c JOIN purchases p ON c.user_id = p.user_id AND p.ts = c.ts;
        CREATE MATERIALIZED VIEW a AS SELECT url, count(*) AS n FROM j GROUP BY url;
        CREATE MATERIALIZED VIEW b AS SELECT url, count(*) AS n FROM clicks GROUP BY url;
        CREATE MATERIALIZED VIEW c AS SELECT p.user_id, count(*) AS n FROM purchases p JOIN clicks c
        ON c.user_id = p.user_id AND p.ts = c.ts GROUP BY p.user_id;
        CREATE MATERIALIZED VIEW d AS SELECT x, count(*) AS n FROM (SELECT LAG(url) OVER (ORDER BY ts) AS x FROM clicks) AS t
        GROUP BY x;";
    let catalog = plan(&[("v.sql".to_owned(), format!("{TABLES}{views}"))]).expect("a project");
    let units: Vec<(String, Vec<String>)> = catalog
        .units()
        .into_iter()
        .map(|unit| (unit.name(), unit.views.iter().map(|view| view.id.name.clone()).collect()))
        .collect();
    let unit = |name: &str, views: [&str; 2]| (name.to_owned(), views.map(str::to_owned).to_vec());
    assert_eq!(units, [unit("clicks", ["b", "d"]), unit("clicks+purchases", ["a", "c"])]);
}

#[test]
fn a_query_hides_another_of_its_name_around_it() {
    let rows = planned(
        "WITH t AS (SELECT url FROM clicks) SELECT * FROM (WITH t AS (SELECT amount FROM purchases) SELECT * FROM t) AS u",
    );
    assert_eq!(rows.schema()[0].name, "amount");
}
