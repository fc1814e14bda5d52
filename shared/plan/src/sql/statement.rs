//! `CREATE TABLE` and `CREATE MATERIALIZED VIEW`.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use sqlparser::ast::helpers::stmt_create_table::CreateTableBuilder;
use sqlparser::ast::{ColumnDef, ColumnOption, CreateTable, CreateView, Ident, ObjectName, Spanned};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Token};

use super::error::{Fault, list, suggestion};
use super::expression::Scope;
use super::literal::data_type;
use super::option::{Given, Options, schedule};
use super::{Broken, Source, Tokens, fold, output, select, simple_name};
use crate::expr::Expr;
use crate::schedule::Schedule;
use crate::schema::{Column, DataType, Format, Table};
use crate::time::Micros;
use crate::view::{Catalog, Late, Output, View};

/// How many partitions a topic may have.
const MAX_PARTITIONS: u64 = 1_024;
/// How far ahead of the clock an event time may be, unless the table says otherwise.
const MAX_FUTURE: Micros = 10 * 60 * 1_000_000;
/// Rows of state that a view keeps exactly, unless it says otherwise.
const MAX_ROWS: u64 = 5_000_000;

/// Plans a table.
pub(super) fn table(create: &CreateTable, tokens: &Tokens) -> Result<Table, Vec<Fault>> {
    let name = defined_name(&create.name).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    let understood = CreateTableBuilder::new(create.name.clone())
        .columns(create.columns.clone())
        .table_options(create.table_options.clone())
        .build();
    if understood != *create {
        faults.push(Fault::new(
            tokens.start(),
            "unsupported clause; a table is CREATE TABLE name (column TYPE [NOT NULL], …) WITH (…), without constraints",
        ));
    }
    if create.columns.is_empty() {
        faults.push(Fault::of(
            &create.name,
            format!("table `{name}` has no columns; write CREATE TABLE {name} (column TYPE, …)"),
        ));
    }
    let mut columns: Vec<Column> = Vec::new();
    for definition in &create.columns {
        match column(definition, tokens) {
            Ok(column) => match columns.iter().find(|other| is_twin(&other.name, &column.name)) {
                Some(other) => faults.push(Fault::new(definition.name.span.start, twins(&other.name, &column.name))),
                None => columns.push(column),
            },
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    with_options(create, name, columns).map_err(|fault| vec![fault])
}

fn column(definition: &ColumnDef, tokens: &Tokens) -> Result<Column, Fault> {
    let name = fold(&definition.name);
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Fault::new(
            definition.name.span.start,
            "a column's name can't be empty or hold control characters",
        ));
    }
    reserved(&definition.name, &name)?;
    if ARCHIVES_OWN.iter().any(|own| is_twin(own, &name)) {
        let message = format!("`{name}`: the archive has a column of its own with that name; choose another");
        return Err(Fault::new(definition.name.span.start, message));
    }
    let data_type = data_type(&definition.data_type)
        .map_err(|message| Fault::new(tokens.after(definition.name.span.start), message))?;
    let mut nullable = true;
    for option in &definition.options {
        match option.option {
            ColumnOption::NotNull => nullable = false,
            ColumnOption::Null => {}
            _ => {
                let message =
                    format!("column `{name}`: unsupported `{option}`; a column is a name, a type and perhaps NOT NULL");
                return Err(Fault::new(definition.name.span.start, message));
            }
        }
    }
    Ok(Column { name, data_type, nullable })
}

