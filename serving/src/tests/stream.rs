//! Server-Sent Events: differences, finals and whole answers; resumed, bounded, ended with the server.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_exchange::snapshot::Snapshot;
use anabranch_plan::time::{Micros, parse_timestamp};
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::contract;
use super::support::*;
use crate::Limits;

struct Events {
    path: String,
    body: axum::body::BodyDataStream,
    buffer: String,
    /// The id of the last event.
    id: String,
    /// What the last heartbeat said, how many came, and whether they are wanted like other events.
    heartbeat: Value,
    heartbeats: usize,
    wants_heartbeats: bool,
}

impl Events {
    async fn open(platform: &Platform, path: &str) -> Self {
        Self::resume(platform, path, "").await
    }

    async fn resume(platform: &Platform, path: &str, id: &str) -> Self {
        let request = Request::get(path).header("last-event-id", id).body(Body::empty());
        let response = platform.ask(request.expect("a request")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        Self {
            path: path.to_owned(),
            body: response.into_body().into_data_stream(),
            buffer: String::new(),
            id: id.to_owned(),
            heartbeat: Value::Null,
            heartbeats: 0,
            wants_heartbeats: false,
        }
    }

    /// The next event's name and data; none once the stream has ended.
    async fn next_named(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let event: String = self.buffer.drain(..end + 2).collect();
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let name = field("event").expect("a name").to_owned();
                let data: Value = serde_json::from_str(field("data").expect("data")).expect("JSON");
                contract::check_event(&self.path, &name, &data);
                if name == "heartbeat" {
                    assert_eq!(field("id"), None, "{event}");
                    self.heartbeat = data.clone();
                    self.heartbeats += 1;
                    if self.wants_heartbeats {
                        return Some((name, data));
                    }
                    continue;
                }
                self.id = field("id").expect("an id").to_owned();
                return Some((name, data));
            }
            let bytes = self.body.next().await?.expect("a body");
            self.buffer.push_str(std::str::from_utf8(&bytes).expect("text"));
        }
    }

    /// The next event's data; none once the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        Some(self.next_named().await?.1)
    }

    /// The end of the next event's window.
    async fn next_end(&mut self) -> Micros {
        let data = self.next().await.expect("an event");
        parse_timestamp(data["window"]["end"].as_str().expect("an end")).expect("a time")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_sent() {
    let view = view("trending", Some(hop()), true, Some(2));
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = vec![
        event(10, "a", 1),
        event(20, "b", 1),
        event(30, "b", 1),
        event(40, "c", 1),
        event(41, "c", 1),
        event(70, "d", 1),
    ];
    let show = |count: usize| platform.show(&view, snapshot(&view, &events, None, &[0, count]));
    show(2);
    let mut stream = Events::open(&platform, "/v1/views/trending/stream?mode=update").await;
    let first = stream.next().await.expect("an event");
    assert_eq!((&first["reset"], &first["removed"]), (&json!(true), &json!([])));
    assert_eq!(first["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(first["window"]["end"], "2017-08-27T00:01:00Z");

    show(3);
    let second = stream.next().await.expect("an event");
    assert_eq!(
        (&second["reset"], &second["rows"][0]["tag"], &second["rows"][0]["mentions"]),
        (&json!(false), &json!("b"), &json!(2))
    );
    assert_eq!(second["rows"].as_array().map(Vec::len), Some(1));
    assert_eq!((&second["retracted"][0]["tag"], &second["retracted"][0]["mentions"]), (&json!("b"), &json!(1)));

    // `c` takes the place of `a` among the two that are kept.
    show(5);
    let third = stream.next().await.expect("an event");
    assert_eq!((&third["rows"][0]["tag"], &third["removed"]), (&json!("c"), &json!([{"tag": "a"}])));
    assert_eq!((&third["retracted"][0]["tag"], &third["retracted"][0]["total"]), (&json!("a"), &json!(1)));

    show(6);
    let moved = stream.next().await.expect("an event");
    assert_eq!((&moved["reset"], &moved["window"]["end"]), (&json!(true), &json!("2017-08-27T00:02:00Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_several_views() {
    let (a, b) = (view("a", Some(hop()), true, None), view("b", None, true, None));
    let platform = Platform::new(&[a.clone(), b.clone()]);
    let mut stream = Events::open(&platform, "/v1/stream?views=b,a").await;
    let mut names = Vec::new();
    for _ in 0..2 {
        names.push(stream.next().await.expect("an event")["view"].as_str().expect("a name").to_owned());
    }
    names.sort();
    assert_eq!(names, ["a", "b"]);
    platform.show(&b, snapshot(&b, &[event(1, "x", 5)], None, &[0, 1]));
    let update = stream.next().await.expect("an event");
    assert_eq!(
        (&update["view"], &update["window"], &update["rows"][0]["total"]),
        (&json!("b"), &Value::Null, &json!(5))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_refuse_what_does_not_exist() {
    let views = [view("trending", Some(hop()), true, None), view("totals", None, true, None)];
    let platform = Platform::with_limits(&views, Limits { streams: 1, ..Limits::default() });
    let mut open = Events::open(&platform, "/v1/views/trending/stream").await;
    open.next().await.expect("an event");
    let request = Request::get("/v1/views/trending/stream").body(Body::empty()).expect("a request");
    let (status, headers, _) = platform.send(request).await;
    assert_eq!((status, headers["retry-after"].as_bytes()), (StatusCode::SERVICE_UNAVAILABLE, &b"10"[..]));
    for (path, status, kind) in [
        ("/v1/views/trending/stream?mode=fast", 400, "bad-mode"),
        ("/v1/stream?views=totals,trending&mode=append", 400, "no-windows"),
        ("/v1/views/trending/stream?modus=update", 400, "unknown-parameter"),
        ("/v1/stream", 400, "bad-parameter"),
        ("/v1/stream?views=trending,x", 404, "unknown-view"),
    ] {
        let (got, problem, _) = platform.get_problem(path).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{path}");
    }
    for id in ["x", "trending=", "trending=x", "trending=2017-08-27T00:00:30Z/2017-08-27T00:05:30Z"] {
        let request = Request::get("/v1/views/trending/stream?mode=append").header("last-event-id", id);
        let (status, kind, _) = platform.problem(request.body(Body::empty()).expect("a request")).await;
        let expected = if id == "trending=" { (503, "too-many-streams") } else { (400, "bad-event-id") };
        assert_eq!((status, kind.as_str()), expected, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_streams_when_it_stops() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(&[view]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(crate::serve(listener, platform.app.clone(), async {
        let _ = stopped.await;
    }));
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = "GET /v1/views/trending/stream HTTP/1.1\r\nhost: localhost\r\n\r\n";
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut bytes = [0; 4_096];
    let read = socket.read(&mut bytes).await.expect("an answer");
    assert!(bytes[..read].starts_with(b"HTTP/1.1 200"));
    stop.send(()).expect("it runs");
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.expect("it ends");
    serving.await.expect("no panic");
}

/// Layers that grow: how many events there are, and how many of them the newest version has.
struct Growing {
    view: Kept,
    events: Vec<Event>,
    shown: usize,
    batch: usize,
    number: u64,
}

impl Growing {
    fn new(view: &Kept, events: Vec<Event>) -> Self {
        Self { view: view.clone(), events, shown: 0, batch: 0, number: 0 }
    }

    fn grow(&mut self, random: &mut Random, platform: &Platform) {
        self.shown = (self.shown + 1 + random.below(4) as usize).min(self.events.len());
        if random.below(5) == 0 {
            self.batch = self.shown - (random.below(3) as usize).min(self.shown - 1);
            self.number += 1;
            self.publish(platform);
        }
        self.show(platform);
    }

    fn publish(&self, platform: &Platform) {
        let Self { view, events, batch, number, .. } = self;
        if *batch > 0 {
            platform.publish(view, version(platform.folder.path(), view, *number, &events[..*batch]));
        }
    }

    fn show(&self, platform: &Platform) {
        let Self { view, events, shown, batch, number } = self;
        let base = (*batch > 0).then_some(*number);
        platform.show(view, snapshot(view, events, base, &[*batch, *shown]));
    }

    /// The offset after the last one that an answer has.
    fn covered(answer: &Value) -> u64 {
        answer["sources"]["speed"]["offsets"]["posts"]["0"][1].as_u64().unwrap_or(0)
    }

    /// Reads until an answer has all that is shown, and hands out each.
    async fn read(&self, stream: &mut Events, mut each: impl FnMut(&Value)) {
        loop {
            let answer = stream.next().await.expect("an event");
            each(&answer);
            let number = answer["sources"]["batch"]["version"].as_u64();
            if (Self::covered(&answer), number.unwrap_or(0)) == (self.shown as u64, self.number) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_add_up_to_the_complete_answer() {
    for (seed, window) in (0..8).zip([hop(), Window::Session { gap: MINUTE }].into_iter().cycle()) {
        let mut random = Random(seed);
        let view = view("trending", Some(window), true, Some(3).filter(|_| seed % 4 < 2));
        let platform = Platform::new(std::slice::from_ref(&view));
        let mut growing = Growing::new(&view, random.events(60, 15));
        growing.shown = 1;
        growing.show(&platform);
        let mut updates = Events::open(&platform, "/v1/views/trending/stream").await;
        let mut complete = Events::open(&platform, "/v1/views/trending/stream?mode=complete").await;
        // One table goes by whole rows, the other by keys.
        let (mut table, mut by_key) = (BTreeSet::new(), BTreeMap::new());
        let key = |row: &Value| (row["tag"].to_string(), row["window_start"].to_string());
        while growing.shown < growing.events.len() {
            let mut whole = Value::Null;
            growing.read(&mut complete, |answer| whole = answer["rows"].clone()).await;
            let read = growing.read(&mut updates, |update| {
                let rows = |name: &str| update[name].as_array().expect("rows").clone();
                if update["reset"] == true {
                    table.clear();
                    by_key.clear();
                    assert_eq!(rows("retracted"), Vec::<Value>::new());
                }
                for row in rows("retracted") {
                    assert!(table.remove(&row.to_string()), "seed {seed}: {row} was never inserted");
                }
                for row in rows("rows") {
                    assert!(table.insert(row.to_string()), "seed {seed}: {row} is there already");
                }
                rows("removed").iter().for_each(|row| drop(by_key.remove(&key(row)).expect("a row of that key")));
                by_key.extend(rows("rows").iter().map(|row| (key(row), row.to_string())));
            });
            read.await;
            let whole: BTreeSet<String> = whole.as_array().expect("rows").iter().map(Value::to_string).collect();
            assert_eq!(table, whole, "seed {seed}");
            assert_eq!(by_key.into_values().collect::<BTreeSet<_>>(), whole, "seed {seed}");
            by_key = whole.iter().map(|row| (key(&serde_json::from_str(row).expect("JSON")), row.clone())).collect();
            growing.grow(&mut random, &platform);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_answer_is_not_sent_again() {
    let view = view("trending", Some(hop()), true, None);
    let events = [event(10, "a", 1), event(20, "b", 1), event(30, "b", 1)];
    let platform = Platform::new(std::slice::from_ref(&view));
    platform.show(&view, snapshot(&view, &events, None, &[0, 2]));
    for mode in ["update", "complete"] {
        let path = format!("/v1/views/trending/stream?mode={mode}");
        let mut stream = Events::open(&platform, &path).await;
        let (name, first) = stream.next_named().await.expect("an event");
        assert_eq!((name.as_str(), &first["reset"]), (mode, &json!(true)));
        let id = stream.id.clone();
        // Another server has the same answer, whatever number its snapshot has.
        let other = Platform::new(std::slice::from_ref(&view));
        other.show(&view, snapshot(&view, &events, None, &[0, 1]));
        other.show(&view, snapshot(&view, &events, None, &[0, 2]));
        let mut resumed = Events::resume(&other, &path, &id).await;
        // Only what comes after it is sent; and from then on differences.
        tokio::time::timeout(std::time::Duration::from_millis(150), resumed.next()).await.expect_err("nothing new");
        other.show(&view, snapshot(&view, &events, None, &[0, 3]));
        let next = resumed.next().await.expect("an event");
        assert_eq!((&next["reset"], &next["rows"][0]["tag"]), (&json!(mode == "complete"), &json!("b")));
        assert_eq!(next["rows"].as_array().map(Vec::len), Some(if mode == "update" { 1 } else { 2 }));
        // An id of an older answer, of another view or of nothing is answered with the whole of the newest.
        for id in [id.as_str(), "other=1", "garbage"] {
            let mut reset = Events::resume(&other, &path, id).await;
            let whole = reset.next().await.expect("an event");
            assert_eq!((&whole["reset"], whole["rows"].as_array().map(Vec::len)), (&json!(true), Some(2)), "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finals_begin_with_the_newest_and_leave_none_out() {
    let (a, b) = (view("a", Some(hop()), true, None), view("b", Some(hop()), true, Some(1)));
    let platform = Platform::new(&[a.clone(), b.clone()]);
    // Closed are windows that end at 00:01 to 00:03; those that end at 00:04 and later wait for the watermark.
    let events = [event(10, "x", 1), event(20, "y", 2), event(21, "y", 2), event(240, "x", 4), event(7_200, "x", 8)];
    platform.show(&a, snapshot(&a, &events, None, &[0, 4]));
    let mut both = Events::open(&platform, "/v1/stream?views=a,b&mode=append").await;
    let (name, newest) = both.next_named().await.expect("an event");
    assert_eq!((name.as_str(), &newest["view"]), ("append", &json!("a")));
    assert_eq!(
        newest["window"],
        json!({"start": "2017-08-26T23:58:00Z", "end": "2017-08-27T00:03:00Z", "state": "closed"})
    );
    assert_eq!(newest["rows"], platform.ok("/v1/views/a/rows?window=2017-08-27T00:03:00Z").await["rows"]);
    // Whether `b` was looked at before, its id tells: all of its windows come after that.
    let id = both.id.clone();
    assert!(id.starts_with("a=2017-08-26T23:58:00Z/2017-08-27T00:03:00Z"), "{id}");
    let id = format!("{},b=", id.trim_end_matches(",b="));
    drop(both);
    platform.show(&b, snapshot(&b, &events, None, &[0, 5]));
    let mut both = Events::resume(&platform, "/v1/stream?views=a,b&mode=append", &id).await;
    for minute in 1..=5 {
        let data = both.next().await.expect("an event");
        assert_eq!(
            (&data["view"], &data["window"]["end"]),
            (&json!("b"), &json!(format!("2017-08-27T00:0{minute}:00Z")))
        );
        // A view with a limit sends the whole window that it makes.
        assert_eq!(data["rows"].as_array().map(Vec::len), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_final_while_offsets_are_missing() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = [event(10, "a", 1), event(70, "b", 1), event(1_000, "c", 1)];
    platform.log.fill("posts", 3);
    let stopped = Some("its speed layer hasn't been heard of for a while".to_owned());
    let cut = Snapshot { stopped, ..snapshot(&view, &events, None, &[0, 2]) };
    let watermark = Some(T0 + 1_000_000_000);
    platform.show(&view, Snapshot { watermark, ..cut });
    let path = "/v1/views/trending/stream?mode=append";
    let mut stream = Events::resume(&platform, path, "trending=2017-08-26T23:57:00Z/2017-08-27T00:02:00Z").await;
    tokio::time::timeout(std::time::Duration::from_millis(150), stream.next()).await.expect_err("nothing is final");
    platform.show(&view, snapshot(&view, &events, None, &[0, 3]));
    assert_eq!(stream.next_end().await, T0 + 3 * MINUTE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_depends_on_the_logs_end_is_sent_anew_as_that_moves_on() {
    let view = view("totals", None, false, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let mut stream = Events::open(&platform, "/v1/views/totals/stream").await;
    let first = stream.next().await.expect("an event");
    assert_eq!((&first["exact"], &first["rows"][0]["mentions_upper"]), (&json!(true), &json!(0)), "of an empty log");
    // No layer says a word.
    platform.log.fill("posts", 3);
    let next = stream.next().await.expect("an event");
    assert_eq!((&next["exact"], &next["missing"]), (&json!(false), &json!({"posts": {"0": [0, 3]}})));
    assert_eq!(next["rows"][0]["mentions_upper"], Value::Null);
    let stopped = Some("too many bad records".to_owned());
    let events = [event(1, "a", 1), event(2, "a", 1)];
    platform.show(&view, Snapshot { stopped, ..snapshot(&view, &events, None, &[0, 2]) });
    while stream.next().await.expect("an event")["missing"] != json!({"posts": {"0": [2, 3]}}) {}
    platform.log.fill("posts", 9);
    assert_eq!(stream.next().await.expect("an event")["missing"], json!({"posts": {"0": [2, 9]}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn finals_of_what_nobody_has_read_yet_begin_with_the_newest_once_it_is() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = [event(10, "a", 1), event(70, "b", 1), event(1_000, "c", 1)];
    platform.log.fill("posts", 3);
    platform.show(&view, snapshot(&view, &events, None, &[0, 0]));
    let mut stream = Events::open(&platform, "/v1/views/trending/stream?mode=append").await;
    tokio::time::timeout(std::time::Duration::from_millis(150), stream.next()).await.expect_err("nothing is final");
    platform.show(&view, snapshot(&view, &events, None, &[0, 3]));
    assert_eq!(stream.next_end().await, T0 + 6 * MINUTE);
}

/// Each window is sent once and in order, also to clients that come back, to this server or to the next.
#[tokio::test(flavor = "multi_thread")]
async fn each_window_is_final_once_however_often_clients_come_back() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let window = [hop(), Window::sliding(MINUTE, MINUTE), Window::Session { gap: MINUTE }][seed as usize % 3];
        let view = view("trending", Some(window), true, Some(2).filter(|_| seed % 2 == 0));
        // The last two events close all windows of the others, and one more for the end to be seen by.
        let mut events = random.events(70, 25);
        let newest = events.iter().map(|event| event.time).max().expect("events");
        let after = |minutes| Event { time: newest + minutes * MINUTE, ..events[0].clone() };
        events.extend([after(60), after(120)]);
        let (in_time, held) = windows(&view, &events);
        let last = *in_time.last().expect("windows");

        let mut platform = Platform::new(std::slice::from_ref(&view));
        let mut growing = Growing::new(&view, events);
        // Sessions that late events make longer are others: versions would bring them.
        let versions = !window.is_session();
        let path = "/v1/views/trending/stream?mode=append";
        let mut stream = Events::resume(&platform, path, "trending=").await;
        let mut finals = Vec::new();
        while finals.last() != Some(&last) {
            match random.below(if growing.shown == growing.events.len() { 4 } else { 8 }) {
                0 => stream = Events::resume(&platform, path, &stream.id).await,
                1 => {
                    platform = Platform::new(std::slice::from_ref(&view));
                    growing.publish(&platform);
                    growing.show(&platform);
                    stream = Events::resume(&platform, path, &stream.id).await;
                }
                // Some of what is there to be read.
                2 | 3 => {
                    let due: Vec<_> = due(&view, &growing, &in_time).filter(|due| finals.last() < Some(due)).collect();
                    for _ in 0..random.below(due.len() as u64 + 1) {
                        let data = stream.next().await.expect("an event");
                        let bound = |name: &str| parse_timestamp(data["window"][name].as_str()?);
                        let window = bound("end").zip(bound("start")).expect("a window");
                        assert!(held.contains(&window), "seed {seed}: {window:?} holds nothing");
                        assert!(finals.last().is_none_or(|before| *before < window), "seed {seed}: {window:?} again");
                        assert_eq!(data["window"]["state"], "closed", "seed {seed}");
                        finals.push(window);
                        if finals.last() >= due.last().copied() {
                            break;
                        }
                    }
                }
                _ if versions => growing.grow(&mut random, &platform),
                _ => {
                    growing.shown = (growing.shown + 2).min(growing.events.len());
                    growing.show(&platform);
                }
            }
        }
        let sent: BTreeSet<_> = finals.into_iter().collect();
        let missed: Vec<_> = in_time.iter().filter(|window| !sent.contains(window)).collect();
        assert!(missed.is_empty(), "seed {seed}: {missed:?} never came");
    }
}

type Bounds = (Micros, Micros);

/// The windows that are final once all events are there, as (end, start): those with events in time, and those with any.
fn windows(view: &Kept, events: &[Event]) -> (BTreeSet<Bounds>, BTreeSet<Bounds>) {
    let window = view.aggregation().window.expect("windows");
    let watermark = events.iter().map(|event| event.time).max().expect("events");
    let missed = missed(view, events);
    let (mut in_time, mut held) = (BTreeSet::new(), BTreeSet::new());
    if let Window::Session { gap } = window {
        let mut of_tag: BTreeMap<&str, Vec<Micros>> = BTreeMap::new();
        for (event, _) in events.iter().zip(&missed).filter(|(_, missed)| **missed == 0) {
            of_tag.entry(&event.tag).or_default().push(event.time);
        }
        for times in of_tag.values_mut() {
            times.sort_unstable();
            let sessions = times.chunk_by(|a, b| b - a < gap).map(|all| (all[all.len() - 1] + gap, all[0]));
            in_time.extend(sessions.filter(|(end, _)| end + gap + view.aggregation().allowed_lateness <= watermark));
        }
        return (in_time.clone(), in_time);
    }
    for (event, missed) in events.iter().zip(missed) {
        for (i, start) in (0..).zip(window.starts(event.time)) {
            let bounds = (window.end_of(start), start);
            if bounds.0 + view.aggregation().allowed_lateness <= watermark {
                held.insert(bounds);
                in_time.extend((i >= missed).then_some(bounds));
            }
        }
    }
    (in_time, held)
}

/// Those of the windows that are final by now.
fn due<'a>(view: &Kept, growing: &Growing, windows: &'a BTreeSet<Bounds>) -> impl Iterator<Item = &'a Bounds> {
    let watermark = growing.events[..growing.shown].iter().map(|event| event.time).max().unwrap_or(Micros::MIN);
    let gap = if let Some(Window::Session { gap }) = view.aggregation().window { gap } else { 0 };
    let closed = watermark.saturating_sub(view.aggregation().allowed_lateness + gap);
    windows.iter().filter(move |(end, _)| *end <= closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_has_heartbeats_with_the_servers_time() {
    let view = view("trending", Some(hop()), true, None);
    let limits = Limits { heartbeat: std::time::Duration::from_millis(20), ..Limits::default() };
    let platform = Platform::with_limits(std::slice::from_ref(&view), limits);
    platform.log.fill("posts", 3);
    platform.show(&view, snapshot(&view, &[event(10, "a", 1), event(20, "b", 1)], None, &[0, 2]));
    for mode in ["update", "complete", "append"] {
        let mut stream = Events::open(&platform, &format!("/v1/views/trending/stream?mode={mode}")).await;
        stream.wants_heartbeats = true;
        while stream.heartbeats < 3 {
            stream.next().await.expect("it goes on");
        }
        let of_view = json!({"trending": {"watermark": "2017-08-27T00:00:20Z", "lag": 1}});
        assert_eq!(stream.heartbeat, json!({"time": "2017-08-27T00:00:00Z", "views": of_view}), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_sends_the_whole_answer_and_says_what_it_cuts() {
    let view = view("totals", None, true, None);
    let events: Vec<Event> = (0..1_500).map(|i| event(i, &format!("k{i:04}"), 1)).collect();
    let platform = Platform::new(std::slice::from_ref(&view));
    platform.show(&view, snapshot(&view, &events, None, &[0, 1_500]));
    let mut stream = Events::open(&platform, "/v1/views/totals/stream").await;
    let whole = stream.next().await.expect("an event");
    assert_eq!(whole["rows"].as_array().map(Vec::len), Some(1_500));
    assert_eq!((&whole["total"], &whole["truncated"]), (&json!(1_500), &json!(false)));

    let limits = Limits { stream_rows: 2, ..Limits::default() };
    let platform = Platform::with_limits(std::slice::from_ref(&view), limits);
    let events = [event(1, "a", 1), event(2, "b", 1), event(3, "c", 1), event(4, "c", 1)];
    platform.show(&view, snapshot(&view, &events, None, &[0, 3]));
    let mut stream = Events::open(&platform, "/v1/views/totals/stream").await;
    let first = stream.next().await.expect("an event");
    assert_eq!(
        (&first["total"], &first["truncated"], &first["rows"][1]["tag"]),
        (&json!(3), &json!(true), &json!("b"))
    );
    // `c` comes first now: `b` is beyond the cut, not gone.
    platform.show(&view, snapshot(&view, &events, None, &[0, 4]));
    let next = stream.next().await.expect("an event");
    assert_eq!((&next["removed"], &next["cut"]), (&json!([{"tag": "b"}]), &json!([{"tag": "b"}])));
    assert_eq!((&next["rows"][0]["tag"], &next["truncated"]), (&json!("c"), &json!(true)));
    // Another view of the same events doesn't have `b` at all.
    platform.show(&view, snapshot(&view, &events[2..], None, &[0, 2]));
    let last = stream.next().await.expect("an event");
    assert_eq!((&last["removed"], &last["cut"]), (&json!([{"tag": "a"}]), &json!([])));
}
