//! Server-Sent Events: differences only, bounded, ended with the server.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::support::*;
use crate::Limits;

struct Events {
    body: axum::body::BodyDataStream,
    buffer: String,
}

impl Events {
    async fn open(platform: &Platform, path: &str) -> Self {
        let request = Request::get(path).header("last-event-id", "trending-1-0").body(Body::empty());
        let response = platform.router.clone().oneshot(request.expect("a request")).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// The next event's data; none once the stream has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let event: String = self.buffer.drain(..end + 2).collect();
                if event.starts_with(':') {
                    continue;
                }
                assert!(event.contains("event: update\n") && event.contains("id: "), "{event}");
                let data = event.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
                return Some(serde_json::from_str(data).expect("JSON"));
            }
            let bytes = self.body.next().await?.expect("a body");
            self.buffer.push_str(std::str::from_utf8(&bytes).expect("text"));
        }
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

    // `c` takes the place of `a` among the two that are kept.
    show(5);
    let third = stream.next().await.expect("an event");
    assert_eq!((&third["rows"][0]["tag"], &third["removed"]), (&json!("c"), &json!([{"tag": "a"}])));

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
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::with_limits(&[view], Limits { streams: 1, ..Limits::default() });
    let mut open = Events::open(&platform, "/v1/views/trending/stream").await;
    open.next().await.expect("an event");
    let request = Request::get("/v1/views/trending/stream").body(Body::empty()).expect("a request");
    let (status, headers, _) = platform.send(request).await;
    assert_eq!((status, headers["retry-after"].as_bytes()), (StatusCode::SERVICE_UNAVAILABLE, &b"10"[..]));
    for (path, status, kind) in [
        ("/v1/views/trending/stream?mode=append", 400, "bad-mode"),
        ("/v1/views/trending/stream?modus=update", 400, "unknown-parameter"),
        ("/v1/stream", 400, "bad-parameter"),
        ("/v1/stream?views=trending,x", 404, "unknown-view"),
    ] {
        let (got, problem, _) = platform.get_problem(path).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{path}");
    }
    let (_, _, detail) = platform.get_problem("/v1/views/trending/stream?mode=complete").await;
    assert!(detail.contains("not supported yet: `update`"), "{detail}");
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
    let request = "GET /v1/views/trending/stream HTTP/1.1\r\nhost: x\r\n\r\n";
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut bytes = [0; 4_096];
    let read = socket.read(&mut bytes).await.expect("an answer");
    assert!(bytes[..read].starts_with(b"HTTP/1.1 200"));
    stop.send(()).expect("it runs");
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.expect("it ends");
    serving.await.expect("no panic").expect("no error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_moves_is_closed() {
    let limits = Limits { idle: std::time::Duration::from_millis(50), ..Limits::default() };
    let platform = Platform::with_limits(&[view("trending", Some(hop()), true, None)], limits);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(crate::serve(listener, platform.app.clone(), std::future::pending()));
    let mut silent = tokio::net::TcpStream::connect(address).await.expect("connected");
    let mut bytes = Vec::new();
    silent.read_to_end(&mut bytes).await.expect("it ends");
    assert_eq!(bytes, b"");
    serving.abort();
}
