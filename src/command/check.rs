//! `anabranch views check`: all that `up` or a run could refuse, without starting anything.

use std::path::Path;
use std::process::ExitCode;

use anabranch_batch_layer::archive::preview;
use anabranch_batch_layer::{BatchError, recompute};
use anabranch_engine::row;
use anabranch_engine::transform;
use anabranch_exchange::version::archive_root;
use anabranch_plan::view::Catalog;

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

fn refused(error: BatchError) -> Failure {
    Failure::usage(error.chain())
}
