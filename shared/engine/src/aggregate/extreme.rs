//! `min` and `max`.

use std::cmp::Ordering;

use polars::prelude::*;

use super::{Finished, Number, State, better, whole};

/// The smallest or the largest number or time.
#[derive(Debug)]
pub(super) struct Extreme<T> {
    better: Ordering,
    data_type: DataType,
    values: Vec<Option<T>>,
}

impl<T> Extreme<T> {
    pub fn new(largest: bool, data_type: DataType) -> Self {
        Self { better: better(largest), data_type, values: Vec::new() }
    }
}

impl<T: Number> State for Extreme<T> {
    fn grow(&mut self, groups: usize) {
        self.values.resize(groups, None);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        let Self { better, values: kept, .. } = self;
        T::each(groups, &values[0], |group, value| {
            if kept[group].is_none_or(|kept| value.order(&kept) == *better) {
                kept[group] = Some(value.canonical());
            }
        })
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        self.absorb(groups, states)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        Ok(vec![self.finish()?.value])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        Ok(T::column(self.values.iter().copied()).cast(&self.data_type)?.into())
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<Option<T>>()
    }
}

/// The first or the last text in the order of its bytes.
#[derive(Debug)]
pub(super) struct Text {
    better: Ordering,
    values: Vec<Option<Box<str>>>,
    bytes: usize,
}

impl Text {
    pub fn new(largest: bool) -> Self {
        Self { better: better(largest), values: Vec::new(), bytes: 0 }
    }
}

impl State for Text {
    fn grow(&mut self, groups: usize) {
        self.values.resize(groups, None);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        for (&group, value) in groups.iter().zip(whole(&values[0]).str()?.iter()) {
            let Some(value) = value else { continue };
            let kept = &mut self.values[group as usize];
            if kept.as_deref().is_none_or(|kept| value.cmp(kept) == self.better) {
                self.bytes += value.len();
                self.bytes -= kept.as_deref().map_or(0, str::len);
                *kept = Some(value.into());
            }
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        self.absorb(groups, states)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        Ok(vec![self.finish()?.value])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        Ok(self.values.iter().map(Option::as_deref).collect::<StringChunked>().into_column().into())
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<Option<Box<str>>>() + self.bytes
    }
}
