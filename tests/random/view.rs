//! Random views, each written twice: in our SQL and in DuckDB's, which has no windows, no watermarks and no frontier.

use proptest::prelude::*;

/// Microseconds.
pub type Micros = i64;

/// Our SQL of the table. `watermark` and the events' times are in microseconds.
pub fn table(watermark: Micros) -> String {
    format!(
        "CREATE TABLE events (k TEXT, v BIGINT, d DOUBLE, s TEXT, b BOOLEAN, u BIGINT, ts TIMESTAMP NOT NULL)
         WITH (topic = 'events', event_time = 'ts', watermark = '{} ms', partitions = 2, partition_by = 'k');",
        watermark / 1_000
    )
}

/// How events are put into windows. Lengths are in units of the stream's time.
#[derive(Debug, Clone, Copy)]
pub enum Window {
    None,
    Tumble { size: i64, offset: i64 },
    Hop { slide: i64, size: i64, offset: i64 },
    Days,
    Session { gap: i64 },
}

/// By way of what a view reads the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Table,
    View,
    With,
    Subquery,
}

/// An aggregate: its call in our SQL and in DuckDB's, and whether rows can be ordered by it without rounding.
#[derive(Debug, Clone)]
pub struct Aggregate {
    ours: String,
    theirs: String,
    is_whole: bool,
    pub is_sketch: bool,
}

impl Aggregate {
    /// Whether the oracle divides what it adds up by how many values there are.
    pub fn is_mean(&self) -> bool {
        self.ours.starts_with("avg(")
    }

    /// Whether DuckDB computes it with rounding on the way.
    pub fn is_spread(&self) -> bool {
        self.ours.starts_with("var_") || self.ours.starts_with("stddev_")
    }
}

/// A view.
#[derive(Debug, Clone)]
pub struct View {
    pub window: Window,
    by: By,
    has_words: bool,
    filter: Option<String>,
    keys: Vec<String>,
    pub aggregates: Vec<Aggregate>,
    having: Option<(usize, &'static str, i64)>,
    order: Option<(usize, bool, usize)>,
    lateness: Option<i64>,
    max_rows: Option<u32>,
}

/// The zone of daily windows.
const ZONE: &str = "America/New_York";

impl View {
    /// The first rows of each window by an aggregate, if the view has only these: which one, whether the largest, how many.
    pub fn limit(&self) -> Option<(usize, bool, usize)> {
        let is_session = matches!(self.window, Window::Session { .. });
        self.order.filter(|(by, ..)| !is_session && self.aggregates.get(*by).is_some_and(|a| a.is_whole))
    }

    pub fn is_session(&self) -> bool {
        matches!(self.window, Window::Session { .. })
    }

    pub fn keys(&self) -> usize {
        self.keys.len() + usize::from(self.has_words)
    }

    fn having(&self) -> Option<(usize, &'static str, i64)> {
        self.having.filter(|(of, ..)| self.aggregates.get(*of).is_some_and(|a| a.is_whole))
    }

    fn key_exprs(&self) -> Vec<String> {
        let words = self.has_words.then(|| "word".to_owned());
        self.keys.iter().cloned().chain(words).collect()
    }

