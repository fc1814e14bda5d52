//! The rejects log: records that are no row of their table, kept with the reason in the topic [`TOPIC`], so that they
//! can be listed, and replayed after a fix. Events that came too late for a view are listed there as well, if it asks for it.
//! They are rows, which are in the archive and in the next version: to replay them would count them twice.
//!
//! A record that was found in the log itself is recorded once, also if its finder does its work again after a
//! crash: the rejects of a partition are recorded in the order of their offsets, and nothing at or below the highest
//! one recorded is recorded again, as long as retention leaves that one. What is late is so for each view by itself: it and
//! the bad records, which others find, each have a highest offset of their own.
//!
//! A client may send millions of them at once. They are appended in chunks, as they are found, and nobody waits for them
//! but the client: what this process has appended itself it counts without reading it, and what others have, bit by bit.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_log::clock::Clock;
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Append, Idempotency, Log, LogError, PayloadsBuilder, ReadLimit, Retention};
use anabranch_plan::time::format_timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The topic that holds the rejects. It has one partition.
pub const TOPIC: &str = "_rejects";

/// How many bytes of a rejected record are kept.
pub const MAX_RECORD_BYTES: usize = 4 << 10;

/// How many rejects are appended, or read back, at once.
const CHUNK: usize = 1_000;

/// How many that others recorded are read at most for a count.
const COUNTED_AT_ONCE: u64 = 20 * CHUNK as u64;

/// So many chunks of our own may wait until what lies before them is counted.
const MAX_AHEAD: usize = 1_000;

/// For how long a count is taken as it was: every answer asks for it, and the log may be far away.
const COUNTED_FOR: Duration = Duration::from_millis(100);

/// A record that was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The topic that it was found in, or sent to.
    pub topic: String,
    /// The partition that it was found in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<Partition>,
    /// Its offset, if it is in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// Its line in what a client sent, if it never reached the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The view that it came too late for, if it is a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// How far behind the watermark it came then, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_ms: Option<i64>,
    /// What is wrong with it.
    pub reason: String,
    /// Its text: at most [`MAX_RECORD_BYTES`], what is not UTF-8 replaced.
    pub record: String,
    /// When it was rejected, in RFC 3339.
    pub rejected_at: String,
}

/// Some rejects, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Page {
    /// The rejects.
    pub rejects: Vec<Rejected>,
    /// The cursor of the next page; none if there is no more.
    pub next: Option<Offset>,
}

/// The rejects log.
pub struct RejectLog {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
    /// Held by whoever records what was found in the log, from looking whether it is new to having it appended.
    recording: Mutex<()>,
}

/// What the topic held when it was last looked at.
#[derive(Debug, Default)]
struct Seen {
    next: Offset,
    /// What lies before `next`.
    tally: Tally,
    /// Chunks at `next` or later that were appended here, by where they begin: where they end, and what they hold.
    ahead: BTreeMap<Offset, (Offset, Tally)>,
    /// When it was; none if something was recorded since.
    at: Option<Instant>,
}

/// What is known of some rejects.
#[derive(Debug, Default)]
struct Tally {
    /// How many of each topic are no rows, and how many are late.
    counts: BTreeMap<String, [u64; 2]>,
    /// The highest offset recorded: of what is no row, or came too late for a view.
    recorded: BTreeMap<Kind, Offset>,
}

/// A topic, a partition, and the view that something came too late for.
type Kind = (String, Partition, Option<String>);

impl Tally {
    fn add(&mut self, topic: &str, place: Option<(Partition, Offset)>, view: Option<&str>) {
        if !self.counts.contains_key(topic) {
            self.counts.insert(topic.to_owned(), [0, 0]);
        }
        if let Some(counts) = self.counts.get_mut(topic) {
            counts[usize::from(view.is_some())] += 1;
        }
        if let Some((partition, offset)) = place {
            self.raise((topic.to_owned(), partition, view.map(str::to_owned)), offset);
        }
    }

    fn raise(&mut self, kind: Kind, offset: Offset) {
        let highest = self.recorded.entry(kind).or_default();
        *highest = offset.max(*highest);
    }

    fn merge(&mut self, other: Self) {
        for (topic, [bad, late]) in other.counts {
            let counts = self.counts.entry(topic).or_default();
            *counts = [counts[0] + bad, counts[1] + late];
        }
        other.recorded.into_iter().for_each(|(kind, offset)| self.raise(kind, offset));
    }
}

