//! `anabranch up`: everything in one process.

use std::process::ExitCode;
use std::sync::Arc;

use anabranch_plan::schedule::Schedule;
use anabranch_plan::sql;
use anabranch_plan::view::{Catalog, End};

use crate::cli::Up;
use crate::client::ServerFile;
use crate::config::Config;
use crate::demo;
use crate::failure::Failure;
use crate::platform::Platform;
use crate::signal::interrupted;

/// The topics that the demo feeds.
const DEMO_TOPICS: [&str; 2] = ["tweets", "page_views"];

/// The demo's own views: those of the examples, recomputed each minute.
const DEMO_VIEWS: [(&str, &str); 2] = [
    ("examples/social/views/social.sql", include_str!("../../examples/social/views/social.sql")),
    ("examples/clicks/views/clicks.sql", include_str!("../../examples/clicks/views/clicks.sql")),
];

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(up: Up) -> Result<ExitCode, Failure> {
    let dir = up.folder.path();
    let has_project = dir.join("anabranch.toml").is_file() || dir.join("views").is_dir();
    let mut platform = match (up.demo, has_project) {
        (true, false) => {
            let config = Config::load(None, std::env::vars())?;
            Platform { dir, config, catalog: Arc::new(demo_catalog()?) }
        }
        (true, true) => with_demo(Platform::load(&dir)?)?,
        (false, _) => Platform::load(&dir)?,
    };
    if let Some(listen) = &up.listen {
        platform.config.server.listen = listen.clone();
    }
    let topics: Vec<String> = DEMO_TOPICS
        .iter()
        .filter(|topic| platform.catalog.table_of_topic(topic).is_some())
        .map(|topic| (*topic).to_owned())
        .collect();
    let data = platform.data();
    let started = platform.start().await?;
    ServerFile::write(&data, &started.url)?;
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
    ServerFile::remove(&data)?;
    started.stop().await?;
    Ok(ExitCode::SUCCESS)
}

/// A project, with those of the demo's tables and views whose names and topics it doesn't use itself.
fn with_demo(mut platform: Platform) -> Result<Platform, Failure> {
    let Catalog { tables, views, .. } = demo_catalog()?;
    let catalog = Arc::make_mut(&mut platform.catalog);
    let mut left_out = Vec::new();
    for (name, table) in tables {
        // A project that has the topic is fed by the demo as it is.
        if catalog.table_of_topic(&table.topic).is_some() {
            continue;
        }
        if catalog.tables.contains_key(&name) {
            left_out.push(name);
            continue;
        }
        for view in views.values().filter(|view| view.table().name == name) {
            if catalog.views.contains_key(&view.id.name) {
                left_out.push(view.id.name.clone());
            } else {
                catalog.views.insert(view.id.name.clone(), Arc::clone(view));
            }
        }
        catalog.tables.insert(name, table);
    }
    if !left_out.is_empty() {
        let names = left_out.join("`, `");
        eprintln!("the project has `{names}` itself: the demo's are left out");
    }
    Ok(platform)
}

fn demo_catalog() -> Result<Catalog, Failure> {
    let files: Vec<(String, String)> =
        DEMO_VIEWS.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let mut catalog = sql::plan(&files)
        .map_err(|errors| Failure::usage(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    // A schedule that a newcomer sees at work.
    let schedule = Schedule::utc("* * * * *").map_err(Failure::new)?;
    for view in catalog.views.values_mut() {
        if let End::Keep(aggregation) = &mut Arc::make_mut(view).end {
            aggregation.schedule = Some(schedule.clone());
        }
    }
    Ok(catalog)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_demo_stands_beside_a_new_projects_own_views() {
        let folder = tempfile::tempdir().expect("a folder");
        crate::project::Project::init(folder.path()).expect("a project");
        let own = Platform::load(folder.path()).expect("loaded");
        let names: Vec<String> = own.catalog.views.keys().cloned().collect();
        let platform = with_demo(Platform { dir: PathBuf::new(), ..own }).expect("joined");
        let Catalog { tables, views, .. } = &*platform.catalog;
        assert!(DEMO_TOPICS.iter().all(|topic| platform.catalog.table_of_topic(topic).is_some()));
        assert!(names.iter().all(|name| views[name].table().name == "clicks"), "the project's own are as they were");
        assert!(views.contains_key("trending_hashtags") && views.contains_key("traffic"));
        assert!(views.values().all(|view| Arc::ptr_eq(&tables[&view.table().name], view.table())));
    }
}
