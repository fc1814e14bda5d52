//! Views whose rows are made of several records: joins of streams and `LAG`, in both layers and merged. The named cases have the values
//! that anybody would compute by hand; random views on random streams are compared with DuckDB, which runs plain SQL over the events.

use std::collections::BTreeMap;

use duckdb::Connection;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::random::cases;
use crate::support::{Project, Server, anabranch, kafka, repository, until};

const TABLES: &str = "
CREATE TABLE clicks (user_id TEXT, url TEXT, ts TIMESTAMP NOT NULL) WITH (topic = 'clicks', event_time = 'ts', partitions = 1);
CREATE TABLE purchases (user_id TEXT, amount BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'purchases', event_time = 'ts', partitions = 1);
";

/// The tenth hour of a day, at a minute and second.
fn at(minute: u32, second: u32) -> String {
    format!("2024-01-15T10:{minute:02}:{second:02}Z")
}

fn click(user: Option<&str>, time: &str) -> Value {
    json!({"user_id": user, "url": "/", "ts": time})
}

fn purchase(user: Option<&str>, amount: i64, time: &str) -> Value {
    json!({"user_id": user, "amount": amount, "ts": time})
}

fn post(server: &Server, topic: &str, events: &[Value]) {
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    let receipt = server.post(topic, lines.join("\n"));
    assert_eq!(receipt["accepted"], events.len(), "{receipt}");
}

