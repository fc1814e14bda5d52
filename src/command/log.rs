//! `anabranch log`: what to do when a table's log isn't the one that it was.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anabranch_batch_layer::BatchError;
use anabranch_batch_layer::archive::{
    Adopt, Archive, ArchiveSettings, ArchiveSnapshot, Archiver, anchor, declare, renew,
};
use anabranch_batch_layer::recompute::{anew, archives, has_version};
use anabranch_exchange::version::{archive_root, view_root};
use anabranch_log::Log;
use anabranch_plan::schema::Table;
use anabranch_plan::time::format_timestamp;

use super::decision::agreed;
use crate::cli::Decision;
use crate::failure::Failure;
use crate::platform::{Opened, Platform, embedded_root, open_embedded};

/// Goes on behind a table's archive with the log that is there.
pub async fn adopt(name: &str, decision: &Decision) -> Result<ExitCode, Failure> {
    let site = Site::open(name, decision).await?;
    let before = site.log_before().await?;
    let plan = Adopt::plan(site.root.clone(), site.table.clone(), site.opened.own_log.clone()).await.map_err(failed)?;
    let is_of_table = |line: String| format!("table `{name}`: {line}");
    let mut lines = Vec::new();
    if let Some((_, waiting)) = before.as_ref().filter(|_| plan.is_some()) {
        lines.push(format!(
            "the {waiting} records that the embedded log holds and the archive lacks are archived first"
        ));
    }
    match &plan {
        Some(_) if before.is_some() => {
            lines.push("then what the topic of the cluster holds comes behind them".to_owned())
        }
        Some(plan) => lines.extend(plan.description()),
        None => lines.push("its archive is of the log that is there, and stays as it is".to_owned()),
    }
    lines.push("its views are computed anew from the archive".to_owned());
    lines.push(format!("its checkpoints are set aside, in the folder {} beside them", site.folder()));
    lines.push("the server, or on Kafka all roles, must not run meanwhile".to_owned());
    agreed(decision, &lines.into_iter().map(is_of_table).collect::<Vec<_>>())?;

    if let Some((log, _)) = before.filter(|_| plan.is_some()) {
        site.archive(log).await?;
    }
    // Anew: what has just been archived is behind it too.
    let plan = Adopt::plan(site.root.clone(), site.table.clone(), site.opened.own_log.clone()).await.map_err(failed)?;
    if let Some(plan) = plan {
        plan.run().await.map_err(failed)?;
    }
    site.set_checkpoints_aside().await?;
    site.recompute().await?;
    eprintln!("table `{name}` goes on with the log that is there");
    Ok(ExitCode::SUCCESS)
}

/// Sets all that was made from a table's log aside, and begins anew with the log that is there.
pub async fn reset(name: &str, decision: &Decision) -> Result<ExitCode, Failure> {
    let site = Site::open(name, decision).await?;
    let (data, views) = (&site.opened.data, site.platform.catalog.kept_of(name));
    let views: Vec<PathBuf> = views
        .flat_map(|view| [view_root(Path::new("views"), &view.id.name), Path::new("audit").join(&view.id.name)])
        .collect();
    let parts: Vec<PathBuf> = views.into_iter().chain([archive_root(Path::new(""), name)]).collect();
    let parts: Vec<PathBuf> = parts.into_iter().filter(|part| data.join(part).exists()).collect();
    let held = site.opened.own_log.bounds(&site.table.topic)?;
    let records: u64 = held.values().map(|held| held.end - held.start).sum();
    let aside = data.join(site.folder());
    let mut lines: Vec<String> = Vec::new();
    lines
        .extend(parts.iter().map(|part| format!("{} is set aside, in {}", data.join(part).display(), aside.display())));
    lines.push(format!("its checkpoints are set aside, in the folder {} beside them", site.folder()));
    lines.push(format!("the {records} records that its topic holds are archived, and its views computed from them"));
    lines.push("what was archived and isn't in the topic any more is in no answer from then on".to_owned());
    lines.push("the server, or on Kafka all roles, must not run meanwhile".to_owned());
    agreed(decision, &lines.into_iter().map(|line| format!("table `{name}`: {line}")).collect::<Vec<_>>())?;

    let before = ArchiveSnapshot::open(&site.root, &site.table).await.map_err(failed)?;
    site.set_checkpoints_aside().await?;
    for part in parts {
        let to = aside.join(&part);
        std::fs::create_dir_all(to.parent().unwrap_or(&aside))?;
        std::fs::rename(data.join(&part), to)?;
    }
    // What was made of the archive before, and is still on its way, is told from what is made of this one.
    let rebuilds = before.map_or(0, |before| before.archived.rebuilds + 1);
    renew(&site.root, &site.table, rebuilds).await.map_err(failed)?;
    let log = site.anchored(site.opened.own_log.clone()).await?;
    site.archive(log).await?;
    site.recompute().await?;
    eprintln!("table `{name}` begins anew with the log that is there");
    Ok(ExitCode::SUCCESS)
}

