//! How far off a pane may be that memory ran out for.

use serde::{Deserialize, Serialize};

/// How far the counts of a degraded pane may be off, in one chunk's part of the pane. A key is *listed* if it has a row of
/// events in time, whose [`super::MISSED`] is 0. A key whose events all came late isn't listed.
///
/// Rows of late events count too little, never too much. So a key had at least its counts less `down`. It had at most its
/// counts and `late`, and also `up` if it isn't listed. For a window that is true of its events in time and of all its
/// events, as the first are fewer and rows of late events say nothing that didn't happen.
///
/// It is stored and sent as `[down, up]`, or as `[down, up, late]` where late events were forgotten. A program from before
/// `late` reads the first, and refuses the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<i64>", try_from = "Vec<i64>")]
pub struct Slack {
    /// The count of a listed key's events in time may exceed the truth by this much.
    pub down: i64,
    /// A key that isn't listed may have had this many events.
    pub up: i64,
    /// Any key may have had this many late events that no row counts.
    pub late: i64,
}

impl From<Slack> for Vec<i64> {
    fn from(Slack { down, up, late }: Slack) -> Self {
        if late == 0 { vec![down, up] } else { vec![down, up, late] }
    }
}

impl TryFrom<Vec<i64>> for Slack {
    type Error = &'static str;

    fn try_from(numbers: Vec<i64>) -> Result<Self, Self::Error> {
        match numbers[..] {
            [down, up] => Ok(Self { down, up, late: 0 }),
            [down, up, late] => Ok(Self { down, up, late }),
            _ => Err("a slack has two or three numbers"),
        }
    }
}
