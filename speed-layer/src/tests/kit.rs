//! Tables, views, events, and the oracle: a plain fold, one record at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use anabranch_engine::partial::{self, MISSED, PANE};
use anabranch_exchange::snapshot::{Chunk, Early, Snapshot};
use anabranch_log::position::{Offset, Partition, Positions, TopicPartition};
use anabranch_plan::aggregation::{Aggregate, AggregateFunction, Aggregation, Key, OrderBy, OutputColumn};
use anabranch_plan::expr::Expr;
use anabranch_plan::schema::{Column as TableColumn, DataType as Type, Table};
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::{End, Kept, View, ViewId};
use anabranch_plan::window::Window;
use anabranch_store::storage::{Location, Storage};
use polars::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::Checkpoints;
use crate::checkpoint::Image;
use crate::micro_batch::MicroBatch;
use crate::state::ViewState;
use crate::watermark::{Delays, Tracker};

pub(crate) const SECOND: Micros = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub time: Micros,
    pub key: Option<String>,
    pub value: i64,
}

pub(crate) fn event(second: i64, key: &str, value: i64) -> Event {
    Event { time: second * SECOND, key: Some(key.to_owned()), value }
}

impl Event {
    pub fn json(&self) -> String {
        let time = format_timestamp(self.time);
        serde_json::json!({"ts": time, "k": self.key, "v": self.value}).to_string()
    }
}

pub(crate) fn table(delay: Micros) -> Arc<Table> {
    let column = |name: &str, data_type, nullable| TableColumn { name: name.to_owned(), data_type, nullable };
    Arc::new(Table {
        name: "clicks".to_owned(),
        topic: "clicks".to_owned(),
        format: anabranch_plan::schema::Format::Json,
        columns: vec![
            column("ts", Type::Timestamp, false),
            column("k", Type::Text, true),
            column("v", Type::BigInt, false),
        ],
        event_time: 0,
        watermark_delay: delay,
        max_future: None,
        max_past: None,
        partitions: 1,
        partition_by: None,
        pin: None,
        key: None,
        headers: None,
        primary_key: Vec::new(),
        sql: String::new(),
    })
}

/// `SELECT k, count(*), sum(v)` per window and key.
pub(crate) fn sums(table: &Arc<Table>, window: Option<Window>, allowed_lateness: Micros) -> Kept {
    let v = Expr::Column("v".to_owned(), Type::BigInt);
    let aggregate = |name: &str, function, argument| Aggregate {
        name: name.to_owned(),
        function,
        argument,
        place: None,
        filter: None,
    };
    let aggregation = Aggregation {
        window,
        time: window.map(|_| "ts".into()),
        keys: vec![Key { name: "k".to_owned(), expr: Expr::Column("k".to_owned(), Type::Text) }],
        aggregates: vec![
            aggregate("n", AggregateFunction::Count, None),
            aggregate("total", AggregateFunction::Sum, Some(v)),
        ],
        columns: vec![OutputColumn::Key(0), OutputColumn::Aggregate(0), OutputColumn::Aggregate(1)],
        having: None,
        order: vec![],
        limit: None,
        allowed_lateness,
        late: anabranch_plan::aggregation::Late::Discard,
        emission: None,
        schedule: None,
        max_rows: 1_000_000,
        memory: None,
    };
    let id = ViewId { name: "sums".to_owned(), definition: "sha256:sums of edition 2".to_owned() };
    let (rows, end) = (anabranch_plan::rows::Rows::Scan(table.clone()), End::Keep(Box::new(aggregation)));
    Kept::of(&Arc::new(View { id, sql: String::new(), rows, end })).expect("it keeps an aggregation")
}

/// A view with something changed of what it keeps.
pub(crate) fn with(view: &Kept, change: impl FnOnce(&mut Aggregation)) -> Kept {
    let mut aggregation = view.aggregation().clone();
    change(&mut aggregation);
    view.keeping(aggregation)
}

