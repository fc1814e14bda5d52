//! Text functions that most events of a stream of texts go through, without the detours that Polars' own take.

use anabranch_plan::expr::Part;
use memchr::memchr;
use polars::prelude::*;
use polars_arrow::array::{ListArray, MutableBinaryViewArray};
use polars_arrow::bitmap::BitmapBuilder;
use regex_automata::meta::{Cache, Regex};
use regex_automata::util::iter::Searcher;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::literal::Extractor;

/// Texts in lower case. Most are ASCII, whose bytes are lowered many at once.
pub(super) fn lower(texts: &StringChunked) -> StringChunked {
    let mut lowered = MutableBinaryViewArray::<str>::with_capacity(texts.len());
    let mut buffer = String::new();
    for text in texts.iter() {
        match text {
            None => lowered.push_null(),
            Some(text) if text.is_ascii() => {
                buffer.clear();
                buffer.push_str(text);
                buffer.make_ascii_lowercase();
                lowered.push_value(buffer.as_str());
            }
            Some(text) => lowered.push_value(text.to_lowercase()),
        }
    }
    StringChunked::with_chunk(texts.name().clone(), lowered.freeze())
}

/// A pattern, looked for in many texts.
pub(super) struct Pattern {
    regex: Regex,
    /// The byte that every match begins with, if there is one.
    first: Option<u8>,
}

impl Pattern {
    /// A pattern that was checked when the project was loaded.
    pub fn new(pattern: &str) -> PolarsResult<Self> {
        let failed = |error: String| polars_err!(ComputeError: "the pattern `{pattern}` can't be used: {error}");
        let parsed = regex_syntax::parse(pattern).map_err(|error| failed(error.to_string()))?;
        let prefixes = Extractor::new().extract(&parsed);
        let firsts = prefixes.literals().unwrap_or_default().iter().map(|literal| literal.as_bytes().first().copied());
        let firsts: Option<Vec<u8>> = firsts.collect();
        let first = firsts.filter(|firsts| firsts.windows(2).all(|pair| pair[0] == pair[1]));
        let regex = Regex::new(pattern).map_err(|error| failed(error.to_string()))?;
        Ok(Self { regex, first: first.and_then(|firsts| firsts.first().copied()) })
    }

    /// Tells of each match in a text, from left to right. Where a match has to begin is known without looking back from its end
    /// if all begin with one byte.
    fn each<'t>(&self, cache: &mut Cache, text: &'t str, mut tell: impl FnMut(&'t str)) {
        let Some(first) = self.first else {
            let mut searcher = Searcher::new(Input::new(text));
            while let Some(found) = searcher.advance(|input| Ok(self.regex.search_with(cache, input))) {
                tell(&text[found.range()]);
            }
            return;
        };
        let mut at = 0;
        while let Some(candidate) = memchr(first, &text.as_bytes()[at..]) {
            let start = at + candidate;
            let input = Input::new(text).range(start..).anchored(Anchored::Yes);
            at = match self.regex.search_half_with(cache, &input) {
                Some(found) => {
                    tell(&text[start..found.offset()]);
                    found.offset().max(start + 1)
                }
                None => start + 1,
            };
        }
    }

    /// Every match in each text, as lists.
    pub fn extract_all(&self, texts: &StringChunked) -> PolarsResult<ListChunked> {
        let mut cache = self.regex.create_cache();
        let mut matches = MutableBinaryViewArray::<str>::with_capacity(texts.len());
        let mut ends = Vec::with_capacity(texts.len() + 1);
        ends.push(0_i64);
        let mut there = BitmapBuilder::with_capacity(texts.len());
        for text in texts.iter() {
            there.push(text.is_some());
            if let Some(text) = text {
                self.each(&mut cache, text, |found| matches.push_value(found));
            }
            ends.push(matches.len() as i64);
        }
        let matches = matches.freeze();
        let data_type = ListArray::<i64>::default_datatype(polars_arrow::datatypes::ArrowDataType::Utf8View);
        let validity = there.into_opt_validity();
        let lists = ListArray::try_new(data_type, ends.try_into()?, Box::new(matches), validity)?;
        Ok(ListChunked::with_chunk(texts.name().clone(), lists))
    }
}

/// What stands in the place of a pattern's matches.
pub(super) struct Replacement {
    regex: regex::Regex,
    with: Vec<Part>,
    all: bool,
}

impl Replacement {
    /// A pattern that was checked when the project was loaded.
    pub fn new(pattern: &str, with: &[Part], all: bool) -> PolarsResult<Self> {
        let regex = regex::Regex::new(pattern)
            .map_err(|error| polars_err!(ComputeError: "the pattern `{pattern}` can't be used: {error}"))?;
        Ok(Self { regex, with: with.to_vec(), all })
    }

    /// Each text with its first match replaced, or with all.
    pub fn replace(&self, texts: &StringChunked) -> StringChunked {
        let with = |found: &regex::Captures<'_>| {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Group(group) => found.get(*group).map_or_else(String::new, |group| group.as_str().to_owned()),
            };
            self.with.iter().map(part).collect::<String>()
        };
        let most = if self.all { 0 } else { 1 };
        texts.apply_values(|text| self.regex.replacen(text, most, with))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(texts: &[Option<String>]) -> StringChunked {
        StringChunked::from_iter_options("t".into(), texts.iter().map(Option::as_deref))
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        let piece = prop::sample::select(vec![
            "#", "#Tag", "##a", "ß", "Σ", "ΑΣ", "İ", "é", " ", "a", "ab", "#ü1_", "", "b#", "aaa", "\u{301}",
        ]);
        proptest::option::weighted(0.9, prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()))
    }

    proptest! {
        #[test]
        fn they_say_what_rust_says(
            given in prop::collection::vec(text(), 0..12),
            pattern in prop::sample::select(vec![r"#\w+", "#", "a*", "aa", "(?i)TAG|#", r"#\w*?", "ü?", r"\b\w", "#a|#ü", "^#", "(?:)", "[#a]b"]),
        ) {
            let lowered: Vec<Option<String>> = given.iter().map(|text| text.as_ref().map(|text| text.to_lowercase())).collect();
            prop_assert_eq!(lower(&texts(&given)).into_series(), texts(&lowered).into_series());
            let regex = regex::Regex::new(pattern).expect("a pattern");
            let lists = Pattern::new(pattern).expect("a pattern").extract_all(&texts(&given)).expect("matches");
            prop_assert_eq!(lists.len(), given.len());
            for (list, text) in lists.iter().zip(&given) {
                let found = list.as_ref().map(|array| {
                    let series = Series::try_from((PlSmallStr::EMPTY, array.clone())).expect("texts");
                    series.str().expect("text").iter().flatten().map(str::to_owned).collect::<Vec<_>>()
                });
                let expected = text.as_ref().map(|text| regex.find_iter(text).map(|found| found.as_str().to_owned()).collect());
                prop_assert_eq!(found, expected, "{} in {:?}", pattern, text);
            }
        }
    }
}
