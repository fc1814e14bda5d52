//! What becomes of a view when other programs change the archive.

use std::sync::Arc;

use anabranch_exchange::audit::Cause;
use anabranch_exchange::version::{ArchiveRead, committed_version};
use anabranch_plan::window::Window;
use anabranch_store::table::{Change, DataFile, DeltaTable};
use serde_json::json;

use super::Recompute;
use super::tests::{EVENTS, Setup, setup, view_of};
use crate::day::{DAY, day_of, parse_day};
use crate::fixture::{Event, Other, SECOND, added, read_table, removed, rows, table, view};

impl Setup {
    async fn archive_files(&self) -> Vec<DataFile> {
        DeltaTable::open(&self.archive_root()).await.expect("open").expect("a table").files()
    }

    fn archive_root(&self) -> std::path::PathBuf {
        self._dir.path().join("archive")
    }

    async fn of_day(&self, day: i64) -> DataFile {
        let is_of = |file: &DataFile| file.partition["day"].as_deref().and_then(parse_day) == Some(day);
        self.archive_files().await.into_iter().find(is_of).expect("a file of the day")
    }

    /// Another program's file with the same rows.
    async fn copy(&self, file: &DataFile) -> DataFile {
        let path = file.path.replace("part-", "copy-");
        std::fs::copy(self.archive_root().join(&file.path), self.archive_root().join(&path)).expect("copied");
        DataFile { path, ..file.clone() }
    }
}

#[tokio::test]
async fn a_day_that_another_program_deletes_is_gone_after_a_run_and_corrections_say_why() {
    for window in [Some((DAY, DAY)), Some((2 * DAY, DAY / 2)), None] {
        let (setup, view) = (setup().await, view_of(window));
        setup.source.append(&EVENTS);
        setup.recompute(&view).await.expect("a version");
        let file = setup.of_day(0).await;
        Other(&setup.archive_root()).commit("DELETE", &[removed(&file, true)]);
        let published = setup.recompute(&view).await.expect("a version");
        assert_eq!((published.version, &published.erased), (2, &[0].into()));
        let left: Vec<Event> = EVENTS.into_iter().filter(|event| day_of(event.2) != 0).collect();
        setup.check(&view, &left).await;
        let corrections = setup.audits().redefined("sums", 2).expect("read");
        assert!(corrections.total > 0, "{window:?}");
        assert!(corrections.corrections.iter().all(|one| one.cause == Cause::Erased), "{corrections:?}");
        assert_eq!(setup.recompute(&view).await, None, "once");
        // Events that come later are counted once.
        let late: [Event; 2] = [("z", Some(1), 3 * SECOND), ("a", Some(1), DAY)];
        setup.source.append(&late);
        assert!(setup.recompute(&view).await.expect("a version").erased.is_empty());
        setup.check(&view, &left.into_iter().chain(late).collect::<Vec<_>>()).await;
        assert_eq!(setup.audits().redefined("sums", 3).expect("read").total, 0);
    }
}

#[tokio::test]
async fn sessions_end_where_their_events_were_erased() {
    let setup = setup().await;
    let window = Some(Window::Session { gap: 3 * DAY / 2 });
    let view = view("sums", Arc::new(table()), window);
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    let of_table = async || rows(&read_table(&setup.root()).await);
    let before = of_table().await;
    Other(&setup.archive_root()).commit("DELETE", &[removed(&setup.of_day(-1).await, true)]);
    setup.recompute(&view).await.expect("a version");
    let after = of_table().await;
    Recompute { full: true, ..setup.plan(&view).await }.run().await.expect("recompute").expect("a version");
    assert_eq!(after, of_table().await);
    assert_ne!(after, before);
}

#[tokio::test]
async fn events_that_another_program_changes_are_changed_after_a_run() {
    let (setup, view) = (setup().await, view_of(Some((DAY, DAY))));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    // The rows of another day, as many: the day's file has `b` only.
    let (old, other) = (setup.of_day(1).await, setup.of_day(3).await);
    assert_eq!(old.rows, other.rows);
    let new = DataFile { partition: old.partition.clone(), ..setup.copy(&other).await };
    Other(&setup.archive_root()).commit("UPDATE", &[removed(&old, true), added(&new, true)]);
    let published = setup.recompute(&view).await.expect("a version");
    assert_eq!(published.erased, [1].into());
    let rows = rows(&read_table(&setup.root()).await);
    assert!(!rows.contains_key(&(DAY, "b".to_owned())), "{rows:?}");
}

