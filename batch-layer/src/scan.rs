//! The archive as a lazy frame.

use std::path::Path;
use std::sync::Arc;

use anabranch_shared::schema::Table;
use anabranch_shared::table::DataFile;
use anabranch_shared::transform::polars_type;
use polars::io::HiveOptions;
use polars::prelude::*;

use crate::archive::{LOG_TIME, OFFSET, PARTITION};

/// The columns of the archive of a table, with the types that expressions over them expect.
pub fn scan_schema(table: &Table) -> Schema {
    let columns = table.columns.iter().map(|column| (column.name.as_str(), polars_type(&column.data_type)));
    let time = polars_type(&anabranch_shared::schema::DataType::Timestamp);
    let own = [(PARTITION, DataType::Int32), (OFFSET, DataType::Int64), (LOG_TIME, time)];
    columns.chain(own).map(|(name, data_type)| Field::new(name.into(), data_type)).collect()
}

/// Reads files of a table's archive. A column that is younger than a file is null in its rows.
pub fn scan(root: &Path, table: &Table, files: &[DataFile]) -> PolarsResult<LazyFrame> {
    let schema = scan_schema(table);
    if files.is_empty() {
        return Ok(DataFrame::empty_with_schema(&schema).lazy());
    }
    let paths = files.iter().map(|file| PlRefPath::try_from_pathbuf(root.join(&file.path)));
    let args = ScanArgsParquet {
        schema: Some(Arc::new(schema)),
        hive_options: HiveOptions { enabled: Some(false), ..Default::default() },
        glob: false,
        cache: false,
        allow_missing_columns: true,
        ..Default::default()
    };
    LazyFrame::scan_parquet_files(paths.collect::<PolarsResult<Vec<_>>>()?.into(), args)
}
