use proptest::prelude::*;

use super::*;

const HOUR: Micros = 3_600_000_000;

fn starts(window: Window, time: Micros) -> Vec<Micros> {
    window.starts(time).collect()
}

fn instant(text: &str) -> Micros {
    crate::time::parse_timestamp(text).expect("a time")
}

#[test]
fn an_instant_on_a_boundary_belongs_to_the_window_that_starts_there() {
    let tumbling = Window::sliding(5, 5);
    assert_eq!(starts(tumbling, 5), [5]);
    assert_eq!(starts(tumbling, 4), [0]);
    assert_eq!(starts(tumbling, -1), [-5]);
    let sliding = Window::sliding(10, 5);
    assert_eq!(starts(sliding, 7), [0, 5]);
    assert_eq!(starts(sliding, -7), [-15, -10]);
    assert_eq!(starts(Window::sliding(5, 2), 4), [0, 2, 4]);
    assert_eq!(starts(Window::sliding(5, 2), 5), [2, 4]);
    assert_eq!(starts(Window::Sliding(Sliding { size: 10, slide: 5, offset: 2 }), 1), [-8, -3]);
}

#[test]
fn a_window_is_missed_once_the_watermark_reaches_its_end_and_the_lateness() {
    let sliding = Window::sliding(10, 5);
    assert_eq!(sliding.missed(7, None, 0), 0);
    assert_eq!(sliding.missed(7, Some(9), 0), 0);
    assert_eq!(sliding.missed(7, Some(10), 0), 1);
    assert_eq!(sliding.missed(7, Some(15), 0), 2);
    assert_eq!(sliding.missed(7, Some(1_000), 0), 2);
    assert_eq!(sliding.missed(7, Some(15), 6), 0);
    let session = Window::Session { gap: 10 };
    assert_eq!(session.missed(7, Some(16), 0), 0);
    assert_eq!(session.missed(7, Some(17), 0), 1);
    assert_eq!(session.missed(7, Some(17), 1), 0);
}

#[test]
fn a_day_in_a_zone_is_as_long_as_it_is_there() {
    let paris = Days { count: 1, zone: Tz::Europe__Paris };
    // The clock goes forward on 2024-03-31 and back on 2024-10-27.
    for (time, start, hours) in [
        ("2024-03-31T12:00:00Z", "2024-03-30T23:00:00Z", 23),
        ("2024-10-27T12:00:00Z", "2024-10-26T22:00:00Z", 25),
        ("2024-10-27T22:59:59Z", "2024-10-26T22:00:00Z", 25),
        ("2024-10-27T23:00:00Z", "2024-10-27T23:00:00Z", 24),
        ("1969-07-20T20:17:40Z", "1969-07-19T23:00:00Z", 24),
    ] {
        assert_eq!(paris.start_of(instant(time)), instant(start), "{time}");
        assert_eq!(paris.end_of(instant(start)), instant(start) + hours * HOUR, "{time}");
    }
    // Midnight is left out, twice there, and a whole day is left out.
    let sao_paulo = Days { count: 1, zone: Tz::America__Sao_Paulo };
    assert_eq!(sao_paulo.start_of(instant("2018-11-04T12:00:00Z")), instant("2018-11-04T03:00:00Z"));
    let apia = Days { count: 1, zone: Tz::Pacific__Apia };
    assert_eq!(apia.start_of(instant("2011-12-30T10:00:00Z")), instant("2011-12-30T10:00:00Z"));
    assert_eq!(apia.end_of(instant("2011-12-29T10:00:00Z")), instant("2011-12-30T10:00:00Z"));
}

/// How far a clock there is ahead of UTC at a second since 1970, which is all that the oracles below know of a zone.
fn ahead(zone: Tz, second: i64) -> i64 {
    use chrono::Offset;
    let utc = DateTime::from_timestamp(second, 0).expect("a time").naive_utc();
    i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc())
}

