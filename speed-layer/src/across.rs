//! Views whose rows are made of several records: operators stand before the aggregation.
//!
//! Rows that settle are folded into the open chunk, as events are of other views. Rows that wait are folded anew for each snapshot, into a
//! chunk of their own that covers nothing. Such a view moves to a newer version by beginning at its frontier, with what the operators kept
//! there, and drops all it had. Checkpoints have what the operators keep beside the chunks.
//!
//! Windows close later than those of other views, by as much as a row that settles in time may be behind the watermark
//! ([`View::delay`](anabranch_plan::view::View::delay)).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_engine::operator::{OFFSET, Operators, PARTITION, Part, Records, State, Unsure, either, times};
use anabranch_exchange::snapshot::Chunk;
use anabranch_exchange::version::Version;
use anabranch_log::position::{Offset, TopicPartition};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use polars::prelude::*;

use crate::chunk::{Open, bytes};
use crate::error::SpeedError;
use crate::fold::{Added, Evaluator, failed};
use crate::watermark::NONE;

/// The operators of a view's rows.
#[derive(Debug)]
pub(crate) struct Across {
    operators: Operators,
    /// What the rows make that wait; none once something has changed.
    pending: Option<Arc<Chunk>>,
    /// As in [`Chunk`].
    unsure: Option<(Micros, Micros)>,
    /// Records that came too late, and haven't been told of.
    late: u64,
    /// The topics of changelogs that each process reads whole.
    whole: BTreeSet<String>,
    /// See [`Across::settled`].
    settled: Option<Micros>,
}

/// What a checkpoint has of the operators.
#[derive(Debug)]
pub(crate) struct Image {
    /// What they keep.
    pub state: State,
    /// See [`Across::settled`].
    pub settled: Option<Micros>,
    /// See [`Across::unsure`].
    pub unsure: Option<(Micros, Micros)>,
}

impl Across {
    /// Operators that keep nothing, of a part of the tables; none if the view's rows are each made of one record.
    pub fn new(view: &Kept, part: Option<Part>) -> Result<Option<Self>, SpeedError> {
        if !view.rows.looks_across() {
            return Ok(None);
        }
        let operators =
            Operators::new(&view.rows, &|name| view.reads(name), part).map_err(failed(view, "making the operators"))?;
        Ok(Some(Self::of(operators, view, part)))
    }

    /// Operators that keep what they kept at the frontier of a version; none if the view's rows are each made of one record.
    pub fn standing_on(view: &Kept, version: &Version, part: Option<Part>) -> Result<Option<Self>, SpeedError> {
        if !view.rows.looks_across() {
            return Ok(None);
        }
        let none = || polars_err!(ComputeError: "version {} doesn't have it", version.published.version);
        let state: PolarsResult<State> = version
            .state()
            .map_err(|error| polars_err!(ComputeError: "{error}"))
            .and_then(|kept| kept.ok_or_else(none));
        let operators = state.and_then(|state| Operators::resume(&view.rows, &|name| view.reads(name), part, state));
        let operators = operators.map_err(failed(view, "taking up what a version's operators kept"))?;
        Ok(Some(Self::of(operators, view, part)))
    }

    /// Operators that go on from a checkpoint of the same part; none if the view's rows are each made of one record.
    pub fn restored(view: &Kept, image: Option<Image>, part: Option<Part>) -> Result<Option<Self>, SpeedError> {
        if !view.rows.looks_across() {
            return Ok(None);
        }
        let none = || polars_err!(ComputeError: "the checkpoint doesn't have it");
        let restored = image.ok_or_else(none).and_then(|Image { state, settled, unsure }| {
            let operators = Operators::restore(&view.rows, &|name| view.reads(name), part, state)?;
            Ok(Self { settled, unsure, ..Self::of(operators, view, part) })
        });
        restored.map(Some).map_err(failed(view, "taking up what a checkpoint's operators kept"))
    }

    /// What a checkpoint keeps of them.
    pub fn image(&self, view: &Kept) -> Result<Image, SpeedError> {
        let state = self.operators.state().map_err(failed(view, "storing what the operators keep"))?;
        Ok(Image { state, settled: self.settled, unsure: self.unsure })
    }

    fn of(operators: Operators, view: &Kept, part: Option<Part>) -> Self {
        let looked_up = view.rows.looked_up().into_iter().filter(|_| part.is_some());
        let whole = looked_up.map(|table| table.topic.clone()).collect();
        let horizon = Some(operators.horizon()).filter(|horizon| *horizon != NONE);
        let settled = horizon.map(|horizon| horizon.saturating_add(view.aggregation().allowed_lateness));
        Self { operators, pending: None, unsure: None, late: 0, whole, settled }
    }

    /// Whether each process reads a topic whole.
    pub fn reads_whole(&self, topic: &str) -> bool {
        self.whole.contains(topic)
    }

    /// What a table's records add.
    pub fn fold(
        &mut self,
        (view, evaluator): (&Kept, &Evaluator),
        partition: &TopicPartition,
        mut events: DataFrame,
        offsets: &[Offset],
    ) -> Result<BTreeMap<Micros, Added>, SpeedError> {
        let Some(table) = view.table_of_topic(&partition.topic) else { return Ok(BTreeMap::new()) };
        let offsets: Vec<i64> = offsets.iter().map(|&offset| offset.cast_signed()).collect();
        let partitions = vec![i64::from(partition.partition); offsets.len()];
        let places = [Column::new(PARTITION.into(), partitions), Column::new(OFFSET.into(), offsets)];
        events.hstack_mut(&places).map_err(failed(view, "adding where records stood"))?;
        let records = Records::from([(table.name.clone(), events)]);
        self.step(view, evaluator, &records, self.operators.horizon())
    }

