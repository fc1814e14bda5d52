//! `CREATE MATERIALIZED VIEW`, and `CREATE VIEW`.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use sqlparser::ast::{CreateTableOptions, CreateView};
use sqlparser::tokenizer::Location;

use super::error::Fault;
use super::name::{defined_name, topic};
use super::option::{Given, Options, schedule};
use super::query::{self, Asker};
use super::relation::Names;
use super::sink;
use super::syntax::Source;
use crate::aggregation::{Aggregation, Late};
use crate::rows::Rows;
use crate::schedule::Schedule;
use crate::sink::Emission;
use crate::time::Micros;
use crate::view::{Catalog, End, View, ViewId};
use crate::window::Window;

/// Rows of state that a view keeps exactly, unless it says otherwise.
const MAX_ROWS: u64 = 5_000_000;

/// The name of a view, if nothing else has it, and nothing is said of the view but what is understood.
fn checked_name(create: &CreateView, source: &Source, names: &Names) -> Result<String, Fault> {
    let name = defined_name(&create.name)?;
    let understood = CreateView {
        or_alter: false,
        or_replace: false,
        materialized: create.materialized,
        secure: false,
        name: create.name.clone(),
        name_before_not_exists: false,
        columns: Vec::new(),
        query: create.query.clone(),
        options: create.options.clone(),
        cluster_by: Vec::new(),
        comment: None,
        with_no_schema_binding: false,
        if_not_exists: false,
        temporary: false,
        copy_grants: false,
        to: None,
        params: None,
    };
    if understood != *create {
        let message = "unsupported clause; a view is CREATE MATERIALIZED VIEW name [WITH (…)] AS SELECT …";
        return Err(Fault::new(source.start(), message));
    }
    let Catalog { tables, rows, views } = names.catalog;
    if views.contains_key(&name) || rows.contains_key(&name) {
        return Err(Fault::of(&create.name, format!("view `{name}` is defined twice")));
    }
    if tables.contains_key(&name) || names.broken.tables.contains(&name) {
        return Err(Fault::of(&create.name, format!("`{name}` is a table; a view needs a name of its own")));
    }
    Ok(name)
}

/// Plans a view of rows, of which nothing is kept. `None` if it is sound as far as can be told but what it reads isn't.
pub(super) fn rows(create: &CreateView, source: &Source, names: &Names) -> Result<Option<(String, Rows)>, Vec<Fault>> {
    let name = checked_name(create, source, names).map_err(|fault| vec![fault])?;
    if create.options != CreateTableOptions::None {
        let message = "nothing is kept or sent of a plain view, so it takes no options; write CREATE MATERIALIZED VIEW";
        return Err(vec![Fault::of(&create.name, message)]);
    }
    let rows = query::rows(&create.query, Asker::Reader, &source.tokens, names)?;
    Ok(rows.map(|rows| (name, rows)))
}

/// Plans a materialized view, which reads the views of rows of `above`, by their texts. `None` if it is sound as far as can be told
/// but what it reads isn't.
pub(super) fn plan(
    create: &CreateView,
    source: &Source,
    names: &Names,
    above: &Texts,
) -> Result<Option<View>, Vec<Fault>> {
    let one = |fault| vec![fault];
    let name = checked_name(create, source, names).map_err(one)?;
    let options = Options::read(&create.options, &[&OPTIONS[..], &sink::OPTIONS].concat());
    let (query, tokens) = (&create.query, &source.tokens);
    let view = |rows: Rows, end: End, allowed_lateness: Micros| {
        let rows = match &end {
            End::Keep(kept) => {
                let reads = |name: &str| kept.expressions().any(|expr| expr.reads(name));
                rows.keeping(&|name| kept.time.as_deref() == Some(name) || reads(name))
            }
            End::Send(_) => rows.keeping(&|_| true),
        };
        let definition = definition(&rows, allowed_lateness, create, above);
        View { id: ViewId { name: name.clone(), definition }, sql: source.text.clone(), rows, end }
    };
    let options = match options.map(|mut options| (options.text("sink"), options)) {
        Ok((Some(sink), mut options)) if options.has("emit") || query::aggregates(query) => {
            sink::Emitted::read(sink, &mut options, &name)
                .and_then(|emitted| Ok((Some(emitted), view_options(options)?)))
        }
        Ok((Some(sink), options)) => {
            let planned = sink::plan(&name, query, (sink, options), tokens, names)?;
            if let Some((rows, _)) = &planned {
                of_one_record(rows, create)?;
            }
            return Ok(planned.map(|(rows, sink)| view(rows, End::Send(sink), 0)));
        }
        Ok((None, options)) => view_options(options).map(|options| (None, options)),
        Err(fault) => Err(fault),
    };
    let query = query::aggregated(query, tokens, names);
    let (options, query) = match (options, query) {
        (Ok(options), Ok(query)) => (options, query),
        (Err(fault), Err(mut faults)) => {
            faults.insert(0, fault);
            return Err(faults);
        }
        (Err(fault), _) => return Err(one(fault)),
        (_, Err(faults)) => return Err(faults),
    };
    let Some((rows, asked)) = query else { return Ok(None) };
    check_current(&rows, asked.window, create)?;
    let (emitted, ViewOptions { allowed_lateness, late, schedule, max_rows, memory }) = options;
    let late = match late {
        Some((late, at)) if late != Late::Discard && rows.looks_across() => {
            let message = "late events can't be put aside of a view that joins or uses LAG: several records make a row; leave `late` out";
            return Err(one(Fault::new(at, message)));
        }
        Some((late, at)) => check_late(&name, late, at, &rows, asked.window, names.catalog).map_err(one)?,
        None => Late::default(),
    };
    let emission = emitted.map(|emitted| emitted.plan(&name, &rows, &asked, names.catalog));
    let emission = emission.transpose().map_err(one)?;
    if let (Some(Emission { topic, .. }), Late::Topic(late)) = (&emission, &late)
        && topic == late
    {
        let message =
            format!("`{name}` writes its rows and its late events to topic `{topic}`; choose another for one");
        return Err(one(Fault::of(&create.name, message)));
    }
    let aggregation = Aggregation { allowed_lateness, late, emission, schedule, max_rows, memory, ..asked };
    Ok(Some(view(rows, End::Keep(Box::new(aggregation)), allowed_lateness)))
}

