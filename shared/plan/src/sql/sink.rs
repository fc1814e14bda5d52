//! Views with a sink: plain rows, which are written to a topic as they come, and aggregations, whose rows are written as they change.

use std::collections::BTreeSet;

use sqlparser::ast;
use sqlparser::tokenizer::Location;

use super::error::{Fault, list, suggestion};
use super::name;
use super::option::{Given, Options};
use super::query::{self, Asker};
use super::relation::Names;
use super::syntax::Tokens;
use crate::aggregation::Aggregation;
use crate::rows::Rows;
use crate::schema::{Column, Format};
use crate::sink::{Delivery, Emission, Emit, Sink};
use crate::view::Catalog;

/// The options of a view with a sink.
pub(super) const OPTIONS: [&str; 5] = ["sink", "topic", "delivery", "partition_by", "emit"];

/// What a view that aggregates says of the topic that its rows are written to.
pub(super) struct Emitted {
    topic: Given,
    emit: Emit,
    /// Where that is said.
    at: Location,
}

impl Emitted {
    /// Takes what is said of it from the options that are given with `sink`.
    pub(super) fn read(sink: Given, options: &mut Options, view: &str) -> Result<Self, Fault> {
        for (name, why) in [
            ("delivery", "each change of a row is written once"),
            ("partition_by", "its rows are placed by their keys"),
        ] {
            if let Some(given) = options.text(name) {
                let message = format!("option `{name}` doesn't go with a view that aggregates: {why}; leave it out");
                return Err(Fault::new(given.at, message));
            }
        }
        let topic = topic_of(&sink, options, view)?;
        let (emit, at) = match options.text("emit") {
            None => (Emit::default(), sink.at),
            Some(given) => (one_of("emit", &Emit::ALL, Emit::name, &given)?, given.at),
        };
        Ok(Self { topic, emit, at })
    }

    /// The emission of a view that makes this of its rows, if it can be.
    pub(super) fn plan(
        self,
        view: &str,
        rows: &Rows,
        aggregation: &Aggregation,
        catalog: &Catalog,
    ) -> Result<Emission, Fault> {
        if self.emit == Emit::Final && aggregation.window.is_none() {
            let message = format!("`{view}` has no windows, so no row of it is final; write emit = 'changes'");
            return Err(Fault::new(self.at, message));
        }
        check_topic(view, &self.topic, rows, catalog)?;
        self.check_reader(aggregation, catalog)?;
        Ok(Emission { topic: self.topic.text, emit: self.emit })
    }

    /// Refuses a table that would read the topic's records as what they aren't.
    fn check_reader(&self, aggregation: &Aggregation, catalog: &Catalog) -> Result<(), Fault> {
        let Some(reader) = catalog.table_of_topic(&self.topic.text) else { return Ok(()) };
        let of_rows = aggregation.row_key();
        let key: BTreeSet<&str> =
            reader.primary_key.iter().map(|&column| reader.columns[column].name.as_str()).collect();
        let is_right =
            if reader.is_changelog() { key == of_rows.iter().copied().collect() } else { self.emit == Emit::Final };
        if is_right {
            return Ok(());
        }
        let (name, topic) = (&reader.name, &self.topic.text);
        let way_out = match of_rows.as_slice() {
            [] => "it has one row, which no key names, so no table can read it".to_owned(),
            columns => format!("a table that reads it has PRIMARY KEY ({})", columns.join(", ")),
        };
        let message = format!("table `{name}` reads topic `{topic}`, whose records replace and delete rows; {way_out}");
        Err(Fault::new(self.topic.at, message))
    }
}

/// The one of `all` that is given by its name.
fn one_of<T: Copy>(what: &str, all: &[T], name: fn(T) -> &'static str, given: &Given) -> Result<T, Fault> {
    let names = || all.iter().map(|&one| name(one));
    let found = all.iter().copied().find(|&one| name(one) == given.text);
    found.ok_or_else(|| {
        let close = suggestion(&given.text, names());
        Fault::new(given.at, format!("unknown {what} `{}`; there are {}{close}", given.text, list(names())))
    })
}

/// The topic of a sink: the view's own name unless another is given.
fn topic_of(sink: &Given, options: &mut Options, view: &str) -> Result<Given, Fault> {
    if sink.text != "kafka" {
        return Err(Fault::new(sink.at, format!("unsupported sink `{}`; there is `kafka`", sink.text)));
    }
    let topic = options.text("topic").unwrap_or(Given { text: view.to_owned(), at: sink.at });
    Ok(Given { at: topic.at, text: name::topic(topic)? })
}

