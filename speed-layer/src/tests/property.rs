//! Random streams, cuts, chunks, restarts and frontiers against the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_log::clock::ManualClock;
use anabranch_log::position::{Coverage, Partition, Positions, TopicPartition};
use anabranch_log::{Log, ReadLimit};
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use proptest::prelude::*;

use super::kit::{Event, Oracle, Rows, SECOND, delays, event, micro_batch, partition, restored, rows, sums, table};
use super::log::TestLog;
use crate::refold::{Place, Replay};
use crate::state::ViewState;
use crate::watermark::Tracker;

#[derive(Debug, Clone)]
enum Step {
    /// Some events of a partition in one micro-batch.
    Batch(Partition, Vec<Event>),
    CloseChunk,
    /// A partition has had nothing new for long.
    Idle(Partition),
    Restart,
    /// A version is published; each partition's share of what was read, in tenths.
    Publish(Vec<u64>),
}

const PARTITIONS: u32 = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = (0..25_i64, 0..4_usize, 1..9_i64, 0..10_u8);
    let batch = (0..PARTITIONS, prop::collection::vec(one, 1..8));
    let step = prop_oneof![
        12 => batch.prop_map(|(partition, events)| {
            // Time goes on by the position in the stream, below; here it is the disorder alone.
            let events = events.into_iter().map(|(lag, key, value, null)| {
                let mut made = event(-lag, ["a", "b", "c", "d"][key], value);
                made.key = made.key.filter(|_| null > 0);
                made
            });
            Step::Batch(partition, events.collect())
        }),
        3 => Just(Step::CloseChunk),
        1 => Just(Step::Restart),
        1 => (0..PARTITIONS).prop_map(Step::Idle),
        2 => prop::collection::vec(0..=10_u64, PARTITIONS as usize).prop_map(Step::Publish),
    ];
    prop::collection::vec(step, 1..60)
}

struct World {
    view: Kept,
    log: TestLog,
    tracker: Tracker,
    state: ViewState,
    oracle: Oracle,
    positions: Positions<TopicPartition>,
    replay: Replay,
    now: i64,
}

impl World {
    fn new(partitions: u32, window: Window, lateness: i64, read_records: usize) -> Self {
        let table = table(2 * SECOND);
        let view = sums(&table, Some(window), lateness);
        let log = TestLog::default();
        log.create_topic("clicks", partitions).expect("a topic");
        let positions: Positions<_> = (0..partitions).map(|p| (partition(p), 0)).collect();
        let limit = ReadLimit { records: read_records, bytes: usize::MAX };
        Self {
            tracker: Tracker::new(delays(table.watermark_delay), (0..partitions).map(partition), 0),
            state: ViewState::new(view.clone(), None, &positions, None, 0),
            oracle: Oracle::new(partitions),
            replay: Replay::new(
                Arc::new(log.clone()),
                Arc::new(ManualClock::new(0)),
                &[(table, Default::default())],
                std::slice::from_ref(&view),
                limit,
            ),
            positions,
            view,
            log,
            now: 0,
        }
    }

    fn batch(&mut self, number: Partition, events: &[Event]) {
        let first = self.positions[&partition(number)];
        for (offset, event) in (first..).zip(events) {
            self.log.add("clicks", number, &event.json());
            self.oracle.take(&self.view, number, offset, event);
        }
        let batch = micro_batch(number, first, events);
        let met = self.tracker.begin(&batch.partition, 0);
        let each = met.each(&batch.times, self.tracker.delay(&partition(0)));
        self.state.apply(&batch, met, &each).expect("folded");
        self.tracker.end(&batch.partition, batch.newest().expect("events"));
        self.positions.insert(batch.partition, batch.coverage.end);
    }

    fn restart(&mut self) {
        self.state = restored(&mut self.state, &self.tracker);
    }

    fn publish(&mut self, tenths: &[u64], version: u64) {
        let starts = self.state.coverage().starts();
        let frontier: Positions<_> = starts
            .iter()
            .map(|(p, &start)| (p.clone(), start + (self.positions[p] - start) * tenths[p.partition as usize] / 10))
            .collect();
        match self.state.place(&frontier) {
            Place::Start => {}
            Place::Inside => {
                // Retention takes at once what it may.
                frontier.iter().for_each(|(p, &offset)| self.log.forget_before("clicks", p.partition, offset));
                let newest = self.newest_before(&frontier);
                self.state.advance(version, &frontier, &newest, &mut self.replay).expect("advanced");
            }
            other => panic!("{other:?}: {frontier:?} is within {}", self.state.coverage()),
        }
        assert_eq!(self.state.coverage().starts(), frontier);
    }

    fn newest_before(&self, frontier: &Positions<TopicPartition>) -> BTreeMap<TopicPartition, i64> {
        let below = self.oracle.seen.iter().filter(|seen| seen.offset < frontier[&partition(seen.partition)]);
        below.fold(BTreeMap::new(), |mut newest, seen| {
            let time = newest.entry(partition(seen.partition)).or_insert(seen.event.time);
            *time = seen.event.time.max(*time);
            newest
        })
    }

    fn rows(&mut self) -> Rows {
        let snapshot = self.state.show(&Arc::new(self.tracker.clone()), None);
        // Chunks join without a gap.
        let mut joined = Coverage::starting_at(&snapshot.coverage.starts());
        for chunk in &snapshot.chunks {
            joined.try_append(&chunk.coverage).expect("adjacent");
        }
        assert_eq!(joined, snapshot.coverage);
        rows(snapshot.chunks.iter().map(|chunk| &**chunk))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_state_is_what_the_plain_fold_says(
        partitions in 1..=PARTITIONS,
        steps in steps(),
        slide in 2..6_i64,
        slides in 1..4_i64,
        lateness in 0..4_i64,
        read_records in 1..20_usize,
    ) {
        let window = Window::sliding(slide * slides * SECOND, slide * SECOND);
        let mut world = World::new(partitions, window, lateness * SECOND, read_records);
        let mut clock = 0;
        for (i, step) in (1..).zip(&steps) {
            match step {
                Step::Batch(number, events) => {
                    let mut events = events.clone();
                    for event in &mut events {
                        clock += SECOND;
                        event.time += clock;
                    }
                    world.batch(number % partitions, &events);
                }
                Step::CloseChunk => {
                    world.now += 1;
                    world.state.close_chunk(world.now, u64::MAX, world.now, &world.tracker).expect("closed");
                }
                Step::Idle(number) => {
                    let number = number % partitions;
                    world.tracker.caught_up(&[partition(number)], i64::MAX, 0);
                    world.oracle.be_idle(number, world.tracker.delay(&partition(0)));
                }
                Step::Restart => world.restart(),
                Step::Publish(tenths) => world.publish(tenths, i),
            }
            prop_assert_eq!(world.state.coverage().ends(), world.positions.clone());
        }
        let from = world.state.coverage().starts();
        prop_assert_eq!(world.rows(), world.oracle.rows(&world.view, &from));
        prop_assert_eq!(world.state.late, world.oracle.late());
        prop_assert_eq!(world.tracker.watermark(), world.oracle.watermark);
        let panes = |world: &World| -> u64 {
            world.state.closed.iter().flat_map(|c| c.chunk.panes.values()).flat_map(|p| p.late.values()).sum()
        };
        world.state.close_chunk(i64::MAX, u64::MAX, 0, &world.tracker).expect("closed");
        let late = world.oracle.seen.iter().filter(|s| s.missed > 0 && s.offset >= from[&partition(s.partition)]).count();
        prop_assert_eq!(panes(&world), late as u64, "late events by pane, from the frontier on");
    }
}
