//! Requests per second of a rows answer under wrk, beside a fixed answer of the same server.

use std::process::Command;
use std::sync::Arc;

use anabranch::client::Client;
use anabranch::failure::Failure;
use anabranch::platform::Platform;

use super::report;
use super::stream::{SQL, Tweets};

/// Measures and prints.
pub async fn run(seconds: u32) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("anabranch-bench-serve-{}", std::process::id()));
    let outcome = measure(seconds, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    outcome
}

async fn measure(seconds: u32, folder: &std::path::Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder.join("views"))?;
    std::fs::write(folder.join("views/bench.sql"), SQL)?;
    std::fs::write(folder.join("anabranch.toml"), "")?;
    let platform = Platform::load(folder)?;
    let started = platform.start_for_command().await?;
    let log = Arc::clone(&started.log);
    tokio::task::spawn_blocking(move || Tweets::fill(&*log, "tweets", 1, 500_000)).await??;
    let client = Client::to(started.url.clone())?;
    client.settle("trending_hashtags").await?;
    let fixed = wrk(&format!("{}/healthz", started.url), seconds)?;
    report("serving: fixed answer", format!("{fixed:.0} requests/s"), "");
    let rows = wrk(&format!("{}/v1/views/trending_hashtags/rows?window=latest&limit=10", started.url), seconds)?;
    let beside = format!("{:.2} of the fixed answer", rows / fixed);
    report("serving: rows?window=latest&limit=10", format!("{rows:.0} requests/s"), &beside);
    started.stop().await
}

fn wrk(url: &str, seconds: u32) -> Result<f64, Failure> {
    let output =
        Command::new("wrk").args(["-t1", "-c32", &format!("-d{seconds}s"), url]).output().map_err(|error| {
            Failure::new(format!("wrk can't be run ({error}): install it, as with apt-get install wrk"))
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") {
        return Err(Failure::new(format!("{url} answered with errors:\n{text}")));
    }
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    rate.ok_or_else(|| Failure::new(format!("wrk didn't say how many requests it made:\n{text}")))
}
