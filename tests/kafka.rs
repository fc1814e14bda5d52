//! What Kafka's own tools see, and what they write.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chrono::{DateTime, FixedOffset, SecondsFormat, TimeDelta};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::json;

use crate::support::{Project, Server, kafka};

const SQL: &str = "
CREATE TABLE clicks (user_id TEXT NOT NULL, ts TIMESTAMP NOT NULL)
WITH (topic = 'clicks', event_time = 'ts', partitions = 6, partition_by = 'user_id');
CREATE MATERIALIZED VIEW per_user AS SELECT user_id, count(*) AS n FROM clicks GROUP BY user_id;
CREATE TABLE orders (id BIGINT NOT NULL, state TEXT, changed TIMESTAMP NOT NULL)
WITH (topic = 'orders', format = 'debezium-json', event_time = 'changed');
CREATE TABLE visits (page TEXT, ts TIMESTAMP NOT NULL, visitor TEXT, about JSON)
WITH (topic = 'visits', event_time = 'ts', partitions = 3, key = 'visitor', headers = 'about');
CREATE MATERIALIZED VIEW per_visitor AS
SELECT visitor, count(*) AS n, count(*) FILTER (WHERE about ->> 'source' = 'app') AS from_app,
  max(about ->> 'trace') AS trace FROM visits GROUP BY visitor;
CREATE MATERIALIZED VIEW changes AS SELECT state, count(*) AS n FROM orders GROUP BY state;
";

/// One of Kafka's own command line tools.
pub fn tool(class: &str) -> Command {
    let libraries = std::env::var_os("KAFKA_LOCAL_LIBS").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache/kafka-local/4.1.0"),
        PathBuf::from,
    );
    let mut command = Command::new("java");
    command.args(["-Xmx128m", "-cp"]).arg(libraries.join("*")).arg(class);
    command
}

/// Has Kafka's console producer write records, each of a key and a value, parted by a tab.
fn console_producer(brokers: &str, topic: &str, records: &[String], properties: &[&str]) {
    let mut producer = tool("org.apache.kafka.tools.ConsoleProducer")
        .args(["--bootstrap-server", brokers, "--topic", topic])
        .args(["--property", "parse.key=true", "--property", "null.marker=NULL"])
        .args(properties.iter().flat_map(|property| ["--property", property]))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("java starts");
    let mut stdin = producer.stdin.take().expect("stdin");
    stdin.write_all(records.join("\n").as_bytes()).expect("written");
    drop(stdin);
    assert!(producer.wait().expect("it ends").success());
}

/// Each record's partition, key and value.
pub fn read(brokers: &str, topic: &str, partitions: i32, records: usize) -> Vec<(i32, String, String)> {
    let config = [("bootstrap.servers", brokers), ("group.id", "test"), ("isolation.level", "read_committed")];
    let consumer: BaseConsumer =
        config.iter().fold(&mut ClientConfig::new(), |all, (key, value)| all.set(*key, *value)).create().expect("one");
    let mut list = TopicPartitionList::new();
    (0..partitions).for_each(|p| list.add_partition_offset(topic, p, Offset::Beginning).expect("added"));
    consumer.assign(&list).expect("assigned");
    let mut all = Vec::new();
    while all.len() < records {
        let message = consumer.poll(Duration::from_secs(60)).expect("more to come").expect("a record");
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        all.push((message.partition(), text(message.key()), text(message.payload())));
    }
    all
}

/// A topic's name in the cluster.
pub fn topic(project: &Project, name: &str) -> String {
    format!("{}-{name}", project.path().file_name().expect("a name").to_string_lossy().replace('.', ""))
}

