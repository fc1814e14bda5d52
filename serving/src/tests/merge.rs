//! The sum of both layers at every cut against a plain fold.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_engine::partial::Slack;
use anabranch_exchange::snapshot::{Chunk, Snapshot};
use anabranch_exchange::version::Version;
use anabranch_log::position::{Coverage, Positions};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use polars::prelude::*;

use super::support::*;
use crate::merge::{Answer, Ask, Span, answer};
use crate::source::{HeldVersion, Layers, Mode, Sources};

/// Events that jump about in time, the same each run.
fn stream(count: usize) -> Vec<Event> {
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    (0..count as i64)
        .map(|i| {
            let back = if random(4) == 0 { random(900) as i64 } else { 0 };
            event(i * 3 - back, ["a", "b", "c", "d"][random(4) as usize], random(10) as i64)
        })
        .collect()
}

/// What one row is to say: value, lower and upper bound of the count and of the sum.
type Expected = BTreeMap<String, [i64; 6]>;

fn fold(view: &Kept, events: &[Event], frontier: usize, start: Micros) -> (Expected, u64) {
    let window = view.aggregation().window.expect("windows");
    let missed = missed(view, events);
    let mut rows: BTreeMap<String, ([i64; 2], [i64; 2], bool)> = BTreeMap::new();
    let mut late = 0;
    for (offset, event) in events.iter().enumerate() {
        if !(start..window.end_of(start)).contains(&event.time) {
            continue;
        }
        let index = window.index_of(start, event.time);
        let in_time = offset < frontier || i64::from(missed[offset]) <= index;
        late += u64::from(!in_time);
        let (on_time, all, seen) = rows.entry(event.tag.clone()).or_default();
        if in_time {
            *seen = true;
            *on_time = [on_time[0] + 1, on_time[1] + event.amount];
        }
        *all = [all[0] + 1, all[1] + event.amount];
    }
    let rows = rows.into_iter().filter(|(_, (_, _, seen))| *seen).map(|(tag, (v, all, _))| {
        let bounds = |i: usize| [v[i], v[i].min(all[i]), v[i].max(all[i])];
        let [count, total] = [bounds(0), bounds(1)];
        (tag, [count[0], count[1], count[2], total[0], total[1], total[2]])
    });
    (rows.collect(), late)
}

fn read(rows: &DataFrame) -> Expected {
    let number =
        |name: &str, i: usize| rows.column(name).expect("a column").i64().expect("integers").get(i).expect("a value");
    let names = ["mentions", "mentions_lower", "mentions_upper", "total", "total_lower", "total_upper"];
    (0..rows.height())
        .map(|i| {
            let tag = rows.column("tag").expect("a key").str().expect("texts").get(i).expect("a tag").to_owned();
            (tag, names.map(|name| number(name, i)))
        })
        .collect()
}

fn layers(snapshot: Option<Snapshot>, versions: Vec<Arc<Version>>) -> Layers {
    let versions = versions.into_iter().map(|version| Arc::new(HeldVersion::new(version))).collect();
    Layers { snapshot: snapshot.map(Arc::new), versions, ..Layers::default() }
}

fn merged(view: &Kept, layers: &Layers, ask: Ask) -> (Sources, Answer) {
    let sources = Sources::choose(view, Mode::Merged, layers, &Positions::new());
    let answer = answer(view, &sources, ask).expect("an answer");
    (sources, answer)
}

#[test]
fn every_frontier_gives_what_a_plain_fold_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let events = stream(500);
    for window in [hop(), Window::sliding(4 * MINUTE, 4 * MINUTE), Window::sliding(5 * MINUTE, 2 * MINUTE)] {
        let view = view("v", Some(window), true, None);
        for frontier in [0, 1, 130, 377, 500] {
            let version = version(folder.path(), &view, 3, &events[..frontier]);
            let base = (frontier > 0).then_some(3);
            let middle = frontier.midpoint(500);
            let snapshot = snapshot(&view, &events, base, &[frontier, middle, middle, 500]);
            let layers = layers(Some(snapshot), if frontier > 0 { vec![version] } else { Vec::new() });
            let (first, last) = window.inside(T0 - 20 * MINUTE, T0 + 30 * MINUTE);
            let mut all = 0;
            let slide = (last - first) / (window.count_between(first, last) - 1);
            for start in (0..).map(|i| first + i * slide).take_while(|start| *start <= last) {
                let (sources, answer) = merged(&view, &layers, Ask::End(window.end_of(start)));
                let (expected, late) = fold(&view, &events, frontier, start);
                assert_eq!(read(&answer.rows), expected, "{window:?} at {start} with frontier {frontier}");
                assert_eq!(answer.late, late);
                assert_eq!(answer.quality.exact, late == 0);
                assert!(sources.missing.is_empty());
                all += answer.rows.height();
            }
            let (_, range) = merged(&view, &layers, Ask::Range { from: T0 - 20 * MINUTE, to: T0 + 30 * MINUTE });
            assert_eq!(range.rows.height(), all);
        }
    }
}

