//! `GET /v1/views` and `GET /v1/views/{view}`: what exists, and how far each layer and each output has come.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_exchange::snapshot::{Progress, Snapshot};
use anabranch_log::position::{Partition, Positions, TopicPartition};
use anabranch_plan::aggregation::{AggregateFunction, OutputColumn};
use anabranch_plan::time::{Micros, format_timestamp};
use anabranch_plan::view::{Kept, Sent};
use anabranch_plan::window::Window;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::emission::EmissionStatus;
use crate::problem::Problem;
use crate::proof::{Offsets, all_positions_json};
use crate::routes::column::ViewColumn;
use crate::routes::output::{self, OutputDetail};
use crate::server::{Server, blocking};
use crate::source::{Layers, Mode, Sources};
use crate::topic::{Topics, rejected_of};

/// All views.
#[derive(Serialize, ToSchema)]
pub struct ViewList {
    /// The server's time.
    time: String,
    /// Those that keep rows and then those that write them to topics, each in order of name.
    views: Vec<Detail>,
}

/// A view: one that keeps rows, or one that writes them to a topic.
#[derive(Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Detail {
    View(Box<ViewDetail>),
    Output(Box<OutputDetail>),
}

/// A view that keeps rows, and how far each layer has come.
#[derive(Serialize, ToSchema)]
pub struct ViewDetail {
    /// Its name.
    name: String,
    /// Its statement.
    sql: String,
    /// `sha256:…`; changes with its meaning.
    definition: String,
    /// The topic whose events it is made of.
    topic: String,
    /// The table that it reads.
    table: String,
    /// The columns of its rows; those of the role `aggregate` are accompanied by `_lower` and `_upper`.
    columns: Vec<ViewColumn>,
    /// Its windows; null if it has none.
    #[schema(required = true)]
    window: Option<ViewWindow>,
    /// The order of a window's rows.
    order: Vec<ViewOrder>,
    /// How many rows of a window are kept.
    #[schema(required = true)]
    limit: Option<usize>,
    /// No event with an earlier time is expected any more; null before any event.
    #[schema(required = true)]
    watermark: Option<String>,
    /// How far each partition of the topic is, as the speed layer sees it; none if no speed layer is running.
    partitions: Vec<ViewPartition>,
    /// How far each layer has come.
    coverage: ViewCoverage,
    /// Where the topic's partitions end, by topic.
    log_end: BTreeMap<String, BTreeMap<String, u64>>,
    /// Records that neither layer covers yet.
    lag: u64,
    /// Events that came too late for at least one of their windows.
    late: u64,
    /// Records of the topic that were rejected.
    rejected: u64,
    /// Why its speed layer goes on no further, if it or its source has stopped.
    #[schema(required = true)]
    stopped: Option<String>,
    /// The topic that its rows are written to; null if they are not.
    #[schema(required = true)]
    emission: Option<ViewEmission>,
    /// When it is recomputed: a cron expression.
    #[schema(required = true)]
    schedule: Option<String>,
    /// The zone whose clock the schedule goes by.
    #[schema(example = "UTC", required = true)]
    schedule_zone: Option<&'static str>,
    /// What becomes of times that were missed: `last`, `all` or `none` of them are made up for.
    #[schema(required = true)]
    catch_up: Option<&'static str>,
}

/// The topic that a view's rows are written to.
#[derive(Serialize, ToSchema)]
pub struct ViewEmission {
    /// `kafka`: the log's own, which on one machine is the embedded one.
    kind: &'static str,
    /// The topic.
    topic: String,
    /// `changes` or `final`.
    emit: &'static str,
    /// Up to where the view's topics are read in what is written, by topic; empty if another process writes it.
    positions: BTreeMap<String, BTreeMap<String, u64>>,
    /// Records that this process has written since it started.
    records: u64,
    /// Why it writes nothing at the moment, if it would.
    #[schema(required = true)]
    waiting: Option<String>,
    /// Why it has stopped writing, if it has.
    #[schema(required = true)]
    stopped: Option<String>,
}

/// How windows follow each other.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowKind {
    Tumble,
    Hop,
    Session,
}

