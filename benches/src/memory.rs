//! More keys than memory: what the process takes at most, and whether the bounds hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_shared::clock::SystemClock;
use anabranch_shared::log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_shared::log::{Append, Log, Payloads};
use anabranch_shared::partial::{self, Part, Scope};
use anabranch_speed_layer::Memory;
use tokio_util::sync::CancellationToken;

use super::stream::planned;
use super::{in_folder, millions, per_second, report, speed_context, timed};
use anabranch::failure::Failure;

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

/// Folds so many distinct keys of one window into two views that may take `limit` bytes together, and prints.
pub fn run(keys: u64, limit: u64) -> Result<(), Failure> {
    in_folder(|folder| {
        let log = Arc::new(EmbeddedLog::open(folder.join("log"), EmbeddedOptions::default(), Arc::new(SystemClock))?);
        let events = keys * SHARE / (SHARE - 1);
        let mut counts = BTreeMap::<String, i64>::new();
        log.create_topic("clicks", 1)?;
        for first in (0..events).step_by(50_000) {
            let keys = (first..events.min(first + 50_000)).map(key);
            let record = |key: String| {
                let line = format!("{{\"k\":\"{key}\",\"ts\":1705276800000}}");
                if key.starts_with("heavy") {
                    *counts.entry(key).or_default() += 1;
                }
                line
            };
            let records: Payloads = keys.map(record).collect();
            log.append("clicks", Append { parts: vec![(0, records)], ..Append::default() })?;
        }

        let catalog = planned(SQL)?;
        let memory = Memory::new(usize::try_from(limit).unwrap_or(usize::MAX));
        let context = speed_context(folder, log, &catalog, memory)?;
        // From here on its own peak counts.
        std::fs::write("/proc/self/clear_refs", "5")?;
        let before = status("VmRSS")?;
        let (layer, took) = timed(|| {
            let layer = anabranch_speed_layer::run(&context, &CancellationToken::new())?;
            let mut receiver = layer.snapshots().0["top"].clone();
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
            &millions(per_second(events, took)),
        );
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let share = |bytes: u64| format!("{:.0} % of the limit", bytes as f64 * 100.0 / limit as f64);
        report("resident before", mib(before), &format!("limit {}", mib(limit)));
        report("resident at most", mib(peak), &share(peak));
        report("what came to it", mib(peak - before), &share(peak - before));

        let snapshot = layer.snapshots().0["top"].borrow().clone();
        let parts = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.iter());
        let parts: Vec<_> = parts
            .map(|(&start, pane)| Part {
                partials: pane.partials.clone(),
                slack: pane.slack.map(|slack| (start, slack)),
            })
            .collect();
        let answer = partial::windows(&catalog.views["top"], &parts, Scope::All)?;
        let column = |name: &str| Ok::<_, Failure>(answer.rows.column(name)?.i64()?.clone());
        let (lower, upper) = (column("n_lower")?, column("n_upper")?);
        let named = answer.rows.column("k")?.str()?.clone();
        let rows = named.iter().zip(lower.iter().zip(upper.iter()));
        let holds = rows.map(|(key, (lower, upper))| {
            let truth = key.and_then(|key| counts.get(key)).copied().unwrap_or(1);
            Some(truth) >= lower && Some(truth) <= upper
        });
        let held = holds.filter(|held| *held).count();
        let width =
            upper.iter().zip(lower.iter()).filter_map(|(upper, lower)| Some(upper? - lower?)).max().unwrap_or(0);
        report(
            "bounds of the first ten that hold",
            format!("{held} of {}", named.len()),
            &format!("at most {width} apart"),
        );
        report(
            "the answer says that it degraded",
            answer.is_degraded.to_string(),
            &format!("certain: {}", answer.is_certain),
        );
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