/// A view under another name and definition.
pub(crate) fn named(view: &Kept, name: &str, definition: &str) -> Kept {
    let id = ViewId { name: name.to_owned(), definition: definition.to_owned() };
    Kept::of(&Arc::new(View { id, ..View::clone(view) })).expect("it keeps what the other one does")
}

/// `SELECT k, count(*) AS n … ORDER BY n DESC LIMIT 3`.
pub(crate) fn top(table: &Arc<Table>, window: Option<Window>, max_rows: usize) -> Kept {
    let view = with(&sums(table, window, 0), |kept| {
        kept.aggregates.truncate(1);
        kept.columns.truncate(2);
        kept.order = vec![OrderBy { column: OutputColumn::Aggregate(0), descending: true }];
        kept.limit = Some(3);
        kept.max_rows = max_rows;
    });
    named(&view, "top", "sha256:top")
}

/// Checkpoints at a place. On S3 the client finds its properties in the environment.
pub(crate) fn checkpoints(location: Location) -> Checkpoints {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));
    let storage = Storage::open(location, &BTreeMap::new()).expect("a storage");
    Checkpoints::new(storage, RUNTIME.handle().clone())
}

/// What a checkpoint brings back of a state that has come to these watermarks.
pub(crate) fn restored(state: &mut ViewState, tracker: &Tracker) -> ViewState {
    let (view, zero) = (state.view.clone(), state.coverage().starts());
    let of_view = state.image(&Arc::new(tracker.clone()), None).expect("it goes on");
    let image = Image {
        tracker: tracker.clone(),
        positions: state.coverage().ends(),
        editions: BTreeMap::new(),
        parts: None,
        views: [(view.id.clone(), of_view)].into(),
        log: BTreeMap::new(),
        tails: BTreeMap::new(),
    };
    let bytes = bytes::Bytes::from(image.encode("clicks").expect("encoded"));
    let mut image = Image::decode(&bytes, "clicks", &["clicks"], std::slice::from_ref(&view)).expect("decoded");
    assert_eq!(image.tracker, *tracker);
    let of_view = image.views.remove(&view.id).expect("the view");
    let again = ViewState::restored(view, of_view, &image.tracker, &zero, None, 0);
    assert!(again.stopped.is_none(), "{:?}", again.stopped);
    assert_eq!((again.base, again.late, again.coverage()), (state.base, state.late, state.coverage()));
    again
}

/// A partition of the table's topic.
pub(crate) fn partition(number: Partition) -> TopicPartition {
    TopicPartition::new("clicks", number)
}

/// How far the watermark of the table's topic stays behind.
pub(crate) fn delays(delay: Micros) -> Delays {
    Delays::from([("clicks".into(), delay)])
}

/// A micro-batch without the detour over JSON.
pub(crate) fn micro_batch(number: Partition, first: Offset, events: &[Event]) -> MicroBatch {
    let times: Vec<Micros> = events.iter().map(|e| e.time).collect();
    let time = Series::new("ts".into(), times.as_slice());
    let time = time.cast(&DataType::Datetime(TimeUnit::Microseconds, Some(TimeZone::UTC))).expect("a cast");
    let keys: Vec<Option<&str>> = events.iter().map(|e| e.key.as_deref()).collect();
    let values: Vec<i64> = events.iter().map(|e| e.value).collect();
    let columns = vec![time.into(), Column::new("k".into(), keys), Column::new("v".into(), values)];
    MicroBatch {
        partition: partition(number),
        coverage: first..first + events.len() as u64,
        events: DataFrame::new(events.len(), columns).expect("columns alike"),
        offsets: (first..).take(events.len()).collect(),
        times,
        taken: Vec::new(),
        rejected: 0,
        early: Early::default(),
        at: 0,
        tail: None,
        records: None,
    }
}

/// Count and sum by pane, number of windows missed, and key.
pub(crate) type Rows = BTreeMap<(Micros, i32, Option<String>), (i64, i64)>;

