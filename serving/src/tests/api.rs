//! The other resources, and what all responses have in common.

use std::io::Write;
use std::sync::Arc;

use anabranch_exchange::ingest::Ingest;
use anabranch_log::position::Positions;
use anabranch_plan::expr::Expr;
use anabranch_plan::rows::{Field, Rows};
use anabranch_plan::schema::DataType;
use anabranch_plan::sink::{Delivery, Sink};
use anabranch_plan::view::{Catalog, End, View, ViewId};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::support::*;
use crate::{Limits, Outputs, Readiness, StoppedOutput};

fn platform() -> Platform {
    let trending = view("trending", Some(hop()), true, Some(100));
    let platform = Platform::with_limits(
        &[trending.clone(), view("totals", None, true, None)],
        Limits { body_bytes: 1_000, ..Limits::default() },
    );
    let events = [event(10, "a", 1), event(70, "b", 2), event(80, "a", 4)];
    platform.log.fill("posts", 5);
    platform.publish(&trending, version(platform.folder.path(), &trending, 7, &events[..1]));
    platform.show(&trending, snapshot(&trending, &events, Some(7), &[1, 3]));
    platform
}

fn post(path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", content_type).body(body.into()).expect("a request")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_says_what_it_is_and_how_far_it_is() {
    let platform = platform();
    let detail = platform.ok("/v1/views/trending").await;
    let expected = json!({
        "kind": "view", "name": "trending", "sql": "CREATE MATERIALIZED VIEW trending …", "definition": "sha256:trending", "topic": "posts", "table": "posts",
        "columns": [
            {"name": "window_start", "type": "TIMESTAMP", "role": "window"},
            {"name": "window_end", "type": "TIMESTAMP", "role": "window"},
            {"name": "tag", "type": "TEXT", "role": "key"},
            {"name": "mentions", "type": "BIGINT", "role": "aggregate", "function": "count", "distinct": false, "additive": true},
            {"name": "total", "type": "BIGINT", "role": "aggregate", "function": "sum", "distinct": false, "additive": true},
        ],
        "window": {"kind": "hop", "size": "PT5M", "slide": "PT1M"},
        "order": [{"column": "mentions", "descending": true}], "limit": 100,
        "watermark": "2017-08-27T00:01:20Z",
        "partitions": [{"partition": 0, "watermark": "2017-08-27T00:01:20Z", "idle": false, "stalled": false, "holds_back": false}],
        "coverage": {
            "batch": {"version": 7, "offsets": {"posts": {"0": [0, 1]}}, "published": "2017-08-27T00:00:00Z", "event_time": "2017-08-27T00:00:10Z"},
            "speed": {"offsets": {"posts": {"0": [1, 3]}}},
        },
        "log_end": {"posts": {"0": 5}}, "lag": 2, "late": 0, "rejected": 0, "stopped": null,
        "emission": null, "schedule": "*/15 * * * *", "schedule_zone": "UTC", "catch_up": "last",
    });
    assert_eq!(detail.to_string(), expected.to_string());
    let all = platform.ok("/v1/views").await;
    assert_eq!(all["time"], "2017-08-27T00:00:00Z");
    assert_eq!(all["views"][1], detail);
    assert_eq!((&all["views"][0]["window"], &all["views"][0]["coverage"]["batch"]), (&Value::Null, &Value::Null));
    assert_eq!(platform.get_problem("/v1/views/x").await.1, "unknown-view");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_says_where_its_rows_are_and_how_far_it_is() {
    let mut platform = platform();
    let id = ViewId { name: "big".into(), definition: "sha256:big".into() };
    let fields = vec![Field { name: "label".into(), expr: Expr::Column("tag".into(), DataType::Text) }];
    let rows = Rows::Project { rows: Box::new(Rows::Scan(table())), fields };
    let sink = Sink { topic: "labels".into(), delivery: Delivery::AtLeastOnce, partition_by: Some(0) };
    let output = View { id, sql: "CREATE MATERIALIZED VIEW big …".into(), rows, end: End::Send(sink) };
    let mut catalog = Catalog::clone(&platform.app.catalog);
    catalog.views.insert("big".to_owned(), Arc::new(output));
    platform.app.catalog = Arc::new(catalog);
    let stopped = StoppedOutput { view: "big".into(), partition: 0, why: "no such offset".into() };
    platform.app.outputs = Outputs::new(|_| Ok(Positions::from([(0, 3)])), move || vec![stopped.clone()]);
    platform.router = crate::router(platform.app.clone());
    let expected = json!({
        "kind": "output", "name": "big", "sql": "CREATE MATERIALIZED VIEW big …", "definition": "sha256:big", "topic": "posts", "table": "posts",
        "columns": [{"name": "label", "type": "TEXT", "role": "field"}],
        "sink": {"kind": "kafka", "topic": "labels", "delivery": "at_least_once", "partition_by": "label"},
        "positions": {"posts": {"0": 3}}, "log_end": {"posts": {"0": 5}}, "lag": 2, "rejected": 0, "stopped": {"0": "no such offset"},
    });
    let detail = platform.ok("/v1/views/big").await;
    assert_eq!(detail.to_string(), expected.to_string());
    assert_eq!(platform.ok("/v1/views").await["views"][2], detail);
    for path in ["/v1/views/big/rows", "/v1/views/big/stream", "/v1/stream?views=trending,big"] {
        let (status, kind, says) = platform.get_problem(path).await;
        assert_eq!((status, kind.as_str()), (404, "rows-elsewhere"), "{path}");
        assert!(says.contains("`labels`"), "{says}");
    }
    let existing = platform.get_problem("/v1/views/x").await.2;
    assert!(existing.contains("`big`") && existing.contains("`trending`"), "{existing}");
    let (status, readiness) = platform.get("/readyz").await;
    let reason = "view `big`: writing what partition 0 gives has stopped: no such offset";
    assert_eq!((status, &readiness), (StatusCode::SERVICE_UNAVAILABLE, &json!({"ready": false, "reasons": [reason]})));
    let metrics = platform.ok("/metrics").await;
    let lag = "anabranch_output_lag_records{view=\"big\",partition=\"0\"} 2";
    assert!(metrics.as_str().is_some_and(|text| text.contains(lag)), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_taken_in_and_the_bad_ones_told() {
    let platform = platform();
    let good = r#"{"ts":"2017-08-27T00:00:00Z","tag":"a","amount":1}"#;
    let body = format!("{good}\n{{\"tag\":\"no time\"}}\n{good}\n");
    let (status, _, receipt) =
        platform.send(post("/v1/topics/posts/events", "application/x-ndjson", body.clone())).await;
    assert_eq!(status, StatusCode::OK);
    let receipt: Value = serde_json::from_slice(&receipt).expect("JSON");
    assert_eq!((&receipt["accepted"], &receipt["offsets"]), (&json!(2), &json!({"0": [5, 7]})));
    assert_eq!(receipt["rejected"][0]["line"], 2);

    let rejects = platform.ok("/v1/rejects?topic=posts&limit=10").await;
    assert_eq!((&rejects["total"], &rejects["next_cursor"]), (&json!(1), &Value::Null));
    assert_eq!((&rejects["rejects"][0]["line"], &rejects["rejects"][0]["offset"]), (&json!(2), &Value::Null));
    assert_eq!(platform.ok("/v1/views/trending/rows").await["rejected"], 1);

    let keyed = || {
        let mut request = post("/v1/topics/posts/events", "application/json", format!("[{good}]"));
        request.headers_mut().insert("idempotency-key", "k1".parse().expect("a value"));
        request
    };
    let (_, headers, first) = platform.send(keyed()).await;
    assert!(!headers.contains_key("idempotent-replayed"));
    let (_, headers, again) = platform.send(keyed()).await;
    assert_eq!((again, headers["idempotent-replayed"].as_bytes()), (first, &b"true"[..]));
    assert_eq!(platform.ok("/v1/views/trending").await["log_end"], json!({"posts": {"0": 8}}));
    let metrics = platform.ok("/metrics").await;
    for line in
        ["anabranch_events_ingested_total{topic=\"posts\"} 3.0", "anabranch_events_refused_total{topic=\"posts\"} 1.0"]
    {
        assert!(metrics.as_str().expect("text").contains(line), "a retry counts nothing twice: {line} in\n{metrics}");
    }
    let mut other = keyed();
    *other.body_mut() = Body::from(good);
    let (status, kind, detail) = platform.problem(other).await;
    assert_eq!((status, kind.as_str()), (422, "idempotency-key-reused"), "{detail}");
    assert!(detail.contains("`k1`") && detail.contains("`posts`"), "{detail}");
    assert_eq!(platform.ok("/v1/views/trending").await["log_end"], json!({"posts": {"0": 8}}));
}

/// The platform with changelogs of one and of two key columns.
fn with_changelogs() -> Platform {
    let text = "CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, ts TIMESTAMP) WITH (event_time = 'ts');
        CREATE TABLE orders (id BIGINT PRIMARY KEY, ts TIMESTAMP) WITH (event_time = 'ts');
        CREATE TABLE rooms (house TEXT, n BIGINT, ts TIMESTAMP, PRIMARY KEY (house, n)) WITH (event_time = 'ts');";
    let changelogs = anabranch_plan::sql::plan(&[("t.sql".to_owned(), text.to_owned())]).expect("tables");
    let mut platform = platform();
    let mut catalog = Catalog::clone(&platform.app.catalog);
    changelogs.tables.keys().for_each(|topic| platform.log.fill(topic, 0));
    catalog.tables.extend(changelogs.tables);
    platform.app.catalog = Arc::new(catalog);
    let (log, clock) = (Arc::new(platform.log.clone()), platform.app.clock.clone());
    platform.app.ingest = Arc::new(Ingest::new(log, platform.app.catalog.clone(), clock).expect("ingest"));
    platform.app.rejects = Arc::clone(platform.app.ingest.rejects());
    platform.router = crate::router(platform.app.clone());
    platform
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_changelog_is_deleted_by_its_key_in_either_spelling() {
    let platform = with_changelogs();
    let delete = |path: &str| Request::delete(path).body(Body::empty()).expect("a request");
    let receipt = |offset: u64| json!({"accepted": 1, "rejected": [], "rejected_count": 0, "offsets": {"0": [offset, offset + 1]}});
    let taken = async |request: Request<Body>| {
        let (status, headers, body) = platform.send(request).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        (serde_json::from_slice::<Value>(&body).expect("JSON"), headers.contains_key("idempotent-replayed"))
    };
    let body = r#"{"id":"a/b ü","name":"x","ts":"2017-08-27T00:00:00Z"}"#;
    let upsert = post("/v1/topics/users/events", "application/json", body);
    assert_eq!(taken(upsert).await, (receipt(0), false));
    let deletion = post("/v1/topics/users/events", "application/json", r#"{"id":"a/b ü","__deleted":true}"#);
    assert_eq!(taken(deletion).await, (receipt(1), false));
    assert_eq!(taken(delete("/v1/topics/users/events/a%2Fb%20%C3%BC")).await, (receipt(2), false));
    assert_eq!(platform.log.keys(), ["a/b ü"; 3]);

    let keyed = |path: &str| {
        let mut request = delete(path);
        request.headers_mut().insert("idempotency-key", "k1".parse().expect("a value"));
        request
    };
    assert_eq!(taken(keyed("/v1/topics/orders/events/17")).await, (receipt(0), false));
    assert_eq!(taken(keyed("/v1/topics/orders/events/17")).await, (receipt(0), true));
    let metrics = platform.ok("/metrics").await;
    let counted = "anabranch_events_ingested_total{topic=\"orders\"} 1.0";
    assert!(metrics.as_str().is_some_and(|text| text.contains(counted)), "{metrics}");

    let mut foreign = delete("/v1/topics/orders/events/17");
    foreign.headers_mut().insert("origin", "http://elsewhere.example".parse().expect("a value"));
    let mut twice = keyed("/v1/topics/orders/events/17");
    twice.headers_mut().append("idempotency-key", "k2".parse().expect("a value"));
    for (request, status, kind, says) in [
        (delete("/v1/topics/user/events/a"), 404, "unknown-topic", "`users`"),
        (delete("/v1/topics/posts/events/a"), 400, "not-by-key", "table `posts` has no PRIMARY KEY"),
        (delete("/v1/topics/rooms/events/a"), 400, "not-by-key", "{\"house\": …, \"n\": …, \"__deleted\": true}"),
        (delete("/v1/topics/orders/events/seven"), 400, "bad-key", "column `id`: expected BIGINT"),
        (delete("/v1/topics/users/events/%ff"), 400, "bad-request", "UTF-8"),
        (delete("/v1/topics/users/events"), 405, "method-not-allowed", "DELETE"),
        (keyed("/v1/topics/orders/events/18"), 422, "idempotency-key-reused", "`k1`"),
        (twice, 400, "repeated-header", "idempotency-key"),
        (foreign, 403, "foreign-origin", "another origin"),
    ] {
        let path = request.uri().path().to_owned();
        let (got, problem, detail) = platform.problem(request).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{path}: {detail}");
        assert!(detail.contains(says), "{path}: {detail}");
    }
    assert_eq!(platform.log.keys().len(), 4, "the others stored nothing");
    assert_eq!(platform.ok("/v1/rejects").await["total"], 0);
    platform.log.set_full();
    let (status, kind, _) = platform.problem(delete("/v1/topics/users/events/a")).await;
    assert_eq!((status, kind.as_str()), (507, "storage-full"));
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).expect("encoded");
    encoder.finish().expect("encoded")
}

fn zstd(body: &[u8]) -> Vec<u8> {
    zstd::encode_all(body, 3).expect("encoded")
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_taken_in_within_the_limit_on_what_they_unfold_to() {
    let platform = platform();
    let encoded = |coding: &str, body: Vec<u8>| {
        let mut request = post("/v1/topics/posts/events", "application/x-ndjson", body);
        request.headers_mut().insert("content-encoding", coding.parse().expect("a value"));
        request
    };
    let line = b"{\"ts\":\"2017-08-27T00:00:00Z\",\"tag\":\"a\"}\n".as_slice();
    let two_frames = [zstd(line), zstd(line)].concat();
    for (coding, body, accepted) in [
        ("gzip", gzip(line), 1),
        ("X-GZIP", [gzip(line), gzip(line)].concat(), 2),
        ("zstd", two_frames, 2),
        ("identity", line.to_vec(), 1),
        ("identity, Zstd", zstd(&line.repeat(20)), 20),
    ] {
        let (status, _, receipt) = platform.send(encoded(coding, body)).await;
        let receipt: Value = serde_json::from_slice(&receipt).expect("JSON");
        assert_eq!((status, &receipt["accepted"]), (StatusCode::OK, &json!(accepted)), "{coding}: {receipt}");
    }
    let bomb = vec![b' '; 4 << 20];
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).expect("a window");
        encoder.write_all(line).expect("encoded");
        encoder.finish().expect("encoded")
    };
    for (coding, body, status, kind, says) in [
        ("gzip", gzip(&bomb[..900_000]), 413, "body-too-long", "unfolds to more than 1000 bytes"),
        ("zstd", zstd(&bomb), 413, "body-too-long", "1000 bytes"),
        ("zstd", wide, 400, "bad-body", "memory"),
        ("gzip", line.to_vec(), 400, "bad-body", "not gzip"),
        ("zstd", line.to_vec(), 400, "bad-body", "not zstd"),
        ("gzip", gzip(line)[..20].to_vec(), 400, "bad-body", "not gzip to its end"),
        ("zstd", zstd(line)[..20].to_vec(), 400, "bad-body", "not zstd to its end"),
        ("br", line.to_vec(), 415, "encoded-body", "`br`"),
        ("gzip, gzip", gzip(&gzip(line)), 415, "encoded-body", "once"),
    ] {
        let (got, problem, detail) = platform.problem(encoded(coding, body)).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{coding}: {detail}");
        assert!(detail.contains(says), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_said_to_be_lines_is_never_refused_for_one_of_them() {
    let platform = platform();
    let body = [b"[1,\n\xff\n".as_slice(), b"{\"ts\":\"2017-08-27T00:00:00Z\"}\n"].concat();
    for media_type in ["application/x-ndjson", "Application/NDJSON; charset=utf-8", "application/jsonl"] {
        let (status, _, receipt) = platform.send(post("/v1/topics/posts/events", media_type, body.clone())).await;
        let receipt: Value = serde_json::from_slice(&receipt).expect("JSON");
        assert_eq!(status, StatusCode::OK, "{media_type}: {receipt}");
        assert_eq!((&receipt["accepted"], &receipt["rejected_count"]), (&json!(1), &json!(2)), "{receipt}");
    }
    assert_eq!(platform.problem(post("/v1/topics/posts/events", "application/json", body)).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_can_not_be_taken_are_refused() {
    let platform = platform();
    let with = |name: &'static str, value: String| {
        let mut request = post("/v1/topics/posts/events", "application/json", "{}");
        request.headers_mut().insert(name, value.parse().expect("a value"));
        request
    };
    let mut twice = with("idempotency-key", "a".into());
    twice.headers_mut().append("idempotency-key", "b".parse().expect("a value"));
    for (request, status, kind, says) in [
        (post("/v1/topics/x/events", "application/json", "{}"), 404, "unknown-topic", "there are `posts`"),
        (post("/v1/topics/posts/events", "application/json", vec![b' '; 1_001]), 413, "body-too-long", "1000 bytes"),
        (post("/v1/topics/posts/events", "application/json", vec![b'"', 0xff, b'"']), 400, "bad-body", "UTF-8"),
        (post("/v1/topics/posts/events", "application/json", "[".repeat(900)), 400, "bad-body", ""),
        (with("idempotency-key", "k".repeat(256)), 400, "bad-idempotency-key", "255"),
        (twice, 400, "repeated-header", "twice"),
    ] {
        let (got, problem, detail) = platform.problem(request).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{detail}");
        assert!(detail.contains(says), "{detail}");
    }
    platform.log.set_full();
    let good = r#"{"ts":"2017-08-27T00:00:00Z"}"#;
    let (status, kind, detail) = platform.problem(post("/v1/topics/posts/events", "application/json", good)).await;
    assert_eq!((status, kind.as_str()), (507, "storage-full"));
    assert!(detail.contains("nothing of this request was stored"), "{detail}");
    let (status, readiness) = platform.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let reason = readiness["reasons"][0].as_str().expect("a reason");
    assert!(reason.starts_with("events can't be stored: no room in `/data`"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_asked_once_for_each_topic_however_many_views_read_it() {
    let views = ["a", "b", "c", "d", "e"].map(|name| view(name, Some(hop()), true, None));
    let platform = Platform::new(&views);
    platform.log.fill("posts", 5);
    for path in ["/v1/views", "/metrics"] {
        platform.log.asked();
        let (status, _) = platform.get(path).await;
        // Once for the events and once for the rejects.
        let asked = platform.log.asked();
        assert!(status == StatusCode::OK && asked <= 2, "{path}: asked {asked} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_queued_shown_and_cancelled() {
    let platform = platform();
    let (status, headers, job) =
        platform.send(post("/v1/jobs", "application/json", r#"{"kind":"batch","views":["trending"]}"#)).await;
    assert_eq!((status, headers["location"].as_bytes()), (StatusCode::ACCEPTED, &b"/v1/jobs/job-1"[..]));
    let job: Value = serde_json::from_slice(&job).expect("JSON");
    assert_eq!(job, platform.ok("/v1/jobs/job-1").await);
    assert_eq!((&job["state"], &job["trigger"], &job["progress"]), (&json!("queued"), &json!("api"), &json!(0.0)));
    assert_eq!(platform.ok("/v1/jobs").await, json!({"jobs": [job]}));
    let cancel = || Request::post("/v1/jobs/job-1/cancel").body(Body::empty()).expect("a request");
    assert_eq!(platform.send(cancel()).await.0, StatusCode::OK);
    for (request, status, kind) in [
        (cancel(), 409, "job-ended"),
        (Request::post("/v1/jobs/x/cancel").body(Body::empty()).expect("a request"), 404, "unknown-job"),
        (post("/v1/jobs", "application/json", r#"{"kind":"batch","views":["nobody"]}"#), 404, "unknown-view"),
        (post("/v1/jobs", "application/json", r#"{"kind":"stream"}"#), 400, "bad-job"),
        (post("/v1/jobs", "application/json", r#"{"kind":"batch","ful":true}"#), 400, "bad-job"),
        (post("/v1/jobs", "text/plain", "{}"), 415, "not-json"),
        (post("/v1/jobs", "application/json", r#"{"kind":"batch","from":"garbage"}"#), 400, "bad-job"),
        (
            post("/v1/jobs", "application/json", r#"{"kind":"batch","to":"2024-01-01","from":"2024-01-02T00:00:00Z"}"#),
            400,
            "bad-job",
        ),
        (post("/v1/jobs", "application/json", r#"{"kind":"batch","views":["full"]}"#), 507, "storage-full"),
        (post("/v1/jobs", "application/json", r#"{"kind":"batch","views":["away"]}"#), 503, "log-unavailable"),
    ] {
        let (got, problem, detail) = platform.problem(request).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_say_how_it_is() {
    let platform = platform();
    assert_eq!(platform.ok("/healthz").await, json!({"status": "ok", "project": "1d2c"}));
    assert_eq!(platform.ok("/readyz").await, json!({"ready": true, "reasons": []}));
    platform.ready.send_replace(Readiness::not_ready(["the speed layer recovers"]));
    let (status, readiness) = platform.get("/readyz").await;
    assert_eq!(
        (status, &readiness["reasons"][0]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("the speed layer recovers"))
    );
    platform.ok("/v1/views/trending/rows").await;
    platform.ok("/v1/views/trending/rows").await;
    let text = platform.ok("/metrics").await;
    let text = text.as_str().expect("text");
    for line in [
        "anabranch_lag_records{view=\"trending\",partition=\"0\"} 2",
        "anabranch_batch_version{view=\"trending\"} 7",
        "anabranch_rows_cache_hits_total 1",
        "anabranch_rows_seconds_count 2",
        "anabranch_state_rows{view=\"trending\"} 12",
        "anabranch_rejected_total{topic=\"posts\"} 0",
        "anabranch_open_streams 0",
        "anabranch_ready 0",
    ] {
        assert!(text.lines().any(|l| l == line || l == format!("{line}.0")), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_a_strict_policy_and_errors_one_form() {
    let platform = platform();
    let request = |method: Method, path: &str| {
        Request::builder().method(method).uri(path).body(Body::empty()).expect("a request")
    };
    for path in ["/", "/docs"] {
        let (status, headers, _) = platform.send(request(Method::GET, path)).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(headers["cache-control"], "no-cache");
        let policy = headers["content-security-policy"].to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
    }
    // A worker is bound by its script's policy: the dashboard's asks the API.
    let (_, headers, _) = platform.send(request(Method::GET, "/docs/docs.js")).await;
    let policy = headers["content-security-policy"].to_str().expect("text");
    assert_eq!(policy, "default-src 'none'; connect-src 'self'; frame-ancestors 'none'");
    for (method, path, status, kind) in [
        (Method::GET, "/nothing", 404, "not-found"),
        (Method::GET, "/v1/nothing", 404, "not-found"),
        (Method::DELETE, "/v1/views", 405, "method-not-allowed"),
        (Method::GET, "/v1/views/%ff", 400, "bad-request"),
        (Method::GET, "/v1/rejects?limit=many", 400, "bad-query"),
        (Method::GET, "/v1/rejects?limit=5000", 400, "bad-limit"),
        (Method::GET, "/v1/rejects?topic=x", 404, "unknown-topic"),
        (Method::GET, "/v1/rejects?cursor=x", 400, "bad-cursor"),
    ] {
        let (got, problem, detail) = platform.problem(request(method, path)).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{path}: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_compressed_on_request() {
    let platform = platform();
    let request =
        Request::get("/openapi.json").header("accept-encoding", "gzip").body(Body::empty()).expect("a request");
    let (status, headers, body) = platform.send(request).await;
    assert_eq!((status, headers["content-encoding"].as_bytes()), (StatusCode::OK, &b"gzip"[..]));
    assert!(body.len() < crate::openapi_json().len() / 2);
}

/// Generated clients go by it: an answer's field is either always there and perhaps null, or perhaps absent and never null, and no
/// parameter is ever null.
#[test]
fn the_description_tells_what_is_null_from_what_is_absent() {
    let api: Value = serde_json::from_slice(&crate::openapi_json()).expect("JSON");
    let may_be_null = |schema: &Value| {
        let is_null = |kind: &Value| kind == "null" || kind["type"] == "null";
        [&schema["type"], &schema["oneOf"]]
            .into_iter()
            .filter_map(Value::as_array)
            .any(|kinds| kinds.iter().any(is_null))
    };
    let schemas = api["components"]["schemas"].as_object().expect("schemas");
    // A request may leave a field out or say null.
    for (name, schema) in schemas.iter().filter(|(name, _)| *name != "NewJob") {
        let always: Vec<&Value> = schema["required"].as_array().into_iter().flatten().collect();
        for (field, of) in schema["properties"].as_object().into_iter().flatten() {
            let is_always_there = always.iter().any(|name| *name == field);
            assert!(is_always_there || !may_be_null(of), "`{field}` of {name} may be null or absent");
        }
    }
    let mut operations = 0;
    for (path, item) in api["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            operations += 1;
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let null = parameters.filter(|parameter| may_be_null(&parameter["schema"])).collect::<Vec<_>>();
            assert!(null.is_empty(), "{method} {path}: {null:?}");
            let responses = &operation["responses"];
            let has_body = operation.get("requestBody").is_some();
            for status in ["400", "403", "429", "500", "503"]
                .into_iter()
                .chain(has_body.then_some(["408", "413"]).into_iter().flatten())
            {
                assert!(responses.get(status).is_some(), "{method} {path} can be answered {status}");
            }
            for (status, response) in responses.as_object().expect("responses") {
                assert!(
                    response["description"].as_str().is_some_and(|text| !text.is_empty()),
                    "{method} {path}: {status}"
                );
            }
        }
    }
    assert!(operations > 10);
}

/// A change of the API is a change of this file, to be seen in review. `UPDATE_OPENAPI=1` writes it.
#[test]
fn the_description_is_the_reviewed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let generated = crate::openapi_json();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &generated).expect("written");
    }
    let reviewed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        reviewed.as_bytes() == generated,
        "serving/openapi.json is not what the handlers say: run this test with UPDATE_OPENAPI=1"
    );
}
