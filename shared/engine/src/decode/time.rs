//! Timestamps as events write them.

use anabranch_plan::time::{Micros, TIMES, parse_timestamp};

/// The same as [`parse_timestamp`], sooner where a text has the form that most have.
pub(super) fn from_text(text: &str) -> Option<Micros> {
    utc(text.as_bytes()).or_else(|| parse_timestamp(text))
}

/// The instant that many milliseconds after the epoch.
pub(super) fn from_millis(millis: i64) -> Option<Micros> {
    millis.checked_mul(1_000).filter(|micros| TIMES.contains(micros))
}

/// The fast path, for `YYYY-MM-DDTHH:MM:SS[.fraction]Z`. `None` says only that the text isn't plainly of this form.
fn utc(text: &[u8]) -> Option<Micros> {
    let (head, tail) = text.split_first_chunk::<19>()?;
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T' | b' ', h1, h2, b':', n1, n2, b':', s1, s2] = head else {
        return None;
    };
    let digits = [y1, y2, y3, y4, m1, m2, d1, d2, h1, h2, n1, n2, s1, s2];
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let two = |tens: u8, ones: u8| i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
    let (year, month, day) = (two(y1, y2) * 100 + two(y3, y4), two(m1, m2), two(d1, d2));
    let (hour, minute, second) = (two(h1, h2), two(n1, n2), two(s1, s2));
    if year < 1
        || !(1..=12).contains(&month)
        || day < 1
        || day > days_in(year, month)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let micros = match tail {
        b"Z" => 0,
        [b'.', fraction @ .., b'Z'] if !fraction.is_empty() && fraction.iter().all(u8::is_ascii_digit) => {
            (0..6).fold(0, |micros, i| micros * 10 + fraction.get(i).map_or(0, |digit| i64::from(digit - b'0')))
        }
        _ => return None,
    };
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, counted in years that begin in March so that February comes last.
/// (Howard Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`.)
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}