#[test]
fn a_java_producers_key_lands_in_the_same_partition() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let server = Server::start(&project);
    let topic = topic(&project, "clicks");
    let users: Vec<String> = (0..60).map(|i| format!("user {i} Ä")).collect();
    let click = |user: &String| json!({"user_id": user, "ts": "2024-01-15T10:00:00Z"}).to_string();
    let body = users.iter().map(click).collect::<Vec<_>>().join("\n");
    assert_eq!(server.post("clicks", body.clone())["accepted"], users.len());
    // The same in a transaction.
    let keyed = server.request(reqwest::Method::POST, "/v1/topics/clicks/events").header("Idempotency-Key", "again");
    assert!(keyed.body(body).send().expect("an answer").status().is_success());
    let records: Vec<String> = users.iter().map(|user| format!("{user}\t{}", click(user))).collect();
    console_producer(&brokers, &topic, &records, &[]);
    let mut partitions = BTreeMap::<String, Vec<i32>>::new();
    for (partition, key, value) in read(&brokers, &topic, 6, 3 * users.len()) {
        assert_eq!(value, click(&key), "ours have the key too");
        partitions.entry(key).or_default().push(partition);
    }
    assert_eq!(partitions.len(), users.len());
    for (key, of_key) in &partitions {
        assert!(of_key.len() == 3 && of_key.iter().all(|p| p == &of_key[0]), "{key}: {of_key:?}");
    }
    assert!(partitions.values().map(|of_key| of_key[0]).collect::<std::collections::BTreeSet<_>>().len() > 3);
    server.settle("per_user");
    let rows = server.get("/v1/views/per_user/rows?limit=1000");
    assert!(rows["rows"].as_array().expect("rows").iter().all(|row| row["n"] == 3), "{rows}");
}

#[test]
fn changes_and_tombstones_of_debezium_pass() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let server = Server::start(&project);
    let row = |id: u32, state: &str| json!({"id": id, "state": state, "changed": "2024-01-15T10:00:00Z"});
    let change = |id: u32, op: &str, before, after| {
        format!("{id}\t{}", json!({"before": before, "after": after, "op": op, "ts_ms": 1_705_312_800_000_u64}))
    };
    let null = serde_json::Value::Null;
    let records = [
        change(1, "c", null.clone(), row(1, "new")),
        change(2, "r", null.clone(), row(2, "new")),
        change(1, "u", row(1, "new"), row(1, "paid")),
        change(2, "d", row(2, "new"), null),
        "2\tNULL".to_owned(),
    ];
    console_producer(&brokers, &topic(&project, "orders"), &records, &[]);
    server.until("changes", |detail| detail["log_end"]["orders"]["0"] == 5 && detail["lag"] == 0);
    let answer = server.get("/v1/views/changes/rows");
    assert_eq!(answer["rejected"], 0, "{answer}");
    let rows: Vec<_> = answer["rows"].as_array().expect("rows").iter().map(|row| (&row["state"], &row["n"])).collect();
    assert_eq!(rows, [(&json!("new"), &json!(2)), (&json!("paid"), &json!(1))]);
    let (status, problem) = server
        .problem(server.request(reqwest::Method::POST, "/v1/topics/orders/events").body(row(3, "new").to_string()));
    assert_eq!(status, 400, "{problem}");
    // Batch reads the same records to the same rows.
    server.batch("changes");
    assert_eq!(server.get("/v1/views/changes/rows?mode=batch")["rows"], answer["rows"]);
}

#[test]
fn keys_and_headers_are_columns_in_both_layers() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let server = Server::start(&project);
    let visit = |page: &str| json!({"page": page, "ts": "2024-01-15T10:00:00Z", "visitor": "forged"}).to_string();
    // Headers, key and value, parted by tabs.
    let records = [
        format!("source:app,trace:1\tann\t{}", visit("/a")),
        format!("source:web,trace:2,source:app\tann\t{}", visit("/b")),
        format!("source:web\tbob\t{}", visit("/a")),
        format!("NULL\tbob\t{}", visit("/c")),
        format!("source:app\tNULL\t{}", visit("/d")),
        "source:app\tbob\tNULL".to_owned(),
    ];
    console_producer(&brokers, &topic(&project, "visits"), &records, &["parse.headers=true"]);
    // Over HTTP an event has no headers, and a key only where `partition_by` makes one.
    server.post("visits", visit("/e"));
    server.until("per_visitor", |detail| {
        let ends = detail["log_end"]["visits"].as_object().expect("ends").values();
        ends.map(|end| end.as_u64().expect("an offset")).sum::<u64>() == 7 && detail["lag"] == 0
    });
    let rows = |mode: &str| {
        let answer = server.get(&format!("/v1/views/per_visitor/rows?mode={mode}"));
        assert_eq!((&answer["rejected"], &answer["exact"]), (&json!(0), &json!(true)), "{answer}");
        let rows = answer["rows"].as_array().expect("rows").iter();
        let row = |row: &serde_json::Value| ["visitor", "n", "from_app", "trace"].map(|column| row[column].clone());
        let mut rows: Vec<_> = rows.map(row).collect();
        rows.sort_by_key(|row| row[0].to_string());
        serde_json::Value::from(rows.into_iter().map(|row| row.to_vec()).collect::<Vec<_>>())
    };
    let expected = json!([["ann", 2, 2, "2"], ["bob", 2, 0, null], [null, 2, 1, null]]);
    assert_eq!(rows("merged"), expected);
    server.batch("per_visitor");
    assert_eq!(rows("batch"), expected);
    console_producer(&brokers, &topic(&project, "visits"), &records[..1], &["parse.headers=true"]);
    server.until("per_visitor", |detail| {
        let ends = detail["log_end"]["visits"].as_object().expect("ends").values();
        ends.map(|end| end.as_u64().expect("an offset")).sum::<u64>() == 8 && detail["lag"] == 0
    });
    assert_eq!(rows("merged")[0], json!(["ann", 3, 3, "2"]));
    assert_eq!(rows("speed"), json!([["ann", 1, 1, "1"]]));
}

