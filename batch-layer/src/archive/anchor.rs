//! What an archive says of the log that it is of, and going on with another one.
//!
//! A log is adopted where the archive ends: what is archived stays what it is, and the first record of the log that the archive
//! lacks comes behind it, at the next offset. Which record that is depends on what the log is, partition by partition:
//!
//! | the log is …                              | and the archive …         | it goes on with …                              |
//! |-------------------------------------------|---------------------------|------------------------------------------------|
//! | an older copy of the archive's            | ends before they part     | the next record, as if nothing had been        |
//! |                                           | goes beyond that          | the first record that only the copy has        |
//! | another one                               |                           | the first record that it holds                 |
//! | one without this partition                |                           | nothing, until it has one                      |
//!
//! From then on the log's offsets are moved so that they go on, see [`anabranch_log::anchored`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_exchange::version::Published;
use anabranch_log::anchored::Anchor;
use anabranch_log::lineage::{Adoption, Epoch, Joint, Lineage, Tails};
use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_log::{Log, LogError};
use anabranch_plan::schema::Table;
use anabranch_store::table::DeltaTable;

use super::coverage::{archived, change};
use super::file::layout;
use super::{Archive, Archived, Archiver};
use crate::error::{BatchError, blocking};

/// What a table's topic is held to: the log that its archive, in a folder, is of.
pub async fn anchor(root: &Path, table: &Table) -> Result<Anchor, BatchError> {
    let archived = match DeltaTable::open(root).await? {
        Some(delta) => archived(&delta, table).await?,
        None => Archived::default(),
    };
    let Archived { coverage, log, tails, adoption, .. } = archived;
    let (table, reached) = (table.name.clone(), coverage.ends());
    Ok(Anchor { table, mark: log, reached, tails, adoption: adoption.unwrap_or_default() })
}

/// Begins a table's archive in a folder that has none. It counts as rebuilt so often.
pub async fn renew(root: &Path, table: &Table, rebuilds: u64) -> Result<(), BatchError> {
    let mut delta = DeltaTable::open_or_create(root, &layout(table)).await?;
    delta.commit(change(&delta, table, &Archived { rebuilds, ..Archived::default() })?).await?;
    Ok(())
}

/// So many epochs of a log are noted. A copy from before them is taken for another log.
const EPOCHS: usize = 16;

/// Notes in what an archive says of itself which log it is of, if it still is that one.
pub(super) async fn note(log: &Arc<dyn Log>, table: &Table, archived: &mut Archived) -> Result<(), BatchError> {
    let (log, topic) = (log.clone(), table.topic.clone());
    let (mark, ends) = (archived.log.clone(), archived.coverage.ends());
    let asked = move || {
        let newest = log.verify(&topic, "the archive", mark.as_ref(), &ends)?;
        let is_new = newest != mark;
        Ok((newest, if is_new { Some(log.lineage(&topic)?) } else { None }))
    };
    let (mark, lineage) = blocking("asking the log which it is", asked).await?;
    archived.log = mark;
    archived.epochs = lineage.map_or_else(|| std::mem::take(&mut archived.epochs), last_epochs);
    Ok(())
}

fn last_epochs(mut lineage: Lineage) -> Vec<Epoch> {
    lineage.epochs.split_off(lineage.epochs.len().saturating_sub(EPOCHS))
}

impl Archive {
    /// Finds out whether what is archived is of the log that is there.
    pub(super) async fn verify(&self, archived: &Archived) -> Result<(), BatchError> {
        note(&self.log, &self.table, &mut archived.clone()).await?;
        let (log, topic, tails) = (self.log.clone(), self.table.topic.clone(), archived.tails.clone());
        let verify = move || Ok(log.verify_tails(&topic, "the archive", &tails)?);
        blocking("comparing what was archived last", verify).await
    }

    /// Finds out whether a version of a view is of the log that is there.
    async fn verify_version(&self, view: &str, published: &Published) -> Result<(), BatchError> {
        let (log, topic) = (self.log.clone(), self.table.topic.clone());
        let carrier = format!("version {} of view `{view}`", published.version);
        let (mark, ends) = (published.log.get(&topic).cloned(), published.coverage.of(&topic).ends());
        let verify = move || Ok(log.verify(&topic, &carrier, mark.as_ref(), &ends).map(drop)?);
        blocking("asking the log which it is", verify).await
    }
}

impl Archiver {
    /// Finds out whether a version of a view is of the log that is there.
    pub async fn verify_version(&self, view: &str, published: &Published) -> Result<(), BatchError> {
        self.archive.verify_version(view, published).await.map_err(|error| self.stopped(error))
    }

