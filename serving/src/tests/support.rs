//! A small platform made by hand: a log in memory, events, the partials that the layers would make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::partial::{self, MISSED, PANE};
use anabranch_exchange::ingest::Ingest;
use anabranch_exchange::job::{Job, JobError, JobRequest, JobState, Jobs, Trigger};
use anabranch_exchange::snapshot::{Chunk, Pane, Progress, Snapshot, Snapshots};
use anabranch_exchange::version::{PaneFile, Published, Version, Versions};
use anabranch_log::clock::ManualClock;
use anabranch_log::lineage::{Epoch, Lineage, Mark};
use anabranch_log::position::{Coverage, Offset, Partition, Positions, TopicPartition};
use anabranch_log::{
    Append, Appended, Batch, Digest, Idempotency, Log, LogError, LogReader, Payloads, ReadLimit, Retention,
};
use anabranch_plan::aggregation::{Aggregate, AggregateFunction, Aggregation, Key, OrderBy, OutputColumn};
use anabranch_plan::expr::Expr;
use anabranch_plan::schema::{Column as TableColumn, DataType, Table};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Catalog, End, Kept, View, ViewId};
use anabranch_plan::window::Window;
use anabranch_store::table::write_digested;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use parking_lot::Mutex;
use polars::prelude::*;
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt;

use super::contract;
use crate::{App, Limits, Measure, Measures, Readiness};

pub const MINUTE: Micros = 60_000_000;
/// 2017-08-27T00:00:00Z.
pub const T0: Micros = 1_503_792_000_000_000;

/// Stands for a tag that is null.
pub const NO_TAG: &str = "\0";

/// One event: when, which tag, how much.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub time: Micros,
    pub tag: String,
    pub amount: i64,
}

pub fn event(seconds: i64, tag: &str, amount: i64) -> Event {
    Event { time: T0 + seconds * 1_000_000, tag: tag.to_owned(), amount }
}

pub fn table() -> Arc<Table> {
    let column = |name: &str, data_type: DataType, nullable| TableColumn { name: name.into(), data_type, nullable };
    Arc::new(Table {
        name: "posts".into(),
        topic: "posts".into(),
        format: anabranch_plan::schema::Format::Json,
        columns: vec![
            column("ts", DataType::Timestamp, false),
            column("tag", DataType::Text, true),
            column("amount", DataType::BigInt, true),
        ],
        event_time: 0,
        watermark_delay: 0,
        max_future: None,
        max_past: None,
        partitions: 1,
        partition_by: None,
        pin: None,
        key: None,
        headers: None,
        primary_key: Vec::new(),
        sql: "CREATE TABLE posts …".into(),
    })
}

/// Counts and sums per tag; keys can be left out.
pub fn view(name: &str, window: Option<Window>, keyed: bool, limit: Option<usize>) -> Kept {
    let aggregate = |name: &str, function, argument| Aggregate {
        name: String::from(name),
        function,
        argument,
        place: None,
        filter: None,
    };
    let keys = if keyed {
        vec![Key { name: "tag".into(), expr: Expr::Column("tag".into(), DataType::Text) }]
    } else {
        Vec::new()
    };
    let mut columns = Vec::new();
    if window.is_some() {
        columns.extend([OutputColumn::WindowStart, OutputColumn::WindowEnd]);
    }
    columns.extend((0..keys.len()).map(OutputColumn::Key));
    columns.extend([OutputColumn::Aggregate(0), OutputColumn::Aggregate(1)]);
    let aggregation = Aggregation {
        window,
        time: window.map(|_| "ts".into()),
        keys,
        aggregates: vec![
            aggregate("mentions", AggregateFunction::Count, None),
            aggregate("total", AggregateFunction::Sum, Some(Expr::Column("amount".into(), DataType::BigInt))),
        ],
        columns,
        having: None,
        order: vec![OrderBy { column: OutputColumn::Aggregate(0), descending: true }],
        limit,
        allowed_lateness: MINUTE,
        late: anabranch_plan::aggregation::Late::Discard,
        emission: None,
        schedule: anabranch_plan::schedule::Schedule::utc("*/15 * * * *").ok(),
        max_rows: 1_000_000,
        memory: None,
    };
    let id = ViewId { name: name.into(), definition: format!("sha256:{name}") };
    let sql = format!("CREATE MATERIALIZED VIEW {name} …");
    let view = View { id, sql, rows: anabranch_plan::rows::Rows::Scan(table()), end: End::Keep(Box::new(aggregation)) };
    Kept::of(&Arc::new(view)).expect("it keeps an aggregation")
}

