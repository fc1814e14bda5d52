//! Views with a sink: plain rows, which are written to a topic as they come.

use sqlparser::ast;

use super::error::{Fault, list, suggestion};
use super::name;
use super::option::{Given, Options};
use super::query::{self, Asker};
use super::relation::Names;
use super::syntax::Tokens;
use crate::rows::Rows;
use crate::schema::{Column, Format};
use crate::sink::{Delivery, Sink};
use crate::view::Catalog;

/// The options of a view with a sink.
pub(super) const OPTIONS: [&str; 4] = ["sink", "topic", "delivery", "partition_by"];

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
        if sink.text != "kafka" {
            return Err(Fault::new(sink.at, format!("unsupported sink `{}`; there is `kafka`", sink.text)));
        }
        let topic = options.text("topic").unwrap_or(Given { text: view.to_owned(), at: sink.at });
        let topic = Given { at: topic.at, text: name::topic(topic)? };
        let delivery = options.text("delivery").map(delivery).transpose()?.unwrap_or_default();
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

fn delivery(given: Given) -> Result<Delivery, Fault> {
    let found = Delivery::ALL.into_iter().find(|delivery| delivery.name() == given.text);
    found.ok_or_else(|| {
        let names = || Delivery::ALL.into_iter().map(Delivery::name);
        let close = suggestion(&given.text, names());
        Fault::new(given.at, format!("unknown delivery `{}`; there are {}{close}", given.text, list(names())))
    })
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
