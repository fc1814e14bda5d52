//! Streams over HTTP, through kills of the server: what a client has seen when it comes back it isn't told again, and
//! nothing is left out.

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use crate::contract::check_event;
use crate::support::{Project, Server};

const SQL: &str = "
CREATE TABLE clicks (page TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
CREATE MATERIALIZED VIEW per_minute AS
SELECT window_start, window_end, page, count(*) AS n
FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, page;
";

/// A connection, and the id of the last event that came.
struct Stream {
    lines: Box<dyn Iterator<Item = String>>,
    id: String,
}

impl Stream {
    fn open(server: &Server, mode: &str, id: &str) -> Self {
        let path = format!("/v1/views/per_minute/stream?mode={mode}");
        let request = server.request(reqwest::Method::GET, &path).header("last-event-id", id);
        let response = request.send().and_then(reqwest::blocking::Response::error_for_status).expect("a stream");
        Self { lines: Box::new(BufReader::new(response).lines().map_while(Result::ok)), id: id.to_owned() }
    }

    fn next(&mut self) -> Value {
        let (mut data, mut name) = (Value::Null, String::new());
        loop {
            let line = self.lines.next().expect("the stream goes on");
            match line.split_once(": ") {
                Some(("event", event)) => event.clone_into(&mut name),
                Some(("id", id)) => self.id = id.to_owned(),
                Some(("data", text)) => {
                    data = serde_json::from_str(text).expect("JSON");
                    check_event("/v1/views/per_minute/stream", &name, &data);
                }
                None if line.is_empty() && name == "heartbeat" => (data, name) = (Value::Null, String::new()),
                None if line.is_empty() && !data.is_null() => return data,
                _ => {}
            }
        }
    }
}

/// As many clicks in a minute as its number says.
fn click(server: &Server, minute: u32) {
    let click = json!({"page": "/", "ts": format!("2024-01-15T10:{minute:02}:30Z")}).to_string();
    server.post("clicks", vec![click; minute as usize].join("\n"));
    server.settle("per_minute");
}

#[test]
fn each_window_is_final_once_through_kills_of_the_server() {
    let project = Project::with_sql(SQL);
    let mut server = Server::start(&project);
    click(&server, 1);
    let (mut id, mut minute, mut seen) = ("per_minute=".to_owned(), 1, Vec::new());
    // In each life of the server three windows close; of those in sight the client reads so many, and is cut off.
    for (life, read) in [2, 1, 0, 4, 5].into_iter().enumerate() {
        let mut stream = Stream::open(&server, "append", &id);
        for _ in 0..3 {
            minute += 1;
            click(&server, minute);
        }
        for _ in 0..read {
            let window = stream.next();
            assert_eq!(window["window"]["state"], "closed");
            seen.push((window["window"]["end"].clone(), window["rows"][0]["n"].clone()));
        }
        id = stream.id;
        if life == 2 {
            // From here on the windows before it are in a version alone.
            server.batch("per_minute");
        }
        if life % 2 == 0 {
            server.kill();
        } else {
            server.stop();
        }
        server = Server::start(&project);
        server.settle("per_minute");
    }
    let expected = (1..=12).map(|minute| (json!(format!("2024-01-15T10:{:02}:00Z", minute + 1)), json!(minute)));
    assert_eq!(seen, expected.collect::<Vec<_>>());
}

#[test]
fn a_subscriber_goes_on_after_a_kill_with_what_has_changed() {
    let project = Project::with_sql(SQL);
    let server = Server::start(&project);
    click(&server, 1);
    for mode in ["update", "complete"] {
        let first = Stream::open(&server, mode, "").next();
        assert_eq!((&first["reset"], &first["rows"][0]["n"]), (&json!(true), &json!(1)), "{mode}");
    }
    let mut stream = Stream::open(&server, "update", "");
    stream.next();
    let id = stream.id;
    server.kill();
    let server = Server::start(&project);
    server.settle("per_minute");
    // The answer is the one that it has.
    let mut stream = Stream::open(&server, "update", &id);
    server.post("clicks", json!({"page": "/", "ts": "2024-01-15T10:01:40Z"}).to_string());
    let update = stream.next();
    assert_eq!((&update["reset"], &update["rows"][0]["n"]), (&json!(false), &json!(2)), "{update}");
    assert_eq!(update["retracted"][0]["n"], 1);
    // By now it is another.
    let whole = Stream::open(&server, "update", &id).next();
    assert_eq!((&whole["reset"], &whole["rows"][0]["n"]), (&json!(true), &json!(2)));
}
