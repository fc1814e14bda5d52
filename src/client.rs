//! The API as the command line uses it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::project;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::Target;
use crate::failure::Failure;
use crate::platform::{Platform, Started};

/// How long a server that may have gone is waited for.
const PROBE: Duration = Duration::from_secs(5);

/// Where a running server can be found: written to the data folder while it listens.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerFile {
    /// `http://127.0.0.1:8080`.
    url: String,
    /// The process.
    pid: u32,
    /// The data folder, as the file system numbers it: a copy of the folder has the file too, but not the server.
    folder: u64,
}

impl ServerFile {
    /// Says in a data folder where its server is.
    pub fn write(data: &Path, url: &str) -> std::io::Result<()> {
        let file = Self { url: url.to_owned(), pid: std::process::id(), folder: std::fs::metadata(data)?.ino() };
        std::fs::write(Self::path(data), serde_json::to_vec(&file)?)
    }

    /// Takes it back, unless it is another process's by now.
    pub fn remove(data: &Path) -> std::io::Result<()> {
        if Self::read(data).is_none_or(|file| file.pid != std::process::id()) {
            return Ok(());
        }
        match std::fs::remove_file(Self::path(data)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Its path in a data folder.
    pub fn path(data: &Path) -> PathBuf {
        data.join("server.json")
    }

    /// What a data folder says, if anything.
    fn read(data: &Path) -> Option<Self> {
        let file: Self = serde_json::from_slice(&std::fs::read(Self::path(data)).ok()?).ok()?;
        (file.folder == std::fs::metadata(data).ok()?.ino()).then_some(file)
    }
}

/// A connection to a server: one that runs already, or one started for this command alone.
pub struct Client {
    http: reqwest::Client,
    url: String,
    own: Option<Started>,
}

/// What a server said.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, if it is JSON.
    pub body: Value,
}

impl Answer {
    /// What a status that is no success means.
    pub fn failure(&self) -> Failure {
        let detail = self.body["detail"].as_str().or(self.body["title"].as_str()).map(str::to_owned);
        let message = detail.unwrap_or_else(|| format!("the server answered {}", self.status));
        match self.status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Failure::usage(message),
            _ => Failure::new(message),
        }
    }
}

impl Client {
    /// Connects to the server named, to the one that runs the project, or starts the project for this command.
    pub async fn connect(target: &Target) -> Result<Self, Failure> {
        let http = http(target.timeout)?;
        if let Some(url) = &target.server {
            return Ok(Self { http, url: url.trim_end_matches('/').to_owned(), own: None });
        }
        let data = target.project.join(".anabranch");
        if let Some(file) = ServerFile::read(&data)
            && is_its_server(&http, &file, &data, target.timeout.min(PROBE)).await?
        {
            return Ok(Self { http, url: file.url, own: None });
        }
        let platform = Platform::load(&target.project)?;
        eprintln!("no server runs {}: its data is read for this command alone", target.project.display());
        let started = platform.start_for_command().await?;
        Ok(Self { http, url: started.url.clone(), own: Some(started) })
    }

    /// Connects to a server by its address.
    pub fn to(url: String) -> Result<Self, Failure> {
        Ok(Self { http: http(Duration::from_secs(60))?, url, own: None })
    }

    /// A request to a path of the API.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Sends a request and reads the answer, whatever its status.
    pub async fn ask(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let failed = |error: reqwest::Error| {
            let what = if error.is_timeout() { "doesn't answer in time" } else { "can't be reached" };
            Failure::from(error.without_url()).at(&format!("{} {what}", self.url))
        };
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(failed)?;
        let body = match serde_json::from_slice(&body) {
            Ok(body) => body,
            Err(_) if !status.is_success() => Value::Null,
            Err(error) => {
                return Err(Failure::from(error).at(&format!("{} answered something else than JSON", self.url)));
            }
        };
        Ok(Answer { status, headers, body })
    }

    /// Sends a request and reads the JSON answer; a problem becomes its message.
    pub async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let answer = self.ask(request).await?;
        if answer.status.is_success() { Ok(answer.body) } else { Err(answer.failure()) }
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

/// Whether the server that a data folder names is this folder's. Another project's may have its port by now.
async fn is_its_server(
    http: &reqwest::Client,
    file: &ServerFile,
    data: &Path,
    wait: Duration,
) -> Result<bool, Failure> {
    let ServerFile { url, pid, .. } = file;
    let health = match http.get(format!("{url}/healthz")).timeout(wait).send().await {
        Ok(response) => response.json::<Value>().await,
        Err(error) => Err(error),
    };
    match health {
        Ok(health) => Ok(health["project"] == project::identity(data)?),
        Err(error) if error.is_timeout() => Err(Failure::new(format!(
            "the server that runs this project, process {pid} at {url}, doesn't answer within {} s; if it has ended, remove {}",
            wait.as_secs_f32(),
            ServerFile::path(data).display()
        ))),
        Err(_) => Ok(false),
    }
}

fn http(timeout: Duration) -> Result<reqwest::Client, Failure> {
    Ok(reqwest::Client::builder().connect_timeout(timeout.min(PROBE)).read_timeout(timeout).build()?)
}
