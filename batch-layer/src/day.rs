//! Days of event time, the unit of partitions and of recomputation: counted from 1970-01-01, in UTC.

use anabranch_plan::time::Micros;
use chrono::NaiveDate;

/// A day in microseconds.
pub const DAY: Micros = 86_400_000_000;

/// The day that an instant is in.
pub fn day_of(time: Micros) -> i64 {
    time.div_euclid(DAY)
}

/// The day's name, as in `2024-01-15`.
pub fn day_name(day: i64) -> String {
    match i32::try_from(day).ok().and_then(NaiveDate::from_epoch_days) {
        Some(date) => date.format("%Y-%m-%d").to_string(),
        None => day.to_string(),
    }
}

/// The day that a name stands for.
pub fn parse_day(name: &str) -> Option<i64> {
    NaiveDate::parse_from_str(name, "%Y-%m-%d").ok().map(|date| i64::from(date.to_epoch_days()))
}

/// The name of the partition column beside these columns: `day`, or `_day` if one of them has that name, or `__day`, as no
/// column of a project is called, if one has that name too.
pub fn day_column<'a>(columns: impl IntoIterator<Item = &'a str> + Clone) -> &'static str {
    let is_free = |day: &&str| !columns.clone().into_iter().any(|name| name.eq_ignore_ascii_case(day));
    ["day", "_day"].into_iter().find(is_free).unwrap_or("__day")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_begin_at_midnight_before_1970_too() {
        assert_eq!([day_of(0), day_of(-1), day_of(DAY - 1), day_of(DAY)], [0, -1, 0, 1]);
        assert_eq!([day_name(0), day_name(-1), day_name(19_737)], ["1970-01-01", "1969-12-31", "2024-01-15"]);
        for day in [-700_000, -1, 0, 1, 20_000, 2_900_000] {
            assert_eq!(parse_day(&day_name(day)), Some(day));
        }
        assert_eq!(parse_day("__HIVE_DEFAULT_PARTITION__"), None);
    }
}
