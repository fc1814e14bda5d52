//! Commands on a project's files: no server, no data.

use std::path::Path;
use std::process::ExitCode;

use anabranch_engine::partial;
use anabranch_engine::row;
use anabranch_engine::transform::polars_type;
use anabranch_plan::schema::Table;
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
        .views
        .values()
        .map(|view| {
            let seconds = |micros: i64| format!("{} s", micros as f64 / 1e6);
            let window = view.window.map_or("all of time".to_owned(), |window| {
                match window {
                    Window::Sliding(window) if window.is_tumbling() => format!("tumble {}", seconds(window.size)),
                    Window::Sliding(window) => format!("hop {} by {}", seconds(window.size), seconds(window.slide)),
                    Window::Days(days) => format!("tumble {} d in {}", days.count, days.zone),
                    Window::Session { gap } => format!("session {}", seconds(gap)),
                }
            });
            let names: Vec<&str> = view.columns.iter().map(|column| view.column_name(*column)).collect();
            json!({"kind": "view", "name": view.name, "table": view.table.name, "topic": view.table.topic, "window": window,
                   "columns": names.join(", "), "limit": view.limit, "schedule": view.schedule.as_ref().map(ToString::to_string),
                   "definition": view.definition})
        })
        .collect();
    views.extend(catalog.outputs.values().map(|output| {
        let names: Vec<&str> = output.fields.iter().map(|field| field.name.as_str()).collect();
        json!({"kind": "output", "name": output.name, "table": output.table.name, "topic": output.table.topic,
               "columns": names.join(", "), "writes": output.topic, "delivery": output.delivery.name(),
               "partition_by": output.partition_by.map(|field| names[field]), "definition": output.definition})
    }));
    let columns = ["kind", "name", "table", "topic", "window", "columns", "limit", "schedule", "writes", "delivery"];
    output::print(format, &json!({"views": views}), &columns, &views)?;
    Ok(ExitCode::SUCCESS)
}

/// `anabranch views explain VIEW`
pub fn explain(dir: &Path, name: &str) -> Result<ExitCode, Failure> {
    let catalog = load(dir)?.catalog;
    if let Some(output) = catalog.outputs.get(name) {
        let records = row::Records::new(output).of(no_events(&output.table));
        println!("{}\n\ndefinition {}\n", output.sql, output.definition);
        println!("Events to records of topic `{}`:\n\n{}", output.topic, records.explain(true)?);
        return Ok(ExitCode::SUCCESS);
    }
    let Some(view) = catalog.views.get(name) else {
        let existing: Vec<&str> = catalog.views.keys().chain(catalog.outputs.keys()).map(String::as_str).collect();
        return Err(Failure::usage(format!("no view named `{name}`; there are {existing:?}")));
    };
    let rows = partial::rows(view, no_events(&view.table), false);
    println!("{}\n", view.sql);
    println!("definition {}\n", view.definition);
    println!("Events to rows, in both layers:\n\n{}\n", rows.explain(true)?);
    println!("Rows to partials, in both layers: one row for each pane and group, with these columns\n");
    for (name, data_type) in partial::schema(view).iter() {
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
