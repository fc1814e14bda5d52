//! Checkpoints on S3: what a server that is away does to a process, and how a worker goes on from what another has stored.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Project, Server, free_ports, kafka, repository, s3, until};

const SQL: &str = "
CREATE TABLE events (id BIGINT, user_id TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', partitions = 4, partition_by = 'user_id');
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
";

/// Each user has an event in a piece, and each partition has users.
const PIECE: usize = 40;

fn piece(number: usize) -> String {
    let event = |id: usize| json!({"id": id, "user_id": format!("u{}", id % PIECE), "ts": "2024-01-15T10:00:00Z"});
    (number * PIECE..(number + 1) * PIECE).map(|id| event(id).to_string()).collect::<Vec<_>>().join("\n")
}

/// Waits until everything is folded, and checks that it is there once.
fn check(server: &Server, pieces: usize) {
    server.settle("ever");
    let answer = server.get("/v1/views/ever/rows");
    let events = (pieces * PIECE) as i64;
    assert_eq!(answer["incomplete"], false, "{answer}");
    assert_eq!(answer["rows"][0]["n"], events, "{answer}");
    assert_eq!(answer["rows"][0]["ids"], events * (events - 1) / 2, "{answer}");
}

/// A metric of a table's pipelines by partition; as of partition 0 where there is one pipeline for all.
fn by_partition(server: &Server, name: &str) -> BTreeMap<u32, f64> {
    let text = server.try_get("/metrics").expect("an answer").text().expect("a body");
    let value = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
        let partition = labels.split(',').find_map(|label| label.strip_prefix("partition=\"")?.strip_suffix('"'));
        Some((partition.map_or(0, |p| p.parse().expect("a number")), value.parse().expect("a number")))
    };
    text.lines().filter_map(value).collect()
}

/// An S3 server of a test's own, which can be away.
struct Store {
    folder: TempDir,
    address: String,
}

impl Store {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Self { folder, address: String::new() };
        store.address = store.order(&["start", "--port", &free_ports(1).to_string()]);
        store
    }

    fn order(&self, order: &[&str]) -> String {
        let script = repository().join("tests/s3/s3-local");
        let done = Command::new(script).args(order).arg("--dir").arg(self.folder.path().join("s3")).output();
        let done = done.expect("the script runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.order(&["stop"]);
    }
}

#[test]
fn while_the_store_is_away_folding_goes_on_and_nothing_begins() {
    if s3().is_none() {
        return;
    }
    let store = Store::start();
    let project = Project::with_sql(SQL);
    let settings = format!(
        "[speed]\ncheckpoint_interval = '200 ms'\n[batch]\nscheduler = false\n[storage]\ncheckpoints = 's3://test/mine'\n\
         [storage.options]\naws_endpoint = '{}'\naws_allow_http = 'true'\naws_access_key_id = 'anabranch'\n",
        store.address
    );
    project.write("anabranch.toml", &settings);
    let secret = [("ANABRANCH__STORAGE__OPTIONS__AWS_SECRET_ACCESS_KEY", "anabranch-secret")];
    let start = || Server::start_with(&project, &secret).unwrap_or_else(|said| panic!("it did not start:\n{said}"));
    let count = |server: &Server, name: &str| by_partition(server, name).values().sum::<f64>();

    let server = start();
    server.post("events", piece(0));
    check(&server, 1);
    until("a checkpoint", || count(&server, "anabranch_speed_checkpoints_total") > 0.0);
    store.order(&["kill"]);
    server.post("events", piece(1));
    check(&server, 2);
    until("a failure", || count(&server, "anabranch_speed_checkpoint_failures_total") > 0.0);
    server.post("events", piece(2));
    check(&server, 3);
    let before = count(&server, "anabranch_speed_checkpoints_total");
    store.order(&["resume"]);
    until("the next checkpoint", || count(&server, "anabranch_speed_checkpoints_total") > before);
    server.stop();
    assert!(!project.data().join("checkpoints").exists(), "they are on S3 alone");

    store.order(&["kill"]);
    let server = start();
    let readiness = || -> (u16, Value) {
        let answer = server.try_get("/readyz").expect("an answer");
        (answer.status().as_u16(), answer.json().expect("JSON"))
    };
    let why = "it waits for what it begins with: checkpoint `s3://test/mine/events`: listing failed";
    until("the reason", || readiness().1.to_string().contains(why));
    assert_eq!(readiness().0, 503);
    server.post("events", piece(3));
    let answer = server.get("/v1/views/ever/rows");
    assert_eq!(answer["incomplete"], true, "{answer}");
    assert_eq!(count(&server, "anabranch_speed_events_total"), 0.0, "nothing is begun");
    store.order(&["resume"]);
    until("readiness", || readiness().0 == 200);
    check(&server, 4);
    assert_eq!(count(&server, "anabranch_speed_events_total"), PIECE as f64, "the others were in the checkpoint");
}

#[test]
fn a_worker_goes_on_from_what_another_has_stored() {
    let (Some(brokers), Some(bucket)) = (kafka(), s3()) else { return };
    let project = Project::with_sql(SQL);
    let place = project.path().file_name().expect("a name").to_string_lossy().replace('.', "");
    let settings = format!(
        "[speed]\ncheckpoint_interval = '300 ms'\n[batch]\nscheduler = false\n[storage]\ncheckpoints = '{bucket}/{place}'\n"
    );
    project.write("anabranch.toml", &settings);
    let project = project.on_kafka(&brokers);
    let role = |name: &str| Server::start_role(name, &project, &[]).unwrap_or_else(|said| panic!("{name}: {said}"));
    let (ingest, serve, dies, lives) = (role("ingest"), role("serve"), role("speed"), role("speed"));
    let events = |server: &Server| by_partition(server, "anabranch_speed_events_total");
    until("each has two partitions", || [&dies, &lives].into_iter().all(|worker| events(worker).len() == 2));
    let mut pieces = 0;
    let mut post = || {
        ingest.post("events", piece(pieces));
        pieces += 1;
        pieces
    };
    for _ in 0..50 {
        post();
    }
    check(&serve, post());
    let at_first = events(&dies);
    // The second checkpoint from now on begins from now on: it holds all of that.
    let checkpoints = || by_partition(&dies, "anabranch_speed_checkpoints_total");
    let before = checkpoints();
    until("two more checkpoints of each partition", || {
        post();
        checkpoints().iter().all(|(p, &stored)| stored >= before[p] + 2.0)
    });
    check(&serve, post());
    let at_last = events(&dies);
    dies.kill();
    check(&serve, post());
    let taken_over = events(&lives);
    assert_eq!(taken_over.len(), 4);
    for (partition, first) in at_first {
        let since = at_last[&partition] - first + PIECE as f64;
        let folded = taken_over[&partition];
        eprintln!(
            "  partition {partition}: {first} events at first, {since} since at most; {folded} folded by the other"
        );
        assert!(first > 0.0 && folded <= since, "the other began before the checkpoint");
    }
    assert!(!project.data().join("checkpoints").exists(), "they are on S3 alone");
}
