//! Views beyond their limit: bounds hold against exact counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_engine::partial::Slack;
use anabranch_engine::partial::{self, Part, Scope, windows};
use anabranch_exchange::snapshot::Snapshot;
use anabranch_exchange::snapshot::wire::{Decoder, Encoder};
use anabranch_log::position::Positions;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::{DataFrame, IntoLazy};
use proptest::prelude::*;

use super::kit::{Event, Oracle, SECOND, delays, event, micro_batch, partition, restored, sums, table, top, with};
use super::pipeline::Rig;
use crate::Memory;
use crate::chunk::Closed;
use crate::sketch::{rows_in_time, spare};
use crate::state::ViewState;
use crate::watermark::Tracker;

/// Folds events of one partition; closes a chunk after each batch that is told to.
fn folded(view: Kept, batches: &[(Vec<Event>, bool)]) -> ViewState {
    let from = Positions::from([(partition(0), 0)]);
    let mut tracker = Tracker::new(delays(view.table().watermark_delay), [partition(0)], 0);
    let mut state = ViewState::new(view, None, &from, None, 0);
    for (events, close) in batches {
        let batch = micro_batch(0, state.next(&partition(0)), events);
        let met = tracker.begin(&partition(0), 0);
        state.apply(&batch, met, &met.each(&batch.times, tracker.delay(&partition(0)))).expect("folded");
        tracker.end(&partition(0), batch.newest().expect("events"));
        if *close {
            state.close_chunk(0, 0, 0, &tracker).expect("closed");
        }
    }
    state
}

/// Lower and upper bound of each named key's count over all parts of all panes, and the upper bound of any other.
fn bounds(state: &mut ViewState) -> (BTreeMap<String, (i64, i64)>, i64) {
    let mut bounds: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut unnamed = 0;
    for Closed { chunk, .. } in state.chunks().expect("chunks") {
        for pane in chunk.panes.values() {
            // In these streams nothing comes late.
            let slack = pane.slack.map_or((0, 0), |slack| (slack.down, slack.up));
            unnamed += slack.1;
            let keys = pane.partials.column("k0").expect("keys").str().expect("text").clone();
            let counts = pane.partials.column("a0").expect("counts").i64().expect("integers").clone();
            for (key, count) in keys.iter().zip(counts.iter()) {
                let (key, count) = (key.expect("a key").to_owned(), count.expect("a count"));
                let bound = bounds.entry(key).or_default();
                *bound = (bound.0 + count - slack.0, bound.1 + count - slack.1);
            }
        }
    }
    bounds.values_mut().for_each(|bound| bound.1 += unnamed);
    (bounds, unnamed)
}

fn check(view: Kept, batches: &[(Vec<Event>, bool)]) -> ViewState {
    let mut exact: BTreeMap<String, i64> = BTreeMap::new();
    for event in batches.iter().flat_map(|(events, _)| events) {
        *exact.entry(event.key.clone().expect("a key")).or_default() += 1;
    }
    let mut state = folded(view, batches);
    let (bounds, unnamed) = bounds(&mut state);
    for (key, count) in &exact {
        let (lower, upper) = bounds.get(key).copied().unwrap_or((0, unnamed));
        assert!(lower <= *count && *count <= upper, "{key}: {count} is not in [{lower}, {upper}]");
    }
    assert!(bounds.keys().all(|key| exact.contains_key(key)), "a key that never was");
    state
}

/// A few heavy keys and many light ones.
fn skewed(count: usize, seed: u64) -> Vec<Event> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut events = Vec::new();
    for _ in 0..count {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let key =
            if x.is_multiple_of(3) { format!("heavy{}", (x >> 8) % 3) } else { format!("light{}", (x >> 8) % 5_000) };
        events.push(event(((x >> 40) % 20) as i64, &key, 1));
    }
    events
}

#[test]
fn a_top_k_view_goes_on_in_a_sketch() {
    let table = table(60 * SECOND);
    let window = Some(Window::sliding(10 * SECOND, 5 * SECOND));
    for close in [false, true] {
        let batches: Vec<_> = (0..12).map(|i| (skewed(1_000, i + 1), close)).collect();
        let mut state = check(top(&table, window, 300), &batches);
        assert!(state.rows() <= 300 + 300 / 4 + 1_000, "{} rows", state.rows());
        let (bounds, _) = bounds(&mut state);
        assert!((0..3).all(|i| bounds.contains_key(&format!("heavy{i}"))), "what is frequent is named");
    }
}

/// So many events of one second, each of a key of its own.
fn distinct(second: i64, keys: usize) -> Vec<Event> {
    (0..keys).map(|i| event(second, &format!("{second}-{i}"), 1)).collect()
}