    /// Our SQL.
    pub fn ours(&self, name: &str, unit: Micros) -> String {
        let interval = |units: i64| format!("INTERVAL '{} milliseconds'", units * unit / 1_000);
        let filter = self.filter.as_ref().map_or_else(String::new, |filter| format!(" WHERE {filter}"));
        let inner = format!("SELECT *, ts AS at FROM events{filter}");
        let (before, with, rows) = match self.by {
            By::Table => (String::new(), String::new(), "events, ts".to_owned()),
            By::View => (format!("CREATE VIEW {name}_rows AS {inner};"), String::new(), format!("{name}_rows, at")),
            By::With => (String::new(), format!("WITH q AS ({inner}) "), "q, at".to_owned()),
            By::Subquery => (String::new(), String::new(), format!("({inner}), at")),
        };
        let from = match self.window {
            Window::None => rows.rsplit_once(", ").map_or(&*rows, |(rows, _)| rows).to_owned(),
            Window::Tumble { size, offset: 0 } => format!("TUMBLE({rows}, {})", interval(size)),
            Window::Tumble { size, offset } => format!("TUMBLE({rows}, {}, {})", interval(size), interval(offset)),
            Window::Hop { slide, size, offset: 0 } => {
                format!("HOP({rows}, {}, {})", interval(slide), interval(size))
            }
            Window::Hop { slide, size, offset } => {
                format!("HOP({rows}, {}, {}, {})", interval(slide), interval(size), interval(offset))
            }
            Window::Days => format!("TUMBLE({rows}, INTERVAL '1 day', '{ZONE}')"),
            Window::Session { gap } => format!("SESSION({rows}, {})", interval(gap)),
        };
        let bounds = if matches!(self.window, Window::None) { vec![] } else { vec!["window_start", "window_end"] };
        let bounds: Vec<String> = bounds.into_iter().map(str::to_owned).collect();
        let keys = self.key_exprs();
        let mut selected = bounds.clone();
        selected.extend(keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}")));
        selected.extend(self.aggregates.iter().enumerate().map(|(i, a)| format!("{} AS a{i}", a.ours)));
        let grouped: Vec<String> = bounds.into_iter().chain((0..keys.len()).map(|i| format!("k{i}"))).collect();
        let words = if self.has_words { " CROSS JOIN UNNEST(regexp_extract_all(s, '[a-z]+')) AS w(word)" } else { "" };
        let mut sql = format!("{with}SELECT {} FROM {from}{words}", selected.join(", "));
        if self.by == By::Table {
            sql += &filter;
        }
        if !grouped.is_empty() {
            sql += &format!(" GROUP BY {}", grouped.join(", "));
        }
        if let Some((of, is, than)) = self.having() {
            sql += &format!(" HAVING a{of} {is} {than}");
        }
        if let Some((by, descending, most)) = self.limit() {
            sql += &format!(" ORDER BY a{by} {} LIMIT {most}", if descending { "DESC" } else { "ASC" });
        }
        let lateness = self.lateness.map(|units| format!("allowed_lateness = '{} ms'", units * unit / 1_000));
        let lateness = lateness.filter(|_| !matches!(self.window, Window::None));
        let max_rows = self.max_rows.map(|rows| format!("max_rows = {rows}"));
        let options: Vec<String> = lateness.into_iter().chain(max_rows).collect();
        let options = if options.is_empty() { String::new() } else { format!(" WITH ({})", options.join(", ")) };
        format!("{before} CREATE MATERIALIZED VIEW {name}{options} AS {sql};")
    }

