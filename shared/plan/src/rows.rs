//! Rows: what a query reads and makes of it, before anything is kept or sent.

use std::sync::Arc;

use crate::expr::Expr;
use crate::schema::{Column, DataType, Table};
use crate::time::Micros;

/// Rows, made of the events of tables. Its shape is that of the SQL.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// The events of a table.
    Scan(Arc<Table>),
    /// Those rows for which the condition is true.
    Filter {
        /// What is filtered.
        rows: Box<Rows>,
        /// A `BOOLEAN`.
        condition: Expr,
    },
    /// `CROSS JOIN UNNEST(list) AS t(column)`: one row for each item of each row's list, none for an item that is null.
    Unnest {
        /// What has the list.
        rows: Box<Rows>,
        /// The list.
        list: Expr,
        /// The name of an item.
        column: String,
    },
    /// Other columns, computed from those of each row.
    Project {
        /// What they are computed from.
        rows: Box<Rows>,
        /// The columns, in the order of the SELECT list.
        fields: Vec<Field>,
    },
    /// `JOIN` of two streams, whose times differ by no more than they may.
    Interval(Box<IntervalJoin>),
    /// `JOIN` with a changelog `FOR SYSTEM_TIME AS OF` the row's time.
    AsOf(Box<AsOfJoin>),
    /// `LAG(…) OVER (PARTITION BY … ORDER BY …)`.
    Lag(Box<Lag>),
}

/// Pairs of rows with equal keys and times near each other.
#[derive(Debug, Clone, PartialEq)]
pub struct IntervalJoin {
    /// The left rows. No column of theirs has the name of one of the right rows.
    pub left: Rows,
    /// The right rows.
    pub right: Rows,
    /// The columns of both sides that are equal. A null equals nothing.
    pub keys: Vec<(String, String)>,
    /// The event time of each side.
    pub times: (String, String),
    /// By how much the right row is later than the left one, from the least to the most; negative if it is earlier.
    pub within: (Micros, Micros),
    /// What else holds of a pair, a `BOOLEAN`.
    pub condition: Option<Expr>,
    /// `LEFT JOIN`: a left row without a partner comes once, with nulls, when none that is in time can come any more.
    pub is_outer: bool,
}

/// Rows with the version of a changelog that held at their time.
#[derive(Debug, Clone, PartialEq)]
pub struct AsOfJoin {
    /// The rows. No column of theirs has the name of one of the changelog's.
    pub rows: Rows,
    /// The changelog.
    pub table: Rows,
    /// The columns of both that are equal: of the changelog, its primary key. A null equals nothing.
    pub keys: Vec<(String, String)>,
    /// The event time of each.
    pub times: (String, String),
    /// What else holds, a `BOOLEAN`.
    pub condition: Option<Expr>,
    /// `LEFT JOIN`: a row without a version comes with nulls.
    pub is_outer: bool,
}

/// Rows with columns of rows that came before them, in order of time, and then of partition and offset.
#[derive(Debug, Clone, PartialEq)]
pub struct Lag {
    /// The rows.
    pub rows: Rows,
    /// The columns that are equal in rows which see each other. Nulls are equal here.
    pub keys: Vec<String>,
    /// The event time that they are ordered by.
    pub time: String,
    /// The columns that are added.
    pub columns: Vec<Lagged>,
}

/// `LAG(of, back, default)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Lagged {
    /// Its name.
    pub name: String,
    /// The column that is looked up.
    pub of: String,
    /// How many rows before, 1 or more.
    pub back: usize,
    /// The value where there is no such row, a constant; null if none.
    pub default: Option<Expr>,
}

/// What an operator keeps of rows, so that others can be joined with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// The tables that they are made of.
    pub tables: Vec<String>,
    /// How long each row is kept once the horizon has come to its time; none if until newer ones have its key.
    pub time: Option<Micros>,
    /// How many of each key are kept beyond that.
    pub newest: usize,
}

/// A computed column.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub expr: Expr,
}

/// Those of rows for which a condition holds, if there is one.
pub(crate) fn filtered(rows: Rows, condition: Option<Expr>) -> Rows {
    match condition {
        Some(condition) => Rows::Filter { rows: Box::new(rows), condition },
        None => rows,
    }
}

