//! What a producer may rely on, and how soon a reader sees it.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, data, kafka, ok};

const SQL: &str = "
CREATE TABLE tweets (user_id TEXT, text TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'tweets', event_time = 'ts', partitions = 3, partition_by = 'user_id');
CREATE MATERIALIZED VIEW by_user AS SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id;
";

fn tweet(user: &str) -> String {
    json!({"user_id": user, "text": "x", "ts": "2024-01-15T10:30:45.123Z"}).to_string()
}

#[test]
fn a_retry_with_the_same_key_stores_nothing_twice() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let send = |key: &str| {
        let request = server.request(Method::POST, "/v1/topics/tweets/events").header("Idempotency-Key", key);
        ok(request.body([tweet("a"), "{}".to_owned(), tweet("b")].join("\n")).send().expect("an answer"))
    };
    let first = send("one");
    assert_eq!(send("one"), first, "a retry gets the first answer");
    assert_eq!(first["accepted"], 2);
    assert_ne!(send("two")["offsets"], first["offsets"]);
    server.settle("by_user");
    let rows = server.get("/v1/views/by_user/rows");
    assert_eq!(rows["rows"].as_array().expect("rows").iter().map(|r| r["n"].as_i64().expect("n")).sum::<i64>(), 4);
    assert_eq!(server.get("/v1/rejects")["total"], 2, "the second line of each of the two requests");
}

#[test]
fn events_of_one_key_are_in_one_partition() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    for user in ["a", "b", "c", "d", "e", "f", "g"] {
        let first = server.post("tweets", tweet(user));
        let second = server.post("tweets", tweet(user));
        let partition = |receipt: &Value| receipt["offsets"].as_object().expect("offsets").keys().next().cloned();
        assert_eq!(partition(&first), partition(&second), "{user}");
    }
    let ends = server.get("/v1/views/by_user")["log_end"].clone();
    assert!(ends.as_object().expect("ends").values().filter(|end| **end != 0).count() > 1, "keys are spread: {ends}");
}

#[test]
fn the_key_of_an_event_is_a_column_where_a_table_asks_for_it() {
    let sql = SQL.replace("ts TIMESTAMP NOT NULL)", "ts TIMESTAMP NOT NULL, k TEXT)");
    let sql = sql.replace("partition_by = 'user_id'", "partition_by = 'user_id', key = 'k'");
    let sql = sql.replace(
        "SELECT user_id, count(*) AS n FROM tweets GROUP BY user_id",
        "SELECT k, count(*) AS n FROM tweets GROUP BY k",
    );
    let check = |project: Project| {
        let server = Server::start(&project);
        let keyless = json!({"text": "x", "ts": "2024-01-15T10:30:45Z", "k": "forged"}).to_string();
        server.post("tweets", [tweet("a"), tweet("b"), tweet("a"), keyless].join("\n"));
        server.settle("by_user");
        let rows = |mode: &str| {
            let answer = server.get(&format!("/v1/views/by_user/rows?mode={mode}"));
            let row = |row: &Value| (row["k"].as_str().map(str::to_owned), row["n"].as_i64());
            answer["rows"].as_array().expect("rows").iter().map(row).collect::<std::collections::BTreeSet<_>>()
        };
        let expected = [(Some("a".to_owned()), Some(2)), (Some("b".to_owned()), Some(1)), (None, Some(1))].into();
        assert_eq!(rows("merged"), expected);
        server.batch("by_user");
        assert_eq!(rows("batch"), expected);
        server.stop();
        let server = Server::start(&project);
        server.settle("by_user");
        server.post("tweets", tweet("c"));
        server.settle("by_user");
        let answer = server.get("/v1/views/by_user/rows?mode=speed");
        assert_eq!((&answer["rows"][0]["k"], &answer["rows"][1]), (&json!("c"), &Value::Null), "{answer}");
    };
    check(Project::with_sql(&sql));
    if let Some(brokers) = kafka() {
        check(Project::with_sql(&sql).on_kafka(&brokers));
    }
}

