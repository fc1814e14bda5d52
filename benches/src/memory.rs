//! More keys than memory, of events of which three in ten come late: what the process takes at most, and whether the bounds
//! hold. Snapshots are made for other processes as a speed worker makes them, and go nowhere.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use anabranch::failure::Failure;
use anabranch_engine::partial::{self, Part, Scope};
use anabranch_exchange::snapshot::wire;
use anabranch_log::clock::SystemClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Append, Appended, Log, LogError, LogReader, Payloads, Retention};
use anabranch_speed_layer::Memory;
use tokio_util::sync::CancellationToken;

use super::stream::planned;
use super::{in_folder, millions, per_second, report, speed_context, timed};

const SQL: &str = r"
CREATE TABLE clicks (k TEXT, ts TIMESTAMP NOT NULL) WITH (topic = 'clicks', event_time = 'ts');
CREATE MATERIALIZED VIEW top WITH (max_rows = 4000000000) AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(clicks, ts, INTERVAL '1 hour') GROUP BY window_start, window_end, k ORDER BY n DESC LIMIT 10;
CREATE MATERIALIZED VIEW each WITH (max_rows = 4000000000) AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(clicks, ts, INTERVAL '1 hour') GROUP BY window_start, window_end, k;
";

/// So many keys come often; the others come once.
const HEAVY: u64 = 50;

/// One in so many events is of a heavy key.
const SHARE: u64 = 8;

/// The key of an event: of heavy ones the first are the heaviest.
fn key(event: u64) -> String {
    let mixed = event.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    if event.is_multiple_of(SHARE) {
        let at = (mixed >> 33) % (HEAVY * (HEAVY + 1) / 2);
        let rank = (0..HEAVY).find(|rank| (rank + 1) * HEAVY - rank * (rank + 1) / 2 > at).unwrap_or(0);
        format!("heavy-{rank:02}")
    } else {
        format!("visitor-{mixed:016x}")
    }
}

/// 2024-01-15T00:00:00Z and two hours later, in milliseconds: the windows that all events are in.
const HOURS: [u64; 2] = [1_705_276_800_000, 1_705_284_000_000];

/// Which of the hours an event is in, and whether it is late. Of `events` the first 35 % are in the first hour. Of the others
/// 6 in 13 are, too, and are late as the second hour has begun: 30 % of all.
fn place(event: u64, events: u64) -> (usize, bool) {
    let has_begun = event >= events * 35 / 100;
    let is_late = has_begun && (event - events * 35 / 100) % 13 % 2 == 1;
    (usize::from(has_begun && !is_late), is_late)
}

/// A log that takes the snapshots that are sent to other processes, and keeps none.
struct Unread(EmbeddedLog);

impl Log for Unread {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), LogError> {
        self.0.create_topic(topic, partitions)
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        self.0.topics()
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        self.0.bounds(topic)
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let is_snapshot = topic == wire::topic("clicks");
        if is_snapshot {
            Ok(Appended { offsets: BTreeMap::new(), repeated: None })
        } else {
            self.0.append(topic, append)
        }
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        self.0.reader(topic, from)
    }

    fn retain(&self, topic: &str, retention: Retention, keep_from: &Positions) -> Result<(), LogError> {
        if topic == wire::topic("clicks") { Ok(()) } else { self.0.retain(topic, retention, keep_from) }
    }
}

