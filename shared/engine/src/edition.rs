//! Editions of a table: by which definition a record is read.
//!
//! A record is read by the definition that was in force when it was archived. So a definition begins, in each partition, at an
//! offset: at the one at which the archive ended when the definition came, or at 0 if nothing was archived by then. Of a
//! record below its beginning the definition has the columns that the record's own definition had under the same name and with
//! the same type. All others are null there, whatever the record holds, `NOT NULL` or not; and which records are rows at all
//! was decided by the record's own definition.
//!
//! The archive keeps the list of editions in its commits. The batch layer reads rows that were archived by them; the speed layer,
//! which reads the log, decodes by them. So both have the same rows. A list grows where a definition is declared, and what was
//! read before stays as it was; a rebuild of the archive makes another list, and is counted ([`Reading`]).
//!
//! | the definition …                      | below its beginning                                                       |
//! |---------------------------------------|---------------------------------------------------------------------------|
//! | gains a column                        | it is null                                                                |
//! | gives a column another type           | it is null; the archive keeps the old values in the old column            |
//! | gives a column its former type again  | it has the values that were read with that type                           |
//! | makes a column `NOT NULL`             | it is null where it was                                                   |
//! | loses a column                        | the archive keeps its values                                              |
//! | gains a column again that it had      | it has the values of then, and is null for as long as it wasn't there     |
//! | has another column as its event time  | is refused: the archive's files are by event time                         |
//! | has another primary key, or none      | is refused: what deletes a row, and which one, was decided by the key     |

use anabranch_log::position::{Offset, Partition, Positions};
use anabranch_plan::schema::{Column, DataType, Format, Table};
use anabranch_plan::schema::{ColumnType, Layout};
use anabranch_plan::time::Micros;
use serde::{Deserialize, Serialize};

/// A definition of a table, as far as it says how records are read, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edition {
    /// Where it begins, by partition; at 0 in those that aren't named.
    pub begins: Positions,
    /// The columns.
    pub columns: Vec<StoredColumn>,
    /// How records are written.
    pub format: Format,
    /// The column that is the event time.
    pub event_time: String,
    /// How far ahead of the clock an event time may be, if there is a limit.
    pub max_future: Option<Micros>,
    /// How far behind the record's time an event time may be, if there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_past: Option<Micros>,
    /// The column that holds each record's key.
    pub key: Option<String>,
    /// The column that holds each record's headers.
    pub headers: Option<String>,
    /// The columns of its primary key, if it is a changelog.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub primary_key: Vec<String>,
}

/// A column of a definition, and of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredColumn {
    /// Its name in the definition.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether an event may lack it.
    pub nullable: bool,
    /// Its name in the archive: another one where a column of that name has another type there.
    pub stored: String,
}

/// A definition that an archive can't go on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its {what} is {new} now, but its archive is by {old}; `anabranch archive rebuild {table}` archives anew what the log \
     still holds, or give the table another name, and so an archive of its own"
)]
pub struct OtherBasis {
    /// The table.
    pub table: String,
    /// Its event time, or its primary key.
    pub what: &'static str,
    /// That of what is archived.
    pub old: String,
    /// That of the definition.
    pub new: String,
}

/// The editions of a table, oldest first. The newest is the definition in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Editions(Vec<Edition>);

/// How a table's records are read, by what its archive says. The fields are those of the archive's note.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// By which definitions.
    pub editions: Editions,
    /// How often the archive was rebuilt. What was computed before the last time can't be added to what is read since.
    pub rebuilds: u64,
}

impl Edition {
    /// The edition that a table's definition is.
    fn of(table: &Table, begins: Positions, stored: impl Fn(&Column) -> String) -> Self {
        let column = |column: &Column| StoredColumn {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            nullable: column.nullable,
            stored: stored(column),
        };
        let name = |column: usize| table.columns[column].name.clone();
        Self {
            begins,
            columns: table.columns.iter().map(column).collect(),
            format: table.format,
            event_time: name(table.event_time),
            max_future: table.max_future,
            max_past: table.max_past,
            key: table.key.map(name),
            headers: table.headers.map(name),
            primary_key: table.primary_key.iter().copied().map(name).collect(),
        }
    }

