//! The functions that SQL may call: a catalog, which the planner reads, and what lists and documents them.

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its names. The first is the one that others stand for.
    pub names: &'static [&'static str],
    /// What it takes.
    pub takes: &'static str,
    /// The type of its value.
    pub gives: &'static str,
    /// When its value is null.
    pub null: Null,
    /// What it does, in a line.
    pub what: &'static str,
    /// How DuckDB writes it, if otherwise.
    pub duckdb: Option<&'static str>,
    /// How Spark writes it, if otherwise.
    pub spark: Option<&'static str>,
}

/// When a function's value is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Null {
    /// If what it is of is null.
    OfNull,
    /// If what it is of is null, and where there is nothing to be found or read.
    OfNothing,
    /// As its own line says.
    AsSaid,
    /// Never.
    Never,
    /// If there is no value that isn't null.
    OfNoValue,
}

impl Null {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::OfNull => "of null",
            Self::OfNothing => "of null, and where nothing is found",
            Self::AsSaid => "as said",
            Self::Never => "never",
            Self::OfNoValue => "of no value",
        }
    }
}

const fn entry(
    names: &'static [&'static str],
    takes: &'static str,
    gives: &'static str,
    null: Null,
    what: &'static str,
) -> Entry {
    Entry { names, takes, gives, null, what, duckdb: None, spark: None }
}

impl Entry {
    const fn in_duckdb(self, text: &'static str) -> Self {
        Self { duckdb: Some(text), ..self }
    }

    const fn in_spark(self, text: &'static str) -> Self {
        Self { spark: Some(text), ..self }
    }

    /// The name that its others stand for.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }
}

/// The functions of a row's values. Patterns, parts, paths and separators are constants.
pub const SCALARS: &[Entry] = &[
    entry(&["lower"], "(text)", "TEXT", Null::OfNull, "the text in lower case"),
    entry(&["upper"], "(text)", "TEXT", Null::OfNull, "the text in upper case"),
    entry(
        &["trim"],
        "(text)",
        "TEXT",
        Null::OfNull,
        "the text without the spaces at its ends, but with other white space",
    ),
    entry(&["length", "char_length", "character_length"], "(text)", "BIGINT", Null::OfNull, "the number of characters"),
    entry(
        &["substring", "substr"],
        "(text, from[, length])",
        "TEXT",
        Null::OfNull,
        "a part of the text, counted in characters from 1",
    ),
    entry(
        &["replace"],
        "(text, what, with)",
        "TEXT",
        Null::OfNull,
        "the text with another one in place of each occurrence",
    ),
    entry(&["starts_with"], "(text, prefix)", "BOOLEAN", Null::OfNull, "whether the text begins so")
        .in_spark("startswith(text, prefix)"),
    entry(&["ends_with"], "(text, suffix)", "BOOLEAN", Null::OfNull, "whether the text ends so")
        .in_spark("endswith(text, suffix)"),
    entry(&["contains"], "(text, part)", "BOOLEAN", Null::OfNull, "whether the text has the part"),
    entry(&["regexp_matches", "regexp_like"], "(text, pattern)", "BOOLEAN", Null::OfNull, "whether the pattern occurs")
        .in_spark("regexp_like(text, pattern)"),
    entry(
        &["regexp_extract"],
        "(text, pattern[, group])",
        "TEXT",
        Null::OfNull,
        "the first match, or its group; the empty text if there is none",
    ),
    entry(&["regexp_extract_all"], "(text, pattern)", "TEXT[]", Null::OfNull, "every match")
        .in_spark("regexp_extract_all(text, pattern, 0)"),
    entry(
        &["regexp_replace"],
        "(text, pattern, with[, 'g'])",
        "TEXT",
        Null::OfNull,
        "the text with another one in place of the first match, or of every one",
    )
    .in_spark("regexp_replace(text, pattern, with), of every match"),
    entry(&["string_split", "split"], "(text, separator)", "TEXT[]", Null::OfNull, "what stands between separators")
        .in_spark("split(text, pattern)"),
    entry(
        &["json_extract_string"],
        "(json, path)",
        "TEXT",
        Null::OfNothing,
        "what is at the path: a text as it is, else JSON",
    )
    .in_spark("get_json_object(json, path)"),
    entry(&["coalesce"], "(x, …)", "that of x", Null::AsSaid, "the first that is not null"),
    entry(&["nullif"], "(x, y)", "that of x", Null::AsSaid, "null if they are equal, else x"),
    entry(&["abs"], "(number)", "that of the number", Null::OfNull, "the number without its sign"),
    entry(&["round"], "(number)", "that of the number", Null::OfNull, "the nearest whole number, half away from zero"),
    entry(&["floor"], "(number)", "that of the number", Null::OfNull, "the largest whole number that isn't larger"),
    entry(
        &["ceil", "ceiling"],
        "(number)",
        "that of the number",
        Null::OfNull,
        "the smallest whole number that isn't smaller",
    ),
    entry(
        &["date_trunc"],
        "('unit', timestamp)",
        "TIMESTAMP",
        Null::OfNull,
        "where the unit begins, in UTC: second, minute, hour, day, month or year",
    ),
    entry(&["extract"], "(unit FROM timestamp)", "BIGINT", Null::OfNull, "the unit's number, in UTC"),
];

