//! A table, views of it, a log with events in it, and a plain fold to compare with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anabranch_exchange::reject::RejectLog;
use anabranch_log::clock::ManualClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::{Append, Log, Payloads};
use anabranch_plan::aggregation::{Aggregate, AggregateFunction, Aggregation, Key, OrderBy, OutputColumn};
use anabranch_plan::expr::Expr;
use anabranch_plan::schema::{Column, DataType, Table};
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Catalog, End, Kept, View, ViewId};
use anabranch_plan::window::Window;
use anabranch_store::table::DeltaTable;
use polars::prelude::{AnyValue, DataFrame, LazyFrame, PlRefPath, ScanArgsParquet};

pub const SECOND: Micros = 1_000_000;

pub fn column(name: &str, data_type: DataType) -> Column {
    Column { name: name.into(), data_type, nullable: name != "ts" }
}

pub fn table() -> Table {
    Table {
        name: "events".into(),
        topic: "events".into(),
        format: anabranch_plan::schema::Format::Json,
        columns: vec![
            column("user", DataType::Text),
            column("value", DataType::BigInt),
            column("ts", DataType::Timestamp),
        ],
        event_time: 2,
        watermark_delay: 0,
        max_future: None,
        max_past: None,
        partitions: 2,
        partition_by: None,
        pin: None,
        key: None,
        headers: None,
        primary_key: Vec::new(),
        sql: String::new(),
    }
}

/// Count, sum, minimum, maximum and average of `value` by `user`.
pub fn view(name: &str, table: Arc<Table>, window: Option<Window>) -> Kept {
    let value = || Some(Expr::Column("value".into(), DataType::BigInt));
    let aggregate =
        |name: &str, function, argument| Aggregate { name: name.into(), function, argument, place: None, filter: None };
    let mut columns = vec![OutputColumn::Key(0)];
    columns.extend((0..5).map(OutputColumn::Aggregate));
    let id = ViewId { name: name.into(), definition: format!("sha256:{name}-{window:?}") };
    let aggregation = Aggregation {
        window,
        time: window.map(|_| "ts".into()),
        keys: vec![Key { name: "user".into(), expr: Expr::Column("user".into(), DataType::Text) }],
        aggregates: vec![
            aggregate("n", AggregateFunction::Count, None),
            aggregate("total", AggregateFunction::Sum, value()),
            aggregate("least", AggregateFunction::Min, value()),
            aggregate("most", AggregateFunction::Max, value()),
            aggregate("mean", AggregateFunction::Avg, value()),
        ],
        columns,
        having: None,
        order: vec![OrderBy { column: OutputColumn::Aggregate(0), descending: true }],
        limit: None,
        allowed_lateness: 0,
        late: anabranch_plan::aggregation::Late::Discard,
        emission: None,
        schedule: None,
        max_rows: 1_000_000,
        memory: None,
    };
    let view = View {
        id,
        sql: String::new(),
        rows: anabranch_plan::rows::Rows::Scan(table),
        end: End::Keep(Box::new(aggregation)),
    };
    Kept::of(&Arc::new(view)).expect("it keeps an aggregation")
}

/// A view with something changed of what it keeps.
pub fn with(view: &Kept, change: impl FnOnce(&mut Aggregation)) -> Kept {
    let mut aggregation = view.aggregation().clone();
    change(&mut aggregation);
    view.keeping(aggregation)
}

pub fn catalog(views: Vec<Kept>) -> Catalog {
    let mut catalog = Catalog::default();
    for view in views {
        catalog.tables.insert(view.table().name.clone(), view.table().clone());
        catalog.views.insert(view.id.name.clone(), Arc::clone(&view));
    }
    catalog
}

