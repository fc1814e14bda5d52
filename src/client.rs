//! The API as the command line uses it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::Target;
use crate::failure::Failure;
use crate::platform::{Platform, Started};

/// Where a running server can be found: written to the data folder while it listens.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerFile {
    /// `http://127.0.0.1:8080`.
    pub url: String,
    /// The process.
    pub pid: u32,
}

impl ServerFile {
    /// Its path in a data folder.
    pub fn path(data: &Path) -> PathBuf {
        data.join("server.json")
    }

    /// What a data folder says, if anything.
    fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(data)).ok()?).ok()
    }
}

/// A connection to a server: one that runs already, or one started for this command alone.
pub struct Client {
    http: reqwest::Client,
    url: String,
    own: Option<Started>,
}

impl Client {
    /// Connects to the server named, to the one that runs the project, or starts the project for this command.
    pub async fn connect(target: &Target) -> Result<Self, Failure> {
        if let Some(url) = &target.server {
            return Ok(Self { http: http()?, url: url.trim_end_matches('/').to_owned(), own: None });
        }
        let data = target.project.join(".anabranch");
        if let Some(file) = ServerFile::read(&data) {
            let client = Self { http: http()?, url: file.url, own: None };
            if client.http.get(format!("{}/healthz", client.url)).send().await.is_ok_and(|r| r.status().is_success()) {
                return Ok(client);
            }
        }
        let platform = Platform::load(&target.project)?;
        eprintln!("no server runs {}: its data is read for this command alone", target.project.display());
        let started = platform.start_for_command().await?;
        Ok(Self { http: http()?, url: started.url.clone(), own: Some(started) })
    }

    /// Connects to a server by its address.
    pub fn to(url: String) -> Result<Self, Failure> {
        Ok(Self { http: http()?, url, own: None })
    }

    /// A request to a path of the API.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Sends a request and reads the JSON answer; a problem becomes its message.
    pub async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = request
            .send()
            .await
            .map_err(|error| Failure::new(format!("{} can't be reached: {}", self.url, error.without_url())))?;
        let status = response.status();
        let body = response.bytes().await?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().or(problem["title"].as_str()).map(str::to_owned);
        let message = detail.unwrap_or_else(|| format!("the server answered {status}"));
        Err(match status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Failure::usage(message),
            _ => Failure::new(message),
        })
    }

    /// Waits until a view covers the log to its end.
    pub async fn settle(&self, view: &str) -> Result<Value, Failure> {
        loop {
            let detail = self.json(self.request(Method::GET, &format!("/v1/views/{view}"))).await?;
            if detail["lag"] == 0 {
                return Ok(detail);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends a server that was started for this command.
    pub async fn close(self) -> Result<(), Failure> {
        match self.own {
            Some(started) => started.stop().await,
            None => Ok(()),
        }
    }
}

fn http() -> Result<reqwest::Client, Failure> {
    Ok(reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?)
}
