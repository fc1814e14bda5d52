//! `GET /v1/views/{view}/stream` and `GET /v1/stream`: changes as they happen, as Server-Sent Events.
//!
//! A connection holds what it was sent last. When a view's layers change, the newest answer, computed once for all
//! connections, is compared with that, and the difference is sent. A client that doesn't keep up skips what lies
//! between; nothing is queued for it but the one event that is under way.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anabranch_shared::position::Positions;
use anabranch_shared::render::Rows;
use anabranch_shared::view::View;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamMap;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use utoipa::IntoParams;

use crate::app::{Server, rejected};
use crate::merge::{self, Ask, Span};
use crate::problem::Problem;
use crate::proof::Proof;
use crate::source::{Layers, Mode, Sources};

/// At most ten updates a second.
const TICK: Duration = Duration::from_millis(100);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A client that takes nothing for so long is dropped.
const STALL: Duration = Duration::from_secs(15);
/// How many rows of a view without a limit are sent.
const DEFAULT_ROWS: usize = 1_000;

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
}

impl Frame {
    fn compute(view: &View, layers: &Layers, log_end: &Positions, rejected: u64) -> Result<Self, Problem> {
        let internal = |error: polars::error::PolarsError| Problem::internal(&error);
        let sources = Sources::choose(view, Mode::Merged, layers, log_end);
        let answer = merge::answer(view, &sources, Ask::Current).map_err(internal)?;
        let most = view.limit.unwrap_or(DEFAULT_ROWS).max(DEFAULT_ROWS);
        let cells = Rows::of(&answer.rows.head(Some(most))).map_err(internal)?;
        let proof =
            Proof { view, sources: &sources, span: answer.span, exact: answer.exact, late: answer.late, rejected };
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        proof.write_head(&mut head);
        proof.write_tail(&mut tail);
        let mut rows = Vec::with_capacity(cells.height());
        for i in 0..cells.height() {
            let (mut key, mut row) = (Vec::new(), Vec::new());
            cells.write_json_object(i, |name| view.keys.iter().any(|key| key.name == name), &mut key);
            cells.write_json_object(i, |_| true, &mut row);
            rows.push((Arc::from(key), row));
        }
        let index = rows.iter().enumerate().map(|(i, (key, _))| (Arc::clone(key), i)).collect();
        let (sequence, version) = layers.stamp();
        let id = format!("{}-{}-{}", view.name, sequence.unwrap_or(0), version.unwrap_or(0));
        Ok(Self { head, tail, span: answer.span, id, rows, index })
    }

    fn weight(&self) -> usize {
        self.rows.iter().map(|(key, row)| 2 * key.len() + row.len() + 96).sum::<usize>() + 1_024
    }

    /// What has changed since `sent`, as the data of an event; none if nothing has.
    fn since(&self, sent: Option<&Frame>) -> Option<Vec<u8>> {
        let kept = sent.filter(|sent| sent.span == self.span);
        let was = |key: &Arc<[u8]>| kept.and_then(|kept| kept.index.get(key).map(|&i| &kept.rows[i].1));
        let changed: Vec<&Vec<u8>> =
            self.rows.iter().filter(|(key, row)| was(key) != Some(row)).map(|(_, row)| row).collect();
        let gone = kept.map_or(&[][..], |kept| &kept.rows).iter().map(|(key, _)| key);
        let removed: Vec<&Arc<[u8]>> = gone.filter(|key| !self.index.contains_key(*key)).collect();
        if let Some(kept) = kept
            && changed.is_empty()
            && removed.is_empty()
            && (&kept.head, &kept.tail) == (&self.head, &self.tail)
        {
            return None;
        }
        let mut data = self.head.clone();
        data.extend_from_slice(b",\"rows\":[");
        join(&mut data, changed.into_iter().map(Vec::as_slice));
        data.extend_from_slice(b"],");
        data.extend_from_slice(&self.tail);
        data.extend_from_slice(format!(",\"reset\":{},\"removed\":[", kept.is_none()).as_bytes());
        join(&mut data, removed.into_iter().map(|key| &**key));
        data.extend_from_slice(b"]}");
        Some(data)
    }
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
    /// `update`, which is the default.
    mode: Option<String>,
}