/// Whether a join goes by a column.
fn joins_by(keys: &[(String, String)], times: &(String, String), condition: Option<&Expr>, name: &str) -> bool {
    let pairs = keys.iter().chain([times]);
    pairs.flat_map(|(left, right)| [left, right]).any(|column| column == name)
        || condition.is_some_and(|condition| condition.reads(name))
}

impl Rows {
    /// The rows that these are made of, from left to right; none if they are a table's events.
    pub fn of(&self) -> Vec<&Self> {
        match self {
            Self::Scan(_) => Vec::new(),
            Self::Filter { rows, .. } | Self::Unnest { rows, .. } | Self::Project { rows, .. } => vec![rows],
            Self::Interval(join) => vec![&join.left, &join.right],
            Self::AsOf(join) => vec![&join.rows, &join.table],
            Self::Lag(lag) => vec![&lag.rows],
        }
    }

    /// The tables that are read, from left to right. One that is joined with itself is there twice.
    pub fn inputs(&self) -> Vec<&Arc<Table>> {
        match self {
            Self::Scan(table) => vec![table],
            other => other.of().into_iter().flat_map(Self::inputs).collect(),
        }
    }

    /// Each of them once.
    pub fn tables(&self) -> Vec<&Arc<Table>> {
        let mut tables: Vec<&Arc<Table>> = Vec::new();
        for table in self.inputs() {
            if tables.iter().all(|other| other.name != table.name) {
                tables.push(table);
            }
        }
        tables
    }

    /// The first of them.
    pub fn table(&self) -> &Arc<Table> {
        match self {
            Self::Scan(table) => table,
            Self::Filter { rows, .. } | Self::Unnest { rows, .. } | Self::Project { rows, .. } => rows.table(),
            Self::Interval(join) => join.left.table(),
            Self::AsOf(join) => join.rows.table(),
            Self::Lag(lag) => lag.rows.table(),
        }
    }

    /// How far behind the horizon an event time of a row may be that comes in time. A pair comes with its later record, so its earlier
    /// time is behind by as much as its times may differ.
    pub fn delay(&self, time: &str) -> Micros {
        match self {
            Self::Scan(_) => 0,
            Self::Filter { rows, .. } | Self::Unnest { rows, .. } => rows.delay(time),
            Self::Project { rows, fields } => {
                match fields.iter().find(|field| field.name == time).map(|field| &field.expr) {
                    Some(Expr::Column(name, _)) => rows.delay(name),
                    _ => 0,
                }
            }
            Self::Interval(join) => {
                let (left, right) = (join.left.delay(&join.times.0), join.right.delay(&join.times.1));
                let (from, to) = join.within;
                match join.left.has(time) {
                    true => left.max(right.saturating_add(to)).saturating_sub(join.left.later(&join.times.0, time)),
                    false => right.max(left.saturating_sub(from)).saturating_sub(join.right.later(&join.times.1, time)),
                }
            }
            Self::AsOf(join) => {
                let delay = join.rows.delay(&join.times.0).max(join.table.delay(&join.times.1));
                delay.saturating_sub(join.rows.later(&join.times.0, time))
            }
            Self::Lag(lag) => lag.rows.delay(&lag.time).saturating_sub(lag.rows.later(&lag.time, time)),
        }
    }

    /// By how much one event time of a row is later than another at least; negative if it may be earlier.
    fn later(&self, than: &str, time: &str) -> Micros {
        match self {
            _ if than == time => 0,
            Self::Scan(_) => 0,
            Self::Filter { rows, .. } | Self::Unnest { rows, .. } => rows.later(than, time),
            Self::Project { fields, rows } => {
                let named = |name: &str| fields.iter().find(|field| field.name == name).map(|field| &field.expr);
                match (named(than), named(time)) {
                    (Some(Expr::Column(than, _)), Some(Expr::Column(time, _))) => rows.later(than, time),
                    _ => 0,
                }
            }
            Self::Interval(join) => {
                let IntervalJoin { left, right, times, within: (from, to), .. } = &**join;
                match (left.has(than), left.has(time)) {
                    (true, true) => left.later(than, time),
                    (false, false) => right.later(than, time),
                    (true, false) => left.later(than, &times.0) + from + right.later(&times.1, time),
                    (false, true) => right.later(than, &times.1) - to + left.later(&times.0, time),
                }
            }
            Self::AsOf(join) => join.rows.later(than, time),
            Self::Lag(lag) => lag.rows.later(than, time),
        }
    }

