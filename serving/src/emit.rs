//! Writes the rows of views that aggregate to topics, as they change, or once they are final.
//!
//! ```text
//! newest answer ─┐
//!                ├─► what differs ──► the topic
//! the topic ─────┘
//! ```
//!
//! What is written follows from two things alone: the newest merged answer, and what the topic holds. Nothing else has to be
//! remembered, so a restart, another owner or another definition of the view needs no care: the topic is read, and what differs is
//! written. Each change of a row is there once, and rows that stay as they are aren't written again.
//!
//! One process at a time writes a topic; on Kafka whoever takes it over fences its predecessor off. What is written never falls back
//! behind what was: an answer is waited for that has all that the log held when the topic was opened, and all that the last
//! one had.
//!
//! With `emit = 'changes'` an answer is about the windows that may have changed: those that are open, those that late events
//! came for, and with another version all. With `emit = 'final'` the windows follow each other as they close, see
//! [`merge::finals`]; the last one that the topic holds tells where to go on.

mod rows;
mod topic;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::transform::polars_type;
use anabranch_log::LogError;
use anabranch_log::kafka::outlet::Outlets;
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::schema::DataType;
use anabranch_plan::sink::{Emission, Emit};
use anabranch_plan::time::Micros;
use anabranch_plan::view::Kept;
use anabranch_plan::window::Window;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use polars::prelude::{Column, DataFrame, IntoColumn, NamedFrom, PolarsError, PolarsResult, Series};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::Instant;

use self::rows::{Change, Held};
use self::topic::Topic;
use crate::emission::{EmissionStatus, Emissions};
use crate::merge::{self, Ask, Final};
use crate::problem::with_causes;
use crate::server::Server;
use crate::source::{Layers, Mode, Sources};

/// The least time from one write to the next: each costs the brokers a commit.
const INTERVAL: Duration = Duration::from_millis(200);

/// After how long answers are looked at again that lacked something, and topics that somebody else has taken.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a log that fails is left alone at most.
const LONGEST: Duration = Duration::from_secs(5);

/// So many changes are one write at most.
const WRITE: usize = 5_000;

#[derive(Debug, thiserror::Error)]
enum EmissionError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the rows can't be computed")]
    Rows(#[from] PolarsError),
    #[error("the rows can't be computed")]
    Task(#[from] JoinError),
    #[error(
        "topic `{0}` has held records and holds none now, so it isn't known which windows were written; delete the topic, and all are \
         written again"
    )]
    Forgotten(String),
}

impl EmissionError {
    /// Whether it would be the same again.
    fn is_final(&self) -> bool {
        let of_log = |error: &LogError| {
            matches!(error, LogError::TooLarge { .. } | LogError::Refused { .. } | LogError::OtherLog(_))
        };
        match self {
            Self::Log(error) => of_log(error),
            Self::Forgotten(_) => true,
            Self::Rows(_) | Self::Task(_) => false,
        }
    }
}