/// A view's newest window, and from then on what changes in it.
#[utoipa::path(
    get, path = "/v1/views/{view}/stream", tag = "views",
    params(
        ("view" = String, Path, description = "The view's name"),
        ("mode" = Option<String>, Query, description = "`update`, which is the default"),
    ),
    responses(
        (status = 200, description = "Events `update`: a rows answer whose `rows` are those that are new or changed, with `reset` (forget what you had) and `removed` (keys that are gone)", body = String, content_type = "text/event-stream"),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view, or one that writes its rows to a topic", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams are open", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn stream_view(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    check(&parameters, &["mode"])?;
    let view = Arc::clone(server.view(&name)?);
    open(server, vec![view])
}

/// Several views over one connection.
#[utoipa::path(
    get, path = "/v1/stream", tag = "views", params(StreamParameters),
    responses(
        (status = 200, description = "Events `update` of all of them; `view` says of which", body = String, content_type = "text/event-stream"),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view, or one that writes its rows to a topic", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams are open", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn stream_views(
    State(server): State<Arc<Server>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    check(&parameters, &["mode", "views"])?;
    let names = parameters.iter().find(|(name, _)| name == "views").map(|(_, names)| names.as_str());
    let names: BTreeSet<&str> = names.unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return Err(Problem::bad_request("bad-parameter", "name the views: `?views=a,b`"));
    }
    let views = names.into_iter().map(|name| server.view(name).cloned()).collect::<Result<_, _>>()?;
    open(server, views)
}

fn check(parameters: &[(String, String)], known: &[&str]) -> Result<(), Problem> {
    for (name, value) in parameters {
        if !known.contains(&name.as_str()) {
            let known = crate::problem::quoted(known.iter().copied());
            let detail = format!("there is no parameter `{name}`; there are {known}");
            return Err(Problem::bad_request("unknown-parameter", detail));
        }
        if name == "mode" && value != "update" {
            let detail = format!("`mode` `{value}` is not supported yet: `update`");
            return Err(Problem::bad_request("bad-mode", detail));
        }
    }
    Ok(())
}

fn open(server: Arc<Server>, views: Vec<Arc<View>>) -> Result<Response, Problem> {
    let permit = Arc::clone(&server.streams).try_acquire_owned().map_err(|_| {
        let detail = format!("{} streams are open, which is as many as may be", server.app.limits.streams);
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-streams", detail).retry_after(10)
    })?;
    let (events, receiver) = mpsc::channel(1);
    tokio::spawn(feed(server, views, events, permit));
    let events = ReceiverStream::new(receiver).map(Ok::<Event, Infallible>);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
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

async fn feed(server: Arc<Server>, views: Vec<Arc<View>>, events: mpsc::Sender<Event>, _permit: OwnedSemaphorePermit) {
    let mut shutdown = server.shutdown.clone();
    let mut changes = changes(&server, &views);
    let mut sent: Vec<Option<Arc<Frame>>> = vec![None; views.len()];
    let mut changed: BTreeSet<usize> = (0..views.len()).collect();
    loop {
        let tick = Instant::now() + TICK;
        for i in std::mem::take(&mut changed) {
            // Room first: what is sent then is the newest.
            let Ok(Ok(room)) = tokio::time::timeout(STALL, events.reserve()).await else { return };
            let Ok(frame) = newest(&server, &views[i]).await else { continue };
            if let Some(data) = frame.since(sent[i].as_deref()) {
                let Ok(data) = String::from_utf8(data) else { continue };
                room.send(Event::default().event("update").id(frame.id.clone()).data(data));
            }
            sent[i] = Some(frame);
        }
        tokio::select! {
            () = events.closed() => return,
            () = stopped(&mut shutdown) => return,
            Some(((i, _), ())) = changes.next(), if !changes.is_empty() => {
                changed.insert(i);
            }
        }
        tokio::time::sleep_until(tick).await;
        while let Some(Some(((i, _), ()))) = changes.next().now_or_never() {
            changed.insert(i);
        }
    }
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}

async fn newest(server: &Arc<Server>, view: &Arc<View>) -> Result<Arc<Frame>, Problem> {
    let (layers, log_end, stamp) = server.instant(view).await?;
    if let Some(frame) = server.frames.get(&view.name, stamp) {
        return Ok(frame);
    }
    let compute = || {
        let (view, rejects) = (Arc::clone(view), Arc::clone(&server.app.rejects));
        server.compute(move || {
            let rejected = rejected(&rejects, &view.table.topic)?;
            Frame::compute(&view, &layers, &log_end, rejected)
        })
    };
    server.frames.get_or_compute(view.name.clone(), stamp, Frame::weight, compute).await
}
