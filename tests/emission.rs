//! Rows of views that aggregate, written to topics: the word count of the example, and what the topics hold after kills, on the embedded
//! log and on Kafka.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::kafka::topic;
use crate::output::console_consumer;
use crate::support::{Project, Server, committed_files, kafka, told, until};

/// Waits until a view's topic has what was posted, and says what the API tells of it.
fn written(server: &Server, view: &str) -> Value {
    let is_written = |detail: &Value| detail["emission"]["positions"] == detail["log_end"];
    server.until(view, is_written)["emission"].clone()
}

fn counts(server: &Server, view: &str, key: &str, value: &str) -> BTreeMap<String, i64> {
    let answer = server.get(&format!("/v1/views/{view}/rows"));
    let rows = answer["rows"].as_array().expect("rows").iter();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    rows.map(|row| (text(&row[key]), row[value].as_i64().expect("a number"))).collect()
}

#[test]
fn the_example_counts_words_as_its_readme_says() {
    let project = Project::example("wordcount");
    let server = Server::start(&project);
    let blocks = told("wordcount");
    let by_count = || {
        written(&server, "word_counts");
        server.settle("words_by_count");
        counts(&server, "words_by_count", "times", "words")
    };
    let of = |counts: &[(&str, i64)]| counts.iter().map(|(n, words)| ((*n).to_owned(), *words)).collect();
    server.post(&blocks[0].0, blocks[0].1.clone());
    let expected: BTreeMap<String, i64> = of(&[("2", 2), ("1", 6)]);
    assert_eq!(by_count(), expected);
    server.post(&blocks[1].0, blocks[1].1.clone());
    let expected: BTreeMap<String, i64> = of(&[("2", 3), ("1", 6)]);
    assert_eq!(by_count(), expected);
    let minutes = written(&server, "words_per_minute");
    assert_eq!((&minutes["emit"], &minutes["records"]), (&json!("final"), &json!(8)));
    server.batch_all(&["word_counts", "words_by_count"]);
    assert_eq!(by_count(), expected);
    let request = server.request(Method::POST, "/v1/topics/word_counts/events").body("{\"word\":\"to\",\"n\":9}");
    let (status, problem) = server.problem(request);
    let detail =
        "topic `word_counts` has the rows of view `word_counts`, which writes them itself, and nothing else may";
    assert_eq!((status, &problem["detail"]), (400, &json!(detail)));
    assert_eq!(written(&server, "word_counts")["records"], 10, "what batch says is what was written");
}

const WORDS: [&str; 5] = ["to", "be", "or", "not", "question"];

/// The n-th line: words in turn, some more often than others.
fn line(n: usize) -> String {
    let words = [WORDS[n % 5], WORDS[n % 3], WORDS[n * n % 5]].join(" ");
    json!({"line": words, "timestamp": format!("2024-01-15T10:{:02}:{:02}Z", n / 60 % 60, n % 60)}).to_string()
}

/// How often each word is in the first lines.
fn expected(lines: usize) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for n in 0..lines {
        for word in [WORDS[n % 5], WORDS[n % 3], WORDS[n * n % 5]] {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// The counts of each word in the order in which they came. A count that isn't above the one before was written twice, or falls back.
fn rising(records: impl IntoIterator<Item = (String, i64)>) -> BTreeMap<String, i64> {
    let mut newest = BTreeMap::new();
    for (word, n) in records {
        let before = newest.insert(word.clone(), n).unwrap_or(0);
        assert!(before < n, "{word}: {before}, then {n}");
    }
    newest
}

#[test]
fn each_change_is_in_the_embedded_log_once_whenever_the_process_is_killed() {
    let project = Project::example("wordcount");
    let mut sent = 0;
    for round in 0..8 {
        let server = Server::start(&project);
        for piece in 0..6 {
            let lines: Vec<String> = (sent..sent + 7).map(line).collect();
            server.post("lines", lines.join("\n"));
            sent += lines.len();
            if piece == 2 {
                written(&server, "word_counts");
            }
        }
        if round == 4 {
            server.batch_all(&["word_counts"]);
        }
        if round < 7 {
            server.kill();
        } else {
            written(&server, "word_counts");
            assert_eq!(counts(&server, "word_counts", "word", "n"), expected(sent));
            server.batch_all(&["words_by_count"]);
            server.stop();
        }
    }
    // The archive of the table that reads the topic has all of its records.
    let files = committed_files(&project.data().join("archive/counts")).expect("files");
    let database = duckdb::Connection::open_in_memory().expect("a database");
    let sql = format!("SELECT word, n FROM read_parquet({files}, hive_partitioning = false) ORDER BY _offset");
    let mut query = database.prepare(&sql).expect("SQL");
    let records = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
    let records: Vec<(String, i64)> = records.collect::<Result<_, _>>().expect("records");
    assert!(records.len() >= 8 * WORDS.len(), "{records:?}");
    assert_eq!(rising(records), expected(sent));
}

#[test]
fn each_change_is_in_kafkas_topic_once_though_whoever_writes_it_is_killed() {
    let Some(brokers) = kafka() else { return };
    let project = Project::example("wordcount").on_kafka(&brokers);
    let settings = std::fs::read_to_string(project.path().join("anabranch.toml")).expect("readable");
    project.write("anabranch.toml", &format!("{settings}session_timeout = '1 s'\n"));
    let role = |name: &str| {
        Server::start_role(name, &project, &[]).unwrap_or_else(|said| panic!("{name} did not start:\n{said}"))
    };
    let (door, _speed) = (role("ingest"), role("speed"));
    let mut serve = vec![role("serve"), role("serve")];
    let writes = |server: &Server| {
        let detail = server.get("/v1/views/word_counts");
        detail["emission"]["positions"]["lines"].as_object().is_some_and(|positions| !positions.is_empty())
    };
    let mut sent = 0;
    for round in 0..4 {
        until("one of the two writes the topic", || serve.iter().any(writes));
        for _ in 0..10 {
            let lines: Vec<String> = (sent..sent + 7).map(line).collect();
            door.post("lines", lines.join("\n"));
            sent += lines.len();
        }
        let writer = serve.iter().position(writes).unwrap_or(0);
        let writer = serve.remove(writer);
        match round % 3 {
            0 => writer.kill(),
            1 => writer.stop(),
            _ => {
                // It wakes up behind the other's back, and finds that it was fenced off.
                writer.signal("STOP");
                until("the other one writes", || writes(&serve[0]));
                writer.signal("CONT");
                door.post("lines", line(sent));
                sent += 1;
                until("the log is read", || serve[0].get("/v1/views/word_counts")["lag"] == 0);
                writer.kill();
            }
        }
        serve.push(role("serve"));
    }
    until("all is written", || {
        serve.iter().any(|server| {
            let detail = server.get("/v1/views/word_counts");
            detail["emission"]["positions"] == detail["log_end"]
        })
    });
    let records = console_consumer(&brokers, &topic(&project, "word_counts"), "read_committed");
    let counts = records.into_values().flatten().map(|record| {
        let record: Value = serde_json::from_str(&record).expect("JSON");
        (record["word"].as_str().expect("a word").to_owned(), record["n"].as_i64().expect("a number"))
    });
    assert_eq!(rising(counts), expected(sent));
}
