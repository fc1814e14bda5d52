//! Speed, batch and merged answers for every window of two real streams, at several frontiers, against DuckDB's SQL
//! over the same files. The oracle shares no code with the platform.

use std::collections::BTreeMap;
use std::path::Path;

use duckdb::Connection;
use serde_json::Value;

use crate::support::{Project, Server, data, kafka, lines};

/// What `\w` means in Rust, in the character classes that DuckDB's RE2 knows.
const WORD: &str = r"[\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189}\x{200c}\x{200d}]";

struct Oracle {
    duckdb: Connection,
}

/// A window's end and the row's key.
type Row = (String, String);

impl Oracle {
    /// The events of a file, each with its offset: in a topic of one partition it is the line's number.
    fn new(file: &Path, columns: &str) -> Self {
        let duckdb = Connection::open_in_memory().expect("DuckDB");
        let sql = format!(
            "SET TimeZone = 'UTC';
             CREATE TABLE events AS SELECT (row_number() OVER ()) - 1 AS \"offset\", *
             FROM read_json('{}', format = 'newline_delimited', columns = {columns});",
            file.display()
        );
        duckdb.execute_batch(&sql).expect("the events");
        Self { duckdb }
    }

    /// Runs SQL that yields window end, key and a number.
    fn rows(&self, sql: &str) -> BTreeMap<Row, i64> {
        let mut statement = self.duckdb.prepare(sql).unwrap_or_else(|e| panic!("{e}\n{sql}"));
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, i64>(2)?)));
        rows.expect("a result").map(|row| row.expect("a row")).collect()
    }

    /// Mentions by window and hashtag of the events that satisfy `which`, cut to each window's first 100 if `cut`.
    fn hashtags(&self, which: &str, cut: bool) -> BTreeMap<Row, i64> {
        let limit = if cut { "QUALIFY row_number() OVER (PARTITION BY w ORDER BY n DESC, tag) <= 100" } else { "" };
        self.rows(&format!(
            "WITH tags AS (
               SELECT timestamp, unnest(regexp_extract_all(lower(text), '#{WORD}+')) AS tag FROM events WHERE {which}
             ), windows AS (
               SELECT tag, unnest(generate_series(
                 time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '1 minute',
                 time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '5 minutes', INTERVAL '1 minute')) AS w FROM tags
             ), counts AS (SELECT w, tag, count(*) AS n FROM windows GROUP BY w, tag)
             SELECT strftime(w, '%Y-%m-%dT%H:%M:%SZ'), tag, n FROM counts {limit}"
        ))
    }

    /// A number by tumbling minute and URL.
    fn clicks(&self, which: &str) -> BTreeMap<Row, i64> {
        self.rows(&format!(
            "SELECT strftime(time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '1 minute', '%Y-%m-%dT%H:%M:%SZ'),
                    url, count(*) FROM events WHERE {which} GROUP BY ALL"
        ))
    }

    /// A number by window of ten minutes that slide by one, without a key.
    fn traffic(&self, number: &str, which: &str) -> BTreeMap<Row, i64> {
        self.rows(&format!(
            "SELECT strftime(w, '%Y-%m-%dT%H:%M:%SZ'), '', CAST({number} AS BIGINT) FROM (
               SELECT *, unnest(generate_series(
                 time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '1 minute',
                 time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '10 minutes', INTERVAL '1 minute')) AS w
               FROM events WHERE {which}) GROUP BY w"
        ))
    }

    fn users(&self, which: &str) -> BTreeMap<Row, i64> {
        self.rows(&format!("SELECT '', user_id, count(*) FROM events WHERE {which} GROUP BY user_id"))
    }
}

