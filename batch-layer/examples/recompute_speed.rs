//! Measures the archive and a full recompute of `trending_hashtags` on made-up tweets.
//!
//! `cargo run --release -p anabranch-batch-layer --example recompute_speed -- FOLDER [MILLIONS]`
//!
//! The archive stays in FOLDER, for other engines to be measured on, and is used again if it is there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_batch_layer::archive::{ArchiveSettings, Archiver};
use anabranch_batch_layer::recompute::Recompute;
use anabranch_batch_layer::scan::scan;
use anabranch_shared::clock::{ManualClock, Micros};
use anabranch_shared::expr::{Expr, Function};
use anabranch_shared::log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_shared::log::{Append, Appended, Batch, Log, LogError, LogReader, Payloads, ReadLimit, Retention};
use anabranch_shared::partial;
use anabranch_shared::position::{Offset, Partition, Positions};
use anabranch_shared::reject::RejectLog;
use anabranch_shared::schema::{Column, DataType, Table};
use anabranch_shared::view::{Aggregate, AggregateFunction, Key, OrderBy, OutputColumn, Unnest, View};
use anabranch_shared::window::Window;
use polars::prelude::Engine;
use tokio_util::sync::CancellationToken;

const MINUTE: Micros = 60_000_000;
/// 2,000 events a second, so 20 million are 2.8 hours.
const STEP: Micros = 500;

/// A log that makes its records up: the i-th is always the same.
struct MadeUp(Offset);

struct Reader {
    next: Offset,
    end: Offset,
}

fn mixed(i: u64) -> u64 {
    let x = (i.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn tag(random: u64) -> u64 {
    // Heavy at the head: half of the tags are among the first few hundred of 200,000.
    let x = (random % 1_000_003) as f64 / 1_000_003.0;
    (200_000_f64.powf(x)) as u64
}

fn tweet(i: u64, text: &mut String) {
    use std::fmt::Write;
    text.clear();
    let (a, b) = (mixed(i), mixed(i ^ 0xABCD_EF01));
    let time = 1_503_792_000_000 + (i as i64 * STEP) / 1000;
    let _ = write!(
        text,
        r#"{{"id":"{i}","user_id":"u{}","text":"Watching the fight tonight with friends #Tag{} and some more words #tag{} https://t.co/{:x}","timestamp":{time}}}"#,
        a % 1_000_000,
        tag(a),
        tag(b),
        b & 0xFFFF_FFFF,
    );
}

impl LogReader for Reader {
    fn poll(&mut self, limit: ReadLimit, _: Duration) -> Result<Option<Batch>, LogError> {
        let end = self.end.min(self.next + (limit.records as u64).min(10_000));
        if self.next == end {
            return Ok(None);
        }
        let mut text = String::new();
        let payloads = (self.next..end).map(|i| {
            tweet(i, &mut text);
            text.clone()
        });
        let batch = Batch {
            partition: 0,
            coverage: self.next..end,
            offsets: (self.next..end).collect(),
            log_times: vec![1_503_792_000_000_000; (end - self.next) as usize],
            payloads: payloads.collect::<Payloads>(),
            log_end: self.end,
        };
        self.next = end;
        Ok(Some(batch))
    }

    fn positions(&self) -> Positions {
        Positions::from([(0, self.next)])
    }
}

impl Log for MadeUp {
    fn create_topic(&self, _: &str, _: u32) -> Result<(), LogError> {
        Ok(())
    }
    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        Ok(BTreeMap::from([("tweets".to_owned(), 1)]))
    }
    fn bounds(&self, _: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        Ok(BTreeMap::from([(0, 0..self.0)]))
    }
    fn append(&self, _: &str, _: Append) -> Result<Appended, LogError> {
        Err(LogError::Closed)
    }
    fn reader(&self, _: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(Reader { next: from[&0], end: self.0 }))
    }
    fn retain(&self, _: &str, _: Retention, _: &Positions) -> Result<(), LogError> {
        Ok(())
    }
}