#[test]
fn the_newest_windows_with_data_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = view("v", Some(hop()), true, None);
    let events = [event(10, "a", 1), event(130, "a", 1), event(400, "b", 1), event(430, "c", 1)];
    let latest = |layers: &Layers, mode, ask| {
        let sources = Sources::choose(&view, mode, layers, &Positions::new());
        answer(&view, &sources, ask).expect("an answer").span
    };
    let nothing = layers(Some(Snapshot::default()), Vec::new());
    assert_eq!(latest(&nothing, Mode::Merged, Ask::Latest), Span::Nothing);
    assert_eq!(latest(&nothing, Mode::Merged, Ask::Closed), Span::Nothing);

    let both =
        layers(Some(snapshot(&view, &events, Some(1), &[2, 4])), vec![version(folder.path(), &view, 1, &events[..2])]);
    assert_eq!(latest(&both, Mode::Merged, Ask::Latest), Span::One(T0 + 7 * MINUTE));
    assert_eq!(latest(&both, Mode::Speed, Ask::Latest), Span::One(T0 + 7 * MINUTE));
    assert_eq!(latest(&both, Mode::Batch, Ask::Latest), Span::One(T0 + 2 * MINUTE));
    // The watermark is at 7:10: the last window that ends before it starts at 2:00.
    assert_eq!(latest(&both, Mode::Merged, Ask::Closed), Span::One(T0 + 2 * MINUTE));
    assert_eq!(latest(&both, Mode::Batch, Ask::Closed), Span::One(T0 + 2 * MINUTE));

    // Without a speed layer, the watermark is what the version's event times say: 2:10.
    let batch = Layers { versions: both.versions, ..Layers::default() };
    assert_eq!(latest(&batch, Mode::Batch, Ask::Closed), Span::One(T0 - 3 * MINUTE));
}

#[test]
fn a_view_without_windows_or_without_keys_has_one_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let events = [event(10, "a", 1), event(130, "a", 2), event(400, "b", 4), event(430, "c", 8)];
    for (window, expected) in [(None, [4, 15]), (Some(hop()), [1, 8])] {
        let view = view("v", window, false, None);
        let both = layers(
            Some(snapshot(&view, &events, Some(1), &[2, 4])),
            vec![version(folder.path(), &view, 1, &events[..2])],
        );
        let (_, answer) = merged(&view, &both, Ask::Latest);
        assert_eq!(answer.rows.height(), 1);
        let value = |name: &str| answer.rows.column(name).expect("a column").i64().expect("integers").get(0);
        assert_eq!([value("mentions"), value("total")], expected.map(Some));
        assert!(answer.quality.exact);
    }
}

#[test]
fn a_degraded_pane_widens_the_bounds_of_its_windows_only() {
    let view = view("v", Some(hop()), true, None);
    let events = [event(0, "a", 1), event(1, "a", 1), event(70, "a", 1), event(80, "b", 1), event(400, "c", 1)];
    let mut shown = snapshot(&view, &events, None, &[0, 5]);
    let mut chunk = Chunk::clone(&shown.chunks[0]);
    let pane = Arc::make_mut(chunk.panes.get_mut(&T0).expect("the first pane"));
    pane.slack = Some(Slack { down: 1, up: 3, late: 0 });
    shown.chunks = vec![Arc::new(chunk)];
    let layers = layers(Some(shown), Vec::new());

    let (_, answer) = merged(&view, &layers, Ask::End(T0 + 5 * MINUTE));
    assert!(!answer.quality.exact);
    let cell = |name: &str, i: usize| answer.rows.column(name).expect("a column").i64().expect("integers").get(i);
    let row = |i: usize| ["mentions", "mentions_lower", "mentions_upper", "total_lower"].map(|name| cell(name, i));
    // `a` is named by the degraded pane: at most 1 too many. `b` isn't: it may have had 3 events there.
    assert_eq!(row(0), [Some(3), Some(2), Some(3), None]);
    assert_eq!(row(1), [Some(1), Some(1), Some(4), None]);

    let (_, answer) = merged(&view, &layers, Ask::End(T0 + 6 * MINUTE));
    assert!(answer.quality.exact, "the degraded pane is not in this window");
    let (_, range) = merged(&view, &layers, Ask::Range { from: T0, to: T0 + 20 * MINUTE });
    assert!(!range.quality.exact);
    let mut single = 0;
    for i in 0..16 {
        single += merged(&view, &layers, Ask::End(T0 + (5 + i) * MINUTE)).1.rows.height();
    }
    assert_eq!(range.rows.height(), single);
}

