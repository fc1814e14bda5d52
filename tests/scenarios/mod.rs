//! Whole scenarios with known outcomes, through the real binary over HTTP. The events and the outcomes of many of them are
//! those of a book's chapter on stream processing.

mod aggregation;
mod late;
mod watermarks;
mod windows;

use std::ops::Range;

use serde_json::{Value, json};

use crate::support::{Project, Server};

/// An event by its number, and when it was. Events come in the order in which they are listed.
type Event = (u32, String);

/// A window's start and end, and the numbers of the events in it.
type Content = (String, String, Vec<u32>);

/// So many minutes after ten o'clock.
fn minute(minutes: i64) -> String {
    after("2024-01-15T10:00:00Z", minutes * 60)
}

/// So many seconds after ten o'clock.
fn second(seconds: i64) -> String {
    after("2024-01-15T10:00:00Z", seconds)
}

/// So many seconds after some time.
fn after(time: &str, seconds: i64) -> String {
    let time = chrono::DateTime::parse_from_rfc3339(time).expect("a time") + chrono::TimeDelta::seconds(seconds);
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Windows as the outcome has them, their bounds named by `at`.
fn contents(at: fn(i64) -> String, windows: &[(i64, i64, &[u32])]) -> Vec<Content> {
    windows.iter().map(|&(start, end, events)| (at(start), at(end), events.to_vec())).collect()
}

/// A table whose watermark stays behind by `delay`, and a view of these windows over it that tells which events are in each:
/// the one numbered `n` adds 2^n.
fn project(windows: &str, delay: &str) -> Project {
    Project::with_sql(&format!(
        "CREATE TABLE events (n BIGINT NOT NULL, bit BIGINT NOT NULL, ts TIMESTAMP NOT NULL)
         WITH (topic = 'events', event_time = 'ts', watermark = '{delay}');
         CREATE MATERIALIZED VIEW contents AS
         SELECT window_start, window_end, count(*) AS n, sum(bit) AS bits
         FROM {windows} GROUP BY window_start, window_end;"
    ))
}

fn post(server: &Server, events: &[Event]) {
    let line = |(n, time): &Event| json!({"n": n, "bit": 1_u64 << n, "ts": time}).to_string();
    server.post_lines("events", &events.iter().map(line).collect::<Vec<_>>());
}

fn numbers(row: &Value) -> Vec<u32> {
    let bits = row["bits"].as_u64().unwrap_or_else(|| panic!("no bits in {row}"));
    let numbers: Vec<u32> = (0..64).filter(|n| bits >> n & 1 == 1).collect();
    for column in ["n", "n_lower", "n_upper"] {
        assert_eq!(row[column], numbers.len(), "{row}");
    }
    assert_eq!((&row["bits_lower"], &row["bits_upper"]), (&row["bits"], &row["bits"]), "{row}");
    numbers
}

/// What a layer, or both, say of all windows that are wholly inside a range. Of a layer that has no events it isn't exact.
fn answered(server: &Server, mode: &str, from: &str, to: &str, has_events: bool) -> Vec<Content> {
    let (rows, answer) = server.range("contents", from, to, mode);
    assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(has_events), &json!(false)), "{answer}");
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_else(|| panic!("no {name} in {row}")).to_owned();
    rows.iter().map(|row| (text(row, "window_start"), text(row, "window_end"), numbers(row))).collect()
}

/// What the windows of an outcome hold of some of the events.
fn of_some(all: &[Content], events: &[Event]) -> Vec<Content> {
    let some = all.iter().map(|(start, end, numbers)| {
        let kept = numbers.iter().copied().filter(|n| events.iter().any(|(some, _)| some == n));
        (start.clone(), end.clone(), kept.collect::<Vec<_>>())
    });
    some.filter(|(_, _, numbers)| !numbers.is_empty()).collect()
}

/// Has events answered by batch, by speed and by both, with batch covering none of them, some and all. `outcome` tells what
/// the windows hold of the events in a range of them.
fn check(windows: &str, events: &[Event], outcome: impl Fn(Range<usize>) -> Vec<Content>) {
    let all = outcome(0..events.len());
    let (Some(first), Some(last)) = (all.first(), all.last()) else { panic!("no windows") };
    let (from, to) = (after(&first.0, -3_600), after(&last.1, 3_600));
    for frontier in [0, events.len() / 3, events.len() / 2, events.len()] {
        let project = project(windows, "1 day");
        let server = Server::start(&project);
        post(&server, &events[..frontier]);
        if frontier > 0 {
            server.batch("contents");
        }
        post(&server, &events[frontier..]);
        server.settle("contents");
        let layers = [("batch", 0..frontier), ("speed", frontier..events.len()), ("merged", 0..events.len())];
        for (mode, range) in layers {
            let has_events = !range.is_empty();
            let expected = if has_events { outcome(range) } else { Vec::new() };
            let answered = answered(&server, mode, &from, &to, has_events);
            assert_eq!(answered, expected, "{mode} at {frontier}: {windows}");
        }
    }
}