fn trending() -> View {
    let column = |name: &str, data_type| Column { name: name.into(), data_type, nullable: name != "timestamp" };
    let table = Arc::new(Table {
        name: "tweets".into(),
        topic: "tweets".into(),
        columns: vec![
            column("id", DataType::Text),
            column("user_id", DataType::Text),
            column("text", DataType::Text),
            column("timestamp", DataType::Timestamp),
        ],
        event_time: 3,
        watermark_delay: 0,
        max_future: None,
        partitions: 1,
        partition_by: None,
        sql: String::new(),
    });
    let text = Expr::Call(Function::Lower, vec![Expr::Column("text".into(), DataType::Text)]);
    let count = Aggregate { name: "mentions".into(), function: AggregateFunction::Count, argument: None, filter: None };
    View {
        name: "trending_hashtags".into(),
        sql: String::new(),
        definition: "sha256:speed".into(),
        table,
        window: Some(Window { size: 5 * MINUTE, slide: MINUTE }),
        unnest: Some(Unnest {
            list: Expr::Call(Function::RegexpExtractAll(r"#\w+".into()), vec![text]),
            column: "hashtag".into(),
        }),
        filter: None,
        keys: vec![Key { name: "hashtag".into(), expr: Expr::Column("hashtag".into(), DataType::Text) }],
        aggregates: vec![count],
        columns: vec![OutputColumn::Key(0), OutputColumn::Aggregate(0)],
        order: vec![OrderBy { column: OutputColumn::Aggregate(0), descending: true }],
        limit: Some(100),
        allowed_lateness: 0,
        schedule: None,
        max_rows: 1_000_000,
    }
}

/// Seconds of both cores that the process has used: on a machine that does other things too, the figure to compare.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("which folder?")?);
    let millions: u64 = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let clock = Arc::new(ManualClock::new(1_700_000_000_000_000));
    let side = EmbeddedLog::open(folder.join("rejects"), EmbeddedOptions { reserve_bytes: 0 }, clock.clone())?;
    let rejects = Arc::new(RejectLog::open(Arc::new(side), clock.clone())?);
    let view = Arc::new(trending());
    let log = Arc::new(MadeUp(millions * 1_000_000));
    let settings = ArchiveSettings::default();
    let archiver =
        Archiver::open(folder.join("archive"), view.table.clone(), log, rejects, clock.clone(), settings).await?;
    let start = Instant::now();
    let archive = archiver.archive_to(&archiver.log_ends()?).await?;
    println!("archived up to {}: {:.2?}", archive.archived.coverage, start.elapsed());
    let files: Vec<_> = archive.days.values().flatten().cloned().collect();
    let query = partial::partials(&view, scan(&archive.root, &view.table, &files)?, false);
    println!("{}", query.explain(true)?);
    for _ in 0..2 {
        let (query, start, before) = (query.clone(), Instant::now(), cpu());
        let rows = tokio::task::spawn_blocking(move || query.collect_with_engine(Engine::Streaming)).await??;
        let (elapsed, used) = (start.elapsed(), cpu() - before);
        println!("partials alone: {} rows in {elapsed:.2?}, {used:.1} s of CPU", rows.unwrap_single().height());
    }
    for run in 0..2 {
        let (start, before) = (Instant::now(), cpu());
        let plan = Recompute {
            view: view.clone(),
            views: folder.join("views"),
            archive: archive.clone(),
            full: true,
            times: None,
            run: format!("run-{run}-{}", uuid::Uuid::new_v4()),
            clock: clock.clone(),
            cancel: CancellationToken::new(),
            progress: Arc::new(|_| {}),
        };
        let published = plan.run().await?.ok_or("nothing new")?;
        let rows: u64 = published.panes.iter().map(|file| file.rows).sum();
        let (elapsed, used) = (start.elapsed(), cpu() - before);
        println!("version {}: {rows} partials in {elapsed:.2?}, {used:.1} s of CPU", published.version);
    }
    Ok(())
}
