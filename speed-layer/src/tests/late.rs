//! Late events on the side, on a log that fails.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::version::Versions;
use anabranch_log::clock::ManualClock;
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Append, Appended, Log, LogError, LogReader, ReadLimit, Retention};
use anabranch_plan::aggregation::Late;
use anabranch_plan::view::Catalog;
use anabranch_plan::window::Window;
use tokio_util::sync::CancellationToken;

use super::kit::{SECOND, event, partition, sums, table, with};
use super::log::TestLog;
use crate::{Context, Memory, Settings, run};

/// A log that lets so many appends to the topic `late` fail, and takes no record there that is longer than 1,000 bytes.
struct Fussy {
    log: TestLog,
    failing: AtomicU32,
}

impl Log for Fussy {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.log.create_topic(topic, partitions)
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        self.log.topics()
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        self.log.bounds(topic)
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let failing = |left: u32| left.checked_sub(1);
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, failing).is_ok() {
            return Err(LogError::Backend { step: format!("append to topic `{topic}`"), source: "it is away".into() });
        }
        let longest = append.parts.iter().flat_map(|(_, payloads)| payloads.iter()).map(<[u8]>::len).max();
        match longest {
            Some(bytes) if bytes > 1_000 => Err(LogError::TooLarge { topic: topic.to_owned(), bytes }),
            _ => self.log.append(topic, append),
        }
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        self.log.reader(topic, from)
    }

    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        self.log.retain(topic, retention, keep_from)
    }
}

#[test]
fn late_events_are_written_once_the_log_takes_them() {
    let table = table(0);
    let view = sums(&table, Some(Window::sliding(10 * SECOND, 5 * SECOND)), 0);
    let view = with(&view, |kept| kept.late = Late::Topic("late".to_owned()));
    let catalog = Catalog {
        tables: [(table.name.clone(), table)].into(),
        rows: BTreeMap::new(),
        views: [(view.id.name.clone(), Arc::clone(&view))].into(),
    };
    let log = TestLog::default();
    log.create_topic("clicks", 1).expect("a topic");
    log.create_topic("late", 1).expect("a topic");
    // At 12 s the windows that end at 5 s and at 10 s are closed for good.
    for event in [event(12, "a", 1), event(3, "a", 1), event(4, &"long ".repeat(200), 1), event(7, "b", 1)] {
        log.add("clicks", 0, &event.json());
    }
    // The second life has no checkpoint, and finds the same events late.
    for (life, failures) in [3, 0].into_iter().enumerate() {
        let fussy = Arc::new(Fussy { log: log.clone(), failing: AtomicU32::new(failures) });
        let clock = Arc::new(ManualClock::new(0));
        let context = Context {
            log: fussy.clone(),
            catalog: Arc::new(catalog.clone()),
            versions: Versions::default(),
            readings: Default::default(),
            checkpoints: None,
            outlets: None,
            rejects: Arc::new(RejectLog::open(Arc::new(log.clone()), clock.clone()).expect("rejects")),
            clock,
            memory: Memory::new(usize::MAX),
            settings: Settings { batch_wait: Duration::from_millis(1), ..Settings::default() },
        };
        let layer = run(&context, &CancellationToken::new()).expect("started");
        let mut snapshots = layer.snapshots().0[&view.id].clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let folded =
            snapshots.wait_for(|snapshot| snapshot.coverage.next(&partition(0)) == 4 || snapshot.stopped.is_some());
        let snapshot = runtime.block_on(folded).expect("the layer works").clone();
        assert_eq!((snapshot.late, &snapshot.stopped), (3, &None), "life {life}");
        assert_eq!(fussy.failing.load(Ordering::SeqCst), 0);
        layer.stop();
        // All but the one that is too long, before what was folded is shown.
        let mut reader = log.reader("late", &Positions::from([(0, 0)])).expect("a reader");
        let batch = reader.poll(ReadLimit { records: 10, bytes: 1 << 20 }, Duration::ZERO).expect("read");
        let records: Vec<_> =
            batch.expect("records").payloads.iter().map(String::from_utf8_lossy).map(String::from).collect();
        let expected = |offset, second, behind_ms, missed, key: &str| {
            let record = event(second, key, 1).json();
            format!(
                r#"{{"view":"sums","topic":"clicks","partition":0,"offset":{offset},"event_time":"1970-01-01T00:00:0{second}Z","watermark":"1970-01-01T00:00:12Z","behind_ms":{behind_ms},"missed":{missed},"windows":2,"record":{record}}}"#
            )
        };
        assert_eq!(records, [expected(1, 3, 9_000, 2, "a"), expected(3, 7, 5_000, 1, "b")], "life {life}");
    }
}