/// A table of a project that is at rest.
struct Site {
    platform: Platform,
    opened: Opened,
    table: Arc<Table>,
    /// Where its archive is.
    root: PathBuf,
}

impl Site {
    async fn open(name: &str, decision: &Decision) -> Result<Self, Failure> {
        let mut platform = Platform::load(&decision.project)?;
        let table = platform.table(name)?;
        platform.config.server.listen = "127.0.0.1:0".to_owned();
        let opened = platform.open().await?;
        let root = archive_root(&opened.data, name);
        Ok(Self { platform, opened, table, root })
    }

    /// The name of the folder for what is set aside now.
    fn folder(&self) -> String {
        let now = format_timestamp(self.opened.clock.now());
        format!("aside-{}-{}", self.table.name, now.get(..19).unwrap_or(&now).replace(':', ""))
    }

    /// A log, with the table's topic held to what the archive is of.
    async fn anchored(&self, log: Arc<dyn Log>) -> Result<Arc<dyn Log>, Failure> {
        self.platform.anchor(&log, &self.opened.data).await
    }

    /// The embedded log that the archive is of, if the project has moved to Kafka, and how many of its records aren't archived.
    async fn log_before(&self) -> Result<Option<(Arc<dyn Log>, u64)>, Failure> {
        let Opened { data, clock, .. } = &self.opened;
        if self.platform.config.kafka.brokers.is_none() || !embedded_root(data).exists() {
            return Ok(None);
        }
        let log = open_embedded(&self.platform.config, &self.platform.catalog, data, clock)?;
        let log = self.anchored(Arc::new(log)).await?;
        let archived = anchor(&self.root, &self.table).await.map_err(failed)?;
        // One that isn't the archive's has nothing to go on with.
        let Ok(bounds) = log.bounds(&self.table.topic) else { return Ok(None) };
        let waiting = bounds.iter().map(|(p, held)| held.end - archived.reached.get(p).copied().unwrap_or(held.start));
        Ok(Some((log, waiting.sum())))
    }

    /// Archives all that a log holds.
    async fn archive(&self, log: Arc<dyn Log>) -> Result<(), Failure> {
        declare(&self.root, &self.table, &log).await.map_err(failed)?;
        let (rejects, clock) = (self.opened.ingest.rejects().clone(), self.opened.clock.clone());
        let archive = Archive { root: self.root.clone(), table: self.table.clone(), log, rejects, clock };
        let archiver = Archiver::open(archive, ArchiveSettings::default()).await.map_err(failed)?;
        let ends = archiver.log_ends().await.map_err(failed)?;
        archiver.archive_to(&ends).await.map_err(failed)?;
        Ok(())
    }

    async fn set_checkpoints_aside(&self) -> Result<(), Failure> {
        let checkpoints = self.platform.checkpoints(&self.opened)?;
        let count = checkpoints.set_aside(&self.table.name, &self.folder()).await?;
        eprintln!("table `{}`: {count} checkpoints are set aside", self.table.name);
        Ok(())
    }

    /// Computes the table's views in full.
    async fn recompute(&self) -> Result<(), Failure> {
        let Opened { data, clock, .. } = &self.opened;
        let views = data.join("views");
        for view in self.platform.catalog.kept_of(&self.table.name) {
            let Some(archives) = archives(&view, data).await.map_err(failed)? else { continue };
            let is_empty = archives.iter().all(|archive| archive.archived.coverage.is_empty());
            if !has_version(&views, &view.id.name).await && is_empty {
                continue;
            }
            let run = format!("log-{}", clock.now());
            let version = anew(&view, data, archives, run, clock).await.map_err(failed)?;
            eprintln!("view `{}`: version {version} is computed from the archive", view.id.name);
        }
        Ok(())
    }
}

fn failed(error: BatchError) -> Failure {
    Failure::new(error.chain())
}