#[test]
fn a_pane_that_forgot_late_events_widens_the_bounds_of_all_keys() {
    let view = view("v", Some(hop()), true, None);
    let events = [event(0, "a", 1), event(1, "a", 1), event(70, "b", 1)];
    let mut shown = snapshot(&view, &events, None, &[0, 3]);
    let mut chunk = Chunk::clone(&shown.chunks[0]);
    let pane = Arc::make_mut(chunk.panes.get_mut(&T0).expect("the first pane"));
    pane.slack = Some(Slack { down: 0, up: 0, late: 2 });
    shown.chunks = vec![Arc::new(chunk)];
    let (_, answer) = merged(&view, &layers(Some(shown), Vec::new()), Ask::End(T0 + 5 * MINUTE));
    assert!(!answer.quality.exact);
    let cell = |name: &str, i: usize| answer.rows.column(name).expect("a column").i64().expect("integers").get(i);
    let row = |i: usize| ["mentions", "mentions_lower", "mentions_upper"].map(|name| cell(name, i));
    assert_eq!([row(0), row(1)], [[Some(2), Some(2), Some(4)], [Some(1), Some(1), Some(3)]]);
}

#[test]
fn a_key_named_twice_by_a_degraded_pane_has_its_slack_once() {
    let view = view("v", Some(hop()), true, None);
    let events = [event(0, "a", 1), event(1, "a", 1)];
    let mut chunk = Chunk::clone(&chunk(&view, &events, &[0, 1], 0..2));
    let pane = Arc::make_mut(chunk.panes.get_mut(&T0).expect("the pane"));
    assert_eq!(pane.partials.height(), 2);
    pane.slack = Some(Slack { down: 1, up: 3, late: 0 });
    let mut shown = snapshot(&view, &events, None, &[0, 2]);
    shown.chunks = vec![Arc::new(chunk)];
    let (_, answer) = merged(&view, &layers(Some(shown), Vec::new()), Ask::End(T0 + 5 * MINUTE));
    let cell = |name: &str| answer.rows.column(name).expect("a column").i64().expect("integers").get(0);
    assert_eq!(["mentions", "mentions_lower", "mentions_upper"].map(cell), [Some(2), Some(1), Some(2)]);
}

#[test]
fn what_neither_layer_covers_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let view = view("v", Some(hop()), true, None);
    let events = stream(100);
    let all = Positions::from([(partition(0), 120)]);
    let [v1, v2] =
        [(1, 40), (2, 60)].map(|(number, frontier)| version(folder.path(), &view, number, &events[..frontier]));
    let choose = |snapshot: Option<Snapshot>, versions: &[&Arc<_>]| {
        let layers = layers(snapshot, versions.iter().map(|version| Arc::clone(version)).collect());
        let sources = Sources::choose(&view, Mode::Merged, &layers, &all);
        let part = |coverage: &Coverage<_>| coverage.of("posts").to_string();
        let version = sources.version.as_ref().map(|version| version.published.version);
        (version, sources.speed.as_ref().map(part).unwrap_or_default(), part(&sources.missing))
    };
    let expected = |version, speed: &str, missing: &str| (version, speed.to_owned(), missing.to_owned());

    // The newest version isn't adopted yet: the one before it is taken.
    let on_v1 = snapshot(&view, &events, Some(1), &[40, 70, 100]);
    assert_eq!(choose(Some(on_v1.clone()), &[&v2, &v1]), expected(Some(1), "{0: [40, 100)}", "{}"));
    // It isn't at hand any more: the chunk that straddles the newer frontier can't be counted.
    assert_eq!(choose(Some(on_v1), &[&v2]), expected(Some(2), "{0: [70, 100)}", "{0: [60, 70)}"));
    // A rollback that the speed layer hasn't followed, after a restart.
    let on_v2 = snapshot(&view, &events, Some(2), &[60, 100]);
    assert_eq!(choose(Some(on_v2.clone()), &[&v1]), expected(Some(1), "{0: [60, 100)}", "{0: [40, 60)}"));
    // No version is at hand at all, as after its files were damaged: what it covered is missing.
    assert_eq!(choose(Some(on_v2.clone()), &[]), expected(None, "{0: [60, 100)}", "{0: [0, 60)}"));
    // The first version, not adopted yet: the speed layer has everything.
    let on_nothing = snapshot(&view, &events, None, &[0, 100]);
    assert_eq!(choose(Some(on_nothing.clone()), &[&v1]), expected(None, "{0: [0, 100)}", "{}"));
    // The source has stopped before the log's end.
    let stopped = Snapshot { stopped: Some("too many bad records".into()), ..on_nothing };
    assert_eq!(choose(Some(stopped), &[]), expected(None, "{0: [0, 100)}", "{0: [100, 120)}"));
    // No speed layer at all, or one that has just begun.
    assert_eq!(choose(None, &[&v1]), expected(Some(1), "", "{0: [40, 120)}"));
    assert_eq!(choose(Some(Snapshot::default()), &[&v1]), expected(Some(1), "{}", "{0: [40, 120)}"));
}

