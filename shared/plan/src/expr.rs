//! Row expressions, typed. Made by [`crate::sql`], evaluated by [`anabranch_engine::transform`] in every layer.

use crate::data_type::DataType;
use crate::time::Micros;

/// An expression over the columns of one event.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A column of the table, or the column that `UNNEST` makes.
    Column(String, DataType),
    /// A constant.
    Literal(Literal),
    /// `NOT x`: null stays null.
    Not(Box<Expr>),
    /// `-x`.
    Negate(Box<Expr>),
    /// `x op y`. The operands of a comparison and of arithmetic have one type: the planner puts casts in.
    Binary(Box<Expr>, BinaryOp, Box<Expr>),
    /// `x IS NULL`.
    IsNull(Box<Expr>),
    /// `x IN (…)`; null if `x` is null, or if there is no match and the list holds a null.
    In(Box<Expr>, Vec<Expr>),
    /// `x LIKE pattern`, matched over the whole text; `ILIKE` without regard to case.
    Like {
        /// The text.
        text: Box<Expr>,
        /// `%` any characters, `_` one, `\` takes the next literally.
        pattern: String,
        /// `ILIKE`.
        ignore_case: bool,
    },
    /// `CASE WHEN … THEN … ELSE … END`; branches have one type.
    Case {
        /// The branches in order.
        branches: Vec<(Expr, Expr)>,
        /// The value if no condition is true; null if absent.
        otherwise: Option<Box<Expr>>,
    },
    /// `CAST(x AS type)`; a text that can't be read as the type gives null (`TRY_CAST`) as an event must never stop a view.
    Cast(Box<Expr>, DataType),
    /// A function of [`Function`].
    Call(Function, Vec<Expr>),
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// `NULL` of a type.
    Null(DataType),
    /// A text.
    Text(String),
    /// An integer.
    BigInt(i64),
    /// A floating-point number.
    Double(f64),
    /// `TRUE` or `FALSE`.
    Boolean(bool),
    /// `TIMESTAMP '…'`.
    Timestamp(Micros),
    /// `INTERVAL '…'`.
    Interval(Micros),
}

impl Literal {
    /// Its type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Null(data_type) => data_type.clone(),
            Self::Text(_) => DataType::Text,
            Self::BigInt(_) => DataType::BigInt,
            Self::Double(_) => DataType::Double,
            Self::Boolean(_) => DataType::Boolean,
            Self::Timestamp(_) => DataType::Timestamp,
            Self::Interval(_) => DataType::Interval,
        }
    }
}

/// What stands between two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the operators")]
pub enum BinaryOp {
    /// Of a timestamp and an interval, it is a timestamp; null outside [`TIMES`](crate::time::TIMES).
    Add,
    /// Of two timestamps, it is an interval.
    Subtract,
    Multiply,
    /// Always a `DOUBLE`; division by zero is null.
    Divide,
    /// The remainder with the sign of the dividend; by zero it is null.
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    /// `x || y`: null if either is.
    Concat,
}

impl BinaryOp {
    /// The comparison that says the same of operands that have changed places.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            other => other,
        }
    }
}

/// The scalar functions. Patterns, paths and separators are constants, checked when the project is loaded.
#[derive(Debug, Clone, PartialEq)]
pub enum Function {
    /// `lower(text)`.
    Lower,
    /// `upper(text)`.
    Upper,
    /// `trim(text)`, of spaces.
    Trim,
    /// `length(text)` in characters.
    Length,
    /// `substring(text, from[, length])`, counted in characters from 1; `from` is 1 or more.
    Substring {
        /// The first character, counted from 1.
        from: i64,
        /// How many characters; to the end if none.
        length: Option<i64>,
    },
    /// `replace(text, what, with)`, every occurrence, literally.
    Replace {
        /// The text looked for.
        what: String,
        /// What stands in its place.
        with: String,
    },
    /// `starts_with(text, prefix)`.
    StartsWith(String),
    /// `ends_with(text, suffix)`.
    EndsWith(String),
    /// `contains(text, part)`.
    Contains(String),
    /// `regexp_matches(text, pattern)`: whether the pattern occurs.
    RegexpMatches(String),
    /// `regexp_extract(text, pattern[, group])`: the first match; the empty text if there is none.
    RegexpExtract {
        /// The pattern.
        pattern: String,
        /// Which group; 0 is the whole match.
        group: usize,
    },
    /// `regexp_extract_all(text, pattern)`: every match, as a list.
    RegexpExtractAll(String),
    /// `regexp_replace(text, pattern, with[, 'g'])`: the first match, or every one.
    RegexpReplace {
        /// The pattern.
        pattern: String,
        /// What stands in a match's place.
        with: Vec<Part>,
        /// Every match.
        all: bool,
    },
    /// `string_split(text, separator)`, as a list.
    StringSplit(String),
    /// `json ->> path` and `json_extract_string(json, path)`: a text or number as text, else as JSON; null if absent.
    JsonText(String),
    /// `coalesce(x, …)`: the first that is not null.
    Coalesce,
    /// `nullif(x, y)`: null if they are equal, else x.
    NullIf,
    /// `abs(x)`.
    Abs,
    /// `round(x)` of a `DOUBLE` to a whole number, half away from zero.
    Round,
    /// `floor(x)` of a `DOUBLE`.
    Floor,
    /// `ceil(x)` of a `DOUBLE`.
    Ceil,
    /// `date_trunc(unit, timestamp)` in UTC.
    DateTrunc(TimeUnit),
    /// `extract(unit FROM timestamp)` in UTC, a `BIGINT`.
    Extract(TimeUnit),
}