#[test]
fn midnights_are_found_to_the_second_where_clocks_skip_them() {
    for (zone, day, offset) in [
        (Tz::Africa__Monrovia, "1972-01-07", 44 * 60 + 30),
        (Tz::Asia__Kolkata, "1906-01-01", 0),
        (Tz::Africa__Nairobi, "1908-05-01", 0),
        (Tz::Asia__Singapore, "1905-06-01", 0),
        (Tz::Pacific__Apia, "2011-12-30", 0),
        (Tz::America__Sao_Paulo, "2018-11-04", 0),
    ] {
        let midnight = instant(&format!("{day} 00:00:00")) / SECOND;
        // Second by second, from a time at which the day before is shown everywhere.
        let first = (midnight - 26 * 3_600..).find(|second| second + ahead(zone, *second) >= midnight);
        let first = first.expect("the day, or a later one, is shown some time");
        let days = Days { count: 1, zone };
        assert_eq!(days.start_of(first * SECOND), first * SECOND, "{zone} {day}");
        assert!(days.start_of(first * SECOND - 1) < first * SECOND, "{zone} {day}");
        if offset != 0 {
            assert_eq!((first + ahead(zone, first)) - midnight, offset, "{zone} skips its midnight");
        }
    }
}

#[test]
fn midnights_of_every_zone_are_the_first_instants_of_their_days() {
    const STEP: i64 = 3 * 86_400;
    let (from, to) = (instant("1880-01-01 00:00:00") / SECOND, instant("2038-01-01 00:00:00") / SECOND);
    let mut changes = 0;
    for zone in chrono_tz::TZ_VARIANTS {
        let days = Days { count: 1, zone };
        let mut second = from;
        while second < to {
            let (before, after) = (ahead(zone, second), ahead(zone, second + STEP));
            if before != after {
                changes += 1;
                // The first second of the new offset; between two probes it changes once, or this is one of the changes.
                let (mut old, mut new) = (second, second + STEP);
                while new - old > 1 {
                    let middle = old + (new - old) / 2;
                    if ahead(zone, middle) == before { old = middle } else { new = middle }
                }
                let around = (new + before.min(ahead(zone, new))).div_euclid(86_400);
                for day in around - 1..=around + 2 {
                    let midnight = day * 86_400;
                    let by_old = midnight - before;
                    let expected = if by_old < new { by_old } else { new.max(midnight - ahead(zone, new)) };
                    let found = days.midnight(day);
                    // Another change that is close by is looked at by itself.
                    if ahead(zone, expected) == if by_old < new { before } else { ahead(zone, new) } {
                        assert_eq!(found, expected * SECOND, "{zone}, day {day}");
                    }
                }
            }
            second += STEP;
        }
    }
    assert!(changes > 20_000, "{changes}");
}

proptest! {
    #[test]
    fn windows_are_what_their_definition_says(
        time in -1_000_i64..1_000,
        (size, slide, offset) in (1_i64..60).prop_flat_map(|size| (Just(size), 1..=size))
            .prop_flat_map(|(size, slide)| (Just(size), Just(slide), 0..slide)),
        closed in -1_100_i64..1_100,
        from in -1_000_i64..1_000,
    ) {
        let sliding = Sliding { size, slide, offset };
        let window = Window::Sliding(sliding);
        let all = || (-2_000..2_000).filter(|s| (s - offset).rem_euclid(slide) == 0);
        let expected: Vec<i64> = all().filter(|s| *s <= time && time < s + size).collect();
        prop_assert_eq!(starts(window, time), expected.clone());
        prop_assert!(expected.len() as i64 <= window.overlap());
        let missed = expected.iter().filter(|s| *s + size <= closed).count();
        prop_assert_eq!(window.missed(time, Some(closed), 0) as usize, missed);
        let pane = window.pane_of(time);
        prop_assert!(pane <= time && time < window.pane_end(pane));
        for (index, start) in (0..).zip(window.starts(time)) {
            prop_assert!(start <= pane && window.pane_end(pane) <= window.end_of(start));
            prop_assert_eq!(window.index_of(start, time), index);
        }
        let inside: Vec<i64> = all().filter(|s| *s >= from && s + size <= time).collect();
        let (first, last) = window.inside(from, time);
        prop_assert_eq!(window.count_between(first, last) as usize, inside.len());
        prop_assert!(inside.is_empty() || (first, last) == (inside[0], inside[inside.len() - 1]));
    }

    #[test]
    fn days_of_every_zone_lie_side_by_side(
        zone in prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
        time in -5_000_000_000_000_000_i64..5_000_000_000_000_000,
        count in 1..8_u32,
    ) {
        let days = Days { count, zone };
        let start = days.start_of(time);
        let end = days.end_of(start);
        prop_assert!(start <= time && time < end, "{zone}: {time} is not in [{start}, {end})");
        prop_assert_eq!(days.start_of(start), start);
        prop_assert_eq!(days.start_of(end - 1), start);
        prop_assert_eq!(days.start_of(end), end);
    }
}
