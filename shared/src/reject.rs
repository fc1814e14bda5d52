//! The rejects log: records that are no row of their table, kept with the reason in the topic [`TOPIC`], so that they
//! can be listed, and replayed after a fix. Events that came too late for a view are listed there as well, if it asks for it.
//! They are rows, which are in the archive and in the next version: to replay them would count them twice.
//!
//! A record that was found in the log itself is recorded once, also if its finder does its work again after a
//! crash: the rejects of a partition are recorded in the order of their offsets, and nothing at or below the highest
//! one recorded is recorded again. What is late is so for each view by itself: it and the bad records, which others find,
//! each have a highest offset of their own.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, format_timestamp};
use crate::log::{Append, Idempotency, Log, LogError, ReadLimit};
use crate::position::{Offset, Partition, Positions};

/// The topic that holds the rejects. It has one partition.
pub const TOPIC: &str = "_rejects";

/// How many bytes of a rejected record are kept.
pub const MAX_RECORD_BYTES: usize = 4 << 10;

/// How many rejects are appended, or read back, at once.
const CHUNK: usize = 1_000;

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
}

/// What the topic held when it was last looked at.
#[derive(Debug, Default)]
struct Seen {
    next: Offset,
    /// How many of each topic are no rows, and how many are late.
    counts: BTreeMap<String, [u64; 2]>,
    /// The highest offset recorded: of what is no row, or came too late for a view.
    recorded: BTreeMap<(String, Partition, Option<String>), Offset>,
    /// When it was; none if something was recorded since.
    at: Option<Instant>,
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
        let opened = Self { log, clock, seen: Mutex::default() };
        opened.catch_up(&mut opened.seen.lock())?;
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

    /// Records rejects durably, but for those whose offset was recorded already. Those of a partition are given in
    /// the order of their offsets, in this call and from call to call.
    pub fn record(&self, rejects: &[Rejected]) -> Result<(), LogError> {
        let mut seen = self.seen.lock();
        self.catch_up(&mut seen)?;
        let is_new = |reject: &&Rejected| {
            let (Some(partition), Some(offset)) = (reject.partition, reject.offset) else { return true };
            let kind = (reject.topic.clone(), partition, reject.view.clone());
            seen.recorded.get(&kind).is_none_or(|&recorded| offset > recorded)
        };
        let new = rejects.iter().filter(is_new).collect::<Vec<_>>();
        seen.at = None;
        self.append(&new, None)
    }

    /// Records rejects durably, once for each `key`, however often it is asked to.
    pub fn record_once(&self, key: &str, rejects: &[Rejected]) -> Result<(), LogError> {
        self.append(&rejects.iter().collect::<Vec<_>>(), Some(key))?;
        self.seen.lock().at = None;
        Ok(())
    }

