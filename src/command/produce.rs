//! `anabranch produce TOPIC [FILE]`

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::Produce;
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// How much is sent in one request.
const PIECE_BYTES: usize = 4 * 1024 * 1024;

/// Sends the records, piece by piece, and says what became of them.
pub async fn run(produce: Produce) -> Result<ExitCode, Failure> {
    let client = Client::connect(&produce.target).await?;
    let file = produce.file.as_deref().filter(|path| path.as_os_str() != "-");
    let (input, total): (Box<dyn Read>, u64) = match file {
        None => (Box::new(std::io::stdin()), 0),
        Some(path) => {
            let file = File::open(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
            let bytes = file.metadata()?.len();
            (Box::new(file), bytes)
        }
    };
    let bar =
        if total == 0 || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new(total) };
    bar.set_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}")?);
    let mut input = BufReader::with_capacity(PIECE_BYTES, input);
    let path = format!("/v1/topics/{}/events", produce.topic);
    let (mut accepted, mut rejected, mut offsets, mut lines) = (0, Vec::new(), serde_json::Map::new(), 0);
    loop {
        let piece = next_piece(&mut input)?;
        if piece.is_empty() {
            break;
        }
        let (bytes, piece_lines) = (piece.len() as u64, piece.iter().filter(|&&b| b == b'\n').count());
        let request = client.request(Method::POST, &path).header("content-type", "application/x-ndjson").body(piece);
        let receipt = client.json(request).await?;
        accepted += receipt["accepted"].as_u64().unwrap_or(0);
        for reject in receipt["rejected"].as_array().into_iter().flatten() {
            let line = reject["line"].as_u64().unwrap_or(0) + lines;
            eprintln!("line {line}: {}", reject["error"].as_str().unwrap_or_default());
            rejected.push(json!({"line": line, "error": reject["error"]}));
        }
        for (partition, range) in receipt["offsets"].as_object().into_iter().flatten() {
            let first = offsets.get(partition).map_or_else(|| range[0].clone(), |known: &Value| known[0].clone());
            offsets.insert(partition.clone(), json!([first, range[1]]));
        }
        lines += piece_lines as u64;
        bar.inc(bytes);
    }
    bar.finish_and_clear();
    let outcome = json!({"accepted": accepted, "rejected": rejected, "offsets": offsets});
    let row = json!({"accepted": accepted, "rejected": rejected.len(), "offsets": offsets});
    output::print(produce.output, &outcome, &["accepted", "rejected", "offsets"], &[row])?;
    client.close().await?;
    Ok(if rejected.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Whole lines, up to about [`PIECE_BYTES`]; empty at the end.
fn next_piece(input: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    while piece.len() < PIECE_BYTES {
        if input.read_until(b'\n', &mut piece)? == 0 {
            break;
        }
    }
    Ok(piece)
}
