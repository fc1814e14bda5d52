//! Columns between Arrow's own crate, which decodes and stores them, and Polars, which evaluates: the same memory in
//! other hands, passed through the [Arrow C data interface](https://arrow.apache.org/docs/format/CDataInterface.html).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, make_array};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use polars::prelude::{Column, CompatLevel, DataFrame, IntoColumn, PolarsError, PolarsResult, Series, StringChunked};
use polars_arrow::ffi;

/// A batch as a data frame, without copying a value. Of types that Polars doesn't have, its conversions apply.
pub fn to_polars(batch: &RecordBatch) -> PolarsResult<DataFrame> {
    let columns = batch.schema_ref().fields().iter().zip(batch.columns());
    let columns = columns.map(|(field, array)| column(field, array)).collect::<PolarsResult<_>>()?;
    DataFrame::new(batch.num_rows(), columns)
}

/// A frame whose texts take no more memory than they need: those of a part otherwise lie in the memory of the whole.
pub fn compact(frame: DataFrame) -> PolarsResult<DataFrame> {
    let columns = frame.columns().iter().map(|column| match column.str() {
        Ok(texts) => {
            let arrays = texts.downcast_iter().map(|array| array.clone().gc());
            StringChunked::from_chunk_iter(texts.name().clone(), arrays).into_column()
        }
        Err(_) => column.clone(),
    });
    DataFrame::new(frame.height(), columns.collect())
}

/// A data frame as a batch. Values are copied only to join chunks, if the frame has more than one.
pub fn to_arrow(frame: &DataFrame) -> Result<RecordBatch, ArrowError> {
    let arrays = frame.columns().iter().map(|column| array(column.as_materialized_series()));
    let (fields, arrays) = arrays.collect::<Result<(Vec<Field>, Vec<ArrayRef>), _>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(frame.height()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
}

#[expect(unsafe_code, reason = "the C data interface is made of pointers")]
fn column(field: &Field, array: &ArrayRef) -> PolarsResult<Column> {
    let failed = |error: ArrowError| PolarsError::ComputeError(error.to_string().into());
    let schema = FFI_ArrowSchema::try_from(field).map_err(failed)?;
    let array = FFI_ArrowArray::new(&array.to_data());
    // SAFETY: both crates declare the interface's own C structs, whose size and meaning it fixes. The array moves, so it
    // is released once, by its new owner; the schema is only read, and released at the end of this function. Both
    // were exported from a valid array, whose type is the field's as `RecordBatch` has checked.
    let (field, array) = unsafe {
        let schema: ffi::ArrowSchema = std::mem::transmute(schema);
        let array: ffi::ArrowArray = std::mem::transmute(array);
        let field = ffi::import_field_from_c(&schema)?;
        let array = ffi::import_array_from_c(array, field.dtype().clone())?;
        (field, array)
    };
    Series::try_from((&field, array)).map(Column::from)
}

#[expect(unsafe_code, reason = "the C data interface is made of pointers")]
fn array(series: &Series) -> Result<(Field, ArrayRef), ArrowError> {
    let field = series.field().to_arrow(CompatLevel::newest());
    let array = series.rechunk().to_arrow(0, CompatLevel::newest());
    let schema = ffi::export_field_to_c(&field);
    let array = ffi::export_array_to_c(array);
    // SAFETY: as above; both were exported from one series, and the schema outlives its use.
    let (field, data) = unsafe {
        let schema: FFI_ArrowSchema = std::mem::transmute(schema);
        let array: FFI_ArrowArray = std::mem::transmute(array);
        (Field::try_from(&schema)?, arrow::ffi::from_ffi(array, &schema)?)
    };
    Ok((field, make_array(data)))
}

#[cfg(test)]
mod tests;
