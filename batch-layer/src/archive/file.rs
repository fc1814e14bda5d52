//! Writing events to the archive's files: by day, in order of event time.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use anabranch_engine::decode::{DELETED, arrow_type};
use anabranch_engine::edition::Editions;
use anabranch_log::position::Partition;
use anabranch_plan::schema::{Column, DataType, Table};
use anabranch_plan::schema::{ColumnType, Layout};
use anabranch_plan::time::Micros;
use anabranch_store::table::{DataFile, Written, damage, write_digested};
use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType as ArrowType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::day::{day_column, day_name, day_of};
use crate::error::BatchError;

/// The column that holds the partition that an event was read from.
pub const PARTITION: &str = "_partition";
/// The column that holds its offset.
pub const OFFSET: &str = "_offset";
/// The column that holds when the log took it.
pub const LOG_TIME: &str = "_log_time";

/// Rows of a row group: enough to compress well, few enough that both cores have something to read.
const ROW_GROUP_ROWS: usize = 262_144;
/// Rows that are gathered at a time on their way into a file.
const CHUNK_ROWS: usize = 65_536;
/// Days of fewer rows than this, on average, are written side by side.
const THIN_ROWS: usize = 10_000;
/// So many at once.
const WRITERS: usize = 16;

/// The table as the archive lays it out: its columns, of a changelog also which changes are deletions, where each event came from,
/// and the day.
pub fn layout(table: &Table) -> Layout {
    let mut columns: Vec<(String, ColumnType)> =
        table.columns.iter().map(|column| (column.name.clone(), ColumnType::from(&column.data_type))).collect();
    columns.extend(table.is_changelog().then(|| (DELETED.into(), ColumnType::Boolean)));
    columns.push((PARTITION.into(), ColumnType::Integer));
    columns.push((OFFSET.into(), ColumnType::BigInt));
    columns.push((LOG_TIME.into(), ColumnType::Timestamp));
    let day = day_column_of(table);
    columns.push((day.into(), ColumnType::Date));
    Layout { columns, partition_by: vec![day.into()] }
}

/// The name of the archive's partition column, in a table that is new.
fn day_column_of(table: &Table) -> &'static str {
    day_column(table.columns.iter().map(|column| column.name.as_str()))
}

/// What files of an archive look like.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The columns in a file.
    pub schema: SchemaRef,
    /// Which of them is the event time.
    pub event_time: usize,
    /// The partition column, which isn't in the file.
    day: String,
}

impl Shape {
    /// Files of what is read by a table's definition.
    pub fn of(table: &Table, editions: &Editions, layout: &Layout) -> Self {
        let stored = |column: &Column| {
            let name = editions.stored(&column.name, &column.data_type).unwrap_or(&column.name);
            Field::new(name, arrow_type(&column.data_type), true)
        };
        let mut fields: Vec<Field> = table.columns.iter().map(stored).collect();
        fields.extend(table.is_changelog().then(|| Field::new(DELETED, ArrowType::Boolean, true)));
        fields.push(Field::new(PARTITION, ArrowType::Int32, true));
        fields.push(Field::new(OFFSET, ArrowType::Int64, true));
        fields.push(Field::new(LOG_TIME, arrow_type(&DataType::Timestamp), true));
        let day = layout.partition_by.first().cloned().unwrap_or_else(|| day_column_of(table).to_owned());
        Self { schema: Arc::new(Schema::new(fields)), event_time: table.event_time, day }
    }

    /// The same archive's files with all columns that it has, those of earlier definitions too.
    pub fn whole(&self, layout: &Layout) -> Self {
        let stored = layout.columns.iter().filter(|(name, _)| !layout.partition_by.contains(name));
        let field = |(name, data_type): &(String, ColumnType)| {
            let data_type = match data_type {
                ColumnType::Text => ArrowType::Utf8View,
                ColumnType::Integer => ArrowType::Int32,
                ColumnType::BigInt => ArrowType::Int64,
                ColumnType::Double => ArrowType::Float64,
                ColumnType::Boolean => ArrowType::Boolean,
                ColumnType::Timestamp => arrow_type(&DataType::Timestamp),
                ColumnType::Date => ArrowType::Date32,
            };
            Field::new(name, data_type, true)
        };
        let schema = Schema::new(stored.map(field).collect::<Vec<_>>());
        let name = self.schema.field(self.event_time).name();
        let event_time = schema.index_of(name).unwrap_or(self.event_time);
        Self { schema: Arc::new(schema), event_time, day: self.day.clone() }
    }
}

