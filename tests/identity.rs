//! A log that isn't the one it was: lost, put back to an older copy, made anew, or another one. Whatever happens to it, no
//! acknowledged event is missing from an answer that calls itself exact and complete; and there are ways out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::kafka::topic;
use crate::support::{Project, Server, anabranch, copy, kafka};

const SQL: &str = "
CREATE TABLE events (id BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'events', event_time = 'ts');
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
CREATE TABLE others (id BIGINT, ts TIMESTAMP NOT NULL) WITH (topic = 'others', event_time = 'ts');
CREATE MATERIALIZED VIEW other AS SELECT count(*) AS n, sum(id) AS ids FROM others;
";

/// Events wait to be archived until a run wants them.
const SETTINGS: &str = "[archive]\ninterval = '1 hour'\n[batch]\nscheduler = false\n";

const WAY_OUT: &str = "`anabranch log adopt events`";

fn project() -> Project {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    project
}

fn event(id: u64) -> String {
    json!({"id": id, "ts": "2024-01-15T10:00:00Z"}).to_string()
}

fn post(server: &Server, topic: &str, ids: std::ops::Range<u64>) {
    let receipt = server.post(topic, ids.clone().map(event).collect::<Vec<_>>().join("\n"));
    assert_eq!(receipt["accepted"], ids.end - ids.start, "{receipt}");
}

fn sum(ids: std::ops::Range<u64>) -> Value {
    json!([ids.clone().count(), ids.sum::<u64>()])
}

/// What an answer says of a view without groups.
fn counted(answer: &Value) -> Value {
    let row = &answer["rows"][0];
    json!([row["n"].as_u64().unwrap_or(0), row["ids"].as_u64().unwrap_or(0)])
}

/// Each mode's answer, unless it says that it isn't exact, or not complete.
fn claims(server: &Server, view: &str) -> Vec<Value> {
    let answers = ["merged", "batch", "speed"].map(|mode| server.get(&format!("/v1/views/{view}/rows?mode={mode}")));
    let claims = |answer: &&Value| answer["exact"] == true && answer["incomplete"] == false;
    answers.iter().filter(claims).map(counted).collect()
}

/// Has a batch run of a view done, and says how it ended.
fn run(server: &Server, view: &str) -> Value {
    server.run_job(&json!({"kind": "batch", "views": [view]}))
}

/// The table's source has stopped, nothing is taken in, and runs fail: live, after a run, and after a restart. No answer
/// claims to have all.
fn stands_still(server: Server, project: &Project, why: &str) -> Server {
    let still = |server: &Server| {
        server.until_stopped(why);
        // The archive may stop first.
        let readiness = server.until_stopped("view `ever`: its source has stopped").to_string();
        assert!(readiness.contains(WAY_OUT), "{readiness}");
        assert_eq!(claims(server, "ever"), Vec::<Value>::new());
        let answer = server.get("/v1/views/ever/rows");
        assert!(answer["reason"].as_str().is_some_and(|reason| reason.contains(WAY_OUT)), "{answer}");
        let request = server.request(reqwest::Method::POST, "/v1/topics/events/events").body(event(1));
        let (status, problem) = server.problem(request);
        assert_eq!((status, &problem["type"]), (503, &json!("about:blank#other-log")), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(WAY_OUT)), "{problem}");
        assert_eq!(server.metrics().sum("anabranch_source_stopped", &[("view", "ever")]), Some(1.0));
        assert!(server.get("/v1/views/ever")["stopped"].is_string());
    };
    still(&server);
    let job = run(&server, "ever");
    assert_eq!(job["state"], "failed", "{job}");
    assert!(job["error"].as_str().is_some_and(|error| error.contains(WAY_OUT)), "{job}");
    still(&server);
    server.stop();
    let server = Server::start(project);
    still(&server);
    assert_eq!(run(&server, "ever")["state"], "failed");
    server
}

/// The other table has nothing to do with it: it takes events in, answers, and runs.
fn goes_on(server: &Server, known: u64) -> u64 {
    post(server, "others", known..known + 10);
    server.settle("other");
    let answer = server.get("/v1/views/other/rows");
    assert_eq!((counted(&answer), &answer["incomplete"]), (sum(0..known + 10), &json!(false)), "{answer}");
    assert_eq!(run(server, "other")["state"], "succeeded");
    known + 10
}