/// A project whose view `v` counts the rows of a SELECT, and adds up their amounts, by user and minute.
fn counting(select: &str) -> Project {
    Project::with_sql(&format!(
        "{TABLES}CREATE VIEW j AS {select};
         CREATE MATERIALIZED VIEW v AS SELECT window_start, window_end, user_id, count(*) AS n, sum(amount) AS total
         FROM TUMBLE(j, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, user_id;"
    ))
}

/// A row of `v`: minute, user, number and total.
type Counted = (String, Option<String>, i64, Option<i64>);

/// The rows of `v` in the hour, and the rest of the answer.
fn answered(server: &Server, mode: &str) -> (Vec<Counted>, Value) {
    server.settle("v");
    let (rows, answer) = server.range("v", "2024-01-15T09:00:00Z", "2024-01-15T11:00:00Z", mode);
    let row = |row: &Value| {
        let minute = row["window_start"].as_str().expect("a start")[14..16].to_owned();
        (minute, row["user_id"].as_str().map(str::to_owned), row["n"].as_i64().expect("a count"), row["total"].as_i64())
    };
    let mut rows: Vec<_> = rows.iter().map(row).collect();
    rows.sort();
    (rows, answer)
}

/// The same in both modes, at once and once batch has computed it: each exact.
fn is_answered(server: &Server, expected: &[(&str, Option<&str>, i64, Option<i64>)]) {
    let own = |(minute, user, n, total): &(&str, Option<&str>, i64, Option<i64>)| {
        (minute.to_string(), user.map(str::to_owned), *n, *total)
    };
    let expected: Vec<_> = expected.iter().map(own).collect();
    let (rows, answer) = answered(server, "merged");
    assert_eq!(rows, expected, "by speed alone: {answer}");
    assert_eq!(answer["exact"], true, "{answer}");
    server.batch("v");
    for mode in ["merged", "batch"] {
        let (rows, answer) = answered(server, mode);
        assert_eq!(rows, expected, "{mode}: {answer}");
        assert_eq!(answer["exact"], true, "{answer}");
    }
}

const WITHIN_TEN_SECONDS: &str = "SELECT c.user_id AS user_id, p.amount AS amount, p.ts AS ts FROM clicks c JOIN purchases p \
     ON c.user_id = p.user_id AND p.ts BETWEEN c.ts - INTERVAL '10 seconds' AND c.ts + INTERVAL '10 seconds'";

#[test]
fn a_purchase_is_joined_with_the_clicks_around_it() {
    let project = counting(WITHIN_TEN_SECONDS);
    let server = Server::start(&project);
    post(&server, "clicks", &[click(Some("A"), &at(0, 0)), click(Some("B"), &at(0, 5))]);
    post(&server, "purchases", &[purchase(Some("A"), 30, &at(0, 3)), purchase(Some("A"), 70, &at(0, 15))]);
    is_answered(&server, &[("00", Some("A"), 1, Some(30))]);
    // Below the frontier is one of each pair now: the later record is speed's.
    post(
        &server,
        "purchases",
        &[purchase(Some("B"), 5, &at(0, 15)), purchase(Some("B"), 9, "2024-01-15T10:00:15.001Z")],
    );
    is_answered(&server, &[("00", Some("A"), 1, Some(30)), ("00", Some("B"), 1, Some(5))]);
    let server = {
        server.stop();
        Server::start(&project)
    };
    post(&server, "clicks", &[click(Some("A"), &at(0, 25))]);
    is_answered(&server, &[("00", Some("A"), 2, Some(100)), ("00", Some("B"), 1, Some(5))]);
}

#[test]
fn a_null_is_joined_with_nothing_and_an_outer_join_keeps_it_once() {
    let project = counting(WITHIN_TEN_SECONDS);
    let server = Server::start(&project);
    post(&server, "clicks", &[click(None, &at(0, 0))]);
    post(&server, "purchases", &[purchase(None, 1, &at(0, 0))]);
    is_answered(&server, &[]);
    let outer = "SELECT c.user_id AS user_id, p.amount AS amount, c.ts AS ts FROM clicks c LEFT JOIN purchases p \
                 ON c.user_id = p.user_id AND p.ts BETWEEN c.ts AND c.ts + INTERVAL '10 seconds'";
    let project = counting(outer);
    let server = Server::start(&project);
    post(&server, "clicks", &[click(None, &at(0, 0)), click(Some("A"), &at(0, 1))]);
    post(&server, "purchases", &[purchase(None, 1, &at(0, 0)), purchase(Some("A"), 8, &at(0, 2))]);
    // Time goes on, by other users.
    post(&server, "clicks", &[click(Some("Z"), &at(5, 0))]);
    post(&server, "purchases", &[purchase(Some("Y"), 1, &at(5, 0))]);
    is_answered(&server, &[("00", None, 1, None), ("00", Some("A"), 1, Some(8))]);
}

#[test]
fn absence_is_known_once_the_watermark_has_passed_and_not_before() {
    // Clicks that no purchase follows within five minutes.
    let absent = "SELECT c.user_id AS user_id, p.amount AS amount, c.ts AS ts FROM clicks c LEFT JOIN purchases p \
                  ON c.user_id = p.user_id AND p.ts BETWEEN c.ts AND c.ts + INTERVAL '5 minutes' WHERE p.amount IS NULL";
    let project = counting(absent);
    let server = Server::start(&project);
    post(&server, "clicks", &[click(Some("A"), &at(0, 0)), click(Some("B"), &at(0, 0))]);
    post(&server, "purchases", &[purchase(Some("A"), 3, &at(5, 0))]);
    post(&server, "clicks", &[click(Some("Z"), &at(5, 0))]);
    // At the very last instant a purchase would be in time.
    let (rows, answer) = answered(&server, "merged");
    assert_eq!(rows, [], "{answer}");
    post(&server, "purchases", &[purchase(Some("Y"), 3, &at(5, 1))]);
    server.settle("v");
    let (rows, _) = answered(&server, "merged");
    assert_eq!(rows, [], "clicks hold the watermark back");
    let detail = server.get("/v1/views/v");
    let waited_for =
        detail["partitions"].as_array().expect("partitions").iter().filter(|one| one["holds_back"] == true);
    assert_eq!(waited_for.map(|one| one["topic"].as_str()).collect::<Vec<_>>(), [Some("clicks")], "{detail}");
    // It isn't a click of theirs that tells of it.
    post(&server, "clicks", &[click(Some("Y"), &at(5, 1))]);
    is_answered(&server, &[("00", Some("B"), 1, None)]);
}

#[test]
fn a_record_that_comes_after_its_partners_may_be_gone_leaves_the_bounds_open_until_batch_has_it() {
    let outer = "SELECT c.user_id AS user_id, p.amount AS amount, c.ts AS ts FROM clicks c LEFT JOIN purchases p \
                 ON c.user_id = p.user_id AND p.ts BETWEEN c.ts AND c.ts + INTERVAL '10 seconds'";
    let project = counting(outer);
    let server = Server::start(&project);
    post(&server, "clicks", &[click(Some("A"), &at(0, 0)), click(Some("Z"), &at(9, 0))]);
    post(&server, "purchases", &[purchase(Some("Z"), 1, &at(9, 0))]);
    server.settle("v");
    // It comes nine minutes late: the click is said to be alone already.
    post(&server, "purchases", &[purchase(Some("A"), 7, &at(0, 5))]);
    let (_, answer) = answered(&server, "merged");
    assert_eq!(answer["exact"], false, "{answer}");
    server.batch("v");
    let (rows, answer) = answered(&server, "merged");
    assert_eq!(rows[0], ("00".to_owned(), Some("A".to_owned()), 1, Some(7)), "{answer}");
    assert_eq!(answer["exact"], true, "{answer}");
}

#[test]
fn what_operators_kept_is_checked_and_a_damaged_state_stops_the_view_until_the_next_run() {
    let project = counting(WITHIN_TEN_SECONDS);
    let server = Server::start(&project);
    post(&server, "clicks", &[click(Some("A"), &at(0, 0))]);
    server.batch("v");
    server.stop();
    let states = std::fs::read_dir(project.data().join("views/v/_state")).expect("a folder");
    let state = states.map(|entry| entry.expect("an entry").path()).next().expect("a state");
    let mut bytes = std::fs::read(&state).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).expect("written");
    let server = Server::start(&project);
    post(&server, "purchases", &[purchase(Some("A"), 30, &at(0, 3))]);
    server.until("v", |detail| detail["stopped"].as_str().is_some_and(|why| why.contains("it is damaged")));
    let (rows, answer) = {
        let (rows, answer) = server.range("v", "2024-01-15T09:00:00Z", "2024-01-15T11:00:00Z", "merged");
        (rows.len(), answer)
    };
    assert_eq!((rows, &answer["exact"], &answer["incomplete"]), (0, &json!(false), &json!(true)), "{answer}");
    server.batch("v");
    server.until("v", |detail| detail["stopped"].is_null());
    post(&server, "clicks", &[click(Some("A"), &at(0, 9))]);
    is_answered(&server, &[("00", Some("A"), 2, Some(60))]);
}