    /// DuckDB's SQL over a table `events` whose times are `ts` and, in microseconds, `us`. It yields start and end of the
    /// window in microseconds, keys and aggregates; all rows if not `cut`, whatever HAVING and LIMIT say.
    pub fn theirs(&self, which: &str, unit: Micros, cut: bool) -> String {
        let rows = if self.has_words {
            format!("SELECT *, unnest(regexp_extract_all(s, '[a-z]+')) AS word FROM events WHERE {which}")
        } else {
            format!("SELECT * FROM events WHERE {which}")
        };
        let keys = self.key_exprs();
        let named: String = keys.iter().enumerate().map(|(i, key)| format!(", {key} AS k{i}")).collect();
        let names: Vec<String> = (0..keys.len()).map(|i| format!("k{i}")).collect();
        let filter = self.filter.as_deref().unwrap_or("true");
        let rows = format!("SELECT *{named} FROM ({rows}) WHERE {filter}");
        let windowed = match self.window {
            Window::None => format!("SELECT *, 0 AS ws, 0 AS we FROM ({rows})"),
            Window::Tumble { size, offset } => sliding(&rows, size * unit, size * unit, offset * unit),
            Window::Hop { slide, size, offset } => sliding(&rows, slide * unit, size * unit, offset * unit),
            Window::Days => {
                let day = format!("date_trunc('day', timezone('{ZONE}', timezone('UTC', ts)))");
                let instant = |day: &str| format!("epoch_us(timezone('{ZONE}', {day}))");
                let next = instant(&format!("({day} + INTERVAL 1 day)"));
                format!("SELECT *, {} AS ws, {next} AS we FROM ({rows})", instant(&day))
            }
            Window::Session { gap } => sessions(&rows, &names, gap * unit),
        };
        let grouped: Vec<&str> = ["ws", "we"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let grouped = grouped.join(", ");
        let aggregates: String =
            self.aggregates.iter().enumerate().map(|(i, a)| format!(", {} AS a{i}", a.theirs)).collect();
        let mut sql = format!("SELECT {grouped}{aggregates} FROM ({windowed}) GROUP BY {grouped}");
        if let (Window::None, true) = (self.window, names.is_empty()) {
            // There is one row of nothing, too.
            sql = format!("SELECT 0 AS ws, 0 AS we{aggregates} FROM ({windowed})");
        }
        if let (true, Some((of, is, than))) = (cut, self.having()) {
            sql += &format!(" HAVING a{of} {is} {than}");
        }
        if let (true, Some((by, descending, most))) = (cut, self.limit()) {
            let ties: String = names.iter().map(|name| format!(", {name} NULLS LAST")).collect();
            let direction = if descending { "DESC" } else { "ASC" };
            let place = format!("row_number() OVER (PARTITION BY we ORDER BY a{by} {direction} NULLS LAST{ties})");
            sql = format!("SELECT * FROM ({sql}) QUALIFY {place} <= {most}");
        }
        sql
    }
}

fn sliding(rows: &str, slide: Micros, size: Micros, offset: Micros) -> String {
    let floor = |time: &str| format!("CAST(floor(({time}) / {slide}.0) AS BIGINT) * {slide}");
    let first = floor(&format!("us - {offset} - {size}"));
    let last = floor(&format!("us - {offset}"));
    let starts = format!("generate_series({first} + {slide} + {offset}, {last} + {offset}, {slide})");
    format!("SELECT *, ws + {size} AS we FROM (SELECT *, unnest({starts}) AS ws FROM ({rows}))")
}

fn sessions(rows: &str, keys: &[String], gap: Micros) -> String {
    let of_keys = if keys.is_empty() { String::new() } else { format!("PARTITION BY {}", keys.join(", ")) };
    let and_number = if keys.is_empty() { "number".to_owned() } else { format!("{}, number", keys.join(", ")) };
    let begins = format!("CASE WHEN us - lag(us) OVER ({of_keys} ORDER BY us, n) < {gap} THEN 0 ELSE 1 END");
    let number = format!("sum(begins) OVER ({of_keys} ORDER BY us, n ROWS UNBOUNDED PRECEDING)");
    format!(
        "SELECT *, min(us) OVER (PARTITION BY {and_number}) AS ws, max(us) OVER (PARTITION BY {and_number}) + {gap} AS we
         FROM (SELECT *, {number} AS number FROM (SELECT *, {begins} AS begins FROM ({rows})))"
    )
}

type Sql = BoxedStrategy<String>;

fn whole() -> Sql {
    // Constants alone, and of more than 32 bits.
    const CONSTANTS: [&str; 3] = ["1 ELSE 0", "3000000000 ELSE 1", "-5 ELSE 700000000000"];
    let chosen = (condition(), proptest::sample::select(CONSTANTS.as_slice()))
        .prop_map(|(c, constants)| format!("CASE WHEN {c} THEN {constants} END"));
    let large = (small(), prop_oneof![Just('+'), Just('%')], 2_147_483_647_i64..90_000_000_000)
        .prop_map(|(x, sign, n)| format!("({x} {sign} {n})"));
    prop_oneof![5 => small(), 1 => chosen, 1 => large].boxed()
}

/// Whole numbers whose squares a DOUBLE holds, as the oracle computes deviations in these.
fn small() -> Sql {
    let leaf =
        prop_oneof![3 => Just("v"), 1 => Just("u"), 1 => Just("length(s)"), 1 => Just("extract(minute FROM ts)")];
    let leaf = leaf.prop_map(str::to_owned);
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), -3_i64..4).prop_map(|(x, n)| format!("({x} + {n})")),
            (inner.clone(), inner.clone()).prop_map(|(x, y)| format!("({x} - {y})")),
            (inner.clone(), 2_i64..5).prop_map(|(x, n)| format!("({x} * {n})")),
            (inner.clone(), 2_i64..5).prop_map(|(x, n)| format!("({x} % {n})")),
            inner.clone().prop_map(|x| format!("abs({x})")),
            (inner.clone(), -3_i64..4).prop_map(|(x, n)| format!("coalesce({x}, {n})")),
            (inner.clone(), -3_i64..4).prop_map(|(x, n)| format!("nullif({x}, {n})")),
            (condition(), inner.clone(), inner).prop_map(|(c, x, y)| format!("CASE WHEN {c} THEN {x} ELSE {y} END")),
        ]
    })
    .boxed()
}

