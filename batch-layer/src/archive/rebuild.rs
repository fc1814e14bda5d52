//! Archiving anew what the log still holds, by the definition in force.
//!
//! Rows of records that the log no longer holds stay as they are: of them the definition has what it had. All others are read from
//! the log again. One commit replaces the files, so that a rebuild that is interrupted leaves the archive as it was. If another
//! process commits meanwhile, what it archived is read as well, and the commit is tried again.
//!
//! Of a damaged file nothing is read. What the log no longer holds of it is lost, and [`Rebuild::description`] says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anabranch_log::position::{Coverage, Offset, Partition, Positions};
use anabranch_plan::time::Micros;
use anabranch_store::table::{Change, DataFile, DeltaTable, TableError};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use fail::fail_point;

use super::coverage::{archived, change, grown, rows};
use super::declare::ATTEMPTS;
use super::file::{self, OFFSET, PARTITION, Shape, layout};
use super::{Archive, Archived, gather};
use crate::error::{BatchError, blocking};

/// Records that are read before they are written to files.
const AT_ONCE: (usize, usize) = (1_000_000, 256 << 20);

/// How long the log may take to hand out what it holds: so many waits.
const WAITS: usize = 30;
const WAIT: Duration = Duration::from_secs(1);

/// A table's archive that is to be made anew.
pub struct Rebuild {
    archive: Archive,
    delta: DeltaTable,
    archived: Archived,
    /// From where on the log holds what is archived.
    from: Positions,
    damaged: Vec<DamagedFile>,
}

/// A file of the archive that isn't what was written.
struct DamagedFile {
    path: String,
    found: String,
    /// How many rows it had; unknown if another program wrote it and didn't say.
    rows: Option<u64>,
    /// How many of them the log no longer holds, at most.
    lost: u64,
}

/// What was read of the log.
#[derive(Debug, Default)]
struct Read {
    /// Up to where.
    ends: Positions,
    files: Vec<DataFile>,
    event_times: BTreeMap<Partition, Micros>,
    /// Where the log has no record between those that it has, in order.
    gaps: BTreeMap<Partition, Vec<Range<Offset>>>,
}

impl Read {
    fn is_gap(&self, partition: Partition, offset: Offset) -> bool {
        let Some(gaps) = self.gaps.get(&partition) else { return false };
        gaps.get(gaps.partition_point(|gap| gap.end <= offset)).is_some_and(|gap| gap.contains(&offset))
    }
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = &self.archive.table.name;
        f.debug_struct("Rebuild").field("table", table).field("from", &self.from).finish_non_exhaustive()
    }
}

impl Rebuild {
    /// Looks at an archive and at its log; changes nothing. None if nothing is archived.
    pub async fn plan(archive: Archive) -> Result<Option<Self>, BatchError> {
        let Some(delta) = DeltaTable::open(&archive.root).await? else { return Ok(None) };
        let archived = archived(&delta, &archive.table).await?;
        if archived.coverage.is_empty() {
            return Ok(None);
        }
        let bounds = archive.bounds().await?;
        let start = |(&partition, archived): (&Partition, &Range<Offset>)| {
            let held = bounds.get(&partition).map_or(archived.end, |held| held.start);
            // What came before the archive's beginning was never there: the log's first record begins it.
            (partition, if held <= archived.start { 0 } else { held.min(archived.end) })
        };
        let from = archived.coverage.iter().map(start).collect();
        let mut plan = Self { archive, delta, archived, from, damaged: Vec::new() };
        if !plan.is_whole() {
            plan.check_kept()?;
        }
        plan.damaged = plan.look_for_damage().await?;
        Ok(Some(plan))
    }

