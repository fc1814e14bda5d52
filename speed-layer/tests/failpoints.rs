//! A process that dies at any step, and the next one's answers: nothing lost, nothing twice.
//!
//! The test starts itself as a child, which folds a log and dies at the step that it is told. The next child goes on
//! from what the first one left, and says what it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::reject::RejectLog;
use anabranch_exchange::version::{Published, Version, Versions};
use anabranch_log::clock::ManualClock;
use anabranch_log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_log::position::{Coverage, Positions};
use anabranch_log::{Append, Log, ReadLimit};
use anabranch_plan::sql;
use anabranch_plan::view::Catalog;
use anabranch_speed_layer::{Checkpoints, Context, Memory, Settings, run};
use anabranch_store::storage::{Location, Storage};
use fail::FailScenario;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const FOLDER: &str = "ANABRANCH_FAILPOINTS_FOLDER";
const STEPS: [&str; 9] = [
    "speed::after_read",
    "speed::after_late",
    "speed::after_fold",
    "speed::after_publish",
    "speed::before_checkpoint",
    "storage::staged",
    "speed::checkpoint_written",
    "speed::after_checkpoint",
    "speed::after_drop",
];
const EVENTS: u64 = 40;
const FRONTIER: u64 = 17;

fn catalog() -> Catalog {
    let table = "CREATE TABLE clicks (k TEXT, v BIGINT NOT NULL, ts TIMESTAMP NOT NULL) \
        WITH (topic = 'clicks', format = 'json', event_time = 'ts', watermark = '2 seconds');";
    let sums = "CREATE MATERIALIZED VIEW sums WITH (late = 'topic', late_topic = 'late') AS SELECT window_start, window_end, k, count(*) AS n, sum(v) AS total \
        FROM HOP(clicks, ts, INTERVAL '5 seconds', INTERVAL '10 seconds') GROUP BY window_start, window_end, k;";
    let of_a = "CREATE MATERIALIZED VIEW of_a WITH (late = 'rejects') AS SELECT window_start, window_end, count(*) AS n \
        FROM TUMBLE(clicks, ts, INTERVAL '5 seconds') WHERE k = 'a' GROUP BY window_start, window_end;";
    let files = [("clicks.sql", table), ("sums.sql", sums), ("of_a.sql", of_a)];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    sql::plan(&files).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn open(folder: &Path) -> EmbeddedLog {
    let options = EmbeddedOptions { reserve_bytes: 0, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(folder.join("log"), options, Arc::new(ManualClock::new(0))).expect("open");
    log.create_topic("clicks", 1).expect("create");
    log.create_topic("late", 1).expect("create");
    log
}

/// The offsets that a topic tells of, in order.
fn told(log: &dyn Log, topic: &str) -> Vec<u64> {
    let mut reader = log.reader(topic, &Positions::from([(0, 0)])).expect("a reader");
    let limit = ReadLimit { records: 1_000, bytes: 1 << 20 };
    let mut offsets = Vec::new();
    while let Some(batch) = reader.poll(limit, Duration::ZERO).expect("records") {
        let offset = |record| serde_json::from_slice::<serde_json::Value>(record).expect("JSON")["offset"].as_u64();
        offsets.extend(batch.payloads.iter().filter_map(offset));
    }
    offsets
}

/// Runs as a child: folds everything, moves to a version, and prints what the snapshot holds.
#[test]
#[ignore = "a child of the other test"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    // A panic would be caught, and a last checkpoint written: this is death.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let scenario = FailScenario::setup();
    let catalog = catalog();
    let id = catalog.views["sums"].id.clone();
    let (versions, receiver) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let storage = Storage::open(Location::Folder(folder.join("checkpoints")), &BTreeMap::new()).expect("a folder");
    let log: Arc<dyn Log> = Arc::new(open(&folder));
    let context = Context {
        rejects: Arc::new(RejectLog::open(log.clone(), Arc::new(ManualClock::new(0))).expect("rejects")),
        log: log.clone(),
        catalog: Arc::new(catalog),
        versions: Versions([(id.clone(), receiver)].into(), Default::default()),
        readings: Default::default(),
        checkpoints: Some(Checkpoints::new(storage, runtime.handle().clone())),
        outlets: None,
        clock: Arc::new(ManualClock::new(0)),
        memory: Memory::new(usize::MAX),
        settings: Settings {
            batch_records: 5,
            chunk_records: 10,
            snapshot_interval: Duration::ZERO,
            checkpoint_interval: Duration::ZERO,
            ..Settings::default()
        },
    };
    let layer = run(&context, &CancellationToken::new()).expect("started");
    let mut snapshots = layer.snapshots().0[&id].clone();
    let mut wait = |base: Option<u64>| {
        let all =
            snapshots.wait_for(|s| s.coverage.of("clicks").next(&0) == EVENTS && (base.is_none() || s.base == base));
        runtime.block_on(all).expect("the layer works").clone()
    };
    let before = wait(None);
    let published = Published {
        version: 1,
        definition: id.definition,
        coverage: Coverage::from_iter([(0, 0..FRONTIER)]).named("clicks"),
        event_times: BTreeMap::new(),
        published: 0,
        run: String::new(),
        rebuilds: 0,
        erased: BTreeSet::new(),
        panes: vec![],
        state: None,
        log: Default::default(),
    };
    versions.send_replace(Some(Arc::new(Version::new(PathBuf::new(), published, false))));
    let after = wait(Some(1));
    assert_eq!(before.coverage.of("clicks").starts(), Positions::from([(0, 0)]), "no version was known yet");
    for snapshot in [before, after] {
        let rows = snapshot.chunks.iter().flat_map(|chunk| &chunk.panes).flat_map(|(&start, pane)| {
            let column = |name: &str| pane.partials.column(name).expect("a column").as_materialized_series().clone();
            let (missed, key, count, sum) = (column("__missed"), column("k0"), column("a0"), column("a1"));
            let row = move |i: usize| {
                let number = |s: &polars::prelude::Series| s.get(i).expect("a row").extract::<i64>().expect("a number");
                let key = key.str().expect("text").get(i).unwrap_or("").to_owned();
                ((start, number(&missed), key), (number(&count), number(&sum)))
            };
            (0..pane.partials.height()).map(row).collect::<Vec<_>>()
        });
        let mut sums: BTreeMap<_, (i64, i64)> = BTreeMap::new();
        for (row, (count, sum)) in rows {
            let total = sums.entry(row).or_default();
            *total = (total.0 + count, total.1 + sum);
        }
        println!("ANSWER {} {:?} {sums:?}", snapshot.late, snapshot.watermark);
    }
    layer.stop();
    println!("ANSWER late {:?} {:?}", told(&*log, "late"), told(&*log, anabranch_exchange::reject::TOPIC));
    scenario.teardown();
}

fn run_child(folder: &Path, failpoints: &str) -> Output {
    let this = std::env::current_exe().expect("this test");
    let mut command = Command::new(this);
    command.args(["child", "--exact", "--ignored", "--nocapture"]);
    command.env(FOLDER, folder).env("FAILPOINTS", failpoints).output().expect("a child")
}

fn answers(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| Some(line.split_once("ANSWER ")?.1.to_owned())).collect()
}