fn slacks(state: &mut ViewState) -> BTreeMap<i64, Slack> {
    let chunks = state.chunks().expect("chunks");
    let panes = chunks.iter().flat_map(|closed| &closed.chunk.panes);
    panes.filter_map(|(&start, pane)| Some((start, pane.slack?))).collect()
}

#[test]
fn a_pane_gives_way_by_its_late_events_where_these_are_more() {
    let table = table(0);
    let window = Some(Window::sliding(10 * SECOND, 10 * SECOND));
    for close in [false, true] {
        // The first moves the watermark, so the others at second 1 are late.
        let late = [distinct(1, 70), vec![event(1, "heavy", 1); 5]].concat();
        let batches = [(distinct(1_000, 60), close), (late, close)];
        let mut state = folded(top(&table, window, 100), &batches);
        assert_eq!(slacks(&mut state), [(0, Slack { down: 0, up: 0, late: 1 })].into());
        assert_eq!(state.rows(), 61, "what came in time is there, and what came late often");
    }
}

#[test]
fn a_closed_pane_gives_way_by_its_late_events_too() {
    let table = table(0);
    let window = Some(Window::sliding(10 * SECOND, 10 * SECOND));
    let late = |second| [distinct(second, 70), vec![event(second, "heavy", 1); 5]].concat();
    let batches = [(distinct(1_000, 1), false), (late(1), true), (distinct(1_000, 60), false)];
    let mut state = folded(top(&table, window, 100), &batches);
    assert_eq!(slacks(&mut state), [(0, Slack { down: 0, up: 0, late: 1 })].into());
    assert_eq!(state.rows(), 62);
}

#[test]
fn a_view_that_refuses_keys_refuses_new_rows_of_late_events_too() {
    let table = table(0);
    let window = Some(Window::sliding(10 * SECOND, 10 * SECOND));
    // The pane has rows of late events of two of its keys, and of a key of late events alone, when there is no more room.
    let late = vec![event(1, "1-0", 1), event(1, "1-1", 1), event(1, "late", 1)];
    let again = vec![event(1, "1-0", 1), event(1, "1-2", 1), event(1, "later", 1), event(1, "late", 1)];
    let batches = [
        (distinct(1, 60), false),
        (distinct(1_000, 1), false),
        (late, false),
        (distinct(2_000, 37), false),
        (again, false),
    ];
    let view = with(&sums(&table, window, 0), |kept| kept.max_rows = 100);
    let mut state = folded(view.clone(), &batches);
    assert_eq!(slacks(&mut state)[&0], Slack { down: 0, up: 1, late: 1 });
    assert_eq!(state.rows(), 101);
    let rows = windows(
        view.aggregation(),
        &parts(&state.show(&Arc::new(Tracker::new(delays(0), [0].map(partition), 0)), None)),
        Scope::One(0),
    );
    let rows = rows.expect("rows").rows;
    let column = |name: &str| rows.column(name).expect("a column").i64().expect("integers").iter().collect::<Vec<_>>();
    let keys: Vec<_> =
        rows.column("k").expect("keys").str().expect("text").iter().flatten().map(str::to_owned).collect();
    let of = |key: &str| {
        let at = keys.iter().position(|other| other == key).expect("the key");
        ["n", "n_lower", "n_upper"].map(|name| column(name)[at].expect("a count"))
    };
    assert_eq!([of("1-0"), of("1-1"), of("1-2")], [[1, 1, 4], [1, 1, 3], [1, 1, 2]]);
}

#[test]
fn another_view_refuses_new_keys() {
    let table = table(60 * SECOND);
    let batches: Vec<_> = (0..6).map(|i| (skewed(500, i + 1), i % 2 == 1)).collect();
    let state = check(
        with(&sums(&table, Some(Window::sliding(10 * SECOND, 10 * SECOND)), 0), |kept| kept.max_rows = 200),
        &batches,
    );
    let refusing = state.closed.iter().flat_map(|c| c.chunk.panes.values()).filter(|p| p.slack.is_some()).count();
    assert!(refusing > 0, "some panes say that they refused keys");
}

#[test]
fn a_view_within_its_limit_is_exact() {
    let table = table(60 * SECOND);
    let mut state = check(top(&table, None, 10_000), &[(skewed(2_000, 1), true), (skewed(2_000, 2), false)]);
    let (bounds, unnamed) = bounds(&mut state);
    assert_eq!(unnamed, 0);
    assert!(bounds.values().all(|(lower, upper)| lower == upper));
}

