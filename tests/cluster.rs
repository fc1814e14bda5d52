//! The roles as processes of their own on three Kafka brokers, while brokers and processes are killed and paused: what is
//! acknowledged is in every answer, in the archive and in what an output writes, once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kafka::topic;
use crate::output::console_consumer;
use crate::support::{Project, Server, committed_files, free_ports, kafka, repository, totals};

const SQL: &str = "
CREATE TABLE events (id BIGINT, user_id TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts', watermark = '5 seconds', partitions = 6);
CREATE MATERIALIZED VIEW per_user WITH (allowed_lateness = '1 hour') AS
SELECT window_start, window_end, user_id, count(*) AS n, sum(id) AS ids
FROM TUMBLE(events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW ever AS SELECT count(*) AS n, sum(id) AS ids FROM events;
CREATE MATERIALIZED VIEW tenth WITH (sink = 'kafka') AS SELECT id FROM events WHERE id % 10 = 0;

CREATE TABLE orders (id BIGINT, user_id TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'orders', event_time = 'ts', watermark = '5 seconds', partitions = 6, partition_by = 'id');
CREATE TABLE payments (order_id BIGINT, ts TIMESTAMP NOT NULL)
WITH (topic = 'payments', event_time = 'ts', watermark = '5 seconds', partitions = 6, partition_by = 'order_id');
CREATE TABLE users (id TEXT PRIMARY KEY, plan BIGINT, ts TIMESTAMP NOT NULL)
WITH (topic = 'users', event_time = 'ts', watermark = '5 seconds', partitions = 2);
CREATE MATERIALIZED VIEW paid AS SELECT count(*) AS n, sum(id) AS ids
FROM (SELECT o.id FROM orders o JOIN payments p ON p.order_id = o.id AND p.ts BETWEEN o.ts AND o.ts + INTERVAL '1 second') j;
CREATE MATERIALIZED VIEW planned AS SELECT count(*) AS n, sum(id) AS ids, max(plan) AS newest
FROM (SELECT o.id, u.plan FROM orders o LEFT JOIN users FOR SYSTEM_TIME AS OF o.ts AS u ON u.id = o.user_id) j;
CREATE MATERIALIZED VIEW plans AS SELECT id, plan FROM users;
";

/// The views that count every event, and those of rows that are made of several records.
const VIEWS: [&str; 5] = ["ever", "per_user", "paid", "planned", "plans"];

const SETTINGS: &str = "
[speed]
checkpoint_interval = '2 s'
chunk_interval = '5 s'
[archive]
interval = '2 s'
[batch]
scheduler = false
keep_versions = 3
";

const PIECE: usize = 500;
/// With each piece come so many orders, each with its payment, and a change of a user.
const ORDERS: usize = 10;
const USERS: usize = 7;
/// Ten pieces a second are 5,000 events.
const PIECE_INTERVAL: Duration = Duration::from_millis(100);

/// Kafka brokers of this test's own.
pub struct Cluster {
    pub folder: TempDir,
    pub brokers: String,
}

impl Cluster {
    fn script() -> PathBuf {
        repository().join("tests/kafka/kafka-local")
    }

    pub fn start(count: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // The script puts ten ports between two brokers.
        let (port, count) = (free_ports(10 * count).to_string(), count.to_string());
        let started = Command::new(Self::script())
            .args(["start", "--brokers", &count, "--port", &port, "--dir"])
            .arg(folder.path().join("kafka"))
            .env("KAFKA_LOCAL_HEAP", "-Xmx384m")
            .output()
            .expect("the script runs");
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let said = String::from_utf8_lossy(&started.stdout);
        let brokers = said.lines().last().expect("the brokers").trim().to_owned();
        Self { folder, brokers }
    }

    pub fn broker(&self, what: &str, number: usize) {
        let folder = self.folder.path().join("kafka");
        let done = Command::new(Self::script())
            .args([what, "--broker", &number.to_string(), "--dir"])
            .arg(folder)
            .status()
            .expect("the script runs");
        assert!(done.success(), "{what} broker {number}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new(Self::script()).args(["stop", "--dir"]).arg(self.folder.path().join("kafka")).status();
    }
}

/// Tells the producer to end when dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn piece(number: usize) -> String {
    let event = |id: usize| {
        let (minute, second) = (id / 3_000 % 60, id / 50 % 60);
        json!({"id": id, "user_id": format!("u{}", id % 7), "ts": format!("2024-01-15T10:{minute:02}:{second:02}Z")})
    };
    (number * PIECE..(number + 1) * PIECE).map(|id| event(id).to_string()).collect::<Vec<_>>().join("\n")
}

/// What comes with a piece, by topic: a second of orders, their payments half a second later, and a user's newest plan.
fn beside(number: usize) -> [(&'static str, Vec<Value>); 3] {
    let at = |millis: usize| {
        let (second, millis) = (millis / 1_000, millis % 1_000);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        format!("2024-01-15T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    };
    let ids = number * ORDERS..(number + 1) * ORDERS;
    let user = |number: usize| format!("u{}", number % USERS);
    let order = |id| json!({"id": id, "user_id": user(id), "ts": at(id * 1_000 / ORDERS)});
    let payment = |id| json!({"order_id": id, "ts": at(id * 1_000 / ORDERS + 500)});
    [
        ("users", vec![json!({"id": user(number), "plan": number, "ts": at(number * 1_000)})]),
        ("orders", ids.clone().map(order).collect()),
        ("payments", ids.map(payment).collect()),
    ]
}

/// The end of each partition that receipts have named, by topic.
type Ends = BTreeMap<(String, String), u64>;

/// Posts to a topic as often as it takes to be acknowledged. Whether it was.
fn post(doors: &[Server], topic: &str, number: usize, lines: &str, ends: &Mutex<Ends>) {
    let begun = Instant::now();
    for attempt in 0.. {
        let door = &doors[(number + attempt) % doors.len()];
        let request = door.request(reqwest::Method::POST, &format!("/v1/topics/{topic}/events"));
        let answer = request.header("Idempotency-Key", format!("{topic}-{number}")).body(lines.to_owned()).send();
        match answer.map(|answer| (answer.status(), answer.text())) {
            Ok((status, Ok(receipt))) if status.is_success() => {
                let receipt: Value = serde_json::from_str(&receipt).expect("a receipt");
                assert_eq!(receipt["accepted"], lines.lines().count(), "{receipt}");
                let offsets = receipt["offsets"].as_object().expect("offsets").iter();
                let ended = offsets.map(|(partition, range)| {
                    ((topic.to_owned(), partition.clone()), range[1].as_u64().expect("an end"))
                });
                ends.lock().expect("no panic").extend(ended);
                return;
            }
            refused => eprintln!("  {topic} {number}, attempt {attempt}: {refused:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(180), "{topic} {number} was never taken");
    }
}

/// Posts pieces one after the other until it is told to stop.
fn produce(doors: &[Server], stop: &AtomicBool, acknowledged: &AtomicUsize, ends: &Mutex<Ends>) {
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let number = acknowledged.load(Ordering::SeqCst);
        post(doors, "events", number, &piece(number), ends);
        for (topic, events) in beside(number) {
            let lines: Vec<String> = events.iter().map(Value::to_string).collect();
            post(doors, topic, number, &lines.join("\n"), ends);
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(PIECE_INTERVAL.saturating_sub(begun.elapsed()));
    }
}

/// Checks the answers once the views cover all that receipts have named: what is committed may be readable a moment later.
fn check(serve: &Server, pieces: usize, ends: &Ends) -> (Value, Value) {
    for view in VIEWS {
        serve.until(view, |detail| {
            let covered = |((topic, partition), end): (&(String, String), &u64)| {
                let of = |layer: &str| detail["coverage"][layer]["offsets"][topic].clone();
                let to = |layer: &str| of(layer)[partition][1].as_u64();
                let is_read = of("speed").is_object() || of("batch").is_object();
                !is_read || to("speed").or_else(|| to("batch")) >= Some(*end)
            };
            detail["lag"] == 0 && ends.iter().all(covered)
        });
    }
    let orders = (pieces * ORDERS) as i64;
    for view in ["paid", "planned"] {
        let answer = serve.get(&format!("/v1/views/{view}/rows"));
        assert_eq!(
            (&answer["incomplete"], &answer["rows"][0]["n"]),
            (&json!(false), &json!(orders)),
            "{view}: {answer}"
        );
        assert_eq!(answer["rows"][0]["ids"], orders * (orders - 1) / 2, "{view}: {answer}");
    }
    let answer = serve.get("/v1/views/plans/rows?limit=100");
    let plans: BTreeMap<String, i64> =
        totals(answer["rows"].as_array().expect("rows"), |row| row["id"].to_string(), "plan");
    let newest =
        (pieces.saturating_sub(USERS)..pieces).map(|number| (format!("\"u{}\"", number % USERS), number as i64));
    assert_eq!(plans, newest.collect(), "{answer}");
    let events = (pieces * PIECE) as i64;
    let ever = serve.get("/v1/views/ever/rows");
    assert_eq!(ever["incomplete"], false, "{ever}");
    assert_eq!(ever["rows"][0]["n"], events, "{ever}");
    assert_eq!(ever["rows"][0]["ids"], events * (events - 1) / 2, "{ever}");
    let path = "/v1/views/per_user/rows?from=2024-01-15T10:00:00Z&to=2024-01-15T11:00:00Z&limit=20000";
    let answer = serve.get(path);
    assert_eq!(answer["incomplete"], false, "{answer}");
    let rows = answer["rows"].as_array().expect("rows");
    let by_user = totals(rows, |row| row["user_id"].as_str().unwrap_or_default().to_owned(), "n_upper");
    let mut expected = BTreeMap::<String, i64>::new();
    for id in 0..events {
        *expected.entry(format!("u{}", id % 7)).or_default() += 1;
    }
    assert_eq!(by_user, expected, "what the bounds say of late events included");
    (ever, answer)
}

fn count_archive(archive: &Path) -> (i64, i64) {
    let database = duckdb::Connection::open_in_memory().expect("a database");
    let files = committed_files(archive).expect("files");
    let sql = format!("SELECT count(*), count(DISTINCT id) FROM read_parquet({files}, hive_partitioning = false)");
    database.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("counted")
}

#[test]
fn a_cluster_under_attack_loses_nothing_and_doubles_nothing() {
    // The broker of the other tests isn't used; that it is there says that this machine can run brokers.
    if kafka().is_none() {
        return;
    }
    let minutes = std::env::var("ANABRANCH_TEST_CLUSTER_MINUTES").map_or(3.0, |text| text.parse().expect("minutes"));
    let cluster = Cluster::start(3);
    let project = Project::with_sql(SQL);
    project.write("anabranch.toml", SETTINGS);
    let project = project.on_kafka(&cluster.brokers);
    let role = |name: &str| {
        Server::start_role(name, &project, &[]).unwrap_or_else(|said| panic!("{name} did not start:\n{said}"))
    };
    let doors = vec![role("ingest"), role("ingest")];
    let speed = Mutex::new((0..4).map(|_| role("speed")).collect::<Vec<_>>());
    let archive = Mutex::new((0..2).map(|_| role("archive")).collect::<Vec<_>>());
    let _batch = [role("batch"), role("batch")];
    let serve = [role("serve"), role("serve")];

    let (stop, acknowledged, ends) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default());
    std::thread::scope(|scope| {
        // Also if an attack fails: the scope waits for its threads.
        let _end = Ending(&stop);
        scope.spawn(|| produce(&doors, &stop, &acknowledged, &ends));
        let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
        let attack = |round: usize| match round % 6 {
            0 => {
                let mut speed = speed.lock().expect("not poisoned");
                speed.remove(0).kill();
                speed.push(role("speed"));
            }
            1 => {
                let broker = round / 6 % 3 + 1;
                cluster.broker("kill", broker);
                std::thread::sleep(Duration::from_secs(8));
                cluster.broker("resume", broker);
            }
            2 => {
                serve[round % 2].batch_all(&VIEWS);
            }
            3 => {
                let speed = speed.lock().expect("not poisoned");
                speed[0].signal("STOP");
                // Beyond its session, so that others have its partitions when it wakes up and would write.
                std::thread::sleep(Duration::from_secs(12));
                speed[0].signal("CONT");
            }
            4 => {
                let mut archive = archive.lock().expect("not poisoned");
                archive.remove(0).kill();
                archive.push(role("archive"));
            }
            _ => {
                let mut speed = speed.lock().expect("not poisoned");
                speed.remove(0).stop();
                speed.push(role("speed"));
            }
        };
        let mut round = 0;
        while Instant::now() < until {
            attack(round);
            round += 1;
            std::thread::sleep(Duration::from_secs(2));
        }
        eprintln!("  {round} attacks");
    });
    let (pieces, ends) = (acknowledged.into_inner(), ends.into_inner().expect("no panic"));
    eprintln!("  {} events were acknowledged", pieces * PIECE);
    let answers: Vec<_> = serve.iter().map(|serve| check(serve, pieces, &ends)).collect();
    assert_eq!(answers[0], answers[1], "both say the same of the same offsets");
    let raw = |serve: &Server| serve.try_get("/v1/views/ever/rows").expect("an answer").bytes().expect("a body");
    assert_eq!(raw(&serve[0]), raw(&serve[1]), "byte for byte");

    serve[0].settle("tenth");
    let records = console_consumer(&cluster.brokers, &topic(&project, "tenth"), "read_committed");
    let written: Vec<String> = records.into_values().flatten().collect();
    let ids: BTreeSet<String> = (0..pieces * PIECE).step_by(10).map(|id| format!("{{\"id\":{id}}}")).collect();
    assert_eq!((written.len(), written.into_iter().collect()), (ids.len(), ids), "each is written once");

    serve[0].batch_all(&VIEWS);
    check(&serve[0], pieces, &ends);
    let exact = serve[0].get("/v1/views/ever/rows?mode=batch");
    assert_eq!(exact["rows"][0]["n"], pieces * PIECE, "{exact}");
    let (rows, ids) = count_archive(&project.data().join("archive/events"));
    let events = (pieces * PIECE) as i64;
    assert_eq!((rows, ids), (events, events), "every event is in the archive, once");
}
