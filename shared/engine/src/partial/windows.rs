//! From partials to the rows of windows.

use anabranch_plan::aggregation::{Aggregation, OutputColumn};
use anabranch_plan::time::Micros;
use anabranch_plan::window::Window;
use polars::prelude::*;

use super::contender::contenders;
use super::finish::{Finished, Piece, Scope, Shape, finish};
use super::session::sessions;
use super::{MISSED, Slack, by_pane};
use crate::aggregate::State;
use crate::group::{self, Groups, Keep};

/// Partials of some panes from one source. A pane, a key and a number of missed windows are there once.
#[derive(Debug, Clone)]
pub struct Part {
    /// As in [`crate::partial`], in order of their panes.
    pub partials: DataFrame,
    /// How far off their counts may be, if they are of one degraded pane, and where that starts: it may have refused everything.
    pub slack: Option<(Micros, Slack)>,
}

/// Adds up partials to the windows asked for, finishes the aggregates, and puts each window's rows in the view's order,
/// cut at its limit. Windows that hold no data have no rows, but a view without windows and keys has its one row always, as
/// aggregates have it in SQL.
pub fn windows(aggregation: &Aggregation, parts: &[Part], scope: Scope) -> PolarsResult<Finished> {
    let mut pieces = Vec::new();
    for part in parts {
        pieces.extend(pieces_of(part)?);
    }
    pieces.sort_by_key(|piece| piece.pane);
    let window = match aggregation.window {
        None => return rows_of(aggregation, 0, &pieces),
        Some(Window::Session { gap }) => return sessions(aggregation, gap, &pieces, scope),
        Some(window) => window,
    };
    let inside = |start: Micros| {
        let end = window.end_of(start);
        let first = pieces.partition_point(|piece| piece.pane < start);
        let last = pieces.partition_point(|piece| piece.pane < end);
        &pieces[first..last]
    };
    let mut starts: Vec<Micros> = match scope {
        Scope::One(start) => vec![start],
        _ => pieces.iter().flat_map(|piece| window.starts(piece.pane)).collect(),
    };
    if let Scope::Range(from, to) = scope {
        starts.retain(|start| (from..=to).contains(start));
    }
    starts.sort_unstable();
    starts.dedup();
    let mut all = rows_of(aggregation, 0, &[])?;
    for one in side_by_side(&starts, |start| rows_of(aggregation, start, inside(start)))? {
        all.rows.vstack_mut(&one.rows)?;
        all.is_degraded |= one.is_degraded;
        all.is_sketched |= one.is_sketched;
        all.is_certain &= one.is_certain;
    }
    Ok(all)
}

/// Works on each item, in as many threads as there are cores, and gives the results in order. They are threads of no pool:
/// one of a pool that waits for Polars' own would take up the next item meanwhile, and the next, until its stack is full.
fn side_by_side<T: Send>(items: &[Micros], work: impl Fn(Micros) -> PolarsResult<T> + Sync) -> PolarsResult<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if items.len() < 2 || threads < 2 {
        return items.iter().map(|&item| work(item)).collect();
    }
    let (work, share) = (&work, items.len().div_ceil(threads));
    std::thread::scope(|scope| {
        let shares: Vec<_> = items
            .chunks(share)
            .map(|items| scope.spawn(move || items.iter().map(|&item| work(item)).collect::<PolarsResult<Vec<_>>>()))
            .collect();
        let mut all = Vec::with_capacity(items.len());
        for share in shares {
            all.extend(share.join().map_err(|_| polars_err!(ComputeError: "adding up windows has failed"))??);
        }
        Ok(all)
    })
}

fn pieces_of(part: &Part) -> PolarsResult<Vec<Piece>> {
    let slack = part.slack.map(|(_, slack)| slack);
    let piece = |(pane, rows): (Micros, DataFrame)| {
        let has_missed = rows.column(MISSED)?.i32()?.iter().any(|missed| missed > Some(0));
        Ok(Piece { pane, rows, has_missed, slack })
    };
    match part.slack {
        Some((pane, _)) if part.partials.height() == 0 => {
            Ok(vec![Piece { pane, rows: part.partials.clone(), has_missed: false, slack }])
        }
        _ => by_pane(&part.partials)?.into_iter().map(piece).collect(),
    }
}

/// The sums of one window.
struct Sums {
    /// Over the events that came in time.
    in_time: Groups,
    /// Over all of them, if some came late.
    all: Option<Vec<Box<dyn State>>>,
    /// Which groups have events that came in time.
    named: Vec<bool>,
    /// How much of each group's count may be too much, and how much of the `up` of all panes doesn't apply to it.
    down: Vec<i64>,
    up: Vec<i64>,
}

impl Sums {
    fn of(aggregation: &Aggregation, start: Micros, pieces: &[Piece]) -> PolarsResult<Self> {
        let late = aggregation.window.is_some() && pieces.iter().any(|piece| piece.has_missed);
        let all = late.then(|| group::states(aggregation, Keep::Everything));
        let in_time = Groups::new(aggregation, Keep::Everything);
        let mut sums = Self { in_time, all, named: Vec::new(), down: Vec::new(), up: Vec::new() };
        if aggregation.window.is_none() && aggregation.keys.is_empty() {
            sums.in_time.begin_whole();
        }
        for piece in pieces {
            sums.add(aggregation, start, piece)?;
        }
        Ok(sums)
    }

