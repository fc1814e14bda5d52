//! The heartbeat of streams: by it a client tells a quiet stream from a dead one, and knows the server's time.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_log::position::Positions;
use anabranch_plan::time::format_timestamp;
use anabranch_plan::view::Kept;
use axum::response::sse::Event;
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::IntervalStream;
use utoipa::ToSchema;

use crate::server::Server;
use crate::source::{Mode, Sources};

/// What a heartbeat says.
#[derive(Serialize, ToSchema)]
pub struct Heartbeat {
    /// The server's time.
    time: String,
    /// The views of the stream.
    views: BTreeMap<String, ViewHeartbeat>,
}

/// How far a view is.
#[derive(Serialize, ToSchema)]
pub struct ViewHeartbeat {
    /// No event with an earlier time is expected any more; null before any event.
    #[schema(required = true)]
    watermark: Option<String>,
    /// Records that neither layer covers yet; null while the log can't be reached.
    #[schema(required = true)]
    lag: Option<u64>,
}

/// An event at once, and then one each so often.
pub(crate) fn heartbeats(server: Arc<Server>, views: Vec<Kept>) -> impl Stream<Item = Event> + Send {
    let mut interval = tokio::time::interval(server.app.limits.heartbeat);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    IntervalStream::new(interval).then(move |_| {
        let (server, views) = (Arc::clone(&server), views.clone());
        async move {
            let heartbeat = serde_json::to_string(&heartbeat(&server, &views).await);
            Event::default().event("heartbeat").data(heartbeat.unwrap_or_default())
        }
    })
}

async fn heartbeat(server: &Server, views: &[Kept]) -> Heartbeat {
    let mut of_views = BTreeMap::new();
    for view in views {
        // Coverage before the log's end, where that is asked for anew.
        let mut layers = server.layers.get(view);
        let end = server.recent_log_end(view, &mut layers).await;
        let sources = Sources::choose(view, Mode::Merged, &layers, end.as_ref().unwrap_or(&Positions::new()));
        let watermark = sources.watermark.map(format_timestamp);
        of_views.insert(view.id.name.clone(), ViewHeartbeat { watermark, lag: end.map(|end| sources.lag(&end)) });
    }
    Heartbeat { time: format_timestamp(server.app.clock.now()), views: of_views }
}