#[test]
fn headers_are_refused_where_records_have_none() {
    let project = Project::with_sql(&SQL.replace("text TEXT", "text JSON").replace("'ts',", "'ts', headers = 'text',"));
    let Err(said) = Server::start_with(&project, &[]) else { panic!("it started") };
    assert!(said.contains("table `tweets` has `headers`, which records have on Kafka only: set `brokers`"), "{said}");
}

#[test]
fn pinned_events_have_a_partition_for_themselves() {
    let sql = SQL.replace("partition_by = 'user_id'", "partition_by = 'user_id', pin = 'user_id LIKE ''vip%'''");
    let project = Project::with_sql(&sql);
    let server = Server::start(&project);
    let receipt = server.post("tweets", ["vip1", "a", "vip2", "b", "vip3"].map(tweet).join("\n"));
    assert_eq!(receipt["offsets"]["2"], json!([0, 3]), "{receipt}");
    let others: Vec<String> = (0..50).map(|i| tweet(&format!("user{i}"))).collect();
    let receipt = server.post("tweets", others.join("\n"));
    assert_eq!(receipt["accepted"], 50);
    assert!(receipt["offsets"].get("2").is_none(), "{receipt}");
}

#[test]
fn bodies_may_be_lines_an_array_or_one_object() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let pretty =
        serde_json::to_string_pretty(&serde_json::from_str::<Value>(&tweet("a")).expect("JSON")).expect("JSON");
    for (body, accepted) in [
        (format!("{}\r\n\r\n{}\r\n", tweet("a"), tweet("a")), 2),
        (format!("[{},\n {}]", tweet("a"), tweet("a")), 2),
        (pretty, 1),
        (String::new(), 0),
    ] {
        assert_eq!(server.post("tweets", body.clone())["accepted"], accepted, "{body}");
    }
    server.settle("by_user");
    assert_eq!(server.get("/v1/views/by_user/rows?key.user_id=a")["rows"][0]["n"], 5);
}

#[test]
fn a_subscriber_is_told_of_what_changes() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let stream = server.try_get("/v1/views/by_user/stream").expect("a stream");
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let mut next = |wanted: &dyn Fn(&Value) -> bool| loop {
        let line = lines.next().expect("the stream goes on");
        if let Some(data) = line.strip_prefix("data:") {
            let update: Value = serde_json::from_str(data.trim()).expect("JSON");
            if wanted(&update) {
                return update;
            }
        }
    };
    server.post("tweets", [tweet("a"), tweet("b")].join("\n"));
    let all = next(&|update| update["rows"].as_array().is_some_and(|rows| !rows.is_empty()));
    assert_eq!(all["view"], "by_user");
    server.post("tweets", tweet("b"));
    let update = next(&|update| update["rows"].as_array().is_some_and(|rows| rows.iter().any(|r| r["n"] == 2)));
    assert_eq!(update["rows"].as_array().map(Vec::len), Some(1), "only what changed: {update}");
    assert_eq!(update["rows"][0]["user_id"], "b");
}

#[test]
fn produce_sends_a_file_and_says_what_became_of_it() {
    let project = Project::example("social");
    let server = Server::start(&project);
    let output = anabranch()
        .args(["produce", "tweets", "--output", "json", "--project"])
        .args([project.path(), &data("tweets.ndjson")])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let receipt: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(receipt["accepted"], 12_118);
    assert_eq!(receipt["offsets"], json!({"0": [0, 12_118]}));
    server.settle("trending_hashtags");
    server.stop();
    // Without a server the command runs the project itself.
    let mut child = anabranch()
        .args(["produce", "tweets", "--project"])
        .arg(project.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let line = r#"{"user_id":"a","text":"x","timestamp":"2017-08-27T00:00:00Z"}"#;
    writeln!(child.stdin.take().expect("stdin"), "{line}\n{{\"text\":1}}").expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3), "some records were rejected");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 2"));
    let server = Server::start(&project);
    assert_eq!(server.settle("trending_hashtags")["log_end"], json!({"0": 12_119}));
}
