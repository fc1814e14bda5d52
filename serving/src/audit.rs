//! Scores what was said against what a new version knows.
//!
//! When the speed layer goes over to a new version, the windows of which nothing is left in its chunks are batch's alone from
//! then on: exact. The last snapshot before said something of the same events. The two are compared, value by value, and with
//! a third answer: that of the last snapshot if it had counted late events as if they had come in time. A value that the
//! third has right was off for late events; where it is off itself, a sketch was.

use std::collections::BTreeSet;
use std::sync::Arc;

use anabranch_shared::audit::{Audit, Cause, ColumnAudit, Correction, Deviation, Findings, MOST_CORRECTIONS};
use anabranch_shared::clock::{Micros, format_timestamp};
use anabranch_shared::position::Positions;
use anabranch_shared::render::Rows;
use anabranch_shared::view::View;
use polars::prelude::*;
use serde_json::{Map, Value};

use crate::app::Server;
use crate::merge::{self, Ask};
use crate::source::{Layers, Mode, Sources};

/// How many windows are scored at most: the newest.
const MOST_WINDOWS: usize = 10_000;

/// Follows a view's snapshots, and scores each that is the last on its version.
pub(crate) async fn follow(server: Arc<Server>, view: Arc<View>) {
    let layers = server.layers.get(&view);
    let Some(mut snapshots) = server.layers.snapshots().0.get(&view.name).cloned() else { return };
    let mut before = layers;
    while snapshots.changed().await.is_ok() {
        snapshots.borrow_and_update();
        let after = server.layers.get(&view);
        let base = |layers: &Layers| layers.snapshot.as_ref().and_then(|snapshot| snapshot.base);
        if base(&after).is_some() && base(&after) != base(&before) {
            let (said, known) = (before.clone(), after.clone());
            let (server, view) = (Arc::clone(&server), Arc::clone(&view));
            let scored = tokio::task::spawn_blocking(move || score(&server, &view, &said, &known)).await;
            if let Err(error) = scored {
                tracing::error!(%error, "scoring answers has failed");
            }
        }
        before = after;
    }
}

fn score(server: &Server, view: &View, said: &Layers, known: &Layers) {
    let now = format_timestamp(server.app.clock.now());
    match findings(view, said, known, now) {
        Ok(Some(findings)) => match server.app.audits.record(&view.name, &findings) {
            Ok(true) => server.metrics.audited(&view.name, &findings.audit),
            Ok(false) => {}
            Err(error) => tracing::warn!(view = view.name, %error, "what an audit found can't be stored"),
        },
        Ok(None) => {}
        Err(error) => tracing::warn!(view = view.name, %error, "answers can't be scored"),
    }
}

/// Compares what was said with what is known; none if no window has become exact.
pub(crate) fn findings(view: &View, said: &Layers, known: &Layers, at: String) -> PolarsResult<Option<Findings>> {
    let (Some(before), Some(after)) = (&said.snapshot, &known.snapshot) else { return Ok(None) };
    let Some(version) = after.base else { return Ok(None) };
    let nowhere = Positions::new();
    let old = Sources::choose(view, Mode::Merged, said, &nowhere);
    let new = Sources::choose(view, Mode::Merged, known, &nowhere);
    let Some(truth) = new.version.as_ref().filter(|held| held.published.version == version) else { return Ok(None) };
    // The answers must have been about all that the version covers, and about no gap.
    let is_comparable = old.missing.is_empty()
        && truth.published.coverage.iter().all(|(partition, range)| old.covered_to(partition) >= range.end);
    if !is_comparable {
        return Ok(None);
    }
    let starts = |layers: &anabranch_shared::snapshot::Snapshot| -> BTreeSet<Micros> {
        let panes = layers.chunks.iter().flat_map(|chunk| chunk.panes.keys().copied());
        panes.flat_map(|pane| view.window.map_or(vec![0], |window| window.starts(pane).collect())).collect()
    };
    let open = starts(after);
    let exact: BTreeSet<Micros> = starts(before).into_iter().filter(|start| !open.contains(start)).collect();
    let exact: BTreeSet<Micros> = exact.into_iter().rev().take(MOST_WINDOWS).collect();
    let (Some(&first), Some(&last)) = (exact.first(), exact.last()) else { return Ok(None) };
    let rows = |sources: &Sources| {
        let to = view.window.map_or(1, |window| window.end_of(last));
        let ask = if view.window.is_some() { Ask::Range { from: first, to } } else { Ask::Latest };
        inside(view, merge::answer(view, sources, ask)?.rows, &exact)
    };
    let all = Sources {
        chunks: old.chunks.iter().map(|chunk| in_time(view, chunk)).collect::<PolarsResult<_>>()?,
        ..old.clone()
    };
    let compared = Compared::of(view, &rows(&old)?, &rows(&all)?, &rows(&new)?)?;
    Ok(Some(compared.findings(view, version, before.base, exact.len() as u64, at)?))
}

