//! What a producer may rely on, and how soon a reader sees it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Project, Server, kafka, ok};

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
        ok(&Method::POST, request.body([tweet("a"), "{}".to_owned(), tweet("b")].join("\n")).send().expect("an answer"))
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
    let ends = server.get("/v1/views/by_user")["log_end"]["tweets"].clone();
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

/// Sends a request with a body of spaces and reads nothing before all of it is sent, as many clients do.
fn send_without_listening(server: &Server, request: &str, bytes: usize) -> String {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected");
    let head = format!("{request}\r\nhost: {}\r\n\r\n", server.url.trim_start_matches("http://"));
    stream.write_all(head.as_bytes()).expect("the head is sent");
    let piece = vec![b' '; 64 << 10];
    for _ in 0..bytes.div_ceil(piece.len()) {
        stream.write_all(&piece).expect("the body is sent although it is refused");
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    while !answer.ends_with(b"}") {
        match stream.read(&mut buffer).expect("an answer") {
            0 => break,
            length => answer.extend_from_slice(&buffer[..length]),
        }
    }
    String::from_utf8(answer).expect("text")
}

#[test]
fn a_client_that_sends_on_is_answered_whatever_is_refused_before_its_body_was_read() {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", "[server]\nmax_body = '1 MiB'\n[batch]\nscheduler = false\n");
    let server = Server::start(&project);
    let bytes = 24 << 20;
    let post = |topic: &str, header: &str| {
        format!("POST /v1/topics/{topic}/events HTTP/1.1\r\n{header}content-length: {bytes}")
    };
    for (request, status) in [
        (post("tweet", ""), "404"),
        (post("tweets", "idempotency-key: \r\n"), "400"),
        (post("tweets", "content-encoding: br\r\n"), "415"),
        (post("tweets", ""), "413"),
        (post("tweets", "connection: close\r\n"), "413"),
        (format!("PUT /v1/views HTTP/1.1\r\ncontent-length: {bytes}"), "405"),
    ] {
        let answer = send_without_listening(&server, &request, bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains(r#""type":"about:blank#"#), "{request}: {answer}");
    }
    // Nothing is sent by a client that asks before, and nothing is waited for.
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected");
    let asked = format!("{}\r\nhost: localhost\r\nexpect: 100-continue\r\n\r\n", post("tweet", ""));
    stream.write_all(asked.as_bytes()).expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 404");
    // There is an end to what is read of a body that nobody wants.
    let mut endless = TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected");
    let head = "POST /v1/topics/tweet/events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    endless.write_all(head.as_bytes()).expect("sent");
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let refused = (0..16_384).find_map(|_| endless.write_all(&chunk).err()).expect("1 GiB is not read");
    assert!(matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{refused}");
}

#[test]
fn one_key_with_another_body_is_refused_on_both_logs() {
    let check = |project: Project| {
        let server = Server::start(&project);
        let send = |body: &str| {
            let request = server.request(Method::POST, "/v1/topics/tweets/events").header("Idempotency-Key", "one");
            request.body(body.to_owned())
        };
        let first = ok(&Method::POST, send(&tweet("a")).send().expect("an answer"));
        let (status, problem) = server.problem(send(&[tweet("b"), "nonsense".to_owned()].join("\n")));
        assert_eq!((status, &problem["type"]), (422, &json!("about:blank#idempotency-key-reused")), "{problem}");
        assert_eq!(ok(&Method::POST, send(&tweet("a")).send().expect("an answer")), first);
        server.settle("by_user");
        let rows = server.get("/v1/views/by_user/rows");
        assert_eq!((rows["rows"].as_array().map(Vec::len), &rows["rejected"]), (Some(1), &json!(0)), "{rows}");
        let stored = server.metrics().sum("anabranch_events_ingested_total", &[]);
        assert_eq!(stored, Some(1.0), "a retry is nothing new");
    };
    check(Project::with_sql(SQL));
    if let Some(brokers) = kafka() {
        check(Project::with_sql(SQL).on_kafka(&brokers));
    }
}

#[test]
fn a_body_of_bad_lines_costs_little_memory_and_a_short_answer() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    server.post("tweets", tweet("a"));
    let before = server.peak_memory();
    let lines = 1 << 20;
    let answer =
        server.try_post("tweets", "x\n".repeat(lines)).and_then(|response| response.text()).expect("an answer");
    assert!(answer.len() < 20_000, "{} bytes", answer.len());
    let receipt: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((&receipt["rejected_count"], receipt["rejected"].as_array().map(Vec::len)), (&json!(lines), Some(100)));
    // The rejects, 150 MB, are in the log's memory as long as its own thread hasn't come to write them to files. Beside that it is little.
    let grown = server.peak_memory() - before;
    assert!(grown < 300 << 20, "it took {} MiB", grown >> 20);
    assert_eq!(server.get("/v1/rejects?limit=1")["total"], lines);
}

#[test]
fn old_rejects_are_deleted() {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", "[log]\nrejects_bytes = '1 B'\n[batch]\nscheduler = false\n");
    let server = Server::start(&project);
    server.post("tweets", "nonsense");
    crate::support::until("nothing is listed", || server.get("/v1/rejects")["rejects"] == json!([]));
    assert_eq!(server.get("/v1/rejects")["total"], 1, "it stays counted");
}

#[test]
fn an_event_of_the_year_9999_makes_no_other_late() {
    let sql = "CREATE TABLE taps (page TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
        CREATE MATERIALIZED VIEW per_minute AS SELECT window_start, window_end, count(*) AS n
        FROM TUMBLE(taps, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;";
    let project = Project::with_sql(sql);
    let server = Server::start(&project);
    let receipt = server.post("taps", "{\"ts\":\"9700-01-01T00:00:00Z\"}\n{\"ts\":\"2024-01-15T10:00:00Z\"}");
    assert_eq!((&receipt["accepted"], &receipt["rejected"][0]["line"]), (&json!(1), &json!(1)), "{receipt}");
    let error = receipt["rejected"][0]["error"].as_str().expect("an error");
    assert!(error.contains("more than 600 s (`max_future`) ahead of the clock"), "{error}");
    let detail = server.settle("per_minute");
    assert_eq!(detail["watermark"], "2024-01-15T10:00:00Z");
}

#[test]
fn a_body_that_breaks_off_stores_nothing_and_its_key_is_free() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let line = tweet("a") + "\n";
    let head = |length: &str| {
        format!("POST /v1/topics/tweets/events HTTP/1.1\r\nhost: localhost\r\nidempotency-key: one\r\n{length}\r\n\r\n")
    };
    let sized = head(&format!("content-length: {}", 3 * line.len())) + &line + &line;
    let chunked = head("transfer-encoding: chunked") + &format!("{:x}\r\n{line}\r\n", line.len());
    for request in [&sized, &chunked] {
        let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected");
        stream.write_all(request.as_bytes()).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("it breaks off");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the connection is closed");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected");
    stream.write_all((chunked + "0\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200", "the same, whole");
    server.settle("by_user");
    assert_eq!(server.get("/v1/views/by_user/rows")["rows"][0]["n"], 1);
}
