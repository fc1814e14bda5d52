//! Versions of a view: what the batch layer publishes, and the other layers read.
//!
//! A version is one commit of the view's Delta table. The commit's metadata carries, under `anabranch`, a
//! [`Published`]: which offsets it covers and which files hold its partials. So data and offsets are one atomic fact:
//! a reader sees all of a version or nothing of it.
//!
//! The table's own rows are the finished windows, for any reader of Delta tables. The partials stand beside them in
//! `_panes/`, a folder that Delta readers pass over. A view whose rows are made of several records has more: the partials of rows that
//! wait are in files of their own, and `_state/` has what the operators keep, for speed to go on from.

mod committed;
pub mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_engine::operator::State;
use anabranch_engine::partial::{self, MISSED, PANE};
use anabranch_log::lineage::Marks;
use anabranch_log::position::{Coverage, TopicPartition, by_topic};
use anabranch_plan::aggregation::Aggregation;
use anabranch_plan::time::Micros;
use anabranch_plan::view::ViewId;
use anabranch_store::envelope::EnvelopeError;
use anabranch_store::table;
use parking_lot::Mutex;
use polars::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use committed::{
    ArchiveRead, CommittedVersion, Publishers, archive_root, committed_version, kept_versions, open_versions,
    set_aside, view_app_id, view_root,
};

/// What a commit says of the version that it publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The version: 1 for a view's first, one more for each after it.
    pub version: u64,
    /// The definition that it was computed from, [`View::definition`].
    pub definition: String,
    /// The offsets whose events it holds.
    pub coverage: Coverage<TopicPartition>,
    /// The newest event time among them, by partition: where the watermark goes on from.
    #[serde(with = "by_topic")]
    pub event_times: BTreeMap<TopicPartition, Micros>,
    /// When it was published.
    pub published: Micros,
    /// The run that made it.
    pub run: String,
    /// How often the archives that it was computed from had been rebuilt, in sum.
    #[serde(default)]
    pub rebuilds: u64,
    /// The days of event time (days since 1970) of which another program has erased or changed archived events since the
    /// version before.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub erased: BTreeSet<i64>,
    /// The files of partials, relative to the table.
    pub panes: Vec<PaneFile>,
    /// What operators keep at its frontier, of a view whose rows are made of several records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateFile>,
    /// Which logs the offsets are of; none in what was written before logs had marks.
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub log: Marks,
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
    /// The SHA-256 of its bytes, in hexadecimal digits; none in what was written before files had digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether it holds what rows make that wait: part of what the version says, and of no sum with what came later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// A file of what operators keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    /// Its path, relative to the table.
    pub path: String,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// Up to which watermark rows have settled.
    pub watermark: Option<Micros>,
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
    /// The files of partials, by path, that were found to be what was published.
    whole: Arc<Mutex<BTreeSet<String>>>,
}

impl Version {
    /// A version of the table in a folder.
    pub fn new(root: PathBuf, published: Published, is_stale: bool) -> Self {
        Self { root, published, is_stale, whole: Arc::default() }
    }

    /// The same version without what rows make that wait: what adds up with chunks that stand on it.
    pub fn settled(&self) -> Self {
        let mut settled = self.clone();
        settled.published.panes.retain(|file| !file.pending);
        settled
    }

    /// What operators keep at its frontier; none if it stores none.
    pub fn state(&self) -> Result<Option<State>, EnvelopeError> {
        let Some(file) = &self.published.state else { return Ok(None) };
        let path = self.root.join(&file.path);
        let problem = |error: &dyn std::fmt::Display| EnvelopeError::Content(format!("{}: {error}", path.display()));
        if let Some(damage) = table::damage(&path, Some(&file.sha256)).map_err(|error| problem(&error))? {
            return Err(problem(&format!("it is damaged: {damage}; the view's next run computes it anew")));
        }
        let bytes = std::fs::read(&path).map_err(|error| problem(&error))?;
        state::decode(&bytes).map(Some)
    }

