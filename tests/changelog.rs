//! Tables with a primary key: versions of rows and deletions, from whoever writes them to the archive.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use reqwest::Method;
use serde_json::{Value, json};

use crate::kafka::topic;
use crate::support::{Project, Server, anabranch, committed_files, kafka, ok, until};

const SQL: &str = "
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, changed TIMESTAMP)
WITH (event_time = 'changed', partitions = 4);
CREATE TABLE rooms (house TEXT, number BIGINT, seats BIGINT NOT NULL, changed TIMESTAMP, PRIMARY KEY (house, number))
WITH (event_time = 'changed', partitions = 4);
CREATE TABLE clicks (url TEXT, ts TIMESTAMP) WITH (event_time = 'ts');
CREATE MATERIALIZED VIEW per_url AS SELECT url, count(*) AS n FROM clicks GROUP BY url;
";

const TIME: &str = "2024-01-15T10:00:00Z";

fn project() -> Project {
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", "[batch]\nscheduler = false\n[archive]\ninterval = '100 ms'\n");
    project
}

fn user(id: &str, name: &str) -> String {
    json!({"id": id, "name": name, "changed": TIME}).to_string()
}

/// The rows of a table's archive by key, each with its versions in their order: all columns of a version joined, or none if it is a
/// deletion. All versions of a row are in one partition.
fn archived(project: &Project, table: &str, key: &str, columns: &str) -> Vec<(String, Vec<Option<String>>)> {
    let Some(files) = committed_files(&project.data().join("archive").join(table)) else { return Vec::new() };
    let of_row = format!(
        "SELECT {key} AS key, list(CASE WHEN NOT __deleted THEN {columns} END ORDER BY _offset) AS versions,
           count(DISTINCT _partition) AS partitions, bool_and(__deleted IS NOT NULL) AS known
         FROM read_parquet({files}, hive_partitioning = false) GROUP BY ALL"
    );
    let database = duckdb::Connection::open_in_memory().expect("a database");
    let sql = format!("SELECT key, to_json(versions)::TEXT, partitions, known FROM ({of_row}) ORDER BY key");
    let mut statement = database.prepare(&sql).expect("a statement");
    let rows = statement.query_map([], |row| {
        assert_eq!((row.get::<_, i64>(2)?, row.get::<_, bool>(3)?), (1, true));
        let versions: String = row.get(1)?;
        Ok((row.get(0)?, serde_json::from_str(&versions).expect("a list")))
    });
    rows.expect("rows").collect::<Result<_, _>>().expect("rows")
}

/// Waits until a table's archive has these rows.
fn until_archived(project: &Project, (table, key, columns): (&str, &str, &str), expected: &[(&str, &[Option<&str>])]) {
    let owned = |version: &Option<&str>| version.map(str::to_owned);
    let expected: Vec<(String, Vec<Option<String>>)> =
        expected.iter().map(|(key, versions)| ((*key).to_owned(), versions.iter().map(owned).collect())).collect();
    let count = |rows: &[(String, Vec<Option<String>>)]| rows.iter().map(|(_, versions)| versions.len()).sum::<usize>();
    until("all is archived", || count(&archived(project, table, key, columns)) >= count(&expected));
    assert_eq!(archived(project, table, key, columns), expected);
}

const USERS: (&str, &str, &str) = ("users", "id", "name");
const ROOMS: (&str, &str, &str) = ("rooms", "house || number", "seats::TEXT");

fn delete(server: &Server, path: &str) -> Value {
    ok(&Method::DELETE, server.request(Method::DELETE, path).send().expect("an answer"))
}