    /// What rows add that settle as the tables' watermark has come so far; none if nothing does.
    pub fn settle(
        &mut self,
        view: &Kept,
        evaluator: &Evaluator,
        watermark: Option<Micros>,
    ) -> Result<Option<BTreeMap<Micros, Added>>, SpeedError> {
        let horizon = watermark.map_or(NONE, |watermark| watermark.saturating_sub(view.aggregation().allowed_lateness));
        if horizon <= self.operators.horizon() {
            return Ok(None);
        }
        self.step(view, evaluator, &Records::new(), horizon).map(Some)
    }

    fn step(
        &mut self,
        view: &Kept,
        evaluator: &Evaluator,
        records: &Records,
        horizon: Micros,
    ) -> Result<BTreeMap<Micros, Added>, SpeedError> {
        self.pending = None;
        let met = self.met(view);
        let mut settled = DataFrame::empty_with_schema(self.operators.schema());
        let step = self.operators.advance(records, horizon, &mut |rows| settled.vstack_mut(&rows).map(drop));
        let Unsure { span, rows } = step.map_err(failed(view, "joining records"))?;
        self.unsure = either(self.unsure, span);
        self.late += rows;
        settled.rechunk_mut();
        folded(view, evaluator, settled, met)
    }

    /// The watermark that rows meet which settle now.
    fn met(&self, view: &Kept) -> Micros {
        match self.operators.horizon() {
            NONE => NONE,
            horizon => horizon.saturating_add(view.aggregation().allowed_lateness).saturating_sub(view.delay()),
        }
    }

    /// The watermark up to which rows had settled in the version that it stands on, which may be further than that of the own partitions.
    pub fn settled(&self) -> Option<Micros> {
        self.settled
    }

    /// Goes on to a horizon behind which half of the rows are kept no longer. What would have found them is late from then on, and makes its
    /// times unsure. What settles by it, and whether it made anything smaller.
    pub fn give_way(
        &mut self,
        view: &Kept,
        evaluator: &Evaluator,
    ) -> Result<(BTreeMap<Micros, Added>, bool), SpeedError> {
        let Some(horizon) = self.operators.halfway() else { return Ok((BTreeMap::new(), false)) };
        let (before, bytes) = (self.operators.horizon(), self.operators.bytes());
        if view.rows.tells_absence() {
            // Rows that would have been alone are told of before that is sure.
            self.unsure = either(self.unsure, Some((before.saturating_sub(view.delay()), horizon)));
        }
        let added = self.step(view, evaluator, &Records::new(), horizon)?;
        self.operators.compact().map_err(failed(view, "giving up rows that wait"))?;
        Ok((added, self.operators.bytes() < bytes))
    }

    /// Between which times rows may be wrong or lacking.
    pub fn unsure(&self) -> Option<(Micros, Micros)> {
        self.unsure
    }

    /// How many records have come too late since it was asked last.
    pub fn take_late(&mut self) -> u64 {
        std::mem::take(&mut self.late)
    }

    /// That the memory for it has run out.
    pub fn is_too_large(&self, view: &Kept) -> SpeedError {
        let (rows, bytes) = (self.operators.len(), self.bytes());
        let why = polars_err!(ComputeError: "{rows} rows wait for others, in {bytes} bytes; raise the limit, or shorten what the join spans");
        failed(view, "keeping to the memory limit")(why)
    }

    /// What the rows make that wait, as others see it.
    pub fn pending(&mut self, view: &Kept, evaluator: &Evaluator) -> Result<Arc<Chunk>, SpeedError> {
        if let Some(pending) = &self.pending {
            return Ok(pending.clone());
        }
        let rows = self.operators.pending().map_err(failed(view, "joining records that wait"))?;
        let mut open = Open::default();
        open.add(view, folded(view, evaluator, rows, NONE)?)?;
        let chunk = open.export(view)?;
        self.pending = Some(chunk.clone());
        Ok(chunk)
    }

    /// The bytes of what is kept, about, and of what is shown of it.
    pub fn bytes(&self) -> usize {
        let shown = self.pending.iter().flat_map(|pending| pending.panes.values());
        // Half of it again is the most that a checkpoint takes of it while it is encoded.
        self.operators.bytes() * 3 / 2 + shown.map(|pane| bytes(&pane.partials)).sum::<usize>()
    }
}

/// What rows add to each pane, which met a watermark.
fn folded(
    view: &Kept,
    evaluator: &Evaluator,
    rows: DataFrame,
    met: Micros,
) -> Result<BTreeMap<Micros, Added>, SpeedError> {
    let times = match &view.aggregation().time {
        None => vec![0; rows.height()],
        Some(time) => times(&rows, time).map_err(failed(view, "reading the rows' times"))?,
    };
    let met = vec![met; rows.height()];
    Ok(evaluator.fold(view, rows, &times, &met)?.0)
}
