//! A pane that takes records.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_shared::group::{Groups, Keep};
use anabranch_shared::partial::{self, MISSED};
use anabranch_shared::snapshot::{Pane, Slack};
use anabranch_shared::view::View;
use polars::prelude::*;

use crate::error::SpeedError;
use crate::fold::{Added, failed};
use crate::sketch::KeySketch;

/// A pane of the open chunk.
#[derive(Debug, Default)]
pub(crate) struct OpenPane {
    /// The groups by how many of the pane's windows their events had missed.
    groups: BTreeMap<i32, Groups>,
    late: BTreeMap<i32, u64>,
    degraded: Option<Degraded>,
    exported: Option<Arc<Pane>>,
}

/// How a pane goes on once memory has run out.
#[derive(Debug)]
enum Degraded {
    /// Events in time are counted by a sketch; the groups hold late ones alone.
    Sketch(KeySketch),
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
            match &mut self.degraded {
                Some(Degraded::Sketch(sketch)) if missed == 0 => {
                    let mut groups = Groups::new(view, Keep::Bounded);
                    groups.absorb(view, &rows).map_err(failed(view, "aggregating a micro-batch"))?;
                    sketch.add(view, &partials(view, &groups, 0, 0)?, 0)?;
                }
                Some(Degraded::Refusing(refused)) => {
                    let known = self.groups.get(&0).map(|in_time| in_time.known(view, &rows)).transpose();
                    let known = known.map_err(failed(view, "looking for keys"))?;
                    let known = known.unwrap_or_else(|| BooleanChunked::full(PlSmallStr::EMPTY, false, rows.height()));
                    let taken = rows.filter(&known).map_err(failed(view, "refusing new keys"))?;
                    *refused += (rows.height() - taken.height()) as i64;
                    let groups = self.groups.entry(missed).or_insert_with(|| Groups::new(view, Keep::Bounded));
                    groups.absorb(view, &taken).map_err(failed(view, "aggregating a micro-batch"))?;
                }
                _ => {
                    let groups = self.groups.entry(missed).or_insert_with(|| Groups::new(view, Keep::Bounded));
                    groups.absorb(view, &rows).map_err(failed(view, "aggregating a micro-batch"))?;
                }
            }
        }
        Ok(())
    }

    /// The rows that it takes memory for.
    pub fn rows(&self) -> usize {
        let sketched = match &self.degraded {
            Some(Degraded::Sketch(sketch)) => sketch.rows(),
            _ => 0,
        };
        self.groups.values().map(Groups::len).sum::<usize>() + sketched
    }

    /// The bytes that it takes: of what is added up, and of what others see of it, which is there up to three times: as they
    /// have it, as it is made anew, and as a checkpoint is made of it.
    pub fn bytes(&self) -> usize {
        let sketched = match &self.degraded {
            Some(Degraded::Sketch(sketch)) => sketch.bytes(),
            _ => 0,
        };
        4 * (self.groups.values().map(Groups::bytes).sum::<usize>() + sketched)
    }

    /// Whether degrading it (further) would save memory.
    pub fn can_degrade(&self, view: &View) -> bool {
        match &self.degraded {
            _ if view.keys.is_empty() => false,
            Some(Degraded::Refusing(_)) => false,
            _ => !view.is_top_k_by_count() || self.rows() >= KeySketch::LEAST_ROWS,
        }
    }

    /// Gives up exactness to save memory.
    pub fn degrade(&mut self, view: &View) -> Result<(), SpeedError> {
        self.exported = None;
        self.degraded = Some(match self.degraded.take() {
            Some(Degraded::Sketch(sketch)) => Degraded::Sketch(sketch.halved()?),
            _ if view.is_top_k_by_count() => {
                let in_time = self.groups.remove(&0).unwrap_or_else(|| Groups::new(view, Keep::Bounded));
                let mut sketch = KeySketch::for_rows(in_time.len(), 0)?;
                let counts = partials(view, &in_time, 0, 0)?;
                drop(in_time);
                sketch.add(view, &counts, 0)?;
                Degraded::Sketch(sketch)
            }
            _ => Degraded::Refusing(0),
        });
        Ok(())
    }

    /// The pane as others see it. The same `Arc` as the last time if nothing was added since.
    pub fn export(&mut self, view: &View, start: i64) -> Result<Arc<Pane>, SpeedError> {
        if let Some(exported) = &self.exported {
            return Ok(exported.clone());
        }
        let mut pane = Pane { late: self.late.clone(), ..Pane::default() };
        let groups = self.groups.iter().filter(|(_, groups)| !groups.is_empty());
        let mut frames: Vec<DataFrame> =
            groups.map(|(&missed, groups)| partials(view, groups, start, missed)).collect::<Result<_, _>>()?;
        match &self.degraded {
            Some(Degraded::Sketch(sketch)) => {
                let error = sketch.error();
                pane.slack = Some(Slack { down: error, up: error });
                frames.push(sketch.frame(view, start)?);
            }
            Some(Degraded::Refusing(refused)) => pane.slack = Some(Slack { down: 0, up: *refused }),
            None => {}
        }
        // They differ in what was missed, so there is nothing to add up.
        pane.partials = stacked(view, &frames)?;
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

/// The partials of events in time, and those of late ones.
pub(crate) fn split_late(view: &View, partials: DataFrame) -> Result<(DataFrame, DataFrame), SpeedError> {
    let failed = failed(view, "setting late events apart");
    let split = || -> PolarsResult<(DataFrame, DataFrame)> {
        if partials.width() == 0 {
            return Ok((partials.clone(), partials.clone()));
        }
        let in_time = partials.column(MISSED)?.i32()?.equal(0);
        Ok((partials.filter(&in_time)?, partials.filter(&!&in_time)?))
    };
    split().map_err(failed)
}
