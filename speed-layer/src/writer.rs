//! Writes a pipeline's checkpoints beside the folding, one at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use anabranch_log::clock::Clock;
use anabranch_log::lineage::Marks;
use anabranch_log::position::{Positions, TopicPartition, of_topic};
use anabranch_log::{Log, LogError};

use crate::checkpoint::{Checkpoints, Image};
use crate::error::{SpeedError, panicked, reason};
use crate::metrics::{Counters, add};

/// A thread that writes a pipeline's checkpoints.
pub(crate) struct Writer {
    images: SyncSender<Image>,
    busy: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    pub fn start(
        store: Checkpoints,
        (table, epoch): (String, u64),
        mut marker: Marker,
        clock: Arc<dyn Clock>,
        counters: Arc<Counters>,
    ) -> Result<Self, SpeedError> {
        let (images, received) = sync_channel::<Image>(1);
        let busy = Arc::new(AtomicBool::new(false));
        let failed = Arc::new(AtomicBool::new(false));
        let (idle, has_failed) = (busy.clone(), failed.clone());
        let name = format!("checkpoint-{table}");
        let work = move || {
            for mut image in received {
                // A checkpoint that can't be stored costs a longer recovery, not the state: go on, and say so.
                let written = catch_unwind(AssertUnwindSafe(|| {
                    marker.mark(&mut image).map_err(|error| reason(&error))?;
                    write(&store, &table, epoch, &image)
                }));
                let written = written.unwrap_or_else(|panic| Err(panicked(&*panic)));
                has_failed.store(written.is_err(), Ordering::Release);
                match written {
                    Ok(bytes) => {
                        add(&counters.checkpoints, 1);
                        counters.checkpoint_bytes.store(bytes, Ordering::Relaxed);
                        counters.checkpoint_at.store(clock.now(), Ordering::Relaxed);
                        fail::fail_point!("speed::after_checkpoint");
                    }
                    Err(problem) => {
                        add(&counters.checkpoint_failures, 1);
                        tracing::error!(table, problem, "storing a checkpoint failed");
                    }
                }
                idle.store(false, Ordering::Release);
            }
        };
        let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
        let thread = thread.map_err(|source| SpeedError::Thread { name, source })?;
        Ok(Self { images, busy, failed, thread })
    }

    /// Whether the last checkpoint is written.
    pub fn is_free(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }

    /// Whether the last checkpoint could not be stored.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Writes a checkpoint; waits if the thread is two behind.
    pub fn write(&self, image: Image) {
        self.busy.store(true, Ordering::Release);
        if self.images.send(image).is_err() {
            tracing::error!("the thread that writes checkpoints has ended");
        }
    }

    /// Waits until everything is written.
    pub fn finish(self) {
        drop(self.images);
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes checkpoints has failed");
        }
    }
}

/// Notes in checkpoints which logs their offsets are of.
pub(crate) struct Marker {
    log: Arc<dyn Log>,
    topics: Vec<String>,
    /// What the last checkpoint noted, and how far it went; before the first nothing.
    last: Option<(Marks, Positions<TopicPartition>)>,
}

impl Marker {
    pub fn new(log: Arc<dyn Log>, topics: Vec<String>) -> Self {
        Self { log, topics, last: None }
    }

    /// Notes the logs that are there now, if they still are those that were read.
    fn mark(&mut self, image: &mut Image) -> Result<(), LogError> {
        let (marks, reached) = self.last.take().unwrap_or_else(|| (image.log.clone(), Positions::new()));
        let mut newest = Marks::new();
        for topic in &self.topics {
            let mark = marks.get(topic);
            let verified = self.log.verify(topic, "the state of its views", mark, &of_topic(topic, &reached));
            let mark = match verified {
                // Only a log that is far away fails, and that keeps its mark.
                Err(error) if !matches!(error, LogError::OtherLog { .. }) => mark.cloned(),
                verified => verified?,
            };
            newest.extend(mark.map(|mark| (topic.clone(), mark)));
        }
        image.log = newest.clone();
        self.last = Some((newest, image.positions.clone()));
        Ok(())
    }
}

fn write(store: &Checkpoints, table: &str, epoch: u64, image: &Image) -> Result<u64, String> {
    let bytes = image.encode(table).map_err(|error| reason(&error))?;
    let length = bytes.content_length() as u64;
    store.block_on(store.store(table, epoch, bytes)).map_err(|error| reason(&error))?;
    Ok(length)
}