/// Folds so many distinct keys of two windows into two views that may take `limit` bytes together, and prints.
pub fn run(keys: u64, limit: u64) -> Result<(), Failure> {
    in_folder(|folder| {
        let log = EmbeddedLog::open(folder.join("log"), EmbeddedOptions::default(), Arc::new(SystemClock))?;
        let events = keys * SHARE / (SHARE - 1);
        // By hour and key how many came in time, and how many in all.
        let (mut counts, mut late) = (BTreeMap::<(usize, String), (i64, i64)>::new(), 0);
        log.create_topic("clicks", 1)?;
        for first in (0..events).step_by(50_000) {
            let record = |event: u64| {
                let (key, (hour, is_late)) = (key(event), place(event, events));
                let line = format!("{{\"k\":\"{key}\",\"ts\":{}}}", HOURS[hour]);
                late += u64::from(is_late);
                if key.starts_with("heavy") {
                    let count = counts.entry((hour, key)).or_default();
                    *count = (count.0 + i64::from(!is_late), count.1 + 1);
                }
                line
            };
            let records: Payloads = (first..events.min(first + 50_000)).map(record).collect();
            log.append("clicks", Append { parts: vec![(0, records)], ..Append::default() })?;
        }

        let catalog = planned(SQL)?;
        let memory = Memory::new(usize::try_from(limit).unwrap_or(usize::MAX));
        let view = catalog.kept_view("top").ok_or_else(|| Failure::new("no such view"))?;
        let context = speed_context(folder, Arc::new(Unread(log)), &catalog, memory)?;
        // From here on its own peak counts.
        std::fs::write("/proc/self/clear_refs", "5")?;
        let before = status("VmRSS")?;
        let (layer, took) = timed(|| {
            let layer = anabranch_speed_layer::run_partition(&context, "clicks", 0, &CancellationToken::new())?;
            let mut receiver = layer.snapshots().0[&view.id].clone();
            while receiver.borrow_and_update().coverage.len() < events {
                if let Some(reason) = &receiver.borrow().stopped {
                    return Err(Failure::new(reason.clone()));
                }
                tokio::runtime::Handle::current().block_on(receiver.changed())?;
            }
            Ok(layer)
        })?;
        let peak = status("VmHWM")?;
        report(
            "events of so many keys, of which 50 come often",
            format!("{:.1} M keys", keys as f64 / 1e6),
            &format!("{}, {:.0} % late", millions(per_second(events, took)), late as f64 * 100.0 / events as f64),
        );
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let share = |bytes: u64| format!("{:.0} % of the limit", bytes as f64 * 100.0 / limit as f64);
        report("resident before", mib(before), &format!("limit {}", mib(limit)));
        report("resident at most", mib(peak), &share(peak));
        report("what came to it", mib(peak - before), &share(peak - before));
        let counted = layer.metrics().values().map(|numbers| numbers.state_bytes).sum::<u64>();
        report("counted at last, by which the limit goes", mib(counted), &share(counted));

        let snapshot = layer.snapshots().0[&view.id].borrow().clone();
        let parts = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.iter());
        let parts: Vec<_> = parts
            .map(|(&start, pane)| Part {
                partials: pane.partials.clone(),
                slack: pane.slack.map(|slack| (start, slack)),
            })
            .collect();
        for (hour, what) in [(0, "of the hour with late events"), (1, "of the hour without")] {
            let answer = partial::windows(view.aggregation(), &parts, Scope::One(HOURS[hour].cast_signed() * 1_000))?;
            let column = |name: &str| Ok::<_, Failure>(answer.rows.column(name)?.i64()?.clone());
            let (lower, upper) = (column("n_lower")?, column("n_upper")?);
            let named = answer.rows.column("k")?.str()?.clone();
            // Of a key that comes once, it came in time: it wouldn't be named otherwise.
            let truth = |key: &str| counts.get(&(hour, key.to_owned())).copied().unwrap_or((1, 1));
            let rows = named.iter().zip(lower.iter().zip(upper.iter()));
            let rows: Vec<_> = rows.filter_map(|(key, (lower, upper))| Some((truth(key?), lower?, upper?))).collect();
            let held = |truth: fn((i64, i64)) -> i64| {
                let held = rows.iter().filter(|&&(of, lower, upper)| (lower..=upper).contains(&truth(of))).count();
                format!("{held} of {}", named.len())
            };
            let width = rows.iter().map(|(_, lower, upper)| upper - lower).max().unwrap_or(0);
            let largest = rows.iter().map(|((_, all), ..)| *all).max().unwrap_or(0);
            report(
                &format!("bounds of the first ten {what} that hold"),
                held(|(in_time, _)| in_time),
                &format!("{} with late events; at most {width} apart, of {largest}", held(|(_, all)| all)),
            );
            let certain = format!("certain: {}", answer.is_certain);
            report("the answer says that it degraded", answer.is_degraded.to_string(), &certain);
        }
        layer.stop();
        Ok(())
    })
}

/// A line of what the kernel says of this process, in bytes.
fn status(name: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Failure::new(format!("/proc/self/status has no {name}")))
}
