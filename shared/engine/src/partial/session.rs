//! Sessions: what lies between two gaps in the events of a group.
//!
//! Partials hold *fragments*: some events of a group that follow each other with less than the gap between them, by the times
//! of the first ([`super::FIRST`]) and of the last ([`super::LAST`]). Fragments of one session may lie in several panes and on
//! both sides of the frontier. A session is what fragments with less than the gap between them make together.

use anabranch_plan::aggregation::Aggregation;
use anabranch_plan::time::Micros;
use polars::prelude::*;

use super::finish::{Finished, Piece, Scope, Shape, finish};
use super::{MISSED, key};
use crate::aggregate::keys::Keys;
use crate::fragment::spans;
use crate::group::{self, Keep};

/// A row of a piece, on its way into a session.
struct Fragment {
    group: u32,
    first: Micros,
    last: Micros,
    piece: usize,
    row: usize,
    is_late: bool,
}

/// Sessions, and which one each fragment belongs to; `u32::MAX` if to none.
#[derive(Default)]
struct Joined {
    sessions: Vec<(u32, Micros, Micros)>,
    of_fragment: Vec<u32>,
}

impl Joined {
    /// Joins those fragments for which `is_taken` says so. They are in order of group and first event.
    fn of(fragments: &[Fragment], gap: Micros, is_taken: impl Fn(&Fragment) -> bool) -> Self {
        let mut joined = Self::default();
        for fragment in fragments {
            if !is_taken(fragment) {
                joined.of_fragment.push(u32::MAX);
                continue;
            }
            match joined.sessions.last_mut() {
                Some((group, _, last)) if *group == fragment.group && fragment.first.saturating_sub(*last) < gap => {
                    *last = fragment.last.max(*last);
                }
                _ => joined.sessions.push((fragment.group, fragment.first, fragment.last)),
            }
            joined.of_fragment.push(joined.sessions.len() as u32 - 1);
        }
        joined
    }

    /// Adds up the states of each session.
    fn states(
        &self,
        aggregation: &Aggregation,
        fragments: &[Fragment],
        pieces: &[Piece],
    ) -> PolarsResult<Vec<Box<dyn crate::aggregate::State>>> {
        let mut states = group::states(aggregation, Keep::Everything);
        let mut sessions: Vec<Vec<u32>> = pieces.iter().map(|piece| vec![u32::MAX; piece.rows.height()]).collect();
        for (fragment, &session) in fragments.iter().zip(&self.of_fragment) {
            sessions[fragment.piece][fragment.row] = session;
        }
        for (piece, sessions) in pieces.iter().zip(sessions) {
            let taken: BooleanChunked = sessions.iter().map(|&session| session != u32::MAX).collect();
            let sessions: Vec<u32> = sessions.into_iter().filter(|&session| session != u32::MAX).collect();
            group::merge(aggregation, &mut states, self.sessions.len(), &sessions, &piece.rows.filter(&taken)?)?;
        }
        Ok(states)
    }
}

/// The sessions that pieces hold, in order of their ends. Those within a range are wholly inside it, as far as the pieces tell.
pub(super) fn sessions(
    aggregation: &Aggregation,
    gap: Micros,
    pieces: &[Piece],
    scope: Scope,
) -> PolarsResult<Finished> {
    let mut keys = Keys::of(aggregation);
    let mut fragments = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let columns = (0..aggregation.keys.len())
            .map(|k| piece.rows.column(&key(k)).cloned())
            .collect::<PolarsResult<Vec<_>>>()?;
        let groups = keys.number(&columns, piece.rows.height())?;
        let (first, last) = spans(&piece.rows)?;
        let missed = piece.rows.column(MISSED)?.i32()?.iter();
        for (row, (group, missed)) in groups.into_iter().zip(missed).enumerate() {
            let is_late = missed > Some(0);
            fragments.push(Fragment { group, first: first[row], last: last[row], piece: i, row, is_late });
        }
    }
    fragments.sort_by_key(|fragment| (fragment.group, fragment.first));
    let in_time = Joined::of(&fragments, gap, |fragment| !fragment.is_late);
    let height = in_time.sessions.len();
    let states = in_time.states(aggregation, &fragments, pieces)?;
    let in_time_finished = states.iter().map(|state| state.finish()).collect::<PolarsResult<Vec<_>>>()?;
    let all = if pieces.iter().any(|piece| piece.has_missed) {
        let all = Joined::of(&fragments, gap, |_| true);
        // The session of all events that each session of those in time is a part of.
        let mut whole = vec![0; height];
        for (&part, &of) in in_time.of_fragment.iter().zip(&all.of_fragment).filter(|(part, _)| **part != u32::MAX) {
            whole[part as usize] = of as IdxSize;
        }
        let whole = IdxCa::from_vec(PlSmallStr::EMPTY, whole);
        let states = all.states(aggregation, &fragments, pieces)?;
        Some(states.iter().map(|state| state.finish()?.take(&whole)).collect::<PolarsResult<Vec<_>>>()?)
    } else {
        None
    };
    let of_session: Vec<IdxSize> = in_time.sessions.iter().map(|(group, ..)| *group as IdxSize).collect();
    let of_session = IdxCa::from_vec(PlSmallStr::EMPTY, of_session);
    let keys = keys.columns()?.iter().map(|column| column.take(&of_session)).collect::<PolarsResult<Vec<_>>>()?;
    let shape = Shape {
        starts: in_time.sessions.iter().map(|(_, first, _)| *first).collect(),
        ends: in_time.sessions.iter().map(|(_, _, last)| last.saturating_add(gap)).collect(),
        keys,
        down: vec![0; height],
        // How much a session lacks isn't known: an event that a pane refused may have held two of them together.
        up: pieces.iter().any(|piece| piece.slack.is_some()).then(|| vec![0; height]),
        named: None,
    };
    let mut finished = finish(aggregation, shape, in_time_finished, all)?;
    let inside = |start: Option<Micros>, end: Option<Micros>| match scope {
        Scope::All => true,
        Scope::One(wanted) => start == Some(wanted),
        Scope::Range(from, to) => start >= Some(from) && end <= Some(to),
    };
    let micros = |name: &str| finished.rows.column(name)?.cast(&DataType::Int64)?.i64().cloned();
    let (starts, ends) = (micros("window_start")?, micros("window_end")?);
    let mask: BooleanChunked = starts.iter().zip(ends.iter()).map(|(start, end)| inside(start, end)).collect();
    finished.rows = finished
        .rows
        .filter(&mask)?
        .sort(["window_end", "window_start"], SortMultipleOptions::default().with_maintain_order(true))?;
    Ok(finished)
}
