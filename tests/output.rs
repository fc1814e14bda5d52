//! Output streams on a real broker, read by Kafka's own console consumer: what each delivery promises holds after kills, and
//! what it allows can be seen.

mod kills;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use reqwest::Method;
use serde_json::{Value, json};

use crate::kafka::{read, tool, topic};
use crate::support::{Project, Server, anabranch, kafka};

const PATIENCE: Duration = Duration::from_secs(120);

const PARTITIONS: i32 = 4;

fn sql(delivery: &str) -> String {
    format!(
        "CREATE TABLE events (id BIGINT, n BIGINT, name TEXT, ts TIMESTAMP NOT NULL)
         WITH (topic = 'events', event_time = 'ts', partitions = {PARTITIONS});
         CREATE MATERIALIZED VIEW big WITH (sink = 'kafka', topic = 'big', delivery = '{delivery}') AS
         SELECT id, n, upper(name) AS name FROM events WHERE id % 3 <> 0;"
    )
}

fn project(brokers: &str, delivery: &str) -> Project {
    let project = Project::with_sql(&sql(delivery)).on_kafka(brokers);
    let settings = std::fs::read_to_string(project.path().join("anabranch.toml")).expect("readable");
    project.write("anabranch.toml", &format!("{settings}session_timeout = '1 s'\n"));
    project
}

/// The n-th event of a partition.
fn event(partition: i32, n: i64) -> String {
    let id = n * i64::from(PARTITIONS) + i64::from(partition);
    json!({"id": id, "n": n, "name": format!("ereignis nº {n}"), "ts": "2024-01-15T10:00:00Z"}).to_string()
}

/// What becomes of a partition's first events, in order.
fn expected(partition: i32, events: i64) -> Vec<String> {
    let ids = (0..events).map(|n| (n, n * i64::from(PARTITIONS) + i64::from(partition)));
    let record = |(n, id)| format!("{{\"id\":{id},\"n\":{n},\"name\":\"EREIGNIS Nº {n}\"}}");
    ids.filter(|(_, id)| id % 3 != 0).map(record).collect()
}

/// Writes events to the topic itself, past every process that may be killed.
struct Source {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
    written: i64,
}

impl Source {
    fn new(brokers: &str, topic: String) -> Self {
        let config = [("bootstrap.servers", brokers), ("enable.idempotence", "true")];
        let config = config.iter().fold(ClientConfig::new(), |mut all, (key, value)| all.set(*key, *value).clone());
        Self { producer: config.create().expect("a producer"), topic, written: 0 }
    }

    /// So many events more in each partition.
    fn write(&mut self, events: i64) {
        for n in self.written..self.written + events {
            for partition in 0..PARTITIONS {
                let event = event(partition, n);
                let record = BaseRecord::<(), str>::to(&self.topic).partition(partition).payload(&event);
                self.producer.send(record).unwrap_or_else(|(error, _)| panic!("{error}"));
            }
        }
        self.written += events;
        self.producer.flush(PATIENCE).expect("stored");
    }
}

/// How many records a topic has.
fn count(brokers: &str, topic: &str, isolation: &str) -> usize {
    let config = [
        ("bootstrap.servers", brokers),
        ("group.id", "test"),
        ("isolation.level", isolation),
        ("enable.partition.eof", "true"),
    ];
    let config = config.iter().fold(ClientConfig::new(), |mut all, (key, value)| all.set(*key, *value).clone());
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let mut ahead: BTreeSet<i32> = metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    let mut list = TopicPartitionList::new();
    ahead.iter().for_each(|&p| list.add_partition_offset(topic, p, Offset::Beginning).expect("added"));
    consumer.assign(&list).expect("assigned");
    let mut records = 0;
    while !ahead.is_empty() {
        match consumer.poll(PATIENCE).expect("more to come") {
            Ok(_) => records += 1,
            Err(KafkaError::PartitionEOF(partition)) => {
                ahead.remove(&partition);
            }
            Err(error) => panic!("{error}"),
        }
    }
    records
}

