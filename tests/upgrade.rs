//! A build goes on with what builds before it left, on both logs. `fixtures/project.sh` says what is in that: of commit bb13faf, when
//! logs had no identity yet, and of bf67564, when nothing that was stored named its topic.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::kafka::topic;
use crate::support::{Project, Server, anabranch, kafka, repository};

/// The events of each fixture, and how many of them are in its archive and its versions.
const BEFORE: u64 = 1_000;
const ARCHIVED: u64 = 600;

fn left_by(commit: &str) -> Project {
    let project = Project::with_sql("");
    let archive = repository().join(format!("tests/fixtures/{commit}.tar.gz"));
    let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(project.path()).status();
    assert!(unpacked.expect("tar").success());
    project
}

/// As the fixture's script posts them.
fn event(id: u64) -> String {
    let (v, ts) = (id as f64 / 2.0, format!("2024-01-15T10:{:02}:{:02}Z", id / 60 % 60, id % 60));
    json!({"id": id, "user_id": format!("u{}", id % 7), "v": v, "ts": ts}).to_string()
}

fn settle(server: &Server) {
    server.settle("ever");
    server.settle("per_user");
}

/// All answers are of these events, and exact.
fn has(server: &Server, events: Range<u64>) {
    let ever = server.get("/v1/views/ever/rows");
    assert_eq!((&ever["exact"], &ever["incomplete"]), (&json!(true), &json!(false)), "{ever}");
    let ids: u64 = events.clone().sum();
    let row = &ever["rows"][0];
    let expected = json!([events.clone().count(), ids, ids as f64 / 2.0]);
    assert_eq!(json!([row["n"], row["ids"], row["vs"]]), expected, "{ever}");

    let (rows, answer) = server.range("per_user", "2024-01-15T10:00:00Z", "2024-01-15T12:00:00Z", "merged");
    assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(true), &json!(false)), "{answer}");
    let mut expected = BTreeMap::<(String, String), (u64, u64)>::new();
    for id in events {
        let window = format!("2024-01-15T10:{:02}:00Z", id / 60);
        let row = expected.entry((window, format!("u{}", id % 7))).or_default();
        *row = (row.0 + 1, row.1 + id);
    }
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|row| {
            let (n, ids) = (row["n"].as_u64().expect("n"), row["ids"].as_u64().expect("ids"));
            assert_eq!((&row["mean"], &row["d"]), (&json!(ids as f64 / 2.0 / n as f64), &json!(n)), "{row}");
            ((text(&row["window_start"]), text(&row["user_id"])), (n, ids))
        })
        .collect();
    assert_eq!(found, expected);
}

/// What the build before left is answered at once; more events, a run and a restart leave it right.
fn goes_on(project: &Project) {
    let server = Server::start(project);
    settle(&server);
    has(&server, 0..BEFORE);
    let of_batch = server.get("/v1/views/ever/rows?mode=batch");
    assert_eq!(of_batch["rows"][0]["n"], ARCHIVED, "the version that was there: {of_batch}");
    let jobs = server.get("/v1/jobs");
    let states: Vec<&Value> = jobs["jobs"].as_array().expect("jobs").iter().map(|job| &job["state"]).collect();
    assert_eq!(states, ["succeeded", "succeeded"], "{jobs}");

    let more = (BEFORE..1_500).map(event).collect::<Vec<_>>().join("\n");
    assert_eq!(server.post("events", more)["accepted"], 500);
    settle(&server);
    has(&server, 0..1_500);
    server.batch_all(&["ever", "per_user"]);
    has(&server, 0..1_500);
    assert_eq!(server.get("/v1/views/ever/rows?mode=batch")["rows"][0]["n"], 1_500);
    server.stop();

    let server = Server::start(project);
    settle(&server);
    has(&server, 0..1_500);
    server.stop();
    let checked = anabranch().args(["archive", "check", "--project"]).arg(project.path()).output().expect("it runs");
    let said = String::from_utf8([checked.stdout, checked.stderr].concat()).expect("text");
    assert!(checked.status.success() && said.contains("0 files are damaged"), "{said}");
}

/// What the newest commit of a table says of itself.
fn note(table: &Path) -> Value {
    let commits =
        std::fs::read_dir(table.join("_delta_log")).expect("a log").map(|entry| entry.expect("an entry").path());
    let newest = commits.filter(|path| path.extension().is_some_and(|end| end == "json")).max().expect("a commit");
    let commit = std::fs::read_to_string(newest).expect("read");
    let actions = commit.lines().map(|line| serde_json::from_str::<Value>(line).expect("an action"));
    actions.filter_map(|mut action| Some(action.pointer_mut("/commitInfo/anabranch")?.take())).next().expect("a note")
}

#[test]
fn what_builds_before_left_is_gone_on_with_on_the_embedded_log() {
    for commit in ["bb13faf", "bf67564"] {
        let project = left_by(commit);
        let tables = ["archive/events", "views/ever"].map(|table| project.data().join(table));
        assert!(tables.iter().all(|table| note(table)["coverage"]["0"].is_array()), "{commit}: it names no topic");
        goes_on(&project);
        for table in &tables {
            let note = note(table);
            assert!(note["format"] == 2 && note["coverage"]["events"]["0"].is_array(), "{commit}: {note}");
        }
        let rejects = Server::start(&project).get("/v1/rejects");
        assert_eq!((&rejects["total"], &rejects["rejects"][0]["topic"]), (&json!(1), &json!("events")), "{rejects}");
    }
}

/// The archive, versions and checkpoints are those of a project on the embedded log: that they are of the same records is all that
/// they have of a log, as logs had no identity then.
#[test]
fn what_a_build_before_left_is_gone_on_with_on_kafka() {
    let Some(brokers) = kafka() else { return };
    let project = left_by("bb13faf").on_kafka(&brokers);
    std::fs::remove_dir_all(project.data().join("log")).expect("removed");
    let topic = topic(&project, "events");
    let mut config = ClientConfig::new();
    // A record that is sent again stays in its place.
    config.set("bootstrap.servers", &brokers).set("partitioner", "murmur2_random").set("enable.idempotence", "true");
    let admin: AdminClient<DefaultClientContext> = config.create().expect("a client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let new = NewTopic::new(&topic, 2, TopicReplication::Fixed(1));
    let created = runtime.block_on(admin.create_topics(&[new], &AdminOptions::new())).expect("asked");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let producer: BaseProducer = config.create().expect("a producer");
    for id in 0..BEFORE {
        let (key, payload) = (format!("u{}", id % 7), event(id));
        let record = BaseRecord::to(&topic).key(&key).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).expect("sent");
    }
    producer.flush(Duration::from_secs(60)).expect("stored");
    goes_on(&project);
}
