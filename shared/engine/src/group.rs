//! Groups in the making: distinct keys, and for each the state of every aggregate.

use anabranch_plan::aggregation::Aggregation;
use anabranch_plan::window::Window;
use polars::prelude::*;

pub use crate::aggregate::Keep;
use crate::aggregate::keys::Keys;
use crate::aggregate::{self, State};
use crate::fragment::{Fragments, spans};
use crate::frame;

/// The groups of some rows: of one pane, say.
#[derive(Debug)]
pub struct Groups {
    keys: Keys,
    /// In a view of sessions, each fragment is a group of its own.
    fragments: Option<Fragments>,
    states: Vec<Box<dyn State>>,
}

impl Groups {
    /// No groups yet.
    pub fn new(aggregation: &Aggregation, keep: Keep) -> Self {
        let fragments = match aggregation.window {
            Some(Window::Session { gap }) => Some(Fragments::new(gap)),
            _ => None,
        };
        Self { keys: Keys::of(aggregation), fragments, states: states(aggregation, keep) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.fragments.as_ref().map_or(self.keys.len(), Fragments::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        let fragments = self.fragments.as_ref().map_or(0, Fragments::bytes);
        self.keys.bytes() + fragments + self.states.iter().map(|state| state.bytes()).sum::<usize>()
    }

    /// Adds rows, as `partial::rows` makes them.
    pub fn absorb(&mut self, aggregation: &Aggregation, rows: &DataFrame) -> PolarsResult<()> {
        let groups = self.number(aggregation, rows)?;
        for (i, state) in self.states.iter_mut().enumerate() {
            state.absorb(&groups, &frame::value_columns(aggregation, rows, i)?)?;
        }
        Ok(())
    }

    /// Adds partials.
    pub fn merge(&mut self, aggregation: &Aggregation, partials: &DataFrame) -> PolarsResult<()> {
        let groups = self.number(aggregation, partials)?;
        self.merge_numbered(aggregation, &groups, partials)
    }

    /// Adds partials, each of its group.
    pub(crate) fn merge_numbered(
        &mut self,
        aggregation: &Aggregation,
        groups: &[u32],
        partials: &DataFrame,
    ) -> PolarsResult<()> {
        let len = self.len();
        merge(aggregation, &mut self.states, len, groups, partials)
    }

    /// Adds the one group that a view without keys has, if it isn't there: of no rows yet.
    pub(crate) fn begin_whole(&mut self) {
        self.keys.begin_whole();
        let len = self.len();
        self.states.iter_mut().for_each(|state| state.grow(len));
    }

    /// The group of each of some rows or partials; new ones are added.
    pub(crate) fn number(&mut self, aggregation: &Aggregation, rows: &DataFrame) -> PolarsResult<Vec<u32>> {
        let mut groups = self.keys.number(&key_columns(aggregation, rows)?, rows.height())?;
        if let Some(fragments) = &mut self.fragments {
            let (first, last) = spans(rows)?;
            groups = fragments.number(&groups, &first, &last);
        }
        let len = self.len();
        self.states.iter_mut().for_each(|state| state.grow(len));
        Ok(groups)
    }

    /// Which rows are of a group that is there.
    pub fn known(&self, aggregation: &Aggregation, rows: &DataFrame) -> PolarsResult<BooleanChunked> {
        self.keys.known(&key_columns(aggregation, rows)?, rows.height())
    }

    /// The groups as partials of one pane.
    pub fn partials(&self, aggregation: &Aggregation, pane: i64, missed: i32) -> PolarsResult<DataFrame> {
        let height = self.len();
        let mut columns = vec![
            Column::new_scalar(frame::PANE.into(), Scalar::from(pane), height),
            Column::new_scalar(frame::MISSED.into(), Scalar::from(missed), height),
        ];
        if let Some(fragments) = &self.fragments {
            columns.push(Column::new(frame::FIRST.into(), fragments.first.as_slice()));
            columns.push(Column::new(frame::LAST.into(), fragments.last.as_slice()));
        }
        columns.extend(self.key_columns()?);
        for (i, state) in self.states.iter().enumerate() {
            let names = frame::state_names(aggregation, i);
            columns.extend(state.columns()?.into_iter().zip(names).map(|(column, name)| column.with_name(name)));
        }
        DataFrame::new(height, columns)
    }

    /// The keys, under their names in partials.
    pub(crate) fn key_columns(&self) -> PolarsResult<Vec<Column>> {
        let mut columns = self.keys.columns()?;
        if let Some(fragments) = &self.fragments {
            let groups =
                IdxCa::from_vec(PlSmallStr::EMPTY, fragments.group.iter().map(|&group| group as IdxSize).collect());
            columns = columns.iter().map(|column| column.take(&groups)).collect::<PolarsResult<_>>()?;
        }
        Ok(columns.into_iter().enumerate().map(|(i, column)| column.with_name(frame::key(i).into())).collect())
    }

    /// The state of each aggregate.
    pub(crate) fn states(&self) -> &[Box<dyn State>] {
        &self.states
    }
}

/// The state of each aggregate of a view, in no group yet.
pub(crate) fn states(aggregation: &Aggregation, keep: Keep) -> Vec<Box<dyn State>> {
    aggregation.aggregates.iter().map(|aggregate| aggregate::state(aggregate, keep)).collect()
}

/// Adds partials, each of its group, to states of so many groups.
pub(crate) fn merge(
    aggregation: &Aggregation,
    states: &mut [Box<dyn State>],
    len: usize,
    groups: &[u32],
    partials: &DataFrame,
) -> PolarsResult<()> {
    for (i, state) in states.iter_mut().enumerate() {
        state.grow(len);
        let names = frame::state_names(aggregation, i);
        let columns = names.map(|name| partials.column(&name).cloned()).collect::<PolarsResult<Vec<_>>>()?;
        state.merge(groups, &columns)?;
    }
    Ok(())
}

fn key_columns(aggregation: &Aggregation, rows: &DataFrame) -> PolarsResult<Vec<Column>> {
    (0..aggregation.keys.len()).map(|i| rows.column(&frame::key(i)).cloned()).collect()
}
