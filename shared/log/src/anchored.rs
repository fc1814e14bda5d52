//! The log as a project uses it: each table's topic is held to be the one that the table's archive is of.
//!
//! Every request for such a topic finds out first, about once a second, whether the log that is there still is the one that
//! was noted last, see [`super::lineage`]; readers and [`Log::verify`] find out whenever they are asked. Once it isn't, every
//! request for the topic fails with [`LogError::OtherLog`] for as long as the process lives: nothing that is kept can be
//! relied on, and nothing new is taken in, until somebody says what is so. Other topics go on.
//!
//! A log that was adopted goes on where the one before it ended. Its offsets are moved here, and nowhere else.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lineage::{Adoption, Lineage, Mark, Misfit, Tails, check_tails};
use super::{Append, Appended, Batch, Extras, Log, LogError, LogReader, ReadLimit, Retention, Stalls};
use crate::clock::Micros;
use crate::position::{Offset, Partition, Positions};

/// What a topic is held to once this process has looked at it.
const SEEN: &str = "what this process has seen of it";

/// For how long a topic is taken for the one that it was.
const CHECKED: Duration = Duration::from_secs(1);

/// A log that ends too early is asked again so often, at these distances: a broker that has just taken over may not know yet.
const AGAIN: usize = 3;
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What is known of a table's topic before it is used.
#[derive(Debug, Clone, Default)]
pub struct Anchor {
    /// The table.
    pub table: String,
    /// The mark beside the offsets of its archive; none if it has none.
    pub mark: Option<Mark>,
    /// Where the archive ends.
    pub reached: Positions,
    /// Its last records.
    pub tails: Tails,
    /// How the log's offsets become those of the archive.
    pub adoption: Adoption,
}

/// A log whose tables' topics are held to what is known of them.
pub struct AnchoredLog {
    log: Arc<dyn Log>,
    topics: BTreeMap<String, Arc<Held>>,
}

/// One table's topic.
struct Held {
    topic: String,
    table: String,
    adoption: Adoption,
    state: Mutex<Known>,
    /// Held while it is found out for the first time: nothing passes before.
    first: Mutex<()>,
}

struct Known {
    /// What `mark` and `reached` are of.
    carrier: &'static str,
    mark: Option<Mark>,
    reached: Positions,
    /// The last records of the carrier, until they have been compared.
    tails: Tails,
    /// When that was last checked. None before it first was.
    checked: Option<Instant>,
    /// How far it went when something was appended last.
    seen: Positions,
    /// What was found not to fit.
    stopped: Option<(String, Misfit)>,
}

impl Held {
    /// Fails if the topic has been found to be another one.
    fn check_stopped(&self) -> Result<(), LogError> {
        let stopped = self.state.lock().stopped.clone();
        stopped.map_or(Ok(()), |(carrier, misfit)| Err(self.other(&carrier, misfit)))
    }

    fn other(&self, carrier: &str, misfit: Misfit) -> LogError {
        LogError::other(&self.topic, &self.table, carrier, misfit)
    }

    fn lineage(&self, log: &dyn Log) -> Result<Lineage, LogError> {
        let own = log.lineage(&self.topic).map_err(|error| self.shown_error(error))?;
        Ok(self.adoption.lineage(own))
    }

    /// Fails, from now on, if the topic isn't what these offsets are of.
    fn verify(
        &self,
        log: &dyn Log,
        carrier: &str,
        mark: Option<&Mark>,
        reached: &Positions,
    ) -> Result<Lineage, LogError> {
        self.check_stopped()?;
        let mut tries = 1;
        loop {
            let lineage = self.lineage(log)?;
            match lineage.check(mark, reached) {
                Ok(()) => return Ok(lineage),
                Err(Misfit::Beyond { .. }) if tries < AGAIN => std::thread::sleep(AGAIN_AFTER),
                Err(misfit) => return Err(self.stop(carrier, misfit)),
            }
            tries += 1;
        }
    }

    /// Has every request fail from now on.
    fn stop(&self, carrier: &str, misfit: Misfit) -> LogError {
        let error = self.other(carrier, misfit.clone());
        tracing::error!(topic = self.topic, %error, "the log is another one");
        self.state.lock().stopped.get_or_insert((carrier.to_owned(), misfit));
        error
    }

    /// When the log took records, by their offsets above.
    fn taken(&self, log: &dyn Log, at: &Positions) -> Result<BTreeMap<Partition, Micros>, LogError> {
        let own = at.iter().filter_map(|(&p, &offset)| Some((p, self.adoption.own(p, offset)?)));
        log.taken(&self.topic, &own.collect()).map_err(|error| self.shown_error(error))
    }

