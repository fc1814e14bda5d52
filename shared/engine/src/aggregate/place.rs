//! `arg_max` and `arg_min`: the value at the largest or smallest place, such as the last one by time. Of several values at
//! one place the largest is kept, so that the answer doesn't depend on who saw which first.

use std::cmp::Ordering;

use polars::prelude::*;

use super::{Finished, State, better, canonical, whole};

/// A place or a value.
#[derive(Debug, Clone, PartialEq)]
enum Scalar {
    Word(i64),
    Double(f64),
    Text(Box<str>),
}

impl Scalar {
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Word(a), Self::Word(b)) => a.cmp(b),
            (Self::Double(a), Self::Double(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            // A column has one type.
            _ => Ordering::Equal,
        }
    }

    fn bytes(&self) -> usize {
        if let Self::Text(text) = self { text.len() } else { 0 }
    }
}

/// A column whose values are read one by one.
enum Scalars {
    Word(Int64Chunked),
    Double(Float64Chunked),
    Boolean(BooleanChunked),
    Text(StringChunked),
}

impl Scalars {
    fn of(column: &Column) -> PolarsResult<Self> {
        let series = whole(column);
        Ok(match series.dtype() {
            DataType::String => Self::Text(series.str()?.clone()),
            DataType::Float64 => Self::Double(series.f64()?.clone()),
            DataType::Boolean => Self::Boolean(series.bool()?.clone()),
            _ => Self::Word(series.to_physical_repr().i64()?.clone()),
        })
    }

    fn get(&self, row: usize) -> Option<Scalar> {
        match self {
            Self::Word(values) => values.get(row).map(Scalar::Word),
            Self::Double(values) => values.get(row).map(|value| Scalar::Double(canonical(value))),
            Self::Boolean(values) => values.get(row).map(|value| Scalar::Word(value.into())),
            Self::Text(values) => values.get(row).map(|value| Scalar::Text(value.into())),
        }
    }
}

fn column<'a>(values: impl Iterator<Item = Option<&'a Scalar>>, data_type: &DataType) -> PolarsResult<Column> {
    let column = match data_type {
        DataType::String => {
            let text = |value: &'a Scalar| if let Scalar::Text(text) = value { Some(&**text) } else { None };
            values.map(|value| value.and_then(text)).collect::<StringChunked>().into_column()
        }
        DataType::Float64 => {
            let double = |value: &Scalar| if let Scalar::Double(double) = value { Some(*double) } else { None };
            values.map(|value| value.and_then(double)).collect::<Float64Chunked>().into_column()
        }
        _ => {
            let word = |value: &Scalar| if let Scalar::Word(word) = value { Some(*word) } else { None };
            values.map(|value| value.and_then(word)).collect::<Int64Chunked>().into_column()
        }
    };
    column.cast(data_type)
}

/// The value at the best place of each group.
#[derive(Debug)]
pub(super) struct Placed {
    better: Ordering,
    value_type: DataType,
    place_type: DataType,
    groups: Vec<Option<(Scalar, Scalar)>>,
    bytes: usize,
}

impl Placed {
    pub fn new(largest: bool, value_type: DataType, place_type: DataType) -> Self {
        Self { better: better(largest), value_type, place_type, groups: Vec::new(), bytes: 0 }
    }
}

impl State for Placed {
    fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, None);
    }

    fn absorb(&mut self, groups: &[u32], values: &[Column]) -> PolarsResult<()> {
        let (values, places) = (Scalars::of(&values[0])?, Scalars::of(&values[1])?);
        for (row, &group) in groups.iter().enumerate() {
            let Some(place) = places.get(row) else { continue };
            let kept = &mut self.groups[group as usize];
            let order = kept.as_ref().map(|(best, _)| place.order(best));
            if order.is_some_and(|order| order != self.better && order != Ordering::Equal) {
                continue;
            }
            let Some(value) = values.get(row) else { continue };
            if let (Some(Ordering::Equal), Some((_, best))) = (order, &kept)
                && value.order(best) != Ordering::Greater
            {
                continue;
            }
            self.bytes += place.bytes() + value.bytes();
            self.bytes -= kept.as_ref().map_or(0, |(place, value)| place.bytes() + value.bytes());
            *kept = Some((place, value));
        }
        Ok(())
    }

    fn merge(&mut self, groups: &[u32], states: &[Column]) -> PolarsResult<()> {
        self.absorb(groups, states)
    }

    fn columns(&self) -> PolarsResult<Vec<Column>> {
        let places = self.groups.iter().map(|kept| kept.as_ref().map(|(place, _)| place));
        Ok(vec![self.finish()?.value, column(places, &self.place_type)?])
    }

    fn finish(&self) -> PolarsResult<Finished> {
        let values = self.groups.iter().map(|kept| kept.as_ref().map(|(_, value)| value));
        Ok(column(values, &self.value_type)?.into())
    }

    fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Option<(Scalar, Scalar)>>() + self.bytes
    }
}
