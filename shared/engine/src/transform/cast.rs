//! Casts from and to text, and the rounding of numbers: what PostgreSQL and DuckDB agree on. Where they don't:
//!
//! - a text with a fraction or an exponent is no `BIGINT` (as in PostgreSQL);
//! - a `BOOLEAN` is any text that only one of `true`, `false`, `yes`, `no`, `on`, `off`, `1`, `0` begins with (PostgreSQL's);
//! - a `DOUBLE` is written as DuckDB and Python do: the fewest digits that give it back, `1.0`, `1e+16`, `1e-05`, `inf`, `nan`.

use anabranch_plan::time::read_timestamp;
use polars::prelude::*;

/// White space around a number or a word is no part of it.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}')
}

/// A whole number: digits, perhaps with a sign before them, a prefix `0x`, `0o` or `0b`, and `_` between digits.
pub(super) fn to_bigint(text: &str) -> Option<i64> {
    let text = trimmed(text);
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        _ => (10, digits),
    };
    let digits = without_separators(digits)?;
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(&digits, radix).ok()?;
    i64::try_from(if is_negative { -number } else { number }).ok()
}

/// Digits without the `_` between them; none if one is elsewhere.
fn without_separators(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_hexdigit);
    let is_between = |at: usize| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1));
    let misplaced = text.match_indices('_').any(|(at, _)| !is_between(at));
    (!misplaced).then(|| text.replace('_', ""))
}

/// A number, `inf`, `infinity` or `nan`; none if it is beyond `DOUBLE`.
pub(super) fn to_double(text: &str) -> Option<f64> {
    let text = trimmed(text);
    let number: f64 = text.parse().ok()?;
    let is_beyond = number.is_infinite() && text.contains(|c: char| c.is_ascii_digit());
    (!is_beyond).then_some(number)
}

/// A truth value by its name or the beginning of it, in any case.
pub(super) fn to_boolean(text: &str) -> Option<bool> {
    const NAMES: [(&str, bool); 8] = [
        ("true", true),
        ("false", false),
        ("yes", true),
        ("no", false),
        ("on", true),
        ("off", false),
        ("1", true),
        ("0", false),
    ];
    let text = trimmed(text).to_ascii_lowercase();
    let mut named = NAMES.into_iter().filter(|(name, _)| !text.is_empty() && name.starts_with(&text));
    match (named.next(), named.next()) {
        (Some((_, value)), None) => Some(value),
        _ => None,
    }
}

/// The text of a number.
pub(super) fn from_double(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rust's `{:e}` gives the fewest digits that give the number back.
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..=15) => match (exponent, format!("{number}")) {
            (_, plain) if plain.contains('.') => plain,
            (_, whole) => whole + ".0",
        },
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        Err(_) => scientific,
    }
}

/// The whole number that is nearest, the even one of two; none beyond 64 bits.
pub(super) fn double_to_bigint(number: f64) -> Option<i64> {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let whole = number.round_ties_even();
    (-BEYOND..BEYOND).contains(&whole).then_some(whole as i64)
}

/// Reads each text.
pub(super) fn texts<T: PolarsNumericType>(
    texts: &Column,
    read: impl Fn(&str) -> Option<T::Native>,
) -> PolarsResult<ChunkedArray<T>> {
    let texts = texts.str()?;
    let read: ChunkedArray<T> = texts.iter().map(|text| text.and_then(&read)).collect();
    Ok(read.with_name(texts.name().clone()))
}

/// Microseconds of each text that is a time.
pub(super) fn to_timestamps(column: &Column) -> PolarsResult<Int64Chunked> {
    texts::<Int64Type>(column, read_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_postgresql_and_duckdb_agree() {
        let whole = [
            (" 42", Some(42)),
            ("42 \n", Some(42)),
            ("+42", Some(42)),
            ("-0", Some(0)),
            ("1_000", Some(1_000)),
            ("0x1F", Some(31)),
            ("-0b101", Some(-5)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("42.0", None),
            ("1e3", None),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("--1", None),
            ("+-1", None),
            ("- 1", None),
            ("0x", None),
            ("", None),
        ];
        for (text, number) in whole {
            assert_eq!(to_bigint(text), number, "{text:?}");
        }
        for (text, number) in [
            (" 5.5 ", Some(5.5)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("-Infinity", Some(f64::NEG_INFINITY)),
            ("1e400", None),
            ("0x1", None),
            ("1e", None),
            ("", None),
        ] {
            assert_eq!(to_double(text), number, "{text:?}");
        }
        assert!(to_double("NaN").is_some_and(f64::is_nan));
        for (text, value) in [
            ("y", Some(true)),
            (" on ", Some(true)),
            ("OFF", Some(false)),
            ("n", Some(false)),
            ("tru", Some(true)),
            ("of", Some(false)),
            ("o", None),
            ("yess", None),
            ("2", None),
            ("", None),
        ] {
            assert_eq!(to_boolean(text), value, "{text:?}");
        }
    }

    #[test]
    fn doubles_are_written_with_the_fewest_digits_that_give_them_back() {
        for (number, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (-f64::NAN, "nan"),
        ] {
            assert_eq!(from_double(number), text);
        }
    }

    #[test]
    fn doubles_become_the_nearest_whole_number_or_none() {
        for (number, whole) in [
            (2.5, Some(2)),
            (3.5, Some(4)),
            (-0.5, Some(0)),
            (9_223_372_036_854_774_784.0, Some(9_223_372_036_854_774_784)),
            (9_223_372_036_854_775_807.0, None),
            (-9_223_372_036_854_775_808.0, Some(i64::MIN)),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(double_to_bigint(number), whole, "{number}");
        }
    }
}