    /// An error after which archiving stops, if records are lost or the log is another one: the status says so.
    pub(super) fn stopped(&self, error: BatchError) -> BatchError {
        let error = match error {
            BatchError::Log(error @ (LogError::OutOfRange { .. } | LogError::OtherLog { .. })) => error,
            other => return other,
        };
        let (topic, why) = (self.archive.table.topic.clone(), error.to_string());
        self.status.send_if_modified(|status| {
            if status.stopped.as_ref() == Some(&why) {
                return false;
            }
            tracing::error!(topic, %error, "archiving stops");
            (status.stopped, status.lost) = (Some(why.clone()), error.lost());
            true
        });
        BatchError::Stopped { topic, why }
    }
}

/// A log that an archive is to go on with.
#[derive(Debug)]
pub struct Adopt {
    table: Arc<Table>,
    delta: DeltaTable,
    archived: Archived,
    /// What the log knows of itself once it is adopted.
    adopted: Lineage,
    adoption: Adoption,
    /// Where each partition of the log ends, by its own offsets.
    ends: Positions,
}

impl Adopt {
    /// Looks at a table's archive and at the log, by its own offsets; changes nothing. None if the archive is of this log, or if
    /// there is none.
    pub async fn plan(root: PathBuf, table: Arc<Table>, log: Arc<dyn Log>) -> Result<Option<Self>, BatchError> {
        let Some(delta) = DeltaTable::open(&root).await? else { return Ok(None) };
        let archived = archived(&delta, &table).await?;
        let topic = table.topic.clone();
        let before = archived.adoption.clone().unwrap_or_default();
        let tails = archived.tails.iter();
        let tails: Vec<_> =
            tails.filter_map(|(&p, tail)| Some((p, before.own(p, tail.offset)?, tail.log_time))).collect();
        let held = move || {
            let at = tails.iter().map(|&(partition, offset, _)| (partition, offset)).collect();
            let times = tails.iter().map(|&(partition, _, time)| (partition, time)).collect();
            let taken = log.taken(&topic, &at)?;
            Ok((log.lineage(&topic)?, log.bounds(&topic)?, taken, log.first_after(&topic, &times)?))
        };
        let (own, bounds, taken, after) = blocking("asking the log which it is", held).await?;
        let shown = before.lineage(own.clone());
        let is_other = |partition: Partition| {
            let tail = archived.tails.get(&partition);
            tail.zip(taken.get(&partition)).is_some_and(|(tail, &there)| tail.log_time != there)
        };
        let fits = shown.check(archived.log.as_ref(), &archived.coverage.ends()).is_ok();
        if fits && !archived.tails.keys().any(|&partition| is_other(partition)) {
            return Ok(None);
        }
        let start = |partition| bounds.get(&partition).map_or(0, |held| held.start);
        let joint = |(&partition, range): (&Partition, &std::ops::Range<Offset>)| {
            let mut parted = shown.parted(&archived.epochs, partition);
            if is_other(partition) {
                // What came after the last record that is archived is what the archive hasn't.
                let after = after.get(&partition).map(|&own| before.shown(partition, own));
                let last = archived.tails.get(&partition).map_or(0, |tail| tail.offset);
                parted = parted.map(|parted| after.unwrap_or(last).min(last).min(parted));
            }
            let own = parted.and_then(|parted| before.own(partition, parted.min(range.end))).unwrap_or(0);
            let goes_on = parted.is_some_and(|parted| range.end <= parted);
            let own = if goes_on { own } else { own.max(start(partition)) };
            (partition, Joint { own, shown: range.end })
        };
        let joints = archived.coverage.iter().map(joint).collect();
        let adoption = Adoption { count: before.count + 1, joints };
        let (adopted, ends) = (adoption.lineage(own.clone()), own.ends);
        Ok(Some(Self { table, delta, archived, adopted, adoption, ends }))
    }

    /// What it will do, in lines.
    pub fn description(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (partition, Joint { own, shown }) in &self.adoption.joints {
            lines.push(match self.ends.get(partition) {
                None => format!(
                    "partition {partition}: what is archived ends at offset {shown}, and the topic has no such partition any more"
                ),
                Some(end) => format!(
                    "partition {partition}: what is archived ends at offset {shown}; the {} records that the topic holds from its offset {own} on come behind it",
                    end.saturating_sub(*own)
                ),
            });
        }
        for (partition, end) in self.ends.iter().filter(|(partition, _)| !self.adoption.joints.contains_key(partition))
        {
            lines.push(format!("partition {partition}: nothing of it is archived; the topic holds {end} records"));
        }
        lines.push("records that were neither archived nor are in the topic are lost".to_owned());
        lines
    }

    /// Does it, in one commit.
    pub async fn run(mut self) -> Result<(), BatchError> {
        let (log, epochs) = (self.adopted.newest().cloned(), last_epochs(self.adopted));
        // The last records are the log's that came before.
        let tails = Tails::new();
        let archived = Archived { log, epochs, tails, adoption: Some(self.adoption), ..self.archived };
        self.delta.commit(change(&self.delta, &self.table, &archived)?).await?;
        Ok(())
    }
}
