//! What events of streams are, for the API's description.

use serde::Serialize;
use utoipa::ToSchema;

use crate::proof::Row;
use crate::routes::heartbeat::Heartbeat;
use crate::routes::rows::RowsAnswer;

/// An event of a stream: `event` is its name, and `data` what the JSON in its data is. Each but the heartbeat has an id.
#[derive(Serialize, ToSchema)]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
#[expect(dead_code, reason = "the shape for the API's description")]
pub enum StreamEvent {
    Update(Box<Update>),
    Complete(Box<Update>),
    Append(Box<RowsAnswer>),
    Heartbeat(Heartbeat),
}

/// What has changed in an answer since the last event; or the whole answer, with `reset`.
#[derive(Serialize, ToSchema)]
pub struct Update {
    /// The answer; of its rows those that are new or changed.
    #[serde(flatten)]
    answer: RowsAnswer,
    /// All that was sent before is to be forgotten.
    reset: bool,
    /// The keys of the rows that are gone.
    removed: Vec<Row>,
    /// Those of the `removed` keys that the answer still has, beyond the rows that a stream sends of it.
    cut: Vec<Row>,
    /// The rows that are replaced or gone, as they were sent last.
    retracted: Vec<Row>,
}
