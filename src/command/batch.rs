//! `anabranch batch`

use std::process::ExitCode;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{Format, Target};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

const COLUMNS: [&str; 8] = ["id", "views", "state", "trigger", "started", "ended", "versions", "error"];

/// Starts a run and waits for its end.
pub async fn run(view: Option<String>, full: bool, format: Format, target: Target) -> Result<ExitCode, Failure> {
    let client = Client::connect(&target).await?;
    let views: Vec<String> = view.into_iter().collect();
    let request = client.request(Method::POST, "/v1/jobs").header("x-anabranch-trigger", "cli");
    let mut job = client.json(request.json(&json!({"kind": "batch", "views": views, "full": full}))).await?;
    let bar = indicatif::ProgressBar::new(100);
    while matches!(job["state"].as_str(), Some("queued" | "running")) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap_or_default());
        job = client.json(client.request(Method::GET, &path)).await?;
        bar.set_position((job["progress"].as_f64().unwrap_or(0.0) * 100.0) as u64);
    }
    bar.finish_and_clear();
    output::print(format, &job, &COLUMNS, std::slice::from_ref(&job))?;
    client.close().await?;
    Ok(if job["state"] == "succeeded" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lists the runs.
pub async fn history(format: Format, target: Target) -> Result<ExitCode, Failure> {
    let client = Client::connect(&target).await?;
    let answer = client.json(client.request(Method::GET, "/v1/jobs")).await?;
    let jobs: Vec<Value> = answer["jobs"].as_array().cloned().unwrap_or_default();
    output::print(format, &answer, &COLUMNS, &jobs)?;
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}