/// A hundred events are in a version, and fifty more in the speed layer and its checkpoint.
fn with_events(project: &Project) -> Server {
    let server = Server::start(project);
    post(&server, "others", 0..10);
    post(&server, "events", 0..100);
    assert_eq!(server.batch("ever"), 1);
    post(&server, "events", 100..150);
    server.settle("ever");
    assert_eq!(claims(&server, "ever")[0], sum(0..150));
    server
}

fn command(project: &Project, args: &[&str]) -> (bool, String) {
    let output = anabranch().args(args).arg("--project").arg(project.path()).output().expect("the binary starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Resets or adopts the table, after nothing is done unless it is agreed to.
fn decide(project: &Project, what: &str) -> String {
    let (done, said) = command(project, &["log", what, "events"]);
    assert!(!done && said.contains("nothing was done: add `--yes`"), "{said}");
    let (done, said) = command(project, &["log", what, "events", "--yes"]);
    assert!(done, "{said}");
    said
}

/// After a way out was taken: these are counted, by every layer, and so is what comes, also after a restart.
fn works_again(project: &Project, expected: (u64, u64)) {
    let json = |n: u64, ids: u64| json!([n, ids]);
    let (n, ids) = expected;
    let server = Server::start(project);
    server.settle("ever");
    assert_eq!(claims(&server, "ever")[0], json(n, ids), "{}", server.get("/v1/views/ever/rows"));
    post(&server, "events", 1_000..1_010);
    server.settle("ever");
    let all = json(n + 10, ids + (1_000..1_010).sum::<u64>());
    assert_eq!(claims(&server, "ever")[0], all);
    assert_eq!(run(&server, "ever")["state"], "succeeded");
    server.until("ever", |detail| {
        detail["coverage"]["speed"]["offsets"]["events"]["0"][0] == detail["log_end"]["events"]["0"]
    });
    assert_eq!(claims(&server, "ever")[..2], [all.clone(), all.clone()], "batch has the same");
    server.stop();
    let server = Server::start(project);
    server.settle("ever");
    assert_eq!(claims(&server, "ever")[0], all);
    server.stop();
}

/// Puts another embedded log in the place of a project's.
fn replace_log(project: &Project, by: &Path) {
    let log = project.data().join("log");
    std::fs::remove_dir_all(&log).expect("removed");
    copy(by, &log);
}

/// A log of another project with so many events.
fn other_log(events: u64) -> Project {
    let other = project();
    let server = Server::start(&other);
    post(&server, "events", 500..500 + events);
    server.stop();
    other
}

#[test]
fn an_embedded_log_that_was_lost_stops_its_tables() {
    let project = project();
    with_events(&project).stop();
    std::fs::remove_dir_all(project.data().join("log")).expect("removed");
    stands_still(Server::start(&project), &project, "it is of the log embedded:").stop();
    let said = decide(&project, "reset");
    assert!(said.contains("the 0 records that its topic holds are archived"), "{said}");
    works_again(&project, (0, 0));
}

#[test]
fn another_embedded_log_stops_its_tables_be_it_longer_or_shorter() {
    for events in [300, 10] {
        let (project, other) = (project(), other_log(events));
        with_events(&project).stop();
        replace_log(&project, &other.data().join("log"));
        stands_still(Server::start(&project), &project, "it is of the log embedded:").stop();
        let said = decide(&project, "adopt");
        let line = format!(
            "what is archived ends at offset 100; the {events} records that the topic holds from its offset 0 on"
        );
        assert!(said.contains(&line), "{said}");
        let ids = (0..100).chain(500..500 + events).sum::<u64>();
        works_again(&project, (100 + events, ids));
    }
}

#[test]
fn an_older_copy_of_the_embedded_log_stops_its_tables_also_once_it_has_grown() {
    for grown in [0, 60, 200] {
        let (project, older) = (project(), project());
        let server = Server::start(&project);
        post(&server, "events", 0..70);
        server.stop();
        copy(&project.data().join("log"), &older.path().join("copy"));
        let server = Server::start(&project);
        post(&server, "events", 70..100);
        assert_eq!(server.batch("ever"), 1);
        post(&server, "events", 100..150);
        server.settle("ever");
        server.stop();
        // Another project writes to the copy: this one would not.
        copy(&older.path().join("copy"), &older.data().join("log"));
        let server = Server::start(&older);
        if grown > 0 {
            post(&server, "events", 500..500 + grown);
        }
        server.stop();
        replace_log(&project, &older.data().join("log"));
        stands_still(Server::start(&project), &project, WAY_OUT).stop();
        let said = decide(&project, "adopt");
        let line = format!(
            "what is archived ends at offset 100; the {grown} records that the topic holds from its offset 70 on"
        );
        assert!(said.contains(&line), "{said}");
        let ids = (0..100).chain(500..500 + grown).sum::<u64>();
        works_again(&project, (100 + grown, ids));
    }
}

#[test]
fn a_checkpoint_or_a_version_beyond_the_log_stops_its_table() {
    // The log and the archive are put back, and the state of the speed layer isn't.
    let project = project();
    let server = Server::start(&project);
    post(&server, "events", 0..100);
    assert_eq!(server.batch("ever"), 1);
    server.stop();
    let kept = tempfile::tempdir().expect("a folder");
    copy(&project.data(), kept.path());
    let server = Server::start(&project);
    post(&server, "events", 100..150);
    server.settle("ever");
    server.stop();
    replace_log(&project, &kept.path().join("log"));
    stands_still(Server::start(&project), &project, "isn't what a checkpoint of its views is of").stop();
    let said = decide(&project, "adopt");
    assert!(said.contains("its archive is of the log that is there, and stays as it is"), "{said}");
    works_again(&project, (100, (0..100).sum()));

    // Now all but the versions.
    let server = Server::start(&project);
    post(&server, "events", 2_000..2_100);
    assert!(server.batch("ever") > 1);
    server.stop();
    for part in ["log", "archive", "checkpoints"] {
        std::fs::remove_dir_all(project.data().join(part)).expect("removed");
        copy(&kept.path().join(part), &project.data().join(part));
    }
    stands_still(Server::start(&project), &project, "of view `ever` is of").stop();
    decide(&project, "adopt");
    works_again(&project, (100, (0..100).sum()));
}

#[test]
fn what_was_written_before_logs_had_marks_is_taken_as_of_the_log_that_is_there() {
    let project = project();
    with_events(&project).stop();
    // As an earlier build wrote it: the archive's commits without digests, and their notes without marks.
    let folder = project.data().join("archive/events/_delta_log");
    for entry in std::fs::read_dir(folder).expect("a table") {
        let path = entry.expect("an entry").path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let lines = text.lines().map(|line| {
            let mut action: Value = serde_json::from_str(line).expect("JSON");
            for (place, field) in [("/commitInfo", "anabranch.sha256"), ("/commitInfo/anabranch", "log")] {
                let object = action.pointer_mut(place).and_then(Value::as_object_mut);
                object.and_then(|object| object.remove(field));
            }
            action.to_string() + "\n"
        });
        std::fs::write(&path, lines.collect::<String>()).expect("written");
    }
    let server = Server::start(&project);
    server.settle("ever");
    assert_eq!(claims(&server, "ever")[0], sum(0..150));
    server.stop();
    std::fs::remove_dir_all(project.data().join("log")).expect("removed");
    stands_still(Server::start(&project), &project, "it is of the log embedded:").stop();
}

/// A Kafka cluster from outside.
struct Admin {
    brokers: String,
    client: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Admin {
    fn at(brokers: &str) -> Self {
        let client = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { brokers: brokers.to_owned(), client, runtime }
    }

    fn delete(&self, topic: &str) {
        let deleted = self.runtime.block_on(self.client.delete_topics(&[topic], &AdminOptions::new())).expect("asked");
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    }

    fn produce(&self, topic: &str, ids: std::ops::Range<u64>) {
        let mut config = ClientConfig::new();
        // A record that is sent again stays in its place.
        config.set("bootstrap.servers", &self.brokers).set("enable.idempotence", "true");
        let producer: BaseProducer = config.create().expect("a producer");
        for id in ids {
            let payload = event(id);
            let record = BaseRecord::<(), str>::to(topic).partition(0).payload(&payload);
            producer.send(record).map_err(|(error, _)| error).expect("sent");
        }
        producer.flush(Duration::from_secs(60)).expect("stored");
    }

    /// Creates a topic, unless a broker has as soon as somebody asked for it, and has it hold events.
    fn create(&self, topic: &str, partitions: i32, ids: std::ops::Range<u64>) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let created = self.runtime.block_on(self.client.create_topics(&[new], &AdminOptions::new())).expect("asked");
        let is_there = |result: &TopicResult| matches!(result, Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)));
        assert!(created.iter().all(is_there), "{created:?}");
        self.produce(topic, ids);
    }

    fn partitions(&self, topic: &str) -> usize {
        let metadata = self.client.inner().fetch_metadata(Some(topic), Duration::from_secs(60)).expect("metadata");
        metadata.topics()[0].partitions().len()
    }
}

