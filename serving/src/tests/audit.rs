//! What was said against what is true, and why it differed.

use std::sync::Arc;

use anabranch_exchange::audit::{Cause, Deviation};
use anabranch_plan::window::Window;
use serde_json::json;

use super::support::*;
use crate::audit::findings;
use crate::source::{HeldVersion, Layers};

/// The findings once batch covers all that the answers were about.
fn found(view: &anabranch_plan::view::Kept, events: &[Event]) -> anabranch_exchange::audit::Findings {
    found_erased(view, events, &[])
}

/// The same where events of these days were erased from the archive.
fn found_erased(
    view: &anabranch_plan::view::Kept,
    events: &[Event],
    erased: &[i64],
) -> anabranch_exchange::audit::Findings {
    let folder = tempfile::tempdir().expect("a folder");
    let all = events.len();
    let said = Layers { snapshot: Some(Arc::new(snapshot(view, events, None, &[0, 2, all]))), ..Layers::default() };
    let mut truth = Arc::unwrap_or_clone(version(folder.path(), view, 1, events));
    truth.published.erased = erased.iter().copied().collect();
    let truth = Arc::new(HeldVersion::new(Arc::new(truth)));
    let after = Arc::new(snapshot(view, events, Some(1), &[all, all]));
    let known = Layers { snapshot: Some(after), versions: vec![truth], ..Layers::default() };
    findings(view, &said, &known, "2024-01-15T10:00:00Z".to_owned()).expect("scored").expect("windows are exact now")
}

/// The last two are too late for the first minute.
fn events() -> Vec<Event> {
    vec![event(10, "a", 1), event(20, "a", 2), event(200, "b", 1), event(30, "a", 5), event(40, "c", 7)]
}

#[test]
fn what_late_events_were_missing_is_told_as_theirs_and_corrected() {
    let view = view("trending", Some(Window::sliding(60_000_000, 60_000_000)), true, None);
    let found = found(&view, &events());
    let audit = &found.audit;
    assert_eq!((audit.version, audit.base, audit.windows), (1, None, 2));
    assert_eq!((audit.rows_missing, audit.rows_extra, audit.corrections), (1, 0, 4), "{audit:?}");
    let off =
        |by: f64, share: f64| Deviation { values: 1, median: Some(by), worst: Some(by), worst_share: Some(share) };
    for (column, (name, late)) in
        audit.columns.iter().zip([("mentions", off(1.0, 1.0 / 3.0)), ("total", off(5.0, 0.625))])
    {
        assert_eq!((column.column.as_str(), column.values, column.bounded, column.held), (name, 2, 2, 2));
        assert_eq!((&column.late, &column.sketch), (&late, &Deviation::default()));
    }
    let corrected: Vec<_> =
        found.corrections.iter().map(|one| json!([one.key["tag"], one.column, one.old, one.new])).collect();
    for expected in [
        json!(["a", "mentions", 2, 3]),
        json!(["a", "total", 3, 8]),
        json!(["c", "mentions", null, 1]),
        json!(["c", "total", null, 7]),
    ] {
        assert!(corrected.contains(&expected), "{corrected:?} lacks {expected}");
    }
    let first = ("2017-08-27T00:00:00Z", "2017-08-27T00:01:00Z", Cause::Late);
    for one in &found.corrections {
        let window = (one.window_start.as_deref(), one.window_end.as_deref());
        assert_eq!((window, one.cause), ((Some(first.0), Some(first.1)), first.2));
    }
}

#[test]
fn views_without_windows_or_keys_are_scored_too() {
    for (keyed, rows) in [(true, 3), (false, 1)] {
        let found = found(&view("ever", None, keyed, None), &events());
        assert_eq!((found.audit.windows, found.audit.corrections), (1, 0), "nothing is late");
        for column in &found.audit.columns {
            assert_eq!((column.values, column.bounded, column.held), (rows, rows, rows));
        }
    }
}

#[test]
fn windows_of_which_events_were_erased_are_not_scored() {
    let view = view("trending", Some(Window::sliding(60_000_000, 60_000_000)), true, None);
    // The day of all events, and the day before.
    let (day, before) = (17_405, 17_404);
    let found = found_erased(&view, &events(), &[day]);
    assert!(found.audit.columns.iter().all(|column| column.values == 0), "{:?}", found.audit);
    assert_eq!(found.audit.corrections, 4);
    assert!(found.corrections.iter().all(|one| one.cause == Cause::Erased), "{:?}", found.corrections);
    let other = found_erased(&view, &events(), &[before]);
    assert!(other.corrections.iter().all(|one| one.cause == Cause::Late), "{:?}", other.corrections);
}
