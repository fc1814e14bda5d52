//! Groups in the making: distinct keys, and for each the state of every aggregate.

use polars::prelude::*;

use crate::aggregate::keys::Keys;
use crate::aggregate::{self, State};
pub use crate::aggregate::Keep;
use crate::partial;
use crate::view::View;

/// The groups of some rows: of one pane, say.
#[derive(Debug)]
pub struct Groups {
    keys: Keys,
    states: Vec<Box<dyn State>>,
}

impl Groups {
    /// No groups yet.
    pub fn new(view: &View, keep: Keep) -> Self {
        Self { keys: Keys::of(view), states: states(view, keep) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.states.iter().map(|state| state.bytes()).sum::<usize>()
    }

    /// Adds rows, as [`partial::rows`] makes them.
    pub fn absorb(&mut self, view: &View, rows: &DataFrame) -> PolarsResult<()> {
        let groups = self.keys.number(&key_columns(view, rows)?, rows.height())?;
        for (i, state) in self.states.iter_mut().enumerate() {
            state.grow(self.keys.len());
            state.absorb(&groups, &partial::value_columns(view, rows, i)?)?;
        }
        Ok(())
    }

    /// Adds partials.
    pub fn merge(&mut self, view: &View, partials: &DataFrame) -> PolarsResult<()> {
        let groups = self.number(view, partials)?;
        self.merge_numbered(view, &groups, partials)
    }

    /// Adds partials, each of its group.
    pub(crate) fn merge_numbered(&mut self, view: &View, groups: &[u32], partials: &DataFrame) -> PolarsResult<()> {
        merge(view, &mut self.states, self.keys.len(), groups, partials)
    }

    /// The group of each row of partials; new ones are added.
    pub(crate) fn number(&mut self, view: &View, partials: &DataFrame) -> PolarsResult<Vec<u32>> {
        let groups = self.keys.number(&key_columns(view, partials)?, partials.height())?;
        self.states.iter_mut().for_each(|state| state.grow(self.keys.len()));
        Ok(groups)
    }

    /// Which rows are of a group that is there.
    pub fn known(&self, view: &View, rows: &DataFrame) -> PolarsResult<BooleanChunked> {
        self.keys.known(&key_columns(view, rows)?, rows.height())
    }

    /// The groups as partials of one pane.
    pub fn partials(&self, view: &View, pane: i64, missed: i32) -> PolarsResult<DataFrame> {
        let height = self.len();
        let mut columns = vec![
            Column::new_scalar(partial::PANE.into(), Scalar::from(pane), height),
            Column::new_scalar(partial::MISSED.into(), Scalar::from(missed), height),
        ];
        columns.extend(self.key_columns()?);
        for (i, state) in self.states.iter().enumerate() {
            let names = partial::state_names(view, i);
            columns.extend(state.columns()?.into_iter().zip(names).map(|(column, name)| column.with_name(name)));
        }
        DataFrame::new(height, columns)
    }

    /// The keys, under their names in partials.
    pub(crate) fn key_columns(&self) -> PolarsResult<Vec<Column>> {
        let columns = self.keys.columns()?.into_iter().enumerate();
        Ok(columns.map(|(i, column)| column.with_name(partial::key(i).into())).collect())
    }

    /// The state of each aggregate.
    pub(crate) fn states(&self) -> &[Box<dyn State>] {
        &self.states
    }
}

/// The state of each aggregate of a view, in no group yet.
pub(crate) fn states(view: &View, keep: Keep) -> Vec<Box<dyn State>> {
    view.aggregates.iter().map(|aggregate| aggregate::state(aggregate, keep)).collect()
}

/// Adds partials, each of its group, to states of so many groups.
pub(crate) fn merge(
    view: &View,
    states: &mut [Box<dyn State>],
    len: usize,
    groups: &[u32],
    partials: &DataFrame,
) -> PolarsResult<()> {
    for (i, state) in states.iter_mut().enumerate() {
        state.grow(len);
        let names = partial::state_names(view, i);
        let columns = names.map(|name| partials.column(&name).cloned()).collect::<PolarsResult<Vec<_>>>()?;
        state.merge(groups, &columns)?;
    }
    Ok(())
}

fn key_columns(view: &View, rows: &DataFrame) -> PolarsResult<Vec<Column>> {
    (0..view.keys.len()).map(|i| rows.column(&partial::key(i)).cloned()).collect()
}