    fn append(&self, rejects: &[&Rejected], key: Option<&str>) -> Result<(), LogError> {
        if rejects.is_empty() {
            return Ok(());
        }
        for (i, chunk) in rejects.chunks(CHUNK).enumerate() {
            let records = chunk.iter().map(|reject| serde_json::to_vec(reject).unwrap_or_default()).collect();
            let idempotency = key.map(|key| Idempotency { key: format!("{key} {i}"), note: Vec::new() });
            self.log.append(TOPIC, Append { parts: vec![(0, records)], idempotency, ..Append::default() })?;
        }
        Ok(())
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
            self.catch_up(&mut seen)?;
            seen.at = Some(Instant::now());
        }
        let counts = seen.counts.iter().filter(|(name, _)| topic.is_none_or(|topic| topic == *name));
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
            self.read(start, end, |offset, reject| {
                if topic.is_none_or(|topic| topic == reject.topic) {
                    chunk.push_front((offset, reject));
                }
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

    /// Takes note of what was recorded since, by whomever.
    fn catch_up(&self, seen: &mut Seen) -> Result<(), LogError> {
        let held = self.log.bounds(TOPIC)?.remove(&0).unwrap_or(0..0);
        let Seen { next, counts, recorded, .. } = seen;
        self.read((*next).max(held.start), held.end, |_, reject| {
            counts.entry(reject.topic.clone()).or_default()[usize::from(reject.view.is_some())] += 1;
            if let (Some(partition), Some(offset)) = (reject.partition, reject.offset) {
                let highest = recorded.entry((reject.topic, partition, reject.view)).or_default();
                *highest = offset.max(*highest);
            }
        })?;
        *next = held.end;
        Ok(())
    }

    /// Reads the rejects at offsets from `start` to before `end`, all of which the log has had.
    fn read(&self, start: Offset, end: Offset, mut each: impl FnMut(Offset, Rejected)) -> Result<(), LogError> {
        if start >= end {
            return Ok(());
        }
        let mut reader = self.log.reader(TOPIC, &Positions::from([(0, start)]))?;
        let limit = ReadLimit { records: CHUNK, bytes: 8 << 20 };
        // Compaction may have left nothing up to `end`, hence the limit to waiting.
        while let Some(batch) = reader.poll(limit, Duration::from_secs(1))? {
            for (&offset, payload) in batch.offsets.iter().zip(batch.payloads.iter()) {
                if offset >= end {
                    return Ok(());
                }
                match serde_json::from_slice(payload) {
                    Ok(reject) => each(offset, reject),
                    Err(error) => tracing::warn!(offset, %error, "a record of the rejects log can't be read"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::ingest::tests::MemoryLog;

    fn open(log: &MemoryLog) -> RejectLog {
        let clock = ManualClock::new(1_705_314_645_123_000);
        RejectLog::open(Arc::new(log.clone()), Arc::new(clock)).expect("open")
    }

    fn at(rejects: &RejectLog, topic: &str, partition: Partition, offset: Offset) -> Rejected {
        let reject = rejects.rejected(topic, "not JSON".to_owned(), b"{");
        Rejected { partition: Some(partition), offset: Some(offset), ..reject }
    }

    #[test]
    fn what_is_in_the_log_is_recorded_once() {
        let log = MemoryLog::default();
        let rejects = open(&log);
        let found =
            [at(&rejects, "a", 0, 0), at(&rejects, "a", 0, 7), at(&rejects, "a", 1, 3), at(&rejects, "b", 0, 1)];
        rejects.record(&found[..2]).expect("recorded");
        rejects.record(&found).expect("recorded");
        let reopened = open(&log);
        reopened.record(&found).expect("recorded");
        rejects.record(&found).expect("recorded");
        reopened.record(&[at(&rejects, "a", 0, 8)]).expect("recorded");
        rejects.record(&[at(&rejects, "a", 0, 8)]).expect("recorded by the other");
        for rejects in [&rejects, &reopened] {
            assert_eq!(rejects.count(None).expect("count"), 5);
            assert_eq!(rejects.count(Some("a")).expect("count"), 4);
            assert_eq!(rejects.count(Some("c")).expect("count"), 0);
        }
        assert_eq!(
            log.records(TOPIC, 0)[1],
            r#"{"topic":"a","partition":0,"offset":7,"reason":"not JSON","record":"{","rejected_at":"2024-01-15T10:30:45.123Z"}"#
        );
    }

    /// The archive finds bad records long after the speed layer has found late events behind them, or long before.
    #[test]
    fn what_is_late_and_what_is_bad_are_recorded_each_in_its_own_order() {
        let log = MemoryLog::default();
        let rejects = open(&log);
        let late = |view: &str, offset| {
            let reject = at(&rejects, "a", 0, offset);
            Rejected { view: Some(view.to_owned()), behind_ms: Some(1_500), reason: "late".to_owned(), ..reject }
        };
        rejects.record(&[late("v", 2), late("v", 9)]).expect("recorded");
        rejects.record(&[at(&rejects, "a", 0, 3), at(&rejects, "a", 0, 9)]).expect("recorded");
        rejects.record(&[late("w", 2)]).expect("recorded");
        let again = [late("v", 2), at(&rejects, "a", 0, 3), late("v", 9), at(&rejects, "a", 0, 9), late("w", 2)];
        open(&log).record(&[&again[..], &[late("v", 10)]].concat()).expect("recorded");
        for rejects in [&rejects, &open(&log)] {
            // Only what is no row counts as rejected.
            assert_eq!((rejects.count(Some("a")).expect("count"), rejects.total(None).expect("total")), (2, 6));
        }
        let listed = rejects.list(None, None, 10).expect("page").rejects;
        let listed = listed.iter().map(|reject| (reject.offset, reject.view.as_deref())).collect::<Vec<_>>();
        let (v, w) = (Some("v"), Some("w"));
        assert_eq!(listed, [(Some(10), v), (Some(2), w), (Some(9), None), (Some(3), None), (Some(9), v), (Some(2), v)]);
        assert!(log.records(TOPIC, 0)[0].contains(r#""view":"v","behind_ms":1500,"reason":"late""#));
    }

    #[test]
    fn pages_go_from_new_to_old() {
        let log = MemoryLog::default();
        let rejects = open(&log);
        assert_eq!(rejects.list(None, None, 10).expect("page"), Page::default());
        let all = (0..2_500).map(|i| at(&rejects, if i % 5 == 0 { "a" } else { "b" }, 0, i)).collect::<Vec<_>>();
        rejects.record(&all).expect("recorded");
        let (mut listed, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = rejects.list(Some("a"), cursor, 125).expect("page");
            listed.extend(page.rejects.iter().map(|reject| reject.offset.expect("an offset")));
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(pages, 4, "no empty page at the end");
        assert_eq!(listed, (0..500).rev().map(|i| i * 5).collect::<Vec<_>>());
    }

    #[test]
    fn long_records_are_cut_and_stay_text() {
        let rejects = open(&MemoryLog::default());
        let kept = |record: &[u8]| rejects.rejected("a", String::new(), record).record;
        assert_eq!(kept("😀".repeat(2_000).as_bytes()), "😀".repeat(1_024));
        assert_eq!(kept(format!("x{}", "😀".repeat(2_000)).as_bytes()), format!("x{}", "😀".repeat(1_023)));
        assert_eq!(kept(b"a\xffb"), "a\u{fffd}b");
        assert!(kept(&[0xff; 5_000]).len() <= MAX_RECORD_BYTES);
    }
}
