//! Pieces on their way to the server, each under a key of its own, and what became of them.

use std::process::ExitCode;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::cut::Piece;
use crate::cli::Format;
use crate::client::{Answer, Client};
use crate::failure::Failure;
use crate::output;

/// How many rejected lines the outcome lists.
const LISTED: usize = 1_000;

/// After how long a piece is sent again for the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What an answer says if the piece was stored by an earlier request.
const REPLAYED: &str = "idempotent-replayed";

/// Sends pieces in their order.
pub struct Sender<'a> {
    client: &'a Client,
    path: String,
    /// A digest of all lines up to the end of the piece, and of where they come from.
    keys: Sha256,
    is_file: bool,
    /// For how long a piece is sent again while the server can't take it.
    patience: Duration,
    /// The next line to be sent.
    next_line: u64,
    accepted: u64,
    /// How many of them an earlier run had sent.
    repeated: u64,
    rejected: Vec<Value>,
    rejected_count: u64,
    offsets: Map<String, Value>,
}

impl<'a> Sender<'a> {
    /// Nothing is sent yet. `keys` knows where the lines come from; of a file it is the same whenever that is sent.
    pub fn new(client: &'a Client, topic: &str, keys: Sha256, is_file: bool, patience: Duration) -> Self {
        Self {
            client,
            path: format!("/v1/topics/{topic}/events"),
            keys,
            is_file,
            patience,
            next_line: 1,
            accepted: 0,
            repeated: 0,
            rejected: Vec::new(),
            rejected_count: 0,
            offsets: Map::new(),
        }
    }

    /// Sends a piece; if it is too long for the server, in parts.
    pub async fn send(&mut self, mut piece: Piece) -> Result<(), Failure> {
        for (line, bytes) in std::mem::take(&mut piece.too_long) {
            self.reject(line, &format!("{bytes} bytes long, which is too long: it was passed over"));
        }
        let mut parts = vec![piece];
        while let Some(part) = parts.pop() {
            let mut keys = self.keys.clone();
            keys.update(&part.text);
            let key: String = keys.clone().finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let answer = self.post(&part, &format!("produce-{key}-{}", part.first_line)).await?;
            match answer.status {
                StatusCode::PAYLOAD_TOO_LARGE => match part.halves() {
                    Ok([first, second]) => {
                        parts.extend([second, first]);
                        continue;
                    }
                    Err(line) => {
                        let bytes = line.text.len();
                        let why = format!("{bytes} bytes long, which the server doesn't take: it was passed over");
                        self.reject(line.first_line, &why);
                        self.next_line = line.first_line + 1;
                    }
                },
                status if status.is_success() => {
                    self.take(&part, &answer);
                    self.next_line = part.first_line + part.lines;
                }
                _ => return Err(answer.failure()),
            }
            self.keys = keys;
        }
        Ok(())
    }

    /// Sends a part, again and again while the server can't take it.
    async fn post(&self, part: &Piece, key: &str) -> Result<Answer, Failure> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let request = self.client.request(Method::POST, &self.path).body(part.text.clone());
            let request = request.header("content-type", "application/x-ndjson").header("idempotency-key", key);
            let answer = self.client.ask(request).await;
            let is_passing = match &answer {
                Ok(answer) => matches!(
                    answer.status,
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY
                ),
                Err(_) => true,
            };
            if !is_passing || begun.elapsed() + pause >= self.patience {
                return answer;
            }
            if pause == FIRST_PAUSE {
                let why = answer.map_or_else(|failure| failure.to_string(), |answer| answer.failure().to_string());
                eprintln!("at line {}: {why}; trying again", part.first_line);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(Duration::from_secs(5));
        }
    }

    fn take(&mut self, part: &Piece, answer: &Answer) {
        let receipt = &answer.body;
        let accepted = receipt["accepted"].as_u64().unwrap_or(0);
        self.accepted += accepted;
        if answer.headers.contains_key(REPLAYED) {
            self.repeated += accepted;
        }
        let told = receipt["rejected"].as_array().map(Vec::as_slice).unwrap_or_default();
        for reject in told {
            let line = reject["line"].as_u64().unwrap_or(1) + part.first_line - 1;
            self.reject(line, reject["error"].as_str().unwrap_or_default());
        }
        let more = receipt["rejected_count"].as_u64().unwrap_or(0).saturating_sub(told.len() as u64);
        if more > 0 {
            let lines = format!("lines {} to {}", part.first_line, part.first_line + part.lines - 1);
            eprintln!("{lines}: {more} more are rejected; `anabranch rejects list` lists them");
            self.rejected_count += more;
        }
        for (partition, range) in receipt["offsets"].as_object().into_iter().flatten() {
            let first = self.offsets.get(partition).map_or_else(|| range[0].clone(), |known| known[0].clone());
            self.offsets.insert(partition.clone(), json!([first, range[1]]));
        }
    }

    fn reject(&mut self, line: u64, error: &str) {
        eprintln!("line {line}: {error}");
        self.rejected_count += 1;
        if self.rejected.len() < LISTED {
            self.rejected.push(json!({"line": line, "error": error}));
        }
    }

    /// Says what became of all that was sent, and if that isn't all there was, how to go on.
    pub fn finish(self, format: Format, sent: Result<(), Failure>) -> Result<ExitCode, Failure> {
        let Self { accepted, repeated, rejected, rejected_count, offsets, next_line, is_file, .. } = self;
        if repeated > 0 {
            eprintln!("{repeated} events were stored before and are not stored again; `--again` sends a file anew");
        }
        let outcome = json!({
            "accepted": accepted, "repeated": repeated, "rejected": rejected, "rejected_count": rejected_count,
            "offsets": offsets,
        });
        let row = json!({"accepted": accepted, "rejected": rejected_count, "offsets": offsets});
        output::print(format, &outcome, &["accepted", "rejected", "offsets"], &[row])?;
        let Err(failure) = sent else {
            return Ok(if rejected_count == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) });
        };
        let done = match next_line {
            1 => "nothing is known to be stored".to_owned(),
            next => format!("lines 1 to {} are done, {accepted} events of them stored", next - 1),
        };
        let go_on = if is_file {
            "the same command goes on from there, and for a day stores nothing twice".to_owned()
        } else {
            format!("send what comes from line {next_line} on; some of the lines just behind may be stored")
        };
        Err(failure.at(&format!("line {next_line}")).meaning(&format!("{done}; {go_on}")))
    }
}
