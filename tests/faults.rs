//! Bad input and faults: each has a clear answer and loses nothing.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Project, Server, anabranch, data, lines};

const SQL: &str = "
CREATE TABLE clicks (url TEXT NOT NULL, bytes BIGINT, ts TIMESTAMP)
WITH (topic = 'clicks', event_time = 'ts', max_future = '1 minute');
CREATE MATERIALIZED VIEW per_url AS
SELECT window_start, window_end, url, count(*) AS clicks
FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, url;
";

fn detail(body: &Value) -> &str {
    body["detail"].as_str().expect("a detail")
}

#[test]
fn what_does_not_exist_is_answered_with_what_does() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    server.post("clicks", r#"{"url":"/","bytes":1,"ts":"2024-01-15T10:30:45Z"}"#);
    server.settle("per_url");
    let get = |path: &str| server.problem(server.request(Method::GET, path));
    for (path, status, says) in [
        ("/v1/views/per_uri", 404, "per_url"),
        ("/v1/views/per_uri/rows", 404, "per_url"),
        ("/v1/views/per_url/rows?key.uri=x", 400, "url"),
        ("/v1/views/per_url/rows?window=yesterday", 400, "latest"),
        ("/v1/views/per_url/rows?window=2024-01-15T10:30:30Z", 400, "2024-01-15T10:31:00Z"),
        ("/v1/views/per_url/rows?mode=fast", 400, "merged"),
        ("/v1/views/per_url/rows?limit=0", 400, "limit"),
        ("/v1/views/per_url/rows?from=2024-01-15T10:30:00Z", 400, "to"),
        ("/v1/views/per_url/rows?cursor=xyz", 400, "cursor"),
        ("/v1/nothing", 404, "/v1"),
        ("/v1/jobs/none", 404, "none"),
    ] {
        let (got, body) = get(path);
        assert_eq!(got, status, "{path}: {body}");
        assert!(detail(&body).contains(says), "{path}: {body}");
    }
    let html = server.request(Method::GET, "/v1/views/per_url/rows").header("Accept", "text/html");
    let (status, body) = server.problem(html);
    assert_eq!(status, 406);
    assert!(detail(&body).contains("text/csv"), "{body}");
    let post = server.request(Method::POST, "/v1/topics/click/events").body("{}");
    let (status, body) = server.problem(post);
    assert_eq!(status, 404);
    assert!(detail(&body).contains("clicks"), "{body}");
    let job = server.request(Method::POST, "/v1/jobs").json(&json!({"kind": "batch", "views": ["x"]}));
    assert_eq!(server.problem(job).0, 404);
}

#[test]
fn a_body_that_is_too_large_too_deep_or_not_text_is_refused_whole() {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", "[server]\nmax_body = '1 MiB'\n[batch]\nscheduler = false\n");
    let server = Server::start(&project);
    let good = r#"{"url":"/","bytes":1,"ts":"2024-01-15T10:30:45Z"}"#;
    let large = format!("{good}\n").repeat(40_000);
    let deep = format!("{good}\n{}{}", "[".repeat(5_000), "]".repeat(5_000));
    let binary = [good.as_bytes(), b"\n", &[0xff, 0xfe, 0x00]].concat();
    for (body, status) in [(large.into_bytes(), 413), (deep.into_bytes(), 400), (binary, 400)] {
        let request = server.request(Method::POST, "/v1/topics/clicks/events").body(body);
        assert_eq!(server.problem(request).0, status);
    }
    assert_eq!(server.get("/v1/views/per_url")["log_end"], json!({"clicks": {"0": 0}}), "nothing was stored");
}