#[tokio::test]
async fn a_rewrite_by_another_program_touches_no_day() {
    let (setup, view) = (setup().await, view_of(Some((DAY, DAY))));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    let old = setup.of_day(0).await;
    let new = setup.copy(&old).await;
    Other(&setup.archive_root()).commit("OPTIMIZE", &[removed(&old, false), added(&new, false)]);
    assert_eq!(setup.recompute(&view).await, None);
    // Of a rewrite whose commit is gone it isn't known that it was one.
    Other(&setup.archive_root()).checkpoint_each();
    setup.source.append(&[("a", Some(1), 3 * DAY)]);
    setup.archiver.archive_to(&setup.archiver.log_ends().await.expect("ends")).await.expect("archived");
    Other(&setup.archive_root()).clean_log(1);
    let published = setup.recompute(&view).await.expect("a version");
    let run: Vec<i64> = published.panes.iter().filter(|file| file.path.contains("-2-")).map(|file| file.day).collect();
    assert_eq!((run, published.erased.len()), (vec![0, 3], 0));
    let events: Vec<Event> = EVENTS.into_iter().chain([("a", Some(1), 3 * DAY)]).collect();
    setup.check(&view, &events).await;
}

#[tokio::test]
async fn what_is_put_back_is_there_again_after_a_run() {
    let (setup, view) = (setup().await, view_of(Some((DAY, DAY))));
    setup.source.append(&EVENTS);
    let first = setup.recompute(&view).await.expect("a version");
    let file = setup.of_day(0).await;
    Other(&setup.archive_root()).commit("DELETE", &[removed(&file, true)]);
    setup.recompute(&view).await.expect("a version");
    Other(&setup.archive_root()).commit("RESTORE", &[added(&file, true)]);
    let published = setup.recompute(&view).await.expect("a version");
    assert_eq!((published.coverage, published.erased.len()), (first.coverage, 0));
    setup.check(&view, &EVENTS).await;
}

#[tokio::test]
async fn an_archive_that_begins_anew_is_computed_in_full_although_days_have_as_many_events() {
    let (setup, view) = (setup().await, view_of(Some((DAY, DAY))));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    let others: Vec<Event> = EVENTS.into_iter().map(|(_, value, time)| ("other", value, time)).collect();
    let anew = super::tests::setup().await;
    anew.source.append(&others);
    let run = Recompute { views: setup.views.clone(), audits: setup.audits(), ..anew.plan(&view).await };
    let published = run.run().await.expect("recompute").expect("a version");
    assert_eq!((published.version, published.erased.len()), (2, 0));
    setup.check(&view, &others).await;
}

#[tokio::test]
async fn the_note_of_an_earlier_build_is_read_and_the_next_run_is_full() {
    let (setup, view) = (setup().await, view_of(Some((DAY, DAY))));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    let mut table = DeltaTable::open(&setup.root()).await.expect("open").expect("a table");
    let mut note: serde_json::Value = table.note().await.expect("note").expect("a note").1;
    let archive = note["archive"].as_object_mut().expect("what was read");
    archive.retain(|name, _| ["version", "days"].contains(&name.as_str()));
    table.commit(Change { note, is_rearrangement: true, ..Change::default() }).await.expect("commit");
    let table = DeltaTable::open(&setup.root()).await.expect("open").expect("a table");
    let read = committed_version(&table).await.expect("note").expect("a version").archive("events");
    assert_eq!((read.table.as_ref(), read.files.len(), read.days.len()), (None, 0, 5), "{read:?}");
    let published = setup.recompute(&view).await.expect("a version");
    assert!(published.panes.iter().all(|file| file.path.contains("-2-")) && published.erased.is_empty());
    setup.check(&view, &EVENTS).await;
    assert_eq!(setup.recompute(&view).await, None);
}

#[tokio::test]
async fn a_view_whose_note_was_cleaned_up_goes_on_with_the_next_version() {
    let (setup, view) = (setup().await, view_of(Some((DAY, DAY))));
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    Other(&setup.root()).checkpoint_each();
    setup.source.append(&EVENTS);
    setup.recompute(&view).await.expect("a version");
    Other(&setup.root()).commit("OPTIMIZE", &[]);
    Other(&setup.root()).clean_log(1);
    assert_eq!(setup.recompute(&view).await.expect("a version").version, 3);
    let twice: Vec<Event> = EVENTS.into_iter().chain(EVENTS).collect();
    setup.check(&view, &twice).await;
}

#[test]
fn a_fingerprint_is_of_paths_and_sizes_in_any_order() {
    let file = |path: &str, size| DataFile {
        path: path.into(),
        size,
        rows: None,
        partition: Default::default(),
        modified_ms: 0,
        stats: None,
        sha256: None,
    };
    let one = ArchiveRead::fingerprint(&[file("a", 1), file("b", 2)]);
    assert_eq!(one, ArchiveRead::fingerprint(&[file("b", 2), file("a", 1)]));
    assert_ne!(one, ArchiveRead::fingerprint(&[file("a", 1)]));
    assert_ne!(one, ArchiveRead::fingerprint(&[file("a", 1), file("b", 3)]));
    let read: ArchiveRead = serde_json::from_value(json!({"version": 3, "days": {"0": 1}})).expect("an earlier note");
    assert_eq!((read.version, read.table), (3, None));
}
