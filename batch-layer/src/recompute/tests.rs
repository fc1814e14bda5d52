use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_engine::partial::{Part, Scope, windows};
use anabranch_exchange::audit::{AuditLog, Cause};
use anabranch_exchange::version::{Published, Version, committed_version};
use anabranch_log::clock::Clock;
use anabranch_plan::time::Micros;
use anabranch_plan::view::{Kept, View, ViewId};
use anabranch_plan::window::Window;
use anabranch_store::table::{DeltaTable, Sweeper, TableError};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::{Recompute, sweep};
use crate::archive::tests::archive;
use crate::archive::{ArchiveSettings, Archiver, Rebuild};
use crate::day::DAY;
use crate::error::BatchError;
use crate::fixture::{
    Event, Rows, SECOND, Source, fold, read_table, rows, rows_of_partials, source, table, view, with,
};

pub(super) struct Setup {
    pub _dir: tempfile::TempDir,
    pub source: Source,
    pub archiver: Archiver,
    pub views: PathBuf,
}

pub(super) async fn setup() -> Setup {
    let dir = tempfile::tempdir().expect("directory");
    let source = source(dir.path());
    let archiver = Archiver::open(archive(dir.path(), &source, table()), ArchiveSettings::default());
    let archiver = archiver.await.expect("open");
    Setup { views: dir.path().join("views"), _dir: dir, source, archiver }
}

pub(super) fn view_of(window: Option<(Micros, Micros)>) -> Kept {
    let window = window.map(|(size, slide)| Window::sliding(size, slide));
    view("sums", Arc::new(table()), window)
}

impl Setup {
    pub async fn plan(&self, view: &Kept) -> Recompute {
        let archive = self.archiver.archive_to(&self.archiver.log_ends().await.expect("ends")).await.expect("archive");
        Recompute {
            view: view.clone(),
            views: self.views.clone(),
            audits: self.audits(),
            archives: vec![archive],
            full: false,
            times: None,
            run: "run".into(),
            clock: self.source.clock.clone(),
            cancel: CancellationToken::new(),
            progress: Arc::new(|_| {}),
        }
    }

    pub fn audits(&self) -> AuditLog {
        AuditLog::new(self._dir.path().join("audit"))
    }

    pub async fn recompute(&self, view: &Kept) -> Option<Published> {
        self.plan(view).await.run().await.expect("recompute")
    }

    pub fn root(&self) -> PathBuf {
        self.views.join("sums")
    }

    async fn newest(&self) -> Version {
        let table = DeltaTable::open(&self.root()).await.expect("open").expect("table");
        let committed = committed_version(&table).await.expect("note").expect("a version");
        Version::new(self.root(), committed.published().clone(), false)
    }

    /// The table's rows and those by the partials are what a fold says.
    pub async fn check(&self, view: &Kept, events: &[Event]) {
        let expected = fold(view.aggregation().window, events);
        assert_eq!(rows(&read_table(&self.root()).await), expected, "the table's rows");
        let (version, view) = (self.newest().await, view.clone());
        let by_partials = tokio::task::spawn_blocking(move || rows_of_partials(&view, &version)).await.expect("joined");
        assert_eq!(by_partials, expected, "the rows by the partials");
    }
}

/// The first rows of each window: those with the largest counts, then those with the smallest keys.
fn first(limit: usize, mut rows: Rows) -> Rows {
    let all = rows.clone();
    rows.retain(|(start, user), row| {
        let of_window = all.iter().filter(|((other, _), _)| other == start);
        of_window.filter(|((_, other), count)| (-count.0, other) < (-row.0, user)).count() < limit
    });
    rows
}

pub(super) const EVENTS: [Event; 9] = [
    ("a", Some(3), 0),
    ("a", Some(-5), 999_000),
    ("b", None, 1_000_000),
    ("a", Some(7), -1_000),
    ("b", Some(1), DAY - 1_000),
    ("b", Some(2), DAY),
    ("c", Some(4), 3 * DAY + 7 * SECOND),
    ("a", Some(9), -DAY),
    ("a", Some(2), -DAY - 1_000),
];

#[tokio::test]
async fn a_recompute_is_a_fold_of_all_events() {
    let windows = [
        None,
        Some((SECOND, SECOND)),
        Some((5 * SECOND, SECOND)),
        Some((5 * SECOND, 2 * SECOND)),
        Some((7 * 3600 * SECOND, 3 * 3600 * SECOND)),
        Some((2 * DAY, DAY / 2)),
    ];
    for window in windows {
        let setup = setup().await;
        let view = view_of(window);
        setup.source.append(&EVENTS);
        let published = setup.recompute(&view).await.expect("a version");
        assert_eq!((published.version, published.coverage.len()), (1, 9));
        assert_eq!(published.event_times.values().max(), Some(&(3 * DAY + 7 * SECOND)));
        setup.check(&view, &EVENTS).await;
        assert_eq!(setup.recompute(&view).await, None, "there is nothing new");
    }
}

