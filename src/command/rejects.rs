//! `anabranch rejects list`

use std::process::ExitCode;

use reqwest::Method;

use crate::cli::{Format, Target};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// Lists what was refused or came too late, newest first.
pub async fn list(topic: Option<String>, limit: u32, format: Format, target: Target) -> Result<ExitCode, Failure> {
    let client = Client::connect(&target).await?;
    let mut query = vec![("limit", limit.to_string())];
    query.extend(topic.map(|topic| ("topic", topic)));
    let answer = client.json(client.request(Method::GET, "/v1/rejects").query(&query)).await?;
    let list = answer["rejects"].as_array().cloned().unwrap_or_default();
    let columns = ["rejected_at", "topic", "partition", "offset", "line", "view", "behind_ms", "reason", "record"];
    output::print(format, &answer, &columns, &list)?;
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}