/// Decoded events with where they came from: the i-th row is the record with `offsets[kept[i]]`.
pub fn with_origin(
    schema: &SchemaRef,
    events: &RecordBatch,
    kept: &[u32],
    partition: Partition,
    offsets: &[u64],
    log_times: &[Micros],
) -> RecordBatch {
    let partition = i32::try_from(partition).unwrap_or(i32::MAX);
    let mut columns = events.columns().to_vec();
    columns.push(Arc::new(Int32Array::from_value(partition, kept.len())) as ArrayRef);
    columns.push(Arc::new(kept.iter().map(|&i| offsets[i as usize] as i64).collect::<Int64Array>()));
    let times: TimestampMicrosecondArray = kept.iter().map(|&i| Some(log_times[i as usize])).collect();
    columns.push(Arc::new(times.with_timezone("UTC")));
    RecordBatch::try_new(schema.clone(), columns).expect("columns of the schema, equally long")
}

/// Writes batches of a shape into one new file per day, and returns the files. `each` is called after each.
///
/// Days of a few rows cost little more than the sync of their file, for which many can wait at once.
pub fn write_days(
    root: &Path,
    shape: &Shape,
    batches: &[RecordBatch],
    now: Micros,
    each: impl Fn() -> Result<(), BatchError> + Sync,
) -> Result<Vec<DataFile>, BatchError> {
    let mut rows: Vec<(Micros, u32, u32)> = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (i, batch) in (0_u32..).zip(batches) {
        let times = batch.column(shape.event_time).as_primitive::<TimestampMicrosecondType>();
        rows.extend((0..).zip(times.values()).map(|(row, &time)| (time, i, row)));
    }
    // In order of time, events of a day stand together. Equal times stay in the order of the log.
    rows.sort_unstable();
    let days: Vec<&[(Micros, u32, u32)]> = rows.chunk_by(|a, b| day_of(a.0) == day_of(b.0)).collect();
    let next = AtomicUsize::new(0);
    let write_some = || -> Result<Vec<DataFile>, BatchError> {
        let mut files = Vec::new();
        while let Some(of_day) = days.get(next.fetch_add(1, Ordering::Relaxed)) {
            files.push(write_day(root, shape, batches, of_day, now)?);
            each()?;
        }
        Ok(files)
    };
    if rows.len() > days.len() * THIN_ROWS {
        return write_some();
    }
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS.min(days.len())).map(|_| scope.spawn(write_some)).collect();
        let join = |writer: ScopedJoinHandle<'_, _>| writer.join().unwrap_or_else(|panic| resume_unwind(panic));
        let written: Result<Vec<_>, BatchError> = writers.into_iter().map(join).collect();
        Ok(written?.into_iter().flatten().collect())
    })
}

fn write_day(
    root: &Path,
    shape: &Shape,
    batches: &[RecordBatch],
    rows: &[(Micros, u32, u32)],
    now: Micros,
) -> Result<DataFile, BatchError> {
    let (first, last) = (rows[0].0, rows[rows.len() - 1].0);
    let day = day_name(day_of(first));
    let column = &shape.day;
    let path = format!("{column}={day}/part-{}.parquet", uuid::Uuid::new_v4());
    let absolute = root.join(&path);
    let sources: Vec<&RecordBatch> = batches.iter().collect();
    let Written { size, sha256 } = write_digested(&absolute, |file| {
        let mut writer = ArrowWriter::try_new_with_options(file, shape.schema.clone(), options())?;
        for chunk in rows.chunks(CHUNK_ROWS) {
            let indices: Vec<(usize, usize)> = chunk.iter().map(|&(_, i, row)| (i as usize, row as usize)).collect();
            writer.write(&interleave_record_batch(&sources, &indices)?)?;
        }
        writer.close()?;
        Ok(())
    })
    .map_err(|source: WriteError| source.at("writing", &absolute))?;
    Ok(DataFile {
        path,
        size,
        rows: Some(rows.len() as u64),
        partition: BTreeMap::from([(column.clone(), Some(day))]),
        modified_ms: now.div_euclid(1000),
        stats: Some(stats(shape, rows.len(), first, last)),
        sha256: Some(sha256),
    })
}

