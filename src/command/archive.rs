//! `anabranch archive`

use std::path::Path;
use std::process::ExitCode;

use anabranch_batch_layer::BatchError;
use anabranch_batch_layer::archive::{Archive, Rebuild, check_table};
use anabranch_batch_layer::recompute::{anew, archives, has_version};
use anabranch_exchange::version::{archive_root, view_root};

use crate::cli;
use crate::failure::Failure;
use crate::platform::Platform;

/// What can be done with an archive.
pub async fn run(command: cli::Archive) -> Result<ExitCode, Failure> {
    match command {
        cli::Archive::Rebuild { table, project, dry_run } => rebuild(table, &project, dry_run).await,
        cli::Archive::Check { table, project } => check(table, &project).await,
    }
}

/// Names the damaged files of tables and of their views, a line for each, and what to do about them.
async fn check(table: Option<String>, project: &Path) -> Result<ExitCode, Failure> {
    let platform = Platform::load(project)?;
    let tables = match table {
        Some(name) => vec![platform.table(&name)?],
        None => platform.catalog.tables.values().cloned().collect(),
    };
    let (data, mut is_damaged) = (platform.data(), false);
    for table in tables {
        let name = &table.name;
        let way_out = format!("`anabranch archive rebuild {name}` archives anew what the log still holds");
        let archive = (format!("table `{name}`"), archive_root(&data, name), way_out);
        // What is archived can't be told without them, by no command either.
        let of_commits =
            "put back a copy of it, or move the archive's folder away: a new one begins with what the log still holds";
        let views = platform.catalog.kept_of(name).map(|view| {
            let way_out = format!("`anabranch batch run {} --full` computes it anew", view.id.name);
            (format!("view `{}`", view.id.name), view_root(&data.join("views"), &view.id.name), way_out)
        });
        for (of, root, way_out) in std::iter::once(archive.clone()).chain(views) {
            let Some(checked) = check_table(&root).await.map_err(|error| Failure::new(error.chain()))? else {
                continue;
            };
            for (path, found) in &checked.damaged {
                let is_commit = root == archive.1 && path.starts_with(root.join("_delta_log"));
                let way_out = match path.extension() {
                    Some(extension) if is_commit && extension == "json" => of_commits,
                    Some(_) if is_commit => "it is passed over, and may be deleted",
                    _ => &way_out,
                };
                println!("{of}: {} is damaged: {found}; {way_out}", path.display());
            }
            let (files, undigested, damaged) = (checked.files, checked.undigested, checked.damaged.len());
            let without =
                if undigested > 0 { format!(", {undigested} of them without a digest") } else { String::new() };
            eprintln!("{of}: {files} files{without}; {damaged} files are damaged");
            is_damaged |= damaged > 0;
        }
    }
    Ok(if is_damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Archives a table anew and recomputes its views. What will be done is said first.
async fn rebuild(name: String, project: &Path, dry_run: bool) -> Result<ExitCode, Failure> {
    let mut platform = Platform::load(project)?;
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
    for view in platform.catalog.kept_of(&name) {
        if has_version(&views, &view.id.name).await {
            eprintln!(
                "view `{}`: a version is computed from it; until then answers lack what versions cover",
                view.id.name
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
        let Some(archives) = archives(&view, &opened.data).await.map_err(failed)? else { continue };
        let run = format!("rebuild-{}", opened.clock.now());
        let version = anew(&view, &opened.data, archives, run, &opened.clock).await.map_err(failed)?;
        eprintln!("view `{}`: version {version} is computed from it", view.id.name);
    }
    eprintln!("table `{name}` is archived anew");
    Ok(ExitCode::SUCCESS)
}