fn folder_with_events() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path());
    for i in 0..EVENTS {
        let second = i + 3 - i * 7 % 23 % 13;
        let record =
            format!(r#"{{"ts":"1970-01-01T00:01:{second:02}Z","k":"{}","v":{i}}}"#, ["a", "b"][i as usize % 2]);
        let parts = vec![(0, [record].iter().collect())];
        log.append("clicks", Append { parts, ..Append::default() }).expect("appended");
    }
    folder
}

#[test]
fn death_at_any_step_changes_no_answer() {
    let straight = run_child(folder_with_events().path(), "");
    let expected = answers(&straight);
    assert_eq!(expected.len(), 3, "{}", String::from_utf8_lossy(&straight.stderr));
    assert!(!expected[0].starts_with("0 "), "some events are late: {}", expected[0]);
    let late = expected[2].matches(", ").count();
    assert!(late > 4 && !expected[2].contains("[]"), "and told of on the side: {}", expected[2]);
    for step in STEPS {
        let mut deaths = 0;
        for hits in [0, 1, 4] {
            let folder = folder_with_events();
            let died = run_child(folder.path(), &format!("{step}={hits}*off->panic"));
            deaths += u32::from(!died.status.success());
            let next = run_child(folder.path(), "");
            let text = String::from_utf8_lossy(&next.stderr);
            assert_eq!(answers(&next), expected, "{step} after {hits}: {text}");
        }
        assert!(deaths > 0, "{step} is on no path");
    }
}
