//! The forms of rows: which of them a client gets.

use std::cmp::Reverse;

/// The forms that rows are served in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// One JSON document with everything that is known of the rows.
    Json,
    /// RFC 4180, with a header line.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// An Arrow IPC stream.
    Arrow,
}

impl Format {
    /// All of them, the default first.
    pub const ALL: [Format; 4] = [Self::Json, Self::Csv, Self::Ndjson, Self::Arrow];

    /// Its name in queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
            Self::Arrow => "arrow",
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv",
            Self::Ndjson => "application/x-ndjson",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// What a response's `Content-Type` says.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            other => other.media_type(),
        }
    }

    /// The form that a client likes best by its `Accept` lines; none if it takes none of them. Of equally good ones the range that
    /// comes first decides, and of those in it the default.
    pub fn accepted<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let ranges: Vec<Range<'_>> = lines.flat_map(|line| line.split(',')).filter_map(Range::read).collect();
        if ranges.is_empty() {
            return Some(Self::Json);
        }
        let wanted = Self::ALL.into_iter().filter_map(|format| {
            let of_it = ranges.iter().enumerate().filter_map(|(i, range)| Some((range.closeness(format)?, i, range)));
            // The range that is closest to a form says how good it is, also that it isn't.
            let (_, i, range) = of_it.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
            (range.quality > 0).then_some((Reverse(range.quality), i, format))
        });
        wanted.min_by_key(|&(quality, i, _)| (quality, i)).map(|(_, _, format)| format)
    }
}

/// A range of media types that a client accepts.
struct Range<'a> {
    name: &'a str,
    /// From 0, not at all, to 1,000.
    quality: u16,
}

impl<'a> Range<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = parts.find_map(|part| {
            let (name, weight) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| weight.trim().parse::<f32>().ok())?
        });
        let quality =
            weight.filter(|weight| (0.0..=1.0).contains(weight)).map_or(1_000, |weight| (weight * 1_000.0) as u16);
        Some(Self { name, quality })
    }

    /// How closely it describes a form, if it does.
    fn closeness(&self, format: Format) -> Option<u8> {
        let is = |name: &str| self.name.eq_ignore_ascii_case(name);
        let kind = format.media_type().split_once('/').map_or("", |(kind, _)| kind);
        if is(format.media_type()) || format == Format::Ndjson && is("application/ndjson") {
            Some(2)
        } else if self.name.strip_suffix("/*").is_some_and(|of| of.eq_ignore_ascii_case(kind)) {
            Some(1)
        } else {
            is("*/*").then_some(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Format::{Arrow, Csv, Json, Ndjson};
    use super::*;

    #[test]
    fn a_client_gets_the_form_that_all_its_accept_lines_like_best() {
        let cases: [(&[&str], Option<Format>); 22] = [
            (&[], Some(Json)),
            (&["", " , "], Some(Json)),
            (&["*/*"], Some(Json)),
            (&["text/*"], Some(Csv)),
            (&["application/*"], Some(Json)),
            (&["TEXT/CSV"], Some(Csv)),
            (&["Application/NDJSON"], Some(Ndjson)),
            (&["text/csv, application/json"], Some(Csv)),
            (&["text/csv;q=0.5, application/x-ndjson;Q=0.8"], Some(Ndjson)),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Some(Json)),
            (&["text/html"], None),
            // All lines count.
            (&["text/html", "text/csv"], Some(Csv)),
            (&["text/csv;q=0.1", "application/vnd.apache.arrow.stream"], Some(Arrow)),
            // What is excluded is not served, whatever else would do.
            (&["application/json;q=0"], None),
            (&["*/*;q=0"], None),
            (&["*/*, application/json;q=0"], Some(Csv)),
            (&["application/json; q=0.000", "application/*"], Some(Ndjson)),
            (&["*/*;q=0, text/csv;q=0.2"], Some(Csv)),
            (&["text/*;q=0, */*;q=0.1"], Some(Json)),
            // The closer range decides, wherever it stands.
            (&["*/*, application/json;q=0.1"], Some(Csv)),
            (&["application/json;q=0.1, application/*;q=0.2, text/csv;q=0.15"], Some(Ndjson)),
            (&["application/json;charset=utf-8;q=nan, text/csv;q=7"], Some(Json)),
        ];
        for (lines, expected) in cases {
            assert_eq!(Format::accepted(lines.iter().copied()), expected, "{lines:?}");
        }
    }
}