/// The functions of a group's values. Each may have `FILTER (WHERE …)`.
pub const AGGREGATES: &[Entry] = &[
    entry(
        &["count"],
        "(*), (x) or (DISTINCT x)",
        "BIGINT",
        Null::Never,
        "how many rows there are, how many values, or how many distinct ones",
    ),
    entry(&["sum"], "(x)", "that of x", Null::OfNoValue, "the sum; of integers null if it leaves 64 bits"),
    entry(&["avg"], "(x)", "DOUBLE", Null::OfNoValue, "the mean"),
    entry(&["min"], "(x)", "that of x", Null::OfNoValue, "the smallest value"),
    entry(&["max"], "(x)", "that of x", Null::OfNoValue, "the largest value"),
    entry(
        &["var_samp", "var", "variance"],
        "(x)",
        "DOUBLE",
        Null::OfNoValue,
        "the variance of a sample; null of one value",
    ),
    entry(&["var_pop"], "(x)", "DOUBLE", Null::OfNoValue, "the variance"),
    entry(
        &["stddev_samp", "stddev"],
        "(x)",
        "DOUBLE",
        Null::OfNoValue,
        "the standard deviation of a sample; null of one value",
    ),
    entry(&["stddev_pop"], "(x)", "DOUBLE", Null::OfNoValue, "the standard deviation"),
    entry(&["arg_min"], "(x, by)", "that of x", Null::OfNoValue, "the value where the other one is smallest")
        .in_spark("min_by(x, by)"),
    entry(&["arg_max"], "(x, by)", "that of x", Null::OfNoValue, "the value where the other one is largest")
        .in_spark("max_by(x, by)"),
    entry(&["approx_count_distinct"], "(x)", "BIGINT", Null::Never, "how many distinct values there are")
        .in_duckdb("count(DISTINCT x)")
        .in_spark("count(DISTINCT x)"),
    entry(
        &["approx_percentile"],
        "(x, share)",
        "DOUBLE",
        Null::OfNoValue,
        "the smallest value with that share of the values at or below it",
    )
    .in_duckdb("quantile_disc(x, share)")
    .in_spark("percentile_disc(share) WITHIN GROUP (ORDER BY x)"),
];

/// The entry of a scalar function by any of its names.
pub fn scalar(name: &str) -> Option<&'static Entry> {
    SCALARS.iter().find(|entry| entry.names.contains(&name))
}

/// The entry of an aggregate by any of its names.
pub fn aggregate(name: &str) -> Option<&'static Entry> {
    AGGREGATES.iter().find(|entry| entry.names.contains(&name))
}
