//! Tumbling, sliding and session windows: of the book's picture, at offsets, before 1970, and of days that aren't 24 hours.

use std::ops::Range;

use serde_json::{Value, json};

use super::{Content, Event, after, check, contents, minute, of_some, second};
use crate::support::{Project, Server};

/// A window's start and end in some unit, and the numbers of its events.
type Window = (i64, i64, &'static [u32]);

/// The picture's timeline, in minutes. As in the picture, 3 and 4, and 5 and 6, are three minutes apart.
const TIMELINE: [i64; 8] = [1, 2, 4, 7, 8, 11, 12, 14];

fn numbered(times: impl IntoIterator<Item = String>) -> Vec<Event> {
    (1..).zip(times).collect()
}

fn timeline() -> Vec<Event> {
    numbered(TIMELINE.map(minute))
}

fn check_fixed(windows: &str, events: &[Event], all: &[Content]) {
    check(windows, events, |range| of_some(all, &events[range]));
}

/// Sessions by their definition, of events at these minutes.
fn sessions(times: &[i64], gap: i64, range: Range<usize>) -> Vec<(i64, i64, Vec<u32>)> {
    let mut events: Vec<(i64, u32)> = times.iter().copied().zip(1..).skip(range.start).take(range.len()).collect();
    events.sort();
    let mut sessions: Vec<(i64, i64, Vec<u32>)> = Vec::new();
    for (time, number) in events {
        match sessions.last_mut().filter(|(_, end, _)| time < *end) {
            Some((_, end, numbers)) => {
                *end = time + gap;
                numbers.push(number);
            }
            None => sessions.push((time, time + gap, vec![number])),
        }
    }
    sessions
}

fn check_sessions(times: &[i64], gap: i64, at: fn(i64) -> String, all: &[(i64, i64, &[u32])]) {
    let events = numbered(times.iter().map(|&time| at(time)));
    let outcome = |range| -> Vec<Content> {
        let sorted = |mut numbers: Vec<u32>| {
            numbers.sort();
            numbers
        };
        let sessions = sessions(times, gap, range).into_iter();
        sessions.map(|(start, end, numbers)| (at(start), at(end), sorted(numbers))).collect()
    };
    assert_eq!(outcome(0..times.len()), contents(at, all));
    check(&format!("SESSION(events, ts, INTERVAL '{gap} minutes')"), &events, outcome);
}

#[test]
fn tumbling_windows_are_those_of_the_picture() {
    let picture = contents(minute, &[(0, 5, &[1, 2, 3]), (5, 10, &[4, 5]), (10, 15, &[6, 7, 8])]);
    check_fixed("TUMBLE(events, ts, INTERVAL '5 minutes')", &timeline(), &picture);
}

/// The picture leaves 8 out of its second sliding window, although it lies in the third tumbling one, which is a half of that.
#[test]
fn sliding_windows_are_those_of_the_picture() {
    // The first began before the picture does.
    let windows: [Window; 4] =
        [(-5, 5, &[1, 2, 3]), (0, 10, &[1, 2, 3, 4, 5]), (5, 15, &[4, 5, 6, 7, 8]), (10, 20, &[6, 7, 8])];
    let hop = "HOP(events, ts, INTERVAL '5 minutes', INTERVAL '10 minutes')";
    check_fixed(hop, &timeline(), &contents(minute, &windows));
}

#[test]
fn session_windows_are_those_of_the_picture() {
    // An event that comes just when the gap is over begins a session.
    check_sessions(&TIMELINE, 3, minute, &[(1, 7, &[1, 2, 3]), (7, 11, &[4, 5]), (11, 17, &[6, 7, 8])]);
}

#[test]
fn halves_of_a_session_on_both_sides_of_the_frontier_are_one() {
    // What comes last joins what was two sessions, whichever layer has them.
    check_sessions(&[0, 1, 5, 6, 3], 3, minute, &[(0, 9, &[1, 2, 3, 4, 5])]);
    check_sessions(&[6, 0, 4, 2, 20], 3, minute, &[(0, 9, &[1, 2, 3, 4]), (20, 23, &[5])]);
}

#[test]
fn sessions_of_one_user_are_not_another_users() {
    let project = Project::with_sql(
        "CREATE TABLE clicks (user_id TEXT NOT NULL, ts TIMESTAMP NOT NULL)
         WITH (topic = 'clicks', event_time = 'ts', watermark = '1 day');
         CREATE MATERIALIZED VIEW visits AS
         SELECT window_start, window_end, user_id, count(*) AS clicks
         FROM SESSION(clicks, ts, INTERVAL '30 minutes') GROUP BY window_start, window_end, user_id;",
    );
    let server = Server::start(&project);
    let click = |user: &str, at: i64| json!({"user_id": user, "ts": minute(at)}).to_string();
    server.post_lines("clicks", &[click("A", 0), click("B", 20), click("A", 29), click("A", 100)]);
    server.batch("visits");
    server.post_lines("clicks", &[click("B", 45), click("A", 80), click("B", 200)]);
    server.settle("visits");
    let (rows, answer) = server.range("visits", &minute(-60), &minute(300), "merged");
    assert_eq!(answer["exact"], true, "{answer}");
    let visit = |row: &Value| {
        let text = |name: &str| row[name].as_str().expect("a text").to_owned();
        (text("user_id"), text("window_start"), text("window_end"), row["clicks"].as_i64().expect("a number"))
    };
    let expected = [("A", 0, 59, 2), ("B", 20, 75, 2), ("A", 80, 130, 2), ("B", 200, 230, 1)];
    let expected = expected.map(|(user, start, end, clicks)| (user.to_owned(), minute(start), minute(end), clicks));
    assert_eq!(rows.iter().map(visit).collect::<Vec<_>>(), expected);
}

#[test]
fn an_event_on_a_boundary_is_in_the_window_that_starts_there() {
    let times = ["09:59:59.999999", "10:00:00", "10:04:59.999999", "10:05:00"];
    let events = numbered(times.map(|time| format!("2024-01-15T{time}Z")));
    let tumbling = contents(minute, &[(-5, 0, &[1]), (0, 5, &[2, 3]), (5, 10, &[4])]);
    check_fixed("TUMBLE(events, ts, INTERVAL '5 minutes')", &events, &tumbling);
    let sliding = contents(minute, &[(-10, 0, &[1]), (-5, 5, &[1, 2, 3]), (0, 10, &[2, 3, 4]), (5, 15, &[4])]);
    check_fixed("HOP(events, ts, INTERVAL '5 minutes', INTERVAL '10 minutes')", &events, &sliding);
}

#[test]
fn windows_may_start_at_an_offset() {
    let sliding: [Window; 5] =
        [(-8, 2, &[1]), (-3, 7, &[1, 2, 3]), (2, 12, &[2, 3, 4, 5, 6]), (7, 17, &[4, 5, 6, 7, 8]), (12, 22, &[7, 8])];
    let windows = "HOP(events, ts, INTERVAL '5 minutes', INTERVAL '10 minutes', INTERVAL '2 minutes')";
    check_fixed(windows, &timeline(), &contents(minute, &sliding));
    let tumbling: [Window; 4] = [(-3, 2, &[1]), (2, 7, &[2, 3]), (7, 12, &[4, 5, 6]), (12, 17, &[7, 8])];
    let windows = "TUMBLE(events, ts, INTERVAL '5 minutes', INTERVAL '2 minutes')";
    check_fixed(windows, &timeline(), &contents(minute, &tumbling));
}

#[test]
fn a_slide_need_not_divide_the_size() {
    let windows: [Window; 6] = [
        (-8, 2, &[1]),
        (-4, 6, &[1, 2, 3]),
        (0, 10, &[1, 2, 3, 4, 5]),
        (4, 14, &[3, 4, 5, 6, 7]),
        (8, 18, &[5, 6, 7, 8]),
        (12, 22, &[7, 8]),
    ];
    let hop = "HOP(events, ts, INTERVAL '4 minutes', INTERVAL '10 minutes')";
    check_fixed(hop, &timeline(), &contents(minute, &windows));
}

#[test]
fn windows_before_1970_are_as_those_after() {
    let epoch = |minutes: i64| after("1970-01-01T00:00:00Z", minutes * 60);
    let times = [-7, -1, 0, 3];
    let windows: [Window; 5] =
        [(-16, -6, &[1]), (-12, -2, &[1]), (-8, 2, &[1, 2, 3]), (-4, 6, &[2, 3, 4]), (0, 10, &[3, 4])];
    let hop = "HOP(events, ts, INTERVAL '4 minutes', INTERVAL '10 minutes')";
    check_fixed(hop, &numbered(times.map(epoch)), &contents(epoch, &windows));
    check_sessions(&times, 3, epoch, &[(-7, -4, &[1]), (-1, 3, &[2, 3]), (3, 6, &[4])]);
    // A long time before.
    let moment = |seconds: i64| after("1912-06-23T12:00:00Z", seconds);
    let tumbling = contents(moment, &[(-60, 0, &[1]), (0, 60, &[2, 3])]);
    let events = numbered([-1, 0, 59].map(moment));
    check_fixed("TUMBLE(events, ts, INTERVAL '1 minute')", &events, &tumbling);
}

#[test]
fn days_of_a_time_zone_have_23_hours_and_25_when_its_clocks_change() {
    let times = [
        "2024-03-30T22:59:59.999999Z",
        "2024-03-30T23:00:00Z",
        "2024-03-31T01:00:00Z", // the clocks go forward
        "2024-03-31T21:59:59.999999Z",
        "2024-03-31T22:00:00Z",
        "2024-10-26T21:59:59.999999Z",
        "2024-10-26T22:00:00Z",
        "2024-10-27T01:00:00Z", // the clocks go back
        "2024-10-27T22:59:59.999999Z",
        "2024-10-27T23:00:00Z",
    ];
    let days: [(&str, &str, &[u32]); 6] = [
        ("2024-03-29T23:00:00Z", "2024-03-30T23:00:00Z", &[1]),
        ("2024-03-30T23:00:00Z", "2024-03-31T22:00:00Z", &[2, 3, 4]),
        ("2024-03-31T22:00:00Z", "2024-04-01T22:00:00Z", &[5]),
        ("2024-10-25T22:00:00Z", "2024-10-26T22:00:00Z", &[6]),
        ("2024-10-26T22:00:00Z", "2024-10-27T23:00:00Z", &[7, 8, 9]),
        ("2024-10-27T23:00:00Z", "2024-10-28T23:00:00Z", &[10]),
    ];
    let days = days.map(|(start, end, numbers)| (start.to_owned(), end.to_owned(), numbers.to_vec()));
    let windows = "TUMBLE(events, ts, INTERVAL '1 day', 'Europe/Paris')";
    check_fixed(windows, &numbered(times.map(str::to_owned)), &days);
}

#[test]
fn equal_counts_at_rank_k_go_by_key_in_every_layer() {
    let keys = ["d", "c", "b", "d", "a", "e", "e", "c", "b"];
    let ranked = |keys: &[&str]| -> Vec<(String, i64)> {
        let count = |key: &str| keys.iter().filter(|other| **other == key).count() as i64;
        let mut all: Vec<&str> = keys.to_vec();
        all.sort();
        all.dedup();
        all.sort_by_key(|key| -count(key));
        all.into_iter().take(3).map(|key| (key.to_owned(), count(key))).collect()
    };
    assert_eq!(ranked(&keys), [("b".to_owned(), 2), ("c".to_owned(), 2), ("d".to_owned(), 2)], "e has as many as d");
    for frontier in [0, 3, 5, 7, 9] {
        let project = Project::with_sql(
            "CREATE TABLE events (k TEXT NOT NULL, ts TIMESTAMP NOT NULL) WITH (topic = 'events', event_time = 'ts');
             CREATE MATERIALIZED VIEW top AS
             SELECT window_start, window_end, k, count(*) AS n FROM TUMBLE(events, ts, INTERVAL '1 minute')
             GROUP BY window_start, window_end, k ORDER BY n DESC LIMIT 3;",
        );
        let server = Server::start(&project);
        let lines = |keys: &[&str]| -> Vec<String> {
            keys.iter().map(|key| json!({"k": key, "ts": second(30)}).to_string()).collect()
        };
        server.post_lines("events", &lines(&keys[..frontier]));
        if frontier > 0 {
            server.batch("top");
        }
        server.post_lines("events", &lines(&keys[frontier..]));
        server.settle("top");
        for (mode, keys) in [("batch", &keys[..frontier]), ("speed", &keys[frontier..]), ("merged", &keys[..])] {
            let answer = server.get(&format!("/v1/views/top/rows?mode={mode}"));
            let rows = answer["rows"].as_array().expect("rows").iter();
            let got =
                rows.map(|row| (row["k"].as_str().expect("a key").to_owned(), row["n"].as_i64().expect("a count")));
            assert_eq!(got.collect::<Vec<_>>(), ranked(keys), "{mode} at {frontier}: {answer}");
            // Of no record nothing is said of those that the other layer has.
            assert_eq!(answer["certain"], !keys.is_empty(), "{mode} at {frontier}: {answer}");
        }
    }
}
