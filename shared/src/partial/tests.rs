use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::schema::DataType as Type;
use crate::snapshot::Slack;
use crate::sql;
use crate::view::Catalog;

const SQL: &str = "
CREATE TABLE events (k TEXT, g BIGINT, b BOOLEAN, d DOUBLE, v BIGINT, t TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts');
CREATE MATERIALIZED VIEW all_of_them AS
SELECT window_start, window_end, k, g, b, d AS e, ts AS at, count(*) AS n, count(v) AS values, count(*) FILTER (WHERE v > 3) AS large,
       sum(v) AS total, sum(d) AS doubles, avg(v) AS mean, avg(d) AS double_mean, min(v) AS least, max(v) AS most,
       min(d) AS least_d, max(d) AS most_d, min(t) AS first, max(t) AS last, min(ts) AS earliest, max(ts) AS latest
FROM HOP(events, ts, INTERVAL '2 seconds', INTERVAL '5 seconds')
GROUP BY window_start, window_end, k, g, b, e, at;
CREATE MATERIALIZED VIEW top AS
SELECT window_start, window_end, k, count(*) AS n, max(v) AS most
FROM HOP(events, ts, INTERVAL '2 seconds', INTERVAL '4 seconds')
GROUP BY window_start, window_end, k ORDER BY n DESC LIMIT 2;
CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n, sum(v) AS total, max(t) AS last FROM events;
";

fn catalog() -> Catalog {
    sql::plan(&[("test.sql".to_owned(), SQL.to_owned())]).expect("planned")
}

#[derive(Debug, Clone)]
struct Event {
    key: Option<u8>,
    value: Option<i64>,
    second: i64,
    missed: i32,
}

fn event() -> impl Strategy<Value = Event> {
    let key = proptest::option::weighted(0.9, 0..6_u8);
    let value = proptest::option::weighted(0.8, -9..10_i64);
    (key, value, -7..9_i64, prop_oneof![6 => Just(0), 1 => 1..3_i32])
        .prop_map(|(key, value, second, missed)| Event { key, value, second, missed })
}

fn text(key: u8) -> String {
    // Some that a view holds inline, some that it doesn't, one with several bytes a character.
    ["a", "b", "", "a key that is longer than twelve bytes", "ü", "Ω and more than twelve"][key as usize % 6].to_owned()
}

fn frame(events: &[Event]) -> LazyFrame {
    let texts = || events.iter().map(|e| e.key.map(text)).collect::<Vec<_>>();
    let double = |e: &Event| e.value.map(|v| if v == 0 { -0.0 } else { v as f64 / 2.0 });
    let columns = vec![
        Column::new("k".into(), texts()),
        Column::new("g".into(), events.iter().map(|e| e.value.map(|v| v % 2)).collect::<Vec<_>>()),
        Column::new("b".into(), events.iter().map(|e| e.key.map(|k| k > 2)).collect::<Vec<_>>()),
        Column::new("d".into(), events.iter().map(double).collect::<Vec<_>>()),
        Column::new("v".into(), events.iter().map(|e| e.value).collect::<Vec<_>>()),
        Column::new("t".into(), texts()),
        Column::new("ts".into(), events.iter().map(|e| e.second * 1_000_000).collect::<Vec<_>>()),
        Column::new(MISSED.into(), events.iter().map(|e| e.missed).collect::<Vec<_>>()),
    ];
    let frame = DataFrame::new(events.len(), columns).expect("columns alike").lazy();
    frame.with_column(col("ts").cast(polars_type(&Type::Timestamp)))
}

/// Rows in an order of their own, so that frames that say the same are equal.
fn sorted(frame: &DataFrame) -> DataFrame {
    let names: Vec<PlSmallStr> = frame.get_column_names_owned();
    frame.sort(names, SortMultipleOptions::default().with_nulls_last(true)).expect("sorted")
}

fn of(view: &View, events: &[Event]) -> DataFrame {
    partials(view, frame(events), true).expect("partials")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn partials_are_a_commutative_monoid(
        events in prop::collection::vec(event(), 0..40),
        cuts in prop::collection::vec(0..40_usize, 0..4),
        view in prop::sample::select(vec!["all_of_them", "top", "total"]),
    ) {
        let view = &catalog().views[view];
        let whole = of(view, &events);
        prop_assert_eq!(whole.schema().as_ref(), &schema(view), "of the schema that is stated");
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(events.len())).chain([0, events.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<DataFrame> = cuts.windows(2).map(|cut| of(view, &events[cut[0]..cut[1]])).collect();
        let merged = merge(view, parts.clone()).expect("merged");
        prop_assert_eq!(sorted(&merged), sorted(&whole), "absorb, then merge, is to absorb all");
        let reversed = merge(view, parts.iter().rev().cloned()).expect("merged");
        prop_assert_eq!(sorted(&reversed), sorted(&merged), "commutative");
        let (left, right) = parts.split_at(parts.len() / 2);
        let halves = [merge(view, left.to_vec()).expect("merged"), merge(view, right.to_vec()).expect("merged")];
        prop_assert_eq!(sorted(&merge(view, halves).expect("merged")), sorted(&merged), "associative");
        let nothing = DataFrame::empty_with_schema(&schema(view));
        prop_assert_eq!(sorted(&merge(view, [nothing, merged.clone()]).expect("merged")), sorted(&merged), "identity");
    }

    #[test]
    fn partials_are_what_grouping_in_polars_gives(events in prop::collection::vec(event(), 0..40)) {
        let view = &catalog().views["all_of_them"];
        let ours = of(view, &events);
        let keys = [PANE, MISSED, "k0", "k1", "k2", "k3", "k4"].map(col);
        let theirs = rows(view, frame(&events), true).group_by(keys).agg([
            len().cast(DataType::Int64).alias("a0"),
            col("v1").count().cast(DataType::Int64).alias("a1"),
            col("v2").sum().cast(DataType::Int64).alias("a2"),
            col("v3").sum().alias("a3"), col("v3").count().cast(DataType::Int64).alias("a3n"),
            col("v4").sum().alias("a4"), col("v4").count().cast(DataType::Int64).alias("a4n"),
            col("v5").sum().alias("a5"), col("v5").count().cast(DataType::Int64).alias("a5n"),
            col("v6").sum().alias("a6"), col("v6").count().cast(DataType::Int64).alias("a6n"),
            col("v7").min().alias("a7"), col("v8").max().alias("a8"),
            col("v9").min().alias("a9"), col("v10").max().alias("a10"),
            col("v11").min().alias("a11"), col("v12").max().alias("a12"),
            col("v13").min().alias("a13"), col("v14").max().alias("a14"),
        ]).collect().expect("grouped");
        prop_assert_eq!(sorted(&ours), sorted(&theirs));
    }

    /// Windows by hand: the two first of each by count, over the events in time, and the bounds that the late ones give.
    #[test]
    fn windows_are_what_their_definition_says(
        events in prop::collection::vec(event(), 0..60),
        cut in 0..60_usize,
        at_once in any::<bool>(),
    ) {
        let view = &catalog().views["top"];
        let window = view.window.expect("it has windows");
        let (one, other) = events.split_at(cut.min(events.len()));
        let parts: Vec<Part> = if at_once { vec![of(view, &events)] } else { vec![of(view, one), of(view, other)] }
            .into_iter().map(|partials| Part { partials, slack: None }).collect();
        let mut expected: BTreeMap<i64, BTreeMap<Option<String>, (i64, i64)>> = BTreeMap::new();
        for event in &events {
            for (index, start) in (0..).zip(window.starts(event.second * 1_000_000)) {
                let counts = expected.entry(start).or_default().entry(event.key.map(text)).or_default();
                counts.0 += i64::from(event.missed <= index);
                counts.1 += 1;
            }
        }
        let mut rows = Vec::new();
        for (start, counts) in expected {
            let mut counts: Vec<_> = counts.into_iter().filter(|(_, (in_time, _))| *in_time > 0).collect();
            // Nulls last.
            counts.sort_by(|(a, x), (b, y)| y.0.cmp(&x.0).then(a.is_none().cmp(&b.is_none())).then(a.cmp(b)));
            rows.extend(counts.into_iter().take(2).map(|(key, (in_time, all))| (start, key, in_time, all)));
        }
        let answer = windows(view, &parts, Scope::All).expect("windows");
        let starts = answer.column("window_start").expect("starts").cast(&DataType::Int64).expect("micros");
        let integers = |name: &str| answer.column(name).expect("a column").i64().expect("integers").clone();
        let (n, lower, upper) = (integers("n"), integers("n_lower"), integers("n_upper"));
        let keys = answer.column("k").expect("keys").str().expect("text").clone();
        let found: Vec<_> = (0..answer.height()).map(|i| {
            assert_eq!(n.get(i), lower.get(i), "a count is at least what came in time");
            let start = starts.i64().expect("micros").get(i).expect("a start");
            (start, keys.get(i).map(str::to_owned), n.get(i).expect("a count"), upper.get(i).expect("a bound"))
        }).collect();
        prop_assert_eq!(&found, &rows);
        // Window by window they are the same.
        let mut each = Vec::new();
        for start in found.iter().map(|row| row.0).collect::<std::collections::BTreeSet<_>>() {
            each.push(windows(view, &parts, Scope::One(start)).expect("a window"));
        }
        let together = each.into_iter().reduce(|all, one| all.vstack(&one).expect("alike"));
        if let Some(together) = together {
            prop_assert_eq!(together, answer);
        }
    }

    #[test]
    fn leaving_out_what_cant_be_first_changes_nothing(
        counts in prop::collection::vec((0..40_u8, 0..5_i64), 30..200),
        slack in proptest::option::of(0..3_i64),
    ) {
        let mut view = View::clone(&catalog().views["top"]);
        let key = |key: u8| Some(format!("key {key} of forty"));
        let events: Vec<(Option<String>, i64)> = counts.iter().map(|&(k, second)| (key(k), second)).collect();
        let columns = vec![
            Column::new("k".into(), events.iter().map(|e| e.0.clone()).collect::<Vec<_>>()),
            Column::new("v".into(), events.iter().map(|e| e.1).collect::<Vec<_>>()),
            Column::new("ts".into(), events.iter().map(|e| e.1 * 1_000_000).collect::<Vec<_>>()),
        ];
        let frame = DataFrame::new(events.len(), columns).expect("alike").lazy();
        let partials = partials(&view, frame.with_column(col("ts").cast(polars_type(&Type::Timestamp))), false).expect("some");
        let slack = slack.map(|up| Slack { down: up, up });
        let parts = by_pane(&partials).expect("panes").into_iter().map(|(_, partials)| Part { partials, slack });
        let parts: Vec<Part> = parts.collect();
        let pruned = windows(&view, &parts, Scope::All).expect("windows");
        view.limit = None;
        let all = windows(&view, &parts, Scope::All).expect("windows");
        let starts = all.column("window_start").expect("starts").as_materialized_series().clone();
        let mut rest = all.clone().clear();
        for group in all.partition_by(["window_start"], true).expect("windows apart") {
            rest.vstack_mut(&group.head(Some(2))).expect("alike");
        }
        prop_assert!(starts.len() >= rest.height());
        prop_assert_eq!(pruned, rest);
    }
}

#[test]
fn a_view_without_keys_has_one_row_once_there_are_events() {
    let view = &catalog().views["total"];
    let rows = |events: &[Event]| windows(view, &[Part { partials: of(view, events), slack: None }], Scope::All).expect("rows");
    assert_eq!(rows(&[]).height(), 0);
    let event = |value| Event { key: None, value, second: 0, missed: 0 };
    let one = rows(&[event(None), event(None)]);
    assert_eq!(one.column("n").expect("n").i64().expect("integers").get(0), Some(2));
    assert_eq!(one.column("total").expect("total").null_count(), 1, "the sum of no values");
    assert_eq!(one.column("last").expect("last").null_count(), 1);
}

#[test]
fn rows_and_partials_are_split_by_pane_and_by_what_was_missed() {
    let view = &catalog().views["top"];
    let event = |second, missed| Event { key: Some(0), value: Some(second), second, missed };
    let rows = rows(view, frame(&[event(0, 0), event(2, 0), event(1, 0), event(3, 1), event(2, 0)]), true);
    let split = split(rows.collect().expect("rows")).expect("split");
    let seen: Vec<_> = split.iter().map(|((pane, missed), rows)| (*pane / 1_000_000, *missed, rows.height())).collect();
    assert_eq!(seen, [(0, 0, 2), (2, 0, 2), (2, 1, 1)]);
}
