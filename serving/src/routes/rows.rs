//! `GET /v1/views/{view}/rows`: the merged answer.

use std::sync::Arc;
use std::time::Instant;

use anabranch_engine::render::Rows;
use anabranch_log::position::{Positions, TopicPartition};
use anabranch_plan::view::Kept;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use polars::prelude::{PolarsError, PolarsResult};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::format::Format;
use crate::merge::{self, Span};
use crate::page::{self, Cursor, Pages, Reading};
use crate::problem::{Problem, quoted};
use crate::proof::{Offsets, Proof, Row};
use crate::query::RowsQuery;
use crate::rendered::{Rendered, etag, is_known};
use crate::server::Server;
use crate::source::{Layers, Sources};
use crate::topic::rejected_of;
use crate::total;

/// Carries, beside rows that aren't JSON, all that the JSON answer says of them, as one JSON object.
const PROOF: HeaderName = HeaderName::from_static("anabranch-answer");

/// The parameters of a request for rows.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "the shape for the API's description; `RowsQuery` reads the parameters")]
pub struct RowsParameters {
    /// `latest` (the newest window that holds data), `current` (the one that the newest event ends next), `closed` (the newest that the watermark has passed), or a window's end in RFC 3339. Of sessions that end alike it is all of them, and `current` is those that are open; each row then has its `window_start` and `window_end`.
    #[param(example = "latest")]
    window: Option<String>,
    /// With `to`: all windows wholly inside the range, at most 10,000.
    from: Option<String>,
    /// With `from`: the end of the range.
    to: Option<String>,
    /// How many rows at most in this page, 1 to 100,000; 1,000 if absent.
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// `merged` (default), `batch` or `speed`.
    mode: Option<String>,
    /// Only rows with this value in this key column; may be given for several columns. An empty value is the empty text.
    #[param(rename = "key.{column}")]
    key: Option<String>,
    /// `true`: only rows whose key is null in this column.
    #[param(rename = "key.{column}.null")]
    key_null: Option<bool>,
    /// A column to rank by, with `:asc` or `:desc` behind it: within each window, of sessions over all of them. Aggregates come
    /// largest first if it isn't said, keys smallest; ties go by the keys, nulls come last. Which rows there are the view's own limit says.
    #[param(example = "mentions:desc")]
    order: Option<String>,
    /// `true`: the answer has each window's `totals` over all its rows, those of other pages too. JSON only.
    totals: Option<bool>,
    /// `json`, `csv`, `ndjson` or `arrow`, whatever is accepted.
    format: Option<String>,
}

