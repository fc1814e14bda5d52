//! A request's body, split into records.

use std::borrow::Cow;

use anabranch_engine::decode::{MAX_DEPTH, describe, is_nested_deeper, is_too_deep, parse};
use sonic_rs::{ArrayJsonIter, to_array_iter};

/// How a body is to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// Whatever it looks like: lines, an array, or one value over many lines. It is refused whole if that can't be said.
    #[default]
    Any,
    /// Lines. Each is judged by itself, and the body is never refused.
    Lines,
}

/// A record as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its line in the body, or its place in the array, from 1.
    pub line: u64,
    /// Its text, without the white space around it.
    pub text: Cow<'a, [u8]>,
}

/// The records of a body, found one after the other: it may hold millions.
#[derive(Debug, Clone)]
pub enum Records<'a> {
    /// The whole body is one.
    One(Record<'a>),
    /// Each line that isn't blank is one.
    Lines(&'a [u8]),
    /// The elements of a JSON array, which is sound.
    Elements(&'a str),
}

/// Splits a body into records. As [`Form::Any`]: the elements of an array if it begins with `[`, else one record of each line
/// that isn't blank; but a body that is a single value over many lines is one record.
///
/// Records need not be JSON, as each is judged by itself. But as [`Form::Any`] the whole body is refused, with the reason, if it
/// is not UTF-8, if anything is nested too deep, or if it is an array that is not JSON to its end.
pub fn split(body: &[u8], form: Form) -> Result<Records<'_>, String> {
    if u32::try_from(body.len()).is_err() {
        return Err(format!("{} bytes long, but at most {} are taken", body.len(), u32::MAX));
    }
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    if form == Form::Lines {
        return Ok(Records::Lines(body));
    }
    let text = simdutf8::compat::from_utf8(body).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))?;
    if trim(body).starts_with(b"[") {
        return elements(text);
    }
    let too_deep = |line: u64| format!("line {line}: nested deeper than {MAX_DEPTH} levels");
    let mut first_two = lines(body);
    if let (Some(first), Some(_)) = (first_two.next(), first_two.next())
        && parse(&String::from_utf8_lossy(&first.text)).is_err()
    {
        match parse(text) {
            Ok(()) => return Ok(Records::One(Record { line: first.line, text: trim(body).into() })),
            Err(error) if is_too_deep(&error) => return Err(too_deep(first.line)),
            // Not one value, so a broken line and others.
            Err(_) => {}
        }
    }
    match lines(body).find(|record| is_nested_deeper(&record.text, MAX_DEPTH)) {
        Some(record) => Err(too_deep(record.line)),
        None => Ok(Records::Lines(body)),
    }
}

impl<'a> Records<'a> {
    /// All records, in order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Record<'a>> + 'a> {
        match self {
            Self::One(record) => Box::new(std::iter::once(record.clone())),
            Self::Lines(body) => Box::new(lines(body)),
            Self::Elements(array) => Box::new(each(array).map_while(Result::ok)),
        }
    }
}

fn lines(body: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let ends = memchr::memchr_iter(b'\n', body).chain([body.len()]);
    let mut start = 0;
    let lines = (1..).zip(ends).map(move |(line, end)| {
        let text = trim(&body[start..end]);
        start = end + 1;
        Record { line, text: text.into() }
    });
    lines.filter(|record| !record.text.is_empty())
}

/// The elements of a JSON array, if all are sound.
fn elements(array: &str) -> Result<Records<'_>, String> {
    // Looking for the end of an element doesn't see everything that is wrong inside it.
    parse(array).map_err(|error| describe(&error))?;
    each(array).try_for_each(|element| element.map(drop)).map_err(|error| describe(&error))?;
    Ok(Records::Elements(array))
}

fn each(array: &str) -> impl Iterator<Item = Result<Record<'_>, sonic_rs::Error>> {
    let values: ArrayJsonIter<'_> = to_array_iter(array);
    (1..).zip(values).map(|(line, value)| {
        let text = match value?.as_raw_cow() {
            Cow::Borrowed(text) => text.as_bytes().into(),
            Cow::Owned(text) => text.into_bytes().into(),
        };
        Ok(Record { line, text })
    })
}

fn trim(text: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let start = text.iter().position(|byte| !is_blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}
