//! Time is an argument: nothing outside this module reads the wall clock.

use std::fmt::Debug;
use std::sync::atomic::{AtomicI64, Ordering};

/// Microseconds since the Unix epoch, UTC: the unit of every timestamp in the platform.
pub type Micros = i64;

/// Where a component gets the current time from.
pub trait Clock: Send + Sync + Debug {
    /// The current time in microseconds since the Unix epoch.
    fn now(&self) -> Micros;
}

/// The machine's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Micros {
        chrono::Utc::now().timestamp_micros()
    }
}

/// A clock that stands still until told otherwise, for tests and replays.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Micros) -> Self {
        Self(AtomicI64::new(now))
    }

    /// Sets the time, backwards too.
    pub fn set(&self, now: Micros) {
        self.0.store(now, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        self.0.load(Ordering::SeqCst)
    }
}

/// Whether so much time has passed since an instant. If the clock was set back since, it can't be computed, and counts as passed:
/// waiting for the clock to catch up may take years.
pub fn has_passed(since: Micros, now: Micros, interval: Micros) -> bool {
    now < since || now.saturating_sub(since) >= interval
}

/// Writes a time for a message: RFC 3339 in UTC.
pub(crate) fn written(time: Micros) -> String {
    chrono::DateTime::from_timestamp_micros(time).map_or_else(
        || format!("{time} µs since 1970"),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
    )
}