fn double() -> Sql {
    let leaf = prop_oneof![Just("d"), Just("CAST(v AS DOUBLE)"), Just("(d + v)"), Just("(d * 0.5)"), Just("abs(d)")];
    leaf.prop_map(str::to_owned).boxed()
}

fn text() -> Sql {
    const TEXTS: [&str; 13] = [
        "k",
        "s",
        "lower(s)",
        "upper(s)",
        "trim(s)",
        "substring(s, 1, 2)",
        "(k || '-' || s)",
        "coalesce(s, 'none')",
        "nullif(k, 'k1')",
        "replace(s, 'a', 'xyz')",
        "CASE WHEN b THEN k ELSE s END",
        "CAST(v AS TEXT)",
        "regexp_extract(s, '[a-z]+')",
    ];
    proptest::sample::select(TEXTS.as_slice()).prop_map(str::to_owned).boxed()
}

fn list_of(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

fn condition() -> Sql {
    let leaf = prop_oneof![
        (-5_i64..100).prop_map(|n| format!("v > {n}")),
        (-5_i64..100, 0_i64..50).prop_map(|(n, m)| format!("v BETWEEN {n} AND {}", n + m)),
        (-20_i64..20).prop_map(|n| format!("d <= {n}.5")),
        (-20_i64..20).prop_map(|n| format!("v < {n}.5")),
        (0_i64..90).prop_map(|n| format!("ts - TIMESTAMP '1970-01-01 00:00:00' > INTERVAL '{n} seconds'")),
        (0_i64..90).prop_map(|n| format!("ts + INTERVAL '{n} hours' <= TIMESTAMP '1970-01-02 00:00:00'")),
        (0_i64..3_000_000_000).prop_map(|n| format!("v * 1000000000 > {n}")),
        proptest::collection::vec(-5_i64..100, 1..80).prop_map(|list| format!("v IN ({})", list_of(&list))),
        proptest::collection::vec(0_i64..80, 1..80).prop_map(|list| {
            let texts: Vec<String> =
                list.iter().map(|n| format!("'{}'", ["a", "b", "zzz", "x", "é"][*n as usize % 5])).collect();
            format!("s NOT IN ({})", texts.join(", "))
        }),
        proptest::sample::select(
            ["b", "v IS NULL", "k IS NOT NULL", "s LIKE '%a%'", "k IN ('k0', 'k2')", "s <> 'b'", "starts_with(s, 'a')"]
                .as_slice()
        )
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|x| format!("NOT ({x})")),
            (inner.clone(), inner.clone()).prop_map(|(x, y)| format!("({x} AND {y})")),
            (inner.clone(), inner).prop_map(|(x, y)| format!("({x} OR {y})")),
        ]
    })
    .boxed()
}

fn value() -> Sql {
    prop_oneof![3 => whole(), 1 => double(), 2 => text(), 1 => condition().prop_map(|c| format!("({c})"))].boxed()
}