#[test]
fn transactions_that_follow_each_other_fast_and_differ_by_much_are_found() {
    let rapid = "SELECT user_id, amount, ts FROM (SELECT user_id, amount, ts, LAG(amount) OVER w AS previous, LAG(ts) OVER w AS \
                 previous_ts FROM purchases WINDOW w AS (PARTITION BY user_id ORDER BY ts)) t \
                 WHERE ts < previous_ts + INTERVAL '60 seconds' AND abs(amount - previous) > 100";
    let project = counting(rapid);
    let server = Server::start(&project);
    let times = [(0, 10, "A", 5), (0, 20, "B", 900), (0, 30, "A", 500), (1, 29, "A", 501), (1, 31, "B", 1)];
    let purchases = times.map(|(minute, second, user, amount)| purchase(Some(user), amount, &at(minute, second)));
    post(&server, "purchases", &purchases);
    is_answered(&server, &[("00", Some("A"), 1, Some(500))]);
    server.kill();
    let server = Server::start(&project);
    // One between two others changes itself and its successor.
    post(&server, "purchases", &[purchase(Some("A"), 1_000, &at(1, 35))]);
    is_answered(&server, &[("00", Some("A"), 1, Some(500)), ("01", Some("A"), 1, Some(1_000))]);
}

/// Rates of a currency, and orders in it.
const RATES: &str = "
CREATE TABLE rates (currency TEXT PRIMARY KEY, rate DOUBLE, valid TIMESTAMP NOT NULL) WITH (topic = 'rates', event_time = 'valid');
CREATE TABLE orders (id BIGINT, currency TEXT, ts TIMESTAMP NOT NULL) WITH (topic = 'orders', event_time = 'ts');
CREATE VIEW priced AS SELECT o.id AS id, r.rate AS rate FROM orders o JOIN rates FOR SYSTEM_TIME AS OF o.ts AS r ON r.currency = o.currency;
CREATE MATERIALIZED VIEW prices AS SELECT id, max(rate) AS rate FROM priced GROUP BY id;
CREATE VIEW timed AS SELECT r.rate AS rate, o.ts AS ts FROM orders o JOIN rates FOR SYSTEM_TIME AS OF o.ts AS r ON r.currency = o.currency;
CREATE MATERIALIZED VIEW hourly AS SELECT window_start, window_end, max(rate) AS rate FROM TUMBLE(timed, ts, INTERVAL '1 hour') GROUP BY window_start, window_end;
CREATE MATERIALIZED VIEW now AS SELECT currency, rate FROM rates;
CREATE MATERIALIZED VIEW known AS SELECT count(*) AS n FROM rates;
";

fn rate(rate: f64, hour: u32, minute: u32) -> Value {
    json!({"currency": "EUR", "rate": rate, "valid": format!("2024-01-15T{hour:02}:{minute:02}:00Z")})
}

fn order(id: i64, hour: u32, minute: u32) -> Value {
    json!({"id": id, "currency": "EUR", "ts": format!("2024-01-15T{hour:02}:{minute:02}:00Z")})
}

/// The column of a view's rows, by their first key; each exact.
fn column(server: &Server, view: &str, key: &str, column: &str) -> Vec<(Value, Value)> {
    server.settle(view);
    let answer = server.get(&format!("/v1/views/{view}/rows"));
    assert_eq!(answer["exact"], true, "{answer}");
    let rows = answer["rows"].as_array().expect("rows").iter().map(|row| (row[key].clone(), row[column].clone()));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|(key, _)| key.to_string());
    rows
}

#[test]
fn an_order_has_the_rate_of_its_time_and_none_once_that_is_deleted() {
    let project = Project::with_sql(RATES);
    let server = Server::start(&project);
    let prices = |server: &Server| column(server, "prices", "id", "rate");
    post(&server, "rates", &[rate(1.14, 11, 0), rate(1.10, 12, 5)]);
    post(&server, "orders", &[order(1, 12, 0), order(2, 12, 6), order(3, 12, 5), order(4, 10, 59)]);
    let expected = [(json!(1), json!(1.14)), (json!(2), json!(1.10)), (json!(3), json!(1.10))];
    assert_eq!(prices(&server), expected, "a rate holds from its very time on");
    server.batch_all(&["prices", "now", "known"]);
    assert_eq!(prices(&server), expected);
    // The version is below the frontier, the order above it; and the other way round.
    post(&server, "orders", &[order(5, 13, 0)]);
    assert_eq!(prices(&server)[3], (json!(5), json!(1.10)));
    post(&server, "rates", &[json!({"currency": "EUR", "__deleted": true, "valid": "2024-01-15T13:30:00Z"})]);
    post(&server, "orders", &[order(6, 14, 0), order(7, 13, 15)]);
    let after: Vec<_> = prices(&server).into_iter().map(|(id, _)| id).collect();
    assert_eq!(after, [json!(1), json!(2), json!(3), json!(5), json!(7)]);
    let server = {
        server.stop();
        Server::start(&project)
    };
    assert_eq!(prices(&server).len(), 5);
    server.batch_all(&["prices"]);
    assert_eq!(prices(&server).len(), 5);
}