    /// Why a file of partials isn't what was published; none if it is. It is digested once: until a version is read again.
    pub fn damage(&self, file: &PaneFile) -> Option<String> {
        if self.whole.lock().contains(&file.path) {
            return None;
        }
        let found = match table::damage(&self.root.join(&file.path), file.sha256.as_deref()) {
            Ok(None) => {
                self.whole.lock().insert(file.path.clone());
                return None;
            }
            Ok(Some(found)) => found,
            Err(error) => format!("it can't be read: {error}"),
        };
        Some(self.damaged(file, &found))
    }

    fn damaged(&self, file: &PaneFile, found: &dyn std::fmt::Display) -> String {
        format!(
            "{} of version {} is damaged: {found}; the view's next run computes it anew",
            file.path, self.published.version
        )
    }

    /// The partials of the panes that start in `[from, to)`, as in [`anabranch_engine::partial`], file by file; nothing in them missed
    /// a window.
    pub fn partials(&self, aggregation: &Aggregation, from: Micros, to: Micros) -> PolarsResult<Vec<DataFrame>> {
        let partials = |file: &PaneFile| {
            if let Some(damage) = self.damage(file) {
                polars_bail!(ComputeError: "{damage}");
            }
            self.read(aggregation, file, from, to)
        };
        self.files(from, to).map(partials).collect()
    }

    /// The same of those files that can be read, and what is wrong with one of the others, if there are any.
    pub fn whole_partials(
        &self,
        aggregation: &Aggregation,
        from: Micros,
        to: Micros,
    ) -> (Vec<DataFrame>, Option<String>) {
        let (mut whole, mut damage) = (Vec::new(), None);
        for file in self.files(from, to) {
            let read = match self.damage(file) {
                Some(damage) => Err(damage),
                None => self.read(aggregation, file, from, to).map_err(|error| self.damaged(file, &error)),
            };
            match read {
                Ok(partials) => whole.push(partials),
                Err(found) => damage = damage.or(Some(found)),
            }
        }
        (whole, damage)
    }

    fn files(&self, from: Micros, to: Micros) -> impl Iterator<Item = &PaneFile> {
        self.published.panes.iter().filter(move |file| file.first < to && from <= file.last)
    }

    fn read(&self, aggregation: &Aggregation, file: &PaneFile, from: Micros, to: Micros) -> PolarsResult<DataFrame> {
        let names: Vec<String> = partial::schema(aggregation).iter_names().map(|name| name.to_string()).collect();
        let path = PlRefPath::try_from_pathbuf(self.root.join(&file.path))?;
        let scan = LazyFrame::scan_parquet(path, ScanArgsParquet { glob: false, ..Default::default() })?;
        let inside = col(PANE).gt_eq(lit(from)).and(col(PANE).lt(lit(to)));
        scan.filter(inside).with_column(lit(0_i32).alias(MISSED)).collect()?.select(&names)
    }
}

/// The newest version of each view, none before the first; and why the versions of some can't be read.
#[derive(Debug, Clone, Default)]
pub struct Versions(pub BTreeMap<ViewId, watch::Receiver<Option<Arc<Version>>>>, pub Troubles);

/// By the name of a view, why the versions in its folder can't be read.
pub type Troubles = Arc<Mutex<BTreeMap<String, String>>>;

impl Versions {
    /// Why the versions of a view can't be read, if they can't: then the newest is the last that could be, if any.
    pub fn trouble(&self, view: &str) -> Option<String> {
        self.1.lock().get(view).cloned()
    }

    /// All views whose versions can't be read, with the reason, in lines.
    pub fn troubles(&self) -> Vec<String> {
        let troubles = self.1.lock();
        troubles.iter().map(|(view, why)| format!("view `{view}`: its versions can't be read: {why}")).collect()
    }

    /// The newest version of a view, unless it is stale.
    pub fn get(&self, view: &ViewId) -> Option<Arc<Version>> {
        self.newest(view).filter(|version| !version.is_stale)
    }

    /// The newest version of a view, also if it is stale: then another is to be computed.
    pub fn newest(&self, view: &ViewId) -> Option<Arc<Version>> {
        self.0.get(view).and_then(|receiver| receiver.borrow().clone())
    }
}