    /// Where it begins in a partition.
    pub fn begin(&self, partition: Partition) -> Offset {
        self.begins.get(&partition).copied().unwrap_or(0)
    }

    /// Whether records are read by it as by a table's definition. The order of the columns makes no difference.
    pub fn reads_as(&self, table: &Table) -> bool {
        let sorted = |mut edition: Self| {
            edition.columns.sort_by(|a, b| a.name.cmp(&b.name));
            edition.columns.iter_mut().for_each(|column| column.stored.clear());
            Self { begins: Positions::new(), ..edition }
        };
        sorted(self.clone()) == sorted(Self::of(table, Positions::new(), |_| String::new()))
    }

    /// That a definition has another event time or primary key, if it has.
    pub fn other_basis(&self, table: &Table) -> Option<OtherBasis> {
        let new = Self::of(table, Positions::new(), |_| String::new());
        let bases =
            [("event time", self.named_time(), new.named_time()), ("primary key", self.named_key(), new.named_key())];
        let (what, old, new) = bases.into_iter().find(|(_, old, new)| old != new)?;
        Some(OtherBasis { table: table.name.clone(), what, old, new })
    }

    fn named_time(&self) -> String {
        format!("`{}`", self.event_time)
    }

    /// The primary key with its types: a key's values of another type would be null.
    fn named_key(&self) -> String {
        let data_type = |name: &String| self.columns.iter().find(|column| column.name == *name).map(|it| &it.data_type);
        let named = |name: &String| data_type(name).map(|data_type| format!("`{name}` {data_type}"));
        let key: Vec<String> = self.primary_key.iter().filter_map(named).collect();
        if key.is_empty() { "none".to_owned() } else { key.join(", ") }
    }

    /// The table as it was defined then.
    pub fn table(&self, table: &Table) -> Table {
        let column = |column: &StoredColumn| Column {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            nullable: column.nullable,
        };
        let place = |name: &String| self.columns.iter().position(|column| column.name == *name);
        Table {
            columns: self.columns.iter().map(column).collect(),
            format: self.format,
            event_time: place(&self.event_time).unwrap_or(0),
            max_future: self.max_future,
            max_past: self.max_past,
            key: self.key.as_ref().and_then(place),
            headers: self.headers.as_ref().and_then(place),
            primary_key: self.primary_key.iter().filter_map(place).collect(),
            ..table.clone()
        }
    }

    /// Its column with a name and a type.
    pub fn column(&self, name: &str, data_type: &DataType) -> Option<&StoredColumn> {
        self.columns.iter().find(|column| column.name == name && column.data_type == *data_type)
    }

    /// How a definition differs from it, a line for each column and option.
    pub fn differences(&self, table: &Table) -> Vec<String> {
        let mut lines = Vec::new();
        for Column { name, data_type, nullable } in &table.columns {
            match self.columns.iter().find(|column| column.name == *name) {
                None => lines.push(format!("column `{name}` {data_type} is new: it is null in them")),
                Some(old) if old.data_type != *data_type => lines.push(format!(
                    "column `{name}` is {data_type} and was {}: it is null in them, and the archive keeps the old values",
                    old.data_type
                )),
                Some(old) if old.nullable && !nullable => {
                    lines.push(format!("column `{name}` is NOT NULL now: it stays null in them where it is"));
                }
                Some(old) if !old.nullable && *nullable => lines.push(format!("column `{name}` may be null now")),
                Some(_) => {}
            }
        }
        let is_gone = |old: &&StoredColumn| !table.columns.iter().any(|column| column.name == old.name);
        for old in self.columns.iter().filter(is_gone) {
            lines.push(format!("column `{}` is gone: the archive keeps its values, and no view reads them", old.name));
        }
        let new = Self::of(table, Positions::new(), |_| String::new());
        for (option, differs) in [
            ("format", self.format != new.format),
            ("event_time", self.event_time != new.event_time),
            ("max_future", self.max_future != new.max_future),
            ("max_past", self.max_past != new.max_past),
            ("key", self.key != new.key),
            ("headers", self.headers != new.headers),
        ] {
            if differs {
                lines.push(format!("option `{option}` is another: they were read by the old one"));
            }
        }
        lines
    }
}

