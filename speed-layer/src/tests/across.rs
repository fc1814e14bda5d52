//! Views of joins beyond their memory limit: what they say is right but where they say that it may not be.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_exchange::snapshot::Chunk;
use anabranch_log::position::Positions;
use anabranch_plan::sql;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use proptest::prelude::*;

use super::kit::{Event, SECOND, delays, event, micro_batch, partition};
use crate::state::ViewState;
use crate::watermark::Tracker;

/// Pairs within ten seconds, by ten seconds of their later time; the watermark is far behind.
fn pairs(join: &str, memory: &str) -> Kept {
    let text = format!(
        "CREATE TABLE clicks (ts TIMESTAMP NOT NULL, k TEXT, v BIGINT NOT NULL) WITH (event_time = 'ts', watermark = '2 days');
         CREATE VIEW j AS SELECT a.ts AS one, b.ts AS other FROM clicks a {join} clicks b
         ON b.k = a.k AND b.v > a.v AND b.ts BETWEEN a.ts AND a.ts + INTERVAL '10 seconds';
         CREATE MATERIALIZED VIEW v WITH (memory = '{memory}') AS SELECT window_start, window_end, count(*) AS n
         FROM TUMBLE(j, one, INTERVAL '10 seconds') GROUP BY window_start, window_end;"
    );
    let catalog = sql::plan(&[("v.sql".to_owned(), text)]).unwrap_or_else(|errors| panic!("{errors:?}"));
    catalog.kept_view("v").expect("a view")
}

/// How many pairs, and clicks that none follows, there are by window.
fn truth(events: &[Event], is_outer: bool) -> BTreeMap<Micros, i64> {
    let mut counts = BTreeMap::new();
    for one in events {
        let fits = |other: &&Event| {
            other.key == one.key && other.value > one.value && (0..=10 * SECOND).contains(&(other.time - one.time))
        };
        let found = events.iter().filter(fits).count() as i64;
        let found = if is_outer { found.max(1) } else { found };
        if found > 0 {
            *counts.entry(one.time.div_euclid(10 * SECOND) * 10 * SECOND).or_default() += found;
        }
    }
    counts
}

/// What chunks count by window, those who came too late to be in time too.
fn counted(chunks: &[Arc<Chunk>]) -> BTreeMap<Micros, i64> {
    let mut counts = BTreeMap::new();
    for (&start, pane) in chunks.iter().flat_map(|chunk| &chunk.panes) {
        let counted =
            pane.partials.column("a0").expect("counts").i64().expect("integers").iter().flatten().sum::<i64>();
        *counts.entry(start).or_default() += counted;
    }
    counts.retain(|_, count| *count > 0);
    counts
}

/// A state that takes micro-batches, and the watermarks that they meet.
struct Folded {
    state: ViewState,
    tracker: Tracker,
    all: Vec<Event>,
}

impl Folded {
    fn new(view: Kept) -> Self {
        let tracker = Tracker::new(delays(view.table().watermark_delay), [partition(0)], 0);
        Self {
            state: ViewState::new(view, None, &Positions::from([(partition(0), 0)]), None, 0),
            tracker,
            all: Vec::new(),
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        let batch = micro_batch(0, self.state.next(&partition(0)), &events);
        let met = self.tracker.begin(&partition(0), 0);
        let each = met.each(&batch.times, self.tracker.delay(&partition(0)));
        self.state.apply(&batch, met, &each).expect("folded");
        self.tracker.end(&partition(0), batch.newest().expect("events"));
        self.state.settle(self.tracker.watermark()).expect("settled");
        self.all.extend(events);
    }

    fn unsure(&self) -> Option<(Micros, Micros)> {
        self.state.across.as_ref().and_then(|across| across.unsure())
    }

    fn counted(&mut self) -> BTreeMap<Micros, i64> {
        let chunks = self.state.chunks().expect("chunks");
        counted(&chunks.into_iter().map(|closed| closed.chunk).collect::<Vec<_>>())
    }
}

#[test]
fn rows_that_were_given_up_cost_nothing_until_something_comes_for_them() {
    let mut folded = Folded::new(pairs("JOIN", "64 KiB"));
    for second in 3_600..3_900 {
        folded.take((0..20).map(|i| event(second, &format!("k{}", i % 4), i)).collect());
        assert!(folded.state.bytes() <= 80 << 10, "{} bytes", folded.state.bytes());
    }
    assert_eq!((folded.unsure(), folded.counted()), (None, truth(&folded.all, false)));
    // One that is far ahead of all others doesn't make these late.
    folded.take(vec![event(90_000, "far", 0)]);
    for second in 3_900..4_100 {
        folded.take((0..20).map(|i| event(second, &format!("k{}", i % 4), i)).collect());
        assert!(folded.state.bytes() <= 80 << 10, "{} bytes", folded.state.bytes());
    }
    assert_eq!((folded.unsure(), folded.counted()), (None, truth(&folded.all, false)));
    // In time for the watermark, an hour behind, but not for what is kept.
    folded.take(vec![event(3_700, "k1", 9)]);
    let unsure = folded.unsure().expect("its partners are gone");
    assert!(unsure.0 <= 3_700 * SECOND && (3_700 * SECOND..3_720 * SECOND).contains(&unsure.1), "{unsure:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_join_that_gives_rows_up_says_of_which_times_it_may_be_wrong(
        batches in proptest::collection::vec(proptest::collection::vec((0_i64..3, 0_i64..9, -15_i64..15), 40..80), 4..20),
        is_outer in any::<bool>(), memory in proptest::sample::select(vec!["8 KiB", "16 KiB", "1 MiB"]),
    ) {
        let view = pairs(if is_outer { "LEFT JOIN" } else { "JOIN" }, memory);
        let mut folded = Folded::new(view);
        for (i, batch) in batches.iter().enumerate() {
            let at = |second: i64| 3_600 + i as i64 * 5 + second;
            folded.take(batch.iter().map(|&(key, v, second)| event(at(second), &format!("k{key}"), v)).collect());
            let bytes = folded.state.bytes();
            prop_assert!(memory == "1 MiB" || bytes <= 16 << 10, "{bytes} bytes");
        }
        // All that is alone is told of at the end.
        folded.state.settle(Some(100_000 * SECOND)).expect("settled");
        let unsure = folded.unsure();
        prop_assert!(memory != "1 MiB" || unsure.is_none());
        let (found, expected) = (folded.counted(), truth(&folded.all, is_outer));
        for start in found.keys().chain(expected.keys()) {
            let is_unsure = unsure.is_some_and(|(first, last)| first < start + 10 * SECOND && *start <= last);
            prop_assert!(is_unsure || found.get(start) == expected.get(start), "{start}: {found:?}, not {expected:?}; {unsure:?}");
        }
    }
}
