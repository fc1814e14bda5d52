//! An event log in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Append, Appended, Batch, Log, LogError, LogReader, Payloads, ReadLimit, Retention};
use anabranch_plan::time::Micros;
use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct Shared {
    topics: Mutex<BTreeMap<String, Vec<Held>>>,
    grown: Condvar,
    time: AtomicI64,
    held_up: AtomicBool,
}

#[derive(Clone, Default)]
struct Held {
    start: Offset,
    /// None where compaction has left one out.
    records: Vec<Option<Vec<u8>>>,
}

impl Held {
    fn end(&self) -> Offset {
        self.records.len() as Offset
    }
}

/// Keeps everything in memory; `start` can be moved as retention would. It takes all records at one time, 0 unless set.
#[derive(Clone, Default)]
pub(crate) struct TestLog(Arc<Shared>);

impl TestLog {
    pub fn add(&self, topic: &str, partition: Partition, record: &str) {
        self.0.topics.lock().get_mut(topic).expect("a topic")[partition as usize].records.push(Some(record.into()));
        self.0.grown.notify_all();
    }

    /// How many records a topic's first partition holds or held.
    pub fn length(&self, topic: &str) -> u64 {
        self.0.topics.lock()[topic][0].end()
    }

    pub fn set_time(&self, time: Micros) {
        self.0.time.store(time, Ordering::Relaxed);
    }

    /// Leaves a record out, as compaction does. Its offset stays.
    pub fn compact(&self, topic: &str, partition: Partition, offset: Offset) {
        let mut topics = self.0.topics.lock();
        topics.get_mut(topic).expect("a topic")[partition as usize].records[offset as usize] = None;
    }

    /// Whether readers are held up, as a process is that the machine has paused.
    pub fn hold_up(&self, held_up: bool) {
        let _topics = self.0.topics.lock();
        self.0.held_up.store(held_up, Ordering::Relaxed);
        self.0.grown.notify_all();
    }

    pub fn forget_before(&self, topic: &str, partition: Partition, start: Offset) {
        self.0.topics.lock().get_mut(topic).expect("a topic")[partition as usize].start = start;
    }
}

impl Log for TestLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.0.topics.lock().entry(topic.to_owned()).or_default().resize(partitions as usize, Held::default());
        Ok(())
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        Ok(self.0.topics.lock().iter().map(|(name, held)| (name.clone(), held.len() as u32)).collect())
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        let topics = self.0.topics.lock();
        let held = topics.get(topic).ok_or(LogError::Closed)?;
        Ok((0..).zip(held.iter().map(|held| held.start..held.end())).collect())
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        for (partition, payloads) in append.parts {
            for payload in payloads.iter() {
                self.add(topic, partition, std::str::from_utf8(payload).expect("text"));
            }
        }
        Ok(Appended { offsets: BTreeMap::new(), repeated: None })
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(Reader { log: self.clone(), topic: topic.to_owned(), positions: from.clone(), turn: 0 }))
    }

    fn retain(&self, _: &str, _: Retention, _: &Positions) -> Result<(), LogError> {
        Ok(())
    }
}

struct Reader {
    log: TestLog,
    topic: String,
    positions: Positions,
    turn: usize,
}

impl Reader {
    fn next(&mut self, topics: &BTreeMap<String, Vec<Held>>, records: usize) -> Result<Option<Batch>, LogError> {
        let held = &topics[&self.topic];
        let partitions: Vec<Partition> = self.positions.keys().copied().collect();
        for i in 0..partitions.len() {
            let partition = partitions[(self.turn + i) % partitions.len()];
            let held = &held[partition as usize];
            let wanted = self.positions[&partition];
            if wanted < held.start {
                let (topic, held) = (self.topic.clone(), held.start..held.end());
                return Err(LogError::OutOfRange { topic, partition, wanted, held });
            }
            if wanted < held.end() {
                self.turn = (self.turn + i + 1) % partitions.len();
                let end = held.end().min(wanted + records as u64);
                self.positions.insert(partition, end);
                let records = (wanted..end).filter_map(|at| Some((at, held.records[at as usize].as_ref()?)));
                let (offsets, payloads): (Vec<Offset>, Vec<&Vec<u8>>) = records.unzip();
                return Ok(Some(Batch {
                    partition,
                    coverage: wanted..end,
                    log_times: vec![self.log.0.time.load(Ordering::Relaxed); offsets.len()],
                    offsets,
                    read_at: None,
                    payloads: payloads.into_iter().collect::<Payloads>(),
                    keys: None,
                    headers: None,
                    log_end: held.end(),
                }));
            }
        }
        Ok(None)
    }
}

impl LogReader for Reader {
    fn poll(&mut self, limit: ReadLimit, wait: Duration) -> Result<Option<Batch>, LogError> {
        let shared = self.log.0.clone();
        let mut topics = shared.topics.lock();
        let is_held_up = |_: &mut _| shared.held_up.load(Ordering::Relaxed);
        shared.grown.wait_while(&mut topics, is_held_up);
        if let Some(batch) = self.next(&topics, limit.records)? {
            return Ok(Some(batch));
        }
        shared.grown.wait_for(&mut topics, wait);
        shared.grown.wait_while(&mut topics, is_held_up);
        self.next(&topics, limit.records)
    }

    fn positions(&self) -> Positions {
        self.positions.clone()
    }
}
