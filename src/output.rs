//! Rows of JSON objects as a table, JSON or CSV on stdout.

use std::io::Write;

use comfy_table::{Table, presets};
use serde_json::Value;

use crate::cli::Format;
use crate::failure::Failure;

/// Prints `rows` (objects) with these columns, or `document` as it is for JSON.
pub fn print(format: Format, document: &Value, columns: &[&str], rows: &[Value]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(document)?),
        Format::Csv => {
            writeln!(out, "{}", csv(columns, rows))
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

fn cell(row: &Value, column: &str) -> String {
    match row.get(column) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Comma-separated values with a header. NULL is nothing, an empty text is `""`.
fn csv(columns: &[&str], rows: &[Value]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let plain = |text: &str| {
        if text.contains([',', '"', '\n', '\r']) { quoted(text) } else { text.to_owned() }
    };
    let field = |row: &Value, column: &str| match row.get(column) {
        Some(Value::String(text)) if text.is_empty() => quoted(text),
        _ => plain(&cell(row, column)),
    };
    let header = columns.iter().map(|column| plain(column)).collect::<Vec<_>>().join(",");
    let lines = rows.iter().map(|row| columns.iter().map(|column| field(row, column)).collect::<Vec<_>>().join(","));
    std::iter::once(header).chain(lines).collect::<Vec<_>>().join("\n")
}

/// A text that can't move the terminal's cursor or change its colours.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn csv_tells_an_empty_text_from_null() {
        let rows = [json!({"k": "", "n": 1}), json!({"k": null, "n": 2}), json!({"k": "a,\"b\"", "n": null})];
        assert_eq!(csv(&["k", "n"], &rows), "k,n\n\"\",1\n,2\n\"a,\"\"b\"\"\",");
    }
}
