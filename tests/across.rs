//! Views whose rows are made of several records: joins of streams, look-ups, `LAG` and current rows, in both layers and merged. The cases
//! here have the values that anybody would compute by hand.

mod random;

use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, told, until};

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
    // A checkpoint of the view is as good.
    std::fs::remove_dir_all(project.data().join("checkpoints")).expect("removed");
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
    let blocks = told("joins");
    assert_eq!(
        blocks.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>(),
        ["users", "clicks", "purchases", "clicks", "purchases"]
    );
    for (topic, events) in &blocks[..3] {
        server.post(topic, events.clone());
    }
    let views = ["revenue_by_url", "clicks_without_purchase", "suspicious_purchases", "revenue_by_plan"];
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
    let plans = [("pro", 90_000), ("free", 40)];
    let plans = plans.map(|(plan, revenue)| row(("plan", plan), &[("purchases", 1), ("revenue", revenue)]));
    assert_eq!(rows(views[3]), json!(plans));
    assert_eq!(rows(views[1]), json!([]), "it isn't known yet");
    for (topic, events) in &blocks[3..] {
        server.post(topic, events.clone());
    }
    let alone = json!([row(lamp, &[("clicks", 1)])]);
    assert_eq!(rows(views[1]), alone);
    server.batch_all(&views);
    assert_eq!((rows(views[1]), rows(views[2]), rows(views[3])), (alone, suspicious, json!(plans)));
}