fn aggregate() -> impl Strategy<Value = Aggregate> {
    let same = |call: String, is_whole| (call.clone(), call, is_whole, false);
    let number = || prop_oneof![3 => whole(), 1 => double()];
    let listed = |x: &str| format!("list(CAST({x} AS DOUBLE))");
    let whole_sum = whole().prop_map(|x| (format!("sum({x})"), format!("CAST(sum({x}) AS BIGINT)"), true, false));
    let spread = proptest::sample::select(["var_samp", "var_pop", "stddev_samp", "stddev_pop"].as_slice());
    let filter = || proptest::option::weighted(0.3, condition());
    let plain = prop_oneof![
        2 => Just(same("count(*)".to_owned(), true)),
        1 => value().prop_map(move |x| same(format!("count({x})"), true)),
        2 => whole_sum,
        // The oracle adds the values up itself, exactly: DuckDB's sum depends on their order.
        2 => double().prop_map(move |x| (format!("sum({x})"), listed(&x), false, false)),
        1 => number().prop_map(move |x| (format!("avg({x})"), listed(&x), false, false)),
        1 => (spread, prop_oneof![3 => small(), 1 => double()]).prop_map(move |(f, x)| same(format!("{f}({x})"), false)),
        1 => (prop_oneof![Just("min"), Just("max")], whole()).prop_map(move |(f, x)| same(format!("{f}({x})"), true)),
        1 => (prop_oneof![Just("min"), Just("max")], prop_oneof![double(), text()])
            .prop_map(move |(f, x)| same(format!("{f}({x})"), false)),
        1 => value().prop_map(|x| (format!("count(DISTINCT {x})"), format!("count(DISTINCT {x})"), true, true)),
        1 => value().prop_map(|x| (format!("approx_count_distinct({x})"), format!("count(DISTINCT {x})"), true, true)),
        1 => (number(), proptest::sample::select([0.0, 0.25, 0.5, 0.95, 1.0].as_slice())).prop_map(|(x, share)| {
            let theirs = format!("quantile_disc(CAST({x} AS DOUBLE), {share:?})");
            (format!("approx_percentile({x}, {share:?})"), theirs, false, true)
        }),
    ];
    let plain = (plain, filter()).prop_map(|((ours, theirs, is_whole, is_sketch), filter)| {
        let filtered = |call: String| match &filter {
            None => call,
            Some(filter) => match call.strip_prefix("CAST(sum(").and_then(|rest| rest.strip_suffix(" AS BIGINT)")) {
                Some(sum) => format!("CAST(sum({sum} FILTER (WHERE {filter}) AS BIGINT)"),
                None => format!("{call} FILTER (WHERE {filter})"),
            },
        };
        Aggregate { ours: filtered(ours), theirs: filtered(theirs), is_whole, is_sketch }
    });
    let place = prop_oneof![Just("u"), Just("ts"), Just("v"), Just("d"), Just("s")];
    let placed = (value(), place, any::<bool>(), filter()).prop_map(|(x, by, is_max, filter)| {
        let (name, direction) = if is_max { ("arg_max", "DESC") } else { ("arg_min", "ASC") };
        let is_there = format!("{x} IS NOT NULL AND {by} IS NOT NULL");
        let condition = filter.as_ref().map_or(is_there.clone(), |filter| format!("{is_there} AND ({filter})"));
        let ours = filter.map_or(String::new(), |filter| format!(" FILTER (WHERE {filter})"));
        Aggregate {
            ours: format!("{name}({x}, {by}){ours}"),
            theirs: format!("(list({x} ORDER BY {by} {direction}, {x} DESC) FILTER (WHERE {condition}))[1]"),
            is_whole: false,
            is_sketch: false,
        }
    });
    prop_oneof![5 => plain, 1 => placed]
}

fn window() -> impl Strategy<Value = Window> {
    let hop = (1_i64..12, 0_i64..30, 0_i64..12).prop_map(|(slide, more, offset)| Window::Hop {
        slide,
        size: slide + more,
        offset,
    });
    prop_oneof![
        1 => Just(Window::None),
        3 => (1_i64..40, prop_oneof![Just(0_i64), 0_i64..40]).prop_map(|(size, offset)| Window::Tumble { size, offset }),
        3 => hop,
        1 => Just(Window::Days),
        3 => (1_i64..30).prop_map(|gap| Window::Session { gap }),
    ]
}

/// A view, from all of the grammar.
pub fn view() -> impl Strategy<Value = View> {
    let key = prop_oneof![3 => text(), 1 => whole(), 1 => condition().prop_map(|c| format!("({c})"))];
    let keys = prop_oneof![3 => Just(vec!["k".to_owned()]), 4 => proptest::collection::vec(key, 0..3)];
    let having = proptest::option::weighted(0.2, (0_usize..3, prop_oneof![Just(">"), Just("<=")], -5_i64..50));
    let order = proptest::option::weighted(0.4, (0_usize..3, any::<bool>(), 1_usize..5));
    let by = proptest::sample::select([By::Table, By::Table, By::View, By::With, By::Subquery].as_slice());
    let shape = ((window(), by), proptest::bool::weighted(0.2), proptest::option::weighted(0.4, condition()), keys);
    let options = (proptest::option::weighted(0.4, 0_i64..20), proptest::option::weighted(0.15, 1_u32..12));
    (shape, proptest::collection::vec(aggregate(), 1..4), having, order, options).prop_map(
        |(((window, by), has_words, filter, keys), aggregates, having, order, (lateness, max_rows))| View {
            window,
            by,
            has_words,
            filter,
            keys,
            aggregates,
            having,
            order,
            lateness,
            max_rows,
        },
    )
}
