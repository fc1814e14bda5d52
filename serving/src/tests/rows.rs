//! Rows: shape, forms, filters, pages, refusals.

use std::sync::Arc;

use anabranch_exchange::snapshot::Snapshot;
use anabranch_exchange::version::Version;
use anabranch_plan::time::parse_timestamp;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::support::*;

fn events() -> Vec<Event> {
    vec![
        event(10, "a", 1),
        event(70, "b", 2),
        event(80, "a", 4),
        event(200, "c", 8),
        event(210, "a", 16),
        event(275, "b", 32),
    ]
}

/// The events, two of them in version 7, the others in two chunks.
fn platform() -> (Platform, Kept) {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(&[view.clone(), self::view("totals", None, true, None)]);
    platform.log.fill("posts", 6);
    platform.publish(&view, version(platform.folder.path(), &view, 7, &events()[..2]));
    platform.show(&view, snapshot(&view, &events(), Some(7), &[2, 4, 6]));
    (platform, view)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_exactly_what_the_design_says() {
    let (platform, _) = platform();
    let (status, headers, body) = platform
        .send(
            Request::get("/v1/views/trending/rows?window=2017-08-27T00:05:00Z").body(Body::empty()).expect("a request"),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(
        String::from_utf8(body).expect("text"),
        concat!(
            r#"{"view":"trending","mode":"merged","exact":true,"incomplete":false,"#,
            r#""window":{"start":"2017-08-27T00:00:00Z","end":"2017-08-27T00:05:00Z","state":"open"},"total":3,"#,
            r#""rows":[{"tag":"a","mentions":3,"mentions_lower":3,"mentions_upper":3,"total":21,"total_lower":21,"total_upper":21},"#,
            r#"{"tag":"b","mentions":2,"mentions_lower":2,"mentions_upper":2,"total":34,"total_lower":34,"total_upper":34},"#,
            r#"{"tag":"c","mentions":1,"mentions_lower":1,"mentions_upper":1,"total":8,"total_lower":8,"total_upper":8}],"#,
            r#""sources":{"batch":{"version":7,"offsets":{"posts":{"0":[0,2]}}},"speed":{"offsets":{"posts":{"0":[2,6]}}}},"#,
            r#""watermark":"2017-08-27T00:04:35Z","late":0,"rejected":0,"definition":"sha256:trending","certain":true,"confidence":1.0,"truncated":false}"#,
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_takes_from_its_layers() {
    let (platform, _) = platform();
    let counts = |answer: &Value| -> Vec<(String, i64)> {
        let rows = answer["rows"].as_array().expect("rows").iter();
        rows.map(|row| (row["tag"].as_str().expect("a tag").into(), row["mentions"].as_i64().expect("a count")))
            .collect()
    };
    let batch = platform.ok("/v1/views/trending/rows?mode=batch&window=2017-08-27T00:05:00Z").await;
    assert_eq!(counts(&batch), [("a".into(), 1), ("b".into(), 1)]);
    assert_eq!(batch["sources"], json!({"batch": {"version": 7, "offsets": {"posts": {"0": [0, 2]}}}, "speed": null}));
    let speed = platform.ok("/v1/views/trending/rows?mode=speed&window=2017-08-27T00:05:00Z").await;
    assert_eq!(counts(&speed), [("a".into(), 2), ("b".into(), 1), ("c".into(), 1)]);
    assert_eq!(speed["sources"], json!({"batch": null, "speed": {"offsets": {"posts": {"0": [2, 6]}}}}));
    let latest = platform.ok("/v1/views/trending/rows").await;
    assert_eq!(latest["window"]["start"], "2017-08-27T00:04:00Z");
    let closed = platform.ok("/v1/views/trending/rows?window=closed").await;
    assert_eq!(
        closed["window"],
        json!({"start": "2017-08-26T23:59:00Z", "end": "2017-08-27T00:04:00Z", "state": "closing"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn before_any_data_there_is_no_window() {
    for window in [hop(), Window::Session { gap: MINUTE }] {
        let view = view("trending", Some(window), true, None);
        let platform = Platform::new(&[view]);
        let answer = platform.ok("/v1/views/trending/rows").await;
        let nothing = (&Value::Null, &json!([]), &Value::Null);
        assert_eq!((&answer["window"], &answer["rows"], &answer["watermark"]), nothing);
        assert_eq!((&answer["incomplete"], &answer["exact"]), (&json!(false), &json!(true)));
        let (from, to) = ("2017-08-27T00:00:00Z", "2017-08-27T00:05:00Z");
        let named = platform.ok(&format!("/v1/views/trending/rows?window={to}")).await;
        assert_eq!((&named["window"]["end"], &named["window"]["state"]), (&json!(to), &json!("open")));
        let range = platform.ok(&format!("/v1/views/trending/rows?from={from}&to={to}")).await;
        assert_eq!((&range["window"], &range["rows"]), (&json!({"from": from, "to": to}), &json!([])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_no_record_says_nothing_of_those_in_the_log() {
    let (trending, count) = (view("trending", Some(hop()), true, None), view("count", None, false, None));
    let platform = Platform::new(&[trending.clone(), count.clone()]);
    let paths = [("trending", "&window=2017-08-27T00:05:00Z"), ("trending", ""), ("count", "")];
    let asked = |mode: &str| paths.map(|(view, window)| format!("/v1/views/{view}/rows?mode={mode}{window}"));
    let is_exact = async |mode: &str| {
        let mut exact = Vec::new();
        for path in asked(mode) {
            let answer = platform.ok(&path).await;
            let answers = [&answer["exact"], &answer["certain"]].map(|said| said == true);
            // Other forms than JSON say the same in a header.
            for format in ["csv", "ndjson", "arrow"] {
                let request = Request::get(format!("{path}&format={format}")).body(Body::empty());
                let (_, headers, _) = platform.send(request.expect("a request")).await;
                let proof: Value = serde_json::from_slice(headers["anabranch-answer"].as_bytes()).expect("JSON");
                assert_eq!([&proof["exact"], &proof["certain"]].map(|said| said == true), answers, "{path}");
            }
            exact.push(answers);
        }
        exact.dedup();
        exact
    };
    for mode in ["batch", "speed", "merged"] {
        assert_eq!(is_exact(mode).await, [[true, true]], "{mode} of an empty log");
    }
    // There are events; neither layer has begun.
    platform.log.fill("posts", 6);
    for mode in ["batch", "speed", "merged"] {
        assert_eq!(is_exact(mode).await, [[false, false]], "{mode} of what nobody has read");
    }
    // The speed layer has them, and there is no version yet.
    for view in [&trending, &count] {
        platform.show(view, snapshot(view, &events(), None, &[0, 6]));
    }
    assert_eq!(is_exact("batch").await, [[false, false]]);
    assert_eq!((is_exact("speed").await, is_exact("merged").await), (vec![[true, true]], vec![[true, true]]));
    let batch = platform.ok("/v1/views/count/rows?mode=batch&totals=true").await;
    assert_eq!((&batch["sources"], &batch["incomplete"]), (&json!({"batch": null, "speed": null}), &json!(false)));
    let nothing = json!([{"mentions": 0, "mentions_lower": null, "mentions_upper": null,
        "total": null, "total_lower": null, "total_upper": null}]);
    assert_eq!(batch["rows"], nothing);
    assert_eq!(batch["totals"][0]["mentions_upper"], Value::Null);
    // A version has them all, and the speed layer stands on it.
    for view in [&trending, &count] {
        platform.publish(view, version(platform.folder.path(), view, 1, &events()));
        platform.show(view, snapshot(view, &events(), Some(1), &[6, 6]));
    }
    assert_eq!(is_exact("speed").await, [[false, false]]);
    assert_eq!((is_exact("batch").await, is_exact("merged").await), (vec![[true, true]], vec![[true, true]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_without_windows_answers_for_all_of_time() {
    let (platform, _) = platform();
    let view = view("totals", None, true, None);
    platform.show(&view, snapshot(&view, &events(), None, &[0, 6]));
    let answer = platform.ok("/v1/views/totals/rows?key.tag=a").await;
    assert_eq!(answer["window"], Value::Null);
    assert_eq!(answer["rows"][0]["total"], 21);
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(1));
    assert_eq!(platform.get_problem("/v1/views/totals/rows?window=closed").await.1, "no-windows");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_join_to_the_whole_and_stay_with_their_window() {
    let (platform, view) = platform();
    for query in ["window=2017-08-27T00:05:00Z", "from=2017-08-26T23:56:00Z&to=2017-08-27T00:10:00Z", "window=latest"] {
        let path = format!("/v1/views/trending/rows?{query}");
        let whole = platform.ok(&path).await;
        assert!(whole.get("next_cursor").is_none());
        let (mut rows, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = platform.ok(&format!("{path}&limit=1{cursor}")).await;
            assert_eq!(page["window"], whole["window"]);
            rows.extend(page["rows"].as_array().expect("rows").clone());
            match page.get("next_cursor") {
                Some(next) => cursor = format!("&cursor={}", next.as_str().expect("a cursor")),
                None => break,
            }
            if query == "window=latest" {
                // A newer window opens meanwhile: the pages stay with theirs.
                let mut more = events();
                more.push(event(900, "z", 1));
                platform.show(&view, snapshot(&view, &more, Some(7), &[2, 7]));
            }
        }
        assert_eq!(Value::from(rows), whole["rows"]);
    }
    let range = platform.ok("/v1/views/trending/rows?from=2017-08-26T23:56:00Z&to=2017-08-27T00:10:00Z").await;
    assert_eq!(range["window"], json!({"from": "2017-08-26T23:56:00Z", "to": "2017-08-27T00:10:00Z"}));
    assert_eq!(range["rows"][0]["window_end"], "2017-08-27T00:01:00Z");

    let page = platform.ok("/v1/views/trending/rows?window=2017-08-27T00:05:00Z&limit=1").await;
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    for (path, kind) in [
        (format!("/v1/views/trending/rows?window=2017-08-27T00:04:00Z&limit=1&cursor={cursor}"), "bad-cursor"),
        (format!("/v1/views/totals/rows?limit=1&cursor={cursor}"), "bad-cursor"),
        ("/v1/views/trending/rows?cursor=xyz".to_owned(), "bad-cursor"),
        ("/v1/views/trending/rows?cursor=00ff".to_owned(), "bad-cursor"),
    ] {
        let (status, problem, _) = platform.get_problem(&path).await;
        assert_eq!((status, problem.as_str()), (400, kind), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_would_be_right() {
    let (platform, _) = platform();
    for (query, status, kind, says) in [
        ("/v1/views/x/rows", 404, "unknown-view", "there are `totals`, `trending`"),
        (
            "/v1/views/trending/rows?window=2017-08-27T00:05:30Z",
            400,
            "no-such-window",
            "2017-08-27T00:05:00Z and 2017-08-27T00:06:00Z",
        ),
        ("/v1/views/trending/rows?window=soon", 400, "bad-window", "`latest`, `current`, `closed`"),
        ("/v1/views/trending/rows?key.colour=red", 400, "unknown-key", "there are `tag`"),
        ("/v1/views/trending/rows?limit=0", 400, "bad-limit", "1 to 100000"),
        ("/v1/views/trending/rows?mode=both", 400, "bad-mode", "`merged`, `batch` or `speed`"),
        ("/v1/views/trending/rows?as_of=1", 400, "unknown-parameter", "`window`"),
        ("/v1/views/trending/rows?limit=1&limit=2", 400, "bad-parameter", "twice"),
        ("/v1/views/trending/rows?from=2017-08-27T00:00:00Z", 400, "bad-range", "both `from` and `to`"),
        ("/v1/views/trending/rows?from=2017-08-27T00:00:00Z&to=2016-08-27T00:00:00Z", 400, "bad-range", "after"),
        ("/v1/views/trending/rows?from=2017-01-01T00:00:00Z&to=2017-12-01T00:00:00Z", 400, "range-too-long", "10000"),
        (
            "/v1/views/trending/rows?window=latest&from=2017-08-27T00:00:00Z&to=2017-08-28T00:00:00Z",
            400,
            "bad-range",
            "either",
        ),
    ] {
        let (got, problem, detail) = platform.get_problem(query).await;
        assert_eq!((got, problem.as_str()), (status, kind), "{query}: {detail}");
        assert!(detail.contains(says), "{query}: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_stands_for_the_same_answer_only() {
    let (platform, view) = platform();
    let ask = |etag: Option<String>| {
        let mut request = Request::get("/v1/views/trending/rows");
        if let Some(etag) = etag {
            request = request.header("if-none-match", etag);
        }
        platform.send(request.body(Body::empty()).expect("a request"))
    };
    let (status, headers, _) = ask(None).await;
    assert_eq!(status, StatusCode::OK);
    let etag = headers["etag"].to_str().expect("text").to_owned();
    let (status, headers, body) = ask(Some(format!("\"other\", {etag}"))).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(headers["etag"].to_str().expect("text"), etag);
    let mut more = events();
    more.push(event(280, "z", 1));
    platform.show(&view, snapshot(&view, &more, Some(7), &[2, 7]));
    let (status, headers, _) = ask(Some(etag.clone())).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(headers["etag"].to_str().expect("text"), etag);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_in_the_form_that_is_accepted() {
    let (platform, _) = platform();
    let ask = |accept: &str| {
        let request =
            Request::get("/v1/views/trending/rows?window=2017-08-27T00:05:00Z&limit=2").header("accept", accept);
        platform.send(request.body(Body::empty()).expect("a request"))
    };
    let (_, headers, body) = ask("text/csv").await;
    assert_eq!(headers["content-type"], "text/csv; charset=utf-8; header=present");
    let expected = "tag,mentions,mentions_lower,mentions_upper,total,total_lower,total_upper\r\na,3,3,3,21,21,21\r\nb,2,2,2,34,34,34\r\n";
    assert_eq!(String::from_utf8(body).expect("text"), expected);
    let proof: Value = serde_json::from_slice(headers["anabranch-answer"].as_bytes()).expect("JSON");
    assert_eq!((&proof["exact"], &proof["sources"]["batch"]["version"]), (&json!(true), &json!(7)));
    assert!(proof["next_cursor"].is_string());

    let (_, _, body) = ask("application/x-ndjson").await;
    let lines: Vec<Value> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["tag"], "b");

    let (_, headers, body) = ask("application/vnd.apache.arrow.stream").await;
    assert_eq!(headers["content-type"], "application/vnd.apache.arrow.stream");
    let mut reader = arrow::ipc::reader::StreamReader::try_new(body.as_slice(), None).expect("a stream");
    let batch = reader.next().expect("a batch").expect("readable");
    assert_eq!((batch.num_rows(), batch.num_columns()), (2, 7));

    let (_, headers, _) = ask("text/html, */*;q=0.5").await;
    assert_eq!(headers["content-type"], "application/json");
    let request = Request::get("/v1/views/trending/rows").header("accept", "image/png").body(Body::empty());
    let (status, kind, detail) = platform.problem(request.expect("a request")).await;
    assert_eq!((status, kind.as_str()), (406, "not-acceptable"));
    assert!(detail.contains("`text/csv`"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_events_and_missing_ranges_are_told() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = [event(10, "a", 1), event(900, "a", 1), event(20, "a", 1), event(30, "b", 1)];
    platform.log.fill("posts", 6);
    let mut shown = snapshot(&view, &events, None, &[0, 4]);
    shown.stopped = Some("too many bad records".into());
    platform.show(&view, shown);
    let answer = platform.ok("/v1/views/trending/rows?window=2017-08-27T00:05:00Z").await;
    assert_eq!((&answer["late"], &answer["exact"]), (&json!(2), &json!(false)));
    assert_eq!((&answer["incomplete"], &answer["missing"]), (&json!(true), &json!({"posts": {"0": [4, 6]}})));
    assert_eq!(answer["window"]["state"], "closed");
    assert_eq!(
        answer["rows"],
        json!([
            {"tag": "a", "mentions": 1, "mentions_lower": 1, "mentions_upper": 2, "total": 1, "total_lower": 1, "total_upper": 2}
        ])
    );
    let (status, readiness) = platform.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(readiness["reasons"][0], "view `trending`: its source has stopped: too many bad records");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_texts_and_nulls_are_told_apart() {
    let view = view("totals", None, true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let nothing = Event { tag: NO_TAG.into(), ..event(3, "", 4) };
    let events = [event(1, "a", 1), event(2, "", 2), nothing];
    platform.show(&view, snapshot(&view, &events, None, &[0, 3]));
    let total = async |query: &str| {
        let answer = platform.ok(&format!("/v1/views/totals/rows?{query}")).await;
        (answer["rows"][0]["total"].clone(), answer["total"].clone())
    };
    assert_eq!(total("key.tag.null=true").await, (json!(4), json!(1)));
    assert_eq!(total("key.tag=").await, (json!(2), json!(1)));
    for query in ["key.tag.null=yes", "key.tag.null=true&key.tag=a", "key.x.null=true"] {
        let (status, ..) = platform.get_problem(&format!("/v1/views/totals/rows?{query}")).await;
        assert_eq!(status, 400, "{query}");
    }
    let request = Request::get("/v1/views/totals/rows?format=csv").header("accept", "application/json");
    let (_, headers, body) = platform.send(request.body(Body::empty()).expect("a request")).await;
    assert!(headers["content-type"].to_str().expect("text").starts_with("text/csv"));
    let lines = String::from_utf8(body).expect("text");
    assert!(lines.contains("\r\n\"\",1,1,1,2,2,2\r\n") && lines.contains("\r\n,1,1,1,4,4,4\r\n"), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_ahead_of_the_clock_are_missing_until_the_archive_has_decided() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = [event(10, "a", 1), event(20, "b", 1), event(30, "c", 1)];
    platform.log.fill("posts", 3);
    let end = parse_timestamp("2017-08-27T00:05:00Z").expect("a time");
    let show = |from| {
        let mut early = snapshot(&view, &events, None, &[0, 3]);
        Arc::make_mut(&mut early.chunks[0]).early.add(partition(0), 1..2, from);
        platform.show(&view, early);
    };
    show(end - 1);
    for mode in ["merged", "speed"] {
        let answer = platform.ok(&format!("/v1/views/trending/rows?window=2017-08-27T00:05:00Z&mode={mode}")).await;
        assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(false), &json!(true)), "{answer}");
        assert_eq!(answer["missing"], json!({"posts": {"0": [1, 2]}}));
        assert!(answer["reason"].as_str().is_some_and(|why| why.contains("max_future")), "{answer}");
    }
    assert_eq!(platform.ok("/v1/views/trending").await["stopped"], json!(null));
    // What ends before their time is none of their concern.
    show(end);
    let answer = platform.ok("/v1/views/trending/rows?window=2017-08-27T00:05:00Z").await;
    assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(true), &json!(false)), "{answer}");
    let answer = platform.ok("/v1/views/trending/rows?from=2017-08-27T00:00:00Z&to=2017-08-27T00:10:00Z").await;
    assert_eq!((&answer["exact"], &answer["missing"]), (&json!(false), &json!({"posts": {"0": [1, 2]}})), "{answer}");
    platform.show(&view, snapshot(&view, &events, None, &[0, 3]));
    let answer = platform.ok("/v1/views/trending/rows?window=2017-08-27T00:05:00Z").await;
    assert_eq!((&answer["exact"], &answer["reason"]), (&json!(true), &json!(null)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_has_stopped_alone_is_incomplete_with_its_reason_and_its_neighbours_are_not() {
    let view = view("trending", Some(hop()), true, None);
    let neighbour = named(&view, "beside", "sha256:beside");
    let platform = Platform::new(&[view.clone(), neighbour.clone()]);
    let events = [event(10, "a", 1), event(20, "a", 1), event(30, "b", 1)];
    platform.log.fill("posts", 3);
    let why = "evaluating a micro-batch failed: overflow";
    let stopped = Snapshot { stopped: Some(why.into()), alone: true, ..snapshot(&view, &events[..2], None, &[0, 2]) };
    platform.show(&view, stopped);
    platform.show(&neighbour, snapshot(&neighbour, &events, None, &[0, 3]));
    let answer = platform.ok("/v1/views/trending/rows?window=2017-08-27T00:05:00Z").await;
    assert_eq!(
        (&answer["exact"], &answer["incomplete"], &answer["reason"]),
        (&json!(false), &json!(true), &json!(why))
    );
    assert_eq!(answer["missing"], json!({"posts": {"0": [2, 3]}}));
    let answer = platform.ok("/v1/views/beside/rows?window=2017-08-27T00:05:00Z").await;
    assert_eq!(
        (&answer["exact"], &answer["incomplete"], &answer["reason"]),
        (&json!(true), &json!(false), &json!(null))
    );
    assert_eq!(platform.ok("/v1/views/trending").await["stopped"], why);
    assert_eq!(platform.ok("/v1/views/beside").await["stopped"], json!(null));
    let (status, readiness) = platform.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(readiness["reasons"], json!([format!("view `trending`: it has stopped: {why}")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_file_of_partials_makes_only_its_windows_incomplete() {
    let (platform, view) = platform();
    let events = [event(10, "a", 1), event(2 * 3600, "b", 2), event(4 * 3600, "c", 4)];
    let published = version(platform.folder.path(), &view, 8, &events);
    let damaged = platform.folder.path().join(&published.published.panes[1].path);
    let whole = std::fs::read(&damaged).expect("read");
    let window = |hours: i64| format!("/v1/views/trending/rows?window=2017-08-27T{hours:02}:01:00Z");
    for number in 8..11 {
        match number {
            // A bit that Parquet's reader may not notice.
            8 => std::fs::write(&damaged, {
                let mut content = whole.clone();
                content[whole.len() / 3] ^= 1;
                content
            })
            .expect("write"),
            9 => std::fs::remove_file(&damaged).expect("remove"),
            _ => std::fs::write(&damaged, &whole).expect("write"),
        }
        let mut again = Version::new(published.root.clone(), published.published.clone(), false);
        again.published.version = number;
        platform.publish(&view, Arc::new(again));
        platform.show(&view, snapshot(&view, &events, Some(number), &[3, 3]));
        for (hours, exact) in [(0, true), (2, number == 10), (4, true)] {
            let answer = platform.ok(&window(hours)).await;
            assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(exact), &json!(!exact)), "{answer}");
            assert_eq!(answer["total"], json!(u64::from(exact)), "{answer}");
            let reason = answer["reason"].as_str().unwrap_or_default();
            assert!(exact || reason.contains(&format!("of version {number} is damaged")), "{answer}");
        }
        let range = "/v1/views/trending/rows?from=2017-08-27T00:00:00Z&to=2017-08-27T06:00:00Z";
        assert_eq!(platform.ok(range).await["exact"], json!(number == 10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_whose_versions_cant_be_read_says_so_in_answers_and_readiness() {
    let (platform, view) = platform();
    let unread = platform.app.versions.1.clone();
    unread.lock().insert(view.id.name.clone(), "a commit is damaged".to_owned());
    platform.versions(&view).send_replace(None);
    platform.show(&view, snapshot(&view, &events(), Some(8), &[2, 4, 6]));
    let answer = platform.ok("/v1/views/trending/rows?window=2017-08-27T00:05:00Z").await;
    assert_eq!((&answer["exact"], &answer["incomplete"]), (&json!(false), &json!(true)), "{answer}");
    assert_eq!(answer["reason"], "the batch versions can't be read: a commit is damaged");
    let (status, ready) = platform.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready["reasons"], json!(["view `trending`: its versions can't be read: a commit is damaged"]));
    unread.lock().clear();
    assert_eq!(platform.get("/readyz").await.0, StatusCode::OK);
}