    /// The damaged files. Their rows can't be told by where they were read: those are missing in the other files.
    async fn look_for_damage(&self) -> Result<Vec<DamagedFile>, BatchError> {
        let (root, files, from) = (self.archive.root.clone(), self.delta.files(), self.from.clone());
        let shape = Shape::of(&self.archive.table, &self.archived.editions, &self.delta.layout()?);
        let shape = shape.whole(&self.delta.layout()?);
        let gone = self.archived.coverage.iter().map(|(p, range)| self.from[p].saturating_sub(range.start));
        let mut missing: u64 = gone.sum();
        blocking("looking for damaged files", move || {
            let (mut damaged, mut whole) = (Vec::new(), Vec::new());
            for file in files {
                match file::file_damage(&root, &file)? {
                    Some(found) => damaged.push(DamagedFile { path: file.path, found, rows: file.rows, lost: 0 }),
                    None => whole.push(file),
                }
            }
            if damaged.is_empty() || missing == 0 {
                return Ok(damaged);
            }
            for file in &whole {
                for batch in file::read_files(&root, &shape, std::slice::from_ref(file))? {
                    let is_gone = |(p, offset): &(Partition, Offset)| from.get(p).is_some_and(|from| offset < from);
                    missing = missing.saturating_sub(origin(&batch).filter(is_gone).count() as u64);
                }
            }
            for file in &mut damaged {
                file.lost = file.rows.map_or(missing, |rows| rows.min(missing));
            }
            Ok(damaged)
        })
        .await
    }

    /// Whether the log's bounds hold all that is archived.
    fn is_whole(&self) -> bool {
        self.from.values().all(|&from| from == 0)
    }

    /// Fails if rows can't stay as they are.
    fn check_kept(&self) -> Result<(), BatchError> {
        let newest = self.archived.editions.newest();
        match newest.and_then(|newest| newest.other_basis(&self.archive.table)) {
            Some(other) => Err(BatchError::Unfiled(other)),
            None => Ok(()),
        }
    }

    /// What it will do, in lines.
    pub fn description(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (partition, archived) in self.archived.coverage.iter() {
            let from = self.from[partition].max(archived.start);
            if from > archived.start {
                let gone = format!("offsets {} to {from} are no longer in the log", archived.start);
                lines.push(format!("partition {partition}: {gone}: their rows stay as they are"));
            }
            if from < archived.end {
                lines.push(format!("partition {partition}: offsets {from} to {} are archived anew", archived.end));
            }
        }
        if !self.is_whole() {
            let layout = self.delta.layout().unwrap_or_else(|_| layout(&self.archive.table));
            let editions = self.archived.editions.rebuilt(&self.archive.table, &self.from, &layout);
            let differences = editions.earlier().flat_map(|(edition, _)| edition.differences(&self.archive.table));
            let mut told = BTreeSet::new();
            let new = differences.filter(|line| told.insert(line.clone()));
            lines.extend(new.map(|line| format!("of rows that stay, {line}")));
        }
        for DamagedFile { path, found, rows, lost } in &self.damaged {
            let rows = rows.map_or("an unknown number of".to_owned(), |rows| rows.to_string());
            let outcome = match lost {
                0 => format!("its {rows} rows are archived anew"),
                _ => format!(
                    "up to {lost} of its {rows} rows are lost, as the log no longer holds their records; the others are archived anew"
                ),
            };
            lines.push(format!("{} is damaged: {found}: {outcome}", self.archive.root.join(path).display()));
        }
        if !self.damaged.is_empty() {
            lines.push(
                "rows of a damaged file whose records compaction has removed from the log are lost, too".to_owned(),
            );
        }
        lines.push("rows of records that compaction has removed from the log stay as they are".to_owned());
        lines.push("rows that were erased from the archive come back as far as the log holds them".to_owned());
        let files = self.delta.files();
        let bytes = files.iter().map(|file| file.size).sum::<u64>();
        lines.push(format!("{} files of {bytes} bytes are replaced, but for those whose rows all stay", files.len()));
        lines
    }

    /// Does it, in one commit.
    pub async fn run(mut self) -> Result<(), BatchError> {
        // While nothing stays, nothing of the old layout has to.
        let is_done = self.is_whole() && self.attempt(true).await?;
        if !is_done {
            self.attempt(false).await?;
        }
        fail_point!("rebuild::after_commit", |_| Err(BatchError::Failpoint("rebuild::after_commit")));
        Ok(())
    }