#[tokio::test]
async fn days_without_new_events_are_carried_over() {
    let setup = setup().await;
    let view = view_of(Some((5 * SECOND, SECOND)));
    setup.source.append(&EVENTS);
    let first = setup.recompute(&view).await.expect("a version");
    let late: [Event; 1] = [("z", Some(1), 3 * SECOND)];
    setup.source.append(&late);
    let second = setup.recompute(&view).await.expect("a version");
    assert_eq!(second.version, 2);
    let paths = |published: &Published| published.panes.iter().map(|file| file.path.clone()).collect::<BTreeSet<_>>();
    let changed: Vec<i64> = second.panes.iter().filter(|f| !paths(&first).contains(&f.path)).map(|f| f.day).collect();
    assert_eq!(changed, [0]);
    let events: Vec<Event> = EVENTS.into_iter().chain(late).collect();
    setup.check(&view, &events).await;
    // The first version can still be read.
    let version = Version::new(setup.root(), first, false);
    let (old, this) = (version, view.clone());
    let by_partials = tokio::task::spawn_blocking(move || rows_of_partials(&this, &old)).await.expect("joined");
    assert_eq!(by_partials, fold(view.aggregation().window, &EVENTS));
}

#[tokio::test]
async fn the_times_asked_for_are_recomputed_beside_what_is_new() {
    let setup = setup().await;
    let view = view_of(Some((5 * SECOND, SECOND)));
    setup.source.append(&EVENTS);
    let first = setup.recompute(&view).await.expect("a version");
    let late: [Event; 1] = [("z", Some(1), 3 * SECOND)];
    setup.source.append(&late);
    let plan = Recompute { times: Some(DAY..DAY + 1), ..setup.plan(&view).await };
    let second = plan.run().await.expect("recompute").expect("a version");
    let changed: Vec<i64> = second.panes.iter().filter(|file| !first.panes.contains(file)).map(|f| f.day).collect();
    assert_eq!(changed, [0, 1], "a version holds every event that it covers, whichever times were asked for");
    let events: Vec<Event> = EVENTS.into_iter().chain(late).collect();
    setup.check(&view, &events).await;
}

#[tokio::test]
async fn a_rewrite_of_small_files_touches_no_day() {
    let setup = setup().await;
    let view = view_of(Some((5 * SECOND, SECOND)));
    for event in EVENTS.iter().cycle().take(60) {
        setup.source.append(&[*event]);
        setup.archiver.step().await.expect("step");
    }
    let first = setup.recompute(&view).await.expect("a version");
    assert!(setup.archiver.compact().await.expect("compact"));
    assert_eq!(setup.recompute(&view).await, None);
    assert_eq!(setup.newest().await.published, first);
}

#[tokio::test]
async fn events_that_are_all_rejected_advance_the_coverage_alone() {
    let setup = setup().await;
    let view = view_of(Some((SECOND, SECOND)));
    setup.source.append(&EVENTS);
    let first = setup.recompute(&view).await.expect("a version");
    setup.source.append_text(0, &["nonsense"]);
    let second = setup.recompute(&view).await.expect("a version");
    assert_eq!(second.coverage.len(), first.coverage.len() + 1);
    assert_eq!(second.panes, first.panes);
    setup.check(&view, &EVENTS).await;
}

#[tokio::test]
async fn a_new_definition_recomputes_everything_and_may_change_the_columns() {
    let setup = setup().await;
    let tumbling = view_of(Some((SECOND, SECOND)));
    setup.source.append(&EVENTS);
    setup.recompute(&tumbling).await.expect("a version");
    let totals = view_of(None);
    let published = setup.recompute(&totals).await.expect("a version");
    assert_eq!((published.version, published.definition == totals.id.definition), (2, true));
    setup.check(&totals, &EVENTS).await;
    let narrow = with(&view("sums", Arc::new(table()), Some(Window::sliding(DAY, DAY))), |kept| {
        kept.aggregates.truncate(4);
        kept.columns.truncate(5);
    });
    assert_eq!(setup.recompute(&narrow).await.expect("a version").version, 3);
    setup.check(&narrow, &EVENTS).await;
}

#[tokio::test]
async fn a_top_k_keeps_the_first_rows_of_each_window() {
    let setup = setup().await;
    let top = with(&view("sums", Arc::new(table()), Some(Window::sliding(DAY, DAY))), |kept| kept.limit = Some(1));
    setup.source.append(&EVENTS);
    setup.recompute(&top).await.expect("a version");
    let expected = first(1, fold(top.aggregation().window, &EVENTS));
    assert_eq!(rows(&read_table(&setup.root()).await), expected);
}