/// A view with something changed of what it keeps.
pub fn with(view: &Kept, change: impl FnOnce(&mut Aggregation)) -> Kept {
    let mut aggregation = view.aggregation().clone();
    change(&mut aggregation);
    view.keeping(aggregation)
}

/// A view under another name and definition.
pub fn named(view: &Kept, name: &str, definition: &str) -> Kept {
    let id = ViewId { name: name.to_owned(), definition: definition.to_owned() };
    Kept::of(&Arc::new(View { id, ..View::clone(view) })).expect("it keeps what the other one does")
}

pub fn hop() -> Window {
    Window::sliding(5 * MINUTE, MINUTE)
}

fn frame(events: &[Event], missed: Option<&[i32]>) -> LazyFrame {
    let times: Vec<i64> = events.iter().map(|event| event.time).collect();
    let tags: Vec<Option<&str>> =
        events.iter().map(|event| Some(event.tag.as_str()).filter(|tag| *tag != NO_TAG)).collect();
    let amounts: Vec<i64> = events.iter().map(|event| event.amount).collect();
    let mut columns =
        vec![Column::new("ts".into(), times), Column::new("tag".into(), tags), Column::new("amount".into(), amounts)];
    if let Some(missed) = missed {
        columns.push(Column::new(MISSED.into(), missed));
    }
    let timestamp = anabranch_engine::transform::polars_type(&DataType::Timestamp);
    DataFrame::new(events.len(), columns).expect("a frame").lazy().with_column(col("ts").cast(timestamp))
}

/// What the batch layer publishes of these events, as files below `root`: one per hour.
pub fn version(root: &std::path::Path, view: &Kept, number: u64, events: &[Event]) -> Arc<Version> {
    let mut partials = partial::partials(view, frame(events, None), false).expect("partials");
    partials.sort_in_place([PANE], SortMultipleOptions::default()).expect("sorted");
    let starts: Vec<i64> = partials.column(PANE).expect("panes").i64().expect("times").into_no_null_iter().collect();
    let mut panes = Vec::new();
    let mut next = 0;
    while next < starts.len() {
        let hour = starts[next].div_euclid(60 * MINUTE);
        let end = starts.iter().position(|start| start.div_euclid(60 * MINUTE) > hour).unwrap_or(starts.len());
        let mut part = partials.slice(next as i64, end - next);
        let path = format!("{}-{number}-{next}.parquet", view.id.name);
        let written = write_digested(&root.join(&path), |file| {
            ParquetWriter::new(file).finish(&mut part).map(drop).map_err(std::io::Error::other)
        });
        let sha256 = Some(written.expect("written").sha256);
        let (first, last) = (starts[next], starts[end - 1]);
        panes.push(PaneFile {
            path,
            day: first.div_euclid(86_400_000_000),
            first,
            last,
            rows: (end - next) as u64,
            sha256,
            pending: false,
        });
        next = end;
    }
    let event_times =
        events.iter().map(|event| event.time).max().map(|time| (partition(0), time)).into_iter().collect();
    let published = Published {
        version: number,
        definition: view.id.definition.clone(),
        coverage: [(partition(0), 0..events.len() as u64)].into_iter().collect(),
        event_times,
        published: T0,
        run: "run".into(),
        rebuilds: 0,
        erased: BTreeSet::new(),
        panes,
        state: None,
        log: Default::default(),
    };
    Arc::new(Version::new(root.to_owned(), published, false))
}

