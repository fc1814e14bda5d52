//! Archiving anew what the log still holds, by the definition in force.
//!
//! Rows of records that the log has let go stay as they are: of them the definition has what it had. All others are read from the
//! log again. One commit replaces the files, so that a rebuild that is interrupted leaves the archive as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anabranch_shared::clock::Clock;
use anabranch_shared::edition::OtherEventTime;
use anabranch_shared::log::Log;
use anabranch_shared::position::{Coverage, Offset, Partition, Positions};
use anabranch_shared::reject::RejectLog;
use anabranch_shared::schema::Table;
use anabranch_shared::table::{Change, DataFile, DeltaTable};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};

use super::file::{self, OFFSET, PARTITION, Shape, layout};
use super::{Archived, change, gather};
use crate::error::{BatchError, blocking};

/// Records that are read before they are written to files.
const AT_ONCE: (usize, usize) = (1_000_000, 256 << 20);

/// How long the log may take to hand out what it holds: so many waits.
const WAITS: usize = 30;
const WAIT: Duration = Duration::from_secs(1);

/// A table's archive that is to be made anew.
pub struct Rebuild {
    root: PathBuf,
    table: Arc<Table>,
    log: Arc<dyn Log>,
    rejects: Arc<RejectLog>,
    clock: Arc<dyn Clock>,
    delta: DeltaTable,
    archived: Archived,
    /// From where on the log holds what is archived.
    from: Positions,
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rebuild").field("table", &self.table.name).field("from", &self.from).finish_non_exhaustive()
    }
}

