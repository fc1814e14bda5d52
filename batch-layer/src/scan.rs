//! The archive as a lazy frame.

use std::sync::Arc;

use anabranch_engine::decode::DELETED;
use anabranch_engine::transform::polars_type;
use anabranch_plan::schema::Table;
use anabranch_plan::schema::{ColumnType, Layout};
use anabranch_store::table::DataFile;
use polars::io::HiveOptions;
use polars::prelude::*;

use crate::archive::{ArchiveSnapshot, LOG_TIME, OFFSET, PARTITION};

/// The columns of the archive of a table, with the types that expressions over them expect.
pub fn scan_schema(table: &Table) -> Schema {
    let columns = table.columns.iter().map(|column| (column.name.as_str(), polars_type(&column.data_type)));
    let time = polars_type(&anabranch_plan::schema::DataType::Timestamp);
    let deleted = table.is_changelog().then_some((DELETED, DataType::Boolean));
    let own = [(PARTITION, DataType::Int32), (OFFSET, DataType::Int64), (LOG_TIME, time)];
    columns.chain(deleted).chain(own).map(|(name, data_type)| Field::new(name.into(), data_type)).collect()
}

/// Reads files of a table's archive. A column that a file doesn't have is null in its rows: it is younger, or had another type.
pub fn scan(archive: &ArchiveSnapshot, table: &Table, files: &[DataFile]) -> PolarsResult<LazyFrame> {
    let wanted = scan_schema(table);
    if files.is_empty() {
        return Ok(DataFrame::empty_with_schema(&wanted).lazy());
    }
    let stored = |name: &str| {
        let column = table.columns.iter().find(|column| column.name == name);
        let stored = column.and_then(|column| archive.archived.editions.stored(name, &column.data_type));
        PlSmallStr::from(stored.unwrap_or(name))
    };
    let mut schema: Schema = stored_columns(&archive.layout).collect();
    let mut selected = Vec::new();
    for (name, data_type) in wanted.iter() {
        let stored = stored(name);
        schema.insert(stored.clone(), data_type.clone());
        selected.push(Expr::Column(stored).alias(name.clone()));
    }
    let paths = files.iter().map(|file| PlRefPath::try_from_pathbuf(archive.root.join(&file.path)));
    let args = ScanArgsParquet {
        schema: Some(Arc::new(schema)),
        hive_options: HiveOptions { enabled: Some(false), ..Default::default() },
        glob: false,
        cache: false,
        allow_missing_columns: true,
        ..Default::default()
    };
    let whole = LazyFrame::scan_parquet_files(paths.collect::<PolarsResult<Vec<_>>>()?.into(), args)?;
    Ok(whole.select(selected))
}

/// All columns that files of an archive may have.
fn stored_columns(layout: &Layout) -> impl Iterator<Item = Field> {
    let stored = layout.columns.iter().filter(|(name, _)| !layout.partition_by.contains(name));
    stored.map(|(name, stored)| Field::new(name.as_str().into(), polars_type_of(*stored)))
}

/// The type that a stored column has in Polars.
pub(crate) fn polars_type_of(stored: ColumnType) -> DataType {
    match stored {
        ColumnType::Text => DataType::String,
        ColumnType::Integer => DataType::Int32,
        ColumnType::BigInt => DataType::Int64,
        ColumnType::Double => DataType::Float64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Timestamp => polars_type(&anabranch_plan::schema::DataType::Timestamp),
        ColumnType::Date => DataType::Date,
    }
}
