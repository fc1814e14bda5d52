//! Schedules: when a view is recomputed, by a cron expression on the clock of a zone.
//!
//! Where a zone's clock is changed, a schedule whose minute or hour has a `*` goes by the hours that there are: none in the
//! hour that is left out, and both of the hour that comes twice. A schedule of fixed times runs once for each of them: right
//! after the hour that is left out, and the first time in the hour that comes twice.

#[cfg(test)]
mod tests;

use std::fmt;

use chrono::{DateTime, NaiveDateTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::time::Micros;

/// What becomes of times at which no run was made, or none that succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CatchUp {
    /// One run makes up for all of them.
    #[default]
    Last,
    /// Each has a run of its own, in order.
    All,
    /// They are passed over once they are a minute old.
    None,
}

impl CatchUp {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Last, Self::All, Self::None];

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// When a view is recomputed.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The cron expression.
    pub cron: String,
    /// The zone whose clock it goes by.
    pub zone: Tz,
    /// What becomes of times that were missed.
    pub catch_up: CatchUp,
    times: Cron,
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        (&self.cron, self.zone, self.catch_up) == (&other.cron, other.zone, other.catch_up)
    }
}

/// The expression and its zone: two schedules with the same have the same times.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cron, self.zone)
    }
}

impl Schedule {
    /// A schedule by a cron expression of five fields, or what is wrong with it.
    pub fn parse(cron: &str, zone: Tz, catch_up: CatchUp) -> Result<Self, String> {
        let fields: Vec<&str> = cron.split_whitespace().collect();
        let wanted = "minute, hour, day, month and weekday, such as `*/15 * * * *`";
        if fields.len() != 5 {
            return Err(format!("`{cron}` has {} fields; a schedule has five: {wanted}", fields.len()));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let times = parser.parse(cron).map_err(|error| {
            let error = error.to_string();
            format!("`{cron}` isn't a cron expression: {}; it has five fields: {wanted}", error.trim_end_matches('.'))
        })?;
        let schedule = Self { cron: fields.join(" "), zone, catch_up, times };
        match schedule.next_after(0) {
            Some(_) => Ok(schedule),
            None => Err(format!("`{cron}` never comes true")),
        }
    }

    /// A schedule in UTC of which one run makes up for what was missed.
    pub fn utc(cron: &str) -> Result<Self, String> {
        Self::parse(cron, Tz::UTC, CatchUp::Last)
    }

    /// The first time after an instant; none if there is none.
    pub fn next_after(&self, after: Micros) -> Option<Micros> {
        let start = DateTime::from_timestamp_micros(after)?.with_timezone(&self.zone);
        if self.zone == Tz::UTC || self.cron.split(' ').take(2).any(|field| field.contains('*')) {
            return Some(self.times.find_next_occurrence(&start, false).ok()?.timestamp_micros());
        }
        // Fixed times are found on the zone's clock, and only then placed in time.
        let mut shown = start.naive_local().and_utc();
        loop {
            shown = self.times.find_next_occurrence(&shown, false).ok()?;
            let time = self.when(shown.naive_utc())?;
            if time > after {
                return Some(time);
            }
        }
    }

    /// The last time after one instant and not after another.
    pub fn last_in(&self, after: Micros, until: Micros) -> Option<Micros> {
        const MINUTE: Micros = 60_000_000;
        const BACK: [Micros; 4] = [MINUTE, 60 * MINUTE, 1_440 * MINUTE, 44_640 * MINUTE];
        let from = BACK.into_iter().map(|back| until.saturating_sub(back).max(after)).chain([after]);
        let is_due = |time: &Micros| *time <= until;
        let mut last = from.filter_map(|from| self.next_after(from)).find(is_due)?;
        while let Some(next) = self.next_after(last).filter(is_due) {
            last = next;
        }
        Some(last)
    }

    /// The first instant at which the zone's clock shows a time, or has passed it if it leaves that out.
    fn when(&self, mut shown: NaiveDateTime) -> Option<Micros> {
        loop {
            if let Some(time) = self.zone.from_local_datetime(&shown).earliest() {
                return Some(time.timestamp_micros());
            }
            shown = shown.checked_add_signed(TimeDelta::minutes(1))?;
        }
    }
}
