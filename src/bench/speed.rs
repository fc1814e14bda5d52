//! The speed layer end to end from the embedded log, beside reading the log alone and decoding alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_shared::clock::SystemClock;
use anabranch_shared::decode::Decoder;
use anabranch_shared::log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_shared::log::{Log, ReadLimit};
use anabranch_shared::partial::{self, Quality, Scope};
use anabranch_shared::position::Positions;
use anabranch_shared::version::Versions;
use anabranch_speed_layer::{Checkpoints, Context, Settings};
use polars::prelude::{IntoLazy, UnionArgs, concat};
use tokio_util::sync::CancellationToken;

use super::stream::{Tweets, catalog};
use super::{millions, per_second, report, timed};
use crate::failure::Failure;

const LIMIT: ReadLimit = ReadLimit { records: 65_536, bytes: 32 << 20 };

/// Measures and prints.
pub fn run(events: u64) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("anabranch-bench-{}", std::process::id()));
    let outcome = measure(events, &folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn measure(events: u64, folder: &std::path::Path) -> Result<(), Failure> {
    let catalog = catalog()?;
    let clock = Arc::new(SystemClock);
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder.join("log"), EmbeddedOptions::default(), clock.clone())?);
    log.create_topic("tweets", 1)?;
    let ((), took) = timed(|| Tweets::fill(&*log, "tweets", events))?;
    report("embedded log: generate and append, synced", millions(per_second(events, took)), "");

    let from = Positions::from([(0, 0)]);
    let (bytes, read) = timed(|| {
        let mut reader = log.reader("tweets", &from)?;
        let mut bytes = 0;
        while let Some(batch) = reader.poll(LIMIT, Duration::ZERO)? {
            bytes += batch.payloads.bytes().len();
        }
        Ok(bytes)
    })?;
    let bare = per_second(events, read);
    report("embedded log: bare read", millions(bare), &format!("{} bytes an event", bytes as u64 / events));

    let ((), decoded) = timed(|| {
        let mut reader = log.reader("tweets", &from)?;
        let mut decoder = Decoder::new(Arc::clone(&catalog.tables["tweets"]));
        while let Some(batch) = reader.poll(LIMIT, Duration::ZERO)? {
            std::hint::black_box(decoder.decode(&batch.payloads, &batch.log_times));
        }
        Ok(())
    })?;
    report("read and decode, one thread", millions(per_second(events, decoded)), "");

    let context = Context {
        log,
        catalog: Arc::clone(&catalog),
        versions: Versions::default(),
        checkpoints: Some(Checkpoints::new(folder.join("checkpoints"))),
        clock,
        settings: Settings::default(),
    };
    let shutdown = CancellationToken::new();
    let started = Instant::now();
    let layer = anabranch_speed_layer::run(&context, &shutdown)?;
    let view = &catalog.views["trending_hashtags"];
    let snapshots = layer.snapshots();
    let mut receiver = snapshots.0["trending_hashtags"].clone();
    let mut answers = 0;
    let runtime = tokio::runtime::Handle::current();
    // A reader asks for the newest window's first hundred each time that there is something new.
    let took = loop {
        runtime.block_on(receiver.changed())?;
        let snapshot = receiver.borrow_and_update().clone();
        if let Some(reason) = &snapshot.stopped {
            return Err(Failure::new(reason.clone()));
        }
        answers += usize::from(top_hundred(view, &snapshot)? > 0);
        if snapshot.coverage.next(0) == events {
            break started.elapsed();
        }
    };
    layer.stop();
    let rate = per_second(events, took);
    let beside = format!("{:.0} % of the bare read; {answers} top-100 answers meanwhile", rate / bare * 100.0);
    report("speed layer: read to top-100, checkpoints on", millions(rate), &beside);
    Ok(())
}

fn top_hundred(
    view: &anabranch_shared::view::View,
    snapshot: &anabranch_shared::snapshot::Snapshot,
) -> Result<usize, Failure> {
    let window = view.window.expect("the benchmark's view has windows");
    let Some(last) = snapshot.chunks.iter().filter_map(|chunk| chunk.panes.keys().next_back()).max() else {
        return Ok(0);
    };
    let start = last + window.pane() - window.size;
    let panes = snapshot.chunks.iter().flat_map(|chunk| chunk.panes.range(start..start + window.size));
    let frames: Vec<_> = panes.map(|(_, pane)| pane.partials.clone().lazy()).collect();
    let partials = concat(frames, UnionArgs::default())?;
    Ok(partial::windows(view, partials, Scope::One(start), Quality::default())?.collect()?.height())
}
