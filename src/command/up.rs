//! `anabranch up`: everything in one process.

use std::process::ExitCode;
use std::sync::Arc;

use anabranch_shared::config::Config;
use anabranch_shared::sql;

use crate::cli::Up;
use crate::client::ServerFile;
use crate::command::interrupted;
use crate::demo;
use crate::failure::Failure;
use crate::platform::Platform;

/// The topics that the demo feeds.
const DEMO_TOPICS: [&str; 2] = ["tweets", "page_views"];

/// The demo's own views: those of the examples, recomputed each minute.
const DEMO_VIEWS: [(&str, &str); 2] = [
    ("examples/social/views/social.sql", include_str!("../../examples/social/views/social.sql")),
    ("examples/clicks/views/clicks.sql", include_str!("../../examples/clicks/views/clicks.sql")),
];

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(up: Up) -> Result<ExitCode, Failure> {
    let has_project = up.dir.join("anabranch.toml").is_file() || up.dir.join("views").is_dir();
    let mut platform = if up.demo && !has_project { demo_project(&up)? } else { Platform::load(&up.dir)? };
    if let Some(listen) = &up.listen {
        platform.config.server.listen = listen.clone();
    }
    let topics: Vec<String> = DEMO_TOPICS
        .iter()
        .filter(|topic| platform.catalog.table_of_topic(topic).is_some())
        .map(|topic| (*topic).to_owned())
        .collect();
    if up.demo && topics.is_empty() {
        let message = format!("--demo feeds the topics {DEMO_TOPICS:?}, and this project has a table for neither");
        return Err(Failure::usage(message));
    }
    let data = platform.data();
    let started = platform.start().await?;
    let file = ServerFile { url: started.url.clone(), pid: std::process::id() };
    std::fs::write(ServerFile::path(&data), serde_json::to_vec(&file)?)?;
    eprintln!("Anabranch is at {}", started.url);
    if up.demo {
        let feed = demo::run(
            Arc::clone(&started.ingest),
            topics,
            up.demo_rate,
            Arc::clone(&started.clock),
            started.shutdown.clone(),
        );
        tokio::spawn(feed);
    }
    interrupted().await?;
    eprintln!("stopping");
    // A client that asks now should not find a server that is going.
    std::fs::remove_file(ServerFile::path(&data))?;
    started.stop().await?;
    Ok(ExitCode::SUCCESS)
}

fn demo_project(up: &Up) -> Result<Platform, Failure> {
    let files: Vec<(String, String)> =
        DEMO_VIEWS.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let mut catalog = sql::plan(&files)
        .map_err(|errors| Failure::usage(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    // A schedule that a newcomer sees at work.
    for view in catalog.views.values_mut() {
        Arc::make_mut(view).schedule = Some("* * * * *".to_owned());
    }
    let config = Config::load(None, std::env::vars())?;
    Ok(Platform { dir: up.dir.clone(), config, catalog: Arc::new(catalog) })
}
