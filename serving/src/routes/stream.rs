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
//! `@` and the log that it is of behind it, of each log if there are several.

mod event;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anabranch_log::lineage::Mark;
use anabranch_log::position::Positions;
use anabranch_plan::view::{Kept, ViewId};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use crate::frame::{self, Finals, Frame, Shared};
use crate::merge::Final;
use crate::problem::{Problem, quoted};
use crate::routes::heartbeat::heartbeats;
use crate::routes::stream::event::StreamEvent;
use crate::server::{Server, blocking, stopped};
use crate::topic::rejected_of;

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
    let view = server.view(&name)?;
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
    let views = names.into_iter().map(|name| server.view(name)).collect::<Result<_, _>>()?;
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
    fn before(view: &Kept, mode: OutputMode, headers: &HeaderMap) -> Result<(Self, Vec<Mark>), Problem> {
        if mode == OutputMode::Append && view.aggregation().window.is_none() {
            let name = &view.id.name;
            let detail = format!("view `{name}` has no windows, so no row of it is final; use `update` or `complete`");
            return Err(Problem::bad_request("no-windows", detail));
        }
        let id = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()).map(|id| id.to_str().unwrap_or("?"));
        let parts = || id.into_iter().flat_map(|id| id.split(','));
        let of_view = parts().find_map(|part| part.strip_prefix(view.id.name.as_str())?.strip_prefix('='));
        if mode != OutputMode::Append {
            return Ok((of_view.map_or(Self::Nothing, |id| Self::Id(id.to_owned())), Vec::new()));
        }
        let is_one = parts().all(|part| part.contains('='));
        let mut pieces = of_view.into_iter().flat_map(|id| id.split('@'));
        let sent = match pieces.next() {
            None => is_one.then_some(Self::Nothing),
            Some(name) => Final::named(view, name).map(Self::Finals),
        };
        sent.map(|sent| (sent, pieces.map(Mark::new).collect())).ok_or_else(|| {
            let detail = format!(
                "`Last-Event-ID` is `{}`, which names no window of view `{name}`; send the id of an event of this stream as it \
                 came, such as `{name}=2017-08-27T00:00:00Z/2017-08-27T00:05:00Z`, or none",
                id.unwrap_or_default(),
                name = view.id.name,
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
    views: Vec<Kept>,
    mode: OutputMode,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let mut sent = Vec::new();
    for view in &views {
        let (before, logs) = Sent::before(view, mode, headers)?;
        let way_out = "begin again without it, or with an id that names a window and no log";
        server.check_logs(view, &server.layers.get(view), &logs, "`Last-Event-ID`", way_out).await?;
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

/// What feeds one connection.
struct Feed {
    server: Arc<Server>,
    views: Vec<Kept>,
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
        let mut changes = self.server.layers.changes(&self.views);
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
        let logs = |view: &Kept, sent: &Sent| match sent {
            Sent::Finals(_) => self.server.layers.get(view).logs(view).iter().map(|log| format!("@{log}")).collect(),
            _ => String::new(),
        };
        let parts =
            views.filter_map(|(view, sent)| Some(format!("{}={}{}", view.id.name, sent.position()?, logs(view, sent))));
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
            let is_long = frame.rows.iter().len() > ROWS_A_TICK;
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

/// The newest answer, or one that is not older than its size allows, and when it is to be looked at again though no layer
/// changes; none if there is none now. All streams of a view have the same, so it is computed once for them.
async fn newest(server: &Arc<Server>, view: &Kept) -> Option<(Arc<Frame>, Option<Instant>)> {
    let mut shared = server.frames.get(&view.id)?.lock().await;
    let mut layers = server.layers.get(view);
    let (log_end, again) = if layers.need_log_end() {
        (server.recent_log_end(view, &mut layers).await?, Some(Instant::now() + AGAIN))
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
    let (of, rejects) = (view.clone(), Arc::clone(&server.app.rejects));
    let frame = server.compute(move || {
        let rejected = rejected_of(&rejects, &of)?;
        Frame::compute(&of, &layers, &log_end, rejected, most, follows).map_err(|error| Problem::internal(&error))
    });
    let frame = Arc::new(frame.await.ok()?);
    *shared = Shared { frame: Arc::downgrade(&frame), stamp: Some(stamp), due: Some(Instant::now() + pace(&frame)) };
    Some((frame, again))
}

/// How long a frame is good enough, though the layers have moved on.
fn pace(frame: &Frame) -> Duration {
    TICK * u32::try_from(1 + frame.rows.total() / ROWS_A_TICK).unwrap_or(u32::MAX)
}

async fn next_finals(server: &Arc<Server>, view: &Kept, after: Option<Final>) -> Result<Arc<Option<Finals>>, Problem> {
    let (layers, log_end, stamp) = server.instant(view).await?;
    let ViewId { name, definition } = &view.id;
    let question = format!("{name}\0{definition}\0{}", after.map_or("newest".to_owned(), Final::name));
    if let Some(finals) = server.finals.get(&question, stamp) {
        return Ok(finals);
    }
    let compute = || {
        let (view, rejects) = (view.clone(), Arc::clone(&server.app.rejects));
        server.compute(move || {
            let rejected = rejected_of(&rejects, &view)?;
            frame::finals(&view, &layers, &log_end, after, rejected).map_err(|error| Problem::internal(&error))
        })
    };
    let weigh = |finals: &Option<Finals>| finals.iter().flatten().map(|(_, data)| data.len() + 64).sum();
    server.finals.get_or_compute(question, stamp, weigh, compute).await
}
