use std::collections::{BTreeMap, BTreeSet};

use anabranch_plan::schema::DataType as Type;
use anabranch_plan::sql;
use anabranch_plan::view::Catalog;
use proptest::prelude::*;

use super::*;

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
CREATE MATERIALIZED VIEW wide AS
SELECT k, var_samp(v) AS vs, var_pop(d) AS vp, stddev(v) AS ss, stddev_pop(v) AS sp,
       arg_max(t, v) AS last, arg_min(v, ts) AS first, arg_max(b, t) FILTER (WHERE v > 0) AS most,
       count(DISTINCT t) AS texts, approx_count_distinct(v) AS values, count(DISTINCT d) FILTER (WHERE v < 5) AS doubles,
       approx_percentile(v, 0.9) AS p90, approx_percentile(d, 0) AS least, approx_percentile(v, 0.5) AS middle
FROM events GROUP BY k;
CREATE MATERIALIZED VIEW visits AS
SELECT window_start, window_end, k, count(*) AS n, sum(v) AS total, max(v) AS most, count(DISTINCT v) AS values
FROM SESSION(events, ts, INTERVAL '3 seconds') GROUP BY window_start, window_end, k;
CREATE MATERIALIZED VIEW loud AS
SELECT k, count(*) AS n, sum(v) AS total FROM events GROUP BY k HAVING count(*) > 2 AND total > 0 AND k <> 'b';
CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n, sum(v) AS total, max(t) AS last FROM events;
";

fn kept(catalog: &Catalog, name: &str) -> Kept {
    catalog.kept_view(name).expect("a view that keeps something")
}

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
    (key, value, -7..9_i64, prop_oneof![6 => Just(0), 1 => 1..3_i32]).prop_map(|(key, value, second, missed)| Event {
        key,
        value,
        second,
        missed,
    })
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