    /// By how much the event times of a row are later than one of them: from the least to the most.
    pub fn spread(&self, time: &str) -> (Micros, Micros) {
        let times = self.event_times();
        let each = times.iter().map(|other| (self.later(time, other), self.later(other, time).saturating_neg()));
        each.fold((0, 0), |(least, most), (from, to)| (least.min(from), most.max(to)))
    }

    /// Its columns as they are, for others to be computed beside them.
    pub(crate) fn fields(&self) -> Vec<Field> {
        let field =
            |Column { name, data_type, .. }| Field { name: String::clone(&name), expr: Expr::Column(name, data_type) };
        self.schema().into_iter().map(field).collect()
    }

    /// Whether an expression reads any of its columns.
    pub(crate) fn is_read_by(&self, expr: &Expr) -> bool {
        self.schema().iter().any(|column| expr.reads(&column.name))
    }

    /// Whether any of them say that another one didn't come.
    pub fn tells_absence(&self) -> bool {
        matches!(self, Self::Interval(join) if join.is_outer) || self.of().into_iter().any(Self::tells_absence)
    }

    fn has(&self, name: &str) -> bool {
        self.schema().iter().any(|column| column.name == name)
    }

    /// The columns of a row.
    pub fn schema(&self) -> Vec<Column> {
        match self {
            Self::Scan(table) => table.columns.clone(),
            Self::Filter { rows, .. } => rows.schema(),
            Self::Unnest { rows, list, column } => {
                let data_type = match list.data_type() {
                    DataType::List(item) => *item,
                    other => other,
                };
                let item = Column { name: column.clone(), data_type, nullable: false };
                rows.schema().into_iter().filter(|other| other.name != *column).chain([item]).collect()
            }
            Self::Project { fields, .. } => {
                let column = |Field { name, expr }: &Field| Column {
                    name: name.clone(),
                    data_type: expr.data_type(),
                    nullable: true,
                };
                fields.iter().map(column).collect()
            }
            Self::Interval(join) => [join.left.schema(), join.right.schema()].concat(),
            Self::AsOf(join) => [join.rows.schema(), join.table.schema()].concat(),
            Self::Lag(lag) => {
                let mut columns = lag.rows.schema();
                for Lagged { name, of, .. } in &lag.columns {
                    let of = columns.iter().find(|column| column.name == *of).cloned();
                    columns.extend(of.map(|of| Column { name: name.clone(), nullable: true, ..of }));
                }
                columns
            }
        }
    }

    /// The columns that are an event's time: it comes unchanged from a table's.
    pub fn event_times(&self) -> Vec<String> {
        match self {
            Self::Scan(table) => vec![table.event_time_column().name.clone()],
            Self::Filter { rows, .. } => rows.event_times(),
            Self::Unnest { rows, column, .. } => rows.event_times().into_iter().filter(|time| time != column).collect(),
            Self::Project { rows, fields } => {
                let times = rows.event_times();
                let is_time = |field: &&Field| matches!(&field.expr, Expr::Column(name, _) if times.contains(name));
                fields.iter().filter(is_time).map(|field| field.name.clone()).collect()
            }
            Self::Interval(join) if !join.is_outer => [join.left.event_times(), join.right.event_times()].concat(),
            // The other side's may be null. A version's time is that of its change, long before the row's.
            Self::Interval(join) => join.left.event_times(),
            Self::AsOf(join) => join.rows.event_times(),
            Self::Lag(lag) => lag.rows.event_times(),
        }
    }

