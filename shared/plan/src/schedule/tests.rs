use chrono_tz::Tz;

use super::{CatchUp, Schedule};
use crate::time::{Micros, format_timestamp, parse_timestamp};

fn schedule(cron: &str, zone: &str) -> Schedule {
    Schedule::parse(cron, zone.parse::<Tz>().expect("a zone"), CatchUp::Last).expect("a schedule")
}

fn time(text: &str) -> Micros {
    parse_timestamp(text).expect("a time")
}

#[test]
fn an_expression_has_five_fields_and_comes_true_at_some_time() {
    for good in ["*/15 * * * *", " 0  3 * * 1-5 ", "30 2 1 jan *", "0 0 L * *", "0 12 * * fri#1", "0 0 29 2 *"] {
        assert!(Schedule::utc(good).is_ok(), "{good}");
    }
    assert_eq!(schedule(" 0  3 * * 1-5 ", "Europe/Paris").to_string(), "0 3 * * 1-5 Europe/Paris");
    for (bad, why) in [
        ("", "`` has 0 fields; a schedule has five: minute, hour"),
        ("* * * * * *", "`* * * * * *` has 6 fields; a schedule has five"),
        ("@hourly", "`@hourly` has 1 fields"),
        ("61 * * * *", "`61 * * * *` isn't a cron expression: "),
        ("a b c d e", "`a b c d e` isn't a cron expression: "),
        ("0 0 30 2 *", "`0 0 30 2 *` never comes true"),
    ] {
        let found = Schedule::utc(bad).expect_err(bad);
        assert!(found.starts_with(why), "{found}");
    }
}

/// The times of a schedule within a day, or from an hour to another.
fn times(cron: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
    let schedule = schedule(cron, zone);
    let (mut at, until) = (time(from) - 1, time(until));
    let mut times = Vec::new();
    while let Some(next) = schedule.next_after(at).filter(|next| *next < until) {
        assert!(next > at, "times rise");
        times.push(format_timestamp(next)[11..16].to_owned());
        at = next;
    }
    times
}

#[test]
fn a_schedule_goes_by_the_clock_of_its_zone() {
    let day = |cron, zone| times(cron, zone, "2024-06-01T00:00:00Z", "2024-06-02T00:00:00Z");
    assert_eq!(day("30 6 * * *", "UTC"), ["06:30"]);
    assert_eq!(day("30 6 * * *", "Europe/Berlin"), ["04:30"]);
    assert_eq!(day("30 6 * * *", "Asia/Kathmandu"), ["00:45"]);
    assert_eq!(day("0 0 2 * *", "Pacific/Kiritimati"), ["10:00"], "where the second has begun");
    assert_eq!(day("0 */6 * * *", "America/New_York"), ["04:00", "10:00", "16:00", "22:00"]);
}

#[test]
fn fixed_times_in_an_hour_that_is_left_out_are_due_right_after_it() {
    // Berlin's clock goes from 02:00 to 03:00 at 01:00 UTC.
    let day = |cron| times(cron, "Europe/Berlin", "2024-03-31T00:00:00Z", "2024-03-31T12:00:00Z");
    assert_eq!(day("30 2 * * *"), ["01:00"]);
    assert_eq!(day("0 2,14 * * *"), ["01:00"], "one of several hours");
    assert_eq!(day("0,30 2 * * *"), ["01:00"], "two times in one hour are one instant");
    assert_eq!(day("0 2,3 * * *"), ["01:00"], "what is due then anyway");
    assert_eq!(day("10-20/5 2 * * *"), ["01:00"]);
    assert_eq!(day("15 1 * * *"), ["00:15"]);
    assert_eq!(day("30 3 * * *"), ["01:30"]);
    // By the hours that there are.
    assert_eq!(day("*/30 1-3 * * *"), ["00:00", "00:30", "01:00", "01:30"]);
    // Where midnight itself is left out.
    let cairo = times("0 0 * * *", "Africa/Cairo", "2024-04-25T12:00:00Z", "2024-04-26T12:00:00Z");
    assert_eq!(cairo, ["22:00"]);
    // Where the clock is put forward by half an hour, and where a day was left out.
    let lord_howe = times("15 2 * * *", "Australia/Lord_Howe", "2024-10-05T12:00:00Z", "2024-10-06T12:00:00Z");
    assert_eq!(lord_howe, ["15:30"]);
    let samoa = times("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", "2011-12-31T12:00:00Z");
    assert_eq!(samoa, ["22:00", "10:00", "22:00"], "the 29th, the end of a 30th that wasn't, the 31st");
}

