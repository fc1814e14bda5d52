//! `anabranch-bench`, as which `anabranch bench` runs: figures that mean something on any machine, as each stands beside a
//! peer or a limit that was measured in the same run.

mod across;
mod aggregate;
mod batch;
mod freshness;
mod memory;
mod rebalance;
mod serve;
mod speed;
mod stream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::failure::{self, Failure};
use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::version::Versions;
use anabranch_log::Log;
use anabranch_log::clock::SystemClock;
use anabranch_plan::view::Catalog;
use anabranch_speed_layer::{Checkpoints, Context, Memory, Settings};
use anabranch_store::storage::{Location, Storage};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure this machine, each figure beside a peer or a limit.
#[derive(Debug, Parser)]
#[command(name = "anabranch bench", bin_name = "anabranch bench", version)]
struct Cli {
    /// What to measure.
    #[command(subcommand)]
    what: Bench,
}

/// The benchmarks.
#[derive(Debug, Clone, Subcommand)]
enum Bench {
    /// Events per second through the speed layer, beside reading the log alone and decoding alone.
    Speed {
        /// How many events.
        #[arg(long, default_value_t = 8_000_000)]
        events: u64,
    },
    /// Events per second from a Kafka cluster through the speed layer, beside rdkafka reading and dropping the same topic.
    Kafka {
        /// The cluster.
        #[arg(long, env = "ANABRANCH_BENCH_KAFKA", value_name = "HOST:PORT")]
        brokers: String,
        /// How many events.
        #[arg(long, default_value_t = 8_000_000)]
        events: u64,
    },
    /// From the death of a speed worker until its partitions answer fresh again, on a Kafka cluster.
    Rebalance {
        /// The cluster.
        #[arg(long, env = "ANABRANCH_BENCH_KAFKA", value_name = "HOST:PORT")]
        brokers: String,
        /// How many deaths.
        #[arg(long, default_value_t = 20)]
        deaths: usize,
    },
    /// More distinct keys than memory: what the process takes at most, and whether the answers' bounds hold.
    Memory {
        /// How many distinct keys.
        #[arg(long, default_value_t = 50_000_000)]
        keys: u64,
        /// How many bytes the process may take.
        #[arg(long, default_value = "2 GiB", value_parser = anabranch_plan::unit::parse_bytes)]
        limit: u64,
    },
    /// Recompute of a view from Parquet, beside DuckDB on the same files.
    Batch {
        /// How many events.
        #[arg(long, default_value_t = 20_000_000)]
        events: u64,
        /// A folder that keeps the archive for the next run.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// Events per second through joins and LAG, beside DuckDB on the same rows.
    Across {
        /// How many events of each table.
        #[arg(long, default_value_t = 2_000_000)]
        events: usize,
        /// How many keys they have.
        #[arg(long, default_value_t = 1_000_000)]
        keys: u32,
        /// A Kafka cluster for the log, instead of the embedded one.
        #[arg(long, env = "ANABRANCH_BENCH_KAFKA", value_name = "HOST:PORT")]
        brokers: Option<String>,
    },
    /// From the ingest answer to being visible in the rows, at a steady rate.
    Freshness {
        /// Events per second.
        #[arg(long, default_value_t = 10_000)]
        rate: u32,
        /// For how many seconds.
        #[arg(long, default_value_t = 30)]
        seconds: u32,
    },
    /// Requests per second of a rows answer, beside a fixed answer of the same server (needs wrk).
    Serve {
        /// For how many seconds each.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// All of them that need no Kafka.
    All,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("ANABRANCH_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    failure::run(run(cli.what))
}

/// Runs a benchmark and prints its figures.
async fn run(what: Bench) -> Result<ExitCode, Failure> {
    match what {
        Bench::Speed { events } => {
            blocking(move || speed::run(events)).await?;
            blocking(aggregate::run).await?;
        }
        Bench::Memory { keys, limit } => blocking(move || memory::run(keys, limit)).await?,
        Bench::Kafka { brokers, events } => blocking(move || speed::run_kafka(&brokers, events)).await?,
        Bench::Rebalance { brokers, deaths } => rebalance::run(&brokers, deaths).await?,
        Bench::Batch { events, keep } => batch::run(events, keep).await?,
        Bench::Across { events, keys, brokers } => {
            blocking(move || across::run(events, keys, brokers.as_deref())).await?
        }
        Bench::Freshness { rate, seconds } => freshness::run(rate, seconds).await?,
        Bench::Serve { seconds } => serve::run(seconds).await?,
        Bench::All => {
            blocking(|| speed::run(8_000_000)).await?;
            blocking(aggregate::run).await?;
            batch::run(20_000_000, None).await?;
            blocking(|| across::run(2_000_000, 1_000_000, None)).await?;
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
