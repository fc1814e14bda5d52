//! Times: how they are counted, read and written.

use std::ops::Range;

/// Microseconds since the Unix epoch, UTC: the unit of every timestamp in the platform.
pub type Micros = i64;

/// The times that four digits of a year can write: from 0001-01-01 to the end of 9999. What [`format_timestamp`] writes of one
/// of them, [`parse_timestamp`] reads as the same.
pub const TIMES: Range<Micros> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// The times at which an event may happen: the years 0200 to 9799. A window, a session's gap, a watermark's delay and an
/// allowed lateness are at most a hundred years long ([`crate::unit`]), so what is computed from an event time stays within
/// [`TIMES`] and can be written, asked for and read again.
pub const EVENT_TIMES: Range<Micros> = -55_855_785_600_000_000..247_090_953_600_000_000;

/// Reads RFC 3339, `2024-01-15T10:30:45.123Z`; a space may stand for the `T`, and without an offset it is UTC.
/// Digits beyond microseconds are cut off. `None` if it is something else, or outside [`TIMES`].
pub fn parse_timestamp(text: &str) -> Option<Micros> {
    let text = text.trim();
    let time = chrono::DateTime::parse_from_rfc3339(text).map(|time| time.naive_utc()).or_else(|_| {
        chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
            .or_else(|_| chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f"))
    });
    time.ok().map(|time| time.and_utc().timestamp_micros()).filter(|time| TIMES.contains(time))
}

/// Writes RFC 3339 in UTC, with as many digits of a second as are needed: `2024-01-15T10:30:45.123Z`.
pub fn format_timestamp(time: Micros) -> String {
    match chrono::DateTime::from_timestamp_micros(time) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        None => format!("{time} µs since 1970"),
    }
}

/// Reads a time as SQL writes it: a date, alone or with hours and minutes, seconds and an offset as far as they are given. Without
/// an offset it is UTC.
pub fn read_timestamp(text: &str) -> Option<Micros> {
    const FORMS: [&str; 7] = [
        "%Y-%m-%d",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%M",
        "%Y-%m-%d %H:%M%#z",
        "%Y-%m-%dT%H:%M%#z",
        "%Y-%m-%d %H:%M:%S%.f%#z",
        "%Y-%m-%dT%H:%M:%S%.f%#z",
    ];
    let text = text.trim();
    parse_timestamp(text).or_else(|| {
        let read = |form: &&str| match *form {
            "%Y-%m-%d" => Some(chrono::NaiveDate::parse_from_str(text, form).ok()?.and_time(chrono::NaiveTime::MIN)),
            form if form.ends_with('z') => Some(chrono::DateTime::parse_from_str(text, form).ok()?.naive_utc()),
            form => chrono::NaiveDateTime::parse_from_str(text, form).ok(),
        };
        let time = FORMS.iter().find_map(read)?.and_utc().timestamp_micros();
        TIMES.contains(&time).then_some(time)
    })
}

#[cfg(test)]
mod tests;