#[tokio::test]
async fn what_a_new_definition_changed_is_told_of_windows_with_the_same_events() {
    for window in [Some((DAY, DAY)), None] {
        let setup = setup().await;
        let old = view_of(window);
        setup.source.append(&EVENTS);
        setup.recompute(&old).await.expect("a version");
        assert!(setup.audits().versions("sums").expect("listed").is_empty(), "nothing was redefined");
        let new = with(&old, |kept| kept.aggregates[1].function = kept.aggregates[3].function);
        let id = ViewId { name: "sums".into(), definition: "sha256:another".into() };
        let new = Kept::of(&Arc::new(View { id, ..View::clone(&new) })).expect("it keeps something");
        // Whatever has changed on the day of this event is not the definition's doing alone.
        let later = [("b", Some(100), DAY + 1)];
        if window.is_some() {
            setup.source.append(&later);
        }
        setup.recompute(&new).await.expect("a version");
        let redefined = setup.audits().redefined("sums", 2).expect("read");
        let told: Vec<_> = redefined.corrections.iter().map(|one| (&one.key["user"], &one.old, &one.new)).collect();
        let (a, b) = (serde_json::json!("a"), serde_json::json!("b"));
        let number = |number: i64| serde_json::json!(number);
        match window {
            Some(_) => assert_eq!(told, [(&a, &number(16), &number(9)), (&a, &number(-2), &number(3))]),
            None => assert_eq!(told, [(&a, &number(16), &number(9)), (&b, &number(3), &number(2))]),
        }
        assert_eq!(redefined.total, told.len() as u64);
        assert!(redefined.corrections.iter().all(|one| (&*one.column, one.cause) == ("total", Cause::Redefined)));
        // A new version of the same definition tells nothing more.
        setup.source.append(&later);
        setup.recompute(&new).await.expect("a version");
        assert_eq!(setup.audits().redefined("sums", 3).expect("read").total, 0);
    }
}

#[tokio::test]
async fn of_two_publishers_of_the_same_version_one_is_refused() {
    let setup = setup().await;
    let view = view_of(Some((SECOND, SECOND)));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    setup.source.append(&EVENTS);
    let stale = setup.plan(&view).await;
    // The other publishes after this one has read the table.
    let other = std::sync::Mutex::new(Some(setup.plan(&view).await));
    let handle = tokio::runtime::Handle::current();
    let stale = Recompute {
        progress: Arc::new(move |_| {
            if let Some(other) = other.lock().expect("lock").take() {
                handle.block_on(other.run()).expect("published");
            }
        }),
        ..stale
    };
    let refused = stale.run().await.expect_err("refused");
    assert!(matches!(refused, BatchError::Table(TableError::Superseded { .. })), "{refused}");
    assert_eq!(setup.newest().await.published.version, 2);
    let twice: Vec<Event> = EVENTS.into_iter().chain(EVENTS).collect();
    setup.check(&view, &twice).await;
}

#[tokio::test]
async fn a_run_during_which_the_archive_is_rebuilt_publishes_nothing_unless_it_begins_again() {
    let setup = setup().await;
    let view = view_of(Some((SECOND, SECOND)));
    setup.source.append(&EVENTS);
    let rebuilt = async |begins_again: bool| {
        let rebuild = Rebuild::plan(archive(setup._dir.path(), &setup.source, table())).await.expect("plan");
        let (rebuild, handle) = (std::sync::Mutex::new(rebuild), tokio::runtime::Handle::current());
        let progress = Arc::new(move |_| {
            if let Some(rebuild) = rebuild.lock().expect("lock").take() {
                handle.block_on(rebuild.run()).expect("rebuilt");
            }
        });
        let run = Recompute { progress, ..setup.plan(&view).await };
        if begins_again { run.run_from_newest().await } else { run.run().await }
    };
    setup.recompute(&view).await.expect("a version");
    setup.source.append(&EVENTS);
    let refused = rebuilt(false).await.expect_err("refused");
    assert!(matches!(refused, BatchError::Rebuilt { .. }) && refused.is_transient(), "{refused}");
    assert_eq!(setup.newest().await.published.version, 1);
    let published = rebuilt(true).await.expect("recompute").expect("a version");
    assert_eq!((published.version, published.rebuilds), (2, 2));
    let twice: Vec<Event> = EVENTS.into_iter().chain(EVENTS).collect();
    setup.check(&view, &twice).await;
}

