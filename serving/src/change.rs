//! What has changed from one answer of a view to the next.
//!
//! A row is known by its key columns and its window's start. Of two answers about the same window, a row is changed where
//! its key's row is another than before, and gone where its key has none any more. An answer about another window has
//! nothing in common with the one before it: it begins anew.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anabranch_engine::render::Rows;
use anabranch_plan::view::Kept;
use polars::prelude::PolarsResult;

use crate::merge::{Answer, Span};

/// The rows of an answer by their keys. Rows and keys are JSON objects.
#[derive(Debug)]
pub struct KeyedRows {
    span: Span,
    /// Each row's key columns and the whole row, in the view's order.
    rows: Vec<(Arc<[u8]>, Vec<u8>)>,
    index: HashMap<Arc<[u8]>, usize>,
    /// The keys of the rows that the answer has beyond these.
    beyond: HashSet<Arc<[u8]>>,
}

/// What makes an answer of the one before it.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// Nothing of the answer before holds any more: `rows` are all that there are.
    pub reset: bool,
    /// The rows that are new or changed.
    pub rows: Vec<&'a [u8]>,
    /// The keys of the rows that are gone.
    pub removed: Vec<&'a [u8]>,
    /// Those of the `removed` keys that the answer still has, beyond the rows that are kept of it.
    pub cut: Vec<&'a [u8]>,
    /// The rows that are replaced or gone, as they were.
    pub retracted: Vec<&'a [u8]>,
}

impl KeyedRows {
    /// The first `most` rows of an answer; of those beyond them only the keys.
    pub fn of(view: &Kept, answer: &Answer, most: usize) -> PolarsResult<Self> {
        let cells = Rows::of(&answer.rows)?;
        let object = |i: usize, is_wanted: &dyn Fn(&str) -> bool| {
            let mut object = Vec::new();
            cells.write_json_object(i, is_wanted, &mut object);
            object
        };
        let key = |i| Arc::<[u8]>::from(object(i, &|name| is_key(view, name)));
        let total = cells.height();
        let rows: Vec<_> = (0..total.min(most)).map(|i| (key(i), object(i, &|_| true))).collect();
        let beyond = (total.min(most)..total).map(key).collect();
        let index = rows.iter().enumerate().map(|(i, (key, _))| (Arc::clone(key), i)).collect();
        Ok(Self { span: answer.span, rows, index, beyond })
    }

    /// The rows, in the view's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.rows.iter().map(|(_, row)| row.as_slice())
    }

    /// How many rows the whole answer has.
    pub fn total(&self) -> usize {
        self.rows.len() + self.beyond.len()
    }

    /// What has changed since an answer before; without one, all of it.
    pub fn since<'a>(&'a self, before: Option<&'a Self>) -> Change<'a> {
        let kept = before.filter(|before| before.span == self.span);
        let was = |key| kept.and_then(|kept| kept.index.get(key).map(|&i| &kept.rows[i].1));
        let changed: Vec<_> = self.rows.iter().filter(|(key, row)| was(key) != Some(row)).collect();
        let gone = kept.map_or(&[][..], |kept| &kept.rows).iter().filter(|(key, _)| !self.index.contains_key(key));
        let gone: Vec<_> = gone.collect();
        let replaced = changed.iter().filter_map(|(key, _)| was(key));
        Change {
            reset: kept.is_none(),
            rows: changed.iter().map(|(_, row)| row.as_slice()).collect(),
            removed: gone.iter().map(|(key, _)| &**key).collect(),
            cut: gone.iter().filter(|(key, _)| self.beyond.contains(key)).map(|(key, _)| &**key).collect(),
            retracted: replaced.chain(gone.iter().map(|(_, row)| row)).map(Vec::as_slice).collect(),
        }
    }
}

/// What tells a row from others. Of one key there may be several sessions.
fn is_key(view: &Kept, name: &str) -> bool {
    name == "window_start" || view.aggregation().keys.iter().any(|key| key.name == name)
}
