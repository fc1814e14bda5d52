//! `CREATE TABLE`.

use sqlparser::ast::helpers::stmt_create_table::CreateTableBuilder;
use sqlparser::ast::{ColumnDef, ColumnOption, CreateTable};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::error::{Fault, list, suggestion};
use super::expression::{Relation, Scope};
use super::literal::data_type;
use super::name::{defined_name, is_twin, reserved, topic, twins};
use super::option::{Given, Options};
use super::syntax::{Tokens, fold};
use crate::expr::Expr;
use crate::schema::{Column, DataType, Format, Table};
use crate::time::Micros;

/// How many partitions a topic may have.
const MAX_PARTITIONS: u64 = 1_024;
/// How far ahead of the clock an event time may be, unless the table says otherwise.
const MAX_FUTURE: Micros = 10 * 60 * 1_000_000;

/// The columns that the archive adds to a table's own.
const ARCHIVES_OWN: [&str; 4] = ["_partition", "_offset", "_log_time", "_day"];

/// Plans a table.
pub(super) fn plan(create: &CreateTable, tokens: &Tokens) -> Result<Table, Vec<Fault>> {
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
        primary_key: Vec::new(),
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
    let scope = Scope::new(Relation::of_table(table), None);
    let condition = scope.condition(&parsed, "pin").map_err(|fault| wrong(&fault.message))?;
    let filled = [table.key, table.headers].into_iter().flatten().map(|column| &table.columns[column].name);
    match filled.into_iter().find(|name| condition.reads(name)) {
        Some(name) => Err(wrong(&format!("`{name}` is filled from the log; only the event's own columns can be used"))),
        None => Ok(condition),
    }
}