/// Writes a view's rows for as long as the process lives and has the topic.
pub(crate) async fn run(server: Arc<Server>, view: Kept, emission: Emission, emissions: Emissions) {
    let (name, topic) = (view.id.name.clone(), emission.topic.clone());
    let Some(state) = server.emissions.get(&name) else { return };
    let mut failures = 0;
    loop {
        let mut owned = emissions.owned.clone();
        if owned.wait_for(|topics| topics.contains(&topic)).await.is_err() {
            return;
        }
        let lost = async {
            if owned.wait_for(|topics| !topics.contains(&topic)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            error = write(&server, &view, &emission, emissions.outlets.clone(), &mut failures, state) => error,
            () = lost => {
                let mut state = state.lock();
                (state.waiting, state.positions) = (None, Positions::new());
                continue;
            }
        };
        state.lock().failures += 1;
        let why = with_causes(&ended);
        match ended {
            EmissionError::Log(LogError::Fenced { .. }) => {
                tracing::info!(view = name, topic, "the topic is written by somebody else now");
                tokio::time::sleep(AGAIN).await;
            }
            error if error.is_final() => {
                tracing::error!(view = name, topic, reason = why, "writing a view's rows has stopped");
                let mut state = state.lock();
                return (state.waiting, state.stopped) = (None, Some(why));
            }
            _ => {
                tracing::warn!(view = name, topic, reason = why, "writing a view's rows failed; trying again");
                state.lock().waiting = Some(why);
                tokio::time::sleep((INTERVAL * 2_u32.pow(failures.min(10))).min(LONGEST)).await;
                failures += 1;
            }
        }
    }
}

/// Opens the topic, and writes what differs until something fails.
async fn write(
    server: &Arc<Server>,
    view: &Kept,
    emission: &Emission,
    outlets: Option<Outlets>,
    failures: &mut u32,
    state: &Mutex<EmissionStatus>,
) -> EmissionError {
    let opened = {
        let (server, view, emission) = (Arc::clone(server), view.clone(), emission.clone());
        spawn_blocking(move || Writer::open(&server, outlets.as_ref(), view, emission)).await
    };
    let mut writer = match opened {
        Ok(Ok(writer)) => writer,
        Ok(Err(error)) => return error,
        Err(error) => return error.into(),
    };
    let mut changes = server.layers.changes(std::slice::from_ref(view));
    loop {
        let begun = Instant::now();
        let mut layers = server.layers.get(view);
        let log_end = match layers.need_log_end() {
            true => server.recent_log_end(view, &mut layers).await.unwrap_or_default(),
            false => Positions::new(),
        };
        let round = spawn_blocking(move || {
            let written = writer.round(&layers, &log_end);
            (writer, written)
        });
        let written = match round.await {
            Ok((same, written)) => {
                writer = same;
                written
            }
            Err(error) => return error.into(),
        };
        let is_waiting = match written {
            Err(error) => return error,
            Ok(Written { records, waits }) => {
                *failures = 0;
                let is_waiting = waits.is_some();
                let mut state = state.lock();
                if !is_waiting {
                    state.positions.clone_from(&writer.floor);
                }
                state.records += records;
                state.waiting = waits;
                is_waiting
            }
        };
        let next = begun + INTERVAL.max(begun.elapsed() * 2);
        tokio::select! {
            Some(_) = changes.next(), if !changes.is_empty() => {}
            () = tokio::time::sleep(AGAIN), if is_waiting || changes.is_empty() => {}
        }
        tokio::time::sleep_until(next).await;
        while let Some(Some(_)) = changes.next().now_or_never() {}
    }
}

/// What came of looking at an answer once.
struct Written {
    records: u64,
    /// What the answer lacks, if it lacks something: nothing is written then.
    waits: Option<String>,
}

/// Writes one view's rows.
struct Writer {
    view: Kept,
    topic: Topic,
    /// What an answer has to have read.
    floor: Positions<TopicPartition>,
    progress: Progress,
}

/// How far the topic is.
enum Progress {
    Changes {
        held: Held,
        compared: Option<Compared>,
    },
    /// The last window that is written.
    Final(Final),
}

/// What the last answer was made of that was compared with what the topic holds.
#[derive(PartialEq)]
struct Compared {
    version: Option<u64>,
    watermark: Option<Micros>,
    late: u64,
}

impl Writer {
    fn open(server: &Server, outlets: Option<&Outlets>, view: Kept, emission: Emission) -> Result<Self, EmissionError> {
        let log = &server.app.log;
        let topic = Topic::open(log, outlets, &view, &emission, server.shutdown.clone())?;
        let mut floor = Positions::new();
        for table in view.tables() {
            let bounds = log.bounds(&table.topic)?.into_iter();
            floor.extend(bounds.map(|(p, held)| (TopicPartition::new(table.topic.as_str(), p), held.end)));
        }
        let progress = match emission.emit {
            Emit::Changes => {
                let mut held = Held::default();
                topic.read(|key, row| held.take(rows::window_of(&view, key, row.unwrap_or_default()), key, row))?;
                Progress::Changes { held, compared: None }
            }
            Emit::Final => {
                let mut last = None;
                let ever = topic.read_last(|key, row| {
                    last = last.max(row.map(|row| rows::window_of(&view, key, row)));
                })?;
                if ever && last.is_none() {
                    return Err(EmissionError::Forgotten(emission.topic));
                }
                Progress::Final(last.unwrap_or(Final::BEFORE_ALL))
            }
        };
        Ok(Self { view, topic, floor, progress })
    }

    /// Writes what the answer of these layers has that the topic hasn't.
    fn round(&mut self, layers: &Layers, log_end: &Positions<TopicPartition>) -> Result<Written, EmissionError> {
        let sources = Sources::choose(&self.view, Mode::Merged, layers, log_end);
        let lacks = |sources: &Sources| {
            let why = sources.reason().unwrap_or_else(|| "the answer lacks records of the log".to_owned());
            Ok(Written { records: 0, waits: Some(why) })
        };
        if !sources.is_whole() {
            return lacks(&sources);
        }
        if self.floor.iter().any(|(partition, &end)| sources.covered_to(partition) < end) {
            let why = "the answer hasn't come yet to where the log ended, or to where what is written did".to_owned();
            return Ok(Written { records: 0, waits: Some(why) });
        }
        let written = match self.progress {
            Progress::Changes { .. } => self.changes(&sources)?,
            Progress::Final(after) => self.finals(&sources, after)?,
        };
        let Some(records) = written else { return lacks(&sources) };
        let read = sources.speed.iter().flat_map(|speed| speed.iter().map(|(partition, _)| partition.clone()));
        let all: BTreeSet<TopicPartition> = self.floor.keys().cloned().chain(read).collect();
        self.floor = all.into_iter().map(|p| (p.clone(), sources.covered_to(&p))).collect();
        Ok(Written { records, waits: None })
    }

    /// Writes each row that is another than the topic's. None if the answer turns out to lack something.
    fn changes(&mut self, sources: &Sources) -> Result<Option<u64>, EmissionError> {
        let Progress::Changes { held, compared } = &mut self.progress else { return Ok(None) };
        let (late, oldest_late) = late(sources);
        let version = sources.version.as_ref().map(|version| version.published.version);
        let now = Compared { version, watermark: sources.watermark, late };
        let window = self.view.aggregation().window;
        let from = match (&*compared, window) {
            (Some(before), Some(window)) if before.version == version => {
                let late = oldest_late.filter(|_| before.late != late).map(|pane| window.first_start(pane));
                open_since(&self.view, window, held, before.watermark).min(late.unwrap_or(Micros::MAX))
            }
            _ => Micros::MIN,
        };
        let rows = rows::rows(&self.view, &answer(&self.view, sources, from)?)?;
        if !sources.is_whole() {
            return Ok(None);
        }
        let changes = held.difference(from, rows);
        for piece in changes.chunks(WRITE) {
            self.topic.write(piece)?;
            for Change { window, key, row } in piece {
                held.take(*window, key, row.as_deref());
            }
        }
        *compared = Some(now);
        Ok(Some(changes.len() as u64))
    }

    /// Writes the windows that have closed. None if it can't be told which those are.
    fn finals(&mut self, sources: &Sources, mut after: Final) -> Result<Option<u64>, EmissionError> {
        let mut records = 0;
        loop {
            let Some(finals) = merge::finals(&self.view, sources, Some(after))? else { return Ok(None) };
            if finals.is_empty() {
                return Ok(Some(records));
            }
            for (window, answer) in finals {
                let rows = rows::rows(&self.view, &named(answer.rows, window)?)?;
                // At once, so that the last window tells that all of it is there.
                if !rows.is_empty() {
                    self.topic.write(&rows)?;
                }
                records += rows.len() as u64;
                after = window;
                self.progress = Progress::Final(after);
            }
        }
    }
}

/// Late events, and the oldest pane that some are of.
fn late(sources: &Sources) -> (u64, Option<Micros>) {
    let panes = sources.chunks.iter().flat_map(|chunk| &chunk.panes).filter(|(_, pane)| !pane.late.is_empty());
    panes.fold((0, None), |(late, oldest), (&start, pane)| {
        let oldest = oldest.map_or(start, |oldest: Micros| oldest.min(start));
        (late + pane.late.values().sum::<u64>(), Some(oldest))
    })
}

/// From which start on windows may have other rows than at this watermark.
fn open_since(view: &Kept, window: Window, held: &Held, watermark: Option<Micros>) -> Micros {
    let Some(watermark) = watermark else { return Micros::MIN };
    let closed = watermark.saturating_sub(view.aggregation().allowed_lateness);
    match window {
        // An event may prolong a session, and join two.
        Window::Session { gap } => {
            let closed = closed.saturating_sub(gap);
            held.first_ending_after(closed).unwrap_or(Micros::MAX).min(closed.saturating_sub(gap))
        }
        window => window.first_start(closed),
    }
}

/// The rows of all windows that start at `from` or later.
fn answer(view: &Kept, sources: &Sources, from: Micros) -> PolarsResult<DataFrame> {
    let Some(window) = view.aggregation().window else {
        return Ok(merge::answer(view, sources, Ask::Latest)?.rows);
    };
    let (oldest, newest) = (merge::oldest_pane(sources), merge::newest_pane(view, sources)?);
    let (from, to) = match (oldest, newest) {
        (Some(oldest), Some(newest)) => {
            (window.first_start(oldest).max(from), window.end_of(window.last_start(newest)))
        }
        // There are none.
        _ => (0, 0),
    };
    Ok(merge::answer(view, sources, Ask::Range { from, to })?.rows)
}

/// Rows of one window, with its bounds.
fn named(mut rows: DataFrame, Final { end, start }: Final) -> PolarsResult<DataFrame> {
    let height = rows.height();
    let column = |name: &str, time: Micros| -> PolarsResult<Column> {
        let times = Series::new(name.into(), vec![time; height]);
        Ok(times.cast(&polars_type(&DataType::Timestamp))?.into_column())
    };
    rows.insert_column(0, column("window_end", end)?)?;
    rows.insert_column(0, column("window_start", start)?)?;
    Ok(rows)
}

#[cfg(test)]
mod tests;
