//! Where a view's rows are written.

/// A topic that a view's rows are written to, one JSON object a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sink {
    /// The topic. No two views write one.
    pub topic: String,
    /// What holds of its records after a failure.
    pub delivery: Delivery,
    /// The column whose text is a record's key, which chooses its partition; none keeps the partition of the event.
    pub partition_by: Option<usize>,
}

/// What holds of the records when a process dies, a broker fails or a partition moves on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Each is there once, to readers of committed records.
    #[default]
    ExactlyOnce,
    /// None is lost; some may be there again.
    AtLeastOnce,
    /// None is there twice; some may be lost.
    AtMostOnce,
}

impl Delivery {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::ExactlyOnce, Self::AtLeastOnce, Self::AtMostOnce];

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly_once",
            Self::AtLeastOnce => "at_least_once",
            Self::AtMostOnce => "at_most_once",
        }
    }
}

/// A topic that the rows of an aggregation are written to, one JSON object a record, whose key is that of the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// The topic. No two views write one.
    pub topic: String,
    /// Which rows.
    pub emit: Emit,
}

/// Which rows of an aggregation are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Emit {
    /// Each whenever it has changed; a record without a value, once it is gone.
    #[default]
    Changes,
    /// Those of windows that are closed for good.
    Final,
}

impl Emit {
    /// All of them, the default first.
    pub const ALL: [Self; 2] = [Self::Changes, Self::Final];

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::Final => "final",
        }
    }
}
