//! `json ->> path`: a part of a JSON text, as text. Numbers keep the digits that they are written with.

use polars::prelude::*;
use sonic_rs::{JsonType, JsonValueTrait, PointerNode};

/// A path to a part of a JSON text.
pub(super) struct Path(Vec<PointerNode>);

impl Path {
    /// A path in canonical form, which is `$` and any number of `.key`, `['key']` and `[0]`.
    pub fn new(path: &str) -> Self {
        let mut steps = Vec::new();
        let mut rest = path.strip_prefix('$').unwrap_or(path);
        while !rest.is_empty() {
            if let Some((key, after)) = rest.strip_prefix("['").and_then(|rest| rest.split_once("']")) {
                steps.push(PointerNode::from(key));
                rest = after;
            } else if let Some((index, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                steps.push(PointerNode::from(index.parse::<usize>().unwrap_or(usize::MAX)));
                rest = after;
            } else {
                let word = rest.strip_prefix('.').unwrap_or(rest);
                let (key, after) = word.split_at(word.find(['.', '[']).unwrap_or(word.len()));
                steps.push(PointerNode::from(key));
                rest = after;
            }
        }
        Self(steps)
    }

    /// What is there: a text as it is, null as none, everything else as JSON without white space.
    fn text(&self, json: &str) -> Option<String> {
        let found = sonic_rs::get(json, &self.0).ok()?;
        match found.get_type() {
            JsonType::Null => None,
            JsonType::String => found.as_str().map(str::to_owned),
            JsonType::Object | JsonType::Array => Some(compact(found.as_raw_str())),
            JsonType::Boolean | JsonType::Number => Some(found.as_raw_str().trim().to_owned()),
        }
    }

    /// What is there in each text.
    pub fn texts(&self, column: &Column) -> PolarsResult<Column> {
        let texts = column.str()?;
        let found: StringChunked = texts.iter().map(|text| text.and_then(|text| self.text(text))).collect();
        Ok(found.with_name(texts.name().clone()).into_column())
    }
}

/// Leaves out the white space between the parts of a JSON text.
fn compact(json: &str) -> String {
    let (mut is_string, mut is_escaped) = (false, false);
    let is_kept = |c: &char| {
        let kept = is_string || !c.is_ascii_whitespace();
        if is_escaped {
            is_escaped = false;
        } else if is_string && *c == '\\' {
            is_escaped = true;
        } else if *c == '"' {
            is_string = !is_string;
        }
        kept
    };
    json.chars().filter(is_kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_json_keep_their_digits() {
        let json = r#"{"big": 123456789012345678901234567890, "x": 1.10, "e": 1E3, "no": null, "yes": true,
            "text": "a\u00e9\n \"q\"", "list": [ 1, {"a b" : [2.50, " x \" y "]} ], "a-b": {"c": -0}, "twice": 1, "twice": 2, "\u006bey": 7}"#;
        for (path, part) in [
            ("$.big", Some("123456789012345678901234567890")),
            ("$.x", Some("1.10")),
            ("$.e", Some("1E3")),
            ("$.no", None),
            ("$.none", None),
            ("$.yes", Some("true")),
            ("$.text", Some("a\u{e9}\n \"q\"")),
            ("$.list", Some(r#"[1,{"a b":[2.50," x \" y "]}]"#)),
            ("$.list[1]['a b'][0]", Some("2.50")),
            ("$.list[2]", None),
            ("$.list.x", None),
            ("$['a-b'].c", Some("-0")),
            ("$.twice", Some("1")),
            ("$.key", Some("7")),
            ("$[0]", None),
        ] {
            assert_eq!(Path::new(path).text(json).as_deref(), part, "{path}");
        }
        assert_eq!(Path::new("$").text(" [ 1 , 2 ] ").as_deref(), Some("[1,2]"));
        assert_eq!(Path::new("$").text("5").as_deref(), Some("5"));
        assert_eq!(Path::new("$.a").text("5"), None);
    }
}