    /// The same rows with no more computed columns than are needed, by their names.
    pub fn keeping(self, is_needed: &dyn Fn(&str) -> bool) -> Self {
        match self {
            Self::Scan(table) => Self::Scan(table),
            Self::Filter { rows, condition } => {
                let rows = rows.keeping(&|name| is_needed(name) || condition.reads(name));
                Self::Filter { rows: Box::new(rows), condition }
            }
            Self::Unnest { rows, list, column } => {
                let rows = rows.keeping(&|name| (name != column && is_needed(name)) || list.reads(name));
                Self::Unnest { rows: Box::new(rows), list, column }
            }
            Self::Project { rows, mut fields } => {
                // Rows have one column at least, or they couldn't be counted.
                let first = fields.iter().position(|field| is_needed(&field.name)).unwrap_or(0);
                let mut at = 0..;
                fields.retain(|field| at.next() == Some(first) || is_needed(&field.name));
                let rows = rows.keeping(&|name| fields.iter().any(|field| field.expr.reads(name)));
                Self::Project { rows: Box::new(rows), fields }
            }
            Self::Interval(join) => {
                let IntervalJoin { left, right, keys, times, within, condition, is_outer } = *join;
                // No name is one of both sides.
                let reads = |name: &str| is_needed(name) || joins_by(&keys, &times, condition.as_ref(), name);
                let (left, right) = (left.keeping(&reads), right.keeping(&reads));
                Self::Interval(Box::new(IntervalJoin { left, right, keys, times, within, condition, is_outer }))
            }
            Self::AsOf(join) => {
                let AsOfJoin { rows, table, keys, times, condition, is_outer } = *join;
                let reads = |name: &str| is_needed(name) || joins_by(&keys, &times, condition.as_ref(), name);
                let (rows, table) = (rows.keeping(&reads), table.keeping(&reads));
                Self::AsOf(Box::new(AsOfJoin { rows, table, keys, times, condition, is_outer }))
            }
            Self::Lag(lag) => {
                let Lag { rows, keys, time, mut columns } = *lag;
                columns.retain(|column| is_needed(&column.name));
                let reads = |name: &str| {
                    is_needed(name)
                        || name == time
                        || keys.iter().any(|key| key == name)
                        || columns.iter().any(|column| column.of == name)
                };
                let rows = rows.keeping(&reads);
                Self::Lag(Box::new(Lag { rows, keys, time, columns }))
            }
        }
    }

    /// Whether several rows may be made of one record.
    pub fn unnests(&self) -> bool {
        matches!(self, Self::Unnest { .. }) || self.of().into_iter().any(Self::unnests)
    }

    /// Whether their rows are made of several records, so that operators keep some.
    pub fn looks_across(&self) -> bool {
        self.joins_or_lags() || self.current().is_some()
    }

    /// What operators keep of them, those below among it.
    pub fn retained(&self) -> Vec<Retained> {
        let names = |rows: &Self| rows.tables().into_iter().map(|table| table.name.clone()).collect();
        let timed = |rows: &Self, time: Micros| Retained { tables: names(rows), time: Some(time.max(0)), newest: 0 };
        let newest = |rows: &Self, newest: usize| Retained { tables: names(rows), time: None, newest };
        let below = match self {
            // Of the changelog the versions are kept, whatever is said of its rows.
            Self::AsOf(join) => vec![&join.rows],
            other => other.of(),
        };
        let mut all: Vec<Retained> = below.into_iter().flat_map(Self::retained).collect();
        match self {
            Self::Interval(join) => {
                let (from, to) = join.within;
                all.push(timed(&join.left, to.saturating_add(join.right.delay(&join.times.1))));
                all.push(timed(&join.right, join.left.delay(&join.times.0).saturating_sub(from)));
            }
            Self::AsOf(join) => {
                all.push(timed(&join.rows, join.table.delay(&join.times.1)));
                all.push(newest(&join.table, 1));
            }
            Self::Lag(lag) => {
                all.push(timed(&lag.rows, lag.rows.delay(&lag.time)));
                all.push(newest(&lag.rows, lag.columns.iter().map(|column| column.back).max().unwrap_or(1)));
            }
            Self::Scan(table) if table.is_changelog() => all.push(newest(self, 1)),
            _ => {}
        }
        all
    }

    /// Whether they are joined, or look back.
    pub fn joins_or_lags(&self) -> bool {
        matches!(self, Self::Interval(_) | Self::AsOf(_) | Self::Lag(_))
            || self.of().into_iter().any(Self::joins_or_lags)
    }