#[test]
fn fixed_times_in_an_hour_that_comes_twice_are_due_once() {
    // Berlin's clock goes from 03:00 back to 02:00 at 01:00 UTC.
    let day = |cron| times(cron, "Europe/Berlin", "2024-10-27T00:00:00Z", "2024-10-27T12:00:00Z");
    assert_eq!(day("30 2 * * *"), ["00:30"]);
    assert_eq!(day("0,30 2 * * *"), ["00:00", "00:30"]);
    assert_eq!(day("0 2,3 * * *"), ["00:00", "02:00"]);
    assert_eq!(day("*/30 2 * * *"), ["00:00", "00:30", "01:00", "01:30"], "by the hours that there are");
    let hours = times("0 * * * *", "America/New_York", "2024-11-03T04:00:00Z", "2024-11-03T09:00:00Z");
    assert_eq!(hours, ["04:00", "05:00", "06:00", "07:00", "08:00"]);
    // Asked from within the second of the hours.
    let second = times("30 2 * * *", "Europe/Berlin", "2024-10-27T01:10:00Z", "2024-10-28T12:00:00Z");
    assert_eq!(second, ["01:30"], "of the next day");
}

#[test]
fn the_last_time_that_is_due_is_found_however_long_ago() {
    for (cron, zone) in
        [("* * * * *", "UTC"), ("0 3 * * *", "Europe/Berlin"), ("0 0 1 * *", "Asia/Tokyo"), ("0 0 29 2 *", "UTC")]
    {
        let schedule = schedule(cron, zone);
        let until = time("2024-10-27T01:30:00Z");
        let last = schedule.last_in(time("2020-01-01T00:00:00Z"), until).expect("a time");
        assert!(last <= until, "{cron}");
        assert!(schedule.next_after(last).is_some_and(|next| next > until), "{cron}");
        assert_eq!(schedule.last_in(last, until), None, "{cron}: what is dealt with isn't due");
        assert_eq!(schedule.last_in(last - 1, last), Some(last), "{cron}: it is due at that very instant");
    }
}

#[test]
fn no_time_is_found_where_there_is_none() {
    let never = schedule("* * * * *", "UTC");
    assert_eq!(never.next_after(Micros::MAX), None);
    assert_eq!(never.next_after(Micros::MIN), None);
    assert_eq!(never.last_in(Micros::MAX, Micros::MAX), None);
}

/// What a zone's clock shows at a minute, in minutes since 1970.
fn shown(zone: Tz, minute: i64) -> i64 {
    let time = chrono::DateTime::from_timestamp(minute * 60, 0).expect("a time").with_timezone(&zone);
    time.naive_local().and_utc().timestamp().div_euclid(60)
}