#[tokio::test]
async fn a_cancelled_run_publishes_nothing() {
    let setup = setup().await;
    let view = view_of(Some((SECOND, SECOND)));
    setup.source.append(&EVENTS);
    let plan = setup.plan(&view).await;
    let token = plan.cancel.clone();
    let plan = Recompute { progress: Arc::new(move |_| token.cancel()), ..plan };
    assert!(matches!(plan.run().await, Err(BatchError::Cancelled)));
    let table = DeltaTable::open(&setup.root()).await.expect("open").expect("table");
    assert_eq!(committed_version(&table).await.expect("note"), None);
}

#[tokio::test]
async fn files_of_old_versions_go_after_a_while() {
    let setup = setup().await;
    let view = view_of(Some((SECOND, SECOND)));
    let mut events = Vec::new();
    let mut first = None;
    for _ in 0..4 {
        setup.source.append(&EVENTS);
        events.extend(EVENTS);
        let published = setup.recompute(&view).await.expect("a version");
        first.get_or_insert(published);
    }
    let first = first.expect("a version");
    let mut sweeper = Sweeper::default();
    let grace = 60 * SECOND;
    let mut run = async |now: Micros| sweep(&setup.views, &view, &mut sweeper, 2, now, grace).await.expect("sweep");
    let now = setup.source.clock.now();
    assert_eq!(run(now).await, 0);
    assert_eq!(run(now + grace / 2).await, 0);
    assert!(run(now + grace).await > 0);
    let is_there = |path: &Path| setup.root().join(path).exists();
    assert!(first.panes.iter().all(|file| !is_there(Path::new(&file.path))));
    setup.check(&view, &events).await;
    // Two versions are kept: the one before the newest can be read.
    let table = DeltaTable::open(&setup.root()).await.expect("open").expect("table");
    let before = table.at(table.version() - 1).await.expect("at");
    assert!(before.files().iter().all(|file| is_there(Path::new(&file.path))));
}

#[tokio::test]
async fn a_reader_of_one_window_finds_it_in_the_panes() {
    let setup = setup().await;
    let view = view_of(Some((2 * DAY, DAY / 2)));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    let (version, this) = (setup.newest().await, view.clone());
    let found = tokio::task::spawn_blocking(move || {
        let partials = version.partials(this.aggregation(), -DAY, DAY).expect("partials").into_iter();
        let parts: Vec<Part> = partials.map(|partials| Part { partials, slack: None }).collect();
        windows(this.aggregation(), &parts, Scope::One(-DAY)).expect("rows").rows
    });
    let found = rows(&found.await.expect("joined"));
    let mut expected = fold(view.aggregation().window, &EVENTS);
    expected.retain(|(start, _), _| *start == -DAY);
    assert_eq!(found, expected);
}

fn event() -> impl Strategy<Value = Event> {
    let user = prop::sample::select(vec!["a", "b", "c"]);
    let time = prop_oneof![-3_000_i64..3_000, -200_000_000_i64..200_000_000];
    (user, proptest::option::of(-9_i64..9), time).prop_map(|(user, value, ms)| (user, value, ms * 1000))
}

fn some_window() -> impl Strategy<Value = Option<(Micros, Micros)>> {
    let hours = 3600 * SECOND;
    prop::sample::select(vec![
        None,
        Some((SECOND, SECOND)),
        Some((5 * SECOND, 3 * SECOND)),
        Some((5 * hours, 2 * hours)),
        Some((DAY, DAY)),
        Some((30 * hours, 7 * hours)),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_first_rows_are_those_of_a_plain_fold(
        window in some_window(),
        limit in 1_usize..4,
        seconds in prop::collection::vec((prop::sample::select(vec!["a", "b", "c", "d", "e"]), -20_i64..20), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let setup = setup().await;
            let events: Vec<Event> = seconds.iter().map(|&(user, at)| (user, Some(1), at * SECOND)).collect();
            let top = with(&view_of(window), |kept| kept.limit = Some(limit));
            setup.source.append(&events);
            setup.recompute(&top).await.expect("a version");
            assert_eq!(rows(&read_table(&setup.root()).await), first(limit, fold(view_of(window).aggregation().window, &events)));
        });
    }

    #[test]
    fn increments_give_what_a_full_recompute_gives(
        window in some_window(),
        increments in prop::collection::vec(prop::collection::vec(event(), 0..12), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let setup = setup().await;
            let view = view_of(window);
            let mut events = Vec::new();
            let mut versions = 0;
            for increment in &increments {
                setup.source.append(increment);
                events.extend(increment.iter().copied());
                if let Some(published) = setup.recompute(&view).await {
                    versions += 1;
                    assert_eq!(published.version, versions);
                    setup.check(&view, &events).await;
                }
            }
            let full = Recompute { full: true, ..setup.plan(&view).await };
            full.run().await.expect("recompute").expect("a version");
            setup.check(&view, &events).await;
        });
    }
}