    /// Fails, from now on, if the topic has other records where these were.
    fn verify_tails(&self, log: &dyn Log, carrier: &str, tails: &Tails) -> Result<(), LogError> {
        self.check_stopped()?;
        if tails.is_empty() {
            return Ok(());
        }
        let at = tails.iter().map(|(&partition, tail)| (partition, tail.offset)).collect();
        check_tails(tails, &self.taken(log, &at)?).map_err(|misfit| self.stop(carrier, misfit))
    }

    /// Fails if the topic isn't the one that it was when it was last looked at, `age` ago or longer.
    fn check(&self, log: &dyn Log, age: Duration) -> Result<(), LogError> {
        let is_first = self.state.lock().checked.is_none();
        let _first = is_first.then(|| self.first.lock());
        self.check_stopped()?;
        let (carrier, mark, reached, tails) = {
            let mut state = self.state.lock();
            if state.checked.is_some_and(|at| at.elapsed() < age) {
                return Ok(());
            }
            // Others go on meanwhile.
            state.checked = state.checked.map(|_| Instant::now());
            (state.carrier, state.mark.clone(), state.reached.clone(), state.tails.clone())
        };
        let checked = self.verify(log, carrier, mark.as_ref(), &reached);
        let checked = checked.and_then(|lineage| self.verify_tails(log, carrier, &tails).map(|()| lineage));
        let mut state = self.state.lock();
        match checked {
            Ok(lineage) => {
                (state.carrier, state.mark) = (SEEN, lineage.newest().cloned());
                (state.reached, state.tails) = (lineage.ends, Tails::new());
                state.checked = Some(Instant::now());
                Ok(())
            }
            Err(error) => {
                state.checked = None;
                Err(error)
            }
        }
    }

    /// The same for who is to read, where a log that can't be asked just now passes if it was the right one before: what is
    /// read is checked again.
    fn check_to_read(&self, log: &dyn Log) -> Result<(), LogError> {
        match self.check(log, Duration::ZERO) {
            Err(LogError::Backend { .. }) if self.state.lock().carrier == SEEN => Ok(()),
            checked => checked,
        }
    }

    /// Takes note of how far the topic goes.
    fn saw(&self, offsets: &BTreeMap<Partition, Range<Offset>>) {
        let mut state = self.state.lock();
        for (&partition, range) in offsets {
            let seen = state.seen.entry(partition).or_default();
            *seen = range.end.max(*seen);
        }
    }

    fn shown(&self, partition: Partition, own: &Range<Offset>) -> Range<Offset> {
        self.adoption.shown(partition, own.start)..self.adoption.shown(partition, own.end)
    }
}

impl AnchoredLog {
    /// Holds these topics to what is known of them.
    pub fn new(log: Arc<dyn Log>, anchors: BTreeMap<String, Anchor>) -> Self {
        let held = |(topic, Anchor { table, mark, reached, tails, adoption }): (String, Anchor)| {
            let (carrier, seen) = ("the archive", Positions::new());
            let state = Known { carrier, mark, reached, tails, checked: None, seen, stopped: None };
            let (state, first) = (Mutex::new(state), Mutex::new(()));
            (topic.clone(), Arc::new(Held { topic, table, adoption, state, first }))
        };
        Self { log, topics: anchors.into_iter().map(held).collect() }
    }

    fn held(&self, topic: &str) -> Result<Option<&Arc<Held>>, LogError> {
        let Some(held) = self.topics.get(topic) else { return Ok(None) };
        held.check(&*self.log, CHECKED)?;
        Ok(Some(held))
    }
}