/// The topic's records are other ones: it was deleted, and made again by somebody.
fn made_anew(project: &Project, events: u64) {
    let cluster = Admin::at(&kafka().expect("a broker"));
    cluster.delete(&topic(project, "events"));
    cluster.create(&topic(project, "events"), 1, 500..500 + events);
}

#[test]
fn a_topic_that_was_lost_stops_its_table_and_no_other() {
    let Some(brokers) = kafka() else { return };
    let project = project().on_kafka(&brokers);
    with_events(&project).stop();
    Admin::at(&brokers).delete(&topic(&project, "events"));
    let server = stands_still(Server::start(&project), &project, "it is of the log kafka:");
    goes_on(&server, 10);
    server.stop();
    decide(&project, "reset");
    works_again(&project, (0, 0));
}

#[test]
fn a_topic_made_anew_while_the_server_is_down_stops_its_table() {
    let Some(brokers) = kafka() else { return };
    for events in [300, 10] {
        let project = project().on_kafka(&brokers);
        with_events(&project).stop();
        made_anew(&project, events);
        let server = stands_still(Server::start(&project), &project, "it is of the log kafka:");
        goes_on(&server, 10);
        server.stop();
        let said = decide(&project, "reset");
        assert!(said.contains(&format!("the {events} records that its topic holds are archived")), "{said}");
        works_again(&project, (events, (500..500 + events).sum()));
    }
}

