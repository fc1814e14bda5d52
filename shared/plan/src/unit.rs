//! Quantities with units, as people write them in SQL options and in configuration: `5 seconds`, `100 ms`, `64 MiB`.

use crate::time::Micros;

/// The longest duration that can be named: a hundred years.
const LONGEST: Micros = 36_500 * 86_400 * 1_000_000;

/// Reads a duration such as `5 seconds`, `100 ms` or `1 hour 30 minutes`.
pub fn parse_duration(text: &str) -> Result<Micros, String> {
    let mut total: Micros = 0;
    for (number, unit) in quantities(text, "a duration", "`10 seconds`")? {
        let micros: Micros = match unit.to_ascii_lowercase().as_str() {
            "ms" | "millisecond" | "milliseconds" => 1_000,
            "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000,
            "h" | "hour" | "hours" => 3_600_000_000,
            "d" | "day" | "days" => 86_400_000_000,
            "w" | "week" | "weeks" => 604_800_000_000,
            "mon" | "month" | "months" | "y" | "year" | "years" => {
                return Err(format!("`{text}`: months and years have no fixed length; give days"));
            }
            _ => return Err(format!("`{text}`: unknown unit `{unit}`; the units are ms, s, min, h, d and w")),
        };
        total = i64::try_from(number)
            .ok()
            .and_then(|number| number.checked_mul(micros)?.checked_add(total))
            .filter(|total| *total <= LONGEST)
            .ok_or_else(|| format!("`{text}` is longer than a hundred years"))?;
    }
    Ok(total)
}

/// Reads a size such as `64 MiB` or `1000000 B`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let mut total: u64 = 0;
    for (number, unit) in quantities(text, "a size", "`64 MiB`")? {
        let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
            "b" | "byte" | "bytes" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => {
                return Err(format!(
                    "`{text}`: unknown unit `{unit}`; the units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB"
                ));
            }
        };
        total = number
            .checked_mul(bytes)
            .and_then(|bytes| bytes.checked_add(total))
            .ok_or_else(|| format!("`{text}` is too large"))?;
    }
    Ok(total)
}

/// Writes a duration in the largest unit that it is a whole number of.
pub fn format_duration(micros: Micros) -> String {
    let units = [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")];
    let whole = units.iter().find(|(unit, _)| micros != 0 && micros % unit == 0);
    whole.map_or_else(|| format!("{} ms", micros / 1_000), |(unit, name)| format!("{} {name}", micros / unit))
}

/// Writes a size in the largest binary unit that it is a whole number of.
pub fn format_bytes(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.iter().find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{} {name}", bytes / unit))
}

/// Splits `1 hour 30 minutes` into its numbers and units.
fn quantities<'a>(text: &'a str, what: &str, example: &str) -> Result<Vec<(u64, &'a str)>, String> {
    let malformed = || format!("`{text}` isn't {what}; write a whole number and a unit, such as {example}");
    let mut rest = text.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() {
            return Err(malformed());
        }
        found.push((number.parse().map_err(|_| malformed())?, unit));
        rest = after.trim_start();
    }
    if found.is_empty() { Err(malformed()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_units() {
        for (text, expected) in [
            ("0 seconds", Ok(0)),
            ("100 ms", Ok(100_000)),
            ("100ms", Ok(100_000)),
            ("  1 Hour 30 minutes ", Ok(5_400_000_000)),
            ("2 weeks", Ok(1_209_600_000_000)),
            ("", Err("`` isn't a duration; write a whole number and a unit, such as `10 seconds`")),
            ("5", Err("`5` isn't a duration; write a whole number and a unit, such as `10 seconds`")),
            ("-5 s", Err("`-5 s` isn't a duration; write a whole number and a unit, such as `10 seconds`")),
            ("1.5 s", Err("`1.5 s` isn't a duration; write a whole number and a unit, such as `10 seconds`")),
            ("5 fortnights", Err("`5 fortnights`: unknown unit `fortnights`; the units are ms, s, min, h, d and w")),
            ("1 month", Err("`1 month`: months and years have no fixed length; give days")),
            ("99999999 weeks", Err("`99999999 weeks` is longer than a hundred years")),
        ] {
            assert_eq!(parse_duration(text), expected.map_err(String::from), "{text}");
        }
    }

    #[test]
    fn sizes_tell_decimal_from_binary_units() {
        for (text, expected) in [
            ("64 MiB", Ok(64 << 20)),
            ("64MB", Ok(64_000_000)),
            ("1 B", Ok(1)),
            ("64", Err("`64` isn't a size; write a whole number and a unit, such as `64 MiB`")),
            ("99999999 TiB", Err("`99999999 TiB` is too large")),
        ] {
            assert_eq!(parse_bytes(text), expected.map_err(String::from), "{text}");
        }
        assert!(parse_bytes("1 M").is_err_and(|error| error.contains("unknown unit `M`")));
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for text in ["0 ms", "100 ms", "90 s", "90 min", "36 h", "7 d"] {
            assert_eq!(parse_duration(text).map(format_duration), Ok(text.to_owned()));
        }
        for text in ["0 B", "1 KiB", "1500 B", "64 MiB", "3 GiB", "2 TiB"] {
            assert_eq!(parse_bytes(text).map(format_bytes), Ok(text.to_owned()));
        }
    }
}
