//! The audit: what the answers that had been given were worth, once batch knows better.
//!
//! Each published version makes windows exact of which the speed layer had a part in the answers until then. What was said of
//! them is scored against what is true: how often the stated bounds held, how far off values were, and why. What changed is
//! kept as corrections. Both are one file per view and version, written once: of several processes that serve, the first has
//! its say, and the others would say the same. A version whose definition is another than that of the version before it
//! changes rows for that reason too, as does one from whose events some were erased: the run that publishes it writes these
//! corrections to a file of their own.

mod compare;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use compare::{Compared, is_same};

/// How many versions' findings are kept of each view.
const KEPT: usize = 500;

/// How many corrections of one version are kept.
pub const MOST_CORRECTIONS: usize = 10_000;

/// The score of the answers that a version has replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// The version that knows better.
    pub version: u64,
    /// The version that the answers stood on, if any.
    pub base: Option<u64>,
    /// When it was scored, in RFC 3339.
    pub at: String,
    /// How many windows became exact; 1 for a view without windows.
    pub windows: u64,
    /// Rows that batch has and the answers lacked: keys beyond a limit, or whose events all came late.
    pub rows_missing: u64,
    /// Rows that the answers had and batch lacks.
    pub rows_extra: u64,
    /// Each aggregate's score.
    pub columns: Vec<ColumnAudit>,
    /// How many corrections there are; only the first so many thousand are kept.
    pub corrections: u64,
}

/// The score of one aggregate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ColumnAudit {
    /// Its name.
    pub column: String,
    /// How many values were said.
    pub values: u64,
    /// How many of them had bounds, both known.
    pub bounded: u64,
    /// How many of these bounds held.
    pub held: u64,
    /// Values that were off because events had come too late for their window.
    pub late: Deviation,
    /// Values that were off because a sketch had stood in for what memory had no room for.
    pub sketch: Deviation,
}

/// How far off values were.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// How many values.
    pub values: u64,
    /// The median of their distances from the truth; none of values that aren't numbers.
    pub median: Option<f64>,
    /// The largest distance.
    pub worst: Option<f64>,
    /// The largest distance as a share of the truth.
    pub worst_share: Option<f64>,
}

/// Why a value was corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Events had come too late.
    Late,
    /// A sketch had stood in.
    Sketch,
    /// The view's definition has changed.
    Redefined,
    /// Another program has erased archived events, or changed them.
    Erased,
}

/// A value that was said, and what is true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    /// The window's first instant, if the view has windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_start: Option<String>,
    /// The first instant after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_end: Option<String>,
    /// The row's keys.
    pub key: Map<String, Value>,
    /// The aggregate.
    pub column: String,
    /// What was said; null if the row wasn't there.
    pub old: Value,
    /// What is true; null if there is no such row.
    pub new: Value,
    /// Why they differ.
    pub cause: Cause,
}

/// All that was found out with a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The score.
    pub audit: Audit,
    /// What changed, in order of window and key.
    pub corrections: Vec<Correction>,
}

/// What a view's new definition, or the erasure of events, changed of the rows that the version before had given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Redefined {
    /// How many values changed.
    pub total: u64,
    /// The first of them.
    pub corrections: Vec<Correction>,
}

/// The findings about all views, in a folder.
#[derive(Debug, Clone)]
pub struct AuditLog {
    root: PathBuf,
}

/// How the names of files end.
const FINDINGS: &str = ".json";
const REDEFINED: &str = ".redefined.json";

impl AuditLog {
    /// Findings in a folder, which is made when the first are recorded.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, view: &str, version: u64, suffix: &str) -> PathBuf {
        self.root.join(view).join(format!("{version:020}{suffix}"))
    }

    /// Records what was found out with a version, unless somebody has already. Whether it was recorded now.
    pub fn record(&self, view: &str, findings: &Findings) -> io::Result<bool> {
        self.write(view, &self.path(view, findings.audit.version, FINDINGS), findings)
    }

    /// Records what the definition of a version, or an erasure, changed, unless another process has already.
    pub fn record_redefined(&self, view: &str, version: u64, redefined: &Redefined) -> io::Result<bool> {
        self.write(view, &self.path(view, version, REDEFINED), redefined)
    }

    fn write(&self, view: &str, path: &Path, what: &impl Serialize) -> io::Result<bool> {
        if path.exists() {
            return Ok(false);
        }
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        // Whole or not at all: written under a name of its own, and linked to its place if nobody is there.
        let unfinished = path.with_extension(format!("{}.unfinished", uuid::Uuid::new_v4()));
        fs::write(&unfinished, serde_json::to_vec(what)?)?;
        let linked = fs::hard_link(&unfinished, path);
        fs::remove_file(&unfinished)?;
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error),
        }
        for old in self.versions(view)?.into_iter().skip(KEPT) {
            for suffix in [FINDINGS, REDEFINED] {
                match fs::remove_file(self.path(view, old, suffix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(true)
    }

    /// The versions with findings about a view, newest first.
    pub fn versions(&self, view: &str) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(self.root.join(view)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let number = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            name.strip_suffix(REDEFINED).or_else(|| name.strip_suffix(FINDINGS))?.parse().ok()
        };
        let mut versions: Vec<u64> = entries
            .map(|entry| Ok(number(&entry?.path())))
            .filter_map(io::Result::transpose)
            .collect::<Result<_, _>>()?;
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        Ok(versions)
    }

    /// What was found out with a version; none if there is nothing.
    pub fn read(&self, view: &str, version: u64) -> io::Result<Option<Findings>> {
        read(&self.path(view, version, FINDINGS))
    }

    /// What the definition of a version, or an erasure, changed.
    pub fn redefined(&self, view: &str, version: u64) -> io::Result<Redefined> {
        Ok(read(&self.path(view, version, REDEFINED))?.unwrap_or_default())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(version: u64, windows: u64) -> Findings {
        let audit = Audit {
            version,
            base: None,
            at: "2024-01-15T10:00:00Z".into(),
            windows,
            rows_missing: 0,
            rows_extra: 0,
            columns: Vec::new(),
            corrections: 0,
        };
        Findings { audit, corrections: Vec::new() }
    }

    #[test]
    fn the_first_to_record_a_version_has_its_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = AuditLog::new(folder.path().join("audit"));
        assert_eq!(log.versions("v").expect("none"), Vec::<u64>::new());
        assert!(log.record("v", &findings(9, 1)).expect("recorded"));
        assert!(!log.record("v", &findings(9, 2)).expect("known"));
        assert!(log.record("v", &findings(10, 3)).expect("recorded"));
        assert_eq!(log.versions("v").expect("two"), [10, 9]);
        assert_eq!(log.read("v", 9).expect("read").map(|found| found.audit.windows), Some(1));
        assert_eq!(log.read("v", 8).expect("read"), None);
        let redefined = Redefined { total: 3, corrections: Vec::new() };
        assert!(log.record_redefined("v", 11, &redefined).expect("recorded"));
        assert!(log.record_redefined("v", 10, &redefined).expect("recorded"));
        assert!(!log.record_redefined("v", 11, &Redefined::default()).expect("known"));
        assert_eq!(log.versions("v").expect("three"), [11, 10, 9]);
        assert_eq!((log.redefined("v", 11).expect("read"), log.read("v", 11).expect("read")), (redefined, None));
        assert_eq!(log.redefined("v", 9).expect("read"), Redefined::default());
        assert_eq!(
            fs::read_dir(folder.path().join("audit/v")).expect("a folder").count(),
            4,
            "nothing unfinished is left"
        );
    }
}
