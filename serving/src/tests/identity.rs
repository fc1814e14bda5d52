//! Answers, cursors and event ids of another log than the one that is there.

use anabranch_exchange::snapshot::Snapshot;
use anabranch_log::lineage::Mark;
use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use super::support::*;

fn of_log(mark: &str, snapshot: Snapshot) -> Snapshot {
    Snapshot { log: [("posts".to_owned(), Mark::new(mark))].into(), ..snapshot }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_complete_in_no_mode_once_the_log_is_another_one() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = [event(10, "a", 1), event(20, "a", 1), event(30, "b", 1)];
    platform.log.fill("posts", 3);
    platform.show(&view, snapshot(&view, &events, None, &[0, 3]));
    let path = "/v1/views/trending/rows?window=2017-08-27T00:05:00Z";
    assert_eq!(platform.ok(path).await["incomplete"], false);
    let stopped = Some("topic `posts` isn't what the archive is of".to_owned());
    platform
        .show(&view, Snapshot { stopped: stopped.clone(), other_log: true, ..snapshot(&view, &events, None, &[0, 3]) });
    for mode in ["merged", "batch", "speed"] {
        let answer = platform.ok(&format!("{path}&mode={mode}")).await;
        let said = (&answer["exact"], &answer["incomplete"], &answer["missing"], &answer["reason"]);
        assert_eq!(said, (&json!(false), &json!(true), &json!({"posts": {}}), &json!(stopped)), "{mode}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_brings_along_of_another_log_is_refused() {
    let view = view("trending", Some(hop()), true, None);
    let platform = Platform::new(std::slice::from_ref(&view));
    let events = [event(10, "a", 1), event(20, "b", 1), event(3_000, "c", 1)];
    platform.log.fill("posts", 3);
    platform.log.set_marks(&["one"]);
    platform.show(&view, of_log("one", snapshot(&view, &events, None, &[0, 3])));
    let path = "/v1/views/trending/rows?window=2017-08-27T00:05:00Z&limit=1";
    let first = platform.ok(path).await;
    let rest = format!("{path}&cursor={}", first["next_cursor"].as_str().expect("a cursor"));
    let window = "trending=2017-08-26T23:56:00Z/2017-08-27T00:01:00Z";
    let resume = async |id: &str| {
        let request = Request::get("/v1/views/trending/stream?mode=append").header("last-event-id", id);
        platform.ask(request.body(Body::empty()).expect("a request")).await.status().as_u16()
    };
    assert_eq!(platform.ok(&rest).await["rows"].as_array().map(Vec::len), Some(1));
    assert_eq!(resume(&format!("{window}@one")).await, 200);

    // The same log, in its next epoch.
    platform.log.set_marks(&["one", "two"]);
    platform.show(&view, of_log("two", snapshot(&view, &events, None, &[0, 3])));
    platform.ok(&rest).await;
    assert_eq!(resume(&format!("{window}@one")).await, 200);

    platform.log.set_marks(&["three"]);
    platform.show(&view, of_log("three", snapshot(&view, &events, None, &[0, 2])));
    let (status, kind, detail) = platform.get_problem(&rest).await;
    assert_eq!((status, kind.as_str()), (410, "other-log"), "{detail}");
    assert!(detail.contains("is of the log one, and view `trending` is of three now: begin again"), "{detail}");
    assert_eq!(resume(&format!("{window}@one")).await, 410);
    assert_eq!(resume(&format!("{window}@three")).await, 200);
    // Of a view of several topics each log is named.
    assert_eq!(resume(&format!("{window}@three@one")).await, 410);
    assert_eq!(resume(window).await, 200, "a window without a log is taken as of the one that is there");
}
