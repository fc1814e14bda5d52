//! `CREATE TABLE`.

use sqlparser::ast::helpers::stmt_create_table::CreateTableBuilder;
use sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable, Expr as Syntax, Ident, IndexColumn, PrimaryKeyConstraint, Spanned,
    TableConstraint,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Token};

use super::error::{Fault, list, suggestion};
use super::expression::{Relation, Scope};
use super::literal::data_type;
use super::name::{defined_name, internal, is_twin, topic, twins};
use super::option::{Given, Options};
use super::syntax::{Tokens, fold};
use crate::expr::Expr;
use crate::schema::{Column, DataType, Format, Table};
use crate::time::Micros;

/// How many partitions a topic may have.
const MAX_PARTITIONS: u64 = 1_024;
/// How far ahead of the clock an event time may be, unless the table says otherwise.
const MAX_FUTURE: Micros = 10 * 60 * 1_000_000;

/// Why nothing else chooses a partition where there is a primary key.
const ONE_PARTITION: &str =
    "all versions of a row are in one partition, so the primary key alone chooses it; leave the option out";

/// The columns that the archive adds to a table's own.
const ARCHIVES_OWN: [&str; 4] = ["_partition", "_offset", "_log_time", "_day"];

/// Plans a table.
pub(super) fn plan(create: &CreateTable, tokens: &Tokens) -> Result<Table, Vec<Fault>> {
    let name = defined_name(&create.name).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    let understood = CreateTableBuilder::new(create.name.clone())
        .columns(create.columns.clone())
        .constraints(create.constraints.clone())
        .table_options(create.table_options.clone())
        .build();
    let is_key = |constraint: &TableConstraint| matches!(constraint, TableConstraint::PrimaryKey(key) if is_plain(key));
    if understood != *create || !create.constraints.iter().all(is_key) {
        faults.push(Fault::new(
            tokens.start(),
            "unsupported clause; a table is CREATE TABLE name (column TYPE [NOT NULL], …[, PRIMARY KEY (column, …)]) WITH (…)",
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
    let one = |fault| vec![fault];
    let primary_key = primary_key(create, &name, &columns).map_err(one)?;
    for (column, _) in &primary_key {
        columns[*column].nullable = false;
    }
    with_options(create, name, columns, &primary_key).map_err(one)
}

/// Whether nothing is said of a primary key but its columns.
fn is_plain(key: &PrimaryKeyConstraint) -> bool {
    let plain = PrimaryKeyConstraint {
        name: None,
        index_name: None,
        index_type: None,
        columns: key.columns.clone(),
        include: Vec::new(),
        index_options: Vec::new(),
        characteristics: None,
    };
    *key == plain
}

/// The columns of the primary key, and where each is named.
fn primary_key(create: &CreateTable, table: &str, columns: &[Column]) -> Result<Vec<(usize, Location)>, Fault> {
    let is_key = |definition: &&ColumnDef| {
        definition.options.iter().any(|option| matches!(option.option, ColumnOption::PrimaryKey(_)))
    };
    let of_columns =
        create.columns.iter().filter(is_key).map(|definition| vec![IndexColumn::from(definition.name.clone())]);
    let of_table = create.constraints.iter().filter_map(|constraint| match constraint {
        TableConstraint::PrimaryKey(key) => Some(key.columns.clone()),
        _ => None,
    });
    let mut keys = of_columns.chain(of_table);
    let Some(key) = keys.next() else { return Ok(Vec::new()) };
    if let Some(second) = keys.next().as_ref().and_then(|key| key.first()) {
        let message =
            format!("table `{table}` has a primary key already; several columns are one key: PRIMARY KEY (a, b)");
        return Err(Fault::of(second, message));
    }
    let mut found = Vec::<(usize, Location)>::new();
    for given in key {
        let at = given.span().start;
        let ident = match &given.column.expr {
            Syntax::Identifier(ident) if given == IndexColumn::from(ident.clone()) => ident,
            _ => return Err(Fault::new(at, format!("`{given}`: a primary key is of columns: PRIMARY KEY (a, b)"))),
        };
        let column = key_column(ident, table, columns)?;
        if found.iter().any(|(other, _)| *other == column) {
            return Err(Fault::new(at, format!("column `{}` is in the primary key twice", columns[column].name)));
        }
        found.push((column, at));
    }
    Ok(found)
}

/// A column that may be in a primary key.
fn key_column(ident: &Ident, table: &str, columns: &[Column]) -> Result<usize, Fault> {
    let name = fold(ident);
    let at = ident.span.start;
    let Some(column) = columns.iter().position(|column| column.name == name) else {
        return Err(Fault::new(at, unknown_column(&name, table, columns)));
    };
    match &columns[column].data_type {
        DataType::Text | DataType::BigInt | DataType::Boolean | DataType::Timestamp => Ok(column),
        other => {
            let message =
                format!("a primary key is of TEXT, BIGINT, BOOLEAN and TIMESTAMP columns; `{name}` is {other}");
            Err(Fault::new(at, message))
        }
    }
}

fn format_named(given: &Given) -> Result<Format, Fault> {
    match given.text.as_str() {
        "json" => Ok(Format::Json),
        "debezium-json" => Ok(Format::DebeziumJson),
        other => {
            let message = format!("unsupported format `{other}`; there are `json` and `debezium-json`");
            Err(Fault::new(given.at, message))
        }
    }
}

fn unknown_column(name: &str, table: &str, columns: &[Column]) -> String {
    let names = || columns.iter().map(|column| column.name.as_str());
    format!("unknown column `{name}`; table `{table}` has {}{}", list(names()), suggestion(name, names()))
}

fn column(definition: &ColumnDef, tokens: &Tokens) -> Result<Column, Fault> {
    let name = fold(&definition.name);
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Fault::new(
            definition.name.span.start,
            "a column's name can't be empty or hold control characters",
        ));
    }
    internal(&definition.name, &name)?;
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
            ColumnOption::PrimaryKey(ref key) if is_plain(key) => {}
            ColumnOption::Null => {}
            _ => {
                let message = format!(
                    "column `{name}`: unsupported `{option}`; a column is a name, a type and perhaps NOT NULL or PRIMARY KEY"
                );
                return Err(Fault::new(definition.name.span.start, message));
            }
        }
    }
    Ok(Column { name, data_type, nullable })
}

