use std::path::Path;

use super::{Found, History, Line, Standing, find};

fn standing(dealt: i64) -> Line {
    Line::Schedule {
        schedule: Standing { view: "one".into(), times: "* * * * * UTC".into(), dealt, ..Default::default() },
    }
}

fn lines(data: &Path) -> Vec<Line> {
    let found = find(data, None).expect("found").into_iter().flat_map(|file| file.lines);
    found.filter(|line| !matches!(line, Line::Process { .. })).collect()
}

#[test]
fn a_long_history_goes_on_in_a_new_file() {
    let dir = tempfile::tempdir().expect("directory");
    let mut history = History::begin(dir.path(), &[]).expect("begun");
    history.record(&vec![standing(1); 4_000]).expect("written");
    assert!(history.is_long());
    let old = std::mem::replace(&mut history, History::begin(dir.path(), &[standing(2)]).expect("begun"));
    old.delete().expect("deleted");
    assert!(!history.is_long());
    history.record(&[standing(3)]).expect("written");
    assert_eq!(lines(dir.path()), [standing(2), standing(3)]);
    assert!(find(dir.path(), Some(&history)).expect("found").is_empty(), "the old one is gone");
}

#[test]
fn a_file_belongs_to_its_process_as_long_as_it_lives() {
    let dir = tempfile::tempdir().expect("directory");
    let one = History::begin(dir.path(), &[standing(1)]).expect("begun");
    let other = History::begin(dir.path(), &[standing(2)]).expect("begun");
    let has_ended =
        |own: &History| find(dir.path(), Some(own)).expect("found").iter().map(Found::has_ended).collect::<Vec<_>>();
    assert_eq!((has_ended(&one), has_ended(&other)), (vec![false], vec![false]));
    drop(one);
    assert_eq!(has_ended(&other), [true]);
    assert_eq!(lines(dir.path()), [standing(1), standing(2)], "in the order in which they were begun");
    // Of two that look at the same time, one takes it over.
    let found = find(dir.path(), Some(&other)).expect("found");
    assert_eq!(has_ended(&other), [false]);
    found.into_iter().for_each(|file| file.delete().expect("deleted"));
    assert!(find(dir.path(), Some(&other)).expect("found").is_empty());
}

#[test]
fn a_torn_line_costs_no_other() {
    let dir = tempfile::tempdir().expect("directory");
    let mut history = History::begin(dir.path(), &[standing(1)]).expect("begun");
    history.set_full(true).expect("full");
    assert_eq!(history.record(&[standing(2)]).expect_err("no room").kind(), std::io::ErrorKind::StorageFull);
    history.set_full(false).expect("room");
    // A full disk takes a part of a line.
    std::io::Write::write_all(&mut history.file, b"{\"schedule\":{\"vi").expect("written");
    history.record(&[standing(3)]).expect("written");
    assert_eq!(lines(dir.path()), [standing(1), standing(3)]);
}