/// A chunk as if its events had all come in time.
fn in_time(
    view: &View,
    chunk: &anabranch_shared::snapshot::Chunk,
) -> PolarsResult<Arc<anabranch_shared::snapshot::Chunk>> {
    use anabranch_shared::group::Keep;
    use anabranch_shared::partial::{self, MISSED};
    use anabranch_shared::snapshot::{Chunk, Pane};
    let mut panes = std::collections::BTreeMap::new();
    for (&start, pane) in &chunk.panes {
        let mut partials = pane.partials.clone();
        if !pane.late.is_empty() && partials.height() > 0 {
            partials.replace(MISSED, Column::new_scalar(MISSED.into(), Scalar::from(0_i32), partials.height()))?;
            partials = partial::merge(view, [partials], Keep::Everything)?;
        }
        panes.insert(start, Arc::new(Pane { partials, slack: pane.slack, ..Pane::default() }));
    }
    Ok(Arc::new(Chunk { coverage: chunk.coverage.clone(), panes }))
}

/// The rows of these windows. A session is known by the pane that it starts in.
fn inside(view: &View, rows: DataFrame, starts: &BTreeSet<Micros>) -> PolarsResult<DataFrame> {
    let Some(window) = view.window else { return Ok(rows) };
    let times = rows.column("window_start")?.cast(&DataType::Int64)?;
    let wanted = times.i64()?.iter().map(|start| start.is_some_and(|start| starts.contains(&window.last_start(start))));
    rows.filter(&wanted.collect())
}

/// Rows side by side: as they were said, as they would have been with late events, and as they are.
struct Compared {
    rows: DataFrame,
    names: Vec<String>,
}

const SAID: &str = "__said";
const ALL: &str = "__all";

impl Compared {
    fn of(view: &View, said: &DataFrame, all: &DataFrame, truth: &DataFrame) -> PolarsResult<Self> {
        let bounds: &[&str] = if view.window.is_some() { &["window_start", "window_end"] } else { &[] };
        let names: Vec<String> =
            bounds.iter().map(|name| (*name).to_owned()).chain(view.keys.iter().map(|key| key.name.clone())).collect();
        // A view without keys and windows has one row; the constant joins it.
        let on: Vec<&str> = if names.is_empty() { vec!["__one"] } else { names.iter().map(String::as_str).collect() };
        let by: Vec<Expr> = on.into_iter().map(col).collect();
        let renamed = |rows: &DataFrame, mark: &str| {
            let values = view
                .aggregates
                .iter()
                .flat_map(|aggregate| ["", "_lower", "_upper"].map(|suffix| format!("{}{suffix}", aggregate.name)));
            let values = values.map(|name| col(name.as_str()).alias(format!("{name}{mark}")));
            let kept = by.iter().cloned().chain([lit(true).alias(format!("__is{mark}"))]);
            let with_one = rows.clone().lazy().with_column(lit(1_i32).alias("__one"));
            with_one.select(kept.chain(values).collect::<Vec<_>>())
        };
        let args =
            JoinArgs { nulls_equal: true, coalesce: JoinCoalesce::CoalesceColumns, ..JoinArgs::new(JoinType::Full) };
        let joined = renamed(truth, "")
            .join(renamed(said, SAID), &by, &by, args.clone())
            .join(renamed(all, ALL), &by, &by, args)
            .sort_by_exprs(&by, SortMultipleOptions::default().with_nulls_last(true))
            .collect()?;
        Ok(Self { rows: joined, names })
    }

