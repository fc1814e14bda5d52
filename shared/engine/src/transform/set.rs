//! `x IN (…)`: whether a value is one of some constants, by a hash table.

use anabranch_plan::expr::Literal;
use anabranch_plan::schema;
use foldhash::fast::RandomState;
use hashbrown::HashSet;
use polars::prelude::*;

use super::canonical;

/// The constants of a list.
pub(super) struct Constants {
    values: Values,
    /// What isn't among them may be equal to a null of the list.
    has_null: bool,
}

enum Values {
    Text(HashSet<String, RandomState>),
    /// Everything else in 64 bits.
    Word(HashSet<i64, RandomState>),
}

fn bits(number: f64) -> i64 {
    canonical(number).to_bits().cast_signed()
}

impl Constants {
    /// Constants of one type.
    pub fn new<'a>(data_type: &schema::DataType, literals: impl Iterator<Item = &'a Literal>) -> Self {
        let (mut texts, mut words, mut has_null) = (HashSet::default(), HashSet::default(), false);
        for literal in literals {
            let word = match literal {
                Literal::Null(_) => {
                    has_null = true;
                    continue;
                }
                Literal::Text(text) => {
                    texts.insert(text.clone());
                    continue;
                }
                Literal::BigInt(number) | Literal::Timestamp(number) | Literal::Interval(number) => *number,
                Literal::Double(number) => bits(*number),
                Literal::Boolean(value) => i64::from(*value),
            };
            words.insert(word);
        }
        let is_text = *data_type == schema::DataType::Text;
        Self { values: if is_text { Values::Text(texts) } else { Values::Word(words) }, has_null }
    }

    /// Whether each value of a column is one of them; null where that can't be told.
    pub fn contain(&self, column: &Column) -> PolarsResult<Column> {
        let series = column.as_materialized_series();
        let answer = |is_there: bool| if is_there || !self.has_null { Some(is_there) } else { None };
        let found: BooleanChunked = match &self.values {
            Values::Text(texts) => {
                series.str()?.iter().map(|text| text.and_then(|text| answer(texts.contains(text)))).collect()
            }
            Values::Word(words) => {
                let among = |word: Option<i64>| word.and_then(|word| answer(words.contains(&word)));
                match series.dtype() {
                    DataType::Float64 => series.f64()?.iter().map(|number| among(number.map(bits))).collect(),
                    DataType::Boolean => series.bool()?.iter().map(|value| among(value.map(i64::from))).collect(),
                    _ => series.to_physical_repr().i64()?.iter().map(among).collect(),
                }
            }
        };
        Ok(found.with_name(series.name().clone()).into_column())
    }
}
