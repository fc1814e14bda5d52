//! Rows: what a query reads and makes of it, before anything is kept or sent.

use std::sync::Arc;

use crate::expr::Expr;
use crate::schema::{Column, DataType, Table};

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
}

/// A computed column.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub expr: Expr,
}

impl Rows {
    /// The rows that these are made of; none if they are a table's events.
    pub fn of(&self) -> Option<&Self> {
        match self {
            Self::Scan(_) => None,
            Self::Filter { rows, .. } | Self::Unnest { rows, .. } | Self::Project { rows, .. } => Some(rows),
        }
    }

    /// The tables that are read.
    pub fn inputs(&self) -> Vec<&Arc<Table>> {
        vec![self.table()]
    }

    /// The table whose events they are made of.
    pub fn table(&self) -> &Arc<Table> {
        match self {
            Self::Scan(table) => table,
            Self::Filter { rows, .. } | Self::Unnest { rows, .. } | Self::Project { rows, .. } => rows.table(),
        }
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
        }
    }

    /// The expressions over rows that they are made of, those of the rows below among them.
    pub fn expressions(&self) -> Vec<&Expr> {
        let mut all = self.of().map(Self::expressions).unwrap_or_default();
        match self {
            Self::Scan(_) => {}
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
        let below: Vec<String> =
            rows.of().expect("filtered rows").schema().into_iter().map(|column| column.name).collect();
        assert_eq!(below, ["a", "b", "ts", "w"]);
        assert_eq!(rows.expressions().len(), 6);
    }
}