/// An answer's rows by window and key: value, lower bound, upper bound.
fn answered(rows: &[Value], key: Option<&str>, column: &str) -> BTreeMap<Row, [i64; 3]> {
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap_or_else(|| panic!("no number {name} in {row}"));
    let mut answered = BTreeMap::new();
    for row in rows {
        let window = row["window_end"].as_str().unwrap_or_default().to_owned();
        let key = key.map_or("", |key| row[key].as_str().unwrap_or_else(|| panic!("no key {key} in {row}"))).to_owned();
        let value =
            [number(row, column), number(row, &format!("{column}_lower")), number(row, &format!("{column}_upper"))];
        assert!(answered.insert((window, key), value).is_none(), "the row is there twice: {row}");
    }
    answered
}

fn assert_equal(what: &str, answered: &BTreeMap<Row, [i64; 3]>, expected: &BTreeMap<Row, i64>) {
    for (row, value) in answered {
        assert_eq!(Some(&value[0]), expected.get(row), "{what}: {row:?}");
        assert!(value[1] == value[0] && value[2] == value[0], "{what}: {row:?} is exact, yet its bounds are {value:?}");
    }
    assert_eq!(answered.len(), expected.len(), "{what}: as many rows");
}

fn assert_within(what: &str, answered: &BTreeMap<Row, [i64; 3]>, truth: &BTreeMap<Row, i64>) {
    for (row, [value, lower, upper]) in answered {
        let truth = truth.get(row).copied().unwrap_or(0);
        assert!(lower <= value && value <= upper, "{what}: {row:?} is {value} outside [{lower}, {upper}]");
        assert!(*lower <= truth && truth <= *upper, "{what}: {row:?} is truly {truth}, outside [{lower}, {upper}]");
    }
}

/// Each frontier at which the answers are compared: how many events the newest batch version covers.
fn frontiers(events: usize) -> [usize; 4] {
    [0, events / 3, events * 2 / 3, events]
}

/// Posts everything, with a batch run once `frontier` events are there.
fn serve(project: &Project, topic: &str, views: &[&str], events: &[String], frontier: usize) -> Server {
    let server = Server::start(project);
    server.post_lines(topic, &events[..frontier]);
    if frontier > 0 {
        for view in views {
            server.batch(view);
        }
    }
    server.post_lines(topic, &events[frontier..]);
    for view in views {
        let detail = server.settle(view);
        let speed = &detail["coverage"]["speed"]["offsets"][topic]["0"];
        assert_eq!(speed[1], events.len(), "{detail}");
        if frontier > 0 {
            assert_eq!(detail["coverage"]["batch"]["offsets"][topic]["0"][1], frontier, "{detail}");
            assert_eq!(speed[0], frontier, "the layers meet at the frontier: {detail}");
        }
    }
    server
}

#[test]
fn trending_hashtags_of_real_tweets_are_those_of_the_oracle_at_every_frontier() {
    tweets(&|| Project::example("social"), 4);
}

#[test]
fn trending_hashtags_on_kafka_are_those_of_the_oracle() {
    if let Some(brokers) = kafka() {
        tweets(&|| Project::example("social").on_kafka(&brokers), 2);
    }
}

/// At so many of the frontiers, the last ones.
fn tweets(project: &dyn Fn() -> Project, at: usize) {
    let file = data("tweets.ndjson");
    let events = lines(&file);
    let oracle = Oracle::new(&file, "{timestamp: 'TIMESTAMP', text: 'VARCHAR'}");
    let (from, to) = ("2017-08-26T23:00:00Z", "2017-08-27T03:00:00Z");
    let view = "trending_hashtags";
    let truth = oracle.hashtags("true", true);
    assert!(truth.len() > 5_000, "the oracle found hashtags: {}", truth.len());
    for frontier in frontiers(events.len()).into_iter().rev().take(at) {
        let project = project();
        let server = serve(&project, "tweets", &[view], &events, frontier);
        let what = |mode: &str| format!("{mode} at {frontier}");

        let (rows, answer) = server.range(view, from, to, "merged");
        assert_eq!(answer["exact"], true, "no tweet is late: {}", answer["late"]);
        assert_eq!(answer["incomplete"], false);
        assert_equal(&what("merged"), &answered(&rows, Some("hashtag"), "mentions"), &truth);
        // In order of window, then of the view: most mentions first, ties by hashtag.
        let order = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            (text("window_end"), -row["mentions"].as_i64().unwrap_or(0), text("hashtag"))
        };
        assert!(rows.is_sorted_by_key(order), "the rows are in order");

        let (rows, _) = server.range(view, from, to, "batch");
        let expected = oracle.hashtags(&format!("\"offset\" < {frontier}"), true);
        assert_equal(&what("batch"), &answered(&rows, Some("hashtag"), "mentions"), &expected);

        let (rows, _) = server.range(view, from, to, "speed");
        let expected = oracle.hashtags(&format!("\"offset\" >= {frontier}"), true);
        assert_equal(&what("speed"), &answered(&rows, Some("hashtag"), "mentions"), &expected);
    }
}

