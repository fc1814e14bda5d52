//! Constants: numbers, texts, times, JSON paths, `LIKE` patterns and regular expressions, checked when they are read.

use sqlparser::ast::{self, DateTimeField, Value};

use super::error::Fault;
use crate::expr::{Literal, Part, TimeUnit};
use crate::schema::DataType;
use crate::time::{Micros, read_timestamp};
use crate::unit::parse_duration;

/// Reads a constant. `NULL` is a text until it stands beside something of another type.
pub(super) fn literal(value: &ast::ValueWithSpan) -> Result<Literal, Fault> {
    match &value.value {
        Value::Number(digits, false) => number(digits).map_err(|message| Fault::of(value, message)),
        Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) | Value::UnicodeStringLiteral(text) => {
            Ok(Literal::Text(text.clone()))
        }
        Value::DollarQuotedString(text) => Ok(Literal::Text(text.value.clone())),
        Value::Boolean(value) => Ok(Literal::Boolean(*value)),
        Value::Null => Ok(Literal::Null(DataType::Text)),
        other => Err(Fault::of(
            value,
            format!("`{other}`: constants are numbers, 'texts', TRUE, FALSE, NULL and TIMESTAMP '…'"),
        )),
    }
}

/// The text of a constant that is one.
pub(super) fn text(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Value(value) => match literal(value) {
            Ok(Literal::Text(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Reads a number: an integer if it is written as one.
pub(super) fn number(digits: &str) -> Result<Literal, String> {
    let digits = digits.replace('_', "");
    if digits.chars().all(|c| c.is_ascii_digit() || c == '-') {
        let message = format!("{digits} is beyond BIGINT; write {digits}.0 for a DOUBLE");
        return digits.parse().map(Literal::BigInt).map_err(|_| message);
    }
    let value = digits.parse().ok().filter(|value: &f64| value.is_finite());
    value.map(Literal::Double).ok_or_else(|| format!("`{digits}` isn't a number, or is beyond DOUBLE"))
}

/// Reads the text of a timestamp.
pub(super) fn timestamp(text: &str) -> Result<Literal, String> {
    read_timestamp(text)
        .map(Literal::Timestamp)
        .ok_or_else(|| format!("`{text}` isn't a timestamp; write '2024-01-15T10:30:00Z' or '2024-01-15 10:30:00'"))
}

/// A number with a fraction or an exponent, as far as whole numbers are compared with it.
pub(super) struct Decimal {
    /// The greatest whole number that isn't above it, kept within the range of 65 bits.
    pub floor: i128,
    /// Whether it is that number.
    pub is_whole: bool,
}

/// Reads a number that is written with a fraction or an exponent, to the last digit.
pub(super) fn decimal(expr: &ast::Expr) -> Option<Decimal> {
    let (digits, is_negative) = match expr {
        ast::Expr::Nested(inner) => return decimal(inner),
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match &**expr {
            ast::Expr::Value(ast::ValueWithSpan { value: Value::Number(digits, false), .. }) => (digits, true),
            _ => return None,
        },
        ast::Expr::Value(ast::ValueWithSpan { value: Value::Number(digits, false), .. }) => (digits, false),
        _ => return None,
    };
    let digits = digits.replace('_', "").to_ascii_lowercase();
    let (mantissa, exponent) = match digits.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (digits.as_str(), 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if fraction.is_empty() && !digits.contains(['.', 'e']) {
        return None;
    }
    let all = format!("{whole}{fraction}");
    // How many of the digits stand before the point.
    let before = i64::try_from(whole.len()).ok()?.saturating_add(exponent);
    let significant = all.trim_start_matches('0');
    let leading = i64::try_from(all.len() - significant.len()).ok()?;
    const MOST: i128 = 1 << 64;
    let before = before.saturating_sub(leading);
    let (whole, rest) = match usize::try_from(before) {
        _ if significant.is_empty() => (0, ""),
        Ok(before) if before > 20 => (MOST, ""),
        Ok(before) => {
            let (whole, rest) = significant.split_at(before.min(significant.len()));
            let zeros = "0".repeat(before - whole.len());
            (format!("0{whole}{zeros}").parse::<i128>().ok()?.min(MOST), rest)
        }
        Err(_) => (0, significant),
    };
    let is_whole = rest.bytes().all(|digit| digit == b'0');
    let floor = match (is_negative, is_whole) {
        (false, _) => whole,
        (true, true) => -whole,
        (true, false) => -whole - 1,
    };
    Some(Decimal { floor, is_whole })
}

/// What stands in the place of a match: `$1` or `\1` is a group, of as many digits as name one after `$` and of one after `\`;
/// `${name}` is one too, `$$` and `\\` are a `$` and a `\`.
pub(super) fn replacement(template: &str, pattern: &str) -> Result<Vec<Part>, String> {
    let regex = regex::Regex::new(pattern).map_err(|error| error.to_string())?;
    let groups = regex.captures_len();
    let known = |group: usize| {
        let message = || format!("`{template}`: the regular expression `{pattern}` has no group {group}");
        (group < groups).then_some(group).ok_or_else(message)
    };
    let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), template);
    while let Some(at) = rest.find(['$', '\\']) {
        let (before, after) = rest.split_at(at);
        text.push_str(before);
        let (sign, after) = after.split_at(1);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (group, next) = if after.starts_with(sign) {
            text.push_str(sign);
            rest = &after[1..];
            continue;
        } else if sign == "$" && after.starts_with('{') {
            let (name, next) = after[1..].split_once('}').ok_or_else(|| format!("`{template}`: `${{` has no end"))?;
            let named = regex.capture_names().position(|other| other == Some(name));
            let group = named.or_else(|| name.parse().ok());
            (group.ok_or_else(|| format!("`{template}`: the regular expression has no group `{name}`"))?, next)
        } else if digits > 0 {
            // `$12` is the group 12 if there is one, else group 1 and a 2.
            let most = if sign == "$" { digits } else { 1 };
            let longest = (1..=most).rev().find(|&n| after[..n].parse::<usize>().is_ok_and(|group| group < groups));
            let (number, next) = after.split_at(longest.unwrap_or(1));
            (number.parse().unwrap_or(usize::MAX), next)
        } else {
            text.push_str(sign);
            rest = after;
            continue;
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(Part::Group(known(group)?));
        rest = next;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// Reads the interval of a window, which is of more than no time.
pub(super) fn length(expr: &ast::Expr) -> Result<Micros, Fault> {
    let ast::Expr::Interval(given) = expr else {
        return Err(Fault::of(expr, format!("`{expr}` isn't an interval; write INTERVAL '1 minute'")));
    };
    match interval(expr, given)? {
        0 => Err(Fault::of(expr, format!("`{expr}`: a window's interval must be longer than no time"))),
        length => Ok(length),
    }
}

/// Reads `INTERVAL '1 minute'` or `INTERVAL '1' MINUTE`.
pub(super) fn interval(expr: &ast::Expr, interval: &ast::Interval) -> Result<Micros, Fault> {
    let malformed = || Fault::of(expr, "unsupported interval; write INTERVAL '1 minute' or INTERVAL '1' MINUTE");
    let number = match &*interval.value {
        ast::Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, false) => text,
            _ => return Err(malformed()),
        },
        _ => return Err(malformed()),
    };
    if interval.leading_precision.is_some()
        || interval.last_field.is_some()
        || interval.fractional_seconds_precision.is_some()
    {
        return Err(malformed());
    }
    let text = match &interval.leading_field {
        Some(field) => format!("{number} {field}"),
        None => number.clone(),
    };
    parse_duration(&text).map_err(|message| Fault::of(expr, message))
}

/// The types that columns and casts have.
pub(super) fn data_type(given: &ast::DataType) -> Result<DataType, String> {
    use ast::DataType as T;
    use ast::TimezoneInfo as Zone;
    Ok(match given {
        T::Text | T::Varchar(None) | T::CharacterVarying(None) | T::String(None) => DataType::Text,
        T::BigInt(None) | T::Integer(None) | T::Int(None) | T::SmallInt(None) => DataType::BigInt,
        T::Int2(None) | T::Int4(None) | T::Int8(None) => DataType::BigInt,
        T::Double(ast::ExactNumberInfo::None) | T::Float(ast::ExactNumberInfo::None) => DataType::Double,
        T::DoublePrecision | T::Real | T::Float4 | T::Float8 => DataType::Double,
        T::Boolean | T::Bool => DataType::Boolean,
        T::Timestamp(None, Zone::None | Zone::Tz | Zone::WithTimeZone) => DataType::Timestamp,
        T::JSON | T::JSONB => DataType::Json,
        T::Varchar(Some(_)) | T::CharacterVarying(Some(_)) => {
            return Err(format!("`{given}`: a text's length can't be limited; write TEXT"));
        }
        _ => {
            return Err(format!(
                "unsupported type `{given}`; the types are TEXT, BIGINT, DOUBLE, BOOLEAN, TIMESTAMP and JSON"
            ));
        }
    })
}

/// The units of `date_trunc` and `extract`.
pub(super) fn time_unit(name: &str) -> Result<TimeUnit, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "second" => TimeUnit::Second,
        "minute" => TimeUnit::Minute,
        "hour" => TimeUnit::Hour,
        "day" => TimeUnit::Day,
        "month" => TimeUnit::Month,
        "year" => TimeUnit::Year,
        _ => return Err(format!("unsupported unit `{name}`; the units are second, minute, hour, day, month and year")),
    })
}

/// The unit of `extract`.
pub(super) fn extract_unit(field: &DateTimeField) -> Result<TimeUnit, String> {
    time_unit(&field.to_string())
}

/// Checks a regular expression, which must have the group asked for.
pub(super) fn regex(pattern: &str, group: usize) -> Result<(), String> {
    let regex = regex::Regex::new(pattern).map_err(|error| match error {
        regex::Error::Syntax(text) => {
            let reason = text.lines().last().unwrap_or_default();
            format!("bad regular expression `{pattern}`: {}", reason.trim_start_matches("error: "))
        }
        other => format!("bad regular expression `{pattern}`: {other}"),
    })?;
    let groups = regex.captures_len() - 1;
    if group > groups {
        return Err(format!("regular expression `{pattern}` has {groups} groups; there is no group {group}"));
    }
    Ok(())
}

/// Checks a `LIKE` pattern: what `\` escapes has to follow it.
pub(super) fn like_pattern(pattern: &str) -> Result<(), String> {
    let trailing = pattern.chars().rev().take_while(|c| *c == '\\').count();
    if trailing % 2 == 1 {
        Err(format!("LIKE pattern `{pattern}` ends in an escape; write `\\\\` for a backslash"))
    } else {
        Ok(())
    }
}

/// The canonical form of a JSON path, `$.a.b[0]`; keys that aren't plain words are written `['x-y']`. A text without a
/// leading `$` is one key.
pub(super) fn json_path(text: &str) -> Result<String, String> {
    let malformed = || format!("bad JSON path `{text}`; write a key, or a path such as `$.a.b[0]` or `$['a-b']`");
    let Some(mut rest) = text.strip_prefix('$') else {
        return json_key(text).map(|key| format!("${key}")).ok_or_else(malformed);
    };
    let mut path = String::from("$");
    while !rest.is_empty() {
        let (key, after) = if let Some(after) = rest.strip_prefix("['") {
            after.split_once("']").ok_or_else(malformed)?
        } else if let Some(after) = rest.strip_prefix(".\"") {
            after.split_once('"').ok_or_else(malformed)?
        } else if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']').ok_or_else(malformed)?;
            if !index.bytes().all(|b| b.is_ascii_digit()) || index.parse::<u32>().is_err() {
                return Err(malformed());
            }
            path.push_str(&format!("[{index}]"));
            rest = after;
            continue;
        } else {
            let after = rest.strip_prefix('.').ok_or_else(malformed)?;
            let (key, after) = after.split_at(after.find(['.', '[']).unwrap_or(after.len()));
            if !is_word(key) {
                return Err(malformed());
            }
            (key, after)
        };
        path.push_str(&json_key(key).ok_or_else(malformed)?);
        rest = after;
    }
    Ok(path)
}

fn json_key(key: &str) -> Option<String> {
    if is_word(key) {
        return Some(format!(".{key}"));
    }
    let is_plain = !key.is_empty() && !key.chars().any(|c| c.is_control() || "'\"\\".contains(c));
    is_plain.then(|| format!("['{key}']"))
}

fn is_word(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