/// An event: who, how much, when (in whole milliseconds).
pub type Event = (&'static str, Option<i64>, Micros);

#[derive(Clone)]
pub struct Source {
    pub log: Arc<EmbeddedLog>,
    pub rejects: Arc<RejectLog>,
    pub clock: Arc<ManualClock>,
}

/// When the log takes records.
pub const NOW: Micros = 1_700_000_000 * SECOND;

pub fn source(data: &Path) -> Source {
    let clock = Arc::new(ManualClock::new(NOW));
    let options = EmbeddedOptions { reserve_bytes: 0, keyed: ["events".to_owned()].into() };
    let log = Arc::new(EmbeddedLog::open(data.join("log"), options, clock.clone()).expect("log"));
    log.create_topic("events", 2).expect("topic");
    let rejects = Arc::new(RejectLog::open(log.clone(), clock.clone()).expect("rejects"));
    Source { log, rejects, clock }
}

impl Source {
    pub fn append_text(&self, partition: u32, records: &[&str]) {
        let payloads: Payloads = records.iter().collect();
        self.log.append("events", Append { parts: vec![(partition, payloads)], ..Append::default() }).expect("append");
    }

    /// Records that delete the rows with these keys.
    pub fn append_tombstones(&self, partition: u32, keys: &[&str]) {
        let parts = vec![(partition, keys.iter().map(|_| "").collect())];
        let keys = BTreeMap::from([(partition, keys.iter().collect())]);
        self.log.append("events", Append { parts, keys, ..Append::default() }).expect("append");
    }

    /// Events go to the partitions in turn.
    pub fn append(&self, events: &[Event]) {
        for partition in 0..2 {
            let of_partition = events.iter().skip(partition).step_by(2);
            let records: Vec<String> = of_partition
                .map(|(user, value, ts)| serde_json::json!({"user": user, "value": value, "ts": ts / 1000}).to_string())
                .collect();
            if !records.is_empty() {
                let records: Vec<&str> = records.iter().map(String::as_str).collect();
                self.append_text(partition as u32, &records);
            }
        }
    }
}

/// A window's start (0 in a view without) and a user, with count, sum, minimum and maximum.
pub type Rows = BTreeMap<(Micros, String), (i64, Option<i64>, Option<i64>, Option<i64>)>;

/// What the view is, by its definition.
pub fn fold(window: Option<Window>, events: &[Event]) -> Rows {
    let mut rows = Rows::new();
    for &(user, value, time) in events {
        let starts = window.map_or(vec![0], |window| window.starts(time).collect());
        for start in starts {
            let row = rows.entry((start, user.to_owned())).or_insert((0, None, None, None));
            row.0 += 1;
            if let Some(value) = value {
                row.1 = Some(row.1.unwrap_or(0) + value);
                row.2 = Some(row.2.map_or(value, |least| least.min(value)));
                row.3 = Some(row.3.map_or(value, |most| most.max(value)));
            }
        }
    }
    rows
}

/// The rows of a frame with the view's columns.
pub fn rows(frame: &DataFrame) -> Rows {
    let number = |name: &str, i: usize| {
        frame.column(name).ok().and_then(|column| match column.get(i).expect("row") {
            AnyValue::Int64(value) => Some(value),
            AnyValue::Datetime(value, _, _) | AnyValue::DatetimeOwned(value, _, _) => Some(value),
            AnyValue::Null => None,
            other => panic!("{name}: {other:?}"),
        })
    };
    let mut rows = Rows::new();
    for i in 0..frame.height() {
        let user = frame.column("user").expect("user").str().expect("text").get(i).expect("not null").to_owned();
        let values = (number("n", i).expect("count"), number("total", i), number("least", i), number("most", i));
        let before = rows.insert((number("window_start", i).unwrap_or(0), user), values);
        assert!(before.is_none(), "a row is there twice");
    }
    rows
}

/// All rows of a Delta table, without its partition columns.
pub async fn read_table(root: &Path) -> DataFrame {
    let table = DeltaTable::open(root).await.expect("open").expect("a table");
    let paths: Vec<PlRefPath> =
        table.files().iter().map(|file| PlRefPath::try_from_pathbuf(root.join(&file.path)).expect("path")).collect();
    if paths.is_empty() {
        return DataFrame::default();
    }
    tokio::task::spawn_blocking(move || {
        let args = ScanArgsParquet { glob: false, allow_missing_columns: true, ..Default::default() };
        LazyFrame::scan_parquet_files(paths.into(), args).expect("scan").collect().expect("rows")
    })
    .await
    .expect("joined")
}

/// The view's rows by its partials.
pub fn rows_of_partials(view: &Kept, version: &anabranch_exchange::version::Version) -> Rows {
    use anabranch_engine::partial::{Part, Scope, windows};
    let partials =
        version.partials(view.aggregation(), Micros::MIN / 4, Micros::MAX / 4).expect("partials").into_iter();
    let parts: Vec<Part> = partials.map(|partials| Part { partials, slack: None }).collect();
    rows(&windows(view.aggregation(), &parts, Scope::All).expect("windows").rows)
}

/// Another program that commits to a table: actions of Delta's, without a note of ours.
pub struct Other<'a>(pub &'a Path);

impl Other<'_> {
    fn commits(&self) -> Vec<std::path::PathBuf> {
        let log = std::fs::read_dir(self.0.join("_delta_log")).expect("a log");
        let paths = log.map(|entry| entry.expect("an entry").path());
        let mut commits: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
        commits.sort();
        commits
    }

    /// The next commit of the table.
    pub fn commit(&self, operation: &str, actions: &[serde_json::Value]) {
        let newest = self.commits().pop().expect("a commit");
        let version: u64 = newest.file_stem().and_then(|name| name.to_str()?.parse().ok()).expect("a version");
        let info = serde_json::json!({"commitInfo": {"timestamp": 0, "operation": operation}});
        let lines: Vec<String> = [&info].into_iter().chain(actions).map(ToString::to_string).collect();
        std::fs::write(newest.with_file_name(format!("{:020}.json", version + 1)), lines.join("\n")).expect("written");
    }

    /// The metadata with which the table was created.
    pub fn metadata(&self) -> serde_json::Value {
        let first = std::fs::read_to_string(&self.commits()[0]).expect("the first commit");
        let mut actions = first.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an action"));
        actions.find(|action| action.get("metaData").is_some()).expect("metadata")
    }

    /// Has each commit from the next on written as a checkpoint, too.
    pub fn checkpoint_each(&self) {
        let mut metadata = self.metadata();
        metadata["metaData"]["configuration"]["delta.checkpointInterval"] = "1".into();
        self.commit("SET TBLPROPERTIES", &[metadata]);
    }

    /// Deletes all commits but the newest so many.
    pub fn clean_log(&self, spared: usize) {
        let mut commits = self.commits();
        commits.truncate(commits.len() - spared);
        commits.iter().for_each(|commit| std::fs::remove_file(commit).expect("deleted"));
    }
}

/// A file that another program removes from a table; with the rows that it held, or not.
pub fn removed(file: &anabranch_store::table::DataFile, data_change: bool) -> serde_json::Value {
    let partition = serde_json::json!(file.partition);
    serde_json::json!({"remove": {"path": file.path, "dataChange": data_change, "deletionTimestamp": 0,
        "extendedFileMetadata": true, "partitionValues": partition, "size": file.size}})
}

/// A file that another program adds to a table.
pub fn added(file: &anabranch_store::table::DataFile, data_change: bool) -> serde_json::Value {
    serde_json::json!({"add": {"path": file.path, "dataChange": data_change, "modificationTime": file.modified_ms,
        "partitionValues": file.partition, "size": file.size, "stats": file.stats}})
}
