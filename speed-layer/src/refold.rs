//! Moving a view's state to the frontier of a batch version.
//!
//! | the frontier is …                                  | the state …                                                  |
//! |----------------------------------------------------|--------------------------------------------------------------|
//! | where the state begins                             | stays as it is                                               |
//! | beyond what was read, in any partition             | waits until that has been read                               |
//! | inside what the state covers                       | drops the chunks below it; those that it cuts are folded again |
//! | before the state, in any partition (a rollback)    | is folded anew from there, up to what was read               |
//!
//! A view whose rows are made of several records is folded anew from the frontier in each case but the second: what its operators kept
//! there is stored with the version. Until that is done it stays as it is.
//!
//! What a cut chunk keeps is read from the log again and folded under the watermarks that its journal recorded: the
//! very same events are late as were before.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::decode::Decoder;
use anabranch_engine::edition::Editions;
use anabranch_exchange::snapshot::Chunk;
use anabranch_log::clock::Clock;
use anabranch_log::position::{Coverage, Offset, Positions, TopicPartition, of_topic};
use anabranch_log::{Batch, Extras, Log, LogError, LogReader, ReadLimit};
use anabranch_plan::aggregation::Late;
use anabranch_plan::schema::Table;
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;

use crate::chunk::{Closed, Open};
use crate::error::SpeedError;
use crate::fold::Evaluator;
use crate::journal::{self, Entry};
use crate::late::LateWriter;
use crate::micro_batch::{MicroBatch, decoder, extras};
use crate::state::ViewState;
use crate::watermark::{Delays, Tracker};

/// How long the log may take to deliver again what it had delivered before: so many waits.
const WAITS: usize = 30;
const WAIT: Duration = Duration::from_secs(1);

/// What is there at once comes within this time, also over a network.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Where a frontier lies relative to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where the state begins.
    Start,
    /// Inside what the state covers.
    Inside,
    /// Beyond what was read.
    Ahead,
    /// Before the state.
    Before,
}

impl ViewState {
    /// Where a frontier lies.
    pub fn place(&self, frontier: &Positions<TopicPartition>) -> Place {
        let coverage = self.coverage();
        let at = |p: &TopicPartition| frontier.get(p).copied().unwrap_or(0);
        if frontier.iter().any(|(p, &offset)| offset > coverage.next(p)) {
            Place::Ahead
        } else if coverage.iter().any(|(p, range)| at(p) < range.start) {
            Place::Before
        } else if coverage.iter().all(|(p, range)| at(p) == range.start) {
            Place::Start
        } else {
            Place::Inside
        }
    }

    /// Drops what is below a frontier inside the state. After an error the state is as it was.
    ///
    /// `newest` are the newest event times below the frontier, where they are known: a partition is then read again
    /// from the frontier on, and needs nothing of the log that retention may take once a version covers it.
    pub fn advance(
        &mut self,
        version: u64,
        frontier: &Positions<TopicPartition>,
        newest: &BTreeMap<TopicPartition, Micros>,
        replay: &mut Replay,
    ) -> Result<(), SpeedError> {
        let at = |p: &TopicPartition| frontier.get(p).copied().unwrap_or(0);
        let mut kept = Vec::new();
        for closed in self.chunks()? {
            let coverage = &closed.chunk.coverage;
            let above: Coverage<_> =
                coverage.iter().map(|(p, range)| (p.clone(), range.start.max(at(p))..range.end.max(at(p)))).collect();
            if above.is_empty() {
                continue;
            }
            let panes = if above.len() == coverage.len() {
                closed.chunk.panes.clone()
            } else {
                let begins = newest.iter().filter_map(|(p, &newest)| Some((p, (*frontier.get(p)?, newest))));
                replay.refold((&self.view, &self.evaluator), &closed.journal, &above, &begins.collect())?
            };
            let entries = closed.journal.iter().filter(|entry| entry.next > at(&entry.partition));
            let journal = Arc::new(entries.cloned().collect());
            let early = closed.chunk.early.within(|p| at(p)..Offset::MAX);
            kept.push(Closed::new(Chunk { coverage: above, panes, early, unsure: None, looked_up: None }, journal));
        }
        let mut ends = self.open.coverage.ends();
        for (p, &offset) in frontier {
            ends.entry(p.clone()).or_insert(offset);
        }
        self.open = Open::new(&ends, self.open.since);
        self.closed = kept;
        self.base = Some(version);
        self.limit()
    }
}

/// Reads parts of the tables' logs again.
pub(crate) struct Replay {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    sources: BTreeMap<Arc<str>, Source>,
    extras: Extras,
    limit: ReadLimit,
}

/// How a topic's records are read.
struct Source {
    decoder: Decoder,
    editions: Editions,
}

/// A batch of a topic.
pub(crate) type Read = (Arc<str>, Batch);