/// A partition of the topic that the views read.
pub fn partition(partition: Partition) -> TopicPartition {
    TopicPartition::new("posts", partition)
}

/// How many windows each event had missed, by a watermark that runs with the newest event time.
pub fn missed(view: &Kept, events: &[Event]) -> Vec<i32> {
    let mut watermark: Option<Micros> = None;
    let each = events.iter().map(|event| {
        let missed = view
            .aggregation()
            .window
            .map_or(0, |window| window.missed(event.time, watermark, view.aggregation().allowed_lateness));
        watermark = watermark.max(Some(event.time));
        missed
    });
    each.collect()
}

/// What the speed layer keeps of some of the events, which lie at these offsets.
pub fn chunk(view: &Kept, events: &[Event], missed: &[i32], offsets: Range<usize>) -> Arc<Chunk> {
    let (events, missed) = (&events[offsets.clone()], &missed[offsets.clone()]);
    let partials = partial::partials(view, frame(events, Some(missed)), true).expect("partials");
    let pane_of = |time| view.aggregation().window.map_or(0, |window| window.pane_of(time));
    let mut late: BTreeMap<Micros, BTreeMap<i32, u64>> = BTreeMap::new();
    for (event, &missed) in events.iter().zip(missed).filter(|(_, missed)| **missed > 0) {
        *late.entry(pane_of(event.time)).or_default().entry(missed).or_default() += 1;
    }
    let mut by_pane: BTreeMap<_, _> = partial::by_pane(&partials).expect("panes").into_iter().collect();
    let mut panes = BTreeMap::new();
    for start in events.iter().map(|event| pane_of(event.time)) {
        let partials = by_pane.remove(&start).unwrap_or_else(|| partials.clear());
        let late = late.remove(&start).unwrap_or_default();
        panes.entry(start).or_insert_with(|| Arc::new(Pane { partials, late, slack: None }));
    }
    let coverage = [(partition(0), offsets.start as u64..offsets.end as u64)].into_iter().collect();
    Arc::new(Chunk { coverage, panes, ..Chunk::default() })
}

/// A snapshot of chunks between these cuts.
pub fn snapshot(view: &Kept, events: &[Event], base: Option<u64>, cuts: &[usize]) -> Snapshot {
    let missed = missed(view, events);
    let chunks: Vec<Arc<Chunk>> = cuts.windows(2).map(|cut| chunk(view, events, &missed, cut[0]..cut[1])).collect();
    let (first, last) = (cuts[0], cuts[cuts.len() - 1]);
    let watermark = events[..last].iter().map(|event| event.time).max();
    Snapshot {
        sequence: 1,
        base,
        rebuilds: 0,
        coverage: Coverage::from_iter([(partition(0), first as u64..last as u64)]),
        chunks,
        watermark,
        late: missed[first..last].iter().filter(|missed| **missed > 0).count() as u64,
        partitions: [(partition(0), Progress { watermark, ..Progress::default() })].into(),
        stopped: None,
        alone: false,
        lost: Coverage::new(),
        parts: None,
        log: Default::default(),
        other_log: false,
    }
}

/// Numbers that are the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % limit
    }

    /// Events that move on by about `step` seconds, some of them late.
    pub fn events(&mut self, count: usize, step: u64) -> Vec<Event> {
        let mut now = 0;
        let each = (0..count).map(|_| {
            now += self.below(2 * step) as i64;
            let behind = if self.below(4) == 0 { self.below(20 * step) as i64 } else { 0 };
            event(now - behind, ["a", "b", "c", "d"][self.below(4) as usize], self.below(9) as i64)
        });
        each.collect()
    }
}

/// A log in memory with one partition a topic.
#[derive(Debug, Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    topics: BTreeMap<String, Vec<Vec<u8>>>,
    remembered: BTreeMap<(String, String), (Option<Digest>, Appended)>,
    full: bool,
    away: bool,
    /// How often it was asked what a topic holds.
    asked: usize,
    /// The keys of all records that came with one, in their order.
    keys: Vec<String>,
    marks: Vec<Mark>,
}

