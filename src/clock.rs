//! The process's clock.

use std::path::PathBuf;
use std::sync::Arc;

use anabranch_log::clock::{Clock, SystemClock};
use anabranch_plan::time::Micros;

/// The machine's clock. For tests of clocks that jump, the environment variable ANABRANCH_CLOCK_AHEAD names a file that holds by
/// how many microseconds the clock is ahead; it is read each time that the clock is.
pub fn clock() -> Arc<dyn Clock> {
    match std::env::var_os("ANABRANCH_CLOCK_AHEAD") {
        None => Arc::new(SystemClock),
        Some(file) => Arc::new(JumpingClock { file: file.into() }),
    }
}

#[derive(Debug)]
struct JumpingClock {
    file: PathBuf,
}

impl Clock for JumpingClock {
    fn now(&self) -> Micros {
        let ahead = std::fs::read_to_string(&self.file).expect("the file that ANABRANCH_CLOCK_AHEAD names is read");
        SystemClock.now()
            + ahead.trim().parse::<Micros>().expect("the file that ANABRANCH_CLOCK_AHEAD names has a number")
    }
}
