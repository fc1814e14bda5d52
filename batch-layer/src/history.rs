//! The history of runs: a file of JSON lines that outlives restarts.
//!
//! Each change of a job's state is one line, written in one append; of the lines of a job the last one counts. A last
//! line that a crash has torn is passed over and cut off.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anabranch_shared::job::Job;
use anabranch_shared::table::write_file;

/// How many jobs are remembered.
pub const KEPT_JOBS: usize = 1_000;

/// How many lines there may be for each job kept, before the file is written anew.
const LINES_PER_JOB: usize = 4;

/// The file.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl History {
    /// Opens the file, creating it if need be, and returns the jobs in it, oldest first.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Job>)> {
        let text = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        // Ids rise with time, so the map is in the order in which the jobs were asked for.
        let mut jobs = BTreeMap::new();
        for line in text[..whole].split(|&byte| byte == b'\n') {
            if let Ok(job) = serde_json::from_slice::<Job>(line) {
                jobs.insert(job.id.clone(), job);
            }
        }
        let mut jobs: Vec<Job> = jobs.into_values().collect();
        jobs.drain(..jobs.len().saturating_sub(KEPT_JOBS));
        let history = Self::rewrite(path, &jobs)?;
        Ok((history, jobs))
    }

    fn rewrite(path: &Path, jobs: &[Job]) -> io::Result<Self> {
        write_file(path, |file| {
            for job in jobs {
                file.write_all(&line(job)?)?;
            }
            Ok::<_, io::Error>(())
        })?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, lines: jobs.len() })
    }

    /// Adds a job as it is now. `jobs` are all that are remembered, this one included.
    pub fn record<'a>(&mut self, job: &Job, jobs: impl IntoIterator<Item = &'a Job>) -> io::Result<()> {
        if self.lines >= KEPT_JOBS * LINES_PER_JOB {
            let jobs: Vec<Job> = jobs.into_iter().cloned().collect();
            *self = Self::rewrite(&self.path, &jobs)?;
            return Ok(());
        }
        self.file.write_all(&line(job)?)?;
        self.file.sync_data()?;
        self.lines += 1;
        Ok(())
    }
}

fn line(job: &Job) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(job)?;
    line.push(b'\n');
    Ok(line)
}
