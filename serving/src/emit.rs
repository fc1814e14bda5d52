//! Writes the rows of views that aggregate to topics, as they change, or once they are final.
//!
//! ```text
//! newest answer ─┐
//!                ├─► what differs ──► the topic
//! the topic ─────┘
//! ```
//!
//! What is written follows from two things alone: the newest merged answer, and what the topic holds. Nothing else has to be
//! remembered, so a restart or another owner needs no care: the topic is read, and what differs is written. Each change of a row is there once, and rows that stay as they are aren't written again.
//!
//! One process at a time writes a topic; on Kafka whoever takes it over fences its predecessor off. What is written never falls back
//! behind what was: an answer is waited for that has all that the log held when the topic was opened, and all that the last
//! one had.
//!
//! With `emit = 'changes'` an answer is about the windows that may have changed since the last one: those of the first pane that isn't
//! the same and of those behind it, and with another version all. With `emit = 'final'` the windows follow each other as they close, see
//! [`merge::finals`]; the last one that the topic holds tells where to go on.

mod rows;
mod topic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anabranch_engine::transform::polars_type;
use anabranch_exchange::snapshot::{Chunk, Pane};
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
use crate::merge::{self, Final};
use crate::problem::with_causes;
use crate::server::Server;
use crate::source::{HeldVersion, Layers, Mode, Sources};

/// The least time from one write to the next: each costs the brokers a commit.
const INTERVAL: Duration = Duration::from_millis(200);

/// After how long answers are looked at again that lacked something, and topics that somebody else has taken.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a log that fails is left alone at most.
const LONGEST: Duration = Duration::from_secs(5);

/// So many changes are one write at most.
const WRITE: usize = 5_000;

/// So many final windows are looked at before it is said how far that is; of some no row may be left.
const WINDOWS: usize = 1_000;

#[derive(Debug, thiserror::Error)]
enum EmissionError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the rows can't be computed")]
    Rows(#[from] PolarsError),
    #[error("the rows can't be computed")]
    Task(#[from] JoinError),
    #[error(
        "records of topic `{0}` were deleted and it holds none now, so it isn't known which windows were written; delete the topic and \
         start again, and all are written again"
    )]
    Forgotten(String),
    #[error(
        "topic `{0}` holds records that no view has written, such as the one with the key `{1}`; choose another topic, or empty this one"
    )]
    Foreign(String, String),
}

