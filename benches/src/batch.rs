//! Recompute of a view from the archive's Parquet files, beside DuckDB on the same files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::failure::Failure;
use anabranch_batch_layer::archive::ArchiveSnapshot;
use anabranch_batch_layer::recompute::Recompute;
use anabranch_batch_layer::scan::scan;
use anabranch_batch_layer::{BatchLayer, BatchSettings};
use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::reject::RejectLog;
use anabranch_log::Log;
use anabranch_log::clock::{Clock, SystemClock};
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_plan::view::Kept;
use polars::prelude::{Engine, col};
use tokio_util::sync::CancellationToken;

use super::stream::{Tweets, catalog};
use super::{millions, per_second, report};

/// How often each is run; the median counts.
const ROUNDS: usize = 3;

/// What `\w` is in RE2's classes, so that both find the same hashtags.
const HASHTAG: &str = r"#[\p{L}\p{M}\p{Nd}\p{Pc}]+";

/// Measures and prints. With `keep`, the archive is taken from that folder, or left there for the next run.
pub async fn run(events: u64, keep: Option<PathBuf>) -> Result<(), Failure> {
    let temporary = std::env::temp_dir().join(format!("anabranch-bench-batch-{}", std::process::id()));
    let folder = keep.clone().unwrap_or_else(|| temporary.clone());
    let outcome = measure(events, &folder).await;
    if keep.is_none() {
        std::fs::remove_dir_all(&temporary)?;
    }
    outcome
}

async fn measure(events: u64, folder: &Path) -> Result<(), Failure> {
    let catalog = catalog()?;
    let view = &catalog.kept_view("trending_hashtags").ok_or_else(|| Failure::new("no such view"))?;
    let archive = folder.join("archive/tweets");
    let kept = ArchiveSnapshot::open(&archive, view.table())
        .await?
        .filter(|archive| archive.archived.coverage.len() == events);
    let snapshot = match kept {
        Some(snapshot) => snapshot,
        None => fill(events, folder).await?,
    };
    let files: Vec<PathBuf> = snapshot.days.values().flatten().map(|file| archive.join(&file.path)).collect();
    let bytes = files.iter().map(|file| Ok(std::fs::metadata(file)?.len())).sum::<std::io::Result<u64>>()?;
    report(
        "archive",
        format!("{events} events"),
        &format!("{} MB of Parquet in {} files", bytes / 1_000_000, files.len()),
    );

    let (mut ours, mut users, mut best, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // In turn, so that a change of the machine's speed meets them all.
        bare.push(bare_scan(&snapshot, view)?);
        ours.push(recompute(&snapshot, view, &folder.join(format!("views-{round}"))).await?);
        users.push(duckdb(&files, &user_sql())?);
        best.push(duckdb(&files, &panes_first_sql())?);
    }
    let (ours, users, best, bare) = (median(ours), median(users), median(best), median(bare));
    let seconds = |took: Duration| format!("{:.2} s", took.as_secs_f64());
    let times = |peer: Duration| peer.as_secs_f64() / ours.as_secs_f64();
    report("bare scan of the two columns", seconds(bare), "the limit");
    report("batch recompute, published as a version", seconds(ours), &millions(per_second(events, ours)));
    report("DuckDB, each event into its five windows", seconds(users), &format!("{:.2} times ours", times(users)));
    report("DuckDB, panes first, then windows", seconds(best), &format!("{:.2} times ours", times(best)));
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Generates the events and archives them.
async fn fill(events: u64, folder: &Path) -> Result<ArchiveSnapshot, Failure> {
    let catalog = catalog()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let options = EmbeddedOptions::default();
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder.join("log"), options, Arc::clone(&clock))?);
    log.create_topic("tweets", 1)?;
    let missing = events.saturating_sub(log.bounds("tweets")?[&0].end);
    let filled = Arc::clone(&log);
    tokio::task::spawn_blocking(move || Tweets::fill(&*filled, "tweets", 1, missing)).await??;
    let rejects = Arc::new(RejectLog::open(Arc::clone(&log), Arc::clone(&clock))?);
    let started = Instant::now();
    let layer = BatchLayer::open(BatchSettings::default(), folder, log, &catalog, rejects, clock).await?;
    let archiver = &layer.archivers()["tweets"];
    let snapshot = archiver.archive_to(&archiver.log_ends().await?).await?;
    archiver.tend().await?;
    report("archive: log to Parquet", millions(per_second(missing, started.elapsed())), "");
    Ok(ArchiveSnapshot::open(&folder.join("archive/tweets"), archiver.table()).await?.unwrap_or(snapshot))
}

