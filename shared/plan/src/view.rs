//! Views as the planner leaves them: checked, typed, ready to be evaluated by any layer.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::aggregation::{Aggregation, Late};
use crate::rows::Rows;
use crate::schema::Table;
use crate::sink::{Emission, Sink};
use crate::time::Micros;

/// Everything that a project defines.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The tables by name.
    pub tables: BTreeMap<String, Arc<Table>>,
    /// The views of rows of which nothing is kept or sent, by name.
    pub rows: BTreeMap<String, Rows>,
    /// The materialized views by name.
    pub views: BTreeMap<String, Arc<View>>,
}

impl Catalog {
    /// The table whose events a topic holds.
    pub fn table_of_topic(&self, topic: &str) -> Option<&Arc<Table>> {
        self.tables.values().find(|table| table.topic == topic)
    }

    /// The views that keep an aggregation, in order of their names.
    pub fn kept(&self) -> impl Iterator<Item = Kept> {
        self.views.values().filter_map(Kept::of)
    }

    /// The names of these.
    pub fn kept_names(&self) -> impl Iterator<Item = &String> + Clone {
        self.views.iter().filter(|(_, view)| matches!(view.end, End::Keep(_))).map(|(name, _)| name)
    }

    /// Those of them that read a table.
    pub fn kept_of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = Kept> {
        self.kept().filter(move |view| view.reads_table(table))
    }

    /// What is read together.
    pub fn units(&self) -> Vec<Unit> {
        let mut units: BTreeMap<Vec<String>, Unit> = BTreeMap::new();
        for view in self.kept() {
            let named = view.tables().into_iter().map(|table| (table.name.clone(), table.clone()));
            let named: BTreeMap<String, Arc<Table>> = named.collect();
            let (names, tables) = named.into_iter().unzip();
            units.entry(names).or_insert_with(|| Unit { tables, views: Vec::new() }).views.push(view);
        }
        units.into_values().collect()
    }

    /// The view of that name, if it keeps an aggregation.
    pub fn kept_view(&self, name: &str) -> Option<Kept> {
        self.views.get(name).and_then(Kept::of)
    }

    /// The views that send their rows on, in order of their names.
    pub fn sent(&self) -> impl Iterator<Item = Sent> {
        self.views.values().filter_map(Sent::of)
    }

    /// Those of them that read a table.
    pub fn sent_of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = Sent> {
        self.sent().filter(move |view| view.reads_table(table))
    }

    /// The views that write their rows to a topic as they change, in order of their names.
    pub fn emitted(&self) -> impl Iterator<Item = (Kept, Emission)> {
        self.kept().filter_map(|view| view.aggregation().emission.clone().map(|emission| (view, emission)))
    }

    /// The topics that views write: each with the view's name and a topic that it reads.
    pub fn written(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.views.values().flat_map(|view| {
            let to = match &view.end {
                End::Send(sink) => [Some(&sink.topic), None],
                End::Keep(aggregation) => {
                    let late = match &aggregation.late {
                        Late::Topic(topic) => Some(topic),
                        Late::Discard | Late::Rejects => None,
                    };
                    [late, aggregation.emission.as_ref().map(|emission| &emission.topic)]
                }
            };
            let each = to.into_iter().flatten().flat_map(|to| {
                let from = view.rows.inputs().into_iter();
                from.map(move |table| (view.id.name.as_str(), table.topic.as_str(), to.as_str()))
            });
            each.collect::<Vec<_>>()
        })
    }
}

/// Tables that are read together, and the views that are made of just these.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The tables, in order of their names.
    pub tables: Vec<Arc<Table>>,
    /// The views that keep an aggregation of their rows.
    pub views: Vec<Kept>,
}

impl Unit {
    /// Whether it reads a table.
    pub fn reads(&self, table: &str) -> bool {
        self.tables.iter().any(|own| own.name == table)
    }

    /// The tables' names.
    pub fn name(&self) -> String {
        self.tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>().join("+")
    }
}

/// Which view: one generation of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId {
    /// Its name.
    pub name: String,
    /// `sha256:…` over the canonical form of the view and of its tables; a change of meaning changes it.
    pub definition: String,
}

/// A materialized view: which rows, and what becomes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Which one it is.
    pub id: ViewId,
    /// The statement as the user wrote it.
    pub sql: String,
    /// Its rows.
    pub rows: Rows,
    /// What becomes of them.
    pub end: End,
}

/// What becomes of a view's rows.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// They are aggregated, and what they make is kept.
    Keep(Box<Aggregation>),
    /// They are written to a topic as they come.
    Send(Sink),
}

impl View {
    /// The tables that it reads.
    pub fn tables(&self) -> Vec<&Arc<Table>> {
        self.rows.tables()
    }

    /// The table among them whose events a topic holds.
    pub fn table_of_topic(&self, topic: &str) -> Option<&Arc<Table>> {
        self.tables().into_iter().find(|table| table.topic == topic)
    }

    /// The table that it reads, or the first of them.
    pub fn table(&self) -> &Arc<Table> {
        self.rows.table()
    }

    /// How far behind the watermark the time of a row may be that comes in time: windows close later by as much.
    pub fn delay(&self) -> Micros {
        match &self.end {
            End::Keep(kept) => kept.time.as_ref().map_or(0, |time| self.rows.delay(time)),
            End::Send(_) => 0,
        }
    }

    /// Whether it reads a table.
    pub fn reads_table(&self, table: &str) -> bool {
        self.rows.inputs().iter().any(|input| input.name == table)
    }

    /// Whether anything of it is computed from a column, or goes by it.
    pub fn reads(&self, column: &str) -> bool {
        self.rows.read(column)
            || matches!(&self.end, End::Keep(kept) if kept.expressions().any(|expr| expr.reads(column)))
    }
}

/// A view that keeps an aggregation.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept(Arc<View>);

impl Kept {
    /// The view, if it is one.
    pub fn of(view: &Arc<View>) -> Option<Self> {
        matches!(view.end, End::Keep(_)).then(|| Self(view.clone()))
    }

    /// What it keeps.
    pub fn aggregation(&self) -> &Aggregation {
        match &self.0.end {
            End::Keep(aggregation) => aggregation,
            End::Send(_) => unreachable!("it was made of a view that keeps one"),
        }
    }

    /// The same rows, of which something else is kept.
    pub fn keeping(&self, aggregation: Aggregation) -> Self {
        Self(Arc::new(View { end: End::Keep(Box::new(aggregation)), ..View::clone(&self.0) }))
    }
}

impl Deref for Kept {
    type Target = Arc<View>;

    fn deref(&self) -> &Arc<View> {
        &self.0
    }
}

/// A view that sends its rows on.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent(Arc<View>);

impl Sent {
    /// The view, if it is one.
    pub fn of(view: &Arc<View>) -> Option<Self> {
        matches!(view.end, End::Send(_)).then(|| Self(view.clone()))
    }

    /// Where to.
    pub fn sink(&self) -> &Sink {
        match &self.0.end {
            End::Send(sink) => sink,
            End::Keep(_) => unreachable!("it was made of a view that sends them"),
        }
    }
}

impl Deref for Sent {
    type Target = Arc<View>;

    fn deref(&self) -> &Arc<View> {
        &self.0
    }
}
