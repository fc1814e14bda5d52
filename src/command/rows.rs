//! `anabranch rows VIEW`

use std::process::ExitCode;

use reqwest::Method;
use serde_json::Value;

use crate::cli::{Mode, Rows};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// Asks for the rows and prints them, with what is known of them on stderr.
pub async fn run(rows: Rows) -> Result<ExitCode, Failure> {
    let client = Client::connect(&rows.target).await?;
    let mode = match rows.mode {
        Mode::Merged => "merged",
        Mode::Batch => "batch",
        Mode::Speed => "speed",
    };
    let mut query = vec![("mode".to_owned(), mode.to_owned()), ("limit".to_owned(), rows.limit.to_string())];
    for (name, value) in [("window", &rows.window), ("from", &rows.from), ("to", &rows.to)] {
        query.extend(value.clone().map(|value| (name.to_owned(), value)));
    }
    for key in &rows.keys {
        let (column, value) =
            key.split_once('=').ok_or_else(|| Failure::usage(format!("--key {key}: write COLUMN=VALUE")))?;
        query.push((format!("key.{column}"), value.to_owned()));
    }
    let path = format!("/v1/views/{}/rows", rows.view);
    let answer = client.json(client.request(Method::GET, &path).query(&query)).await?;
    let list = answer["rows"].as_array().cloned().unwrap_or_default();
    let columns: Vec<&str> =
        list.first().and_then(Value::as_object).into_iter().flat_map(|row| row.keys()).map(String::as_str).collect();
    eprintln!("{}", summary(&answer));
    output::print(rows.output, &answer, &columns, &list)?;
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// One line: which window, how exact, from what.
fn summary(answer: &Value) -> String {
    let window = match &answer["window"] {
        Value::Null => "all of time".to_owned(),
        window => {
            let (start, end) = (window.get("start").or(window.get("from")), window.get("end").or(window.get("to")));
            let text = |part: Option<&Value>| part.and_then(Value::as_str).unwrap_or("?").to_owned();
            let state = window["state"].as_str().map(|state| format!(" ({state})")).unwrap_or_default();
            format!("{} to {}{state}", text(start), text(end))
        }
    };
    let exact = if answer["exact"] == true { "exact" } else { "approximate" };
    let version = &answer["sources"]["batch"]["version"];
    let batch = if version.is_null() { "no batch version yet".to_owned() } else { format!("batch version {version}") };
    let incomplete = if answer["incomplete"] == true {
        format!(", incomplete: {} missing", answer["missing"])
    } else {
        String::new()
    };
    format!("{window}: {exact}, {batch}, {} late, {} rejected{incomplete}", answer["late"], answer["rejected"])
}
