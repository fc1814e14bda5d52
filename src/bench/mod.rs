//! `anabranch bench`: figures that mean something on any machine, as each stands beside a peer or a limit that was
//! measured in the same run.

mod aggregate;
mod batch;
mod freshness;
mod memory;
mod rebalance;
mod serve;
mod speed;
mod stream;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_shared::clock::SystemClock;
use anabranch_shared::log::Log;
use anabranch_shared::reject::RejectLog;
use anabranch_shared::storage::{Location, Storage};
use anabranch_shared::version::Versions;
use anabranch_shared::view::Catalog;
use anabranch_speed_layer::{Checkpoints, Context, Memory, Settings};

use crate::cli::BenchKind;
use crate::failure::Failure;

/// Runs a benchmark and prints its figures.
pub async fn run(what: BenchKind) -> Result<ExitCode, Failure> {
    match what {
        BenchKind::Speed { events } => {
            blocking(move || speed::run(events)).await?;
            blocking(aggregate::run).await?;
        }
        BenchKind::Memory { keys, limit } => blocking(move || memory::run(keys, limit)).await?,
        BenchKind::Kafka { brokers, events } => blocking(move || speed::run_kafka(&brokers, events)).await?,
        BenchKind::Rebalance { brokers, deaths } => rebalance::run(&brokers, deaths).await?,
        BenchKind::Batch { events, keep } => batch::run(events, keep).await?,
        BenchKind::Freshness { rate, seconds } => freshness::run(rate, seconds).await?,
        BenchKind::Serve { seconds } => serve::run(seconds).await?,
        BenchKind::All => {
            blocking(|| speed::run(8_000_000)).await?;
            blocking(aggregate::run).await?;
            batch::run(20_000_000, None).await?;
            freshness::run(10_000, 30).await?;
            serve::run(10).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn blocking(work: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Result<(), Failure> {
    tokio::task::spawn_blocking(work).await?
}

/// A line of a report: what was measured, how much of it a second, and beside what.
fn report(what: &str, figure: String, beside: &str) {
    println!("{what:<58} {figure:>18}  {beside}");
}

fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn millions(rate: f64) -> String {
    format!("{:.2} million/s", rate / 1e6)
}

fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(T, Duration), Failure> {
    let started = Instant::now();
    let value = work()?;
    Ok((value, started.elapsed()))
}

/// Works in a folder that is gone afterwards.
fn in_folder(work: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("anabranch-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = work(&folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

/// A speed layer that keeps its checkpoints in that folder.
fn speed_context(folder: &Path, log: Arc<dyn Log>, catalog: &Arc<Catalog>, memory: Memory) -> Result<Context, Failure> {
    let storage = Storage::open(Location::Folder(folder.join("checkpoints")), &BTreeMap::new())?;
    let clock = Arc::new(SystemClock);
    Ok(Context {
        rejects: Arc::new(RejectLog::open(Arc::clone(&log), clock.clone())?),
        log,
        catalog: Arc::clone(catalog),
        versions: Versions::default(),
        readings: Default::default(),
        checkpoints: Some(Checkpoints::new(storage, tokio::runtime::Handle::current())),
        outlets: None,
        clock,
        settings: Settings::default(),
        memory,
    })
}