#[test]
fn a_topic_made_anew_while_the_server_is_up_stops_its_table() {
    let Some(brokers) = kafka() else { return };
    for events in [300, 10] {
        let project = project().on_kafka(&brokers);
        let server = with_events(&project);
        made_anew(&project, events);
        let server = stands_still(server, &project, WAY_OUT);
        goes_on(&server, 10);
        server.stop();
        let said = decide(&project, "adopt");
        assert!(said.contains("what is archived ends at offset 100"), "{said}");
        works_again(&project, (100 + events, (0..100).chain(500..500 + events).sum()));
    }
}

#[test]
fn an_older_copy_of_a_kafka_cluster_stops_its_table_also_once_it_has_grown() {
    if kafka().is_none() {
        return;
    }
    for grown in [0, 200] {
        let cluster = Cluster::start(1);
        let (data, kept) = (cluster.folder.path().join("kafka/data-1"), cluster.folder.path().join("kept"));
        let project = project().on_kafka(&cluster.brokers);
        let server = Server::start(&project);
        post(&server, "events", 0..70);
        server.stop();
        cluster.broker("stop", 1);
        copy(&data, &kept);
        cluster.broker("resume", 1);
        let server = Server::start(&project);
        post(&server, "events", 70..100);
        assert_eq!(server.batch("ever"), 1);
        post(&server, "events", 100..150);
        server.settle("ever");
        server.stop();
        cluster.broker("stop", 1);
        std::fs::remove_dir_all(&data).expect("removed");
        copy(&kept, &data);
        cluster.broker("resume", 1);
        Admin::at(&cluster.brokers).produce(&topic(&project, "events"), 500..500 + grown);
        stands_still(Server::start(&project), &project, "older copy").stop();
        let said = decide(&project, "adopt");
        let line = format!(
            "what is archived ends at offset 100; the {grown} records that the topic holds from its offset 70 on"
        );
        assert!(said.contains(&line), "{said}");
        works_again(&project, (100 + grown, (0..100).chain(500..500 + grown).sum()));
    }
}

