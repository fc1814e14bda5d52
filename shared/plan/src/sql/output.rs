//! Views with a sink: plain rows, which are written to a topic as they come.

use sqlparser::ast::{self, CreateView, GroupByExpr};
use sqlparser::keywords::Keyword;

use super::error::{Fault, list, suggestion};
use super::option::{Given, Options};
use super::select::{Item, Selected};
use super::{Broken, Source, from, select, statement};
use crate::expr::Expr;
use crate::schema::{Format, Table};
use crate::view::{Catalog, Delivery, Field, Output, Unnest};

/// The options of a view with a sink.
pub(super) const OPTIONS: [&str; 4] = ["sink", "topic", "delivery", "partition_by"];

/// Plans a view that has the option `sink`, given with the others. `None` if it is sound as far as can be told but its table isn't.
pub(super) fn plan(
    name: String,
    create: &CreateView,
    (sink, options): (Given, Options),
    source: &Source,
    catalog: &Catalog,
    broken: &Broken,
) -> Result<Option<Output>, Vec<Fault>> {
    let (sink, query) = (Sink::read(&sink, options, &name), rows(&create.query, source, catalog, broken));
    let (sink, query) = match (sink, query) {
        (Ok(sink), Ok(query)) => (sink, query),
        (Err(fault), query) => {
            return Err([vec![fault], query.err().unwrap_or_default()].concat());
        }
        (_, Err(faults)) => return Err(faults),
    };
    let Some(Rows { table, unnest, filter, fields }) = query else { return Ok(None) };
    let one = |fault| vec![fault];
    check_topic(&name, &sink.topic, &table, catalog).map_err(one)?;
    let partition_by = sink.partition_by.map(|given| field_named(&given, &fields)).transpose().map_err(one)?;
    Ok(Some(Output {
        sql: source.text.clone(),
        definition: statement::definition(&table, 0, create),
        table,
        unnest,
        filter,
        fields,
        topic: sink.topic.text,
        delivery: sink.delivery,
        partition_by,
        name,
    }))
}

/// Where the rows go, and how.
struct Sink {
    topic: Given,
    delivery: Delivery,
    partition_by: Option<Given>,
}

impl Sink {
    fn read(sink: &Given, mut options: Options, view: &str) -> Result<Self, Fault> {
        if sink.text != "kafka" {
            return Err(Fault::new(sink.at, format!("unsupported sink `{}`; there is `kafka`", sink.text)));
        }
        let topic = options.text("topic").unwrap_or(Given { text: view.to_owned(), at: sink.at });
        let topic = Given { at: topic.at, text: statement::topic(topic)? };
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

fn field_named(given: &Given, fields: &[Field]) -> Result<usize, Fault> {
    fields.iter().position(|field| field.name == given.text).ok_or_else(|| {
        let names = || fields.iter().map(|field| field.name.as_str());
        let close = suggestion(&given.text, names());
        Fault::new(given.at, format!("unknown column `{}`; the view selects {}{close}", given.text, list(names())))
    })
}

/// Refuses a topic that another view writes, that its own table can't read, or that leads back to the events that it is
/// made of. A table may read it otherwise, so that views go on where others end.
pub(super) fn check_topic(view: &str, topic: &Given, table: &Table, catalog: &Catalog) -> Result<(), Fault> {
    let refuse = |message: String| Err(Fault::new(topic.at, message));
    let to = &topic.text;
    // The topics that records come to from here.
    let mut reached = vec![to.as_str()];
    while let Some((_, _, next)) =
        catalog.written().find(|(_, from, to)| reached.contains(from) && !reached.contains(to))
    {
        reached.push(next);
    }
    if reached.contains(&table.topic.as_str()) {
        let from = &table.topic;
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

/// What a query of plain rows says.
struct Rows {
    table: std::sync::Arc<Table>,
    unnest: Option<Unnest>,
    filter: Option<Expr>,
    fields: Vec<Field>,
}

fn rows(
    query: &ast::Query,
    statement: &Source,
    catalog: &Catalog,
    broken: &Broken,
) -> Result<Option<Rows>, Vec<Fault>> {
    let (tokens, one) = (&statement.tokens, |fault| vec![fault]);
    let select = select::plain_select(query, tokens).map_err(one)?;
    let is_grouped = !matches!(&select.group_by, GroupByExpr::Expressions(exprs, modifiers) if exprs.is_empty() && modifiers.is_empty());
    for (is_there, keyword, message) in [
        (is_grouped, Keyword::GROUP, "a view with a sink has plain rows; leave GROUP BY out, or the sink"),
        (select.having.is_some(), Keyword::HAVING, "a view with a sink has plain rows; filter them by WHERE"),
        (query.order_by.is_some(), Keyword::ORDER, "rows are written in the order of their events; leave ORDER BY out"),
        (query.limit_clause.is_some(), Keyword::LIMIT, "rows are written for as long as events come; leave LIMIT out"),
    ] {
        if is_there {
            return Err(vec![Fault::new(tokens.keyword(keyword), message)]);
        }
    }
    let Some(source) = from::plan(select, tokens, catalog, broken).map_err(one)? else { return Ok(None) };
    if source.window.is_some() {
        let message = format!("a view with a sink has plain rows, without windows; read FROM {}", source.table.name);
        return Err(vec![Fault::new(source.at, message)]);
    }
    let mut faults = Vec::new();
    let mut keep = |fault: Fault| faults.push(fault);
    let filter = select.selection.as_ref();
    let filter = filter.and_then(|condition| source.scope.condition(condition, "WHERE").map_err(&mut keep).ok());
    let items = select.projection.iter().filter_map(|selected| select::item(selected, &source).map_err(&mut keep).ok());
    let items: Vec<Item> = items.collect();
    select::check_names(&items, &mut keep);
    let place = items.first().map_or(source.at, |item| item.at);
    let mut fields = Vec::new();
    for Item { name, value, at } in items {
        match value {
            Selected::Row(expr) => fields.push(Field { name, expr }),
            Selected::Aggregate(_) | Selected::Bound(_) => keep(Fault::new(
                at,
                format!("`{name}` is an aggregate, and a view with a sink has plain rows; leave it out, or the sink"),
            )),
        }
    }
    if faults.is_empty() && !fields.iter().any(|field| source.reads_any(&field.expr)) {
        let message = format!("the view's rows would all be the same; select a column of `{}`", source.table.name);
        faults.push(Fault::new(place, message));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Some(Rows { table: source.table.clone(), unnest: source.unnest, filter, fields }))
}
