//! Pages, ranks and totals.

use std::collections::BTreeSet;

use anabranch_plan::expr::{BinaryOp, Expr, Literal};
use anabranch_plan::time::format_timestamp;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::{Column, DataFrame};
use serde_json::{Value, json};

use super::support::*;
use crate::{Limits, page};

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

fn shown(view: &Kept, limits: Limits, events: &[Event]) -> Platform {
    let platform = Platform::with_limits(std::slice::from_ref(view), limits);
    platform.show(view, snapshot(view, events, None, &[0, events.len()]));
    platform
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_sessions_that_end_alike_have_each_of_them() {
    let view = view("visits", Some(Window::Session { gap: 30 * 1_000_000 }), true, None);
    let at = |second, tag| event(second, tag, 1);
    // That of `f` began before the others, and that of `d` goes on.
    let events = [at(-20, "f"), at(0, "f"), at(0, "a"), at(0, "b"), at(0, "c"), at(0, "d"), at(25, "d"), at(45, "z")];
    for window in ["closed", "2017-08-27T00:00:30Z"] {
        let platform = shown(&view, Limits::default(), &events);
        let path = format!("/v1/views/visits/rows?window={window}&limit=1");
        let keys = pages(&platform, &path, |page, answer| {
            assert_eq!(answer["window"], json!({"end": "2017-08-27T00:00:30Z", "state": "closing"}));
            let row = &answer["rows"][0];
            let start = if page == 1 { "2017-08-26T23:59:40Z" } else { "2017-08-27T00:00:00Z" };
            assert_eq!([&row["window_start"], &row["window_end"]], [start, "2017-08-27T00:00:30Z"]);
            if page == 1 {
                // Another session closes meanwhile.
                let more = [&events[..], &[event(80, "w", 1)]].concat();
                platform.show(&view, snapshot(&view, &more, None, &[0, more.len()]));
            }
        });
        assert_eq!(keys.await, ["f", "a", "b", "c"]);
    }
}

#[test]
fn behind_a_row_comes_the_rest_in_the_same_order() {
    let kinds = [Some(-0.0), Some(0.0), Some(f64::NAN), Some(-f64::NAN), Some(f64::INFINITY), Some(-1.5), None];
    let (mut doubles, mut texts, mut truths, mut numbers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut random = Random(3);
    for number in 0..150_i64 {
        doubles.push(kinds[random.below(7) as usize]);
        texts.push([Some("b"), Some("B"), Some(""), Some("é"), None][random.below(5) as usize]);
        truths.push([Some(true), Some(false), None][random.below(3) as usize]);
        numbers.push(Some(number).filter(|number| *number > 0));
    }
    let columns = vec![
        Column::new("double".into(), doubles),
        Column::new("text".into(), texts),
        Column::new("truth".into(), truths),
        Column::new("number".into(), numbers),
    ];
    let rows = DataFrame::new(150, columns).expect("a frame");
    for names in [["double", "text", "number"], ["text", "truth", "number"], ["truth", "double", "number"]] {
        for case in 0..8 {
            let order: Vec<_> = (0..3).map(|i| (names[i].to_owned(), case >> i & 1 == 1)).collect();
            let sorted = page::sorted(rows.clone(), &order).expect("sorted");
            for row in 0..150 {
                let place = page::places(&sorted, &order, row).expect("places").expect("short ones");
                let behind = page::behind(&sorted, &order, &place).expect("rows");
                assert!(behind.equals_missing(&sorted.slice(row as i64 + 1, 150)), "row {row} by {order:?}");
            }
        }
    }
}

/// Every kind of `DOUBLE`, by an event's amount.
const LEVEL: &str = "CASE WHEN amount = 0 THEN CAST('NaN' AS DOUBLE) WHEN amount = 1 THEN CAST('Infinity' AS DOUBLE)
    WHEN amount = 2 THEN CAST('-Infinity' AS DOUBLE) WHEN amount = 3 THEN CAST('-0' AS DOUBLE)
    WHEN amount = 4 THEN CAST('0' AS DOUBLE) WHEN amount = 5 THEN NULL ELSE amount / 2 END";

/// A view, and what is asked of it.
struct Question {
    view: Kept,
    sql: String,
    /// The parameters that say which windows, and the order.
    windows: String,
    order: &'static str,
    /// How many rows a page has.
    limit: u64,
}

impl Question {
    fn drawn(random: &mut Random, events: &[Event]) -> Self {
        let of = random.below(4);
        let from = [
            "posts",
            "TUMBLE(posts, ts, INTERVAL '10 minutes')",
            "HOP(posts, ts, INTERVAL '5 minutes', INTERVAL '10 minutes')",
            "SESSION(posts, ts, INTERVAL '3 minutes')",
        ][of as usize];
        let bounds = if of == 0 { "" } else { "window_start, window_end, " };
        let (level, pitched) = (LEVEL, random.below(2) == 0);
        let (pitch, keys) =
            if pitched { (format!(", {level} AS pitch"), "tag, pitch") } else { (String::new(), "tag") };
        let by = ["", "ORDER BY level DESC", "ORDER BY level", "ORDER BY mentions DESC", "ORDER BY tag DESC"];
        let by = by[random.below(5) as usize];
        let cut = if of < 3 && !by.is_empty() && random.below(2) == 0 {
            format!("LIMIT {}", 2 + random.below(8))
        } else {
            String::new()
        };
        let sql = format!(
            "CREATE TABLE posts (tag TEXT, amount BIGINT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
             CREATE MATERIALIZED VIEW v WITH (allowed_lateness = '1 minute') AS
             SELECT {bounds}tag{pitch}, count(*) AS mentions, sum(amount) AS total, arg_max({level}, ts) AS level
             FROM {from} GROUP BY {bounds}{keys} {by} {cut};"
        );
        let catalog = anabranch_plan::sql::plan(&[("v.sql".to_owned(), sql.clone())]).expect("a view");
        let view = catalog.kept_view("v").expect("a view");
        let time = events[random.below(events.len() as u64) as usize].time;
        let end = match view.aggregation().window {
            Some(Window::Session { gap }) => time + gap,
            Some(window) => window.end_of(window.first_start(time)),
            None => 0,
        };
        let windows = match random.below(if of == 0 { 1 } else { 7 }) {
            0 => String::new(),
            1 | 2 => "&window=current".to_owned(),
            3 => "&window=closed".to_owned(),
            4 => format!("&window={}", format_timestamp(end)),
            _ => {
                let (from, to) = (T0 + random.below(20) as i64 * MINUTE, T0 + (25 + random.below(20) as i64) * MINUTE);
                format!("&from={}&to={}", format_timestamp(from), format_timestamp(to))
            }
        };
        let orders = [
            "",
            "&order=level",
            "&order=level:asc",
            "&order=level_lower:desc",
            "&order=mentions",
            "&order=total:asc",
            "&order=tag",
            "&order=tag:desc",
            if pitched { "&order=pitch:desc" } else { "" },
            if of == 0 { "" } else { "&order=window_start:desc" },
        ];
        let order = orders[random.below(orders.len() as u64) as usize];
        Self { view, sql, windows, order, limit: 1 + random.below(5) }
    }

    /// Whether rows keep their places though their values change.
    fn is_by_key(&self) -> bool {
        let own = || !self.sql.contains("ORDER BY level") && !self.sql.contains("ORDER BY mentions");
        let is_key = if self.order.is_empty() { own() } else { !self.order.contains(['l', 'm']) };
        is_key && !self.view.aggregation().window.is_some_and(Window::is_session)
    }

    /// A page, and where the next one goes on.
    async fn page(&self, platform: &Platform, cursor: &str) -> (Value, Option<String>) {
        let Self { windows, order, limit, .. } = self;
        let page = platform.ok(&format!("/v1/views/v/rows?limit={limit}{windows}{order}{cursor}")).await;
        let next = page.get("next_cursor").map(|next| format!("&cursor={}", next.as_str().expect("a cursor")));
        (page, next)
    }

    async fn whole(&self, platform: &Platform, windows: &str) -> Vec<Value> {
        let answer = platform.ok(&format!("/v1/views/v/rows?limit=100000{windows}{}", self.order)).await;
        answer["rows"].as_array().expect("rows").clone()
    }

    /// Two servers that don't know of each other, and keep so many bytes of what they answered.
    fn servers(&self, cache_bytes: usize, events: &[Event]) -> [Platform; 2] {
        let limits = Limits { cache_bytes, ..Limits::default() };
        let servers =
            [limits.clone(), limits].map(|limits| Platform::with_limits(std::slice::from_ref(&self.view), limits));
        self.show(&servers, events);
        servers
    }

    fn show(&self, servers: &[Platform; 2], events: &[Event]) {
        let snapshot = snapshot(&self.view, events, None, &[0, events.len()]);
        servers.iter().for_each(|server| server.show(&self.view, snapshot.clone()));
    }
}

/// Events of half an hour, many of them at the same time.
fn drawn_events(random: &mut Random) -> Vec<Event> {
    let mut second = 0;
    let each = (0..30 + random.below(30)).map(|_| {
        second += if random.below(2) == 0 { 0 } else { random.below(120) as i64 };
        drawn_event(random, second)
    });
    each.collect()
}

fn drawn_event(random: &mut Random, second: i64) -> Event {
    let tag = ["a", "b", "c", "d", "e", "f", "", NO_TAG][random.below(8) as usize];
    event(second, tag, random.below(8) as i64)
}

fn rows_of(answers: &[Value]) -> Vec<Value> {
    answers.iter().flat_map(|answer| answer["rows"].as_array().expect("rows").clone()).collect()
}

/// How much of what was answered a server keeps.
const KEPT: [usize; 3] = [0, 20_000, 64 << 20];

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_closed_answer_are_its_rows_in_order_wherever_they_are_asked_for() {
    let mut random = Random(1);
    for case in 0..300 {
        let mut events = drawn_events(&mut random);
        let question = Question::drawn(&mut random, &events);
        let servers = question.servers(KEPT[random.below(3) as usize], &events);
        let whole = question.whole(&servers[0], &question.windows).await;
        // What comes much later changes nothing, but what is open and all of time.
        let is_open = question.view.aggregation().window.is_none() || question.windows == "&window=current";
        let (mut pages, mut cursor): (Vec<Value>, _) = (Vec::new(), String::new());
        loop {
            let at = if pages.is_empty() { 0 } else { random.below(2) as usize };
            let (page, next) = question.page(&servers[at], &cursor).await;
            pages.push(page);
            let Some(next) = next else { break };
            cursor = next;
            if random.below(2) == 0 && !is_open {
                let second = 30_000 + 60 * events.len() as i64;
                events.push(drawn_event(&mut random, second));
                question.show(&servers, &events);
            }
        }
        let Question { sql, windows, order, .. } = &question;
        assert_eq!(rows_of(&pages), whole, "case {case}: {windows}{order} of {sql}");
        for page in &pages {
            assert_eq!((&page["window"]["end"], &page["total"]), (&pages[0]["window"]["end"], &json!(whole.len())));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_moving_view_have_each_row_once() {
    let mut random = Random(2);
    for case in 0..500 {
        let mut events = drawn_events(&mut random);
        let question = Question::drawn(&mut random, &events);
        let kept = KEPT[random.below(3) as usize];
        // Two servers that are asked by turns know nothing of each other's pages.
        let turns = 1 + usize::from(random.below(3) == 0);
        let servers = question.servers(kept, &events);
        let (mut pages, mut wholes, mut cursor): (Vec<Value>, Vec<_>, _) = (Vec::new(), Vec::new(), String::new());
        let mut windows = question.windows.clone();
        loop {
            let server = &servers[pages.len() % turns];
            let (page, next) = question.page(server, &cursor).await;
            assert_eq!(page.get("moved").is_some(), !pages.is_empty());
            // Pages stay with the window that the first is of.
            if let (true, Some(end)) = (pages.is_empty(), page["window"]["end"].as_str()) {
                windows = format!("&window={end}");
            }
            wholes.push(question.whole(server, &windows).await);
            pages.push(page);
            let Some(next) = next else { break };
            cursor = next;
            for _ in 0..random.below(4) {
                let second = events.last().map_or(0, |event| (event.time - T0) / 1_000_000);
                let second = second + random.below(30) as i64;
                events.push(drawn_event(&mut random, second));
            }
            question.show(&servers, &events);
        }
        let Question { sql, windows, order, .. } = &question;
        let what = format!("case {case}: {windows}{order} of {sql}");
        let sent = rows_of(&pages);
        if kept == KEPT[2] && turns == 1 {
            assert_eq!(sent, wholes[0], "{what}: pages are of what the first was read from");
            assert!(pages.iter().all(|page| page["moved"] != true), "{what}");
            continue;
        }
        for (page, whole) in pages.iter().zip(&wholes).filter(|(page, _)| page["moved"] == true) {
            let rows = page["rows"].as_array().expect("rows");
            assert!(rows.iter().all(|row| whole.contains(row)), "{what}: rows of another answer");
        }
        if turns > 1 && !question.is_by_key() {
            continue;
        }
        let ids = |rows: &[Value]| -> Vec<String> {
            rows.iter().map(|row| json!([row["window_start"], row["tag"], row["pitch"]]).to_string()).collect()
        };
        let sent = ids(&sent);
        let once: BTreeSet<&String> = sent.iter().collect();
        assert_eq!(once.len(), sent.len(), "{what}: a row came twice: {sent:?}");
        let wholes: Vec<Vec<String>> = wholes.iter().map(|whole| ids(whole)).collect();
        let throughout = wholes[0].iter().filter(|id| wholes.iter().all(|whole| whole.contains(id)));
        let lost: Vec<_> = throughout.filter(|id| !once.contains(id)).collect();
        assert!(lost.is_empty(), "{what}: {lost:?} never came");
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
async fn a_total_is_unknown_if_a_keys_sum_is_beyond_64_bits_but_leaves_out_keys_without_values() {
    let events = [event(1, "a", i64::MAX), event(2, "a", 1), event(3, "b", 5), event(61, "b", 7)];
    for window in [None, Some(Window::sliding(MINUTE, MINUTE)), Some(Window::Session { gap: MINUTE })] {
        let of = view("v", window, true, None);
        // Of the rest of `a`, and of `b` where it isn't 7, no value is left.
        let amount = of.aggregation().aggregates[1].argument.clone().expect("a value");
        let seven = Expr::Literal(Literal::BigInt(7));
        let seven = Expr::Binary(Box::new(amount.clone()), BinaryOp::Equal, Box::new(seven));
        let some = Some(Expr::Case { branches: vec![(seven, amount)], otherwise: None });
        let some = with(&of, |kept| kept.aggregates[1].argument = some);
        let totals = async |view: Kept| {
            let platform = shown(&view, Limits::default(), &events);
            let times = window.map_or("", |_| "&from=2017-08-26T23:00:00Z&to=2017-08-27T01:00:00Z");
            let totals = async |key: &str| {
                let answer = platform.ok(&format!("/v1/views/v/rows?totals=true{times}{key}")).await;
                assert_eq!(answer["exact"], true, "{answer}");
                let totals = answer["totals"].as_array().expect("totals").iter();
                let columns = ["total", "total_lower", "total_upper"];
                totals.map(|total| columns.map(|column| total[column].as_i64())).collect::<Vec<_>>()
            };
            [totals("").await, totals("&key.tag=b").await]
        };
        let each = |values: &[Option<i64>]| values.iter().map(|value| [*value; 3]).collect::<Vec<_>>();
        let is_split = matches!(window, Some(Window::Sliding { .. }));
        let [all, one] = totals(of).await;
        assert_eq!(all, if is_split { each(&[None, Some(7)]) } else { each(&[None]) }, "{window:?}");
        assert_eq!(one, if is_split { each(&[Some(5), Some(7)]) } else { each(&[Some(12)]) }, "{window:?}");
        let [all, one] = totals(some).await;
        assert_eq!(all, if is_split { each(&[None, Some(7)]) } else { each(&[Some(7)]) }, "{window:?}");
        assert_eq!(one, all, "{window:?}");
    }
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