#[test]
fn late_events_in_a_topic_have_their_keys_and_headers() {
    let Some(brokers) = kafka() else { return };
    let sql = "CREATE TABLE taps (page TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partitions = 1);
        CREATE MATERIALIZED VIEW per_minute WITH (late = 'topic', late_topic = 'taps.late') AS
        SELECT window_start, window_end, count(*) AS n FROM TUMBLE(taps, ts, INTERVAL '1 minute')
        GROUP BY window_start, window_end;";
    let project = Project::with_sql(sql).on_kafka(&brokers);
    let _server = Server::start(&project);
    let tap = |second: u32| json!({"page": "/", "ts": format!("2024-01-15T10:01:{second:02}Z")});
    let late = json!({"page": "/", "ts": "2024-01-15T10:00:59.250Z"});
    let records = [
        format!("source:app\tann\t{}", tap(1)),
        format!("source:web,trace:7\tbob\t{late}"),
        format!("NULL\tNULL\t{late}"),
    ];
    console_producer(&brokers, &topic(&project, "taps"), &records, &["parse.headers=true"]);
    let records = read(&brokers, &topic(&project, "taps.late"), 1, 2);
    let told = |offset: u64| {
        json!({
            "view": "per_minute", "topic": "taps", "partition": 0, "offset": offset, "event_time": "2024-01-15T10:00:59.250Z",
            "watermark": "2024-01-15T10:01:01Z", "behind_ms": 1750, "missed": 1, "windows": 1, "record": late,
        })
    };
    let mut of_bob = told(1);
    (of_bob["key"], of_bob["headers"]) = (json!("bob"), json!({"source": "web", "trace": "7"}));
    for ((_, key, record), expected) in records.iter().zip([("bob", of_bob), ("", told(2))]) {
        let record: serde_json::Value = serde_json::from_str(record).expect("JSON");
        assert_eq!((key.as_str(), record), expected);
    }
}

