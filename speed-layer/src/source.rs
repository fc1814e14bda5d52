//! A table's pipeline, for as long as the process lives.
//!
//! It begins anew once the table's records are read otherwise than they were: the archive has been rebuilt, or another
//! definition was in force for a while. What was folded until then can't be added to what batch computes since, so it isn't shown
//! any more. Under a definition that isn't in force, no pipeline begins.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anabranch_engine::edition::Reading;
use anabranch_log::position::Partition;
use anabranch_plan::schema::Table;
use anabranch_plan::view::Kept;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::display::Display;
use crate::error::SpeedError;
use crate::late::LateWriter;
use crate::pipeline::{self, End, Parts, is_outdated};
use crate::reader::Reader;
use crate::recovery::{Bases, Origin};
use crate::refold::Replay;
use crate::wait::wait;
use crate::writer::{Marker, Writer};
use crate::{Context, Owned};

/// Micro-batches between the reader and the folder.
const BATCHES_AHEAD: usize = 3;

/// How often a source that has stopped looks whether its table is read otherwise.
const PAUSE: Duration = Duration::from_millis(100);

/// What a table's pipelines are made of.
pub(crate) struct Source {
    pub context: Context,
    pub table: Arc<Table>,
    pub views: Vec<Kept>,
    pub owned: Option<Owned>,
    pub display: Display,
    pub shutdown: CancellationToken,
}

impl Source {
    /// What its checkpoints are stored under, and its threads named.
    pub fn name(&self) -> String {
        let table = &self.table.name;
        self.owned.map_or_else(|| table.clone(), |owned| format!("{table}-{}", owned.partition))
    }

    /// Runs pipelines until shutdown, one after the other.
    pub fn run(&self) {
        let mut readings = self.context.readings.of(&self.table.name);
        loop {
            let reading = readings.borrow_and_update().clone();
            let refusal = reading.editions.refusal(&self.table);
            let end = match &refusal {
                Some(why) => {
                    tracing::error!(table = self.name(), why, "the source has stopped");
                    self.display.clear(&reading, why);
                    End::Stopped
                }
                None => self.fold(&reading, &readings),
            };
            let is_as_before = |now: &Reading| match &refusal {
                Some(_) => *now == reading,
                None => !is_outdated(&reading, now, &self.table),
            };
            while end == End::Stopped && !self.shutdown.is_cancelled() && is_as_before(&readings.borrow()) {
                wait(&self.shutdown, PAUSE);
            }
            if end == End::Shutdown || self.shutdown.is_cancelled() {
                return;
            }
            tracing::warn!(table = self.name(), "the table is read otherwise now: its views are folded anew");
            let why = "the table's archive was rebuilt, or its definition was another: it is folded anew";
            self.display.clear(&readings.borrow(), why);
        }
    }

    /// Runs a pipeline by a reading.
    fn fold(&self, reading: &Reading, readings: &watch::Receiver<Reading>) -> End {
        let (begin, begun) = sync_channel(1);
        let (inputs, received) = sync_channel(BATCHES_AHEAD);
        let name = format!("read-{}", self.name());
        let reader = self.reader(reading);
        let reads = std::thread::Builder::new().name(name.clone()).spawn(move || reader.run(&begun, &inputs));
        let started = reads.map_err(|source| SpeedError::Thread { name, source });
        let started = started.and_then(|reads| Ok((reads, self.parts(reading, readings)?)));
        let (reads, parts) = match started {
            Ok(started) => started,
            Err(error) => {
                self.display.stop(&error.into());
                return End::Stopped;
            }
        };
        let end = pipeline::run(parts, &self.origin(), &begin, &received);
        // The reader ends with what it reads for.
        drop((begin, received));
        if reads.join().is_err() {
            tracing::error!(table = self.name(), "the thread that reads has failed");
        }
        end
    }

    fn only(&self) -> Option<Partition> {
        self.owned.map(|owned| owned.partition)
    }

    fn reader(&self, reading: &Reading) -> Reader {
        let Context { log, settings, clock, .. } = self.context.clone();
        Reader {
            log,
            table: self.table.clone(),
            views: self.views.clone(),
            editions: reading.editions.clone(),
            settings,
            clock,
            fixed: self.owned.is_some(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            log: self.context.log.clone(),
            table: self.table.clone(),
            only: self.only(),
            checkpoints: self.context.checkpoints.clone(),
            name: self.name(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn parts(&self, reading: &Reading, readings: &watch::Receiver<Reading>) -> Result<Parts, SpeedError> {
        let Context { log, versions, checkpoints, rejects, clock, settings, memory, .. } = self.context.clone();
        let (table, views, display) = (self.table.clone(), self.views.clone(), self.display.clone());
        let epoch = self.owned.map_or(0, |owned| owned.epoch);
        let marker = Marker::new(log.clone(), table.topic.clone());
        let writer = checkpoints
            .map(|store| Writer::start(store, (self.name(), epoch), marker, clock.clone(), display.counters.clone()));
        let late = LateWriter::new(log.clone(), rejects, self.shutdown.clone());
        let folded = (views.as_slice(), reading.editions.clone());
        let replay = Replay::new(log, clock.clone(), table.clone(), folded, settings.read_limit());
        Ok(Parts {
            table,
            versions: Bases { versions, rebuilds: reading.rebuilds, only: self.only() },
            views,
            settings,
            clock,
            replay,
            late,
            writer: writer.transpose()?,
            display,
            memory: memory.share(),
            reading: reading.clone(),
            readings: readings.clone(),
        })
    }
}
