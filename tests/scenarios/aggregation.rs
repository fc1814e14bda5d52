//! The book's aggregations over windows and without: purchases by user, visits by URL, words, and what each user has spent.

use serde_json::{Value, json};

use super::minute;
use crate::support::{Project, Server};

const SQL: &str = r"
CREATE TABLE events (event_type TEXT NOT NULL, user_id TEXT NOT NULL, url TEXT, text TEXT, amount DOUBLE, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', watermark = '1 hour');
CREATE MATERIALIZED VIEW purchases_tumbling AS
SELECT window_start, window_end, user_id, count(*) AS n FROM TUMBLE(events, ts, INTERVAL '5 minutes')
WHERE event_type = 'purchase' GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW purchases_sliding AS
SELECT window_start, window_end, user_id, count(*) AS n FROM HOP(events, ts, INTERVAL '5 minutes', INTERVAL '10 minutes')
WHERE event_type = 'purchase' GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW by_url AS
SELECT window_start, window_end, url, count(*) AS n FROM TUMBLE(events, ts, INTERVAL '5 minutes')
WHERE event_type = 'page_view' GROUP BY window_start, window_end, url;
CREATE MATERIALIZED VIEW purchase_counts AS
SELECT user_id, count(*) AS n FROM events WHERE event_type = 'purchase' GROUP BY user_id;
CREATE MATERIALIZED VIEW words AS
SELECT word, count(*) AS n FROM events CROSS JOIN UNNEST(regexp_extract_all(lower(text), '\w+')) AS w(word) GROUP BY word;
CREATE MATERIALIZED VIEW total_spent AS
SELECT user_id, sum(amount) AS n FROM events WHERE event_type = 'purchase' GROUP BY user_id;
";

/// Where a window starts, in minutes, the key, and the figure.
type Row = (i64, &'static str, f64);

fn events() -> Vec<String> {
    let visit = |at: i64, user: &str, url: &str| {
        json!({"event_type": "page_view", "user_id": user, "url": url, "ts": minute(at)}).to_string()
    };
    let purchase = |at: i64, user: &str, amount: f64| {
        json!({"event_type": "purchase", "user_id": user, "amount": amount, "ts": minute(at)}).to_string()
    };
    let line = |at: i64, text: &str| {
        json!({"event_type": "line", "user_id": "user_123", "text": text, "ts": minute(at)}).to_string()
    };
    vec![
        visit(0, "user_123", "/products/laptop"),
        purchase(1, "user_456", 1299.5),
        line(2, "Hello streams, hello World"),
        purchase(4, "user_123", 10.5),
        visit(4, "user_456", "/products/laptop"),
        visit(5, "user_456", "/cart"),
        purchase(7, "user_456", 0.5),
        line(8, "hello, again"),
        purchase(9, "user_456", 20.0),
    ]
}

/// A view's rows: where each window starts, in minutes, the key, and the figure.
fn rows(server: &Server, view: &str, key: &str) -> Vec<(i64, String, f64)> {
    let windowed = !matches!(view, "purchase_counts" | "words" | "total_spent");
    let rows = if windowed {
        server.range(view, &minute(-60), &minute(60), "merged").0
    } else {
        server.get(&format!("/v1/views/{view}/rows"))["rows"].as_array().expect("rows").clone()
    };
    let start = |row: &Value| {
        let start = row["window_start"].as_str();
        (-60..60).find(|&at| start == Some(minute(at).as_str())).unwrap_or(0)
    };
    let figure = |row: &Value| {
        assert_eq!((&row["n_lower"], &row["n_upper"]), (&row["n"], &row["n"]), "{row}");
        row["n"].as_f64().expect("a figure")
    };
    let mut rows: Vec<_> =
        rows.iter().map(|row| (start(row), row[key].as_str().expect("a key").to_owned(), figure(row))).collect();
    rows.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
    rows
}

#[test]
fn aggregations_are_those_of_the_book_at_every_frontier() {
    let events = events();
    let (one, other) = ("user_123", "user_456");
    let outcomes: [(&str, &str, &[Row]); 6] = [
        ("purchases_tumbling", "user_id", &[(0, one, 1.0), (0, other, 1.0), (5, other, 2.0)]),
        (
            "purchases_sliding",
            "user_id",
            &[(-5, one, 1.0), (-5, other, 1.0), (0, one, 1.0), (0, other, 3.0), (5, other, 2.0)],
        ),
        ("by_url", "url", &[(0, "/products/laptop", 2.0), (5, "/cart", 1.0)]),
        ("purchase_counts", "user_id", &[(0, one, 1.0), (0, other, 3.0)]),
        ("words", "word", &[(0, "again", 1.0), (0, "hello", 3.0), (0, "streams", 1.0), (0, "world", 1.0)]),
        ("total_spent", "user_id", &[(0, one, 10.5), (0, other, 1320.0)]),
    ];
    for frontier in [0, 4, events.len()] {
        let project = Project::with_sql(SQL);
        let server = Server::start(&project);
        server.post_lines("events", &events[..frontier]);
        if frontier > 0 {
            outcomes.iter().for_each(|(view, ..)| _ = server.batch(view));
        }
        server.post_lines("events", &events[frontier..]);
        for (view, key, expected) in &outcomes {
            server.settle(view);
            let expected: Vec<_> = expected.iter().map(|&(at, key, n)| (at, key.to_owned(), n)).collect();
            assert_eq!(rows(&server, view, key), expected, "{view} at {frontier}");
        }
    }
}

/// What a view had said until it was defined anew is corrected, with the cause, once batch has published what it says now.
#[test]
fn a_new_definition_corrects_what_the_old_one_had_said() {
    let sql = |what: &str| {
        format!(
            "CREATE TABLE events (user_id TEXT NOT NULL, amount BIGINT, ts TIMESTAMP NOT NULL)
             WITH (topic = 'events', event_time = 'ts', watermark = '1 minute');
             CREATE MATERIALIZED VIEW spent AS SELECT window_start, window_end, user_id, {what} AS n
             FROM TUMBLE(events, ts, INTERVAL '1 hour') GROUP BY window_start, window_end, user_id;"
        )
    };
    let event = |user: &str, amount: i64| json!({"user_id": user, "amount": amount, "ts": minute(5)}).to_string();
    let project = Project::with_sql(&sql("sum(amount)"));
    let server = Server::start(&project);
    server.post_lines("events", &[event("user_123", 5), event("user_123", 7), event("user_456", 9)]);
    assert_eq!(server.batch("spent"), 1);
    server.stop();

    project.write("views/views.sql", &sql("max(amount)"));
    let server = Server::start(&project);
    assert_eq!(server.batch("spent"), 2);
    let told = server.get("/v1/views/spent/corrections");
    let correction = json!({
        "window_start": minute(0), "window_end": minute(60), "key": {"user_id": "user_123"},
        "column": "n", "old": 12, "new": 7, "cause": "redefined",
    });
    assert_eq!((&told["version"], &told["total"]), (&json!(2), &json!(1)), "{told}");
    assert_eq!(told["corrections"], json!([correction]), "{told}");
    let problem = server.problem(server.request(reqwest::Method::GET, "/v1/views/spent/corrections?version=7"));
    assert_eq!((problem.0, &problem.1["title"]), (404, &json!("unknown version")), "{}", problem.1);
}
