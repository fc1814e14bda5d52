//! Windows over event time, and the panes that they share.
//!
//! A window holds the events with `start <= time < end`; it is named by its end. Events are aggregated once, in **panes** that
//! lie inside every window that they touch; a window is the sum of the panes inside it. (Li et al., "No pane, no gain",
//! SIGMOD Record 34(1), 2005.)
//!
//! | windows              | start at                                               | a pane is              |
//! |----------------------|--------------------------------------------------------|------------------------|
//! | sliding and tumbling | `offset` + multiples of `slide` since the Unix epoch, before 1970 too | as long as the greatest common divisor of size and slide |
//! | days in a zone       | midnight there, which is 23, 24 or 25 hours after the last | the window          |
//! | sessions             | an event that none preceded for `gap`; they end `gap` after their last event | as long as the gap, at least a minute and at most a day |

use chrono::{DateTime, Days as ChronoDays, NaiveDate, NaiveTime, TimeZone};
use chrono_tz::Tz;

use crate::time::Micros;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60_000_000;
const DAY: Micros = 86_400_000_000;

/// The windows of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// `TUMBLE` and `HOP`.
    Sliding(Sliding),
    /// `TUMBLE` over days of a zone.
    Days(Days),
    /// `SESSION`: of each group its own.
    Session {
        /// How long without an event ends it, in microseconds.
        gap: Micros,
    },
}

/// Windows of one size, one each `slide`. Tumbling ones have `slide == size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// How long a window is, in microseconds.
    pub size: Micros,
    /// From the start of a window to that of the next, in microseconds. At most `size`.
    pub slide: Micros,
    /// How long after a multiple of `slide` windows start. At least 0 and below `slide`.
    pub offset: Micros,
}

/// Windows of whole days, as a clock on the wall of some place has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    /// How many days a window has, counted from 1970-01-01.
    pub count: u32,
    /// The place.
    pub zone: Tz,
}

impl Window {
    /// Windows of one size, one each `slide`, of which one starts at the Unix epoch.
    pub fn sliding(size: Micros, slide: Micros) -> Self {
        Self::Sliding(Sliding { size, slide, offset: 0 })
    }

    /// Whether windows are each group's own.
    pub fn is_session(self) -> bool {
        matches!(self, Self::Session { .. })
    }

    /// The start of the pane that an instant is in.
    pub fn pane_of(self, time: Micros) -> Micros {
        match self {
            Self::Sliding(sliding) => sliding.pane_of(time),
            Self::Days(days) => days.start_of(time),
            Self::Session { gap } => {
                let pane = session_pane(gap);
                time.div_euclid(pane) * pane
            }
        }
    }

    /// The first instant after the pane that starts there.
    pub fn pane_end(self, pane: Micros) -> Micros {
        match self {
            Self::Sliding(sliding) => pane + sliding.pane(),
            Self::Days(days) => days.end_of(pane),
            Self::Session { gap } => pane + session_pane(gap),
        }
    }

    /// The first instant after the window that starts there. A session's pane is taken for one: it ends `gap` after what
    /// could be the pane's last event.
    pub fn end_of(self, start: Micros) -> Micros {
        match self {
            Self::Sliding(sliding) => start.saturating_add(sliding.size),
            Self::Days(days) => days.end_of(start),
            Self::Session { gap } => start.saturating_add(session_pane(gap)).saturating_add(gap),
        }
    }

    /// The start of the earliest window that holds an instant; of a session, of the pane.
    pub fn first_start(self, time: Micros) -> Micros {
        match self {
            Self::Sliding(sliding) => sliding.first_start(time),
            _ => self.pane_of(time),
        }
    }

    /// The start of the latest window that holds an instant; of a session, of the pane.
    pub fn last_start(self, time: Micros) -> Micros {
        match self {
            Self::Sliding(sliding) => sliding.last_start(time),
            _ => self.pane_of(time),
        }
    }

    /// The starts of the windows that hold an instant, ascending.
    pub fn starts(self, time: Micros) -> impl Iterator<Item = Micros> {
        let (first, last) = (self.first_start(time), self.last_start(time));
        let slide = if let Self::Sliding(sliding) = self { sliding.slide } else { 1 };
        let count = if first == last { 1 } else { (last - first) / slide + 1 };
        (0..count).map(move |i| first + i * slide)
    }

    /// Which of the windows that hold an instant one is, by its start.
    pub fn index_of(self, start: Micros, time: Micros) -> i64 {
        match self {
            Self::Sliding(sliding) => (start - sliding.first_start(time)) / sliding.slide,
            _ => 0,
        }
    }

    /// How many windows an instant can be in at most.
    pub fn overlap(self) -> i64 {
        match self {
            Self::Sliding(Sliding { size, slide, .. }) => (size + slide - 1) / slide,
            _ => 1,
        }
    }

    /// How many of the windows that hold an instant were closed for good when the watermark stood at `watermark`:
    /// those whose end plus `allowed_lateness` it had reached. They are the earliest ones. Of a session it goes by the window
    /// that the event would make by itself, so that it doesn't depend on what else had come.
    pub fn missed(self, time: Micros, watermark: Option<Micros>, allowed_lateness: Micros) -> i32 {
        let Some(watermark) = watermark else { return 0 };
        let closed = watermark.saturating_sub(allowed_lateness);
        match self {
            Self::Sliding(sliding) => sliding.missed(time, closed),
            Self::Days(days) => i32::from(days.end_of(days.start_of(time)) <= closed),
            Self::Session { gap } => i32::from(time.saturating_add(gap) <= closed),
        }
    }

