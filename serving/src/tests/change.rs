//! What has changed from one answer to the next.

use polars::prelude::*;

use super::support::{MINUTE, T0, hop, view};
use crate::change::{Change, KeyedRows};
use crate::merge::{Answer, Quality, Span};

/// The first `most` rows of an answer about a window, which has these tags and counts.
fn rows(window: i64, counted: &[(&str, i64)], most: usize) -> KeyedRows {
    let (tags, mentions): (Vec<&str>, Vec<i64>) = counted.iter().copied().unzip();
    let rows = df!["tag" => tags, "mentions" => mentions].expect("rows");
    let quality = Quality { exact: true, certain: true, confidence: 1.0 };
    let answer = Answer { span: Span::One(T0 + window * MINUTE), rows, quality, late: 0 };
    KeyedRows::of(&view("trending", Some(hop()), true, None), &answer, most).expect("rows")
}

#[test]
fn a_change_has_what_is_new_what_it_replaces_and_what_is_gone() {
    let before = rows(0, &[("a", 3), ("b", 2), ("c", 1)], 9);
    let after = rows(0, &[("d", 4), ("a", 3), ("b", 3)], 9);
    let change = after.since(Some(&before));
    let expected = Change {
        reset: false,
        rows: vec![br#"{"tag":"d","mentions":4}"#, br#"{"tag":"b","mentions":3}"#],
        removed: vec![br#"{"tag":"c"}"#],
        cut: vec![],
        retracted: vec![br#"{"tag":"b","mentions":2}"#, br#"{"tag":"c","mentions":1}"#],
    };
    assert_eq!(change, expected);
    let nothing = Change { rows: vec![], removed: vec![], retracted: vec![], ..expected };
    assert_eq!(after.since(Some(&after)), nothing);
}

#[test]
fn a_row_that_moves_beyond_those_that_are_kept_is_cut() {
    let after = rows(0, &[("b", 5), ("a", 3)], 1);
    assert_eq!(after.total(), 2);
    let before = rows(0, &[("a", 3), ("b", 2)], 1);
    let change = after.since(Some(&before));
    assert_eq!((change.removed, change.cut), (vec![&br#"{"tag":"a"}"#[..]], vec![&br#"{"tag":"a"}"#[..]]));
}

#[test]
fn an_answer_about_another_window_begins_anew() {
    let (before, after) = (rows(0, &[("a", 3)], 9), rows(1, &[("a", 3)], 9));
    for before in [Some(&before), None] {
        let change = after.since(before);
        let all = vec![&br#"{"tag":"a","mentions":3}"#[..]];
        assert_eq!(change, Change { reset: true, rows: all, removed: vec![], cut: vec![], retracted: vec![] });
    }
}