/// Refuses what can't be made of a changelog's current rows.
fn check_current(rows: &Rows, window: Option<Window>, create: &CreateView) -> Result<(), Vec<Fault>> {
    let Some(table) = rows.current() else { return Ok(()) };
    let refuse =
        |why: &str| Err(vec![Fault::of(&create.name, format!("table `{}` is a changelog: {why}", table.name))]);
    if rows.joins_or_lags() {
        return refuse("events are joined with it FOR SYSTEM_TIME AS OF their time, and LAG looks back at events");
    }
    match window {
        Some(_) => refuse("each of its current rows may change at any time, so they are in no window; leave it out"),
        None => Ok(()),
    }
}

/// Refuses to send what several records make.
fn of_one_record(rows: &Rows, create: &CreateView) -> Result<(), Vec<Fault>> {
    let message = match (rows.current(), rows.looks_across()) {
        (_, false) => return Ok(()),
        (Some(_), _) if !rows.joins_or_lags() => {
            "the current rows of a changelog are written as they change; add emit = 'changes'"
        }
        _ => "rows that joins and LAG make can be kept or aggregated, but not sent yet",
    };
    Err(vec![Fault::of(&create.name, message)])
}

/// Refuses a side output of what can't be late, and a topic that can't be written.
fn check_late(
    name: &str,
    late: Late,
    at: Location,
    rows: &Rows,
    window: Option<Window>,
    catalog: &Catalog,
) -> Result<Late, Fault> {
    if window.is_none() {
        let message = format!("`{name}` has no windows that an event could be late for; leave `late` out");
        return Err(Fault::new(at, message));
    }
    if let Late::Topic(topic) = &late {
        sink::check_topic(name, &Given { text: topic.clone(), at }, rows, catalog)?;
    }
    Ok(late)
}

/// The options of a view without a sink.
const OPTIONS: [&str; 8] =
    ["allowed_lateness", "late", "late_topic", "batch", "schedule_zone", "catch_up", "max_rows", "memory"];

struct ViewOptions {
    allowed_lateness: Micros,
    late: Option<(Late, Location)>,
    schedule: Option<Schedule>,
    max_rows: usize,
    memory: Option<usize>,
}

/// Where late events go, and where that is said.
fn late(options: &mut Options) -> Result<Option<(Late, Location)>, Fault> {
    let (kind, to) = (options.text("late"), options.text("late_topic"));
    let Some(Given { text, at }) = kind else {
        return to.map_or(Ok(None), |to| Err(Fault::new(to.at, "option `late_topic` goes with late = 'topic'")));
    };
    let late = match (text.as_str(), to) {
        ("topic", Some(to)) => {
            let at = to.at;
            return Ok(Some((Late::Topic(topic(to)?), at)));
        }
        ("topic", None) => return Err(Fault::new(at, "late = 'topic' needs to know which; add late_topic = 'name'")),
        ("discard" | "rejects", Some(to)) => {
            return Err(Fault::new(to.at, "option `late_topic` goes with late = 'topic'"));
        }
        ("discard", None) => Late::Discard,
        ("rejects", None) => Late::Rejects,
        (other, _) => {
            let message = format!("late = `{other}`: late events go to `rejects`, to a `topic`, or are `discard`ed");
            return Err(Fault::new(at, message));
        }
    };
    Ok(Some((late, at)))
}

fn view_options(mut options: Options) -> Result<ViewOptions, Fault> {
    let read = ViewOptions {
        allowed_lateness: options.duration("allowed_lateness")?.unwrap_or(0),
        late: late(&mut options)?,
        schedule: schedule(&mut options)?,
        max_rows: options.number("max_rows", 1..=u64::from(u32::MAX))?.unwrap_or(MAX_ROWS) as usize,
        memory: options.bytes("memory")?.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
    };
    match options.rest() {
        None => Ok(read),
        Some((name, given)) => {
            Err(Fault::new(given.at, format!("option `{name}` goes with a sink; add sink = 'kafka', or leave it out")))
        }
    }
}

/// Raised when the same SQL means something else, or when what is kept of a group is stored otherwise: checkpoints, versions and
/// snapshots of before are then of another definition, which nothing reads.
const EDITION: u32 = 2;

/// The queries of views of rows, by name.
pub(super) type Texts = BTreeMap<String, String>;

/// What the rows mean, in one hash: not the schedule, the limits on memory, white space or comments.
fn definition(rows: &Rows, allowed_lateness: Micros, create: &CreateView, above: &Texts) -> String {
    let tables: BTreeSet<&str> = rows.inputs().into_iter().map(|table| table.sql.as_str()).collect();
    let tables = tables.into_iter().collect::<Vec<_>>().join("\n");
    let mut canonical =
        format!("edition {EDITION}\n{tables}\nallowed_lateness = {allowed_lateness} us\n{}", create.query);
    canonical.extend(above.iter().map(|(name, query)| format!("\n{name} AS {query}")));
    let hash = Sha256::digest(canonical.as_bytes());
    hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}
