//! What a new definition, or an erasure of events, changes of the rows of the version before.
//!
//! Rows differ for events that have come since, too. So only windows without new events are compared: of the same events, whatever
//! differs is the definition's doing, and where events were only erased, it is the erasure's.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use anabranch_exchange::audit::{Cause, Compared, MOST_CORRECTIONS, Redefined, is_same};
use anabranch_plan::view::Kept;
use anabranch_store::table::DataFile;
use polars::prelude::*;

use crate::day::day_of;

const OLD: &str = "__old";
const NEW: &str = "";

/// Whether windows with events of these days are compared, and what their differences are put down to.
type Compares<'a> = (&'a dyn Fn(RangeInclusive<i64>) -> bool, Cause);

/// Compares the rows of two versions. Nothing can be said if the old rows have other keys. Rows of windows that start on one day are in memory at a time.
pub(super) fn redefined(
    view: &Kept,
    root: &Path,
    (old, new): (&[DataFile], &[DataFile]),
    (is_compared, cause): Compares,
) -> PolarsResult<Redefined> {
    let mut days: BTreeMap<Option<&str>, [Vec<&DataFile>; 2]> = BTreeMap::new();
    for (side, files) in [old, new].into_iter().enumerate() {
        for file in files {
            let day = file.partition.values().next().and_then(Option::as_deref);
            days.entry(day).or_default()[side].push(file);
        }
    }
    let mut all = Redefined::default();
    for [old, new] in days.into_values() {
        let (old, new) = match (read(view, root, &old, is_compared)?, read(view, root, &new, is_compared)?) {
            (Some(old), Some(new)) => (old, new),
            (Some(old), None) => (old.clone(), old.clear()),
            (None, Some(new)) => (new.clear(), new),
            (None, None) => continue,
        };
        compare(view, (&old, &new), cause, &mut all)?;
    }
    all.corrections.sort_by(|a, b| a.window_end.cmp(&b.window_end));
    Ok(all)
}

fn compare(view: &Kept, (old, new): (&DataFrame, &DataFrame), cause: Cause, all: &mut Redefined) -> PolarsResult<()> {
    let names = view.aggregation().identity();
    let is_alike = |name: &String| old.schema().get(name).is_some_and(|old| new.schema().get(name) == Some(old));
    let is_keyed = if names.is_empty() {
        old.height() <= 1
    } else {
        names.iter().all(is_alike)
            && old.unique_stable(Some(&names), UniqueKeepStrategy::Any, None)?.height() == old.height()
    };
    if !is_keyed || old.schema().contains("window_start") != view.aggregation().window.is_some() {
        return Ok(());
    }
    let aggregates = view.aggregation().aggregates.iter().map(|aggregate| aggregate.name.clone());
    let values: Vec<String> = aggregates.filter(is_alike).collect();
    let compared = Compared::of(names, &values, &[(NEW, new), (OLD, old)])?;
    let (is_new, was_old) = (compared.is_in(NEW)?, compared.is_in(OLD)?);
    for name in &values {
        let mut changes = Vec::new();
        for row in 0..compared.height() {
            let (old, new) = (compared.value(name, OLD, row)?, compared.value(name, NEW, row)?);
            if !is_same(&old, &new) || is_new[row] != was_old[row] {
                changes.push((row, cause));
            }
        }
        all.total += changes.len() as u64;
        let kept = changes.into_iter().take(MOST_CORRECTIONS - all.corrections.len());
        all.corrections.extend(compared.corrections(name, (OLD, NEW), kept)?);
    }
    Ok(())
}

/// The rows of files, of windows that are compared; none if there are no files.
fn read(
    view: &Kept,
    root: &Path,
    files: &[&DataFile],
    is_compared: &dyn Fn(RangeInclusive<i64>) -> bool,
) -> PolarsResult<Option<DataFrame>> {
    let mut all: Option<DataFrame> = None;
    for file in files {
        let path = PlRefPath::try_from_pathbuf(root.join(&file.path))?;
        let rows = LazyFrame::scan_parquet(path, ScanArgsParquet { glob: false, ..Default::default() })?.collect()?;
        let rows = if view.aggregation().window.is_some() { compared(&rows, is_compared)? } else { rows };
        all = Some(match all {
            None => rows,
            Some(mut all) => all.vstack_mut(&rows).cloned()?,
        });
    }
    Ok(all)
}

fn compared(rows: &DataFrame, is_compared: &dyn Fn(RangeInclusive<i64>) -> bool) -> PolarsResult<DataFrame> {
    let (Ok(starts), Ok(ends)) = (rows.column("window_start"), rows.column("window_end")) else {
        return Ok(rows.clear());
    };
    let (starts, ends) = (starts.cast(&DataType::Int64)?, ends.cast(&DataType::Int64)?);
    let is_wanted = starts.i64()?.iter().zip(ends.i64()?.iter()).map(|(start, end)| match (start, end) {
        (Some(start), Some(end)) => is_compared(day_of(start)..=day_of(end - 1)),
        _ => false,
    });
    rows.filter(&is_wanted.collect())
}