    /// The columns that tell current rows of a changelog from each other, if they are all there, and each row is of one of them.
    pub fn primary_key(&self) -> Option<Vec<String>> {
        match self {
            Self::Scan(table) if table.is_changelog() => {
                Some(table.primary_key.iter().map(|&column| table.columns[column].name.clone()).collect())
            }
            Self::Filter { rows, .. } => rows.primary_key(),
            Self::Project { rows, fields } => {
                let named = |key: &String| {
                    let is_it = |field: &&Field| matches!(&field.expr, Expr::Column(name, _) if name == key);
                    fields.iter().find(is_it).map(|field| field.name.clone())
                };
                rows.primary_key()?.iter().map(named).collect()
            }
            _ => None,
        }
    }

    /// The changelog whose rows are read as they are now, if there is one: not as of another row's time.
    pub fn current(&self) -> Option<&Arc<Table>> {
        match self {
            Self::Scan(table) => Some(table).filter(|table| table.is_changelog()),
            Self::AsOf(join) => join.rows.current(),
            other => other.of().into_iter().find_map(Self::current),
        }
    }

    /// Whether anything is computed from a column of this name, or goes by it.
    pub fn read(&self, name: &str) -> bool {
        self.expressions().into_iter().any(|expr| expr.reads(name)) || self.go_by(name)
    }

    /// Whether rows are found, or told from each other, by a column of this name.
    fn go_by(&self, name: &str) -> bool {
        let own = match self {
            Self::Scan(table) => table.primary_key.iter().any(|&column| table.columns[column].name == name),
            Self::Interval(join) => joins_by(&join.keys, &join.times, None, name),
            Self::AsOf(join) => joins_by(&join.keys, &join.times, None, name),
            Self::Lag(lag) => {
                let Lag { keys, time, columns, .. } = &**lag;
                time == name || keys.iter().chain(columns.iter().map(|column| &column.of)).any(|by| by == name)
            }
            Self::Filter { .. } | Self::Unnest { .. } | Self::Project { .. } => false,
        };
        own || self.of().into_iter().any(|rows| rows.go_by(name))
    }

    /// The expressions over rows that they are made of, those of the rows below among them.
    pub fn expressions(&self) -> Vec<&Expr> {
        let mut all: Vec<&Expr> = self.of().into_iter().flat_map(Self::expressions).collect();
        match self {
            Self::Scan(_) | Self::Lag(_) => {}
            Self::Interval(join) => all.extend(&join.condition),
            Self::AsOf(join) => all.extend(&join.condition),
            Self::Filter { condition, .. } => all.push(condition),
            Self::Unnest { list, .. } => all.push(list),
            Self::Project { fields, .. } => all.extend(fields.iter().map(|field| &field.expr)),
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql;

    #[test]
    fn an_event_time_is_one_as_long_as_it_is_unchanged() {
        let text = "CREATE TABLE t (a TEXT, b TIMESTAMP, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
            CREATE MATERIALIZED VIEW v WITH (sink = 'kafka') AS
            SELECT ts AS at, date_trunc('day', ts) AS day, b, w FROM t CROSS JOIN UNNEST(string_split(a, ' ')) AS x(w) WHERE a <> '';";
        let catalog = sql::plan(&[("v.sql".to_owned(), text.to_owned())]).unwrap_or_else(|errors| panic!("{errors:?}"));
        let rows = &catalog.views["v"].rows;
        assert_eq!(rows.event_times(), ["at"]);
        let schema: Vec<_> = rows.schema().into_iter().map(|column| (column.name, column.data_type)).collect();
        let named = |name: &str, data_type| (name.to_owned(), data_type);
        let times = ["at", "day", "b"].map(|name| named(name, DataType::Timestamp));
        assert_eq!(schema, [times.to_vec(), vec![named("w", DataType::Text)]].concat());
        assert_eq!(rows.inputs(), [&catalog.tables["t"]]);
        let below: Vec<String> = rows.of()[0].schema().into_iter().map(|column| column.name).collect();
        assert_eq!(below, ["a", "b", "ts", "w"]);
        assert_eq!(rows.expressions().len(), 6);
    }
}