/// One of them can only refuse keys, and it is the larger one.
#[test]
fn a_view_that_gives_nothing_back_keeps_no_other_from_it() {
    const LIMIT: usize = 620_000;
    // The larger view refuses keys only after the micro-batch with which it has gone too far.
    const BEYOND: usize = LIMIT / 8;
    let mut rig = Rig::new(1);
    rig.context.memory = Memory::new(LIMIT);
    let layer = rig.start();
    let (mut named, mut is_degraded) = (0, false);
    for first in (0..6_000).step_by(500) {
        let events: Vec<Event> = (first..first + 500).map(|i| event(1, &format!("key {i}"), 1)).collect();
        rig.append(0, &events);
        rig.wait_for_all(&layer);
        let top = rig.wait(&layer, "top", |snapshot| snapshot.coverage.len() == first + 500);
        let panes: Vec<_> = top.chunks.iter().flat_map(|chunk| chunk.panes.values()).collect();
        named = panes.iter().map(|pane| pane.partials.height()).max().unwrap_or(0).max(named);
        is_degraded |= panes.iter().any(|pane| pane.slack.is_some());
    }
    Rig::wait_for_metrics(&layer, |metrics| metrics.events == 6_000 && metrics.state_bytes <= (LIMIT + BEYOND) as u64);
    assert!(is_degraded && named < 6_000, "{named} keys were named at once");
    layer.stop();
}

fn parts(snapshot: &Snapshot) -> Vec<Part> {
    let panes = snapshot.chunks.iter().flat_map(|chunk| &chunk.panes);
    let part = |(&start, pane): (&i64, &Arc<anabranch_exchange::snapshot::Pane>)| Part {
        partials: pane.partials.clone(),
        slack: pane.slack.map(|slack| (start, slack)),
    };
    panes.map(part).collect()
}

/// A sixteenth of a second apart. Three in ten come up to 20 seconds late, fifty at a time.
fn with_late(count: usize, seed: u64) -> Vec<Event> {
    let late = |i: usize| {
        let mixed = seed.wrapping_add(i as u64 / 50).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        if mixed % 10 < 3 { 5 + (mixed >> 8) as i64 % 15 } else { 0 }
    };
    let at = |i: usize| 1_000 * SECOND + i as i64 * SECOND / 16 - late(i) * SECOND;
    skewed(count, seed).into_iter().enumerate().map(|(i, event)| Event { time: at(i), ..event }).collect()
}

/// The counts of a window's keys, of the events that came in time and of all.
type Truth = BTreeMap<String, (i64, i64)>;

fn count(truths: &mut BTreeMap<i64, Truth>, window: Window, event: &Event, missed: i32) {
    let pane = window.pane_of(event.time);
    for start in window.starts(event.time) {
        let of = truths.entry(start).or_default().entry(event.key.clone().expect("a key")).or_default();
        *of = (of.0 + i64::from(i64::from(missed) <= window.index_of(start, pane)), of.1 + 1);
    }
}