fn of(view: &Kept, events: &[Event]) -> DataFrame {
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
        let view = &kept(&catalog(), view);
        let whole = of(view, &events);
        prop_assert_eq!(whole.schema().as_ref(), &schema(view.aggregation()), "of the schema that is stated");
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(events.len())).chain([0, events.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<DataFrame> = cuts.windows(2).map(|cut| of(view, &events[cut[0]..cut[1]])).collect();
        let merged = merge(view.aggregation(), parts.clone(), Keep::Everything).expect("merged");
        prop_assert_eq!(sorted(&merged), sorted(&whole), "absorb, then merge, is to absorb all");
        let reversed = merge(view.aggregation(), parts.iter().rev().cloned(), Keep::Everything).expect("merged");
        prop_assert_eq!(sorted(&reversed), sorted(&merged), "commutative");
        let (left, right) = parts.split_at(parts.len() / 2);
        let halves = [merge(view.aggregation(), left.to_vec(), Keep::Everything).expect("merged"), merge(view.aggregation(), right.to_vec(), Keep::Everything).expect("merged")];
        prop_assert_eq!(sorted(&merge(view.aggregation(), halves, Keep::Everything).expect("merged")), sorted(&merged), "associative");
        let nothing = DataFrame::empty_with_schema(&schema(view.aggregation()));
        prop_assert_eq!(sorted(&merge(view.aggregation(), [nothing, merged.clone()], Keep::Everything).expect("merged")), sorted(&merged), "identity");
    }

    #[test]
    fn partials_are_what_grouping_in_polars_gives(events in prop::collection::vec(event(), 0..40)) {
        let view = &kept(&catalog(), "all_of_them");
        let ours = of(view, &events);
        let keys = [PANE, MISSED, "k0", "k1", "k2", "k3", "k4"].map(col);
        let nothing = |data_type: DataType| lit(NULL).cast(data_type);
        let theirs = inputs(view, frame(&events), true).group_by(keys).agg([
            len().cast(DataType::Int64).alias("a0"),
            col("v1").count().cast(DataType::Int64).alias("a1"),
            col("v2").sum().cast(DataType::Int64).alias("a2"),
            col("v3").sum().alias("a3"), nothing(DataType::Int64).alias("a3c"), col("v3").count().cast(DataType::Int64).alias("a3n"),
            // Halves are exact in any order.
            col("v4").sum().alias("a4"), lit(0.0).alias("a4r"), nothing(DataType::Binary).alias("a4w"),
            col("v4").count().cast(DataType::Int64).alias("a4n"),
            col("v5").sum().alias("a5"), nothing(DataType::Int64).alias("a5c"), col("v5").count().cast(DataType::Int64).alias("a5n"),
            col("v6").sum().alias("a6"), lit(0.0).alias("a6r"), nothing(DataType::Binary).alias("a6w"),
            col("v6").count().cast(DataType::Int64).alias("a6n"),
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
        let view = &kept(&catalog(), "top");
        let window = view.aggregation().window.expect("it has windows");
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
        let answer = windows(view.aggregation(), &parts, Scope::All).expect("windows").rows;
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
            each.push(windows(view.aggregation(), &parts, Scope::One(start)).expect("a window").rows);
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
        let mut view = kept(&catalog(), "top");
        let key = |key: u8| Some(format!("key {key} of forty"));
        let events: Vec<(Option<String>, i64)> = counts.iter().map(|&(k, second)| (key(k), second)).collect();
        let columns = vec![
            Column::new("k".into(), events.iter().map(|e| e.0.clone()).collect::<Vec<_>>()),
            Column::new("v".into(), events.iter().map(|e| e.1).collect::<Vec<_>>()),
            Column::new("ts".into(), events.iter().map(|e| e.1 * 1_000_000).collect::<Vec<_>>()),
        ];
        let frame = DataFrame::new(events.len(), columns).expect("alike").lazy();
        let partials = partials(&view, frame.with_column(col("ts").cast(polars_type(&Type::Timestamp))), false).expect("some");
        let slack = slack.map(|up| Slack { down: up, up, late: up });
        let parts = by_pane(&partials).expect("panes").into_iter().map(|(pane, partials)| Part { partials, slack: slack.map(|slack| (pane, slack)) });
        let parts: Vec<Part> = parts.collect();
        let pruned = windows(view.aggregation(), &parts, Scope::All).expect("windows").rows;
        view = view.keeping(Aggregation { limit: None, ..view.aggregation().clone() });
        let all = windows(view.aggregation(), &parts, Scope::All).expect("windows").rows;
        let starts = all.column("window_start").expect("starts").as_materialized_series().clone();
        let mut rest = all.clone().clear();
        for group in all.partition_by_stable(["window_start"], true).expect("windows apart") {
            rest.vstack_mut(&group.head(Some(2))).expect("alike");
        }
        prop_assert!(starts.len() >= rest.height());
        prop_assert_eq!(pruned, rest);
    }
}

/// What a group of [`wide`] must say.
#[derive(Debug, Default)]
struct Plain {
    values: Vec<i64>,
    seen: Vec<Event>,
}

fn variance(values: &[f64], less: usize) -> Option<f64> {
    let count = values.len().checked_sub(less).filter(|&count| count > 0)?;
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Some(values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64)
}

fn close(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * (1.0 + a.abs()),
        (a, b) => a.is_none() && b.is_none(),
    }
}

fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // The smallest that has enough at or below it.
    let enough =
        |value: &&f64| values.iter().filter(|other| other <= value).count() as f64 >= share * values.len() as f64;
    values.iter().find(enough).copied()
}

