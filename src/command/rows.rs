//! `anabranch rows VIEW`

use std::process::ExitCode;

use reqwest::Method;
use serde_json::Value;

use crate::cli::{Format, Mode, Rows};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// How many rows a table shows unless asked for more.
const SHOWN: usize = 20;

/// How many rows one request asks for at most: what most views have is one answer, of one instant.
const PAGE: usize = 100_000;

/// Asks for the rows and prints them, with what is known of them on stderr.
pub async fn run(rows: Rows) -> Result<ExitCode, Failure> {
    let client = Client::connect(&rows.target).await?;
    let mode = match rows.mode {
        Mode::Merged => "merged",
        Mode::Batch => "batch",
        Mode::Speed => "speed",
    };
    let mut query = vec![("mode".to_owned(), mode.to_owned())];
    for (name, value) in [("window", &rows.window), ("from", &rows.from), ("to", &rows.to), ("order", &rows.order)] {
        query.extend(value.clone().map(|value| (name.to_owned(), value)));
    }
    for key in &rows.keys {
        let (column, value) =
            key.split_once('=').ok_or_else(|| Failure::usage(format!("--key {key}: write COLUMN=VALUE")))?;
        query.push((format!("key.{column}"), value.to_owned()));
    }
    query.extend(rows.null_keys.iter().map(|column| (format!("key.{column}.null"), "true".to_owned())));
    let path = format!("/v1/views/{}/rows", rows.view);
    let wanted = wanted(rows.limit, rows.output);
    let (mut answer, mut list, mut cursor): (Value, Vec<Value>, Option<String>) = Default::default();
    loop {
        let limit = wanted.map_or(PAGE, |wanted| PAGE.min(wanted - list.len()));
        let request = client.request(Method::GET, &path).query(&query).query(&[("limit", limit)]);
        let mut page = client.json(request.query(&cursor.map(|cursor| [("cursor", cursor)]))).await?;
        if let Value::Array(rows) = page["rows"].take() {
            list.extend(rows);
        }
        if answer.is_null() {
            answer = page.clone();
        } else if answer["sources"] != page["sources"] {
            eprintln!("the view has changed while it was read: its rows aren't all of one instant");
        }
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() || wanted.is_some_and(|wanted| list.len() >= wanted) {
            break;
        }
    }
    answer["next_cursor"] = cursor.clone().into();
    answer["rows"] = list.clone().into();
    let columns: Vec<&str> =
        list.first().and_then(Value::as_object).into_iter().flat_map(|row| row.keys()).map(String::as_str).collect();
    eprintln!("{}", summary(&answer));
    output::print(rows.output, &answer, &columns, &list)?;
    if cursor.is_some() {
        eprintln!("{}", left_out(list.len(), answer["total"].as_u64()));
    }
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// How many rows are wanted; none for all.
fn wanted(limit: Option<usize>, output: Format) -> Option<usize> {
    match (limit, output) {
        (Some(0), _) | (None, Format::Json | Format::Csv) => None,
        (Some(limit), _) => Some(limit),
        (None, Format::Table) => Some(SHOWN),
    }
}

/// What is said where not all rows are shown.
fn left_out(shown: usize, total: Option<u64>) -> String {
    let of = total.map_or_else(|| "the first".to_owned(), |total| format!("{shown} of {}", grouped(total)));
    let rows = if total.is_some() { "rows".to_owned() } else { format!("{shown} rows, and there are more") };
    format!("{of} {rows}; --limit 0 or --output csv for all")
}

/// A number with a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let pieces: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|piece| std::str::from_utf8(piece).ok()).collect();
    pieces.join(",")
}

/// One line: which window, how exact, from what.
fn summary(answer: &Value) -> String {
    let window = match &answer["window"] {
        Value::Null if answer["total"] == 0 => "no window yet".to_owned(),
        Value::Null => "all of time".to_owned(),
        window => {
            let bound = |names: [&str; 2]| names.iter().find_map(|name| window[*name].as_str());
            let state = window["state"].as_str().map(|state| format!(" ({state})")).unwrap_or_default();
            match (bound(["start", "from"]), bound(["end", "to"])) {
                (Some(start), Some(end)) => format!("{start} to {end}{state}"),
                (None, Some(end)) => format!("sessions that end at {end}{state}"),
                _ => format!("sessions{state}"),
            }
        }
    };
    let exact = if answer["exact"] == true { "exact" } else { "approximate" };
    let version = &answer["sources"]["batch"]["version"];
    let batch = if version.is_null() { "no batch version yet".to_owned() } else { format!("batch version {version}") };
    let incomplete = if answer["incomplete"] == true {
        let why = answer["reason"].as_str().map(|why| format!(", as it has stopped: {why}")).unwrap_or_default();
        format!(", incomplete: {} missing{why}", answer["missing"])
    } else {
        String::new()
    };
    format!("{window}: {exact}, {batch}, {} late, {} rejected{incomplete}", answer["late"], answer["rejected"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_summary_names_the_window_the_range_or_the_sessions() {
        for (window, total, expected) in [
            (Value::Null, 3, "all of time"),
            (Value::Null, 0, "no window yet"),
            (json!({"start": "A", "end": "B", "state": "open"}), 3, "A to B (open)"),
            (json!({"from": "A", "to": "B"}), 3, "A to B"),
            (json!({"end": "B", "state": "closed"}), 0, "sessions that end at B (closed)"),
            (json!({"state": "open"}), 0, "sessions (open)"),
        ] {
            let answer = json!({"window": window, "total": total, "exact": true, "late": 0, "rejected": 0});
            assert_eq!(summary(&answer), format!("{expected}: exact, no batch version yet, 0 late, 0 rejected"));
        }
    }

    #[test]
    fn a_table_says_what_it_leaves_out_and_files_hold_all() {
        assert_eq!(wanted(None, Format::Table), Some(20));
        assert_eq!(
            (wanted(None, Format::Csv), wanted(None, Format::Json), wanted(Some(0), Format::Table)),
            (None, None, None)
        );
        assert_eq!(wanted(Some(7), Format::Csv), Some(7));
        assert_eq!(left_out(20, Some(1_523)), "20 of 1,523 rows; --limit 0 or --output csv for all");
        assert_eq!(left_out(20, None), "the first 20 rows, and there are more; --limit 0 or --output csv for all");
        assert_eq!((grouped(999), grouped(1_000_000)), ("999".to_owned(), "1,000,000".to_owned()));
    }
}