impl Editions {
    /// The editions of what was archived before there were any: one, which has the columns that the archive has. What the
    /// archive doesn't tell is taken from the definition.
    pub fn of_layout(layout: &Layout, table: &Table, own: &[&str]) -> Self {
        let stored = layout
            .columns
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()) && !layout.partition_by.contains(name));
        let column = |(name, stored): &(String, ColumnType)| {
            let defined = table.columns.iter().find(|c| c.name == *name && ColumnType::from(&c.data_type) == *stored);
            let data_type = match stored {
                ColumnType::Integer | ColumnType::BigInt => DataType::BigInt,
                ColumnType::Double => DataType::Double,
                ColumnType::Boolean => DataType::Boolean,
                ColumnType::Timestamp => DataType::Timestamp,
                ColumnType::Text | ColumnType::Date => DataType::Text,
            };
            StoredColumn {
                name: name.clone(),
                data_type: defined.map_or(data_type, |column| column.data_type.clone()),
                nullable: defined.is_none_or(|column| column.nullable),
                stored: name.clone(),
            }
        };
        let columns: Vec<StoredColumn> = stored.map(column).collect();
        let is_there = |name: &String| columns.iter().any(|column| column.name == *name);
        let Edition { begins, format, event_time, max_future, max_past, key, headers, .. } =
            Edition::of(table, Positions::new(), |_| String::new());
        let event_time = if is_there(&event_time) { event_time } else { String::new() };
        let (key, headers) = (key.filter(is_there), headers.filter(is_there));
        // There were no changelogs then.
        let primary_key = Vec::new();
        Self(vec![Edition { begins, columns, format, event_time, max_future, max_past, key, headers, primary_key }])
    }

    /// The definition in force.
    pub fn newest(&self) -> Option<&Edition> {
        self.0.last()
    }

    /// Why a process with this definition of the table can't go on: another one is in force.
    pub fn refusal(&self, table: &Table) -> Option<String> {
        let newest = self.newest().filter(|newest| !newest.reads_as(table))?;
        Some(match newest.other_basis(table) {
            Some(error) => error.to_string(),
            None => format!(
                "another process has started with another definition of table `{}`: start this one again with the project as it is",
                table.name
            ),
        })
    }

    /// Those before the newest, oldest first, each with where it ends.
    pub fn earlier(&self) -> impl Iterator<Item = (&Edition, Ends<'_>)> {
        let count = self.0.len().saturating_sub(1);
        (0..count).map(|i| (&self.0[i], Ends(&self.0[i + 1..])))
    }

    /// The name under which the archive has a column; none if it never had it.
    pub fn stored(&self, name: &str, data_type: &DataType) -> Option<&str> {
        self.0.iter().rev().find_map(|edition| edition.column(name, data_type)).map(|column| column.stored.as_str())
    }

    /// Whether state that was folded by the one is what would be folded by the other.
    pub fn folds_as(&self, other: &Self) -> bool {
        self.0.len().max(other.0.len()) < 2 || self == other
    }

    /// What the editions are once a table is defined like this and its archive ends there; none if they stay as they are.
    /// `layout` is that of the archive.
    pub fn declared(&self, table: &Table, ends: &Positions, layout: &Layout) -> Result<Option<Self>, OtherBasis> {
        if self.newest().is_some_and(|newest| newest.reads_as(table)) {
            return Ok(None);
        }
        let mut editions = self.0.clone();
        // Nothing was archived by it: it is as if it had never been.
        editions.pop_if(|newest| ends.iter().all(|(&partition, &end)| newest.begin(partition) >= end));
        if editions.last().is_some_and(|newest| newest.reads_as(table)) {
            return Ok(Some(Self(editions)));
        }
        if let Some(error) = editions.last().and_then(|newest| newest.other_basis(table)) {
            return Err(error);
        }
        let begins = if editions.is_empty() { Positions::new() } else { ends.clone() };
        Ok(Some(Self(editions).with(table, begins, layout)))
    }

    /// What the editions are once all from these offsets on has been archived anew by a table's definition.
    pub fn rebuilt(&self, table: &Table, from: &Positions, layout: &Layout) -> Self {
        let mut kept = self.0.clone();
        let mut i = 0;
        kept.retain(|edition| {
            i += 1;
            let governs = |(&partition, &from): (&Partition, &Offset)| {
                edition.begin(partition) < from.min(Ends(&self.0[i..]).at(partition))
            };
            from.iter().any(governs)
        });
        if kept.last().is_some_and(|newest| newest.reads_as(table)) {
            return Self(kept);
        }
        let begins = if kept.is_empty() { Positions::new() } else { from.clone() };
        Self(kept).with(table, begins, layout)
    }

    /// With one more.
    fn with(mut self, table: &Table, begins: Positions, layout: &Layout) -> Self {
        let mut edition = Edition::of(table, begins, |_| String::new());
        for i in 0..edition.columns.len() {
            let StoredColumn { name, data_type, .. } = &edition.columns[i];
            let stored = self.stored(name, data_type).map(str::to_owned);
            let stored = stored.unwrap_or_else(|| self.free_name(&edition, name, data_type, layout));
            edition.columns[i].stored = stored;
        }
        self.0.push(edition);
        self
    }

    /// A name for a new column: its own one, or one with the type behind it where the archive has another of that name. Other
    /// programs take names for the same that differ in case only.
    fn free_name(&self, edition: &Edition, name: &str, data_type: &DataType, layout: &Layout) -> String {
        let typed = format!("{name}_{}", data_type.to_string().to_lowercase());
        let more = (2..).map(|i| format!("{typed}_{i}"));
        let mut candidates = [name.to_owned(), typed.clone()].into_iter().chain(more);
        let is_free = |candidate: &String| {
            let is_alike = |other: &str| other.to_lowercase() == candidate.to_lowercase();
            let mut used = self.0.iter().chain([edition]).flat_map(|edition| &edition.columns);
            // In a table that is new, and after an edition by which nothing was archived, the archive has an empty column.
            let is_empty = |(other, stored): &(String, ColumnType)| {
                other == candidate && *stored == ColumnType::from(data_type) && !layout.partition_by.contains(other)
            };
            let is_name_of_another = |column: &StoredColumn| column.name != name && is_alike(&column.name);
            !used.any(|column| is_alike(&column.stored))
                && !edition.columns.iter().any(is_name_of_another)
                && !layout.columns.iter().any(|column| is_alike(&column.0) && !is_empty(column))
        };
        candidates.find(is_free).expect("there is no end of them")
    }
}

/// Where an edition ends: where any later one begins.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a>(&'a [Edition]);

impl Ends<'_> {
    /// Where each later edition begins, by partition; in those that aren't named, at 0.
    pub fn begins(self) -> Vec<Positions> {
        self.0.iter().map(|later| later.begins.clone()).collect()
    }

    /// Where it ends in a partition: in front of this offset.
    pub fn at(self, partition: Partition) -> Offset {
        self.0.iter().map(|later| later.begin(partition)).min().unwrap_or(Offset::MAX)
    }
}
