//! Watermarks, and what they do to windows: the book's table and picture, and events that come much too late.

use serde_json::{Value, json};

use super::{Event, after, check, contents, minute, numbers, of_some, post, project, second};
use crate::support::{Project, Server};

const FIVE_SECONDS: &str = "TUMBLE(events, ts, INTERVAL '5 seconds')";

/// Events that are numbered by their second.
fn at(seconds: &[u32]) -> Vec<Event> {
    seconds.iter().map(|&n| (n, second(i64::from(n)))).collect()
}

/// A window by its end, in seconds: its state and what is in it.
fn window(server: &Server, end: i64) -> (String, Vec<u32>) {
    let answer = server.get(&format!("/v1/views/contents/rows?window={}", second(end)));
    let rows = answer["rows"].as_array().expect("rows");
    (answer["window"]["state"].as_str().expect("a state").to_owned(), rows.iter().flat_map(numbers).collect())
}

/// In the book the watermark is -∞ as long as it would be before 0, where its time begins; here time has no beginning.
#[test]
fn watermarks_are_those_of_the_table() {
    let events = at(&[1, 3, 2, 5, 4, 7, 6, 9]);
    let table = [None, None, None, Some(0), Some(0), Some(2), Some(2), Some(4)];
    for frontier in [None, Some(2), Some(5)] {
        let project = project(FIVE_SECONDS, "5 seconds");
        let server = Server::start(&project);
        assert_eq!(server.settle("contents")["watermark"], Value::Null);
        for (i, (event, expected)) in events.iter().zip(table).enumerate() {
            post(&server, std::slice::from_ref(event));
            if frontier == Some(i) {
                server.batch("contents");
            }
            let watermark = server.settle("contents")["watermark"].as_str().expect("a watermark").to_owned();
            match expected {
                Some(seconds) => assert_eq!(watermark, second(seconds), "after {event:?}"),
                None => assert!(watermark < second(0), "{watermark} after {event:?}"),
            }
        }
        let closed = || server.get("/v1/views/contents/rows?window=closed");
        assert_eq!(closed()["window"], Value::Null, "the watermark isn't at 5 yet");
        assert_eq!(window(&server, 5), ("open".to_owned(), vec![1, 2, 3, 4]));
        post(&server, &at(&[10]));
        assert_eq!(server.settle("contents")["watermark"], second(5));
        let triggered = json!({"start": second(0), "end": second(5), "state": "closed"});
        assert_eq!(closed()["window"], triggered);
        assert_eq!(window(&server, 5), ("closed".to_owned(), vec![1, 2, 3, 4]));
        assert_eq!(window(&server, 10), ("open".to_owned(), vec![5, 6, 7, 9]));
    }
}

#[test]
fn the_table_s_windows_are_the_same_in_every_layer() {
    let events = at(&[1, 3, 2, 5, 4, 7, 6, 9]);
    let all = contents(second, &[(0, 5, &[1, 2, 3, 4]), (5, 10, &[5, 6, 7, 9])]);
    check(FIVE_SECONDS, &events, |range| of_some(&all, &events[range]));
}

#[test]
fn a_window_closes_where_the_picture_says() {
    for frontier in [None, Some(4)] {
        let project = project(FIVE_SECONDS, "2 seconds");
        let server = Server::start(&project);
        let states = [
            (1, "open"),
            (3, "open"),
            (2, "open"),
            (5, "open"),
            (4, "open"),
            (7, "closed"),
            (6, "closed"),
            (9, "closed"),
        ];
        for (event, state) in states {
            post(&server, &at(&[event]));
            server.settle("contents");
            if frontier == Some(event) {
                server.batch("contents");
            }
            assert_eq!(window(&server, 5).0, state, "after {event}");
        }
        assert_eq!(window(&server, 5).1, [1, 2, 3, 4]);
        assert_eq!(server.get("/v1/views/contents")["late"], 0, "6 came out of order, and in time");
    }
}

#[test]
fn events_that_come_out_of_order_are_in_the_windows_of_their_own_time() {
    // Of two devices: b comes first, then c, then a, which was before both.
    let (a, b, c) = ((1, second(0)), (2, second(1)), (3, second(2)));
    let events = [b, c, a];
    let all = contents(second, &[(0, 1, &[1]), (1, 2, &[2]), (2, 3, &[3])]);
    check("TUMBLE(events, ts, INTERVAL '1 second')", &events, |range| of_some(&all, &events[range]));
}

#[test]
fn a_very_late_row_changes_no_closed_window_until_batch_counts_it() {
    let project = Project::with_sql(
        "CREATE TABLE events (n BIGINT NOT NULL, ts TIMESTAMP NOT NULL)
         WITH (topic = 'events', event_time = 'ts', watermark = '5 seconds');
         CREATE MATERIALIZED VIEW per_minute WITH (allowed_lateness = '1 minute') AS
         SELECT window_start, window_end, count(*) AS n FROM TUMBLE(events, ts, INTERVAL '1 minute')
         GROUP BY window_start, window_end;",
    );
    let mut server = Server::start(&project);
    let row = |server: &Server| {
        server.settle("per_minute");
        let answer = server.get(&format!("/v1/views/per_minute/rows?window={}", minute(1)));
        let row = &answer["rows"][0];
        let figures = ["n", "n_lower", "n_upper"].map(|name| row[name].as_i64().expect("a number"));
        (figures, answer["exact"].as_bool().expect("exact"), answer["late"].as_i64().expect("late"))
    };
    let post = |server: &Server, time: String| server.post("events", json!({"n": 1, "ts": time}).to_string());
    post(&server, second(10));
    // The watermark stands a moment before the window is closed for good.
    post(&server, second(124));
    post(&server, second(20));
    assert_eq!(row(&server), ([2, 2, 2], true, 0), "late, but allowed");
    post(&server, second(125));
    post(&server, second(30));
    assert_eq!(row(&server), ([2, 2, 3], false, 1), "too late by a moment");
    // A restart lets nothing in.
    server.stop();
    server = Server::start(&project);
    assert_eq!(row(&server), ([2, 2, 3], false, 1));
    post(&server, after(&minute(0), -86_400));
    post(&server, second(40));
    assert_eq!(row(&server), ([2, 2, 4], false, 2));
    server.batch("per_minute");
    assert_eq!(row(&server), ([4, 4, 4], true, 0), "batch counts all of them");
    let (rows, _) = server.range("per_minute", &minute(0), &minute(1), "batch");
    assert_eq!(rows[0]["n"], 4);
}
