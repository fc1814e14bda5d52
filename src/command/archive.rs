//! `anabranch archive`

use std::process::ExitCode;
use std::sync::Arc;

use anabranch_batch_layer::archive::{ArchiveSnapshot, Rebuild};
use anabranch_batch_layer::archive_root;
use anabranch_batch_layer::recompute::Recompute;
use anabranch_shared::audit::AuditLog;
use anabranch_shared::table::{DeltaTable, committed_version, view_root};
use tokio_util::sync::CancellationToken;

use crate::cli::Archive;
use crate::failure::Failure;
use crate::platform::Platform;

/// Archives a table anew and recomputes its views. What will be done is said first.
pub async fn run(command: Archive) -> Result<ExitCode, Failure> {
    let Archive::Rebuild { table: name, project, dry_run } = command;
    let mut platform = Platform::load(&project)?;
    let Some(table) = platform.catalog.tables.get(&name).cloned() else {
        let existing: Vec<&String> = platform.catalog.tables.keys().collect();
        return Err(Failure::usage(format!("no table named `{name}`; there are {existing:?}")));
    };
    platform.config.server.listen = "127.0.0.1:0".to_owned();
    let opened = platform.open().await?;
    let root = archive_root(&opened.data, &name);
    let (log, rejects, clock) = (opened.log.clone(), opened.ingest.rejects().clone(), opened.clock.clone());
    let plan =
        Rebuild::plan(root.clone(), table, log, rejects, clock).await.map_err(|error| Failure::usage(error.chain()))?;
    let Some(plan) = plan else {
        eprintln!("nothing of table `{name}` is archived yet");
        return Ok(ExitCode::SUCCESS);
    };
    plan.description().iter().for_each(|line| eprintln!("table `{name}`: {line}"));
    if dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    plan.run().await.map_err(|error| Failure::new(error.chain()))?;
    let views = opened.data.join("views");
    for view in platform.catalog.views_of(&name) {
        let versions = DeltaTable::open(&view_root(&views, &view.name)).await?;
        let Some(versions) = versions else { continue };
        let archive = ArchiveSnapshot::open(&root).await.map_err(|error| Failure::new(error.chain()))?;
        let (Some(archive), Some(_)) = (archive, committed_version(&versions).await?) else { continue };
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
        let published = recompute.run().await.map_err(|error| Failure::new(error.chain()))?;
        let version = published.map_or(0, |published| published.version);
        eprintln!("view `{}`: version {version} is computed from it", view.name);
    }
    eprintln!("table `{name}` is archived anew");
    Ok(ExitCode::SUCCESS)
}
