//! Commands on a project's files: no server, no data.

use std::path::Path;
use std::process::ExitCode;

use anabranch_engine::partial;
use anabranch_engine::row;
use anabranch_engine::transform::polars_type;
use anabranch_plan::function::{AGGREGATES, Entry, SCALARS};
use anabranch_plan::schema::Table;
use anabranch_plan::view::{Kept, Sent};
use anabranch_plan::window::Window;
use polars::prelude::{DataFrame, IntoLazy, LazyFrame, Schema};
use serde_json::json;

use crate::cli::Format;
use crate::failure::Failure;
use crate::output;
use crate::project::Project;

pub(super) fn load(dir: &Path) -> Result<Project, Failure> {
    Project::load(dir, std::env::vars()).map_err(|error| Failure::usage(error.to_string()))
}

/// `anabranch init DIR`
pub fn init(dir: &Path) -> Result<ExitCode, Failure> {
    Project::init(dir).map_err(|error| Failure::usage(error.to_string()))?;
    let shown = dir.display();
    eprintln!("wrote {shown}: edit {shown}/views, then run `anabranch up {shown}`");
    Ok(ExitCode::SUCCESS)
}

/// `anabranch views list`
pub fn list(dir: &Path, format: Format) -> Result<ExitCode, Failure> {
    let catalog = load(dir)?.catalog;
    let mut views: Vec<_> = catalog
        .kept()
        .map(|view| {
            let seconds = |micros: i64| format!("{} s", micros as f64 / 1e6);
            let window = view.aggregation().window.map_or("all of time".to_owned(), |window| {
                match window {
                    Window::Sliding(window) if window.is_tumbling() => format!("tumble {}", seconds(window.size)),
                    Window::Sliding(window) => format!("hop {} by {}", seconds(window.size), seconds(window.slide)),
                    Window::Days(days) => format!("tumble {} d in {}", days.count, days.zone),
                    Window::Session { gap } => format!("session {}", seconds(gap)),
                }
            });
            let names: Vec<&str> = view.aggregation().columns.iter().map(|column| view.aggregation().column_name(*column)).collect();
            json!({"kind": "view", "name": view.id.name, "table": view.table().name, "topic": view.table().topic, "window": window,
                   "columns": names.join(", "), "limit": view.aggregation().limit, "schedule": view.aggregation().schedule.as_ref().map(ToString::to_string),
                   "definition": view.id.definition})
        })
        .collect();
    views.extend(catalog.sent().map(|output| {
        let (sink, columns) = (output.sink(), output.rows.schema());
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        json!({"kind": "output", "name": output.id.name, "table": output.table().name, "topic": output.table().topic,
               "columns": names.join(", "), "writes": sink.topic, "delivery": sink.delivery.name(),
               "partition_by": sink.partition_by.map(|column| names[column]), "definition": output.id.definition})
    }));
    let columns = ["kind", "name", "table", "topic", "window", "columns", "limit", "schedule", "writes", "delivery"];
    output::print(format, &json!({"views": views}), &columns, &views)?;
    Ok(ExitCode::SUCCESS)
}

/// `anabranch views functions`
pub fn functions(format: Format) -> Result<ExitCode, Failure> {
    let of = |kind: &'static str| {
        move |entry: &Entry| {
            let Entry { names, takes, gives, null: of, what, duckdb, spark } = entry;
            json!({"kind": kind, "name": names[0], "also": names[1..].join(", "), "takes": takes, "gives": gives,
                   "null": of.words(), "what": what, "duckdb": duckdb, "spark": spark})
        }
    };
    let all: Vec<_> = SCALARS.iter().map(of("scalar")).chain(AGGREGATES.iter().map(of("aggregate"))).collect();
    let columns = ["kind", "name", "takes", "gives", "what", "also"];
    output::print(format, &json!({"functions": all}), &columns, &all)?;
    Ok(ExitCode::SUCCESS)
}

/// `anabranch views explain VIEW`
pub fn explain(dir: &Path, name: &str) -> Result<ExitCode, Failure> {
    let catalog = load(dir)?.catalog;
    let Some(view) = catalog.views.get(name) else {
        let existing: Vec<&str> = catalog.views.keys().map(String::as_str).collect();
        return Err(Failure::usage(format!("no view named `{name}`; there are {existing:?}")));
    };
    println!("{}\n\ndefinition {}\n", view.sql, view.id.definition);
    let events = no_events(view.table());
    let Some(view) = Kept::of(view) else {
        let records = row::Records::new(&view.rows).of(events);
        let to = Sent::of(view).map(|view| view.sink().topic.clone()).unwrap_or_default();
        println!("Events to records of topic `{to}`:\n\n{}", records.explain(true)?);
        return Ok(ExitCode::SUCCESS);
    };
    let rows = partial::inputs(&view, events, false);
    println!("Events to rows, in both layers:\n\n{}\n", rows.explain(true)?);
    println!("Rows to partials, in both layers: one row for each pane and group, with these columns\n");
    for (name, data_type) in partial::schema(view.aggregation()).iter() {
        println!("    {name:<10} {data_type}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn no_events(table: &Table) -> LazyFrame {
    let schema: Schema = table.columns.iter().map(|c| (c.name.as_str().into(), polars_type(&c.data_type))).collect();
    DataFrame::empty_with_schema(&schema).lazy()
}

/// `anabranch config show`
pub fn show_config(dir: &Path) -> Result<ExitCode, Failure> {
    let project = load(dir)?;
    print!("{}", project.config.to_toml()?);
    Ok(ExitCode::SUCCESS)
}
