//! From the ingest answer to being visible in the rows, at a steady rate.

use std::time::{Duration, Instant};

use anabranch::client::Client;
use anabranch::failure::Failure;
use anabranch::platform::Platform;
use anabranch_log::clock::{Clock, SystemClock};
use anabranch_plan::time::format_timestamp;
use reqwest::Method;

use super::report;

const SQL: &str = r"
CREATE TABLE clicks (url TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'clicks', event_time = 'ts', watermark = '5 seconds');
CREATE MATERIALIZED VIEW clicks_per_url AS
SELECT window_start, window_end, url, count(*) AS clicks
FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, url;
";

/// Posts a second.
const POSTS: u32 = 50;

/// Measures and prints.
pub async fn run(rate: u32, seconds: u32) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("anabranch-bench-fresh-{}", std::process::id()));
    let outcome = measure(rate, seconds, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    outcome
}

async fn measure(rate: u32, seconds: u32, folder: &std::path::Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder.join("views"))?;
    std::fs::write(folder.join("views/bench.sql"), SQL)?;
    std::fs::write(folder.join("anabranch.toml"), "")?;
    let started = Platform::load(folder)?.start_for_command().await?;
    let client = std::sync::Arc::new(Client::to(started.url.clone())?);
    let per_post = (rate / POSTS).max(1);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / POSTS);
    let mut waiting = tokio::task::JoinSet::new();
    for post in 0..POSTS * seconds {
        ticks.tick().await;
        let time = format_timestamp(SystemClock.now());
        let line = |i: u32| format!(r#"{{"url":"/page/{}","ts":"{time}"}}"#, (post + i) % 500);
        // The probe's own key, so that its row says when the post became visible.
        let mut body: Vec<String> = (0..per_post).map(line).collect();
        body.push(format!(r#"{{"url":"/probe/{post}","ts":"{time}"}}"#));
        let client = std::sync::Arc::clone(&client);
        waiting.spawn(async move {
            let request = client.request(Method::POST, "/v1/topics/clicks/events").body(body.join("\n"));
            client.json(request).await?;
            let answered = Instant::now();
            let end = window_end(&time);
            let path = format!("/v1/views/clicks_per_url/rows?window={end}&key.url=/probe/{post}");
            loop {
                let rows = client.json(client.request(Method::GET, &path)).await?;
                if rows["rows"].as_array().is_some_and(|rows| !rows.is_empty()) {
                    return Ok::<Duration, Failure>(answered.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    let mut delays = Vec::new();
    while let Some(delay) = waiting.join_next().await {
        delays.push(delay??);
    }
    delays.sort();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let beside =
        format!("median {:.0} ms, worst {:.0} ms, {} probes at {rate} events/s", at(0.5), at(1.0), delays.len());
    report("freshness: ingest answer to visible in rows, p99", format!("{:.0} ms", at(0.99)), &beside);
    started.stop().await
}

/// The end of the minute that a time is in.
fn window_end(time: &str) -> String {
    let micros = anabranch_plan::time::parse_timestamp(time).unwrap_or_default();
    format_timestamp((micros.div_euclid(60_000_000) + 1) * 60_000_000)
}
