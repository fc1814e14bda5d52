//! From the death of a speed worker until its partitions answer fresh again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anabranch::client::Client;
use anabranch::failure::Failure;
use anabranch_log::clock::{Clock, SystemClock};
use anabranch_plan::time::format_timestamp;
use reqwest::Method;
use serde_json::Value;

use super::report;

const SQL: &str = r"
CREATE TABLE clicks (url TEXT, ts TIMESTAMP NOT NULL)
WITH (topic = 'clicks', event_time = 'ts', watermark = '5 seconds', partitions = 6);
CREATE MATERIALIZED VIEW clicks_per_url AS
SELECT window_start, window_end, url, count(*) AS clicks
FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, url;
";

/// An answer is fresh if it covers what the log held this long ago.
const FRESH: Duration = Duration::from_millis(500);

/// Between two deaths the group has this long to settle.
const REST: Duration = Duration::from_secs(6);

/// Measures and prints.
pub async fn run(brokers: &str, deaths: usize) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("anabranch-bench-rebalance-{}", std::process::id()));
    let outcome = measure(brokers, deaths, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    outcome
}

/// A role in a process of its own, which ends with this value.
struct Process {
    child: Child,
    url: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(role: &str, folder: &Path) -> Result<Process, Failure> {
    let mut child = Command::new(std::env::current_exe()?.with_file_name("anabranch"))
        .args([role, "--listen", "127.0.0.1:0"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().ok_or_else(|| Failure::new("a process without stderr"))?;
    let mut lines = BufReader::new(stderr).lines();
    let mut process = Process { child, url: String::new() };
    for line in lines.by_ref() {
        let line = line?;
        if let Some(at) = line.find("http://127.0.0.1:") {
            line[at..].trim().clone_into(&mut process.url);
            // Nobody reads on, so what it says has to go somewhere.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(process);
        }
    }
    Err(Failure::new(format!("role {role} didn't start")))
}

async fn measure(brokers: &str, deaths: usize, folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder.join("views"))?;
    std::fs::write(folder.join("views/bench.sql"), SQL)?;
    let name = format!("anabranch-rebalance-{}", std::process::id());
    let settings = format!("[kafka]\nbrokers = '{brokers}'\ntopic_prefix = '{name}-'\ngroup = '{name}'\n");
    std::fs::write(folder.join("anabranch.toml"), settings)?;
    let serve = start("serve", folder)?;
    let mut workers = std::collections::VecDeque::from([start("speed", folder)?, start("speed", folder)?]);
    let client = std::sync::Arc::new(Client::to(serve.url.clone())?);
    let producing = tokio::spawn(produce(client.clone()));
    wait_until_fresh(&client, Instant::now()).await?;
    let mut times = Vec::new();
    for _ in 0..deaths {
        tokio::time::sleep(REST).await;
        let died = Instant::now();
        drop(workers.pop_front());
        // Another one comes to take its place, as a supervisor would have it; it doesn't hasten what is measured.
        wait_until_fresh(&client, died).await?;
        times.push(died.elapsed());
        workers.push_back(start("speed", folder)?);
        wait_until_fresh(&client, Instant::now()).await?;
    }
    producing.abort();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64();
    let beside = format!("max {:.1} s over {} deaths; the group's session is 6 s", at(1.0), times.len());
    report("a worker's death to fresh answers of its partitions, p50", format!("{:.1} s", at(0.5)), &beside);
    Ok(())
}

/// 2,000 events a second.
async fn produce(client: std::sync::Arc<Client>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let time = format_timestamp(SystemClock.now());
        let line = |i: u32| format!(r#"{{"url":"/page/{i}","ts":"{time}"}}"#);
        let body = (0..100).map(line).collect::<Vec<_>>().join("\n");
        let request = client.request(Method::POST, "/v1/topics/clicks/events").body(body);
        if let Err(error) = client.json(request).await {
            tracing::warn!(%error, "events weren't taken");
        }
    }
}

/// Waits until every partition covers what the log held a moment before, which is after `since`.
async fn wait_until_fresh(client: &Client, since: Instant) -> Result<(), Failure> {
    let mut ends: Vec<(Instant, Value)> = Vec::new();
    loop {
        let view = client.json(client.request(Method::GET, "/v1/views/clicks_per_url")).await?;
        let now = Instant::now();
        let known = ends.iter().rev().find(|(at, _)| now.duration_since(*at) >= FRESH && *at >= since);
        let covers = |end: &Value| {
            let covered = |(partition, end): (&String, &Value)| {
                view["coverage"]["speed"]["offsets"][partition][1].as_u64() >= end.as_u64()
            };
            end.as_object().is_some_and(|ends| ends.len() == 6 && ends.iter().all(covered))
        };
        if known.is_some_and(|(_, end)| covers(end)) {
            return Ok(());
        }
        if since.elapsed() > Duration::from_secs(120) {
            return Err(Failure::new(format!("the answers weren't fresh after two minutes: {view}")));
        }
        ends.push((now, view["log_end"].clone()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
