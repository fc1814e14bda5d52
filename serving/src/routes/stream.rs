//! `GET /v1/views/{view}/stream` and `GET /v1/stream`: changes as they happen, as Server-Sent Events.
//!
//! | `mode` | an event is | `Last-Event-ID` |
//! |---|---|---|
//! | `update` | what has changed in the newest answer since the last event | if that is still the newest answer, nothing is sent again; else the whole of it |
//! | `complete` | the whole newest answer | the same |
//! | `append` | a window that is closed for good | the windows after that one are sent, each once |
//!
//! A connection holds what it was sent last. When a view's layers change, the newest answer, computed once for all
//! connections, is compared with that. A client that doesn't keep up skips what lies between, but no window in mode
//! `append`; nothing is queued for it but the one event that is under way.
//!
//! An event's id says how far each view of the stream has been sent, `view=position` with commas between. The position of an
//! answer is a hash of it, so that it holds for any server and after a restart; that of finals is the last window's name, with
//! `@` and the log that it is of behind it.

mod event;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anabranch_engine::render::Rows;
use anabranch_log::lineage::Mark;
use anabranch_log::position::Positions;
use anabranch_plan::view::View;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamMap;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use utoipa::IntoParams;

use crate::app::{Server, Stamp, blocking, rejected};
use crate::merge::{self, Answer, Ask, Final, Span};
use crate::problem::{Problem, quoted};
use crate::proof::Proof;
use crate::routes::heartbeat::{heartbeats, recent_log_end};
use crate::routes::stream::event::StreamEvent;
use crate::source::{Layers, Mode, Sources};

/// At most ten updates a second.
const TICK: Duration = Duration::from_millis(100);
/// When an answer is looked at again that couldn't be computed, or that the log's end alone may change.
const AGAIN: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is dropped.
const STALL: Duration = Duration::from_secs(15);
/// An answer of so many rows takes another tick to be looked at again: it takes as much longer to compute and to send.
const ROWS_A_TICK: usize = 5_000;
/// The slowest client that isn't dropped, in bytes a millisecond.
const SLOWEST: usize = 100;

/// What a client says that it was sent last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What the events of a stream are. Each is named for its stream's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputMode {
    /// What has changed in the newest answer.
    Update,
    /// The windows that are closed for good.
    Append,
    /// The newest answer, each time that it changes.
    Complete,
}

impl OutputMode {
    const ALL: [Self; 3] = [Self::Update, Self::Append, Self::Complete];

    fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Append => "append",
            Self::Complete => "complete",
        }
    }
}

/// The newest answer of a view, cut into what a difference is made of.
#[derive(Debug)]
pub(crate) struct Frame {
    head: Vec<u8>,
    tail: Vec<u8>,
    span: Span,
    id: String,
    /// Each row's key columns and the whole row, as JSON objects, in the view's order.
    rows: Vec<(Arc<[u8]>, Vec<u8>)>,
    index: HashMap<Arc<[u8]>, usize>,
    /// The keys of the rows that the answer has beyond these.
    beyond: HashSet<Arc<[u8]>>,
    /// The id of the frame before it, which most streams were sent last, and what has changed since, put together once for them.
    follows: Option<String>,
    change: OnceLock<String>,
}

/// Of each view the newest answer that streams have, as long as one has it.
pub(crate) type Frames = BTreeMap<String, tokio::sync::Mutex<Shared>>;

/// An answer that all streams of its view send.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    frame: Weak<Frame>,
    stamp: Option<Stamp>,
    /// Until when it is good enough, though the layers have moved on.
    due: Option<Instant>,
}