/// A reader of each topic.
pub(crate) struct Readers(BTreeMap<Arc<str>, Box<dyn LogReader>>);

impl Readers {
    /// Whether a partition is read.
    pub fn has(&self, p: &TopicPartition) -> bool {
        self.0.get(&p.topic).is_some_and(|reader| reader.positions().contains_key(&p.partition))
    }
}

/// The topics of partitions, the one first whose events have come least far.
pub(crate) fn topics<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>, tracker: &Tracker) -> Vec<Arc<str>> {
    let topics: BTreeSet<&Arc<str>> = partitions.into_iter().map(|p| &p.topic).collect();
    let mut topics: Vec<Arc<str>> = topics.into_iter().cloned().collect();
    topics.sort_by_key(|topic| tracker.reached(topic));
    topics
}

impl Replay {
    pub fn new(
        log: Arc<dyn Log>,
        clock: Arc<dyn Clock>,
        tables: &[(Arc<Table>, Editions)],
        views: &[Kept],
        limit: ReadLimit,
    ) -> Self {
        let sources = tables.iter().map(|(table, editions)| {
            let decoder = decoder(table, views, editions);
            (Arc::from(table.topic.as_str()), Source { decoder, editions: editions.clone() })
        });
        Self { log, clock, sources: sources.collect(), extras: extras(views), limit }
    }

    /// How far the watermark stays behind each topic's newest event.
    pub fn delays(&self) -> Delays {
        let delay = |source: &Source| source.decoder.table().watermark_delay;
        self.sources.iter().map(|(topic, source)| (topic.clone(), delay(source))).collect()
    }

    /// By which definitions the records of each topic are read.
    pub fn editions(&self) -> BTreeMap<String, Editions> {
        self.sources.iter().map(|(topic, source)| (topic.to_string(), source.editions.clone())).collect()
    }

    /// The table of a topic.
    fn table(&self, topic: &str) -> String {
        self.sources.get(topic).map_or_else(|| topic.to_owned(), |source| source.decoder.table().name.clone())
    }

    fn failed<'a>(&'a self, topic: &'a str) -> impl FnOnce(LogError) -> SpeedError + use<'a> {
        move |source| SpeedError::Log { table: self.table(topic), source }
    }

    /// Reads the logs from these positions on.
    pub fn readers(&self, from: &Positions<TopicPartition>) -> Result<Readers, SpeedError> {
        let mut readers = BTreeMap::new();
        for topic in self.sources.keys() {
            let from = of_topic(topic, from);
            if from.is_empty() {
                continue;
            }
            let mut reader = self.log.reader(topic, &from).map_err(self.failed(topic))?;
            reader.bring(self.extras);
            readers.insert(topic.clone(), reader);
        }
        Ok(Readers(readers))
    }

    fn poll_each(
        &self,
        readers: &mut Readers,
        topics: &[Arc<str>],
        wait: Duration,
    ) -> Result<Option<Read>, SpeedError> {
        for topic in topics {
            let Some(reader) = readers.0.get_mut(topic) else { continue };
            let wait = wait / u32::try_from(topics.len()).unwrap_or(1);
            if let Some(batch) = reader.poll(self.limit, wait).map_err(self.failed(topic))? {
                return Ok(Some((topic.clone(), batch)));
            }
        }
        Ok(None)
    }

    /// What the logs of these topics have next, if they have it at once.
    pub fn poll_once(&self, readers: &mut Readers, topics: &[Arc<str>]) -> Result<Option<Read>, SpeedError> {
        self.poll_each(readers, topics, AT_ONCE)
    }

    fn poll(&self, readers: &mut Readers, topics: &[Arc<str>]) -> Result<Option<Read>, SpeedError> {
        for _ in 0..WAITS {
            if let Some(read) = self.poll_each(readers, topics, WAIT)? {
                return Ok(Some(read));
            }
        }
        Ok(None)
    }

    fn decode(&mut self, (topic, batch): &Read) -> Result<MicroBatch, SpeedError> {
        let Some(source) = self.sources.get_mut(topic) else {
            return Err(self.unread(&TopicPartition::new(topic.clone(), batch.partition), batch.coverage.clone()));
        };
        MicroBatch::decode(&mut source.decoder, topic, batch, self.clock.now())
    }

    fn unread(&self, partition: &TopicPartition, missing: Range<Offset>) -> SpeedError {
        let missing = Coverage::from_iter([(partition.clone(), missing)]);
        SpeedError::Unread { table: self.table(&partition.topic), missing }
    }