/// Rows of a view, and what is known of them.
#[derive(ToSchema, Serialize)]
#[schema(example = json!({
    "view": "trending_hashtags", "mode": "merged", "exact": true, "incomplete": false,
    "window": {"start": "2017-08-27T00:00:00Z", "end": "2017-08-27T00:05:00Z", "state": "open"},
    "total": 1, "truncated": false,
    "rows": [{"hashtag": "#mcgregor", "mentions": 431, "mentions_lower": 431, "mentions_upper": 431}],
    "sources": {"batch": {"version": 7, "offsets": {"tweets": {"0": [0, 1200]}}}, "speed": {"offsets": {"tweets": {"0": [1200, 1532]}}}},
    "watermark": "2017-08-27T00:04:31Z", "late": 0, "rejected": 0, "definition": "sha256:…",
    "certain": true, "confidence": 1.0,
}))]
pub struct RowsAnswer {
    /// The view.
    view: String,
    /// Which layers it takes from.
    mode: String,
    /// Whether the rows are what the batch layer will say of the same events. An answer that is made of no record, as with `mode=batch` before the first version, is exact only as long as the log holds none: it says nothing of those that are there. Its `sources` are null or empty, and the one row that a view without windows and keys has of nothing has no bounds.
    exact: bool,
    /// Whether offsets are missing from it.
    incomplete: bool,
    /// The offsets that are missing, if any.
    #[schema(nullable = false)]
    missing: Option<Offsets>,
    /// Why they are missing, if the view or its source has stopped.
    #[schema(nullable = false)]
    reason: Option<String>,
    /// The window, or the range; null if the view has none, or no data yet. Of sessions that end alike only the end, as each row has its own start.
    #[schema(required = true)]
    window: Option<WindowOrRange>,
    /// How many rows the whole answer has, over all pages.
    total: u64,
    /// Whether this page leaves rows out.
    truncated: bool,
    /// With `totals=true`: of each window how many `rows` it has, and the sums of its `additive` columns with their bounds. Of one window, of a view without windows and of sessions it is one element without bounds of a window. A sum beyond 64 bits is null; so is a bound that isn't known. Of a view with a limit they are over the rows that the limit keeps; with `key.…` over those asked for.
    #[schema(nullable = false)]
    totals: Option<Vec<Row>>,
    /// The rows in the view's order, or in that asked for.
    rows: Vec<Row>,
    /// Which version, and which offsets of each layer.
    sources: AnswerSources,
    /// No event with an earlier time is expected any more.
    #[schema(required = true)]
    watermark: Option<String>,
    /// Events that came too late for the windows of this answer.
    late: u64,
    /// Records of the topic that were rejected.
    rejected: u64,
    /// The definition that was computed.
    definition: String,
    /// Whether these are surely the rows that the view's limit keeps.
    certain: bool,
    /// With which probability each bound holds: 1 unless a sketch states it.
    confidence: f64,
    /// With a cursor: whether this page is of a newer answer than the page before, which isn't kept any more. It has the rows that weren't sent yet, if the server still knows which were; else those that come behind the last one in the order, where one whose value has moved over that place meanwhile may come twice or not at all. Where `order` is a key's, none can.
    #[schema(nullable = false)]
    moved: Option<bool>,
    /// Goes on where this page ends, if it isn't the last.
    #[schema(nullable = false)]
    next_cursor: Option<String>,
}

/// A window with its state, or a range.
#[derive(ToSchema, Serialize)]
pub struct WindowOrRange {
    /// The window's first instant.
    #[schema(nullable = false)]
    start: Option<String>,
    /// The first instant after the window.
    #[schema(nullable = false)]
    end: Option<String>,
    /// `open`, `closing` (late events are still taken) or `closed`.
    #[schema(nullable = false)]
    state: Option<String>,
    /// Where a range begins.
    #[schema(nullable = false)]
    from: Option<String>,
    /// Where a range ends.
    #[schema(nullable = false)]
    to: Option<String>,
}

/// What each layer contributed.
#[derive(ToSchema, Serialize)]
pub struct AnswerSources {
    /// The batch part; null if there is none.
    #[schema(required = true)]
    batch: Option<BatchPart>,
    /// The speed part; null if there is none.
    #[schema(required = true)]
    speed: Option<SpeedPart>,
}

/// The batch part of an answer.
#[derive(ToSchema, Serialize)]
pub struct BatchPart {
    /// The version.
    version: u64,
    /// What it covers.
    offsets: Offsets,
}

/// The speed part of an answer.
#[derive(ToSchema, Serialize)]
pub struct SpeedPart {
    /// What it covers.
    offsets: Offsets,
}

/// Bytes: a stream in Arrow's IPC format.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "the shape for the API's description")]
pub struct ArrowStream(Vec<u8>);