impl Frame {
    fn compute(
        view: &View,
        layers: &Layers,
        log_end: &Positions,
        rejected: u64,
        most: usize,
        follows: Option<String>,
    ) -> Result<Self, Problem> {
        let internal = |error: polars::error::PolarsError| Problem::internal(&error);
        let sources = Sources::choose(view, Mode::Merged, layers, log_end);
        let answer = merge::answer(view, &sources, Ask::Current).map_err(internal)?;
        let total = answer.rows.height();
        let cells = Rows::of(&answer.rows).map_err(internal)?;
        let (span, quality, late) = (answer.span, answer.quality, answer.late);
        let proof = Proof { view, sources: &sources, span, quality, late, rejected, total };
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        proof.write_head(&mut head);
        head.extend_from_slice(format!(",\"truncated\":{}", most < total).as_bytes());
        proof.write_tail(&mut tail);
        let mut rows = Vec::with_capacity(cells.height());
        let key = |i: usize| {
            let mut key = Vec::new();
            cells.write_json_object(i, |name| is_key(view, name), &mut key);
            Arc::<[u8]>::from(key)
        };
        for i in 0..total.min(most) {
            let (mut key, mut row) = (Vec::new(), Vec::new());
            cells.write_json_object(i, |name| is_key(view, name), &mut key);
            cells.write_json_object(i, |_| true, &mut row);
            rows.push((Arc::from(key), row));
        }
        let beyond = (total.min(most)..total).map(key).collect();
        let index = rows.iter().enumerate().map(|(i, (key, _))| (Arc::clone(key), i)).collect();
        let mut hash = Sha256::new();
        [&head, &tail].into_iter().chain(rows.iter().map(|(_, row)| row)).for_each(|part| hash.update(part));
        let id = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { head, tail, span, id, rows, index, beyond, follows, change: OnceLock::new() })
    }

    /// How long it is good enough, though the layers have moved on.
    fn pace(&self) -> Duration {
        TICK * u32::try_from(1 + (self.rows.len() + self.beyond.len()) / ROWS_A_TICK).unwrap_or(u32::MAX)
    }

    /// What has changed since `sent`, as the data of an event.
    fn since(&self, sent: Option<&Frame>) -> String {
        match sent {
            Some(before) if self.follows.as_ref() == Some(&before.id) => {
                self.change.get_or_init(|| self.difference(sent)).clone()
            }
            _ => self.difference(sent),
        }
    }

    fn difference(&self, sent: Option<&Frame>) -> String {
        let kept = sent.filter(|sent| sent.span == self.span);
        let was = |key: &Arc<[u8]>| kept.and_then(|kept| kept.index.get(key).map(|&i| &kept.rows[i].1));
        let changed: Vec<_> = self.rows.iter().filter(|(key, row)| was(key) != Some(row)).collect();
        let gone = kept.map_or(&[][..], |kept| &kept.rows).iter().filter(|(key, _)| !self.index.contains_key(key));
        let gone: Vec<_> = gone.collect();
        let retracted = changed.iter().filter_map(|(key, _)| was(key)).chain(gone.iter().map(|(_, row)| row));
        let mut data = self.head.clone();
        data.extend_from_slice(b",\"rows\":[");
        join(&mut data, changed.iter().map(|(_, row)| row.as_slice()));
        data.extend_from_slice(b"],");
        data.extend_from_slice(&self.tail);
        data.extend_from_slice(format!(",\"reset\":{},\"removed\":[", kept.is_none()).as_bytes());
        join(&mut data, gone.iter().map(|(key, _)| &**key));
        data.extend_from_slice(b"],\"cut\":[");
        join(&mut data, gone.iter().map(|(key, _)| &**key).filter(|key| self.beyond.contains(*key)));
        data.extend_from_slice(b"],\"retracted\":[");
        join(&mut data, retracted.map(Vec::as_slice));
        data.extend_from_slice(b"]}");
        String::from_utf8(data).expect("JSON is text")
    }
}

/// Finals as they are sent: each window, and the data of its event.
pub(crate) type Finals = Vec<(Final, String)>;

/// The finals that come next after one, see [`merge::finals`]; none if that can't be told yet.
fn compute_finals(
    view: &View,
    layers: &Layers,
    log_end: &Positions,
    after: Option<Final>,
    rejected: u64,
) -> Result<Option<Finals>, Problem> {
    let sources = Sources::choose(view, Mode::Merged, layers, log_end);
    let Some(finals) = merge::finals(view, &sources, after).map_err(|error| Problem::internal(&error))? else {
        return Ok(None);
    };
    let data = |(window, Answer { span, rows, quality, late }): (Final, Answer)| {
        let rows = Rows::of(&rows).map_err(|error| Problem::internal(&error))?;
        let proof = Proof { view, sources: &sources, span, quality, late, rejected, total: rows.height() };
        let mut data = Vec::with_capacity(512 + rows.height() * 64);
        proof.write_head(&mut data);
        data.extend_from_slice(b",\"truncated\":false,\"rows\":");
        rows.write_json_array(&mut data);
        data.push(b',');
        proof.write_tail(&mut data);
        data.push(b'}');
        let data = String::from_utf8(data).map_err(|error| Problem::internal(&error))?;
        Ok((window, data))
    };
    finals.into_iter().map(data).collect::<Result<_, _>>().map(Some)
}

