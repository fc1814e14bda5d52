//! `anabranch views check`: all that `up` or a run could refuse, without starting anything.

use std::path::Path;
use std::process::ExitCode;

use anabranch_batch_layer::archive::preview;
use anabranch_batch_layer::{BatchError, recompute};
use anabranch_engine::row;
use anabranch_engine::transform;
use anabranch_exchange::version::archive_root;
use anabranch_plan::rows::Retained;
use anabranch_plan::unit::format_duration;
use anabranch_plan::view::{Catalog, Kept};

use super::project::{load, no_events};
use crate::failure::Failure;
use crate::platform;

/// Checks a project, and says what its definitions change for the data that it has.
pub async fn check(dir: &Path) -> Result<ExitCode, Failure> {
    let project = load(dir)?;
    platform::validate(&project.config, &project.catalog)?;
    let catalog = project.catalog;
    let tried = catalog.clone();
    tokio::task::spawn_blocking(move || try_out(&tried)).await??;
    let tables = &catalog.tables;
    for table in tables.values() {
        let changes = preview(&archive_root(&dir.join(".anabranch"), &table.name), table).await.map_err(refused)?;
        changes.iter().for_each(|change| eprintln!("{change}"));
    }
    catalog.kept().flat_map(|view| retained(&view)).for_each(|line| eprintln!("{line}"));
    eprintln!(
        "{} tables, {} views and {} outputs are right",
        tables.len(),
        catalog.kept().count(),
        catalog.sent().count()
    );
    Ok(ExitCode::SUCCESS)
}

/// Computes everything that a project says, of no event or of one.
fn try_out(catalog: &Catalog) -> Result<(), Failure> {
    for table in catalog.tables.values() {
        if let Some(pin) = &table.pin {
            let holds = no_events(table).collect().and_then(|events| transform::holds(pin, events));
            holds.map_err(|error| {
                Failure::usage(format!("table `{}`: its `pin` can't be computed: {error}", table.name))
            })?;
        }
    }
    for view in catalog.kept() {
        recompute::check(&view).map_err(|error| match error {
            BatchError::Panicked { .. } => Failure::usage(format!("view `{}`: {error}", view.id.name)),
            error => refused(error),
        })?;
    }
    for output in catalog.sent() {
        let rows = row::Records::new(&output.rows).of(no_events(output.table())).collect();
        rows.map_err(|error| Failure::usage(format!("view `{}` can't be computed: {error}", output.id.name)))?;
    }
    Ok(())
}

/// What a view keeps in memory of rows that others may be joined with, in lines.
fn retained(view: &Kept) -> Vec<String> {
    const RATE: i64 = 1_000;
    let lateness = view.aggregation().allowed_lateness;
    let delay = view.tables().into_iter().map(|table| table.watermark_delay).max().unwrap_or(0);
    let line = |Retained { tables, time, newest }: Retained| {
        let (view, rows) = (&view.id.name, tables.join("` and `"));
        match time {
            Some(time) => {
                let time = time.saturating_add(lateness).saturating_add(delay);
                let rows_kept = i128::from(time) * i128::from(RATE) / 1_000_000;
                let time = format_duration(time);
                format!("view `{view}` keeps a row of `{rows}` for {time}: at {RATE} a second {rows_kept} rows")
            }
            None => format!("view `{view}` keeps the newest {newest} of each key of `{rows}`"),
        }
    };
    view.rows.retained().into_iter().map(line).collect()
}

fn refused(error: BatchError) -> Failure {
    Failure::usage(error.chain())
}
