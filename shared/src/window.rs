//! Windows over event time, and the panes that they share.
//!
//! A window holds the events with `start <= time < end`; it is named by its end. Windows start at the multiples of
//! `slide` since the Unix epoch, before 1970 too. Events are aggregated once, in **panes** as long as the greatest
//! common divisor of size and slide; a window is the sum of the panes inside it. (Li et al., "No pane, no gain",
//! SIGMOD Record 34(1), 2005.)

use crate::clock::Micros;

/// Windows of one size, one each `slide`. Tumbling ones have `slide == size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How long a window is, in microseconds.
    pub size: Micros,
    /// From the start of a window to that of the next, in microseconds. At most `size`.
    pub slide: Micros,
}

impl Window {
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

    /// The start of the pane that an instant is in.
    pub fn pane_of(self, time: Micros) -> Micros {
        let pane = self.pane();
        time.div_euclid(pane) * pane
    }

    /// The start of the earliest window that holds an instant.
    pub fn first_start(self, time: Micros) -> Micros {
        (time - self.size).div_euclid(self.slide) * self.slide + self.slide
    }

    /// The start of the latest window that holds an instant.
    pub fn last_start(self, time: Micros) -> Micros {
        time.div_euclid(self.slide) * self.slide
    }

    /// The starts of the windows that hold an instant, ascending.
    pub fn starts(self, time: Micros) -> impl Iterator<Item = Micros> {
        let count = (self.last_start(time) - self.first_start(time)) / self.slide + 1;
        (0..count).map(move |i| self.first_start(time) + i * self.slide)
    }

    /// How many windows an instant can be in at most.
    pub fn overlap(self) -> i64 {
        (self.size + self.slide - 1) / self.slide
    }

    /// How many of the windows that hold an instant were closed for good when the watermark stood at `watermark`:
    /// those whose end plus `allowed_lateness` it had reached. They are the earliest ones.
    pub fn missed(self, time: Micros, watermark: Option<Micros>, allowed_lateness: Micros) -> i32 {
        let Some(watermark) = watermark else { return 0 };
        let closed = watermark.saturating_sub(allowed_lateness);
        let first_end = self.first_start(time) + self.size;
        if closed < first_end {
            return 0;
        }
        let count = (self.last_start(time) - self.first_start(time)) / self.slide + 1;
        let missed = (closed - first_end) / self.slide + 1;
        i32::try_from(missed.min(count)).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_instant_on_a_boundary_belongs_to_the_window_that_starts_there() {
        let tumbling = Window { size: 5, slide: 5 };
        assert_eq!(tumbling.starts(5).collect::<Vec<_>>(), [5]);
        assert_eq!(tumbling.starts(4).collect::<Vec<_>>(), [0]);
        assert_eq!(tumbling.starts(-1).collect::<Vec<_>>(), [-5]);
        let sliding = Window { size: 10, slide: 5 };
        assert_eq!(sliding.starts(7).collect::<Vec<_>>(), [0, 5]);
        assert_eq!(sliding.starts(-7).collect::<Vec<_>>(), [-15, -10]);
        assert_eq!(sliding.pane(), 5);
        assert_eq!(Window { size: 5, slide: 2 }.pane(), 1);
        assert_eq!(Window { size: 5, slide: 2 }.starts(4).collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(Window { size: 5, slide: 2 }.starts(5).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn a_window_is_missed_once_the_watermark_reaches_its_end_and_the_lateness() {
        let sliding = Window { size: 10, slide: 5 };
        assert_eq!(sliding.missed(7, None, 0), 0);
        assert_eq!(sliding.missed(7, Some(9), 0), 0);
        assert_eq!(sliding.missed(7, Some(10), 0), 1);
        assert_eq!(sliding.missed(7, Some(15), 0), 2);
        assert_eq!(sliding.missed(7, Some(1_000), 0), 2);
        assert_eq!(sliding.missed(7, Some(15), 6), 0);
    }

    proptest! {
        #[test]
        fn windows_are_what_their_definition_says(
            time in -1_000_i64..1_000,
            (size, slide) in (1_i64..60).prop_flat_map(|size| (Just(size), 1..=size)),
            closed in -1_100_i64..1_100,
        ) {
            let window = Window { size, slide };
            let expected: Vec<i64> =
                (-2_000..2_000).filter(|s| s % slide == 0 && *s <= time && time < s + size).collect();
            prop_assert_eq!(window.starts(time).collect::<Vec<_>>(), expected.clone());
            prop_assert!(expected.len() as i64 <= window.overlap());
            let missed = expected.iter().filter(|s| *s + size <= closed).count();
            prop_assert_eq!(window.missed(time, Some(closed), 0) as usize, missed);
            let pane = window.pane_of(time);
            for start in window.starts(time) {
                prop_assert!(start <= pane && pane + window.pane() <= start + size);
            }
        }
    }
}