#[test]
fn lag_tools_see_how_far_the_roles_are() {
    let Some(brokers) = kafka() else { return };
    let project = Project::with_sql(SQL).on_kafka(&brokers);
    let role = |name: &str| Server::start_role(name, &project, &[]).unwrap_or_else(|said| panic!("{name}: {said}"));
    let ingest = role("ingest");
    let _workers = [role("speed"), role("archive")];
    let clicks: Vec<String> =
        (0..500).map(|i| json!({"user_id": format!("u{i}"), "ts": "2024-01-15T10:00:00Z"}).to_string()).collect();
    assert_eq!(ingest.post("clicks", clicks.join("\n"))["accepted"], 500);
    let views = ingest.try_get("/v1/views").expect("an answer");
    assert_eq!(views.status(), 404, "this role answers for no views");
    let group = project.path().file_name().expect("a name").to_string_lossy().replace('.', "");
    for name in ["speed", "archive"] {
        let begun = Instant::now();
        loop {
            let shown = tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand")
                .args(["--bootstrap-server", &brokers, "--describe", "--group", &format!("{group}.{name}")])
                .output()
                .expect("java starts");
            let text = String::from_utf8_lossy(&shown.stdout).into_owned();
            // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
            let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let clicks: Vec<_> = lines.filter(|line| line.get(1).is_some_and(|t| t.ends_with("-clicks"))).collect();
            let done: u64 = clicks.iter().filter_map(|line| line[3].parse::<u64>().ok()).sum();
            if clicks.len() == 6 && done == 500 && clicks.iter().all(|line| line[5] == "0") {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{name}:\n{text}");
        }
    }
}

#[test]
fn an_event_of_the_year_9999_makes_no_other_late_although_its_producer_set_its_time() {
    let Some(brokers) = kafka() else { return };
    let sql = "CREATE TABLE taps (page TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
        CREATE MATERIALIZED VIEW per_minute AS SELECT window_start, window_end, count(*) AS n
        FROM TUMBLE(taps, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;";
    let project = Project::with_sql(sql).on_kafka(&brokers);
    let name = topic(&project, "taps");
    let created = tool("org.apache.kafka.tools.TopicCommand")
        .args(["--bootstrap-server", &brokers, "--create", "--topic", &name, "--partitions", "1"])
        .args(["--config", "message.timestamp.type=CreateTime"])
        .output();
    assert!(created.expect("java starts").status.success());
    let mut config = ClientConfig::new();
    // A record that is sent again stays in its place.
    config.set("bootstrap.servers", &brokers).set("enable.idempotence", "true");
    let producer: BaseProducer = config.create().expect("a producer");
    // The last one's producer has a clock that stands at 1970.
    for (ts, time) in
        [("9700-01-01T00:00:00Z", None), ("2024-01-15T10:00:00Z", None), ("2024-01-15T10:00:30Z", Some(0))]
    {
        let tap = json!({"page": "/", "ts": ts}).to_string();
        let record = BaseRecord::<(), str>::to(&name).payload(&tap);
        let record = if let Some(time) = time { record.timestamp(time) } else { record };
        producer.send(record).expect("queued");
    }
    producer.flush(Duration::from_secs(60)).expect("stored");
    let server = Server::start(&project);
    let detail = server.until("per_minute", |detail| detail["log_end"]["taps"]["0"] == 3 && detail["lag"] == 0);
    assert_eq!(detail["watermark"], "2024-01-15T10:00:30Z");
    let check = |mode: &str| {
        let rows = server.get(&format!("/v1/views/per_minute/rows?mode={mode}"));
        assert_eq!((&rows["rows"][0]["n"], rows["rows"].as_array().map(Vec::len)), (&json!(2), Some(1)), "{rows}");
    };
    check("merged");
    server.batch("per_minute");
    check("batch");
    assert_eq!(server.get("/v1/rejects")["total"], 1);

    // A clock that is an hour ahead: the archive may read this later, when it is an event.
    let now =
        server.get("/v1/views")["time"].as_str().map(DateTime::parse_from_rfc3339).expect("a time").expect("a time");
    let ahead = now + TimeDelta::hours(1);
    let tap = json!({"page": "/", "ts": ahead.to_rfc3339()}).to_string();
    producer.send(BaseRecord::<(), str>::to(&name).payload(&tap)).expect("queued");
    producer.flush(Duration::from_secs(60)).expect("stored");
    server.until("per_minute", |detail| detail["log_end"]["taps"]["0"] == 4 && detail["lag"] == 0);
    let around = |time: DateTime<FixedOffset>| {
        let [from, to] = [-1, 1].map(|minutes| time + TimeDelta::minutes(minutes));
        let [from, to] = [from, to].map(|time| time.to_utc().to_rfc3339_opts(SecondsFormat::Secs, true));
        server.get(&format!("/v1/views/per_minute/rows?from={from}&to={to}"))
    };
    let rows = around(ahead - TimeDelta::minutes(1));
    assert_eq!((&rows["exact"], &rows["incomplete"]), (&json!(true), &json!(false)), "{rows}");
    let rows = around(ahead);
    assert_eq!((&rows["exact"], &rows["missing"]), (&json!(false), &json!({"taps": {"0": [3, 4]}})), "{rows}");
    assert!(rows["reason"].as_str().is_some_and(|why| why.contains("max_future")), "{rows}");
    server.batch("per_minute");
    let rows = around(ahead);
    assert_eq!((&rows["exact"], &rows["incomplete"]), (&json!(true), &json!(false)), "{rows}");
    assert_eq!(server.get("/v1/rejects")["total"], 2);
}