/// The windows of a view; lengths are ISO 8601 durations.
#[derive(Serialize, ToSchema)]
pub struct ViewWindow {
    kind: WindowKind,
    /// Not of sessions.
    #[schema(example = "PT5M", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<String>,
    /// Not of sessions.
    #[schema(example = "PT1M", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    slide: Option<String>,
    /// How long after a multiple of the slide windows start, if it isn't then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    offset: Option<String>,
    /// The time zone whose days they are.
    #[schema(example = "Europe/Paris", nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'static str>,
    /// Of sessions: how long without an event ends one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    gap: Option<String>,
}

/// One part of an order.
#[derive(Serialize, ToSchema)]
pub struct ViewOrder {
    column: String,
    descending: bool,
}

/// A partition of a topic that the view reads.
#[derive(Serialize, ToSchema)]
pub struct ViewPartition {
    /// The topic that it is of, if the view reads several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    topic: Option<String>,
    #[schema(value_type = u32)]
    partition: Partition,
    /// Its own watermark; null before any event.
    #[schema(required = true)]
    watermark: Option<String>,
    /// It is caught up and has had nothing new for a while: the view's watermark doesn't wait for it.
    idle: bool,
    /// It holds records and has delivered none for long.
    stalled: bool,
    /// The view's watermark waits for it, though others are ahead.
    holds_back: bool,
}

/// How far each layer has come.
#[derive(Serialize, ToSchema)]
pub struct ViewCoverage {
    /// The newest version; null before the first.
    #[schema(required = true)]
    batch: Option<BatchCoverage>,
    /// The speed layer's state; null if none is running.
    #[schema(required = true)]
    speed: Option<SpeedCoverage>,
}

/// The newest version.
#[derive(Serialize, ToSchema)]
pub struct BatchCoverage {
    version: u64,
    /// What it covers.
    offsets: Offsets,
    published: String,
    /// The newest event time among the events that the version covers.
    #[schema(required = true)]
    event_time: Option<String>,
}

/// The speed layer's state.
#[derive(Serialize, ToSchema)]
pub struct SpeedCoverage {
    /// What it covers.
    offsets: Offsets,
}

/// All views.
#[utoipa::path(get, path = "/v1/views", tag = "views", responses((status = 200, description = "All that the project has", body = ViewList)))]
pub(crate) async fn list_views(State(server): State<Arc<Server>>) -> Result<Json<ViewList>, Problem> {
    let time = format_timestamp(server.app.clock.now());
    let catalog = Arc::clone(&server.app.catalog);
    let views = blocking(move || details(&server, catalog.kept(), catalog.sent())).await??;
    Ok(Json(ViewList { time, views }))
}