fn bare_scan(archive: &ArchiveSnapshot, view: &Kept) -> Result<Duration, Failure> {
    let files: Vec<_> = archive.days.values().flatten().cloned().collect();
    let started = Instant::now();
    let columns =
        scan(archive, view.table(), &files)?.select([col("timestamp").max(), col("text").str().len_bytes().max()]);
    columns.collect_with_engine(Engine::Streaming)?;
    Ok(started.elapsed())
}

async fn recompute(archive: &ArchiveSnapshot, view: &Kept, views: &Path) -> Result<Duration, Failure> {
    let recompute = Recompute {
        view: view.clone(),
        views: views.to_owned(),
        audits: AuditLog::new(views.join("audit")),
        archives: vec![archive.clone()],
        full: true,
        times: None,
        run: "bench".to_owned(),
        clock: Arc::new(SystemClock),
        cancel: CancellationToken::new(),
        progress: Arc::new(|_| {}),
    };
    let started = Instant::now();
    recompute.run().await?;
    let took = started.elapsed();
    std::fs::remove_dir_all(views)?;
    Ok(took)
}

/// What a user would write.
fn user_sql() -> String {
    format!(
        "WITH tags AS (SELECT timestamp, unnest(regexp_extract_all(lower(text), '{HASHTAG}')) AS tag FROM events),
         windows AS (SELECT tag, unnest(generate_series(
             time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '1 minute',
             time_bucket(INTERVAL '1 minute', timestamp) + INTERVAL '5 minutes', INTERVAL '1 minute')) AS w FROM tags),
         counts AS (SELECT w, tag, count(*) AS n FROM windows GROUP BY w, tag)
         SELECT w, tag, n FROM counts QUALIFY row_number() OVER (PARTITION BY w ORDER BY n DESC, tag) <= 100"
    )
}

/// What somebody who knows better would write.
fn panes_first_sql() -> String {
    format!(
        "WITH tags AS (SELECT timestamp, unnest(regexp_extract_all(lower(text), '{HASHTAG}')) AS tag FROM events),
         panes AS (SELECT time_bucket(INTERVAL '1 minute', timestamp) AS p, tag, count(*) AS n FROM tags GROUP BY p, tag),
         windows AS (SELECT unnest(generate_series(
             p + INTERVAL '1 minute', p + INTERVAL '5 minutes', INTERVAL '1 minute')) AS w, tag, n FROM panes),
         counts AS (SELECT w, tag, sum(n) AS n FROM windows GROUP BY w, tag)
         SELECT w, tag, n FROM counts QUALIFY row_number() OVER (PARTITION BY w ORDER BY n DESC, tag) <= 100"
    )
}

fn duckdb(files: &[PathBuf], sql: &str) -> Result<Duration, Failure> {
    let duckdb = duckdb::Connection::open_in_memory()?;
    let list: Vec<String> = files.iter().map(|file| format!("'{}'", file.display())).collect();
    let view = format!("SET TimeZone = 'UTC'; CREATE VIEW events AS SELECT * FROM read_parquet([{}])", list.join(", "));
    duckdb.execute_batch(&view)?;
    let started = Instant::now();
    duckdb.execute_batch(&format!("CREATE TABLE result AS {sql}"))?;
    Ok(started.elapsed())
}
