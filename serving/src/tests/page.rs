//! Pages, ranks and totals.

use std::collections::BTreeSet;
use std::sync::Arc;

use anabranch_shared::view::View;
use anabranch_shared::window::Window;
use serde_json::{Value, json};

use super::support::*;
use crate::Limits;

/// Asks for page after page, and between them does what `between` does; the keys that came.
async fn pages(platform: &Platform, path: &str, mut between: impl FnMut(usize, &Value)) -> Vec<String> {
    let (mut keys, mut cursor) = (Vec::new(), String::new());
    for page in 1.. {
        let answer = platform.ok(&format!("{path}{cursor}")).await;
        let rows = answer["rows"].as_array().expect("rows");
        keys.extend(rows.iter().map(|row| row["tag"].as_str().expect("a tag").to_owned()));
        between(page, &answer);
        match answer.get("next_cursor") {
            Some(next) => cursor = format!("&cursor={}", next.as_str().expect("a cursor")),
            None => break,
        }
    }
    keys
}

fn shown(view: &Arc<View>, limits: Limits, events: &[Event]) -> Platform {
    let platform = Platform::with_limits(std::slice::from_ref(view), limits);
    platform.show(view, snapshot(view, events, None, &[0, events.len()]));
    platform
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_closed_session_stay_with_it() {
    let view = view("visits", Some(Window::Session { gap: 30 * 1_000_000 }), true, None);
    let at = |second, tag| event(second, tag, 1);
    let events = [at(0, "a"), at(0, "b"), at(0, "c"), at(0, "e"), at(0, "d"), at(25, "d"), at(45, "z")];
    let platform = shown(&view, Limits::default(), &events);
    let path = "/v1/views/visits/rows?window=closed&limit=1";
    let mut keys = pages(&platform, path, |page, answer| {
        assert_eq!(answer["window"]["end"], "2017-08-27T00:00:30Z");
        if page == 1 {
            // Another session closes meanwhile.
            let more = [&events[..], &[event(300, "w", 1)]].concat();
            platform.show(&view, snapshot(&view, &more, None, &[0, more.len()]));
        }
    })
    .await;
    keys.sort();
    assert_eq!(keys, ["a", "b", "c", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_moving_view_have_each_row_once() {
    let mut seed = 1_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for case in 0..60 {
        let (window, limit) = ([None, Some(Window::sliding(60 * MINUTE, 60 * MINUTE))][case % 2], 1 + random(7));
        let view = view("v", window, true, None);
        let order = ["", "&order=total", "&order=total:asc", "&order=tag:desc", "&order=tag"][random(5) as usize];
        let kept = random(2) == 0;
        let limits = Limits { cache_bytes: if kept { 64 << 20 } else { 0 }, ..Limits::default() };
        let count = 10 + random(20);
        let mut events: Vec<Event> =
            (0..count).map(|i| event(i as i64, &format!("k{:02}", 2 * i), random(9) as i64)).collect();
        let platform = shown(&view, limits, &events);
        let throughout: BTreeSet<String> = events.iter().map(|event| event.tag.clone()).collect();
        let path = format!("/v1/views/v/rows?limit={limit}{order}");
        let mut moved = false;
        let keys = pages(&platform, &path, |page, answer| {
            moved |= answer["moved"] == true;
            assert_eq!(answer.get("moved").is_some(), page > 1);
            for _ in 0..random(4) {
                events.push(event(100 + events.len() as i64, &format!("k{:02}", random(60)), random(50) as i64));
            }
            platform.show(&view, snapshot(&view, &events, None, &[0, events.len()]));
        })
        .await;
        let once: BTreeSet<String> = keys.iter().cloned().collect();
        assert_eq!(once.len(), keys.len(), "case {case}{order}: a row came twice: {keys:?}");
        let lost: Vec<_> = throughout.difference(&once).collect();
        assert!(lost.is_empty(), "case {case}{order}: {lost:?} never came");
        assert!(!(kept && moved), "case {case}: pages are of what the first was read from");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_newer_answer_says_that_it_has_moved() {
    let view = view("v", None, true, None);
    let mut events = vec![event(1, "a", 1), event(2, "b", 1), event(3, "c", 1)];
    let platform = shown(&view, Limits { cache_bytes: 0, ..Limits::default() }, &events);
    let first = platform.ok("/v1/views/v/rows?limit=1").await;
    assert_eq!((&first["total"], &first["truncated"], first.get("moved")), (&json!(3), &json!(true), None));
    let next = format!("/v1/views/v/rows?limit=1&cursor={}", first["next_cursor"].as_str().expect("a cursor"));
    assert_eq!(platform.ok(&next).await["moved"], false);
    events.push(event(4, "x", 1));
    platform.show(&view, snapshot(&view, &events, None, &[0, 4]));
    let second = platform.ok(&next).await;
    assert_eq!((&second["moved"], &second["rows"][0]["tag"], &second["total"]), (&json!(true), &json!("b"), &json!(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_and_totals_are_over_all_keys() {
    let view = view("v", None, true, None);
    let events: Vec<Event> =
        (0..2_000).map(|i| event(i, &format!("k{i:04}"), i * if i % 2 == 0 { -1 } else { 1 })).collect();
    let platform = shown(&view, Limits::default(), &events);
    let answer = platform.ok("/v1/views/v/rows?order=total&limit=2&totals=true").await;
    assert_eq!((&answer["rows"][0]["tag"], &answer["rows"][1]["total"]), (&json!("k1999"), &json!(1_997)));
    assert_eq!((&answer["total"], &answer["truncated"]), (&json!(2_000), &json!(true)));
    let total = json!([{"rows": 2_000, "mentions": 2_000, "mentions_lower": 2_000, "mentions_upper": 2_000,
        "total": 1_000, "total_lower": 1_000, "total_upper": 1_000}]);
    assert_eq!(answer["totals"], total);
    let least = platform.ok("/v1/views/v/rows?order=total:asc&limit=1").await;
    assert_eq!(least["rows"][0]["total"], -1_998);
    for (query, kind) in [
        ("order=x", "bad-order"),
        ("totals=1", "bad-parameter"),
        ("format=xml", "bad-format"),
        ("totals=true&format=csv", "bad-parameter"),
    ] {
        assert_eq!(platform.get_problem(&format!("/v1/views/v/rows?{query}")).await.1, kind, "{query}");
    }
    let big = shown(&view, Limits::default(), &[event(1, "a", i64::MAX), event(2, "b", 1)]);
    assert_eq!(big.ok("/v1/views/v/rows?totals=true").await["totals"][0]["total"], Value::Null, "beyond 64 bits");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_and_totals_are_of_each_window() {
    let view = view("v", Some(Window::sliding(MINUTE, MINUTE)), true, None);
    let events = [event(1, "a", 1), event(2, "b", 5), event(61, "a", 7), event(62, "b", 3), event(63, "b", 3)];
    let platform = shown(&view, Limits::default(), &events);
    let path = "/v1/views/v/rows?from=2017-08-27T00:00:00Z&to=2017-08-27T00:02:00Z&order=total&totals=true";
    let answer = platform.ok(path).await;
    let tags: Vec<_> = answer["rows"].as_array().expect("rows").iter().map(|row| row["tag"].clone()).collect();
    assert_eq!(tags, ["b", "a", "a", "b"]);
    let totals = answer["totals"].as_array().expect("totals");
    assert_eq!((&totals[0]["window_end"], &totals[0]["total"]), (&json!("2017-08-27T00:01:00Z"), &json!(6)));
    assert_eq!((&totals[1]["rows"], &totals[1]["total"], totals.len()), (&json!(2), &json!(13), 2));
}
