//! A view computed anew, because an archive isn't what it was.

use std::path::Path;
use std::sync::Arc;

use anabranch_exchange::audit::AuditLog;
use anabranch_exchange::version::archive_root;
use anabranch_log::clock::Clock;
use anabranch_plan::view::Kept;
use tokio_util::sync::CancellationToken;

use super::Recompute;
use crate::archive::ArchiveSnapshot;
use crate::error::BatchError;

/// The archives of a view's tables, in the data folder; none if one isn't there.
pub async fn archives(view: &Kept, data: &Path) -> Result<Option<Vec<ArchiveSnapshot>>, BatchError> {
    let mut archives = Vec::new();
    for table in view.tables() {
        let Some(archive) = ArchiveSnapshot::open(&archive_root(data, &table.name), table).await? else {
            return Ok(None);
        };
        archives.push(archive);
    }
    Ok(Some(archives))
}

/// Computes a view in full from the archives of its tables, and publishes that: the version.
pub async fn anew(
    view: &Kept,
    data: &Path,
    archives: Vec<ArchiveSnapshot>,
    run: String,
    clock: &Arc<dyn Clock>,
) -> Result<u64, BatchError> {
    let recompute = Recompute {
        view: view.clone(),
        views: data.join("views"),
        audits: AuditLog::new(data.join("audit")),
        archives,
        full: true,
        times: None,
        run,
        clock: clock.clone(),
        cancel: CancellationToken::new(),
        progress: Arc::new(|_| {}),
    };
    Ok(recompute.run_from_newest().await?.map_or(0, |published| published.version))
}
