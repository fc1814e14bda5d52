//! Reading: whole stored batches joined into larger ones, or cut into smaller ones.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Shared;
use super::state::PartitionState;
use super::store::{BatchKey, Section, Store, StoredBatch, is_damage};
use crate::position::{Offset, Partition, Positions};
use crate::{Batch, Extras, LogError, LogReader, Payloads, ReadLimit};

/// Reads partitions of one topic, in turn.
pub(super) struct EmbeddedReader {
    shared: Arc<Shared>,
    topic: String,
    topic_id: u32,
    partitions: Vec<Cursor>,
    /// The one to be asked first.
    turn: usize,
    extras: Extras,
}

struct Cursor {
    partition: Partition,
    next: Offset,
    /// A stored batch of which the last read took only a part.
    begun: Option<StoredBatch>,
}

impl EmbeddedReader {
    pub(super) fn new(shared: Arc<Shared>, topic: &str, topic_id: u32, from: &Positions) -> Self {
        let partitions = from.iter().map(|(&partition, &next)| Cursor { partition, next, begun: None }).collect();
        Self { shared, topic: topic.to_owned(), topic_id, partitions, turn: 0, extras: Extras::default() }
    }

    /// The next partition with records, and its end; waits for one.
    fn next_partition(&self, wait: Duration) -> Result<Option<(usize, Offset)>, LogError> {
        let deadline = Instant::now().checked_add(wait);
        let mut state = self.shared.state.lock();
        loop {
            if state.closed {
                return Err(LogError::Closed);
            }
            let known = &state.topic(&self.topic)?.partitions;
            for cursor in &self.partitions {
                let held = &known[cursor.partition as usize];
                if !(held.start..=held.end).contains(&cursor.next) {
                    return Err(self.out_of_range(cursor, held));
                }
            }
            let turns = (self.turn..self.partitions.len()).chain(0..self.turn);
            let ends = turns.map(|i| (i, known[self.partitions[i].partition as usize].end));
            if let Some(found) = ends.into_iter().find(|&(i, end)| self.partitions[i].next < end) {
                return Ok(Some(found));
            }
            match deadline {
                None => self.shared.grown.wait(&mut state),
                Some(deadline) if self.shared.grown.wait_until(&mut state, deadline).timed_out() => return Ok(None),
                Some(_) => {}
            }
        }
    }

    fn out_of_range(&self, cursor: &Cursor, held: &PartitionState) -> LogError {
        let (topic, partition) = (self.topic.clone(), cursor.partition);
        LogError::OutOfRange { topic, partition, wanted: cursor.next, held: held.start..held.end }
    }

    fn damaged(&self, cursor: &Cursor, offset: Offset, what: String) -> LogError {
        LogError::Damaged { topic: self.topic.clone(), partition: cursor.partition, offset, what }
    }

    fn failed(&self, cursor: &Cursor, error: fjall::Error) -> LogError {
        if is_damage(&error) {
            return self.damaged(cursor, cursor.next, error.to_string());
        }
        let step = format!("reading topic `{}` partition {} at offset {}", self.topic, cursor.partition, cursor.next);
        LogError::Backend { step, source: error.into() }
    }

    /// The stored batch that holds the record to be read next.
    fn find(&self, store: &Store, cursor: &Cursor) -> Result<StoredBatch, LogError> {
        let first = BatchKey::bound(self.topic_id, cursor.partition, 0);
        let after = BatchKey::bound(self.topic_id, cursor.partition, cursor.next + 1);
        let failed = |error| self.failed(cursor, error);
        if let Some(guard) = store.range(&first..&after).next_back() {
            let (key, value) = guard.into_inner().map_err(failed)?;
            if let Some(key) = BatchKey::decode(&key).filter(|key| key.end() > cursor.next) {
                return self.check(cursor, key, value.into());
            }
        }
        // Either retention has just removed it, in one step with the partition's start, or it is missing.
        let state = store.get(&PartitionState::key(self.topic_id, cursor.partition)).map_err(failed)?;
        match state.and_then(|state| PartitionState::decode(&state)) {
            Some(state) if state.start > cursor.next => Err(self.out_of_range(cursor, &state)),
            _ => Err(self.damaged(cursor, cursor.next, "it is missing".to_owned())),
        }
    }

    fn check(&self, cursor: &Cursor, key: BatchKey, value: Bytes) -> Result<StoredBatch, LogError> {
        StoredBatch::decode(key, value).map_err(|what| self.damaged(cursor, key.base, what))
    }