/// That the bounds of a window's rows contain the counts of events in time and of all events, as they do those of keys that
/// have no row, and that a certain answer names the right keys.
fn check_window(view: &Kept, parts: &[Part], start: i64, truth: &Truth) -> Result<(), TestCaseError> {
    let all = with(view, |kept| kept.limit = None);
    let answer = windows(all.aggregation(), parts, Scope::One(start)).expect("a window");
    let names = |rows: &DataFrame| -> Vec<String> {
        rows.column("k").expect("keys").str().expect("text").iter().map(|key| key.expect("a key").to_owned()).collect()
    };
    let counts = |name: &str| -> Vec<i64> {
        answer
            .rows
            .column(name)
            .expect("a column")
            .i64()
            .expect("integers")
            .iter()
            .map(|n| n.expect("a count"))
            .collect()
    };
    let (keys, lower, upper, value) = (names(&answer.rows), counts("n_lower"), counts("n_upper"), counts("n"));
    for (i, key) in keys.iter().enumerate() {
        let (in_time, all) = truth.get(key).copied().unwrap_or_default();
        prop_assert!(lower[i] <= value[i] && value[i] <= upper[i], "{} of [{}, {}]", value[i], lower[i], upper[i]);
        prop_assert!(lower[i] <= in_time, "{key} in {start}: {in_time} is below {}", lower[i]);
        prop_assert!(all <= upper[i], "{key} in {start}: {all} is above {}", upper[i]);
        prop_assert!(answer.is_degraded || in_time == value[i], "{key} in {start}: {in_time} isn't {}", value[i]);
    }
    let window = view.aggregation().window.expect("a window");
    let inside = |at: i64| (start..window.end_of(start)).contains(&at);
    let slacks = parts.iter().filter_map(|part| part.slack).filter(|(at, _)| inside(*at));
    let unlisted: i64 = slacks.map(|(_, slack)| slack.up + slack.late).sum();
    for (key, (in_time, _)) in truth.iter().filter(|(key, _)| !keys.contains(key)) {
        prop_assert!(*in_time <= unlisted, "{key} in {start} has no row and came {in_time} times in time");
    }
    let first = windows(view.aggregation(), parts, Scope::One(start)).expect("a window");
    if let Some(limit) = view.aggregation().limit.filter(|_| first.is_certain && first.is_degraded) {
        let named = names(&first.rows);
        prop_assert_eq!(named.len(), limit);
        let least = named.iter().map(|key| truth[key].1).min();
        let others = truth.iter().filter(|(key, _)| !named.contains(key)).map(|(_, (_, all))| *all).max();
        prop_assert!(least > others, "{named:?} are not the first of {truth:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Of what the speed layer says alone, and together with what batch has of the events before.
    #[test]
    fn bounds_hold_where_late_events_are_forgotten(
        sizes in prop::collection::vec((20..100_usize, prop::bool::weighted(0.6)), 2..28),
        max_rows in 30..300_usize,
        slides in 1..5_i64,
        seed in any::<u64>(),
        as_top in prop::bool::weighted(0.7),
        archived in 0..200_usize,
        restart in prop::option::of(0..28_usize),
    ) {
        let table = table(2 * SECOND);
        let window = Window::sliding(slides * 5 * SECOND, 5 * SECOND);
        let view = if as_top { top(&table, Some(window), max_rows) } else { sums(&table, Some(window), SECOND) };
        let view = with(&view, |kept| kept.max_rows = max_rows);
        let mut events = with_late(archived + sizes.iter().map(|(size, _)| size).sum::<usize>(), seed);
        let archive: Vec<Event> = events.drain(..archived).collect();

        let (mut oracle, mut at) = (Oracle::new(1), 0);
        let mut tracker = Tracker::new(delays(table.watermark_delay), [0].map(partition), 0);
        let mut state = ViewState::new(view.clone(), None, &Positions::from([(partition(0), 0)]), None, 0);
        for (i, &(size, close)) in sizes.iter().enumerate() {
            let batch = micro_batch(0, at as u64, &events[at..at + size]);
            for (offset, event) in batch.offsets.iter().zip(&events[at..]) {
                oracle.take(&view, 0, *offset, event);
            }
            let met = tracker.begin(&partition(0), 0);
            state.apply(&batch, met, &met.each(&batch.times, tracker.delay(&partition(0)))).expect("folded");
            tracker.end(&partition(0), batch.newest().expect("events"));
            at += size;
            let chunks = state.chunks().expect("chunks");
            let mut panes = chunks.iter().flat_map(|closed| closed.chunk.panes.values());
            let is_small = panes.all(|pane| {
                let in_time = rows_in_time(&pane.partials);
                spare(in_time, pane.partials.height()).0 == 0
            });
            prop_assert!(!as_top || is_small || state.rows() <= max_rows, "{} rows", state.rows());
            if close {
                state.close_chunk(0, 0, 0, &tracker).expect("closed");
            }
            if restart == Some(i) {
                state = restored(&mut state, &tracker);
            }
        }

        // As a process has it that serves.
        let snapshot = Arc::new(Snapshot { sequence: 1, ..state.show(&Arc::new(tracker), None) });
        let records = Encoder::new(5).update(vec![(view.clone(), snapshot)], true).encode().expect("encoded");
        let (mut decoder, views) = (Decoder::default(), [view.clone()]);
        let told = records.iter().filter_map(|record| decoder.take(6, record, &views)).last().expect("an update");
        let speed = parts(&told[&view.id]);
        let archived = partial::partials(&view, micro_batch(0, 0, &archive).events.lazy(), false).expect("partials");
        let merged = [vec![Part { partials: archived, slack: None }], speed.clone()].concat();

        let mut truths = BTreeMap::new();
        oracle.seen.iter().for_each(|seen| count(&mut truths, window, &seen.event, seen.missed));
        for (&start, truth) in &truths {
            check_window(&view, &speed, start, truth)?;
        }
        archive.iter().for_each(|event| count(&mut truths, window, event, 0));
        for (&start, truth) in &truths {
            check_window(&view, &merged, start, truth)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_wherever_memory_runs_out(
        sizes in prop::collection::vec((20..300_usize, prop::bool::weighted(0.8)), 1..24),
        max_rows in 30..600_usize,
        seed in any::<u64>(),
        as_top in any::<bool>(),
    ) {
        let table = table(60 * SECOND);
        let window = Some(Window::sliding(10 * SECOND, 10 * SECOND));
        let batches: Vec<_> =
            (0..).zip(&sizes).map(|(i, &(size, close))| (skewed(size, seed.wrapping_add(i)), close)).collect();
        let view = if as_top { top(&table, window, max_rows) } else { sums(&table, window, 0) };
        check(with(&view, |kept| kept.max_rows = max_rows), &batches);
    }
}
