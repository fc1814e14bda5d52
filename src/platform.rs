//! Every role wired together in one process: the embedded log, the speed layer, the batch layer and serving.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anabranch_batch_layer::BatchLayer;
use anabranch_serving::App;
use anabranch_shared::clock::{Clock, SystemClock};
use anabranch_shared::config::Config;
use anabranch_shared::ingest::Ingest;
use anabranch_shared::log::Log;
use anabranch_shared::log::embedded::{EmbeddedLog, EmbeddedOptions};
use anabranch_shared::project::Project;
use anabranch_shared::view::Catalog;
use anabranch_speed_layer::{Checkpoints, Context, SpeedLayer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// How long requests may still take when the platform stops.
const GRACE: Duration = Duration::from_secs(5);

/// A project that is loaded and can be started.
pub struct Platform {
    /// The project folder.
    pub dir: PathBuf,
    /// Its settings.
    pub config: Config,
    /// Its tables and views.
    pub catalog: Arc<Catalog>,
}