#[test]
fn times_are_what_a_look_at_every_minute_finds_where_clocks_are_changed() {
    const ZONES: [&str; 12] = [
        "UTC",
        "Europe/Berlin",
        "Europe/London",
        "America/New_York",
        "America/Los_Angeles",
        "America/Havana",
        "America/St_Johns",
        "Africa/Cairo",
        "Asia/Beirut",
        "Asia/Kolkata",
        "Australia/Lord_Howe",
        "Pacific/Chatham",
    ];
    let all: Vec<i64> = (0..24).collect();
    let every = |step: usize| (0..60).step_by(step).collect::<Vec<i64>>();
    // Each with its minutes and hours, and whether it goes by the hours that there are.
    let schedules: Vec<(&str, Vec<i64>, Vec<i64>, bool)> = vec![
        ("*/15 * * * *", every(15), all.clone(), true),
        ("0 * * * *", vec![0], all.clone(), true),
        ("20 */4 * * *", vec![20], vec![0, 4, 8, 12, 16, 20], true),
        ("*/20 0-3 * * *", every(20), vec![0, 1, 2, 3], true),
        ("0 0 * * *", vec![0], vec![0], false),
        ("30 0 * * *", vec![30], vec![0], false),
        ("30 2 * * *", vec![30], vec![2], false),
        ("0 7,9 * * *", vec![0], vec![7, 9], false),
        ("0 7-8 * * *", vec![0], vec![7, 8], false),
        ("0 2,14 * * *", vec![0], vec![2, 14], false),
        ("15,45 1-3 * * *", vec![15, 45], vec![1, 2, 3], false),
        ("59 23 * * *", vec![59], vec![23], false),
    ];
    let mut changes = 0;
    for name in ZONES {
        let zone: Tz = name.parse().expect("a zone");
        let year = time("2024-01-01T00:00:00Z") / 60_000_000;
        let days = (0..366).map(|day| year + day * 1_440);
        let ahead = |minute: i64| shown(zone, minute) - minute;
        let changing: Vec<i64> = days.filter(|&day| ahead(day) != ahead(day + 1_440)).collect();
        changes += changing.len();
        for start in changing.into_iter().chain([year]) {
            let (from, until) = (start - 1_440, start + 3 * 1_440);
            let clock: Vec<i64> = (from..until).map(|minute| shown(zone, minute)).collect();
            for (cron, minutes, hours, by_hours) in &schedules {
                let matches = |shown: i64| minutes.contains(&(shown % 60)) && hours.contains(&(shown / 60 % 24));
                let mut expected: Vec<i64> = if *by_hours {
                    (from..until).filter(|&minute| matches(clock[(minute - from) as usize])).collect()
                } else {
                    // The first minute at which the clock shows the time, or has passed it.
                    let due = (clock[0] + 1..clock[clock.len() - 1]).filter(|&shown| matches(shown));
                    due.filter_map(|due| Some(from + clock.iter().position(|&shown| shown >= due)? as i64)).collect()
                };
                expected.dedup();
                expected.retain(|minute| (start..start + 2 * 1_440).contains(minute));
                let schedule = schedule(cron, name);
                let (mut at, mut found) = (start * 60_000_000 - 1, Vec::new());
                while let Some(next) = schedule.next_after(at).filter(|next| *next < (start + 2 * 1_440) * 60_000_000) {
                    assert!(next > at, "{cron} {name}: times rise");
                    (at, found) = (next, [found, vec![next / 60_000_000]].concat());
                }
                assert_eq!(found, expected, "{cron} {name}, from {}", format_timestamp(start * 60_000_000));
                // Asked from any minute on, the next one is the same.
                for minute in (start..start + 1_440).step_by(7) {
                    let next = expected.iter().find(|&&due| due > minute).copied();
                    let found = schedule.next_after(minute * 60_000_000).map(|next| next / 60_000_000);
                    assert!(next.is_none_or(|next| found == Some(next)), "{cron} {name}, after minute {minute}");
                }
            }
        }
    }
    assert!(changes >= 18, "{changes} changes of clocks were looked at");
}

#[test]
fn a_day_of_the_month_and_a_day_of_the_week_are_either_of_them() {
    let schedule = schedule("30 0 1 * 1", "UTC");
    let mut at = time("2024-05-25T00:00:00Z");
    let days = ["2024-05-27", "2024-06-01", "2024-06-03"].map(|day| time(&format!("{day}T00:30:00Z")));
    for day in days {
        at = schedule.next_after(at).expect("a time");
        assert_eq!(format_timestamp(at), format_timestamp(day));
    }
}