    fn add(&mut self, aggregation: &Aggregation, start: Micros, piece: &Piece) -> PolarsResult<()> {
        let numbers = self.in_time.number(aggregation, &piece.rows)?;
        let len = self.in_time.len();
        if let Some(slack) = piece.slack {
            self.down.resize(len, 0);
            self.up.resize(len, 0);
            // These are about events in time.
            for (&number, missed) in numbers.iter().zip(piece.rows.column(MISSED)?.i32()?.iter()) {
                if missed == Some(0) {
                    self.down[number as usize] += slack.down;
                    self.up[number as usize] += slack.up;
                }
            }
        }
        let Some(all) = &mut self.all else { return self.in_time.merge_numbered(aggregation, &numbers, &piece.rows) };
        group::merge(aggregation, all, len, &numbers, &piece.rows)?;
        self.named.resize(len, false);
        // An event that missed the first windows of its pane is in time for those after them.
        let index = aggregation.window.map_or(0, |window| window.index_of(start, piece.pane));
        let missed = piece.rows.column(MISSED)?.i32()?;
        let in_time: BooleanChunked = missed.iter().map(|missed| i64::from(missed.unwrap_or(0)) <= index).collect();
        let numbers: Vec<u32> =
            numbers.iter().zip(in_time.iter()).filter(|(_, in_time)| *in_time == Some(true)).map(|(&n, _)| n).collect();
        numbers.iter().for_each(|&number| self.named[number as usize] = true);
        self.in_time.merge_numbered(aggregation, &numbers, &piece.rows.filter(&in_time)?)
    }
}

/// The rows of the window that starts there, in order.
fn rows_of(aggregation: &Aggregation, start: Micros, pieces: &[Piece]) -> PolarsResult<Finished> {
    let pieces = contenders(aggregation, pieces)?;
    let slack = pieces.iter().any(|piece| piece.slack.is_some());
    let most = |slack: Slack| slack.up + slack.late;
    let slack = slack.then(|| pieces.iter().filter_map(|piece| piece.slack).map(most).sum::<i64>());
    let Sums { in_time, all, named, mut down, mut up } = Sums::of(aggregation, start, &pieces)?;
    let height = in_time.len();
    down.resize(height, 0);
    up.resize(height, 0);
    let end = aggregation.window.map_or(0, |window| window.end_of(start));
    // What came too late alone is left out.
    let is_whole = all.is_none() || named.iter().all(|named| *named);
    let shape = Shape {
        starts: vec![start; height],
        ends: vec![end; height],
        keys: in_time.key_columns()?,
        down,
        up: slack.map(|slack| up.iter().map(|up| slack - up).collect()),
        named: all.is_some().then_some(named),
    };
    let finished =
        |states: &[Box<dyn State>]| states.iter().map(|state| state.finish()).collect::<PolarsResult<Vec<_>>>();
    let all = all.as_deref().map(finished).transpose()?;
    let mut finished = finish(aggregation, shape, finished(in_time.states())?, all)?;
    let is_exact = finished.is_certain && slack.is_none() && !finished.is_sketched;
    finished.is_certain = is_exact || (is_whole && is_certain(aggregation, &finished.rows, slack.unwrap_or(0))?);
    if let Some(limit) = aggregation.limit {
        finished.rows = finished.rows.head(Some(limit));
    }
    Ok(finished)
}

/// Whether no row after the limit, nor one that isn't named and may have had up to `unnamed` events, could be among those
/// before it. Of a HAVING it can't be told.
fn is_certain(aggregation: &Aggregation, rows: &DataFrame, unnamed: i64) -> PolarsResult<bool> {
    let (Some(limit), Some(first), None) = (aggregation.limit, aggregation.order.first(), &aggregation.having) else {
        return Ok(aggregation.having.is_none() && unnamed == 0);
    };
    let OutputColumn::Aggregate(_) = first.column else { return Ok(unnamed == 0) };
    let name = aggregation.column_name(first.column);
    let bound = |of: &DataFrame, which: &str| {
        PolarsResult::Ok(of.column(&format!("{name}_{which}"))?.as_materialized_series().clone())
    };
    let (kept, rest) = (rows.head(Some(limit)), rows.slice(limit as i64, rows.height().saturating_sub(limit)));
    if kept.height() < limit {
        return Ok(unnamed == 0);
    }
    let (least, most) = if first.descending { ("lower", "upper") } else { ("upper", "lower") };
    let (kept, rest) = (bound(&kept, least)?, bound(&rest, most)?);
    if kept.null_count() + rest.null_count() > 0 {
        return Ok(false);
    }
    let doubles = |series: Series| series.to_physical_repr().cast(&DataType::Float64);
    let (kept, rest) = (doubles(kept)?, doubles(rest)?);
    if first.descending {
        let others = rest.max::<f64>()?.unwrap_or(f64::NEG_INFINITY).max(unnamed as f64);
        Ok(kept.min::<f64>()?.is_some_and(|kept| kept > others))
    } else {
        let others = rest.min::<f64>()?.unwrap_or(f64::INFINITY);
        Ok(unnamed == 0 && kept.max::<f64>()?.is_some_and(|kept| kept < others))
    }
}