#[test]
fn an_order_looks_up_three_changelogs_as_of_its_time() {
    let table = |name: &str, value: &str| {
        format!(
            "CREATE TABLE {name} (id TEXT PRIMARY KEY, {value} TEXT, since TIMESTAMP NOT NULL) WITH (topic = '{name}', event_time = 'since');\n"
        )
    };
    let project = Project::with_sql(&format!(
        "{}{}{}CREATE TABLE orders (who TEXT, what TEXT, whence TEXT, ts TIMESTAMP NOT NULL) WITH (topic = 'orders', event_time = 'ts');
         CREATE VIEW full_orders AS SELECT u.plan AS plan, p.title AS title, s.city AS city, o.ts AS ts FROM orders o
         JOIN users FOR SYSTEM_TIME AS OF o.ts AS u ON u.id = o.who
         LEFT JOIN products FOR SYSTEM_TIME AS OF o.ts AS p ON p.id = o.what
         LEFT JOIN shops FOR SYSTEM_TIME AS OF o.ts AS s ON s.id = o.whence;
         CREATE MATERIALIZED VIEW sold AS SELECT plan, title, city, count(*) AS n FROM full_orders GROUP BY plan, title, city;",
        table("users", "plan"),
        table("products", "title"),
        table("shops", "city")
    ));
    let server = Server::start(&project);
    let set = |topic: &str, id: &str, column: &str, value: &str, minute: u32| {
        post(&server, topic, &[json!({"id": id, column: value, "since": at(minute, 0)})]);
    };
    let order = |who: &str, what: &str, minute: u32| {
        let order = json!({"who": who, "what": what, "whence": "s", "ts": at(minute, 0)});
        post(&server, "orders", &[order]);
    };
    set("users", "ann", "plan", "free", 0);
    set("products", "lamp", "title", "Lamp", 0);
    set("shops", "s", "city", "Bern", 5);
    order("ann", "lamp", 1);
    set("users", "ann", "plan", "paid", 2);
    order("ann", "lamp", 6);
    order("ann", "chair", 7);
    order("bob", "lamp", 8);
    let sold = || {
        server.settle("sold");
        let answer = server.get("/v1/views/sold/rows");
        assert_eq!(answer["exact"], true, "{answer}");
        let cell = |row: &Value, name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let rows = answer["rows"].as_array().expect("rows").iter();
        let mut rows: Vec<_> = rows
            .map(|row| (cell(row, "plan"), cell(row, "title"), cell(row, "city"), row["n"].as_i64().expect("a count")))
            .collect();
        rows.sort();
        rows
    };
    let row = |plan: &str, title: &str, city: &str| (plan.to_owned(), title.to_owned(), city.to_owned(), 1);
    let expected = [row("free", "Lamp", "-"), row("paid", "-", "Bern"), row("paid", "Lamp", "Bern")];
    assert_eq!(sold(), expected);
    server.batch("sold");
    assert_eq!(sold(), expected);
}

#[test]
fn a_version_that_comes_after_the_orders_it_concerns_leaves_the_bounds_open_until_batch_has_it() {
    let project = Project::with_sql(RATES);
    let server = &Server::start(&project);
    post(server, "rates", &[rate(1.14, 11, 0)]);
    post(server, "orders", &[order(1, 12, 0)]);
    post(server, "rates", &[rate(1.2, 13, 0)]);
    post(server, "orders", &[order(2, 13, 1)]);
    assert_eq!(column(server, "prices", "id", "rate")[0], (json!(1), json!(1.14)));
    post(server, "rates", &[rate(1.5, 11, 30)]);
    server.settle("prices");
    let answer = server.get("/v1/views/prices/rows");
    assert_eq!((&answer["exact"], &answer["rows"][0]["rate_lower"]), (&json!(false), &Value::Null), "{answer}");
    post(server, "rates", &[rate(1.2, 15, 0)]);
    post(server, "orders", &[json!({"id": 9, "currency": "CHF", "ts": "2024-01-15T15:00:00Z"})]);
    server.settle("hourly");
    server.batch_all(&["prices", "hourly"]);
    assert_eq!(column(server, "prices", "id", "rate"), [(json!(1), json!(1.5)), (json!(2), json!(1.2))]);
    // What has changed of the hour that was closed is put down to what came late.
    let mut corrections = Value::Null;
    until("the answers are scored", || {
        corrections = server.get("/v1/views/hourly/corrections")["corrections"].clone();
        corrections.as_array().is_some_and(|all| !all.is_empty())
    });
    let first = &corrections[0];
    assert_eq!(
        (&first["cause"], &first["old"], &first["new"]),
        (&json!("late"), &json!(1.14), &json!(1.5)),
        "{corrections}"
    );
}

#[test]
fn current_rows_are_looked_up_by_key_and_counts_go_down_again() {
    let project = Project::with_sql(RATES);
    let server = Server::start(&project);
    let count = |server: &Server| {
        server.settle("known");
        let answer = server.get("/v1/views/known/rows");
        assert_eq!(answer["exact"], true, "{answer}");
        answer["rows"][0]["n"].clone()
    };
    let now = |server: &Server| column(server, "now", "currency", "rate");
    let of = |currency: &str, rate: f64| json!({"currency": currency, "rate": rate, "valid": at(0, 0)});
    post(&server, "rates", &[of("EUR", 1.1), of("USD", 1.0), of("CHF", 0.9)]);
    // A thousand changes of one row, some of which are of times before.
    let changes: Vec<Value> = (0..1_000).map(|i| of("EUR", f64::from(i))).collect();
    post(&server, "rates", &changes);
    assert_eq!((count(&server), now(&server)[1].clone()), (json!(3), (json!("EUR"), json!(999.0))));
    let found = server.get("/v1/views/now/rows?key.currency=USD");
    assert_eq!((&found["rows"][0]["rate"], &found["total"]), (&json!(1.0), &json!(1)), "{found}");
    server.batch_all(&["now", "known"]);
    for mode in ["batch", "merged"] {
        let answer = server.get(&format!("/v1/views/known/rows?mode={mode}"));
        assert_eq!((&answer["rows"][0]["n"], &answer["exact"]), (&json!(3), &json!(true)), "{mode}: {answer}");
    }
    // The newest version is above the frontier, the one before it below.
    let deleted = server.request(reqwest::Method::DELETE, "/v1/topics/rates/events/USD").send().expect("an answer");
    assert!(deleted.status().is_success(), "{deleted:?}");
    post(&server, "rates", &[of("EUR", 2.0), of("SEK", 0.1), json!({"currency": "SEK", "__deleted": true})]);
    let expected = [(json!("CHF"), json!(0.9)), (json!("EUR"), json!(2.0))];
    assert_eq!((count(&server), now(&server)), (json!(2), expected.to_vec()));
    server.kill();
    let server = Server::start(&project);
    assert_eq!((count(&server), now(&server)), (json!(2), expected.to_vec()));
    post(&server, "rates", &[of("USD", 1.3)]);
    assert_eq!(count(&server), 3, "it is there again");
    server.batch_all(&["now", "known"]);
    assert_eq!((count(&server), now(&server).len()), (json!(3), 3));
}