    /// The records from the next one on: a part of one stored batch, or several whole ones.
    fn read(
        &self,
        cursor: &Cursor,
        end: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<(StoredBatch, Range<usize>)>, LogError> {
        let store = self.shared.store.read();
        let store = store.as_ref().ok_or_else(|| self.failed(cursor, fjall::Error::Poisoned))?;
        let (mut records, mut bytes) = (limit.records.max(1), limit.bytes.min(u32::MAX as usize));

        let stored = match &cursor.begun {
            Some(begun) => begun.clone(),
            None => self.find(store, cursor)?,
        };
        let from = (cursor.next - stored.key.base) as usize;
        let to = from + fitting(&stored, from, records, bytes);
        let next = stored.key.base + to as u64;
        let whole = next == stored.key.end();
        records -= to - from;
        bytes = bytes.saturating_sub(stored.payloads.end_of(to) - stored.payloads.end_of(from));
        let mut runs = vec![(stored, from..to)];
        if !whole || records == 0 || bytes == 0 {
            return Ok(runs);
        }

        let following = BatchKey::bound(self.topic_id, cursor.partition, next);
        let after = BatchKey::bound(self.topic_id, cursor.partition, end);
        let mut next = next;
        for guard in store.range(&following..&after) {
            let fits =
                |key: &BatchKey| key.base == next && key.records as usize <= records && key.bytes as usize <= bytes;
            let (key, value) = guard
                .into_inner_if(|key| BatchKey::decode(key).is_some_and(|key| fits(&key)))
                .map_err(|error| self.failed(cursor, error))?;
            let (Some(key), Some(value)) = (BatchKey::decode(&key), value) else { break };
            records -= key.records as usize;
            bytes -= key.bytes as usize;
            next = key.end();
            runs.push((self.check(cursor, key, value.into())?, 0..key.records as usize));
        }
        Ok(runs)
    }
}

/// How many records from `from` on a limit allows: at least one.
fn fitting(stored: &StoredBatch, from: usize, records: usize, bytes: usize) -> usize {
    let most = (stored.key.records as usize - from).min(records);
    let start = stored.payloads.end_of(from);
    let (mut fit, mut too_many) = (1, most + 1);
    while too_many - fit > 1 {
        let middle = fit.midpoint(too_many);
        if stored.payloads.end_of(from + middle) - start <= bytes {
            fit = middle;
        } else {
            too_many = middle;
        }
    }
    fit
}

/// One batch of all runs.
fn join(partition: Partition, runs: &[(StoredBatch, Range<usize>)], log_end: Offset, extras: Extras) -> Option<Batch> {
    let (first, last) = (runs.first()?, runs.last()?);
    let coverage = first.0.key.base + first.1.start as u64..last.0.key.base + last.1.end as u64;
    let mut log_times = Vec::with_capacity((coverage.end - coverage.start) as usize);
    for (stored, run) in runs {
        log_times.resize(log_times.len() + run.len(), stored.key.log_time);
    }
    let payloads = join_sections(runs, |stored| Some(&stored.payloads))?;
    let keys = if extras.keys { Some(join_sections(runs, |stored| stored.keys.as_ref())?) } else { None };
    let offsets = coverage.clone().collect();
    Some(Batch { partition, coverage, offsets, log_times, read_at: None, payloads, keys, headers: None, log_end })
}

/// A section of all runs: without copying if there is one, else with one copy. Where a batch has none, each is empty.
fn join_sections(
    runs: &[(StoredBatch, Range<usize>)],
    section: impl Fn(&StoredBatch) -> Option<&Section>,
) -> Option<Payloads> {
    let sections: Vec<_> = runs.iter().map(|(stored, run)| (section(stored), run)).collect();
    let mut ends = Vec::with_capacity(runs.iter().map(|(_, run)| run.len()).sum());
    if let [(Some(section), run)] = sections[..] {
        ends.extend(section.ends(run.clone()).map(|end| end as u32));
        return Payloads::new(section.bytes(run.clone()), ends);
    }
    let size = |(section, run): &(Option<&Section>, &Range<usize>)| {
        section.map_or(0, |section| section.end_of(run.end) - section.end_of(run.start))
    };
    let mut bytes = BytesMut::with_capacity(sections.iter().map(size).sum());
    for (section, run) in sections {
        let written = bytes.len();
        match section {
            Some(section) => {
                ends.extend(section.ends(run.clone()).map(|end| (written + end) as u32));
                bytes.extend_from_slice(&section.bytes(run.clone()));
            }
            None => ends.resize(ends.len() + run.len(), written as u32),
        }
    }
    Payloads::new(bytes.freeze(), ends)
}

impl LogReader for EmbeddedReader {
    fn poll(&mut self, limit: ReadLimit, wait: Duration) -> Result<Option<Batch>, LogError> {
        let Some((turn, end)) = self.next_partition(wait)? else { return Ok(None) };
        let mut runs = self.read(&self.partitions[turn], end, limit)?;
        let cursor = &self.partitions[turn];
        let batch = join(cursor.partition, &runs, end, self.extras)
            .ok_or_else(|| self.damaged(cursor, cursor.next, "its payloads don't add up".to_owned()))?;
        let cursor = &mut self.partitions[turn];
        cursor.next = batch.coverage.end;
        cursor.begun = runs.pop().map(|(stored, _)| stored).filter(|stored| stored.key.end() > batch.coverage.end);
        self.turn = (turn + 1) % self.partitions.len();
        Ok(Some(batch))
    }

    fn positions(&self) -> Positions {
        self.partitions.iter().map(|cursor| (cursor.partition, cursor.next)).collect()
    }

    fn bring(&mut self, extras: Extras) {
        self.extras = extras;
    }
}