/// The sum of all chunks. A view without `total` has sums of 0.
pub(crate) fn rows<'a>(chunks: impl IntoIterator<Item = &'a Chunk>) -> Rows {
    let mut rows = Rows::new();
    for frame in chunks.into_iter().flat_map(|chunk| chunk.panes.values()).map(|pane| &pane.partials) {
        let panes = frame.column(PANE).expect("panes").i64().expect("integers").clone();
        let missed = frame.column(MISSED).expect("missed").i32().expect("integers").clone();
        let keys = frame.column(&partial::key(0)).expect("keys").str().expect("text").clone();
        let counts = frame.column("a0").expect("counts").i64().expect("integers").clone();
        let sums = frame.column("a1").ok().map(|sums| sums.i64().expect("integers").clone());
        for i in 0..frame.height() {
            let key = keys.get(i).map(str::to_owned);
            let row = rows.entry((panes.get(i).expect("a pane"), missed.get(i).expect("missed"), key)).or_default();
            row.0 += counts.get(i).expect("a count");
            row.1 += sums.as_ref().and_then(|sums| sums.get(i)).unwrap_or(0);
        }
    }
    rows
}

pub(crate) fn rows_of(snapshot: &Snapshot) -> Rows {
    rows(snapshot.chunks.iter().map(|chunk| &**chunk))
}

/// A record as the oracle saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub partition: Partition,
    pub offset: Offset,
    pub event: Event,
    pub missed: i32,
}

/// The fold as the specification has it: record by record, nothing remembered but what it says.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub newest: BTreeMap<Partition, Option<Micros>>,
    pub idle: BTreeSet<Partition>,
    pub watermark: Option<Micros>,
    pub seen: Vec<Seen>,
}

impl Oracle {
    pub fn new(partitions: u32) -> Self {
        Self { newest: (0..partitions).map(|p| (p, None)).collect(), ..Self::default() }
    }

    pub fn take(&mut self, view: &Kept, partition: Partition, offset: Offset, event: &Event) {
        // A partition that wakes up is in the minimum that its first record meets.
        self.idle.remove(&partition);
        self.advance(view.table().watermark_delay);
        let window = view.aggregation().window;
        let missed =
            window.map_or(0, |window| window.missed(event.time, self.watermark, view.aggregation().allowed_lateness));
        self.seen.push(Seen { partition, offset, event: event.clone(), missed });
        let newest = self.newest.get_mut(&partition).expect("a partition");
        *newest = (*newest).max(Some(event.time));
        self.advance(view.table().watermark_delay);
    }

    pub fn be_idle(&mut self, partition: Partition, delay: Micros) {
        self.idle.insert(partition);
        self.advance(delay);
    }

    fn advance(&mut self, delay: Micros) {
        let awake = self.newest.iter().filter(|(partition, _)| !self.idle.contains(partition));
        // None is below every time: a partition without events holds the watermark back.
        let least = awake.map(|(_, &newest)| newest).min().flatten().map(|time| time - delay);
        self.watermark = self.watermark.max(least);
    }

    pub fn rows(&self, view: &Kept, from: &Positions<TopicPartition>) -> Rows {
        let begins = |number| from.get(&partition(number)).copied().unwrap_or(0);
        let mut rows = Rows::new();
        for seen in self.seen.iter().filter(|seen| seen.offset >= begins(seen.partition)) {
            let pane = view.aggregation().window.map_or(0, |window| window.pane_of(seen.event.time));
            let row = rows.entry((pane, seen.missed, seen.event.key.clone())).or_default();
            row.0 += 1;
            row.1 += if view.aggregation().aggregates.len() > 1 { seen.event.value } else { 0 };
        }
        rows
    }

    pub fn late(&self) -> u64 {
        self.seen.iter().filter(|seen| seen.missed > 0).count() as u64
    }
}