/// The records of each partition, in order, as Kafka's console consumer shows them.
pub fn console_consumer(brokers: &str, topic: &str, isolation: &str) -> BTreeMap<i32, Vec<String>> {
    let records = count(brokers, topic, isolation);
    if records == 0 {
        return BTreeMap::new();
    }
    let consumer = tool("org.apache.kafka.tools.consumer.ConsoleConsumer")
        .args(["--bootstrap-server", brokers, "--topic", topic, "--from-beginning", "--isolation-level", isolation])
        .args(["--max-messages", &records.to_string(), "--timeout-ms", &PATIENCE.as_millis().to_string()])
        .args(["--property", "print.partition=true"])
        .output()
        .expect("java starts");
    let mut records = BTreeMap::<i32, Vec<String>>::new();
    for line in String::from_utf8_lossy(&consumer.stdout).lines() {
        let (place, record) = line.split_once('\t').unwrap_or_else(|| panic!("{line}"));
        let partition = place.trim_start_matches("Partition:").parse().unwrap_or_else(|_| panic!("{line}"));
        records.entry(partition).or_default().push(record.to_owned());
    }
    records
}

/// Writes events, has a process die at a failpoint when it comes to the first of them, and lets another one finish: what is
/// there in the end, in one partition.
fn after_a_death_at(failpoint: &str, brokers: &str, delivery: &str) -> (Vec<String>, Vec<String>) {
    let project = project(brokers, delivery);
    // So that positions are known, and the first write after this is that of the first events.
    let server = Server::start(&project);
    server.until("big", |detail| {
        detail["positions"]["events"].as_object().is_some_and(|all| all.len() == PARTITIONS as usize)
    });
    server.stop();
    let mut source = Source::new(brokers, topic(&project, "events"));
    source.write(100);
    let crash = format!("{failpoint}:1");
    if let Ok(mut server) = Server::start_with(&project, &[("ANABRANCH_CRASH_AT", &crash)]) {
        assert_eq!(server.wait().signal(), Some(6));
    }
    let server = Server::start(&project);
    server.settle("big");
    source.write(100);
    server.settle("big");
    let records = console_consumer(brokers, &topic(&project, "big"), "read_committed");
    let expected = (0..PARTITIONS).flat_map(|partition| expected(partition, source.written)).collect();
    (records.into_values().flatten().collect(), expected)
}

fn counted(records: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(record.as_str()).or_default() += 1;
    }
    counts
}

#[test]
fn at_least_once_repeats_what_was_stored_before_a_death_and_loses_nothing() {
    let Some(brokers) = kafka() else { return };
    let (found, expected) = after_a_death_at("output::produced", &brokers, "at_least_once");
    let (found, expected) = (counted(&found), counted(&expected));
    assert!(found.keys().eq(expected.keys()), "none is lost");
    let again = found.values().filter(|&&count| count == 2).count();
    assert!(again > 0 && found.values().all(|count| (1..=2).contains(count)), "those of one write are there again");
}

#[test]
fn at_most_once_loses_what_was_not_stored_before_a_death_and_repeats_nothing() {
    let Some(brokers) = kafka() else { return };
    let (found, expected) = after_a_death_at("output::after_commit", &brokers, "at_most_once");
    let (found, expected) = (counted(&found), counted(&expected));
    assert!(found.values().all(|&count| count == 1), "none is there twice");
    let lost: Vec<_> = expected.keys().filter(|record| !found.contains_key(*record)).collect();
    assert!(!lost.is_empty() && lost.len() < expected.len() / 2, "those of one write are lost: {} are", lost.len());
    assert!(found.keys().all(|record| expected.contains_key(record)));
}

#[test]
fn exactly_once_does_neither() {
    let Some(brokers) = kafka() else { return };
    for failpoint in ["output::produced", "output::after_commit"] {
        let (found, expected) = after_a_death_at(failpoint, &brokers, "exactly_once");
        assert_eq!(counted(&found), counted(&expected), "{failpoint}");
    }
}