/// One view: its definition, and how far each layer has come, or how far its rows are written.
#[utoipa::path(
    get, path = "/v1/views/{view}", tag = "views",
    params(("view" = String, Path, description = "The view's name")),
    responses(
        (status = 200, description = "What it is, and how far it has come", body = Detail),
        (status = 404, description = "No such view", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_view(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
) -> Result<Json<Detail>, Problem> {
    let details = match server.app.catalog.views.get(&name).and_then(Sent::of) {
        Some(output) => blocking(move || details(&server, [], [output])).await??,
        None => {
            let view = server.view(&name)?;
            blocking(move || details(&server, [view], [])).await??
        }
    };
    let detail = details.into_iter().next();
    detail.map(Json).ok_or_else(|| Problem::unknown("view", &name, std::iter::empty()))
}

/// How far each of these is. Coverage and positions are looked at before the log's ends.
fn details(
    server: &Server,
    views: impl IntoIterator<Item = Kept>,
    outputs: impl IntoIterator<Item = Sent>,
) -> Result<Vec<Detail>, Problem> {
    let views: Vec<_> = views.into_iter().map(|view| (server.layers.get(&view), view)).collect();
    let outputs = server.app.outputs.positions(outputs)?;
    let mut topics = Topics::new(&*server.app.log);
    let mut details = Vec::new();
    for (mut layers, view) in views {
        let ends = topics.ends(&view, &mut layers)?;
        let rejected = rejected_of(&server.app.rejects, &view)?;
        details.push(Detail::View(Box::new(describe(server, &view, &layers, &ends, rejected))));
    }
    for (output, positions) in outputs {
        details.push(Detail::Output(Box::new(output::detail(server, &output, &positions, &mut topics)?)));
    }
    Ok(details)
}

fn describe_window(window: Window) -> ViewWindow {
    let none = ViewWindow { kind: WindowKind::Tumble, size: None, slide: None, offset: None, zone: None, gap: None };
    match window {
        Window::Sliding(window) => ViewWindow {
            kind: if window.is_tumbling() { WindowKind::Tumble } else { WindowKind::Hop },
            size: Some(iso_duration(window.size)),
            slide: Some(iso_duration(window.slide)),
            offset: (window.offset > 0).then(|| iso_duration(window.offset)),
            ..none
        },
        Window::Days(days) => {
            let size = format!("P{}D", days.count);
            ViewWindow { size: Some(size.clone()), slide: Some(size), zone: Some(days.zone.name()), ..none }
        }
        Window::Session { gap } => ViewWindow { kind: WindowKind::Session, gap: Some(iso_duration(gap)), ..none },
    }
}

fn describe(
    server: &Server,
    view: &Kept,
    layers: &Layers,
    log_end: &Positions<TopicPartition>,
    rejected: u64,
) -> ViewDetail {
    let sources = Sources::choose(view, Mode::Merged, layers, log_end);
    let batch = layers.versions.first().map(|version| &version.published);
    ViewDetail {
        name: view.id.name.clone(),
        sql: view.sql.clone(),
        definition: view.id.definition.clone(),
        topic: view.table().topic.clone(),
        table: view.table().name.clone(),
        columns: view.aggregation().columns.iter().map(|&column| describe_column(view, column)).collect(),
        window: view.aggregation().window.map(describe_window),
        order: view
            .aggregation()
            .order
            .iter()
            .map(|by| ViewOrder {
                column: view.aggregation().column_name(by.column).to_owned(),
                descending: by.descending,
            })
            .collect(),
        limit: view.aggregation().limit,
        watermark: sources.watermark.map(format_timestamp),
        partitions: layers.snapshot.as_ref().map_or_else(Vec::new, |snapshot| partitions(snapshot, log_end)),
        coverage: ViewCoverage {
            batch: batch.map(|published| BatchCoverage {
                version: published.version,
                offsets: Offsets::of(view, &published.coverage),
                published: format_timestamp(published.published),
                event_time: published.event_times.values().max().map(|&time| format_timestamp(time)),
            }),
            speed: layers
                .snapshot
                .as_ref()
                .map(|snapshot| SpeedCoverage { offsets: Offsets::of(view, &snapshot.coverage) }),
        },
        log_end: all_positions_json(view, log_end),
        lag: sources.lag(log_end),
        late: layers.snapshot.as_ref().map_or(0, |snapshot| snapshot.late),
        rejected,
        stopped: sources.stopped.clone(),
        emission: view.aggregation().emission.as_ref().map(|emission| {
            let state = server.emissions.get(&view.id.name).map(|state| state.lock().clone()).unwrap_or_default();
            let EmissionStatus { positions, records, waiting, stopped, .. } = state;
            let positions = all_positions_json(view, &positions);
            let (topic, emit) = (emission.topic.clone(), emission.emit.name());
            ViewEmission { kind: "kafka", topic, emit, positions, records, waiting, stopped }
        }),
        schedule: view.aggregation().schedule.as_ref().map(|schedule| schedule.cron.clone()),
        schedule_zone: view.aggregation().schedule.as_ref().map(|schedule| schedule.zone.name()),
        catch_up: view.aggregation().schedule.as_ref().map(|schedule| schedule.catch_up.name()),
    }
}

/// How far each partition is. One that the speed layer knows nothing of yet has had no event.
fn partitions(snapshot: &Snapshot, log_end: &Positions<TopicPartition>) -> Vec<ViewPartition> {
    let all: BTreeMap<&TopicPartition, Progress> =
        log_end.keys().map(|p| (p, snapshot.partitions.get(p).copied().unwrap_or_default())).collect();
    let awake = || all.values().filter(|progress| !progress.idle).map(|progress| progress.watermark);
    let (least, most) = (awake().min(), awake().max());
    let is_of_many = all.keys().any(|p| all.keys().any(|other| p.topic != other.topic));
    let each = all.iter().map(|(p, progress)| ViewPartition {
        topic: is_of_many.then(|| p.topic.to_string()),
        partition: p.partition,
        watermark: progress.watermark.map(format_timestamp),
        idle: progress.idle,
        stalled: progress.stalled,
        holds_back: !progress.idle && least < most && Some(progress.watermark) == least,
    });
    each.collect()
}

fn describe_column(view: &Kept, column: OutputColumn) -> ViewColumn {
    let name = view.aggregation().column_name(column).to_owned();
    let (data_type, role, function) = match column {
        OutputColumn::WindowStart | OutputColumn::WindowEnd => ("TIMESTAMP".to_owned(), "window", None),
        OutputColumn::Key(i) => (view.aggregation().keys[i].expr.data_type().to_string(), "key", None),
        OutputColumn::Aggregate(i) => {
            let aggregate = &view.aggregation().aggregates[i];
            (aggregate.data_type().to_string(), "aggregate", Some(aggregate.function))
        }
    };
    let (distinct, additive) =
        (function.map(AggregateFunction::is_distinct), function.map(AggregateFunction::is_additive));
    ViewColumn { name, data_type, role, function: function.map(AggregateFunction::name), distinct, additive }
}

/// A length of time in ISO 8601: `PT5M`, `P1D`, `PT1H30M`, `PT0.5S`.
fn iso_duration(length: Micros) -> String {
    let (seconds, micros) = (length / 1_000_000, length % 1_000_000);
    let mut text = String::from("P");
    let mut push = |amount: i64, unit: char| {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    };
    push(seconds / 86_400, 'D');
    if seconds % 86_400 == 0 && micros == 0 {
        return text;
    }
    text.push('T');
    let mut push = |amount: i64, unit: char| {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    };
    push(seconds / 3_600 % 24, 'H');
    push(seconds / 60 % 60, 'M');
    if micros > 0 {
        let fraction = format!("{micros:06}");
        text.push_str(&format!("{}.{}S", seconds % 60, fraction.trim_end_matches('0')));
    } else {
        push(seconds % 60, 'S');
    }
    text
}

#[cfg(test)]
mod tests {
    use anabranch_log::position::named;

    use super::*;

    #[test]
    fn the_partition_that_the_watermark_waits_for_is_named() {
        let second = 1_000_000;
        let is = |watermark: Option<i64>, idle| Progress { watermark, idle, stalled: false };
        let holding = |told: &[Progress]| -> Vec<Partition> {
            let told = named("posts", (0..).zip(told.iter().copied()).collect());
            let snapshot = Snapshot { partitions: told, ..Snapshot::default() };
            let log_end = named("posts", (0..3).map(|partition| (partition, 9)).collect());
            let all = partitions(&snapshot, &log_end);
            assert_eq!(all.iter().map(|one| one.partition).collect::<Vec<_>>(), [0, 1, 2]);
            all.into_iter().filter(|one| one.holds_back).map(|one| one.partition).collect()
        };
        let (early, late) = (is(Some(10 * second), false), is(Some(20 * second), false));
        assert_eq!(holding(&[late, early, late]), [1]);
        assert_eq!(holding(&[late, early, early]), [1, 2]);
        assert_eq!(holding(&[late, late, late]), [] as [Partition; 0], "nobody waits for anybody");
        assert_eq!(
            holding(&[late, is(Some(10 * second), true), late]),
            [] as [Partition; 0],
            "nobody waits for an idle one"
        );
        assert_eq!(holding(&[late, is(None, false), late]), [1], "it may have older events");
        assert_eq!(holding(&[late, late]), [2], "nothing is known of it yet");
    }

    #[test]
    fn lengths_of_time_are_iso_8601() {
        let second = 1_000_000;
        for (length, expected) in [
            (300 * second, "PT5M"),
            (5_400 * second, "PT1H30M"),
            (86_400 * second, "P1D"),
            (11 * 86_400 * second, "P11D"),
            (90_061 * second, "P1DT1H1M1S"),
            (500_000, "PT0.5S"),
        ] {
            assert_eq!(iso_duration(length), expected);
        }
    }
}
