//! Versions of a view: what the batch layer publishes, and the other layers read.
//!
//! A version is one commit of the view's Delta table. The commit's metadata carries, under `anabranch`, a
//! [`Published`]: which offsets it covers and which files hold its partials. So data and offsets are one atomic fact:
//! a reader sees all of a version or nothing of it.
//!
//! The table's own rows are the finished windows, for any reader of Delta tables. The partials stand beside them in
//! `_panes/`, a folder that Delta readers pass over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use polars::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::Micros;
use crate::log::lineage::Mark;
use crate::partial::{self, MISSED, PANE};
use crate::position::{Coverage, Partition};
use crate::view::View;

/// What a commit says of the version that it publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The version: 1 for a view's first, one more for each after it.
    pub version: u64,
    /// The definition that it was computed from, [`View::definition`].
    pub definition: String,
    /// The offsets whose events it holds.
    pub coverage: Coverage,
    /// The newest event time among them, by partition: where the watermark goes on from.
    pub event_times: BTreeMap<Partition, Micros>,
    /// When it was published.
    pub published: Micros,
    /// The run that made it.
    pub run: String,
    /// How often the archive that it was computed from had been rebuilt.
    #[serde(default)]
    pub rebuilds: u64,
    /// The days of event time (days since 1970) of which another program has erased or changed archived events since the
    /// version before.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub erased: BTreeSet<i64>,
    /// The files of partials, relative to the table.
    pub panes: Vec<PaneFile>,
    /// Which log the offsets are of; none in what was written before logs had marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Mark>,
}

/// A Parquet file of partials, sorted by pane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaneFile {
    /// Its path, relative to the table.
    pub path: String,
    /// The day of event time (days since 1970) that its events are of.
    pub day: i64,
    /// The first pane in it, in microseconds.
    pub first: Micros,
    /// The last pane in it, in microseconds.
    pub last: Micros,
    /// How many rows it has.
    pub rows: u64,
}

/// A version that can be read.
#[derive(Debug, Clone)]
pub struct Version {
    /// Where the view's table is.
    pub root: PathBuf,
    /// What its commit says.
    pub published: Published,
    /// Whether the archive has been rebuilt since: it says what no later version will say of the same events.
    pub is_stale: bool,
}

impl Version {
    /// The partials of the panes that start in `[from, to)`, as in [`crate::partial`], file by file; nothing in them missed
    /// a window.
    pub fn partials(&self, view: &View, from: Micros, to: Micros) -> PolarsResult<Vec<DataFrame>> {
        let files = self.published.panes.iter().filter(|file| file.first < to && from <= file.last);
        let names: Vec<String> = partial::schema(view).iter_names().map(|name| name.to_string()).collect();
        let partials = |file: &PaneFile| {
            let path = PlRefPath::try_from_pathbuf(self.root.join(&file.path))?;
            let scan = LazyFrame::scan_parquet(path, ScanArgsParquet { glob: false, ..Default::default() })?;
            let inside = col(PANE).gt_eq(lit(from)).and(col(PANE).lt(lit(to)));
            scan.filter(inside).with_column(lit(0_i32).alias(MISSED)).collect()?.select(&names)
        };
        files.map(partials).collect()
    }
}

/// The newest version of each view; none before the first.
#[derive(Debug, Clone, Default)]
pub struct Versions(pub BTreeMap<String, watch::Receiver<Option<Arc<Version>>>>);

impl Versions {
    /// The newest version of a view, unless it is stale.
    pub fn get(&self, view: &str) -> Option<Arc<Version>> {
        self.newest(view).filter(|version| !version.is_stale)
    }

    /// The newest version of a view, also if it is stale: then another is to be computed.
    pub fn newest(&self, view: &str) -> Option<Arc<Version>> {
        self.0.get(view).and_then(|receiver| receiver.borrow().clone())
    }
}