#[test]
fn one_bad_record_never_harms_its_neighbours() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let good = |second: u32| format!(r#"{{"url":"/","bytes":1,"ts":"2024-01-15T10:30:{second:02}Z"}}"#);
    let body = [
        good(1),
        "{\"url\":\"/\",\"ts\":".to_owned(),
        good(2),
        r#"{"url":"/","bytes":"many","ts":"2024-01-15T10:30:45Z"}"#.to_owned(),
        r#"{"bytes":1,"ts":"2024-01-15T10:30:45Z"}"#.to_owned(),
        r#"{"url":"/","bytes":1}"#.to_owned(),
        r#"{"url":"/","bytes":1,"ts":"yesterday"}"#.to_owned(),
        r#"{"url":"/","bytes":1,"ts":"2999-01-15T10:30:45Z"}"#.to_owned(),
        format!(r#"{{"url":"{}","ts":"2024-01-15T10:30:45Z"}}"#, "x".repeat(1024 * 1024)),
        good(3),
    ];
    let receipt = server.post("clicks", body.join("\n"));
    assert_eq!(receipt["accepted"], 3, "{receipt}");
    assert_eq!(receipt["offsets"], json!({"0": [0, 3]}));
    let rejected = receipt["rejected"].as_array().expect("rejected");
    let reasons = ["", "bytes", "url", "ts", "ts", "2999", "1048576"];
    assert_eq!(rejected.iter().map(|r| r["line"].as_i64().expect("a line")).collect::<Vec<_>>(), [2, 4, 5, 6, 7, 8, 9]);
    for (reject, reason) in rejected.iter().zip(reasons) {
        assert!(reject["error"].as_str().expect("an error").contains(reason), "{reject} should name {reason}");
    }
    server.settle("per_url");
    let rows = server.get("/v1/views/per_url/rows");
    assert_eq!(rows["rows"][0]["clicks"], 3, "{rows}");
    assert_eq!(rows["rejected"], 7);
    let listed = server.get("/v1/rejects?topic=clicks");
    assert_eq!(listed["total"], 7, "{listed}");
    assert_eq!(listed["rejects"][0]["line"], 9, "newest first: {listed}");
    let output = anabranch().args(["rejects", "list", "--output", "json", "--project"]).arg(project.path()).output();
    let output = output.expect("it runs");
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(listed["rejects"].as_array().map(Vec::len), Some(7));
}

#[test]
fn a_broken_view_keeps_the_process_from_starting_and_is_shown_with_its_place() {
    let project = Project::with_sql(SQL);
    project.write(
        "views/wrong.sql",
        "CREATE MATERIALIZED VIEW x AS\nSELECT uri, count(*) AS n FROM clicks GROUP BY uri;\n",
    );
    let Err(log) = Server::start_with(&project, &[]) else { panic!("it started") };
    assert!(log.contains("wrong.sql:2:8") && log.contains("uri") && log.contains("url"), "{log}");
    let output = anabranch().args(["views", "check"]).arg(project.path()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong.sql:2:8"));
}

#[test]
fn a_damaged_checkpoint_is_noticed_and_the_state_built_again() {
    let events = lines(&data("tweets.ndjson"));
    let project = Project::example("social");
    let server = Server::start(&project);
    server.post_lines("tweets", &events[..3_000]);
    server.settle("trending_hashtags");
    let expected = server.get("/v1/views/trending_hashtags/rows")["rows"].clone();
    server.stop();
    let mut damaged = 0;
    for entry in walk(&project.data().join("checkpoints")) {
        let mut file = OpenOptions::new().read(true).write(true).open(&entry).expect("a checkpoint");
        let middle = file.metadata().expect("its size").len() / 2;
        file.seek(SeekFrom::Start(middle)).expect("a place");
        file.write_all(b"\xde\xad\xbe\xef").expect("written");
        damaged += 1;
    }
    assert!(damaged > 0, "there were checkpoints to damage");
    let server = Server::start(&project);
    server.settle("trending_hashtags");
    assert_eq!(server.get("/v1/views/trending_hashtags/rows")["rows"], expected);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() { files.extend(walk(&entry.path())) } else { files.push(entry.path()) }
    }
    files
}

#[test]
fn when_the_disk_is_full_ingest_says_so_and_reads_go_on() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    let event = r#"{"url":"/","bytes":1,"ts":"2024-01-15T10:30:45Z"}"#;
    server.post("clicks", event);
    server.settle("per_url");
    server.stop();
    // A reserve that no disk can keep: to the log every disk is full.
    project.write("anabranch.toml", "[log]\nreserve = '8000000 GiB'\n[batch]\nscheduler = false\n");
    let server = Server::start(&project);
    let request = server.request(Method::POST, "/v1/topics/clicks/events").body(event);
    let (status, body) = server.problem(request);
    assert_eq!(status, 507, "{body}");
    server.until_stopped("events can't be stored: no room in ");
    server.settle("per_url");
    assert_eq!(server.get("/v1/views/per_url/rows")["rows"][0]["clicks"], 1);
    server.stop();
    project.write("anabranch.toml", "[batch]\nscheduler = false\n");
    let server = Server::start(&project);
    server.post("clicks", event);
    server.settle("per_url");
    assert_eq!(server.get("/v1/views/per_url/rows")["rows"][0]["clicks"], 2);
}