fn check_wide(rows: &DataFrame, events: &[Event]) {
    let mut plain: BTreeMap<Option<String>, Plain> = BTreeMap::new();
    for event in events {
        let group = plain.entry(event.key.map(text)).or_default();
        group.values.extend(event.value);
        group.seen.push(event.clone());
    }
    assert_eq!(rows.height(), plain.len());
    let keys = rows.column("k").expect("keys").str().expect("text").clone();
    for row in 0..rows.height() {
        let Plain { values, seen } = &plain[&keys.get(row).map(str::to_owned)];
        let value = |name: &str| rows.column(name).expect("a column").get(row).expect("a value").into_static();
        let double = |name: &str| value(name).extract::<f64>();
        let doubles: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        let halves: Vec<f64> = doubles.iter().map(|v| v / 2.0).collect();
        assert!(close(double("vs"), variance(&doubles, 1)), "{:?}", value("vs"));
        assert!(close(double("vp"), variance(&halves, 0)));
        assert!(close(double("ss"), variance(&doubles, 1).map(f64::sqrt)));
        assert!(close(double("sp"), variance(&doubles, 0).map(f64::sqrt)));
        // Where either is null there is nothing; of equal places the largest value counts.
        let last = seen.iter().filter_map(|e| Some((e.value?, e.key.map(text)?))).max().map(|(_, text)| text);
        assert_eq!(value("last").get_str().map(str::to_owned), last);
        let first = seen.iter().filter_map(|e| Some((-e.second, e.value?))).max().map(|(_, value)| value);
        assert_eq!(value("first").extract::<i64>(), first);
        let positive = seen.iter().filter(|e| e.value > Some(0));
        let most = positive.filter_map(|e| e.key.map(|key| (text(key), key > 2))).max().map(|(_, is_large)| is_large);
        assert_eq!(value("most"), most.map_or(AnyValue::Null, AnyValue::Boolean));
        let texts = seen.iter().filter_map(|e| e.key).collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(value("texts").extract::<usize>(), Some(texts));
        let distinct = values.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(value("values").extract::<usize>(), Some(distinct.len()));
        assert_eq!(value("doubles").extract::<usize>(), Some(distinct.iter().filter(|v| ***v < 5).count()));
        assert_eq!(double("p90"), percentile(&doubles, 0.9));
        assert_eq!(double("least"), percentile(&halves, 0.0));
        assert_eq!(double("middle"), percentile(&doubles, 0.5));
        for name in ["values", "p90", "last", "vs"] {
            assert_eq!(value(name), value(&format!("{name}_lower")), "few values are kept as they are");
            assert_eq!(value(name), value(&format!("{name}_upper")));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spreads_places_distinct_values_and_percentiles_are_those_of_a_plain_fold(
        events in prop::collection::vec(event(), 0..60),
        cuts in prop::collection::vec(0..60_usize, 0..4),
        bounded in any::<bool>(),
    ) {
        let view = &kept(&catalog(), "wide");
        let keep = if bounded { Keep::Bounded } else { Keep::Everything };
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(events.len())).chain([0, events.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<DataFrame> = cuts.windows(2).map(|cut| of(view, &events[cut[0]..cut[1]])).collect();
        let merged = merge(view.aggregation(), parts.clone(), keep).expect("merged");
        prop_assert_eq!(merged.schema().as_ref(), &schema(view.aggregation()));
        for parts in [parts, vec![merged]] {
            let parts: Vec<Part> = parts.into_iter().map(|partials| Part { partials, slack: None }).collect();
            check_wide(&windows(view.aggregation(), &parts, Scope::All).expect("rows").rows, &events);
        }
    }

    #[test]
    fn having_leaves_rows_out(events in prop::collection::vec(event(), 0..60)) {
        let view = &kept(&catalog(), "loud");
        let part = Part { partials: of(view, &events), slack: None };
        let rows = windows(view.aggregation(), &[part], Scope::All).expect("rows").rows;
        let mut expected: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for event in events.iter().filter(|event| event.key.is_some()) {
            let group = expected.entry(event.key.map(text).unwrap_or_default()).or_default();
            *group = (group.0 + 1, group.1 + event.value.unwrap_or(0));
        }
        expected.retain(|key, (n, total)| *n > 2 && *total > 0 && key != "b");
        let keys: Vec<String> = rows.column("k").expect("keys").str().expect("text").iter().flatten().map(str::to_owned).collect();
        prop_assert_eq!(keys, expected.into_keys().collect::<Vec<_>>());
    }
}

type Visits = Vec<(i64, i64, Option<String>, i64, Option<i64>)>;

/// Sessions by hand: start, end, key, count and sum.
fn visits(events: &[Event]) -> Visits {
    let mut by_key: BTreeMap<Option<String>, Vec<&Event>> = BTreeMap::new();
    for event in events {
        by_key.entry(event.key.map(text)).or_default().push(event);
    }
    let mut visits = Visits::new();
    for (key, mut events) in by_key {
        events.sort_by_key(|event| event.second);
        for visit in events.chunk_by(|a, b| b.second - a.second < 3) {
            let values: Vec<i64> = visit.iter().filter_map(|event| event.value).collect();
            let total = (!values.is_empty()).then(|| values.iter().sum());
            let (first, last) = (visit[0].second, visit[visit.len() - 1].second);
            visits.push((first, last + 3, key.clone(), visit.len() as i64, total));
        }
    }
    visits.sort_by_key(|(start, end, key, ..)| (*end, *start, key.is_none(), key.clone()));
    visits
}

fn visits_of(rows: &DataFrame, suffix: &str) -> Visits {
    let seconds = |name: &str| rows.column(name).expect("times").cast(&DataType::Int64).expect("micros");
    let integers = |name: String| rows.column(&name).expect("a column").i64().expect("integers").clone();
    let (starts, ends) = (seconds("window_start"), seconds("window_end"));
    let (n, total) = (integers(format!("n{suffix}")), integers(format!("total{suffix}")));
    let keys = rows.column("k").expect("keys").str().expect("text").clone();
    let time = |column: &Column, row| column.i64().expect("micros").get(row).expect("a time") / 1_000_000;
    let row = |row| {
        (
            time(&starts, row),
            time(&ends, row),
            keys.get(row).map(str::to_owned),
            n.get(row).unwrap_or(0),
            total.get(row),
        )
    };
    (0..rows.height()).map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sessions_are_joined_however_events_were_cut(
        events in prop::collection::vec(event(), 0..50),
        cuts in prop::collection::vec(0..50_usize, 0..5),
        merged in any::<bool>(),
        range in (-10..12_i64, 0..12_i64),
    ) {
        let view = &kept(&catalog(), "visits");
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(events.len())).chain([0, events.len()]).collect();
        cuts.sort_unstable();
        let mut parts: Vec<DataFrame> = cuts.windows(2).map(|cut| of(view, &events[cut[0]..cut[1]])).collect();
        if merged {
            parts = vec![merge(view.aggregation(), parts, Keep::Bounded).expect("merged")];
            prop_assert_eq!(parts[0].schema().as_ref(), &schema(view.aggregation()));
        }
        let parts: Vec<Part> = parts.into_iter().map(|partials| Part { partials, slack: None }).collect();
        let in_time: Vec<Event> = events.iter().filter(|event| event.missed == 0).cloned().collect();
        let finished = windows(view.aggregation(), &parts, Scope::All).expect("sessions").rows;
        prop_assert_eq!(visits_of(&finished, ""), visits(&in_time));
        // What came late is in the bounds: that of the whole session that a row is a part of.
        let whole = visits(&events);
        for (start, end, key, n, _) in visits_of(&finished, "_upper") {
            let around = whole.iter().find(|(s, e, k, ..)| *s <= start && end <= *e && *k == key).expect("a session around it");
            prop_assert_eq!(n, around.3);
        }
        // Whole sessions of a range are found although only some panes are loaded at first.
        let (from, to) = (range.0 * 1_000_000, (range.0 + range.1) * 1_000_000);
        let load = |from: i64, to: i64| {
            let piece = |part: &Part| -> PolarsResult<Vec<Part>> {
                let inside = by_pane(&part.partials)?.into_iter().filter(|(pane, _)| (from..to).contains(pane));
                Ok(inside.map(|(_, partials)| Part { partials, slack: None }).collect())
            };
            Ok(parts.iter().map(piece).collect::<PolarsResult<Vec<_>>>()?.concat())
        };
        let held = (-60_000_000, 63_000_000);
        let overlapping = whole_sessions(view.aggregation(), (from, to), held, load).expect("sessions").rows;
        let mut expected = visits(&in_time);
        expected.retain(|(start, end, ..)| start * 1_000_000 < to && end * 1_000_000 > from);
        prop_assert_eq!(visits_of(&overlapping, ""), expected);
    }
}

/// Many values: sketches, whose bounds hold.
#[test]
fn sketches_stand_in_for_many_values_and_say_how_far_off_they_are() {
    let view = &kept(&catalog(), "wide");
    let frame = |from: i64, to: i64| {
        let columns = vec![
            Column::new("k".into(), (from..to).map(|_| "a").collect::<Vec<_>>()),
            Column::new("b".into(), (from..to).map(|_| true).collect::<Vec<_>>()),
            Column::new("d".into(), (from..to).map(|i| (i % 3_000) as f64 / 2.0).collect::<Vec<_>>()),
            Column::new("v".into(), (from..to).map(|i| i * 7_919 % 100_003).collect::<Vec<_>>()),
            Column::new("t".into(), (from..to).map(|i| format!("text {}", i % 20_000)).collect::<Vec<_>>()),
            Column::new("ts".into(), (from..to).collect::<Vec<_>>()),
        ];
        let frame = DataFrame::new((to - from) as usize, columns).expect("alike").lazy();
        inputs(view, frame.with_column(col("ts").cast(polars_type(&Type::Timestamp))), false).collect().expect("rows")
    };
    let of = |from: i64, to: i64, keep| {
        let mut partials = Partials::new(view.aggregation(), keep);
        (from..to).step_by(5_000).for_each(|at| partials.absorb(frame(at, at + 5_000)).expect("absorbed"));
        partials.into_frame().expect("a frame")
    };
    // Some from each layer, some twice merged.
    let speed = [of(0, 20_000, Keep::Bounded), of(20_000, 60_000, Keep::Bounded)];
    let parts =
        [merge(view.aggregation(), speed, Keep::Bounded).expect("merged"), of(60_000, 100_000, Keep::Everything)];
    let parts: Vec<Part> = parts.into_iter().map(|partials| Part { partials, slack: None }).collect();
    let finished = windows(view.aggregation(), &parts, Scope::All).expect("rows");
    assert!(finished.is_sketched);
    let number = |name: &str| {
        finished.rows.column(name).expect("a column").get(0).expect("a value").extract::<f64>().expect("a number")
    };
    let values: Vec<f64> = (0..100_000_i64).map(|i| (i * 7_919 % 100_003) as f64).collect();
    let truths = [
        ("texts", 20_000.0),
        ("values", 100_000.0),
        ("doubles", 0.0),
        ("p90", percentile_of_sorted(&values, 0.9)),
        ("middle", percentile_of_sorted(&values, 0.5)),
        ("least", 0.0),
    ];
    for (name, truth) in truths.into_iter().filter(|(name, _)| *name != "doubles") {
        let (lower, upper) = (number(&format!("{name}_lower")), number(&format!("{name}_upper")));
        assert!(lower <= truth && truth <= upper, "{name}: {truth} is not in [{lower}, {upper}]");
        assert!(lower <= number(name) && number(name) <= upper, "{name}");
        assert!(upper - lower <= 0.12 * 100_000.0, "{name}: the bounds are of use: [{lower}, {upper}]");
    }
    // Twice the same: nothing is thrown by dice on the way to an answer.
    assert_eq!(windows(view.aggregation(), &parts, Scope::All).expect("rows").rows, finished.rows);
    // What batch alone has is exact, however much it is.
    let exact =
        windows(view.aggregation(), &[Part { partials: of(0, 10_000, Keep::Everything), slack: None }], Scope::All)
            .expect("rows");
    assert!(!exact.is_sketched);
    assert_eq!(exact.rows.column("texts").expect("texts").i64().expect("integers").get(0), Some(10_000));
}

/// Of 150 groups of 600 to 5,070 random values each, in three parts that are merged.
#[test]
fn bounds_of_sketches_hold_as_often_as_they_claim() {
    let sql = "
        CREATE TABLE events (k BIGINT, v BIGINT, d DOUBLE, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
        CREATE MATERIALIZED VIEW view AS SELECT k, count(DISTINCT v) AS values, approx_count_distinct(d) AS doubles,
               approx_percentile(d, 0) AS p0, approx_percentile(d, 0.01) AS p1, approx_percentile(d, 0.5) AS p50,
               approx_percentile(d, 0.95) AS p95, approx_percentile(d, 0.99) AS p99, approx_percentile(d, 1) AS p100
        FROM events GROUP BY k;";
    let catalog = sql::plan(&[("test.sql".to_owned(), sql.to_owned())]).expect("planned");
    let view = &kept(&catalog, "view");
    let mut state = 7_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below) as i64
    };
    let mut truth: BTreeMap<i64, (BTreeSet<i64>, Vec<f64>)> = BTreeMap::new();
    let mut part = || {
        let (mut keys, mut values, mut doubles) = (Vec::new(), Vec::new(), Vec::new());
        for key in 0..150 {
            for _ in 0..200 + 10 * key {
                let (value, double) = (next(1_000_000), next(4_000) as f64 / 4.0);
                let of_key = truth.entry(key).or_default();
                of_key.0.insert(value);
                of_key.1.push(double);
                keys.push(key);
                values.push(value);
                doubles.push(double);
            }
        }
        let rows_of = keys.len();
        let times = Column::new("ts".into(), vec![0_i64; rows_of]).cast(&polars_type(&Type::Timestamp)).expect("times");
        let columns = vec![
            Column::new("k".into(), keys),
            Column::new("v".into(), values),
            Column::new("d".into(), doubles),
            times,
        ];
        let frame = DataFrame::new(rows_of, columns).expect("alike").lazy();
        let mut partials = Partials::new(view.aggregation(), Keep::Bounded);
        partials.absorb(inputs(view, frame, false).collect().expect("rows")).expect("absorbed");
        partials.into_frame().expect("a frame")
    };
    let merged = merge(view.aggregation(), [part(), part()], Keep::Bounded).expect("merged");
    let parts = [merged, part()].map(|partials| Part { partials, slack: None });
    let answer = windows(view.aggregation(), &parts, Scope::All).expect("rows").rows;
    let column = |name: &str| answer.column(name).expect("a column").cast(&DataType::Float64).expect("numbers");
    for (name, share) in
        [("values", None), ("doubles", None), ("p0", Some(0.0)), ("p1", Some(0.01)), ("p50", Some(0.5))]
            .into_iter()
            .chain([("p95", Some(0.95)), ("p99", Some(0.99)), ("p100", Some(1.0))])
    {
        let (lower, upper) = (column(&format!("{name}_lower")), column(&format!("{name}_upper")));
        let (lower, upper) = (lower.f64().expect("numbers"), upper.f64().expect("numbers"));
        let keys = column("k");
        let keys = keys.f64().expect("numbers");
        let holds = |row: usize| {
            let (values, doubles) = &truth[&(keys.get(row).expect("a key") as i64)];
            let distinct = |doubles: &[f64]| doubles.iter().map(|d| d.to_bits()).collect::<BTreeSet<_>>().len();
            let truth = match share {
                None if name == "values" => values.len() as f64,
                None => distinct(doubles) as f64,
                Some(share) => percentile_of_sorted(doubles, share),
            };
            lower.get(row).is_some_and(|lower| lower <= truth) && upper.get(row).is_some_and(|upper| truth <= upper)
        };
        let held = (0..answer.height()).filter(|&row| holds(row)).count();
        assert!(held * 100 >= answer.height() * 99, "{name}: {held} of {}", answer.height());
    }
}

fn percentile_of_sorted(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(values.len() as f64 * share).ceil().max(1.0) as usize - 1]
}

