//! What is known of jobs and schedules, and its history: every change is a line, and all lines together are the state.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use anabranch_exchange::job::{Job, JobState, Trigger, is_full};
use anabranch_plan::schedule::{CatchUp, Schedule};
use anabranch_plan::time::{Micros, format_timestamp, parse_timestamp};
use tokio_util::sync::CancellationToken;

use crate::history::{self, Found, History, KEPT_JOBS, Line, Recorded, Standing};

/// How often a job may be at work when its process ends without a word: it may be what ends it.
const MOST_DEATHS: u32 = 3;

/// A job.
pub(super) struct Entry {
    pub recorded: Recorded,
    /// Stops it, once it is at work.
    pub cancel: CancellationToken,
}

impl Entry {
    pub fn new(recorded: Recorded) -> Self {
        Self { recorded, cancel: CancellationToken::new() }
    }
}

pub(super) struct State {
    data: PathBuf,
    /// By id, which rises with time.
    pub jobs: BTreeMap<String, Entry>,
    /// By view: how its schedule stands.
    pub standings: BTreeMap<String, Standing>,
    schedules: BTreeMap<String, Schedule>,
    /// None as long as there is no room for a file of its own.
    history: Option<History>,
    /// Files of ended processes, whose content is not in the own one yet.
    taken: Vec<Found>,
    /// What couldn't be written down yet, by job and by view.
    unwritten: (BTreeSet<String>, BTreeSet<String>),
    /// Why not.
    pub trouble: Option<String>,
}

impl State {
    /// Opens the history, takes over what ended processes have left, and begins a file of its own.
    pub fn open(data: &Path, schedules: BTreeMap<String, Schedule>, now: Micros) -> io::Result<Self> {
        let found = history::find(data, None)?;
        let mut standings = BTreeMap::new();
        let jobs = take_over(&found, &mut standings, &schedules, now);
        standings.retain(|view, _| schedules.contains_key(view));
        let mut jobs = jobs.into_iter().map(|(id, recorded)| (id, Entry::new(recorded))).collect();
        prune(&mut jobs);
        let (data, unwritten) = (data.to_owned(), Default::default());
        let (history, trouble) = (None, None);
        let mut state = Self { data, jobs, standings, schedules, history, taken: found, unwritten, trouble };
        match state.write() {
            Err(error) if !is_full(&error) => Err(error),
            _ => Ok(state),
        }
    }

    /// Takes over the jobs of processes that have ended since.
    pub fn adopt(&mut self, now: Micros) -> io::Result<()> {
        let mut found = history::find(&self.data, self.history.as_ref())?;
        found.retain(Found::has_ended);
        if found.is_empty() {
            return Ok(());
        }
        // How the schedules stand is better known here.
        for (id, recorded) in take_over(&found, &mut self.standings.clone(), &self.schedules, now) {
            self.unwritten.0.insert(id.clone());
            self.jobs.entry(id).or_insert_with(|| Entry::new(recorded));
        }
        self.taken.extend(found);
        self.write()?;
        prune(&mut self.jobs);
        Ok(())
    }

    /// Adds a job, unless it can't be written down.
    pub fn add(&mut self, job: Job) -> io::Result<()> {
        let recorded = Recorded { job, cancelling: false, deaths: 0 };
        self.unwritten.0.insert(recorded.job.id.clone());
        let id = recorded.job.id.clone();
        self.jobs.insert(id.clone(), Entry::new(recorded));
        self.write().inspect_err(|_| {
            self.jobs.remove(&id);
            self.unwritten.0.remove(&id);
        })?;
        prune(&mut self.jobs);
        Ok(())
    }

    /// Changes a job and writes it down. If that fails it is changed all the same, and written later.
    pub fn change<T>(&mut self, id: &str, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let result = change(self.jobs.get_mut(id)?);
        self.unwritten.0.insert(id.to_owned());
        self.write_or_say();
        Some(result)
    }

    /// Has a job end, which its views' schedules go by.
    pub fn end(&mut self, id: &str, state: JobState, error: Option<String>, now: Micros) {
        let Some(entry) = self.jobs.get_mut(id) else { return };
        let job = &mut entry.recorded.job;
        (job.state, job.error, job.ended) = (state, error, Some(format_timestamp(now)));
        if state == JobState::Succeeded {
            job.progress = 1.0;
        }
        for view in settle(&mut self.standings, &self.schedules, &entry.recorded.job) {
            self.unwritten.1.insert(view);
        }
        self.change(id, |_| ());
    }

    /// Changes how a view's schedule stands.
    pub fn stand(&mut self, standing: Standing) {
        self.unwritten.1.insert(standing.view.clone());
        self.standings.insert(standing.view.clone(), standing);
        self.write_or_say();
    }

    /// Fills the disk.
    #[cfg(test)]
    pub fn fill(&mut self) {
        self.history.as_mut().expect("a file").set_full(true).expect("/dev/full");
    }

    /// Frees room on it.
    #[cfg(test)]
    pub fn free(&mut self) {
        self.history.as_mut().expect("a file").set_full(false).expect("the file");
    }

