//! The member that runs the jobs.

use std::sync::Arc;
use std::time::Duration;

use anabranch_exchange::job::relay::Foreman;
use anabranch_log::Log;
use anabranch_log::clock::Clock;
use anabranch_log::kafka::group::Member;
use anabranch_log::position::{Partition, Positions};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Context, Task};
use crate::jobs::JobQueue;
use crate::layer::BatchLayer;

/// How often it looks for jobs.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long it waits before it opens the batch layer again, if that can't be opened.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs the jobs while it has the jobs' topic.
pub struct JobsMember {
    context: Context,
    runtime: Handle,
    /// The jobs, while this process runs them.
    queue: Arc<Mutex<Option<Arc<JobQueue>>>>,
    running: Option<Task<()>>,
}

impl JobsMember {
    /// Runs none yet. It works on the runtime that this is called in.
    pub fn new(context: Context) -> Self {
        Self { context, runtime: Handle::current(), queue: Arc::default(), running: None }
    }

    /// A function that hands out the jobs, while this process runs them.
    pub fn queue(&self) -> impl Fn() -> Option<Arc<JobQueue>> + Clone + Send + Sync + use<> {
        let queue = Arc::clone(&self.queue);
        move || queue.lock().clone()
    }
}

impl Member for JobsMember {
    fn gain(&mut self, _: &str, _: Partition) {
        let stop = CancellationToken::new();
        let Context { settings, data, catalog, log, rejects, clock } = self.context.clone();
        let (queue, token) = (self.queue.clone(), stop.clone());
        let work = async move {
            while !token.is_cancelled() {
                let layer =
                    BatchLayer::open(settings.clone(), &data, log.clone(), &catalog, rejects.clone(), clock.clone());
                match layer.await {
                    Ok(layer) => {
                        *queue.lock() = Some(layer.jobs());
                        return run(layer, log, clock, token).await;
                    }
                    Err(error) => tracing::warn!(%error, "the batch layer can't be opened; trying again"),
                }
                token.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
            }
        };
        let task = self.runtime.spawn(work);
        self.running = Some(Task { about: (), stop, task });
    }

    fn give_up(&mut self, _: &str, _: Partition, _lost: bool) {
        if let Some(task) = self.running.take() {
            task.end(&self.runtime);
        }
        *self.queue.lock() = None;
    }

    fn tick(&mut self) -> Vec<(String, Positions)> {
        Vec::new()
    }
}

/// Works until it is told to stop; meanwhile takes on what is asked for in the jobs' topic.
async fn run(layer: BatchLayer, log: Arc<dyn Log>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let jobs = layer.jobs();
    let ended = CancellationToken::new();
    let token = ended.clone();
    let foreman = tokio::task::spawn_blocking(move || {
        let (mut foreman, mut is_failing) = (None::<Foreman>, false);
        loop {
            // Once more at the end, to tell of what was cut off.
            let is_last = token.is_cancelled();
            let open = || Foreman::open(log.clone(), jobs.clone(), clock.clone());
            let worked = foreman.take().map_or_else(open, Ok).and_then(|open| foreman.insert(open).work());
            if let Err(error) = &worked
                && !is_failing
            {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, "the jobs' topic can't be worked on; trying until it can");
            }
            is_failing = worked.is_err();
            if is_last {
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    });
    layer.run(stop).await;
    ended.cancel();
    if let Err(error) = foreman.await {
        tracing::error!(%error, "taking on jobs has failed");
    }
}
