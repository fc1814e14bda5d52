//! The edge: connections and their deadlines, whom the server answers, and requests that can be read in two ways.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::support::*;
use crate::{Hosts, Limits};

/// More than anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two bytes of a client that renews nothing by them.
const DRIP: Duration = Duration::from_millis(20);
/// How many of them are sent or taken at most: for longer than the deadlines of these tests, by far.
const DRIPS: usize = 2_000;

/// A server on a port.
struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Listening {
    async fn start(limits: Limits) -> Self {
        let platform = Platform::with_limits(&[view("trending", Some(hop()), true, None)], limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let app = platform.app.clone();
            crate::serve(listener, app, async {
                let _ = stopped.await;
            })
            .await;
            drop(platform);
        });
        Self { address, stop, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    /// The whole answer to a request on a connection of its own.
    async fn ask(&self, request: &str) -> String {
        let mut connection = self.connect().await;
        connection.write_all(request.as_bytes()).await.expect("sent");
        rest(&mut connection).await
    }

    /// A number of `/metrics`.
    async fn metric(&self, name: &str) -> Option<u64> {
        let text = self.ask("GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().trim_end_matches(".0").parse().ok())
    }
}

/// What else comes until the connection ends, however it does.
async fn rest(connection: &mut TcpStream) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 65_536]);
    while let Ok(read) = timeout(PATIENCE, connection.read(&mut buffer)).await.expect("it ends")
        && read > 0
    {
        bytes.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a byte now and then; true once the server has closed the connection, false if it never does.
async fn drips(connection: &mut TcpStream, byte: u8) -> bool {
    for _ in 0..DRIPS {
        let mut one = [0];
        let closed = timeout(DRIP, connection.read(&mut one)).await;
        if closed.is_ok_and(|read| !matches!(read, Ok(1..))) || connection.write_all(&[byte]).await.is_err() {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_in_time_ends_the_connection_whatever_drips_in() {
    let server = Listening::start(Limits { head: Duration::from_millis(200), ..Limits::default() }).await;
    assert_eq!(rest(&mut server.connect().await).await, "", "nothing at all is sent");
    let mut begun = server.connect().await;
    begun.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ").await.expect("sent");
    assert!(drips(&mut begun, b'x').await, "a header that never ends holds the connection");
    let mut idle = server.connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    while timeout(Duration::from_millis(50), idle.read(&mut [0; 4_096])).await.is_ok_and(|read| matches!(read, Ok(1..)))
    {
    }
    assert!(drips(&mut idle, b'\n').await, "empty lines between requests hold the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_falls_behind_the_slowest_pace_is_refused() {
    let server = Listening::start(Limits { transfer: Duration::from_millis(200), ..Limits::default() }).await;
    for (head, chunk) in [("content-length: 100000", "x"), ("transfer-encoding: chunked", "1\r\nx\r\n")] {
        let mut slow = server.connect().await;
        let head = format!("POST /v1/topics/posts/events HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n");
        slow.write_all(head.as_bytes()).await.expect("sent");
        let mut first = [0];
        let mut answered = false;
        for _ in 0..DRIPS {
            if timeout(DRIP, slow.read(&mut first)).await.is_ok_and(|read| matches!(read, Ok(1))) {
                answered = true;
                break;
            }
            slow.write_all(chunk.as_bytes()).await.expect("sent");
        }
        assert!(answered, "a body that drips in holds the connection");
        let answer = rest(&mut slow).await;
        assert!(answer.starts_with("TTP/1.1 408") && answer.contains("too-slow"), "{answer}");
    }
    // One that keeps the pace may take longer than that.
    let mut steady = server.connect().await;
    let event = format!("{{\"ts\":\"2017-08-27T00:00:00Z\",\"tag\":\"{}\"}}\n", "x".repeat(9_958));
    let head = format!(
        "POST /v1/topics/posts/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        10 * event.len()
    );
    steady.write_all(head.as_bytes()).await.expect("sent");
    for _ in 0..10 {
        steady.write_all(event.as_bytes()).await.expect("sent");
        sleep(Duration::from_millis(50)).await;
    }
    let answer = rest(&mut steady).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"accepted\":10"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_its_answers_drop_by_drop_loses_the_connection() {
    let server = Listening::start(Limits { transfer: Duration::from_millis(200), ..Limits::default() }).await;
    let mut slow = server.connect().await;
    // More than the buffers on the way hold.
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(1_000);
    slow.write_all(requests.as_bytes()).await.expect("sent");
    let mut drops = 0;
    // The connection that asks is the other one.
    while server.metric("anabranch_open_connections").await != Some(1) {
        assert!(drops < DRIPS, "a client that takes a little now and then holds the connection");
        slow.read_exact(&mut [0; 100]).await.expect("there is more");
        drops += 1;
        sleep(DRIP).await;
    }
    assert!(rest(&mut slow).await.len() < 1_000 * crate::openapi_json().len(), "everything was sent to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_in_all_and_from_one_address() {
    let limits = Limits { connections: 4, connections_per_address: 2, ..Limits::default() };
    let server = Listening::start(limits).await;
    let from = async |address: &str| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(address.parse().expect("an address"), 0)).expect("bound");
        socket.connect(server.address).await.expect("connected")
    };
    let answered = async |connection: &mut TcpStream| {
        connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.expect("an answer");
        answer == *b"HTTP/1.1 200"
    };
    let mut open = Vec::new();
    for address in ["127.0.0.2", "127.0.0.2", "127.0.0.3"] {
        let mut connection = from(address).await;
        assert!(answered(&mut connection).await);
        open.push(connection);
    }
    let answer = rest(&mut from("127.0.0.2").await).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("2 connections from 127.0.0.2"), "{answer}");
    assert!(answer.contains("application/problem+json") && answer.contains("retry-after: 1\r\n"), "{answer}");
    let mut other = from("127.0.0.3").await;
    assert!(answered(&mut other).await, "one address doesn't take what others may have");
    let answer = rest(&mut from("127.0.0.4").await).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("4 connections are open"), "{answer}");
    drop(other);
    // Its end is seen in its own time.
    while server.metric("anabranch_connections_refused_total").await.is_none_or(|refused| refused < 2) {
        sleep(DRIP).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_connections_that_were_opened_in_advance() {
    let server = Listening::start(Limits { grace: 10 * PATIENCE, ..Limits::default() }).await;
    let silent = server.connect().await;
    while server.metric("anabranch_open_connections").await != Some(2) {
        sleep(DRIP).await;
    }
    server.stop.send(()).expect("it runs");
    timeout(PATIENCE, server.serving).await.expect("it ends").expect("no panic");
    drop(silent);
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).expect("a request")
}

fn platform() -> Platform {
    let mut platform = Platform::new(&[view("trending", Some(hop()), true, None)]);
    platform.app.hosts = Hosts::new("127.0.0.1:8080", &["analytics.example.com".to_owned()]);
    platform.router = crate::router(platform.app.clone());
    platform
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_another_name_is_answered_nowhere() {
    let platform = platform();
    for path in [
        "/",
        "/docs",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/views",
        "/v1/stream?views=trending",
        "/x",
    ] {
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "0.0.0.0:8080", ""] {
            let (status, kind, detail) = platform.problem(request("GET", path, &[("host", host)])).await;
            assert_eq!((status, kind.as_str()), (403, "foreign-host"), "{path} of {host}: {detail}");
        }
        for host in ["localhost:8080", "127.0.0.1", "[::1]:9", "analytics.example.com"] {
            let (status, ..) = platform.send(request("HEAD", path, &[("host", host)])).await;
            assert_ne!(status, StatusCode::FORBIDDEN, "{path} of {host}");
        }
    }
    // What the request line says counts, too, and nothing is left open where a name lacks.
    let absolute = request("GET", "http://evil.example/v1/views", &[("host", "localhost")]);
    assert_eq!(platform.problem(absolute).await.0, 403);
    let server = Listening::start(Limits::default()).await;
    let ask = async |request: &str| server.ask(request).await.lines().next().unwrap_or_default().to_owned();
    assert_eq!(ask("GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n").await, "HTTP/1.1 400 Bad Request");
    assert_eq!(ask("GET /healthz HTTP/1.0\r\n\r\n").await, "HTTP/1.0 200 OK");
    let two = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(two).await, "HTTP/1.1 400 Bad Request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_changes_nothing() {
    let platform = platform();
    let job =
        Request::post("/v1/jobs").header("content-type", "application/json").body(Body::from("{\"kind\":\"batch\"}"));
    assert_eq!(platform.send(job.expect("a request")).await.0, StatusCode::ACCEPTED);
    let own = [
        [("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")],
        [("origin", "https://analytics.example.com"), ("sec-fetch-site", "same-origin")],
        [("x", ""), ("sec-fetch-site", "none")],
        [("x", ""), ("y", "")],
    ];
    let foreign = [
        [("sec-fetch-site", "cross-site"), ("x", "")],
        [("sec-fetch-site", "same-site"), ("x", "")],
        [("sec-fetch-site", "same-site"), ("origin", "http://localhost:8080")],
        [("sec-fetch-site", "whatever comes"), ("x", "")],
        [("origin", "http://evil.example"), ("x", "")],
        [("origin", "http://localhost:3000"), ("x", "")],
        [("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")],
        [("origin", "null"), ("x", "")],
    ];
    for path in ["/v1/jobs/job-1/cancel", "/v1/jobs", "/v1/topics/posts/events", "/v1/views", "/"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "MADE-UP"] {
            for headers in &foreign {
                let (status, kind, _) = platform.problem(request(method, path, headers)).await;
                assert_eq!((status, kind.as_str()), (403, "foreign-origin"), "{method} {path} {headers:?}");
            }
        }
    }
    assert_eq!(platform.ok("/v1/jobs/job-1").await["state"], "queued");
    for headers in &own {
        let (status, ..) = platform.send(request("POST", "/v1/topics/posts/events", headers)).await;
        assert_eq!(status, StatusCode::OK, "{headers:?}");
    }
    assert_eq!(platform.send(request("POST", "/v1/jobs/job-1/cancel", &own[0])).await.0, StatusCode::OK);
    let read = request("GET", "/v1/views", &[("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")]);
    let (status, headers, _) = platform.send(read).await;
    assert_eq!(
        (status, headers.get("access-control-allow-origin")),
        (StatusCode::OK, None),
        "a browser keeps it from the page"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_such_method_says_which_it_has() {
    let platform = platform();
    for path in ["/", "/index.html", "/docs", "/openapi.json", "/v1/views", "/healthz"] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let (status, headers, _) = platform.send(request(method.as_str(), path, &[])).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(headers["allow"], "GET,HEAD", "{method} {path}");
            assert_eq!(headers["content-type"], "application/problem+json");
        }
        assert_eq!(platform.send(request("HEAD", path, &[])).await.0, StatusCode::OK, "{path}");
    }
    let (status, headers, _) = platform.send(request("GET", "/v1/topics/posts/events", &[])).await;
    assert_eq!((status, headers["allow"].as_bytes()), (StatusCode::METHOD_NOT_ALLOWED, &b"POST"[..]));
    assert_eq!(platform.send(request("POST", "/nothing", &[])).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_says_twice_or_can_not_say_is_refused_everywhere() {
    let platform = platform();
    let paths = [
        "/v1/views",
        "/v1/views/trending",
        "/v1/views/trending/rows",
        "/v1/views/trending/stream",
        "/v1/views/trending/audit",
        "/v1/views/trending/corrections",
        "/v1/stream",
        "/v1/rejects",
        "/v1/jobs",
        "/v1/jobs/x",
    ];
    for path in paths {
        for (query, kind) in [
            ("limit=1&limit=1", "bad-parameter"),
            ("mode=update&mode=append&views=trending", "bad-parameter"),
            ("views=trending&view%73=trending", "bad-parameter"),
            ("key.tag=a&key.tag=b", "bad-parameter"),
            ("key.tag=%FF", "bad-query"),
            ("key.tag=%C3", "bad-query"),
            ("key.tag=100%", "bad-query"),
            ("%ff=1", "bad-query"),
        ] {
            let (status, found, detail) = platform.get_problem(&format!("{path}?{query}")).await;
            assert_eq!((status, found.as_str()), (400, kind), "{path}?{query}: {detail}");
        }
    }
    assert_eq!(platform.get_problem("/v1/views/%FF/rows").await.0, 400);
    for (name, values) in [("idempotency-key", ["a", "b"]), ("content-type", ["text/plain", "application/json"])] {
        let headers = values.map(|value| (name, value));
        let (status, kind, _) = platform.problem(request("POST", "/v1/topics/posts/events", &headers)).await;
        assert_eq!((status, kind.as_str()), (400, "repeated-header"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_are_read_in_any_case_and_from_all_lines() {
    let platform = platform();
    let accepting = |lines: &[&str]| {
        let headers: Vec<_> = lines.iter().map(|line| ("accept", *line)).collect();
        request("GET", "/v1/views/trending/rows", &headers)
    };
    for (lines, expected) in [
        (&["text/html", "TEXT/CSV"][..], "text/csv; charset=utf-8; header=present"),
        (&["application/json;q=0", "*/*"], "text/csv; charset=utf-8; header=present"),
        (&["text/csv;q=0.1", "Application/X-NDJSON;Q=0.2"], "application/x-ndjson"),
    ] {
        let (status, headers, _) = platform.send(accepting(lines)).await;
        assert_eq!((status, headers["content-type"].to_str().expect("text")), (StatusCode::OK, expected), "{lines:?}");
    }
    assert_eq!(platform.problem(accepting(&["application/json;q=0"])).await.0, 406);
    for content_type in ["Application/JSON", "application/json;charset=UTF-8", "APPLICATION/JSON ; charset=utf-8"] {
        let job =
            Request::post("/v1/jobs").header("content-type", content_type).body(Body::from("{\"kind\":\"batch\"}"));
        assert_eq!(platform.send(job.expect("a request")).await.0, StatusCode::ACCEPTED, "{content_type}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_known_by_any_of_its_tags() {
    let platform = platform();
    let tag = platform.send(request("GET", "/", &[])).await.1["etag"].to_str().expect("text").to_owned();
    let strong = tag.trim_start_matches("W/").to_owned();
    for known in [&[tag.as_str()][..], &[&strong], &["*"], &[&format!("\"other\", {tag}")], &["\"other\"", &tag]] {
        let headers: Vec<_> = known.iter().map(|tag| ("if-none-match", *tag)).collect();
        assert_eq!(platform.send(request("GET", "/", &headers)).await.0, StatusCode::NOT_MODIFIED, "{known:?}");
    }
    assert_eq!(platform.send(request("GET", "/", &[("if-none-match", "\"other\"")])).await.0, StatusCode::OK);
}