#[test]
fn an_etl_job_filters_maps_and_flat_maps_and_views_go_on_from_it() {
    let Some(brokers) = kafka() else { return };
    let project = Project::example("etl").on_kafka(&brokers);
    let server = Server::start(&project);
    let when = |second: u32| format!("1969-12-31T23:59:{second:02}Z");
    let event = |id: u32, kind: &str, product: Value, price: f64, sentence: Value| {
        json!({"id": id, "event_type": kind, "user_id": format!("u{id}"), "product_id": product, "price": price,
               "sentence": sentence, "context": {"campaign": "Frühling 💐", "list": [1.0, null]}, "timestamp": when(id)})
    };
    let events = [
        event(1, "purchase", json!("BOOK-7"), 12.5, Value::Null),
        event(2, "view", json!("TOY-1"), 3.0, json!("Größe, größe 42")),
        event(3, "purchase", json!("TOY-1"), 3.25, json!("")),
        event(4, "purchase", Value::Null, 1.0, Value::Null),
    ];
    let body = events.map(|event| event.to_string()).join("\n");
    assert_eq!(server.post("events", body)["accepted"], 4);
    // Past ingest, which would refuse it.
    let bad = Source::new(&brokers, topic(&project, "events"));
    bad.producer.send(BaseRecord::<(), str>::to(&bad.topic).partition(0).payload("{no event")).expect("queued");
    bad.producer.flush(PATIENCE).expect("stored");
    let settled = |view: &str| server.until(view, |detail| detail["lag"] == 0 && detail["rejected"] == 1);
    let detail = settled("purchases");
    settled("words");
    assert_eq!(detail["kind"], "output");
    let sink = json!({"kind": "kafka", "topic": "purchases", "delivery": "exactly_once", "partition_by": "category"});
    assert_eq!((&detail["sink"], &detail["stopped"]), (&sink, &json!({})));
    let positions: u64 =
        detail["positions"]["events"].as_object().expect("positions").values().filter_map(Value::as_u64).sum();
    assert_eq!(positions, 5, "{detail}");

    let bought = |id: u32, product: Value, category: &str, price: f64| {
        json!({"id": id, "user_id": format!("u{id}"), "product": product, "category": category, "price": price,
               "campaign": "Frühling 💐", "context": {"campaign": "Frühling 💐", "list": [1.0, null]}, "timestamp": when(id)})
        .to_string()
    };
    let mut purchases: Vec<_> = read(&brokers, &topic(&project, "purchases"), 4, 3);
    purchases.sort_by(|one, other| one.2.cmp(&other.2));
    let (keys, values): (Vec<_>, Vec<_>) = purchases.into_iter().map(|(_, key, value)| (key, value)).unzip();
    assert_eq!(keys, ["books", "toys", "other"]);
    let expected = [
        bought(1, json!("book-7"), "books", 12.5),
        bought(3, json!("toy-1"), "toys", 3.25),
        bought(4, Value::Null, "other", 1.0),
    ];
    assert_eq!(values, expected);
    let words = read(&brokers, &topic(&project, "words"), 4, 3).into_iter().map(|(_, key, value)| (key, value));
    let word = |word: &str| (String::new(), json!({"id": 2, "word": word, "timestamp": when(2)}).to_string());
    assert_eq!(words.collect::<Vec<_>>(), [word("größe"), word("größe"), word("42")]);

    // A view of what an output has written.
    server.settle("revenue");
    let answer = server.get("/v1/views/revenue/rows");
    let rows = answer["rows"].as_array().expect("rows").iter().map(|row| (&row["category"], &row["revenue"]));
    let expected =
        [("books", 12.5), ("other", 1.0), ("toys", 3.25)].map(|(category, sum)| (json!(category), json!(sum)));
    assert!(rows.eq(expected.iter().map(|(category, sum)| (category, sum))), "{answer}");

    let rejects = server.get("/v1/rejects?topic=events");
    assert_eq!((&rejects["total"], &rejects["rejects"][0]["record"]), (&json!(1), &json!("{no event")), "{rejects}");
    let kinds = server.get("/v1/views");
    let kinds = kinds["views"].as_array().expect("views").iter().map(|view| (&view["name"], &view["kind"]));
    let all = [("revenue", "view"), ("purchases", "output"), ("words", "output")].map(|(a, b)| (json!(a), json!(b)));
    assert!(kinds.eq(all.iter().map(|(name, kind)| (name, kind))));
    for path in ["/v1/views/words/rows", "/v1/views/words/stream", "/v1/stream?views=revenue,words"] {
        let (status, problem) = server.problem(server.request(Method::GET, path));
        assert_eq!((status, &problem["type"]), (404, &json!("about:blank#rows-elsewhere")), "{path}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("Kafka's topic `words`")), "{problem}");
    }
    let metrics = server.metrics();
    for (name, expected) in [("records_total", 3.0), ("rejected_total", 1.0), ("lag_records", 0.0), ("stopped", 0.0)] {
        let sum = metrics.sum(&format!("anabranch_output_{name}"), &[("view", "purchases")]);
        assert_eq!(sum, Some(expected), "{name}: {metrics:?}");
    }
}

#[test]
fn a_lost_range_stops_an_output_and_is_said_wherever_one_looks() {
    let Some(brokers) = kafka() else { return };
    let project = project(&brokers, "exactly_once");
    let server = Server::start(&project);
    server.until("big", |detail| {
        detail["positions"]["events"].as_object().is_some_and(|all| all.len() == PARTITIONS as usize)
    });
    server.stop();
    Source::new(&brokers, topic(&project, "events")).write(10);
    let offsets = [json!({"topic": topic(&project, "events"), "partition": 1, "offset": 7})];
    project.write("delete.json", &json!({"partitions": offsets, "version": 1}).to_string());
    let done = tool("org.apache.kafka.tools.DeleteRecordsCommand")
        .args(["--bootstrap-server", &brokers, "--offset-json-file"])
        .arg(project.path().join("delete.json"))
        .output()
        .expect("java starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let says = |text: &str| text.contains("offsets 0.. are wanted, but the log holds 7..10 only");
    for role in ["up", "speed"] {
        let server = Server::start_role(role, &project, &[]).unwrap_or_else(|said| panic!("{said}"));
        let readiness = server.until_stopped("view `big`: writing what partition 1 gives has stopped");
        assert!(says(&readiness.to_string()), "{readiness}");
        let metrics = server.metrics();
        let lost = [("view", "big"), ("partition", "1"), ("from", "0"), ("to", "7")];
        assert_eq!(metrics.sum("anabranch_output_lost_offsets", &lost), Some(7.0), "{metrics:?}");
        assert_eq!(metrics.sum("anabranch_output_stopped", &[("view", "big"), ("partition", "1")]), Some(1.0));
        if role == "up" {
            let detail = server.until("big", |detail| detail["lag"] == 10);
            assert!(detail["stopped"]["1"].as_str().is_some_and(says), "{detail}");
            assert_eq!(detail["stopped"].as_object().map(serde_json::Map::len), Some(1), "the others go on: {detail}");
        }
        server.stop();
    }
}

#[test]
fn outputs_are_shown_on_the_command_line_and_need_a_cluster() {
    let project = Project::example("etl");
    let run_with = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = anabranch();
        command.args(arguments).arg("--project").arg(project.path()).envs(environment.iter().copied());
        let output = command.output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let run = |arguments: &[&str]| run_with(arguments, &[]);
    // A check says what a start would.
    let (code, said) = run_with(&["views", "check"], &[("ANABRANCH__KAFKA__BROKERS", "127.0.0.1:9092")]);
    assert!(code == Some(0) && said.contains("2 tables, 1 views and 2 outputs are right"), "{said}");
    let (code, refused) = run(&["views", "check"]);
    assert_eq!(code, Some(2), "{refused}");
    let (_, listed) = run(&["views", "list", "--output", "json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let words = listed["views"].as_array().expect("views").iter().find(|view| view["name"] == "words");
    let words = words.expect("it is listed");
    assert_eq!((&words["kind"], &words["writes"]), (&json!("output"), &json!("words")));
    assert_eq!((&words["delivery"], &words["columns"]), (&json!("at_least_once"), &json!("id, word, timestamp")));
    let (code, explained) = run(&["views", "explain", "purchases"]);
    assert!(code == Some(0) && explained.contains("Events to records of topic `purchases`"), "{explained}");
    let (code, said) = run(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!((code, &said), (Some(2), &refused));
    assert!(
        said.contains("view `purchases` writes its rows to a topic of Kafka") && said.contains("`brokers`"),
        "{said}"
    );
}