/// The events of the example's README, block by block: the topic, and the lines.
fn told() -> Vec<(String, String)> {
    let readme = std::fs::read_to_string(repository().join("examples/joins/README.md")).expect("the README");
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some((_, topic)) = line.split_once("/v1/topics/") else { continue };
        let topic = topic.split('/').next().expect("a topic").to_owned();
        let events: Vec<&str> = lines.by_ref().map(str::trim).take_while(|line| *line != "END").collect();
        blocks.push((topic, events.join("\n")));
    }
    blocks
}

#[test]
fn a_check_of_the_example_says_what_its_joins_keep() {
    let project = Project::example("joins");
    let checked = anabranch().args(["views", "check"]).arg(project.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success(), "{said}");
    // Ten seconds, a watermark of five, and a minute in which events may be late.
    for line in [
        "view `revenue_by_url` keeps a row of `clicks` for 75 s: at 1000 a second 75000 rows",
        "view `revenue_by_url` keeps a row of `purchases` for 75 s: at 1000 a second 75000 rows",
        "view `clicks_without_purchase` keeps a row of `clicks` for 305 s: at 1000 a second 305000 rows",
        "view `clicks_without_purchase` keeps a row of `purchases` for 5 s: at 1000 a second 5000 rows",
        "view `suspicious_purchases` keeps the newest 1 of each key of `purchases`",
    ] {
        assert!(said.lines().any(|it| it == line), "{line}\n{said}");
    }
}

#[test]
fn the_example_of_clicks_and_purchases_answers_as_its_readme_says() {
    let project = Project::example("joins");
    let server = Server::start(&project);
    let blocks = told();
    assert_eq!(
        blocks.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>(),
        ["clicks", "purchases", "clicks", "purchases"]
    );
    for (topic, events) in &blocks[..2] {
        server.post(topic, events.clone());
    }
    let views = ["revenue_by_url", "clicks_without_purchase", "suspicious_purchases"];
    let rows = |view: &str| {
        server.settle(view);
        let answer = server.get(&format!("/v1/views/{view}/rows"));
        assert_eq!(answer["exact"], true, "{answer}");
        answer["rows"].clone()
    };
    let bound = |name: &str, value: i64| {
        [name.to_owned(), format!("{name}_lower"), format!("{name}_upper")].map(|name| (name, json!(value)))
    };
    let row = |key: (&str, &str), values: &[(&str, i64)]| {
        let values = values.iter().flat_map(|(name, value)| bound(name, *value));
        Value::from_iter([(key.0.to_owned(), json!(key.1))].into_iter().chain(values))
    };
    let lamp = ("url", "/lamp");
    assert_eq!(rows(views[0]), json!([row(lamp, &[("purchases", 1), ("revenue", 40)])]));
    let suspicious = json!([row(("user_id", "ann"), &[("purchases", 1), ("largest", 90_000)])]);
    assert_eq!(rows(views[2]), suspicious);
    assert_eq!(rows(views[1]), json!([]), "it isn't known yet");
    for (topic, events) in &blocks[2..] {
        server.post(topic, events.clone());
    }
    let alone = json!([row(lamp, &[("clicks", 1)])]);
    assert_eq!(rows(views[1]), alone);
    server.batch_all(&views);
    assert_eq!((rows(views[1]), rows(views[2])), (alone, suspicious));
}

const SETTINGS: &str = "
[speed]
snapshot_interval = '10 ms'
checkpoint_interval = '20 ms'
chunk_interval = '30 ms'
[batch]
scheduler = false
";

/// A unit of time, in microseconds.
const UNIT: i64 = 500_000;

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A join of the two streams.
    Inner,
    /// The same with the left rows that stay alone.
    Left,
    /// The left stream with itself.
    Own,
    /// Rows with the ones before them.
    Lag,
    /// The left stream with the versions of the changelog that held then.
    AsOf,
    /// The same with the left rows that find none.
    LeftAsOf,
    /// The changelog's current rows.
    Current,
}

#[derive(Debug, Clone)]
struct View {
    kind: Kind,
    /// By how much the right row is later, from and to, in units.
    within: (i64, i64),
    is_less: bool,
    /// In units; none means all of time.
    window: Option<i64>,
    lateness: i64,
}

#[derive(Debug, Clone)]
struct Event {
    key: Option<u8>,
    value: Option<i64>,
    time: i64,
}