#[test]
fn a_view_without_keys_and_windows_has_one_row_also_of_nothing() {
    let view = &kept(&catalog(), "total");
    let rows = |view: &Kept, parts: &[DataFrame]| {
        let parts: Vec<Part> = parts.iter().map(|partials| Part { partials: partials.clone(), slack: None }).collect();
        let finished = windows(view.aggregation(), &parts, Scope::All).expect("rows");
        assert!(finished.is_certain);
        finished.rows
    };
    let count = |rows: &DataFrame| rows.column("n").expect("n").i64().expect("integers").iter().collect::<Vec<_>>();
    for nothing in [&[][..], &[of(view, &[])], &[of(view, &[]), of(view, &[])]] {
        let one = rows(view, nothing);
        assert_eq!(count(&one), [Some(0)]);
        for name in ["total", "total_lower", "total_upper", "last"] {
            assert_eq!(one.column(name).expect("a column").null_count(), 1, "{name} of nothing");
        }
    }
    let event = |value| Event { key: None, value, second: 0, missed: 0 };
    let one = rows(view, &[of(view, &[]), of(view, &[event(None), event(None)])]);
    assert_eq!(count(&one), [Some(2)]);
    assert_eq!(one.column("total").expect("total").null_count(), 1, "the sum of no values");
    // HAVING is asked of that row too, and where there are keys or windows nothing has no row.
    let sql =
        "CREATE TABLE events (k TEXT, v BIGINT, d DOUBLE, t TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
        CREATE MATERIALIZED VIEW some AS SELECT count(*) AS n FROM events HAVING count(*) > 0;
        CREATE MATERIALIZED VIEW none AS SELECT count(*) AS n FROM events HAVING count(*) < 1;
        CREATE MATERIALIZED VIEW first AS SELECT count(*) AS n FROM events ORDER BY n DESC LIMIT 1;
        CREATE MATERIALIZED VIEW keyed AS SELECT k, count(*) AS n FROM events GROUP BY k;
        CREATE MATERIALIZED VIEW minutes AS SELECT window_start, window_end, count(*) AS n
        FROM TUMBLE(events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;";
    let catalog = sql::plan(&[("test.sql".to_owned(), sql.to_owned())]).expect("planned");
    for (name, height) in [("some", 0), ("none", 1), ("first", 1), ("keyed", 0), ("minutes", 0)] {
        let view = &kept(&catalog, name);
        let nothing = DataFrame::empty_with_schema(&schema(view.aggregation()));
        let parts = [Part { partials: nothing, slack: None }];
        assert_eq!(windows(view.aggregation(), &parts, Scope::All).expect("rows").rows.height(), height, "{name}");
        assert_eq!(windows(view.aggregation(), &[], Scope::One(0)).expect("rows").rows.height(), height, "{name}");
    }
}

#[test]
fn a_degraded_pane_that_refused_everything_opens_the_bounds_of_its_window() {
    let sql = "CREATE TABLE events (k TEXT, ts TIMESTAMP) WITH (event_time = 'ts');
        CREATE MATERIALIZED VIEW minutes AS SELECT window_start, window_end, k, count(*) AS n
        FROM TUMBLE(events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, k;";
    let catalog = sql::plan(&[("test.sql".to_owned(), sql.to_owned())]).expect("planned");
    let view = &kept(&catalog, "minutes");
    let events = df!("k" => ["a", "a"], "ts" => [0_i64, 1]).expect("events").lazy();
    let events = events.with_column(col("ts").cast(polars_type(&Type::Timestamp)));
    let refused = DataFrame::empty_with_schema(&schema(view.aggregation()));
    let parts = [
        Part { partials: partials(view, events, false).expect("partials"), slack: None },
        Part { partials: refused, slack: Some((0, Slack { down: 0, up: 1, late: 0 })) },
    ];
    for scope in [Scope::One(0), Scope::All] {
        let finished = windows(view.aggregation(), &parts, scope).expect("rows");
        assert!(finished.is_degraded && !finished.is_certain, "{scope:?}");
        let bound = |name: &str| finished.rows.column(name).expect("a bound").i64().expect("integers").get(0);
        assert_eq!([bound("n_lower"), bound("n"), bound("n_upper")], [Some(2), Some(2), Some(3)], "{scope:?}");
    }
}

#[test]
fn rows_and_partials_are_split_by_pane_and_by_what_was_missed() {
    let view = &kept(&catalog(), "top");
    let event = |second, missed| Event { key: Some(0), value: Some(second), second, missed };
    let rows = inputs(view, frame(&[event(0, 0), event(2, 0), event(1, 0), event(3, 1), event(2, 0)]), true);
    let split = split(rows.collect().expect("rows")).expect("split");
    let seen: Vec<_> = split.iter().map(|((pane, missed), rows)| (*pane / 1_000_000, *missed, rows.height())).collect();
    assert_eq!(seen, [(0, 0, 2), (2, 0, 2), (2, 1, 1)]);
}

/// What is loaded of a session may be too little for its HAVING, or for the late events that it joins.
#[test]
fn sessions_are_whole_before_a_having_sees_them() {
    let sql = "
CREATE TABLE events (k TEXT, g BIGINT, b BOOLEAN, d DOUBLE, v BIGINT, t TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'events', event_time = 'ts');
CREATE MATERIALIZED VIEW long AS SELECT window_start, window_end, k, count(*) AS n
FROM SESSION(events, ts, INTERVAL '3 seconds') GROUP BY window_start, window_end, k HAVING count(*) > 200;
CREATE MATERIALIZED VIEW any AS SELECT window_start, window_end, k, count(*) AS n
FROM SESSION(events, ts, INTERVAL '3 seconds') GROUP BY window_start, window_end, k;";
    let catalog = sql::plan(&[("test.sql".to_owned(), sql.to_owned())]).expect("planned");
    let at = |second, missed| Event { key: Some(0), value: None, second, missed };
    let second = 1_000_000;
    for (view, events, upper) in [
        ("long", (0..=300).map(|i| at(2 * i, 0)).collect::<Vec<_>>(), 301),
        ("any", (0..=300).map(|i| at(2 * i, i32::from(i < 300))).collect(), 301),
    ] {
        let view = &kept(&catalog, view);
        let mut partials = of(view, &events);
        partials.sort_in_place([PANE], SortMultipleOptions::default()).expect("sorted");
        let load = |from: Micros, to: Micros| {
            let inside = partials.clone().lazy().filter(col(PANE).gt_eq(lit(from)).and(col(PANE).lt(lit(to))));
            Ok(vec![Part { partials: inside.collect()?, slack: None }])
        };
        let rows = whole_sessions(view.aggregation(), (600 * second, 601 * second), (0, 700 * second), load)
            .expect("sessions")
            .rows;
        assert_eq!(rows.height(), 1, "{}", view.id.name);
        assert_eq!(
            rows.column("n_upper").expect("a bound").i64().expect("counts").get(0),
            Some(upper),
            "{}",
            view.id.name
        );
    }
}
