//! What becomes of batch runs when processes end, and what processes that share a folder or a log know of them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Project, Server, kafka, until};

const SQL: &str = "
CREATE TABLE clicks (url TEXT NOT NULL, ts TIMESTAMP NOT NULL) WITH (topic = 'clicks', event_time = 'ts');
CREATE MATERIALIZED VIEW per_url AS SELECT url, count(*) AS n FROM clicks GROUP BY url;
";

const EVENT: &str = r#"{"url":"/","ts":"2024-01-15T10:30:45Z"}"#;

/// Asks for a run; its id, if the server is there and accepts it.
fn submit(server: &Server) -> Option<String> {
    let answer = server.request(Method::POST, "/v1/jobs").json(&json!({"kind": "batch"})).send().ok()?;
    assert_eq!(answer.status(), 202);
    Some(answer.json::<Value>().ok()?["id"].as_str().expect("an id").to_owned())
}

/// The runs, newest first, once none of them waits or is at work.
fn ended(server: &Server) -> Vec<Value> {
    let mut jobs = Vec::new();
    until("every job ends", || {
        jobs = server.get("/v1/jobs")["jobs"].as_array().expect("a list").clone();
        jobs.iter().all(|job| !job["ended"].is_null())
    });
    jobs
}

#[test]
fn what_was_accepted_is_run_after_a_kill() {
    let project = Project::with_sql(SQL);
    let server = Server::start_with(&project, &[("ANABRANCH_CRASH_AT", "batch::before_publish:1")]);
    let mut server = server.expect("it starts");
    server.post("clicks", EVENT);
    // It dies in the first of them.
    let accepted: Vec<String> = (0..30).map_while(|_| submit(&server)).collect();
    assert!(!accepted.is_empty());
    server.wait();
    let server = Server::start(&project);
    let jobs = ended(&server);
    for (i, id) in accepted.iter().enumerate() {
        let job = jobs.iter().find(|job| job["id"] == **id).unwrap_or_else(|| panic!("job {id} is lost"));
        assert_eq!((&job["state"], &job["error"]), (&json!("succeeded"), &Value::Null), "{job}");
        assert_eq!(job["attempts"], if i == 0 { 2 } else { 1 }, "{job}");
    }
    assert_eq!(server.get("/v1/views/per_url/rows?mode=batch")["rows"][0]["n"], 1);
}

#[test]
fn what_waits_when_the_process_stops_is_run_by_the_next() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    server.post("clicks", EVENT);
    let accepted: Vec<String> = (0..30).map(|_| submit(&server).expect("accepted")).collect();
    server.stop();
    let server = Server::start(&project);
    let jobs = ended(&server);
    assert!(jobs.iter().all(|job| job["state"] == "succeeded"), "{jobs:?}");
    assert!(accepted.iter().rev().eq(jobs.iter().filter_map(|job| job["id"].as_str())), "{jobs:?}");
}

#[test]
fn a_schedule_makes_up_for_the_time_at_which_the_process_was_down() {
    let project = Project::with_sql(&SQL.replace("per_url AS", "per_url WITH (batch = '0 3 * * *') AS"));
    project.write("anabranch.toml", "");
    let server = Server::start(&project);
    server.post("clicks", EVENT);
    server.stop();
    // As if that had been days ago.
    let folder = project.data().join("runs");
    let file = std::fs::read_dir(&folder).expect("listed").next().expect("a file").expect("a file").path();
    let text = std::fs::read_to_string(&file).expect("read");
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        if let Some(dealt) = line.pointer_mut("/schedule/dealt") {
            *dealt = (dealt.as_i64().expect("a time") - 4 * 86_400_000_000).into();
        }
        format!("{line}\n")
    });
    std::fs::write(&file, lines.collect::<String>()).expect("written");
    let server = Server::start(&project);
    until("a run is made", || !server.get("/v1/jobs")["jobs"].as_array().expect("a list").is_empty());
    let jobs = ended(&server);
    assert_eq!((jobs.len(), &jobs[0]["trigger"], &jobs[0]["state"]), (1, &json!("schedule"), &json!("succeeded")));
    assert!(jobs[0]["scheduled"].as_str().is_some_and(|time| time.ends_with("T03:00:00Z")), "{jobs:?}");
    let failures = server.metrics().sum("anabranch_schedule_failures", &[("view", "per_url")]);
    assert_eq!(failures, Some(0.0));
}

#[test]
fn two_processes_on_one_folder_and_one_kafka_keep_both_histories() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let (one, other) = (Server::start(&project), Server::start(&project));
    one.post("clicks", EVENT);
    for _ in 0..14 {
        for server in [&one, &other] {
            submit(server).expect("accepted");
        }
    }
    for server in [one, other] {
        assert!(ended(&server).iter().all(|job| job["state"] == "succeeded"));
        server.stop();
    }
    let server = Server::start(&project);
    assert_eq!(ended(&server).len(), 28);
    assert_eq!(server.get("/v1/views/per_url/rows?mode=batch")["rows"][0]["n"], 1);
}

#[test]
fn jobs_that_make_no_sense_are_refused_with_roles_too_and_others_are_run_by_whoever_can() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let serve = Server::start_role("serve", &project, &[]).expect("it starts");
    for (request, expected) in [
        (json!({"kind": "batch", "from": "garbage"}), 400),
        (json!({"kind": "batch", "from": "2024-01-02T00:00:00Z", "to": "2024-01-01T00:00:00Z"}), 400),
        (json!({"kind": "stream"}), 400),
        (json!({"kind": "batch", "views": ["nobody"]}), 404),
    ] {
        let (status, problem) = serve.problem(serve.request(Method::POST, "/v1/jobs").json(&request));
        assert_eq!(status, expected, "{problem}");
    }
    assert_eq!(serve.get("/v1/jobs")["jobs"], json!([]));
    // Nobody runs jobs yet: of two that wait one is taken back.
    let (first, second) = (submit(&serve).expect("accepted"), submit(&serve).expect("accepted"));
    let cancel = serve.request(Method::POST, &format!("/v1/jobs/{first}/cancel")).send().expect("an answer");
    assert_eq!(cancel.status(), 202);
    let batch = Server::start_role("batch", &project, &[]).expect("it starts");
    let jobs = ended(&serve);
    let state = |id: &str| jobs.iter().find(|job| job["id"] == id).expect("a job")["state"].clone();
    assert_eq!((state(&first), state(&second)), (json!("cancelled"), json!("succeeded")), "{jobs:?}");
    batch.stop();
}