impl EmissionError {
    /// Whether it would be the same again.
    fn is_final(&self) -> bool {
        let of_log = |error: &LogError| {
            matches!(error, LogError::TooLarge { .. } | LogError::Refused { .. } | LogError::OtherLog(_))
        };
        match self {
            Self::Log(error) => of_log(error),
            Self::Forgotten(_) | Self::Foreign(..) => true,
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
            Ok(Written { records, waits, is_more }) => {
                *failures = 0;
                let is_waiting = waits.is_some();
                let mut state = state.lock();
                if !is_waiting {
                    state.positions.clone_from(&writer.floor);
                }
                state.records += records;
                state.waiting = waits;
                if is_more {
                    continue;
                }
                is_waiting
            }
        };
        let next = begun + INTERVAL.max(begun.elapsed() * 2);
        tokio::select! {
            _ = changes.next(), if !changes.is_empty() => {}
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
    /// Whether there is more to be written at once.
    is_more: bool,
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
struct Compared {
    version: Option<Arc<HeldVersion>>,
    chunks: Vec<Arc<Chunk>>,
    unsure: Option<(Micros, Micros)>,
}

impl Compared {
    fn of(sources: &Sources) -> Self {
        let version = sources.version.clone();
        Self { version, chunks: sources.chunks.clone(), unsure: sources.unsure }
    }

    /// The first time of which rows may be others than they were before; none of all time.
    fn since(&self, before: &Self) -> Option<Micros> {
        let is_same = match (&self.version, &before.version) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (now, before) => now.is_none() && before.is_none(),
        };
        if !is_same {
            return None;
        }
        // Of all time, it may be; but windows of the first instant are none.
        let first = |(first, _): (Micros, Micros)| first.max(Micros::MIN / 2);
        let unsure = [self.unsure, before.unsure].into_iter().flatten().map(first);
        let unsure = unsure.filter(|_| self.unsure != before.unsure).min();
        let pane = first_difference(&before.chunks, &self.chunks);
        Some(unsure.into_iter().chain(pane).min().unwrap_or(Micros::MAX))
    }
}

/// The first pane that isn't the same in both.
fn first_difference(before: &[Arc<Chunk>], now: &[Arc<Chunk>]) -> Option<Micros> {
    let is_in = |chunk: &Arc<Chunk>, other: &[Arc<Chunk>]| other.iter().any(|it| Arc::ptr_eq(it, chunk));
    let panes = |these: &[Arc<Chunk>], others: &[Arc<Chunk>]| {
        let mut panes = BTreeMap::<Micros, Vec<*const Pane>>::new();
        for chunk in these.iter().filter(|chunk| !is_in(chunk, others)) {
            for (&start, pane) in &chunk.panes {
                panes.entry(start).or_default().push(Arc::as_ptr(pane));
            }
        }
        panes
    };
    let (before, now) = (panes(before, now), panes(now, before));
    let differs = |(start, panes): (&Micros, &Vec<_>), other: &BTreeMap<Micros, Vec<_>>| {
        (other.get(start) != Some(panes)).then_some(*start)
    };
    let gone = before.iter().find_map(|pane| differs(pane, &now));
    let new = now.iter().find_map(|pane| differs(pane, &before));
    gone.into_iter().chain(new).min()
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
        let mut foreign = None;
        let mut window_of = |key: &[u8], row: Option<&[u8]>| {
            if row.is_some_and(|row| !rows::is_row(&view, key, row)) {
                foreign.get_or_insert_with(|| String::from_utf8_lossy(key).into_owned());
            }
            rows::window_of(&view, key, row.unwrap_or_default())
        };
        let progress = match emission.emit {
            Emit::Changes => {
                let mut held = Held::default();
                topic.read(|key, row| held.take(window_of(key, row), key, row))?;
                Progress::Changes { held, compared: None }
            }
            Emit::Final => {
                let mut last = None;
                let are_deleted = topic.read_last(|key, row| {
                    let window = window_of(key, row);
                    last = last.max(row.map(|_| window));
                })?;
                if are_deleted && last.is_none() {
                    return Err(EmissionError::Forgotten(emission.topic));
                }
                Progress::Final(last.unwrap_or(Final::BEFORE_ALL))
            }
        };
        if let Some(key) = foreign {
            return Err(EmissionError::Foreign(emission.topic, key));
        }
        Ok(Self { view, topic, floor, progress })
    }

    /// Writes what the answer of these layers has that the topic hasn't.
    fn round(&mut self, layers: &Layers, log_end: &Positions<TopicPartition>) -> Result<Written, EmissionError> {
        let sources = Sources::choose(&self.view, Mode::Merged, layers, log_end);
        let lacks = |sources: &Sources| {
            let why = sources.reason().unwrap_or_else(|| "the answer lacks records of the log".to_owned());
            Ok(Written { records: 0, waits: Some(why), is_more: false })
        };
        if !sources.is_whole() {
            return lacks(&sources);
        }
        if self.floor.iter().any(|(partition, &end)| sources.covered_to(partition) < end) {
            let why = "the answer hasn't come yet to where the log ended, or to where what is written did".to_owned();
            return Ok(Written { records: 0, waits: Some(why), is_more: false });
        }
        let written = match self.progress {
            Progress::Changes { .. } => self.changes(&sources)?,
            Progress::Final(after) => self.finals(&sources, after)?,
        };
        let Some(Wrote { records, is_more }) = written else { return lacks(&sources) };
        if is_more {
            return Ok(Written { records: records as u64, waits: None, is_more });
        }
        let read = sources.speed.iter().flat_map(|speed| speed.iter().map(|(partition, _)| partition.clone()));
        let all: BTreeSet<TopicPartition> = self.floor.keys().cloned().chain(read).collect();
        self.floor = all.into_iter().map(|p| (p.clone(), sources.covered_to(&p))).collect();
        Ok(Written { records: records as u64, waits: None, is_more })
    }

    /// Writes each row that is another than the topic's. None if the answer turns out to lack something.
    fn changes(&mut self, sources: &Sources) -> Result<Option<Wrote>, EmissionError> {
        let Progress::Changes { held, compared } = &mut self.progress else { return Ok(None) };
        let (view, now) = (&self.view, Compared::of(sources));
        let from = compared.as_ref().and_then(|before| now.since(before));
        if from == Some(Micros::MAX) {
            return Ok(Some(Wrote { records: 0, is_more: false }));
        }
        // An event up to a gap before a session may be of it.
        let before = if let Some(Window::Session { gap }) = view.aggregation().window { gap } else { 0 };
        let unsure = |Final { end, start }| sources.is_unsure(start.saturating_sub(before), end);
        let rows = rows::rows(view, merge::rows_since(view, sources, from)?, unsure)?;
        if !sources.is_whole() {
            return Ok(None);
        }
        let changes = held.difference(|window| merge::may_change(view, from, window), rows);
        for piece in changes.chunks(WRITE) {
            self.topic.write(piece)?;
            for Change { window, key, row } in piece {
                held.take(*window, key, row.as_deref());
            }
        }
        *compared = Some(now);
        Ok(Some(Wrote { records: changes.len(), is_more: false }))
    }

    /// Writes windows that have closed. None if it can't be told which those are.
    fn finals(&mut self, sources: &Sources, mut after: Final) -> Result<Option<Wrote>, EmissionError> {
        let (mut changes, mut windows) = (Vec::new(), 0);
        let next = loop {
            let finals = merge::finals(&self.view, sources, Some(after))?;
            match finals {
                Some(finals) if !finals.is_empty() && changes.len() < WRITE && windows < WINDOWS => {
                    windows += finals.len();
                    for (window, answer) in finals {
                        changes.extend(rows::rows(&self.view, named(answer.rows, window)?, |_| false)?);
                        after = window;
                    }
                }
                next => break next,
            }
        };
        // At once, so that the last window tells that all of it is there.
        if !changes.is_empty() {
            self.topic.write(&changes)?;
        }
        self.progress = Progress::Final(after);
        let wrote = |is_more| Wrote { records: changes.len(), is_more };
        Ok(next.map(|next| wrote(!next.is_empty())).or_else(|| (!changes.is_empty()).then(|| wrote(true))))
    }
}

/// How much was written of an answer.
struct Wrote {
    records: usize,
    is_more: bool,
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
