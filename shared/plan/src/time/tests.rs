use proptest::prelude::*;

use super::*;
use crate::window::{Days, Sliding, Window};

/// A hundred years, the longest duration that can be named.
const LONGEST: Micros = 36_500 * 86_400_000_000;

#[test]
fn the_ranges_of_times_are_whole_years() {
    for (time, text) in [
        (TIMES.start, "0001-01-01T00:00:00Z"),
        (TIMES.end - 1, "9999-12-31T23:59:59.999999Z"),
        (EVENT_TIMES.start, "0200-01-01T00:00:00Z"),
        (EVENT_TIMES.end - 1, "9799-12-31T23:59:59.999999Z"),
    ] {
        assert_eq!(format_timestamp(time), text);
        assert_eq!(parse_timestamp(text), Some(time));
    }
    let outside = [
        "0000-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:60Z",
        "9999-12-31T23:59:59-00:01",
        "+10000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
    ];
    for text in outside {
        assert_eq!(parse_timestamp(text), None, "{text}");
    }
}

fn window() -> impl Strategy<Value = Window> {
    let sliding = (1..=LONGEST, 0_i64..1_000, 0_i64..1_000).prop_map(|(size, share, offset)| {
        let slide = (size / 1_000 * share).clamp(1, size);
        Window::Sliding(Sliding { size, slide, offset: slide / 1_000 * offset })
    });
    let zones = prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec());
    let days = (1..=36_500_u32, zones).prop_map(|(count, zone)| Window::Days(Days { count, zone }));
    prop_oneof![sliding, days, (1..=LONGEST).prop_map(|gap| Window::Session { gap })]
}

proptest! {
    #[test]
    fn what_is_written_of_a_time_is_read_as_the_same(time in TIMES, digits in 0_u32..7) {
        let unit = 10_i64.pow(digits);
        let time = (time / unit * unit).max(TIMES.start);
        prop_assert_eq!(parse_timestamp(&format_timestamp(time)), Some(time));
    }

    #[test]
    fn what_follows_from_an_event_time_can_be_written_and_read(
        time in prop_oneof![EVENT_TIMES, Just(EVENT_TIMES.start), Just(EVENT_TIMES.end - 1)],
        window in window(),
        delay in 0..=LONGEST,
    ) {
        let starts = [window.first_start(time), window.last_start(time), window.pane_of(time)];
        let bounds = starts.into_iter().flat_map(|start| [start, window.end_of(start)]);
        for derived in bounds.chain([window.pane_end(window.pane_of(time)), time - delay]) {
            prop_assert!(TIMES.contains(&derived), "{derived} of {time}");
            prop_assert_eq!(parse_timestamp(&format_timestamp(derived)), Some(derived));
        }
        prop_assert!(window.first_start(time) <= time && time < window.end_of(window.last_start(time)));
    }
}
