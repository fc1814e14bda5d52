//! Which group a row belongs to: distinct key tuples, numbered from 0 in the order in which they came.

use std::hash::BuildHasher;

use anabranch_plan::aggregation::Aggregation;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use polars::prelude::*;
use polars_arrow::array::{MutableArray, MutableBinaryViewArray, MutablePrimitiveArray, PrimitiveArray, Utf8ViewArray};

use super::canonical;
use crate::transform::polars_type;

/// The tuples of some columns, each once.
#[derive(Debug)]
pub(crate) struct Keys {
    index: HashTable<u32>,
    columns: Vec<Stored>,
    types: Vec<DataType>,
    len: usize,
    hasher: RandomState,
}

/// A column of the tuples that are known.
#[derive(Debug)]
enum Stored {
    Text(MutableBinaryViewArray<str>),
    /// Everything else in 64 bits: integers and times as they are, floating-point numbers by their bits.
    Word(MutablePrimitiveArray<i64>),
}

/// A column of the tuples that are looked up.
#[derive(Debug)]
pub(crate) enum Given {
    Text(Utf8ViewArray),
    Word(PrimitiveArray<i64>),
}

impl Given {
    /// That of a column.
    pub fn of(column: &Column) -> PolarsResult<Self> {
        let series = column.as_materialized_series().rechunk();
        Ok(match series.dtype() {
            DataType::String => Self::Text(series.str()?.downcast_as_array().clone()),
            DataType::Float64 => {
                // One zero and one NaN, as grouping has it everywhere.
                let bits = |x: f64| canonical(x).to_bits().cast_signed();
                let words: Int64Chunked = series.f64()?.iter().map(|x| x.map(bits)).collect();
                Self::Word(words.downcast_as_array().clone())
            }
            DataType::Boolean => {
                let words: Int64Chunked = series.bool()?.iter().map(|x| x.map(i64::from)).collect();
                Self::Word(words.downcast_as_array().clone())
            }
            _ => Self::Word(series.to_physical_repr().i64()?.rechunk().downcast_as_array().clone()),
        })
    }

    #[inline]
    fn hash(&self, row: usize, hasher: &RandomState) -> u64 {
        match self {
            Self::Text(values) => hasher.hash_one(values.get(row)),
            Self::Word(values) => hasher.hash_one(values.get(row)),
        }
    }

    /// The hash of a row's tuple.
    #[inline]
    pub fn hash_all(given: &[Self], row: usize, hasher: &RandomState) -> u64 {
        given.iter().fold(0, |hash, given| join(hash, given.hash(row, hasher)))
    }

    /// Whether two rows have the same tuple; nulls are the same.
    pub fn are_same(given: &[Self], row: usize, others: &[Self], other: usize) -> bool {
        given.iter().zip(others).all(|pair| match pair {
            (Self::Text(values), Self::Text(others)) => values.get(row) == others.get(other),
            (Self::Word(values), Self::Word(others)) => values.get(row) == others.get(other),
            _ => false,
        })
    }
}

impl Stored {
    #[inline]
    fn hash(&self, slot: usize, hasher: &RandomState) -> u64 {
        match self {
            Self::Text(values) => hasher.hash_one(text(values, slot)),
            Self::Word(values) => hasher.hash_one(word(values, slot)),
        }
    }

    #[inline]
    fn is(&self, slot: usize, given: &Given, row: usize) -> bool {
        match (self, given) {
            (Self::Text(known), Given::Text(values)) => text(known, slot) == values.get(row),
            (Self::Word(known), Given::Word(values)) => word(known, slot) == values.get(row),
            _ => false,
        }
    }

    fn push(&mut self, given: &Given, row: usize) {
        match (self, given) {
            (Self::Text(known), Given::Text(values)) => known.push(values.get(row)),
            (Self::Word(known), Given::Word(values)) => known.push(values.get(row)),
            // Columns are of the view's types on both sides.
            (Self::Text(known), Given::Word(_)) => known.push_null(),
            (Self::Word(known), Given::Text(_)) => known.push_null(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Text(values) => values.capacity() * 16 + values.total_buffer_len(),
            Self::Word(values) => values.capacity() * 8,
        }
    }
}

#[inline]
fn text(values: &MutableBinaryViewArray<str>, slot: usize) -> Option<&str> {
    values.is_valid(slot).then(|| values.value(slot))
}

#[inline]
fn word(values: &MutablePrimitiveArray<i64>, slot: usize) -> Option<i64> {
    values.is_valid(slot).then(|| values.values()[slot])
}

/// The hash of one more column. That of a single column is the column's own.
#[inline]
fn join(hash: u64, next: u64) -> u64 {
    hash.rotate_left(23).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ next
}

impl Keys {
    /// The keys of a view.
    pub fn of(aggregation: &Aggregation) -> Self {
        Self::new(aggregation.keys.iter().map(|key| polars_type(&key.expr.data_type())).collect())
    }