impl Rebuild {
    /// Looks at a table's archive and at its log; changes nothing. None if nothing is archived.
    pub async fn plan(
        root: PathBuf,
        table: Arc<Table>,
        log: Arc<dyn Log>,
        rejects: Arc<RejectLog>,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, BatchError> {
        let Some(delta) = DeltaTable::open(&root).await? else { return Ok(None) };
        let archived = delta.note::<Archived>().await?.map(|(_, archived)| archived).unwrap_or_default();
        if archived.coverage.is_empty() {
            return Ok(None);
        }
        let bounds = log.bounds(&table.topic)?;
        let start = |(partition, archived): (Partition, &Range<Offset>)| {
            let held = bounds.get(&partition).map_or(archived.end, |held| held.start);
            // What came before the archive's beginning was never there: the log's first record begins it.
            (partition, if held <= archived.start { 0 } else { held.min(archived.end) })
        };
        let from: Positions = archived.coverage.iter().map(start).collect();
        let (old, new) = (archived.editions.newest().map(|it| &it.event_time), &table.event_time_column().name);
        if let Some(old) = old.filter(|old| *old != new && from.values().any(|&from| from > 0)) {
            let (table, old, new) = (table.name.clone(), old.clone(), new.clone());
            return Err(OtherEventTime { table, old, new }.into());
        }
        Ok(Some(Self { root, table, log, rejects, clock, delta, archived, from }))
    }

    /// What it will do, in lines.
    pub fn description(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (partition, archived) in self.archived.coverage.iter() {
            let from = self.from[&partition].max(archived.start);
            lines.push(format!("partition {partition}: offsets {from} to {} are archived anew", archived.end));
            if from > archived.start {
                lines.push(format!(
                    "partition {partition}: offsets {} to {from} are no longer in the log: their rows stay as they are",
                    archived.start
                ));
            }
        }
        let differences = self.archived.editions.newest().map(|newest| newest.differences(&self.table));
        lines.extend(differences.into_iter().flatten().map(|line| format!("of what stays, {line}")));
        let files = self.delta.files();
        let bytes = files.iter().map(|file| file.size).sum::<u64>();
        lines.push(format!("{} files of {bytes} bytes are read or replaced", files.len()));
        lines.push("rows that were erased from the archive come back as far as the log holds them".to_owned());
        lines
    }

    /// Does it, in one commit.
    pub async fn run(mut self) -> Result<(), BatchError> {
        let keeps_none = self.from.values().all(|&from| from == 0);
        let existing = self.delta.layout()?;
        // Nothing stays, so nothing of the old layout has to.
        let wanted = if keeps_none { layout(&self.table) } else { existing.clone() };
        let editions = self.archived.editions.rebuilt(&self.table, &self.from, &wanted);
        let wanted = super::declare::grown(&wanted, &editions);
        let shape = Arc::new(Shape::of(&self.table, &editions, &wanted));
        let files = self.delta.files();
        let (kept, mut add) = self.keep(&files, &shape.whole(&existing)).await?;
        let (read, archived) = self.read(&shape).await?;
        add.extend(read);
        let archived = Archived { editions, rebuilds: self.archived.rebuilds + 1, ..archived };
        let remove = files.into_iter().filter(|file| !kept.contains(&file.path)).collect();
        let change = Change { add, remove, layout: Some(wanted), ..change(&self.root, &self.table, &archived)? };
        self.delta.commit(change).await?;
        Ok(())
    }

    /// The files that stay as they are, and files of those rows that stay of the others.
    async fn keep(&self, files: &[DataFile], shape: &Shape) -> Result<(BTreeSet<String>, Vec<DataFile>), BatchError> {
        let (root, files, from, now) = (self.root.clone(), files.to_vec(), self.from.clone(), self.clock.now());
        let shape = Shape::clone(shape);
        blocking("keeping what the log no longer holds", move || {
            let (mut kept, mut add) = (BTreeSet::new(), Vec::new());
            for file in files {
                let mut rest = Vec::new();
                let mut rows = (0, 0);
                for batch in file::read_files(&root, &shape, std::slice::from_ref(&file))? {
                    rows.0 += batch.num_rows();
                    let below = below(&batch, &from);
                    rows.1 += below.num_rows();
                    rest.push(below);
                }
                if rows.0 == rows.1 {
                    kept.insert(file.path);
                } else if rows.1 > 0 {
                    add.extend(file::write_days(&root, &shape, &rest, now, || Ok(()))?);
                }
            }
            Ok((kept, add))
        })
        .await
    }

    /// Reads what the log holds, up to where the archive ends.
    async fn read(&self, shape: &Arc<Shape>) -> Result<(Vec<DataFile>, Archived), BatchError> {
        let (log, table, rejects) = (self.log.clone(), self.table.clone(), self.rejects.clone());
        let (root, shape, now) = (self.root.clone(), shape.clone(), self.clock.now());
        let ends = self.archived.coverage.ends();
        let begins: Positions =
            self.archived.coverage.iter().map(|(p, range)| (p, self.from[&p].max(range.start))).collect();
        let old = self.archived.clone();
        blocking("reading the log", move || {
            let mut reader = log.reader(&table.topic, &begins)?;
            let keeps_none =
                begins.iter().all(|(&p, &begin)| old.coverage.get(p).is_some_and(|range| range.start == begin));
            let event_times = if keeps_none { BTreeMap::new() } else { old.event_times.clone() };
            let coverage = Coverage::starting_at(&begins);
            let mut at = Archived { coverage, ..Archived::default() };
            let (mut files, mut event_times, mut waits) = (Vec::new(), event_times, 0);
            while ends.iter().any(|(&p, &end)| at.coverage.next(p) < end) {
                let before = at.coverage.clone();
                let (next, gathered) = gather(reader, (&table, &shape), &rejects, at, AT_ONCE, WAIT)?;
                reader = next;
                let is_inside = |(p, offset): (Partition, Offset)| offset < ends.get(&p).copied().unwrap_or(0);
                let batches: Vec<RecordBatch> = gathered.batches.iter().map(|batch| below(batch, &ends)).collect();
                let rejected =
                    gathered.rejected.into_iter().filter(|it| it.partition.zip(it.offset).is_some_and(is_inside));
                let rejected: Vec<_> = rejected.collect();
                if !rejected.is_empty() {
                    let topic = table.topic.clone();
                    rejects.record(&rejected).map_err(|source| BatchError::Rejects { topic, source })?;
                }
                if batches.iter().any(|batch| batch.num_rows() > 0) {
                    files.extend(file::write_days(&root, &shape, &batches, now, || Ok(()))?);
                }
                for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
                    let partition = batch.column_by_name(PARTITION).map(|it| it.as_primitive::<Int32Type>().value(0));
                    let times = batch.column(shape.event_time).as_primitive::<TimestampMicrosecondType>().values();
                    if let (Some(partition), Some(&newest)) = (partition, times.iter().max()) {
                        let time = event_times.entry(partition.unsigned_abs()).or_insert(newest);
                        *time = newest.max(*time);
                    }
                }
                at = gathered.archived;
                waits = if at.coverage == before { waits + 1 } else { 0 };
                let short = ends.iter().find(|(p, end)| at.coverage.next(**p) < **end);
                if let (Some((&partition, &end)), WAITS..) = (short, waits) {
                    let (topic, reached) = (table.topic.clone(), at.coverage.next(partition));
                    return Err(BatchError::Stalled { topic, partition, end, reached });
                }
            }
            Ok((files, Archived { coverage: old.coverage, event_times, ..Archived::default() }))
        })
        .await
    }
}

/// The rows below these offsets.
fn below(batch: &RecordBatch, ends: &Positions) -> RecordBatch {
    let column = |name: &str| batch.column_by_name(name).expect("a column of every file");
    let partitions = column(PARTITION).as_primitive::<Int32Type>().values();
    let offsets = column(OFFSET).as_primitive::<Int64Type>().values();
    let is_below = |(&partition, &offset): (&i32, &i64)| {
        let end = u32::try_from(partition).ok().and_then(|partition| ends.get(&partition)).copied().unwrap_or(0);
        u64::try_from(offset).is_ok_and(|offset| offset < end)
    };
    let mask: BooleanArray = partitions.iter().zip(offsets).map(|row| Some(is_below(row))).collect();
    filter_record_batch(batch, &mask).expect("a mask as long as the batch")
}