#[test]
fn page_views_hours_late_are_those_of_the_oracle_at_every_frontier() {
    page_views(&|| Project::example("clicks"), 4);
}

#[test]
fn page_views_hours_late_on_kafka_are_those_of_the_oracle() {
    if let Some(brokers) = kafka() {
        page_views(&|| Project::example("clicks").on_kafka(&brokers), 2);
    }
}

fn page_views(project: &dyn Fn() -> Project, at: usize) {
    // Every third event is held up for 400 others, hours of this stream.
    let mut events: Vec<(usize, String)> = lines(&data("page_views.ndjson")).into_iter().enumerate().collect();
    events.sort_by_key(|(i, _)| if i % 3 == 0 { i + 400 } else { *i });
    let events: Vec<String> = events.into_iter().map(|(_, event)| event).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("page_views.ndjson");
    std::fs::write(&file, events.join("\n")).expect("written");
    let columns = "{timestamp: 'TIMESTAMP', url: 'VARCHAR', user_id: 'VARCHAR', status: 'BIGINT', bytes: 'BIGINT'}";
    let oracle = Oracle::new(&file, columns);
    let views = ["clicks_per_url", "traffic", "clicks_by_user"];
    for frontier in frontiers(events.len()).into_iter().rev().take(at) {
        let project = project();
        let server = serve(&project, "page_views", &views, &events, frontier);
        check_clicks(&server, &oracle, frontier);
        check_traffic(&server, &oracle, frontier);
        check_users(&server, &oracle, frontier);
    }
}

const DAYS: [&str; 4] =
    ["2015-05-17T00:00:00Z", "2015-05-18T12:00:00Z", "2015-05-20T00:00:00Z", "2015-05-22T00:00:00Z"];

/// All windows, asked for in three ranges, since a range may name so many at most. A window over a seam is in neither.
fn all_windows(server: &Server, view: &str, mode: &str) -> Vec<(Vec<Value>, Value)> {
    DAYS.windows(2).map(|days| server.range(view, days[0], days[1], mode)).collect()
}

fn inside(truth: &BTreeMap<Row, i64>, days: &[&str], size_minutes: i64) -> BTreeMap<Row, i64> {
    let earliest =
        chrono::DateTime::parse_from_rfc3339(days[0]).expect("a time") + chrono::TimeDelta::minutes(size_minutes);
    let earliest = earliest.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let wanted = |window: &str| *window >= *earliest && window <= days[1];
    truth.iter().filter(|((window, _), _)| wanted(window)).map(|(row, n)| (row.clone(), *n)).collect()
}

