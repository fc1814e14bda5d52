//! The member that archives.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_exchange::version::{Versions, archive_root};
use anabranch_log::kafka::group::Member;
use anabranch_log::position::{Partition, Positions};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Context, Task};
use crate::archive::{Archive, Archiver};
use crate::layer::open_archiver;

/// Archives the tables whose partition 0 it has.
pub struct ArchiveMember {
    context: Context,
    runtime: Handle,
    versions: Versions,
    running: Arc<Mutex<BTreeMap<String, Task<Arc<Archiver>>>>>,
    /// What couldn't be opened yet.
    waiting: Vec<String>,
}

impl ArchiveMember {
    /// Has no table yet. It works on the runtime that this is called in. Retention spares what the newest versions don't cover.
    pub fn new(context: Context, versions: Versions) -> Self {
        Self { context, runtime: Handle::current(), versions, running: Arc::default(), waiting: Vec::new() }
    }

    /// A function that lists the archives that are at work.
    pub fn archivers(&self) -> impl Fn() -> Vec<Arc<Archiver>> + Clone + Send + Sync + use<> {
        let running = Arc::clone(&self.running);
        move || running.lock().values().map(|task| Arc::clone(&task.about)).collect()
    }

    fn start(&mut self, topic: &str) {
        let Context { settings, data, catalog, log, rejects, clock } = &self.context;
        let Some(table) = catalog.table_of_topic(topic).cloned() else { return };
        let (root, log) = (archive_root(data, &table.name), log.clone());
        let archive = Archive { root, table, log, rejects: rejects.clone(), clock: clock.clone() };
        let opened = open_archiver(archive, settings.archive.clone(), catalog, &self.versions);
        match self.runtime.block_on(opened) {
            Ok(archiver) => {
                let stop = CancellationToken::new();
                let (about, token) = (archiver.clone(), stop.clone());
                let task = self.runtime.spawn(async move { archiver.run(token).await });
                self.running.lock().insert(topic.to_owned(), Task { about, stop, task });
            }
            Err(error) => {
                tracing::warn!(topic, error = error.chain(), "an archive can't be opened; trying again");
                self.waiting.push(topic.to_owned());
            }
        }
    }
}

impl Member for ArchiveMember {
    fn gain(&mut self, topic: &str, partition: Partition) {
        if partition == 0 {
            self.start(topic);
        }
    }

    fn give_up(&mut self, topic: &str, partition: Partition, _lost: bool) {
        if partition == 0 {
            self.waiting.retain(|waiting| waiting != topic);
            let task = self.running.lock().remove(topic);
            if let Some(task) = task {
                task.end(&self.runtime);
            }
        }
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        for topic in std::mem::take(&mut self.waiting) {
            self.start(&topic);
        }
        let running = self.running.lock();
        let done = running.iter();
        done.map(|(topic, task)| (topic.clone(), task.about.status().borrow().archived.coverage.ends())).collect()
    }
}
