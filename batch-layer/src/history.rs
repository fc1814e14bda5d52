//! The history of runs, which outlives restarts: files of JSON lines in a folder, one for each process.
//!
//! Each change of a job or of a view's standing is a line, appended in one write; of the lines about one of them the last
//! one counts. A process writes to its own file only and holds a lock on it, so several processes can share a data folder
//! and none loses what another writes. Files of processes that have ended can be locked: a process that opens the folder
//! takes their content over into its own file, and only then deletes them. A line that a crash or a full disk has torn is passed
//! over.

#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anabranch_exchange::job::Job;
use anabranch_plan::time::Micros;
use serde::{Deserialize, Serialize};

/// How many jobs are remembered.
pub const KEPT_JOBS: usize = 1_000;

/// How many lines there may be for each job kept, before the file is replaced by one of the last lines only.
const LINES_PER_JOB: usize = 4;

/// How files' names end.
const SUFFIX: &str = "jsonl";

/// A line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// The first line: which process writes the file.
    Process {
        /// Its id.
        process: u32,
    },
    /// How a view's schedule stands.
    Schedule {
        /// How it stands.
        schedule: Standing,
    },
    /// A job.
    Job(Box<Recorded>),
}

/// A job as it is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// A client wants it to stop.
    #[serde(default)]
    pub cancelling: bool,
    /// How often its process has ended without a word while it was at work.
    #[serde(default)]
    pub deaths: u32,
}

/// How a view's schedule stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The view.
    pub view: String,
    /// The schedule's times; empty if a build before this one followed it.
    pub times: String,
    /// Times up to here have been dealt with.
    pub dealt: Micros,
    /// How many runs in succession have failed.
    pub failures: u32,
    /// When the last of them did.
    pub failed: Micros,
}

/// The file of this process.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    file: File,
    lines: usize,
    /// The last write may have left a part of a line.
    torn: bool,
}

/// A file of a process.
#[derive(Debug)]
pub struct Found {
    path: PathBuf,
    /// Locked while its content is taken over; none if its process is alive.
    lock: Option<File>,
    /// Its lines.
    pub lines: Vec<Line>,
    /// A build before this one wrote it.
    pub is_legacy: bool,
}

impl Found {
    /// Whether its process has ended.
    pub fn has_ended(&self) -> bool {
        self.lock.is_some()
    }

    /// Deletes the file, once all that counts of it is written elsewhere.
    pub fn delete(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }
}

/// The folder of the files below the data folder.
fn folder(data: &Path) -> PathBuf {
    data.join("runs")
}

/// The files of all processes but this one, oldest first.
pub fn find(data: &Path, own: Option<&History>) -> io::Result<Vec<Found>> {
    let mut paths = vec![];
    for entry in fs::read_dir(folder(data)).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) && own.is_none_or(|own| own.path != path) {
            paths.push(path);
        }
    }
    paths.sort();
    // A build before this one had one file, beside the folder.
    paths.insert(0, folder(data).with_extension(SUFFIX));
    let mut found = Vec::new();
    for (i, path) in paths.into_iter().enumerate() {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // A file system without locks can't tell who lives: then all have ended.
        let is_alive = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // One without lines is about to be begun; one that is gone has been taken over by another process.
        let lines = read(&path, &text);
        if !lines.is_empty() && path.exists() {
            found.push(Found { path, lock: (!is_alive).then_some(file), lines, is_legacy: i == 0 });
        }
    }
    Ok(found)
}

fn read(path: &Path, text: &[u8]) -> Vec<Line> {
    let (mut lines, mut passed_over) = (Vec::new(), 0);
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(line) => lines.push(line),
            Err(_) => passed_over += 1,
        }
    }
    if passed_over > 0 {
        tracing::warn!(file = %path.display(), lines = passed_over, "lines of the history of runs can't be read");
    }
    lines
}

impl History {
    /// Begins a file for this process, with these lines.
    pub fn begin(data: &Path, lines: &[Line]) -> io::Result<Self> {
        let folder = folder(data);
        fs::create_dir_all(&folder)?;
        let number =
            |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.split('-').next()?.parse().ok();
        let last: u64 = fs::read_dir(&folder)?.filter_map(number).max().unwrap_or(0);
        let path = folder.join(format!("{:08}-{}.{SUFFIX}", last + 1, uuid::Uuid::new_v4()));
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        if let Err(error) = file.lock() {
            tracing::warn!(file = %path.display(), %error, "the file can't be locked: no other process may share the folder");
        }
        let mut history = Self { path, file, lines: 0, torn: false };
        let lines = [&[Line::Process { process: std::process::id() }], lines].concat();
        let written = history.record(&lines).and_then(|()| File::open(&folder)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&history.path);
        }
        written.map(|()| history)
    }

    /// Whether there are so many lines that the last ones should begin a new file.
    pub fn is_long(&self) -> bool {
        self.lines >= KEPT_JOBS * LINES_PER_JOB
    }

    /// Deletes the file, once all that counts of it is written elsewhere.
    pub fn delete(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }

    /// Has writing fail as on a full disk, or not any more.
    #[cfg(test)]
    pub fn set_full(&mut self, is_full: bool) -> io::Result<()> {
        let path = if is_full { Path::new("/dev/full") } else { &self.path };
        self.file = OpenOptions::new().append(true).open(path)?;
        self.file.lock()
    }

    /// Appends lines.
    pub fn record(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = if self.torn { b"\n".to_vec() } else { Vec::new() };
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        self.torn = true;
        self.file.write_all(&text)?;
        self.file.sync_data()?;
        (self.torn, self.lines) = (false, self.lines + lines.len());
        Ok(())
    }
}