/// A stored reject, as far as it is counted.
#[derive(Deserialize)]
struct Counted<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    partition: Option<Partition>,
    offset: Option<Offset>,
    #[serde(borrow, default)]
    view: Option<Cow<'a, str>>,
}

impl Seen {
    /// Takes in what was appended here and lies at `next`.
    fn take_own(&mut self) {
        while let Some((end, tally)) = self.ahead.remove(&self.next) {
            self.tally.merge(tally);
            self.next = end;
        }
    }
}

impl fmt::Debug for RejectLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectLog").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl RejectLog {
    /// Opens the rejects log, which is created if need be, and reads what it holds.
    pub fn open(log: Arc<dyn Log>, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        log.create_topic(TOPIC, 1)?;
        let opened = Self { log, clock, seen: Mutex::default(), recording: Mutex::default() };
        opened.catch_up(&mut opened.seen.lock(), u64::MAX)?;
        Ok(opened)
    }

    /// A reject as of now.
    pub fn rejected(&self, topic: &str, reason: String, record: &[u8]) -> Rejected {
        Rejected {
            topic: topic.to_owned(),
            partition: None,
            offset: None,
            line: None,
            view: None,
            behind_ms: None,
            reason,
            record: excerpt(record),
            rejected_at: format_timestamp(self.clock.now()),
        }
    }

    /// Records rejects that were found in the log durably, but for those whose offset was recorded already. Those of a
    /// partition are given in the order of their offsets, in this call and from call to call.
    pub fn record(&self, rejects: &[Rejected]) -> Result<(), LogError> {
        let _one_by_one = self.recording.lock();
        let new: Vec<Rejected> = {
            let mut seen = self.seen.lock();
            self.catch_up(&mut seen, u64::MAX)?;
            let is_new = |reject: &&Rejected| {
                let (Some(partition), Some(offset)) = (reject.partition, reject.offset) else { return true };
                let kind = (reject.topic.clone(), partition, reject.view.clone());
                seen.tally.recorded.get(&kind).is_none_or(|&recorded| offset > recorded)
            };
            rejects.iter().filter(is_new).cloned().collect()
        };
        self.record_sent(new, None)
    }

    /// Records rejects that a client sent durably: if there is a `key`, once for each, however often it is asked to.
    pub fn record_sent(&self, rejects: impl IntoIterator<Item = Rejected>, key: Option<&str>) -> Result<(), LogError> {
        let mut rejects = rejects.into_iter().peekable();
        let mut chunk = 0;
        while rejects.peek().is_some() {
            let (mut records, mut tally) = (PayloadsBuilder::default(), Tally::default());
            for reject in rejects.by_ref().take(CHUNK) {
                tally.add(&reject.topic, reject.partition.zip(reject.offset), reject.view.as_deref());
                records.push(&serde_json::to_vec(&reject).unwrap_or_default());
            }
            let key = key.map(|key| format!("{key} {chunk}"));
            let idempotency = key.map(|key| Idempotency { key, digest: None, note: Vec::new() });
            let records = records.finish();
            let count = records.len() as u64;
            let append = Append { parts: vec![(0, records)], idempotency, ..Append::default() };
            let appended = self.log.append(TOPIC, append)?;
            let mut seen = self.seen.lock();
            seen.at = None;
            // On Kafka others' records may lie between ours.
            if let (None, Some(range)) = (appended.repeated, appended.offsets.get(&0))
                && range.end - range.start == count
                && seen.ahead.len() < MAX_AHEAD
            {
                seen.ahead.insert(range.start, (range.end, tally));
                seen.take_own();
            }
            chunk += 1;
        }
        Ok(())
    }

    /// Deletes what is too old or too much. On Kafka the topic's own retention holds as well, and nothing is deleted for its size.
    pub fn retain(&self, retention: Retention) -> Result<(), LogError> {
        self.log.retain(TOPIC, retention, &Positions::from([(0, Offset::MAX)]))
    }

    /// How many records are no rows, of one topic or of all: those held when this was opened, and those since. Those that
    /// another process recorded are counted a moment later.
    pub fn count(&self, topic: Option<&str>) -> Result<u64, LogError> {
        Ok(self.counts(topic)?[0])
    }

    /// The same with those that came too late.
    pub fn total(&self, topic: Option<&str>) -> Result<u64, LogError> {
        Ok(self.counts(topic)?.iter().sum())
    }

    fn counts(&self, topic: Option<&str>) -> Result<[u64; 2], LogError> {
        let mut seen = self.seen.lock();
        if seen.at.is_none_or(|at| at.elapsed() >= COUNTED_FOR) {
            // What has yet to be read is read for the next count.
            seen.at = self.catch_up(&mut seen, COUNTED_AT_ONCE)?.then(Instant::now);
        }
        let counts = seen.tally.counts.iter().filter(|(name, _)| topic.is_none_or(|topic| topic == *name));
        Ok(counts.fold([0, 0], |[bad, late], (_, counts)| [bad + counts[0], late + counts[1]]))
    }

    /// The newest rejects, of one topic or of all, before the cursor if there is one.
    pub fn list(&self, topic: Option<&str>, cursor: Option<Offset>, limit: usize) -> Result<Page, LogError> {
        let held = self.log.bounds(TOPIC)?.remove(&0).unwrap_or(0..0);
        let mut end = cursor.unwrap_or(held.end).min(held.end);
        let mut page = Page::default();
        while end > held.start {
            let start = end.saturating_sub(CHUNK as u64).max(held.start);
            let mut chunk = VecDeque::new();
            self.read(start, end, |offset, record| {
                let reject: Rejected = serde_json::from_slice(record)?;
                if topic.is_none_or(|topic| topic == reject.topic) {
                    chunk.push_front((offset, reject));
                }
                Ok(())
            })?;
            for (offset, reject) in chunk {
                if page.rejects.len() == limit {
                    return Ok(page);
                }
                page.rejects.push(reject);
                page.next = Some(offset);
            }
            end = start;
        }
        page.next = None;
        Ok(page)
    }

    /// Takes note of what was recorded since, by whomever, and reads about `most` rejects for it. Whether that was all.
    fn catch_up(&self, seen: &mut Seen, most: u64) -> Result<bool, LogError> {
        let held = self.log.bounds(TOPIC)?.remove(&0).unwrap_or(0..0);
        let stop = held.end.min(seen.next.max(held.start).saturating_add(most));
        seen.take_own();
        while seen.next < stop {
            let from = seen.next.max(held.start);
            let own = seen.ahead.range(from..).next().map_or(Offset::MAX, |(&start, _)| start);
            let to = stop.min(own);
            let tally = &mut seen.tally;
            self.read(from, to, |_, record| {
                let Counted { topic, partition, offset, view } = serde_json::from_slice(record)?;
                tally.add(&topic, partition.zip(offset), view.as_deref());
                Ok(())
            })?;
            seen.next = to.max(from);
            seen.take_own();
        }
        seen.ahead = seen.ahead.split_off(&seen.next);
        Ok(seen.next >= held.end)
    }

    /// Reads the rejects at offsets from `start` to before `end`, all of which the log has had.
    fn read(
        &self,
        start: Offset,
        end: Offset,
        mut each: impl FnMut(Offset, &[u8]) -> serde_json::Result<()>,
    ) -> Result<(), LogError> {
        if start >= end {
            return Ok(());
        }
        let mut reader = self.log.reader(TOPIC, &Positions::from([(0, start)]))?;
        let limit = ReadLimit { records: CHUNK, bytes: 8 << 20 };
        // Compaction may have left nothing up to `end`, hence the limit to waiting.
        loop {
            let batch = match reader.poll(limit, Duration::from_secs(1)) {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                // Retention was faster.
                Err(LogError::OutOfRange { held, .. }) if held.start > start => {
                    return self.read(held.start, end, each);
                }
                Err(error) => return Err(error),
            };
            for (&offset, payload) in batch.offsets.iter().zip(batch.payloads.iter()) {
                if offset >= end {
                    return Ok(());
                }
                if let Err(error) = each(offset, payload) {
                    tracing::warn!(offset, %error, "a record of the rejects log can't be read");
                }
            }
            if batch.coverage.end >= end {
                break;
            }
        }
        Ok(())
    }
}

/// A record's text, cut at a character.
fn excerpt(record: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(&record[..record.len().min(MAX_RECORD_BYTES)]).into_owned();
    if record.len() > MAX_RECORD_BYTES {
        text.truncate(text.trim_end_matches('\u{fffd}').len());
    }
    text.truncate(text.floor_char_boundary(MAX_RECORD_BYTES));
    text
}
