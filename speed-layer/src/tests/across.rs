//! Views of joins: beyond their memory limit what they say is right but where they say that it may not be, and a checkpoint brings back
//! what their operators kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_exchange::snapshot::Chunk;
use anabranch_log::Log;
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::sql;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use proptest::prelude::*;

use super::kit::{Event, SECOND, delays, event, micro_batch, partition, restored};
use super::pipeline::Rig;
use crate::error::Stop;
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

/// What a count of chunks is by window, those who came too late to be in time too.
fn counted(chunks: &[Arc<Chunk>], column: &str) -> BTreeMap<Micros, i64> {
    let mut counts = BTreeMap::new();
    for (&start, pane) in chunks.iter().flat_map(|chunk| &chunk.panes) {
        let count =
            pane.partials.column(column).expect("counts").i64().expect("integers").iter().flatten().sum::<i64>();
        *counts.entry(start).or_default() += count;
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
        counted(&chunks.into_iter().map(|closed| closed.chunk).collect::<Vec<_>>(), "a0")
    }

    /// What goes on from a checkpoint of it.
    fn restored(mut self) -> Self {
        let waiting = self.state.pending().expect("rows").expect("a chunk");
        let state = restored(&mut self.state, &self.tracker);
        let shown = state.shown_pending.clone().expect("what waits is shown");
        assert_eq!(counted(&[shown], "a0"), counted(&[waiting], "a0"));
        Self { state, ..self }
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
        restarts in proptest::collection::vec(proptest::bool::weighted(0.2), 20),
        is_outer in any::<bool>(), memory in proptest::sample::select(vec!["8 KiB", "16 KiB", "1 MiB"]),
    ) {
        let view = pairs(if is_outer { "LEFT JOIN" } else { "JOIN" }, memory);
        let mut folded = Folded::new(view);
        for (i, batch) in batches.iter().enumerate() {
            if restarts[i] {
                folded = folded.restored();
            }
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

#[test]
fn a_view_that_stops_behind_a_checkpoint_shows_what_waited_there() {
    let text = "CREATE TABLE clicks (ts TIMESTAMP NOT NULL, k TEXT, v BIGINT NOT NULL) WITH (event_time = 'ts');
         CREATE VIEW j AS SELECT ts, LAG(v) OVER (PARTITION BY k ORDER BY ts) AS before FROM clicks;
         CREATE MATERIALIZED VIEW v AS SELECT window_start, window_end, count(*) AS n, sum(before) AS s
         FROM TUMBLE(j, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end;";
    let catalog = sql::plan(&[("v.sql".to_owned(), text.to_owned())]).expect("a project");
    let mut folded = Folded::new(catalog.kept_view("v").expect("a view"));
    let shown = |folded: &mut Folded| {
        let snapshot = folded.state.show(&Arc::new(folded.tracker.clone()), None);
        counted(&snapshot.chunks, "a0")
    };
    folded.take(vec![event(1, "a", 1)]);
    assert_eq!(shown(&mut folded), BTreeMap::from([(0, 1)]), "it waits");
    folded.take(vec![event(15, "a", 1)]);
    // It exports the first row, which has settled.
    restored(&mut folded.state, &folded.tracker);
    folded.state.stop(Stop::because("it fails".to_owned()));
    assert_eq!(shown(&mut folded), BTreeMap::from([(0, 1), (10 * SECOND, 1)]));
}

const JOINED: &str = "
CREATE TABLE buys (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', watermark = '2 seconds');
CREATE TABLE clicks (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', watermark = '2 seconds');
CREATE VIEW j AS SELECT c.ts AS t, b.u AS buyer FROM clicks c
LEFT JOIN buys b ON b.u = c.u AND b.ts BETWEEN c.ts AND c.ts + INTERVAL '5 seconds';
CREATE MATERIALIZED VIEW pairs AS SELECT window_start, window_end, count(*) AS n, count(buyer) AS bought
FROM TUMBLE(j, t, INTERVAL '10 seconds') GROUP BY window_start, window_end;
";

/// The log has nothing any more of what was read before each restart. Of the last click nobody knows yet whether it stays alone.
#[test]
fn topics_that_are_joined_go_on_from_a_checkpoint_and_read_nothing_again() {
    let mut rig = Rig::new(1);
    rig.log.create_topic("buys", 1).expect("a topic");
    rig.context.catalog = Arc::new(sql::plan(&[("v.sql".to_owned(), JOINED.to_owned())]).expect("a project"));
    let events = [
        ("clicks", "ann", 1),
        ("clicks", "bob", 3),
        ("buys", "ann", 4),
        ("buys", "eve", 30),
        ("clicks", "cat", 31),
        ("buys", "cat", 36),
        ("clicks", "dan", 60),
        ("buys", "eve", 60),
    ];
    let mut read = BTreeMap::from([("buys", 0), ("clicks", 0)]);
    for (topic, user, second) in events {
        rig.log.add(topic, 0, &format!("{{\"u\":\"{user}\",\"ts\":\"1970-01-01T00:00:{second:02}Z\"}}"));
        *read.entry(topic).or_default() += 1;
        let layer = rig.start();
        let ends: Positions<TopicPartition> =
            read.iter().map(|(topic, &end)| (TopicPartition::new(*topic, 0), end)).collect();
        let snapshot = rig.wait(&layer, "pairs", |snapshot| snapshot.coverage.ends() == ends);
        assert_eq!((&snapshot.stopped, layer.metrics()["buys+clicks"].events), (&None, 1));
        layer.stop();
        read.iter().for_each(|(topic, &end)| rig.log.forget_before(topic, 0, end));
    }
    let layer = rig.start();
    let snapshot = rig.wait(&layer, "pairs", |snapshot| snapshot.coverage.len() == 8);
    let [n, bought] = ["a0", "a1"].map(|column| counted(&snapshot.chunks, column));
    let tens = |counts: &[(i64, i64)]| counts.iter().map(|&(ten, count)| (ten * 10 * SECOND, count)).collect();
    let expected: [BTreeMap<Micros, i64>; 2] = [tens(&[(0, 2), (3, 1)]), tens(&[(0, 1), (3, 1)])];
    assert_eq!(([n, bought], layer.metrics()["buys+clicks"].events), (expected, 0));
    layer.stop();
}
