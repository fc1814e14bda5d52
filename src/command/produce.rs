//! `anabranch produce TOPIC [FILE]`

mod cut;
mod send;

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::cut::Cutter;
use self::send::Sender;
use crate::cli::Produce;
use crate::client::Client;
use crate::failure::Failure;

/// How much is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Lines that come from elsewhere than a file are sent after this long, however few they are.
const LINGER: Duration = Duration::from_secs(1);

/// Sends the records, piece by piece, and says what became of them.
pub async fn run(produce: Produce) -> Result<ExitCode, Failure> {
    let file = produce.file.as_deref().filter(|path| path.as_os_str() != "-");
    let input = Input::open(file)?;
    let client = Client::connect(&produce.target).await?;
    let keys = match (&input.name, produce.again) {
        (Some(name), false) => Sha256::new_with_prefix(format!("{}\n{name}\n", produce.topic)),
        _ => Sha256::new_with_prefix(uuid::Uuid::new_v4()),
    };
    let mut sender = Sender::new(&client, &produce.topic, keys, input.name.is_some(), produce.target.timeout);
    let sent = input.send(&mut sender).await;
    let code = sender.finish(produce.output, sent);
    client.close().await?;
    code
}

/// What is sent.
struct Input {
    reader: Box<dyn Read + Send>,
    /// Where the file is, if it is one.
    name: Option<String>,
    bytes: u64,
}

impl Input {
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self { reader: Box::new(std::io::stdin()), name: None, bytes: 0 });
        };
        let failed = |error| Failure::usage(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if about.is_dir() {
            return Err(Failure::usage(format!("{} is a folder; name a file of NDJSON", path.display())));
        }
        let name = about.is_file().then(|| path.canonicalize().map(|path| path.display().to_string()));
        Ok(Self { reader: Box::new(file), name: name.transpose().map_err(failed)?, bytes: about.len() })
    }

    /// Sends all of it.
    async fn send(self, sender: &mut Sender<'_>) -> Result<(), Failure> {
        let bar = match self.bytes {
            0 => ProgressBar::hidden(),
            _ if !std::io::stderr().is_terminal() => ProgressBar::hidden(),
            bytes => ProgressBar::new(bytes),
        };
        bar.set_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}")?);
        let is_file = self.name.is_some();
        let mut chunks = read(self.reader);
        let (mut cutter, mut send_at) = (Cutter::default(), None);
        loop {
            let chunk = match send_at {
                Some(at) => tokio::time::timeout_at(at, chunks.recv()).await,
                None => Ok(chunks.recv().await),
            };
            let (pieces, is_end) = match chunk {
                Ok(Some(chunk)) => (cutter.push(&chunk?), false),
                Ok(None) => (std::mem::take(&mut cutter).finish().into_iter().collect(), true),
                // It has been quiet.
                Err(_) => (cutter.take().into_iter().collect(), false),
            };
            if send_at.is_none_or(|at| at <= Instant::now()) || !pieces.is_empty() {
                send_at = (!is_file).then(|| Instant::now() + LINGER);
            }
            for piece in pieces {
                let bytes = piece.bytes;
                sender.send(piece).await?;
                bar.inc(bytes);
            }
            if is_end {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }
}

/// Reads in a thread of its own, as nobody knows when more comes.
fn read(mut reader: Box<dyn Read + Send>) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = match reader.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => {
                    chunk.truncate(length);
                    Ok(chunk)
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}
