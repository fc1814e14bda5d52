//! Views beyond their limit: bounds hold against exact counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_shared::position::Positions;
use anabranch_shared::view::View;
use anabranch_shared::window::Window;
use proptest::prelude::*;

use super::kit::{Event, SECOND, event, micro_batch, sums, table, top};
use super::pipeline::Rig;
use crate::Memory;
use crate::chunk::Closed;
use crate::state::ViewState;
use crate::watermark::Tracker;

/// Folds events of one partition; closes a chunk after each batch that is told to.
fn folded(view: View, batches: &[(Vec<Event>, bool)]) -> ViewState {
    let from = Positions::from([(0, 0)]);
    let mut tracker = Tracker::new(view.table.watermark_delay, [0], 0);
    let mut state = ViewState::new(Arc::new(view), None, &from, 0);
    for (events, close) in batches {
        let batch = micro_batch(0, state.next(0), events);
        let met = tracker.begin(0, 0);
        state.apply(&batch, met, &met.each(&batch.times, tracker.delay())).expect("folded");
        tracker.end(0, batch.newest().expect("events"));
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

fn check(view: View, batches: &[(Vec<Event>, bool)]) -> ViewState {
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

#[test]
fn a_pane_of_late_events_keeps_no_other_from_giving_way() {
    let table = table(0);
    let window = Some(Window::sliding(10 * SECOND, 10 * SECOND));
    let of =
        |second: i64, keys: usize| (0..keys).map(|i| event(second, &format!("{second}-{i}"), 1)).collect::<Vec<_>>();
    for close in [false, true] {
        // The first moves the watermark, so the others at second 1 are late.
        let batches = [(of(1_000, 60), close), (of(1, 70), close)];
        let state = folded(top(&table, window, 100), &batches);
        let panes = state.closed.iter().flat_map(|closed| closed.chunk.panes.values());
        assert!(state.rows() <= 100, "{} rows", state.rows());
        assert_eq!(panes.filter(|pane| pane.slack.is_some()).count(), usize::from(close));
    }
}

#[test]
fn another_view_refuses_new_keys() {
    let table = table(60 * SECOND);
    let batches: Vec<_> = (0..6).map(|i| (skewed(500, i + 1), i % 2 == 1)).collect();
    let state =
        check(View { max_rows: 200, ..sums(&table, Some(Window::sliding(10 * SECOND, 10 * SECOND)), 0) }, &batches);
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
    const LIMIT: usize = 600_000;
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
    Rig::wait_for_metrics(&layer, |metrics| metrics.events == 6_000 && metrics.state_bytes <= LIMIT as u64);
    assert!(is_degraded && named < 6_000, "{named} keys were named at once");
    layer.stop();
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
        check(View { max_rows, ..view }, &batches);
    }
}
