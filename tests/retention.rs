//! Retention on Kafka takes what a role still needs: what needs it stops and names the range, nobody begins elsewhere.

use serde_json::{Value, json};

use crate::kafka::{tool, topic};
use crate::support::{Project, Server, kafka};

const SQL: &str = "
CREATE TABLE events (id BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'events', event_time = 'ts', partitions = 2);
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
";

const SETTINGS: &str = "
[archive]
interval = '50 ms'
[batch]
scheduler = false
";

fn project(brokers: &str) -> Project {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    project.on_kafka(brokers)
}

fn role(name: &str, project: &Project) -> Server {
    Server::start_role(name, project, &[]).unwrap_or_else(|said| panic!("{name} did not start:\n{said}"))
}

/// Events with these ids, dealt to the two partitions in turn.
fn post(ingest: &Server, ids: std::ops::Range<u32>) {
    let event = |id: u32| json!({"id": id, "ts": "2024-01-15T10:00:00Z"}).to_string();
    let receipt = ingest.post("events", ids.clone().map(event).collect::<Vec<_>>().join("\n"));
    assert_eq!(receipt["accepted"], ids.len(), "{receipt}");
}

/// Has Kafka's own tool delete a partition's records before an offset.
fn delete_before(brokers: &str, project: &Project, partition: u32, offset: u64) {
    let wanted = json!({"topic": topic(project, "events"), "partition": partition, "offset": offset});
    project.write("delete.json", &json!({"partitions": [wanted], "version": 1}).to_string());
    let deleted = tool("org.apache.kafka.tools.DeleteRecordsCommand")
        .args(["--bootstrap-server", brokers, "--offset-json-file"])
        .arg(project.path().join("delete.json"))
        .output()
        .expect("java starts");
    let said = String::from_utf8_lossy(&deleted.stdout);
    assert!(deleted.status.success() && said.contains(&format!("low_watermark: {offset}")), "{said}");
}

/// Has a batch run of all views done, and says how it ended.
fn run(serve: &Server) -> Value {
    serve.run_job(&json!({"kind": "batch"}))
}

#[test]
fn a_view_stops_where_records_are_gone_and_goes_on_from_a_version_of_what_is_left() {
    let Some(brokers) = kafka() else { return };
    let project = project(&brokers);
    let ingest = role("ingest", &project);
    post(&ingest, 0..40);
    delete_before(&brokers, &project, 0, 12);
    let (speed, serve) = (role("speed", &project), role("serve", &project));

    let why = "partition 0: offsets 0.. are wanted, but the log holds 12..20 only";
    let readiness = speed.until_stopped(why);
    let reasons = readiness["reasons"].as_array().expect("reasons");
    assert!(reasons.len() == 1 && reasons[0].as_str().is_some_and(|r| r.contains("view `ever`")), "{readiness}");
    let lost = [("partition", "0"), ("from", "0"), ("to", "12")];
    let metrics = speed.metrics();
    assert_eq!(metrics.sum("anabranch_speed_stopped", &[("table", "events")]), Some(0.0), "{metrics:?}");
    assert_eq!(metrics.sum("anabranch_ready", &[]), Some(0.0));

    // Whoever serves says so too, and answers with what there is.
    let is_known = |detail: &Value| detail["coverage"]["speed"]["offsets"]["events"]["1"] == json!([0, 20]);
    serve.until_stopped(why);
    serve.until("ever", is_known);
    let metrics = serve.metrics();
    assert_eq!(metrics.sum("anabranch_lost_offsets", &lost), Some(12.0), "{metrics:?}");
    assert_eq!(metrics.sum("anabranch_view_stopped", &[("view", "ever")]), Some(1.0));
    let answer = serve.get("/v1/views/ever/rows");
    assert_eq!(
        (&answer["incomplete"], &answer["missing"]),
        (&json!(true), &json!({"events": {"0": [0, 20]}})),
        "{answer}"
    );
    assert_eq!((&answer["rows"][0]["n"], &answer["rows"][0]["ids"]), (&json!(20), &json!(400)), "the odd ones");

    // What comes later is counted where nothing is missing, and nowhere else.
    post(&ingest, 40..50);
    let detail = serve.until("ever", |detail| detail["coverage"]["speed"]["offsets"]["events"]["1"] == json!([0, 25]));
    assert_eq!(detail["coverage"]["speed"]["offsets"]["events"]["0"], json!([0, 0]), "{detail}");
    assert_eq!(serve.get("/v1/views/ever/rows")["missing"], json!({"events": {"0": [0, 25]}}));

    // It stays so when somebody else has the partition.
    speed.stop();
    let speed = role("speed", &project);
    speed.until_stopped("partition 0: offsets 0.. are wanted, but the log holds 12..25 only");

    // A version that covers what is left is what it goes on from.
    let _batch = role("batch", &project);
    assert_eq!(run(&serve)["state"], "succeeded");
    let is_whole = |detail: &Value| detail["coverage"]["batch"]["version"] == 1 && detail["lag"] == 0;
    serve.until("ever", is_whole);
    post(&ingest, 50..60);
    serve.until("ever", |detail| {
        detail["coverage"]["speed"]["offsets"]["events"] == json!({"0": [25, 30], "1": [25, 30]}) && detail["lag"] == 0
    });
    let answer = serve.get("/v1/views/ever/rows");
    assert_eq!(answer["incomplete"], false, "{answer}");
    assert_eq!(
        answer["sources"]["batch"]["offsets"]["events"],
        json!({"0": [12, 25], "1": [0, 25]}),
        "what it is made of"
    );
    assert_eq!(answer["rows"][0]["n"], 48, "all but the twelve");
    assert_eq!(speed.metrics().sum("anabranch_speed_stopped", &[]), Some(0.0));
}