    fn write_or_say(&mut self) {
        let before = self.trouble.is_some();
        if let Err(error) = self.write()
            && !before
        {
            tracing::error!(%error, "the history of runs can't be written; what it lacks is written once it can");
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let written = match &mut self.history {
            Some(history) if !history.is_long() => {
                let jobs = self.unwritten.0.iter().filter_map(|id| self.jobs.get(id));
                let jobs = jobs.map(|entry| Line::Job(Box::new(entry.recorded.clone())));
                let standings = self.unwritten.1.iter().filter_map(|view| self.standings.get(view));
                let standings = standings.map(|schedule| Line::Schedule { schedule: schedule.clone() });
                history.record(&jobs.chain(standings).collect::<Vec<_>>())
            }
            // A file of all that is known takes the place of the last one.
            history => History::begin(&self.data, &lines(&self.jobs, &self.standings)).map(|new| {
                if let Some(Err(error)) = history.replace(new).map(History::delete) {
                    tracing::warn!(%error, "a file of the history of runs that was replaced can't be deleted");
                }
            }),
        };
        self.trouble = written.as_ref().err().map(ToString::to_string);
        if written.is_ok() {
            self.unwritten = Default::default();
            delete(std::mem::take(&mut self.taken));
        }
        written
    }
}

/// All that is known, in lines.
fn lines(jobs: &BTreeMap<String, Entry>, standings: &BTreeMap<String, Standing>) -> Vec<Line> {
    let jobs = jobs.values().map(|entry| Line::Job(Box::new(entry.recorded.clone())));
    // Behind the jobs, whose ends don't count for them any more.
    let schedules = standings.values().map(|schedule| Line::Schedule { schedule: schedule.clone() });
    jobs.chain(schedules).collect()
}

/// Forgets the oldest jobs that have ended.
fn prune(jobs: &mut BTreeMap<String, Entry>) {
    let surplus = jobs.len().saturating_sub(KEPT_JOBS);
    let ended = jobs.iter().filter(|(_, entry)| entry.recorded.job.ended.is_some());
    let oldest: Vec<String> = ended.take(surplus).map(|(id, _)| id.clone()).collect();
    oldest.iter().for_each(|id| drop(jobs.remove(id)));
}

/// Deletes files whose content stands in our own. One that is left is taken over again, which changes nothing.
fn delete(found: Vec<Found>) {
    for error in found.into_iter().filter(Found::has_ended).filter_map(|file| file.delete().err()) {
        tracing::warn!(%error, "a file of the history of runs that was taken over can't be deleted");
    }
}

/// The jobs that ended processes have left, each as it is from now on, and in `standings` how schedules stand by what all
/// processes have written.
fn take_over(
    found: &[Found],
    standings: &mut BTreeMap<String, Standing>,
    schedules: &BTreeMap<String, Schedule>,
    now: Micros,
) -> BTreeMap<String, Recorded> {
    let mut jobs = BTreeMap::new();
    for file in found {
        for line in &file.lines {
            match line {
                Line::Process { .. } => {}
                Line::Schedule { schedule } => drop(standings.insert(schedule.view.clone(), schedule.clone())),
                Line::Job(recorded) => {
                    settle(standings, schedules, &recorded.job);
                    if file.has_ended() {
                        jobs.insert(recorded.job.id.clone(), (file.is_legacy, (**recorded).clone()));
                    }
                }
            }
        }
    }
    let each = jobs.into_iter().map(|(id, (is_legacy, mut recorded))| {
        if recorded.job.is_open() {
            leave(&mut recorded, is_legacy, now);
            settle(standings, schedules, &recorded.job);
        }
        (id, recorded)
    });
    each.collect()
}

/// What becomes of a job whose process has ended: one that waited waits, one that was at work begins again.
fn leave(recorded: &mut Recorded, is_legacy: bool, now: Micros) {
    let Recorded { job, cancelling, deaths } = recorded;
    *deaths += u32::from(job.state == JobState::Running);
    let ended = if *cancelling {
        Some((JobState::Cancelled, None))
    } else if is_legacy {
        let why =
            "the program was updated before it ended, and what exactly it was to do isn't known: ask for it again";
        Some((JobState::Failed, Some(why.to_owned())))
    } else if *deaths >= MOST_DEATHS {
        let why = format!("the process has ended {deaths} times while it was at work, so it isn't begun again");
        Some((JobState::Failed, Some(why)))
    } else {
        None
    };
    match ended {
        Some((state, error)) => (job.state, job.error, job.ended) = (state, error, Some(format_timestamp(now))),
        None => (job.state, job.started, job.progress) = (JobState::Queued, None, 0.0),
    }
}

/// Takes a job that has ended into account of its views' schedules, and returns which of them that changed.
fn settle(
    standings: &mut BTreeMap<String, Standing>,
    schedules: &BTreeMap<String, Schedule>,
    job: &Job,
) -> Vec<String> {
    let Some(ended) = job.ended.as_deref().and_then(parse_timestamp) else { return Vec::new() };
    let scheduled = job.scheduled.as_deref().and_then(parse_timestamp);
    let started = job.started.as_deref().and_then(parse_timestamp);
    let mut changed = Vec::new();
    for view in &job.views {
        let Some(schedule) = schedules.get(view) else { continue };
        let standing = match standings.get_mut(view) {
            Some(standing) => standing,
            // A build before this one wrote no standings.
            None if job.trigger == Trigger::Schedule => {
                standings.entry(view.clone()).or_insert(Standing { view: view.clone(), ..Standing::default() })
            }
            None => continue,
        };
        if job.versions.contains_key(view) {
            // One run has seen all that was there when it began, so it makes up for every time before.
            let by_run = started.filter(|_| schedule.catch_up != CatchUp::All || standing.times.is_empty());
            standing.dealt = standing.dealt.max(scheduled.max(by_run).unwrap_or(Micros::MIN));
            (standing.failures, standing.failed) = (0, 0);
        } else if job.state == JobState::Cancelled {
            // A client that cancels a run doesn't want it again the next second.
            standing.dealt = standing.dealt.max(scheduled.unwrap_or(Micros::MIN));
        } else if scheduled.is_some() {
            (standing.failures, standing.failed) = (standing.failures + 1, ended);
        }
        changed.push(view.clone());
    }
    changed
}
