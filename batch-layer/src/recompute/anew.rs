//! A view computed anew, because its archive isn't what it was.

use std::path::Path;
use std::sync::Arc;

use anabranch_exchange::audit::AuditLog;
use anabranch_log::clock::Clock;
use anabranch_plan::view::Kept;
use tokio_util::sync::CancellationToken;

use super::Recompute;
use crate::archive::ArchiveSnapshot;
use crate::error::BatchError;

/// Computes a view in full from its table's archive, and publishes that: the version.
pub async fn anew(
    view: &Kept,
    data: &Path,
    archive: ArchiveSnapshot,
    run: String,
    clock: &Arc<dyn Clock>,
) -> Result<u64, BatchError> {
    let recompute = Recompute {
        view: view.clone(),
        views: data.join("views"),
        audits: AuditLog::new(data.join("audit")),
        archive,
        full: true,
        times: None,
        run,
        clock: clock.clone(),
        cancel: CancellationToken::new(),
        progress: Arc::new(|_| {}),
    };
    Ok(recompute.run_from_newest().await?.map_or(0, |published| published.version))
}