#[test]
fn an_answer_of_no_record_is_exact_only_while_the_log_holds_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let events = stream(9);
    let (empty, unknown) = (Positions::from([(partition(0), 0)]), Positions::new());
    let session = Window::Session { gap: MINUTE };
    for (window, keyed) in [(Some(hop()), true), (Some(session), true), (None, true), (None, false)] {
        let view = view("v", window, keyed, None);
        let speed = |from: usize, to: usize| Some(snapshot(&view, &events, (from > 0).then_some(1), &[from, to]));
        let version = |events: &[Event]| vec![version(folder.path(), &view, 1, events)];
        let ends = [Positions::from([(partition(0), 9)]), empty.clone(), unknown.clone()];
        let is_exact = |layers: &Layers, mode, ask| {
            ends.each_ref().map(|end| {
                let sources = Sources::choose(&view, mode, layers, end);
                let Answer { quality, rows, .. } = answer(&view, &sources, ask).expect("an answer");
                // A row that is there has no bounds where nothing is known of it.
                let unbounded = rows.height() > 0 && rows.column("mentions_lower").expect("a bound").null_count() > 0;
                assert!(!(quality.exact && unbounded) && (quality.exact || !quality.certain), "{window:?} {mode:?}");
                assert!(unbounded || quality.exact || rows.height() == 0, "{window:?} {mode:?}");
                quality.exact
            })
        };
        let asks = match window {
            None => vec![Ask::Latest],
            Some(_) => vec![
                Ask::Latest,
                Ask::Current,
                Ask::Closed,
                Ask::End(T0 + 5 * MINUTE),
                Ask::Range { from: T0, to: T0 + 60 * MINUTE },
            ],
        };
        for ask in asks {
            use Mode::{Batch, Merged, Speed};
            // Nothing is covered: it is exact where the log is known to be empty.
            for layers in [layers(speed(0, 0), Vec::new()), layers(None, Vec::new()), layers(None, version(&[]))] {
                for mode in [Batch, Speed, Merged] {
                    assert_eq!(is_exact(&layers, mode, ask), [false, true, false], "{window:?} {mode:?} {ask:?}");
                }
                assert!(layers.need_log_end());
            }
            // The other layer has it all, so there is something in the log, whether or not its end is asked for.
            let (no_version, all_batch) = (layers(speed(0, 9), Vec::new()), layers(speed(9, 9), version(&events)));
            assert!(!no_version.need_log_end() && !all_batch.need_log_end());
            assert!(!is_exact(&no_version, Batch, ask)[2] && !is_exact(&all_batch, Speed, ask)[2], "{ask:?}");
            assert!(is_exact(&all_batch, Merged, ask)[2] && is_exact(&all_batch, Batch, ask)[2], "{ask:?}");
        }
    }
}

