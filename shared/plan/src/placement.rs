//! Whether the partitions of tables can be shared out among processes, so that each makes its part of the rows by itself.
//!
//! A join or a `LAG` finds all that it needs in one partition of each table if the tables are partitioned alike: by the columns that it goes
//! by, and into as many partitions. A changelog that is looked up as of a time is read whole by each process instead.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::expr::Expr;
use crate::rows::{Field, IntervalJoin, Lag, Rows};
use crate::schema::{DataType, Table};
use crate::view::Unit;

impl Rows {
    /// The columns each of which says alone in which partition the records lie that a row is made of.
    fn placed(&self) -> Vec<String> {
        match self {
            Self::Scan(table) => match table.placed_by() {
                // A key of several columns is JSON with their names, and those of doubles can be written in several ways.
                [column] if table.pin.is_none() && is_plain(&table.columns[*column].data_type) => {
                    vec![table.columns[*column].name.clone()]
                }
                _ => Vec::new(),
            },
            Self::Filter { rows, .. } => rows.placed(),
            Self::Unnest { rows, column, .. } => rows.placed().into_iter().filter(|other| other != column).collect(),
            Self::Project { rows, fields } => {
                let placed = rows.placed();
                let is_placed = |field: &&Field| matches!(&field.expr, Expr::Column(name, _) if placed.contains(name));
                fields.iter().filter(is_placed).map(|field| field.name.clone()).collect()
            }
            // Of the other side there may be no record.
            Self::Interval(join) if join.is_outer => join.left.placed(),
            Self::Interval(join) => [join.left.placed(), join.right.placed()].concat(),
            Self::AsOf(join) => join.rows.placed(),
            Self::Lag(lag) => lag.rows.placed(),
        }
    }

    /// Says of the first join or `LAG` that can't be made of one partition of each table alone what would be right.
    fn check_placed(&self) -> Result<(), String> {
        match self {
            Self::Interval(join) if join.placed_by().is_none() => {
                let (left, right) = (join.left.table(), join.right.table());
                let (one, other) = &join.keys[0];
                return Err(format!(
                    "tables `{}` and `{}` aren't partitioned by the columns that they are joined by: {}, {}",
                    left.name,
                    right.name,
                    option(left, one),
                    option(right, other)
                ));
            }
            Self::Lag(lag) if lag.placed_by().is_none() => {
                let table = lag.rows.table();
                let key = lag.keys.first().map_or_else(
                    || "LAG needs a PARTITION BY whose column the table is partitioned by too".to_owned(),
                    |key| option(table, key),
                );
                return Err(format!("table `{}` isn't partitioned by what LAG is partitioned by: {key}", table.name));
            }
            _ => {}
        }
        self.of().into_iter().try_for_each(Self::check_placed)
    }

    /// The changelogs that are looked up as of a time.
    pub fn looked_up(&self) -> Vec<&Arc<Table>> {
        match self {
            Self::AsOf(join) => [join.rows.looked_up(), join.table.inputs()].concat(),
            other => other.of().into_iter().flat_map(Self::looked_up).collect(),
        }
    }

    /// The tables whose records make rows of their own.
    fn followed(&self) -> Vec<&Arc<Table>> {
        match self {
            Self::Scan(table) => vec![table],
            Self::AsOf(join) => join.rows.followed(),
            other => other.of().into_iter().flat_map(Self::followed).collect(),
        }
    }
}

impl IntervalJoin {
    /// The columns of its keys by which both sides are placed in partitions; none if there are no such.
    pub fn placed_by(&self) -> Option<&(String, String)> {
        let (left, right) = (self.left.placed(), self.right.placed());
        let data_type = |rows: &Rows, name: &str| {
            rows.schema().into_iter().find(|column| column.name == name).map(|column| column.data_type)
        };
        self.keys.iter().find(|(one, other)| {
            left.contains(one) && right.contains(other) && data_type(&self.left, one) == data_type(&self.right, other)
        })
    }
}

impl Lag {
    /// The one of its keys by which the rows are placed in partitions; none if there is no such.
    pub fn placed_by(&self) -> Option<&String> {
        let placed = self.rows.placed();
        self.keys.iter().find(|key| placed.contains(key))
    }
}

impl Unit {
    /// The tables whose partitions processes share out among them. The others are changelogs that each of them reads whole.
    pub fn shared(&self) -> Vec<&Arc<Table>> {
        let whole: BTreeSet<&str> = self.views.iter().flat_map(|view| names(view.rows.looked_up())).collect();
        self.tables.iter().filter(|table| !whole.contains(table.name.as_str())).collect()
    }

    /// The one of them whose partitions are given out: whoever has one has that of the others too.
    pub fn first_shared(&self) -> Option<&Arc<Table>> {
        self.shared().into_iter().next()
    }

    /// Their topics.
    pub fn shared_topics(&self) -> BTreeSet<String> {
        self.shared().into_iter().map(|table| table.topic.clone()).collect()
    }