impl MemoryLog {
    pub fn fill(&self, topic: &str, records: usize) {
        let mut memory = self.0.lock();
        memory.topics.entry(topic.into()).or_default().resize(records, b"{}".to_vec());
    }

    /// The marks that the log knows, the newest last.
    pub fn set_marks(&self, marks: &[&str]) {
        self.0.lock().marks = marks.iter().map(|&mark| Mark::new(mark)).collect();
    }

    pub fn set_full(&self) {
        self.0.lock().full = true;
    }

    pub fn set_away(&self) {
        self.0.lock().away = true;
    }

    pub fn keys(&self) -> Vec<String> {
        self.0.lock().keys.clone()
    }

    /// How often it was asked what a topic holds since it was last asked for this.
    pub fn asked(&self) -> usize {
        std::mem::take(&mut self.0.lock().asked)
    }
}

impl Log for MemoryLog {
    fn create_topic(&self, topic: &str, _: u32) -> Result<(), LogError> {
        self.0.lock().topics.entry(topic.to_owned()).or_default();
        Ok(())
    }

    fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        Ok(self.0.lock().topics.keys().map(|name| (name.clone(), 1)).collect())
    }

    fn bounds(&self, topic: &str) -> Result<BTreeMap<Partition, Range<Offset>>, LogError> {
        let mut memory = self.0.lock();
        memory.asked += 1;
        if memory.away {
            let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into();
            return Err(LogError::Backend { step: format!("asking what topic `{topic}` holds"), source });
        }
        Ok(BTreeMap::from([(0, 0..memory.topics.get(topic).map_or(0, Vec::len) as u64)]))
    }

    fn lineage(&self, topic: &str) -> Result<Lineage, LogError> {
        let ends = self.bounds(topic)?.into_iter().map(|(partition, held)| (partition, held.end)).collect();
        let epochs =
            self.0.lock().marks.iter().map(|mark| Epoch { mark: mark.clone(), begins: Positions::new() }).collect();
        Ok(Lineage { epochs, ends })
    }

    fn append(&self, topic: &str, append: Append) -> Result<Appended, LogError> {
        let mut memory = self.0.lock();
        if memory.full {
            return Err(LogError::StorageFull { path: "/data".into(), free_bytes: 1, reserve_bytes: 2 });
        }
        if let Some(Idempotency { key, digest, .. }) = &append.idempotency
            && let Some((before, first)) = memory.remembered.get(&(topic.to_owned(), key.clone()))
        {
            let (topic, key) = (topic.to_owned(), key.clone());
            return if before == digest { Ok(first.clone()) } else { Err(LogError::KeyReused { topic, key }) };
        }
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        memory.keys.extend(append.keys.values().flat_map(Payloads::iter).map(text));
        let mut appended = Appended { offsets: BTreeMap::new(), repeated: None };
        for (partition, payloads) in append.parts {
            let records = memory.topics.entry(topic.to_owned()).or_default();
            let start = records.len() as u64;
            records.extend(payloads.iter().map(<[u8]>::to_vec));
            appended.offsets.insert(partition, start..records.len() as u64);
        }
        if let Some(Idempotency { key, digest, note }) = append.idempotency {
            let first = Appended { repeated: Some(note), ..appended.clone() };
            memory.remembered.insert((topic.to_owned(), key), (digest, first));
        }
        Ok(appended)
    }

    fn accepts(&self) -> Result<(), LogError> {
        let full = LogError::StorageFull { path: "/data".into(), free_bytes: 1, reserve_bytes: 2 };
        if self.0.lock().full { Err(full) } else { Ok(()) }
    }

    fn reader(&self, topic: &str, from: &Positions) -> Result<Box<dyn LogReader>, LogError> {
        let next = from.get(&0).copied().unwrap_or(0);
        Ok(Box::new(MemoryReader { log: self.clone(), topic: topic.to_owned(), next }))
    }

    fn retain(&self, _: &str, _: Retention, _: &Positions) -> Result<(), LogError> {
        Ok(())
    }
}

