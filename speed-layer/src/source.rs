//! The pipeline of a table, or of tables that are read together, for as long as the process lives.
//!
//! It begins anew once a table's records are read otherwise than they were: the archive has been rebuilt, or another
//! definition was in force for a while. What was folded until then can't be added to what batch computes since, so it isn't shown
//! any more. Under a definition that isn't in force, no pipeline begins.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anabranch_plan::view::Unit;
use tokio_util::sync::CancellationToken;

use crate::display::Display;
use crate::error::SpeedError;
use crate::late::LateWriter;
use crate::own::Own;
use crate::pipeline::{self, End, Parts};
use crate::reader::Reader;
use crate::reading::Readings;
use crate::recovery::{Bases, Origin};
use crate::refold::Replay;
use crate::wait::wait;
use crate::writer::{Marker, Writer};
use crate::{Context, Owned};

/// Micro-batches between the reader and the folder.
const BATCHES_AHEAD: usize = 3;

/// How often a source that has stopped looks whether its table is read otherwise.
const PAUSE: Duration = Duration::from_millis(100);

/// What pipelines are made of.
pub(crate) struct Source {
    pub context: Context,
    pub unit: Unit,
    pub owned: Option<Owned>,
    pub display: Display,
    pub shutdown: CancellationToken,
}

impl Source {
    /// What its checkpoints are stored under, and its threads named.
    pub fn name(&self) -> String {
        let name = self.unit.name();
        self.owned.map_or_else(|| name.clone(), |owned| format!("{name}-{}", owned.part.partition))
    }

    /// Runs pipelines until shutdown, one after the other.
    pub fn run(&self) {
        loop {
            let mut readings = Readings::of(&self.unit.tables, &self.context.readings);
            let refusal = readings.refusal();
            let end = match &refusal {
                Some(why) => {
                    tracing::error!(table = self.name(), why, "the source has stopped");
                    self.display.clear(readings.rebuilds(), why);
                    End::Stopped
                }
                None => self.fold(&readings),
            };
            while end == End::Stopped && !self.shutdown.is_cancelled() {
                let is_other = match &refusal {
                    Some(_) => readings.have_changed(),
                    None => readings.are_outdated(),
                };
                if is_other {
                    break;
                }
                wait(&self.shutdown, PAUSE);
            }
            if end == End::Shutdown || self.shutdown.is_cancelled() {
                return;
            }
            tracing::warn!(table = self.name(), "the table is read otherwise now: its views are folded anew");
            let why = "the table's archive was rebuilt, or its definition was another: it is folded anew";
            let rebuilds = Readings::of(&self.unit.tables, &self.context.readings).rebuilds();
            self.display.clear(rebuilds, why);
        }
    }

    /// Runs a pipeline by a reading.
    fn fold(&self, readings: &Readings) -> End {
        let (begin, begun) = sync_channel(1);
        let (inputs, received) = sync_channel(BATCHES_AHEAD);
        let name = format!("read-{}", self.name());
        let reader = self.reader(readings);
        let reads = std::thread::Builder::new().name(name.clone()).spawn(move || reader.run(&begun, &inputs));
        let started = reads.map_err(|source| SpeedError::Thread { name, source });
        let started = started.and_then(|reads| Ok((reads, self.parts(readings)?)));
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

    fn own(&self) -> Option<Own> {
        self.owned.map(|owned| Own::of(&self.unit, owned.part))
    }

    fn reader(&self, readings: &Readings) -> Reader {
        let Context { log, settings, clock, .. } = self.context.clone();
        Reader {
            log,
            tables: readings.tables(),
            views: self.unit.views.clone(),
            settings,
            clock,
            own: self.own(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            log: self.context.log.clone(),
            tables: self.unit.tables.clone(),
            own: self.own(),
            checkpoints: self.context.checkpoints.clone(),
            name: self.name(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn parts(&self, readings: &Readings) -> Result<Parts, SpeedError> {
        let Context { log, versions, checkpoints, rejects, clock, settings, memory, .. } = self.context.clone();
        let (views, display) = (self.unit.views.clone(), self.display.clone());
        let epoch = self.owned.map_or(0, |owned| owned.epoch);
        let start = |store| {
            let topics = self.unit.tables.iter().map(|table| table.topic.clone()).collect();
            let (marker, counters) = (Marker::new(log.clone(), topics), display.counters.clone());
            Writer::start(store, (self.name(), epoch), marker, clock.clone(), counters)
        };
        let writer = checkpoints.map(start).transpose()?;
        let late = LateWriter::new(log.clone(), rejects, self.shutdown.clone());
        let replay = Replay::new(log, clock.clone(), &readings.tables(), &views, settings.read_limit());
        Ok(Parts {
            name: self.name(),
            versions: Bases { versions, rebuilds: readings.rebuilds(), own: self.own() },
            views,
            settings,
            clock,
            replay,
            late,
            writer,
            display,
            memory: memory.share(),
            readings: readings.clone(),
        })
    }
}