/// Plans what a view with the option `sink`, given with the others, sends where, and how. `None` if it is sound as far as can be
/// told but its table isn't.
pub(super) fn plan(
    name: &str,
    query: &ast::Query,
    (sink, options): (Given, Options),
    tokens: &Tokens,
    names: &Names,
) -> Result<Option<(Rows, Sink)>, Vec<Fault>> {
    let (asked, rows) = (Asked::read(&sink, options, name), query::rows(query, Asker::Sink, tokens, names));
    let (asked, rows) = match (asked, rows) {
        (Ok(asked), Ok(rows)) => (asked, rows),
        (Err(fault), rows) => {
            return Err([vec![fault], rows.err().unwrap_or_default()].concat());
        }
        (_, Err(faults)) => return Err(faults),
    };
    let Some(rows) = rows else { return Ok(None) };
    let one = |fault| vec![fault];
    check_topic(name, &asked.topic, &rows, names.catalog).map_err(one)?;
    let columns = rows.schema();
    let partition_by = asked.partition_by.map(|given| column_named(&given, &columns)).transpose().map_err(one)?;
    check_versions(&asked.topic, partition_by, &columns, names.catalog).map_err(one)?;
    let sink = Sink { topic: asked.topic.text, delivery: asked.delivery, partition_by };
    Ok(Some((rows, sink)))
}

/// Where the rows are to go, and how.
struct Asked {
    topic: Given,
    delivery: Delivery,
    partition_by: Option<Given>,
}

impl Asked {
    fn read(sink: &Given, mut options: Options, view: &str) -> Result<Self, Fault> {
        let topic = topic_of(sink, &mut options, view)?;
        let delivery = options.text("delivery");
        let delivery = delivery.map(|given| one_of("delivery", &Delivery::ALL, Delivery::name, &given));
        let delivery = delivery.transpose()?.unwrap_or_default();
        let partition_by = options.text("partition_by");
        if let Some((name, given)) = options.rest() {
            let message = format!(
                "option `{name}` doesn't go with a sink: rows are written as they come, and none is kept or computed again"
            );
            return Err(Fault::new(given.at, message));
        }
        Ok(Self { topic, delivery, partition_by })
    }
}

fn column_named(given: &Given, columns: &[Column]) -> Result<usize, Fault> {
    columns.iter().position(|column| column.name == given.text).ok_or_else(|| {
        let names = || columns.iter().map(|column| column.name.as_str());
        let close = suggestion(&given.text, names());
        Fault::new(given.at, format!("unknown column `{}`; the view selects {}{close}", given.text, list(names())))
    })
}

/// Refuses to write the topic of a changelog, if versions of a row would come to several partitions.
fn check_versions(
    topic: &Given,
    partition_by: Option<usize>,
    columns: &[Column],
    catalog: &Catalog,
) -> Result<(), Fault> {
    let Some(reader) = catalog.table_of_topic(&topic.text).filter(|reader| reader.is_changelog()) else {
        return Ok(());
    };
    let key: Vec<&str> = reader.primary_key.iter().map(|&column| reader.columns[column].name.as_str()).collect();
    let way_out = match key[..] {
        [key] if partition_by.is_some_and(|column| columns[column].name == key) => return Ok(()),
        [key] => format!("add partition_by = '{key}'"),
        _ => "an output chooses it by one column, so it can't write that topic".to_owned(),
    };
    let (name, topic, at, key) = (&reader.name, &topic.text, topic.at, list(key));
    let message = format!(
        "table `{name}` reads topic `{topic}`, and all versions of its rows are in one partition, by the primary key {key}; {way_out}"
    );
    Err(Fault::new(at, message))
}

/// Refuses a topic that another view writes, that its own table can't read, or that leads back to the events that it is
/// made of. A table may read it otherwise, so that views go on where others end.
pub(super) fn check_topic(view: &str, topic: &Given, rows: &Rows, catalog: &Catalog) -> Result<(), Fault> {
    let refuse = |message: String| Err(Fault::new(topic.at, message));
    let to = &topic.text;
    // The topics that records come to from here.
    let mut reached = vec![to.as_str()];
    while let Some((_, _, next)) =
        catalog.written().find(|(_, from, to)| reached.contains(from) && !reached.contains(to))
    {
        reached.push(next);
    }
    let read = rows.inputs().into_iter().map(|table| &table.topic);
    if let Some(from) = read.into_iter().find(|topic| reached.contains(&topic.as_str())) {
        let by_way = if to == from { String::new() } else { format!(" by way of `{to}`") };
        return refuse(format!(
            "what `{view}` writes would come back into topic `{from}`, which it reads{by_way}, and go round for ever; choose \
             another topic"
        ));
    }
    if let Some((other, ..)) = catalog.written().find(|(.., written)| written == to) {
        return refuse(format!(
            "views `{other}` and `{view}` would both write topic `{to}`; a topic's records come from one view"
        ));
    }
    if let Some(reader) = catalog.table_of_topic(to).filter(|reader| reader.format != Format::Json) {
        let reader = &reader.name;
        return refuse(format!(
            "table `{reader}` reads topic `{to}` as changes of a database; an output writes plain JSON"
        ));
    }
    Ok(())
}
