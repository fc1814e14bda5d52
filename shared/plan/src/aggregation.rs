//! What is kept of a view's rows: in which windows, under which keys, aggregated how.

use crate::expr::Expr;
use crate::schedule::Schedule;
use crate::schema::DataType;
use crate::sink::Emission;
use crate::time::Micros;
use crate::window::Window;

/// An aggregation of rows, with all that says how it is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aggregation {
    /// Its windows; none means all of time.
    pub window: Option<Window>,
    /// The column of rows that windows go by, an event time. None without windows.
    pub time: Option<String>,
    /// The columns that make a row one of its kind within its window.
    pub keys: Vec<Key>,
    /// What is kept of each group.
    pub aggregates: Vec<Aggregate>,
    /// The columns of an answer, in the order of the SELECT list.
    pub columns: Vec<OutputColumn>,
    /// Rows of a window for which this isn't true are left out. Reads the columns of an answer.
    pub having: Option<Expr>,
    /// The order of a window's rows. Ties are broken by the keys, ascending.
    pub order: Vec<OrderBy>,
    /// How many rows of a window are kept.
    pub limit: Option<usize>,
    /// For how long after its end, by the watermark, a window takes late events.
    pub allowed_lateness: Micros,
    /// Where events go that come after that.
    pub late: Late,
    /// The topic that its rows are written to, if they are.
    pub emission: Option<Emission>,
    /// When the batch layer recomputes it.
    pub schedule: Option<Schedule>,
    /// Rows of state that the speed layer keeps exactly; beyond it, it degrades and says so.
    pub max_rows: usize,
    /// Bytes of state that it keeps exactly, if there is a limit of its own.
    pub memory: Option<usize>,
}

impl Aggregation {
    /// The name that a column of an answer has.
    pub fn column_name(&self, column: OutputColumn) -> &str {
        match column {
            OutputColumn::WindowStart => "window_start",
            OutputColumn::WindowEnd => "window_end",
            OutputColumn::Key(i) => &self.keys[i].name,
            OutputColumn::Aggregate(i) => &self.aggregates[i].name,
        }
    }

    /// The expressions over rows that it is made of.
    pub fn expressions(&self) -> impl Iterator<Item = &Expr> {
        let values = self.aggregates.iter().flat_map(|a| [&a.argument, &a.place, &a.filter].into_iter().flatten());
        self.keys.iter().map(|key| &key.expr).chain(values)
    }

    /// The columns that tell a row of an answer from all others: the window's bounds, and the keys.
    pub fn identity(&self) -> Vec<String> {
        let bounds: &[&str] = if self.window.is_some() { &["window_start", "window_end"] } else { &[] };
        bounds.iter().copied().chain(self.keys.iter().map(|key| key.name.as_str())).map(str::to_owned).collect()
    }

    /// The columns that name a row for as long as it is replaced by others: where its window starts, and the keys.
    pub fn row_key(&self) -> Vec<&str> {
        let start = self.window.map(|_| "window_start");
        start.into_iter().chain(self.keys.iter().map(|key| key.name.as_str())).collect()
    }

    /// Whether it is a top-k by a count alone, so that a sketch can stand in for keys beyond the limit.
    pub fn is_top_k_by_count(&self) -> bool {
        let by_count = self.order.first().is_some_and(|by| by.descending && by.column == OutputColumn::Aggregate(0));
        let only = self.aggregates.len() == 1 && self.aggregates[0].function == AggregateFunction::Count;
        self.limit.is_some() && by_count && only && !self.keys.is_empty()
    }
}

/// Where an event goes that came after windows which would have held it were closed for good. Everywhere it is counted, kept
/// in the archive, and part of the next batch version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Late {
    /// Nowhere else.
    #[default]
    Discard,
    /// To the rejects log.
    Rejects,
    /// To this topic. No two views write one.
    Topic(String),
}

/// A grouping column.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Its name in answers.
    pub name: String,
    /// Its value.
    pub expr: Expr,
}

/// An aggregate column.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Its name in answers.
    pub name: String,
    /// What is computed.
    pub function: AggregateFunction,
    /// Of which value; none is `count(*)`.
    pub argument: Option<Expr>,
    /// Where the value is: what `arg_max` and `arg_min` go by.
    pub place: Option<Expr>,
    /// `FILTER (WHERE …)`.
    pub filter: Option<Expr>,
}

/// The aggregate functions.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names are the functions'")]
pub enum AggregateFunction {
    Count,
    Sum,
    Avg,
    Min,
    Max,
    /// Variance or standard deviation.
    Spread(Spread),
    ArgMin,
    ArgMax,
    /// `count(DISTINCT x)`.
    CountDistinct,
    ApproxCountDistinct,
    /// At this share of the values, from 0 to 1.
    ApproxPercentile(f64),
}

/// Which measure of how far values are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Over a sample, so divided by one less than their number.
    pub is_sample: bool,
    /// The standard deviation, not the variance.
    pub is_root: bool,
}

impl AggregateFunction {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Spread(Spread { is_sample: true, is_root: false }) => "var_samp",
            Self::Spread(Spread { is_sample: false, is_root: false }) => "var_pop",
            Self::Spread(Spread { is_sample: true, is_root: true }) => "stddev_samp",
            Self::Spread(Spread { is_sample: false, is_root: true }) => "stddev_pop",
            Self::ArgMin => "arg_min",
            Self::ArgMax => "arg_max",
            Self::CountDistinct => "count",
            Self::ApproxCountDistinct => "approx_count_distinct",
            Self::ApproxPercentile(_) => "approx_percentile",
        }
    }
}

impl AggregateFunction {
    /// Whether it is written with DISTINCT.
    pub fn is_distinct(self) -> bool {
        self == Self::CountDistinct
    }

    /// Whether its values over several keys add up to that over all of them.
    pub fn is_additive(self) -> bool {
        matches!(self, Self::Count | Self::Sum)
    }
}

impl Aggregate {
    /// The type of its value.
    pub fn data_type(&self) -> DataType {
        match (self.function, &self.argument) {
            (AggregateFunction::Count, _) | (_, None) => DataType::BigInt,
            (AggregateFunction::CountDistinct | AggregateFunction::ApproxCountDistinct, _) => DataType::BigInt,
            (AggregateFunction::Avg | AggregateFunction::Spread(_), _) => DataType::Double,
            (AggregateFunction::ApproxPercentile(_), _) => DataType::Double,
            (_, Some(argument)) => argument.data_type(),
        }
    }
}

/// A column of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputColumn {
    /// The window's first instant.
    WindowStart,
    /// The first instant after the window.
    WindowEnd,
    /// The key with this index.
    Key(usize),
    /// The aggregate with this index.
    Aggregate(usize),
}

/// One part of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderBy {
    /// What is compared: a key or an aggregate. Nulls come last.
    pub column: OutputColumn,
    /// Largest first.
    pub descending: bool,
}