/// Which table an event is of: the left stream, the right one, or the changelog. There an event without a value deletes its key.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Table {
    Left,
    Right,
    Changelog,
}

#[derive(Debug, Clone)]
enum Step {
    Post(Table, Vec<Event>),
    Batch,
    Stop,
    Kill,
}

fn view() -> impl Strategy<Value = View> {
    let kinds = [Kind::Inner, Kind::Left, Kind::Own, Kind::Lag, Kind::AsOf, Kind::LeftAsOf, Kind::Current];
    let kind = proptest::sample::select(kinds.to_vec());
    let window = proptest::option::weighted(0.8, proptest::sample::select(vec![1_i64, 3, 10, 60]));
    let within = (-12_i64..12, 0_i64..15).prop_map(|(from, length)| (from, from + length));
    (kind, within, any::<bool>(), window, prop_oneof![Just(0_i64), Just(20)]).prop_map(
        |(kind, within, is_less, window, lateness)| {
            // Without windows it would never be sure that a row stays alone.
            let window = match kind {
                Kind::Left => window.or(Some(7)),
                Kind::Current => None,
                _ => window,
            };
            View { kind, within, is_less, window, lateness }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = proptest::option::weighted(0.9, 0_u8..3);
    let event = (key, proptest::option::weighted(0.9, -5_i64..9), -40_i64..40).prop_map(|(key, value, time)| Event {
        key,
        value,
        time,
    });
    let table = proptest::sample::select(vec![Table::Left, Table::Right, Table::Changelog]);
    let post = (table, proptest::collection::vec(event, 1..25)).prop_map(|(table, all)| Step::Post(table, all));
    let step = prop_oneof![10 => post, 3 => Just(Step::Batch), 1 => Just(Step::Stop), 1 => Just(Step::Kill)];
    proptest::collection::vec(step, 1..10)
}

impl View {
    fn ours(&self, i: usize) -> String {
        let interval = |units: i64| format!("INTERVAL '{} milliseconds'", units * UNIT / 1_000);
        let shifted =
            |time: &str, units: i64| format!("{time} {} {}", if units < 0 { "-" } else { "+" }, interval(units.abs()));
        let between = |time: &str, base: &str| {
            format!("{time} BETWEEN {} AND {}", shifted(base, self.within.0), shifted(base, self.within.1))
        };
        let less = |a: &str, b: &str| if self.is_less { format!(" AND {a} < {b}") } else { String::new() };
        let rows = match self.kind {
            Kind::Inner | Kind::Left => format!(
                "SELECT l.k AS k, x AS x, y AS y, l.ts AS t FROM l {} JOIN r ON l.k = r.k AND {}{}",
                if matches!(self.kind, Kind::Left) { "LEFT" } else { "" },
                between("r.ts", "l.ts"),
                less("x", "y")
            ),
            Kind::Own => format!(
                "SELECT a.k AS k, a.x AS x, b.x AS y, b.ts AS t FROM l a JOIN l b ON a.k = b.k AND {}{}",
                between("b.ts", "a.ts"),
                less("a.x", "b.x")
            ),
            Kind::AsOf | Kind::LeftAsOf => format!(
                "SELECT l.k AS k, x AS x, y AS y, l.ts AS t FROM l {} JOIN u FOR SYSTEM_TIME AS OF l.ts AS u ON u.k = l.k{}",
                if matches!(self.kind, Kind::LeftAsOf) { "LEFT" } else { "" },
                less("x", "y")
            ),
            Kind::Current => format!(
                "SELECT CAST(y AS TEXT) AS k, y AS x, y AS y FROM u{}",
                if self.is_less { " WHERE y > 1" } else { "" }
            ),
            Kind::Lag => format!(
                "SELECT k, x, y, t FROM (SELECT k, x, LAG(x) OVER (PARTITION BY k ORDER BY ts) AS y, ts AS t FROM l) s{}",
                if self.is_less { " WHERE x < y" } else { "" }
            ),
        };
        let lateness = format!("WITH (allowed_lateness = '{} ms')", self.lateness * UNIT / 1_000);
        let values = "count(*) AS n, sum(x) AS sx, sum(y) AS sy, max(y) AS my";
        match self.window {
            None => format!(
                "CREATE VIEW j{i} AS {rows};
                 CREATE MATERIALIZED VIEW view{i} {lateness} AS SELECT k, {values} FROM j{i} GROUP BY k;\n"
            ),
            Some(size) => format!(
                "CREATE VIEW j{i} AS {rows};
                 CREATE MATERIALIZED VIEW view{i} {lateness} AS SELECT window_start, window_end, k, {values}
                 FROM TUMBLE(j{i}, t, {}) GROUP BY window_start, window_end, k;\n",
                interval(size)
            ),
        }
    }

    /// Of the events of each table up to a number.
    fn theirs(&self, upto: [usize; 3]) -> String {
        let (from, to) = (self.within.0 * UNIT, self.within.1 * UNIT);
        let less = |a: &str, b: &str| if self.is_less { format!(" AND {a} < {b}") } else { String::new() };
        let tables = format!(
            "WITH l AS (SELECT * FROM ll WHERE n < {}), r AS (SELECT * FROM rr WHERE n < {}), u AS (SELECT * FROM uu WHERE n < {})",
            upto[0], upto[1], upto[2]
        );
        let rows = match self.kind {
            Kind::Inner | Kind::Left => format!(
                "SELECT l.k, l.v AS x, r.v AS y, l.us AS t FROM l {} JOIN r ON l.k = r.k AND r.us BETWEEN l.us + {from} AND l.us + {to}{}",
                if matches!(self.kind, Kind::Left) { "LEFT" } else { "" },
                less("l.v", "r.v")
            ),
            Kind::Own => format!(
                "SELECT a.k, a.v AS x, b.v AS y, b.us AS t FROM l a JOIN l b ON a.k = b.k AND b.us BETWEEN a.us + {from} AND a.us + {to}{}",
                less("a.v", "b.v")
            ),
            Kind::AsOf | Kind::LeftAsOf => format!(
                "SELECT {} FROM (SELECT l.k, l.v AS x, u.v AS y, l.us AS t,
                 row_number() OVER (PARTITION BY l.n ORDER BY u.us DESC NULLS LAST, u.n DESC) AS i
                 FROM l LEFT JOIN u ON u.k = l.k AND u.us <= l.us) WHERE i = 1{}",
                match (self.kind, self.is_less) {
                    (Kind::LeftAsOf, true) => "k, x, CASE WHEN x < y THEN y END AS y, t",
                    _ => "k, x, y, t",
                },
                match (self.kind, self.is_less) {
                    (Kind::LeftAsOf, _) => "",
                    (_, true) => " AND x < y",
                    (_, false) => " AND y IS NOT NULL",
                }
            ),
            Kind::Current => format!(
                "SELECT v::TEXT AS k, v AS x, v AS y, 0 AS t FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY n DESC) AS i FROM u)
                 WHERE i = 1 AND v IS NOT NULL{}",
                if self.is_less { " AND v > 1" } else { "" }
            ),
            Kind::Lag => format!(
                "SELECT * FROM (SELECT k, v AS x, lag(v) OVER (PARTITION BY k ORDER BY us, n) AS y, us AS t FROM l){}",
                if self.is_less { " WHERE x < y" } else { "" }
            ),
        };
        let start = match self.window {
            None => "0::BIGINT".to_owned(),
            Some(size) => format!("t - ((t % {0}) + {0}) % {0}", size * UNIT),
        };
        format!(
            "{tables} SELECT ({start})::BIGINT AS start, k, count(*), sum(x)::BIGINT, sum(y)::BIGINT, max(y) FROM ({rows}) GROUP BY start, k"
        )
    }
}

/// A window's start, and the key.
type Key = (i64, Option<String>);

struct Run {
    views: Vec<View>,
    duckdb: Connection,
    /// How many events each table has, and how many of them batch covers.
    posted: [usize; 3],
    covered: [usize; 3],
}

impl Run {
    fn add(&mut self, table: Table, events: &[Event]) {
        let side = table as usize;
        let mut appender = self.duckdb.appender(["ll", "rr", "uu"][side]).expect("an appender");
        for event in events {
            let key = event.key.map(|key| format!("k{key}"));
            let row = duckdb::params![self.posted[side] as i64, key, event.value, event.time * UNIT];
            appender.append_row(row).expect("appended");
            self.posted[side] += 1;
        }
        appender.flush().expect("written");
    }

    fn truth(&self, view: &View, upto: [usize; 3]) -> BTreeMap<Key, [Option<i64>; 4]> {
        let sql = view.theirs(upto);
        let mut statement = self.duckdb.prepare(&sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let mut rows = statement.query([]).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        let mut all = BTreeMap::new();
        while let Some(row) = rows.next().expect("a row") {
            let key = (row.get(0).expect("a start"), row.get(1).expect("a key"));
            all.insert(key, [2, 3, 4, 5].map(|i| row.get(i).expect("a value")));
        }
        all
    }

    /// Compares answers with the truth about the same events. `is_over` says that nothing waits any more, but for the last events.
    fn check(&self, server: &Server, is_over: bool) {
        let micros = |text: &Value| {
            let time = chrono::DateTime::parse_from_rfc3339(text.as_str()?).expect("a time");
            Some(time.timestamp_micros())
        };
        for (i, view) in self.views.iter().enumerate() {
            let name = format!("view{i}");
            server.settle(&name);
            for (mode, upto) in [("merged", self.posted), ("batch", self.covered)] {
                let (rows, answer) = match view.window {
                    None => {
                        let answer = server.get(&format!("/v1/views/{name}/rows?mode={mode}&limit=100000"));
                        (answer["rows"].as_array().expect("rows").clone(), answer)
                    }
                    Some(_) => server.range(&name, "1969-12-31T23:50:00Z", "1970-01-01T00:10:00Z", mode),
                };
                let what = format!("{mode} at {:?} of {:?}:\n{}", self.covered, self.posted, view.ours(i));
                let mut truth = self.truth(view, upto);
                // Rows that stay alone are only there once that is sure.
                let closed = micros(&answer["watermark"]).unwrap_or(i64::MIN);
                let is_settled = |start: i64| {
                    let length = view.window.unwrap_or(0) + view.lateness;
                    !matches!(view.kind, Kind::Left) || is_over || start + length * UNIT <= closed
                };
                truth
                    .retain(|(start, _), _| is_settled(*start) && (view.window.is_none() || start.abs() < 600_000_000));
                let mut found = BTreeMap::new();
                for row in &rows {
                    let key = (micros(&row["window_start"]).unwrap_or(0), row["k"].as_str().map(str::to_owned));
                    let cell = |name: &str| ["", "_lower", "_upper"].map(|b| row[format!("{name}{b}")].as_i64());
                    if is_settled(key.0) {
                        assert!(found.insert(key, ["n", "sx", "sy", "my"].map(cell)).is_none(), "{what}: twice: {row}");
                    }
                }
                if answer["exact"] == true {
                    let values: BTreeMap<Key, [Option<i64>; 4]> =
                        found.iter().map(|(key, cells)| (key.clone(), cells.map(|cell| cell[0]))).collect();
                    assert_eq!(values, truth, "{what}\nis said to be exact\n{answer}");
                    continue;
                }
                let covers = |table: Table| self.covered[table as usize] > 0;
                let has_version = match view.kind {
                    Kind::Inner | Kind::Left => covers(Table::Left) || covers(Table::Right),
                    Kind::Own | Kind::Lag => covers(Table::Left),
                    Kind::AsOf | Kind::LeftAsOf => covers(Table::Left) || covers(Table::Changelog),
                    Kind::Current => covers(Table::Changelog),
                };
                assert!(mode != "batch" || !has_version, "a version is exact: {what}\n{answer}");
                if answer["incomplete"] == true {
                    continue;
                }
                for (key, cells) in &found {
                    let Some(truth) = truth.get(key) else { continue };
                    for ([_, lower, upper], truth) in cells.iter().zip(truth) {
                        let (Some(lower), Some(upper), Some(truth)) = (lower, upper, truth) else { continue };
                        assert!(
                            lower <= truth && truth <= upper,
                            "{what}: {key:?} is {truth}, not {cells:?}\n{answer}"
                        );
                    }
                }
            }
        }
    }
}

fn run(views: Vec<View>, watermark: i64, steps: &[Step], on: impl Fn(Project) -> Project) {
    let delay = watermark * UNIT / 1_000;
    let table = |name: &str, key: &str, value: &str, partitions: u32| {
        format!(
            "CREATE TABLE {name} (k TEXT {key}, {value} BIGINT, ts TIMESTAMP NOT NULL)
             WITH (topic = '{name}', event_time = 'ts', watermark = '{delay} ms', partitions = {partitions});\n"
        )
    };
    let sql: Vec<String> = views.iter().enumerate().map(|(i, view)| view.ours(i)).collect();
    let project = Project::with_sql(
        &(table("l", "", "x", 1) + &table("r", "", "y", 2) + &table("u", "PRIMARY KEY", "y", 1) + &sql.join("")),
    );
    project.write("anabranch.toml", SETTINGS);
    let project = on(project);
    let duckdb = Connection::open_in_memory().expect("DuckDB");
    let tables = "SET threads = 1; CREATE TABLE ll (n BIGINT, k TEXT, v BIGINT, us BIGINT);
                  CREATE TABLE rr (n BIGINT, k TEXT, v BIGINT, us BIGINT); CREATE TABLE uu (n BIGINT, k TEXT, v BIGINT, us BIGINT);";
    duckdb.execute_batch(tables).expect("tables");
    let names: Vec<String> = (0..views.len()).map(|i| format!("view{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut run = Run { views, duckdb, posted: [0; 3], covered: [0; 3] };
    let mut server = Server::start(&project);
    let send = |server: &Server, run: &mut Run, table: Table, events: &[Event]| {
        let (topic, value) = [("l", "x"), ("r", "y"), ("u", "y")][table as usize];
        let mut events = events.to_vec();
        let line = |event: &mut Event| {
            let ts = event.time * UNIT / 1_000;
            if table == Table::Changelog {
                // A key is never null.
                event.key = event.key.or(Some(0));
            }
            let key = event.key.map(|key| format!("k{key}"));
            match event.value {
                None if table == Table::Changelog => json!({"k": key, "__deleted": true, "ts": ts}),
                given => json!({"k": key, value: given, "ts": ts}),
            }
        };
        let lines: Vec<Value> = events.iter_mut().map(line).collect();
        post(server, topic, &lines);
        run.add(table, &events);
    };
    for step in steps {
        match step {
            Step::Post(table, events) => {
                send(&server, &mut run, *table, events);
                run.check(&server, false);
            }
            Step::Batch => {
                server.batch_all(&names);
                run.covered = run.posted;
                run.check(&server, false);
            }
            Step::Stop => {
                server.stop();
                server = Server::start(&project);
            }
            Step::Kill => {
                server.kill();
                server = Server::start(&project);
            }
        }
    }
    // Time goes far on in each partition, by keys that meet nothing.
    for (table, key) in [(Table::Left, 100), (Table::Right, 101), (Table::Changelog, 102)] {
        let last = |_| Event { key: Some(key), value: None, time: 10_000 };
        send(&server, &mut run, table, &(0..8).map(last).collect::<Vec<_>>());
    }
    run.check(&server, false);
    server.batch_all(&names);
    run.covered = run.posted;
    run.check(&server, true);
}

/// Puts so many streams to the test, with eight views of each.
fn run_all(count: u32, on: impl Fn(Project) -> Project) {
    let mut runner = proptest::test_runner::TestRunner::new(cases(count));
    let case = (proptest::collection::vec(view(), 8), prop_oneof![Just(0_i64), Just(4), Just(80)], steps());
    let outcome = runner.run(&case, |(views, watermark, steps)| {
        run(views, watermark, &steps, &on);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn random_joins_and_lags_answer_as_duckdb_does() {
    run_all(25, |project| project);
}

#[test]
fn on_kafka_random_joins_and_lags_answer_as_duckdb_does() {
    if let Some(brokers) = kafka() {
        run_all(4, |project| project.on_kafka(&brokers));
    }
}
