//! Where a pipeline shows its state: in its views' snapshots and in numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_exchange::snapshot::Snapshot;
use anabranch_plan::view::ViewId;
use tokio::sync::watch;

use crate::error::Stop;
use crate::metrics::Counters;

/// Where a pipeline shows its state.
#[derive(Clone)]
pub(crate) struct Display {
    pub counters: Arc<Counters>,
    pub senders: BTreeMap<ViewId, watch::Sender<Arc<Snapshot>>>,
}

impl Display {
    /// Says why the source has stopped, beside what it has shown.
    pub fn stop(&self, stop: &Stop) {
        self.note(stop);
        self.change(|snapshot| {
            (snapshot.stopped, snapshot.alone, snapshot.lost) = (Some(stop.reason.clone()), false, stop.lost.clone());
            snapshot.other_log = stop.other_log;
        });
    }

    /// Says why the source has stopped where no snapshot says it.
    pub fn note(&self, stop: &Stop) {
        *self.counters.stopped.lock() = Some(stop.clone());
    }

    /// Shows nothing any more, and says why.
    pub fn clear(&self, rebuilds: u64, why: &str) {
        self.note(&Stop::because(why.to_owned()));
        self.change(|snapshot| {
            let stopped = Some(why.to_owned());
            *snapshot = Snapshot { sequence: snapshot.sequence, rebuilds, stopped, ..Snapshot::default() };
        });
    }

    fn change(&self, change: impl Fn(&mut Snapshot)) {
        for sender in self.senders.values() {
            let mut next = Snapshot::clone(&sender.borrow());
            next.sequence += 1;
            change(&mut next);
            sender.send_replace(Arc::new(next));
        }
    }
}