fn with_options(create: &CreateTable, name: String, mut columns: Vec<Column>) -> Result<Table, Fault> {
    let known = [
        "topic",
        "format",
        "event_time",
        "watermark",
        "max_future",
        "max_past",
        "partitions",
        "partition_by",
        "pin",
        "key",
        "headers",
    ];
    let mut options = Options::read(&create.table_options, &known)?;
    let topic = match options.text("topic") {
        Some(given) => topic(given)?,
        None => name.clone(),
    };
    let format = match options.text("format") {
        None => Format::default(),
        Some(given) => match given.text.as_str() {
            "json" => Format::Json,
            "debezium-json" => Format::DebeziumJson,
            other => {
                let message = format!("unsupported format `{other}`; there are `json` and `debezium-json`");
                return Err(Fault::new(given.at, message));
            }
        },
    };
    let column_named = |given: &Given| {
        let position = columns.iter().position(|column| column.name == given.text);
        position.ok_or_else(|| {
            let names = || columns.iter().map(|column| column.name.as_str());
            let close = suggestion(&given.text, names());
            let message = format!("unknown column `{}`; table `{name}` has {}{close}", given.text, list(names()));
            Fault::new(given.at, message)
        })
    };
    let Some(given) = options.text("event_time") else {
        return Err(Fault::of(
            &create.name,
            format!("table `{name}` needs WITH (event_time = 'column'), the time at which an event happened"),
        ));
    };
    let event_time = column_named(&given)?;
    // What is filled from the log is no part of an event, so nothing that places an event can go by it.
    let filled = |given: Option<Given>, option: &str, wanted: DataType| {
        let Some(given) = given else { return Ok(None) };
        let Column { name, data_type, nullable } = &columns[column_named(&given)?];
        if *data_type != wanted {
            return Err(Fault::new(given.at, format!("{option} must be a {wanted} column; `{name}` is {data_type}")));
        }
        if !nullable {
            let message = format!("{option} = '{name}': a record may have none, so the column can't be NOT NULL");
            return Err(Fault::new(given.at, message));
        }
        column_named(&given).map(Some)
    };
    let key = filled(options.text("key"), "key", DataType::Text)?;
    let headers = filled(options.text("headers"), "headers", DataType::Json)?;
    let partition_by = options.text("partition_by").map(|given| match column_named(&given)? {
        column if [key, headers].contains(&Some(column)) => {
            let message =
                format!("partition_by = '{}': the column is filled from the log; name one of the event's", given.text);
            Err(Fault::new(given.at, message))
        }
        column => Ok(column),
    });
    let partition_by = partition_by.transpose()?;
    let pin = options.text("pin");
    let column = &mut columns[event_time];
    if column.data_type != DataType::Timestamp {
        let message = format!("event_time must be a TIMESTAMP column; `{}` is {}", column.name, column.data_type);
        return Err(Fault::new(given.at, message));
    }
    // An event without a time has no place in any window: it is rejected whether the definition says so or not.
    column.nullable = false;
    let mut table = Table {
        topic,
        format,
        columns,
        event_time,
        watermark_delay: options.duration("watermark")?.unwrap_or(0),
        max_future: Some(options.duration("max_future")?.unwrap_or(MAX_FUTURE)),
        max_past: options.duration("max_past")?,
        partitions: options.number("partitions", 1..=MAX_PARTITIONS)?.unwrap_or(1) as u32,
        partition_by,
        pin: None,
        key,
        headers,
        sql: create.to_string(),
        name,
    };
    table.pin = pin.map(|given| self::pin(&table, &given)).transpose()?;
    Ok(table)
}

/// The condition of `pin`, which is SQL in a text.
fn pin(table: &Table, given: &Given) -> Result<Expr, Fault> {
    let wrong = |message: &str| Fault::new(given.at, format!("pin = '{}': {message}", given.text));
    if table.partitions < 2 {
        return Err(wrong("a table needs at least 2 partitions for one to be set apart"));
    }
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(&given.text).map_err(|e| wrong(&e.to_string()))?;
    let parsed = parser.parse_expr().map_err(|error| wrong(&error.to_string()))?;
    if parser.peek_token().token != Token::EOF {
        return Err(wrong("one condition over the columns is expected, and nothing after it"));
    }
    let scope = Scope::new(table, table.name.clone(), false);
    let condition = scope.condition(&parsed, "pin").map_err(|fault| wrong(&fault.message))?;
    let filled = [table.key, table.headers].into_iter().flatten().map(|column| &table.columns[column].name);
    match filled.into_iter().find(|name| condition.reads(name)) {
        Some(name) => Err(wrong(&format!("`{name}` is filled from the log; only the event's own columns can be used"))),
        None => Ok(condition),
    }
}