    /// Says why processes can't share it out, and what would be right.
    pub fn check_shared(&self) -> Result<(), String> {
        let shared: BTreeSet<&str> = names(self.shared()).collect();
        for view in &self.views {
            let refused = |why: String| format!("view `{}` can't be shared out among processes: {why}", view.id.name);
            view.rows.check_placed().map_err(refused)?;
            if let Some(table) = view.rows.followed().into_iter().find(|table| !shared.contains(table.name.as_str())) {
                return Err(refused(format!(
                    "changelog `{}` is looked up as of a time, so that each process reads it whole, and its rows are counted as well; \
                     write them to another topic",
                    table.name
                )));
            }
        }
        Ok(())
    }
}

fn names(tables: Vec<&Arc<Table>>) -> impl Iterator<Item = &str> {
    tables.into_iter().map(|table| table.name.as_str())
}

fn is_plain(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Text | DataType::BigInt | DataType::Boolean | DataType::Timestamp)
}

/// The option that would place a table's records by a column of its rows.
fn option(table: &Table, column: &str) -> String {
    let name = column.rsplit('.').next().unwrap_or(column);
    match table.columns.iter().any(|own| own.name == name) {
        true => format!("`{}` needs partition_by = '{name}' without a pin", table.name),
        false => format!("`{}` needs a column that is joined by as it is, and partition_by with its name", table.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "
        CREATE TABLE clicks (u TEXT, url TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partition_by = 'u');
        CREATE TABLE buys (u TEXT, amount BIGINT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts', partition_by = 'u');
        CREATE TABLE dealt (u TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');
        CREATE TABLE users (id TEXT PRIMARY KEY, plan TEXT, ts TIMESTAMP NOT NULL) WITH (event_time = 'ts');";

    fn unit(select: &str) -> Unit {
        let text = format!("{TABLES} CREATE MATERIALIZED VIEW v AS {select};");
        let catalog = crate::sql::plan(&[("v.sql".to_owned(), text)]).expect("a project");
        catalog.units().remove(0)
    }

    #[test]
    fn what_is_partitioned_by_what_it_is_joined_by_is_shared_out() {
        let within = "b.ts BETWEEN a.ts - INTERVAL '1 second' AND a.ts";
        for (select, shared) in [
            ("SELECT url, count(*) AS n FROM clicks GROUP BY url".to_owned(), vec!["clicks"]),
            ("SELECT plan, count(*) AS n FROM users GROUP BY plan".to_owned(), vec!["users"]),
            (format!("SELECT a.url, count(*) AS n FROM clicks a JOIN buys b ON a.u = b.u AND {within} GROUP BY a.url"), vec!["buys", "clicks"]),
            (format!("SELECT a.k, count(*) AS n FROM (SELECT u AS k, ts FROM clicks WHERE url <> '') a LEFT JOIN clicks b ON a.k = b.u AND {within} GROUP BY a.k"), vec!["clicks"]),
            ("SELECT plan, count(*) AS n FROM dealt d JOIN users FOR SYSTEM_TIME AS OF d.ts AS p ON p.id = d.u GROUP BY plan".to_owned(), vec!["dealt"]),
            ("SELECT before, count(*) AS n FROM (SELECT LAG(url) OVER (PARTITION BY url, u ORDER BY ts) AS before FROM clicks) t GROUP BY before".to_owned(), vec!["clicks"]),
        ] {
            let unit = unit(&select);
            assert_eq!(unit.check_shared(), Ok(()), "{select}");
            assert_eq!(names(unit.shared()).collect::<Vec<_>>(), shared, "{select}");
        }
    }

    #[test]
    fn what_isnt_is_refused_with_what_would_be_right() {
        let within = "b.ts BETWEEN a.ts - INTERVAL '1 second' AND a.ts";
        for (select, why) in [
            (
                format!("SELECT count(*) AS n FROM clicks a JOIN dealt b ON a.u = b.u AND {within}"),
                "tables `clicks` and `dealt` aren't partitioned by the columns that they are joined by: `clicks` needs partition_by = 'u' without a pin, `dealt` needs partition_by = 'u' without a pin",
            ),
            (
                format!("SELECT count(*) AS n FROM clicks a JOIN buys b ON lower(a.u) = b.u AND {within}"),
                "`clicks` needs a column that is joined by as it is, and partition_by with its name",
            ),
            (
                "SELECT count(*) AS n FROM (SELECT LAG(url) OVER (PARTITION BY url ORDER BY ts) AS before FROM clicks) t WHERE before = ''".to_owned(),
                "table `clicks` isn't partitioned by what LAG is partitioned by: `clicks` needs partition_by = 'url' without a pin",
            ),
        ] {
            let refused = unit(&select).check_shared().expect_err(&select);
            assert!(refused.starts_with("view `v` can't be shared out among processes: ") && refused.contains(why), "{refused}");
        }
    }
}
