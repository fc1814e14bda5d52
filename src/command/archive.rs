//! `anabranch archive`

use std::process::ExitCode;
use std::sync::Arc;

use anabranch_batch_layer::BatchError;
use anabranch_batch_layer::archive::{Archive, ArchiveSnapshot, Rebuild};
use anabranch_batch_layer::recompute::Recompute;
use anabranch_shared::audit::AuditLog;
use anabranch_shared::table::{DeltaTable, archive_root, committed_version, view_root};
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::failure::Failure;
use crate::platform::Platform;

/// Archives a table anew and recomputes its views. What will be done is said first.
pub async fn run(command: cli::Archive) -> Result<ExitCode, Failure> {
    let cli::Archive::Rebuild { table: name, project, dry_run } = command;
    let mut platform = Platform::load(&project)?;
    let table = platform.table(&name)?;
    platform.config.server.listen = "127.0.0.1:0".to_owned();
    let opened = platform.open().await?;
    let root = archive_root(&opened.data, &name);
    let archive = Archive {
        root: root.clone(),
        table,
        log: opened.log.clone(),
        rejects: opened.ingest.rejects().clone(),
        clock: opened.clock.clone(),
    };
    let plan = Rebuild::plan(archive).await.map_err(|error| Failure::usage(error.chain()))?;
    let Some(plan) = plan else {
        eprintln!("nothing of table `{name}` is archived yet");
        return Ok(ExitCode::SUCCESS);
    };
    plan.description().iter().for_each(|line| eprintln!("table `{name}`: {line}"));
    let views = opened.data.join("views");
    let mut versioned = Vec::new();
    for view in platform.catalog.views_of(&name) {
        if let Some(versions) = DeltaTable::open(&view_root(&views, &view.name)).await?
            && committed_version(&versions).await?.is_some()
        {
            eprintln!(
                "view `{}`: a version is computed from it; until then answers lack what versions cover",
                view.name
            );
            versioned.push(view.clone());
        }
    }
    if dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let failed = |error: BatchError| Failure::new(error.chain());
    plan.run().await.map_err(failed)?;
    for view in versioned {
        let Some(archive) = ArchiveSnapshot::open(&root, &view.table).await.map_err(failed)? else { continue };
        let recompute = Recompute {
            view: view.clone(),
            views: views.clone(),
            audits: AuditLog::new(opened.data.join("audit")),
            archive,
            full: true,
            times: None,
            run: format!("rebuild-{}", opened.clock.now()),
            clock: opened.clock.clone(),
            cancel: CancellationToken::new(),
            progress: Arc::new(|_| {}),
        };
        let published = recompute.run_from_newest().await.map_err(failed)?;
        let version = published.map_or(0, |published| published.version);
        eprintln!("view `{}`: version {version} is computed from it", view.name);
    }
    eprintln!("table `{name}` is archived anew");
    Ok(ExitCode::SUCCESS)
}