    /// Does it in the archive's layout, or in a fresh one; in a fresh one not if rows stay, and then it says so.
    async fn attempt(&mut self, is_fresh: bool) -> Result<bool, BatchError> {
        let (table, existing) = (self.archive.table.clone(), self.delta.layout()?);
        let wanted = if is_fresh { layout(&table) } else { existing.clone() };
        let editions = self.archived.editions.rebuilt(&table, &self.from, &wanted);
        let wanted = grown(&wanted, &editions);
        let shape = Arc::new(Shape::of(&table, &editions, &wanted));
        let whole = shape.whole(&existing);
        let event_times = if is_fresh { BTreeMap::new() } else { self.archived.event_times.clone() };
        let (mut read, mut attempts) = (Read { event_times, ..Read::default() }, 1);
        loop {
            read = self.read(&shape, read).await?;
            fail_point!("rebuild::before_commit", |_| Err(BatchError::Failpoint("rebuild::before_commit")));
            let files = self.delta.files();
            let (back, Kept { whole: stay, rest }) = self.keep(&files, &whole, read).await?;
            read = back;
            if !stay.is_empty() || !rest.is_empty() {
                self.check_kept()?;
                if is_fresh {
                    return Ok(false);
                }
            }
            let add: Vec<DataFile> = read.files.iter().cloned().chain(rest).collect();
            let archived = Archived {
                event_times: read.event_times.clone(),
                editions: editions.clone(),
                rebuilds: self.archived.rebuilds + 1,
                rows: rows(files.iter().filter(|file| stay.contains(&file.path)).chain(&add)),
                ..self.archived.clone()
            };
            self.check_written(&add)?;
            let remove = files.into_iter().filter(|file| !stay.contains(&file.path)).collect();
            let change =
                Change { add, remove, layout: Some(wanted.clone()), ..change(&self.delta, &table, &archived)? };
            match self.delta.commit(change).await {
                Err(TableError::Superseded { .. }) if attempts < ATTEMPTS => self.look_again().await?,
                committed => return Ok(committed.map(|_| true)?),
            }
            attempts += 1;
        }
    }

    /// Reads the archive again, after another process has committed. What was read of the log stays right as long as records
    /// are read by the same definitions.
    async fn look_again(&mut self) -> Result<(), BatchError> {
        self.delta.refresh().await?;
        let archived = archived(&self.delta, &self.archive.table).await?;
        if (&archived.editions, archived.rebuilds) != (&self.archived.editions, self.archived.rebuilds) {
            return Err(BatchError::Rebuilt { archive: self.archive.root.clone() });
        }
        for partition in archived.coverage.ends().into_keys() {
            // One that has been archived for the first time since: the log has it still, or the reader says what is lost.
            self.from.entry(partition).or_insert(0);
        }
        self.archived = archived;
        Ok(())
    }

    /// Fails if files are gone that are to be committed: other processes delete what no version names after a while.
    fn check_written(&self, files: &[DataFile]) -> Result<(), BatchError> {
        for file in files {
            let path = self.archive.root.join(&file.path);
            if let Err(source) = std::fs::metadata(&path) {
                return Err(BatchError::File { step: "finding again", path, source });
            }
        }
        Ok(())
    }

    /// What stays of these files.
    async fn keep(&self, files: &[DataFile], shape: &Shape, read: Read) -> Result<(Read, Kept), BatchError> {
        if self.is_whole() && read.gaps.is_empty() {
            return Ok((read, Kept::default()));
        }
        let (root, files, from) = (self.archive.root.clone(), files.to_vec(), self.from.clone());
        let (shape, now, table) = (shape.clone(), self.archive.clock.now(), self.archive.table.clone());
        let damaged: BTreeSet<String> = self.damaged.iter().map(|file| file.path.clone()).collect();
        blocking("keeping what the log no longer holds", move || {
            let mut kept = Kept::default();
            let stays = |partition: Partition, offset: Offset| {
                from.get(&partition).is_some_and(|&from| offset < from) || read.is_gap(partition, offset)
            };
            for file in files.into_iter().filter(|file| !damaged.contains(&file.path)) {
                // One that was damaged only now: nobody has been told what that loses.
                file::check_files(&root, &table, std::slice::from_ref(&file))?;
                let batches = file::read_files(&root, &shape, std::slice::from_ref(&file))?;
                let rest: Vec<RecordBatch> = batches.iter().map(|batch| filtered(batch, stays)).collect();
                let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                if rows(&rest) == rows(&batches) {
                    kept.whole.insert(file.path);
                } else if rows(&rest) > 0 {
                    kept.rest.extend(file::write_days(&root, &shape, &rest, now, || Ok(()))?);
                }
            }
            Ok((read, kept))
        })
        .await
    }