pub(super) fn topic(given: Given) -> Result<String, Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_dots = matches!(given.text.as_str(), "." | "..");
    if !(1..=249).contains(&given.text.len())
        || !given.text.chars().all(allowed)
        || given.text.starts_with('_')
        || is_dots
    {
        let message = format!(
            "`{}` can't be a topic; its name has 1 to 249 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and doesn't start with `_`",
            given.text
        );
        return Err(Fault::new(given.at, message));
    }
    Ok(given.text)
}

/// What a view is planned as.
pub(super) enum Planned {
    View(Arc<View>),
    Output(Arc<Output>),
}

/// Plans a view. `None` if it is sound as far as can be told but its table isn't.
pub(super) fn view(
    create: &CreateView,
    source: &Source,
    catalog: &Catalog,
    broken: &Broken,
) -> Result<Option<Planned>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let name = defined_name(&create.name).map_err(one)?;
    if !create.materialized {
        return Err(one(Fault::of(&create.name, "views are kept up to date; write CREATE MATERIALIZED VIEW")));
    }
    let understood = CreateView {
        or_alter: false,
        or_replace: false,
        materialized: true,
        secure: false,
        name: create.name.clone(),
        name_before_not_exists: false,
        columns: Vec::new(),
        query: create.query.clone(),
        options: create.options.clone(),
        cluster_by: Vec::new(),
        comment: None,
        with_no_schema_binding: false,
        if_not_exists: false,
        temporary: false,
        copy_grants: false,
        to: None,
        params: None,
    };
    if understood != *create {
        let message = "unsupported clause; a view is CREATE MATERIALIZED VIEW name [WITH (…)] AS SELECT …";
        return Err(one(Fault::new(source.start(), message)));
    }
    if catalog.views.contains_key(&name) || catalog.outputs.contains_key(&name) {
        return Err(one(Fault::of(&create.name, format!("view `{name}` is defined twice"))));
    }
    if catalog.tables.contains_key(&name) || broken.names.contains(&name) {
        return Err(one(Fault::of(&create.name, format!("`{name}` is a table; a view needs a name of its own"))));
    }
    let options = Options::read(&create.options, &[&OPTIONS[..], &output::OPTIONS].concat());
    let options = match options.map(|mut options| (options.text("sink"), options)) {
        Ok((Some(sink), options)) => {
            let planned = output::plan(name, create, (sink, options), source, catalog, broken)?;
            return Ok(planned.map(|output| Planned::Output(Arc::new(output))));
        }
        Ok((None, options)) => view_options(options),
        Err(fault) => Err(fault),
    };
    let query = select::plan(&create.query, &source.tokens, catalog, broken);
    let (options, query) = match (options, query) {
        (Ok(options), Ok(query)) => (options, query),
        (Err(fault), Err(mut faults)) => {
            faults.insert(0, fault);
            return Err(faults);
        }
        (Err(fault), _) => return Err(one(fault)),
        (_, Err(faults)) => return Err(faults),
    };
    let Some(query) = query else { return Ok(None) };
    let late = match options.late {
        Some((late, at)) => check_late(&name, late, at, &query, catalog).map_err(one)?,
        None => Late::default(),
    };
    let view = View {
        sql: source.text.clone(),
        definition: definition(&query.table, options.allowed_lateness, create),
        table: query.table,
        window: query.window,
        unnest: query.unnest,
        filter: query.filter,
        keys: query.keys,
        aggregates: query.aggregates,
        columns: query.columns,
        having: query.having,
        order: query.order,
        limit: query.limit,
        allowed_lateness: options.allowed_lateness,
        late,
        schedule: options.schedule,
        max_rows: options.max_rows,
        memory: options.memory,
        name,
    };
    Ok(Some(Planned::View(Arc::new(view))))
}

/// Refuses a side output of what can't be late, and a topic that can't be written.
fn check_late(name: &str, late: Late, at: Location, query: &select::Query, catalog: &Catalog) -> Result<Late, Fault> {
    if query.window.is_none() {
        let message = format!("`{name}` has no windows that an event could be late for; leave `late` out");
        return Err(Fault::new(at, message));
    }
    if let Late::Topic(topic) = &late {
        output::check_topic(name, &Given { text: topic.clone(), at }, &query.table, catalog)?;
    }
    Ok(late)
}

/// The options of a view without a sink.
const OPTIONS: [&str; 8] =
    ["allowed_lateness", "late", "late_topic", "batch", "schedule_zone", "catch_up", "max_rows", "memory"];