    /// The starts of the first and the last window wholly inside `[from, to]`; the first is after the last if there is none.
    /// Not of sessions.
    pub fn inside(self, from: Micros, to: Micros) -> (Micros, Micros) {
        match self {
            Self::Sliding(Sliding { size, slide, offset }) => {
                let from = from.saturating_sub(offset);
                let first = from.div_euclid(slide) + i64::from(from.rem_euclid(slide) != 0);
                let last = to.saturating_sub(size).saturating_sub(offset).div_euclid(slide);
                (first.saturating_mul(slide).saturating_add(offset), last.saturating_mul(slide).saturating_add(offset))
            }
            Self::Days(days) => {
                let start = days.start_of(from);
                let first = if start == from { start } else { days.end_of(start) };
                (first, days.start_of(days.start_of(to) - 1))
            }
            Self::Session { .. } => (from, to),
        }
    }

    /// About how many windows start in `[first, last]`.
    pub fn count_between(self, first: Micros, last: Micros) -> i64 {
        let slide = match self {
            Self::Sliding(sliding) => sliding.slide,
            Self::Days(days) => i64::from(days.count) * DAY,
            Self::Session { gap } => gap,
        };
        if first > last { 0 } else { last.saturating_sub(first) / slide + 1 }
    }
}

/// How long a session's panes are.
fn session_pane(gap: Micros) -> Micros {
    gap.clamp(MINUTE, DAY)
}

impl Sliding {
    /// Whether each event is in exactly one window.
    pub fn is_tumbling(self) -> bool {
        self.size == self.slide
    }

    /// The length of a pane.
    pub fn pane(self) -> Micros {
        let (mut a, mut b) = (self.size, self.slide);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }

    fn pane_of(self, time: Micros) -> Micros {
        let pane = self.pane();
        (time - self.offset).div_euclid(pane) * pane + self.offset
    }

    fn first_start(self, time: Micros) -> Micros {
        (time - self.offset - self.size).div_euclid(self.slide) * self.slide + self.slide + self.offset
    }

    fn last_start(self, time: Micros) -> Micros {
        (time - self.offset).div_euclid(self.slide) * self.slide + self.offset
    }

    fn missed(self, time: Micros, closed: Micros) -> i32 {
        let first_end = self.first_start(time) + self.size;
        if closed < first_end {
            return 0;
        }
        let count = (self.last_start(time) - self.first_start(time)) / self.slide + 1;
        let missed = (closed - first_end) / self.slide + 1;
        i32::try_from(missed.min(count)).unwrap_or(i32::MAX)
    }
}

impl Days {
    /// The start of the window that holds an instant.
    pub fn start_of(self, time: Micros) -> Micros {
        let mut first = self.first_day(self.day_of(time));
        // Where the clock is set back over midnight, a day comes back after the next had begun: it is of the next then.
        while self.midnight(first + i64::from(self.count)) <= time {
            first += i64::from(self.count);
        }
        while self.midnight(first) > time {
            first -= i64::from(self.count);
        }
        self.midnight(first)
    }

    /// The first instant after the window that starts there.
    pub fn end_of(self, start: Micros) -> Micros {
        let mut next = self.first_day(self.day_of(start)) + i64::from(self.count);
        // A whole day can be left out where a place changes sides of the date line.
        while self.midnight(next) <= start {
            next += i64::from(self.count);
        }
        self.midnight(next)
    }

    fn first_day(self, day: i64) -> i64 {
        day.div_euclid(i64::from(self.count)) * i64::from(self.count)
    }

    /// The day that a calendar shows there, counted from 1970-01-01.
    fn day_of(self, time: Micros) -> i64 {
        let local = DateTime::from_timestamp_micros(time)
            .map(|time| self.zone.from_utc_datetime(&time.naive_utc()).date_naive());
        local.map_or(time.div_euclid(DAY), |date| date.signed_duration_since(NaiveDate::default()).num_days())
    }

    /// The first instant of a day there. Where the clock is set forward over midnight the day begins later, at the very
    /// instant at which the clock is set.
    fn midnight(self, day: i64) -> Micros {
        let date = match u64::try_from(day) {
            Ok(day) => NaiveDate::default().checked_add_days(ChronoDays::new(day)),
            Err(_) => NaiveDate::default().checked_sub_days(ChronoDays::new(day.unsigned_abs())),
        };
        let Some(midnight) = date.map(|date| date.and_time(NaiveTime::MIN)) else { return day.saturating_mul(DAY) };
        if let Some(time) = self.zone.from_local_datetime(&midnight).earliest() {
            return time.timestamp_micros();
        }
        // No clock there ever showed midnight. Clocks are less than a day away from UTC and are set forward by a day at most:
        // they showed an earlier time two days before, a later one two days after, and between these the one that skipped it.
        // Zones change at whole seconds.
        let shown = |second: i64| {
            let utc = DateTime::from_timestamp(second, 0).map(|time| time.naive_utc());
            utc.map_or(midnight, |utc| self.zone.from_utc_datetime(&utc).naive_local())
        };
        let (mut before, mut after) = ((day - 2) * (DAY / SECOND), (day + 2) * (DAY / SECOND));
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if shown(middle) < midnight { before = middle } else { after = middle }
        }
        after * SECOND
    }
}

#[cfg(test)]
mod tests;
