//! How fast the embedded log is: `cargo run --release -p anabranch-shared --example log_speed [DIRECTORY]`.
//!
//! Records are 180 bytes of JSON. Appends are synced one by one; the scan is read from the files, in the page cache.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_shared::clock::SystemClock;
use anabranch_shared::log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_shared::log::{Append, Log, Payloads, ReadLimit};
use anabranch_shared::position::Positions;

const RECORDS: usize = 6_000_000;

fn record(i: usize) -> String {
    let (user, item) = (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40, i.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 44);
    let json = format!(
        r#"{{"id":"{i:012}","user_id":"u{user:08}","item":"i{item:07}","kind":"click","timestamp":"2024-01-15T10:{:02}:{:02}.123Z","referrer":"https://example.org/{:016x}""#,
        i / 60 % 60,
        i % 60,
        i.wrapping_mul(0xA24B_AED4_963E_E407),
    );
    format!("{json:<179}}}")
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for per_append in [100, 1000, 5000] {
        let dir = root.join(format!("log-speed-{}-{per_append}", std::process::id()));
        let log = EmbeddedLog::open(&dir, EmbeddedOptions::default(), Arc::new(SystemClock))?;
        log.create_topic("events", 1)?;
        let appends: Vec<Payloads> =
            (0..50).map(|a| (0..per_append).map(|i| record(a * per_append + i)).collect()).collect();
        let bytes_per_append = appends[0].bytes().len();
        let count = if per_append < 1000 { RECORDS / 20 } else { RECORDS } / per_append;

        let start = Instant::now();
        for i in 0..count {
            log.append("events", Append { parts: vec![(0, appends[i % 50].clone())], idempotency: None })?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let (records, bytes) = ((count * per_append) as f64, (count * bytes_per_append) as f64);
        println!(
            "{per_append} per append: {:.2} million records/s, {:.0} MB/s",
            records / seconds / 1e6,
            bytes / seconds / 1e6
        );

        drop(log);
        let log = EmbeddedLog::open(&dir, EmbeddedOptions::default(), Arc::new(SystemClock))?;
        for (name, limit) in [("joined to 4 MiB", 4 << 20), ("cut to 100 kB", 100_000)] {
            let mut reader = log.reader("events", &Positions::from([(0, 0)]))?;
            let (start, mut read) = (Instant::now(), 0);
            while let Some(batch) = reader.poll(ReadLimit { records: usize::MAX, bytes: limit }, Duration::ZERO)? {
                read += batch.payloads.bytes().len();
            }
            let seconds = start.elapsed().as_secs_f64();
            println!("  scan, {name}: {:.2} GB/s of {:.2} GB", read as f64 / seconds / 1e9, read as f64 / 1e9);
        }
        drop(log);
        let stored = disk_bytes(&dir)?;
        println!("  on disk: {:.2} bytes for each byte of payload", stored as f64 / bytes);
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn disk_bytes(path: &std::path::Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    if path.is_file() {
        return Ok(path.metadata()?.blocks() * 512);
    }
    path.read_dir()?.map(|entry| disk_bytes(&entry?.path())).sum()
}