#[test]
fn another_prefix_of_topics_stops_all_tables() {
    let Some(brokers) = kafka() else { return };
    for events in [300, 0] {
        let project = project().on_kafka(&brokers);
        with_events(&project).stop();
        let settings = std::fs::read_to_string(project.path().join("anabranch.toml")).expect("readable");
        project.write("anabranch.toml", &settings.replace("topic_prefix = '", "topic_prefix = 'other."));
        Admin::at(&brokers).create(&format!("other.{}", topic(&project, "events")), 1, 500..500 + events);
        stands_still(Server::start(&project), &project, "it is of the log kafka:").stop();
        // As it was, all is well again.
        project.write("anabranch.toml", &settings);
        let server = Server::start(&project);
        server.settle("ever");
        assert_eq!(claims(&server, "ever")[0], sum(0..150));
    }
}

#[test]
fn a_project_moves_from_the_embedded_log_to_kafka_by_adopting_it() {
    let Some(brokers) = kafka() else { return };
    for events in [300, 0] {
        let project = project();
        with_events(&project).stop();
        let project = project.on_kafka(&brokers);
        Admin::at(&brokers).create(&topic(&project, "events"), 3, 500..500 + events);
        stands_still(Server::start(&project), &project, "it is of the log embedded:").stop();
        let said = decide(&project, "adopt");
        assert!(
            said.contains("the 50 records that the embedded log holds and the archive lacks are archived first"),
            "{said}"
        );
        let ids = (0..150).chain(500..500 + events).sum::<u64>();
        let server = Server::start(&project);
        server.settle("ever");
        assert_eq!(claims(&server, "ever")[0], json!([150 + events, ids]));
        post(&server, "events", 1_000..1_090);
        server.settle("ever");
        let all = json!([240 + events, ids + (1_000..1_090).sum::<u64>()]);
        assert_eq!(claims(&server, "ever")[0], all);
        assert_eq!(run(&server, "ever")["state"], "succeeded");
        let version = server.until("ever", |detail| detail["coverage"]["batch"]["version"] == 3);
        let offsets: BTreeMap<String, [u64; 2]> =
            serde_json::from_value(version["coverage"]["batch"]["offsets"]["events"].clone()).expect("offsets");
        assert_eq!(offsets.values().map(|[from, to]| to - from).sum::<u64>(), 240 + events, "{offsets:?}");
        server.stop();
        let server = Server::start(&project);
        server.settle("ever");
        assert_eq!(claims(&server, "ever")[0], all);
    }
}

#[test]
fn nobodys_topic_gets_more_partitions_unless_that_is_agreed() {
    let Some(brokers) = kafka() else { return };
    let sql = "
CREATE TABLE events (id BIGINT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', partitions = 4, partition_by = 'id');
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
";
    let project = Project::with_sql(sql).on_kafka(&brokers);
    let (cluster, topic) = (Admin::at(&brokers), topic(&project, "events"));
    cluster.create(&topic, 2, 0..20);
    let server = Server::start(&project);
    server.settle("ever");
    assert_eq!(claims(&server, "ever")[0], sum(0..20));
    // As it was made is as it is used.
    server.until_ready();
    assert_eq!(cluster.partitions(&topic), 2);
    let (done, said) = command(&project, &["views", "partitions", "events", "4"]);
    assert!(!done && said.contains("goes from 2 partitions to 4") && said.contains("records of one `id`"), "{said}");
    assert_eq!(cluster.partitions(&topic), 2);
    let (done, said) = command(&project, &["views", "partitions", "events", "4", "--yes"]);
    assert!(done, "{said}");
    assert_eq!(cluster.partitions(&topic), 4);
    server.stop();
    let server = Server::start(&project);
    post(&server, "events", 20..80);
    let detail = server.settle("ever");
    assert_eq!(detail["log_end"]["events"].as_object().expect("partitions").len(), 4, "{detail}");
    assert_eq!(claims(&server, "ever")[0], sum(0..80));
}