/// Delta's statistics: readers skip files by them. Times have milliseconds there.
fn stats(shape: &Shape, rows: usize, first: Micros, last: Micros) -> String {
    let name = shape.schema.field(shape.event_time).name();
    let shown = |ms: i64| chrono::DateTime::from_timestamp_millis(ms).map(|time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ"));
    let (Some(first), Some(last)) = (shown(first.div_euclid(1000)), shown(last.div_euclid(1000) + 1)) else {
        return format!("{{\"numRecords\":{rows}}}");
    };
    serde_json::json!({
        "numRecords": rows,
        "minValues": { name: first.to_string() },
        "maxValues": { name: last.to_string() },
        "nullCount": { name: 0 },
    })
    .to_string()
}

fn options() -> ArrowWriterOptions {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by("anabranch".into())
        .build();
    ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true)
}

/// Fails if one of these files of a table's archive isn't what was written.
pub fn check_files(root: &Path, table: &Table, files: &[DataFile]) -> Result<(), BatchError> {
    for file in files {
        if let Some(found) = file_damage(root, file)? {
            return Err(BatchError::Damaged { table: table.name.clone(), path: root.join(&file.path), found });
        }
    }
    Ok(())
}

/// What is wrong with a file of a table, if anything.
pub fn file_damage(root: &Path, file: &DataFile) -> Result<Option<String>, BatchError> {
    let path = root.join(&file.path);
    damage(&path, file.sha256.as_deref()).map_err(|source| BatchError::File { step: "reading", path, source })
}

/// Reads files of the archive whole, as batches of a shape: a column that a file lacks is null.
pub fn read_files(root: &Path, shape: &Shape, files: &[DataFile]) -> Result<Vec<RecordBatch>, BatchError> {
    let schema = &shape.schema;
    let mut batches = Vec::new();
    for file in files {
        let path = root.join(&file.path);
        let mut read = || -> Result<(), WriteError> {
            let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path)?)?;
            for batch in reader.with_batch_size(CHUNK_ROWS).build()? {
                batches.push(conform(schema, &batch?)?);
            }
            Ok(())
        };
        read().map_err(|source| source.at("reading", &path))?;
    }
    Ok(batches)
}

fn conform(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) => arrow::compute::cast(column, field.data_type()),
        None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
}

/// Either kind of failure on the way to a Parquet file or from one.
enum WriteError {
    Io(std::io::Error),
    Parquet(ParquetError),
}

impl WriteError {
    fn at(self, step: &'static str, path: &Path) -> BatchError {
        let path: PathBuf = path.to_owned();
        match self {
            Self::Io(source) => BatchError::File { step, path, source },
            Self::Parquet(ParquetError::External(source)) => match source.downcast::<std::io::Error>() {
                Ok(source) => BatchError::File { step, path, source: *source },
                Err(source) => BatchError::Parquet { step, path, source: ParquetError::External(source) },
            },
            Self::Parquet(source) => BatchError::Parquet { step, path, source },
        }
    }
}

impl From<std::io::Error> for WriteError {
    fn from(source: std::io::Error) -> Self {
        Self::Io(source)
    }
}

impl From<ParquetError> for WriteError {
    fn from(source: ParquetError) -> Self {
        Self::Parquet(source)
    }
}

impl From<arrow::error::ArrowError> for WriteError {
    fn from(source: arrow::error::ArrowError) -> Self {
        Self::Parquet(source.into())
    }
}
