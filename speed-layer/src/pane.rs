//! A pane that takes records.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_shared::group::{Groups, Keep};
use anabranch_shared::partial;
use anabranch_shared::snapshot::{Pane, Slack};
use anabranch_shared::view::View;
use polars::prelude::*;

use crate::error::SpeedError;
use crate::fold::{Added, failed};
use crate::sketch::{self, LEAST_ROWS};

/// A pane of the open chunk.
#[derive(Debug, Default)]
pub(crate) struct OpenPane {
    /// The groups by how many of the pane's windows their events had missed.
    groups: BTreeMap<i32, Groups>,
    late: BTreeMap<i32, u64>,
    degraded: Option<Degraded>,
    exported: Option<Arc<Pane>>,
    bytes: usize,
}

/// How a pane goes on once memory has run out.
#[derive(Debug)]
enum Degraded {
    /// So much was taken from each count of events in time.
    Sketch(i64),
    /// Keys that weren't there are refused; so many rows were.
    Refusing(i64),
}

impl OpenPane {
    /// Adds what some events make.
    pub fn add(&mut self, view: &View, added: Added) -> Result<(), SpeedError> {
        self.exported = None;
        for (missed, events) in added.late {
            *self.late.entry(missed).or_default() += events;
        }
        for (missed, rows) in added.rows {
            let mut rows = rows;
            if let Some(Degraded::Refusing(refused)) = &mut self.degraded {
                let known = self.groups.get(&0).map(|in_time| in_time.known(view, &rows)).transpose();
                let known = known.map_err(failed(view, "looking for keys"))?;
                let known = known.unwrap_or_else(|| BooleanChunked::full(PlSmallStr::EMPTY, false, rows.height()));
                let taken = rows.filter(&known).map_err(failed(view, "refusing new keys"))?;
                *refused += (rows.height() - taken.height()) as i64;
                rows = taken;
            }
            let groups = self.groups.entry(missed).or_insert_with(|| Groups::new(view, Keep::Bounded));
            groups.absorb(view, &rows).map_err(failed(view, "aggregating a micro-batch"))?;
        }
        self.measure();
        Ok(())
    }

    /// The rows that it takes memory for.
    pub fn rows(&self) -> usize {
        self.groups.values().map(Groups::len).sum()
    }

    /// The bytes that it takes: of what is added up, and of what others see of it, which is there up to twice, as they have
    /// it and as it is made anew.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn measure(&mut self) {
        self.bytes = 3 * self.groups.values().map(Groups::bytes).sum::<usize>();
    }

    /// How many rows degrading it (further) may save: of a top-k those of events in time; none if it can save nothing.
    pub fn spare_rows(&self, view: &View) -> usize {
        match &self.degraded {
            _ if view.keys.is_empty() => 0,
            Some(Degraded::Refusing(_)) => 0,
            _ if !view.is_top_k_by_count() => self.rows(),
            _ => Some(self.groups.get(&0).map_or(0, Groups::len)).filter(|&rows| rows >= LEAST_ROWS).unwrap_or(0),
        }
    }

    /// Gives up exactness to save memory. Whether it had before.
    pub fn degrade(&mut self, view: &View) -> Result<bool, SpeedError> {
        self.exported = None;
        if !view.is_top_k_by_count() {
            self.degraded = Some(Degraded::Refusing(0));
            return Ok(false);
        }
        let before = if let Some(Degraded::Sketch(taken)) = self.degraded { Some(taken) } else { None };
        let Some(in_time) = self.groups.remove(&0) else { return Ok(false) };
        let counts = partials(view, &in_time, 0, 0)?;
        drop(in_time);
        let cut = sketch::cut(&counts).and_then(|(taken, kept)| Ok((taken, sketch::raise(&kept, -taken)?)));
        let (taken, kept) = cut.map_err(failed(view, "forgetting keys"))?;
        drop(counts);
        let mut groups = Groups::new(view, Keep::Bounded);
        groups.merge(view, &kept).map_err(failed(view, "forgetting keys"))?;
        self.groups.insert(0, groups);
        self.degraded = Some(Degraded::Sketch(before.unwrap_or(0) + taken));
        self.measure();
        Ok(before.is_some())
    }

    /// The pane as others see it. The same `Arc` as the last time if nothing was added since.
    pub fn export(&mut self, view: &View, start: i64) -> Result<Arc<Pane>, SpeedError> {
        if let Some(exported) = &self.exported {
            return Ok(exported.clone());
        }
        let mut pane = Pane { late: self.late.clone(), ..Pane::default() };
        let groups = self.groups.iter().filter(|(_, groups)| !groups.is_empty());
        let frames: Vec<DataFrame> =
            groups.map(|(&missed, groups)| partials(view, groups, start, missed)).collect::<Result<_, _>>()?;
        // They differ in what was missed, so there is nothing to add up.
        pane.partials = stacked(view, &frames)?;
        match self.degraded {
            Some(Degraded::Sketch(taken)) => {
                pane.slack = Some(Slack { down: taken, up: taken });
                pane.partials = sketch::raise(&pane.partials, taken).map_err(failed(view, "listing groups"))?;
            }
            Some(Degraded::Refusing(refused)) => pane.slack = Some(Slack { down: 0, up: refused }),
            None => {}
        }
        let pane = Arc::new(pane);
        self.exported = Some(pane.clone());
        Ok(pane)
    }
}

fn partials(view: &View, groups: &Groups, start: i64, missed: i32) -> Result<DataFrame, SpeedError> {
    groups.partials(view, start, missed).map_err(failed(view, "listing groups"))
}

fn stacked(view: &View, frames: &[DataFrame]) -> Result<DataFrame, SpeedError> {
    if let [frame] = frames {
        return Ok(frame.clone());
    }
    let mut all = DataFrame::empty_with_schema(&partial::schema(view));
    for frame in frames {
        all.vstack_mut(frame).map_err(failed(view, "listing groups"))?;
    }
    Ok(all)
}