struct MemoryReader {
    log: MemoryLog,
    topic: String,
    next: Offset,
}

impl LogReader for MemoryReader {
    fn poll(&mut self, limit: ReadLimit, _: Duration) -> Result<Option<Batch>, LogError> {
        let memory = self.log.0.lock();
        let records = memory.topics.get(&self.topic).map_or(&[][..], Vec::as_slice);
        let end = (self.next as usize + limit.records).min(records.len()) as u64;
        if end <= self.next {
            return Ok(None);
        }
        let coverage = self.next..end;
        self.next = end;
        Ok(Some(Batch {
            partition: 0,
            offsets: coverage.clone().collect(),
            log_times: vec![T0; (coverage.end - coverage.start) as usize],
            read_at: None,
            payloads: records[coverage.start as usize..coverage.end as usize].iter().collect(),
            keys: None,
            headers: None,
            coverage,
            log_end: records.len() as u64,
        }))
    }

    fn positions(&self) -> Positions {
        Positions::from([(0, self.next)])
    }
}

/// Jobs that stay as they were submitted until they are cancelled.
#[derive(Debug, Default)]
struct FixedJobs(Mutex<Vec<Job>>);

impl Jobs for FixedJobs {
    fn submit(&self, request: JobRequest, trigger: Trigger) -> Result<Job, JobError> {
        let request = request.check([&"trending".to_owned(), &"full".to_owned(), &"away".to_owned()].into_iter())?;
        let failed = std::io::Error::from(std::io::ErrorKind::StorageFull);
        match request.views[0].as_str() {
            "full" => return Err(JobError::History { step: "written", source: failed }),
            "away" => {
                let source = LogError::Backend { step: "appending".to_owned(), source: failed.into() };
                return Err(JobError::Log { step: "written", source });
            }
            _ => {}
        }
        let mut jobs = self.0.lock();
        let job = Job::queued(format!("job-{}", jobs.len() + 1), request, trigger, T0);
        jobs.insert(0, job.clone());
        Ok(job)
    }

    fn list(&self) -> Result<Vec<Job>, JobError> {
        Ok(self.0.lock().clone())
    }

    fn get(&self, id: &str) -> Result<Job, JobError> {
        let jobs = self.0.lock();
        jobs.iter().find(|job| job.id == id).cloned().ok_or_else(|| JobError::UnknownJob(id.into()))
    }

    fn cancel(&self, id: &str) -> Result<Job, JobError> {
        let mut jobs = self.0.lock();
        let job = jobs.iter_mut().find(|job| job.id == id).ok_or_else(|| JobError::UnknownJob(id.into()))?;
        if job.state == JobState::Cancelled {
            return Err(JobError::Ended(id.into()));
        }
        job.state = JobState::Cancelled;
        Ok(job.clone())
    }
}

/// The API over layers that a test moves on.
pub struct Platform {
    pub app: App,
    pub log: MemoryLog,
    pub router: Router,
    pub folder: tempfile::TempDir,
    pub ready: watch::Sender<Readiness>,
    snapshots: BTreeMap<ViewId, watch::Sender<Arc<Snapshot>>>,
    versions: BTreeMap<ViewId, watch::Sender<Option<Arc<Version>>>>,
}

impl Platform {
    pub fn new(views: &[Kept]) -> Self {
        Self::with_limits(views, Limits::default())
    }

