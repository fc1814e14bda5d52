//! Records of the plainest kind, which most are: one object whose values are whole numbers, truth values, nulls and strings
//! without an escape. They are read in one pass, eight bytes at a time; whatever is otherwise is left to the parser, whose
//! word on what is JSON stands: this one accepts nothing that the parser doesn't, and reads it the same.

use super::record::{Layout, Slot};

/// So many digits always fit into 64 bits.
const MOST_DIGITS: usize = 18;

/// Reads a record into `slots`, one for each column of the layout. Whether it was plain: otherwise the slots are of no use.
pub(super) fn read<'a>(record: &'a str, layout: &mut Layout, slots: &mut [Slot<'a>]) -> bool {
    slots.fill(Slot::Null);
    let mut text = Text { text: record, at: 0 };
    let is_plain = object(&mut text, layout, slots).is_some();
    is_plain && text.white_space() == record.len()
}

struct Text<'a> {
    text: &'a str,
    at: usize,
}

fn object<'a>(text: &mut Text<'a>, layout: &mut Layout, slots: &mut [Slot<'a>]) -> Option<()> {
    text.sign(b'{')?;
    if text.sign(b'}').is_some() {
        return Some(());
    }
    for place in 0.. {
        text.sign(b'"')?;
        let column = layout.column(place, text.string()?);
        text.sign(b':')?;
        text.white_space();
        let start = text.at;
        let value = text.value()?;
        if let Some(column) = column {
            let is_json = layout.columns[column].as_ref().is_some_and(|(_, is_json)| *is_json);
            slots[column] = if is_json && value != Slot::Null { Slot::Json(&text.text[start..text.at]) } else { value };
        }
        if text.sign(b',').is_none() {
            return text.sign(b'}');
        }
    }
    None
}

impl<'a> Text<'a> {
    fn next(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Passes over white space; returns where it ends.
    fn white_space(&mut self) -> usize {
        while matches!(self.next(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
        self.at
    }

    /// Passes over a sign, and white space before it, if it is there.
    fn sign(&mut self, sign: u8) -> Option<()> {
        self.white_space();
        (self.next() == Some(sign)).then(|| self.at += 1)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self) -> Option<Slot<'a>> {
        match self.next()? {
            b'"' => {
                self.at += 1;
                self.string().map(Slot::Text)
            }
            b'-' | b'0'..=b'9' => self.integer().map(Slot::Integer),
            b't' => self.word("true").map(|()| Slot::Boolean(true)),
            b'f' => self.word("false").map(|()| Slot::Boolean(false)),
            b'n' => self.word("null").map(|()| Slot::Null),
            _ => None,
        }
    }

    /// The string whose first quote was passed.
    fn string(&mut self) -> Option<&'a str> {
        let start = self.at;
        let end = start + special(&self.text.as_bytes()[start..])?;
        self.at = end + 1;
        (self.text.as_bytes()[end] == b'"').then(|| &self.text[start..end])
    }

    fn integer(&mut self) -> Option<i64> {
        let start = self.at;
        let is_negative = self.next() == Some(b'-');
        self.at += usize::from(is_negative);
        let first = self.at;
        let mut value = 0_i64;
        while let Some(digit @ b'0'..=b'9') = self.next() {
            if self.at - first == MOST_DIGITS {
                return None;
            }
            value = value * 10 + i64::from(digit - b'0');
            self.at += 1;
        }
        let digits = &self.text[first..self.at];
        let is_whole = !matches!(self.next(), Some(b'.' | b'e' | b'E'));
        // JSON has no leading zeros, and a zero below zero is a fraction to the parser.
        let is_plain = !digits.is_empty() && (digits == "0" && start == first || !digits.starts_with('0'));
        (is_whole && is_plain).then_some(if is_negative { -value } else { value })
    }
}

/// Where the first quote, backslash or control character is.
fn special(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // Borrows go up only, so that the lowest byte found is always a true one. (Warren, Hacker's Delight, 6-1.)
    let is_zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
    let mut at = 0;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let x = u64::from_le_bytes(*chunk);
        let control = x.wrapping_sub(ONES * 0x20) & !x & HIGH;
        let found = is_zero(x ^ (ONES * u64::from(b'"'))) | is_zero(x ^ (ONES * u64::from(b'\\'))) | control;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    bytes[at..].iter().position(|&byte| matches!(byte, b'"' | b'\\' | 0..0x20)).map(|i| at + i)
}
