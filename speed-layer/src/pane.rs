//! A pane that takes records: frames of partials, merged lazily.
//!
//! Each micro-batch adds a small frame. Frames are kept in tiers, as in a log-structured merge tree: once a few of
//! about the same size are there, they are merged to one, so a row is merged a logarithmic number of times.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_shared::partial::{MISSED, key};
use anabranch_shared::snapshot::{Pane, Slack};
use anabranch_shared::view::{AggregateFunction, View};
use polars::prelude::*;

use crate::error::SpeedError;
use crate::fold::{Added, failed, merge};
use crate::sketch::KeySketch;

/// So many frames of about one size are merged.
const FANOUT: usize = 8;

/// A pane of the open chunk.
#[derive(Debug, Default)]
pub(crate) struct OpenPane {
    /// The largest first.
    frames: Vec<DataFrame>,
    late: BTreeMap<i32, u64>,
    degraded: Option<Degraded>,
    exported: Option<Arc<Pane>>,
}

/// How a pane goes on once memory has run out.
#[derive(Debug)]
enum Degraded {
    /// Events in time are counted by a sketch; the frames hold late ones alone.
    Sketch(KeySketch),
    /// Keys that weren't there are refused.
    Refusing {
        /// The keys that were there.
        keys: DataFrame,
        /// How many events were refused.
        refused: i64,
    },
}

impl OpenPane {
    /// Adds what some events make.
    pub fn add(&mut self, view: &View, added: Added) -> Result<(), SpeedError> {
        self.exported = None;
        for (missed, events) in added.late {
            *self.late.entry(missed).or_default() += events;
        }
        let Some(partials) = added.partials else { return Ok(()) };
        let taken = match &mut self.degraded {
            None => partials,
            Some(Degraded::Sketch(sketch)) => {
                let (in_time, late) = split_late(view, partials)?;
                sketch.add(view, &in_time, 0)?;
                late
            }
            Some(Degraded::Refusing { keys, refused }) => {
                let (taken, events) = refuse(view, partials, keys)?;
                *refused += events;
                taken
            }
        };
        if taken.height() > 0 {
            self.frames.push(taken);
        }
        self.merge_tiers(view)
    }

    fn merge_tiers(&mut self, view: &View) -> Result<(), SpeedError> {
        let tier = |frame: &DataFrame| frame.height().max(512).ilog(FANOUT);
        while let Some(last) = self.frames.last() {
            let size = tier(last);
            let alike = self.frames.iter().rev().take_while(|frame| tier(frame) <= size).count();
            if alike < FANOUT {
                break;
            }
            let merged = merge(view, self.frames.split_off(self.frames.len() - alike))?;
            self.frames.push(merged);
        }
        Ok(())
    }

    /// Merges all frames to one.
    pub fn compact(&mut self, view: &View) -> Result<(), SpeedError> {
        if self.frames.len() > 1 {
            let merged = merge(view, std::mem::take(&mut self.frames))?;
            self.frames.push(merged);
        }
        Ok(())
    }

    /// The rows that it takes memory for.
    pub fn rows(&self) -> usize {
        let sketched = match &self.degraded {
            Some(Degraded::Sketch(sketch)) => sketch.rows(),
            _ => 0,
        };
        self.frames.iter().map(DataFrame::height).sum::<usize>() + sketched
    }

    /// Whether degrading it (further) would save memory.
    pub fn can_degrade(&self, view: &View) -> bool {
        match &self.degraded {
            _ if view.keys.is_empty() => false,
            Some(Degraded::Refusing { .. }) => false,
            _ => !view.is_top_k_by_count() || self.rows() >= KeySketch::LEAST_ROWS,
        }
    }

    /// Gives up exactness to save memory.
    pub fn degrade(&mut self, view: &View) -> Result<(), SpeedError> {
        self.exported = None;
        self.compact(view)?;
        self.degraded = Some(match self.degraded.take() {
            Some(Degraded::Sketch(sketch)) => Degraded::Sketch(sketch.halved()?),
            _ if view.is_top_k_by_count() => {
                let (in_time, late) = split_late(view, merge(view, std::mem::take(&mut self.frames))?)?;
                if late.height() > 0 {
                    self.frames.push(late);
                }
                let mut sketch = KeySketch::for_rows(in_time.height(), 0)?;
                sketch.add(view, &in_time, 0)?;
                Degraded::Sketch(sketch)
            }
            _ => {
                let all = self.frames.first().cloned().unwrap_or_default();
                let (in_time, _) = split_late(view, all)?;
                let keys = in_time.lazy().select(key_columns(view)).collect();
                Degraded::Refusing { keys: keys.map_err(failed(view, "listing keys"))?, refused: 0 }
            }
        });
        Ok(())
    }

    /// The pane as others see it. The same `Arc` as the last time if nothing was added since.
    pub fn export(&mut self, view: &View, start: i64) -> Result<Arc<Pane>, SpeedError> {
        if let Some(exported) = &self.exported {
            return Ok(exported.clone());
        }
        self.compact(view)?;
        let mut pane = Pane { late: self.late.clone(), ..Pane::default() };
        let exact = self.frames.first().cloned();
        pane.partials = match &self.degraded {
            Some(Degraded::Sketch(sketch)) => {
                let error = sketch.error();
                pane.slack = Some(Slack { down: error, up: error });
                merge(view, [sketch.frame(view, start)?].into_iter().chain(exact).collect())?
            }
            Some(Degraded::Refusing { refused, .. }) => {
                pane.slack = Some(Slack { down: 0, up: *refused });
                merge(view, exact.into_iter().collect())?
            }
            None => merge(view, exact.into_iter().collect())?,
        };
        let pane = Arc::new(pane);
        self.exported = Some(pane.clone());
        Ok(pane)
    }
}

fn key_columns(view: &View) -> Vec<Expr> {
    (0..view.keys.len()).map(|i| col(key(i))).collect()
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

/// Leaves out keys that aren't among `keys`, and says how many events were left out.
fn refuse(view: &View, partials: DataFrame, keys: &DataFrame) -> Result<(DataFrame, i64), SpeedError> {
    let on = key_columns(view);
    let join = |how| {
        let args = JoinArgs { nulls_equal: true, ..JoinArgs::new(how) };
        partials.clone().lazy().join(keys.clone().lazy(), &on, &on, args).collect()
    };
    let failed = |source| failed(view, "refusing new keys")(source);
    let taken = join(JoinType::Semi).map_err(failed)?;
    let refused = join(JoinType::Anti).map_err(failed)?;
    // Bounds are kept for counts alone. A view without counts only has to show that something was refused.
    let counts = view.aggregates.iter().enumerate().filter(|(_, a)| a.function == AggregateFunction::Count);
    let mut events = i64::from(refused.height() > 0 && counts.clone().next().is_none());
    for (i, _) in counts {
        let count = refused.column(&format!("a{i}")).and_then(|c| Ok(c.i64()?.sum())).map_err(failed)?;
        events = events.max(count.unwrap_or(0));
    }
    Ok((taken, events))
}
