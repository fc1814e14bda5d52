//! A request's body, split into records.

use std::borrow::Cow;

use sonic_rs::to_array_iter;

use crate::decode::{MAX_DEPTH, describe, is_nested_deeper, is_too_deep, parse};

/// A record as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its line in the body, or its place in the array, from 1.
    pub line: u64,
    /// Its text, without the white space around it.
    pub text: Cow<'a, str>,
}

/// Splits a body into records: the elements of an array if it begins with `[`, else one record of each line that
/// isn't blank; but a body that is a single value over many lines is one record.
///
/// Records need not be JSON, as each is judged by itself. The whole body is refused, with the reason, if it is not
/// UTF-8, if anything is nested too deep, or if it is an array that is not JSON to its end.
pub fn split(body: &[u8]) -> Result<Vec<Record<'_>>, String> {
    if u32::try_from(body.len()).is_err() {
        return Err(format!("{} bytes long, but at most {} are taken", body.len(), u32::MAX));
    }
    let text = simdutf8::compat::from_utf8(body).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if trim(text).starts_with('[') {
        return elements(text);
    }
    let lines = lines(text).collect::<Vec<_>>();
    let too_deep = |line: u64| format!("line {line}: nested deeper than {MAX_DEPTH} levels");
    if let [first, _, ..] = lines.as_slice()
        && parse(&first.text).is_err()
    {
        match parse(text) {
            Ok(()) => return Ok(vec![Record { line: first.line, text: trim(text).into() }]),
            Err(error) if is_too_deep(&error) => return Err(too_deep(first.line)),
            // Not one value, so a broken line and others.
            Err(_) => {}
        }
    }
    match lines.iter().find(|record| is_nested_deeper(record.text.as_bytes(), MAX_DEPTH)) {
        Some(record) => Err(too_deep(record.line)),
        None => Ok(lines),
    }
}

fn lines(text: &str) -> impl Iterator<Item = Record<'_>> {
    let lines = (1..).zip(text.split('\n')).map(|(line, text)| Record { line, text: trim(text).into() });
    lines.filter(|record| !record.text.is_empty())
}

/// The elements of a JSON array.
fn elements(array: &str) -> Result<Vec<Record<'_>>, String> {
    // Looking for the end of an element doesn't see everything that is wrong inside it.
    parse(array).map_err(|error| describe(&error))?;
    let values = (1..).zip(to_array_iter(array));
    let records = values.map(|(line, value)| Ok(Record { line, text: value?.as_raw_cow() }));
    records.collect::<Result<_, _>>().map_err(|error: sonic_rs::Error| describe(&error))
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\r', '\n'])
}