/// The rows of a view, merged from both layers.
#[utoipa::path(
    get,
    path = "/v1/views/{view}/rows",
    tag = "views",
    params(("view" = String, Path, description = "The view's name"), RowsParameters),
    responses(
        (status = 200, description = "The rows; for the other forms, the header `anabranch-answer` says what JSON says beside the rows", content(
            (RowsAnswer = "application/json"), (String = "text/csv"), (String = "application/x-ndjson"),
            (ArrowStream = "application/vnd.apache.arrow.stream"),
        )),
        (status = 304, description = "What `If-None-Match` names is still the answer"),
        (status = 400, description = "A parameter can't be", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such view, or one that writes its rows to a topic", body = Problem, content_type = "application/problem+json"),
        (status = 406, description = "No form that is accepted", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The cursor is of another log, or what it stands on isn't kept any more", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not in time", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn rows(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let started = Instant::now();
    let view = server.view(&name)?;
    let (layers, log_end, stamp) = server.instant(&view).await?;
    let raw = uri.query().unwrap_or_default();
    let Query(parameters) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| Problem::bad_request("bad-query", error.body_text()))?;
    let asked = parameters.iter().find(|(name, _)| name == "format");
    let asked = asked.and_then(|(_, asked)| Format::ALL.into_iter().find(|format| format.name() == asked));
    let format = asked.map_or_else(|| format(&headers), Ok)?;
    let question = format!("{name}\0{}\0{raw}", format.media_type());
    let rendered = match server.answers.get(&question, stamp) {
        Some(rendered) => rendered,
        None => {
            let query = RowsQuery::parse(&view, &parameters)?;
            if query.totals && format != Format::Json {
                return Err(Problem::bad_request("bad-parameter", "`totals` are of JSON only"));
            }
            if let Some(cursor) = &query.after {
                server.check_logs(&view, &layers, &cursor.logs, "the cursor", "begin again without it").await?;
            }
            let compute = || {
                let (view, rejects) = (view.clone(), Arc::clone(&server.app.rejects));
                let pages = Arc::clone(&server.pages);
                server.compute(move || {
                    let rejected = rejected_of(&rejects, &view)?;
                    render(&view, &layers, &log_end, &query, format, rejected, &pages)
                })
            };
            server.answers.get_or_compute(question, stamp, |rendered| rendered.body.len() + 256, compute).await?
        }
    };
    server.metrics.rows_seconds.observe(started.elapsed().as_secs_f64(), 1);
    Ok(respond(&rendered, format, &headers))
}

fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    Format::accepted(lines).ok_or_else(|| {
        let formats = quoted(Format::ALL.into_iter().map(Format::media_type));
        Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", format!("rows are served as {formats}"))
    })
}