#[test]
fn all_sessions_that_end_at_an_instant_are_answered() {
    let second = 1_000_000;
    let view = view("v", Some(Window::Session { gap: 30 * second }), true, None);
    // Until 0:50 there are sessions of `a` from 0:20, of `b` and `d` from 0:00 and of `c` from 0:10; that of `e` ends at 0:51.
    let of = |tag, times: &[i64]| times.iter().map(|&time| event(time, tag, 1)).collect::<Vec<_>>();
    let each = [of("a", &[20]), of("b", &[0, 20]), of("c", &[10, 20]), of("d", &[0, 20]), of("e", &[21])];
    let mut events = each.concat();
    events.sort_by_key(|event| event.time);
    let sessions = |layers: &Layers, ask| -> (Span, Vec<(String, Micros)>) {
        let (_, answer) = merged(&view, layers, ask);
        assert!(answer.quality.exact);
        let column = |name: &str| answer.rows.column(name).expect("a column").clone();
        let starts = column("window_start").cast(&DataType::Int64).expect("times");
        let starts = starts.i64().expect("times").into_no_null_iter().map(|start| (start - T0) / second);
        let tags = column("tag");
        let tags: Vec<_> = tags.str().expect("texts").iter().map(|tag| tag.expect("a tag").to_owned()).collect();
        (answer.span, tags.into_iter().zip(starts).collect())
    };
    let expected: Vec<(String, Micros)> =
        [("b", 0), ("d", 0), ("c", 10), ("a", 20)].map(|(tag, start)| (tag.to_owned(), start)).into();
    let folder = tempfile::tempdir().expect("a folder");
    for frontier in [0, 4, events.len()] {
        let versions =
            if frontier > 0 { vec![version(folder.path(), &view, 1, &events[..frontier])] } else { Vec::new() };
        let shown = snapshot(&view, &events, (frontier > 0).then_some(1), &[frontier, events.len()]);
        let end = T0 + 50 * second;
        let all = (Span::Ending(end), expected.clone());
        let layers = layers(Some(Snapshot { watermark: Some(end), ..shown }), versions);
        assert_eq!(sessions(&layers, Ask::End(end)), all);
        assert_eq!(sessions(&layers, Ask::Closed), all, "the newest that the watermark has passed end there");
        let last = (Span::Ending(end + second), vec![("e".to_owned(), 21)]);
        assert_eq!(sessions(&layers, Ask::Latest), last);
        assert_eq!(sessions(&layers, Ask::End(end - second)), (Span::Ending(end - second), Vec::new()));
    }
}

#[test]
fn a_session_that_only_late_events_make_is_not_exactly_absent() {
    let second = 1_000_000;
    let view = view("v", Some(Window::Session { gap: 30 * second }), true, None);
    // A at 08:00:00, B at 10:30:45, then late A at 08:00:25, C at 09:00:00.
    let events = [event(0, "a", 1), event(9_045, "b", 1), event(25, "a", 1), event(3_600, "c", 1)];
    let layers = layers(Some(snapshot(&view, &events, None, &[0, 4])), Vec::new());
    let asks = [
        Ask::End(T0 + 55 * second),
        Ask::End(T0 + 30 * second),
        Ask::Closed,
        // The late event is before what is asked for, and would join what is in it.
        Ask::Range { from: T0 + 26 * second, to: T0 + 60 * second },
        Ask::Range { from: T0 + 3_600 * second, to: T0 + 3_630 * second },
    ];
    for ask in asks {
        let (_, answer) = merged(&view, &layers, ask);
        assert!(!answer.quality.exact, "{ask:?}");
        assert!(answer.late > 0, "{ask:?}");
    }
    // Far from the late events it is exact that there is nothing.
    let (_, answer) = merged(&view, &layers, Ask::End(T0 + 7_200 * second));
    assert_eq!((answer.rows.height(), answer.quality.exact, answer.late), (0, true, 0));
}

#[test]
fn a_degraded_pane_makes_absent_sessions_uncertain() {
    let view = view("v", Some(Window::Session { gap: MINUTE }), true, None);
    let mut shown = snapshot(&view, &[event(0, "a", 1)], None, &[0, 1]);
    let mut chunk = Chunk::clone(&shown.chunks[0]);
    Arc::make_mut(chunk.panes.get_mut(&T0).expect("the pane")).slack = Some(Slack { down: 0, up: 3, late: 0 });
    shown.chunks = vec![Arc::new(chunk)];
    let layers = layers(Some(shown), Vec::new());
    for ask in [Ask::End(T0 + 80_000_000), Ask::End(T0 + MINUTE), Ask::Latest] {
        let (_, answer) = merged(&view, &layers, ask);
        assert_eq!((answer.quality.exact, answer.quality.certain), (false, false), "{ask:?}");
    }
}

#[test]
fn what_is_exact_is_certain() {
    let view = with(&view("v", Some(hop()), true, Some(1)), |kept| kept.allowed_lateness = 0);
    // The event at 0:10 has missed the first windows of its pane, and is in time for the last; both keys have one event there.
    let events = [event(100, "a", 1), event(10, "b", 1)];
    let layers = layers(Some(snapshot(&view, &events, None, &[0, 2])), Vec::new());
    let (_, answer) = merged(&view, &layers, Ask::End(T0 + 5 * MINUTE));
    assert_eq!((answer.late, answer.quality.exact, answer.quality.certain), (0, true, true));
}