fn check_clicks(server: &Server, oracle: &Oracle, frontier: usize) {
    let truth = oracle.clicks("true");
    let below = oracle.clicks(&format!("\"offset\" < {frontier}"));
    let above = oracle.clicks(&format!("\"offset\" >= {frontier}"));
    let mut late = 0;
    for (i, (rows, answer)) in all_windows(server, "clicks_per_url", "merged").into_iter().enumerate() {
        let rows = answered(&rows, Some("url"), "clicks");
        let truth = inside(&truth, &DAYS[i..=i + 1], 1);
        late += answer["late"].as_i64().expect("late");
        if answer["exact"] == true {
            assert_equal("merged clicks", &rows, &truth);
        } else {
            assert_within("merged clicks", &rows, &truth);
        }
    }
    assert_eq!(late == 0, frontier == 9_999, "events are late unless batch covers them all: {late} at {frontier}");
    for (i, (rows, answer)) in all_windows(server, "clicks_per_url", "batch").into_iter().enumerate() {
        assert_eq!(answer["exact"], frontier > 0, "without a version there is no exact answer");
        assert_equal("batch clicks", &answered(&rows, Some("url"), "clicks"), &inside(&below, &DAYS[i..=i + 1], 1));
    }
    for (i, (rows, _)) in all_windows(server, "clicks_per_url", "speed").into_iter().enumerate() {
        assert_within("speed clicks", &answered(&rows, Some("url"), "clicks"), &inside(&above, &DAYS[i..=i + 1], 1));
    }
    // Window by window, the answer says which of them are exact.
    let mut exact = 0;
    let ends: std::collections::BTreeSet<&String> = truth.keys().map(|(window, _)| window).collect();
    for end in ends.iter().step_by(37) {
        let answer = server.get(&format!("/v1/views/clicks_per_url/rows?window={end}&limit=1000"));
        let mut rows = answer["rows"].as_array().expect("rows").clone();
        for row in &mut rows {
            row["window_end"] = Value::String((*end).clone());
        }
        let rows = answered(&rows, Some("url"), "clicks");
        let truth: BTreeMap<Row, i64> =
            truth.iter().filter(|((w, _), _)| w == *end).map(|(r, n)| (r.clone(), *n)).collect();
        if answer["exact"] == true {
            exact += 1;
            assert_equal("one window", &rows, &truth);
        } else {
            assert_within("one window", &rows, &truth);
        }
    }
    assert!(exact > 0 || frontier == 0, "some windows are exact at {frontier}");
}

fn check_traffic(server: &Server, oracle: &Oracle, frontier: usize) {
    for (column, number) in
        [("requests", "count(*)"), ("bytes", "sum(bytes)"), ("errors", "count(*) FILTER (WHERE status >= 400)")]
    {
        let truth = oracle.traffic(number, "true");
        let below = oracle.traffic(number, &format!("\"offset\" < {frontier}"));
        for (i, (rows, answer)) in all_windows(server, "traffic", "merged").into_iter().enumerate() {
            let rows = answered(&rows, None, column);
            let truth = inside(&truth, &DAYS[i..=i + 1], 10);
            if answer["exact"] == true {
                assert_equal(&format!("merged {column}"), &rows, &truth);
            } else {
                assert_within(&format!("merged {column}"), &rows, &truth);
            }
        }
        for (i, (rows, _)) in all_windows(server, "traffic", "batch").into_iter().enumerate() {
            let expected = inside(&below, &DAYS[i..=i + 1], 10);
            assert_equal(&format!("batch {column}"), &answered(&rows, None, column), &expected);
        }
    }
}

fn check_users(server: &Server, oracle: &Oracle, frontier: usize) {
    for (mode, which, has_events) in [
        ("merged", "true".to_owned(), true),
        ("batch", format!("\"offset\" < {frontier}"), frontier > 0),
        ("speed", format!("\"offset\" >= {frontier}"), frontier < 9_999),
    ] {
        let answer = server.get(&format!("/v1/views/clicks_by_user/rows?mode={mode}&limit=100000"));
        assert_eq!(answer["window"], Value::Null);
        assert_eq!(answer["exact"], has_events, "without windows nothing is late");
        let rows = answered(answer["rows"].as_array().expect("rows"), Some("user_id"), "clicks");
        assert_equal(&format!("{mode} users at {frontier}"), &rows, &oracle.users(&which));
    }
}