    pub fn with_limits(views: &[Kept], limits: Limits) -> Self {
        let catalog = Arc::new(Catalog {
            tables: BTreeMap::from([("posts".to_owned(), table())]),
            rows: BTreeMap::new(),
            views: views.iter().map(|view| (view.id.name.clone(), Arc::clone(view))).collect(),
        });
        let log = MemoryLog::default();
        log.fill("posts", 0);
        let clock = Arc::new(ManualClock::new(T0));
        let ingest = Ingest::new(Arc::new(log.clone()), Arc::clone(&catalog), clock.clone()).expect("ingest");
        let (mut snapshots, mut versions) = (BTreeMap::new(), BTreeMap::new());
        let (mut newest_snapshots, mut newest_versions) = (Snapshots::default(), Versions::default());
        for view in views {
            let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
            snapshots.insert(view.id.clone(), sender);
            newest_snapshots.0.insert(view.id.clone(), receiver);
            let (sender, receiver) = watch::channel(None);
            versions.insert(view.id.clone(), sender);
            newest_versions.0.insert(view.id.clone(), receiver);
        }
        let (ready, is_ready) = watch::channel(Readiness::ready());
        let folder = tempfile::tempdir().expect("a folder");
        let app = App {
            api: crate::Api::Whole,
            hosts: crate::Hosts::default(),
            catalog,
            log: Arc::new(log.clone()),
            rejects: Arc::clone(ingest.rejects()),
            ingest: Arc::new(ingest),
            snapshots: newest_snapshots,
            versions: newest_versions,
            outputs: crate::Outputs::default(),
            emissions: None,
            jobs: Arc::new(FixedJobs::default()),
            audits: anabranch_exchange::audit::AuditLog::new(folder.path().join("audit")),
            measures: Measures::new(|| {
                vec![Measure::gauge("anabranch_state_rows", "Rows of state", 12.0).of("view", "trending")]
            }),
            ready: is_ready,
            stops: crate::Stops::default(),
            project: "1d2c".to_owned(),
            clock,
            limits,
        };
        Self { router: crate::router(app.clone()), app, log, folder, ready, snapshots, versions }
    }

    /// Where a view's versions are announced.
    pub fn versions(&self, view: &Kept) -> &watch::Sender<Option<Arc<Version>>> {
        &self.versions[&view.id]
    }

    pub fn publish(&self, view: &Kept, version: Arc<Version>) {
        self.versions[&view.id].send_replace(Some(version));
    }

    /// Shows a snapshot, with a sequence above that of the one before.
    pub fn show(&self, view: &Kept, mut snapshot: Snapshot) {
        self.snapshots[&view.id].send_modify(|shown| {
            snapshot.sequence = shown.sequence + 1;
            *shown = Arc::new(snapshot);
        });
    }

    /// The answer to a request. It is as the description declares it; the events of a stream are yet to be checked.
    pub async fn ask(&self, mut request: Request<Body>) -> Response {
        request.headers_mut().entry("host").or_insert_with(|| "localhost:8080".parse().expect("a name"));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.expect("a response");
        let (parts, body) = response.into_parts();
        let header = |name| parts.headers.get(name).map_or("", |value| value.to_str().expect("text"));
        let content_type = header("content-type");
        if content_type == "text/event-stream" {
            contract::check(method.as_str(), &path, parts.status.as_u16(), content_type, &[]);
            return Response::from_parts(parts, body);
        }
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        if header("content-encoding").is_empty() {
            contract::check(method.as_str(), &path, parts.status.as_u16(), content_type, &body);
        }
        Response::from_parts(parts, body.into())
    }

    pub async fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let (parts, body) = self.ask(request).await.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        (parts.status, parts.headers, body.to_vec())
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, _, body) = self.send(Request::get(path).body(Body::empty()).expect("a request")).await;
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()))
    }

    pub async fn ok(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// The problem that a request is answered with: its status, kind and detail.
    pub async fn problem(&self, request: Request<Body>) -> (u16, String, String) {
        let (status, headers, body) = self.send(request).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(body["status"], status.as_u16());
        let text = |name: &str| body[name].as_str().expect("a text").to_owned();
        let kind = text("type");
        (status.as_u16(), kind.trim_start_matches("about:blank#").to_owned(), text("detail"))
    }

    pub async fn get_problem(&self, path: &str) -> (u16, String, String) {
        self.problem(Request::get(path).body(Body::empty()).expect("a request")).await
    }
}