    /// The panes of the events in `wanted`, each of which meets the watermark that it met first. That follows from where
    /// a micro-batch began, or from an offset whose newest event time is known.
    fn refold(
        &mut self,
        (view, evaluator): (&Kept, &Evaluator),
        journal: &[Entry],
        wanted: &Coverage<TopicPartition>,
        known: &BTreeMap<&TopicPartition, (Offset, Micros)>,
    ) -> Result<BTreeMap<Micros, Arc<anabranch_exchange::snapshot::Pane>>, SpeedError> {
        let mut open = Open::default();
        for (partition, range) in wanted.iter().filter(|(_, range)| !range.is_empty()) {
            let entries = journal::overlapping(journal, partition, range.start, range.end);
            let Some(first) = entries.first() else { return Err(self.unread(partition, range.clone())) };
            let known = known.get(partition).filter(|(offset, _)| (first.first..=range.start).contains(offset));
            let (mut next, newest) = known.copied().unwrap_or((first.first, first.met.before));
            let mut met = MetAgain { entries: &entries, at: 0, newest };
            let mut readers = self.readers(&Positions::from([(partition.clone(), next)]))?;
            let topics = [partition.topic.clone()];
            while next < range.end {
                let read = self.poll(&mut readers, &topics)?.ok_or_else(|| self.unread(partition, next..range.end))?;
                next = read.1.coverage.end;
                let batch = self.decode(&read)?.until(range.end);
                let each = met.each(&batch, view.table().watermark_delay);
                let each = each.ok_or_else(|| self.unread(partition, batch.coverage.clone()))?;
                let rows = batch.rows(range);
                let events = batch.events.slice(rows.start as i64, rows.len());
                open.add(view, evaluator.fold(view, events, &batch.times[rows.clone()], &each[rows])?.0)?;
                evaluator.fault(view)?;
            }
        }
        Ok(open.export(view)?.panes.clone())
    }

    /// Feeds a view's state from where it ends up to `to`, under watermarks kept by `tracker`.
    pub fn rebuild(
        &mut self,
        state: &mut ViewState,
        to: &Positions<TopicPartition>,
        mut tracker: Tracker,
        chunk_records: u64,
        late: &mut LateWriter,
    ) -> Result<(), SpeedError> {
        state.set_mark(Arc::new(tracker.clone()));
        let lacking = |state: &ViewState| -> Positions<TopicPartition> {
            to.iter().filter(|&(p, &end)| state.next(p) < end).map(|(p, _)| (p.clone(), state.next(p))).collect()
        };
        let from = lacking(state);
        let mut readers = if from.is_empty() { return Ok(()) } else { self.readers(&from)? };
        loop {
            let lacking = lacking(state);
            let Some((partition, &next)) = lacking.first_key_value() else { break };
            let end = to.get(partition).copied().unwrap_or(next);
            let read = self.poll(&mut readers, &topics(lacking.keys(), &tracker))?;
            let (topic, batch) = read.ok_or_else(|| self.unread(partition, next..end))?;
            let end = to.get(&TopicPartition::new(topic.clone(), batch.partition)).copied().unwrap_or(0);
            if batch.coverage.start >= end {
                continue;
            }
            self.feed(state, (topic, batch), Some(end), &mut tracker, chunk_records, late)?;
        }
        Ok(())
    }

    /// Folds what the log gave, before an offset if it says one, into a view's state, under watermarks kept by `tracker`.
    pub fn feed(
        &mut self,
        state: &mut ViewState,
        read: Read,
        end: Option<Offset>,
        tracker: &mut Tracker,
        chunk_records: u64,
        late: &mut LateWriter,
    ) -> Result<(), SpeedError> {
        let decoded = self.decode(&read)?.until(end.unwrap_or(Offset::MAX));
        let batch = MicroBatch {
            records: (state.view.aggregation().late != Late::Discard).then(|| Box::new(read.1)),
            ..decoded
        };
        let met = tracker.begin(&batch.partition, batch.at);
        let events = state.apply(&batch, met, &met.each(&batch.times, tracker.delay(&batch.partition)))?;
        late.write(&state.view, &batch, &events)?;
        if let Some(newest) = batch.newest() {
            tracker.end(&batch.partition, newest);
        }
        state.settle(tracker.watermark())?;
        state.close_chunk(Micros::MIN, chunk_records, batch.at, tracker)
    }
}

/// The watermarks that records met, by the journal.
struct MetAgain<'a> {
    entries: &'a [&'a Entry],
    at: usize,
    newest: Micros,
}

impl MetAgain<'_> {
    /// What each row met; none if the journal doesn't know.
    fn each(&mut self, batch: &MicroBatch, delay: Micros) -> Option<Vec<Micros>> {
        let mut each = Vec::with_capacity(batch.times.len());
        for (&offset, &time) in batch.offsets.iter().zip(&batch.times) {
            while offset >= self.entries.get(self.at)?.next {
                self.at += 1;
                self.newest = self.entries.get(self.at)?.met.before;
            }
            let entry = self.entries.get(self.at).filter(|entry| entry.first <= offset)?;
            each.push(entry.met.at(self.newest, delay));
            self.newest = self.newest.max(time);
        }
        Some(each)
    }
}
