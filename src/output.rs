//! Rows of JSON objects as a table, JSON or CSV on stdout.

use std::io::Write;

use comfy_table::{Table, presets};
use serde_json::Value;

use crate::cli::Format;
use crate::failure::Failure;

/// Prints `rows` (objects) with these columns, or `document` as it is for JSON.
pub fn print(format: Format, document: &Value, columns: &[&str], rows: &[Value]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let cell = |row: &Value, column: &str| match row.get(column) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let written = match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(document)?),
        Format::Csv => {
            let quoted = |text: String| {
                if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
            };
            let line = |cells: Vec<String>| cells.into_iter().map(quoted).collect::<Vec<_>>().join(",");
            let mut text = line(columns.iter().map(|c| c.to_string()).collect());
            for row in rows {
                text.push('\n');
                text.push_str(&line(columns.iter().map(|c| cell(row, c)).collect()));
            }
            writeln!(out, "{text}")
        }
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(columns);
            for row in rows {
                table.add_row(columns.iter().map(|c| printable(&cell(row, c))));
            }
            writeln!(out, "{table}")
        }
    };
    match written {
        // The reader has gone, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// A text that can't move the terminal's cursor or change its colours.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