fn respond(rendered: &Rendered, format: Format, headers: &HeaderMap) -> Response {
    let mut response = if is_known(headers, rendered.etag.to_str().unwrap_or_default()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = rendered.body.clone().into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        if let Some(proof) = &rendered.proof {
            response.headers_mut().insert(PROOF, proof.clone());
        }
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, rendered.etag.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    response
}

/// The answer that pages are cut from, by what the layers say now.
fn read(
    view: &Kept,
    layers: &Layers,
    log_end: &Positions<TopicPartition>,
    query: &RowsQuery,
    rejected: u64,
) -> PolarsResult<Reading> {
    let sources = Sources::choose(view, query.mode, layers, log_end);
    let answer = merge::answer(view, &sources, query.ask)?;
    let selected = query.select(answer.rows)?;
    let order = page::order(view, query.order.as_ref(), &selected);
    let rows = if query.order.is_some() { page::sorted(selected, &order)? } else { selected };
    let total = rows.height();
    let (span, quality, late) = (answer.span, answer.quality, answer.late);
    let proof = Proof { view, sources: &sources, span, quality, late, rejected, total };
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    proof.write_head(&mut head);
    if query.totals {
        tail.extend_from_slice(b"\"totals\":");
        let same = |view: &Kept| query.select(merge::answer(view, &sources, query.ask)?.rows);
        Rows::of(&total::totals(view, &rows, quality, same)?)?.write_json_array(&mut tail);
        tail.push(b',');
    }
    proof.write_tail(&mut tail);
    let window = match (span, view.aggregation().window) {
        (Span::One(start), Some(window)) => Some(window.end_of(start)),
        (Span::Ending(end), _) => Some(end),
        _ => None,
    };
    let (name, logs) = (page::reading(query.fingerprint(), &sources, span), layers.logs(view));
    Ok(Reading { name, head, tail, rows, order, total, window, logs })
}

/// What a page is cut from: the reading, how many of its rows come before, and whether it is another than that of the page
/// before, if there was one.
fn resume(
    view: &Kept,
    query: &RowsQuery,
    pages: &Pages,
    read: impl FnOnce() -> PolarsResult<Reading>,
) -> Result<(Arc<Reading>, usize, Option<bool>), Problem> {
    let internal = |error: PolarsError| Problem::internal(&error);
    let Some(cursor) = &query.after else { return Ok((Arc::new(read().map_err(internal)?), 0, None)) };
    if let Some(kept) = pages.readings.get(&cursor.read.to_string(), ()) {
        return Ok((kept, cursor.rows, Some(false)));
    }
    let mut reading = read().map_err(internal)?;
    if reading.name == cursor.read {
        return Ok((Arc::new(reading), cursor.rows, Some(false)));
    }
    // The rest of an answer is another than the whole.
    reading.name = page::rest(reading.name, cursor);
    if !page::is_by_key(view, &reading.order)
        && let Some(sent) = pages.sent.get(&format!("{}:{}", cursor.read, cursor.rows), ())
    {
        reading.rows = page::unsent(view, &reading.rows, &sent).map_err(internal)?;
        return Ok((Arc::new(reading), 0, Some(true)));
    }
    let Some(last) = &cursor.last else {
        let detail =
            format!("view `{}` has changed since, and its keys are too long to go on by; begin again", view.id.name);
        return Err(Problem::new(StatusCode::GONE, "cursor-expired", detail));
    };
    reading.rows = page::behind(&reading.rows, &reading.order, last).map_err(internal)?;
    Ok((Arc::new(reading), 0, Some(true)))
}

fn render(
    view: &Kept,
    layers: &Layers,
    log_end: &Positions<TopicPartition>,
    query: &RowsQuery,
    format: Format,
    rejected: u64,
    pages: &Pages,
) -> Result<Rendered, Problem> {
    let internal = |error: PolarsError| Problem::internal(&error);
    let (reading, from, moved) = resume(view, query, pages, || read(view, layers, log_end, query, rejected))?;
    let page = reading.rows.slice(i64::try_from(from).unwrap_or(i64::MAX), query.limit);
    let to = from.saturating_add(page.height());
    let is_last = to >= reading.rows.height();
    let mut beside = format!(",\"truncated\":{}", page.height() < reading.total);
    if let Some(moved) = moved {
        beside.push_str(&format!(",\"moved\":{moved}"));
    }
    if !is_last && page.height() > 0 {
        let last = page::places(&page, &reading.order, page.height() - 1).map_err(internal)?;
        let Reading { name: read, window, ref logs, .. } = *reading;
        let cursor = Cursor { query: query.fingerprint(), read, window, rows: to, last, logs: logs.clone() };
        beside.push_str(&format!(",\"next_cursor\":\"{}\"", cursor.write()));
        let before = query.after.as_ref().map(|after| pages.sent.get(&format!("{}:{}", after.read, after.rows), ()));
        if !page::is_by_key(view, &reading.order) && !matches!(before, Some(None)) {
            let mut sent = before.flatten().map_or_else(page::Sent::new, |sent| page::Sent::clone(&sent));
            sent.extend(page::identities(view, &page).map_err(internal)?);
            let weight = 16 * sent.len();
            pages.sent.keep(&format!("{}:{to}", reading.name), (), Arc::new(sent), weight);
        }
        pages.readings.keep(&reading.name.to_string(), (), Arc::clone(&reading), reading.bytes());
    }
    let rows = Rows::of(&page).map_err(internal)?;
    let (head, tail) = (&reading.head, &reading.tail);
    let said = [head.as_slice(), b",", tail, beside.as_bytes(), b"}"].concat();
    let mut body = Vec::with_capacity(512 + rows.height() * 64);
    match format {
        Format::Json => {
            body.extend_from_slice(head);
            body.extend_from_slice(b",\"rows\":");
            rows.write_json_array(&mut body);
            body.push(b',');
            body.extend_from_slice(tail);
            body.extend_from_slice(beside.as_bytes());
            body.push(b'}');
        }
        Format::Csv => rows.write_csv(&mut body),
        Format::Ndjson => rows.write_ndjson(&mut body),
        Format::Arrow => rows.write_arrow(&mut body).map_err(|error| Problem::internal(&error))?,
    }
    let etag = etag(&body, &said);
    let proof = (format != Format::Json).then(|| HeaderValue::from_bytes(&said).ok()).flatten();
    Ok(Rendered { body: Bytes::from(body), etag, proof })
}