/// A part of what `regexp_replace` puts in a match's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A text as it is.
    Text(String),
    /// What a group of the pattern has matched; 0 is the whole match.
    Group(usize),
}

/// A part of a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the units")]
pub enum TimeUnit {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

impl Expr {
    /// The type of its value.
    pub fn data_type(&self) -> DataType {
        use Function as F;
        match self {
            Self::Column(_, data_type) | Self::Cast(_, data_type) => data_type.clone(),
            Self::Literal(literal) => literal.data_type(),
            Self::Negate(x) => x.data_type(),
            Self::Not(_) | Self::IsNull(_) | Self::In(..) | Self::Like { .. } => DataType::Boolean,
            Self::Binary(left, op, right) => match op {
                BinaryOp::Subtract if right.data_type() == DataType::Timestamp => DataType::Interval,
                BinaryOp::Add | BinaryOp::Subtract | BinaryOp::Multiply | BinaryOp::Modulo => left.data_type(),
                BinaryOp::Divide => DataType::Double,
                BinaryOp::Concat => DataType::Text,
                _ => DataType::Boolean,
            },
            Self::Case { branches, .. } => branches[0].1.data_type(),
            Self::Call(function, arguments) => match function {
                F::Lower | F::Upper | F::Trim | F::Substring { .. } | F::Replace { .. } => DataType::Text,
                F::RegexpExtract { .. } | F::RegexpReplace { .. } | F::JsonText(_) => DataType::Text,
                F::RegexpExtractAll(_) | F::StringSplit(_) => DataType::List(Box::new(DataType::Text)),
                F::StartsWith(_) | F::EndsWith(_) | F::Contains(_) | F::RegexpMatches(_) => DataType::Boolean,
                F::Length | F::Extract(_) => DataType::BigInt,
                F::Round | F::Floor | F::Ceil => DataType::Double,
                F::DateTrunc(_) => DataType::Timestamp,
                F::Coalesce | F::NullIf | F::Abs => arguments[0].data_type(),
            },
        }
    }

    /// The parts of a condition that all have to hold.
    pub fn conjuncts(&self) -> Vec<&Self> {
        match self {
            Self::Binary(left, BinaryOp::And, right) => [left.conjuncts(), right.conjuncts()].concat(),
            other => vec![other],
        }
    }

    /// Whether the expression reads the column.
    pub fn reads(&self, column: &str) -> bool {
        match self {
            Self::Column(name, _) => name == column,
            Self::Literal(_) => false,
            Self::Not(x) | Self::Negate(x) | Self::IsNull(x) | Self::Cast(x, _) => x.reads(column),
            Self::Like { text, .. } => text.reads(column),
            Self::Binary(left, _, right) => left.reads(column) || right.reads(column),
            Self::In(x, list) => x.reads(column) || list.iter().any(|item| item.reads(column)),
            Self::Case { branches, otherwise } => {
                branches.iter().any(|(when, then)| when.reads(column) || then.reads(column))
                    || otherwise.as_ref().is_some_and(|x| x.reads(column))
            }
            Self::Call(_, arguments) => arguments.iter().any(|argument| argument.reads(column)),
        }
    }
}