    /// Tuples of these types.
    pub fn new(types: Vec<DataType>) -> Self {
        let stored = |data_type: &DataType| match data_type {
            DataType::String => Stored::Text(MutableBinaryViewArray::new()),
            _ => Stored::Word(MutablePrimitiveArray::new()),
        };
        let columns = types.iter().map(stored).collect();
        Self { index: HashTable::new(), columns, types, len: 0, hasher: RandomState::default() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes that they take.
    pub fn bytes(&self) -> usize {
        self.index.allocation_size() + self.columns.iter().map(Stored::bytes).sum::<usize>()
    }

    /// Adds the one tuple of no columns.
    pub fn begin_whole(&mut self) {
        self.len = self.len.max(1);
    }

    /// The number of each row's tuple. New ones are added. `columns` are the view's keys, of `rows` rows.
    pub fn number(&mut self, columns: &[Column], rows: usize) -> PolarsResult<Vec<u32>> {
        let given = columns.iter().map(Given::of).collect::<PolarsResult<Vec<_>>>()?;
        let mut numbers = Vec::with_capacity(rows);
        let Self { index, columns, len, hasher, .. } = self;
        match (columns.as_mut_slice(), given.as_slice()) {
            ([], _) => {
                *len = (*len).max(usize::from(rows > 0));
                numbers.resize(rows, 0);
            }
            // One text is the most usual key by far: no loop over columns in the loop over rows.
            ([Stored::Text(known)], [Given::Text(values)]) => {
                for row in 0..rows {
                    let value = values.get(row);
                    let hash = hasher.hash_one(value);
                    let is = |&slot: &u32| text(known, slot as usize) == value;
                    numbers.push(match index.entry(hash, is, |&slot| hasher.hash_one(text(known, slot as usize))) {
                        Entry::Occupied(entry) => *entry.get(),
                        Entry::Vacant(entry) => {
                            let slot = *entry.insert(*len as u32).get();
                            known.push(value);
                            *len += 1;
                            slot
                        }
                    });
                }
            }
            (columns, given) => {
                for row in 0..rows {
                    let hash = Given::hash_all(given, row, hasher);
                    let is = |&slot: &u32| columns.iter().zip(given).all(|(c, given)| c.is(slot as usize, given, row));
                    let again = |&slot: &u32| {
                        columns.iter().fold(0, |hash, column| join(hash, column.hash(slot as usize, hasher)))
                    };
                    numbers.push(match index.entry(hash, is, again) {
                        Entry::Occupied(entry) => *entry.get(),
                        Entry::Vacant(entry) => {
                            let slot = *entry.insert(*len as u32).get();
                            columns.iter_mut().zip(given).for_each(|(column, given)| column.push(given, row));
                            *len += 1;
                            slot
                        }
                    });
                }
            }
        }
        Ok(numbers)
    }

    /// Which rows' tuples are known.
    pub fn known(&self, columns: &[Column], rows: usize) -> PolarsResult<BooleanChunked> {
        let given = columns.iter().map(Given::of).collect::<PolarsResult<Vec<_>>>()?;
        let is_known = |row: usize| {
            let hash = Given::hash_all(&given, row, &self.hasher);
            let is = |&slot: &u32| self.columns.iter().zip(&given).all(|(c, given)| c.is(slot as usize, given, row));
            if given.is_empty() { self.len > 0 } else { self.index.find(hash, is).is_some() }
        };
        Ok((0..rows).map(is_known).collect())
    }

    /// The tuples in order of their numbers, as columns of the view's types.
    pub fn columns(&self) -> PolarsResult<Vec<Column>> {
        let column = |(stored, data_type): (&Stored, &DataType)| match stored {
            Stored::Text(values) => {
                Ok(StringChunked::with_chunk(PlSmallStr::EMPTY, values.clone().freeze()).into_column())
            }
            Stored::Word(values) => {
                let words = Int64Chunked::with_chunk(PlSmallStr::EMPTY, PrimitiveArray::from(values.clone()));
                match data_type {
                    DataType::Float64 => {
                        let doubles: Float64Chunked =
                            words.iter().map(|word| word.map(|word| f64::from_bits(word.cast_unsigned()))).collect();
                        Ok(doubles.into_column())
                    }
                    other => words.into_column().cast(other),
                }
            }
        };
        self.columns.iter().zip(&self.types).map(column).collect()
    }
}
