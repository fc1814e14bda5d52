//! A pane that takes records.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_engine::group::{Groups, Keep};
use anabranch_engine::partial;
use anabranch_engine::partial::Slack;
use anabranch_exchange::snapshot::Pane;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::error::SpeedError;
use crate::fold::{Added, failed};
use crate::sketch;

/// A pane of the open chunk.
#[derive(Debug, Default)]
pub(crate) struct OpenPane {
    /// The groups by how many of the pane's windows their events had missed.
    groups: BTreeMap<i32, Groups>,
    late: BTreeMap<i32, u64>,
    /// How far its counts are off, once memory has run out. A top-k by count goes on in a sketch ([`crate::sketch`]): its
    /// groups are lower ends, which lack what was taken from them. Of another view, rows of groups that weren't there are refused.
    slack: Option<Slack>,
    exported: Option<Arc<Pane>>,
    bytes: usize,
}

impl OpenPane {
    /// Adds what some events make.
    pub fn add(&mut self, view: &Kept, added: Added) -> Result<(), SpeedError> {
        self.exported = None;
        for (missed, events) in added.late {
            *self.late.entry(missed).or_default() += events;
        }
        for (missed, rows) in added.rows {
            let rows = self.taken(view, missed, rows).map_err(failed(view, "refusing new keys"))?;
            if rows.height() == 0 {
                continue;
            }
            let groups = self.groups.entry(missed).or_insert_with(|| Groups::new(view.aggregation(), Keep::Bounded));
            groups.absorb(view.aggregation(), &rows).map_err(failed(view, "aggregating a micro-batch"))?;
        }
        self.measure();
        Ok(())
    }

    /// Those of some rows that it takes: all, unless it refuses new groups. A group is a key and how many windows its events missed.
    fn taken(&mut self, view: &Kept, missed: i32, rows: DataFrame) -> PolarsResult<DataFrame> {
        let Some(slack) = self.slack.as_mut().filter(|_| !view.aggregation().is_top_k_by_count()) else {
            return Ok(rows);
        };
        let known = |missed: i32, rows: &DataFrame| match self.groups.get(&missed) {
            Some(groups) => groups.known(view.aggregation(), rows),
            None => Ok(BooleanChunked::full(PlSmallStr::EMPTY, false, rows.height())),
        };
        let is_taken = known(missed, &rows)?;
        let refused = rows.filter(&!&is_taken)?;
        let listed = known(0, &refused)?.sum().unwrap_or(0) as usize;
        slack.late += listed as i64;
        slack.up += (refused.height() - listed) as i64;
        rows.filter(&is_taken)
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

    /// How many rows degrading it (further) may save; none if it can save nothing.
    pub fn spare_rows(&self, view: &Kept) -> usize {
        match self.slack {
            _ if view.aggregation().keys.is_empty() => 0,
            _ if view.aggregation().is_top_k_by_count() => sketch::spare(self.rows_in_time(), self.rows()).0,
            Some(_) => 0,
            None => self.rows(),
        }
    }

    fn rows_in_time(&self) -> usize {
        self.groups.get(&0).map_or(0, Groups::len)
    }

    /// Gives up exactness to save memory. Whether it had before.
    pub fn degrade(&mut self, view: &Kept) -> Result<bool, SpeedError> {
        self.exported = None;
        let again = self.slack.is_some();
        let mut slack = self.slack.unwrap_or_default();
        if view.aggregation().is_top_k_by_count() {
            let (_, is_late) = sketch::spare(self.rows_in_time(), self.rows());
            let missed: Vec<i32> = self.groups.keys().copied().filter(|&missed| is_late == (missed > 0)).collect();
            for missed in missed {
                let taken = self.halve(view, missed)?;
                if is_late {
                    slack.late += taken;
                } else {
                    (slack.down, slack.up) = (slack.down + taken, slack.up + taken);
                }
            }
            self.measure();
        }
        self.slack = Some(slack);
        Ok(again)
    }

    /// Forgets the smaller half of the keys of events that missed so many windows. How much was taken from the others' counts.
    fn halve(&mut self, view: &Kept, missed: i32) -> Result<i64, SpeedError> {
        let Some(groups) = self.groups.remove(&missed) else { return Ok(0) };
        let counts = partials(view, &groups, 0, missed)?;
        drop(groups);
        let cut = sketch::cut(&counts).and_then(|(taken, kept)| Ok((taken, sketch::lowered(&kept, taken)?)));
        let (taken, kept) = cut.map_err(failed(view, "forgetting keys"))?;
        drop(counts);
        if kept.height() > 0 {
            let mut groups = Groups::new(view.aggregation(), Keep::Bounded);
            groups.merge(view.aggregation(), &kept).map_err(failed(view, "forgetting keys"))?;
            self.groups.insert(missed, groups);
        }
        Ok(taken)
    }

    /// The pane as others see it. The same `Arc` as the last time if nothing was added since.
    pub fn export(&mut self, view: &Kept, start: i64) -> Result<Arc<Pane>, SpeedError> {
        if let Some(exported) = &self.exported {
            return Ok(exported.clone());
        }
        let mut pane = Pane { late: self.late.clone(), ..Pane::default() };
        let groups = self.groups.iter().filter(|(_, groups)| !groups.is_empty());
        let frames: Vec<DataFrame> =
            groups.map(|(&missed, groups)| partials(view, groups, start, missed)).collect::<Result<_, _>>()?;
        // They differ in what was missed, so there is nothing to add up.
        pane.partials = stacked(view, &frames)?;
        pane.slack = self.slack;
        if let Some(Slack { down, .. }) = self.slack {
            pane.partials = sketch::raise(&pane.partials, down).map_err(failed(view, "listing groups"))?;
        }
        let pane = Arc::new(pane);
        self.exported = Some(pane.clone());
        Ok(pane)
    }
}

fn partials(view: &Kept, groups: &Groups, start: i64, missed: i32) -> Result<DataFrame, SpeedError> {
    groups.partials(view.aggregation(), start, missed).map_err(failed(view, "listing groups"))
}

fn stacked(view: &Kept, frames: &[DataFrame]) -> Result<DataFrame, SpeedError> {
    if let [frame] = frames {
        return Ok(frame.clone());
    }
    let mut all = DataFrame::empty_with_schema(&partial::schema(view.aggregation()));
    for frame in frames {
        all.vstack_mut(frame).map_err(failed(view, "listing groups"))?;
    }
    Ok(all)
}