#[test]
fn the_archive_role_stops_where_records_are_gone() {
    let Some(brokers) = kafka() else { return };
    let project = project(&brokers);
    let ingest = role("ingest", &project);
    post(&ingest, 0..40);
    let archive = role("archive", &project);
    archive.until_metrics("all is archived", |metrics| {
        metrics.sum("anabranch_archive_rows_total", &[("table", "events")]) == Some(40.0)
            && metrics.sum("anabranch_archive_lag_records", &[("table", "events")]) == Some(0.0)
    });
    archive.stop();
    post(&ingest, 40..80);
    delete_before(&brokers, &project, 0, 30);

    let archive = role("archive", &project);
    let readiness = archive.until_stopped("partition 0: offsets 20.. are wanted, but the log holds 30..40 only");
    let reason = readiness["reasons"][0].as_str().expect("a reason");
    assert!(reason.starts_with("table `events`: archiving has stopped: "), "{reason}");
    let lost = [("table", "events"), ("partition", "0"), ("from", "20"), ("to", "30")];
    let metrics = archive.until_metrics("the lag is known", |metrics| {
        metrics.sum("anabranch_archive_lag_records", &[("partition", "0")]) == Some(20.0)
    });
    assert_eq!(metrics.sum("anabranch_archive_lost_offsets", &lost), Some(10.0), "{metrics:?}");
    assert_eq!(metrics.sum("anabranch_archive_stopped", &[("table", "events")]), Some(1.0));
    assert_eq!(metrics.sum("anabranch_archive_rows_total", &[]), Some(0.0), "it went on nowhere");

    // A run needs what the archive lacks: it fails, and says why.
    let (batch, serve) = (role("batch", &project), role("serve", &project));
    let job = run(&serve);
    assert_eq!(job["state"], "failed", "{job}");
    assert!(job["error"].as_str().is_some_and(|why| why.contains("offsets 20.. are wanted")), "{job}");
    let failed = [("view", "ever"), ("state", "failed")];
    assert_eq!(batch.metrics().sum("anabranch_run_seconds_count", &failed), Some(1.0));
}