struct ViewOptions {
    allowed_lateness: Micros,
    late: Option<(Late, Location)>,
    schedule: Option<Schedule>,
    max_rows: usize,
    memory: Option<usize>,
}

/// Where late events go, and where that is said.
fn late(options: &mut Options) -> Result<Option<(Late, Location)>, Fault> {
    let (kind, to) = (options.text("late"), options.text("late_topic"));
    let Some(Given { text, at }) = kind else {
        return to.map_or(Ok(None), |to| Err(Fault::new(to.at, "option `late_topic` goes with late = 'topic'")));
    };
    let late = match (text.as_str(), to) {
        ("topic", Some(to)) => {
            let at = to.at;
            return Ok(Some((Late::Topic(topic(to)?), at)));
        }
        ("topic", None) => return Err(Fault::new(at, "late = 'topic' needs to know which; add late_topic = 'name'")),
        ("discard" | "rejects", Some(to)) => {
            return Err(Fault::new(to.at, "option `late_topic` goes with late = 'topic'"));
        }
        ("discard", None) => Late::Discard,
        ("rejects", None) => Late::Rejects,
        (other, _) => {
            let message = format!("late = `{other}`: late events go to `rejects`, to a `topic`, or are `discard`ed");
            return Err(Fault::new(at, message));
        }
    };
    Ok(Some((late, at)))
}

fn view_options(mut options: Options) -> Result<ViewOptions, Fault> {
    let read = ViewOptions {
        allowed_lateness: options.duration("allowed_lateness")?.unwrap_or(0),
        late: late(&mut options)?,
        schedule: schedule(&mut options)?,
        max_rows: options.number("max_rows", 1..=u64::from(u32::MAX))?.unwrap_or(MAX_ROWS) as usize,
        memory: options.bytes("memory")?.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
    };
    match options.rest() {
        None => Ok(read),
        Some((name, given)) => {
            Err(Fault::new(given.at, format!("option `{name}` goes with a sink; add sink = 'kafka', or leave it out")))
        }
    }
}

/// Raised when the same SQL means something else, or when what is kept of a group is stored otherwise: checkpoints, versions and
/// snapshots of before are then of another definition, which nothing reads.
const EDITION: u32 = 2;

/// What the rows mean, in one hash: not the schedule, the limits on memory, white space or comments.
pub(super) fn definition(table: &Table, allowed_lateness: Micros, create: &CreateView) -> String {
    let canonical =
        format!("edition {EDITION}\n{}\nallowed_lateness = {allowed_lateness} us\n{}", table.sql, create.query);
    let hash = Sha256::digest(canonical.as_bytes());
    hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

/// The name of a table or view, which is part of addresses and of paths.
fn defined_name(name: &ObjectName) -> Result<String, Fault> {
    let text = simple_name(name)?;
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.len() <= 128;
    if is_word {
        Ok(text)
    } else {
        Err(Fault::new(
            name.span().start,
            format!("`{text}`: a table's or view's name is a letter and up to 127 letters, digits and underscores"),
        ))
    }
}

/// Whether two names are the same, or differ in case only: the archive and the tables of views, as Delta Lake has them, can't tell
/// such columns apart.
pub(super) fn is_twin(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

fn twins(one: &str, other: &str) -> String {
    if one == other {
        return format!("column `{one}` is defined twice");
    }
    format!(
        "columns `{one}` and `{other}` differ in case only, and Delta Lake's tables take them for one; choose another name"
    )
}

/// The columns that the archive adds to a table's own.
const ARCHIVES_OWN: [&str; 4] = ["_partition", "_offset", "_log_time", "_day"];

/// Refuses the names that the platform gives to columns itself.
pub(super) fn reserved(ident: &Ident, name: &str) -> Result<(), Fault> {
    if ["window_start", "window_end"].iter().any(|bound| is_twin(bound, name)) {
        return Err(Fault::new(ident.span.start, format!("`{name}` is the name of a window's bound; choose another")));
    }
    if name.starts_with("__") {
        return Err(Fault::new(
            ident.span.start,
            format!("`{name}`: names that start with two underscores are the platform's own"),
        ));
    }
    Ok(())
}