    /// Reads on in the log, up to where the archive ends.
    async fn read(&self, shape: &Arc<Shape>, mut read: Read) -> Result<Read, BatchError> {
        let (archive, shape, now) = (self.archive.clone(), shape.clone(), self.archive.clock.now());
        let begin = |(&p, range): (&Partition, &Range<Offset>)| {
            (p, read.ends.get(&p).copied().unwrap_or(self.from[&p].max(range.start)))
        };
        let begins: Positions = self.archived.coverage.iter().map(begin).collect();
        read.ends = self.archived.coverage.ends();
        blocking("reading the log", move || {
            let Archive { root, table, log, rejects, .. } = &archive;
            let is_inside = |p: Partition, offset: Offset| read.ends.get(&p).is_some_and(|&end| offset < end);
            let mut reader = log.reader(&table.topic, &begins)?;
            let mut at = Archived { coverage: Coverage::starting_at(&begins), ..Archived::default() };
            let mut waits = 0;
            while let Some((&partition, &end)) = read.ends.iter().find(|(p, end)| at.coverage.next(p) < **end) {
                if waits == WAITS {
                    let (topic, reached) = (table.topic.clone(), at.coverage.next(&partition));
                    return Err(BatchError::Stalled { topic, partition, end, reached });
                }
                let before = at.coverage.clone();
                let (next, gathered) = gather(reader, (table, &shape), rejects, at, AT_ONCE, WAIT)?;
                reader = next;
                let mut rejected = gathered.rejected;
                rejected.retain(|it| it.partition.zip(it.offset).is_some_and(|(p, offset)| is_inside(p, offset)));
                archive.reject(&rejected)?;
                let mut batches: Vec<_> = gathered.batches.iter().map(|batch| filtered(batch, is_inside)).collect();
                batches.retain(|batch| batch.num_rows() > 0);
                if !batches.is_empty() {
                    read.files.extend(file::write_days(root, &shape, &batches, now, || Ok(()))?);
                }
                for batch in batches {
                    let (partition, _) = origin(&batch).next().expect("a row");
                    let times = batch.column(shape.event_time).as_primitive::<TimestampMicrosecondType>().values();
                    let newest = times.iter().max().copied().expect("a row");
                    let time = read.event_times.entry(partition).or_insert(newest);
                    *time = newest.max(*time);
                }
                for (partition, gap) in gathered.gaps.into_iter().filter(|(p, gap)| is_inside(*p, gap.start)) {
                    let end = gap.end.min(read.ends[&partition]);
                    read.gaps.entry(partition).or_default().push(gap.start..end);
                }
                at = gathered.archived;
                waits = if at.coverage == before { waits + 1 } else { 0 };
            }
            Ok(read)
        })
        .await
    }
}

/// The rows of files that stay.
#[derive(Default)]
struct Kept {
    /// The files of which all rows stay, by path.
    whole: BTreeSet<String>,
    /// Files of those rows that stay of the others.
    rest: Vec<DataFile>,
}

/// Where each row was read.
fn origin(batch: &RecordBatch) -> impl Iterator<Item = (Partition, Offset)> {
    let column = |name: &str| batch.column_by_name(name).expect("a column of every file");
    let partitions = column(PARTITION).as_primitive::<Int32Type>().values();
    let offsets = column(OFFSET).as_primitive::<Int64Type>().values();
    partitions.iter().zip(offsets).map(|(&partition, &offset)| (partition.cast_unsigned(), offset.cast_unsigned()))
}

/// The rows that were read where it is asked for.
fn filtered(batch: &RecordBatch, is_wanted: impl Fn(Partition, Offset) -> bool) -> RecordBatch {
    let mask: BooleanArray = origin(batch).map(|(partition, offset)| Some(is_wanted(partition, offset))).collect();
    filter_record_batch(batch, &mask).expect("a mask as long as the batch")
}