    fn findings(
        &self,
        view: &View,
        version: u64,
        base: Option<u64>,
        windows: u64,
        at: String,
    ) -> PolarsResult<Findings> {
        let rows = &self.rows;
        let is = |name: &str| {
            PolarsResult::Ok(rows.column(name)?.bool()?.iter().map(|is| is == Some(true)).collect::<Vec<_>>())
        };
        let (is_true, was_said) = (is("__is")?, is(&format!("__is{SAID}"))?);
        let cells = Rows::of(rows)?;
        let key_of = |row: usize, wanted: &dyn Fn(&str) -> bool| -> Map<String, Value> {
            let mut bytes = Vec::new();
            cells.write_json_object(row, wanted, &mut bytes);
            serde_json::from_slice(&bytes).unwrap_or_default()
        };
        let mut corrections = Vec::new();
        let (mut columns, mut total) = (Vec::new(), 0);
        for aggregate in &view.aggregates {
            let name = aggregate.name.as_str();
            let value =
                |mark: &str, row: usize| rows.column(&format!("{name}{mark}")).and_then(|column| column.get(row));
            let mut score = ColumnAudit { column: name.to_owned(), ..ColumnAudit::default() };
            let (mut late, mut sketch) = (Vec::new(), Vec::new());
            for row in 0..rows.height() {
                let (said, all, truth) = (value(SAID, row)?, value(ALL, row)?, value("", row)?);
                if is_true[row] && was_said[row] {
                    score.values += 1;
                    let bounds = [value(&format!("_lower{SAID}"), row)?, value(&format!("_upper{SAID}"), row)?];
                    if let Some(held) = holds(&bounds, &said, &truth) {
                        score.bounded += 1;
                        score.held += u64::from(held);
                    }
                }
                if same(&said, &truth) && is_true[row] == was_said[row] {
                    continue;
                }
                // What counting late events in mends is theirs; the rest is the sketch's.
                let cause = if same(&all, &truth) { Cause::Late } else { Cause::Sketch };
                if is_true[row] && was_said[row] {
                    if cause == Cause::Late {
                        late.push((said.clone(), truth.clone()))
                    } else {
                        sketch.push((said.clone(), truth.clone()))
                    }
                }
                total += 1;
                if corrections.len() < MOST_CORRECTIONS {
                    let time = |name: &str| {
                        let time = rows.column(name).ok()?.get(row).ok()?;
                        time.to_physical().extract::<i64>().map(format_timestamp)
                    };
                    let (old_name, new_name) = (format!("{name}{SAID}"), name.to_owned());
                    let values = key_of(row, &|column| column == old_name || column == new_name);
                    let take = |name: &str| values.get(name).cloned().unwrap_or(Value::Null);
                    corrections.push(Correction {
                        window_start: time("window_start"),
                        window_end: time("window_end"),
                        key: key_of(row, &|column| {
                            self.names.iter().any(|name| name == column)
                                && !matches!(column, "window_start" | "window_end")
                        }),
                        column: name.to_owned(),
                        old: take(&old_name),
                        new: take(&new_name),
                        cause,
                    });
                }
            }
            (score.late, score.sketch) = (deviation(&late), deviation(&sketch));
            columns.push(score);
        }
        corrections.sort_by(|a, b| a.window_end.cmp(&b.window_end));
        let audit = Audit {
            version,
            base,
            at,
            windows,
            rows_missing: is_true.iter().zip(&was_said).filter(|(is_true, said)| **is_true && !**said).count() as u64,
            rows_extra: is_true.iter().zip(&was_said).filter(|(is_true, said)| !**is_true && **said).count() as u64,
            columns,
            corrections: total,
        };
        Ok(Findings { audit, corrections })
    }
}

/// Whether two values are one, but for the rounding of sums.
fn same(one: &AnyValue, other: &AnyValue) -> bool {
    match (one, other) {
        (AnyValue::Float64(one), AnyValue::Float64(other)) => (one - other).abs() <= 1e-9 * one.abs().max(other.abs()),
        (one, other) => one == other,
    }
}

/// Whether bounds held; none if they weren't known.
fn holds([lower, upper]: &[AnyValue; 2], said: &AnyValue, truth: &AnyValue) -> Option<bool> {
    if lower.is_null() && upper.is_null() {
        return if said.is_null() { Some(truth.is_null()) } else { None };
    }
    let not_above = |one: &AnyValue, other: &AnyValue| same(one, other) || one <= other;
    Some(not_above(lower, truth) && not_above(truth, upper))
}

fn deviation(values: &[(AnyValue, AnyValue)]) -> Deviation {
    let number = |value: &AnyValue| if value.is_primitive_numeric() { value.extract::<f64>() } else { None };
    let pairs = values.iter().filter_map(|(said, truth)| Some((number(said)?, number(truth)?)));
    let mut apart: Vec<(f64, f64)> = pairs.map(|(said, truth)| ((said - truth).abs(), truth)).collect();
    apart.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let shares = apart.iter().filter(|(_, truth)| *truth != 0.0).map(|(apart, truth)| apart / truth.abs());
    Deviation {
        values: values.len() as u64,
        median: apart.get(apart.len() / 2).map(|(apart, _)| *apart),
        worst: apart.last().map(|(apart, _)| *apart),
        worst_share: shares.max_by(f64::total_cmp),
    }
}
