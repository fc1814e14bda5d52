//! A partition's updates on their way to a log that takes nothing for a while.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anabranch_engine::partial;
use anabranch_exchange::snapshot::wire::Decoder;
use anabranch_exchange::snapshot::{Chunk, Pane, Snapshot};
use anabranch_log::position::{Coverage, Partition, Positions};
use anabranch_log::{Append, Appended, Log, LogError, LogReader, Payloads, Retention};
use anabranch_plan::view::Kept;
use parking_lot::{Condvar, Mutex};
use polars::prelude::IntoLazy;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kit::{event, micro_batch, table, top};
use crate::Memory;
use crate::metrics::Counters;
use crate::publish::Publisher;

const PATIENCE: Duration = Duration::from_secs(60);

/// A log that takes an append once its gate is open.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Passed>, Condvar)>);

#[derive(Default)]
struct Passed {
    is_open: bool,
    /// How many appends have come.
    come: usize,
    taken: Vec<Payloads>,
}

impl Gate {
    fn wait(&self, is: impl Fn(&Passed) -> bool) {
        let (passed, changed) = &*self.0;
        let waited = changed.wait_while_for(&mut passed.lock(), |passed| !is(passed), PATIENCE);
        assert!(!waited.timed_out(), "in vain");
    }

    fn open(&self) {
        self.0.0.lock().is_open = true;
        self.0.1.notify_all();
    }
}

impl Log for Gate {
    fn create_topic(&self, _: &str, _: u32) -> Result<(), LogError> {
        Ok(())
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        Ok(BTreeMap::new())
    }

    fn bounds(&self, _: &str) -> Result<BTreeMap<Partition, Range<u64>>, LogError> {
        Ok(BTreeMap::new())
    }

    fn append(&self, _: &str, append: Append) -> Result<Appended, LogError> {
        let (passed, changed) = &*self.0;
        let mut passed = passed.lock();
        passed.come += 1;
        changed.notify_all();
        changed.wait_while(&mut passed, |passed| !passed.is_open);
        passed.taken.extend(append.parts.into_iter().map(|(_, payloads)| payloads));
        changed.notify_all();
        Ok(Appended { offsets: BTreeMap::new(), repeated: None })
    }

    fn reader(&self, _: &str, _: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        Err(LogError::Closed)
    }

    fn retain(&self, _: &str, _: Retention, _: &Positions) -> Result<(), LogError> {
        Ok(())
    }
}

/// A snapshot of so many events, each of a key of its own, and its pane.
fn shown(view: &Kept, events: u64) -> (Arc<Snapshot>, Weak<Pane>) {
    let keys: Vec<_> = (0..events).map(|i| event(1, &format!("key {i} of {events}"), 1)).collect();
    let partials = partial::partials(view, micro_batch(0, 0, &keys).events.lazy(), false).expect("partials");
    let pane = Arc::new(Pane { partials, ..Pane::default() });
    let held = Arc::downgrade(&pane);
    let coverage = Coverage::from_iter([(0, 0..events)]).named("clicks");
    let chunks = vec![Arc::new(Chunk { coverage: coverage.clone(), panes: [(0, pane)].into(), ..Chunk::default() })];
    (Arc::new(Snapshot { sequence: events, coverage, chunks, ..Snapshot::default() }), held)
}

#[test]
fn one_update_is_on_its_way_at_most_and_it_counts_toward_the_limit() {
    const LIMIT: usize = 4_000_000;
    let view = top(&table(0), None, 1_000_000);
    let (gate, counters, memory) = (Gate::default(), Arc::new(Counters::default()), Memory::new(LIMIT / 4 * 5));
    let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
    let publisher = Publisher {
        log: Arc::new(gate.clone()),
        unit: "clicks".to_owned(),
        partition: 0,
        epoch: 5,
        superseded: Arc::default(),
        views: vec![(view.clone(), receiver)],
        interval: Duration::from_millis(1),
        memory: memory.share(),
        counters: counters.clone(),
        shutdown: CancellationToken::new(),
    };
    let publisher = publisher.start().expect("started");
    let mut pipeline = memory.share();

    let (snapshot, first) = shown(&view, 1_000);
    sender.send_replace(snapshot);
    gate.wait(|passed| passed.come == 1);
    let unsent = counters.read().state_bytes;
    assert!(unsent > 0);
    assert!(!pipeline.take(LIMIT), "there is no room for as much beside the update");
    assert!(pipeline.take(LIMIT - unsent as usize), "it counts what the metric says");

    // What comes meanwhile is replaced by what comes next, and nothing waits but the newest.
    let mut before = first;
    for events in 1_001..1_020 {
        let (snapshot, pane) = shown(&view, events);
        sender.send_replace(snapshot);
        assert!(before.upgrade().is_none(), "a snapshot is held that was replaced");
        before = pane;
    }
    assert_eq!((gate.0.0.lock().come, counters.read().state_bytes), (1, unsent));

    gate.open();
    gate.wait(|passed| passed.taken.len() >= 2);
    drop(sender);
    publisher.join().expect("ended");
    assert_eq!(counters.read().state_bytes, 0);
    assert!(pipeline.take(LIMIT));
    let views = [view];
    let mut decoder = Decoder::default();
    let taken = gate.0.0.lock();
    let covered = |records: &Payloads| {
        let told = records.iter().filter_map(|record| decoder.take(6, record, &views)).last().expect("an update");
        told[&views[0].id].coverage.len()
    };
    let mut covered: Vec<u64> = taken.taken.iter().map(covered).collect();
    covered.dedup();
    assert_eq!(covered, [1_000, 1_019]);
}