fn with_options(
    create: &CreateTable,
    name: String,
    mut columns: Vec<Column>,
    primary_key: &[(usize, Location)],
) -> Result<Table, Fault> {
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
    let format = options.text("format").map_or(Ok(Format::default()), |given| format_named(&given))?;
    let column_named = |given: &Given| {
        let position = columns.iter().position(|column| column.name == given.text);
        position.ok_or_else(|| Fault::new(given.at, unknown_column(&given.text, &name, &columns)))
    };
    let Some(given) = options.text("event_time") else {
        return Err(Fault::of(
            &create.name,
            format!("table `{name}` needs WITH (event_time = 'column'), the time at which an event happened"),
        ));
    };
    let event_time = column_named(&given)?;
    if let Some((_, at)) = primary_key.iter().find(|(column, _)| *column == event_time) {
        let message = format!(
            "`{}` is the event time, which each version of a row has its own of; a primary key tells rows from each other",
            given.text
        );
        return Err(Fault::new(*at, message));
    }
    let key_columns: Vec<usize> = primary_key.iter().map(|(column, _)| *column).collect();
    // What is filled from the log is no part of an event, so nothing that places an event can go by it.
    let filled = |given: Option<Given>, option: &str, wanted: DataType| {
        let Some(given) = given else { return Ok(None) };
        let column = column_named(&given)?;
        let Column { name, data_type, nullable } = &columns[column];
        if key_columns.contains(&column) {
            let message =
                format!("{option} = '{name}': the column is filled from the log, and a primary key is the event's own");
            return Err(Fault::new(given.at, message));
        }
        if *data_type != wanted {
            return Err(Fault::new(given.at, format!("{option} must be a {wanted} column; `{name}` is {data_type}")));
        }
        if !nullable {
            let message = format!("{option} = '{name}': a record may have none, so the column can't be NOT NULL");
            return Err(Fault::new(given.at, message));
        }
        Ok(Some(column))
    };
    let key = filled(options.text("key"), "key", DataType::Text)?;
    let headers = filled(options.text("headers"), "headers", DataType::Json)?;
    let partition_by = options.text("partition_by").map(|given| match column_named(&given)? {
        column if !key_columns.is_empty() && key_columns != [column] => {
            Err(Fault::new(given.at, format!("partition_by = '{}': {ONE_PARTITION}", given.text)))
        }
        column if [key, headers].contains(&Some(column)) => {
            let message =
                format!("partition_by = '{}': the column is filled from the log; name one of the event's", given.text);
            Err(Fault::new(given.at, message))
        }
        column => Ok(column),
    });
    let partition_by = partition_by.transpose()?.or(match key_columns[..] {
        [column] => Some(column),
        _ => None,
    });
    let pin = options.text("pin");
    if let Some(given) = pin.as_ref().filter(|_| !key_columns.is_empty()) {
        return Err(Fault::new(given.at, format!("pin = '{}': {ONE_PARTITION}", given.text)));
    }
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
        primary_key: key_columns,
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
