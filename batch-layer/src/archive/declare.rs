//! Beginning to read a table by another definition.

use std::path::Path;
use std::sync::Arc;

use anabranch_engine::edition::Editions;
use anabranch_log::{Log, LogError};
use anabranch_plan::schema::{Layout, Table};
use anabranch_store::table::{Change, DeltaTable, TableError};

use super::Archived;
use super::anchor::note;
use super::coverage::{archived, change, grown};
use super::file::{LOG_TIME, OFFSET, PARTITION, layout};
use crate::error::BatchError;

/// How often it is tried again when another process commits at the same time.
pub(super) const ATTEMPTS: usize = 20;

/// Has a table's definition begin where its archive ends, unless it is in force already, and returns the editions. A process
/// that starts does so before it reads the log or the archive. Whoever archives by another definition stops.
///
/// An archive that doesn't say which log it is of is of this one from now on, unless it goes beyond its end.
pub async fn declare(root: &Path, table: &Table, log: &Arc<dyn Log>) -> Result<Editions, BatchError> {
    let mut attempts = 1;
    loop {
        let mut delta = DeltaTable::open_or_create(root, &layout(table)).await?;
        let (mut archived, wanted) = editions_of(&delta, table).await?;
        let is_marked = archived.log.is_some();
        if !is_marked {
            match note(log, table, &mut archived).await {
                // It goes beyond the log's end: what goes on with it says so.
                Ok(()) | Err(BatchError::Log(LogError::OtherLog { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        if wanted.is_none() && (is_marked || archived.log.is_none()) {
            return Ok(archived.editions);
        }
        let mut layout = None;
        if let Some((editions, grown)) = wanted {
            (archived.editions, layout) = (editions, Some(grown));
        }
        let change = Change { layout, ..change(&delta, table, &archived)? };
        match delta.commit(change).await {
            Ok(_) => return Ok(archived.editions),
            Err(TableError::Superseded { .. }) if attempts < ATTEMPTS => attempts += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a table's definition changes for what is archived, a line for each change; nothing is changed yet. Empty if the
/// definition is in force already, or nothing is archived.
pub async fn preview(root: &Path, table: &Table) -> Result<Vec<String>, BatchError> {
    let Some(delta) = DeltaTable::open(root).await? else { return Ok(Vec::new()) };
    let (archived, wanted) = editions_of(&delta, table).await?;
    let (Some(newest), Some((editions, _))) = (archived.editions.newest(), wanted) else { return Ok(Vec::new()) };
    if editions.earlier().next().is_none() {
        return Ok(Vec::new());
    }
    let begins = editions.newest().into_iter().flat_map(|newest| &newest.begins);
    let begins: Vec<String> = begins.map(|(partition, offset)| format!("{offset} of partition {partition}")).collect();
    let mut lines = vec![format!(
        "table `{}`: its new definition begins at offset {}; records before that were read by the old one",
        table.name,
        begins.join(", ")
    )];
    lines.extend(newest.differences(table).into_iter().map(|line| format!("  {line}")));
    Ok(lines)
}

/// What an archive says of itself, and which editions and layout it has once the definition is declared, if others.
async fn editions_of(delta: &DeltaTable, table: &Table) -> Result<(Archived, Option<(Editions, Layout)>), BatchError> {
    let mut archived = archived(delta, table).await?;
    let existing = delta.layout()?;
    if archived.editions.newest().is_none() && !archived.coverage.is_empty() {
        archived.editions = Editions::of_layout(&existing, table, &[PARTITION, OFFSET, LOG_TIME]);
    }
    let declared = archived.editions.declared(table, &archived.coverage.ends(), &existing)?;
    Ok(match declared {
        None => (archived, None),
        Some(editions) => {
            let grown = grown(&existing, &editions);
            (archived, Some((editions, grown)))
        }
    })
}