impl Log for AnchoredLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.log.create_topic(topic, partitions)
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        self.log.topics()
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        let Some(held) = self.held(topic)? else { return self.log.bounds(topic) };
        let bounds = self.log.bounds(topic).map_err(|error| held.shown_error(error))?;
        Ok(bounds.into_iter().map(|(partition, own)| (partition, held.shown(partition, &own))).collect())
    }

    fn lineage(&self, topic: &str) -> Result<Lineage, LogError> {
        match self.topics.get(topic) {
            Some(held) => held.lineage(&*self.log),
            None => self.log.lineage(topic),
        }
    }

    fn verify(
        &self,
        topic: &str,
        carrier: &str,
        mark: Option<&Mark>,
        reached: &Positions,
    ) -> Result<Option<Mark>, LogError> {
        match self.topics.get(topic) {
            Some(held) => Ok(held.verify(&*self.log, carrier, mark, reached)?.newest().cloned()),
            None => self.log.verify(topic, carrier, mark, reached),
        }
    }

    fn taken(&self, topic: &str, at: &Positions) -> Result<BTreeMap<Partition, Micros>, LogError> {
        match self.topics.get(topic) {
            Some(held) => held.taken(&*self.log, at),
            None => self.log.taken(topic, at),
        }
    }

    fn first_after(&self, topic: &str, times: &BTreeMap<Partition, Micros>) -> Result<Positions, LogError> {
        let own = self.log.first_after(topic, times)?;
        let Some(held) = self.topics.get(topic) else { return Ok(own) };
        Ok(own.into_iter().map(|(partition, offset)| (partition, held.adoption.shown(partition, offset))).collect())
    }

    fn verify_tails(&self, topic: &str, carrier: &str, tails: &Tails) -> Result<(), LogError> {
        match self.topics.get(topic) {
            Some(held) => held.verify_tails(&*self.log, carrier, tails),
            None => self.log.verify_tails(topic, carrier, tails),
        }
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let Some(held) = self.held(topic)? else { return self.log.append(topic, append) };
        let before = held.state.lock().seen.clone();
        let Appended { offsets, repeated } = self.log.append(topic, append)?;
        let offsets = offsets.into_iter().map(|(partition, own)| (partition, held.shown(partition, &own)));
        let offsets: BTreeMap<_, _> = offsets.collect();
        if repeated.is_none() {
            // Offsets that other records have already: it was made anew a moment ago.
            if offsets.iter().any(|(p, range)| before.get(p).is_some_and(|&seen| range.start < seen)) {
                held.check(&*self.log, Duration::ZERO)?;
            }
            held.saw(&offsets);
        }
        Ok(Appended { offsets, repeated })
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        let Some(held) = self.topics.get(topic) else { return self.log.reader(topic, from) };
        held.check_to_read(&*self.log)?;
        let mut own = Positions::new();
        for (&partition, &wanted) in from {
            let Some(offset) = held.adoption.own(partition, wanted) else {
                let bounds = self.log.bounds(topic)?;
                let range = bounds.get(&partition).map_or(0..0, |own| held.shown(partition, own));
                return Err(LogError::OutOfRange { topic: topic.to_owned(), partition, wanted, held: range });
            };
            own.insert(partition, offset);
        }
        let reader = self.log.reader(topic, &own).map_err(|error| held.shown_error(error))?;
        Ok(Box::new(AnchoredReader { log: self.log.clone(), held: held.clone(), reader }))
    }

    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        let Some(held) = self.held(topic)? else { return self.log.retain(topic, retention, keep_from) };
        let own = |(&p, &keep): (&Partition, &Offset)| (p, held.adoption.own(p, keep).unwrap_or(0));
        self.log.retain(topic, retention, &keep_from.iter().map(own).collect())
    }

    fn accepts(&self) -> Result<(), LogError> {
        self.log.accepts()
    }

    fn stalls(&self) -> BTreeMap<(String, Partition), Stalls> {
        self.log.stalls()
    }
}

impl Held {
    /// An error as it is above.
    fn shown_error(&self, error: LogError) -> LogError {
        match error {
            LogError::OutOfRange { topic, partition, wanted, held } => LogError::OutOfRange {
                topic,
                partition,
                wanted: self.adoption.shown(partition, wanted),
                held: self.shown(partition, &held),
            },
            // It was there. While it isn't, nothing is said of what comes in its place.
            error @ LogError::UnknownTopic { .. } => {
                LogError::Backend { step: format!("looking for topic `{}`", self.topic), source: error.into() }
            }
            other => other,
        }
    }
}

/// Reads a table's topic.
struct AnchoredReader {
    log: Arc<dyn Log>,
    held: Arc<Held>,
    reader: Box<dyn LogReader>,
}

impl LogReader for AnchoredReader {
    fn poll(&mut self, limit: ReadLimit, wait: Duration) -> Result<Option<Batch>, LogError> {
        let polled = self.reader.poll(limit, wait).map_err(|error| self.held.shown_error(error));
        if matches!(polled, Err(LogError::Backend { .. })) {
            return polled;
        }
        // After it was read: what comes from another topic isn't handed out, nor is what that lacks called lost.
        match self.held.check(&*self.log, if polled.is_ok() { CHECKED } else { Duration::ZERO }) {
            Ok(()) | Err(LogError::Backend { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut polled = polled?;
        if let Some(batch) = polled.as_mut().filter(|_| self.held.adoption.count > 0) {
            let (adoption, partition) = (&self.held.adoption, batch.partition);
            batch.coverage = self.held.shown(partition, &batch.coverage);
            batch.log_end = adoption.shown(partition, batch.log_end);
            batch.offsets.iter_mut().for_each(|offset| *offset = adoption.shown(partition, *offset));
        }
        Ok(polled)
    }

    fn positions(&self) -> Positions {
        let own = self.reader.positions().into_iter();
        own.map(|(partition, offset)| (partition, self.held.adoption.shown(partition, offset))).collect()
    }

    fn bring(&mut self, extras: Extras) {
        self.reader.bring(extras);
    }
}

#[cfg(test)]
mod tests;