/// What tells a row from others. Of one key there may be several sessions.
fn is_key(view: &View, name: &str) -> bool {
    name == "window_start" || view.keys.iter().any(|key| key.name == name)
}

fn join<'a>(out: &mut Vec<u8>, parts: impl Iterator<Item = &'a [u8]>) {
    for (i, part) in parts.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(part);
    }
}

/// The parameters of a stream of several views.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the shape for the API's description")]
pub struct StreamParameters {
    /// Names with commas between.
    views: String,
    /// `update`, which is the default, `append` or `complete`.
    mode: Option<String>,
}

/// A view's newest window, and from then on what changes in it; or the windows that are closed for good.
///
/// `mode=update`: events `update`, each a rows answer whose `rows` are those that are new or changed. `retracted` has the rows
/// that they replace and those that are gone, as they were sent last: a table is kept up by deleting these and inserting
/// those. `removed` has the keys of those that are gone. With `reset`, which comes with another window too, all that was sent
/// before is to be forgotten. Each event says how many rows the answer has (`total`), and whether more than a stream sends of
/// it, 100,000: then it is `truncated`, to the first in the view's order, and `cut` has those of the `removed` keys that the
/// answer still has, beyond these.
///
/// An event `heartbeat` comes at once and every five seconds, without an id, with the server's `time` and each view's `watermark` and `lag`:
/// a client that hears none for long has lost the server. `lag` is null while the log can't be reached.
///
/// `mode=complete`: events `complete`, each the whole answer, with `reset`.
///
/// `mode=append`: events `append`, each a rows answer of one window that is closed for good, in order, each once: those
/// without data are left out. Without `Last-Event-ID` it begins with the newest. While the answer is `incomplete`, none is sent.
#[utoipa::path(
    get, path = "/v1/views/{view}/stream", tag = "views",
    params(
        ("view" = String, Path, description = "The view's name"),
        ("mode" = Option<String>, Query, description = "`update`, which is the default, `append` or `complete`"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event of this stream that came: it goes on from there. In mode `append` any window can be named, as `view=start/end`, or none by `view=`, which begins with the oldest; in the other modes the whole answer is sent unless it is the one that the id names"),
    ),
    responses(
        (status = 200, description = "Events, each but the heartbeat with an id", body = StreamEvent, content_type = "text/event-stream"),
        (status = 400, description = "A parameter can't be; or mode `append` of a view without windows, or after what is no window of it", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view, or one that writes its rows to a topic", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "`Last-Event-ID` is of another log", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams are open", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn stream_view(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Query(parameters): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mode = output_mode(&parameters, &["mode"])?;
    let view = Arc::clone(server.view(&name)?);
    open(server, vec![view], mode, &headers).await
}

/// Several views over one connection.
#[utoipa::path(
    get, path = "/v1/stream", tag = "views",
    params(
        StreamParameters,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that came: it goes on from there"),
    ),
    responses(
        (status = 200, description = "Events of all of them; `view` says of which", body = StreamEvent, content_type = "text/event-stream"),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view, or one that writes its rows to a topic", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "`Last-Event-ID` is of another log", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams are open", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn stream_views(
    State(server): State<Arc<Server>>,
    Query(parameters): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mode = output_mode(&parameters, &["mode", "views"])?;
    let names = parameters.iter().find(|(name, _)| name == "views").map(|(_, names)| names.as_str());
    let names: BTreeSet<&str> = names.unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return Err(Problem::bad_request("bad-parameter", "name the views: `?views=a,b`"));
    }
    let views = names.into_iter().map(|name| server.view(name).cloned()).collect::<Result<_, _>>()?;
    open(server, views, mode, &headers).await
}

/// The mode asked for. There may be no other parameters than the known ones.
fn output_mode(parameters: &[(String, String)], known: &[&str]) -> Result<OutputMode, Problem> {
    let mut mode = OutputMode::Update;
    for (name, value) in parameters {
        if !known.contains(&name.as_str()) {
            let detail = format!("there is no parameter `{name}`; there are {}", quoted(known.iter().copied()));
            return Err(Problem::bad_request("unknown-parameter", detail));
        }
        if name == "mode" {
            mode = OutputMode::ALL.into_iter().find(|mode| mode.name() == value).ok_or_else(|| {
                let detail = format!("`mode` is `{value}`; it can be `update`, `append` or `complete`");
                Problem::bad_request("bad-mode", detail)
            })?;
        }
    }
    Ok(mode)
}

/// How far a view has been sent.
#[derive(Debug, Clone)]
enum Sent {
    /// Not at all.
    Nothing,
    /// An answer, over another connection: its id is known.
    Id(String),
    /// An answer.
    Answer(Arc<Frame>),
    /// The finals up to this one.
    Finals(Final),
}

impl Sent {
    /// What a client says of a view that it was sent before it came back, and of which log if it says that. An id that says
    /// nothing of the newest answer is as good as none: that is sent then. But no window may be left out unseen.
    fn before(view: &View, mode: OutputMode, headers: &HeaderMap) -> Result<(Self, Option<Mark>), Problem> {
        if mode == OutputMode::Append && view.window.is_none() {
            let name = &view.name;
            let detail = format!("view `{name}` has no windows, so no row of it is final; use `update` or `complete`");
            return Err(Problem::bad_request("no-windows", detail));
        }
        let id = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()).map(|id| id.to_str().unwrap_or("?"));
        let parts = || id.into_iter().flat_map(|id| id.split(','));
        let of_view = parts().find_map(|part| part.strip_prefix(view.name.as_str())?.strip_prefix('='));
        if mode != OutputMode::Append {
            return Ok((of_view.map_or(Self::Nothing, |id| Self::Id(id.to_owned())), None));
        }
        let is_one = parts().all(|part| part.contains('='));
        let log = of_view.and_then(|id| id.split_once('@')).map(|(_, log)| Mark::new(log));
        let sent = match of_view.map(|id| id.split_once('@').map_or(id, |(window, _)| window)) {
            None => is_one.then_some(Self::Nothing),
            Some(name) => Final::named(view, name).map(Self::Finals),
        };
        sent.map(|sent| (sent, log)).ok_or_else(|| {
            let detail = format!(
                "`Last-Event-ID` is `{}`, which names no window of view `{name}`; send the id of an event of this stream as it \
                 came, such as `{name}=2017-08-27T00:00:00Z/2017-08-27T00:05:00Z`, or none",
                id.unwrap_or_default(),
                name = view.name,
            );
            Problem::bad_request("bad-event-id", detail)
        })
    }

    fn position(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Id(id) => Some(id.clone()),
            Self::Answer(frame) => Some(frame.id.clone()),
            Self::Finals(last) => Some(last.name()),
        }
    }
}

async fn open(
    server: Arc<Server>,
    views: Vec<Arc<View>>,
    mode: OutputMode,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let mut sent = Vec::new();
    for view in &views {
        let (before, log) = Sent::before(view, mode, headers)?;
        if let Some(log) = log {
            let way_out = "begin again without it, or with an id that names a window and no log";
            server.check_log(view, &server.layers.get(view), &log, "`Last-Event-ID`", way_out).await?;
        }
        sent.push(before);
    }
    let permit = Arc::clone(&server.streams).try_acquire_owned().map_err(|_| {
        let detail = format!("{} streams are open, which is as many as may be", server.app.limits.streams);
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-streams", detail).retry_after(10)
    })?;
    let (events, receiver) = mpsc::channel(1);
    let shutdown = server.shutdown.clone();
    let heartbeats = heartbeats(Arc::clone(&server), views.clone());
    let feed = Feed { server, views, mode, sent, events, shutdown, stall: STALL };
    tokio::spawn(feed.run(permit));
    // It ends with what is fed.
    let fed = ReceiverStream::new(receiver).map(Some).chain(futures::stream::once(std::future::ready(None)));
    let events = futures::stream::select(Box::pin(heartbeats.map(Some)), fed);
    let events = events.take_while(|event| std::future::ready(event.is_some()));
    let events = events.filter_map(|event| std::future::ready(event.map(Ok::<Event, Infallible>)));
    let mut response = Sse::new(events).into_response();
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    Ok(response)
}

type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// Says of which view, by its place, something has changed.
fn changes(server: &Server, views: &[Arc<View>]) -> StreamMap<(usize, bool), Changes> {
    let mut changes = StreamMap::new();
    for (i, view) in views.iter().enumerate() {
        if let Some(snapshot) = server.layers.snapshots().0.get(&view.name) {
            let stream: Changes = Box::pin(WatchStream::from_changes(snapshot.clone()).map(drop));
            changes.insert((i, false), stream);
        }
        if let Some(version) = server.layers.versions().0.get(&view.name) {
            let stream: Changes = Box::pin(WatchStream::from_changes(version.clone()).map(drop));
            changes.insert((i, true), stream);
        }
    }
    changes
}

/// What feeds one connection.
struct Feed {
    server: Arc<Server>,
    views: Vec<Arc<View>>,
    mode: OutputMode,
    /// How far each view has been sent.
    sent: Vec<Sent>,
    events: mpsc::Sender<Event>,
    shutdown: watch::Receiver<bool>,
    /// How long the client may take to take the event that is under way.
    stall: Duration,
}

impl Feed {
    async fn run(mut self, _permit: OwnedSemaphorePermit) {
        let (mut shutdown, events) = (self.shutdown.clone(), self.events.clone());
        let mut changes = changes(&self.server, &self.views);
        let mut changed: BTreeSet<usize> = (0..self.views.len()).collect();
        // When a view that lags behind its layers is to be looked at again.
        let mut again: BTreeMap<usize, Instant> = BTreeMap::new();
        loop {
            let tick = Instant::now() + TICK;
            for i in std::mem::take(&mut changed) {
                again.remove(&i);
                let told = match self.mode {
                    OutputMode::Append => self.tell_finals(i).await,
                    OutputMode::Update | OutputMode::Complete => self.tell_answer(i).await,
                };
                match told {
                    None => return,
                    Some(due) => again.extend(due.map(|due| (i, due))),
                }
            }
            let due = again.values().min().copied();
            tokio::select! {
                () = events.closed() => return,
                () = stopped(&mut shutdown) => return,
                Some(((i, _), ())) = changes.next(), if !changes.is_empty() => {
                    changed.insert(i);
                }
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
            tokio::time::sleep_until(tick).await;
            let now = Instant::now();
            changed.extend(again.iter().filter(|(_, due)| **due <= now).map(|(&i, _)| i));
            while let Some(Some(((i, _), ()))) = changes.next().now_or_never() {
                changed.insert(i);
            }
        }
    }

    /// Room for an event; none once nobody takes it.
    async fn room(&mut self) -> Option<mpsc::OwnedPermit<Event>> {
        tokio::select! {
            room = tokio::time::timeout(self.stall, self.events.clone().reserve_owned()) => room.ok()?.ok(),
            () = stopped(&mut self.shutdown) => None,
        }
    }

    fn event(&mut self, data: String) -> Event {
        self.stall = STALL + Duration::from_millis((data.len() / SLOWEST) as u64);
        let views = self.views.iter().zip(&self.sent);
        let log = |view: &View, sent: &Sent| match (sent, self.server.layers.get(view).log()) {
            (Sent::Finals(_), Some(log)) => format!("@{log}"),
            _ => String::new(),
        };
        let parts =
            views.filter_map(|(view, sent)| Some(format!("{}={}{}", view.name, sent.position()?, log(view, sent))));
        let id = parts.collect::<Vec<_>>().join(",");
        Event::default().event(self.mode.name()).id(id).data(data)
    }

    /// Sends the newest answer, or what has changed in it, and says when it is to be looked at again though no layer changes.
    /// None once the client is gone.
    async fn tell_answer(&mut self, i: usize) -> Option<Option<Instant>> {
        // Room first: what is sent then is the newest.
        let room = self.room().await?;
        let Some((frame, due)) = newest(&self.server, &self.views[i]).await else {
            return Some(Some(Instant::now() + AGAIN));
        };
        let sent = std::mem::replace(&mut self.sent[i], Sent::Answer(frame.clone()));
        if sent.position().as_ref() != Some(&frame.id) {
            let before = match sent {
                Sent::Answer(before) if self.mode == OutputMode::Update => Some(before),
                _ => None,
            };
            let is_long = frame.rows.len() > ROWS_A_TICK;
            let since = move || frame.since(before.as_deref());
            let data = if is_long { blocking(since).await.ok()? } else { since() };
            room.send(self.event(data));
        }
        Some(due)
    }

    /// Sends all finals after the last that was sent, and says when to look again if that couldn't be told. None once the client
    /// is gone.
    async fn tell_finals(&mut self, i: usize) -> Option<Option<Instant>> {
        loop {
            let after = match self.sent[i] {
                Sent::Finals(last) => Some(last),
                _ => None,
            };
            let Ok(finals) = next_finals(&self.server, &self.views[i], after).await else {
                return Some(Some(Instant::now() + AGAIN));
            };
            let Some(finals) = &*finals else { return Some(None) };
            if finals.is_empty() {
                // Those that close from now on all come after this.
                self.sent[i] = Sent::Finals(after.unwrap_or(Final::BEFORE_ALL));
                return Some(None);
            }
            for (window, data) in finals {
                let room = self.room().await?;
                self.sent[i] = Sent::Finals(*window);
                room.send(self.event(data.clone()));
            }
        }
    }
}

/// Waits until the server is to end.
pub(crate) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}

/// The newest answer, or one that is not older than its size allows, and when it is to be looked at again though no layer
/// changes; none if there is none now. All streams of a view have the same, so it is computed once for them.
async fn newest(server: &Arc<Server>, view: &Arc<View>) -> Option<(Arc<Frame>, Option<Instant>)> {
    let mut shared = server.frames.get(&view.name)?.lock().await;
    let mut layers = server.layers.get(view);
    let (log_end, again) = if layers.need_log_end() {
        (recent_log_end(server, view, &mut layers).await?, Some(Instant::now() + AGAIN))
    } else {
        (Positions::new(), None)
    };
    let stamp = server.stamp(&layers, &log_end);
    let before = shared.frame.upgrade();
    if let Some(frame) = &before {
        if shared.stamp == Some(stamp) {
            return Some((Arc::clone(frame), again));
        }
        if let Some(due) = shared.due.filter(|due| Instant::now() < *due) {
            return Some((Arc::clone(frame), Some(due)));
        }
    }
    let most = server.app.limits.stream_rows;
    let follows = before.map(|before| before.id.clone());
    let (of, rejects) = (Arc::clone(view), Arc::clone(&server.app.rejects));
    let frame = server.compute(move || {
        let rejected = rejected(&rejects, &of.table.topic)?;
        Frame::compute(&of, &layers, &log_end, rejected, most, follows)
    });
    let frame = Arc::new(frame.await.ok()?);
    *shared = Shared { frame: Arc::downgrade(&frame), stamp: Some(stamp), due: Some(Instant::now() + frame.pace()) };
    Some((frame, again))
}

async fn next_finals(
    server: &Arc<Server>,
    view: &Arc<View>,
    after: Option<Final>,
) -> Result<Arc<Option<Finals>>, Problem> {
    let (layers, log_end, stamp) = server.instant(view).await?;
    let question = format!("{}\0{}", view.name, after.map_or("newest".to_owned(), Final::name));
    if let Some(finals) = server.finals.get(&question, stamp) {
        return Ok(finals);
    }
    let compute = || {
        let (view, rejects) = (Arc::clone(view), Arc::clone(&server.app.rejects));
        server.compute(move || {
            let rejected = rejected(&rejects, &view.table.topic)?;
            compute_finals(&view, &layers, &log_end, after, rejected)
        })
    };
    let weigh = |finals: &Option<Finals>| finals.iter().flatten().map(|(_, data)| data.len() + 64).sum();
    server.finals.get_or_compute(question, stamp, weigh, compute).await
}
