//! What a user may have done with late events: dropped, taken as corrections for a while, and put aside.
//!
//! The watermark is ten seconds behind the newest event, and windows are minutes.

use serde_json::{Value, json};

use crate::support::{Project, Server};

/// The events of each step: minute and second, sensor and value.
const STEPS: [&[(&str, &str, i64)]; 3] = [
    // Out of order, but in time: the watermark is at 00:55 when that of 00:20 comes.
    &[("00:10", "a", 1), ("00:50", "a", 2), ("01:05", "a", 4), ("00:20", "a", 8), ("01:15", "a", 16)],
    // The watermark is at 01:05: the first minute is over.
    &[("00:40", "a", 32)],
    // The watermark moves on to 02:05: the first minute is over for more than a minute, and the second is over.
    &[("02:15", "a", 64), ("00:30", "a", 128), ("01:30", "b", 256)],
];

fn project(options: &str) -> Project {
    Project::with_sql(&format!(
        "CREATE TABLE readings (sensor TEXT, value BIGINT, ts TIMESTAMP NOT NULL)
         WITH (event_time = 'ts', watermark = '10 seconds');
         CREATE MATERIALIZED VIEW sums WITH ({options}) AS
         SELECT window_start, window_end, count(*) AS n, sum(value) AS total
         FROM TUMBLE(readings, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;
         CREATE TABLE put_aside (view TEXT, topic TEXT, partition BIGINT, \"offset\" BIGINT, behind_ms BIGINT, missed BIGINT,
           windows BIGINT, record JSON, event_time TIMESTAMP NOT NULL) WITH (event_time = 'event_time');
         CREATE MATERIALIZED VIEW aside AS
         SELECT \"offset\" AS \"at\", view, topic, behind_ms, missed, windows, record->>'sensor' AS sensor, count(*) AS n
         FROM put_aside GROUP BY \"offset\", view, topic, behind_ms, missed, windows, record->>'sensor' ORDER BY \"at\";",
    ))
}

/// The windows of the first and of the second minute, as far as they hold anything.
fn windows(server: &Server) -> Value {
    server.settle("sums");
    let window = |minute| {
        let answer = server.get(&format!("/v1/views/sums/rows?window=2024-01-15T10:0{minute}:00Z"));
        let row = &answer["rows"][0];
        let bounds = |name: &str| ["", "_lower", "_upper"].map(|bound| row[format!("{name}{bound}")].clone());
        json!([answer["window"]["state"], answer["exact"], answer["late"], bounds("n"), bounds("total")])
    };
    json!([window(1), window(2)])
}

/// Runs the steps, and compares the two windows after each step, and what batch then makes of them.
fn check(options: &str, expected: [Value; 3], batch: &Value, also: impl Fn(&Server)) {
    for kills in [false, true] {
        let project = project(options);
        let mut server = Server::start(&project);
        for (events, expected) in STEPS.iter().zip(&expected) {
            let line = |&(time, sensor, value): &(&str, &str, i64)| {
                json!({"sensor": sensor, "value": value, "ts": format!("2024-01-15T10:{time}Z")}).to_string()
            };
            server.post("readings", events.iter().map(line).collect::<Vec<_>>().join("\n"));
            assert_eq!(windows(&server), *expected, "{options}, kills: {kills}");
            if kills {
                server.kill();
                server = Server::start(&project);
                assert_eq!(windows(&server), *expected, "{options}, after a kill");
            }
        }
        also(&server);
        server.batch("sums");
        assert_eq!(windows(&server), *batch, "{options}, batch, kills: {kills}");
        // What was put aside is there once, batch or not.
        also(&server);
    }
}

/// Once all events are there, however late they came.
fn whole() -> Value {
    json!([["closed", true, 0, [5, 5, 5], [171, 171, 171]], ["closed", true, 0, [3, 3, 3], [276, 276, 276]]])
}

fn nothing_aside(server: &Server) {
    assert_eq!(server.get("/v1/rejects")["total"], 0);
    assert_eq!(server.get("/v1/views/aside/rows")["rows"], json!([]));
}

/// What late events do without an allowance: they are not in the value, which says so and how far off it is.
fn discarded() -> [Value; 3] {
    [
        json!([["closed", true, 0, [3, 3, 3], [11, 11, 11]], ["open", true, 0, [2, 2, 2], [20, 20, 20]]]),
        json!([["closed", false, 1, [3, 3, 4], [11, 11, 43]], ["open", true, 0, [2, 2, 2], [20, 20, 20]]]),
        json!([["closed", false, 2, [3, 3, 5], [11, 11, 171]], ["closed", false, 1, [2, 2, 3], [20, 20, 276]]]),
    ]
}

#[test]
fn late_events_are_discarded_and_counted() {
    check("allowed_lateness = '0 seconds'", discarded(), &whole(), nothing_aside);
}

#[test]
fn late_events_are_corrections_while_lateness_is_allowed() {
    let expected = [
        json!([["closing", true, 0, [3, 3, 3], [11, 11, 11]], ["open", true, 0, [2, 2, 2], [20, 20, 20]]]),
        json!([["closing", true, 0, [4, 4, 4], [43, 43, 43]], ["open", true, 0, [2, 2, 2], [20, 20, 20]]]),
        json!([["closed", false, 1, [4, 4, 5], [43, 43, 171]], ["closing", true, 0, [3, 3, 3], [276, 276, 276]]]),
    ];
    let mut batch = whole();
    batch[1][0] = json!("closing");
    check("allowed_lateness = '1 minute'", expected, &batch, nothing_aside);
}

#[test]
fn late_events_are_listed_with_the_rejects() {
    let expected = json!([
        {"topic": "readings", "partition": 0, "offset": 8, "view": "sums", "behind_ms": 35_000},
        {"topic": "readings", "partition": 0, "offset": 7, "view": "sums", "behind_ms": 95_000},
        {"topic": "readings", "partition": 0, "offset": 5, "view": "sums", "behind_ms": 25_000},
    ]);
    check("late = 'rejects'", discarded(), &whole(), |server| {
        let page = server.get("/v1/rejects");
        let mut rejects = page["rejects"].clone();
        for reject in rejects.as_array_mut().expect("rejects") {
            let reject = reject.as_object_mut().expect("a reject");
            assert_eq!(reject.remove("reason"), Some(json!("late: its window was closed for good")));
            assert!(reject.remove("record").expect("a record").to_string().contains("sensor"));
            assert!(reject.remove("rejected_at").is_some());
            assert_eq!(reject.remove("line"), Some(Value::Null));
        }
        assert_eq!((&rejects, &page["total"]), (&expected, &json!(3)));
        // They are rows: nothing was refused.
        assert_eq!(server.get("/v1/views/sums")["rejected"], 0);
    });
}

#[test]
fn late_events_go_to_a_topic() {
    let row = |at: u64, behind_ms: u64, sensor: &str| json!({"at": at, "view": "sums", "topic": "readings", "behind_ms": behind_ms, "missed": 1, "windows": 1, "sensor": sensor, "n": 1, "n_lower": 1, "n_upper": 1});
    let expected = json!([row(5, 25_000, "a"), row(7, 95_000, "a"), row(8, 35_000, "b")]);
    check("late = 'topic', late_topic = 'put_aside'", discarded(), &whole(), |server| {
        // A table reads the topic.
        server.settle("aside");
        assert_eq!(server.get("/v1/views/aside/rows")["rows"], expected);
        assert_eq!(server.get("/v1/rejects")["total"], 0);
    });
}