#[test]
fn versions_and_deletions_of_rows_are_archived_from_every_door() {
    let project = project();
    let server = Server::start(&project);
    let partition = |receipt: &Value| {
        assert_eq!((&receipt["accepted"], &receipt["rejected_count"]), (&json!(1), &json!(0)), "{receipt}");
        receipt["offsets"].as_object().expect("offsets").keys().next().cloned()
    };
    let first = partition(&server.post("users", user("a/ü", "one")));
    assert_eq!(partition(&delete(&server, "/v1/topics/users/events/a%2F%C3%BC")), first);
    let deletion = json!({"id": "a/ü", "__deleted": true}).to_string();
    assert_eq!(partition(&server.post("users", deletion)), first);
    // What a key can be taken for.
    let odd = r#"{"id":"b"}"#;
    let first = partition(&server.post("users", user(odd, "two")));
    assert_eq!(partition(&delete(&server, "/v1/topics/users/events/%7B%22id%22:%22b%22%7D")), first);
    let room = |seats: u32| json!({"house": "h", "number": 7, "seats": seats, "changed": TIME}).to_string();
    let first = partition(&server.post("rooms", room(1)));
    assert_eq!(partition(&server.post("rooms", r#"{"number":7.0,"house":"h","__deleted":true}"#)), first);

    let file = project.path().join("users.ndjson");
    let lines: Vec<String> = (0..100).map(|i| user(&format!("u{}", i % 10), &format!("{}", i / 10))).collect();
    std::fs::write(&file, lines.join("\n")).expect("written");
    let produced =
        anabranch().args(["produce", "users", "--project"]).args([project.path(), &file]).output().expect("it runs");
    assert!(produced.status.success(), "{}", String::from_utf8_lossy(&produced.stderr));
    server.kill();

    let server = Server::start(&project);
    delete(&server, "/v1/topics/users/events/u3");
    server.post("users", [user("u3", "again"), user("u4", "last")].join("\n"));
    let names: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    let ten: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    let (third, fourth) = ([&ten[..], &[None, Some("again")]].concat(), [&ten[..], &[Some("last")]].concat());
    let ids: Vec<String> = (0..10).map(|i| format!("u{i}")).collect();
    let mut expected: Vec<(&str, &[Option<&str>])> =
        vec![("a/ü", &[Some("one"), None, None]), (odd, &[Some("two"), None])];
    expected.extend(ids.iter().map(|id| (id.as_str(), &ten[..])));
    (expected[2 + 3].1, expected[2 + 4].1) = (&third, &fourth);
    // In the order of their bytes.
    expected.sort_by_key(|(id, _)| *id);
    until_archived(&project, USERS, &expected);
    until_archived(&project, ROOMS, &[("h7", &[Some("1"), None])]);
    assert_eq!(server.get("/v1/rejects")["total"], 0);
    let (status, problem) = server.problem(server.request(Method::DELETE, "/v1/topics/clicks/events/a"));
    assert_eq!(status, 400, "{problem}");

    let raised =
        anabranch().args(["views", "partitions", "users", "8", "--yes", "--project"]).arg(project.path()).output();
    let raised = raised.expect("it runs");
    let said = String::from_utf8_lossy(&raised.stderr);
    assert!(raised.status.code() == Some(2) && said.contains("table `users` has a PRIMARY KEY"), "{said}");
    server.stop();

    // Without its key the archive's rows would be events.
    project.write("views/views.sql", &SQL.replacen(" PRIMARY KEY", "", 1));
    let checked = anabranch().args(["views", "check"]).arg(project.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&checked.stderr);
    let why =
        "its primary key is none now, but its archive is by `id` TEXT; `anabranch archive rebuild users` archives anew";
    assert!(checked.status.code() == Some(2) && said.contains(why), "{said}");
}

#[test]
fn tombstones_of_other_producers_delete_rows_and_ours_are_what_compaction_looks_for() {
    let Some(brokers) = kafka() else { return };
    let project = project().on_kafka(&brokers);
    let server = Server::start(&project);
    let name = topic(&project, "users");
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("partitioner", "murmur2_random")
        .create()
        .expect("one");
    let send = |key: Option<&str>, value: Option<&str>| {
        let mut record = BaseRecord::<str, str>::to(&name);
        record.key = key;
        record.payload = value;
        producer.send(record).map_err(|(error, _)| error).expect("queued");
        producer.flush(Duration::from_secs(30)).expect("flushed");
    };
    let (one, two) = (user("a", "one"), user("b", "two"));
    send(Some("a"), Some(&one));
    send(Some("a"), None);
    // An empty value is no deletion to compaction, but one here.
    send(Some("b"), Some(&two));
    send(Some("b"), Some(""));
    for (id, key) in [("c", r#"{"id":"c"}"#), ("d", r#"{"schema":{"type":"struct"},"payload":{"id":"d"}}"#)] {
        send(Some(key), Some(&user(id, "more")));
        send(Some(key), None);
    }
    send(Some(r#"{"ID":"a"}"#), None);
    send(None, None);
    // Debezium's `rewrite`.
    send(Some("e"), Some(&user("e", "five")));
    send(Some("e"), Some(&json!({"id": "e", "name": "five", "changed": TIME, "__deleted": "true"}).to_string()));
    let mut expected: [(&str, &[Option<&str>]); 5] = [
        ("a", &[Some("one"), None]),
        ("b", &[Some("two"), None]),
        ("c", &[Some("more"), None]),
        ("d", &[Some("more"), None]),
        ("e", &[Some("five"), None]),
    ];
    until_archived(&project, USERS, &expected);
    until("the others are rejects", || server.get("/v1/rejects")["total"] == 2);
    let rejects = server.get("/v1/rejects");
    let mut reasons: Vec<&str> =
        rejects["rejects"].as_array().expect("rejects").iter().filter_map(|it| it["reason"].as_str()).collect();
    reasons.sort_unstable();
    let right = r#"a key is the text of `id`, or {"id": …}"#;
    let misspelt = r#"`{"ID":"a"}` names none: column `id` is null or absent"#;
    assert!(reasons[0].contains(misspelt) && reasons[0].ends_with(right), "{rejects}");
    assert!(reasons[1].contains("the record has none") && reasons[1].ends_with(right), "{rejects}");

    // In a partition with what their producers wrote, and null, in a transaction or not.
    delete(&server, "/v1/topics/users/events/b");
    let keyed = server.request(Method::DELETE, "/v1/topics/users/events/b").header("Idempotency-Key", "again");
    assert!(keyed.send().expect("an answer").status().is_success());
    let config = [("bootstrap.servers", brokers.as_str()), ("group.id", "test"), ("isolation.level", "read_committed")];
    let consumer: BaseConsumer =
        config.iter().fold(&mut ClientConfig::new(), |all, (key, value)| all.set(*key, *value)).create().expect("one");
    let mut list = TopicPartitionList::new();
    (0..4).for_each(|p| list.add_partition_offset(&name, p, Offset::Beginning).expect("added"));
    consumer.assign(&list).expect("assigned");
    let mut of_b = Vec::new();
    while of_b.len() < 4 {
        let message = consumer.poll(Duration::from_secs(60)).expect("more to come").expect("a record");
        if message.key() == Some(b"b") {
            let payload = message.payload().map(|payload| String::from_utf8_lossy(payload).into_owned());
            of_b.push((message.partition(), payload));
        }
    }
    let partition = of_b[0].0;
    assert!(of_b.iter().all(|(of, _)| *of == partition), "{of_b:?}");
    let payloads: Vec<Option<&str>> = of_b.iter().map(|(_, payload)| payload.as_deref()).collect();
    assert_eq!(payloads, [Some(two.as_str()), Some(""), None, None]);
    expected[1].1 = &[Some("two"), None, None, None];
    until_archived(&project, USERS, &expected);
}
